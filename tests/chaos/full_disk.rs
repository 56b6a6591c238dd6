//! The disk of one of our own processes is full: requests and limits go on, what cannot be kept is
//! refused or counted, and with room again all is as before, by itself.

use std::sync::Arc;

use serde_json::{Value, json};

use super::cluster;
use super::load::Load;
use crate::harness::disk::Disk;
use crate::harness::gateway::{Gateway, Start};
use crate::harness::upstream::{Upstream, json_answer};
use crate::harness::wait_for;

/// Room for everything that a test writes before it takes it away.
const DISK_MIB: usize = 32;
/// Requests a second.
const RATE: u32 = 100;
const SECOND: u64 = RATE as u64;
const DROPPED: &str = "requestrocket_records_dropped_total";

/// Names of all targets.
fn targets(gateway: &Gateway) -> Vec<String> {
    let listed = gateway.get("/targets?limit=500");
    let items = listed["items"].as_array().expect("a list");
    let name = |target: &Value| target["name"].as_str().unwrap_or_default().to_owned();
    let mut names: Vec<_> = items.iter().map(name).collect();
    names.sort();
    names
}

/// The version that the organisation is at.
fn version(gateway: &Gateway) -> Value {
    gateway.get("/versions?limit=1")["items"][0]["n"].clone()
}

/// A target that is written until it is refused; the names of those that were not are kept.
fn refused(gateway: &Gateway, kept: &mut Vec<String>) {
    let answer = wait_for("a refusal", || {
        let name = format!("target-{}", kept.len());
        let body = json!({"name": name, "base_url": "https://api.example.com"});
        let answer = gateway.api("POST", "/targets", Some(&body));
        if answer.status() == 201 {
            kept.push(name);
            return None;
        }
        Some(answer)
    });
    assert_eq!(answer.status(), 503, "{}", answer.text());
    let problem = answer.json();
    assert_eq!(problem["code"], "store-full", "{problem}");
    let detail = problem["detail"].as_str().expect("words");
    assert!(detail.contains("disk is full"), "{problem}");
    assert!(detail.contains("nothing was changed"), "{problem}");
}

#[test]
fn one_process_alone_serves_refuses_changes_and_loses_none() {
    let Some(_one) = cluster::alone() else {
        return;
    };
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let disk = Disk::mount(folder.path().join("data"), DISK_MIB);
    let start = Start {
        mode: "standalone",
        config: "[policy]\nallow_http = true\n[[dial_guard.permit]]\nnetwork = \"127.0.0.0/8\"\n\
                 ports = [\"1-65535\"]\norgs = [\"*\"]\n"
            .into(),
        ..Start::default()
    };
    let mut gateway = Gateway::inside(folder.clone(), &start);
    let token = gateway.token.clone();
    let answer = json_answer("200 OK", "{}");
    let upstream = Upstream::raw(move |connection, _| {
        while connection.read().is_some() {
            connection.send(&answer);
        }
    });
    let proxy = gateway.proxy_with(
        &upstream.url(),
        json!({"name": "target-0"}),
        json!({"limits": {"per_minute": RATE * 60 * 3}}),
    );
    let strict = gateway.proxy_with(
        &upstream.url(),
        json!({"name": "target-1"}),
        json!({"limits": {"per_minute": 5}}),
    );
    let mut kept = targets(&gateway);
    let load = Load::start(vec![gateway.url.clone()], proxy.request("GET", "/"), RATE);
    load.after(SECOND).is_clean("before anything");
    assert_eq!(strict.get("/").status(), 200);

    disk.fill();
    refused(&gateway, &mut kept);
    // What is left of the room that files had taken before is used up.
    wait_for("records that are dropped", || {
        (gateway.metric(DROPPED) > 0.0).then_some(())
    });
    refused(&gateway, &mut kept);
    let before = version(&gateway);
    let secret = json!({"secret": {"token": "lost"}});
    let rotate = format!("/credentials/{}/rotate", proxy.target_credential);
    let rotated = gateway.api("POST", &rotate, Some(&secret));
    assert_eq!(rotated.status(), 503, "{}", rotated.text());
    assert_eq!(version(&gateway), before, "nothing half applied");
    assert_eq!(targets(&gateway), kept, "reads go on");
    let granted = (0..10).filter(|_| strict.get("/").status() == 200).count();
    // A minute may end between.
    assert!(
        (1..=5).contains(&granted),
        "{granted} of 4 that are left in a minute"
    );
    load.after(5 * SECOND).is_answered("full");
    let log = gateway.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("could not be kept"));
    let lines = lines.count();
    assert!(
        (1..=3).contains(&lines),
        "{lines} lines of dropped records:\n{log}"
    );

    disk.empty();
    wait_for("a change", || {
        let body = json!({"name": "with-room", "base_url": "https://api.example.com"});
        let answer = gateway.api("POST", "/targets", Some(&body));
        (answer.status() == 201).then_some(())
    });
    kept.push("with-room".into());
    kept.sort();
    let id = wait_for("a record", || {
        let answer = proxy.get("/");
        let id = answer
            .field("requestrocket-request-id")
            .expect("an id")
            .to_owned();
        (gateway.api("GET", &format!("/records/{id}"), None).status() == 200).then_some(id)
    });
    load.after(SECOND).is_clean("with room again");
    drop(load);
    assert_eq!(targets(&gateway), kept);

    drop(gateway.kill());
    gateway = Gateway::inside(folder.clone(), &start);
    gateway.token = token;
    assert_eq!(targets(&gateway), kept, "no acknowledged change is lost");
    gateway.record(&id);
    drop((gateway, disk));
}
