//! Calls in flight on a node that does not reach etcd: through another node its slots go on, and
//! where there is none a meter may say that its calls end.

use serde_json::json;

use crate::cluster::{Cluster, wait_known};
use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::http::Connection;
use crate::harness::upstream::{After, Gate, Upstream, json_answer};
use crate::harness::wait_for;
use crate::regions::Cut;
use crate::tokens::Node;

/// A way to the etcd of a cluster, for one node.
fn way_to_etcd(cluster: &Cluster) -> Cut {
    Cut::new(cluster.etcd[0].endpoint().trim_start_matches("http://"))
}

/// A node of that cluster, which goes this way.
fn over(cluster: &Cluster, way: &Cut, name: &str) -> Start {
    let mut start = cluster.node_start(name, name);
    let straight = cluster.etcd[0].endpoint();
    start.config = start
        .config
        .replace(&straight, &format!("http://{}", way.address));
    start
}

/// An upstream that answers what is let through by the gate.
fn gated(gate: &Gate) -> Upstream {
    let held = gate.clone();
    Upstream::start(move |_, connection| {
        held.pass();
        connection.send(json_answer("200 OK", "{}"));
        After::Keep
    })
}

fn limited(control: &Gateway, upstream: &Upstream, limit: serde_json::Value) -> Proxy {
    let proxy = control.proxy(&upstream.url());
    let meter = json!({"limits": [limit], "on_store_loss": "fail_closed"});
    control.create(&format!("/proxies/{}/meters", proxy.id), meter);
    proxy
}

/// A call whose answer is to be read.
fn call(node: &Gateway, proxy: &Proxy) -> Connection {
    let mut connection = Connection::open(&node.url);
    connection.send(proxy.request("GET", "/").bytes(&node.url));
    connection
}

#[test]
fn a_node_that_is_cut_from_etcd_alone_has_its_slots_from_it_through_another_node() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let way = way_to_etcd(&cluster);
    let there = Node::start(&cluster, "gw-1");
    let cut_off = Node::of(over(&cluster, &way, "gw-2"));
    for node in [&there, &cut_off] {
        wait_for("the link", || {
            (node.metric("requestrocket_peers_linked") == 1).then_some(())
        });
    }
    let gate = Gate::default();
    let upstream = gated(&gate);
    let slots = json!({"limit": 2, "algorithm": "concurrency"});
    let proxy = limited(&control, &upstream, slots);
    wait_known(&control, [&there.gateway, &cut_off.gateway]);
    way.cut();
    // It has held none before: each of these is in etcd before it is sent. One that etcd was too
    // slow for is called again.
    let mut open = [1, 2].map(|count| {
        wait_for("a call in flight", || {
            let mut connection = call(&cut_off.gateway, &proxy);
            let stream = connection.stream();
            stream.set_nonblocking(true).expect("a socket");
            let is_sent = wait_for("an outcome", || {
                let is_sent = upstream.seen().len() == count;
                (is_sent || stream.peek(&mut [0]).is_ok()).then_some(is_sent)
            });
            stream.set_nonblocking(false).expect("a socket");
            is_sent.then_some(connection)
        })
    });
    for node in [&there, &cut_off] {
        let refused = proxy.request("GET", "/").send(&node.gateway.url);
        assert_eq!(refused.outcome(), (429, "rate-limited"), "both know of all");
    }
    gate.open();
    for connection in &mut open {
        assert_eq!(connection.read().expect("an answer").status(), 200);
    }
    for node in [&there, &cut_off] {
        wait_for("a slot that has become free", || {
            let answer = proxy.request("GET", "/").send(&node.gateway.url);
            (answer.status() == 200).then_some(())
        });
    }
}

#[test]
fn calls_that_lose_their_slots_end_where_the_meter_says_so_and_else_go_on() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let way = way_to_etcd(&cluster);
    let there = cluster.node("gw-1", "gw-1");
    let alone = Gateway::with(over(&cluster, &way, "gw-2"));
    let gate = Gate::default();
    let (cancelled, kept) = (gated(&gate), gated(&gate));
    // This one has begun to answer.
    let held = gate.clone();
    let streaming = Upstream::start(move |_, connection| {
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbegun");
        held.pass();
        connection.send("done");
        After::Keep
    });
    let slots = |on_lost: &str| json!({"limit": 1, "algorithm": "concurrency", "on_lost": on_lost});
    let waits = limited(&control, &cancelled, slots("cancel"));
    let streams = limited(&control, &streaming, slots("cancel"));
    let keeps = limited(&control, &kept, slots("keep"));
    wait_known(&control, [&there, &alone]);
    let mut waiting = call(&alone, &waits);
    let mut stream = call(&alone, &streams);
    let mut keeping = call(&alone, &keeps);
    for upstream in [&cancelled, &streaming, &kept] {
        upstream.wait_seen(1);
    }
    way.cut();
    let ended = waiting.read().expect("an answer");
    assert_eq!(ended.outcome(), (503, "limit-unavailable"));
    assert!(
        ended.json()["detail"]
            .as_str()
            .is_some_and(|d| d.contains("on_lost"))
    );
    let broken = stream.read().expect("a head");
    assert!(!broken.complete, "what has begun breaks off");
    // Another node has their slots, and that of the call that goes on as well.
    gate.open();
    cancelled.wait_closed(1);
    streaming.wait_closed(1);
    for proxy in [&waits, &streams, &keeps] {
        wait_for("the slot on the other node", || {
            let answer = proxy.request("GET", "/").send(&there.url);
            (answer.status() == 200).then_some(())
        });
    }
    assert_eq!(keeping.read().expect("an answer").status(), 200);
}
