//! Real OTLP receivers, over gRPC and over HTTP, get of each kind of request exactly the spans,
//! parents, attributes and statuses that the conventions say.

mod attributes;
mod canary;
mod canary_faults;
mod cardinality;
mod events;
#[path = "../harness/mod.rs"]
mod harness;

mod logs;
mod metrics;
mod outages;

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::{Value, json};

use harness::gateway::{Gateway, Proxy, Start};
use harness::http::Message;
use harness::otlp::{self, Received, grpc, http};
use harness::upstream::Upstream;
use harness::wait_for;

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const INTERNAL: i32 = 1;
const ERROR: i32 = 2;

fn gateway(endpoint: &str, settings: &str) -> Gateway {
    telling(endpoint, "", settings)
}

/// The same with settings of the collector; `settings` are those of traces and what follows.
fn telling(endpoint: &str, otlp: &str, settings: &str) -> Gateway {
    let config =
        format!("[otlp]\nendpoint = \"{endpoint}\"\n{otlp}[traces]\nbatch_ms = 20\n{settings}");
    Gateway::with(Start {
        config,
        ..Start::default()
    })
}

/// An attribute as text; lists with commas.
fn text(value: &Any) -> String {
    match value {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(number) => number.to_string(),
        Any::BoolValue(yes) => yes.to_string(),
        Any::ArrayValue(array) => {
            let values = array.values.iter().filter_map(|value| value.value.as_ref());
            values.map(text).collect::<Vec<_>>().join(",")
        }
        other => panic!("an attribute {other:?}"),
    }
}

fn attributes(span: &Span) -> BTreeMap<String, String> {
    let attributes = span.attributes.iter();
    attributes
        .map(|pair| {
            let value = pair.value.as_ref().and_then(|value| value.value.as_ref());
            (pair.key.clone(), value.map(text).unwrap_or_default())
        })
        .collect()
}

/// The names of attributes, each once, with their types as the conventions call them.
fn typed(attributes: &[KeyValue]) -> BTreeMap<&str, &'static str> {
    let mut types = BTreeMap::new();
    for pair in attributes {
        let kind = match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Any::StringValue(_)) => "string",
            Some(Any::IntValue(_)) => "int",
            Some(Any::BoolValue(_)) => "boolean",
            Some(Any::ArrayValue(array)) => match array.values.first().map(|one| &one.value) {
                Some(Some(Any::IntValue(_))) => "int[]",
                _ => "string[]",
            },
            other => panic!("{} is {other:?}", pair.key),
        };
        let twice = types.insert(pair.key.as_str(), kind);
        assert!(twice.is_none(), "{} twice", pair.key);
    }
    types
}

/// The same as a table says it; of some only where the condition holds.
fn table<'t>(rows: &[(&'t str, &'static str, bool)]) -> BTreeMap<&'t str, &'static str> {
    let rows = rows.iter().filter(|(.., there)| *there);
    rows.map(|(name, kind, _)| (*name, *kind)).collect()
}

/// What a SERVER span says, and nothing else.
fn check_server(span: &Span, expected: &Expected<'_>, is_armed: bool) {
    let always = true;
    let wanted = table(&[
        // Required by the conventions for HTTP.
        ("http.request.method", "string", always),
        ("url.path", "string", always),
        ("url.scheme", "string", always),
        // Required where they are known, or there was an error.
        (
            "http.response.status_code",
            "int",
            expected.status.is_some(),
        ),
        ("error.type", "string", expected.error.is_some()),
        ("url.query", "string", expected.told),
        // Recommended.
        ("client.address", "string", always),
        ("user_agent.original", "string", expected.told),
        ("requestrocket.request.id", "string", always),
        ("requestrocket.org.id", "string", always),
        ("requestrocket.proxy.id", "string", always),
        ("requestrocket.target.id", "string", always),
        ("requestrocket.config.version", "int", always),
        ("requestrocket.node", "string", always),
        ("requestrocket.code", "string", always),
        ("requestrocket.proxy_credential.id", "string", always),
        ("requestrocket.target_credential.id", "string", is_armed),
    ]);
    assert_eq!(typed(&span.attributes), wanted);
}

