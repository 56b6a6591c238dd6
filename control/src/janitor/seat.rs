//! A control plane's place among the others: its entry under a lease, and leadership, which one
//! of them has.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use proto::keys;
use proto::store::{Compare, LeaseId, Op, Store, StoreError, Txn, TxnOutcome};
use tokio::time::Instant;

/// How long an entry and leadership outlive their holder.
const LEASE: Duration = Duration::from_secs(15);
/// How often the lease is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// The role, as in [`keys::leader`].
const ROLE: &str = "janitor";

/// See the module.
pub(super) struct Seat {
    name: String,
    // Held for a copy only, never across an await.
    held: Mutex<Held>,
}

#[derive(Clone, Copy, Default)]
struct Held {
    lease: Option<LeaseId>,
    /// Until when leadership is certain by this process's clock.
    leads_until: Option<Instant>,
}

impl Seat {
    pub fn new(name: String) -> Self {
        let held = Mutex::default();
        Self { name, held }
    }

    /// Whether this is the leader.
    pub fn leads(&self) -> bool {
        let until = self.held().leads_until;
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Renews the place until it is dropped.
    pub async fn keep(&self, store: &dyn Store) {
        loop {
            if let Err(error) = self.renew(store).await {
                tracing::debug!(%error, "this control plane has no place in the store: {error}");
                self.set(Held::default());
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    /// Renews the lease, or takes a new one; leads if nobody else does.
    pub async fn renew(&self, store: &dyn Store) -> Result<(), StoreError> {
        let asked = Instant::now();
        let lease = match self.held().lease {
            Some(lease) => {
                store.keep_alive(lease).await?;
                lease
            }
            None => store.grant_lease(LEASE).await?.id,
        };
        let put = |key: String| Op::Put {
            key,
            value: self.name.clone().into(),
            lease: Some(lease),
        };
        if self.held().lease != Some(lease) {
            let ops = vec![put(keys::control(&self.name))];
            store
                .txn(Txn {
                    ops,
                    ..Txn::default()
                })
                .await?;
        }
        let key = keys::leader(ROLE);
        let lead = Txn {
            compares: vec![Compare::Absent(key.clone())],
            ops: vec![put(key.clone())],
            or_read: vec![key],
        };
        let leads = match store.txn(lead).await? {
            TxnOutcome::Committed(_) => true,
            TxnOutcome::Conflict(found) => {
                let mut leader = found.value.into_iter().flatten();
                leader.any(|pair| pair.lease == Some(lease))
            }
        };
        self.set(Held {
            lease: Some(lease),
            leads_until: leads.then_some(asked + LEASE),
        });
        Ok(())
    }

    /// Gives the place up at once.
    pub async fn leave(&self, store: &dyn Store) {
        if let Some(lease) = self.held().lease {
            // Without an answer the lease ends by itself.
            let _ = store.revoke_lease(lease).await;
        }
        self.set(Held::default());
    }

    fn held(&self) -> Held {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }
}
