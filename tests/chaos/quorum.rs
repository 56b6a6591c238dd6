//! etcd without a quorum: nodes serve what they have, nothing can be changed, and all is well again
//! soon after it is back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::cluster::{self, Cluster, RATE, SECOND};
use crate::harness::etcd::EtcdServer;
use crate::harness::wait_for;

/// For how many seconds it is away.
const GONE_S: u64 = 60;

/// Longest time from a quorum to one configuration everywhere.
const CONVERGED_WITHIN: Duration = Duration::from_secs(5);

/// Members whose data is in memory: a disk that is slow to sync costs them their leader again.
const IN_MEMORY: cluster::Members = cluster::Members {
    flags: &[],
    disk_mib: Some(512),
};

/// What each node may add to what etcd is asked in a second, beyond twice what is usual.
const ASKED_MORE: f64 = 10.0;

/// What this test itself makes control ask in a second, while it changes something and looks at the
/// nodes: four tries or looks, of two to three reads each.
const ASKED_BY_TEST: f64 = 12.0;

#[test]
fn without_a_quorum_traffic_goes_on_and_nothing_half_done_is_left() {
    cluster::run_on(IN_MEMORY, cluster::Links::Peers, |cluster, proxy| {
        // A node that starts now has no view of limits to share from, so it is asked for no proxy
        // that has one.
        let limited = cluster.load_on(0..2, proxy, RATE / 2);
        let free = cluster.proxy_with(json!({}));
        let load = cluster.load_on(0..3, &free, RATE / 2);
        let clean_after = |requests: u64, when: &str| {
            load.after(requests).is_clean(when);
            limited.after(0).is_clean(when);
        };
        let clean = |when: &str| clean_after(SECOND / 2, when);
        clean("before anything");
        let (before, asked) = (cluster.version(0), cluster.asked());
        load.after(5 * SECOND / 2).is_clean("counted");
        let usual = asked.most();

        let gone = Instant::now();
        for at in [1, 2] {
            cluster.etcd(at, EtcdServer::kill);
        }
        for at in [0, 1] {
            let path = format!("/proxies/{}", proxy.id);
            let refused = cluster.controls[at].call("PATCH", &path, &json!({"name": "lost"}));
            assert_eq!(refused.status(), 503, "{}", refused.text());
            assert_eq!(refused.json()["code"], "store-unavailable");
            let detail = refused.json()["detail"].to_string();
            assert!(detail.contains("nothing was changed"), "{detail}");
        }
        let folder = cluster.nodes[2].stop();
        cluster.nodes[2].resume(folder);
        assert_eq!(cluster.nodes[2].readiness(), "degraded");
        let answer = free
            .request("GET", "/")
            .send(&cluster.nodes[2].gateway().url);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        while gone.elapsed() < cluster::outage(GONE_S) {
            clean_after(5 * SECOND / 2, "without a quorum");
        }
        for node in &cluster.nodes {
            assert_eq!(node.readiness(), "degraded");
        }
        clean("without a quorum");
        let without = asked.most();
        wait_for(
            "all nodes, by the control planes they are connected to",
            || {
                let shown: BTreeSet<String> =
                    (0..2).flat_map(|at| connected(cluster, at)).collect();
                (shown.len() == cluster.nodes.len()).then_some(())
            },
        );

        for at in [1, 2] {
            cluster.etcd(at, EtcdServer::spawn);
        }
        for at in [1, 2] {
            cluster.etcd(at, EtcdServer::wait);
        }
        let back = Instant::now();
        cluster.rename(0, proxy, "found");
        let written = back.elapsed();
        cluster.agrees(0);
        let took = back.elapsed();
        eprintln!("written after {written:?}, one configuration everywhere after {took:?}");
        load.after(5 * SECOND / 2).is_clean("with a quorum again");
        clean("with a quorum again");
        let again = asked.most_of(2);
        assert!(took < CONVERGED_WITHIN, "{took:?}");
        for node in &cluster.nodes {
            node.wait_readiness("ok");
        }
        assert_eq!(
            cluster.version(0),
            before + 1,
            "the refused writes left nothing"
        );
        assert_eq!(cluster.version(1), before + 1);
        let most = usual.twice_and(ASKED_MORE * cluster.nodes.len() as f64);
        assert!(
            without.is_within(most),
            "{without:?} without a quorum, {most:?} may be"
        );
        let most = usual.twice_and(ASKED_MORE * cluster.nodes.len() as f64 + ASKED_BY_TEST);
        assert!(
            again.is_within(most),
            "{again:?} after that, {most:?} may be"
        );
    });
}

/// The nodes that a control plane lists without etcd, by name.
fn connected(cluster: &Cluster<'_>, control: usize) -> Vec<String> {
    let listed = cluster.controls[control].gateway().operator("/nodes");
    if listed.status() == 503 {
        return Vec::new();
    }
    assert_eq!(listed.status(), 200, "{}", listed.text());
    let items = listed.json()["items"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    for node in &items {
        assert_eq!(node["problems"][0]["code"], "store-unavailable", "{node}");
        assert_eq!(node["current"], Value::Null, "{node}");
    }
    let names = items.iter().filter_map(|node| node["name"].as_str());
    names.map(str::to_owned).collect()
}
