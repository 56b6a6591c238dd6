//! What one organisation has saved as a secret is told to no other by stars, and blots out nothing
//! that others or the operator read.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy, Start};
use crate::harness::http::Request;
use crate::harness::upstream::{After, Upstream, json_answer};
use crate::harness::wait_for;

const PASSWORD: &str = "Sommer-2024!";
const OPERATORS: &str = "operators-own-passphrase-nr-00001";

/// What the organisation `default` saves: one secret, and words of ours.
const SAVED: [&str; 7] = [
    PASSWORD,
    "no valid credential for this proxy was presented",
    "\"request_id\":\"",
    "secret-reflected",
    "application/problem",
    "\"},\"target\":\"",
    "\",\"fields\":{\"message\":\"",
];

fn started() -> Gateway {
    Gateway::with(Start {
        config: "[log]\nformat = \"json\"\n".into(),
        environment: vec![("REQUESTROCKET_ADMIN_TOKEN".into(), OPERATORS.into())],
        ..Start::default()
    })
}

/// A proxy whose target was sent all that is saved.
fn saved(gateway: &Gateway, upstream: &Upstream) -> Proxy {
    let headers = SAVED.iter().enumerate();
    let headers = headers.map(|(n, value)| json!({"name": format!("x-{n}"), "value": value}));
    let credential = gateway.create(
        "/credentials",
        json!({
            "kind": "target", "auth_type": "custom", "hosts": [upstream.url()],
            "secret": {"headers": headers.collect::<Vec<_>>()},
        }),
    );
    let fields = json!({"target_credential_id": credential["id"]});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), fields);
    assert_eq!(proxy.get("/used").status(), 200);
    proxy
}

/// What the record of a request of an organisation says.
fn record(gateway: &Gateway, org: &str, id: &str) -> Value {
    wait_for("a record", || {
        let answer = gateway.api_of(org, "GET", &format!("/records/{id}"), None);
        (answer.status() == 200).then(|| answer.json())
    })
}

#[test]
fn no_guess_at_what_others_have_is_answered_by_a_record() {
    let gateway = started();
    let upstream = Upstream::json("{}");
    let own = saved(&gateway, &upstream);
    gateway.organisation("other");
    let other = gateway.proxy_in("other", &upstream.url(), json!({}), json!({}));
    for (proxy, org, word, is_shown) in [
        (&other, "other", PASSWORD, true),
        (&other, "other", OPERATORS, true),
        (&own, "default", PASSWORD, false),
        (&own, "default", OPERATORS, true),
    ] {
        let request = proxy
            .request("GET", &format!("/guess/{word}/x"))
            .field("user-agent", &format!("agent {word}"));
        let answer = proxy.send(&request);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let id = answer.field("requestrocket-request-id").expect("an id");
        let record = record(&gateway, org, id).to_string();
        assert_eq!(record.contains(word), is_shown, "{org} {word}: {record}");
        let stars = "*".repeat(word.len());
        assert_eq!(record.contains(&stars), !is_shown, "{org} {word}: {record}");
    }
}

#[test]
fn nothing_that_an_organisation_saves_is_cut_out_of_what_others_read() {
    let gateway = started();
    // It quotes the secret that others are to be told of.
    let upstream = Upstream::start(|request, connection| {
        let quoted = request.field("authorization").unwrap_or_default();
        let said = json!({ "said": quoted }).to_string();
        connection.send(json_answer("200 OK", &said));
        After::Keep
    });
    saved(&gateway, &upstream);
    gateway.organisation("other");
    let other = gateway.proxy_in("other", &upstream.url(), json!({}), json!({}));
    for path in [&other.path, "/api/nobodys"] {
        let refused = Request::new("GET", path).send(&gateway.url);
        assert_eq!(refused.outcome(), (401, "proxy-access-denied"));
        let document = refused.json();
        let detail = document["detail"].as_str().expect("a text");
        assert!(detail.starts_with(SAVED[1]), "{detail}");
        assert!(document["request_id"].is_string());
        let message = refused.field("requestrocket-proxy-message");
        assert_eq!(message, Some(detail));
    }
    assert_eq!(other.get("/x").status(), 200);
    let event = wait_for("the event", || {
        let log = gateway.log();
        let told = "the target's answer";
        let line = log.lines().rev().find(|line| line.contains(told));
        line.map(str::to_owned)
    });
    for line in gateway.log().lines().filter(|line| line.starts_with('{')) {
        let event: Result<Value, _> = serde_json::from_str(line);
        assert!(
            event.is_ok_and(|event| event["target"].is_string()),
            "{line}"
        );
    }
    let event: Value = serde_json::from_str(&event).expect("JSON");
    assert_eq!(event["fields"]["event"], "secret-reflected");
}
