//! Reads what a list or a revision names of one organisation: its version, the sealed values of
//! its credentials, and the facts on its secrets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::OrgState;
use super::news::{Heard, News, standing};
use crate::id::{CredentialId, OrgId};
use crate::keys;
use crate::retired::Retired;
use crate::store::ancestry::ancestry;
use crate::store::load::{self, Fault, LoadError, Loaded, Wanted};
use crate::store::nearby::{Nearby, Source, Together};
use crate::store::{KeyValue, Store, StoreError};
use crate::tree::{self, Ancestry, Delta, Head, OrgConfig};

/// How often a version that others replace while it is read gives way to the newest.
const OVERTAKEN_MAX: u32 = 3;

/// What became of one organisation.
pub(super) struct Outcome {
    /// Its new state; absent when nothing is known of it yet.
    pub state: Option<Arc<OrgState>>,
    pub faults: Vec<Fault>,
    /// Codes of earlier faults that this did not look at again.
    pub standing: &'static [&'static str],
}

/// Reads what news name.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub store: &'a dyn Store,
    /// Who may have leaves nearer than the store.
    pub near: Option<&'a dyn Nearby>,
    /// What else is read by the same list or change.
    pub together: &'a Together<'a>,
    pub region: &'a str,
    /// The key that sealed values were sealed to anew.
    pub resealed: Option<&'a str>,
}

impl Reader<'_> {
    /// What one organisation becomes by the news of it.
    pub async fn org(
        self,
        org: OrgId,
        old: Option<&Arc<OrgState>>,
        news: News,
    ) -> Result<Outcome, StoreError> {
        let standing = standing(news.head.as_ref());
        let (mut heard, mut delta, mut overtaken) = (news.head, news.delta, 0);
        let (config, sealed, sealed_whole, faults) = loop {
            let mut faults = Vec::new();
            let config = self.version(org, old, (heard, delta), &mut faults).await?;
            let Some(config) = config.or_else(|| old.map(|old| Arc::clone(&old.config))) else {
                return Ok(Outcome {
                    state: None,
                    faults,
                    standing,
                });
            };
            let faults_before = faults.len();
            let sealed = self.sealed(&config, old, &mut faults).await?;
            let is_whole = faults.len() == faults_before;
            let newer = match is_whole || overtaken == OVERTAKEN_MAX {
                true => None,
                false => self.newer(org, &config).await?,
            };
            let Some(newer) = newer else {
                break (config, sealed, is_whole, faults);
            };
            (heard, delta) = (Some(Heard::Head(newer)), None);
            overtaken += 1;
        };
        let retired = retired(&config, old, news.retired);
        let same = old.filter(|old| {
            Arc::ptr_eq(&old.config, &config)
                && Arc::ptr_eq(&old.sealed, &sealed)
                && Arc::ptr_eq(&old.retired, &retired)
        });
        let state = match same {
            Some(old) => Arc::clone(old),
            None => Arc::new(OrgState {
                config,
                sealed,
                sealed_whole,
                retired,
            }),
        };
        Ok(Outcome {
            state: Some(state),
            faults,
            standing,
        })
    }

    /// The version that was heard of; `None` keeps the old one.
    async fn version(
        self,
        org: OrgId,
        old: Option<&Arc<OrgState>>,
        (heard, delta): (Option<Heard>, Option<KeyValue>),
        faults: &mut Vec<Fault>,
    ) -> Result<Option<Arc<OrgConfig>>, StoreError> {
        let fault = |code: &'static str, detail: String| Fault {
            org: Some(org),
            object: None,
            code,
            detail,
        };
        match heard {
            None => {}
            Some(Heard::Gone) => {
                let detail = "its head is gone, but `system` still names it; serving what was";
                faults.push(fault("store-regressed", detail.into()));
            }
            Some(Heard::Unreadable(detail)) => faults.push(fault("version-unreadable", detail)),
            Some(Heard::Head(head)) => match self.config(org, old, head, delta, faults).await {
                Ok(config) => return Ok(config),
                Err(LoadError::Store(error)) => return Err(error),
                Err(error) => faults.push(fault("version-unreadable", error.to_string())),
            },
        }
        Ok(None)
    }

    /// The head of a version after this one, where there is one by now: who publishes the next one
    /// takes away the sealed values that it replaces, which a version in between still names.
    async fn newer(self, org: OrgId, config: &OrgConfig) -> Result<Option<Head>, StoreError> {
        match load::head(self.store, org).await {
            Ok(newest) => Ok(newest
                .map(|(head, _)| head)
                .filter(|head| changes(config, head))),
            Err(LoadError::Store(error)) => Err(error),
            // It will be heard of, and then be a fault.
            Err(_) => Ok(None),
        }
    }

    /// The version that a head names, by delta where one leads there; `None` keeps the old one.
    async fn config(
        self,
        org: OrgId,
        old: Option<&Arc<OrgState>>,
        head: Head,
        delta: Option<KeyValue>,
        faults: &mut Vec<Fault>,
    ) -> Result<Option<Arc<OrgConfig>>, LoadError> {
        let old = old.map(|old| &*old.config);
        if let Some(old) = old {
            if !self.lacks(old, &head) && !changes(old, &head) {
                return Ok(None);
            }
            let Head { n, hash, .. } = &head;
            let (old_n, old_hash) = (old.head.n, old.head.hash);
            match ancestry(self.store, org, &old.head, &head).await? {
                Ancestry::Descends => {}
                // Who was there meanwhile has seen what lies between, and would have stopped
                // publishing in a store that went back.
                Ancestry::Forgotten => tracing::warn!(
                    %org,
                    "version {n} ({hash}) of {org} is followed although the store no longer tells \
                     its way from version {old_n} ({old_hash}): this process was away for long"
                ),
                Ancestry::Broken => {
                    faults.push(Fault {
                        org: Some(org),
                        object: None,
                        code: "store-regressed",
                        detail: format!(
                            "version {n} ({hash}) in the store does not descend from version \
                             {old_n} ({old_hash}) that is served"
                        ),
                    });
                    return Ok(None);
                }
            }
            let delta = match delta {
                // Who missed one version only needs what changed in it.
                None if n.checked_sub(1) == Some(old_n) => {
                    self.store.get(&keys::delta(org)).await?.value
                }
                delta => delta,
            };
            let delta = delta.and_then(|pair| serde_json::from_slice::<Delta>(&pair.value).ok());
            let delta = delta.filter(|_| !self.lacks(old, &head));
            if let Some(config) = delta.and_then(|delta| tree::apply_delta(old, &head, &delta)) {
                // A region that was home before keeps less from here on.
                return Ok(Some(Arc::new(config.kept_in(self.region))));
            }
        }
        let source = Source {
            store: self.store,
            near: self.near,
            together: Some(self.together),
        };
        let loaded = load::version_of(source, org, head, old, Wanted::Kept(self.region)).await?;
        self.still_newest(org, &loaded).await?;
        // What other regions keep alone need not be here.
        let is_ours = |set: &&str| tree::is_kept_in(set, self.region);
        if let Some(set) = loaded.config.withheld().find(is_ours) {
            return Err(LoadError::Missing(loaded.config.head.roots[set]));
        }
        faults.extend(loaded.faults);
        let same = old.filter(|old| is_same(old, &loaded.config));
        Ok(same.is_none().then(|| Arc::new(loaded.config)))
    }

    /// Whether something is not here that the region is to have of a version: one that became home
    /// by force has it later, under the same head, and what has come so is in no delta.
    fn lacks(self, old: &OrgConfig, head: &Head) -> bool {
        let mut withheld = old.withheld();
        withheld.any(|set| head.roots.contains_key(set) && head.is_kept(set, self.region))
    }

    /// Only missing content of the *newest* version is a fault: that of an earlier one was swept,
    /// and the newer one is on its way.
    async fn still_newest(self, org: OrgId, loaded: &Loaded) -> Result<(), LoadError> {
        if !loaded
            .faults
            .iter()
            .any(|fault| fault.code == "leaf-missing")
        {
            return Ok(());
        }
        let newest = load::head(self.store, org).await?;
        match newest.is_some_and(|(newest, _)| newest == loaded.config.head) {
            true => Ok(()),
            false => Err(LoadError::Missing(loaded.config.head.hash)),
        }
    }
}

