//! What is wrong with a document is told at once, with its place, and nothing is published.

use actix_web::http::Method;
use serde_json::{Value, json};

use proto::store::StoreError;

use super::{Who, api};
use crate::api::error::Code;
use crate::api::write;
use crate::publish::PublishError;

/// A body, and faults that its answer must list: pointer and code.
type Row = (Value, &'static [&'static str]);

async fn check(what: &'static str, method: Method, one: bool, rows: &[Row]) {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let id = match what {
        "targets" => &made.target,
        _ => &made.injected,
    };
    let path = match one {
        true => format!("/orgs/acme/{what}/{id}"),
        false => format!("/orgs/acme/{what}"),
    };
    let before = api.acme_version();
    for (body, expected) in rows {
        let reply = api
            .write(Who::Admin, method.clone(), &path, body.clone())
            .await
            .is(422);
        assert_eq!(
            reply.header("content-type"),
            Some("application/problem+json")
        );
        let faults = reply.faults();
        let found: Vec<_> = faults
            .iter()
            .map(|(at, code)| format!("{at} {code}"))
            .collect();
        for fault in *expected {
            assert!(
                found.iter().any(|f| f == fault),
                "{body}: {fault} is not in {found:?}"
            );
        }
    }
    assert_eq!(api.acme_version(), before, "nothing was published");
}

#[actix_web::test]
async fn all_faults_of_a_target_come_at_once() {
    let two_slips = json!({"baseUrl": 1, "base_url": 5, "timeouts": {"conect_ms": 1}, "http2": 1});
    let read_only = json!({"base_url": "http://x", "id": "x", "timeouts": {"connect_ms": 0}});
    let rows: &[Row] = &[
        (json!({}), &["/base_url required"]),
        (json!([]), &[" type"]),
        (
            two_slips,
            &[
                "/baseUrl unknown-field",
                "/base_url type",
                "/timeouts/conect_ms unknown-field",
                "/http2 type",
            ],
        ),
        (
            read_only,
            &[
                "/id read-only",
                "/base_url plain-http",
                "/timeouts/connect_ms range",
            ],
        ),
        (
            json!({"base_url": "https://u:p@x"}),
            &["/base_url base-url"],
        ),
        (
            json!({"base_url": "https://x/v1?key=secret"}),
            &["/base_url base-url"],
        ),
        (
            json!({"base_url": "https://x/v1#part"}),
            &["/base_url base-url"],
        ),
        (
            json!({"base_url": "https://x", "default_rule_effect": "alow"}),
            &["/default_rule_effect enum"],
        ),
    ];
    check("targets", Method::POST, false, rows).await;
    check(
        "targets",
        Method::PUT,
        true,
        &[(json!({"name": "x"}), &["/base_url required"])],
    )
    .await;
    let rows: &[Row] = &[
        // Bound by a proxy to a credential that may not be sent there.
        (
            json!({"base_url": "https://m.example"}),
            &["/base_url credential-host"],
        ),
        (json!({"base_url": null}), &["/base_url required"]),
        (json!({"basurl": null}), &["/basurl unknown-field"]),
    ];
    check("targets", Method::PATCH, true, rows).await;
}

#[actix_web::test]
async fn all_faults_of_a_credential_come_at_once() {
    let wide = json!({"kind": "target", "auth_type": "bearer", "hosts": ["*.myshopify.com"],
                      "secret": {"token": "x"}});
    let rows: &[Row] = &[
        (
            json!({"kind": "proxy", "auth_type": "api_key", "secret": {"key": "short"}}),
            &["/secret/key secret-too-weak"],
        ),
        (
            json!({"kind": "proxy", "auth_type": "basic"}),
            &["/secret required"],
        ),
        (wide, &["/hosts/0 wildcard-too-wide"]),
        (
            json!({"kind": "target", "auth_type": "bearer", "secret": {"tokn": "x"}}),
            &["/secret/tokn unknown-field", "/hosts required"],
        ),
    ];
    check("credentials", Method::POST, false, rows).await;
    let rows: &[Row] = &[
        (json!({"hosts": ["m.example"]}), &["/hosts secret-required"]),
        (json!({"kind": "proxy"}), &["/kind immutable"]),
        (json!({"secret": null}), &["/secret required"]),
    ];
    check("credentials", Method::PATCH, true, rows).await;
}

