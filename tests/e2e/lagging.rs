//! `nodes` says which version of an organisation each node serves, and how far that is behind: of
//! one that is stopped, and of one that cannot apply the newest.

use proto::keys;
use proto::store::Op;
use proto::tree::{EVERYWHERE, Hash, Head, VersionRecord};
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_known};
use crate::harness::gateway::{Gateway, binary};
use crate::harness::wait_for;
use crate::raw_store::RawStore;

/// What a node is listed with.
fn listed(control: &Gateway, name: &str) -> Option<Value> {
    let nodes = control.operator("/nodes?org=default").json();
    let mut items = nodes["items"].as_array().expect("a list").iter();
    items.find(|node| node["name"] == name).cloned()
}

/// Waits until a node serves this version, so many behind the newest. Gives what it is listed with.
fn wait_applied(control: &Gateway, name: &str, (version, lag): (u64, u64)) -> Value {
    wait_for(
        &format!("version {version} on {name}, {lag} behind"),
        || {
            let node = listed(control, name)?;
            let applied = &node["applied"];
            let found = (
                applied["version"].as_u64()?,
                applied["lag_versions"].as_u64()?,
            );
            (found == (version, lag)).then_some(node)
        },
    )
}

fn newest(control: &Gateway) -> u64 {
    let versions = control.get("/versions?limit=1");
    versions["items"][0]["n"].as_u64().expect("a number")
}

fn shown(control: &Gateway) -> String {
    let output = binary()
        .args(["nodes", "--control", &control.control])
        .env("REQUESTROCKET_TOKEN", &control.token)
        .output()
        .expect("the binary runs");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_node_that_is_stopped_is_so_many_versions_and_seconds_behind() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = [cluster.node("gw-1", "gw-1"), cluster.node("gw-2", "gw-2")];
    wait_known(&control, &nodes);
    let before = newest(&control);
    for name in ["gw-1", "gw-2"] {
        let node = wait_applied(&control, name, (before, 0));
        assert_eq!(node["applied"]["lag_s"], 0, "{node}");
    }
    nodes[1].signal("STOP");
    for count in 1..=3 {
        let url = format!("https://{count}.example");
        control.create("/targets", json!({"base_url": url}));
    }
    // Its entry stays for as long as its lease does.
    let node = wait_applied(&control, "gw-2", (before, 3));
    assert_eq!(node["applied"]["newest"], before + 3, "{node}");
    let said = shown(&control);
    let line = format!("3 behind version {} for ", before + 3);
    assert!(said.contains(&line), "{said}");
    wait_for("a second", || {
        let node = listed(&control, "gw-2")?;
        (node["applied"]["lag_s"].as_u64()? >= 1).then_some(())
    });
    wait_applied(&control, "gw-1", (before + 3, 0));
    nodes[1].signal("CONT");
    let node = wait_applied(&control, "gw-2", (before + 3, 0));
    assert_eq!(node["applied"]["lag_s"], 0, "{node}");
    // An organisation that is not there is said to be none.
    let refused = control.operator("/nodes?org=nobody");
    assert_eq!(refused.status(), 400, "{}", refused.text());
    assert!(refused.text().contains("names no organisation"));
}

#[test]
fn a_node_that_cannot_apply_the_newest_version_says_which_it_serves() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = [cluster.node("gw-1", "gw-1")];
    wait_known(&control, &nodes);
    let before = newest(&control);
    let node = wait_applied(&control, "gw-1", (before, 0));
    let raw = RawStore::new(&cluster.etcd[0]);
    let org = node["applied"]["org"].as_str().expect("an id");
    let org = org.parse().expect("an id");
    let publish = |base: &Head, roots: &Head| -> Head {
        let content = Head {
            roots: roots.roots.clone(),
            ..base.clone()
        };
        let head = content.reopened(base.epoch.clone(), base.n + 1, "raw".into());
        let record = VersionRecord {
            head: head.clone(),
            at: jiff::Timestamp::now(),
            author: "raw".into(),
            source: None,
            changes: 0,
            changed: Vec::new(),
        };
        raw.put(vec![
            Op::put(keys::version(org, head.n), json!(record).to_string()),
            Op::put(keys::head(org), head.to_json()),
        ]);
        head
    };
    let good = Head::parse(&raw.get(&keys::head(org))).expect("a head");
    let mut missing = good.clone();
    missing
        .roots
        .insert(EVERYWHERE.into(), Hash::of(b"nowhere"));
    let bad = publish(&good, &missing);
    let fault = wait_for("the fault", || {
        let node = listed(&control, "gw-1")?;
        let faults = node["faults"].as_array()?.clone();
        let is_whole = |fault: &Value| fault["code"] == "version-unreadable";
        faults.into_iter().find(is_whole)
    });
    assert_eq!(fault["applied"], before, "{fault}");
    wait_applied(&control, "gw-1", (before, 1));
    publish(&bad, &good);
    wait_applied(&control, "gw-1", (before + 2, 0));
}
