//! Who may call, and what the target is shown instead.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::http::{Connection, Message, Request};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// A proxy whose caller's credential and target's credential are given as API bodies; gives the
/// proxy's path.
fn proxy(gateway: &Gateway, upstream: &Upstream, caller: Value, target: Value) -> (String, Value) {
    let made = gateway.create(
        "/targets",
        json!({
            "base_url": upstream.url(), "allow_http": true, "allow_networks": ["127.0.0.0/8"],
        }),
    );
    let caller = gateway.create("/credentials", caller);
    let mut body = json!({"target_id": made["id"], "proxy_credential_ids": [caller["id"]]});
    if caller["auth_type"] == "none" {
        body["acknowledge_open"] = true.into();
    }
    if !target.is_null() {
        body["target_credential_id"] = gateway.create("/credentials", target)["id"].clone();
    }
    let proxy = gateway.create("/proxies", body);
    let url = proxy["url"].as_str().expect("a URL");
    (url[gateway.url.len()..].to_owned(), caller)
}

fn get(gateway: &Gateway, path: &str, fields: &[(&str, &str)]) -> Message {
    let mut request = Request::new("GET", path);
    for (name, value) in fields {
        request = request.field(name, value);
    }
    request.send(&gateway.url)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

const GIVEN: &str = "a-secret-that-a-user-chose-0123";
const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg";

#[test]
fn an_issued_key_is_found_where_sdks_put_it_and_never_reaches_the_target() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let caller = json!({"kind": "proxy", "auth_type": "api_key"});
    let (path, caller) = proxy(&gateway, &upstream, caller, Value::Null);
    let key = caller["secret"]["key"].as_str().expect("a key");
    let (bearer, user) = (format!("Bearer {key}"), basic(key, ""));
    let places = [
        ("authorization", bearer.as_str()),
        ("authorization", user.as_str()),
        ("authorization", key),
        ("x-api-key", key),
        ("api-key", key),
        ("x-goog-api-key", key),
        ("private-token", key),
        ("x-requestrocket-key", key),
    ];
    for (name, value) in places {
        let answer = get(&gateway, &path, &[(name, value)]);
        assert_eq!(answer.status(), 200, "{name}: {value}");
        let sent = format!("{:?}", upstream.last());
        assert!(!sent.contains(key), "{name}: {sent}");
        assert!(
            !sent.contains(&STANDARD.encode(format!("{key}:"))),
            "{sent}"
        );
    }
    let count = upstream.seen().len();
    for (name, value) in [
        ("x-secret", key),
        ("cookie", &format!("key={key}")),
        ("x-api-key", &key[..key.len() - 1]),
        ("x-api-key", &format!("{key}x")),
    ] {
        let answer = get(&gateway, &path, &[(name, value)]);
        assert_eq!(
            answer.outcome(),
            (401, "proxy-access-denied"),
            "{name}: {value}"
        );
    }
    assert_eq!(upstream.seen().len(), count);
}

#[test]
fn every_kind_of_callers_credential() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let good_basic = basic("ada", GIVEN);
    let bad_basic = basic("eve", GIVEN);
    let rows = [
        (
            json!({
                "auth_type": "api_key", "secret": {"key": GIVEN},
                "settings": {"header": "x-k"},
            }),
            ("x-k", GIVEN.to_owned()),
            ("authorization", format!("Bearer {GIVEN}")),
        ),
        (
            json!({"auth_type": "bearer", "secret": {"token": GIVEN}}),
            ("authorization", format!("Bearer {GIVEN}")),
            ("authorization", good_basic.clone()),
        ),
        (
            json!({"auth_type": "basic", "secret": {"username": "ada", "password": GIVEN}}),
            ("authorization", good_basic),
            ("authorization", bad_basic),
        ),
        (
            json!({"auth_type": "jwt", "secret": {"token": JWT}}),
            ("authorization", format!("Bearer {JWT}")),
            ("authorization", format!("Bearer {}x", JWT)),
        ),
        (
            json!({"auth_type": "none"}),
            ("x-nothing", String::new()),
            ("host", "evil.example.com".into()),
        ),
    ];
    for (mut caller, good, bad) in rows {
        caller["kind"] = "proxy".into();
        let (path, _) = proxy(&gateway, &upstream, caller.clone(), Value::Null);
        let answer = get(&gateway, &path, &[(good.0, &good.1)]);
        assert_eq!(answer.status(), 200, "{caller}: {}", answer.text());
        let sent = format!("{:?}", upstream.last());
        assert!(
            !sent.contains(GIVEN) && !sent.contains(JWT),
            "{caller}: {sent}"
        );
        let answer = get(&gateway, &path, &[(bad.0, &bad.1)]);
        assert_ne!(answer.status(), 200, "{caller} {bad:?}");
    }
}

