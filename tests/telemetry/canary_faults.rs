//! Unique secrets of the kinds that are sent as tokens, as several fields, and in a path, through
//! requests that panic in every stage, that limits refuse, and whose bodies are recorded; then not
//! one of them anywhere that the gateway writes or answers.

use proto::record::Stage;
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Start, output};
use crate::harness::http::Request;
use crate::harness::otlp::grpc;
use crate::harness::secrets::{Secret, check, check_files, forms};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

const CALLER_JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiJjYWxsZXIifQ.canary-caller-sign-51d0";
const CALLER_TOKEN: &str = "canary-caller-bearer-token-c4a7";
const TARGET_JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiJ0YXJnZXQifQ.canary-target-sign-e80b";
const TARGET_FIELD: &str = "canary-target-field-one-30f2";
const TARGET_OTHER: &str = "canary-target-field-two-d19c";
const TARGET_QUERY: &str = "canary-target-custom-query-6b55";
const TARGET_PATH: &str = "canary-target-in-its-path-a2e4";

/// What is injected, each in a field, a query or a path.
const TARGETS: [&str; 5] = [
    TARGET_JWT,
    TARGET_FIELD,
    TARGET_OTHER,
    TARGET_QUERY,
    TARGET_PATH,
];

/// What callers hold, and the field in which they present it.
fn caller(gateway: &Gateway, kind: &str, token: &str) -> (Value, String) {
    let made = json!({"kind": "proxy", "auth_type": kind, "secret": {"token": token},
                      "explain": true});
    (
        gateway.create("/credentials", made),
        format!("Bearer {token}"),
    )
}

/// A proxy of these whose records keep all that records may keep.
fn proxy(gateway: &Gateway, url: &str, caller: &Value, injected: Value) -> String {
    let target = json!({"base_url": url, "allow_http": true, "allow_networks": ["127.0.0.0/8"]});
    let target = gateway.create("/targets", target);
    let mut given = json!({"kind": "target", "hosts": [url]});
    for (name, value) in injected.as_object().expect("an object") {
        given[name] = value.clone();
    }
    let injected = gateway.create("/credentials", given);
    let made = gateway.create(
        "/proxies",
        json!({"target_id": target["id"], "proxy_credential_ids": [caller["id"]],
               "target_credential_id": injected["id"], "limits": {"per_minute": 30},
               "record": {"path": "full", "payload": {"bytes_max": 65_536}}}),
    );
    made["url"].as_str().expect("a URL")[gateway.url.len()..].to_owned()
}

/// A target that shows back where it was called and all that it was sent.
fn mirror() -> Upstream {
    Upstream::raw(|connection, keep| {
        while let Some(request) = connection.read() {
            keep(&request);
            let fields = request.fields.iter();
            let shown: Vec<_> = fields.map(|(name, value)| json!({name: value})).collect();
            let body = json!({"at": request.target(), "with": shown}).to_string();
            connection.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n\
                 {body}",
                body.len()
            ));
        }
    })
}

/// What would become of a request says nothing of what would be injected, wherever that goes.
fn explanations(gateway: &Gateway, ids: &[String], paths: &[String], secrets: &[Secret]) {
    let ask = |question: Value| {
        let answer = gateway.api("POST", "/explain", Some(&question));
        assert_eq!(answer.status(), 200, "{question}: {}", answer.text());
        check("an explanation", &answer.body, secrets);
        answer.json()
    };
    for path in paths {
        let proxy = path.trim_start_matches("/api/");
        let request = json!({"method": "POST", "path": "/v1/x?a=1"});
        let told = ask(json!({"proxy": proxy, "request": request}));
        let stages = told["stages"].as_array().expect("stages");
        let stage = |name: &str| stages.iter().find(|stage| stage["stage"] == name);
        let url = stage("forward").and_then(|stage| stage["url"].as_str());
        assert!(url.is_some_and(|url| url.ends_with("/v1/x?a=1")), "{told}");
        assert!(stage("inject").is_some_and(|stage| stage["credential_id"].is_string()));
        ask(json!({"proxy": proxy, "last": 100}));
    }
    let kept = |id: &&String| gateway.api("GET", &format!("/records/{id}"), None).status() == 200;
    let kept: Vec<&String> = ids.iter().filter(kept).collect();
    assert!(kept.len() > 100, "{}", kept.len());
    for id in kept.iter().step_by(7) {
        ask(json!({ "record": id }));
    }
}

/// Panics are lines of the log like others: each line is an object, and what a panic says has
/// stars where it quotes a secret.
fn panics(log: &str) {
    let lines = log.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        assert!(
            line["timestamp"].is_string() && line["level"].is_string(),
            "{line}"
        );
        line
    });
    let panics: Vec<Value> = lines.filter(|line| line["target"] == "panic").collect();
    for stage in Stage::ALL {
        let said = format!("fault injected at {} on ", stage.name());
        let of_stage = panics.iter().find_map(|line| {
            let message = line["fields"]["message"].as_str()?;
            Some((line, message.split_once(&said)?.1))
        });
        let (line, path) = of_stage.unwrap_or_else(|| panic!("no panic in {}", stage.name()));
        let stars = TARGETS.map(|secret| "*".repeat(secret.len())).join("/");
        assert!(path.ends_with(&format!("/v1/{stars}/x")), "{line}");
        assert_eq!(line["level"], "ERROR");
        let backtrace = line["fields"]["backtrace"].as_str().unwrap_or_default();
        assert!(backtrace.lines().count() > 5, "{line}");
    }
}

