//! Unique secrets of every kind, in every place where a caller, a target or an operator may put
//! one; requests that end in every way; and then not one of them anywhere that the gateway writes
//! or answers: log, spans, records, metrics, API, files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Start, output};
use crate::harness::http::Request;
use crate::harness::otlp::grpc;
use crate::harness::secrets::{check, check_files, forms, private_parts};
use crate::harness::upstream::{After, Upstream};
use crate::harness::wait_for;

/// What callers hold and send.
const GIVEN_KEY: &str = "canary-given-key-91c7e0b2";
const WRONG_KEY: &str = "canary-wrong-key-5f20aa17";
const QUERY_KEY: &str = "canary-query-key-7be4310d";
const QUERY_VALUE: &str = "canary-query-value-0c93ff";
const COOKIE: &str = "canary-cookie-e82b6a4419";
const BODY: &str = "canary-body-d1706c3e55";
const HEADER: &str = "canary-header-4a9d72";
const REFERER: &str = "canary-referer-b8305e";
const BASIC_PASSWORD: &str = "canary-caller-password-33";
/// What targets are shown and what they answer.
const TARGET_TOKEN: &str = "canary-target-token-b6f1";
const TARGET_PASSWORD: &str = "canary-target-password-20d";
const TARGET_QUERY: &str = "canary-target-query-8812";
/// One that could be the id of a trace.
const TARGET_HEX: &str = "5ec4e7c0ffee916cd43dd8448eb211c8";
const ANSWER_BODY: &str = "canary-answer-body-ff41";
const ANSWER_HEADER: &str = "canary-answer-header-6d0e";
const ANSWER_LOCATION: &str = "canary-answer-location-52c9";
/// What operators hold.
const ADMIN: &str = "canary-admin-token-7c1f0d9e2b8a4455";
const OTLP: &str = "canary-otlp-header-19fe";

/// A proxy with its path.
fn proxy(gateway: &Gateway, target: &Value, caller: &Value, injected: Option<Value>) -> String {
    let mut body = json!({"target_id": target["id"], "proxy_credential_ids": [caller["id"]],
                          "record": {"path": "full", "query_allow": ["shown"]}});
    if let Some(injected) = injected {
        body["target_credential_id"] = gateway.create("/credentials", injected)["id"].clone();
    }
    let made = gateway.create("/proxies", body);
    made["url"].as_str().expect("a URL")[gateway.url.len()..].to_owned()
}

fn target(gateway: &Gateway, url: &str) -> Value {
    let body = json!({"base_url": url, "allow_http": true, "allow_networks": ["127.0.0.0/8"],
                      "timeouts": {"first_byte_ms": 300}});
    gateway.create("/targets", body)
}

fn injected(kind: &str, url: &str, secret: Value, settings: Value) -> Value {
    json!({"kind": "target", "auth_type": kind, "secret": secret, "hosts": [url],
           "settings": settings})
}

/// A target that shows back all that it was sent, and fails as its path says.
fn mirror() -> Upstream {
    Upstream::start(|request, connection| {
        let shown = request
            .fields
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let shown = shown.collect::<Vec<_>>().join("&");
        match request.target() {
            path if path.contains("/late") => while connection.some().is_some() {},
            path if path.contains("/garbage") => connection.send(format!("{shown}\r\n\r\n")),
            path => {
                let body = format!(
                    "{{\"shown\": \"{ANSWER_BODY} {}\"}}",
                    shown.replace('"', "")
                );
                let status = if path.contains("/fails") {
                    "503 No"
                } else {
                    "200 OK"
                };
                connection.send(format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n\
                     set-cookie: s={ANSWER_HEADER}\r\nx-secret: {ANSWER_HEADER}\r\n\
                     location: /next?code={ANSWER_LOCATION}\r\n\
                     content-length: {}\r\n\r\n{body}",
                    body.len()
                ));
                return After::Keep;
            }
        }
        After::Close
    })
}

