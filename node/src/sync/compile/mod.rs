//! Compiles a world into a snapshot: patterns, destinations, timeouts, secrets in force.
//!
//! What did not change is not compiled again: an organisation whose state is the same `Arc` as
//! before, and a proxy that nothing it is made of was touched of. A proxy that cannot be compiled
//! keeps its last good form, where that gives nothing that was taken away since, and is reported.

mod compiled;
mod credentials;
mod elsewhere;
mod form;
mod forms;
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

use proto::id::{OrgId, ProxyId};
use proto::object::ObjectId;
use proto::policy::Policy;
use proto::regions::Gateways;
use proto::seal::Keyring;
use proto::store::follow::{OrgState, World};
use proto::store::load::Fault;

use self::compiled::Compiled;
use self::form::{OrgCompiler, TargetWithin, header_names, joined};
use self::forms::Due;
use self::naming::{Naming, Replaced};
use self::pinned::Pinned;
use self::policies::Policies;
use self::touched::{Touched, scopes};
use super::guard::Guard;
use crate::breakers::Breakers;
use crate::elsewhere::gateways::KnownGateways;
use crate::health_checks::HealthChecks;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
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
        let is_first = self.before.is_empty();
        let mut replaced = Replaced::default();
        let mut compiled = HashMap::with_capacity(world.slugs.len());
        let mut due = Vec::new();
        for (slug, org) in &world.slugs {
            let Some(state) = world.orgs.get(org) else {
                continue;
            };
            match self.before.remove(org) {
                Some(same) if !moved && Arc::ptr_eq(&same.state, state) && *same.slug == **slug => {
                    compiled.insert(*org, same);
                }
                before => due.push(self.due(slug, state, (before, moved), &mut replaced)),
            }
        }
        let made = forms::made(self, &due, is_first);
        let own_region = &self.parts.keyring.region;
        for (due, made) in due.into_iter().zip(made) {
            let org = due.state.config.org;
            compiled.insert(org, due.taking(made, own_region, &mut replaced));
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
        let in_order = world.slugs.values().filter_map(|org| self.before.get(org));
        let faults = in_order.flat_map(|now| now.faults.iter().cloned());
        Outcome {
            snapshot,
            faults: faults.collect(),
        }
    }

    /// The forms that an organisation in what it is now needs besides those `before`, which go on
    /// without what is gone; the gateways may have `moved`.
    fn due<'w>(
        &self,
        slug: &str,
        state: &'w Arc<OrgState>,
        (mut before, moved): (Option<Compiled>, bool),
        replaced: &mut Replaced,
    ) -> Due<'w> {
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
        let proxies = now.due(&state.config, touched.as_ref(), places);
        let is_gone = |id: &ProxyId| !objects.contains_key(&ObjectId::Proxy(*id));
        let gone: Vec<ProxyId> = match &touched {
            Some(touched) => touched.proxies().filter(is_gone).collect(),
            None => now.proxies.keys().copied().filter(is_gone).collect(),
        };
        for form in gone.iter().filter_map(|id| now.proxies.remove(id)) {
            form.version.ends();
            replaced.gone.push((now.slug.clone(), form));
        }
        let wanted = proxies.iter().flat_map(|(id, proxy)| scopes(*id, proxy));
        let org = ObjectId::Org(state.config.org);
        let wanted = wanted.chain([org]).collect();
        let key = &self.parts.keyring.digest_key;
        Due {
            state,
            policies: Policies::of(state, &now.hanging, &wanted, key),
            now,
            proxies,
        }
    }
}