#[test]
fn every_kind_of_targets_credential() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let header = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
    let rows = [
        (
            json!({"auth_type": "bearer", "secret": {"token": "sk-live"}}),
            header("authorization", "Bearer sk-live"),
            "/v1?a=b",
        ),
        (
            json!({"auth_type": "basic", "secret": {"username": "u", "password": "p:q"}}),
            header("authorization", &basic("u", "p:q")),
            "/v1?a=b",
        ),
        (
            json!({"auth_type": "jwt", "secret": {"token": JWT}}),
            header("authorization", &format!("Bearer {JWT}")),
            "/v1?a=b",
        ),
        (
            json!({"auth_type": "api_key", "secret": {"key": "sk-live"}}),
            header("x-api-key", "sk-live"),
            "/v1?a=b",
        ),
        (
            json!({
                "auth_type": "api_key", "secret": {"key": "sk-live"},
                "settings": {"header": "authorization", "prefix": "Token "},
            }),
            header("authorization", "Token sk-live"),
            "/v1?a=b",
        ),
        (
            json!({
                "auth_type": "api_key", "secret": {"key": "sk&live"},
                "settings": {"query": "key"},
            }),
            None,
            "/v1?a=b&key=sk%26live",
        ),
        (
            json!({
                "auth_type": "api_key", "secret": {"key": "123:abc"},
                "settings": {"path": "/bot{secret}"},
            }),
            None,
            "/bot123:abc/v1?a=b",
        ),
        (
            json!({
                "auth_type": "custom",
                "secret": {
                    "headers": [{"name": "dd-api-key", "value": "one"}],
                    "queries": [{"name": "app", "value": "two"}],
                },
            }),
            header("dd-api-key", "one"),
            "/v1?a=b&app=two",
        ),
        (json!({"auth_type": "none"}), None, "/v1?a=b"),
    ];
    for (mut target, field, expected) in rows {
        target["kind"] = "target".into();
        if target["auth_type"] != "none" {
            target["hosts"] = json!([upstream.url()]);
        }
        let caller = json!({"kind": "proxy", "auth_type": "api_key"});
        let (path, caller) = proxy(&gateway, &upstream, caller, target.clone());
        let key = caller["secret"]["key"].as_str().expect("a key");
        let bearer = format!("Bearer {key}");
        let answer = get(
            &gateway,
            &format!("{path}/v1?a=b"),
            &[("authorization", &bearer)],
        );
        assert_eq!(answer.status(), 200, "{target}: {}", answer.text());
        let sent = upstream.last();
        assert_eq!(sent.target(), expected, "{target}");
        match field {
            Some((name, value)) => assert_eq!(sent.field(&name), Some(value.as_str()), "{target}"),
            None => assert_eq!(sent.field("authorization"), None, "{target}"),
        }
    }
}

#[test]
fn an_expired_credential_is_refused_and_another_of_the_proxy_still_works() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let second = json!({"kind": "proxy", "auth_type": "bearer", "secret": {"token": GIVEN}});
    let second = gateway.create("/credentials", second);
    let both = json!([proxy.proxy_credential, second["id"]]);
    gateway.patch(
        &format!("/proxies/{}", proxy.id),
        json!({"proxy_credential_ids": both}),
    );
    let with_second = proxy
        .request("GET", "/")
        .without("authorization")
        .field("authorization", &format!("Bearer {GIVEN}"));
    assert_eq!(proxy.send(&with_second).status(), 200);
    assert_eq!(proxy.get("/").status(), 200);
    let past = json!({"expires_at": "2020-01-01T00:00:00Z"});
    gateway.patch(&format!("/credentials/{}", proxy.proxy_credential), past);
    let refused = proxy.get("/");
    assert_eq!(refused.outcome(), (401, "proxy-access-denied"));
    assert_eq!(proxy.send(&with_second).status(), 200);
    let id = refused.field("requestrocket-request-id").expect("an id");
    assert_eq!(gateway.record(id)["auth_failure"], "expired");
}

