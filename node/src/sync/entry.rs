//! A key of the store that is there as long as its node is: written under a lease that is renewed.

use std::sync::Arc;
use std::time::Duration;

use proto::store::{LeaseId, Op, Store, StoreError, Txn};
use serde::Serialize;

/// How long an entry outlives its node.
const LEASE: Duration = Duration::from_secs(15);

/// One such key.
pub struct Entry {
    store: Arc<dyn Store>,
    key: String,
    lease: Option<LeaseId>,
}

impl Entry {
    /// Nothing is written yet.
    pub fn new(store: Arc<dyn Store>, key: String) -> Self {
        let lease = None;
        Self { store, key, lease }
    }

    /// Renews the lease, or takes a new one. True when it is new: then nothing is written.
    ///
    /// # Errors
    /// The store cannot be reached, or the lease has ended: call [`Entry::forget`].
    pub async fn renew(&mut self) -> Result<bool, StoreError> {
        match self.lease {
            Some(lease) => self.store.keep_alive(lease).await.map(|()| false),
            None => {
                self.lease = Some(self.store.grant_lease(LEASE).await?.id);
                Ok(true)
            }
        }
    }

    /// Writes the value, of texts and numbers only, under the lease.
    ///
    /// # Errors
    /// It may or may not be written.
    pub async fn put(&self, value: &impl Serialize) -> Result<(), StoreError> {
        let put = Op::Put {
            key: self.key.clone(),
            // Texts and numbers only: serialising into memory cannot fail.
            value: serde_json::to_vec(value).unwrap_or_default().into(),
            lease: self.lease,
        };
        let txn = Txn {
            ops: vec![put],
            ..Txn::default()
        };
        self.store.txn(txn).await.map(drop)
    }

    /// The lease is not to be relied on any more: the next one is new.
    pub fn forget(&mut self) {
        self.lease = None;
    }

    /// Takes the key away.
    pub async fn leave(&self) {
        if let Some(lease) = self.lease {
            // Without an answer the lease ends by itself.
            let _ = self.store.revoke_lease(lease).await;
        }
    }
}