/// What a CLIENT span says, and nothing else.
fn check_client(span: &Span, at: usize, (status, error): (Option<&str>, Option<&str>)) {
    let always = true;
    let wanted = table(&[
        ("http.request.method", "string", always),
        ("server.address", "string", always),
        ("server.port", "int", always),
        ("url.full", "string", always),
        ("http.response.status_code", "int", status.is_some()),
        ("error.type", "string", error.is_some()),
        ("http.request.resend_count", "int", at > 0),
        ("requestrocket.connection.reused", "boolean", always),
    ]);
    assert_eq!(typed(&span.attributes), wanted);
}

/// The stages that a request met, up to the one that ended it, and what each says.
fn check_stages(stages: &BTreeMap<String, Span>, ended_by: Option<&str>, metered: bool) {
    const BEFORE: [&str; 8] = [
        "receive",
        "authenticate",
        "authorize",
        "limit",
        "prepare",
        "inject",
        "forward",
        "filter",
    ];
    let last = BEFORE.iter().position(|stage| Some(*stage) == ended_by);
    let mut wanted = BEFORE[..=last.unwrap_or(BEFORE.len() - 1)].to_vec();
    wanted.push("respond");
    wanted.sort_unstable();
    let found: Vec<&str> = stages.keys().map(String::as_str).collect();
    assert_eq!(found, wanted);
    for (name, span) in stages {
        let ended = Some(name.as_str()) == ended_by;
        let own = match name.as_str() {
            "authenticate" => ("requestrocket.proxy_credential.id", "string", true),
            "authorize" => ("requestrocket.rules.denied", "string[]", ended),
            "limit" => ("requestrocket.limits.refused", "string[]", ended),
            "inject" => ("requestrocket.target_credential.id", "string", true),
            _ => ("", "", false),
        };
        let outcome = ("requestrocket.stage.outcome", "string", true);
        let spent = metered && name == "limit";
        let meters = ("requestrocket.meters", "string[]", spent);
        let spends = ("requestrocket.meters.spent", "int[]", spent);
        let refused = (
            "requestrocket.meters.refused",
            "string[]",
            ended && name == "limit",
        );
        let all = table(&[outcome, own, meters, spends, refused]);
        assert_eq!(typed(&span.attributes), all, "{name}");
    }
}

fn id(answer: &Message) -> String {
    answer
        .field("requestrocket-request-id")
        .expect("an id")
        .to_owned()
}

/// The spans of a request: the SERVER span, the stages by name, the attempts in order.
struct Trace {
    server: Span,
    stages: BTreeMap<String, Span>,
    attempts: Vec<Span>,
}

/// Waits for a request's spans, and checks what holds for all of them.
fn trace(received: &Received, id: &str) -> Trace {
    let server = wait_for("a server span", || {
        received.spans().into_iter().find(|span| {
            let attributes = attributes(span);
            attributes
                .get("requestrocket.request.id")
                .is_some_and(|found| found == id)
        })
    });
    assert_eq!(server.kind, SERVER);
    let spans = received
        .spans()
        .into_iter()
        .filter(|span| span.trace_id == server.trace_id);
    let (mut stages, mut attempts) = (BTreeMap::new(), Vec::new());
    for span in spans.filter(|span| span.span_id != server.span_id) {
        assert!(
            span.start_time_unix_nano >= server.start_time_unix_nano,
            "{}",
            span.name
        );
        assert!(
            span.end_time_unix_nano <= server.end_time_unix_nano,
            "{}",
            span.name
        );
        match span.kind {
            INTERNAL => {
                assert_eq!(span.parent_span_id, server.span_id, "{}", span.name);
                assert!(stages.insert(span.name.clone(), span).is_none());
            }
            CLIENT => attempts.push(span),
            kind => panic!("kind {kind}"),
        }
    }
    let length = |span: &Span| span.end_time_unix_nano - span.start_time_unix_nano;
    let sum: u64 = stages.values().map(length).sum();
    assert_eq!(sum, length(&server), "the stages are the whole request");
    attempts.sort_by_key(|span| span.start_time_unix_nano);
    for attempt in &attempts {
        let forward = &stages["forward"];
        assert_eq!(attempt.parent_span_id, forward.span_id);
        assert!(attempt.start_time_unix_nano >= forward.start_time_unix_nano);
        assert!(attempt.end_time_unix_nano <= forward.end_time_unix_nano);
    }
    Trace {
        server,
        stages,
        attempts,
    }
}

