//! Upstreams that misbehave: the caller gets a right answer or a clean refusal, never half of
//! something that looks whole, and never bytes meant for another.

use std::net::{Ipv6Addr, Shutdown};

use serde_json::json;

use crate::harness::gateway::{Gateway, TARGET_SECRET};
use crate::harness::http::{Connection, Message};
use crate::harness::upstream::{After, ClosedPort, Gate, Upstream, json_answer};
use crate::harness::wait_for;

/// What a caller gets from an upstream that answers these bytes and closes.
fn answered(gateway: &Gateway, bytes: impl Into<Vec<u8>>) -> Message {
    let bytes = bytes.into();
    let upstream = Upstream::start(move |_, connection| {
        connection.send(&bytes);
        After::Close
    });
    gateway.proxy(&upstream.url()).get("/")
}

#[test]
fn an_answer_that_is_not_http_is_a_502() {
    let gateway = Gateway::start();
    let long = format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\n\r\n",
        "a".repeat(2 * 1024 * 1024)
    );
    let rows: &[(&str, &str)] = &[
        ("another protocol", "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        ("a status that is none", "HTTP/1.1 20x OK\r\n\r\n"),
        (
            "two lengths",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        ),
        (
            "a length that is none",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        ),
        (
            "a folded field",
            "HTTP/1.1 200 OK\r\na: b\r\n c: d\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "a field without a name",
            "HTTP/1.1 200 OK\r\n: b\r\ncontent-length: 0\r\n\r\n",
        ),
        ("a head without an end", &long),
    ];
    for (what, bytes) in rows {
        let answer = answered(&gateway, *bytes);
        assert_eq!(answer.outcome(), (502, "upstream-invalid"), "{what}");
        assert_eq!(answer.json()["code"], "upstream-invalid", "{what}");
        assert!(!answer.text().contains("OpenSSH"), "{what}");
    }
}

/// The credential is bound to the address, as `hosts` of it names it.
#[test]
fn an_upstream_may_be_at_an_address_of_ipv6() {
    let gateway = Gateway::start();
    let upstream = Upstream::raw_at(Ipv6Addr::LOCALHOST, |connection, keep| {
        while let Some(request) = connection.read() {
            keep(&request);
            connection.send(json_answer("200 OK", "{}"));
        }
    });
    let url = upstream.url();
    assert!(url.starts_with("http://[::1]:"), "{url}");
    let target = json!({"allow_networks": ["::1/128"]});
    let answer = gateway.proxy_with(&url, target, json!({})).get("/a");
    assert_eq!(answer.outcome(), (200, "proxy-access-granted"));
    let seen = upstream.last();
    let host = format!("[::1]:{}", upstream.port());
    assert_eq!(seen.field("host"), Some(host.as_str()));
    let injected = format!("Bearer {TARGET_SECRET}");
    assert_eq!(seen.field("authorization"), Some(injected.as_str()));
    // It is judged like any other.
    let elsewhere = json!({"allow_networks": ["127.0.0.0/8"]});
    let refused = gateway.proxy_with(&url, elsewhere, json!({})).get("/a");
    assert_eq!(refused.outcome(), (502, "upstream-blocked"));
}

