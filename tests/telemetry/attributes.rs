//! What spans say of a method that the conventions do not know, of rules in shadow mode and of
//! filters; and that the documentation has every attribute of ours that was received, with its
//! type and its spans, and no other.

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;

use crate::harness::gateway::Gateway;
use crate::harness::otlp::Received;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::{CLIENT, SERVER, attributes, id, trace, typed};

/// The last word on a receiver's spans: call it when the requests of the other kinds were made.
pub fn check(received: &Received, gateway: &Gateway) {
    unknown_method(received, gateway);
    shadow_and_filter(received, gateway);
    unauthorized(received, gateway);
    documented(&received.spans());
}

/// A method that the conventions do not know stands beside `_OTHER`, and never in a name.
fn unknown_method(received: &Received, gateway: &Gateway) {
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let answer = proxy.send(&proxy.request("PROPFIND", "/dav"));
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(upstream.last().method(), "PROPFIND");
    let trace = trace(received, &id(&answer));
    let [attempt] = &*trace.attempts else {
        panic!("{:?}", trace.attempts);
    };
    for span in [&trace.server, attempt] {
        assert_eq!(span.name, "HTTP");
        let found = attributes(span);
        assert_eq!(found["http.request.method"], "_OTHER");
        assert_eq!(found["http.request.method_original"], "PROPFIND");
        assert_eq!(
            typed(&span.attributes)["http.request.method_original"],
            "string"
        );
    }
    for span in trace.stages.values() {
        assert!(!attributes(span).contains_key("http.request.method_original"));
    }
}

/// A rule that would have denied, and a filter that changed the answer.
fn shadow_and_filter(received: &Received, gateway: &Gateway) {
    let upstream = Upstream::json("{\"kept\":1,\"hidden\":2}");
    let proxy = gateway.proxy(&upstream.url());
    let of_proxy = format!("/proxies/{}", proxy.id);
    let rule = json!({"effect": "deny", "mode": "shadow"});
    let rule = gateway.create(&format!("{of_proxy}/rules"), rule);
    let filter = json!({"op": "destroy", "paths": ["$.hidden"]});
    let filter = gateway.create(&format!("{of_proxy}/filters"), filter);
    let answer = wait_for("both", || {
        let answer = proxy.get("/both");
        let record = gateway.record(&id(&answer));
        let filtered = answer.text() == "{\"kept\":1}";
        (filtered && record["shadow_rule_ids"] == json!([rule["id"]])).then_some(answer)
    });
    let stages = trace(received, &id(&answer)).stages;
    for (stage, name, object) in [
        ("authorize", "requestrocket.rules.shadow", &rule),
        ("filter", "requestrocket.filters.changed", &filter),
    ] {
        let expected = [
            (name, "string[]"),
            ("requestrocket.stage.outcome", "string"),
        ];
        assert_eq!(typed(&stages[stage].attributes), expected.into(), "{stage}");
        let found = attributes(&stages[stage]);
        assert_eq!(Some(&*found[name]), object["id"].as_str(), "{stage}");
        assert_eq!(found["requestrocket.stage.outcome"], "pass", "{stage}");
    }
}

/// A caller without a key.
fn unauthorized(received: &Received, gateway: &Gateway) {
    let proxy = gateway.proxy("http://127.0.0.1:1");
    let answer = proxy.send(&proxy.request("GET", "/x").without("authorization"));
    assert_eq!(answer.status(), 401);
    let stages = trace(received, &id(&answer)).stages;
    let found = attributes(&stages["authenticate"]);
    assert_eq!(found["requestrocket.auth.failure"], "no-credential");
}

/// How `docs/traces.md`, which is made from the registry, calls the place of a span.
fn place(span: &Span) -> Vec<String> {
    match span.kind {
        SERVER => vec!["SERVER".into()],
        CLIENT => vec!["CLIENT".into()],
        _ => vec!["stages".into(), format!("`{}`", span.name)],
    }
}

/// The rows of a table of the page, without their outer bars.
fn rows<'p>(page: &'p str, which: &str) -> Vec<Vec<&'p str>> {
    let (_, table) = page
        .split_once(&format!("<!-- {which}: made from "))
        .expect("a table");
    let (table, _) = table.split_once("<!-- end of ").expect("its end");
    let rows = table
        .lines()
        .filter(|line| line.starts_with("| `requestrocket."));
    rows.map(|row| row.split('|').map(str::trim).collect())
        .collect()
}

/// The registry and what was received say the same. What events alone have is received in
/// `events.rs`.
fn documented(spans: &[Span]) {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/traces.md");
    let page = std::fs::read_to_string(page).expect("a page");
    let name = |cell: &'_ str| cell.trim_matches('`').to_owned();
    let registry: BTreeMap<String, (&str, Vec<&str>)> = rows(&page, "attributes")
        .into_iter()
        .map(|cells| (name(cells[1]), (cells[2], cells[3].split(", ").collect())))
        .collect();
    let happening: BTreeSet<String> = rows(&page, "events")
        .into_iter()
        .map(|cells| name(cells[1]))
        .collect();
    let mut seen = BTreeSet::new();
    for span in spans {
        let ours = typed(&span.attributes).into_iter();
        for (name, kind) in ours.filter(|(name, _)| name.starts_with("requestrocket.")) {
            let (known, on) = registry
                .get(name)
                .unwrap_or_else(|| panic!("{name} is not in the registry"));
            assert_eq!(kind, *known, "{name}");
            let there = place(span).iter().any(|place| on.contains(&&**place));
            assert!(there, "{name} on {} {}", span.kind, span.name);
            seen.insert(name.to_owned());
        }
        for event in &span.events {
            assert!(happening.contains(&event.name), "{}", event.name);
            let ours = typed(&event.attributes).into_iter();
            for (name, kind) in ours.filter(|(name, _)| name.starts_with("requestrocket.")) {
                let known = registry.get(name).map(|(kind, _)| *kind);
                assert_eq!(known, Some(kind), "{name} of {}", event.name);
            }
        }
    }
    let of_events = |on: &[&str]| {
        on.iter()
            .all(|on| on.starts_with("`…") || *on == "events of meters")
    };
    let all = registry.into_iter().filter(|(_, (_, on))| !of_events(on));
    let all: BTreeSet<String> = all.map(|(name, _)| name).collect();
    assert_eq!(seen, all, "each of them was received");
}
