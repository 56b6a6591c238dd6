//! The gateways of all regions, kept in this region's store for its nodes.

use std::sync::Arc;
use std::time::Duration;

use proto::keys;
use proto::regions::Gateways;
use proto::store::{Op, Store, StoreError, Txn};

use super::Regions;
use crate::publish::writes::json;

/// How often it is looked after: a store may have been restored.
const LOOK: Duration = Duration::from_secs(30);
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

/// Writes them where they are not what is there, again and again.
pub async fn keep(store: Arc<dyn Store>, gateways: Gateways) {
    loop {
        let wait = match write(&*store, &gateways).await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::warn!(%error, "the regions' gateways were not stored; trying again");
                AGAIN
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn write(store: &dyn Store, gateways: &Gateways) -> Result<(), StoreError> {
    let there = store.get(keys::REGIONS).await?.value;
    let value = json(gateways);
    if there.is_some_and(|pair| pair.value == value) {
        return Ok(());
    }
    let txn = Txn {
        ops: vec![Op::put(keys::REGIONS.to_owned(), value)],
        ..Txn::default()
    };
    store.txn(txn).await.map(drop)
}
