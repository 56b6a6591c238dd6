//! `requestrocket recover --space` on an etcd of which a member is away.

use proto::store::{Op, Store, StoreError, Txn};
use serde_json::json;

use super::cluster::{Cluster, wait_status};
use super::raw_store::RawStore;
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// `store.quota_bytes`.
const QUOTA_BYTES: u64 = 4 * 1024 * 1024;
/// The quota of etcd: far more, for a member says late what it has taken.
const ETCD_QUOTA: &str = "--quota-backend-bytes=33554432";

/// Writes what takes room and is soon an old change.
fn ballast(store: &RawStore) -> Result<(), StoreError> {
    let txn = Txn {
        ops: vec![Op::put("ballast", vec![7; 300_000])],
        ..Txn::default()
    };
    store.wait(store.store().txn(txn)).map(drop)
}

/// What the fullest member has taken.
fn taken(store: &RawStore) -> u64 {
    let sizes = store.wait(Store::sizes(store.store()));
    let sizes = sizes.expect("they answer").into_iter();
    sizes.map(|size| size.bytes).max().expect("a member")
}

/// Waits until a member answers, with what a quorum holds.
fn wait_answers(store: &RawStore) {
    wait_for("a leader", || {
        let read = store.wait(store.store().get("ballast"));
        read.is_ok().then_some(())
    });
}

fn rename(control: &Gateway, proxy: &Proxy, name: &str) -> (u16, String) {
    let path = format!("/proxies/{}", proxy.id);
    let answer = control.api("PATCH", &path, Some(&json!({"name": name})));
    (answer.status(), answer.text())
}

#[test]
fn space_is_reclaimed_past_a_member_that_is_away_and_publishing_goes_on_at_once() {
    let mut cluster = Cluster::of(EtcdServer::start_cluster_with(3, &[ETCD_QUOTA]));
    let mut start = cluster.control_start();
    let quota = "REQUESTROCKET_STORE__QUOTA_BYTES".to_owned();
    start.environment.push((quota, QUOTA_BYTES.to_string()));
    let control = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    let node = cluster.node("gw-1", "gw-1");
    wait_status(&node, &proxy, "GET", 200);
    let store = RawStore::new(&cluster.etcd[1]);
    while taken(&store) < QUOTA_BYTES {
        ballast(&store).expect("there is room");
    }
    // It asks the members when it starts, and then every five minutes.
    let (status, folder) = control.stop();
    assert_eq!(status.code(), Some(0));
    let control = Gateway::inside(folder, &start);
    wait_for("a refusal", || {
        let (status, said) = rename(&control, &proxy, "lost");
        (status == 503 && said.contains("of its 4194304 bytes")).then_some(())
    });
    let refused = loop {
        if let Err(error) = ballast(&store) {
            break error;
        }
    };
    assert!(matches!(refused, StoreError::Full(_)), "{refused:?}");

    // The first of `store.endpoints` is away, and the others have a leader.
    cluster.etcd[0].kill();
    wait_answers(&store);
    let output = control.command(&["recover", "--space"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("takes writes again"), "{said}");
    assert!(!said.contains("nothing was changed"), "{said}");
    for (at, member) in cluster.etcd.iter().enumerate() {
        assert_eq!(said.contains(&member.endpoint()), at == 0, "{said}");
    }
    let (status, said) = rename(&control, &proxy, "found");
    assert_eq!(status, 200, "{said}");
    ballast(&store).expect("etcd takes writes");
    assert!(taken(&store) * 2 < QUOTA_BYTES, "{}", taken(&store));
    let audit = control.api_of("system", "GET", "/audit", None).text();
    assert!(audit.contains("\"reclaim_space\":true"), "{audit}");
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);

    // It comes back as full as it was, and with it the cluster, which is not healthy then.
    cluster.etcd[0].spawn();
    let returned = RawStore::new(&cluster.etcd[0]);
    wait_answers(&returned);
    assert!(taken(&returned) * 2 > QUOTA_BYTES, "{}", taken(&returned));
    let output = control.command(&["recover", "--space"]);
    assert!(output.status.success(), "{output:?}");
    assert!(taken(&returned) * 2 < QUOTA_BYTES, "{}", taken(&returned));
    let (status, said) = rename(&control, &proxy, "again");
    assert_eq!(status, 200, "{said}");
}
