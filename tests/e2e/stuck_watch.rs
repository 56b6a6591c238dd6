//! A way to etcd that stays open and on which nothing arrives (`schedules.md` part two, 17): a node
//! notices by the beat of control, opens another one at the next member, and says so.

use serde_json::json;

use crate::cluster::{Cluster, wait_status};
use crate::harness::etcd::EtcdServer;
use crate::harness::etcd_relay::{EtcdRelay, Held};
use crate::harness::gateway::Gateway;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// Holds back what a node hears from its member of an etcd, and waits until it has come to the
/// newest version all the same. Gives what it has logged.
fn stuck(held: Held, members: usize) -> String {
    let cluster = Cluster::of(EtcdServer::start_cluster(members));
    let relays: Vec<_> = cluster.etcd.iter().map(EtcdRelay::to).collect();
    let control = Gateway::with(cluster.control_start());
    let mut start = cluster.node_start("gw-1", "gw-1");
    for (member, relay) in cluster.etcd.iter().zip(&relays) {
        start.config = start.config.replace(&member.endpoint(), &relay.endpoint());
    }
    let node = Gateway::with(start);
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let current = |expected: bool| {
        wait_for(&format!("current: {expected}"), || {
            let listed = control.operator("/nodes").json();
            (listed["items"][0]["current"] == expected).then_some(())
        });
    };
    current(true);
    let watches = || relays.iter().map(EtcdRelay::watches).collect::<Vec<_>>();
    let before = watches();
    let at = before
        .iter()
        .position(|watches| *watches > 0)
        .expect("a watch");
    relays[at].hold(held);
    let path = format!("/proxies/{}", proxy.id);
    control.patch(&path, json!({"active": false}));
    wait_status(&node, &proxy, "GET", 403);
    // What it has opened instead shows the next one as well.
    control.patch(&path, json!({"active": true}));
    wait_status(&node, &proxy, "GET", 200);
    current(true);
    let (after, next) = (watches(), (at + 1) % members);
    let opened = (0..members).filter(|place| after[*place] > before[*place]);
    let opened: Vec<_> = opened.collect();
    assert_eq!(opened, [next], "{before:?} {after:?}");
    node.log()
}

#[test]
fn a_node_whose_watch_is_stuck_opens_another_one_and_says_why() {
    for members in [1, 3] {
        let log = stuck(Held::Watches, members);
        let said = log.contains("the watch shows nothing after revision");
        assert!(said && log.contains("listing again"), "{log}");
    }
}

#[test]
fn a_node_that_hears_nothing_on_an_open_connection_makes_another_one() {
    for members in [1, 3] {
        let log = stuck(Held::Connections, members);
        assert!(log.contains("listing again"), "{log}");
    }
}
