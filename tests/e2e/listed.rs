//! `requestrocket list`: every object of a kind with its id, however many pages there are.

use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::upstream::Upstream;
use crate::suggested_rules::told;

fn ids(gateway: &Gateway, arguments: &[&str]) -> Vec<String> {
    let arguments = [&["list"], arguments, &["--output", "json"]].concat();
    let listed: Value = serde_json::from_str(&told(gateway, &arguments)).expect("JSON");
    let items = listed["items"].as_array().expect("a list");
    let ids = items.iter().filter_map(|item| item["id"].as_str());
    ids.map(str::to_owned).collect()
}

#[test]
fn every_kind_is_listed_with_its_ids() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let deny = json!({"effect": "deny", "methods": ["DELETE"]});
    let mut rules = Vec::new();
    for place in [
        format!("/proxies/{}", proxy.id),
        format!("/targets/{}", proxy.target),
    ] {
        let rule = gateway.create(&format!("{place}/rules"), deny.clone());
        rules.push(rule["id"].as_str().expect("an id").to_owned());
    }
    let meter = json!({"limits": [{"limit": 5, "window": "minute"}]});
    let meter = gateway.create("/meters", meter)["id"].clone();
    for (kind, id) in [
        ("proxies", &proxy.id),
        ("targets", &proxy.target),
        ("credentials", &proxy.proxy_credential),
        ("credentials", &proxy.target_credential),
        ("rules", &rules[0]),
        ("rules", &rules[1]),
        ("meters", &meter.as_str().expect("an id").to_owned()),
    ] {
        assert!(ids(&gateway, &[kind]).contains(id), "{kind} {id}");
        let shown = told(&gateway, &["list", kind]);
        let line = shown.lines().find(|line| line.starts_with(id.as_str()));
        assert!(line.is_some(), "{kind} {id}: {shown}");
    }
    assert_eq!(ids(&gateway, &["rules", "--on", &proxy.id]), rules[..1]);
    assert_eq!(
        told(&gateway, &["list", "filters"]).trim_end(),
        "there are no filters"
    );
    // The former key of a rotation, and until when it works.
    let rotate = format!("/credentials/{}/rotate", proxy.proxy_credential);
    let rotated = gateway.api("POST", &rotate, Some(&json!({"overlap_ms": 3_600_000})));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    let former = rotated.json()["secret"]["former"][0]["valid_until"].clone();
    let until = former.as_str().expect("an end");
    let shown = told(&gateway, &["list", "credentials"]);
    let line = shown
        .lines()
        .find(|line| line.starts_with(&proxy.proxy_credential));
    let line = line.expect("the credential");
    assert!(
        line.ends_with(&format!("(the former one until {until})")),
        "{line}"
    );
}

#[test]
fn more_than_one_page_is_listed_whole() {
    let gateway = Gateway::start();
    let create = |at: usize| {
        json!({"create": "targets",
               "object": {"name": format!("t{at}"), "base_url": "https://api.example.com"}})
    };
    let operations: Vec<Value> = (0..520).map(create).collect();
    let made = gateway.api(
        "POST",
        "/changes",
        Some(&json!({ "operations": operations })),
    );
    assert_eq!(made.status(), 200, "{}", made.text());
    let listed = ids(&gateway, &["targets"]);
    assert!(listed.len() >= 520, "{}", listed.len());
}
