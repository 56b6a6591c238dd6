//! The gateways of all regions, kept in this region's store for its nodes.

use std::sync::Arc;
use std::time::Duration;

use proto::keys;
use proto::regions::Gateways;
use proto::store::{Compare, Op, Store, StoreError, Txn, TxnOutcome};

use super::Regions;
use crate::janitor;
use crate::publish::writes::json;

/// How often it is looked after: a store may have been restored.
const LOOK: Duration = Duration::from_secs(30);
/// How often while others are there and this control plane does not lead.
const UNLED: Duration = Duration::from_secs(5);
/// How soon after a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// The gateways of these regions, whose own is at `own_url`.
pub fn of(regions: &Regions, own_url: &str) -> Gateways {
    let peers = regions.peers.iter();
    let peers = peers.filter_map(|peer| Some((peer.name.clone(), peer.gateway.clone()?)));
    let own = (
        regions.own.clone(),
        own_url.trim_end_matches('/').to_owned(),
    );
    let urls = std::iter::once(own).chain(peers).collect();
    Gateways { urls }
}

/// Writes them where they are not what is there, again and again. Control planes whose settings
/// differ do not take turns: only the one that leads replaces what is there, and `name` is this
/// one's.
pub async fn keep(store: Arc<dyn Store>, gateways: Gateways, name: String) {
    let mut told = false;
    loop {
        let wait = match write(&*store, &gateways, &name).await {
            Ok(true) => LOOK,
            Ok(false) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(
                        "the regions' gateways in the store are not those of `regions.peers` and \
                         `gateway.public_url` here; the control plane that leads writes its own"
                    );
                }
                UNLED
            }
            Err(error) => {
                tracing::warn!(%error, "the regions' gateways were not stored; trying again");
                AGAIN
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Writes them where there are none, and as the leader where there are others; says whether they
/// are there now.
async fn write(store: &dyn Store, gateways: &Gateways, name: &str) -> Result<bool, StoreError> {
    let key = keys::REGIONS.to_owned();
    let there = store.get(&key).await?.value;
    let value = json(gateways);
    let as_read = match there {
        Some(pair) if pair.value == value => return Ok(true),
        Some(_) if !janitor::leads(store, name).await? => return Ok(false),
        Some(pair) => Compare::ModRevision(key.clone(), pair.mod_revision),
        None => Compare::Absent(key.clone()),
    };
    let txn = Txn {
        compares: vec![as_read],
        ops: vec![Op::put(key, value)],
        ..Txn::default()
    };
    let outcome = store.txn(txn).await?;
    Ok(matches!(outcome, TxnOutcome::Committed(_)))
}

#[cfg(test)]
mod tests {
    use proto::store::embedded::Embedded;

    use super::*;

    #[tokio::test]
    async fn control_planes_that_differ_do_not_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let list = |url: &str| Gateways {
            urls: [("eu".to_owned(), url.to_owned())].into(),
        };
        let (old, new) = (list("https://old.example"), list("https://new.example"));
        let there = async || {
            let pair = store.get(keys::REGIONS).await.unwrap().value.unwrap();
            serde_json::from_slice::<Gateways>(&pair.value).unwrap()
        };
        // The first one needs no leader.
        assert_eq!(write(&*store, &old, "a").await, Ok(true));
        assert_eq!(write(&*store, &new, "b").await, Ok(false), "nobody leads");
        let lead = |name: &str| Txn {
            ops: vec![Op::put(keys::leader("janitor"), name.to_owned())],
            ..Txn::default()
        };
        store.txn(lead("a")).await.unwrap();
        assert_eq!(write(&*store, &new, "b").await, Ok(false));
        assert_eq!(there().await, old);
        store.txn(lead("b")).await.unwrap();
        assert_eq!(write(&*store, &new, "b").await, Ok(true));
        assert_eq!(write(&*store, &old, "a").await, Ok(false));
        assert_eq!(there().await, new);
    }
}
