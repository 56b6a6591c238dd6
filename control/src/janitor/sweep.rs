//! Deletes the leaves, roots and sealed values of an organisation that nothing reaches.
//!
//! No clock takes part. The counter `gc/{org}` is raised *first*; what is deleted existed at that
//! revision and has not been written since; and each deletion compares the head and the counter
//! with what was marked. So of a publisher that runs meanwhile
//!
//! - one that writes everything in one transaction moves the head: the deletion fails, or comes
//!   before a transaction that writes again what its parent does not reach;
//! - one that read the counter before it was raised cannot move the head any more, and starts over;
//! - one that read it afterwards has written what it needs after that revision, so that it is not
//!   what was listed.
//!
//! What cannot be read may reach anything: then nothing is deleted.

use std::collections::{HashMap, HashSet};

use proto::credential::SecretState;
use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::regions;
use proto::store::load::{self, LoadError};
use proto::store::{Compare, KeyValue, Op, Revision, Store, Txn, TxnOutcome};
use proto::tree::{Hash, OrgConfig, VersionRecord};

use super::dropping::records_until;
use super::keeping::Keeps;
use super::{Janitor, JanitorError};
use crate::publish::sweep_counter;

/// Keys deleted in one transaction; each is compared too.
const AT_ONCE: usize = 100;

/// Everything that is reached, and the compare that holds while it is so.
pub(super) struct Marked {
    pub(super) leaves: HashSet<Hash>,
    /// By credential and seal id: the regions that may have it.
    pub(super) sealed: HashMap<(CredentialId, String), Vec<String>>,
    unchanged: Compare,
}

impl Janitor {
    /// Sweeps one organisation. Answers how many keys went.
    pub(super) async fn sweep(&self, org: OrgId) -> Result<u64, JanitorError> {
        let marked = self.mark(org).await?;
        let store = self.publisher.store();
        if unreached(store, org, &marked, None).await?.is_empty() {
            return Ok(0);
        }
        let raised = sweep_counter::raise(store, org).await?;
        let (raised_at, counter) = raised.ok_or(JanitorError::Moved)?;
        let marked = self.mark(org).await?;
        let garbage = unreached(store, org, &marked, Some(raised_at)).await?;
        let mut swept = 0;
        for part in garbage.chunks(AT_ONCE) {
            let mut compares = vec![marked.unchanged.clone(), counter.clone()];
            let written =
                |pair: &KeyValue| Compare::ModRevision(pair.key.clone(), pair.mod_revision);
            compares.extend(part.iter().map(written));
            let txn = Txn {
                compares,
                ops: part
                    .iter()
                    .map(|pair| Op::Delete(pair.key.clone()))
                    .collect(),
                or_read: Vec::new(),
            };
            match store.txn(txn).await? {
                TxnOutcome::Committed(_) => swept += part.len() as u64,
                TxnOutcome::Conflict(_) => return Err(JanitorError::Moved),
            }
        }
        Ok(swept)
    }

    /// Marks what the newest version and the kept ones reach.
    pub(super) async fn mark(&self, org: OrgId) -> Result<Marked, JanitorError> {
        let (config, unchanged) = self.publisher.newest(org).await?;
        let store = self.publisher.store();
        let mut leaves = HashSet::new();
        let home = self.publisher.home(org, &config.head.epoch).await?;
        let keeps = Keeps::of(&self.publisher, (org, &home), &config.head).await?;
        keeps.mark(store, &config.head, &mut leaves).await?;
        let earlier = keeps.of_earlier();
        let records = records_until(store, org, u64::MAX).await?;
        for record in records.iter().filter(|record| !keeps.drops(record.head.n)) {
            earlier.mark(store, &record.head, &mut leaves).await?;
        }
        let mut sealed = sealed(&config);
        // After the kept versions: one that is set aside in between is copied before it goes.
        for record in aside(store, org).await? {
            keeps
                .of_branch()
                .mark(store, &record.head, &mut leaves)
                .await?;
            let loaded = load::version(store, org, record.head, Some(&config)).await;
            let unreadable = |error: LoadError| JanitorError::Unreadable(error.to_string());
            for (name, regions) in self::sealed(&loaded.map_err(unreadable)?.config) {
                sealed.entry(name).or_default().extend(regions);
            }
        }
        Ok(Marked {
            leaves,
            sealed,
            unchanged,
        })
    }
}

/// Versions that were made on a branch which is not in force: a person may still need them, with
/// their secrets.
async fn aside(store: &dyn Store, org: OrgId) -> Result<Vec<VersionRecord>, JanitorError> {
    let (mut records, mut unreadable) = (Vec::new(), None);
    load::list(
        store,
        &keys::aside_of(org),
        None,
        |pair| match serde_json::from_slice(&pair.value) {
            Ok(record) => records.push(record),
            Err(_) => unreadable = Some(pair.key),
        },
    )
    .await?;
    match unreadable {
        Some(key) => Err(JanitorError::Unreadable(key)),
        None => Ok(records),
    }
}

/// The sealed values that a version names. Earlier versions need none: a rollback keeps the secret
/// of today.
fn sealed(config: &OrgConfig) -> HashMap<(CredentialId, String), Vec<String>> {
    let mut named = HashMap::new();
    for (id, stored) in config.objects.credentials() {
        let states = stored.secret.iter().chain(&stored.previous);
        let seal_id = |state: &SecretState| state.seal_id.clone();
        let regions = &stored.credential.regions;
        let named_in = |seal_id| ((id, seal_id), regions.clone());
        named.extend(states.filter_map(seal_id).map(named_in));
    }
    named
}

/// Leaves, roots and sealed values that are not marked. Keys that make no sense stay.
async fn unreached(
    store: &dyn Store,
    org: OrgId,
    marked: &Marked,
    at: Option<Revision>,
) -> Result<Vec<KeyValue>, JanitorError> {
    let mut found = Vec::new();
    // The value is not needed, and may be large.
    let mut keep = |pair: KeyValue| {
        found.push(KeyValue {
            value: bytes::Bytes::new(),
            ..pair
        });
    };
    load::list(store, &keys::leaves(org), at, |pair| {
        if keys::parse_leaf(&pair.key).is_some_and(|(_, hash)| !marked.leaves.contains(&hash)) {
            keep(pair);
        }
    })
    .await?;
    load::list(store, &keys::secrets(org), at, |pair| {
        let named = keys::parse_secret(&pair.key);
        let reached = named.is_none_or(|(id, seal, region)| {
            let may_have = marked.sealed.get(&(id, seal.to_owned()));
            may_have.is_some_and(|regions| regions::include(regions, region))
        });
        if !reached {
            keep(pair);
        }
    })
    .await?;
    Ok(found)
}
