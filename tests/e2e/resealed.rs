//! Schedule 18 of part two: a region is added after secrets were set, and somebody who is no person
//! of this installation adds one.

use serde_json::json;

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, Start, binary};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::regions::{Region, Two, keyring, open, sealed};
use crate::residency::{CANARY, id_of, is_free_of};

/// A control plane's settings while there is one region.
fn alone(mut start: Start) -> Start {
    let regions = start.config.find("[regions]").expect("a table");
    start.config.truncate(regions);
    start
}

/// Runs `keyring` with these arguments in the folder of all files; its exit code and what it said.
fn run(two: &Two, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = binary();
    command.arg("keyring").current_dir(two.folder());
    let output = command.args(arguments).output().expect("the binary runs");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn fingerprint(two: &Two, file: &str) -> String {
    let (code, said) = run(two, &["show", file, "--output", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let shown: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    shown["fingerprint"].as_str().expect("a text").to_owned()
}

fn holds(region: &Region, credential: &str, of: &str) -> bool {
    let found = sealed(&region.dump(), of);
    found.iter().any(|(key, _)| key.contains(credential))
}

#[test]
fn secrets_are_sealed_for_a_region_that_joins_once_a_person_vouches_for_it() {
    let two = Two::new();
    keyring(two.folder(), "x", "x", Some("us.public.json"));
    let us = Gateway::with(alone(two.us_start()));
    let node = two.node(&two.us);
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    let path = format!("/credentials/{}", proxy.target_credential);
    us.patch(&path, json!({"secret": {"token": CANARY}}));
    wait_status(&node, &proxy, "GET", 200);
    let of_us = json!({"kind": "target", "auth_type": "bearer", "secret": {"token": CANARY},
                       "hosts": [upstream.url()]});
    let of_us = id_of(&us.create("/credentials", of_us));

    // eu joins: it has all of the configuration, and no secret that was set before.
    let token = us.token.clone();
    let mut us = Gateway::inside(us.kill(), &two.us_start());
    us.token.clone_from(&token);
    let mut eu = Gateway::with(two.eu_start());
    eu.token = token;
    two.wait_equal();
    let node_of_eu = two.node(&two.eu);
    wait_status(&node_of_eu, &proxy, "GET", 502);
    let answer = proxy.request("GET", "/").send(&node_of_eu.url);
    assert_eq!(answer.json()["code"], "credential-unavailable");
    assert_eq!(us.get(&path)["unsealed_in"], json!(["eu"]));
    let listed = us.get("/credentials?kind=target");
    assert_eq!(listed["items"][0]["unsealed_in"], json!(["eu"]), "{listed}");

    // That control planes name a region is not enough, nor is it that nodes seal for another one.
    let (code, said) = run(
        &two,
        &[
            "trust",
            "--nodes",
            "us.json",
            "--region-file",
            "x.public.json",
        ],
    );
    assert_eq!(code, Some(0), "{said}");
    wait_for("what is sealed for the region that is vouched for", || {
        holds(&two.us, &of_us, "x").then_some(())
    });
    for (region, of) in [(&two.us, "eu"), (&two.eu, "eu"), (&two.eu, "x")] {
        assert!(sealed(&region.dump(), of).is_empty(), "for {of}");
    }

    // A person compares fingerprints and vouches for eu.
    let given = fingerprint(&two, "eu.public.json");
    assert_eq!(given, fingerprint(&two, "eu.json"), "either file tells it");
    let trust = ["trust", "--nodes", "us.json", "--region-file"];
    let of_x = fingerprint(&two, "x.public.json");
    for (file, fingerprint, expected) in [
        ("eu.public.json", &of_x, "not the one that was named"),
        ("us.public.json", &given, "it is of the same region"),
        ("none.public.json", &given, "it is not there"),
    ] {
        let named = ["--fingerprint", fingerprint];
        let (code, said) = run(&two, &[&trust[..], &[file], &named].concat());
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    let named = ["eu.public.json", "--fingerprint", &given];
    let (code, said) = run(&two, &[&trust[..], &named].concat());
    assert_eq!(code, Some(0), "{said}");
    wait_status(&node_of_eu, &proxy, "GET", 200);
    let injected = format!("Bearer {CANARY}");
    assert_eq!(
        upstream.last().field("authorization"),
        Some(injected.as_str())
    );
    for region in [&two.us, &two.eu] {
        let found = sealed(&region.dump(), "eu");
        assert_eq!(found.len(), 2, "all of them");
        for value in &found {
            let opened = open(&two.ring("eu"), value, &upstream.url());
            assert_eq!(opened.as_deref(), Ok(CANARY));
        }
        for (key, value) in region.dump() {
            is_free_of(&value, &key);
        }
    }
    assert!(us.get(&path)["unsealed_in"].is_null());

    // The same for a region that a credential is given later.
    let only = format!("/credentials/{of_us}");
    us.patch(&only, json!({"regions": ["us"]}));
    wait_for("the end of what was sealed for eu", || {
        let left = [&two.us, &two.eu].map(|region| holds(region, &of_us, "eu"));
        (left == [false, false]).then_some(())
    });
    us.patch(&only, json!({"regions": ["us", "eu"]}));
    wait_for("what is sealed for eu again", || {
        holds(&two.eu, &of_us, "eu").then_some(())
    });
}
