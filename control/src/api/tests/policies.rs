//! Rules and filters hang on their objects, and belong to whoever may edit those.

use actix_web::http::Method;
use serde_json::json;

use super::{Who, api};

#[actix_web::test]
async fn a_rule_is_made_shown_changed_and_deleted() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    for (collection, id) in [
        ("targets", &made.target),
        ("credentials", &made.injected),
        ("proxies", &made.proxy),
    ] {
        let all = format!("/orgs/acme/{collection}/{id}/rules");
        let rule = json!({"effect": "deny", "methods": ["DELETE"], "notes": "until ACME pays"});
        let rule = api.post(Who::Admin, &all, rule).await.is(201);
        let one = format!("{all}/{}", rule.id());
        assert!(rule.id().starts_with("rul_"));
        assert_eq!(rule.body["parent_id"], id.as_str());
        assert_eq!(rule.header("location"), Some(&*format!("/api/v1{one}")));
        let patch = json!({"mode": "shadow", "priority": 7});
        let changed = api.patch(Who::Admin, &one, patch).await.is(200);
        assert_eq!(changed.body["mode"], "shadow");
        assert_eq!(changed.body["methods"], json!(["DELETE"]));
        assert_eq!(changed.id(), rule.id());
        let put = json!({"effect": "deny", "notes": "x"});
        let put = api.write(Who::Admin, Method::PUT, &one, put).await.is(200);
        assert_eq!(put.body["mode"], "enforce");
        let list = api.get(Who::Member, &all).await.is(200);
        assert_eq!(list.body["items"], json!([put.body]));
        assert_eq!(list.body["items"][0]["notes"], "x");
        for path in [&all, &one] {
            let seen = api.get(Who::Viewer, path).await.is(200);
            assert!(
                !seen.text.contains("notes"),
                "notes are not for viewers: {}",
                seen.text
            );
        }
        api.delete(Who::Admin, &one).await.is(204);
        api.get(Who::Admin, &one).await.is(404);
    }
}

#[actix_web::test]
async fn a_rule_is_found_under_its_own_object_only() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let all = format!("/orgs/acme/proxies/{}/rules", made.proxy);
    let rule = api
        .post(Who::Admin, &all, json!({"effect": "deny"}))
        .await
        .is(201)
        .id();
    for path in [
        format!("/orgs/acme/targets/{}/rules/{rule}", made.target),
        format!("/orgs/acme/credentials/{}/rules/{rule}", made.key),
        format!("/orgs/acme/targets/{}/rules/{rule}", made.proxy),
        format!("/orgs/acme/proxies/{}/rules/{}", made.proxy, made.target),
        format!("/orgs/acme/proxies/{}/rules/x", made.proxy),
    ] {
        api.get(Who::Admin, &path).await.is(404);
        api.delete(Who::Admin, &path).await.is(404);
    }
    let list = api
        .get(
            Who::Admin,
            &format!("/orgs/acme/targets/{}/rules", made.target),
        )
        .await;
    assert_eq!(list.is(200).body["items"], json!([]));
    let proxy = format!("/orgs/acme/proxies/{}", made.proxy);
    api.delete(Who::Admin, &proxy).await.is(204);
    api.get(Who::Admin, &format!("{all}/{rule}")).await.is(404);
}

#[actix_web::test]
async fn faulty_rules_are_told_all_their_faults() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let all = format!("/orgs/acme/proxies/{}/rules", made.proxy);
    for (rule, pointer) in [
        (json!({}), "/effect"),
        (json!({"effect": "alow"}), "/effect"),
        (json!({"effect": "deny", "id": "rul_1"}), "/id"),
        (
            json!({"effect": "deny", "path": {"pattern": "("}}),
            "/path/pattern",
        ),
        (
            json!({"effect": "deny", "path": {"patern": "x"}}),
            "/path/patern",
        ),
        (
            json!({"effect": "deny", "headers": [{"name": "a", "presence": "x"}]}),
            "/headers/0/presence",
        ),
        (
            json!({"effect": "deny", "source": ["300.0.0.0/8"]}),
            "/source/0",
        ),
    ] {
        let reply = api.post(Who::Admin, &all, rule.clone()).await.is(422);
        let found = reply.faults();
        assert!(
            found.iter().any(|(at, _)| at == pointer),
            "{rule}: {found:?}"
        );
    }
}

