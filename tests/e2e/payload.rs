//! Bodies in records, where a proxy asks for them.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy, Start, TARGET_SECRET};
use crate::harness::http::Message;
use crate::harness::upstream::{After, Upstream, json_answer};

fn id(answer: &Message) -> String {
    let id = answer.field("requestrocket-request-id");
    id.expect("an id").to_owned()
}

/// An upstream that answers what it was sent, with the secret that it was sent with.
fn quoting() -> Upstream {
    Upstream::start(|request, connection| {
        let authorization = request.field("authorization").unwrap_or_default();
        let body: Value = serde_json::from_str(&request.text()).unwrap_or_default();
        let answer = json!({"got": body, "ssn": "078-05-1120", "by": authorization});
        connection.send(json_answer("200 OK", &answer.to_string()));
        After::Keep
    })
}

fn capturing(gateway: &Gateway, upstream: &Upstream, policy: Value) -> Proxy {
    let proxy = json!({"record": {"payload": policy}});
    gateway.proxy_with(&upstream.url(), json!({}), proxy)
}

#[test]
fn bodies_are_kept_after_filters_and_shown_to_those_who_may() {
    let gateway = Gateway::start();
    let upstream = quoting();
    let proxy = capturing(&gateway, &upstream, json!({}));
    let filter = json!({"op": "destroy", "paths": ["$.ssn"]});
    gateway.create(&format!("/proxies/{}/filters", proxy.id), filter);
    let sent = json!({"amount": 12, "note": format!("key {} and {TARGET_SECRET}", proxy.key)});
    let request = proxy.request("POST", "/v1/charges").json(&sent.to_string());
    let answer = proxy.send(&request);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let id = id(&answer);
    let record = gateway.record(&id);
    let payload = &record["payload"];
    let request = payload["request"]["content"].as_str().expect("a text");
    let response = payload["response"]["content"].as_str().expect("a text");
    assert_eq!(payload["request"]["content_type"], "application/json");
    assert!(request.contains(r#""amount":12"#), "{payload}");
    assert!(response.contains(r#""amount":12"#), "{payload}");
    assert!(
        !response.contains("078-05"),
        "what a filter removed: {payload}"
    );
    assert_eq!(payload["response"]["truncated"], false);
    for secret in [TARGET_SECRET, &proxy.key] {
        assert!(!payload.to_string().contains(secret), "{payload}");
    }
    let read = gateway.get("/audit?limit=1")["items"][0].clone();
    let expected = (&json!("payload_read"), &json!(id));
    assert_eq!((&read["kind"], &read["details"]["request_id"]), expected);
    let entry = read["entry"].clone();
    // Others see that there was a request, not what was in it.
    let viewer = gateway.create("/tokens", json!({"name": "v", "role": "viewer"}));
    let viewer = viewer["secret"]["token"].as_str().expect("a token");
    let path = format!("/api/v1/orgs/default/records/{id}");
    let seen = gateway.control_call("GET", &path, Some(viewer), None);
    assert_eq!(seen.status(), 200);
    assert!(seen.json().get("payload").is_none(), "{}", seen.text());
    let items = gateway.get("/audit?limit=5")["items"].clone();
    let last = items.as_array().and_then(|items| {
        let mut entries = items.iter().map(|item| &item["entry"]);
        entries.find(|entry| entry.is_number()).cloned()
    });
    assert_eq!(last, Some(entry), "no bodies, no entry: {items}");
    for path in ["/records", "/records/export"] {
        let listed = gateway.api("GET", path, None).text();
        assert!(
            listed.contains(&id) && !listed.contains("amount"),
            "{listed}"
        );
    }
    assert!(!gateway.log().contains("amount"));
    // Early ends have no body of a target, and nothing went there.
    let denied = json!({"effect": "deny", "methods": ["PUT"]});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), denied);
    let refused = proxy.send(&proxy.request("PUT", "/").json("{}"));
    let refused = self::id(&refused);
    assert!(gateway.record(&refused).get("payload").is_none());
}

#[test]
fn what_is_kept_is_bounded_and_streams_are_not_held_up() {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|_, connection| {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n";
        connection.send(head);
        for _ in 0..64 {
            connection.send(format!("1000\r\n{}\r\n", "y".repeat(0x1000)));
        }
        connection.send("0\r\n\r\n");
        After::Keep
    });
    let policy = json!({"bytes_max": 10, "requests": false});
    let proxy = capturing(&gateway, &upstream, policy);
    let large = "x".repeat(100_000);
    let answer = proxy.send(&proxy.request("POST", "/").body(&large));
    assert_eq!(answer.text().len(), 64 * 0x1000);
    let record = gateway.record(&id(&answer));
    let expected = json!({
        "request": null,
        "response": {
            "content_type": "text/plain", "content": "yyyyyyyyyy", "base64": false,
            "truncated": true, "withheld": null,
        },
    });
    assert_eq!(record["payload"], expected);
    let too_much = json!({"record": {"payload": {"bytes_max": 1_000_000}}});
    let path = format!("/proxies/{}", proxy.id);
    let refused = gateway.api("PATCH", &path, Some(&too_much));
    assert_eq!(refused.status(), 422, "{}", refused.text());
    assert!(refused.text().contains("/record/payload/bytes_max"));
    // Off again.
    gateway.patch(&path, json!({"record": {"payload": null}}));
    let answer = crate::harness::wait_for("a record without a body", || {
        let answer = proxy.get("/");
        let record = gateway.record(&id(&answer));
        record.get("payload").is_none().then_some(answer)
    });
    assert_eq!(answer.status(), 200);
}

#[test]
fn records_say_what_was_spent_of_each_meter() {
    let gateway = Gateway::with(Start::default());
    let upstream = Upstream::json(r#"{"usage":{"total_tokens":70}}"#);
    let proxy = gateway.proxy_with(
        &upstream.url(),
        json!({}),
        json!({"limits": {"per_minute": 100}, "alias": "spender"}),
    );
    let meter = gateway.create(
        &format!("/proxies/{}/meters", proxy.id),
        json!({
            "name": "llm", "kind": "response_value",
            "value": {"template": "openai_chat", "estimate": 30},
            "limits": [{"limit": 1_000, "window": "hour"}],
        }),
    );
    for _ in 0..3 {
        let answer = proxy.get("/v1/chat");
        assert_eq!(answer.status(), 200);
        let record = gateway.record(&id(&answer));
        let mut spent = record["meters"].as_array().expect("a list").clone();
        spent.sort_by_key(|spend| spend["tokens"].as_u64());
        let expected = json!([
            {"meter": proxy.id, "tokens": 1}, {"meter": meter["id"], "tokens": 70},
        ]);
        assert_eq!(json!(spent), expected);
    }
    let sums = gateway.get("/telemetry?from=1h&bucket=1h");
    let mut meters = sums["groups"][0]["meters"]
        .as_array()
        .expect("a list")
        .clone();
    meters.sort_by_key(|spend| spend["tokens"].as_u64());
    let expected = json!([
        {"meter": proxy.id, "name": "spender", "tokens": 3},
        {"meter": meter["id"], "name": "llm", "tokens": 210},
    ]);
    assert_eq!(json!(meters), expected, "{sums}");
    let bucketed = &sums["groups"][0]["buckets"];
    let total: u64 = bucketed
        .as_array()
        .expect("a list")
        .iter()
        .flat_map(|bucket| bucket["meters"].as_array().expect("a list"))
        .filter_map(|spend| spend["tokens"].as_u64())
        .sum();
    assert_eq!(total, 213, "{bucketed}");
}
