//! How much space members of etcd have taken. Frees that of a full one: forgets old changes, gives
//! each member's file back what they took, one member at a time, and lets the cluster take writes
//! again.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, Error};

use super::failure::{Call, failure};
use super::{NO_LEASE, Shared};
use crate::store::{MemberSize, StoreError};

/// Longest time for one member: it rewrites its whole file, and answers nobody meanwhile.
const MEMBER_MAX: Duration = Duration::from_secs(120);

/// Longest time until a member says how large its file is.
const STATUS_MAX: Duration = Duration::from_secs(2);

impl Shared {
    /// What the members that answer have taken.
    pub(super) async fn sizes(&self) -> Vec<MemberSize> {
        let asked = self.endpoints.ask_each(STATUS_MAX, |client| {
            let mut member = client.maintenance_client();
            async move { member.status().await }
        });
        let size = |(member, status): (String, etcd_client::StatusResponse)| MemberSize {
            member,
            bytes: status.db_size().max(0).unsigned_abs(),
        };
        asked.await.into_iter().map(size).collect()
    }

    /// See the module.
    pub(super) async fn reclaim_space(&self, deadline: Instant) -> Result<(), StoreError> {
        let newest = self.get("space", deadline).await?.revision;
        let failures = self
            .endpoints
            .each(MEMBER_MAX, |later, client| {
                let behind = i64::try_from(later).unwrap_or(i64::MAX);
                forget(client, newest.0.saturating_sub(behind).max(1)..=newest.0)
            })
            .await;
        // A member that is away keeps nobody from writing: it tells when it is full still.
        self.take_writes_again().await?;
        match failures.into_iter().next() {
            None => Ok(()),
            Some(failure) => Err(StoreError::Unavailable(format!(
                "the cluster takes writes again, and not every member gave its space back, so \
                 do the same again once it is there: {failure}"
            ))),
        }
    }

    /// Ends the alarms of full members.
    async fn take_writes_again(&self) -> Result<(), StoreError> {
        self.endpoints
            .call(
                Instant::now() + MEMBER_MAX,
                Call::Repeatable,
                NO_LEASE,
                |client| {
                    let (mut cluster, mut member) =
                        (client.cluster_client(), client.maintenance_client());
                    async move {
                        // The alarm is each member's own; to end one that is not up is nothing.
                        for found in cluster.member_list().await?.members() {
                            let mut of = AlarmOptions::new();
                            of.with_member(found.id());
                            let (end, full) = (AlarmAction::Deactivate, AlarmType::Nospace);
                            member.alarm(end, full, Some(of)).await?;
                        }
                        Ok(())
                    }
                },
            )
            .await
    }
}

/// Lets one member forget old changes, and then gives its file back what they took.
///
/// A member that a compaction reaches from elsewhere deletes in the background, and a file that is
/// rewritten meanwhile stays as large as it was. Only the member that is asked itself answers when
/// it is done (`physical` of etcd's `CompactionRequest`), and only for a revision that was not
/// compacted yet: so each has one of its own, of these the first that is not.
async fn forget(client: Client, revisions: RangeInclusive<i64>) -> Result<(), Error> {
    let mut kv = client.kv_client();
    for revision in revisions {
        let physical = CompactionOptions::new().with_physical();
        let Err(error) = kv.compact(revision, Some(physical)).await else {
            break;
        };
        let meant = failure(&error, Call::Repeatable, NO_LEASE).error;
        if !matches!(meant, StoreError::Compacted(_)) {
            return Err(error);
        }
    }
    client.maintenance_client().defragment().await.map(|_| ())
}