#[test]
fn no_parameter_stands_beside_the_one_that_is_injected() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let caller = json!({"kind": "proxy", "auth_type": "api_key"});
    let target = json!({
        "kind": "target", "auth_type": "api_key", "hosts": [upstream.url()],
        "settings": {"query": "key"}, "secret": {"key": "third-party-key-0001"},
    });
    let (path, caller) = proxy(&gateway, &upstream, caller, target);
    let bearer = format!(
        "Bearer {}",
        caller["secret"]["key"].as_str().expect("a key")
    );
    for (query, expected) in [
        ("a=1;key=evil", "a=1"),
        ("key=evil&KEY=2&b=1;c=2", "b=1;c=2"),
        ("a=1;k%65y=evil;c", "a=1;c"),
    ] {
        let target = format!("{path}/x?{query}");
        let answer = get(&gateway, &target, &[("authorization", &bearer)]);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let expected = format!("/x?{expected}&key=third-party-key-0001");
        assert_eq!(upstream.last().target(), expected);
    }
}

#[test]
fn an_expired_open_credential_opens_nothing() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let open = json!({"kind": "proxy", "auth_type": "none"});
    let (path, caller) = proxy(&gateway, &upstream, open, Value::Null);
    assert_eq!(get(&gateway, &path, &[]).status(), 200);
    let credential = format!("/credentials/{}", caller["id"].as_str().expect("an id"));
    gateway.patch(&credential, json!({"expires_at": "2020-01-01T00:00:00Z"}));
    let refused = wait_for("the change", || {
        let answer = get(&gateway, &path, &[]);
        (answer.status() != 200).then_some(answer)
    });
    assert_eq!(refused.outcome(), (401, "proxy-access-denied"));
    let id = refused.field("requestrocket-request-id").expect("an id");
    assert_eq!(gateway.record(id)["auth_failure"], "expired");
}

#[test]
fn a_key_that_two_credentials_share_is_valid_as_long_as_one_of_them_is() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let bearer = json!({"kind": "proxy", "auth_type": "bearer", "secret": {"token": GIVEN}});
    let mut past = bearer.clone();
    past["expires_at"] = "2020-01-01T00:00:00Z".into();
    let ids = [past, bearer].map(|one| gateway.create("/credentials", one)["id"].clone());
    let path = format!("/proxies/{}", proxy.id);
    let fields = [("authorization", &*format!("Bearer {GIVEN}"))];
    gateway.patch(&path, json!({"proxy_credential_ids": ids}));
    wait_for("the second one", || {
        (get(&gateway, &proxy.path, &fields).status() == 200).then_some(())
    });
    gateway.patch(&path, json!({"proxy_credential_ids": [ids[0]]}));
    let refused = wait_for("the end of the second one", || {
        let answer = get(&gateway, &proxy.path, &fields);
        (answer.status() != 200).then_some(answer)
    });
    let id = refused.field("requestrocket-request-id").expect("an id");
    assert_eq!(gateway.record(id)["auth_failure"], "expired");
}

#[test]
fn a_key_of_the_other_kind_stays_for_its_overlap() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let caller = json!({"kind": "proxy", "auth_type": "bearer"});
    let (path, caller) = proxy(&gateway, &upstream, caller, Value::Null);
    let rotate = format!(
        "/credentials/{}/rotate",
        caller["id"].as_str().expect("an id")
    );
    let bearer = |key: &str| format!("Bearer {key}");
    let status = |value: &str| get(&gateway, &path, &[("authorization", value)]).status();
    let first = bearer(caller["secret"]["token"].as_str().expect("a key"));
    assert_eq!(status(&first), 200);
    let given = json!({"secret": {"token": GIVEN}, "overlap_ms": 86_400_000});
    let rotated = gateway.api("POST", &rotate, Some(&given));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    let second = bearer(GIVEN);
    wait_for("the given key", || (status(&second) == 200).then_some(()));
    assert_eq!(status(&first), 200);
    let generated = json!({"overlap_ms": 86_400_000});
    let rotated = gateway.api("POST", &rotate, Some(&generated)).json();
    let third = bearer(rotated["secret"]["token"].as_str().expect("a key"));
    wait_for("the third key", || (status(&third) == 200).then_some(()));
    assert_eq!((status(&second), status(&first)), (200, 401));
}

