//! Schemas: what they enforce does not go on, what they report does, and values are never told.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Message;
use crate::harness::upstream::{Upstream, json_answer};

fn validated(gateway: &Gateway, upstream: &Upstream, validation: Value) -> Proxy {
    gateway.proxy_with(
        &upstream.url(),
        json!({}),
        json!({ "validation": validation }),
    )
}

fn order() -> Value {
    json!({
        "type": "object",
        "required": ["id"],
        "properties": {"id": {"type": "string"}, "lines": {"items": {"$ref": "#/$defs/line"}}},
        "additionalProperties": false,
        "$defs": {"line": {"properties": {"n": {"type": "integer", "minimum": 1}}}},
    })
}

/// The places of what is wrong.
fn pointers(answer: &Message) -> Vec<String> {
    let errors = answer.json()["errors"].clone();
    let errors = errors
        .as_array()
        .unwrap_or_else(|| panic!("{}", answer.text()));
    errors
        .iter()
        .map(|error| error["pointer"].as_str().expect("a pointer").to_owned())
        .collect()
}

const ENFORCED: &str = "requestrocket_validation_failures_total{body=\"request\",mode=\"enforce\"}";
const REPORTED: &str = "requestrocket_validation_failures_total{body=\"request\",mode=\"report\"}";

