//! Many publishers at once, through two control planes and a real etcd, and a history that moves to
//! the archive meanwhile.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_known};
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Start};
use crate::harness::wait_for;

/// Two control planes of a cluster, one started after the other.
fn two_controls(cluster: &Cluster, settings: &str) -> [Gateway; 2] {
    two_starts(cluster, settings).map(Gateway::with)
}

/// How they are started.
fn two_starts(cluster: &Cluster, settings: &str) -> [Start; 2] {
    let starts = [cluster.control_start(), cluster.further_control_start()];
    starts.map(|mut start| {
        start.config.push_str(settings);
        start
    })
}

fn call(
    control: &Gateway,
    token: &str,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> (u16, Value) {
    let path = format!("/api/v1/orgs/default{path}");
    let answer = control.control_call(method, &path, Some(token), body);
    (answer.status(), answer.json())
}

#[test]
fn two_controls_that_start_at_once_make_one_token() {
    let cluster = Cluster::new();
    let token = "an-admin-token-that-both-of-them-are-given";
    let given = ("REQUESTROCKET_ADMIN_TOKEN".to_owned(), token.to_owned());
    let controls = thread::scope(|scope| {
        let begin = |mut start: Start| {
            start.environment.push(given.clone());
            scope.spawn(move || Gateway::with(start))
        };
        let starting = two_starts(&cluster, "").map(begin);
        starting.map(|start| start.join().expect("it starts"))
    });
    for control in &controls {
        let path = "/api/v1/orgs/system/tokens";
        let listed = wait_for("the token", || {
            let answer = control.control_call("GET", path, Some(token), None);
            (answer.status() == 200).then(|| answer.json())
        });
        let items = listed["items"].as_array().expect("a list");
        let named = items.iter().filter(|item| item["name"] == "bootstrap");
        assert_eq!(named.count(), 1, "{listed}");
    }
}

/// Publishers at once, and objects that each creates, one after the other.
const PUBLISHERS: usize = 20;
const OBJECTS: usize = 20;

#[test]
fn twenty_publishers_of_twenty_objects_through_two_controls_all_succeed() {
    let cluster = Cluster::of(EtcdServer::start_cluster(3));
    let controls = two_controls(&cluster, "");
    let nodes = ["gw-1", "gw-2", "gw-3"].map(|name| cluster.node(name, name));
    let token = controls[0].token.clone();
    let before = call(&controls[0], &token, "GET", "/versions?limit=1", None).1;
    let before = before["items"][0]["n"].as_u64().expect("a number");
    let mut took: Vec<Duration> = thread::scope(|scope| {
        let publish = |n: usize| {
            let (control, token) = (&controls[n % 2], &token);
            let object = move |at: usize| {
                let name = format!("target-{n}-{at}");
                let body = json!({"base_url": format!("https://h{n}.example"), "name": name});
                let begun = Instant::now();
                let (status, answer) = call(control, token, "POST", "/targets", Some(&body));
                assert_eq!(status, 201, "{answer}");
                begun.elapsed()
            };
            scope.spawn(move || (0..OBJECTS).map(object).collect::<Vec<_>>())
        };
        let running: Vec<_> = (0..PUBLISHERS).map(publish).collect();
        let ended = running.into_iter();
        ended
            .flat_map(|task| task.join().expect("a thread"))
            .collect()
    });
    took.sort();
    let p99 = took[took.len() * 99 / 100];
    eprintln!("{} publishes, p99 {p99:?}", took.len());
    // Each is a version of its own, seen alike from both.
    let made = PUBLISHERS * OBJECTS;
    for control in &controls {
        wait_for("all versions", || {
            let newest = call(control, &token, "GET", "/versions?limit=1", None).1;
            (newest["items"][0]["n"].as_u64() == Some(before + made as u64)).then_some(())
        });
        let listed = call(control, &token, "GET", "/targets?limit=500", None).1;
        let items = listed["items"].as_array().expect("a list").iter();
        let names: BTreeSet<_> = items.map(|item| item["name"].to_string()).collect();
        assert_eq!(names.len(), made);
    }
    wait_known(&controls[0], &nodes);
}

#[test]
fn old_versions_move_to_the_archives_of_both_controls() {
    let cluster = Cluster::new();
    let settings = "[history]\nstore_versions = 3\nsweep_s = 1\n";
    let controls = two_controls(&cluster, settings);
    let token = controls[0].token.clone();
    let body = json!({"base_url": "https://h.example", "name": "first"});
    let (status, target) = call(&controls[0], &token, "POST", "/targets", Some(&body));
    assert_eq!(status, 201, "{target}");
    let path = format!("/targets/{}", target["id"].as_str().expect("an id"));
    for n in 0..8 {
        let name = json!({"name": format!("name-{n}")});
        let (status, answer) = call(&controls[n % 2], &token, "PATCH", &path, Some(&name));
        assert_eq!(status, 200, "{answer}");
    }
    let listed = |control: &Gateway| call(control, &token, "GET", "/versions?limit=100", None).1;
    for control in &controls {
        let items = wait_for("the archive", || {
            let items = listed(control)["items"].as_array()?.clone();
            let archived = items
                .iter()
                .filter(|item| item["kept_in"] == "archive")
                .count();
            (archived + 3 == items.len()).then_some(items)
        });
        let numbers: Vec<u64> = items.iter().filter_map(|item| item["n"].as_u64()).collect();
        let all: Vec<u64> = (1..=numbers[0]).rev().collect();
        assert_eq!(numbers, all, "no version is missing");
    }
    // Compared and returned to as if they were still there.
    let newest = listed(&controls[0])["items"][0]["n"]
        .as_u64()
        .expect("a number");
    let third = newest - 7;
    let diff = format!("/versions/{third}/diff");
    let (status, shown) = call(&controls[1], &token, "GET", &diff, None);
    assert_eq!(status, 200, "{shown}");
    assert_eq!(shown["changes"][0]["after"]["name"], "name-0");
    let rollback = format!("/versions/{third}/rollback");
    let (status, done) = call(&controls[1], &token, "POST", &rollback, None);
    assert_eq!(status, 200, "{done}");
    let (_, target) = call(&controls[1], &token, "GET", &path, None);
    assert_eq!(target["name"], "name-0");
}
