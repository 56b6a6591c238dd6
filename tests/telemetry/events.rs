//! What happens inside a stage is an event of its span, at a time within it; the record, the drawn
//! trace and the file say the same, and a search finds it.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::Event;
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy, TARGET_SECRET};
use crate::harness::http::{Message, Request};
use crate::harness::otlp::{Received, grpc};
use crate::harness::upstream::{After, Upstream, json_answer};
use crate::harness::wait_for;
use crate::{id, telling, text, trace};

/// What an event of a span says: its name and its attributes.
fn said(event: &Event) -> (String, BTreeMap<String, String>) {
    let attributes = event.attributes.iter().map(|pair| {
        let value = pair.value.as_ref().and_then(|value| value.value.as_ref());
        (pair.key.clone(), value.map(text).unwrap_or_default())
    });
    (event.name.clone(), attributes.collect())
}

/// The events of each span of a request, all of them within their spans.
fn events(received: &Received, request: &str) -> Vec<(String, String, BTreeMap<String, String>)> {
    let trace = trace(received, request);
    let spans: Vec<&Span> = trace.stages.values().collect();
    assert!(trace.server.events.is_empty() && trace.server.dropped_events_count == 0);
    assert!(trace.attempts.iter().all(|span| span.events.is_empty()));
    let mut all = Vec::new();
    for span in spans {
        for event in &span.events {
            assert!(
                event.time_unix_nano >= span.start_time_unix_nano,
                "{span:?}"
            );
            assert!(event.time_unix_nano <= span.end_time_unix_nano, "{span:?}");
            let (name, attributes) = said(event);
            all.push((span.name.clone(), name, attributes));
        }
    }
    all
}

