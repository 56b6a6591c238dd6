//! Compiles a world into a snapshot: patterns, destinations, timeouts, secrets in force.
//!
//! What did not change is not compiled again: an organisation whose state is the same `Arc` as
//! before, and a proxy that nothing it is made of was touched of. A proxy that cannot be compiled
//! keeps its last good form, where that gives nothing that was taken away since, and is reported.

mod compiled;
mod credentials;
mod elsewhere;
mod hanging;
mod meters;
mod naming;
mod pinned;
mod policies;
mod targets;
#[cfg(test)]
pub mod tests;
mod touched;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderName;
use proto::credential::AuthType;
use proto::id::{CredentialId, OrgId, ProxyId, TargetId};
use proto::object::ObjectId;
use proto::policy::Policy;
use proto::proxy::Proxy;
use proto::regions::Gateways;
use proto::rule::RuleSet;
use proto::seal::Keyring;
use proto::store::follow::{OrgState, World};
use proto::store::load::Fault;
use proto::target::{PropagateTrace, Timeouts};
use proto::validation::{BodySchema, BodyValidator};
use tracing::warn;

use self::compiled::{Compiled, last_good};
use self::naming::{Naming, Replaced};
use self::pinned::Pinned;
use self::policies::Policies;
use self::touched::{Touched, scopes};
use super::guard::Guard;
use crate::breakers::Breakers;
use crate::elsewhere::gateways::KnownGateways;
use crate::health_checks::HealthChecks;
use crate::hygiene::fields::RequestFields;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::snapshot::{
    CompiledProxy, CompiledTarget, End, FormVersion, Snapshot, TargetCredential,
};
use crate::upstream::Hosts;
use crate::upstream::tls::TlsCache;

/// What compiling needs besides the world.
pub struct CompilerParts {
    /// Opens secrets.
    pub keyring: Arc<Keyring>,
    /// Gives meters.
    pub limits: Arc<Limits>,
    /// The operator's dial guard.
    pub guard: Guard,
    /// What the operator lets targets be.
    pub policy: Policy,
    /// The organisation whose aliases need no slug.
    pub default_org: String,
    /// Gives counters, and is told what is in effect.
    pub metrics: Metrics,
    /// Checks endpoints.
    pub health_checks: HealthChecks,
    /// Names that are not asked of DNS.
    pub hosts: Hosts,
}

/// Makes snapshots of worlds.
pub struct Compiler {
    parts: CompilerParts,
    tls: TlsCache,
    breakers: Breakers,
    /// Those of all regions, and those that are dialled.
    gateways: Arc<Gateways>,
    known_gateways: KnownGateways,
    before: HashMap<OrgId, Compiled>,
    naming: Naming,
    pinned: Pinned,
}

/// A snapshot, and what could not be made part of it.
pub struct Outcome {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Objects that keep their last good form, or are left out.
    pub faults: Vec<Fault>,
}

impl Compiler {
    /// A compiler that has compiled nothing yet.
    pub fn new(mut parts: CompilerParts) -> Self {
        let hosts = std::mem::take(&mut parts.hosts);
        Self {
            parts,
            tls: TlsCache::default(),
            breakers: Breakers::default(),
            gateways: Arc::default(),
            known_gateways: KnownGateways::new(hosts),
            before: HashMap::new(),
            naming: Naming::default(),
            pinned: Pinned::default(),
        }
    }

    /// What is told of what is in effect.
    pub fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    /// Compiles everything anew the next time: what is known may be half of something.
    pub fn forget(&mut self) {
        let before = std::mem::take(&mut self.before);
        let forms = before.values().flat_map(Compiled::forms);
        self.pinned.add(forms.map(|(_, form)| form));
        self.naming = Naming::default();
    }