fn code(span: &Span) -> i32 {
    span.status.as_ref().map_or(0, |status| status.code)
}

/// What one kind of request looks like.
struct Expected<'a> {
    status: Option<&'a str>,
    error: Option<&'a str>,
    code: &'a str,
    ended_by: Option<&'a str>,
    /// The caller sent a query and says which program it is.
    told: bool,
    attempts: &'a [(Option<&'a str>, Option<&'a str>)],
}

fn check(
    received: &Received,
    proxy: &Proxy,
    upstream: &Upstream,
    answer: &Message,
    path: &str,
    expected: &Expected<'_>,
) {
    let trace = trace(received, &id(answer));
    let found = attributes(&trace.server);
    let get = |name: &str| found.get(name).map(String::as_str);
    assert_eq!(trace.server.name, "GET");
    assert_eq!(get("http.request.method"), Some("GET"));
    assert_eq!(get("url.scheme"), Some("http"));
    assert_eq!(
        get("url.path"),
        Some(format!("/api/{}{path}", proxy.id).as_str())
    );
    assert_eq!(get("client.address"), Some("127.0.0.1"));
    assert_eq!(get("http.response.status_code"), expected.status, "{path}");
    assert_eq!(get("error.type"), expected.error, "{path}");
    assert_eq!(
        code(&trace.server) == ERROR,
        expected.error.is_some(),
        "{path}"
    );
    assert_eq!(get("requestrocket.code"), Some(expected.code));
    assert_eq!(get("requestrocket.proxy.id"), Some(proxy.id.as_str()));
    let ended: Vec<&str> = trace
        .stages
        .values()
        .filter(|span| attributes(span)["requestrocket.stage.outcome"] == "end")
        .map(|span| span.name.as_str())
        .collect();
    assert_eq!(
        ended,
        expected.ended_by.into_iter().collect::<Vec<_>>(),
        "{path}"
    );
    check_stages(&trace.stages, expected.ended_by, path == "/held");

    check_server(&trace.server, expected, trace.stages.contains_key("inject"));
    assert_eq!(trace.attempts.len(), expected.attempts.len(), "{path}");
    for (at, (span, (status, error))) in trace.attempts.iter().zip(expected.attempts).enumerate() {
        let found = attributes(span);
        let get = |name: &str| found.get(name).map(String::as_str);
        assert_eq!(span.name, "GET");
        assert_eq!(get("http.request.method"), Some("GET"));
        let url = upstream.url();
        let (host, port) = url
            .trim_start_matches("http://")
            .split_once(':')
            .expect("a port");
        assert_eq!(get("server.address"), Some(host));
        assert_eq!(get("server.port"), Some(port));
        let query = if expected.told { "?a=REDACTED" } else { "" };
        let full = format!("{url}{path}{query}");
        assert_eq!(get("url.full"), Some(full.as_str()));
        check_client(span, at, (*status, *error));
        assert_eq!(get("http.response.status_code"), *status, "{path} {at}");
        assert_eq!(get("error.type"), *error, "{path} {at}");
        assert_eq!(code(span) == ERROR, error.is_some());
        let resent = (at > 0).then(|| at.to_string());
        assert_eq!(get("http.request.resend_count"), resent.as_deref());
    }
    // The target saw the last attempt as its parent.
    if let Some(last) = trace
        .attempts
        .last()
        .filter(|_| expected.status != Some("504"))
    {
        let seen = upstream.last();
        let parent = seen.field("traceparent").expect("a traceparent");
        let ids = format!(
            "{}-{}",
            hex::encode(&last.trace_id),
            hex::encode(&last.span_id)
        );
        assert!(parent.contains(&ids), "{parent} {ids}");
    }
}