#[test]
fn answers_of_old_and_odd_kinds_pass() {
    let gateway = Gateway::start();
    let rows: &[(&str, &str, u16, &str)] = &[
        (
            "ends with the connection",
            "HTTP/1.1 200 OK\r\n\r\nto the end",
            200,
            "to the end",
        ),
        (
            "HTTP/1.0",
            "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
            200,
            "ok",
        ),
        (
            "without a reason",
            "HTTP/1.1 418\r\ncontent-length: 0\r\n\r\n",
            418,
            "",
        ),
        (
            "continue and early hints first",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
             HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok",
            201,
            "ok",
        ),
        (
            "chunks with an extension and a trailer",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n\
             3;a=b\r\nabc\r\n1\r\nd\r\n0\r\nx: y\r\n\r\n",
            200,
            "abcd",
        ),
        (
            "chunks and a length, of which the chunks count",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n\
             2\r\nok\r\n0\r\n\r\n",
            200,
            "ok",
        ),
        ("no content", "HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
    ];
    for (what, bytes, status, body) in rows {
        let answer = answered(&gateway, *bytes);
        assert_eq!(
            answer.outcome(),
            (*status, "proxy-access-granted"),
            "{what}"
        );
        assert_eq!(
            (answer.text().as_str(), answer.complete),
            (*body, true),
            "{what}"
        );
        assert_eq!(answer.field("link"), None, "{what}");
    }
}

#[test]
fn a_body_that_breaks_off_is_seen_to_break_off() {
    let gateway = Gateway::start();
    let rows = [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nten bytes!",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nten bytes!\r\n",
    ];
    for bytes in rows {
        let answer = answered(&gateway, bytes);
        assert_eq!(answer.status(), 200);
        assert!(
            !answer.complete,
            "{bytes:?} looked whole: {:?}",
            answer.text()
        );
        let id = answer.field("requestrocket-request-id").expect("an id");
        let record = gateway.record(id);
        assert_eq!(record["upstream_status"], 200, "{record}");
        assert_eq!(record["code"], "upstream-unreachable", "{record}");
    }
    // Broken before there was anything to pass on.
    let never = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nten";
    let answer = answered(&gateway, never);
    assert_eq!(answer.outcome(), (502, "upstream-unreachable"));
}

#[test]
fn a_reset_before_an_answer_is_unreachable() {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|_, connection| {
        let _ = connection.stream().shutdown(Shutdown::Both);
        After::Close
    });
    let proxy = gateway.proxy(&upstream.url());
    let post = proxy.request("POST", "/charges").json("{}");
    assert_eq!(proxy.send(&post).outcome(), (502, "upstream-unreachable"));
    assert_eq!(upstream.seen().len(), 1, "a POST is never sent twice");
}

#[test]
fn an_upstream_that_never_answers_is_given_up() {
    let gateway = Gateway::start();
    let upstream = Upstream::raw(|connection, keep| {
        if let Some(request) = connection.read() {
            keep(&request);
        }
        while connection.some().is_some() {}
    });
    let timeouts = json!({"timeouts": {"first_byte_ms": 200}});
    let proxy = gateway.proxy_with(&upstream.url(), timeouts, json!({}));
    let answer = proxy.get("/");
    assert_eq!(answer.outcome(), (504, "upstream-timeout"));
    upstream.wait_closed(1);
    let id = answer.field("requestrocket-request-id").expect("an id");
    assert_eq!(gateway.record(id)["code"], "upstream-timeout");
}

#[test]
fn a_drip_passes_and_a_stall_is_cut() {
    let gateway = Gateway::start();
    let gate = Gate::default();
    let shared = gate.clone();
    let upstream = Upstream::start(move |request, connection| {
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n");
        // Its first byte begins no form of the secret: one that did would wait for the next.
        for byte in b"[rip" {
            connection.send([*byte]);
            if request.target() == "/stall" {
                shared.pass();
            }
        }
        After::Close
    });
    let timeouts = json!({"timeouts": {"idle_ms": 300}});
    let proxy = gateway.proxy_with(&upstream.url(), timeouts, json!({}));
    assert_eq!(proxy.get("/drip").text(), "[rip");
    let stalled = proxy.get("/stall");
    assert_eq!((stalled.text().as_str(), stalled.complete), ("[", false));
    gate.open();
}

/// Metrics tell how many connections to targets there are, and what they do.
#[test]
fn connections_to_targets_are_counted() {
    let gateway = Gateway::configured("[gateway]\nworkers = 1\n");
    let (answers, closes) = (Gate::default(), Gate::default());
    let (answer, close) = (answers.clone(), closes.clone());
    let upstream = Upstream::start(move |_, connection| {
        answer.pass();
        connection.send(json_answer("200 OK", "{}"));
        close.pass();
        After::Close
    });
    let proxy = gateway.proxy(&upstream.url());
    let wait_counts = |active: f64, idle: f64| {
        let series = |state: &str| {
            gateway.metric(&format!(
                "requestrocket_upstream_connections{{state=\"{state}\"}}"
            ))
        };
        wait_for(
            &format!("{active} active and {idle} idle connections"),
            || ((series("active"), series("idle")) == (active, idle)).then_some(()),
        );
    };
    let mut caller = Connection::open(&gateway.url);
    caller.send(proxy.request("GET", "/").bytes(&gateway.url));
    wait_counts(1.0, 0.0);
    answers.open();
    assert_eq!(caller.read().expect("an answer").status(), 200);
    wait_counts(0.0, 1.0);
    closes.open();
    wait_counts(0.0, 0.0);
    let opened = gateway.metric("requestrocket_upstream_connections_opened_total");
    assert_eq!(opened, 1.0);
}

