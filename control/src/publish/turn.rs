//! Turns of control planes that publish in one organisation at the same time.
//!
//! Who has just made a version knows it, and is ready with the next one before another control
//! plane has read what it lost the race to. As long as the one has a queue the other would lose
//! every race, until its deadline. So who has lost a few takes the turn, a key of the store, and no
//! version is made while somebody else has it. It goes with the version that its holder makes, in
//! the same transaction, or with its lease, which its holder renews for as long as a try takes and
//! no longer than its deadline. It says who is next and never what stands: that is the compare on
//! the head. So whose lease ended all the same, since it was stopped for a while, goes on like any
//! other: it makes its version unless somebody else has taken the turn or has been first.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Compare, LeaseId, Op, Revision, Store, StoreError, Txn, TxnOutcome};
use tokio::time::Instant;

use super::writes::Writes;

/// Races that are lost before the turn is taken; one where the publish before had to take it too.
const LOST_MAX: u32 = 3;
/// How long a turn outlives a control plane that died with it: less than others have time for.
pub(super) const LEASE: Duration = Duration::from_secs(4);
/// How often it is renewed while a try lasts.
const RENEW: Duration = Duration::from_secs(1);

/// What a publish has of the turn in its organisation.
#[derive(Default)]
pub(super) struct Turn {
    lost: u32,
    held: Option<Held>,
}

struct Held {
    lease: LeaseId,
    since: Revision,
}

impl Turn {
    /// Of a publish that comes after one which had to take the turn, or after none such.
    pub fn after(races: bool) -> Self {
        let lost = if races { LOST_MAX - 1 } else { 0 };
        Self { lost, held: None }
    }

    /// Whether it is that of this publish, or was until its version came.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Keeps an own turn while a try lasts, which its deadline bounds; to be polled beside it.
    pub async fn keep(&self, store: &dyn Store, deadline: Instant) -> Infallible {
        if let Some(held) = &self.held {
            while Instant::now() + RENEW < deadline {
                tokio::time::sleep(RENEW).await;
                match store.keep_alive(held.lease).await {
                    Ok(()) => {}
                    Err(StoreError::LeaseNotFound(_)) => break,
                    Err(error) => tracing::debug!(%error, "the turn is not renewed: {error}"),
                }
            }
        }
        std::future::pending().await
    }

    /// Lets a version be made only while nobody else has the turn, and ends an own one with it. To
    /// be asked right before it is made.
    pub async fn guard(&self, store: &dyn Store, org: OrgId, writes: &mut Writes) {
        let key = keys::turn(org);
        let held = match &self.held {
            Some(held) => match store.keep_alive(held.lease).await {
                Err(StoreError::LeaseNotFound(_)) => None,
                // Where it is not known the version's transaction finds out.
                _ => Some(held),
            },
            None => None,
        };
        match held {
            None => writes.compares.push(Compare::Absent(key)),
            Some(held) => {
                let kept = Compare::ModRevision(key.clone(), held.since);
                writes.compares.push(kept);
                writes.with_head.push(Op::Delete(key));
            }
        }
    }

    /// Notes that somebody else was first, and takes the turn when that was so too often. Without
    /// it the publish goes on like any other.
    pub async fn lost(&mut self, store: &dyn Store, org: OrgId) {
        self.lost = self.lost.saturating_add(1);
        if self.lost < LOST_MAX {
            return;
        }
        if let Err(error) = self.take(store, org).await {
            tracing::debug!(%org, %error, "the turn in {org} is not taken: {error}");
        }
    }

    async fn take(&mut self, store: &dyn Store, org: OrgId) -> Result<(), StoreError> {
        let key = keys::turn(org);
        if let Some(taken) = store.get(&key).await?.value {
            self.held.take_if(|held| held.since != taken.mod_revision);
            return Ok(());
        }
        let lease = store.grant_lease(LEASE).await?.id;
        self.held = None;
        let put = Op::Put {
            key: key.clone(),
            value: Bytes::new(),
            lease: Some(lease),
        };
        let taken = store.txn(Txn {
            compares: vec![Compare::Absent(key)],
            ops: vec![put],
            or_read: vec![],
        });
        match taken.await {
            Ok(TxnOutcome::Committed(since)) => {
                self.held = Some(Held { lease, since });
                Ok(())
            }
            other => {
                // Also what may be taken and was not told.
                store.revoke_lease(lease).await?;
                other.map(drop)
            }
        }
    }

    /// Gives the turn up without a version.
    pub async fn leave(self, store: &dyn Store) {
        if let Some(held) = self.held {
            // Without an answer the lease ends by itself.
            let _ = store.revoke_lease(held.lease).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::store::embedded::Embedded;

    use super::*;

    /// As after its holder was stopped for longer than the lease.
    #[tokio::test]
    async fn whose_turn_has_ended_goes_on_like_any_other() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let (org, key) = (OrgId::from_bits(1), keys::turn(OrgId::from_bits(1)));
        let mut turn = Turn::after(true);
        turn.lost(&*store, org).await;
        let taken = store.get(&key).await.unwrap().value.unwrap();
        let guarded = async || {
            let mut writes = Writes::default();
            turn.guard(&*store, org, &mut writes).await;
            (writes.compares, writes.with_head.len())
        };
        let kept = Compare::ModRevision(key.clone(), taken.mod_revision);
        assert_eq!(guarded().await, (vec![kept], 1));
        store.revoke_lease(taken.lease.unwrap()).await.unwrap();
        assert_eq!(guarded().await, (vec![Compare::Absent(key)], 0));
    }
}
