//! Reads what a list or a revision names of one organisation: its version, the sealed values of
//! its credentials, and the facts on its secrets.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{StreamExt, TryStreamExt};

use super::news::{Heard, News, standing};
use super::{OrgState, SealedValues};
use crate::credential::CredentialKind;
use crate::id::{CredentialId, OrgId};
use crate::keys;
use crate::object::{ObjectId, StoredCredential};
use crate::retired::Retired;
use crate::seal::Sealed;
use crate::store::ancestry::ancestry;
use crate::store::load::{self, Fault, LoadError, Loaded, Wanted};
use crate::store::nearby::{Nearby, Source, Together};
use crate::store::{KeyValue, Store, StoreError};
use crate::tree::{self, Ancestry, Delta, Head, OrgConfig};

/// Sealed values read at one time.
const SECRETS_AT_ONCE: usize = 16;
/// From so many on they are listed: a page costs the store little more than one value does.
const SECRETS_LISTED: usize = 100;

/// How often a version that others replace while it is read gives way to the newest.
const OVERTAKEN_MAX: u32 = 3;

/// A credential and the name of its sealed value.
type SealName = (CredentialId, String);
/// The same with the value, where there is one.
type Named = (CredentialId, String, Option<Bytes>);

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
            if !changes(old, &head) {
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
        let same = |old: &&OrgConfig| {
            old.head == loaded.config.head
                && old.objects == loaded.config.objects
                && loaded.config.is_damaged()
        };
        Ok(old.filter(same).is_none().then(|| Arc::new(loaded.config)))
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

    /// The sealed values that a version names; those that are known are not read again.
    async fn sealed(
        self,
        config: &OrgConfig,
        old: Option<&Arc<OrgState>>,
        faults: &mut Vec<Fault>,
    ) -> Result<Arc<SealedValues>, StoreError> {
        let whole = old.filter(|old| old.sealed_whole && same_credentials(&old.config, config));
        if let Some(old) = whole {
            return Ok(Arc::clone(&old.sealed));
        }
        let known = |key: &SealName| old.and_then(|old| old.sealed.get(key));
        let mut values = SealedValues::new();
        let mut missing = Vec::new();
        for key in sealed_names(config, self.region) {
            match known(&key) {
                Some(value) => {
                    values.insert(key, Arc::clone(value));
                }
                None => missing.push(key),
            }
        }
        let read = match missing.len() >= SECRETS_LISTED {
            true => self.listed(config.org, missing).await?,
            false => self.each(config.org, missing).await?,
        };
        for (credential, seal_id, value) in read {
            let parsed = value.map(|value| serde_json::from_slice::<Sealed>(&value));
            let (code, detail) = match parsed {
                Some(Ok(value)) => {
                    values.insert((credential, seal_id), Arc::new(value));
                    continue;
                }
                Some(Err(error)) => ("secret-unreadable", error.to_string()),
                None => (
                    "secret-missing",
                    "no sealed value in this region".to_owned(),
                ),
            };
            let object = Some(ObjectId::Credential(credential));
            faults.push(Fault {
                org: Some(config.org),
                object,
                code,
                detail,
            });
        }
        match old.filter(|old| *old.sealed == values) {
            Some(old) => Ok(Arc::clone(&old.sealed)),
            None => Ok(Arc::new(values)),
        }
    }
}

impl Reader<'_> {
    /// Sealed values, a read for each.
    pub(super) async fn each(
        self,
        org: OrgId,
        names: Vec<SealName>,
    ) -> Result<Vec<Named>, StoreError> {
        futures_util::stream::iter(names)
            .map(|(credential, seal_id)| async move {
                let key = keys::secret(org, credential, &seal_id, self.region);
                let pair = self.store.get(&key).await?.value;
                Ok((credential, seal_id, pair.map(|pair| pair.value)))
            })
            .buffer_unordered(SECRETS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Sealed values, out of a list of all that the organisation has.
    pub(super) async fn listed(
        self,
        org: OrgId,
        names: Vec<SealName>,
    ) -> Result<Vec<Named>, StoreError> {
        let named = names.into_iter().map(|(credential, seal_id)| {
            let key = keys::secret(org, credential, &seal_id, self.region);
            (key, (credential, seal_id, None))
        });
        let mut named: HashMap<String, Named> = named.collect();
        load::list(self.store, &keys::secrets(org), None, |pair| {
            if let Some((_, _, value)) = named.get_mut(&pair.key) {
                *value = Some(pair.value);
            }
        })
        .await?;
        Ok(named.into_values().collect())
    }
}

/// Whether there is something to read: another version, or what could not be read of this one.
fn changes(old: &OrgConfig, head: &Head) -> bool {
    old.head != *head || old.is_damaged()
}

/// Whether two versions have the same credentials.
fn same_credentials(one: &OrgConfig, other: &OrgConfig) -> bool {
    let differing = one.objects.differing(&other.objects);
    !differing
        .iter()
        .any(|(id, _)| matches!(id, ObjectId::Credential(_)))
}

/// The sealed values that a region has of a version.
fn sealed_names<'c>(
    config: &'c OrgConfig,
    region: &'c str,
) -> impl Iterator<Item = SealName> + use<'c> {
    let credentials = config.objects.credentials();
    let sealed = credentials.filter(|(_, StoredCredential { credential, .. })| {
        credential.kind == CredentialKind::Target && credential.is_for_region(region)
    });
    sealed.filter_map(|(id, stored)| Some((id, stored.secret.as_ref()?.seal_id.clone()?)))
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