/// One request of each kind.
fn every_kind(received: &Received, gateway: &Gateway) {
    let (plain, error): (Option<&str>, Option<&str>) = (Some("200"), None);
    let answered = [(plain, error)];
    let granted = Expected {
        status: plain,
        error,
        code: "proxy-access-granted",
        ended_by: None,
        told: false,
        attempts: &answered,
    };
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let answer = proxy.get("/plain");
    check(received, &proxy, &upstream, &answer, "/plain", &granted);
    let telling = proxy
        .request("GET", "/told?a=1")
        .field("user-agent", "agent/1");
    let answer = proxy.send(&telling);
    let told = Expected {
        told: true,
        ..granted
    };
    check(received, &proxy, &upstream, &answer, "/told", &told);
    let found = attributes(&trace(received, &id(&answer)).server);
    let get = |name: &str| found.get(name).map(String::as_str);
    assert_eq!(get("user_agent.original"), Some("agent/1"));
    assert_eq!(get("url.query"), Some("a=REDACTED"));

    let rule = json!({"effect": "deny", "path": {"pattern": "^/secret"}});
    let rule = gateway.create(&format!("/proxies/{}/rules", proxy.id), rule);
    let answer = wait_for("the rule", || {
        let answer = proxy.get("/secret");
        (answer.status() == 400).then_some(answer)
    });
    let denied = Expected {
        status: Some("400"),
        code: "proxy-access-denied",
        ended_by: Some("authorize"),
        attempts: &[],
        ..granted
    };
    check(received, &proxy, &upstream, &answer, "/secret", &denied);
    let rules = attributes(&trace(received, &id(&answer)).stages["authorize"]);
    assert_eq!(
        Some(rules["requestrocket.rules.denied"].as_str()),
        rule["id"].as_str()
    );

    let limits = json!({"limits": {"per_minute": 1}});
    let limited = gateway.proxy_with(&upstream.url(), json!({}), limits);
    limited.get("/a");
    let answer = limited.get("/limited");
    let expected = Expected {
        status: Some("429"),
        code: "rate-limited",
        ended_by: Some("limit"),
        attempts: &[],
        ..granted
    };
    check(
        received, &limited, &upstream, &answer, "/limited", &expected,
    );
    let windows = attributes(&trace(received, &id(&answer)).stages["limit"]);
    assert_eq!(windows["requestrocket.limits.refused"], "minute");
    let by = format!("{}:minute:empty", limited.id);
    assert_eq!(windows["requestrocket.meters.refused"], by);
}

/// A request that waits for its turn at a limit: like another, and the wait is the limit's.
fn held(received: &Received, gateway: &Gateway) {
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let hold = json!({"hold": {"max_wait_ms": 20_000, "max_waiting": 20}});
    let limits = json!([{"limit": 1, "window": "second"}]);
    let place = format!("/proxies/{}/meters", proxy.id);
    let meter = gateway.create(&place, json!({"limits": limits, "at_limit": hold}));
    let so_far = || gateway.metric("requestrocket_limit_held_total");
    let answer = wait_for("a held request", || {
        let before = so_far();
        let answer = proxy.get("/held");
        (so_far() > before).then_some(answer)
    });
    let granted = Expected {
        status: Some("200"),
        error: None,
        code: "proxy-access-granted",
        ended_by: None,
        told: false,
        attempts: &[(Some("200"), None)],
    };
    check(received, &proxy, &upstream, &answer, "/held", &granted);
    let span = trace(received, &id(&answer)).stages["limit"].clone();
    let said = attributes(&span);
    assert_eq!(Some(&*said["requestrocket.meters"]), meter["id"].as_str());
    assert_eq!(said["requestrocket.meters.spent"], "1");
    let record = gateway.record(&id(&answer));
    let stages = record["stages"].as_array().expect("stages").iter();
    let limit = stages.clone().find(|time| time["stage"] == "limit");
    let waited_us = limit.and_then(|time| time["us"].as_u64()).expect("a time");
    let span_ns = span.end_time_unix_nano - span.start_time_unix_nano;
    assert_eq!(span_ns, waited_us * 1_000);
    assert!(waited_us > 0);
}

