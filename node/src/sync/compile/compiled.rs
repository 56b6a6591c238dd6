//! One organisation as it was compiled last: what the next version is compared with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use proto::id::ProxyId;
use proto::proxy::Proxy;
use proto::regions;
use proto::store::follow::OrgState;
use proto::store::load::Fault;
use proto::tree::OrgConfig;

use super::hanging::Hanging;
use super::touched::Touched;
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
    /// What hangs on what in `state`.
    pub(super) hanging: Hanging,
}

impl Compiled {
    /// Nothing yet of an organisation that is to be compiled.
    pub(super) fn nothing(slug: &str, state: &Arc<OrgState>) -> Self {
        Self {
            state: Arc::clone(state),
            slug: slug.into(),
            version: Arc::default(),
            proxies: BTreeMap::new(),
            faults: Vec::new(),
            faulty: BTreeSet::new(),
            hanging: Hanging::of(&state.config.objects),
        }
    }

    /// The proxies of another version, which `hanging` is of already, that are not what they were:
    /// of what was `touched`, or all where that is not known, and those that are made of the
    /// gateways where these have `moved`.
    pub(super) fn due<'s>(
        &self,
        config: &'s OrgConfig,
        touched: Option<&Touched>,
        (moved, own_region): (bool, &str),
    ) -> Vec<(ProxyId, &'s Proxy)> {
        let Some(touched) = touched else {
            return config.objects.proxies().collect();
        };
        let mut ids = self.faulty.clone();
        ids.extend(touched.proxies());
        // Who was made of it and is no more has changed itself.
        ids.extend(touched.all().flat_map(|id| self.hanging.proxies(id)));
        if moved {
            // What is served elsewhere is made of the gateways.
            let all = config.objects.proxies();
            let led = all.filter(|(_, proxy)| !proxy.is_served_in(own_region));
            ids.extend(led.map(|(id, _)| id));
        }
        let found = ids.into_iter();
        found
            .filter_map(|id| Some((id, config.proxy(id)?)))
            .collect()
    }

    /// Its forms, each with the slug.
    pub(super) fn forms(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<CompiledProxy>)> + Clone {
        self.proxies.values().map(|form| (&self.slug, form))
    }
}

/// Leaves the last good form of a proxy that cannot be compiled as it is now, without what is over;
/// gives the form instead where it may not stay.
pub(super) fn last_good(
    forms: &mut BTreeMap<ProxyId, Arc<CompiledProxy>>,
    (id, proxy): (ProxyId, &Proxy),
    state: &OrgState,
    own_region: &str,
) -> Option<Arc<CompiledProxy>> {
    let form = forms.get(&id)?;
    form.version.ends();
    // What is over is over in its last good form as well.
    form.revoke(&state.retired);
    let now = jiff::Timestamp::now();
    let sent = form.target_credential.as_ref();
    let is_over = sent.is_some_and(|credential| credential.is_over(&state.retired, now));
    let goes = is_over || !may_stay(form, proxy, own_region);
    goes.then(|| forms.remove(&id)).flatten()
}

/// Whether the last good form of a proxy may stay although it cannot be compiled as it is now: it
/// must not give what was taken away since, a place where it is served, its being active, a caller
/// or the credential that is sent on.
fn may_stay(form: &CompiledProxy, proxy: &Proxy, own_region: &str) -> bool {
    let is_placed = match &form.elsewhere {
        None => {
            let sent = form.target_credential.as_ref();
            proxy.is_served_in(own_region)
                && sent.map(|credential| credential.id) == proxy.target_credential_id
        }
        Some(elsewhere) => {
            let mut known = elsewhere.gateways.iter();
            known.all(|to| regions::include(&proxy.regions, &to.region))
        }
    };
    let callers = &proxy.proxy_credential_ids;
    let mut accepted = form.credentials.iter();
    is_placed
        && (proxy.active || !form.active)
        && accepted.all(|credential| callers.contains(&credential.id))
}
