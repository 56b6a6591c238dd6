//! Compiles a world into a snapshot: patterns, destinations, timeouts, secrets in force.
//!
//! An organisation whose state is the same `Arc` as before keeps its compiled proxies, and a proxy
//! that cannot be compiled keeps its last good form and is reported.

mod credentials;
mod meters;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use proto::credential::AuthType;
use proto::filter::{Direction, Filter};
use proto::id::{CredentialId, OrgId, ProxyId, TargetId};
use proto::meter::Meter;
use proto::object::{Body, ObjectId};
use proto::proxy::Proxy;
use proto::rule::{Rule, RuleSet};
use proto::seal::Keyring;
use proto::store::follow::{OrgState, World};
use proto::target::{BaseUrl, Target, Timeouts};

use super::guard::Guard;
use crate::hygiene::fields::RequestFields;
use crate::limits::Limits;
use crate::snapshot::{CompiledProxy, CompiledTarget, Snapshot, TargetCredential};
use crate::upstream::tls::{Roots, TlsCache, TlsSpec};
use crate::upstream::{self, CONNECTIONS_MAX_DEFAULT, Destination, DestinationParts, Host, Scheme};

/// What compiling needs besides the world.
pub struct Compiler {
    /// Opens secrets.
    pub keyring: Arc<Keyring>,
    /// Gives meters.
    pub limits: Arc<Limits>,
    /// The operator's dial guard.
    pub guard: Guard,
    /// The organisation whose aliases need no slug.
    pub default_org: String,
    tls: TlsCache,
    before: HashMap<OrgId, Compiled>,
}

/// One organisation, compiled.
struct Compiled {
    state: Arc<OrgState>,
    slug: String,
    proxies: BTreeMap<ProxyId, Arc<CompiledProxy>>,
}

/// A snapshot, and what could not be made part of it.
pub struct Outcome {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// One text for each object that keeps its last good form, or is left out.
    pub faults: Vec<String>,
}

impl Compiler {
    /// A compiler that has compiled nothing yet.
    pub fn new(
        keyring: Arc<Keyring>,
        limits: Arc<Limits>,
        guard: Guard,
        default_org: String,
    ) -> Self {
        let tls = TlsCache::default();
        Self {
            keyring,
            limits,
            guard,
            default_org,
            tls,
            before: HashMap::new(),
        }
    }

    /// The snapshot of a world.
    pub fn compile(&mut self, world: &World) -> Outcome {
        let mut faults = Vec::new();
        let mut names = HashMap::new();
        let mut compiled = HashMap::with_capacity(world.slugs.len());
        for (slug, org) in &world.slugs {
            let Some(state) = world.orgs.get(org) else {
                continue;
            };
            let before = self.before.remove(org);
            let now = match before {
                Some(before) if Arc::ptr_eq(&before.state, state) && before.slug == *slug => before,
                before => self.org(slug, state, before.as_ref(), &mut faults),
            };
            for proxy in now.proxies.values() {
                names.insert(proxy.id_text.clone(), proxy.clone());
                if let Some(alias) = &proxy.alias {
                    names.insert(format!("{slug}.{alias}").into(), proxy.clone());
                    if *slug == self.default_org {
                        names.insert(alias.clone(), proxy.clone());
                    }
                }
            }
            compiled.insert(*org, now);
        }
        self.before = compiled;
        let snapshot = Snapshot::new(names, self.keyring.digest_key.clone());
        Outcome { snapshot, faults }
    }

    fn org(
        &mut self,
        slug: &str,
        state: &Arc<OrgState>,
        before: Option<&Compiled>,
        faults: &mut Vec<String>,
    ) -> Compiled {
        let mut scope = OrgCompiler {
            compiler: self,
            slug,
            state,
            policies: Policies::of(state),
            targets: HashMap::new(),
            target_credentials: HashMap::new(),
        };
        let mut proxies = BTreeMap::new();
        for (id, object) in &state.config.objects {
            let (ObjectId::Proxy(id), Body::Proxy(proxy)) = (id, &object.body) else {
                continue;
            };
            let form = scope.proxy(*id, proxy).map(Arc::new).or_else(|fault| {
                faults.push(format!("proxy {id}: {fault}"));
                before
                    .and_then(|before| before.proxies.get(id).cloned())
                    .ok_or(())
            });
            if let Ok(form) = form {
                proxies.insert(*id, form);
            }
        }
        Compiled {
            state: state.clone(),
            slug: slug.to_owned(),
            proxies,
        }
    }
}

/// Rules, filters and meters by the object that they hang on.
#[derive(Default)]
struct Policies {
    rules: HashMap<ObjectId, Vec<Rule>>,
    filters: HashMap<ObjectId, Vec<Filter>>,
    /// Each with the version that last changed it.
    meters: HashMap<ObjectId, Vec<(u64, Meter)>>,
}

