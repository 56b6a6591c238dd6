//! How much space members of etcd have taken. Frees that of a full one: forgets old changes, gives
//! each member's file back what they took, one member at a time, and lets the cluster take writes
//! again.

use std::time::{Duration, Instant};

use etcd_client::{AlarmAction, AlarmOptions, AlarmType};

use super::failure::Call;
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
        self.compact(newest, deadline).await?;
        let failures = self
            .endpoints
            .each(MEMBER_MAX, |client| {
                let mut member = client.maintenance_client();
                async move { member.defragment().await.map(|_| ()) }
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