/// Whether a version that was read again is as it was before.
fn is_same(old: &OrgConfig, new: &OrgConfig) -> bool {
    old.head == new.head
        && old.objects == new.objects
        && (new.is_damaged() || (!old.is_damaged() && old.withheld().eq(new.withheld())))
}

/// Whether there is something to read: another version, or what could not be read of this one.
fn changes(old: &OrgConfig, head: &Head) -> bool {
    old.head != *head || old.is_damaged()
}

/// The facts after the news. They only rise: an older fact in a restored store changes nothing,
/// and a deleted one is dropped only with its credential.
fn retired(
    config: &OrgConfig,
    old: Option<&Arc<OrgState>>,
    news: BTreeMap<CredentialId, Option<Retired>>,
) -> Arc<BTreeMap<CredentialId, Retired>> {
    if let Some(old) = old.filter(|_| news.is_empty()) {
        return Arc::clone(&old.retired);
    }
    let mut facts = old
        .map(|old| BTreeMap::clone(&old.retired))
        .unwrap_or_default();
    for (credential, fact) in news {
        match (fact, facts.get(&credential)) {
            (Some(fact), Some(known)) => {
                let merged = known.clone().merge(fact);
                facts.insert(credential, merged);
            }
            (Some(fact), None) => {
                facts.insert(credential, fact);
            }
            (None, _) if config.credential(credential).is_none() => {
                facts.remove(&credential);
            }
            (None, _) => {}
        }
    }
    match old.filter(|old| *old.retired == facts) {
        Some(old) => Arc::clone(&old.retired),
        None => Arc::new(facts),
    }
}
