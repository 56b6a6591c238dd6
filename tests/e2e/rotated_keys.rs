//! The key that a region's secrets are sealed to is rotated, and the older one goes.

use std::path::Path;

use serde_json::Value;

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, Start, TARGET_SECRET, binary};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::regions::{Region, Two, open, sealed};

/// Runs `keyring` on the key ring of a data folder; what it answers.
fn keyring(data: &Path, arguments: &[&str]) -> Value {
    let mut command = binary();
    command.arg("keyring").args(arguments);
    let output = command
        .args(["--output", "json"])
        .current_dir(data)
        .output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn secrets_are_sealed_anew_and_served_without_the_older_key() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    assert_eq!(proxy.get("/").status(), 200);
    let (data, token) = (gateway.data_dir(), gateway.token.clone());
    let begun = |folder| {
        let mut gateway = Gateway::inside(folder, &Start::default());
        gateway.token.clone_from(&token);
        gateway
    };
    let serves = |gateway: &Gateway| {
        let answer = proxy.request("GET", "/").send(&gateway.url);
        assert_eq!(answer.outcome(), (200, "proxy-access-granted"));
        let injected = format!("Bearer {TARGET_SECRET}");
        let last = upstream.last();
        assert_eq!(last.field("authorization"), Some(injected.as_str()));
    };
    let sealing = |gateway: &Gateway| {
        let nodes = gateway.operator("/nodes").json();
        nodes["items"][0]["sealing"].clone()
    };
    let (_, folder) = gateway.stop();
    let made = keyring(&data, &["rotate", "--nodes", "keyring.json"]);
    let old = made["older"][0].as_str().expect("a key").to_owned();
    let gateway = begun(folder);
    serves(&gateway);
    let now = wait_for("nothing is sealed to the older key", || {
        let now = sealing(&gateway);
        let is_done = now["keys"][0] == made["key"] && now["older"].is_null();
        is_done.then_some(now)
    });
    assert_eq!(now["keys"][1], old.as_str());
    let (_, folder) = gateway.stop();
    keyring(&data, &["forget", &old, "--nodes", "keyring.json"]);
    let gateway = begun(folder);
    wait_for("one key is left", || {
        let keys = sealing(&gateway)["keys"].as_array().map(Vec::len);
        (keys == Some(1)).then_some(())
    });
    serves(&gateway);
    // What is set from now on is sealed to the newer one.
    let further = gateway.proxy(&upstream.url());
    assert_eq!(further.get("/").status(), 200);
}

/// Ends a process and starts it again.
fn again(process: Gateway, start: &Start) -> Gateway {
    let token = process.token.clone();
    let (_, folder) = process.stop();
    let mut process = Gateway::inside(folder, start);
    process.token = token;
    process
}

/// Waits until a control plane shows this of another region.
fn wait_shown(control: &Gateway, region: &str, what: &str, is_so: impl Fn(&Value) -> bool) {
    wait_for(what, || {
        let listed = control.operator("/regions").json();
        let mut items = listed["items"].as_array()?.iter();
        let found = items.find(|shown| shown["name"] == region)?;
        is_so(found).then_some(())
    });
}

/// One region rotates its key in the order of `docs/cluster.md`; the other one seals to it, keeps
/// copies that are sealed to it, and both serve at every step.
#[test]
fn a_key_is_rotated_in_one_region_and_known_in_the_other() {
    let two = Two::new();
    let (mut us, mut eu) = two.controls();
    let (of_us, mut node) = (two.node(&two.us), two.node(&two.eu));
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    let serve = |node: &Gateway| {
        for node in [&of_us, node] {
            wait_status(node, &proxy, "GET", 200);
            let injected = format!("Bearer {TARGET_SECRET}");
            let last = upstream.last();
            assert_eq!(last.field("authorization"), Some(injected.as_str()));
        }
    };
    serve(&node);

    // 1 and 2: nodes have it, and one of them seals anew.
    let made = keyring(two.folder(), &["rotate", "--nodes", "eu.json"]);
    let (new, old) = (made["key"].clone(), made["older"][0].clone());
    node = again(node, &two.node_start(&two.eu));
    wait_for("nothing in eu is sealed to the older key", || {
        let sealing = eu.operator("/nodes").json()["items"][0]["sealing"].clone();
        (sealing["keys"][0] == new && sealing["older"].is_null()).then_some(())
    });
    serve(&node);

    // 3 and 4: control planes seal to it, first in eu and then in us.
    let files = ["--nodes", "eu.json", "--control", "eu.public.json"];
    let published = keyring(two.folder(), &[&["publish"][..], &files].concat());
    assert_eq!(published["key"], new);
    eu = again(eu, &two.eu_start());
    wait_shown(&eu, "eu", "the link to us", |shown| {
        shown["replication"]["connected"] == true
    });
    us = again(us, &two.us_start());
    wait_shown(
        &us,
        "eu",
        "home's copies are sealed to the newer key",
        |shown| shown["public_key_id"] == new && shown["sealed_to_other_keys"] == 0,
    );
    serve(&node);

    // 6: what is left opens without the older one, in either store.
    let old = old.as_str().expect("a key");
    keyring(two.folder(), &["forget", old, "--nodes", "eu.json"]);
    node = again(node, &two.node_start(&two.eu));
    serve(&node);
    let opens = |region: &Region| {
        let found = sealed(&region.dump(), "eu");
        assert!(!found.is_empty());
        for value in &found {
            let opened = open(&two.ring("eu"), value, &upstream.url());
            assert_eq!(opened.as_deref(), Ok(TARGET_SECRET), "{}", value.0);
        }
    };
    two.wait_equal();
    opens(&two.us);
    opens(&two.eu);
    // What is set from now on, through either region, is sealed to the newer one.
    for control in [&us, &eu] {
        let further = control.proxy(&upstream.url());
        wait_status(&of_us, &further, "GET", 200);
        wait_status(&node, &further, "GET", 200);
    }
    two.wait_equal();
    opens(&two.us);
    opens(&two.eu);
}
