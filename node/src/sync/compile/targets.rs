//! Targets as requests meet them: where they are, how they prove themselves, whether the operator
//! lets them be called.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use proto::breaker::BreakerSettings;
use proto::endpoint;
use proto::health_check::HealthCheck;
use proto::hosts::Origin;
use proto::id::{ProxyId, TargetId};
use proto::object::ObjectId;
use proto::proxy::Proxy;
use proto::residence::Residence;
use proto::target::{BaseUrl, PropagateTrace, SLOW_START_MS_DEFAULT, Target, Timeouts};

use super::{OrgCompiler, TargetWithin, header_names};
use crate::endpoints::{Endpoint, Endpoints};
use crate::health_checks::{Checked, CheckedParts};
use crate::snapshot::CompiledTarget;
use crate::upstream::tls::{Roots, TlsSpec};
use crate::upstream::{self, CONNECTIONS_MAX_DEFAULT, Destination, DestinationParts, Host};

impl OrgCompiler<'_> {
    /// The target of a proxy, with those of its endpoints that the proxy's calls may go to. Control
    /// refuses to save a proxy that leaves none; one that is stored all the same is not called.
    pub(super) fn target_of(
        &mut self,
        id: ProxyId,
        proxy: &Proxy,
        target: &Target,
    ) -> Result<Arc<CompiledTarget>, String> {
        let state = self.state;
        let credential = proxy.target_credential_id;
        let stored = credential.and_then(|id| state.config.credential(id));
        let residence = Residence::of(proxy, stored.map(|stored| &stored.credential));
        if residence.is_outside(target) {
            let within = residence.words();
            let words = format!("no endpoint of {} is in {within}", proxy.target_id);
            self.fault(ObjectId::Proxy(id), words);
        }
        let may_go_to = target.endpoints.iter().map(|one| residence.has(one));
        self.target((proxy.target_id, may_go_to.collect()), target)
    }

    fn target(
        &mut self,
        key: TargetWithin,
        target: &Target,
    ) -> Result<Arc<CompiledTarget>, String> {
        if let Some(known) = self.targets.get(&key) {
            return Ok(known.clone());
        }
        let (id, within) = (key.0, &key.1);
        let forbidden = self.forbidden(id, target);
        let compiled = Arc::new(CompiledTarget {
            id,
            id_text: id.to_string().into(),
            base: BaseUrl::parse(&target.base_url)?,
            endpoints: self.endpoints((id, within), target, forbidden)?,
            origins: target.bases().map(|(_, base)| base.origin).collect(),
            path: target.path_options(),
            forbidden,
            rules: self.rules(ObjectId::Target(id), target.default_rule_effect)?,
            idempotency_header: target
                .retry
                .idempotency_header
                .as_ref()
                .and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()),
        });
        self.targets.insert(key, compiled.clone());
        Ok(compiled)
    }

    fn endpoints(
        &mut self,
        (id, within): (TargetId, &[bool]),
        target: &Target,
        forbidden: bool,
    ) -> Result<Endpoints, String> {
        let bases: Vec<BaseUrl> = target.bases().map(|(_, base)| base).collect();
        // A list in which one cannot be read would go with the others' terms.
        if bases.is_empty() || bases.len() != target.endpoints.len().max(1) {
            return Err("an address of its target is not a URL".into());
        }
        let alone = target.breaker.as_ref();
        let several = target.endpoints.len() > 1;
        let default = BreakerSettings::default();
        let settings = alone.or(several.then_some(&default));
        let own = &self.compiler.parts.keyring.region;
        let distances = endpoint::distances(&target.endpoints, own);
        let weights = target.endpoints.iter().map(|endpoint| endpoint.weight);
        let mut terms = distances.into_iter().zip(weights);
        let (org, id_text) = (self.state.config.org, id.to_string());
        let mut all = Vec::with_capacity(bases.len());
        for (at, base) in bases.into_iter().enumerate() {
            let (distance, weight) = terms.next().unwrap_or((0, 1));
            if within.get(at) == Some(&false) {
                continue;
            }
            let address = format!("{}{}", base.origin, base.path);
            let breakers = &self.compiler.breakers;
            let breaker = settings.map(|settings| breakers.of((org, id), &address, settings));
            let label: Arc<str> = base.origin.authority().into();
            let checked = match &target.health_check {
                Some(settings) if !forbidden => {
                    self.checked((id, target), (&base, address, &label), settings)?
                }
                _ => None,
            };
            let metrics = &self.compiler.parts.metrics;
            let counted = breaker.as_ref();
            let counters = counted.map(|breaker| metrics.endpoint(&id_text, &label, breaker));
            let durations = metrics.address(&base.origin);
            all.push(Endpoint {
                base,
                label,
                distance,
                weight,
                breaker,
                checked,
                named: several,
                counters,
                durations,
            });
        }
        let slow_start = target.slow_start_ms.unwrap_or(SLOW_START_MS_DEFAULT);
        let slow_start = Duration::from_millis(slow_start);
        Ok(Endpoints::new(all, slow_start, alone.is_some()))
    }

    /// Has an address asked whether it works, on the terms of requests.
    fn checked(
        &mut self,
        (id, target): (TargetId, &Target),
        (base, address, label): (&BaseUrl, String, &Arc<str>),
        settings: &HealthCheck,
    ) -> Result<Option<Arc<Checked>>, String> {
        let ms = Some(settings.timeout_ms());
        let timeouts = Timeouts {
            connect_ms: ms,
            first_byte_ms: ms,
            idle_ms: ms,
            total_ms: ms,
        };
        let parts = CheckedParts {
            org: self.state.config.org,
            target: id,
            address,
            label: label.clone(),
            settings: settings.clone(),
            destination: self.destination(target, &base.origin, timeouts)?,
        };
        let checked = self.compiler.parts.health_checks.of(parts);
        if let Some(checked) = &checked {
            self.compiler.parts.metrics.checked(checked);
        }
        Ok(checked)
    }

    /// Where a proxy's calls are dialled: one for each address of its target.
    pub(super) fn destinations(
        &self,
        target: &Target,
        compiled: &CompiledTarget,
        timeouts: Timeouts,
    ) -> Result<Box<[Arc<Destination>]>, String> {
        let made = compiled.endpoints.iter().map(|endpoint| {
            let made = self.destination(target, &endpoint.base.origin, timeouts)?;
            Ok(Arc::new(made))
        });
        made.collect()
    }

    /// Whether the operator does not let this target be called. Control refuses to save such a
    /// target; one that is stored all the same, or was before the setting changed, gets nothing
    /// from here.
    fn forbidden(&mut self, id: TargetId, target: &Target) -> bool {
        let problems = self.compiler.parts.policy.judge(target);
        for problem in &problems {
            let words = format!("{} {}", problem.pointer, problem.detail);
            self.fault(ObjectId::Target(id), words);
        }
        !problems.is_empty()
    }

    fn destination(
        &self,
        target: &Target,
        origin: &Origin,
        timeouts: Timeouts,
    ) -> Result<Destination, String> {
        let roots = match (&target.tls.ca, target.tls.insecure) {
            (_, true) => Roots::Unchecked,
            (Some(pem), false) => Roots::Only(pem.clone()),
            (None, false) => Roots::Platform,
        };
        let spec = TlsSpec {
            roots,
            ..TlsSpec::default()
        };
        let tls = self
            .compiler
            .tls
            .get(&spec)
            .map_err(|error| error.to_string())?;
        let guard = self
            .compiler
            .parts
            .guard
            .policy(self.slug, &target.allow_networks);
        let ms = |value: Option<u64>| value.map(Duration::from_millis);
        let default = upstream::Timeouts::default();
        Destination::new(DestinationParts {
            scheme: origin.scheme,
            host: Host::of(origin).map_err(|error| error.to_string())?,
            port: origin.port,
            tls,
            http2: target.http2,
            tenant: self.state.config.org.bits(),
            guard: Arc::new(guard),
            timeouts: upstream::Timeouts {
                connect: ms(timeouts.connect_ms).unwrap_or(default.connect),
                first_byte: ms(timeouts.first_byte_ms).unwrap_or(default.first_byte),
                idle: ms(timeouts.idle_ms).unwrap_or(default.idle),
                total: ms(timeouts.total_ms),
            },
            connections_max: CONNECTIONS_MAX_DEFAULT,
        })
        .map_err(|error| error.to_string())
    }
}

/// "60000 ms (`timeouts.first_byte_ms` of proxy payments, default)".
pub(super) fn first_byte_text(proxy: &Proxy, target: &Target, timeouts: Timeouts) -> String {
    let ms = timeouts.first_byte_ms.unwrap_or_default();
    let (owner, default) = if proxy.timeouts.first_byte_ms.is_some() {
        (format!("proxy {}", proxy.name), "")
    } else if target.timeouts.first_byte_ms.is_some() {
        (format!("target {}", target.name), "")
    } else {
        (format!("target {}", target.name), ", default")
    };
    format!("{ms} ms (`timeouts.first_byte_ms` of {owner}{default})")
}

/// The caller's fields that pass although they do not by default.
pub(super) fn passed(target: &Target) -> Vec<HeaderName> {
    let mut names = header_names(&target.pass_headers);
    if target.propagate_trace == PropagateTrace::Full {
        names.extend(["tracestate", "baggage"].map(HeaderName::from_static));
    }
    names
}