#[test]
fn an_answer_may_come_before_the_upload_ends() {
    let gateway = Gateway::start();
    let upstream = Upstream::raw(|connection, keep| {
        let head = connection.head().expect("a head");
        keep(&head);
        connection.send(json_answer(
            "413 Content Too Large",
            r#"{"error":"too large"}"#,
        ));
        while connection.some().is_some() {}
    });
    let proxy = gateway.proxy(&upstream.url());
    let mut caller = Connection::open(&gateway.url);
    let bytes = proxy
        .request("POST", "/")
        .body([b'x'; 200_000])
        .bytes(&gateway.url);
    caller.send(&bytes[..bytes.len() - 100_000]);
    let answer = caller.read().expect("an answer before the upload ends");
    assert_eq!(answer.outcome(), (413, "proxy-access-granted"));
    assert_eq!(answer.json()["error"], "too large");
}

#[test]
fn bytes_after_an_answer_reach_no_other_caller() {
    let gateway = Gateway::configured("[gateway]\nworkers = 1");
    let upstream = Upstream::start(|request, connection| {
        let own = json_answer("200 OK", &format!("{:?}", request.target()));
        let foreign = json_answer("200 OK", r#""of another""#);
        connection.send(format!("{own}{foreign}"));
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    for n in 0..10 {
        let path = format!("/{n}");
        assert_eq!(proxy.get(&path).text(), format!("{path:?}"));
    }
}

#[test]
fn a_pooled_connection_that_went_stale_is_replaced() {
    let gateway = Gateway::configured("[gateway]\nworkers = 1");
    // Each connection serves one request and is closed when the next one comes.
    let upstream = Upstream::raw(|connection, keep| {
        let Some(request) = connection.read() else {
            return;
        };
        keep(&request);
        connection.send(json_answer("200 OK", "{}"));
        connection.some();
    });
    let proxy = gateway.proxy(&upstream.url());
    for n in 1..=5 {
        assert_eq!(
            proxy.get("/").outcome(),
            (200, "proxy-access-granted"),
            "call {n}"
        );
    }
    assert_eq!(upstream.seen().len(), 5);
    assert!(gateway.metric("requestrocket_upstream_replays_total") >= 1.0);
}

#[test]
fn nothing_listens_there() {
    let gateway = Gateway::start();
    let nothing = ClosedPort::new();
    let answer = gateway.proxy(nothing.url()).get("/");
    assert_eq!(answer.outcome(), (502, "upstream-unreachable"));
}

#[test]
fn a_name_of_a_private_address_is_blocked_when_it_is_dialled() {
    let folder = tempfile::tempdir().expect("a folder");
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "10.1.2.3 inside.example.com\n").expect("a file");
    let gateway = Gateway::configured(&format!("[dial_guard]\nhosts_file = {hosts:?}"));
    for target in [
        json!({"allow_networks": []}),
        json!({"allow_networks": ["10.0.0.0/8"]}),
    ] {
        let proxy = gateway.proxy_with("http://inside.example.com", target, json!({}));
        let answer = proxy.get("/");
        assert_eq!(answer.outcome(), (502, "upstream-blocked"));
        let told = answer.text();
        assert!(
            !told.contains("10.1.2.3"),
            "a caller learns no address: {told}"
        );
    }
}

#[test]
fn what_is_needed_whole_is_bounded() {
    let gateway = Gateway::start();
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(100_000));
    let upstream = Upstream::json(&body);
    let small = json!({"body_buffer_bytes": 65_536});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), small);
    assert_eq!(proxy.get("/").text(), body, "nothing has to be held");
    let filter = json!({"op": "destroy", "paths": ["$.b"]});
    gateway.create(&format!("/proxies/{}/filters", proxy.id), filter);
    let refused = proxy.get("/");
    assert_eq!(refused.outcome(), (502, "response-too-large"));
    assert!(!refused.text().contains("xxx"));

    let filter = json!({"op": "destroy", "paths": ["$.b"], "direction": "request"});
    gateway.create(&format!("/proxies/{}/filters", proxy.id), filter);
    let sent = upstream.seen().len();
    let post = proxy.request("POST", "/").json(&body);
    assert_eq!(proxy.send(&post).outcome(), (413, "request-too-large"));
    assert_eq!(upstream.seen().len(), sent, "nothing was sent");
}

