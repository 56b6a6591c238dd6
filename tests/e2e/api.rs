//! The REST API of the real process: what is wrong is said with its place, and nothing is half
//! applied. The rows of every resource are in `control/src/api/tests`.

use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::http::{Message, Request};
use crate::harness::upstream::Upstream;

/// The problem of a refusal: its status, its code and where things are wrong.
fn problem(answer: &Message) -> (u16, String, Vec<String>) {
    let kind = answer.field("content-type").unwrap_or_default();
    assert!(kind.starts_with("application/problem+json"), "{answer:?}");
    let body = answer.json();
    assert!(
        body["title"].is_string() && body["detail"].is_string(),
        "{body}"
    );
    let pointer = |error: &Value| error["pointer"].as_str().unwrap_or_default().to_owned();
    let errors = body["errors"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let code = body["code"].as_str().unwrap_or_default().to_owned();
    (answer.status(), code, errors.iter().map(pointer).collect())
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_nothing_is_made() {
    let gateway = Gateway::start();
    let count = || {
        ["/targets", "/credentials", "/proxies"]
            .map(|path| gateway.get(path)["items"].as_array().expect("a list").len())
    };
    let before = count();
    let faulty = [
        (
            "/targets",
            json!({"base_url": "ftp://x", "nmae": "x"}),
            vec!["/nmae"],
        ),
        ("/targets", json!({"base_url": 7}), vec!["/base_url"]),
        (
            "/targets",
            json!({"base_url": "https://u:p@example.com?x", "timeouts": {"connect_ms": 0}}),
            vec!["/base_url", "/timeouts/connect_ms"],
        ),
        (
            "/credentials",
            json!({"kind": "proxy", "auth_type": "api_key", "secret": {"key": "short"}}),
            vec!["/secret/key"],
        ),
        (
            "/proxies",
            json!({"target_id": "tgt_00000000000000000000000000", "proxy_credential_ids": []}),
            vec!["/target_id", "/proxy_credential_ids"],
        ),
    ];
    for (path, body, places) in faulty {
        let answer = gateway.api("POST", path, Some(&body));
        let (status, code, pointers) = problem(&answer);
        assert_eq!(status, 422, "{body}: {}", answer.text());
        assert_eq!(code, "validation-failed");
        for place in places {
            assert!(
                pointers.iter().any(|pointer| pointer == place),
                "{place} in {pointers:?}"
            );
        }
    }
    let token = format!("Bearer {}", gateway.token);
    let malformed = Request::new("POST", "/api/v1/orgs/default/targets")
        .field("authorization", &token)
        .json("{\"base_url\": ");
    let (status, code, _) = problem(&malformed.send(&gateway.control));
    assert_eq!((status, code.as_str()), (400, "malformed-json"));
    assert_eq!(count(), before);
}

#[test]
fn a_token_is_needed_and_reaches_as_far_as_its_role() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let (path, target) = (
        format!("/api/v1/orgs/default/proxies/{}", proxy.id),
        format!("/api/v1/orgs/default/targets/{}", proxy.target),
    );
    for token in [None, Some("rr_api_wrong")] {
        let answer = gateway.control_call("GET", &path, token, None);
        assert_eq!(problem(&answer).0, 401);
    }
    let made = gateway.create("/tokens", json!({"name": "dev", "role": "member"}));
    let member = made["secret"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let call = |method: &str, path: &str, body: Value| {
        gateway.control_call(method, path, Some(&member), Some(&body))
    };
    assert_eq!(call("PATCH", &path, json!({"name": "mine"})).status(), 200);
    for (path, body) in [
        (&path, json!({"rewrite_urls": "off"})),
        (&path, json!({"forward_caller_headers": ["authorization"]})),
        (&target, json!({"allow_networks": ["10.0.0.0/8"]})),
        (&target, json!({"pass_headers": ["cookie"]})),
    ] {
        let answer = call("PATCH", path, body.clone());
        assert_eq!(answer.status(), 403, "{body}: {}", answer.text());
    }
    let tokens = "/api/v1/orgs/default/tokens";
    let above = json!({"name": "x", "role": "owner"});
    assert_eq!(call("POST", tokens, above).status(), 403);
}

#[test]
fn two_who_change_the_same_object_notice() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let path = format!("/api/v1/orgs/default/proxies/{}", proxy.id);
    let read = gateway.control_call("GET", &path, Some(&gateway.token), None);
    let etag = read.field("etag").expect("a tag").to_owned();
    let change = |name: &str| {
        Request::new("PATCH", &path)
            .field("authorization", &format!("Bearer {}", gateway.token))
            .field("if-match", &etag)
            .json(&json!({"name": name}).to_string())
            .send(&gateway.control)
    };
    assert_eq!(change("first").status(), 200);
    assert_eq!(problem(&change("second")).0, 412);
    let in_use = gateway.api("DELETE", &format!("/targets/{}", proxy.target), None);
    assert_eq!(in_use.status(), 409, "{}", in_use.text());
    assert!(
        in_use.text().contains(&proxy.id),
        "says by whom: {}",
        in_use.text()
    );
}

#[test]
fn another_organisations_objects_do_not_exist() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let other = json!({"slug": "other"});
    let made = gateway.control_call("POST", "/api/v1/orgs", Some(&gateway.token), Some(&other));
    assert_eq!(made.status(), 201, "{}", made.text());
    let path = format!("/api/v1/orgs/other/proxies/{}", proxy.id);
    let answer = gateway.control_call("GET", &path, Some(&gateway.token), None);
    assert_eq!(answer.status(), 404);
    let body = json!({"target_id": proxy.target, "proxy_credential_ids": [proxy.proxy_credential]});
    let answer = gateway.control_call(
        "POST",
        "/api/v1/orgs/other/proxies",
        Some(&gateway.token),
        Some(&body),
    );
    let (status, _, pointers) = problem(&answer);
    assert_eq!(status, 422, "{}", answer.text());
    assert!(
        pointers.iter().any(|pointer| pointer == "/target_id"),
        "{pointers:?}"
    );
}
