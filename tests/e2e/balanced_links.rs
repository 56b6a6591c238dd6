//! Several control planes behind one address, to which nodes send their records: one of them dies
//! and another takes what comes, and every record is there once.

use std::thread;

use crate::clickhouse::{ids, listed, settings};
use crate::cluster::{Cluster, wait_status};
use crate::harness::balancer::Balancer;
use crate::harness::clickhouse::ClickHouse;
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// Calls of each node while a control plane dies.
const CALLS: usize = 50;

/// Calls all nodes at once, does something when a part of that is done, and waits for the rest.
/// Gives the ids of the requests, and what was done.
fn called<T>(
    (nodes, proxy, upstream): (&[Gateway], &Proxy, &Upstream),
    meanwhile: impl FnOnce() -> T,
) -> (Vec<String>, T) {
    let before = upstream.seen().len();
    thread::scope(|scope| {
        let call = |node| scope.spawn(move || ids(proxy, node, CALLS));
        let calling: Vec<_> = nodes.iter().map(call).collect();
        upstream.wait_seen(before + CALLS / 2);
        let done = meanwhile();
        let made = calling
            .into_iter()
            .flat_map(|calls| calls.join().expect("a thread"));
        (made.collect(), done)
    })
}

#[test]
fn records_come_once_whichever_control_plane_behind_an_address_dies() {
    let clickhouse = ClickHouse::start();
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::new();
    let mut starts = [cluster.control_start(), cluster.further_control_start()];
    for start in &mut starts {
        start.config.push_str(&settings(&clickhouse, folder.path()));
    }
    let other = starts[1]
        .config
        .lines()
        .find_map(|line| line.strip_prefix("listen = "));
    let other = other.expect("an address").trim_matches('"').to_owned();
    let balancer = Balancer::before(&[cluster.link.clone(), other]);
    let first = Gateway::with(starts[0].clone());
    let token = first.token.clone();
    let with_token = |mut control: Gateway| {
        control.token.clone_from(&token);
        control
    };
    let second = with_token(Gateway::with(starts[1].clone()));
    let nodes = ["gw-1", "gw-2", "gw-3"].map(|name| {
        let mut start = cluster.node_start(name, name);
        start.config = start.config.replace(&cluster.link, &balancer.address());
        Gateway::with(start)
    });
    let upstream = Upstream::json("{}");
    let proxy = first.proxy(&upstream.url());
    let mut made = Vec::new();
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
        made.extend(ids(&proxy, node, 5));
    }
    let stored = |control: &Gateway, made: &mut Vec<String>| {
        let mut found = wait_for("all records", || {
            listed(control).filter(|found| found.len() >= made.len())
        });
        found.sort_unstable();
        made.sort_unstable();
        assert_eq!(found, *made, "each once");
        let sums = control.get("/telemetry?path=/kept&bucket=1m&by=status&from=1h");
        assert_eq!(sums["groups"][0]["count"], made.len(), "{sums}");
    };
    stored(&second, &mut made);
    let each = balancer.carried();
    assert!(
        each.iter().all(|carried| *carried > 0),
        "both are used: {each:?}"
    );

    let of = (&nodes[..], &proxy, &upstream);
    let (more, folder_of_first) = called(of, || first.kill());
    made.extend(more);
    stored(&second, &mut made);
    let first = with_token(Gateway::inside(folder_of_first, &starts[0]));
    let (more, _folder) = called(of, || second.kill());
    made.extend(more);
    stored(&first, &mut made);
    for node in &nodes {
        wait_for("an empty spool", || {
            let files = std::fs::read_dir(node.data_dir().join("spool")).expect("the folder");
            (files.count() == 0).then_some(())
        });
    }
}