#[test]
fn a_target_that_fails_is_left_alone_and_tried_again() {
    let gateway = Gateway::start();
    let works = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answering = works.clone();
    let upstream = Upstream::start(move |_, connection| {
        let status = match answering.load(std::sync::atomic::Ordering::Relaxed) {
            true => "200 OK",
            false => "503 Service Unavailable",
        };
        connection.send(json_answer(status, "{}"));
        After::Keep
    });
    let breaker =
        json!({"consecutive_failures": 3, "open_ms": 3_600_000, "open_max_ms": 3_600_000});
    let proxy = gateway.proxy_with(&upstream.url(), json!({"breaker": breaker}), json!({}));
    for _ in 0..3 {
        let answer = proxy.get("/");
        assert_eq!(answer.outcome(), (503, "proxy-access-granted"));
    }
    let answer = proxy.get("/");
    assert_eq!(answer.outcome(), (503, "circuit-open"));
    assert_eq!(answer.field("retry-after"), Some("3600"));
    assert_eq!(upstream.seen().len(), 3, "it is left alone");
    let target = gateway.get(&format!("/proxies/{}", proxy.id))["target_id"].clone();
    let target = target.as_str().expect("an id");
    let url = upstream.url();
    let endpoint = url.trim_start_matches("http://");
    let of = format!("target=\"{target}\",endpoint=\"{endpoint}\"");
    let left_alone = format!("requestrocket_endpoint_left_alone{{{of}}}");
    assert_eq!(gateway.metric(&left_alone), 1.0);
    let answered = format!("requestrocket_endpoint_requests_total{{{of},outcome=\"answered\"}}");
    assert_eq!(gateway.metric(&answered), 3.0);

    // New settings begin anew, so that who mends a target need not wait.
    works.store(true, std::sync::atomic::Ordering::Relaxed);
    let path = format!("/targets/{target}");
    let short = json!({"breaker": {"consecutive_failures": 1, "open_ms": 100}});
    let changed = gateway.api("PATCH", &path, Some(&short));
    assert_eq!(changed.status(), 200, "{}", changed.text());
    assert_eq!(proxy.get("/").status(), 200);
    works.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(proxy.get("/").outcome().1, "proxy-access-granted");
    works.store(true, std::sync::atomic::Ordering::Relaxed);
    let tried = crate::harness::wait_for("it is tried again", || {
        Some(proxy.get("/").outcome().1.to_owned()).filter(|code| code != "circuit-open")
    });
    assert_eq!(tried, "proxy-access-granted");
    assert_eq!(proxy.get("/").status(), 200);
    assert_eq!(gateway.metric(&left_alone), 0.0);
    let bad = json!({"breaker": {"failure_percent": 0, "open_ms": 5}});
    let refused = gateway.api("PATCH", &path, Some(&bad));
    assert_eq!(refused.status(), 422, "{}", refused.text());
    assert!(refused.text().contains("/breaker/failure_percent"));
}

#[test]
fn a_target_learns_of_the_trace_what_it_may() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let sent = [
        ("traceparent", parent),
        ("tracestate", "a=b"),
        ("baggage", "customer=7"),
    ];
    for (setting, expected) in [
        (json!({}), &["traceparent"][..]),
        (json!({"propagate_trace": "traceparent"}), &["traceparent"]),
        (json!({"propagate_trace": "off"}), &[]),
        (
            json!({"propagate_trace": "full"}),
            &["traceparent", "tracestate", "baggage"],
        ),
        (
            json!({"propagate_trace": "off", "pass_headers": ["baggage"]}),
            &["baggage"],
        ),
    ] {
        let proxy = gateway.proxy_with(&upstream.url(), setting.clone(), json!({}));
        let mut request = proxy.request("GET", "/");
        for (name, value) in sent {
            request = request.field(name, value);
        }
        assert_eq!(proxy.send(&request).status(), 200);
        let seen = upstream.last();
        let found = sent.iter().filter(|(name, _)| seen.field(name).is_some());
        let found: Vec<&str> = found.map(|(name, _)| *name).collect();
        assert_eq!(found, expected, "{setting}");
    }
}
