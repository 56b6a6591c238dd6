//! Versions are listed, compared and returned to; facts are not undone.

use serde_json::{Value, json};

use super::{Who, api};

#[actix_web::test]
async fn every_change_is_a_version_that_says_who_and_what() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let proxy = format!("/orgs/acme/proxies/{}", made.proxy);
    let before = api.acme_version();
    for name in ["one", "two", "three"] {
        api.patch(Who::Admin, &proxy, json!({"name": name}))
            .await
            .is(200);
    }
    let list = api
        .get(Who::Viewer, "/orgs/acme/versions?limit=2")
        .await
        .is(200);
    let numbers = |list: &Value| -> Vec<u64> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["n"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(&list.body), [before + 3, before + 2]);
    assert_eq!(list.body["items"][0]["changed"], json!([made.proxy]));
    assert!(
        list.body["items"][0]["author"]
            .as_str()
            .unwrap()
            .starts_with("tok_")
    );
    let (mut seen, mut path) = (Vec::new(), "/orgs/acme/versions?limit=2".to_owned());
    loop {
        let page = api.get(Who::Viewer, &path).await.is(200);
        seen.extend(numbers(&page.body));
        match page.body["next_cursor"].as_str() {
            Some(cursor) => path = format!("/orgs/acme/versions?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, (1..=before + 3).rev().collect::<Vec<_>>());
    let one = api
        .get(Who::Viewer, &format!("/orgs/acme/versions/{}", before + 1))
        .await
        .is(200);
    assert_eq!(one.body["n"], before + 1);
    for unknown in ["0", "99999", "x"] {
        api.get(Who::Viewer, &format!("/orgs/acme/versions/{unknown}"))
            .await
            .is(404);
    }
}

#[actix_web::test]
async fn two_versions_are_compared_object_by_object() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let before = api.acme_version();
    let proxy = format!("/orgs/acme/proxies/{}", made.proxy);
    api.patch(Who::Admin, &proxy, json!({"name": "renamed"}))
        .await
        .is(200);
    let rules = format!("{proxy}/rules");
    let rule = json!({"effect": "deny", "notes": "for admins"});
    let rule = api.post(Who::Admin, &rules, rule).await.is(201).id();
    let diff = format!("/orgs/acme/versions/{}/diff?from={before}", before + 2);
    let seen = api.get(Who::Member, &diff).await.is(200);
    let changes = seen.body["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 2);
    let of = |id: &str| changes.iter().find(|change| change["id"] == id).unwrap();
    assert_eq!(of(&made.proxy)["change"], "updated");
    assert_eq!(of(&made.proxy)["before"]["name"], "api.stripe.com");
    assert_eq!(of(&made.proxy)["after"]["name"], "renamed");
    assert_eq!(of(&rule)["change"], "created");
    assert_eq!(of(&rule)["before"], Value::Null);
    let viewed = api.get(Who::Viewer, &diff).await.is(200);
    assert!(
        !viewed.text.contains("for admins"),
        "notes are not for viewers"
    );
    // The other way round, the one before by default, and from nothing.
    let back = format!("/orgs/acme/versions/{before}/diff?from={}", before + 2);
    let back = api.get(Who::Viewer, &back).await.is(200);
    assert_eq!(back.body["changes"][0]["change"], "updated");
    let last = format!("/orgs/acme/versions/{}/diff", before + 2);
    let last = api.get(Who::Viewer, &last).await.is(200);
    assert_eq!(last.body["changes"].as_array().unwrap().len(), 1);
    let first = api
        .get(Who::Viewer, "/orgs/acme/versions/1/diff")
        .await
        .is(200);
    assert_eq!(first.body["from"], 0);
}

#[actix_web::test]
async fn a_rollback_is_a_new_version_with_the_old_content() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let proxy = format!("/orgs/acme/proxies/{}", made.proxy);
    let rule = json!({"effect": "deny", "methods": ["DELETE"]});
    api.post(Who::Admin, &format!("{proxy}/rules"), rule)
        .await
        .is(201);
    let good = api.acme_version();
    let old = api.get(Who::Admin, &proxy).await.is(200).body;

    api.patch(
        Who::Admin,
        &proxy,
        json!({"name": "worse", "active": false}),
    )
    .await
    .is(200);
    let target = json!({"base_url": "https://other.example"});
    let target = api.make(Who::Admin, "targets", target).await.is(201).id();
    api.delete(Who::Admin, &proxy).await.is(204);
    let rollback = format!("/orgs/acme/versions/{good}/rollback");
    api.post(Who::Member, &rollback, Value::Null).await.is(403);
    let bad = api.acme_version();
    let dry = api
        .post(Who::Admin, &format!("{rollback}?dry_run=true"), Value::Null)
        .await
        .is(200);
    assert_eq!(api.acme_version(), bad, "a dry run publishes nothing");
    let real = api.post(Who::Admin, &rollback, Value::Null).await.is(200);
    assert_eq!(real.body["to"], bad + 1);
    let ids = |body: &Value| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let changes = body["changes"].as_array().unwrap().iter();
        changes
            .map(|one| (text(&one["id"]), text(&one["change"])))
            .collect()
    };
    assert_eq!(ids(&dry.body), ids(&real.body));
    assert_eq!(
        real.body["changes"].as_array().unwrap().len(),
        3,
        "proxy, its rule, the target"
    );
    let now = api.get(Who::Admin, &proxy).await.is(200).body;
    for field in ["name", "active", "alias", "url", "target_id"] {
        assert_eq!(now[field], old[field], "{field}");
    }
    let rules = api.get(Who::Admin, &format!("{proxy}/rules")).await.is(200);
    assert_eq!(rules.body["items"][0]["methods"], json!(["DELETE"]));
    api.get(Who::Admin, &format!("/orgs/acme/targets/{target}"))
        .await
        .is(404);
    // Again: there is nothing left to do.
    let again = api.post(Who::Admin, &rollback, Value::Null).await.is(200);
    assert_eq!(again.body["changes"], json!([]));
    assert_eq!(api.acme_version(), bad + 1);
}