#[test]
fn where_a_given_key_stood_nothing_is_taken_for_one_when_it_is_over() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let bearer = json!({"kind": "proxy", "auth_type": "bearer", "secret": {"token": GIVEN}});
    let open = json!({"kind": "proxy", "auth_type": "none"});
    let ids = [bearer, open].map(|one| gateway.create("/credentials", one)["id"].clone());
    let fields = json!({"proxy_credential_ids": ids, "acknowledge_open": true});
    gateway.patch(&format!("/proxies/{}", proxy.id), fields);
    let status = |key: &str| {
        let value = format!("Bearer {key}");
        get(&gateway, &proxy.path, &[("authorization", &value)]).status()
    };
    wait_for("the given key", || (status(GIVEN) == 200).then_some(()));
    let others = "a-key-of-somebody-else";
    assert_eq!(status(others), 401);
    let rotate = format!("/credentials/{}/rotate", ids[0].as_str().expect("an id"));
    let rotated = gateway.api("POST", &rotate, Some(&json!({"overlap_ms": 3_000})));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    // It is the open credential's caller.
    wait_for("the end of the overlap", || {
        (status(others) == 200).then_some(())
    });
    assert_eq!(status(GIVEN), 401);
}

#[test]
fn a_request_whose_key_stands_in_the_path_too_is_not_sent() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let key = proxy.key.replace("rr_", "%72r_");
    for key in [&proxy.key, &key] {
        let refused = proxy.get(&format!("/bot{key}/getMe"));
        assert_eq!(refused.outcome(), (400, "malformed-request"));
        let text = refused.text();
        assert!(text.contains("stands in its path too"), "{text}");
        let id = refused.field("requestrocket-request-id").expect("an id");
        let record = gateway.record(id);
        assert!(!record.to_string().contains("_live_"), "{record}");
        assert_eq!(record["proxy_credential_id"], proxy.proxy_credential);
    }
    assert!(upstream.seen().is_empty());
}

#[test]
fn a_leaked_key_is_rotated_away_at_once() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    assert_eq!(proxy.get("/").status(), 200);
    let rotate = format!("/credentials/{}/rotate", proxy.proxy_credential);
    let rotated = gateway.api("POST", &rotate, Some(&json!({})));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    assert_eq!(proxy.get("/").status(), 401);
    let key = rotated.json()["secret"]["key"]
        .as_str()
        .expect("a key")
        .to_owned();
    let renewed = proxy
        .request("GET", "/")
        .without("authorization")
        .field("x-api-key", &key);
    assert_eq!(proxy.send(&renewed).status(), 200);
}

#[test]
fn a_key_that_is_rotated_away_while_a_body_comes_sends_nothing() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    // The body is needed whole before anything is sent.
    let filter = json!({"op": "destroy", "paths": ["$.b"], "direction": "request"});
    gateway.create(&format!("/proxies/{}/filters", proxy.id), filter);
    let bytes = proxy
        .request("POST", "/")
        .json(r#"{"a":1}"#)
        .bytes(&gateway.url);
    let (first, last) = bytes.split_at(bytes.len() - 3);
    let mut caller = Connection::open(&gateway.url);
    caller.send(first);
    wait_for("a request under way", || {
        (gateway.metric("requestrocket_requests_in_flight") >= 1.0).then_some(())
    });
    // The request has a form that is not the last one before the revocation.
    gateway.patch(&format!("/proxies/{}", proxy.id), json!({"active": false}));
    wait_for("the change", || {
        (proxy.get("/").status() == 403).then_some(())
    });
    gateway.patch(&format!("/proxies/{}", proxy.id), json!({"active": true}));
    wait_for("the change", || {
        (proxy.get("/").status() == 200).then_some(())
    });
    let rotate = format!("/credentials/{}/rotate", proxy.proxy_credential);
    let rotated = gateway.api("POST", &rotate, Some(&json!({})));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    wait_for("the end of the key", || {
        (proxy.get("/").status() == 401).then_some(())
    });
    let before = upstream.seen().len();
    caller.send(last);
    let refused = caller.read().expect("an answer");
    assert_eq!(refused.outcome(), (401, "proxy-access-denied"));
    assert!(
        refused.text().contains("revoked before it could be sent"),
        "{}",
        refused.text()
    );
    assert_eq!(upstream.seen().len(), before);
    let id = refused.field("requestrocket-request-id").expect("an id");
    assert_eq!(gateway.record(id)["auth_failure"], "retired");
}

#[test]
fn a_key_is_found_behind_any_scheme_and_among_subprotocols_and_never_sent_on() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let key = &proxy.key;
    let protocols = format!("realtime, openai-insecure-api-key.{key}");
    for (name, value) in [
        ("authorization", format!("Bot {key}")),
        ("authorization", format!("GenieKey {key}")),
        ("sec-websocket-protocol", protocols.clone()),
    ] {
        let request = Request::new("GET", &proxy.path).field(name, &value);
        assert_eq!(request.send(&gateway.url).status(), 200, "{name}: {value}");
    }
    let both = proxy
        .request("GET", "/")
        .field("sec-websocket-protocol", &protocols);
    assert_eq!(proxy.send(&both).status(), 200);
    for seen in upstream.seen() {
        assert!(
            !format!("{:?}", seen.fields).contains("rr_live"),
            "{:?}",
            seen.fields
        );
    }
}