/// Each event of a request: the stage, the kind, and its attributes.
fn check(received: &Received, gateway: &Gateway, answer: &Message, expected: &[Expected<'_>]) {
    let request = id(answer);
    let record = gateway.record(&request);
    let found = events(received, &request);
    let wanted: Vec<_> = expected
        .iter()
        .map(|(stage, kind, attributes)| {
            let name = match *kind {
                "hold-began" => "hold.began",
                "hold-ended" => "hold.ended",
                "breaker-opened" => "breaker.opened",
                "secret-reflected" => "secret.reflected",
                "filter-changed" => "filter.changed",
                kind => kind,
            };
            let attributes = attributes.iter();
            let attributes =
                attributes.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let name = format!("requestrocket.{name}");
            ((*stage).to_owned(), name, attributes.collect())
        })
        .collect();
    assert_eq!(found, wanted, "{record}");
    let kinds = |events: &Value, stage: Option<&str>| -> Vec<(String, String)> {
        let events = events.as_array().into_iter().flatten();
        let of = |event: &Value| event["stage"].as_str().or(stage).map(str::to_owned);
        let named = |event: &Value| event["kind"].as_str().map(str::to_owned);
        events
            .filter_map(|event| Some((of(event)?, named(event)?)))
            .collect()
    };
    let mut told: Vec<_> = expected
        .iter()
        .map(|(stage, kind, _)| ((*stage).to_owned(), (*kind).to_owned()))
        .collect();
    let drawn = gateway.get(&format!("/records/{request}/trace"));
    let spans = drawn["spans"].as_array().expect("spans").iter();
    let in_trace: Vec<_> = spans
        .flat_map(|span| kinds(&span["events"], span["name"].as_str()))
        .collect();
    let mut in_record = kinds(&record["events"], None);
    for list in [&mut in_record, &mut told] {
        list.sort();
    }
    assert_eq!(in_record, told, "{record}");
    let mut in_trace = in_trace;
    in_trace.sort();
    assert_eq!(in_trace, told, "{drawn}");
    for (_, kind, _) in expected {
        let found = gateway.get(&format!("/records?event={kind}"));
        let items = found["items"].as_array().expect("items");
        assert!(
            items
                .iter()
                .any(|item| item["request_id"] == request.as_str()),
            "{kind}: {found}"
        );
    }
    let shown = gateway.command(&["trace", &request]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let lines = shown.lines().filter(|line| line.contains('·'));
    assert_eq!(lines.count(), expected.len(), "{shown}");
}

/// Stage, kind, attributes.
type Expected<'e> = (&'e str, &'e str, &'e [(&'e str, &'e str)]);

/// A target that fails where it is told to, and else quotes what it was sent, whole or in pieces.
fn target() -> Upstream {
    Upstream::start(|request, connection| {
        let quoted = request.field("authorization").unwrap_or_default();
        match request.target() {
            "/fails" => connection.send(json_answer("503 No", "{}")),
            "/head" => connection.send(format!(
                "HTTP/1.1 200 OK\r\nx-quoted: {quoted}\r\ncontent-length: 0\r\n\r\n"
            )),
            "/whole" => {
                let body = json!({"one": quoted, "two": quoted}).to_string();
                connection.send(json_answer("200 OK", &body));
            }
            "/stream" => {
                connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
                connection.send(format!("{:x}\r\n{quoted}\r\n", quoted.len()));
                connection.send("0\r\n\r\n");
            }
            _ => connection.send(json_answer("200 OK", r#"{"a": 1, "b": 2}"#)),
        }
        After::Keep
    })
}

/// The answer to a request that a meter has made wait.
fn held(gateway: &Gateway, proxy: &Proxy) -> Message {
    wait_for("a held request", || {
        let answer = proxy.get("/held");
        assert_eq!(answer.status(), 200);
        let record = gateway.record(&id(&answer));
        let happened = record["events"].as_array().expect("events");
        // More where what it was given ended before it was sent.
        (happened.len() == 2).then_some(answer)
    })
}

#[test]
fn what_happens_inside_a_stage_is_an_event_of_its_span() {
    let (endpoint, received) = grpc();
    let gateway = telling(&endpoint, "", "");
    let upstream = target();
    let url = upstream.url();
    let address = url.trim_start_matches("http://");

    let proxy = gateway.proxy(&url);
    let secret = (
        "requestrocket.target_credential.id",
        &*proxy.target_credential,
    );
    check(&received, &gateway, &proxy.get("/plain"), &[]);
    // A body is searched while it streams, or at once where it is there whole.
    for (path, stages, times) in [
        ("/head", &["forward"][..], "1"),
        ("/whole", &["filter", "respond"], "2"),
        ("/stream", &["filter", "respond"], "1"),
    ] {
        let answer = proxy.get(path);
        assert!(!format!("{answer:?}").contains(TARGET_SECRET), "{path}");
        let record = gateway.record(&id(&answer));
        let found = record["events"][0]["stage"].as_str();
        let stage = stages.iter().find(|stage| found == Some(**stage));
        let stage = stage.unwrap_or_else(|| panic!("{path}: {record}"));
        let attributes = [("requestrocket.secret.overwritten", times), secret];
        let expected = (*stage, "secret-reflected", &attributes[..]);
        check(&received, &gateway, &answer, &[expected]);
    }

    let filtered = gateway.proxy(&url);
    let filter = json!({"op": "destroy", "paths": ["$.a"]});
    let filter = gateway.create(&format!("/proxies/{}/filters", filtered.id), filter);
    let answer = wait_for("the filter", || {
        let answer = filtered.get("/plain");
        (!answer.text().contains('a')).then_some(answer)
    });
    let filter = filter["id"].as_str().expect("an id");
    let attributes = [("requestrocket.filter.id", filter)];
    let expected = ("filter", "filter-changed", &attributes[..]);
    check(&received, &gateway, &answer, &[expected]);

    let breaker = json!({"breaker": {"consecutive_failures": 1}});
    let broken = gateway.proxy_with(&url, breaker, json!({}));
    let answer = broken.get("/fails");
    assert_eq!(answer.status(), 503);
    let attributes = [("requestrocket.endpoint", address)];
    let expected = ("forward", "breaker-opened", &attributes[..]);
    check(&received, &gateway, &answer, &[expected]);
    // It was open before: nothing happens to this one but its end.
    check(&received, &gateway, &broken.get("/plain"), &[]);

    let metered = gateway.proxy(&url);
    let hold = json!({"hold": {"max_wait_ms": 20_000, "max_waiting": 20}});
    let limits = json!([{"limit": 1, "window": "second"}]);
    let place = format!("/proxies/{}/meters", metered.id);
    let meter = gateway.create(&place, json!({"limits": limits, "at_limit": hold}));
    let answer = held(&gateway, &metered);
    let meter = meter["id"].as_str().expect("an id");
    let attributes = [("requestrocket.meter.id", meter)];
    let expected = ["hold-began", "hold-ended"].map(|kind| ("limit", kind, &attributes[..]));
    check(&received, &gateway, &answer, &expected);

    // The first call of a limit of calls in flight waits until its node has places.
    let crowded = gateway.proxy(&url);
    let limits = json!([{"limit": 2, "algorithm": "concurrency"}]);
    let place = format!("/proxies/{}/meters", crowded.id);
    let meter = gateway.create(&place, json!({"limits": limits}));
    let answer = held(&gateway, &crowded);
    let meter = meter["id"].as_str().expect("an id");
    let attributes = [("requestrocket.meter.id", meter)];
    let expected = ["hold-began", "hold-ended"].map(|kind| ("limit", kind, &attributes[..]));
    check(&received, &gateway, &answer, &expected);
}

#[test]
fn a_retry_is_an_event_with_its_endpoint() {
    let (endpoint, received) = grpc();
    let gateway = telling(&endpoint, "", "");
    let lost = Upstream::start(|_, _| After::Close);
    let upstream = target();
    let urls = [lost.url(), upstream.url()];
    let endpoints = urls.each_ref().map(|url| json!({"base_url": url}));
    let made = gateway.create(
        "/proxies",
        json!({
            "target": {"base_url": urls[0], "endpoints": endpoints, "allow_http": true,
                       "allow_networks": ["127.0.0.0/8"],
                       "breaker": {"consecutive_failures": 1_000}},
            "credentials": [
                {"kind": "target", "auth_type": "bearer", "secret": {"token": TARGET_SECRET}},
                {"kind": "proxy", "auth_type": "api_key"},
            ],
        }),
    );
    let key = made["credentials"][1]["secret"]["key"].as_str();
    let key = format!("Bearer {}", key.expect("a key"));
    let path = made["url"].as_str().expect("a URL")[gateway.url.len()..].to_owned();
    let request = Request::new("GET", &format!("{path}/plain")).field("authorization", &key);
    let answer = wait_for("a request that went to both", || {
        let answer = request.send(&gateway.url);
        assert_eq!(answer.status(), 200);
        let record = gateway.record(&id(&answer));
        (record["attempts"] == 2).then_some(answer)
    });
    let address = urls[1].trim_start_matches("http://");
    let attributes = [
        ("http.request.resend_count", "1"),
        ("requestrocket.endpoint", address),
    ];
    let expected = ("forward", "retry", &attributes[..]);
    check(&received, &gateway, &answer, &[expected]);
}
