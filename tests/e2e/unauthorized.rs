//! 401: one answer for every reason, and the reason for those who may know it.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Start};
use crate::harness::http::{Message, Request};
use crate::harness::wait_for;

/// Everything of an answer that could tell one reason from another.
fn told(answer: &Message) -> (u16, Vec<(String, String)>, Value) {
    let mut fields = answer.fields.clone();
    // The request's own id, and the time.
    fields.retain(|(name, _)| !["requestrocket-request-id", "date"].contains(&&**name));
    // Their order is that of a hash table, another for each answer.
    fields.sort();
    let mut body = answer.json();
    let id = body
        .as_object_mut()
        .expect("an object")
        .remove("request_id");
    assert_eq!(
        id,
        answer.field("requestrocket-request-id").map(Value::from)
    );
    (answer.status(), fields, body)
}

fn start(extra: &str) -> Gateway {
    Gateway::with(Start {
        mode: "standalone",
        config: format!("[gateway]\n{extra}"),
        ..Start::default()
    })
}

/// A proxy for a target that is never reached, and its URL's path.
fn proxy(gateway: &Gateway, caller: Value) -> (Value, String) {
    let proxy = gateway.create(
        "/proxies",
        json!({"alias": "stripe", "target": {"base_url": "https://api.stripe.com"},
               "credentials": [caller]}),
    );
    let path = proxy["url"].as_str().expect("a URL")[gateway.url.len()..].to_owned();
    (proxy, path)
}

#[test]
fn every_401_is_the_same_answer_and_the_record_has_the_reason() {
    let gateway = start("");
    let caller = json!({"kind": "proxy", "auth_type": "api_key",
                        "expires_at": "2020-01-01T00:00:00Z"});
    let (proxy, path) = proxy(&gateway, caller);
    let key = proxy["credentials"][0]["secret"]["key"]
        .as_str()
        .expect("a key");
    let other = json!({"kind": "proxy", "auth_type": "api_key"});
    let other = gateway.create("/credentials", other);
    let wrong = other["secret"]["key"].as_str().expect("a key");
    let call = |path: &str, key: &str| {
        let request = Request::new("GET", path);
        match key {
            "" => request.send(&gateway.url),
            key => request.field("x-api-key", key).send(&gateway.url),
        }
    };
    let rows = [
        (&*path, key, "expired"),
        (&path, wrong, "wrong-key"),
        (&path, "", "no-credential"),
        ("/api/stripe/v1", wrong, "wrong-key"),
        ("/api/strpie/v1", wrong, "unknown-proxy"),
        ("/api/default.strpie", "", "unknown-proxy"),
        (
            "/api/prx_00000000000000000000000000/x",
            key,
            "unknown-proxy",
        ),
        ("/api/rr_live_in_the_wrong_place", "", "unknown-proxy"),
    ];
    let expected = told(&call(&path, ""));
    for (path, key, reason) in rows {
        let answer = call(path, key);
        assert_eq!(told(&answer), expected, "{path} {reason}");
        if reason != "unknown-proxy" {
            let id = answer.field("requestrocket-request-id").expect("an id");
            let record = gateway.record(id);
            assert_eq!(record["auth_failure"], reason, "{path}");
            let expected = match key {
                "" => Value::Null,
                key => json!({"place": "x-api-key", "hint": key[key.len() - 4..]}),
            };
            assert_eq!(record["presented"], expected, "{path}");
        }
    }
    assert_eq!(expected.0, 401);
    let unmatched = wait_for("what matched no proxy", || {
        let items = gateway.operator("/unmatched").json()["items"].clone();
        let items = items.as_array().expect("a list").clone();
        (items.len() == 4).then_some(items)
    });
    let mut names: Vec<_> = unmatched
        .iter()
        .map(|i| (&i["name"], &i["nearest"]))
        .collect();
    names.sort_by_key(|(name, _)| name.to_string());
    let [absent, stripe, ours] = [json!(null), json!("stripe"), json!("default.stripe")];
    let [redacted, spelt, whole] = [json!("REDACTED"), json!("strpie"), json!("default.strpie")];
    let id = json!("prx_00000000000000000000000000");
    let expected = [
        (&redacted, &absent),
        (&whole, &ours),
        (&id, &absent),
        (&spelt, &stripe),
    ];
    assert_eq!(names, expected);
    assert!(!json!(unmatched).to_string().contains("rr_live"));
    let with_a_key = unmatched.iter().filter(|i| i["presented"] != json!(null));
    let hints: Vec<_> = with_a_key.map(|i| &i["presented"]["hint"]).collect();
    assert_eq!(hints.len(), 2);
    // The key of a refused call is found, and the credential whose it is.
    assert!(hints.contains(&&other["secret"]["hint"]), "{hints:?}");
    let hint = other["secret"]["hint"].as_str().expect("a hint");
    let found = gateway.get(&format!("/records?key_hint={hint}&auth_failure=wrong-key"));
    let found = found["items"].as_array().map(Vec::len);
    assert_eq!(found, Some(2));
}

