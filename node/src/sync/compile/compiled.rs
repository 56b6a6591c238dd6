//! One organisation as it was compiled last: what the next version is compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use proto::id::ProxyId;
use proto::store::follow::OrgState;
use proto::store::load::Fault;

use crate::snapshot::CompiledProxy;

/// One organisation, compiled.
pub(super) struct Compiled {
    pub(super) state: Arc<OrgState>,
    pub(super) slug: Arc<str>,
    /// The number of its version, with which its forms count on.
    pub(super) version: Arc<AtomicU64>,
    pub(super) proxies: BTreeMap<ProxyId, Arc<CompiledProxy>>,
    pub(super) faults: Vec<Fault>,
    /// Those that a fault concerns; they are tried each time.
    pub(super) faulty: BTreeSet<ProxyId>,
}

impl Compiled {
    /// Its forms, each with the slug.
    pub(super) fn forms(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<CompiledProxy>)> + Clone {
        self.proxies.values().map(|form| (&self.slug, form))
    }
}
