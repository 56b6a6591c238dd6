//! The store of home goes back together with everything in its region that could notice, and home
//! goes on under the same numbers: which history counts is one decision, in either region.

use serde_json::json;

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, binary};
use crate::harness::stores::{LIVE, part};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::regions::Two;

/// Runs the program on a control plane; gives whether it succeeded, and what it said.
fn run(control: &Gateway, arguments: &[&str]) -> (bool, String) {
    let output = binary()
        .args(arguments)
        .args(["--control", &control.control])
        .env("REQUESTROCKET_TOKEN", &control.token)
        .output()
        .expect("the binary runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

/// Changes something, once the store is there again.
fn change(control: &Gateway, path: &str, with: serde_json::Value) {
    wait_for("a change", || {
        let answer = control.api("PATCH", path, Some(&with));
        (answer.status() == 200).then_some(())
    });
}

/// How far eu is with the organisation, as a control plane tells it.
fn state(control: &Gateway) -> Option<String> {
    let listed = control
        .operator("/replication?org=default&region=eu")
        .json();
    Some(listed["items"][0]["state"].as_str()?.to_owned())
}

fn wait_equal(two: &Two) {
    wait_for("one history", || {
        let (us, eu) = (two.us.dump(), two.eu.dump());
        (part(&us, &LIVE) == part(&eu, &LIVE)).then_some(())
    });
}

fn count_aside(control: &Gateway) -> usize {
    let listed = control.operator("/regions/aside").json();
    listed["items"].as_array().expect("a list").len()
}

#[test]
fn whose_history_counts_is_one_decision_in_either_region() {
    for (decides, aside, status) in [("us", [0, 3], 200), ("eu", [2, 0], 403)] {
        let mut two = Two::new();
        let (us, mut eu) = two.controls();
        let node = two.node(&two.eu);
        let upstream = Upstream::json("{}");
        let proxy = us.proxy(&upstream.url());
        wait_status(&node, &proxy, "GET", 200);
        let path = format!("/proxies/{}", proxy.id);
        let copy = two.us.etcd_mut().backup();
        change(&us, &path, json!({"name": "lost"}));
        change(&us, &path, json!({"name": "lost as well"}));
        change(&us, &path, json!({"active": false}));
        wait_status(&node, &proxy, "GET", 403);
        wait_equal(&two);
        // The control plane loses its disk, and there is no node in us: nobody has seen more.
        let token = us.token.clone();
        drop(us.kill());
        two.us.etcd_mut().restore(Some(&copy));
        let mut us = Gateway::with(two.us_start());
        us.token.clone_from(&token);
        eu.token = token;
        change(&us, &path, json!({"name": "made instead"}));
        change(&us, &path, json!({"name": "made after that"}));
        for control in [&us, &eu] {
            wait_for("the fork", || (state(control)? == "diverged").then_some(()));
            let (_, said) = run(control, &["regions"]);
            assert!(said.contains("diverged from home: org_"), "{said}");
        }
        let (good, said) = run(&us, &["recover", "--accept-store"]);
        assert!(!good && said.contains("--diverged"), "{said}");
        let (good, said) = run(&us, &["regions", "promote", "eu"]);
        assert!(!good && said.contains("--diverged"), "{said}");

        let control = if decides == "us" { &us } else { &eu };
        let (good, said) = run(control, &["regions", "promote", decides, "--diverged"]);
        assert!(
            good && said.contains(&format!("home is {decides}")),
            "{said}"
        );
        wait_equal(&two);
        wait_status(&node, &proxy, "GET", status);
        assert_eq!([&us, &eu].map(count_aside), aside);
        wait_for("the end of it", || {
            (state(&eu)? != "diverged").then_some(())
        });
        let (good, said) = run(control, &["regions", "promote", decides, "--diverged"]);
        assert!(!good && said.contains("of no organisation"), "{said}");
        // Both go on, through whichever region is asked.
        change(&eu, &path, json!({"active": false}));
        change(&us, &path, json!({"active": true}));
        wait_status(&node, &proxy, "GET", 200);
        wait_equal(&two);
    }
}