/// A retried, a streamed and a timed-out request, and one with an error of the target.
fn every_answer(received: &Received, gateway: &Gateway) {
    let upstream = Upstream::raw(|connection, keep| {
        let mut served = 0;
        while let Some(request) = connection.read() {
            keep(&request);
            match request.target() {
                // A second request on a kept connection is left without an answer.
                "/again" if served > 0 => return,
                // Says nothing until the gateway gives up.
                "/late" => {
                    while connection.some().is_some() {}
                    return;
                }
                "/stream" => {
                    connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
                    for _ in 0..3 {
                        connection.send("4\r\nabcd\r\n");
                    }
                    connection.send("0\r\n\r\n");
                }
                "/broken" => connection.send("HTTP/1.1 503 Gone\r\ncontent-length: 0\r\n\r\n"),
                _ => connection.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
            }
            served += 1;
        }
    });
    let timeouts = json!({"timeouts": {"first_byte_ms": 300}});
    let proxy = gateway.proxy_with(&upstream.url(), timeouts, json!({}));
    let granted = Expected {
        status: Some("200"),
        error: None,
        code: "proxy-access-granted",
        ended_by: None,
        told: false,
        attempts: &[(Some("200"), None)],
    };
    // Until a connection is kept by the worker that gets the next request.
    let answer = wait_for("a kept connection", || {
        proxy.get("/first");
        let answer = proxy.get("/again");
        assert!(
            answer.status() == 200 || answer.status() == 502,
            "{answer:?}"
        );
        let record = gateway.record(&id(&answer));
        (record["attempts"] == 2).then_some(answer)
    });
    let again = Expected {
        attempts: &[(None, Some("reset")), (Some("200"), None)],
        ..granted
    };
    check(received, &proxy, &upstream, &answer, "/again", &again);
    let answer = proxy.get("/stream");
    assert_eq!(answer.body, b"abcdabcdabcd");
    check(received, &proxy, &upstream, &answer, "/stream", &granted);
    let answer = proxy.get("/broken");
    let broken = Expected {
        status: Some("503"),
        error: Some("503"),
        attempts: &[(Some("503"), Some("503"))],
        ..granted
    };
    check(received, &proxy, &upstream, &answer, "/broken", &broken);
    let answer = proxy.get("/late");
    let late = Expected {
        status: Some("504"),
        error: Some("upstream-timeout"),
        code: "upstream-timeout",
        ended_by: Some("forward"),
        told: false,
        attempts: &[(None, Some("first-byte-timeout"))],
    };
    check(received, &proxy, &upstream, &answer, "/late", &late);
}

/// The file of each request has the spans that the collector got.
fn files(received: &Received, gateway: &Gateway) {
    let by_id = |mut spans: Vec<Span>| {
        spans.sort_by(|one, other| one.span_id.cmp(&other.span_id));
        spans
    };
    let spans = received.spans();
    let servers = spans.iter().filter(|span| span.kind == SERVER);
    let mut compared = 0;
    for server in servers {
        let id = attributes(server)["requestrocket.request.id"].clone();
        // There as soon as its record is.
        gateway.record(&id);
        let file = gateway.get(&format!("/records/{id}/trace?format=otlp"));
        let file: ExportTraceServiceRequest = serde_json::from_value(file).expect("a file");
        let [of_node] = &*file.resource_spans else {
            panic!("{file:?}");
        };
        let resource = of_node.resource.as_ref().expect("a resource");
        let named = resource.attributes.iter().map(|pair| &*pair.key);
        let wanted = ["cloud.region", "service.instance.id", "service.name"];
        assert_eq!(named.collect::<BTreeSet<_>>(), wanted.into());
        let told = by_id(of_node.scope_spans[0].spans.clone());
        let exported = spans.iter().filter(|one| one.trace_id == server.trace_id);
        assert_eq!(told, by_id(exported.cloned().collect()));
        compared += 1;
    }
    assert!(compared > 5);
}

#[test]
fn every_kind_of_request_over_grpc() {
    let (endpoint, received) = grpc();
    let otlp = "compression = \"gzip\"\nheaders = \"x-tenant=a%20b\"\n";
    let gateway = telling(&endpoint, otlp, "");
    every_kind(&received, &gateway);
    held(&received, &gateway);
    every_answer(&received, &gateway);
    attributes::check(&received, &gateway);
    files(&received, &gateway);
    assert_eq!(received.header("x-tenant").as_deref(), Some("a b"));
    assert_eq!(received.header("grpc-encoding").as_deref(), Some("gzip"));
}