#[test]
fn no_secret_is_told_by_panics_refusals_or_recorded_bodies() {
    let (endpoint, received) = grpc();
    let gateway = Gateway::with(Start {
        config: format!(
            "[otlp]\nendpoint = \"{endpoint}\"\n[traces]\nbatch_ms = 20\n[gateway]\nworkers = 1\n\
             fault_injection = true\n[log]\nfilter = \"trace\"\nformat = \"json\"\n\
             requests = true\n"
        ),
        environment: vec![("RUST_BACKTRACE".to_owned(), "1".to_owned())],
        ..Start::default()
    });
    let upstream = mirror();
    let url = upstream.url();
    let custom = json!({"auth_type": "custom", "secret": {
        "headers": [{"name": "x-one", "value": TARGET_FIELD},
                    {"name": "x-two", "value": TARGET_OTHER}],
        "queries": [{"name": "sig", "value": TARGET_QUERY}]}});
    let token = json!({"auth_type": "jwt", "secret": {"token": TARGET_JWT}});
    let in_path = json!({"auth_type": "api_key", "secret": {"key": TARGET_PATH},
                         "settings": {"path": "/bot{secret}"}});
    let (by_jwt, jwt) = caller(&gateway, "jwt", CALLER_JWT);
    let (by_token, bearer) = caller(&gateway, "bearer", CALLER_TOKEN);
    let proxies = [
        (&by_jwt, &jwt, &custom),
        (&by_token, &bearer, &token),
        (&by_jwt, &jwt, &in_path),
    ]
    .map(|(of, field, injected)| (proxy(&gateway, &url, of, injected.clone()), field));
    let mut ids = Vec::new();
    let mut answered = Vec::new();
    let (mut refused, mut explained) = (0, 0);
    let mut call = |path: &str, field: &str, fault: &str| {
        // What panics say has the path.
        let behind = match fault {
            "" => "/v1/x?a=1".to_owned(),
            _ => format!("/v1/{}/x", TARGETS.join("/")),
        };
        let request =
            Request::new("POST", &format!("{path}{behind}")).field("authorization", field);
        let request = match fault {
            "" => request.json(&json!({"quoted": field}).to_string()),
            fault => request.field("requestrocket-fault", fault),
        };
        let answer = request.send(&gateway.url);
        refused += usize::from(answer.status() == 429);
        // Fields too: a caller that may see it is told of each stage in one.
        explained += usize::from(answer.field("requestrocket-explain").is_some());
        answered.extend_from_slice(format!("{:?}", answer.fields).as_bytes());
        answered.extend_from_slice(answer.text().as_bytes());
        ids.extend(answer.field("requestrocket-request-id").map(str::to_owned));
    };
    // A secret is known from its first use on.
    for (path, field) in &proxies {
        call(path, field, "");
    }
    for (path, field) in &proxies {
        for stage in Stage::ALL {
            call(path, field, &format!("panic@{}", stage.name()));
        }
        (0..40).for_each(|_| call(path, field, ""));
    }
    assert!(refused >= 3, "limits refused {refused}");
    assert!(explained >= 100, "{explained} were explained");
    let seen = upstream.seen();
    let seen = seen
        .iter()
        .filter(|request| request.target().contains("/v1/x"))
        .map(|request| format!("{} {:?}", request.target(), request.fields));
    let seen = seen.collect::<String>();
    for secret in TARGETS {
        assert!(seen.contains(secret), "the target was shown {secret}");
    }
    let callers = [CALLER_JWT, CALLER_TOKEN];
    assert!(
        callers
            .iter()
            .all(|secret| !seen.contains(&format!("Bearer {secret}\")")))
    );
    let kinds = |secrets: &[&str]| -> Vec<_> {
        let forms = secrets.iter().map(|one| ((*one).to_owned(), forms(one)));
        forms.collect()
    };
    // What a caller writes into its own body comes back to it; what is injected does not.
    check("answers", &answered, &kinds(&TARGETS));
    let all = kinds(&[&TARGETS[..], &callers].concat());

    let last = ids.last().expect("answers");
    gateway.record(last);
    wait_for("spans", || {
        let spans = received.spans();
        let of_last = |span: &opentelemetry_proto::tonic::trace::v1::Span| {
            format!("{span:?}").contains(last.as_str())
        };
        spans.iter().any(of_last).then_some(())
    });
    explanations(&gateway, &ids, &proxies.map(|(path, _)| path), &all);
    check("the log", gateway.log().as_bytes(), &all);
    panics(&gateway.log());
    check("spans", format!("{:?}", received.spans()).as_bytes(), &all);
    let mut with_bodies = 0;
    for id in &ids {
        let record = gateway.api("GET", &format!("/records/{id}"), None);
        if record.status() == 404 {
            // A panic in the stage that makes it.
            continue;
        }
        with_bodies += usize::from(record.json()["payload"]["response"] != json!(null));
        check("a record", &record.body, &kinds(&TARGETS));
        for form in ["", "?format=otlp"] {
            let trace = gateway.api("GET", &format!("/records/{id}/trace{form}"), None);
            check("a trace", &trace.body, &all);
        }
    }
    assert!(with_bodies >= 60, "{with_bodies}");
    for path in [
        "/records/export",
        "/credentials",
        "/config",
        "/audit",
        "/telemetry?by=path",
    ] {
        let answer = gateway.api("GET", path, None);
        assert_eq!(answer.status(), 200, "{path}");
        check(path, &answer.body, &all);
    }
    let data = gateway.data_dir();
    let (status, folder) = gateway.stop();
    assert!(status.success());
    // Bodies hold what callers wrote into them.
    check_files(&data, &kinds(&TARGETS));
    check("standard output", &output(folder.path()), &all);
    drop(folder);
}
