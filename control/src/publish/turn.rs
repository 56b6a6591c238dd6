//! Turns of control planes that publish in one organisation at the same time.
//!
//! Who has just made a version knows it, and is ready with the next one before another control
//! plane has read what it lost the race to. As long as the one has a queue the other would lose
//! every race, until its deadline. So who has lost a few takes the turn, a key of the store, and no
//! version is made while somebody else has it. It goes with the version that its holder makes, in
//! the same transaction, or with its lease. It says who is next and never what stands: that is the
//! compare on the head.

use std::time::Duration;

use bytes::Bytes;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Compare, LeaseId, Op, Revision, Store, StoreError, Txn, TxnOutcome};

use super::writes::Writes;

/// Races that are lost before the turn is taken; one where the publish before had to take it too.
const LOST_MAX: u32 = 3;
/// How long a turn outlives a control plane that died with it: less than others have time for.
const LEASE: Duration = Duration::from_secs(4);

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

    /// Lets a version be made only while nobody else has the turn, and ends an own one with it.
    pub fn guard(&self, org: OrgId, writes: &mut Writes) {
        let key = keys::turn(org);
        match &self.held {
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
