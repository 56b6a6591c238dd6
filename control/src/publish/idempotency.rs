//! `Idempotency-Key`: the outcome of a write is remembered for a day, in the very transaction
//! that carried it out, so that a client that lost the answer can ask again safely.
//!
//! It goes to other regions with the version, so that it holds where home moves to. It counts only
//! while that version is one of the line here: what was carried out on a branch that is set aside
//! was not carried out.

use std::sync::Arc;
use std::time::Duration;

use proto::id::OrgId;
use proto::keys;
use proto::object::ObjectId;
use proto::store::{Compare, LeaseId, Op, Store, StoreError};
use proto::tree::{Hash, OrgConfig, VersionRecord};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::writes::json;
use super::{PublishError, Published};

/// How long an outcome is remembered at least.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long one lease takes in new outcomes; a lease per write would be a write of its own.
const LEASE_OPEN: Duration = Duration::from_secs(3600);

/// An `Idempotency-Key` with what it was sent for.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The client's key.
    pub key: String,
    /// A hash of method, path and body: the same key for another request is refused.
    pub fingerprint: Hash,
}

/// A remembered outcome.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Remembered {
    pub fingerprint: Hash,
    pub n: u64,
    pub hash: Hash,
    pub changed: Vec<ObjectId>,
}

/// The lease that remembered outcomes live under.
#[derive(Default)]
pub(super) struct Memory {
    lease: tokio::sync::Mutex<Option<(LeaseId, Instant)>>,
}

impl Memory {
    /// A lease that lives at least [`KEPT`] longer.
    pub async fn lease(&self, store: &dyn Store) -> Result<LeaseId, StoreError> {
        let mut current = self.lease.lock().await;
        match *current {
            Some((id, since)) if since.elapsed() < LEASE_OPEN => Ok(id),
            _ => {
                let since = Instant::now();
                let id = store.grant_lease(KEPT + LEASE_OPEN).await?.id;
                *current = Some((id, since));
                Ok(id)
            }
        }
    }

    /// Forgets a lease that the store says is gone.
    pub async fn lease_is_gone(&self) {
        *self.lease.lock().await = None;
    }
}

/// The same with its key, as it is stored beside the version for other regions.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    /// The hash that names the key in the store.
    key: String,
    outcome: Remembered,
}

/// Puts an outcome and, beside its version, the same for other regions.
fn put_both(org: OrgId, key: String, told: &Told, lease: LeaseId) -> [Op; 2] {
    let beside = keys::remembered(org, told.outcome.n);
    [(key, json(&told.outcome)), (beside, json(told))].map(|(key, value)| Op::Put {
        key,
        value,
        lease: Some(lease),
    })
}

/// What stores an outcome.
pub(super) fn puts(org: OrgId, key: &str, outcome: Remembered, lease: LeaseId) -> [Op; 2] {
    let at = keys::idempotency(org, key);
    let key = at.rsplit('/').next().unwrap_or_default().to_owned();
    put_both(org, at, &Told { key, outcome }, lease)
}

/// What stores the outcome of a request that made no version: here alone, since what goes to other
/// regions with a version is what made it.
pub(super) fn put_here(org: OrgId, key: &str, outcome: &Remembered, lease: LeaseId) -> Op {
    Op::Put {
        key: keys::idempotency(org, key),
        value: json(outcome),
        lease: Some(lease),
    }
}

/// What stores what another region tells of a version; none where it is not of that version.
pub(crate) fn puts_of_other(
    org: OrgId,
    version: (u64, Hash),
    told: &[u8],
    lease: LeaseId,
) -> Option<[Op; 2]> {
    let told: Told = serde_json::from_slice(told).ok()?;
    let is_of = (told.outcome.n, told.outcome.hash) == version;
    let key = keys::idempotency_by_hash(org, &told.key).filter(|_| is_of)?;
    Some(put_both(org, key, &told, lease))
}

/// The keys of what is remembered of a version, where something is.
pub(crate) async fn keys_of(
    store: &dyn Store,
    org: OrgId,
    n: u64,
) -> Result<Vec<String>, StoreError> {
    let beside = keys::remembered(org, n);
    let Some(pair) = store.get(&beside).await?.value else {
        return Ok(Vec::new());
    };
    let told = serde_json::from_slice::<Told>(&pair.value).ok();
    let key = told.and_then(|told| keys::idempotency_by_hash(org, &told.key));
    Ok(key.into_iter().chain([beside]).collect())
}

/// What became of an earlier request with a key.
pub(super) enum Recalled {
    /// It was carried out.
    Done(Published),
    /// None was; what holds while it is so.
    Free(Compare),
}

/// What was answered to an earlier request with this key.
pub(super) async fn recall(
    store: &dyn Store,
    idempotency: &Idempotency,
    newest: &Arc<OrgConfig>,
) -> Result<Recalled, PublishError> {
    let key = keys::idempotency(newest.org, &idempotency.key);
    let Some(pair) = store.get(&key).await?.value else {
        return Ok(Recalled::Free(Compare::Absent(key)));
    };
    let remembered: Remembered = serde_json::from_slice(&pair.value)
        .map_err(|error| PublishError::Unreadable(error.to_string()))?;
    if !is_in_force(store, &remembered, newest).await? {
        return Ok(Recalled::Free(Compare::ModRevision(key, pair.mod_revision)));
    }
    if remembered.fingerprint != idempotency.fingerprint {
        return Err(PublishError::KeyReused);
    }
    Ok(Recalled::Done(Published {
        n: remembered.n,
        hash: remembered.hash,
        config: Arc::clone(newest),
        changed: remembered.changed,
        replayed: true,
    }))
}

/// Whether the version that a request made is one of the line that leads to the newest.
async fn is_in_force(
    store: &dyn Store,
    remembered: &Remembered,
    newest: &OrgConfig,
) -> Result<bool, PublishError> {
    let Remembered { n, hash, .. } = remembered;
    if *n >= newest.head.n {
        return Ok((*n, *hash) == (newest.head.n, newest.head.hash));
    }
    let key = keys::version(newest.org, *n);
    let Some(pair) = store.get(&key).await?.value else {
        // It left the store with age. What is set aside is forgotten with its version.
        return Ok(true);
    };
    let record = serde_json::from_slice::<VersionRecord>(&pair.value);
    let record = record.map_err(|error| PublishError::Unreadable(format!("{key}: {error}")))?;
    Ok(record.head.hash == *hash)
}
