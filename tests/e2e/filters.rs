//! Filters: what is not to be seen is never seen, whatever form the answer takes.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Connection;
use crate::harness::upstream::{After, Gate, Upstream, json_answer};

fn filter(gateway: &Gateway, object: &str, filter: Value) {
    gateway.create(&format!("{object}/filters"), filter);
}

fn filtered(gateway: &Gateway, upstream: &Upstream, body: Value) -> Proxy {
    let proxy = gateway.proxy(&upstream.url());
    filter(gateway, &format!("/proxies/{}", proxy.id), body);
    proxy
}

#[test]
fn four_scopes_filter_one_after_another() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(r#"{"a":1,"b":2,"c":3,"d":4,"e":5}"#);
    let proxy = gateway.proxy(&upstream.url());
    let objects = [
        format!("/targets/{}", proxy.target),
        format!("/credentials/{}", proxy.target_credential),
        format!("/proxies/{}", proxy.id),
        format!("/credentials/{}", proxy.proxy_credential),
    ];
    for (object, path) in objects.iter().zip(["$.a", "$.b", "$.c", "$.d"]) {
        filter(&gateway, object, json!({"op": "destroy", "paths": [path]}));
    }
    let answer = proxy.get("/");
    assert_eq!(answer.json(), json!({"e": 5}));
    let id = answer.field("requestrocket-request-id").expect("an id");
    let record = gateway.record(id);
    assert_eq!(
        record["filter_ids"].as_array().expect("ids").len(),
        4,
        "{record}"
    );
    let raised = answer.field("content-length").expect("a length");
    assert_eq!(raised, answer.body.len().to_string());
}

#[test]
fn a_compressed_answer_is_filtered_too() {
    let gateway = Gateway::start();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder
        .write_all(br#"{"keep":1,"secret":"s3cret"}"#)
        .expect("a buffer");
    let body = encoder.finish().expect("a buffer");
    let upstream = Upstream::start(move |_, connection| {
        connection.send(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n\
             etag: \"v1\"\r\ncontent-length: {}\r\n\r\n",
            body.len()
        ));
        connection.send(&body);
        After::Keep
    });
    let proxy = filtered(
        &gateway,
        &upstream,
        json!({"op": "destroy", "paths": ["$.secret"]}),
    );
    let request = proxy.request("GET", "/").field("accept-encoding", "gzip");
    let answer = proxy.send(&request);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.field("content-encoding"), None);
    assert_eq!(answer.json(), json!({"keep": 1}));
    assert_ne!(
        answer.field("etag"),
        Some("\"v1\""),
        "a strong tag of other bytes"
    );
}

#[test]
fn what_cannot_be_filtered_is_withheld() {
    let gateway = Gateway::start();
    let body = r#"{"keep":1,"secret":"s3cret"}"#;
    let plain = |kind: &str, body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let rows = [
        plain("application/json", &body[..body.len() - 1]),
        plain("application/json", &format!("{body}{body}")),
        plain("text/html", body),
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ),
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: aes\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ),
        format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-type: application/json\r\n\
             content-range: bytes 0-27/100\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    ];
    for answer in rows {
        let upstream = Upstream::fixed(answer.clone());
        let op = json!({"op": "destroy", "paths": ["$.secret"]});
        let got = filtered(&gateway, &upstream, op).get("/");
        assert_eq!(got.outcome(), (422, "filter-not-json"), "{answer}");
        assert!(!got.text().contains("s3cret"), "{answer}");
    }
}

#[test]
fn ranges_are_not_asked_for_where_a_filter_needs_the_whole() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(r#"{"keep":1}"#);
    let proxy = filtered(
        &gateway,
        &upstream,
        json!({"op": "destroy", "paths": ["$.x"]}),
    );
    let request = proxy
        .request("GET", "/")
        .field("range", "bytes=0-4")
        .field("if-none-match", "\"v1\"");
    assert_eq!(proxy.send(&request).json(), json!({"keep": 1}));
    assert_eq!(upstream.last().field("range"), None);
    assert_eq!(upstream.last().field("if-none-match"), None);
    // Without its condition this would overwrite what another has written.
    let request = proxy.request("PUT", "/").field("if-match", "\"v1\"");
    assert_eq!(proxy.send(&request.body("{}")).status(), 200);
    assert_eq!(upstream.last().field("if-match"), Some("\"v1\""));
}

