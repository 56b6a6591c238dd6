//! Links that lose everything: between nodes or a control plane and etcd, between members of etcd.

use serde_json::json;

use super::cluster::{self, Cluster, Links, SECOND};
use super::network::{Cut, Host};
use crate::harness::gateway::Proxy;
use crate::harness::wait_for;

/// Targets that each control plane creates during a cut.
const CREATED: usize = 10;

#[test]
fn a_node_cut_from_etcd_serves_what_it_has_and_then_what_is() {
    cluster::run(|cluster, proxy| {
        let load = cluster.load(proxy);
        load.after(SECOND).is_clean("before anything");
        let (before, members) = (cluster.version(0), cluster.members());
        let apart = |cluster: &Cluster<'_>, at: usize, name: &str| {
            cluster.rename(0, proxy, name);
            for other in (0..3).filter(|other| *other != at) {
                wait_for("the change on the others", || {
                    current(cluster, other).then_some(())
                });
            }
            assert!(!current(cluster, at), "it cannot know");
            cluster.nodes[at].wait_readiness("degraded");
            load.after(2 * SECOND).is_clean("a node cut off");
            wait_for("the node as one that is cut off", || {
                cut_off(cluster, at).then_some(())
            });
        };
        let host = cluster.nodes[0].host.clone();
        members
            .iter()
            .for_each(|member| host.cut(member, Cut::Both));
        apart(cluster, 0, "neither-way");
        members.iter().for_each(|member| host.heal(member));
        cluster.agrees(0);
        assert!(!cut_off(cluster, 0), "it is in etcd again");
        cluster.nodes[0].wait_readiness("ok");

        let host = cluster.nodes[1].host.clone();
        members
            .iter()
            .for_each(|member| member.cut(&host, Cut::Forth));
        apart(cluster, 1, "one-way");
        members.iter().for_each(|member| host.heal(member));
        cluster.agrees(1);
        load.after(SECOND).is_clean("healed");
        assert_eq!(cluster.version(1), before + 2);
    });
}

#[test]
fn a_node_cut_from_etcd_but_not_from_its_peers_refuses_a_revoked_key() {
    cluster::run_with(Links::Peers, |cluster, proxy| {
        for node in &cluster.nodes {
            node.wait_metric("requestrocket_peers_linked", 2);
        }
        let (members, host) = (cluster.members(), cluster.nodes[0].host.clone());
        members
            .iter()
            .for_each(|member| host.cut(member, Cut::Both));
        cluster.nodes[0].wait_readiness("degraded");
        still_serves(cluster, proxy);
        revoked(cluster, proxy);
        cluster.nodes[0].wait_readiness("degraded");
        // The copy on disk has it too: a restart does not bring the key back.
        let folder = cluster.nodes[0].stop();
        cluster.nodes[0].resume(folder);
        let answer = proxy
            .request("GET", "/")
            .send(&cluster.nodes[0].gateway().url);
        assert_eq!(answer.status(), 401, "{}", answer.text());
        members.iter().for_each(|member| host.heal(member));
        cluster.agrees(0);
    });
}

#[test]
fn a_node_that_starts_without_etcd_finds_its_peers_and_hears_of_a_revoked_key() {
    cluster::run_with(Links::Peers, |cluster, proxy| {
        for node in &cluster.nodes {
            node.wait_metric("requestrocket_peers_linked", 2);
        }
        let members = cluster.members();
        // The one that dials its peers, and the one that is dialled by all of them.
        for at in [0, 2] {
            let next = cluster.proxy_with(json!({"limits": {"per_minute": 600}}));
            let host = cluster.nodes[at].host.clone();
            // Its copy on disk has the proxy.
            let folder = cluster.nodes[at].stop();
            members
                .iter()
                .for_each(|member| host.cut(member, Cut::Both));
            cluster.nodes[at].resume(folder);
            cluster.nodes[at].wait_readiness("degraded");
            cluster.nodes[at].wait_metric("requestrocket_peers_linked", 2);
            // With tokens that a peer takes from etcd, as soon as the two know of each other.
            wait_for("tokens of a peer", || {
                let url = &cluster.nodes[at].gateway().url;
                let answer = next.request("GET", "/").send(url);
                (answer.status() == 200).then_some(())
            });
            still_serves(cluster, &next);
            revoked(cluster, &next);
            members.iter().for_each(|member| host.heal(member));
            cluster.agrees(0);
        }
        still_serves(cluster, proxy);
    });
}

/// Gives the proxy's callers a new key, and waits until the old one is refused everywhere.
fn revoked(cluster: &Cluster<'_>, proxy: &Proxy) {
    let path = format!("/credentials/{}/rotate", proxy.proxy_credential);
    let rotated = cluster.controls[0].call("POST", &path, &json!({}));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    for node in &cluster.nodes {
        wait_for("the end of the old key", || {
            let answer = proxy.request("GET", "/").send(&node.gateway().url);
            (answer.status() == 401).then_some(())
        });
    }
}

