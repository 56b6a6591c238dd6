//! Targets as requests meet them: where they are, how they prove themselves, whether the operator
//! lets them be called.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use proto::id::TargetId;
use proto::object::ObjectId;
use proto::proxy::Proxy;
use proto::target::{BaseUrl, PropagateTrace, Target, Timeouts};

use super::{OrgCompiler, header_names};
use crate::snapshot::CompiledTarget;
use crate::upstream::tls::{Roots, TlsSpec};
use crate::upstream::{self, CONNECTIONS_MAX_DEFAULT, Destination, DestinationParts, Host, Scheme};

impl OrgCompiler<'_> {
    pub(super) fn target(
        &mut self,
        id: TargetId,
        target: &Target,
    ) -> Result<Arc<CompiledTarget>, String> {
        if let Some(known) = self.targets.get(&id) {
            return Ok(known.clone());
        }
        let compiled = Arc::new(CompiledTarget {
            id,
            id_text: id.to_string().into(),
            base: BaseUrl::parse(&target.base_url)?,
            path: target.path_options(),
            forbidden: self.forbidden(id, target),
            rules: self.rules(ObjectId::Target(id), target.default_rule_effect)?,
            idempotency_header: target
                .retry
                .idempotency_header
                .as_ref()
                .and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()),
            breaker: self.compiler.breakers.of(id, target),
        });
        self.targets.insert(id, compiled.clone());
        Ok(compiled)
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

    pub(super) fn destination(
        &self,
        target: &Target,
        compiled: &CompiledTarget,
        timeouts: Timeouts,
    ) -> Result<Destination, String> {
        let origin = &compiled.base.origin;
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
            scheme: match origin.scheme {
                proto::hosts::Scheme::Http => Scheme::Http,
                proto::hosts::Scheme::Https => Scheme::Https,
            },
            host: Host::parse(&origin.host).map_err(|error| error.to_string())?,
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