#[test]
fn every_kind_of_request_over_http() {
    let (endpoint, received) = http();
    let otlp = "protocol = \"http\"\ncompression = \"gzip\"\nheaders = \"x-tenant=a%20b\"\n";
    let gateway = telling(&endpoint, otlp, "");
    every_kind(&received, &gateway);
    held(&received, &gateway);
    every_answer(&received, &gateway);
    attributes::check(&received, &gateway);
    assert_eq!(received.header("x-tenant").as_deref(), Some("a b"));
    assert_eq!(received.header("content-encoding").as_deref(), Some("gzip"));
}

/// With TLS, to a collector whose authority is given; one that is not known gets nothing.
#[test]
fn over_tls_with_an_authority_of_its_own() {
    let (certificate, key) = otlp::certificate();
    let (stranger, _) = otlp::certificate();
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).expect("a file");
        path.display().to_string()
    };
    let (own, other) = (file("own.pem", &certificate), file("other.pem", &stranger));
    let upstream = Upstream::json("{}");
    for protocol in ["grpc", "http"] {
        let (endpoint, received) = match protocol {
            "grpc" => otlp::grpc_tls(&certificate, &key),
            _ => otlp::http_tls(&certificate, &key),
        };
        let settings = |ca: &str| format!("protocol = \"{protocol}\"\nca_file = \"{ca}\"\n");
        let distrusting = telling(&endpoint, &settings(&other), "");
        distrusting.proxy(&upstream.url()).get("/x");
        wait_for("a refused certificate", || {
            let failures = distrusting.metric("requestrocket_trace_export_failures_total");
            (failures > 0.0).then_some(())
        });
        assert!(received.spans().is_empty(), "{protocol}");
        let trusting = telling(&endpoint, &settings(&own), "");
        let proxy = trusting.proxy(&upstream.url());
        let answer = proxy.get("/x");
        trace(&received, &id(&answer));
    }
}

/// A share of none keeps errors and refusals, and what a trusted caller keeps.
#[test]
fn what_is_kept_is_decided_at_the_end() {
    let (endpoint, received) = grpc();
    let gateway = gateway(&endpoint, "ratio = 0.0\n");
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let plain = id(&proxy.get("/plain"));
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let call = |flags: &str, path: &str| {
        let parent = format!("00-{trace_id}-b7ad6b7169203331-{flags}");
        id(&proxy.send(&proxy.request("GET", path).field("traceparent", &parent)))
    };
    let unkept = call("00", "/unkept");
    let seen = upstream.last();
    assert!(
        seen.field("traceparent")
            .is_some_and(|text| text.ends_with("-00")),
        "{seen:?}"
    );
    let kept = call("01", "/kept");
    let refused = id(&proxy.send(&proxy.request("GET", "/x").without("authorization")));
    let joined = trace(&received, &kept);
    assert_eq!(hex::encode(&joined.server.trace_id), trace_id);
    assert_eq!(
        hex::encode(&joined.server.parent_span_id),
        "b7ad6b7169203331"
    );
    let refused = trace(&received, &refused);
    let failure = attributes(&refused.stages["authenticate"]);
    assert_eq!(failure["requestrocket.auth.failure"], "no-credential");
    let ids: Vec<String> = received
        .spans()
        .iter()
        .filter_map(|span| attributes(span).get("requestrocket.request.id").cloned())
        .collect();
    assert!(!ids.contains(&plain) && !ids.contains(&unkept), "{ids:?}");
}

