//! Callers that go away.

use std::net::Shutdown;

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Connection;
use crate::harness::upstream::{After, Gate, Upstream, json_answer};
use crate::harness::wait_for;

/// The one record of a proxy, when it is there.
fn only_record(gateway: &Gateway, proxy: &Proxy) -> Value {
    wait_for("a record", || {
        let found = gateway.get(&format!("/records?proxy={}", proxy.id));
        let records = found["items"].as_array().expect("a list");
        assert!(records.len() <= 1, "{records:?}");
        records.first().cloned()
    })
}

#[test]
fn the_upstream_call_of_a_caller_that_goes_away_is_cancelled() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let upstream = Upstream::raw(|connection, keep| {
        if let Some(request) = connection.read() {
            keep(&request);
        }
        // Never answers; sees the connection's end.
        while connection.some().is_some() {}
    });
    let proxy = gateway.proxy(&upstream.url());
    let mut caller = Connection::open(&gateway.url);
    caller.send(proxy.request("GET", "/slow").bytes(&gateway.url));
    upstream.wait_seen(1);
    drop(caller);
    upstream.wait_closed(1);
    gate.open();
    let record = only_record(&gateway, &proxy);
    assert_eq!(record["code"], "client-aborted");
    assert_eq!(record["client_aborted"], true);
    assert_eq!(record["path"], "/slow");
    assert_eq!(record["upstream_status"], Value::Null);
    // The target saw it: the record says that it was sent.
    assert_eq!(record["attempts"], 1);
    assert_eq!(
        record["sends"].as_array().expect("a list").len(),
        1,
        "{record}"
    );
    wait_for("room", || {
        (gateway.metric("requestrocket_requests_in_flight") == 0.0).then_some(())
    });
}

#[test]
fn a_body_that_the_listener_does_not_read_on_is_refused_for_what_is_wrong_with_it() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let filter = json!({"op": "destroy", "paths": ["$.b"], "direction": "request"});
    gateway.create(&format!("/proxies/{}/filters", proxy.id), filter);
    let long = "x".repeat(17 * 1024);
    for (body, status, code, says) in [
        (
            format!("2;{long}\r\n{{}}\r\n0\r\n\r\n"),
            413,
            "request-too-large",
            "extensions",
        ),
        (
            format!("2\r\n{{}}\r\n0\r\nx: {long}\r\n\r\n"),
            431,
            "request-too-large",
            "trailers",
        ),
        ("zz\r\n".to_owned(), 400, "malformed-request", "chunk"),
    ] {
        let mut caller = Connection::open(&gateway.url);
        let head = proxy
            .request("POST", "/")
            .field("transfer-encoding", "chunked");
        caller.send([head.bytes(&gateway.url), body.into_bytes()].concat());
        let answer = caller.read().expect("an answer");
        assert_eq!(answer.outcome(), (status, code), "{}", answer.text());
        assert!(answer.text().contains(says), "{}", answer.text());
    }
    assert!(upstream.seen().is_empty());
}

#[test]
fn a_proxy_may_let_the_target_finish() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let shared = gate.clone();
    let upstream = Upstream::start(move |_, connection| {
        shared.pass();
        connection.send(json_answer("201 Created", "{}"));
        After::Keep
    });
    let proxy = gateway.proxy_with(
        &upstream.url(),
        json!({}),
        json!({"on_client_abort": "finish"}),
    );
    let mut caller = Connection::open(&gateway.url);
    let post = proxy.request("POST", "/charges").json(r#"{"amount":1}"#);
    caller.send(post.bytes(&gateway.url));
    upstream.wait_seen(1);
    drop(caller);
    // The gateway has seen the end when another connection's request went all the way through.
    gateway.control_call("GET", "/healthz", None, None);
    gate.open();
    let record = only_record(&gateway, &proxy);
    assert_eq!(record["upstream_status"], 201);
    assert_eq!(upstream.last().json(), json!({"amount": 1}));
}

#[test]
fn a_caller_that_stops_amid_its_body_ends_the_upstream_call() {
    let gateway = Gateway::start();
    let upstream = Upstream::raw(|connection, keep| {
        let head = connection.head().expect("a head");
        keep(&head);
        while connection.some().is_some() {}
    });
    let proxy = gateway.proxy(&upstream.url());
    let mut caller = Connection::open(&gateway.url);
    let whole = proxy.request("POST", "/").body([b'x'; 100_000]);
    let bytes = whole.bytes(&gateway.url);
    caller.send(&bytes[..bytes.len() - 1]);
    upstream.wait_seen(1);
    caller.stream().shutdown(Shutdown::Both).expect("a socket");
    upstream.wait_closed(1);
    let record = only_record(&gateway, &proxy);
    assert_eq!(record["client_aborted"], true);
}

/// A payment is carried out to its end although its caller went away, filters or not.
#[test]
fn a_filtered_answer_is_finished_too() {
    for kind in ["application/json", "text/event-stream"] {
        let gateway = Gateway::start();
        let gate = Gate::default();
        let shared = gate.clone();
        let finished = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let done = finished.clone();
        let upstream = Upstream::start(move |_, connection| {
            let head = format!("HTTP/1.1 201 Created\r\ncontent-type: {kind}\r\n\r\n");
            connection.send(head);
            connection.send("data: {\"a\": 1}\n\n");
            shared.pass();
            for _ in 0..50 {
                connection.send(format!("data: {{\"a\": \"{}\"}}\n\n", "x".repeat(20_000)));
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            After::Close
        });
        let finish = json!({"on_client_abort": "finish"});
        let proxy = gateway.proxy_with(&upstream.url(), json!({}), finish);
        let filter = json!({"op": "destroy", "paths": ["$.b"]});
        gateway.create(&format!("/proxies/{}/filters", proxy.id), filter);
        let mut caller = Connection::open(&gateway.url);
        caller.send(proxy.request("POST", "/pay").bytes(&gateway.url));
        upstream.wait_seen(1);
        if kind == "text/event-stream" {
            caller.head().expect("a head");
        }
        drop(caller);
        gate.open();
        wait_for(&format!("the end of {kind}"), || {
            finished
                .load(std::sync::atomic::Ordering::SeqCst)
                .then_some(())
        });
        let record = only_record(&gateway, &proxy);
        assert_eq!(record["upstream_status"], 201, "{record}");
        let bytes = record["upstream_response_bytes"]
            .as_u64()
            .expect("a number");
        assert!(bytes > 1_000_000, "{kind}: {record}");
    }
}
