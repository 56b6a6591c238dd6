//! Asking a node for what it serves, when a person lets that count.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::id::OrgId;
use proto::keys;
use proto::member::Member;
use proto::seal;
use proto::store::recovery::{self, Ask, Offer, Offered};
use proto::store::{Op, StoreError, Txn, load};
use proto::tree::Hash;
use tokio::time::Instant;

use super::recovery::{RecoverError, Regressed};
use super::writes::json;
use super::{PublishError, Publisher};

/// How often it is looked whether the node has answered.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a request and its answers stay in the store.
const ASK_LEASE: Duration = Duration::from_secs(120);

impl Publisher {
    /// Of these the heads that stand, although something of their versions cannot be read here: a
    /// node that serves one whole does not miss it.
    pub(super) async fn lost_here(
        &self,
        of: &[Regressed],
    ) -> Result<BTreeMap<OrgId, Hash>, PublishError> {
        let mut lost = BTreeMap::new();
        for org in of.iter().map(|one| one.org) {
            if !self.is_regressed(org)
                && let Some(head) = self.stored_head(org).await?.head
            {
                lost.insert(org, head.hash);
            }
        }
        Ok(lost)
    }

    /// Lets a node write its content, and gathers what it says.
    pub(super) async fn ask(
        &self,
        node: &str,
        orgs: BTreeMap<OrgId, Hash>,
        deadline: Instant,
    ) -> Result<BTreeMap<OrgId, Offer>, RecoverError> {
        if !self.can_answer(node, !orgs.is_empty()).await? {
            return Err(RecoverError::Silent(node.to_owned()));
        }
        let ask = Ask {
            id: seal::random_name(),
            node: node.to_owned(),
            orgs,
        };
        let lease = self.store.grant_lease(ASK_LEASE).await?.id;
        // A node of an earlier release reads nothing that names organisations.
        let before = Ask {
            orgs: BTreeMap::new(),
            ..ask.clone()
        };
        let put = |key: &str, ask: &Ask| Op::Put {
            key: key.to_owned(),
            value: json(ask),
            lease: Some(lease),
        };
        let txn = Txn {
            ops: vec![
                put(keys::RECOVERY_ASK, &ask),
                put(keys::RECOVERY_ASK_BEFORE, &before),
            ],
            ..Txn::default()
        };
        self.store.txn(txn).await?;
        let offers = self.offers(&ask, deadline).await;
        // Without an answer the lease ends by itself.
        let _ = self.store.revoke_lease(lease).await;
        offers
    }

    /// Whether a node of this name is there that has something to write back, or is told what.
    async fn can_answer(&self, node: &str, is_told: bool) -> Result<bool, StoreError> {
        let mut can = false;
        load::list(&*self.store, keys::NODES, None, |pair| {
            if let Ok(member) = serde_json::from_slice::<Member>(&pair.value) {
                let mut faults = member.faults.iter();
                let has = faults.any(|fault| recovery::is_recoverable(&fault.code));
                can |= (has || is_told) && member.name == node;
            }
        })
        .await?;
        Ok(can)
    }

    async fn offers(
        &self,
        ask: &Ask,
        deadline: Instant,
    ) -> Result<BTreeMap<OrgId, Offer>, RecoverError> {
        let offered = loop {
            let key = keys::recovery_offered(&ask.id);
            if let Some(pair) = self.store.get(&key).await?.value {
                break serde_json::from_slice::<Offered>(&pair.value).map_err(unreadable(&key))?;
            }
            if Instant::now() >= deadline {
                return Err(RecoverError::Silent(ask.node.clone()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        // In the order of the ids `system` comes first: it names the others.
        let mut offers = BTreeMap::new();
        for org in offered.orgs {
            let key = keys::recovery_offer(&ask.id, org);
            if let Some(pair) = self.store.get(&key).await?.value {
                let offer = serde_json::from_slice(&pair.value).map_err(unreadable(&key))?;
                offers.insert(org, offer);
            }
        }
        Ok(offers)
    }
}

fn unreadable(key: &str) -> impl Fn(serde_json::Error) -> RecoverError {
    let key = key.to_owned();
    move |error| PublishError::Unreadable(format!("{key}: {error}")).into()
}
