//! `Idempotency-Key`: the outcome of a write is remembered for a day, in the very transaction
//! that carried it out, so that a client that lost the answer can ask again safely.

use std::sync::Arc;
use std::time::Duration;

use proto::keys;
use proto::object::ObjectId;
use proto::store::{LeaseId, Store, StoreError};
use proto::tree::{Hash, OrgConfig};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

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

/// What was answered to an earlier request with this key.
pub(super) async fn recall(
    store: &dyn Store,
    idempotency: &Idempotency,
    newest: &Arc<OrgConfig>,
) -> Result<Option<Published>, PublishError> {
    let key = keys::idempotency(newest.org, &idempotency.key);
    let Some(pair) = store.get(&key).await?.value else {
        return Ok(None);
    };
    let remembered: Remembered = serde_json::from_slice(&pair.value)
        .map_err(|error| PublishError::Unreadable(error.to_string()))?;
    if remembered.fingerprint != idempotency.fingerprint {
        return Err(PublishError::KeyReused);
    }
    Ok(Some(Published {
        n: remembered.n,
        hash: remembered.hash,
        config: Arc::clone(newest),
        changed: remembered.changed,
        replayed: true,
    }))
}