#[actix_web::test]
async fn a_rollback_revives_no_secret_and_no_token() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let token = json!({"name": "ci", "role": "member"});
    let token = api.make(Who::Owner, "tokens", token).await.is(201);
    let good = api.acme_version();
    let key = format!("/orgs/acme/credentials/{}", made.key);
    let rotated = api
        .post(Who::Admin, &format!("{key}/rotate"), json!({}))
        .await
        .is(200);
    let generation = rotated.body["secret"]["generation"].clone();
    let tokens = format!("/orgs/acme/tokens/{}", token.id());
    api.delete(Who::Owner, &tokens).await.is(204);
    let proxy = format!("/orgs/acme/proxies/{}", made.proxy);
    api.delete(Who::Admin, &proxy).await.is(204);
    let injected = format!("/orgs/acme/credentials/{}", made.injected);
    api.delete(Who::Admin, &injected).await.is(204);

    let rollback = format!("/orgs/acme/versions/{good}/rollback");
    api.post(Who::Admin, &rollback, Value::Null).await.is(200);
    let kept = api.get(Who::Admin, &key).await.is(200);
    assert_eq!(
        kept.body["secret"]["generation"], generation,
        "the rotated one stays"
    );
    let back = api.get(Who::Admin, &injected).await.is(200);
    assert_eq!(back.body["secret"]["state"], "missing");
    api.get(Who::Admin, &proxy).await.is(200);
    api.get(Who::Owner, &tokens).await.is(404);
}

#[actix_web::test]
async fn a_rollback_keeps_a_secret_with_its_hosts_or_says_that_it_lacks() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let good = api.acme_version();
    let path = format!("/orgs/acme/credentials/{}", made.injected);
    let before = api.get(Who::Admin, &path).await.is(200).body;
    let secret = json!({"token": "the-second-canary-of-the-target"});
    let wider = json!({"hosts": ["api.stripe.com", "elsewhere.example"], "secret": secret});
    let wider = api.patch(Who::Admin, &path, wider).await.is(200).body;
    let rollback = format!("/orgs/acme/versions/{good}/rollback");
    api.post(Who::Admin, &rollback, Value::Null).await.is(200);
    let kept = api.get(Who::Admin, &path).await.is(200).body;
    assert_eq!(kept["hosts"], wider["hosts"], "what the secret is bound to");
    assert_eq!(kept["secret"]["generation"], wider["secret"]["generation"]);

    // The target moves, and the credential with it: the way back needs the secret of before.
    let moved = json!({"operations": [
        {"update": made.target, "patch": {"base_url": "https://elsewhere.example"}},
        {"update": made.injected, "patch": {"hosts": ["elsewhere.example"], "secret": secret}},
    ]});
    api.post(Who::Admin, "/orgs/acme/changes", moved)
        .await
        .is(200);
    let dry = format!("{rollback}?dry_run=true");
    let shown = api.post(Who::Admin, &dry, Value::Null).await.is(200).body;
    assert!(shown.to_string().contains("missing"), "{shown}");
    api.post(Who::Admin, &rollback, Value::Null).await.is(200);
    let back = api.get(Who::Admin, &path).await.is(200).body;
    assert_eq!(back["hosts"], before["hosts"]);
    assert_eq!(back["secret"]["state"], "missing");
}

#[actix_web::test]
async fn tokens_and_addresses_in_versions_are_for_admins() {
    let api = api().await;
    let token = json!({"name": "canary-ci", "role": "member"});
    let token = api.make(Who::Owner, "tokens", token).await.is(201).id();
    let target = json!({"base_url": "https://api.stripe.com"});
    let target = api.make(Who::Admin, "targets", target).await.id();
    let n = api.acme_version();
    let one = format!("/orgs/acme/versions/{n}");
    let diff = format!("{one}/diff?from={}", n - 2);
    for who in [Who::Viewer, Who::Member] {
        let shown = api.get(who, &diff).await.is(200);
        let changes = shown.body["changes"].as_array().unwrap();
        let of = |id: &str| changes.iter().find(|change| change["id"] == id).unwrap();
        assert_eq!(of(&token)["change"], "created");
        assert_eq!(of(&token)["after"], Value::Null, "{who:?}");
        assert_eq!(of(&target)["after"]["base_url"], "https://api.stripe.com");
        assert!(!shown.text.contains("canary-ci"), "{}", shown.text);
        for path in [&one, "/orgs/acme/versions"] {
            let shown = api.get(who, path).await.is(200);
            assert!(!shown.text.contains("192.0.2.9"), "{}", shown.text);
        }
    }
    for who in [Who::Admin, Who::Owner, Who::Operator] {
        let shown = api.get(who, &diff).await.is(200);
        assert!(shown.text.contains("canary-ci"), "{}", shown.text);
        let shown = api.get(who, &one).await.is(200);
        assert_eq!(shown.body["source"], "192.0.2.9", "{who:?}");
    }
    // Those of operators are for operators.
    let n = api.control.config(proto::tree::SYSTEM_ORG).unwrap().head.n;
    let system = format!("/orgs/system/versions/{n}/diff?from=0");
    api.get(Who::SystemMember, &system).await.is(403);
    let shown = api.get(Who::Operator, &system).await.is(200);
    assert!(shown.text.contains("\"role\""), "{}", shown.text);
}
