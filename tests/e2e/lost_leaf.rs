//! etcd loses a part of a version that everybody serves: it is named, and written again by whoever
//! holds it.

use proto::id::OrgId;
use proto::keys;
use proto::store::Op;
use proto::tree::{EVERYWHERE, Head, Root, unpack};

use crate::cluster::{Cluster, wait_known, wait_status};
use crate::harness::gateway::{Gateway, Start};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::raw_store::RawStore;
use crate::versions::run;

/// A control plane that looks for what is lost only when it is told to.
fn start(cluster: &Cluster) -> Start {
    let mut start = cluster.control_start();
    start.config.push_str("[history]\nsweep_s = 3600\n");
    start
}

/// The keys of the root of the newest version, and of one of its leaves.
fn root_and_leaf(store: &RawStore, org: OrgId) -> [String; 2] {
    let head = Head::parse(&store.get(&keys::head(org))).expect("a head");
    let root = keys::leaf(org, &head.roots[EVERYWHERE]);
    let content = unpack(head.roots[EVERYWHERE], &store.get(&root)).expect("a root");
    let leaves = Root::parse(&content).expect("a root").leaves;
    let leaf = leaves.values().next().expect("a leaf");
    [root, keys::leaf(org, leaf)]
}

#[test]
fn what_etcd_loses_of_a_version_that_is_served_is_named_and_written_again() {
    let cluster = Cluster::new();
    let control = Gateway::with(start(&cluster));
    let token = control.token.clone();
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let shown = control.control_call("GET", "/api/v1/orgs/default", Some(&token), None);
    let org: OrgId = shown.json()["id"].as_str().unwrap().parse().unwrap();
    let store = RawStore::new(&cluster.etcd[0]);
    let [root, _] = root_and_leaf(&store, org);
    let before = store.get(&root);
    store.put(vec![Op::Delete(root.clone())]);

    let (good, said) = run(&control, &["recover"]);
    assert!(good && said.contains("default "), "{said}");
    assert!(said.contains("without 1 of its leaves"), "{said}");
    let (good, said) = run(&control, &["recover", "--accept-store"]);
    assert!(good && said.contains("1 leaves"), "{said}");
    assert_eq!(store.find(&root), Some(before));
    let (good, said) = run(&control, &["recover"]);
    assert!(good && said.contains("everything"), "{said}");
    let counted = control.metric("requestrocket_store_leaves_rewritten_total");
    assert_eq!(counted, 1.0);

    // A control plane that lost its disk holds nothing that it could write.
    let [_, leaf] = root_and_leaf(&store, org);
    store.put(vec![Op::Delete(leaf)]);
    drop(control);
    let mut control = Gateway::with(start(&cluster));
    // It made none: the one of before counts.
    control.token.clone_from(&token);
    wait_for("what the control plane misses", || {
        let (good, said) = run(&control, &["recover"]);
        assert!(good, "{said}");
        said.contains("default ").then_some(())
    });
    let (good, said) = run(&control, &["recover", "--from-node", "gw-1"]);
    assert!(good && said.contains("epoch 2"), "{said}");
    wait_known(&control, [&node]);
    let fresh = cluster.node("gw-2", "gw-2");
    wait_status(&fresh, &proxy, "GET", 200);
}