#[test]
fn error_bodies_under_a_retain_are_blank_unless_named() {
    let gateway = Gateway::start();
    let error = r#"{"error":{"message":"card declined","account":"s3cret"}}"#;
    let upstream = Upstream::fixed(json_answer("402 Payment Required", error));
    let retain = json!({"op": "retain", "paths": ["$.id"]});
    let blank = filtered(&gateway, &upstream, retain).get("/");
    assert_eq!(blank.status(), 402);
    assert!(!blank.text().contains("s3cret") && !blank.text().contains("declined"));
    let retain = json!({
        "op": "retain", "paths": ["$.id"], "error_retain": ["$.error.message"],
    });
    let named = filtered(&gateway, &upstream, retain).get("/");
    assert_eq!(named.status(), 402);
    assert_eq!(named.json(), json!({"error": {"message": "card declined"}}));
}

#[test]
fn a_request_is_filtered_before_the_target_sees_it() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let op = json!({"op": "destroy", "paths": ["$.ssn"], "direction": "request"});
    let proxy = filtered(&gateway, &upstream, op);
    let post = proxy.request("POST", "/").json(r#"{"ssn":"1","n":1.50}"#);
    assert_eq!(proxy.send(&post).status(), 200);
    let sent = upstream.last();
    assert_eq!(sent.text(), r#"{"n":1.50}"#);
    assert_eq!(sent.field("content-length"), Some("10"));
    let broken = proxy.request("POST", "/").json(r#"{"ssn":"1""#);
    assert_eq!(proxy.send(&broken).status(), 422);
    assert_eq!(
        upstream.seen().len(),
        1,
        "what cannot be filtered is not sent"
    );
}

#[test]
fn events_pass_one_by_one_where_nothing_filters() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let shared = gate.clone();
    let upstream = Upstream::start(move |_, connection| {
        connection.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n");
        shared.pass();
        connection.send("data: 2\n\n");
        After::Close
    });
    let proxy = gateway.proxy(&upstream.url());
    let mut caller = Connection::open(&gateway.url);
    caller.send(proxy.request("GET", "/").bytes(&gateway.url));
    caller.head().expect("a head");
    let mut read = Vec::new();
    while !read.windows(9).any(|bytes| bytes == b"data: 1\n\n") {
        read.extend(caller.some().expect("the first event comes at once"));
    }
    gate.open();
    while let Some(more) = caller.some() {
        read.extend(more);
        if read.ends_with(b"0\r\n\r\n") {
            break;
        }
    }
    assert!(String::from_utf8_lossy(&read).contains("data: 2\n\n"));
}

#[test]
fn events_are_filtered_one_by_one() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let shared = gate.clone();
    let upstream = Upstream::start(move |request, connection| {
        connection.send(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n\
             data: {\"n\":1,\"secret\":\"s3cret\"}\n\n",
        );
        shared.pass();
        connection.send("data: {\"n\":2,\"secret\":\"s3cret\"}\n\n");
        if request.target() == "/bad" {
            connection.send("data: s3cret\n\ndata: {\"n\":3}\n\n");
        }
        connection.send("data: [DONE]\n\n");
        After::Close
    });
    let proxy = filtered(
        &gateway,
        &upstream,
        json!({"op": "destroy", "paths": ["$.secret"]}),
    );
    let mut caller = Connection::open(&gateway.url);
    caller.send(proxy.request("GET", "/good").bytes(&gateway.url));
    caller.head().expect("a head");
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("data: {\"n\":1}\n\n") {
        read.extend(caller.some().expect("the first event comes at once"));
    }
    gate.open();
    let good = proxy.get("/good");
    assert_eq!(
        good.text(),
        "data: {\"n\":1}\n\ndata: {\"n\":2}\n\ndata: [DONE]\n\n"
    );
    assert!(good.complete);
    let record = gateway.record(good.field("requestrocket-request-id").expect("an id"));
    assert_eq!(
        record["filter_ids"].as_array().expect("ids").len(),
        1,
        "{record}"
    );
    assert_eq!(record["code"], "proxy-access-granted");
    assert!(record["upstream_response_bytes"].as_u64() > record["response_bytes"].as_u64());

    let bad = proxy.get("/bad");
    assert!(!bad.text().contains("s3cret"), "{}", bad.text());
    assert!(
        !bad.text().contains("\"n\":3"),
        "nothing passes behind it: {}",
        bad.text()
    );
    assert!(bad.text().ends_with("\n\n") && bad.text().contains("event: error"));
    let record = gateway.record(bad.field("requestrocket-request-id").expect("an id"));
    assert_eq!(record["code"], "filter-not-json", "{record}");
}

#[test]
fn lines_of_json_are_filtered_one_by_one() {
    let gateway = Gateway::start();
    let lines = "{\"n\":1,\"secret\":1}\n{\"n\":2,\"secret\":2}";
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/jsonl\r\ncontent-length: {}\r\n\r\n{lines}",
        lines.len()
    ));
    let op = json!({"op": "retain", "paths": ["$.n"]});
    let answer = filtered(&gateway, &upstream, op).get("/");
    assert_eq!(answer.text(), "{\"n\":1}\n{\"n\":2}");
    assert!(answer.complete);
}