/// What a member lets into records is never a key, wherever callers put theirs.
#[test]
fn a_key_that_stands_in_other_places_too_is_sent_on_from_none() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let issued = json!({"kind": "proxy", "auth_type": "api_key"});
    let (issued_path, caller) = proxy(&gateway, &upstream, issued, Value::Null);
    let issued = caller["secret"]["key"].as_str().expect("a key").to_owned();
    let given = json!({
        "kind": "proxy", "auth_type": "basic",
        "secret": {"username": "anna", "password": GIVEN},
    });
    let (given_path, _) = proxy(&gateway, &upstream, given, Value::Null);
    let bearer = format!("Bearer {issued}");
    for (path, secret, shown) in [
        (&issued_path, issued.as_str(), bearer),
        (&given_path, GIVEN, basic("anna", GIVEN)),
    ] {
        let escaped = secret.replace('a', "%61");
        let target = format!("{path}/x?a=%20&t=1{escaped}&&t=2&b=+");
        let held = format!("key={secret}; c=1");
        let fields = [
            ("authorization", shown.as_str()),
            ("x-tag", held.as_str()),
            ("x-other", "kept"),
        ];
        let answer = get(&gateway, &target, &fields);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let sent = upstream.last();
        let text = format!("{sent:?}");
        assert!(!text.contains(secret) && !text.contains(&escaped), "{text}");
        assert!(
            text.contains("/x?a=%20&&t=2&b=+") && text.contains("kept"),
            "{text}"
        );
        let warning = answer.field("requestrocket-proxy-warning");
        let warning = warning.expect("a warning");
        assert!(
            warning.contains("the field x-tag and the query") && !warning.contains(secret),
            "{warning}"
        );
    }
    // Words that are too short to be told from others go on as they are.
    let answer = get(
        &gateway,
        &issued_path,
        &[
            ("authorization", &format!("Bearer {issued}")),
            ("x-tag", &issued[..11]),
        ],
    );
    assert_eq!(answer.field("requestrocket-proxy-warning"), None);
    assert!(format!("{:?}", upstream.last()).contains(&issued[..11]));
}

#[test]
fn no_record_holds_a_key() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let caller = json!({"kind": "proxy", "auth_type": "api_key", "settings": {"query": "key"}});
    let caller = gateway.create("/credentials", caller);
    let made = gateway.proxy(&upstream.url());
    let changes = json!({
        "proxy_credential_ids": [caller["id"]],
        "record": {"query_allow": ["key", "page"]},
    });
    gateway.patch(&format!("/proxies/{}", made.id), changes);
    let key = caller["secret"]["key"].as_str().expect("a key");
    let answer = Request::new("GET", &format!("{}/?page=2&key={key}", made.path));
    let answer = answer.send(&gateway.url);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let id = answer.field("requestrocket-request-id").expect("an id");
    let record = gateway.record(id);
    assert!(!record.to_string().contains(key), "{record}");
    assert_eq!(record["query"][0], json!({"name": "page", "value": "2"}));
}

/// An open proxy answers programs on this machine, and no page of another site.
#[test]
fn an_open_proxy_answers_no_foreign_page() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let made = gateway.proxy(&upstream.url());
    let open = gateway.create(
        "/credentials",
        json!({"kind": "proxy", "auth_type": "none"}),
    );
    let changes = json!({"proxy_credential_ids": [open["id"]], "acknowledge_open": true});
    gateway.patch(&format!("/proxies/{}", made.id), changes);
    let status = |fields: &[(&str, &str)]| {
        let mut request = Request::new("GET", &made.path);
        for (name, value) in fields {
            request = match *name {
                "host" => request.without("host").field(name, value),
                _ => request.field(name, value),
            };
        }
        request.send(&gateway.url).status()
    };
    assert_eq!(status(&[]), 200);
    assert_eq!(status(&[("host", "LocalHost:1")]), 200);
    assert_eq!(status(&[("host", "rebound.example")]), 401);
    assert_eq!(status(&[("origin", "https://evil.example")]), 401);
    assert_eq!(status(&[("sec-fetch-site", "cross-site")]), 401);
    assert_eq!(status(&[("sec-fetch-site", "same-origin")]), 200);
}
