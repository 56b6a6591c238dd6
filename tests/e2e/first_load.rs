//! Nodes that begin while others serve: they read the configuration from these and not from etcd.

use serde_json::json;

use crate::cluster::{Cluster, wait_status};
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::tokens::Node;

/// Objects that lie in a dozen leaves.
const OBJECTS: usize = 400;

/// A control plane, two nodes that serve a large configuration, and a proxy of it.
fn serving(cluster: &Cluster, upstream: &Upstream) -> (Gateway, [Node; 2], Proxy) {
    let control = Gateway::with(cluster.control_start());
    let nodes = ["gw-4", "gw-5"].map(|name| Node::start(cluster, name));
    for node in &nodes {
        wait_for("the link", || {
            (node.metric("requestrocket_peers_linked") == 1).then_some(())
        });
    }
    let target = |at: usize| {
        let url = format!("https://{at}.example/{}", "p".repeat(1_500));
        json!({"create": "targets", "object": {"base_url": url}})
    };
    let operations: Vec<_> = (0..OBJECTS).map(target).collect();
    let changed = control.api("POST", "/changes", Some(&json!({"operations": operations})));
    assert_eq!(changed.status(), 200, "{}", changed.text());
    let proxy = control.proxy(&upstream.url());
    for node in &nodes {
        wait_status(&node.gateway, &proxy, "GET", 200);
    }
    (control, nodes, proxy)
}

#[test]
fn a_new_node_reads_the_configuration_from_those_that_serve() {
    let (cluster, upstream) = (Cluster::new(), Upstream::json("{}"));
    let (_control, _serving, proxy) = serving(&cluster, &upstream);
    // Of a pair the first by name dials; the other one is called back.
    for name in ["gw-1", "gw-9"] {
        let new = Node::start(&cluster, name);
        let answer = proxy.request("GET", "/").send(&new.gateway.url);
        assert_eq!(answer.status(), 200, "{name} serves from its first moment");
        let given = new.metric("requestrocket_peer_leaves_total");
        let missed = new.metric("requestrocket_peer_leaves_missed_total");
        assert!(
            given > 8,
            "{name}: {given} leaves from peers, {missed} missed"
        );
        assert_eq!(missed, 0, "{name}: {given} leaves from peers");
    }
}

#[test]
fn a_new_node_begins_without_peers_that_are_silent() {
    let (cluster, upstream) = (Cluster::new(), Upstream::json("{}"));
    let (_control, serving, proxy) = serving(&cluster, &upstream);
    serving.iter().for_each(|node| node.gateway.signal("STOP"));
    let new = Node::start(&cluster, "gw-1");
    let answer = proxy.request("GET", "/").send(&new.gateway.url);
    assert_eq!(answer.status(), 200);
    assert_eq!(new.metric("requestrocket_peer_leaves_total"), 0);
    serving.iter().for_each(|node| node.gateway.signal("CONT"));
}
