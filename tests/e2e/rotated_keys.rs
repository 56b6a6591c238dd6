//! The key that a region's secrets are sealed to is rotated, and the older one goes.

use std::path::Path;

use serde_json::Value;

use crate::harness::gateway::{Gateway, Start, TARGET_SECRET, binary};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

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