/// Where nobody expects secrets: in all that records, spans and log lines tell of a request. Those
/// that the gateway holds or has issued, and the one that the request presents. Gives what the
/// gateway itself answered.
fn told_elsewhere(
    gateway: &Gateway,
    path: &str,
    field: (&str, &str),
    held: &[&str],
    presented: Option<&str>,
) -> Vec<u8> {
    let mut answered = Vec::new();
    for secret in held.iter().copied().chain(presented) {
        let method = if presented == Some(secret) {
            "GET"
        } else {
            secret
        };
        let escaped = format!("%{:02x}{}", secret.as_bytes()[0], &secret[1..]);
        let query = format!("shown={secret}&{secret}=1&x{secret}&shown={escaped}&{escaped}");
        for (method, target) in [
            ("GET", format!("{path}/{secret}/x{secret}?{query}")),
            ("GET", format!("{path}/{escaped}?{query}")),
            // Ends early.
            ("GET", format!("{path}/..%2f/{secret}?{query}")),
            ("GET", format!("/api/{secret}/x?{query}")),
            ("GET", format!("/{secret}")),
            (method, format!("{path}/x")),
        ] {
            let answer = Request::new(method, &target)
                .field(field.0, field.1)
                .field("user-agent", &format!("agent/1 ({secret})"))
                .field("traceparent", &format!("00-{secret}-b7ad6b7169203331-01"))
                .field("tracestate", &format!("vendor={secret}"))
                .field("x-request-id", secret)
                .send(&gateway.url);
            if answer.field("content-type") == Some("application/problem+json") {
                answered.extend_from_slice(&answer.body);
            }
        }
    }
    answered
}

