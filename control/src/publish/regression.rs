//! What is known of the configuration outside the store, and whether the store went back behind
//! it: it was restored from an older backup, or wiped. Then nothing is published before a person
//! has decided.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use proto::id::OrgId;
use proto::keys;
use proto::member::{FAULTS_MAX, Member, MemberFault};
use proto::store::follow::{OrgState, World};
use proto::store::recovery::{REGRESSED, is_recoverable};
use proto::store::{Store, StoreError, load};
use tokio::sync::watch;

use super::{PublishError, Publisher};

/// How often the nodes' reports are read.
const NODES_EVERY: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Default)]
pub(super) struct Regressions {
    /// What this process follows, and has kept over its last restart.
    seen: OnceLock<watch::Receiver<Arc<World>>>,
    reported: Mutex<Reported>,
}

/// What nodes serve more of than the store holds.
#[derive(Default)]
struct Reported {
    /// Organisations, with the name of a node.
    orgs: BTreeMap<OrgId, String>,
    /// A node that has more of so many organisations that it cannot name them: it may be any.
    any: Option<String>,
}

impl Regressions {
    /// An organisation as this process has seen it.
    pub fn seen(&self, org: OrgId) -> Option<Arc<OrgState>> {
        self.world()?.orgs.get(&org).cloned()
    }

    /// What this process has seen.
    pub fn world(&self) -> Option<Arc<World>> {
        Some(self.seen.get()?.borrow().clone())
    }

    /// Who saw more of an organisation than the store holds.
    pub fn witness(&self, org: OrgId) -> Option<String> {
        let is_one = |world: &Arc<World>| {
            let mut faults = world.faults.iter();
            faults.any(|fault| fault.code == REGRESSED && fault.org == Some(org))
        };
        if self.world().as_ref().is_some_and(is_one) {
            return Some("this control plane".to_owned());
        }
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let node = reported.orgs.get(&org).or(reported.any.as_ref());
        node.map(|node| format!("node {node}"))
    }

    /// Reads what the nodes report: organisations that a node could write back.
    pub async fn ask_nodes(
        &self,
        store: &dyn Store,
    ) -> Result<BTreeMap<OrgId, String>, StoreError> {
        let (mut found, mut regressed) = (BTreeMap::new(), Reported::default());
        load::list(store, keys::NODES, None, |pair| {
            let Ok(member) = serde_json::from_slice::<Member>(&pair.value) else {
                return;
            };
            let is_regressed = |fault: &MemberFault| fault.code == REGRESSED;
            if member.faults.len() >= FAULTS_MAX && member.faults.iter().all(is_regressed) {
                regressed.any = Some(member.name.clone());
            }
            for fault in member
                .faults
                .iter()
                .filter(|fault| is_recoverable(&fault.code))
            {
                let Some(org) = fault.org.as_deref().and_then(|org| org.parse().ok()) else {
                    continue;
                };
                found.insert(org, member.name.clone());
                if is_regressed(fault) {
                    regressed.orgs.insert(org, member.name.clone());
                }
            }
        })
        .await?;
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        *reported = regressed;
        Ok(found)
    }
}

impl Publisher {
    /// Lets it compare what the store holds with what was seen. To be called once, before anything
    /// is published.
    pub fn remember(&self, seen: watch::Receiver<Arc<World>>) {
        // A second call changes nothing.
        let _ = self.regressions.seen.set(seen);
    }

    /// Reads what nodes report of the store, until it is dropped.
    pub async fn watch_nodes(&self) {
        loop {
            if let Err(error) = self.regressions.ask_nodes(&*self.store).await {
                tracing::debug!(%error, "the nodes' reports cannot be read: {error}");
            }
            tokio::time::sleep(NODES_EVERY).await;
        }
    }

    /// Whether the store is known to have gone back in an organisation.
    pub(crate) fn is_regressed(&self, org: OrgId) -> bool {
        self.regressions.witness(org).is_some()
    }

    /// Refuses to publish into a store that went back.
    pub(super) fn refuse_regressed(&self, org: OrgId, n: u64) -> Result<(), PublishError> {
        match self.regressions.witness(org) {
            None => Ok(()),
            Some(witness) => Err(PublishError::Behind { org, n, witness }),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proto::id::NodeId;
    use proto::store::embedded::Embedded;
    use proto::store::{Op, Txn};

    use super::*;

    #[tokio::test]
    async fn a_node_that_cannot_name_all_speaks_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let orgs: Vec<OrgId> = (0..=FAULTS_MAX).map(|_| OrgId::new()).collect();
        let told = async |regressed: &[OrgId]| {
            let fault = |org: &OrgId| MemberFault {
                org: Some(org.to_string()),
                object: None,
                code: REGRESSED.to_owned(),
                detail: String::new(),
                applied: None,
            };
            let member = Member {
                id: NodeId::from_bits(1),
                name: "gw-1".into(),
                region: "eu".into(),
                address: String::new(),
                peers: None,
                program: String::new(),
                started_at: Timestamp::UNIX_EPOCH,
                revision: 1,
                serves: String::new(),
                in_flight: 0,
                clock_ahead_ms: None,
                meters_degraded: 0,
                restarts: BTreeMap::new(),
                not_kept: Default::default(),
                sealing: None,
                failing: Vec::new(),
                faults: regressed.iter().map(fault).collect(),
            };
            let value = serde_json::to_vec(&member).unwrap();
            let txn = Txn {
                ops: vec![Op::put(keys::node(member.id), value)],
                ..Txn::default()
            };
            store.txn(txn).await.unwrap();
            let regressions = Regressions::default();
            regressions.ask_nodes(&*store).await.unwrap();
            regressions
        };
        let few = told(&orgs[..2]).await;
        assert_eq!(few.witness(orgs[1]).as_deref(), Some("node gw-1"));
        assert_eq!(few.witness(orgs[FAULTS_MAX]), None);
        let many = told(&orgs[..FAULTS_MAX]).await;
        assert_eq!(many.witness(orgs[FAULTS_MAX]).as_deref(), Some("node gw-1"));
        assert_eq!(told(&[]).await.witness(orgs[0]), None);
    }
}
