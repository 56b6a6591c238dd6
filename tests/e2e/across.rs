//! Records of two regions, asked for in one: lists, counts, one record, a file; and what is said of
//! a region that is away.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::wait_status;
use crate::harness::gateway::Gateway;
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::pinned::Pair;
use crate::regions::Two;

/// Requests in us and in eu.
const SENT: [usize; 2] = [7, 5];
const PATH: &str = "path=/across";

/// Both regions, each with records of its own.
fn recorded() -> Pair {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let proxy = pair.us.proxy(&upstream.url());
    for (node, count) in pair.nodes.iter().zip(SENT) {
        wait_status(node, &proxy, "GET", 200);
        for _ in 0..count {
            let answer = proxy.request("GET", "/across").send(&node.url);
            assert_eq!(answer.status(), 200);
        }
    }
    // Who does not ask for others gets the region's own.
    for (control, count) in [&pair.us, &pair.eu].into_iter().zip(SENT) {
        wait_for("the region's records", || {
            let listed = control.get(&format!("/records?{PATH}"));
            assert_eq!(listed["partial"], Value::Null);
            (items(&listed).len() == count).then_some(())
        });
    }
    pair
}

fn items(listed: &Value) -> &[Value] {
    listed["items"].as_array().expect("a list")
}

fn of_region(items: &[Value], region: &str) -> usize {
    items.iter().filter(|item| item["region"] == region).count()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The regions that an answer lacks, with why.
fn missing(answer: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let missing = answer["partial"].as_array().expect("a list").iter();
    missing
        .map(|missing| (text(&missing["region"]), text(&missing["reason"])))
        .collect()
}

fn is_away(answer: &Value, reason: &str) {
    assert_eq!(missing(answer), [("eu".to_owned(), reason.to_owned())]);
    assert_eq!(answer["regions"], json!(["us"]));
}

#[test]
fn records_of_both_regions_are_one_list_in_either() {
    let pair = recorded();
    for (control, own, other) in [(&pair.us, "us", "eu"), (&pair.eu, "eu", "us")] {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/records?{PATH}&regions=all&limit=5{cursor}");
            let page = control.get(&path);
            assert_eq!(missing(&page), []);
            assert_eq!(page["regions"], json!([own, other]));
            assert!(items(&page).len() <= 5);
            all.extend_from_slice(items(&page));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let ids: BTreeSet<&str> = all.iter().filter_map(|item| item["id"].as_str()).collect();
        assert_eq!((all.len(), ids.len()), (12, 12));
        assert_eq!([of_region(&all, "us"), of_region(&all, "eu")], SENT);
        assert!(all.is_sorted_by_key(|item| {
            std::cmp::Reverse(item["started_at_us"].as_i64().expect("a time"))
        }));
        let one = control.get(&format!("/records?{PATH}&regions={other}"));
        assert_eq!(of_region(items(&one), other), items(&one).len());
    }
    let counted = pair
        .us
        .get(&format!("/telemetry?by=proxy&{PATH}&regions=eu,us"));
    assert_eq!(counted["groups"][0]["count"], 12);
    assert_eq!(counted["approximate"], false);
    assert_eq!(missing(&counted), []);
    let counted = pair
        .us
        .get(&format!("/telemetry?bucket=1h&{PATH}&regions=eu"));
    assert_eq!(counted["groups"][0]["count"], 5);

    // One of eu, asked for in us.
    let of_eu = items(&pair.eu.get(&format!("/records?{PATH}")))[0].clone();
    let id = of_eu["id"].as_str().expect("an id");
    let path = format!("/records/{id}");
    assert_eq!(pair.us.api("GET", &path, None).status(), 404);
    let found = pair.us.get(&format!("{path}?regions=all"));
    assert_eq!(
        (&found["id"], &found["region"]),
        (&of_eu["id"], &json!("eu"))
    );
    let trace = pair.us.get(&format!("{path}/trace?regions=eu"));
    assert_eq!(
        (&trace["request_id"], &trace["region"]),
        (&of_eu["id"], &json!("eu"))
    );
    let file = pair.us.get(&format!("{path}/trace?regions=eu&format=otlp"));
    let resource = file["resourceSpans"][0]["resource"].to_string();
    assert!(resource.contains(r#""stringValue":"eu""#), "{file}");
    let nowhere = format!("/records/{}?regions=all", proto::id::RequestId::new());
    assert_eq!(pair.us.api("GET", &nowhere, None).status(), 404);

    let lines = pair.us.command(&[
        "records",
        "--path",
        "/across",
        "--regions",
        "all",
        "--output",
        "ndjson",
    ]);
    let lines: Vec<Value> = text(&lines.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a record"))
        .collect();
    assert_eq!([of_region(&lines, "us"), of_region(&lines, "eu")], SENT);

    // A region that is not there, and a question that was passed on.
    let unknown = pair.us.api("GET", "/records?regions=eu,mars", None);
    assert_eq!(unknown.status(), 400);
    let detail = unknown.json()["detail"].to_string();
    assert!(
        detail.contains("mars") && detail.contains("eu, us"),
        "{detail}"
    );
    let passed_on = Request::new("GET", "/api/v1/orgs/default/records?regions=all")
        .field("authorization", &format!("Bearer {}", pair.us.token))
        .field("requestrocket-forwarded-by", "eu")
        .send(&pair.us.control);
    assert_eq!(passed_on.status(), 400, "{}", passed_on.text());
}

#[test]
fn a_region_that_is_away_or_refuses_is_named_and_holds_nothing_up() {
    let pair = recorded();
    let of_eu = items(&pair.eu.get(&format!("/records?{PATH}")))[0].clone();
    let list = format!("/records?{PATH}&regions=all");

    // eu has not heard of a token, and judges for itself.
    pair.two.way.cut();
    let made = pair
        .us
        .create("/tokens", json!({"name": "new", "role": "viewer"}));
    let token = made["secret"]["token"].as_str().expect("a token");
    let path = format!("/api/v1/orgs/default{list}");
    let refused = pair.us.control_call("GET", &path, Some(token), None);
    assert_eq!(refused.status(), 200, "{}", refused.text());
    is_away(&refused.json(), "refused");
    assert_eq!(items(&refused.json()).len(), SENT[0]);
    pair.two.way.heal();

    // It is there and says nothing.
    let first = pair.us.get(&format!("{list}&limit=4"));
    assert_eq!(missing(&first), []);
    let cursor = first["next_cursor"].as_str().expect("more follow");
    pair.eu.signal("STOP");
    let second = pair.us.get(&format!("{list}&limit=500&cursor={cursor}"));
    is_away(&second, "late");
    pair.eu.signal("CONT");
    let of_us = |page: &Value| of_region(items(page), "us");
    assert_eq!(of_us(&first) + of_us(&second), SENT[0]);
    assert_eq!(of_region(items(&second), "eu"), 0);

    // Its control plane is gone.
    assert_eq!(pair.eu.stop().0.code(), Some(0));
    let listed = pair.us.get(&list);
    is_away(&listed, "unreachable");
    assert_eq!(items(&listed).len(), SENT[0]);
    let counted = pair.us.get(&format!("/telemetry?{PATH}&regions=all"));
    is_away(&counted, "unreachable");
    assert_eq!(counted["groups"][0]["count"], SENT[0]);
    let path = format!(
        "/records/{}?regions=all",
        of_eu["id"].as_str().expect("an id")
    );
    let unknown = pair.us.api("GET", &path, None);
    assert_eq!(unknown.status(), 503, "{}", unknown.text());
    assert_eq!(unknown.json()["code"], "records-unavailable");
    for command in [
        &["records", "--regions", "all"][..],
        &["records", "--regions", "all", "--output", "ndjson"],
        &["tail", "--regions", "all"],
        &["top", "--regions", "all"],
        &["telemetry", "--regions", "all"],
    ] {
        let said = pair.us.command(command);
        assert!(said.status.success(), "{command:?}");
        let (out, err) = (text(&said.stdout), text(&said.stderr));
        assert!(!out.is_empty(), "{command:?}");
        assert!(
            err.contains("eu") && err.contains("unreachable"),
            "{command:?}: {err}"
        );
    }
}

#[test]
fn a_region_of_an_earlier_release_is_told_from_one_that_counts() {
    let two = Two::new();
    let earlier = Upstream::json(r#"{"from": "x", "groups": [{"count": 3}], "rest": null}"#);
    let mut start = two.us_start();
    let direct = format!("control = \"http://{}\"", two.eu.control_address());
    assert!(start.config.contains(&direct));
    let through = format!("control = {:?}", earlier.url());
    start.config = start.config.replace(&direct, &through);
    let us = Gateway::with(start);
    let counted = us.get("/telemetry?regions=all");
    is_away(&counted, "too-old");
    assert_eq!(counted["groups"], json!([]));
    is_away(&us.get("/records?regions=all"), "failed");
    let asked = earlier.last();
    assert_eq!(asked.field("requestrocket-forwarded-by"), Some("us"));
}
