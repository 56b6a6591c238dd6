//! Which sealed values a store does not have although its regions may: those of regions that were
//! added after the secrets were set.
//!
//! What was looked for once is not looked for again until its credential changes, so that a large
//! organisation costs nothing while it stays as it is. Only what was lacking is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::stream::{StreamExt, TryStreamExt};

use super::chunks::chunks;
use super::load::{self, LoadError};
use super::{Compare, Op, Store, StoreError, Txn, TxnOutcome};
use crate::credential::{Credential, CredentialKind};
use crate::id::{CredentialId, OrgId};
use crate::keys;
use crate::object::{ObjectId, StoredCredential};
use crate::tree::OrgConfig;

/// Values read at one time.
const READS_AT_ONCE: usize = 16;
/// From so many on they are listed: a page costs the store little more than one value does.
const LISTED: usize = 100;

/// Names a sealed value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SealedName {
    /// Whose.
    pub credential: CredentialId,
    /// Which.
    pub seal_id: String,
    /// The region whose nodes can open it.
    pub region: String,
}

impl SealedName {
    /// Where it is stored.
    pub fn key(&self, org: OrgId) -> String {
        keys::secret(org, self.credential, &self.seal_id, &self.region)
    }
}

/// What is known of a store; see the module.
#[derive(Default)]
pub struct Lacking {
    orgs: BTreeMap<OrgId, Looked>,
}

/// What was found of one version.
struct Looked {
    config: Arc<OrgConfig>,
    lacking: BTreeSet<SealedName>,
}

impl Lacking {
    /// The values that a version's target credentials should have and do not. `regions` tells in
    /// which regions one should have its value; it is to say the same for the same credential
    /// every time.
    ///
    /// # Errors
    /// The store failed.
    pub async fn look<'r>(
        &mut self,
        store: &dyn Store,
        config: &Arc<OrgConfig>,
        regions: impl Fn(&Credential) -> Vec<&'r str>,
    ) -> Result<&BTreeSet<SealedName>, StoreError> {
        let org = config.org;
        let mut unsure = match self.orgs.remove(&org) {
            None => names(config.objects.credentials(), &regions),
            Some(before) if Arc::ptr_eq(&before.config, config) => before.lacking,
            Some(before) => since(&before, config, &regions),
        };
        let there = present(store, org, &unsure).await?;
        unsure.retain(|name| !there.contains(name));
        let looked = Looked {
            config: Arc::clone(config),
            lacking: unsure,
        };
        Ok(&self.orgs.entry(org).insert_entry(looked).into_mut().lacking)
    }

    /// Forgets organisations that are no more.
    pub fn retain(&mut self, is_there: impl Fn(OrgId) -> bool) {
        self.orgs.retain(|org, _| is_there(*org));
    }
}

/// The regions that have a value of a secret in a store.
///
/// # Errors
/// The store failed.
pub async fn regions_with(
    store: &dyn Store,
    org: OrgId,
    credential: CredentialId,
    seal_id: &str,
) -> Result<BTreeSet<String>, StoreError> {
    let prefix = keys::secret(org, credential, seal_id, "");
    let mut regions = BTreeSet::new();
    load::list(store, &prefix, None, |pair| {
        regions.extend(pair.key.strip_prefix(&prefix).map(str::to_owned));
    })
    .await?;
    Ok(regions)
}

/// Stores values that were lacking while the version that they were decided by is in force and
/// `guard` holds, and over no others; how many.
///
/// # Errors
/// The store failed, or its head cannot be read; what was stored stays.
pub async fn fill(
    store: &dyn Store,
    config: &OrgConfig,
    guard: &[Compare],
    values: Vec<Op>,
) -> Result<usize, LoadError> {
    let mut stored = 0;
    for ops in chunks(values) {
        let head = load::head(store, config.org).await?;
        let Some((_, revision)) = head.filter(|(head, _)| *head == config.head) else {
            break;
        };
        let absent = ops.iter().map(|op| Compare::Absent(op.key().to_owned()));
        let unmoved = Compare::ModRevision(keys::head(config.org), revision);
        let compares = absent.chain([unmoved]).chain(guard.iter().cloned());
        let count = ops.len();
        let txn = Txn {
            compares: compares.collect(),
            ops,
            or_read: Vec::new(),
        };
        if let TxnOutcome::Committed(_) = store.txn(txn).await? {
            stored += count;
        }
    }
    Ok(stored)
}

/// What may be lacking of a version, after what was found of an earlier one.
fn since<'r>(
    before: &Looked,
    config: &OrgConfig,
    regions: &impl Fn(&Credential) -> Vec<&'r str>,
) -> BTreeSet<SealedName> {
    let differing = before.config.objects.differing(&config.objects);
    let changed = differing.iter().filter_map(|(id, _)| match id {
        ObjectId::Credential(id) => Some(*id),
        _ => None,
    });
    let changed: BTreeSet<CredentialId> = changed.collect();
    let mut unsure = before.lacking.clone();
    unsure.retain(|name| !changed.contains(&name.credential));
    let stored = changed
        .iter()
        .filter_map(|id| Some((*id, config.credential(*id)?)));
    unsure.extend(names(stored, regions));
    unsure
}

/// The values that credentials should have.
fn names<'c, 'r>(
    credentials: impl Iterator<Item = (CredentialId, &'c StoredCredential)>,
    regions: &impl Fn(&Credential) -> Vec<&'r str>,
) -> BTreeSet<SealedName> {
    let mut names = BTreeSet::new();
    for (id, stored) in credentials.filter(|(_, of)| of.credential.kind == CredentialKind::Target) {
        let Some(seal_id) = stored.seal_id() else {
            continue;
        };
        names.extend(
            regions(&stored.credential)
                .into_iter()
                .map(|region| SealedName {
                    credential: id,
                    seal_id: seal_id.clone(),
                    region: region.to_owned(),
                }),
        );
    }
    names
}

/// Which of these values there are.
async fn present(
    store: &dyn Store,
    org: OrgId,
    names: &BTreeSet<SealedName>,
) -> Result<BTreeSet<SealedName>, StoreError> {
    if names.len() >= LISTED {
        let mut found = BTreeSet::new();
        load::list(store, &keys::secrets(org), None, |pair| {
            if let Some((credential, seal_id, region)) = keys::parse_secret(&pair.key) {
                found.insert(SealedName {
                    credential,
                    seal_id: seal_id.to_owned(),
                    region: region.to_owned(),
                });
            }
        })
        .await?;
        return Ok(found);
    }
    let reads = names.iter().map(async |name| {
        let found = store.get(&name.key(org)).await?.value;
        Ok::<_, StoreError>(found.map(|_| name.clone()))
    });
    // A list of futures: made one by one they would borrow what they are made of.
    let reads: Vec<_> = reads.collect();
    let found = futures_util::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
    let found: Vec<Option<SealedName>> = found.try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}
