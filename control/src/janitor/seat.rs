//! A control plane's place among the others: its entry under a lease, and leadership, which one
//! of them has.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use proto::keys;
use proto::listening::Listening;
use proto::store::{Compare, LeaseId, Op, Store, StoreError, Txn, TxnOutcome};
use tokio::time::Instant;

/// How long an entry and leadership outlive their holder.
const LEASE: Duration = Duration::from_secs(15);
/// How often the lease is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// Failures one after the other that somebody is told of.
const TOLD_AT: u32 = 3;
/// The role, as in [`keys::leader`].
const ROLE: &str = "janitor";

/// Failures without a success between them: one is usual, several are told once.
#[derive(Default)]
pub(super) struct Failures(u32);

impl Failures {
    /// Notes how a try ended.
    pub fn note(&mut self, what: &str, error: Option<&StoreError>) {
        let Some(error) = error else {
            self.0 = 0;
            return;
        };
        self.0 = self.0.saturating_add(1);
        match self.0 {
            TOLD_AT => tracing::warn!(%error, "{what}, {TOLD_AT} times by now: {error}"),
            _ => tracing::debug!(%error, "{what}: {error}"),
        }
    }
}

/// Whether the control plane of this name leads, as the store has it.
///
/// # Errors
/// The store did not answer.
pub async fn leads(store: &dyn Store, name: &str) -> Result<bool, StoreError> {
    let leader = store.get(&keys::leader(ROLE)).await?.value;
    Ok(leader.is_some_and(|pair| pair.value == name.as_bytes()))
}

/// See the module.
pub(super) struct Seat {
    name: String,
    listening: Listening,
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
    pub fn new(name: String, listening: Listening) -> Self {
        Self {
            name,
            listening,
            held: Mutex::default(),
        }
    }

    /// Whether this is the leader.
    pub fn leads(&self) -> bool {
        let until = self.held().leads_until;
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Renews the place until it is dropped.
    pub async fn keep(&self, store: &dyn Store) {
        let mut failures = Failures::default();
        loop {
            let renewed = self.renew(store).await;
            let what = "this control plane has no place in the store";
            failures.note(what, renewed.as_ref().err());
            if renewed.is_err() {
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
        let put = |key: String, value: Bytes| Op::Put {
            key,
            value,
            lease: Some(lease),
        };
        if self.held().lease != Some(lease) {
            let listening = self.listening.to_json();
            let ops = vec![put(keys::control(&self.name), listening.into())];
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
            ops: vec![put(key.clone(), self.name.clone().into())],
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
