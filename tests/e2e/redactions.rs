//! Filters that hide instead of removing: masks, and marks in the place of personal data.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::upstream::{Upstream, json_answer};

/// A proxy in front of `upstream` with these filters on it.
fn filtered(gateway: &Gateway, upstream: &Upstream, filters: &[Value]) -> Proxy {
    let proxy = gateway.proxy(&upstream.url());
    for filter in filters {
        gateway.create(&format!("/proxies/{}/filters", proxy.id), filter.clone());
    }
    proxy
}

#[test]
fn values_make_way_for_masks_and_marks() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(
        r#"{"z":1.0,"no":"4111111111111111","a":1e400,"to":"ann@s.example","b":{"c":1},"x":-0}"#,
    );
    let filters = [
        json!({"op": "mask", "paths": ["$.no"], "mask": {"last": 4}}),
        json!({"op": "mask", "paths": ["$.b"]}),
        json!({"op": "redact", "detect": ["email", "card"]}),
    ];
    let proxy = filtered(&gateway, &upstream, &filters);
    let answer = proxy.get("/");
    assert_eq!(
        answer.text(),
        r#"{"z":1.0,"no":"***1111","a":1e400,"to":"[email]","b":"***","x":-0}"#
    );
    assert_eq!(
        answer.field("content-length"),
        Some(answer.body.len().to_string().as_str())
    );
    let id = answer.field("requestrocket-request-id").expect("an id");
    let record = gateway.record(id);
    assert_eq!(
        record["filter_ids"].as_array().expect("ids").len(),
        3,
        "{record}"
    );
    assert_eq!(
        gateway.metric("requestrocket_redactions_total{found=\"email\"}"),
        1.0
    );
    assert_eq!(
        gateway.metric("requestrocket_redactions_total{found=\"card\"}"),
        0.0
    );
    for hidden in ["s.example", "4111111111111111"] {
        assert!(!record.to_string().contains(hidden));
        assert!(!gateway.log().contains(hidden));
    }
}

#[test]
fn equal_values_have_equal_hashes_on_all_proxies() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(r#"["ann@example.com","bob@example.com"]"#);
    let hash = json!({"op": "mask", "paths": ["$[*]"], "mask": {"hash": true}});
    let answers = [(); 2].map(|()| {
        filtered(&gateway, &upstream, std::slice::from_ref(&hash))
            .get("/")
            .json()
    });
    assert_eq!(answers[0], answers[1]);
    let texts: Vec<&str> = answers[0]
        .as_array()
        .expect("two")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_ne!(texts[0], texts[1]);
    assert!(
        texts
            .iter()
            .all(|text| text.starts_with("hash:") && text.len() == 37),
        "{texts:?}"
    );
}

#[test]
fn scopes_hide_one_after_another() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(r#"{"a":"ann@example.com","b":"+49 30 901820","c":"x"}"#);
    let proxy = gateway.proxy(&upstream.url());
    for (object, filter) in [
        (
            format!("/proxies/{}", proxy.id),
            json!({"op": "mask", "paths": ["$[?@ == '[email]']"], "mask": {"text": "first"}}),
        ),
        (
            format!("/credentials/{}", proxy.proxy_credential),
            json!({"op": "mask", "paths": ["$.c"]}),
        ),
        (
            format!("/targets/{}", proxy.target),
            json!({"op": "redact", "detect": ["phone"]}),
        ),
        (
            format!("/credentials/{}", proxy.target_credential),
            json!({"op": "redact", "detect": ["email"]}),
        ),
    ] {
        gateway.create(&format!("{object}/filters"), filter);
    }
    assert_eq!(
        proxy.get("/").text(),
        r#"{"a":"first","b":"[phone]","c":"***"}"#
    );
}

#[test]
fn what_cannot_be_searched_is_withheld() {
    let gateway = Gateway::start();
    let deep = format!("{}\"s3cret\"{}", "[".repeat(65), "]".repeat(65));
    let bodies = [
        r#"{"a":"s3cret@x.example""#,
        r#"{"a":"s3cret@x.example","a":1}"#,
        r#"{"a":"s3cret@x.example"} {}"#,
        r#"{"a":s3cret}"#,
        &deep,
    ];
    for filter in [
        json!({"op": "mask", "paths": ["$.b"]}),
        json!({"op": "redact", "detect": ["email"]}),
    ] {
        for body in bodies {
            let upstream = Upstream::json(body);
            let answer = filtered(&gateway, &upstream, std::slice::from_ref(&filter)).get("/");
            assert_eq!(
                answer.outcome(),
                (422, "filter-not-json"),
                "{filter} {body}"
            );
            assert!(!answer.text().contains("s3cret"), "{filter} {body}");
        }
        let upstream = Upstream::fixed(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 16\r\n\r\n\
             s3cret@x.example",
        );
        let answer = filtered(&gateway, &upstream, &[filter]).get("/");
        assert_eq!(answer.outcome(), (422, "filter-not-json"));
        assert!(!answer.text().contains("s3cret"));
    }
}