#[test]
fn an_error_body_that_passes_keeps_what_describes_its_bytes() {
    let gateway = Gateway::start();
    let mut coded = GzEncoder::new(Vec::new(), Compression::default());
    coded.write_all(b"{\"error\": \"gone\"}").expect("memory");
    let coded = coded.finish().expect("memory");
    let head = format!(
        "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n\
         content-length: {}\r\n\r\n",
        coded.len()
    );
    let upstream = Upstream::fixed([head.into_bytes(), coded.clone()].concat());
    let proxy = filtered(
        &gateway,
        &upstream,
        json!({"op": "destroy", "paths": ["$.x"]}),
    );
    let path = format!("/proxies/{}", proxy.id);
    gateway.patch(&path, json!({"error_bodies": "pass"}));
    let answer = proxy.get("/");
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.field("content-encoding"), Some("gzip"));
    assert_eq!(answer.body, coded);
    // No coding is offered to the target that the caller has not offered.
    assert_eq!(upstream.last().field("accept-encoding"), Some("identity"));
}

#[test]
fn an_answer_without_a_body_is_no_broken_json() {
    let gateway = Gateway::start();
    for (status, fields) in [
        ("200 OK", ""),
        ("201 Created", "content-type: application/json\r\n"),
        ("202 Accepted", "content-type: text/plain\r\n"),
    ] {
        let answer = format!("HTTP/1.1 {status}\r\n{fields}content-length: 0\r\n\r\n");
        let upstream = Upstream::fixed(answer);
        let proxy = filtered(
            &gateway,
            &upstream,
            json!({"op": "destroy", "paths": ["$.x"]}),
        );
        let answer = proxy.send(&proxy.request("DELETE", "/"));
        assert!(
            status.starts_with(&answer.status().to_string()),
            "{status}: {}",
            answer.text()
        );
        assert!(answer.body.is_empty());
    }
}

#[test]
fn an_answer_that_leads_elsewhere_is_refused_where_that_is_wanted() {
    let gateway = Gateway::start();
    let upstream = Upstream::fixed(
        "HTTP/1.1 302 Found\r\nlocation: https://elsewhere.example/x\r\ncontent-length: 0\r\n\r\n",
    );
    let proxy = gateway.proxy(&upstream.url());
    let path = format!("/proxies/{}", proxy.id);
    for rewrite in ["on", "off"] {
        gateway.patch(
            &path,
            json!({"rewrite_urls": rewrite, "foreign_urls": "pass"}),
        );
        let answer = proxy.get("/");
        assert_eq!(answer.status(), 302, "{rewrite}");
        let id = answer.field("requestrocket-request-id").expect("an id");
        assert_eq!(
            gateway.record(id)["left_gateway"],
            "elsewhere.example",
            "{rewrite}"
        );
        gateway.patch(&path, json!({"foreign_urls": "refuse"}));
        assert_eq!(
            proxy.get("/").outcome(),
            (502, "redirect-blocked"),
            "{rewrite}"
        );
    }
}
