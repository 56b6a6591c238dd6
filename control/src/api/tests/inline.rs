//! A proxy made together with its target and credentials.

use actix_web::http::Method;
use proto::tree::SYSTEM_ORG;
use serde_json::{Value, json};

use super::{Who, api};

const PROXIES: &str = "/orgs/acme/proxies";

fn whole() -> Value {
    json!({
        "alias": "stripe",
        "limits": {"per_minute": 60},
        "target": {"base_url": "https://api.stripe.com/v1"},
        "credentials": [
            {"kind": "target", "auth_type": "bearer", "secret": {"token": "sk_live_1"}},
            {"kind": "proxy", "auth_type": "api_key"},
            {"kind": "proxy", "auth_type": "basic",
             "secret": {"username": "caller", "password": "Wq8-long-enough-to-be-strong"}}
        ]
    })
}

#[actix_web::test]
async fn everything_is_made_in_one_version() {
    let api = api().await;
    let before = api.acme_version();
    let made = api.post(Who::Admin, PROXIES, whole()).await.is(201);
    assert_eq!(api.acme_version(), before + 1);
    let (proxy, id) = (&made.body, made.id());
    let location = format!("/api/v1/orgs/acme/proxies/{id}");
    assert_eq!(made.header("location"), Some(location.as_str()));
    assert_eq!(proxy["url"], format!("https://gw.example/api/{id}"));
    assert_eq!(proxy["target_id"], proxy["target"]["id"]);
    let credentials = proxy["credentials"].as_array().unwrap();
    assert_eq!(credentials.len(), 3);
    assert_eq!(proxy["target_credential_id"], credentials[0]["id"]);
    // Bound to the target's host, since it names none.
    assert_eq!(credentials[0]["hosts"], json!(["api.stripe.com"]));
    let ids = json!([credentials[1]["id"], credentials[2]["id"]]);
    assert_eq!(proxy["proxy_credential_ids"], ids);
    let key = credentials[1]["secret"]["key"].as_str().unwrap();
    assert!(key.starts_with("rr_live_"), "{key}");
    assert!(!made.text.contains("sk_live_1") && !made.text.contains("Wq8-long"));
    // What is read afterwards is the proxy alone.
    let read = api
        .get(Who::Viewer, &format!("{PROXIES}/{id}"))
        .await
        .is(200);
    assert_eq!(made.header("etag"), read.header("etag"));
    assert!(read.body.get("target").is_none() && read.body.get("credentials").is_none());
}

#[actix_web::test]
async fn inline_and_existing_objects_go_together() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let body = json!({
        "target_id": made.target, "proxy_credential_ids": [made.key],
        "credentials": [
            {"kind": "target", "auth_type": "basic", "secret": {"username": "u", "password": "p"}},
            {"kind": "proxy", "auth_type": "bearer"}
        ]
    });
    let proxy = api.post(Who::Admin, PROXIES, body).await.is(201).body;
    assert_eq!(proxy["credentials"][0]["hosts"], json!(["api.stripe.com"]));
    let ids = json!([made.key, proxy["credentials"][1]["id"]]);
    assert_eq!(proxy["proxy_credential_ids"], ids);
    assert!(proxy.get("target").is_none());
    // A member brings keys of callers along, and nothing that an admin guards.
    let own = json!({"target_id": made.target,
                     "credentials": [{"kind": "proxy", "auth_type": "api_key"}]});
    api.post(Who::Member, PROXIES, own).await.is(201);
}

