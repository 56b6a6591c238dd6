//! Processes die and restart under 500 requests a second.

use super::cluster::{self, SECOND};
use crate::harness::etcd::EtcdServer;

#[test]
fn no_member_of_etcd_is_missed() {
    cluster::run_with(cluster::Links::Peers, |cluster, proxy| {
        let load = cluster.load(proxy);
        load.after(2 * SECOND).is_clean("before anything");
        for at in 0..3 {
            cluster.etcd(at, EtcdServer::kill);
            cluster.rename(at % 2, proxy, &format!("without-{at}"));
            load.after(3 * SECOND)
                .is_clean(&format!("member {at} killed"));
            cluster.etcd(at, EtcdServer::restart);
            load.after(SECOND).is_clean(&format!("member {at} back"));
        }
        for at in 0..3 {
            cluster.etcd(at, EtcdServer::stop);
            cluster.etcd(at, EtcdServer::restart);
        }
        cluster.rename(0, proxy, "restarted");
        load.after(SECOND).is_clean("all members restarted");
        cluster.agrees(0);
        cluster.agrees(1);
    });
}

#[test]
fn no_control_plane_is_missed_and_of_a_node_only_what_it_was_doing() {
    cluster::run_with(cluster::Links::Peers, |cluster, proxy| {
        let load = cluster.load(proxy);
        load.after(SECOND).is_clean("before anything");
        let folder = cluster.controls[0].kill();
        load.after(2 * SECOND).is_clean("a control plane killed");
        cluster.rename(1, proxy, "through-the-other");
        cluster.controls[0].resume(folder);
        load.after(SECOND).is_clean("the control plane back");

        let folder = cluster.nodes[1].kill();
        let tally = load.after(2 * SECOND);
        tally.is_answered_but_by(1, "a node killed");
        cluster.rename(0, proxy, "without-a-node");
        load.after(SECOND).is_clean("without a node");
        cluster.nodes[1].resume(folder);
        load.after(SECOND).is_clean("the node back");
        cluster.agrees(0);
    });
}

#[test]
fn nodes_restart_one_after_the_other_and_nobody_notices() {
    cluster::run_with(cluster::Links::Peers, |cluster, proxy| {
        let load = cluster.load(proxy);
        for at in 0..3 {
            let folder = cluster.nodes[at].stop();
            load.after(SECOND).is_clean(&format!("node {at} drained"));
            cluster.nodes[at].resume(folder);
            load.after(SECOND).is_clean(&format!("node {at} back"));
            cluster.rename(at % 2, proxy, &format!("restarted-{at}"));
        }
        cluster.agrees(0);
    });
}
