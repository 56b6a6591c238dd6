//! What an admin set, a member cannot lift: 403 each, and nothing changed.

use serde_json::json;

use super::{Who, api};

#[actix_web::test]
async fn a_member_lifts_no_guardrail_of_a_proxy() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let open = json!({"kind": "proxy", "auth_type": "none"});
    let open = api.make(Who::Admin, "credentials", open).await.id();
    let elsewhere = json!({"base_url": "https://api.stripe.com/v2"});
    let elsewhere = api.make(Who::Admin, "targets", elsewhere).await.id();
    let before = api.acme_version();
    let proxy = format!("/orgs/acme/proxies/{}", made.proxy);
    for patch in [
        json!({"forward_caller_headers": ["x-user-key"]}),
        json!({"cookies": "pass"}),
        json!({"error_bodies": "pass"}),
        json!({"rewrite_urls": "off"}),
        json!({"acknowledge_open": true}),
        json!({"acknowledge_open": true, "proxy_credential_ids": [open]}),
        json!({"target_id": elsewhere}),
        json!({"record": {"payload": {"bytes_max": 1}}}),
    ] {
        let reply = api.patch(Who::Member, &proxy, patch.clone()).await;
        assert_eq!(reply.status, 403, "{patch} {}", reply.text);
        assert_eq!(reply.body["code"], "forbidden");
    }
    let second = json!({"target_id": made.target, "target_credential_id": made.injected,
                        "proxy_credential_ids": [made.key]});
    let reply = api
        .post(Who::Member, "/orgs/acme/proxies", second)
        .await
        .is(403);
    assert_eq!(
        reply.faults(),
        [("/target_credential_id".into(), "role".into())]
    );
    assert_eq!(api.acme_version(), before, "nothing changed");
    // Less than an admin allowed, and all of it again after that, is no member's to give.
    let keeps = |responses: bool, bytes_max: u32| {
        let payload = json!({"responses": responses, "bytes_max": bytes_max});
        json!({"record": {"payload": payload}})
    };
    api.patch(Who::Admin, &proxy, keeps(true, 100))
        .await
        .is(200);
    api.patch(Who::Member, &proxy, keeps(false, 50))
        .await
        .is(200);
    for more in [keeps(true, 50), keeps(false, 51)] {
        let reply = api.patch(Who::Member, &proxy, more).await.is(403);
        assert_eq!(reply.faults(), [("/record/payload".into(), "role".into())]);
    }
}

#[actix_web::test]
async fn a_member_changes_no_target_and_no_target_credential() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let before = api.acme_version();
    let target = format!("/orgs/acme/targets/{}", made.target);
    let injected = format!("/orgs/acme/credentials/{}", made.injected);
    for (path, patch) in [
        (&target, json!({"default_rule_effect": "allow"})),
        (&target, json!({"base_url": "https://m.example"})),
        (&injected, json!({"use_by": "member"})),
        (&injected, json!({"default_rule_effect": "allow"})),
    ] {
        let reply = api.patch(Who::Member, path, patch.clone()).await;
        assert_eq!(reply.status, 403, "{path} {patch} {}", reply.text);
    }
    let mine = json!({"kind": "target", "auth_type": "bearer", "hosts": ["a.example"],
                      "secret": {"token": "x"}});
    api.post(Who::Member, "/orgs/acme/credentials", mine)
        .await
        .is(403);
    let secret = json!({"secret": {"token": "x"}});
    api.post(Who::Member, &format!("{injected}/rotate"), secret)
        .await
        .is(403);
    api.delete(Who::Member, &injected).await.is(403);
    assert_eq!(api.acme_version(), before, "nothing changed");
}