#[test]
fn no_secret_is_written_or_answered_anywhere() {
    let (endpoint, received) = grpc();
    let gateway = Gateway::with(Start {
        config: format!(
            "[otlp]\nendpoint = \"{endpoint}\"\nheaders = \"x-key={OTLP}\"\n\
             [traces]\nbatch_ms = 20\n[metrics]\ninterval_ms = 100\n\
             [log]\nfilter = \"trace\"\nformat = \"json\"\nrequests = true\n\
             [control]\nadmin_token = \"{ADMIN}\"\n"
        ),
        ..Start::default()
    });
    let upstream = mirror();
    let url = upstream.url();
    let there = target(&gateway, &url);
    let gone = target(&gateway, "http://127.0.0.1:1");
    let issued = gateway.create(
        "/credentials",
        json!({"kind": "proxy", "auth_type": "api_key"}),
    );
    let issued_key = issued["secret"]["key"].as_str().expect("a key").to_owned();
    let given = gateway.create(
        "/credentials",
        json!({"kind": "proxy", "auth_type": "api_key", "secret": {"key": GIVEN_KEY}}),
    );
    let basic = gateway.create(
        "/credentials",
        json!({"kind": "proxy", "auth_type": "basic",
               "secret": {"username": "caller", "password": BASIC_PASSWORD}}),
    );
    let by_query = gateway.create(
        "/credentials",
        json!({"kind": "proxy", "auth_type": "api_key", "secret": {"key": QUERY_KEY},
               "settings": {"query": "api_key"}}),
    );
    let token = json!({"token": TARGET_TOKEN});
    let password = json!({"username": "target", "password": TARGET_PASSWORD});
    let paths = [
        proxy(
            &gateway,
            &there,
            &issued,
            Some(injected("bearer", &url, token.clone(), json!({}))),
        ),
        proxy(
            &gateway,
            &there,
            &given,
            Some(injected("basic", &url, password, json!({}))),
        ),
        proxy(
            &gateway,
            &there,
            &basic,
            Some(injected("bearer", &url, token.clone(), json!({}))),
        ),
        proxy(
            &gateway,
            &there,
            &by_query,
            Some(injected(
                "api_key",
                &url,
                json!({"key": TARGET_QUERY}),
                json!({"query": "key"}),
            )),
        ),
        proxy(
            &gateway,
            &gone,
            &issued,
            Some(injected("bearer", "http://127.0.0.1:1", token, json!({}))),
        ),
        proxy(
            &gateway,
            &there,
            &issued,
            Some(injected(
                "bearer",
                &url,
                json!({"token": TARGET_HEX}),
                json!({}),
            )),
        ),
    ];
    let viewer = gateway.create("/tokens", json!({"name": "viewer", "role": "viewer"}));
    let viewer_token = viewer["secret"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let basic_value = format!(
        "Basic {}",
        STANDARD.encode(format!("caller:{BASIC_PASSWORD}"))
    );
    let keys = [
        ("authorization", format!("Bearer {issued_key}")),
        ("authorization", format!("Bearer {GIVEN_KEY}")),
        ("authorization", basic_value),
        ("x-unused", "x".to_owned()),
        ("authorization", format!("Bearer {issued_key}")),
        ("authorization", format!("Bearer {issued_key}")),
    ];
    for (at, (path, (name, value))) in paths.iter().zip(&keys).enumerate() {
        for behind in ["/ok", "/fails", "/late", "/garbage"] {
            let key = if at == 3 {
                format!("&api_key={QUERY_KEY}")
            } else {
                String::new()
            };
            let request = Request::new("POST", &format!("{path}{behind}?token={QUERY_VALUE}{key}"))
                .field(name, value)
                .field("cookie", &format!("session={COOKIE}"))
                .field("x-session-token", HEADER)
                .field(
                    "referer",
                    &format!("https://a.example/reset?token={REFERER}"),
                )
                .json(&format!("{{\"card\": \"{BODY}\"}}"));
            request.send(&gateway.url);
        }
        // A wrong key in each place, two keys at once, none, and heads that are refused.
        for field in ["authorization", "x-api-key", "api-key", "x-goog-api-key"] {
            let request = Request::new("GET", &format!("{path}/x?api_key={WRONG_KEY}"));
            request.field(field, WRONG_KEY).send(&gateway.url);
        }
        let both = Request::new("GET", path).field("x-api-key", WRONG_KEY);
        both.field("authorization", &format!("Bearer {GIVEN_KEY}"))
            .send(&gateway.url);
        let long = "a".repeat(70_000);
        let refused = Request::new("GET", &format!("{path}/{WRONG_KEY}?k={QUERY_VALUE}"));
        refused
            .field("x-long", &long)
            .field("cookie", COOKIE)
            .send(&gateway.url);
        let odd = Request::new("GET", &format!("{path}/../..%2f/x?k={QUERY_VALUE}"));
        odd.field("x-api-key", GIVEN_KEY).send(&gateway.url);
    }
    let mut ended = Vec::new();
    for (at, given) in [
        (0, None),
        (1, Some(GIVEN_KEY)),
        (2, Some(BASIC_PASSWORD)),
        (5, None),
    ] {
        let held = [
            issued_key.as_str(),
            TARGET_TOKEN,
            TARGET_PASSWORD,
            TARGET_HEX,
        ];
        let field = (keys[at].0, keys[at].1.as_str());
        ended.extend(told_elsewhere(&gateway, &paths[at], field, &held, given));
    }
    assert!(ended.len() > 1_000, "the gateway answered some itself");
    let marked = Request::new("GET", &format!("{}/last", paths[0]));
    let marked = marked.field(keys[0].0, &keys[0].1).send(&gateway.url);
    let last = marked
        .field("requestrocket-request-id")
        .unwrap_or_default()
        .to_owned();
    // Wrong tokens, and secrets that are refused, at the API.
    gateway.control_call("GET", "/api/v1/me", Some(WRONG_KEY), None);
    let bad = json!({"kind": "target", "auth_type": "bearer", "secret": {"token": TARGET_TOKEN},
                     "hosts": ["*"], "colour": BODY});
    assert!(gateway.api("POST", "/credentials", Some(&bad)).status() >= 400);
    gateway.record(&last);
    wait_for("spans", || {
        let exported = gateway.metric("requestrocket_traces_exported_total");
        (exported >= 20.0 && !received.spans().is_empty()).then_some(())
    });

    let keyring = std::fs::read_to_string(gateway.data_dir().join("keyring.json")).expect("a ring");
    let ring: Value = serde_json::from_str(&keyring).expect("JSON");
    let mut secrets: Vec<String> = [
        GIVEN_KEY,
        WRONG_KEY,
        QUERY_KEY,
        QUERY_VALUE,
        COOKIE,
        BODY,
        HEADER,
        REFERER,
        BASIC_PASSWORD,
        TARGET_TOKEN,
        TARGET_PASSWORD,
        TARGET_QUERY,
        TARGET_HEX,
        ANSWER_BODY,
        ANSWER_HEADER,
        ANSWER_LOCATION,
        ADMIN,
        OTLP,
    ]
    .map(str::to_owned)
    .into();
    secrets.extend([issued_key, viewer_token]);
    private_parts(&ring, "", &mut secrets);
    assert!(
        secrets.len() >= 20,
        "the private keys of the ring were not found"
    );
    let secrets: Vec<_> = secrets
        .into_iter()
        .map(|secret| (secret.clone(), forms(&secret)))
        .collect();

    check("the documents of early ends", &ended, &secrets);
    check("the log", gateway.log().as_bytes(), &secrets);
    check(
        "the spans",
        format!("{:?}", received.spans()).as_bytes(),
        &secrets,
    );
    let spans = received.spans();
    let ids = spans.iter().map(|span| hex::encode(&span.trace_id));
    check(
        "the ids of traces",
        ids.collect::<String>().as_bytes(),
        &secrets,
    );
    wait_for("spans of what was overwritten", || {
        let spans = format!("{:?}", received.spans());
        (spans.contains("agent/1 (***") && spans.contains("/***")).then_some(())
    });
    let metrics = wait_for("metrics", || {
        let metrics = received.metrics();
        (!metrics.is_empty()).then_some(metrics)
    });
    check("metrics", format!("{metrics:?}").as_bytes(), &secrets);
    let lines = wait_for("log lines", || {
        let lines = received.lines();
        (lines.len() > 100).then_some(lines)
    });
    check("log lines", format!("{lines:?}").as_bytes(), &secrets);
    let (admin, org) = (Some(gateway.token.clone()), "/api/v1/orgs/default");
    let exported = gateway.control_call(
        "GET",
        &format!("{org}/records/export"),
        admin.as_deref(),
        None,
    );
    let exported = exported.text();
    assert!(
        exported.contains("agent/1 (***") && exported.contains("\"path\":\"/***"),
        "{exported}"
    );
    for path in [
        format!("{org}/records/export"),
        format!("{org}/targets"),
        format!("{org}/credentials"),
        format!("{org}/proxies"),
        format!("{org}/versions"),
        format!("{org}/audit"),
        format!("{org}/config"),
        format!("{org}/telemetry?by=path&groups=1000"),
        format!("{org}/telemetry?by=user_agent"),
        "/api/v1/unmatched?limit=200".to_owned(),
        "/api/v1/tokens".to_owned(),
        "/api/v1/nodes".to_owned(),
        "/api/v1/me".to_owned(),
        "/metrics".to_owned(),
    ] {
        let answer = gateway.control_call("GET", &path, admin.as_deref(), None);
        check(&path, &answer.body, &secrets);
    }
    let data = gateway.data_dir();
    let (status, folder) = gateway.stop();
    assert!(status.success());
    // The settings file holds what the operator wrote into it.
    check_files(&data, &secrets);
    check("standard output", &output(folder.path()), &secrets);
    drop(folder);
}
