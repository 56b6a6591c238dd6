//! What a region has of limits that regions share, on its nodes.

use std::sync::Arc;
use std::time::Duration;

use proto::id::OrgId;
use proto::keys;
use proto::meter::{Limit, MeterSpec, Share, Window};
use proto::shares::Held;
use proto::store::embedded::Embedded;
use proto::store::{Op, Store, Txn};

use crate::limits::{Clock, Limits, Meter, MeterKey, Opener, Settings, SystemClock};

const ID: &str = "mtr_1";

fn share() -> Share {
    let regions = ["eu", "us"].map(String::from);
    Share::of(&regions, 0, "eu").unwrap()
}

fn node(node: u64, store: &Arc<dyn Store>) -> (Arc<Limits>, Arc<Meter>) {
    let settings = Settings::single_node(Opener { node, boot: 1 });
    let (limits, broker) = Limits::new(Arc::clone(store), &settings, Arc::new(SystemClock));
    actix_rt::spawn(broker);
    let limit = Limit::new(1_000, Window::Second).unwrap();
    let spec = MeterSpec::new("", 1, vec![limit]).unwrap();
    let spec = Arc::new(spec.sharing(Some(share())));
    let meter = limits.meter(MeterKey::whole(ID), spec);
    (limits, meter)
}

fn limit_of(meter: &Arc<Meter>) -> u64 {
    meter.spec.load().limits()[0].limit()
}

async fn until(meter: &Arc<Meter>, limit: u64) {
    let waiting = async {
        while limit_of(meter) != limit {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.unwrap_or_else(|_| panic!("{limit} in vain: {}", limit_of(meter)));
}

async fn put(store: &Arc<dyn Store>, value: Vec<u8>) {
    let key = keys::share(OrgId::from_bits(1), ID);
    let ops = vec![Op::put(key, value), Op::put(keys::SHARES_MOVED, ID)];
    let txn = Txn {
        ops,
        ..Txn::default()
    };
    store.txn(txn).await.unwrap();
}

#[actix_rt::test]
async fn nodes_give_what_their_region_has_and_little_while_they_do_not_know() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
    let (limits, meter) = node(1, &store);
    // Nothing was heard of: what is never given away.
    assert_eq!(limit_of(&meter), 25);
    assert_eq!(meter.configured().limits()[0].limit(), 1_000);
    until(&meter, 500).await;

    // A part is given away; a node that comes later finds it.
    let limit = [Limit::new(1_000, Window::Second).unwrap()];
    let mut held = Held::default();
    held.give((&share(), &limit), "us", 380_000).unwrap();
    put(&store, serde_json::to_vec(&held).unwrap()).await;
    until(&meter, 120).await;
    let (_late, other) = node(2, &store);
    assert_eq!(limit_of(&other), 25);
    until(&other, 120).await;

    // What is not proven for some seconds is not relied on.
    let soon_ns = SystemClock.boot_ns() + 2_000_000_000;
    assert!(!meter.renew_share(soon_ns));
    let late_ns = SystemClock.boot_ns() + 60_000_000_000;
    assert!(meter.renew_share(late_ns));
    assert_eq!(limit_of(&meter), 25);
    until(&meter, 120).await;

    // What a person raises is raised from there; what cannot be read is nothing.
    meter.raise(200, u64::MAX);
    assert_eq!(limit_of(&meter), 240);
    put(&store, b"{".to_vec()).await;
    until(&meter, 0).await;
    until(&other, 0).await;
    assert_eq!(
        limits
            .demand(Duration::from_millis(500))
            .map(|demand| demand.len()),
        Some(0)
    );
}
