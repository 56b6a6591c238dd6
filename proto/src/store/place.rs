//! Who does a job that one process of a region is to do, of several that could: one key under a
//! lease.
//!
//! The lease only spares work. What keeps two of them from harm is that every write compares this
//! key, and what else it was decided by.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::warn;

use super::{Compare, LeaseId, Op, Store, StoreError, Txn, TxnOutcome};
use crate::keys;
use crate::seal;

/// How long the key outlives a process that died.
const TTL: Duration = Duration::from_secs(5);
/// How often the lease is renewed.
const RENEW: Duration = Duration::from_secs(1);
/// How often others look whether the place is free.
const LOOK: Duration = Duration::from_secs(1);

/// The place, held until it is dropped or its lease ends.
pub struct Place {
    key: String,
    id: String,
    store: Arc<dyn Store>,
    lease: LeaseId,
    renewing: JoinHandle<()>,
}

impl Place {
    /// Waits until the place of a role ([`keys::leader`]) is free and takes it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn take(store: &Arc<dyn Store>, role: &str) -> Result<Self, StoreError> {
        let (key, id) = (keys::leader(role), seal::random_name());
        let mut next = tokio::time::interval(LOOK);
        next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            next.tick().await;
            // Looked at first: a lease for every look would be a write.
            if store.get(&key).await?.value.is_some() {
                continue;
            }
            let lease = store.grant_lease(TTL).await?.id;
            let put = Op::Put {
                key: key.clone(),
                value: id.clone().into(),
                lease: Some(lease),
            };
            let txn = Txn {
                compares: vec![Compare::Absent(key.clone())],
                ops: vec![put],
                or_read: vec![],
            };
            match store.txn(txn).await {
                Ok(TxnOutcome::Committed(_)) => {
                    let renewing = tokio::spawn(renew(store.clone(), lease, key.clone()));
                    return Ok(Self {
                        key,
                        id,
                        store: store.clone(),
                        lease,
                        renewing,
                    });
                }
                // The lease ends by itself where it cannot be ended.
                Ok(TxnOutcome::Conflict(_)) => drop(store.revoke_lease(lease).await),
                Err(error) => {
                    let _ = store.revoke_lease(lease).await;
                    return Err(error);
                }
            }
        }
    }

    /// Holds while the place does.
    pub fn held(&self) -> Compare {
        Compare::Value(self.key.clone(), self.id.clone().into())
    }

    /// Whether the lease is known to have ended.
    pub fn is_lost(&self) -> bool {
        self.renewing.is_finished()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.renewing.abort();
        // Another may take it at once, who may be better off.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, lease) = (self.store.clone(), self.lease);
            runtime.spawn(async move { store.revoke_lease(lease).await });
        }
    }
}

/// Renews a lease until it is gone.
async fn renew(store: Arc<dyn Store>, lease: LeaseId, key: String) {
    loop {
        tokio::time::sleep(RENEW).await;
        match store.keep_alive(lease).await {
            Ok(()) => {}
            Err(StoreError::LeaseNotFound(_)) => {
                warn!(key, "the place {key} is lost; another process may take it");
                return;
            }
            // The store is away: if the lease ends meanwhile, the compare says so.
            Err(_) => {}
        }
    }
}