#[actix_web::test]
async fn a_member_edits_the_policy_of_what_is_a_members() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let rules = |collection: &str, id: &str| format!("/orgs/acme/{collection}/{id}/rules");
    let deny = json!({"effect": "deny"});
    for path in [
        rules("proxies", &made.proxy),
        rules("credentials", &made.key),
    ] {
        let rule = api
            .post(Who::Member, &path, deny.clone())
            .await
            .is(201)
            .id();
        let one = format!("{path}/{rule}");
        api.patch(Who::Member, &one, json!({"mode": "shadow"}))
            .await
            .is(200);
        api.delete(Who::Member, &one).await.is(204);
    }
    for path in [
        rules("targets", &made.target),
        rules("credentials", &made.injected),
    ] {
        let rule = api.post(Who::Admin, &path, deny.clone()).await.is(201).id();
        let before = api.control.config(api.acme).unwrap().head.n;
        let one = format!("{path}/{rule}");
        api.post(Who::Member, &path, json!({"effect": "allow"}))
            .await
            .is(403);
        api.patch(Who::Member, &one, json!({"mode": "shadow"}))
            .await
            .is(403);
        api.patch(Who::Member, &one, json!({"priority": 5}))
            .await
            .is(403);
        api.write(Who::Member, Method::PUT, &one, json!({"effect": "allow"}))
            .await
            .is(403);
        api.delete(Who::Member, &one).await.is(403);
        assert_eq!(
            api.control.config(api.acme).unwrap().head.n,
            before,
            "nothing changed"
        );
    }
}

#[actix_web::test]
async fn filters_live_as_rules_do() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let filter = json!({"op": "destroy", "paths": ["$.ssn"], "notes": "why"});
    for (collection, id, member) in [
        ("targets", &made.target, 403),
        ("credentials", &made.injected, 403),
        ("credentials", &made.key, 201),
        ("proxies", &made.proxy, 201),
    ] {
        let all = format!("/orgs/acme/{collection}/{id}/filters");
        api.post(Who::Member, &all, filter.clone()).await.is(member);
        let made = api.post(Who::Admin, &all, filter.clone()).await.is(201);
        let one = format!("{all}/{}", made.id());
        assert_eq!(made.header("location"), Some(&*format!("/api/v1{one}")));
        assert_eq!(made.body["parent_id"], id.as_str());
        let patch = json!({"paths": ["$.ssn", "$.email"]});
        let changed = api.patch(Who::Admin, &one, patch).await.is(200);
        assert_eq!(changed.body["op"], "destroy");
        assert_eq!(changed.body["paths"], json!(["$.ssn", "$.email"]));
        let seen = api.get(Who::Viewer, &one).await.is(200);
        assert!(seen.body.get("notes").is_none());
        api.delete(Who::Admin, &one).await.is(204);
    }
    let all = format!("/orgs/acme/proxies/{}/filters", made.proxy);
    for (filter, pointer) in [
        (json!({"op": "destory", "paths": ["$.a"]}), "/op"),
        (json!({"op": "destroy"}), "/paths"),
        (json!({"op": "destroy", "paths": ["$.["]}), "/paths/0"),
        (json!({"op": "destroy", "paths": ["$"]}), "/paths/0"),
    ] {
        let reply = api.post(Who::Admin, &all, filter.clone()).await.is(422);
        assert_eq!(reply.faults()[0].0, pointer, "{filter}");
    }
}