#[test]
fn a_request_that_breaks_the_schema_is_not_sent() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = validated(&gateway, &upstream, json!({"request": {"schema": order()}}));
    let post = |body: &str| proxy.send(&proxy.request("POST", "/").json(body));
    let good = r#"{"id":"1", "lines":[{"n":1.0}]}"#;
    assert_eq!(post(good).status(), 200);
    assert_eq!(upstream.last().text(), good, "byte for byte");
    let bad = post(r#"{"lines":[{"n":1},{"n":"s3cret"},{"n":0}],"more":"s3cret"}"#);
    assert_eq!(bad.outcome(), (422, "validation-failed"));
    assert_eq!(
        pointers(&bad)
            .iter()
            .filter(|at| *at == "/lines/1/n")
            .count(),
        1
    );
    assert!(
        pointers(&bad).contains(&"/lines/2/n".to_owned()),
        "{}",
        bad.text()
    );
    assert_eq!(bad.field("x-should-retry"), Some("false"));
    assert!(!bad.text().contains("s3cret"), "{}", bad.text());
    let many = format!(
        r#"{{"id":"1","lines":[{}]}}"#,
        vec![r#"{"n":0}"#; 100].join(",")
    );
    assert_eq!(pointers(&post(&many)).len(), 20);
    for unreadable in [
        r#"{"id":"1""#,
        r#"{"id":"1","id":"2"}"#,
        r#"{"id":"1","lines":[1e400]}"#,
        &format!("{}{}", "[".repeat(70), "]".repeat(70)),
        "",
    ] {
        assert_eq!(
            post(unreadable).outcome(),
            (422, "validation-failed"),
            "{unreadable}"
        );
    }
    // What has no body by its nature is not held to one.
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(upstream.seen().len(), 2);
    let id = bad.field("requestrocket-request-id").expect("an id");
    let record = gateway.record(id);
    assert_eq!(record["code"], "validation-failed");
    assert!(!record.to_string().contains("s3cret") && !gateway.log().contains("s3cret"));
    assert_eq!(gateway.metric(ENFORCED), 7.0);
}

#[test]
fn a_coded_request_is_decoded_for_the_schema_alone() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = validated(&gateway, &upstream, json!({"request": {"schema": order()}}));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(br#"{"id":"1"}"#).expect("memory");
    let coded = encoder.finish().expect("memory");
    let post = proxy
        .request("POST", "/")
        .field("content-encoding", "gzip")
        .body(&coded);
    assert_eq!(proxy.send(&post).status(), 200);
    assert_eq!(upstream.last().body, coded);
    let broken = proxy
        .request("POST", "/")
        .field("content-encoding", "gzip")
        .body(b"{}");
    assert_eq!(proxy.send(&broken).outcome(), (422, "validation-failed"));
}

#[test]
fn what_is_only_reported_goes_on() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(r#"{"n":"s3cret"}"#);
    let validation = json!({
        "request": {"mode": "report", "schema": order()},
        "response": {"mode": "report", "schema": {"properties": {"n": {"type": "null"}}}},
    });
    let proxy = validated(&gateway, &upstream, validation);
    let answer = proxy.send(&proxy.request("POST", "/").json(r#"{"id":7}"#));
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text(), r#"{"n":"s3cret"}"#);
    assert_eq!(upstream.last().text(), r#"{"id":7}"#);
    let warning = answer
        .field("requestrocket-proxy-warning")
        .expect("a warning");
    assert!(
        warning.contains("request breaks the proxy's schema at /id"),
        "{warning}"
    );
    assert!(
        warning.contains("response breaks the proxy's schema at /n"),
        "{warning}"
    );
    assert!(!warning.contains("s3cret"));
    assert_eq!(gateway.metric(REPORTED), 1.0);
    assert_eq!(gateway.metric(ENFORCED), 0.0);
    let text = proxy
        .request("POST", "/")
        .field("content-type", "text/plain")
        .body("no JSON");
    assert_eq!(proxy.send(&text).status(), 200);
    assert_eq!(upstream.last().text(), "no JSON");
}

#[test]
fn an_answer_that_breaks_the_schema_is_withheld() {
    let gateway = Gateway::start();
    let schema = json!({"response": {"schema": order()}});
    let good = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\netag: \"v1\"\r\n\
                content-length: 13\r\n\r\n{ \"id\":\"1\" } ";
    let upstream = Upstream::fixed(good);
    let proxy = validated(&gateway, &upstream, schema.clone());
    let answer = proxy.get("/");
    assert_eq!(answer.text(), "{ \"id\":\"1\" } ", "byte for byte");
    assert_eq!(answer.field("etag"), Some("\"v1\""), "nothing was changed");
    let request = proxy
        .request("GET", "/")
        .field("range", "bytes=0-4")
        .field("if-match", "\"v1\"");
    assert_eq!(proxy.send(&request).status(), 200);
    assert_eq!(upstream.last().field("range"), None);
    assert_eq!(upstream.last().field("if-match"), Some("\"v1\""));
    let plain = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 9\r\n\r\n<p>s3cret";
    for bad in [
        json_answer("200 OK", r#"{"id":"1","lines":[{"n":"s3cret"}]}"#),
        json_answer("200 OK", r#"{"id":"s3cret""#),
        json_answer("201 Created", r#"["s3cret"]"#),
        plain.to_owned(),
    ] {
        let answer = validated(&gateway, &Upstream::fixed(bad.clone()), schema.clone()).get("/");
        assert_eq!(answer.outcome(), (422, "validation-failed"), "{bad}");
        assert!(!answer.text().contains("s3cret"), "{bad}");
    }
    // Errors of the target are its own.
    let upstream = Upstream::fixed(json_answer("404 Not Found", r#"{"error":1}"#));
    assert_eq!(
        validated(&gateway, &upstream, schema).get("/").text(),
        r#"{"error":1}"#
    );
}

#[test]
fn what_is_judged_is_what_goes_on() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(r#"{"id":"1","internal":true}"#);
    let both = json!({"request": {"schema": order()}, "response": {"schema": order()}});
    let proxy = validated(&gateway, &upstream, both);
    assert_eq!(proxy.get("/").outcome(), (422, "validation-failed"));
    for direction in ["request", "response"] {
        let filter = json!({"op": "destroy", "paths": ["$.internal"], "direction": direction});
        gateway.create(&format!("/proxies/{}/filters", proxy.id), filter);
    }
    let post = proxy
        .request("POST", "/")
        .json(r#"{"id":"1","internal":1}"#);
    assert_eq!(proxy.send(&post).text(), r#"{"id":"1"}"#);
    assert_eq!(upstream.last().text(), r#"{"id":"1"}"#);
}

#[test]
fn each_event_is_held_against_the_schema() {
    let gateway = Gateway::start();
    let stream = |kind: &str, body: &str| {
        Upstream::fixed(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let schema = json!({"required": ["n"]});
    let enforced = json!({"response": {"schema": schema}});
    let events = "data: {\"n\":1}\n\nevent: ping\ndata: now\n\ndata: [DONE]\n\n";
    let upstream = stream("text/event-stream", events);
    let answer = validated(&gateway, &upstream, enforced.clone()).get("/");
    assert_eq!(answer.text(), events);
    let events = "data: {\"n\":1}\n\ndata: {\"m\":\"s3cret\"}\n\ndata: {\"n\":3}\n\n";
    let upstream = stream("text/event-stream", events);
    let answer = validated(&gateway, &upstream, enforced.clone()).get("/");
    assert!(
        answer
            .text()
            .starts_with("data: {\"n\":1}\n\nevent: error\n"),
        "{}",
        answer.text()
    );
    assert!(answer.text().contains("validation-failed") && !answer.text().contains("s3cret"));
    let id = answer.field("requestrocket-request-id").expect("an id");
    assert_eq!(gateway.record(id)["code"], "validation-failed");
    let lines = "{\"n\":1}\n{\"m\":2}\n{\"m\":3}\n";
    let reported = json!({"response": {"mode": "report", "schema": schema}});
    let upstream = stream("application/x-ndjson", lines);
    assert_eq!(
        validated(&gateway, &upstream, reported).get("/").text(),
        lines
    );
    let upstream = stream("application/x-ndjson", lines);
    let answer = validated(&gateway, &upstream, enforced).get("/");
    assert!(
        answer
            .text()
            .starts_with("{\"n\":1}\n{\"code\":\"validation-failed\"")
    );
    let of = |mode: &str| {
        let series = "requestrocket_validation_failures_total{body=\"response\",mode=";
        gateway.metric(&format!("{series}\"{mode}\"}}"))
    };
    assert_eq!((of("enforce"), of("report")), (2.0, 2.0));
}

#[test]
fn a_schema_that_cannot_work_is_not_saved() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let path = format!("/proxies/{}", proxy.id);
    for (schema, pointer) in [
        (json!({"type": "strin"}), "/validation/request/schema/type"),
        (
            json!({"$ref": "http://127.0.0.1:1/"}),
            "/validation/request/schema/$ref",
        ),
        (
            json!({"pattern": "(?=a)"}),
            "/validation/request/schema/pattern",
        ),
        (
            json!({"allOf": [{"$ref": "#"}]}),
            "/validation/request/schema",
        ),
        (json!("a"), "/validation/request/schema"),
        (
            json!({"title": "x".repeat(70_000)}),
            "/validation/request/schema",
        ),
    ] {
        let change = json!({"validation": {"request": {"schema": schema}}});
        let answer = gateway.api("PATCH", &path, Some(&change));
        assert_eq!(answer.status(), 422, "{}", answer.text());
        assert_eq!(pointers(&answer), [pointer], "{}", answer.text());
    }
    let answer = gateway.api(
        "PATCH",
        &path,
        Some(&json!({"validation": {"request": {"mode": "log"}}})),
    );
    assert_eq!(answer.status(), 422, "{}", answer.text());
}

#[test]
fn explain_holds_a_body_against_the_schema() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = validated(&gateway, &upstream, json!({"request": {"schema": order()}}));
    let explained = |request: Value| {
        let question = json!({"proxy": proxy.id, "request": request});
        gateway.api("POST", "/explain", Some(&question)).json()
    };
    let prepare = |explained: &Value| {
        let stages = explained["stages"].as_array().expect("stages");
        let stage = stages.iter().find(|stage| stage["stage"] == "prepare");
        stage.expect("the stage").clone()
    };
    let bad = explained(json!({"method": "POST", "path": "/", "body": "{\"id\":1}"}));
    let stage = prepare(&bad);
    assert_eq!(stage["code"], "validation-failed", "{bad}");
    assert!(
        stage["detail"].as_str().expect("words").contains("/id"),
        "{bad}"
    );
    let good = explained(json!({"method": "POST", "path": "/", "body": "{\"id\":\"1\"}"}));
    assert_eq!(prepare(&good)["validation"], "valid", "{good}");
    let none = explained(json!({"method": "POST", "path": "/"}));
    assert_eq!(prepare(&none)["code"], "validation-failed", "{none}");
    let none = explained(json!({"method": "GET", "path": "/"}));
    assert_eq!(prepare(&none)["outcome"], "pass", "{none}");
    let sent = proxy.send(&proxy.request("POST", "/").json(r#"{"id":"1"}"#));
    let id = sent.field("requestrocket-request-id").expect("an id");
    gateway.record(id);
    let question = json!({"record": id});
    let told = gateway.api("POST", "/explain", Some(&question)).json();
    assert_eq!(prepare(&told)["outcome"], "unknown", "{told}");
    assert_eq!(upstream.seen().len(), 1, "explain sends nothing");
}