#[actix_web::test]
async fn references_are_judged_with_the_object() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let proxy = |body| api.post(Who::Admin, "/orgs/acme/proxies", body);
    let nothing = "tgt_00000000000000000000000000";
    let reply = proxy(json!({"target_id": nothing, "proxy_credential_ids": [made.injected]})).await;
    let reply = reply.is(422);
    let pointers: Vec<_> = reply
        .faults()
        .into_iter()
        .map(|(pointer, _)| pointer)
        .collect();
    assert!(pointers.contains(&"/target_id".to_owned()), "{pointers:?}");
    assert!(
        pointers.contains(&"/proxy_credential_ids/0".to_owned()),
        "{pointers:?}"
    );
    let reply = proxy(json!({"target_id": "tgt_x", "proxy_credential_ids": [made.key]})).await;
    assert_eq!(
        reply.is(422).faults(),
        [("/target_id".to_owned(), "value".to_owned())]
    );
    let other = json!({"base_url": "https://m.example"});
    let other = api
        .post(Who::Admin, "/orgs/acme/targets", other)
        .await
        .is(201)
        .id();
    let body = json!({"target_id": other, "target_credential_id": made.injected,
                      "proxy_credential_ids": [made.key]});
    let reply = proxy(body).await.is(422);
    assert!(
        reply
            .faults()
            .iter()
            .all(|(_, code)| code == "credential-host")
    );
    let reply = proxy(json!({"target_id": other, "proxy_credential_ids": []}))
        .await
        .is(422);
    assert_eq!(reply.faults()[0].0, "/proxy_credential_ids");
}

#[actix_web::test]
async fn hosts_change_with_the_secret_given_again() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/credentials/{}", made.injected);
    let patch = json!({"hosts": ["api.stripe.com", "m.example"], "secret": {"token": "sk_2"}});
    let reply = api.patch(Who::Admin, &path, patch).await.is(200);
    assert_eq!(reply.body["hosts"], json!(["api.stripe.com", "m.example"]));
    assert!(!reply.text.contains("sk_2"));
}

#[actix_web::test]
async fn bodies_are_json_and_of_bounded_size() {
    let api = api().await;
    let path = "/orgs/acme/targets";
    let raw = |media_type: &'static str, body: String| {
        let request = api.request(Who::Admin, Method::POST, path);
        api.send(
            request
                .insert_header(("content-type", media_type))
                .set_payload(body),
        )
    };
    let json = "application/json";
    let reply = raw(json, "{\"base_url\": \n}".into()).await.is(400);
    assert_eq!(reply.body["code"], "malformed-json");
    assert!(
        reply.body["detail"]
            .as_str()
            .unwrap()
            .contains("line 2 column 1"),
        "{}",
        reply.text
    );
    raw(json, String::new()).await.is(400);
    raw(json, "[".repeat(100_000)).await.is(400);
    raw("text/plain", "{}".into()).await.is(415);
    raw("application/x-www-form-urlencoded", "a=b".into())
        .await
        .is(415);
    raw("application/json; charset=utf-8", "{}".into())
        .await
        .is(422);
    raw(json, format!("\"{}\"", "x".repeat(1024 * 1024)))
        .await
        .is(413);
    let none = api
        .request(Who::Admin, Method::POST, path)
        .set_payload("{}");
    api.send(none).await.is(415);
}

#[actix_web::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let api = api().await;
    let reply = api.get(Who::Admin, "/nothing").await.is(404);
    assert_eq!(reply.body["code"], "not-found");
    let reply = api.delete(Who::Admin, "/orgs/acme/targets").await.is(405);
    assert_eq!(reply.header("allow"), Some("GET, POST"));
    assert_eq!(reply.body["code"], "method-not-allowed");
    let reply = api.get(Who::Nobody, "/me").await.is(401);
    assert_eq!(
        reply.header("www-authenticate"),
        Some("Bearer realm=\"requestrocket\"")
    );
}

#[test]
fn what_may_have_been_done_is_not_told_as_undone() {
    let told = |error: StoreError| write::refusal(PublishError::Store(error));
    let unknown = told(StoreError::OutcomeUnknown("broken off".into()));
    assert_eq!(unknown.code, Code::OutcomeUnknown, "{}", unknown.detail);
    let words = &unknown.detail;
    assert!(words.contains("may have been carried out"), "{words}");
    assert!(!words.contains("nothing was changed"), "{words}");
    // A defect of ours does not pass.
    let defect = told(StoreError::Invalid("an empty key".into()));
    assert_eq!(defect.code, Code::Internal, "{}", defect.detail);
    assert!(!defect.detail.contains("try again"), "{}", defect.detail);
    let away = told(StoreError::Unavailable("away".into()));
    assert!(
        away.detail.contains("nothing was changed"),
        "{}",
        away.detail
    );
}