#[test]
fn error_bodies_are_masked_or_blank() {
    let gateway = Gateway::start();
    let filters = [
        json!({"op": "mask", "paths": ["$..ssn"]}),
        json!({"op": "redact", "detect": ["email"]}),
    ];
    let error = r#"{"error":"s3cret@x.example exists","existing":{"ssn":"s3cret","n":1.50}}"#;
    let upstream = Upstream::fixed(json_answer("409 Conflict", error));
    let answer = filtered(&gateway, &upstream, &filters).get("/");
    assert_eq!(answer.status(), 409);
    assert_eq!(
        answer.text(),
        r#"{"error":"[email] exists","existing":{"ssn":"***","n":1.50}}"#
    );
    for (kind, body) in [
        ("text/html", "<p>s3cret@x.example</p>"),
        ("application/json", "{s3cret"),
    ] {
        let upstream = Upstream::fixed(format!(
            "HTTP/1.1 500 Oh\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        let answer = filtered(&gateway, &upstream, &filters).get("/");
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.json()["code"], "error-body-withheld");
        assert!(!answer.text().contains("s3cret"), "{kind}");
    }
}

#[test]
fn events_and_lines_are_searched_one_by_one() {
    let gateway = Gateway::start();
    let redact = [json!({"op": "redact", "detect": ["email"]})];
    let plain = |kind: &str, body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let events = "data: {\"d\":\"ann@example.com\"}\n\n: beat\ndata: [DONE]\n\n";
    let upstream = Upstream::fixed(plain("text/event-stream", events));
    let answer = filtered(&gateway, &upstream, &redact).get("/");
    assert_eq!(answer.text(), events.replace("ann@example.com", "[email]"));
    let lines = "{\"d\":\"ann@example.com\"}\n{\"n\":1.0}\n\"bob@example.com\"";
    let upstream = Upstream::fixed(plain("application/x-ndjson", lines));
    let answer = filtered(&gateway, &upstream, &redact).get("/");
    assert_eq!(
        answer.text(),
        "{\"d\":\"[email]\"}\n{\"n\":1.0}\n\"[email]\""
    );
    let id = answer.field("requestrocket-request-id").expect("an id");
    assert_eq!(
        gateway.record(id)["filter_ids"]
            .as_array()
            .expect("ids")
            .len(),
        1
    );
    let found = "requestrocket_redactions_total{found=\"email\"}";
    assert_eq!(gateway.metric(found), 3.0);
}

#[test]
fn a_request_is_redacted_before_the_target_sees_it() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let filter = json!({
        "op": "redact", "direction": "request", "paths": ["$.messages[*].content"],
        "detect": ["email", "token"],
        "patterns": [{"name": "staff", "pattern": "emp-[0-9]{6}", "flags": "i"}],
    });
    let proxy = filtered(&gateway, &upstream, &[filter]);
    let body =
        r#"{"model":"m","messages":[{"role":"user","content":"EMP-123456 ann@example.com"}]}"#;
    assert_eq!(
        proxy.send(&proxy.request("POST", "/").json(body)).status(),
        200
    );
    assert_eq!(
        upstream.last().text(),
        r#"{"model":"m","messages":[{"role":"user","content":"[staff] [email]"}]}"#
    );
    let broken = proxy.send(&proxy.request("POST", "/").json(r#"{"messages":["#));
    assert_eq!(broken.outcome(), (422, "filter-not-json"));
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_filter_that_cannot_work_is_not_saved() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let path = format!("/proxies/{}/filters", proxy.id);
    let own =
        |pattern: &str| json!({"op": "redact", "patterns": [{"name": "n", "pattern": pattern}]});
    let huge = "x".repeat(2_000);
    for (filter, pointer) in [
        (json!({"op": "mask", "paths": ["$..a..b"]}), "/paths/0"),
        (json!({"op": "mask", "paths": ["a"]}), "/paths/0"),
        (json!({"op": "mask"}), "/paths"),
        (
            json!({"op": "mask", "paths": ["$.a"], "mask": {"last": 0}}),
            "/mask/last",
        ),
        (
            json!({"op": "mask", "paths": ["$.a"], "mask": {"middle": 1}}),
            "/mask/middle",
        ),
        (
            json!({"op": "mask", "paths": ["$.a"], "mask": {"last": 1, "hash": true}}),
            "/mask",
        ),
        (json!({"op": "redact"}), "/detect"),
        (json!({"op": "redact", "detect": ["dna"]}), "/detect/0"),
        (
            json!({"op": "destroy", "paths": ["$.a"], "detect": ["email"]}),
            "/detect",
        ),
        (own("("), "/patterns/0/pattern"),
        (own("(?=a)b"), "/patterns/0/pattern"),
        (own(&huge), "/patterns/0/pattern"),
        (own(r"\w{500}{500}"), "/patterns/0/pattern"),
    ] {
        let answer = gateway.api("POST", &path, Some(&filter));
        assert_eq!(answer.status(), 422, "{filter}: {}", answer.text());
        let errors = answer.json()["errors"].clone();
        let pointers: Vec<&str> = errors
            .as_array()
            .expect("errors")
            .iter()
            .filter_map(|error| error["pointer"].as_str())
            .collect();
        assert_eq!(pointers, [pointer], "{filter}: {errors}");
    }
    assert_eq!(gateway.get(&path)["items"], json!([]));
}

#[test]
fn explain_says_what_would_be_hidden() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let filters = [
        json!({"op": "mask", "paths": ["$.no"], "mask": {"last": 4}}),
        json!({"op": "redact", "detect": ["email"], "patterns": [{"name": "n", "pattern": "N-1"}]}),
    ];
    let proxy = filtered(&gateway, &upstream, &filters);
    let question = json!({"proxy": proxy.id, "request": {"method": "GET", "path": "/"}});
    let explained = gateway.api("POST", "/explain", Some(&question)).json();
    let stages = explained["stages"].as_array().expect("stages");
    let stage = stages
        .iter()
        .find(|stage| stage["stage"] == "filter")
        .expect("the stage");
    let shown = stage["filters"].as_array().expect("filters");
    assert_eq!(shown.len(), 2, "{explained}");
    let find = |op: &str| {
        shown
            .iter()
            .find(|filter| filter["op"] == op)
            .expect("shown")
    };
    assert_eq!(find("mask")["mask"], json!({"last": 4}));
    assert_eq!(find("redact")["detect"], json!(["email"]));
    assert_eq!(find("redact")["patterns"], json!(["n"]));
}
