//! `POST …/proxies/{id}/test` and `requestrocket test`: a request through the whole pipeline,
//! without a key.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy, TARGET_SECRET, binary};
use crate::harness::upstream::{Upstream, json_answer};
use crate::harness::wait_for;

fn test(gateway: &Gateway, proxy: &Proxy, body: Value) -> Value {
    let path = format!("/proxies/{}/test", proxy.id);
    let answer = gateway.api("POST", &path, Some(&body));
    assert_eq!(answer.status(), 200, "{body}: {}", answer.text());
    answer.json()
}

/// What a caller could not send is not sent by a test either.
#[test]
fn rules_on_the_body_hold_of_a_test_too() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let deny = json!({"effect": "deny", "body": [{"json_path": "$.model", "value": "^big$"}]});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), deny);
    let asks = |model: &str| {
        let body = json!({"model": model}).to_string();
        let request = json!({"method": "POST", "path": "/x", "body": body,
                             "headers": {"content-type": "application/json"}});
        test(&gateway, &proxy, json!({"request": request}))
    };
    let refused = asks("big");
    assert_eq!(
        (&refused["status"], &refused["code"]),
        (&json!(400), &json!("proxy-access-denied"))
    );
    assert!(upstream.seen().is_empty(), "nothing is sent");
    assert_eq!(asks("small")["status"], 200);
    // The same of an allow rule, where nothing else is allowed.
    let closed = json!({"default_rule_effect": "deny"});
    let path = format!("/proxies/{}", proxy.id);
    assert_eq!(gateway.api("PATCH", &path, Some(&closed)).status(), 200);
    assert_eq!(asks("small")["status"], 400);
    let allow = json!({"effect": "allow", "body": [{"json_path": "$.model", "value": "^small$"}]});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), allow);
    assert_eq!(asks("small")["status"], 200);
    assert_eq!(upstream.seen().len(), 2);
}

#[test]
fn a_test_request_is_one_like_any_other_but_for_the_key() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(r#"{"made":true}"#);
    let limits = json!({"limits": {"per_minute": 2}});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), limits);
    let request = json!({"method": "POST", "path": "/v1/charges?a=%20b", "body": "{\"x\":1}",
                         "headers": {"x-mine": "yes"}});
    let outcome = test(
        &gateway,
        &proxy,
        json!({"request": request, "answer": true}),
    );
    assert_eq!(
        (
            &outcome["status"],
            &outcome["code"],
            &outcome["upstream_status"]
        ),
        (&json!(200), &json!("proxy-access-granted"), &json!(200))
    );
    assert_eq!(outcome["attempts"], 1);
    assert_eq!(outcome["answer"]["body"], r#"{"made":true}"#);
    assert_eq!(outcome["answer"]["whole"], true);
    let seen = upstream.last();
    assert_eq!(
        (seen.method(), seen.target()),
        ("POST", "/v1/charges?a=%20b")
    );
    assert_eq!(
        (seen.field("x-mine"), seen.text().as_str()),
        (Some("yes"), "{\"x\":1}")
    );
    let injected = format!("Bearer {TARGET_SECRET}");
    assert_eq!(seen.field("authorization"), Some(injected.as_str()));
    let stages = outcome["stages"].as_array().expect("stages");
    assert_eq!(stages[0]["stage"], "receive");
    assert!(
        stages.iter().any(|stage| stage["stage"] == "forward"),
        "{stages:?}"
    );
    let record = gateway.record(outcome["request_id"].as_str().expect("an id"));
    assert_eq!(
        record["proxy_credential_id"],
        proxy.proxy_credential.as_str()
    );
    assert_eq!(
        (&record["status"], &record["client_aborted"]),
        (&json!(200), &json!(false))
    );
    // It spends tokens of the proxy's limit, and so do callers.
    assert_eq!(proxy.get("/").status(), 200);
    let outcome = test(&gateway, &proxy, json!({}));
    assert_eq!(
        (&outcome["status"], &outcome["code"]),
        (&json!(429), &json!("rate-limited"))
    );
    assert_eq!(outcome["answer"], Value::Null);
    assert_eq!(upstream.seen().len(), 2);
}