#[actix_web::test]
async fn a_fault_anywhere_makes_nothing_and_is_told_at_its_place() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let changed = |change: fn(&mut Value)| {
        let mut body = whole();
        change(&mut body);
        body
    };
    let rows: Vec<(Value, u16, &[&str])> = vec![
        (
            changed(|body| body["target"]["base_url"] = json!("ftp://x")),
            422,
            &["/target/base_url"],
        ),
        (
            changed(|body| body["credentials"][0]["hosts"] = json!(["m.example"])),
            422,
            &["/target_credential_id"],
        ),
        (
            changed(|body| {
                body["credentials"][0]["secret"] = json!({"key": "x"});
                body["credentials"][1]["knd"] = json!(1);
                body["limits"] = json!({"per_minute": "x"});
            }),
            422,
            &[
                "/credentials/0/secret/key",
                "/credentials/1/knd",
                "/limits/per_minute",
            ],
        ),
        (
            changed(|body| body["target_id"] = json!("tgt_00000000000000000000000000")),
            422,
            &["/target"],
        ),
        (
            changed(|body| body["credentials"][2] = body["credentials"][0].clone()),
            422,
            &["/credentials/2"],
        ),
        (
            changed(|body| body["credentials"] = json!({})),
            422,
            &["/credentials"],
        ),
        (
            changed(|body| body["credentials"] = json!(vec![json!({}); 34])),
            422,
            &["/credentials"],
        ),
        (
            changed(|body| body["target"] = json!(null)),
            422,
            &["/target"],
        ),
        (
            changed(|body| body["credentials"] = json!([7])),
            422,
            &["/credentials/0"],
        ),
        (
            changed(|body| body["credentials"] = json!([])),
            422,
            &["/proxy_credential_ids"],
        ),
    ];
    let before = api.acme_version();
    for (body, status, places) in rows {
        let reply = api.post(Who::Admin, PROXIES, body.clone()).await.is(status);
        let faults = reply.faults();
        for place in places {
            assert!(
                faults.iter().any(|(at, _)| at == place),
                "{place}: {body} {faults:?}"
            );
        }
        assert!(!reply.text.contains("sk_live_1"), "{}", reply.text);
        assert_eq!(api.acme_version(), before, "{body}");
    }
    // The name of the one that has it already.
    api.patch(
        Who::Admin,
        &format!("{PROXIES}/{}", made.proxy),
        json!({"alias": "stripe"}),
    )
    .await
    .is(200);
    let before = api.acme_version();
    let taken = api.post(Who::Admin, PROXIES, whole()).await.is(409);
    assert_eq!(taken.body["used_by"], json!([made.proxy]));
    // Targets and their credentials are an admin's.
    let refused = api.post(Who::Member, PROXIES, whole()).await.is(403);
    let places: Vec<String> = refused.faults().into_iter().map(|(at, _)| at).collect();
    assert!(places.contains(&"/target".into()), "{places:?}");
    assert!(places.contains(&"/credentials/0".into()), "{places:?}");
    api.post(Who::Viewer, PROXIES, whole()).await.is(403);
    assert_eq!(api.acme_version(), before);
}

#[actix_web::test]
async fn what_follows_from_a_fault_is_not_told_beside_it() {
    let api = api().await;
    let unnamed = |change: fn(&mut Value)| {
        let mut body = whole();
        body.as_object_mut().unwrap().shift_remove("alias");
        change(&mut body);
        body
    };
    for (body, expected) in [
        (
            unnamed(|body| body["target"]["base_url"] = json!("not a url")),
            "/target/base_url base-url",
        ),
        (
            unnamed(|body| body["target"]["base_url"] = json!("ftp://x")),
            "/target/base_url base-url",
        ),
        (
            unnamed(|body| body["target"]["name"] = json!("two\nlines")),
            "/target/name control-character",
        ),
        (unnamed(|body| body["alias"] = json!("")), "/alias slug"),
    ] {
        let reply = api.post(Who::Admin, PROXIES, body).await.is(422);
        let faults = reply.faults().into_iter();
        let faults: Vec<String> = faults.map(|(at, code)| format!("{at} {code}")).collect();
        assert_eq!(faults, [expected]);
    }
    let operations = json!({"operations": [
        {"create": "targets", "as": "t", "object": {"base_url": "nope"}},
        {"create": "credentials", "as": "c", "object": {"kind": "proxy", "auth_type": "api_key"}},
        {"create": "proxies", "object": {"target_id": "@t", "proxy_credential_ids": ["@c"]}},
    ]});
    let changes = "/orgs/acme/changes";
    let reply = api.post(Who::Admin, changes, operations).await.is(422);
    let expected = ("/operations/0/object/base_url".into(), "base-url".into());
    assert_eq!(reply.faults(), [expected]);
    let empty = api.post(Who::Operator, "/orgs", json!({"slug": ""}));
    assert_eq!(
        empty.await.is(422).faults(),
        [("/slug".into(), "slug".into())]
    );
    // A host may be longer than a name.
    let label = "a".repeat(60);
    let long = format!("https://{label}.{label}.{label}.{label}.example");
    let target = json!({"base_url": long});
    let made = api.post(Who::Admin, "/orgs/acme/targets", target).await;
    assert_eq!(
        made.is(201).body["name"].as_str().unwrap().chars().count(),
        200
    );
}

