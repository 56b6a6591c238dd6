//! All control planes are away: what nodes have kept of requests arrives when they are back, all of
//! it, once.

use std::collections::HashSet;
use std::time::Instant;

use serde_json::Value;

use super::cluster::{self, Cluster, Links, Process, RATE, SECOND};
use super::load::{Load, Tally};
use crate::harness::wait_for;

const SPOOLED: &str = "requestrocket_records_spooled";
const DROPPED: &str = "requestrocket_records_dropped_total";
/// What the records are found by.
const PATH: &str = "/outage";

/// Ids of the records that the control planes have together: each has those that nodes left with
/// it.
fn kept(cluster: &Cluster<'_>) -> HashSet<String> {
    let mut ids = HashSet::new();
    for control in &cluster.controls {
        let path = format!("/records/export?path={PATH}");
        let answer = control.gateway().api("GET", &path, None);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert!(answer.complete, "an export that broke off");
        for line in answer.body.split(|byte| *byte == b'\n') {
            if let Ok(record) = serde_json::from_slice::<Value>(line) {
                ids.extend(record["request_id"].as_str().map(str::to_owned));
            }
        }
    }
    ids
}

/// Waits until nothing waits on a node's disk: for as long as it becomes less.
fn all_arrive(node: &Process) {
    let mut left = f64::INFINITY;
    while left > 0.0 {
        left = wait_for("records that arrive", || {
            node.metric(SPOOLED).filter(|count| *count < left)
        });
    }
}

#[test]
fn while_control_is_away_no_record_is_lost() {
    cluster::run_with(Links::Peers, |cluster, proxy| {
        let urls = cluster.nodes.iter();
        let urls = urls.map(|node| node.gateway().url.clone()).collect();
        let load = Load::start(urls, proxy.request("GET", PATH), RATE);
        let mut granted = 0;
        let mut answered = |tally: Tally, when: &str| {
            tally.is_clean(when);
            granted += tally.granted;
        };
        answered(load.after(SECOND), "before anything");
        let folders: Vec<_> = cluster.controls.iter_mut().map(Process::kill).collect();
        let begun = Instant::now();
        while begun.elapsed() < cluster::outage(10) {
            answered(load.after(SECOND), "without control");
        }
        for (control, folder) in cluster.controls.iter_mut().zip(folders) {
            control.resume(folder);
        }
        answered(load.after(SECOND), "with control again");
        answered(load.stop(), "at the end");
        for node in &cluster.nodes {
            all_arrive(node);
            assert_eq!(node.metric(DROPPED), Some(0.0), "no record is lost");
        }
        // The last ones are on their way.
        let all = wait_for("all records", || {
            let kept = kept(cluster).len() as u64;
            (kept >= granted).then_some(kept)
        });
        eprintln!(
            "{all} records of {granted} requests, {:?} away",
            cluster::outage(10)
        );
        assert_eq!(all, granted);
    });
}
