//! Regions whose clocks are five minutes apart: it is told, and versions, secrets, limits and moves
//! of home go on.

use serde_json::{Value, json};

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, binary};
use crate::harness::http::Request;
use crate::harness::shifted_clock;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::regions::Two;

/// What `requestrocket regions` says on a control plane.
fn regions(control: &Gateway, arguments: &[&str]) -> String {
    let output = binary()
        .arg("regions")
        .args(arguments)
        .args(["--control", &control.control])
        .env("REQUESTROCKET_TOKEN", &control.token)
        .output()
        .expect("the binary runs");
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// One region of the list of a control plane.
fn region(control: &Gateway, name: &str) -> Value {
    let listed = control.operator("/regions").json();
    let items = listed["items"].as_array().expect("a list").iter();
    let found = items.clone().find(|region| region["name"] == name);
    found.expect("the region").clone()
}

/// Waits until a control plane says that the clock of another region is ahead by about so much.
fn wait_skew(control: &Gateway, other: &str, seconds: i64) {
    wait_for("the clocks compared", || {
        let told_ms = region(control, other)["clock_ahead_ms"].as_i64()?;
        ((told_ms - seconds * 1_000).abs() < 2_000).then_some(())
    });
    let side = if seconds < 0 { "behind" } else { "ahead of" };
    let said = regions(control, &[]);
    assert!(
        said.contains("clock-skew its clock is ") && said.contains(&format!(" s {side} this")),
        "{said}"
    );
    assert!(
        control.log().contains("the clock of region"),
        "it is logged"
    );
}

fn apart(seconds: i64) {
    let two = Two::new();
    let us = Gateway::with(two.us_start());
    let mut start = two.eu_start();
    start.environment.extend(shifted_clock::by(seconds));
    let mut eu = Gateway::with(start);
    eu.token.clone_from(&us.token);
    two.wait_equal();
    wait_for("home's token in eu", || {
        (eu.operator("/me").status() == 200).then_some(())
    });
    let mut start = two.node_start(&two.eu);
    start.environment.extend(shifted_clock::by(seconds));
    let nodes = [two.node(&two.us), Gateway::with(start)];
    wait_skew(&us, "eu", seconds);
    wait_skew(&eu, "us", -seconds);

    // What is made at home serves in both, and what is changed through eu as well.
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
    }
    let limits = json!({"limits": {"per_minute": 1_000, "per_day": 100_000}});
    let changed = eu.api("PATCH", &format!("/proxies/{}", proxy.id), Some(&limits));
    assert_eq!(changed.status(), 200, "{}", changed.text());
    two.wait_equal();
    // A new key counts in both at once; where the clock is ahead the overlap of the old one ends
    // sooner, and nowhere later than it says.
    let credential = format!("/credentials/{}", proxy.proxy_credential);
    let overlap = json!({"overlap_ms": 60_000});
    let rotated = eu.api("POST", &format!("{credential}/rotate"), Some(&overlap));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    let key = rotated.json()["secret"]["key"].as_str().map(str::to_owned);
    let key = key.or_else(|| Some(rotated.json()["secret"]["token"].as_str()?.to_owned()));
    let key = key.expect("a new key");
    for node in &nodes {
        let with_new = Request::new("GET", &proxy.path);
        let with_new = with_new.field("authorization", &format!("Bearer {key}"));
        wait_for("the new key", || {
            (with_new.send(&node.url).status() == 200).then_some(())
        });
    }
    assert_eq!(proxy.request("GET", "/").send(&nodes[0].url).status(), 200);
    let own = region(&eu, "eu")["replication"].clone();
    let lag_s = own["lag_seconds"].as_f64().expect("a number");
    assert!(own["connected"] == true && lag_s < 60.0, "{own}");

    // Home moves there and versions go on in one line.
    let said = regions(&eu, &["promote", "eu"]);
    assert!(said.contains("handed over to eu"), "{said}");
    let path = format!("/proxies/{}", proxy.id);
    for (control, name) in [(&eu, "made-in-eu"), (&us, "made-through-us")] {
        wait_for("a change after the move", || {
            let answer = control.api("PATCH", &path, Some(&json!({"name": name})));
            (answer.status() == 200).then_some(())
        });
    }
    wait_for("the same in both", || {
        let names = [&us, &eu].map(|control| control.get(&path)["name"].clone());
        (names == ["made-through-us", "made-through-us"]).then_some(())
    });
    two.wait_equal();
}

#[test]
fn a_region_whose_clock_is_five_minutes_ahead() {
    apart(300);
}

#[test]
fn a_region_whose_clock_is_five_minutes_behind() {
    apart(-300);
}