impl Policies {
    fn of(state: &OrgState) -> Self {
        let mut policies = Self::default();
        for object in state.config.objects.values() {
            match &object.body {
                Body::Rule(rule) => {
                    let mut spec = rule.spec.clone();
                    spec.id = object.id.to_string();
                    policies.rules.entry(rule.parent).or_default().push(spec);
                }
                Body::Filter(filter) => {
                    let mut spec = filter.spec.clone();
                    spec.id = object.id.to_string();
                    policies
                        .filters
                        .entry(filter.parent)
                        .or_default()
                        .push(spec);
                }
                Body::Meter(meter) => {
                    let mut spec = meter.spec.clone();
                    spec.id = object.id.to_string();
                    let hanging = policies.meters.entry(meter.parent).or_default();
                    hanging.push((object.version, spec));
                }
                _ => {}
            }
        }
        policies
    }

    fn filters(&self, parent: Option<ObjectId>, direction: Direction) -> Vec<Filter> {
        let all = parent.and_then(|parent| self.filters.get(&parent));
        let wanted = |filter: &&Filter| filter.direction == direction;
        all.into_iter().flatten().filter(wanted).cloned().collect()
    }

    fn meters(&self, parent: Option<ObjectId>) -> &[(u64, Meter)] {
        let all = parent.and_then(|parent| self.meters.get(&parent));
        all.map_or(&[], Vec::as_slice)
    }
}

struct OrgCompiler<'a> {
    compiler: &'a mut Compiler,
    slug: &'a str,
    state: &'a Arc<OrgState>,
    policies: Policies,
    targets: HashMap<TargetId, Arc<CompiledTarget>>,
    target_credentials: HashMap<CredentialId, Arc<TargetCredential>>,
}

impl OrgCompiler<'_> {
    fn proxy(&mut self, id: ProxyId, proxy: &Proxy) -> Result<CompiledProxy, String> {
        let state = self.state;
        let target = state
            .config
            .target(proxy.target_id)
            .ok_or("its target is missing")?;
        let compiled_target = self.target(proxy.target_id, target)?;
        let target_credential = match proxy.target_credential_id {
            Some(id) => Some(self.target_credential(id)?),
            None => None,
        };
        let mut credentials = Vec::with_capacity(proxy.proxy_credential_ids.len());
        for credential in &proxy.proxy_credential_ids {
            credentials.push(self.proxy_credential(*credential, id, proxy)?);
        }
        let injected = target_credential.as_ref();
        let injects = injected.is_some_and(|credential| credential.auth_type != AuthType::None);
        let cookies = proxy.cookies_pass(injects);
        let places = credentials::places(state, proxy, &credentials);
        let given = credentials
            .iter()
            .filter_map(|credential| credential.query.clone());
        let key_queries = places.queries.iter().cloned().chain(given).collect();
        let fallback = Timeouts::defaults_for(&compiled_target.base.origin.host);
        let timeouts = proxy.timeouts.or(target.timeouts).or(fallback);
        Ok(CompiledProxy {
            id,
            id_text: id.to_string().into(),
            org: state.config.org,
            alias: proxy.alias.as_deref().map(Into::into),
            version: state.config.head.n,
            active: proxy.active,
            places,
            credentials,
            rules: self.rules(ObjectId::Proxy(id), proxy.default_rule_effect)?,
            destination: Arc::new(self.destination(target, &compiled_target, timeouts)?),
            target: compiled_target,
            target_credential,
            first_byte_text: first_byte_text(proxy, target, timeouts).into(),
            request_fields: RequestFields {
                pass: header_names(&target.pass_headers),
                underscores: target.allow_underscore_headers,
                cookies,
            },
            forward_caller_headers: header_names(&proxy.forward_caller_headers),
            cookies,
            rewrite_urls: proxy.rewrite_urls,
            foreign_urls: proxy.foreign_urls,
            error_bodies: proxy.error_bodies,
            on_client_abort: proxy.on_client_abort,
            body_buffer_bytes: usize::try_from(proxy.body_buffer_bytes).unwrap_or(usize::MAX),
            record: proxy.record.clone(),
            key_queries,
        })
    }

    fn target(&mut self, id: TargetId, target: &Target) -> Result<Arc<CompiledTarget>, String> {
        if let Some(known) = self.targets.get(&id) {
            return Ok(known.clone());
        }
        let compiled = Arc::new(CompiledTarget {
            id,
            id_text: id.to_string().into(),
            base: BaseUrl::parse(&target.base_url)?,
            path: target.path_options(),
            rules: self.rules(ObjectId::Target(id), target.default_rule_effect)?,
            idempotency_header: target
                .retry
                .idempotency_header
                .as_ref()
                .and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()),
        });
        self.targets.insert(id, compiled.clone());
        Ok(compiled)
    }

    fn destination(
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

    fn rules(
        &self,
        parent: ObjectId,
        default: proto::target::Effect,
    ) -> Result<Arc<RuleSet>, String> {
        let rules = self
            .policies
            .rules
            .get(&parent)
            .map(Vec::as_slice)
            .unwrap_or_default();
        RuleSet::compile(rules, default)
            .map(Arc::new)
            .map_err(|problems| joined(&problems))
    }
}

fn joined(problems: &[proto::problem::Problem]) -> String {
    problems
        .iter()
        .map(|problem| problem.detail.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}

fn header_names(names: &[String]) -> Vec<HeaderName> {
    names
        .iter()
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect()
}

/// "60000 ms (`timeouts.first_byte_ms` of proxy payments, default)".
fn first_byte_text(proxy: &Proxy, target: &Target, timeouts: Timeouts) -> String {
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