/// An answer that broke off is an error to every collector, whatever share of traces is kept, and
/// to whoever counts.
#[test]
fn an_answer_that_broke_off_is_an_error() {
    let upstream = Upstream::raw(|connection, keep| {
        while let Some(request) = connection.read() {
            keep(&request);
            connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n");
            if request.target() == "/cut" {
                return;
            }
            connection.send("0\r\n\r\n");
        }
    });
    for protocol in ["grpc", "http"] {
        let (endpoint, received) = match protocol {
            "grpc" => grpc(),
            _ => http(),
        };
        let otlp = format!("protocol = \"{protocol}\"\n");
        let gateway = telling(&endpoint, &otlp, "ratio = 0.0\n");
        let proxy = gateway.proxy(&upstream.url());
        let whole = id(&proxy.get("/whole"));
        let answer = proxy.get("/cut");
        assert!(!answer.complete && answer.status() == 200, "{answer:?}");
        let expected = Expected {
            status: Some("200"),
            error: Some("upstream-unreachable"),
            code: "upstream-unreachable",
            ended_by: Some("respond"),
            told: false,
            attempts: &[(Some("200"), Some("upstream-unreachable"))],
        };
        check(&received, &proxy, &upstream, &answer, "/cut", &expected);
        assert!(received.spans().iter().all(|span| {
            let attributes = attributes(span);
            attributes.get("requestrocket.request.id") != Some(&whole)
        }));
        let series = "http_server_request_duration_seconds_count{http_request_method=\"GET\",\
                      http_response_status_code=\"200\",url_scheme=\"http\",\
                      error_type=\"upstream-unreachable\"}";
        assert_eq!(gateway.metric(series), 1.0);
        gateway.record(&id(&answer));
        let told = gateway.get("/telemetry?from=1h");
        let group = &told["groups"][0];
        assert_eq!(
            (&group["count"], &group["errors"]),
            (&2.into(), &1.into()),
            "{told}"
        );
        let drawn = gateway.get(&format!("/records/{}/trace", id(&answer)));
        let spans = drawn["spans"].as_array().expect("spans").iter();
        let ended = spans.filter(|span| span["outcome"] == "end");
        let ended = ended.map(|span| &span["name"]).collect::<Vec<_>>();
        assert_eq!(ended, ["respond"], "{drawn}");
    }
}

#[test]
fn a_caller_that_is_not_trusted_gets_a_link() {
    let (endpoint, received) = grpc();
    let gateway = gateway(&endpoint, "incoming = \"ignore\"\n");
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = proxy.send(&proxy.request("GET", "/x").field("traceparent", parent));
    let server = trace(&received, &id(&answer)).server;
    assert!(server.parent_span_id.is_empty());
    assert_eq!(hex::encode(&server.links[0].span_id), "b7ad6b7169203331");
    assert_ne!(
        hex::encode(&server.trace_id),
        "0af7651916cd43dd8448eb211c80319c"
    );
    let record: Value = gateway.record(&id(&answer));
    assert_eq!(record["trace_id"], hex::encode(&server.trace_id));
}

/// What vendors say of a trace is not told of another one.
#[test]
fn a_tracestate_goes_with_the_trace_that_it_came_with() {
    let (endpoint, _received) = grpc();
    let upstream = Upstream::json("{}");
    let valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (incoming, parent, expected) in [
        ("trust", Some(valid), Some("a=b")),
        ("join", Some(valid), Some("a=b")),
        ("ignore", Some(valid), None),
        ("trust", Some("00-xyz-b7ad6b7169203331-01"), None),
        ("trust", None, None),
    ] {
        let gateway = gateway(&endpoint, &format!("incoming = \"{incoming}\"\n"));
        let full = json!({"propagate_trace": "full"});
        let proxy = gateway.proxy_with(&upstream.url(), full, json!({}));
        let mut request = proxy.request("GET", "/x").field("tracestate", "a=b");
        request = request.field("baggage", "c=d");
        if let Some(parent) = parent {
            request = request.field("traceparent", parent);
        }
        assert_eq!(proxy.send(&request).status(), 200);
        let seen = upstream.last();
        assert_eq!(seen.field("tracestate"), expected, "{incoming} {parent:?}");
        assert_eq!(seen.field("baggage"), Some("c=d"));
        let passed = seen.field("traceparent").expect("a traceparent");
        let is_callers = passed.contains("0af7651916cd43dd8448eb211c80319c");
        assert_eq!(is_callers, expected.is_some(), "{incoming} {parent:?}");
    }
}

/// A collector that is gone costs no request anything; what was lost is counted, and it heals.
#[test]
fn a_collector_may_be_gone() {
    let gateway = gateway("http://127.0.0.1:1", "");
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    for _ in 0..20 {
        assert_eq!(proxy.get("/x").status(), 200);
    }
    wait_for("a failure that is counted", || {
        let failures = gateway.metric("requestrocket_trace_export_failures_total");
        (failures > 0.0).then_some(())
    });
    wait_for("what was dropped", || {
        let dropped = gateway.metric("requestrocket_traces_dropped_total");
        (dropped >= 20.0).then_some(())
    });
    let shown = metrics::open_metrics(&gateway);
    assert!(!shown.contains("trace_id"), "no trace has arrived anywhere");
}