#[actix_web::test]
async fn no_way_of_writing_lets_a_member_lift_a_rule_of_a_target_credential() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let rules = format!("/orgs/acme/credentials/{}/rules", made.injected);
    let deny = json!({"effect": "deny", "methods": ["POST"], "path": {"pattern": "^/refunds"}});
    let rule = api.post(Who::Admin, &rules, deny).await.is(201).id();
    let path = format!("/orgs/acme/credentials/{}", made.injected);
    let closed = json!({"default_rule_effect": "deny"});
    api.patch(Who::Admin, &path, closed).await.is(200);
    let before = api.acme_version();
    let (injected, all) = (&made.injected, "/orgs/acme/changes");
    for operation in [
        json!({"delete": rule}),
        json!({"update": rule, "patch": {"mode": "shadow"}}),
        json!({"update": rule, "patch": {"priority": 900}}),
        json!({"create": "rules", "parent": injected, "object": {"effect": "allow"}}),
        json!({"update": injected, "patch": {"default_rule_effect": "allow"}}),
        json!({"update": injected, "patch": {"use_by": "member"}}),
        json!({"create": "proxies", "object": {
            "target_id": made.target, "target_credential_id": injected,
            "proxy_credential_ids": [made.key]}}),
    ] {
        let own = json!({"update": made.proxy, "patch": {"name": "renamed"}});
        let body = json!({"operations": [own, operation.clone()]});
        let reply = api.post(Who::Member, all, body).await;
        assert_eq!(reply.status, 403, "{operation}: {}", reply.text);
    }
    let config = "/orgs/acme/config";
    let document = api.get(Who::Admin, config).await.is(200).body;
    let credentials = document["credentials"].as_array().expect("credentials");
    let bound = credentials.iter().position(|one| one["kind"] == "target");
    let mut without = document.clone();
    let gone = without["credentials"][bound.expect("it")]["rules"].take();
    assert_eq!(gone[0]["path"]["pattern"], "^/refunds", "it was there");
    without["credentials"][bound.expect("it")]["rules"] = json!([]);
    api.put(Who::Member, config, without).await.is(403);
    let rollback = format!("/orgs/acme/versions/{}/rollback", before - 1);
    api.post(Who::Member, &rollback, serde_json::Value::Null)
        .await
        .is(403);
    assert_eq!(api.acme_version(), before, "nothing changed");
    api.get(Who::Admin, &format!("{rules}/{rule}"))
        .await
        .is(200);
}

#[actix_web::test]
async fn no_way_of_writing_sends_a_credential_to_a_host_outside_its_own() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let before = api.acme_version();
    let config = "/orgs/acme/config";
    let mut moved = api.get(Who::Admin, config).await.is(200).body;
    moved["targets"][0]["base_url"] = json!("https://m.example");
    let mut beside = api.get(Who::Admin, config).await.is(200).body;
    let other = json!({"name": "other", "base_url": "https://m.example"});
    let targets = beside["targets"].as_array_mut().expect("targets");
    targets.push(other);
    beside["proxies"][0]["target"] = json!("other");
    for document in [moved, beside] {
        let reply = api.put(Who::Admin, config, document).await.is(422);
        assert!(reply.text.contains("credential-host"), "{}", reply.text);
    }
    let elsewhere = json!({"base_url": "https://m.example"});
    let path = format!("/orgs/acme/targets/{}", made.target);
    let reply = api.patch(Who::Admin, &path, elsewhere.clone()).await;
    assert!(
        reply.is(422).text.contains("credential-host"),
        "a target's base_url"
    );
    let operations = json!({"operations": [
        {"create": "targets", "as": "m", "object": elsewhere},
        {"update": made.proxy, "patch": {"target_id": "@m"}},
    ]});
    let reply = api.post(Who::Admin, "/orgs/acme/changes", operations).await;
    assert!(
        reply.is(422).text.contains("credential-host"),
        "a proxy's target"
    );
    assert_eq!(api.acme_version(), before, "nothing changed");
}

#[actix_web::test]
async fn what_is_a_members_is_allowed() {
    let api = api().await;
    let made = api.quick_path("member").await;
    let key = json!({"kind": "proxy", "auth_type": "api_key"});
    let key = api
        .post(Who::Member, "/orgs/acme/credentials", key)
        .await
        .is(201)
        .id();
    let second = json!({"target_id": made.target, "target_credential_id": made.injected,
                        "proxy_credential_ids": [key], "default_rule_effect": "deny"});
    let proxy = api
        .post(Who::Member, "/orgs/acme/proxies", second)
        .await
        .is(201)
        .id();
    let path = format!("/orgs/acme/proxies/{proxy}");
    // What an admin let pass stays when a member changes something else.
    api.patch(Who::Admin, &path, json!({"cookies": "pass"}))
        .await
        .is(200);
    let kept = api
        .patch(Who::Member, &path, json!({"active": false}))
        .await
        .is(200);
    assert_eq!(kept.body["cookies"], "pass");
    api.patch(Who::Member, &path, json!({"cookies": "drop"}))
        .await
        .is(200);
    let rotate = format!("/orgs/acme/credentials/{key}/rotate");
    api.post(Who::Member, &rotate, json!({})).await.is(200);
    api.delete(Who::Member, &path).await.is(204);
    api.delete(Who::Member, &format!("/orgs/acme/credentials/{key}"))
        .await
        .is(204);
}