#[test]
fn a_control_plane_cut_from_etcd_changes_nothing_and_another_one_does() {
    cluster::run(|cluster, proxy| {
        let load = cluster.load(proxy);
        let (before, members) = (cluster.version(0), cluster.members());
        let host = cluster.controls[0].host.clone();
        members
            .iter()
            .for_each(|member| host.cut(member, Cut::Both));
        let refused = cluster.controls[0].create("cut-off");
        assert_eq!(refused.status(), 503, "{}", refused.text());
        assert_eq!(refused.json()["code"], "store-unavailable");
        let created = cluster.controls[1].create("twice");
        assert_eq!(created.status(), 201, "{}", created.text());
        cluster.agrees(1);
        load.after(SECOND).is_clean("a control plane cut off");
        members.iter().for_each(|member| host.heal(member));
        let again = wait_for("the control plane", || {
            let answer = cluster.controls[0].create("twice");
            (answer.status() != 503).then_some(answer)
        });
        assert_eq!(again.status(), 201, "{}", again.text());
        assert_eq!(again.json()["id"], created.json()["id"]);
        cluster.agrees(0);
        assert_eq!(cluster.version(0), before + 1);
        let targets = cluster.controls[0].targets();
        assert_eq!(targets.iter().filter(|name| *name == "twice").count(), 1);
        assert!(!targets.iter().any(|name| name == "cut-off"), "{targets:?}");
        load.after(SECOND).is_clean("healed");
    });
}

#[test]
fn members_of_etcd_cut_from_each_other_lose_nothing_and_apply_nothing_twice() {
    cluster::run_with(Links::Peers, |cluster, proxy| {
        let load = cluster.load(proxy);
        load.after(SECOND).is_clean("before anything");
        let before = cluster.version(0);
        let leader = cluster.leader();
        divided(cluster, leader, "without-the-leader");
        load.after(SECOND)
            .is_clean("the leader cut off, and healed");
        let follower = (cluster.leader() + 1) % 3;
        divided(cluster, follower, "without-a-follower");
        load.after(SECOND)
            .is_clean("a follower cut off, and healed");
        let changes = 2 * 2 * CREATED as u64;
        assert_eq!(cluster.version(0), before + changes, "each change once");
        assert_eq!(cluster.version(1), before + changes);
        still_serves(cluster, proxy);
    });
}

/// Cuts one member from the others, publishes through both control planes meanwhile, and heals.
fn divided(cluster: &Cluster<'_>, alone: usize, prefix: &str) {
    let members = cluster.members();
    let others = || (0..3).filter(|at| *at != alone).map(|at| &members[at]);
    others().for_each(|other: &Host| members[alone].cut(other, Cut::Both));
    std::thread::scope(|scope| {
        for (at, control) in cluster.controls.iter().enumerate() {
            scope.spawn(move || {
                for number in 0..CREATED {
                    let name = format!("{prefix}-{at}-{number}");
                    // Asked again until the answer is known, as a client with a key may.
                    wait_for(&name, || {
                        let answer = control.create(&name);
                        assert!([201, 503].contains(&answer.status()), "{}", answer.text());
                        (answer.status() == 201).then_some(())
                    });
                }
            });
        }
    });
    // Whoever spoke to the member that is alone has gone to another one.
    cluster.agrees(0);
    cluster.agrees(1);
    others().for_each(|other| members[alone].heal(other));
    for at in [0, 1] {
        cluster.agrees(at);
        let targets = cluster.controls[at].targets();
        let mut made: Vec<_> = targets.iter().filter(|n| n.starts_with(prefix)).collect();
        made.sort();
        made.dedup();
        let all = targets.iter().filter(|n| n.starts_with(prefix)).count();
        assert_eq!((all, made.len()), (2 * CREATED, 2 * CREATED), "{targets:?}");
    }
}

fn still_serves(cluster: &Cluster<'_>, proxy: &Proxy) {
    for node in &cluster.nodes {
        let answer = proxy.request("GET", "/").send(&node.gateway().url);
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
}

fn listed(cluster: &Cluster<'_>, at: usize) -> Option<serde_json::Value> {
    // Again while etcd elects.
    let listed = wait_for("the list of nodes", || {
        let listed = cluster.controls[0].gateway().operator("/nodes");
        (listed.status() != 503).then_some(listed)
    });
    assert_eq!(listed.status(), 200, "{}", listed.text());
    let items = listed.json()["items"].as_array().expect("a list").clone();
    let name = format!("node-{}", at + 1);
    items.into_iter().find(|node| node["name"] == name.as_str())
}

/// Whether the list has the node by its connection to control planes alone.
fn cut_off(cluster: &Cluster<'_>, at: usize) -> bool {
    listed(cluster, at)
        .is_some_and(|node| node["problems"][0]["code"] == "cut-off" && node["current"] == false)
}

fn current(cluster: &Cluster<'_>, at: usize) -> bool {
    listed(cluster, at).is_some_and(|node| node["current"] == true)
}
