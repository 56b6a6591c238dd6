//! Secrets that are revoked or replaced while a request with them is under way: a request keeps its
//! configuration, and secrets are facts.

use std::time::Duration;

use serde_json::{Value, json};

use crate::endpoints::made;
use crate::harness::gateway::{Gateway, Proxy, TARGET_SECRET};
use crate::harness::http::Connection;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

const NEW_SECRET: &str = "target-secret-new-91c2";

/// Requests of which one passes in a second.
const HELD: usize = 4;

/// Whether a request waits for its tokens before the secret is put in, or behind that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    InLimit,
    InForward,
}

/// A request filter: the body is needed whole before anything is sent.
fn needs_body(gateway: &Gateway, org: &str, proxy: &Proxy) {
    let filter = json!({"op": "destroy", "paths": ["$.b"], "direction": "request"});
    let place = format!("/proxies/{}/filters", proxy.id);
    let made = gateway.api_of(org, "POST", &place, Some(&filter));
    assert_eq!(made.status(), 201, "{}", made.text());
}

/// Sends a request but for its end; it is under way when this returns.
fn begin(gateway: &Gateway, proxy: &Proxy) -> (Connection, Vec<u8>) {
    let request = proxy.request("POST", "/").json(r#"{"a":1}"#);
    let mut bytes = request.bytes(&gateway.url);
    let last = bytes.split_off(bytes.len() - 3);
    let mut caller = Connection::open(&gateway.url);
    caller.send(bytes);
    in_flight(gateway, 1);
    (caller, last)
}

fn in_flight(gateway: &Gateway, count: usize) {
    wait_for("requests under way", || {
        let now = gateway.metric("requestrocket_requests_in_flight");
        (now >= count as f64).then_some(())
    });
}

/// Gives a target's credential another secret, and waits until calls have it.
fn replace(gateway: &Gateway, proxy: &Proxy) {
    let path = format!("/credentials/{}", proxy.target_credential);
    gateway.patch(&path, json!({"secret": {"token": NEW_SECRET}}));
}

fn secret_of(request: &crate::harness::http::Message) -> Option<String> {
    request.field("authorization").map(str::to_owned)
}

fn revoke(gateway: &Gateway, proxy: &Proxy) {
    let rotate = format!("/credentials/{}/rotate", proxy.proxy_credential);
    let rotated = gateway.api("POST", &rotate, Some(&json!({})));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
}

#[test]
fn a_target_secret_that_is_replaced_while_a_body_comes_goes_in_its_new_form() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(&format!(r#"{{"echo": "{NEW_SECRET}"}}"#));
    let proxy = gateway.proxy(&upstream.url());
    let other = gateway.proxy(&upstream.url());
    needs_body(&gateway, "default", &proxy);
    let (mut caller, last) = begin(&gateway, &proxy);
    for round in 0..2 {
        // Also a form between the one that the request has and the newest.
        let path = format!("/credentials/{}", proxy.target_credential);
        gateway.patch(
            &path,
            json!({"secret": {"token": format!("between-{round}")}}),
        );
    }
    replace(&gateway, &proxy);
    // What is made later is in effect after it.
    gateway.patch(&format!("/proxies/{}", other.id), json!({"active": false}));
    wait_for("the later change", || {
        (other.get("/").status() == 403).then_some(())
    });
    assert_eq!(upstream.seen().len(), 0);
    caller.send(last);
    let answer = caller.read().expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let injected = format!("Bearer {NEW_SECRET}");
    assert_eq!(secret_of(&upstream.last()), Some(injected));
    assert!(!answer.text().contains(NEW_SECRET), "it is overwritten");
    let id = answer.field("requestrocket-request-id").expect("an id");
    let record = gateway.record(id);
    let after = proxy.request("POST", "/").json("{}").send(&gateway.url);
    let id = after.field("requestrocket-request-id").expect("an id");
    let later = gateway.record(id);
    let generation = |record: &Value| record["target_credential_generation"].clone();
    assert!(generation(&record).is_string(), "{record}");
    assert_eq!(
        generation(&record),
        generation(&later),
        "that which was sent"
    );
}

/// One request passes, the others are held; gives their connections in this order.
fn held(gateway: &Gateway, proxy: &Proxy, waits: Waits) -> Vec<Connection> {
    let limit = json!({"limit": 1, "window": "second"});
    let hold = json!({"max_wait_ms": 20_000, "max_waiting": 20});
    let meter = json!({"limits": [limit], "at_limit": {"hold": hold}});
    gateway.create(&format!("/proxies/{}/meters", proxy.id), meter);
    if waits == Waits::InForward {
        needs_body(gateway, "default", proxy);
    }
    let request = proxy.request("POST", "/").json("{}").bytes(&gateway.url);
    let send = |_| {
        let mut caller = Connection::open(&gateway.url);
        caller.send(&request);
        caller
    };
    let open: Vec<_> = (0..=HELD).map(send).collect();
    wait_for("held requests", || {
        (gateway.metric("requestrocket_limit_held_total") >= HELD as f64).then_some(())
    });
    open
}

#[test]
fn a_key_that_is_revoked_while_tokens_are_waited_for_sends_nothing() {
    revoked_while_held(Waits::InLimit);
}

#[test]
fn a_key_that_is_revoked_while_tokens_are_waited_for_behind_a_body_sends_nothing() {
    revoked_while_held(Waits::InForward);
}

fn revoked_while_held(waits: Waits) {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let callers = held(&gateway, &proxy, waits);
    revoke(&gateway, &proxy);
    let mut refused = 0;
    let total = callers.len();
    for mut caller in callers {
        let answer = caller.read().expect("an answer");
        if answer.status() == 200 {
            continue;
        }
        refused += 1;
        assert_eq!(answer.outcome(), (401, "proxy-access-denied"), "{waits:?}");
        let id = answer.field("requestrocket-request-id").expect("an id");
        assert_eq!(gateway.record(id)["auth_failure"], "retired", "{waits:?}");
    }
    assert!(
        refused > 0,
        "{waits:?}: the key was revoked after all had gone"
    );
    assert_eq!(upstream.seen().len(), total - refused, "{waits:?}");
    // No rule has changed since: nothing would be decided otherwise now.
    let question = json!({"proxy": proxy.id, "last": 100});
    let explained = gateway.api("POST", "/explain", Some(&question)).json();
    assert_eq!(explained["decided_otherwise"], json!([]), "{explained}");
    assert_eq!(explained["denied"], json!(refused), "{explained}");
}

#[test]
fn a_target_secret_that_is_replaced_while_tokens_are_waited_for_goes_in_its_new_form() {
    replaced_while_held(Waits::InLimit);
}

#[test]
fn a_target_secret_that_is_replaced_while_a_ready_request_is_held_goes_in_its_new_form() {
    replaced_while_held(Waits::InForward);
}

fn replaced_while_held(waits: Waits) {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let callers = held(&gateway, &proxy, waits);
    replace(&gateway, &proxy);
    for mut caller in callers {
        let answer = caller.read().expect("an answer");
        assert_eq!(answer.status(), 200, "{waits:?}: {}", answer.text());
    }
    let sent: Vec<_> = upstream.seen().iter().map(secret_of).collect();
    let of = |secret: &str| Some(format!("Bearer {secret}"));
    assert_eq!(sent.first(), Some(&of(TARGET_SECRET)), "{waits:?}");
    assert_eq!(sent.last(), Some(&of(NEW_SECRET)), "{waits:?}: {sent:?}");
}

#[test]
fn what_is_under_way_when_its_organisation_is_deleted_sends_nothing() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    gateway.organisation("acme");
    let proxy = gateway.proxy_in("acme", &upstream.url(), json!({}), json!({}));
    needs_body(&gateway, "acme", &proxy);
    let (mut caller, last) = begin(&gateway, &proxy);
    // What is in use is deleted before, by whoever uses it: already that ends the request. That the
    // end of the organisation alone does is shown beside `sync::compile`.
    for path in [
        format!("/proxies/{}", proxy.id),
        format!("/credentials/{}", proxy.proxy_credential),
        format!("/credentials/{}", proxy.target_credential),
        format!("/targets/{}", proxy.target),
    ] {
        let gone = gateway.api_of("acme", "DELETE", &path, None);
        assert_eq!(gone.status(), 204, "{path}: {}", gone.text());
    }
    let path = "/api/v1/orgs/acme";
    let gone = gateway.control_call("DELETE", path, Some(&gateway.token), None);
    assert!(gone.status() < 300, "{}", gone.text());
    wait_for("the end of the organisation", || {
        (proxy.get("/").status() == 401).then_some(())
    });
    caller.send(last);
    let refused = caller.read().expect("an answer");
    assert_eq!(refused.outcome(), (401, "proxy-access-denied"));
    assert_eq!(upstream.seen().len(), 0);
}

/// What a caller keeps the gateway waiting for is none of the target's time.
#[test]
fn an_attempt_begins_when_its_body_is_there() {
    const STALL: Duration = Duration::from_millis(200);
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let other = Upstream::json("{}");
    // A target with several endpoints is sent what is small and may be repeated from memory.
    let endpoints = [&upstream, &other].map(|upstream| json!({"base_url": upstream.url()}));
    let made = made(&gateway, &endpoints, json!({}));
    let mut bytes = made.request("PUT", "/").json("{}").bytes(&gateway.url);
    let last = bytes.split_off(bytes.len() - 1);
    let mut caller = Connection::open(&gateway.url);
    caller.send(bytes);
    in_flight(&gateway, 1);
    std::thread::sleep(STALL);
    caller.send(last);
    let answer = caller.read_to("PUT").expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let id = answer.field("requestrocket-request-id").expect("an id");
    gateway.record(id);
    let trace = gateway.get(&format!("/records/{id}/trace"));
    let spans = trace["spans"].as_array().expect("spans");
    let begun_us = |name: &str| {
        let span = spans.iter().find(|span| span["name"] == name);
        span.and_then(|span| span["start_us"].as_u64()).expect(name)
    };
    let waited_us = begun_us("attempt 1") - begun_us("forward");
    assert!(u128::from(waited_us) >= STALL.as_micros() / 2, "{trace}");
}
