//! etcd goes back behind what was served, and there is one process alone that knows: a control
//! plane without nodes, a node without a control plane. Each says so by itself.

use serde_json::json;

use crate::cluster::{Cluster, recover, wait_status};
use crate::harness::gateway::Gateway;
use crate::harness::metrics;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::regression::{deny_delete, is_refused, rename, wait_regressed, wait_written};

#[test]
fn a_control_plane_without_nodes_publishes_nothing_into_an_etcd_that_went_back() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let token = control.token.clone();
    let proxy = control.proxy("https://api.example.com");
    let copy = cluster.etcd[0].backup();
    wait_written(&control, &proxy, "after the backup");
    cluster.etcd[0].restore(Some(&copy));
    is_refused(&control, &proxy);
    wait_for("a metric that says so", || {
        (control.metric("requestrocket_store_regressed") == 1.0).then_some(())
    });
    // Also after a start, by what it has kept.
    let control = cluster.control_again(control.kill(), &token);
    is_refused(&control, &proxy);
    let (good, said) = recover(&control, &[]);
    let named = said.contains("default ") && said.contains("by this control plane");
    assert!(good && named, "{said}");
    let (good, said) = recover(&control, &["--from-node", "gw-1"]);
    assert!(!good && said.contains("gw-1"), "{said}");
    is_refused(&control, &proxy);

    let (good, said) = recover(&control, &["--accept-store"]);
    assert!(good && said.contains("epoch 2"), "{said}");
    let found = wait_for("what the store holds", || {
        let found = control.get(&format!("/proxies/{}", proxy.id));
        (found["name"] != "after the backup").then_some(found)
    });
    assert_eq!(found["id"], json!(proxy.id));
    rename(&control, &proxy);
    assert_eq!(control.metric("requestrocket_store_regressed"), 0.0);
}

#[test]
fn a_node_without_control_planes_keeps_what_an_etcd_that_went_back_has_lost() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let token = control.token.clone();
    let (node, start, admin) = cluster.watched_node("gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let copy = cluster.etcd[0].backup();
    deny_delete(&control, &node, &proxy);
    drop(control);
    cluster.etcd[0].restore(Some(&copy));
    let keeps = |node: &Gateway| {
        wait_for("a metric that says so", || {
            let orgs = metrics::at(&admin, "requestrocket_store_regressed");
            (orgs == Some(1.0)).then_some(())
        });
        assert!(node.log().contains("store-regressed"), "{}", node.log());
        assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
        assert_eq!(proxy.request("DELETE", "/").send(&node.url).status(), 400);
    };
    keeps(&node);
    let (status, folder) = node.stop();
    assert_eq!(status.code(), Some(0));
    let node = Gateway::inside(folder, &start);
    keeps(&node);

    // Whoever comes next and knows nothing is told by the node.
    let fresh = tempfile::tempdir().expect("a folder");
    let control = cluster.control_again(fresh, &token);
    wait_regressed(&control, "gw-1");
    is_refused(&control, &proxy);
    let (good, said) = recover(&control, &["--from-node", "gw-1"]);
    assert!(good, "{said}");
    rename(&control, &proxy);
    wait_status(&node, &proxy, "DELETE", 400);
}