#[test]
fn what_stops_a_caller_stops_a_test_and_is_told() {
    let gateway = Gateway::start();
    let upstream = Upstream::fixed(json_answer("418 I'm a teapot", r#"{"tea":1}"#));
    let proxy = gateway.proxy(&upstream.url());
    let path = format!("/proxies/{}", proxy.id);
    let deny = json!({"effect": "deny", "path": {"pattern": "^/admin"}, "message": "not this"});
    gateway.create(&format!("{path}/rules"), deny);
    let get = |path: &str| json!({"request": {"method": "GET", "path": path}});
    let denied = test(&gateway, &proxy, get("/%61dmin"));
    assert_eq!(
        (&denied["status"], &denied["attempts"]),
        (&json!(400), &json!(0))
    );
    assert_eq!(denied["problem"]["denials"][0]["scope"], "proxy");
    assert_eq!(
        denied["problem"]["denials"][0]["rules"][0]["message"],
        "not this"
    );
    let malformed = test(&gateway, &proxy, get("/a/../b"));
    assert_eq!(malformed["code"], "malformed-request");
    assert_eq!(upstream.seen().len(), 0);
    // The target's own refusal passes, and its body is shown only where that is asked for.
    let passed = test(&gateway, &proxy, get("/tea"));
    assert_eq!(
        (&passed["status"], &passed["problem"]),
        (&json!(418), &Value::Null)
    );
    assert!(!passed.to_string().contains("\"tea\""), "{passed}");
    let credential = format!("/credentials/{}", proxy.proxy_credential);
    gateway.patch(&credential, json!({"expires_at": "2020-01-01T00:00:00Z"}));
    let expired = test(&gateway, &proxy, get("/"));
    assert_eq!(
        (&expired["status"], &expired["auth_failure"]),
        (&json!(401), &json!("expired"))
    );
    gateway.patch(&credential, json!({"expires_at": null}));
    gateway.patch(&path, json!({"active": false}));
    assert_eq!(test(&gateway, &proxy, get("/"))["code"], "proxy-inactive");
    let dead = gateway.proxy("http://127.0.0.1:1");
    let refused = test(&gateway, &dead, get("/"));
    assert_eq!(refused["code"], "upstream-unreachable");
    let detail = refused["problem"]["detail"].as_str().expect("a text");
    assert!(detail.contains("base_url"), "{detail}");
}

/// The decision and its words, by an explanation of the request that a test sends.
#[test]
fn an_explanation_says_what_a_test_meets_at_the_target() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let compare = |proxy: &Proxy, expected: &str| {
        let request = json!({"method": "GET", "path": "/"});
        let tested = test(&gateway, proxy, json!({"request": request}));
        let question = json!({"proxy": proxy.id, "request": request});
        let answer = gateway.api("POST", "/explain", Some(&question)).json();
        assert_eq!(tested["code"], expected, "{tested}");
        let (decision, code) = match expected {
            "proxy-access-granted" => ("allowed", Value::Null),
            code => ("denied", json!(code)),
        };
        assert_eq!(
            (&answer["decision"], &answer["code"]),
            (&json!(decision), &code)
        );
        let stages = answer["stages"].as_array().expect("stages");
        let last = stages.last().expect("a stage")["detail"].clone();
        let (told, explained) = (tested["problem"]["detail"].as_str(), last.as_str());
        let is_same = told.zip(explained).map(|(t, e)| e.contains(t));
        let expected = (expected != "proxy-access-granted").then_some(true);
        assert_eq!(is_same, expected, "{told:?} and {explained:?}");
    };
    let proxy = gateway.proxy(&upstream.url());
    compare(&proxy, "proxy-access-granted");
    // A private address that nobody permits, and a permitted one that the target does not name.
    compare(
        &gateway.proxy("http://10.255.255.1:8080"),
        "upstream-blocked",
    );
    let target = format!("/targets/{}", proxy.target);
    gateway.patch(&target, json!({"allow_networks": []}));
    compare(&proxy, "upstream-blocked");
    gateway.patch(&target, json!({"allow_networks": ["127.0.0.0/8"]}));
    compare(&proxy, "proxy-access-granted");
    // A name that is known without DNS has two addresses, of which one is not allowed.
    let name = upstream.url().replace("127.0.0.1", "localhost");
    compare(&gateway.proxy(&name), "upstream-blocked");
    // A secret that was revoked.
    let revoked = json!({"credential": proxy.target_credential});
    let token = Some(gateway.token.as_str());
    let answer = gateway.control_call("POST", "/api/v1/revocations", token, Some(&revoked));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    wait_for("the node to know of it", || {
        let tested = test(&gateway, &proxy, json!({}));
        (tested["code"] == "credential-unavailable").then_some(())
    });
    compare(&proxy, "credential-unavailable");
}

/// Whoever may send tests must not be able to make others look like the sources of a leaked key.
#[test]
fn a_test_leaves_no_source_behind() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let other = json!({"request": {"method": "GET", "path": "/", "source": "203.0.113.66"}});
    let path = format!("/proxies/{}/test", proxy.id);
    assert_eq!(gateway.api("POST", &path, Some(&other)).status(), 422);
    let request = json!({"method": "GET", "path": "/"});
    let tested = test(&gateway, &proxy, json!({"request": request}));
    let id = tested["request_id"].as_str().expect("an id");
    assert_eq!(gateway.record(id)["source_address"], Value::Null);
    assert_eq!(proxy.get("/").status(), 200);
    let path = format!("/credentials/{}/use", proxy.proxy_credential);
    let found = wait_for("both requests", || {
        let found = gateway.get(&path);
        (found["used_24h"] == 2).then_some(found)
    });
    assert_eq!(found["sources"], json!(["127.0.0.1"]));
}

#[test]
fn the_command_tells_the_outcome_and_fails_where_the_gateway_refuses() {
    let gateway = Gateway::start();
    let run = |arguments: &[&str]| {
        let output = binary()
            .args(["test", "--control", &gateway.control])
            .args(arguments)
            .env("REQUESTROCKET_TOKEN", &gateway.token)
            .output()
            .expect("the binary runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, said, _) = run(&["demo"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.starts_with("200 proxy-access-granted, the target 200 in "),
        "{said}"
    );
    assert!(said.contains("  forward "), "{said}");
    let arguments = [
        "demo", "POST", "/hi?a=b", "-H", "x-one: 1", "--body", "hey", "--answer",
    ];
    let (code, said, _) = run(&arguments);
    assert_eq!(code, Some(0), "{said}");
    // The echo target shows what it was sent.
    for part in [
        "\"method\":\"POST\"",
        "\"path\":\"/hi?a=b\"",
        "\"x-one\":\"1\"",
        "\"body\":\"hey\"",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (code, said, why) = run(&["demo", "GET", "/a/../b"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("400 malformed-request"), "{said}");
    assert!(why.contains("refused"), "{why}");
    let (code, _, why) = run(&["nothing"]);
    assert_eq!(code, Some(1));
    assert!(
        why.contains("no proxy of organisation default has the id or name `nothing`"),
        "{why}"
    );
}