    /// The snapshot of a world.
    pub fn compile(&mut self, world: &World) -> Outcome {
        let moved = self.gateways != world.gateways;
        if moved {
            elsewhere::tell_unused(&world.gateways, &self.parts.keyring.region);
        }
        self.gateways = Arc::clone(&world.gateways);
        let (mut faults, mut replaced) = (Vec::new(), Replaced::default());
        let mut compiled = HashMap::with_capacity(world.slugs.len());
        for (slug, org) in &world.slugs {
            let Some(state) = world.orgs.get(org) else {
                continue;
            };
            let now = match self.before.remove(org) {
                Some(same) if !moved && Arc::ptr_eq(&same.state, state) && *same.slug == **slug => {
                    same
                }
                before => self.org(slug, state, (before, moved), &mut replaced),
            };
            faults.extend(now.faults.iter().cloned());
            compiled.insert(*org, now);
        }
        let former = std::mem::replace(&mut self.before, compiled);
        for (slug, form) in former.values().flat_map(Compiled::forms) {
            replaced.gone.push((slug.clone(), form.clone()));
        }
        self.pinned.add(replaced.gone.iter().map(|(_, form)| form));
        let now = |org: &OrgId| self.before.get(org).map(|now| &*now.state);
        self.pinned.tell(&self.parts.keyring, now);
        let standing = self.before.values().flat_map(Compiled::forms);
        self.naming
            .take(&replaced, &self.parts.default_org, standing);
        self.breakers.tidy();
        let (names, former) = (self.naming.names(), self.naming.former());
        let snapshot = Snapshot::new(names, former, self.parts.keyring.digest_key.clone());
        Outcome { snapshot, faults }
    }

    /// An organisation's forms in what it is now, made of those `before`, and of the gateways,
    /// which may have `moved`.
    fn org(
        &mut self,
        slug: &str,
        state: &Arc<OrgState>,
        (mut before, moved): (Option<Compiled>, bool),
        replaced: &mut Replaced,
    ) -> Compiled {
        if let Some(renamed) = before.take_if(|before| *before.slug != *slug) {
            let forms = renamed
                .forms()
                .map(|(slug, form)| (slug.clone(), form.clone()));
            replaced.gone.extend(forms);
        }
        let objects = &state.config.objects;
        let old = before.as_ref().map(|before| Arc::clone(&before.state));
        let differing = old
            .as_ref()
            .map(|old| old.config.objects.differing(objects));
        let differing = differing.unwrap_or_default();
        let touched = old.as_ref();
        let touched = touched.and_then(|old| Touched::between((old, state), &differing));
        let mut now = before.unwrap_or_else(|| Compiled::nothing(slug, state));
        now.hanging.follow(&differing);
        let places = (moved, &*self.parts.keyring.region);
        let due = now.due(&state.config, touched.as_ref(), places);
        let is_gone = |id: &ProxyId| !objects.contains_key(&ObjectId::Proxy(*id));
        let gone: Vec<ProxyId> = match &touched {
            Some(touched) => touched.proxies().filter(is_gone).collect(),
            None => now.proxies.keys().copied().filter(is_gone).collect(),
        };
        for form in gone.iter().filter_map(|id| now.proxies.remove(id)) {
            form.version.ends();
            replaced.gone.push((now.slug.clone(), form));
        }
        self.forms(state, &mut now, due, replaced);
        // After the end of all that is replaced.
        now.version.store(state.config.head.n, Ordering::Release);
        now.state = Arc::clone(state);
        now
    }

    /// Makes the forms that are due.
    fn forms(
        &mut self,
        state: &Arc<OrgState>,
        now: &mut Compiled,
        due: Vec<(ProxyId, &Proxy)>,
        replaced: &mut Replaced,
    ) {
        let wanted = due.iter().flat_map(|(id, proxy)| scopes(*id, proxy));
        let org = ObjectId::Org(state.config.org);
        let mut scope = OrgCompiler {
            policies: Policies::of(
                state,
                &now.hanging,
                &wanted.chain([org]).collect(),
                &self.parts.keyring.digest_key,
            ),
            compiler: self,
            slug: &now.slug,
            version: &now.version,
            state,
            faults: Vec::new(),
            targets: HashMap::new(),
            target_credentials: HashMap::new(),
        };
        now.faulty.clear();
        for (id, proxy) in due {
            match scope.proxy(id, proxy).map(Arc::new) {
                Ok(form) => {
                    if form.target.forbidden || form.target.endpoints.are_none() {
                        now.faulty.insert(id);
                    }
                    replaced.come.push((now.slug.clone(), form.clone()));
                    if let Some(old) = now.proxies.insert(id, form) {
                        old.version.ends();
                        replaced.gone.push((now.slug.clone(), old));
                    }
                }
                Err(fault) => {
                    scope.fault(ObjectId::Proxy(id), fault);
                    now.faulty.insert(id);
                    let own_region = &scope.compiler.parts.keyring.region;
                    let gone = last_good(&mut now.proxies, (id, proxy), state, own_region);
                    replaced
                        .gone
                        .extend(gone.map(|form| (now.slug.clone(), form)));
                }
            }
        }
        now.faults = scope.faults;
    }
}