#[actix_web::test]
async fn an_idempotency_key_makes_it_once() {
    let api = api().await;
    let call = || {
        let request = api.request(Who::Admin, Method::POST, PROXIES);
        api.send(
            request
                .insert_header(("idempotency-key", "k1"))
                .set_json(whole()),
        )
    };
    let first = call().await.is(201);
    let version = api.acme_version();
    let again = call().await.is(201);
    assert_eq!((again.id(), api.acme_version()), (first.id(), version));
}

#[actix_web::test]
async fn a_proxy_without_limits_gets_those_of_its_organisation_once() {
    let api = api().await;
    let set = |limits: Value| json!({"default_limits": limits});
    // They are the operator's to give.
    let patch = set(json!({"per_minute": 60}));
    api.patch(Who::Owner, "/orgs/acme", patch.clone())
        .await
        .is(403);
    let wrong = api.patch(Who::Operator, "/orgs/acme", set(json!({"per_minute": 0})));
    let wrong = wrong.await.is(422);
    assert_eq!(wrong.faults()[0].0, "/default_limits/per_minute");
    let set_to = api.patch(Who::Operator, "/orgs/acme", patch).await.is(200);
    assert_eq!(set_to.body["default_limits"], json!({"per_minute": 60}));
    assert!(api.control.see_version(SYSTEM_ORG, seen(&set_to)).await);

    let mut without = whole();
    without.as_object_mut().unwrap().shift_remove("limits");
    let made = api.post(Who::Admin, PROXIES, without.clone()).await.is(201);
    assert_eq!(made.body["limits"], json!({"per_minute": 60}));
    // As a document of its own too, and not where something is said.
    let own = json!({"target_id": made.body["target_id"], "limits": {},
                     "proxy_credential_ids": made.body["proxy_credential_ids"]});
    let unlimited = api.post(Who::Admin, PROXIES, own.clone()).await.is(201);
    assert_eq!(unlimited.body["limits"], json!({}));
    let mut own = own;
    own.as_object_mut().unwrap().shift_remove("limits");
    let limited = api.post(Who::Admin, PROXIES, own).await.is(201);
    assert_eq!(limited.body["limits"], json!({"per_minute": 60}));

    // Copied: a later change is for later ones.
    let none = api
        .patch(Who::Operator, "/orgs/acme", set(Value::Null))
        .await
        .is(200);
    assert!(api.control.see_version(SYSTEM_ORG, seen(&none)).await);
    let path = format!("{PROXIES}/{}", made.id());
    let kept = api.get(Who::Viewer, &path).await.is(200);
    assert_eq!(kept.body["limits"], json!({"per_minute": 60}));
    without["alias"] = json!("stripe-2");
    let later = api.post(Who::Admin, PROXIES, without).await.is(201);
    assert_eq!(later.body["limits"], json!({}));
}

/// The version of `system` that an answer names.
fn seen(reply: &super::Reply) -> u64 {
    let version = reply.header("requestrocket-version").unwrap();
    let (_, number) = version.split_once('=').unwrap();
    number.parse().unwrap()
}