/// Whatever the form in which a key is presented, its record says where it stood; of keys that
/// users gave nothing else, be they right or wrong.
#[test]
fn records_say_where_the_key_stood() {
    let gateway = start("");
    let given = "a-key-that-its-user-chose";
    let caller = json!({"kind": "proxy", "auth_type": "api_key", "secret": {"key": given},
                        "settings": {"header": "x-own"}});
    let (proxy, path) = proxy(&gateway, caller);
    let issued = json!({"kind": "proxy", "auth_type": "api_key"});
    let issued = gateway.create("/credentials", issued);
    let both = [&proxy["proxy_credential_ids"][0], &issued["id"]];
    let id = proxy["id"].as_str().expect("an id");
    let change = json!({"proxy_credential_ids": both});
    gateway.patch(&format!("/proxies/{id}"), change);
    let key = issued["secret"]["key"].as_str().expect("a key");
    let hint = &issued["secret"]["hint"];
    let mistyped = format!("{}0", &key[..key.len() - 1]);
    let mistyped = if mistyped == key {
        key.replace("rr_live_", "rr_live_0")
    } else {
        mistyped
    };
    let none = json!(null);
    for (name, value, place, hint) in [
        (
            "authorization",
            format!("Bearer {key}"),
            "authorization",
            hint,
        ),
        ("x-goog-api-key", key.to_owned(), "x-goog-api-key", hint),
        ("x-api-key", mistyped, "x-api-key", &none),
        ("x-own", given.to_owned(), "x-own", &none),
        ("x-own", format!("{given}-not"), "x-own", &none),
        (
            "authorization",
            "Bearer something".to_owned(),
            "authorization",
            &none,
        ),
    ] {
        // The new credential is in force once the node has it.
        let record = wait_for("the record of a call", || {
            let answer = Request::new("DELETE", &path)
                .field(name, &value)
                .send(&gateway.url);
            let id = answer.field("requestrocket-request-id").expect("an id");
            let record = gateway.record(id);
            let is_known = record["presented"]["hint"] == *hint;
            is_known.then_some(record)
        });
        assert_eq!(
            record["presented"],
            json!({"place": place, "hint": hint}),
            "{name} {value}"
        );
        assert!(!record.to_string().contains(given));
    }
}

#[test]
fn basic_is_offered_for_all_or_for_none() {
    for (setting, challenge) in [
        ("", "Bearer realm=\"requestrocket\""),
        (
            "basic_challenge = true",
            "Bearer realm=\"requestrocket\", Basic realm=\"requestrocket\"",
        ),
    ] {
        let gateway = start(setting);
        let (_, path) = proxy(&gateway, json!({"kind": "proxy", "auth_type": "api_key"}));
        for path in [&*path, "/api/unknown"] {
            let answer = Request::new("GET", path).send(&gateway.url);
            assert_eq!(answer.field("www-authenticate"), Some(challenge), "{path}");
        }
    }
}

#[test]
fn development_tells_the_reason() {
    let gateway = Gateway::start();
    let (path, _) = gateway.demo();
    for (path, reason) in [(&*path, "no-credential"), ("/api/nothing", "unknown-proxy")] {
        let answer = Request::new("GET", path).send(&gateway.url);
        let detail = answer.json()["detail"].as_str().expect("a text").to_owned();
        assert!(detail.contains(reason), "{detail}");
    }
}

/// Anybody can make calls without a key: they do not fill the store with records, which would cost
/// others theirs.
#[test]
fn of_a_flood_without_a_key_a_few_records_are_kept_and_the_rest_is_counted() {
    const SENT: usize = 300;
    let gateway = start("workers = 1\n");
    let caller = json!({"kind": "proxy", "auth_type": "api_key"});
    let (_, path) = proxy(&gateway, caller);
    let long = format!("{path}/{}?{}=1", "p".repeat(1_500), "q".repeat(1_500));
    for _ in 0..SENT {
        let answer = Request::new("GET", &long).send(&gateway.url);
        assert_eq!(answer.status(), 401);
    }
    let failures = "requestrocket_auth_failures_total{reason=\"no-credential\"}";
    assert_eq!(gateway.metric(failures), SENT as f64);
    let dropped = gateway.metric("requestrocket_refused_dropped_total");
    // One more for each second that it took.
    assert!((100.0..=200.0).contains(&dropped), "{dropped}");
    let kept = SENT - dropped as usize;
    let all = wait_for("all records that are kept", || {
        let found = gateway.get("/records?auth_failure=no-credential&limit=500");
        let items = found["items"].as_array().cloned().unwrap_or_default();
        (items.len() >= kept).then_some(items)
    });
    assert_eq!(all.len(), kept);
    for record in all {
        let text = record.to_string();
        let longest = |letter| text.split(|c| c != letter).map(str::len).max();
        assert!(
            longest('p') <= Some(256) && longest('q') <= Some(256),
            "{text}"
        );
    }
}