/// A target, and for each endpoint that it lists whether calls may go there.
type TargetWithin = (TargetId, Box<[bool]>);

struct OrgCompiler<'a> {
    compiler: &'a mut Compiler,
    slug: &'a str,
    version: &'a Arc<AtomicU64>,
    state: &'a Arc<OrgState>,
    policies: Policies,
    faults: Vec<Fault>,
    /// By what their proxies' calls may go to, too.
    targets: HashMap<TargetWithin, Arc<CompiledTarget>>,
    target_credentials: HashMap<CredentialId, Arc<TargetCredential>>,
}

impl OrgCompiler<'_> {
    /// Reports an object that is not applied as it stands.
    fn fault(&mut self, object: ObjectId, detail: String) {
        warn!("object-unusable: {object} is not applied: {detail}");
        self.faults.push(Fault {
            org: Some(self.state.config.org),
            object: Some(object),
            code: "object-unusable",
            detail,
        });
    }

    fn proxy(&mut self, id: ProxyId, proxy: &Proxy) -> Result<CompiledProxy, String> {
        if !proxy.is_served_in(&self.compiler.parts.keyring.region) {
            return self.elsewhere(id, proxy);
        }
        let state = self.state;
        let target = state
            .config
            .target(proxy.target_id)
            .ok_or("its target is missing")?;
        let compiled_target = self.target_of(id, proxy, target)?;
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
        let key_queries = credentials::key_queries(&places, &credentials);
        let fallback = Timeouts::defaults_for(&compiled_target.base.origin.host);
        let timeouts = proxy.timeouts.or(target.timeouts).or(fallback);
        Ok(CompiledProxy {
            id,
            id_text: id.to_string().into(),
            org: state.config.org,
            alias: proxy.alias.as_deref().map(Into::into),
            former_aliases: proxy.former_aliases.clone(),
            version: FormVersion::of(Arc::clone(self.version)),
            end: End::new(None),
            active: proxy.active,
            places,
            credentials,
            rules: self.rules(ObjectId::Proxy(id), proxy.default_rule_effect)?,
            destinations: self.destinations(target, &compiled_target, timeouts)?,
            target: compiled_target,
            target_credential,
            elsewhere: None,
            first_byte_text: targets::first_byte_text(proxy, target, timeouts).into(),
            request_fields: RequestFields {
                pass: targets::passed(target),
                underscores: target.allow_underscore_headers,
                cookies,
                untraced: target.propagate_trace == PropagateTrace::Off,
            },
            forward_caller_headers: header_names(&proxy.forward_caller_headers),
            cookies,
            rewrite_urls: proxy.rewrite_urls,
            scrub: proxy.scrub,
            foreign_urls: proxy.foreign_urls,
            error_bodies: proxy.error_bodies,
            request_validator: validator(proxy.validation.request.as_ref())?,
            response_validator: validator(proxy.validation.response.as_ref())?,
            on_client_abort: proxy.on_client_abort,
            body_buffer_bytes: usize::try_from(proxy.body_buffer_bytes).unwrap_or(usize::MAX),
            record: proxy.record.clone(),
            key_queries,
            counters: self.compiler.parts.metrics.proxy(&id.to_string()),
        })
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

/// What bodies are held against.
fn validator(body: Option<&BodySchema>) -> Result<Option<Arc<BodyValidator>>, String> {
    let compiled = body.map(BodyValidator::new).transpose();
    compiled
        .map(|validator| validator.map(Arc::new))
        .map_err(|problems| joined(&problems))
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
