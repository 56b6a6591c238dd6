//! What would become of a request is said by the pipeline's own functions, and nothing is done.

use serde_json::{Value, json};

use super::{Who, api};

const PATH: &str = "/orgs/acme/explain";

fn stage<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let stages = answer["stages"].as_array().unwrap();
    let found = stages.iter().find(|stage| stage["stage"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {answer}"))
}

#[actix_web::test]
async fn a_request_is_explained_stage_by_stage() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let rules = format!("/orgs/acme/proxies/{}/rules", made.proxy);
    let deny =
        json!({"effect": "deny", "methods": ["DELETE"], "message": "no", "notes": "for admins"});
    let deny = api.post(Who::Admin, &rules, deny).await.is(201).id();
    let body = json!({"effect": "deny", "body": [{"json_path": "$.amount", "value": "^9"}]});
    let body = api.post(Who::Admin, &rules, body).await.is(201).id();
    let n = api.acme_version();
    let ask = |request: Value| {
        let (api, proxy) = (&api, made.proxy.clone());
        async move {
            let question = json!({"proxy": proxy, "request": request});
            api.post(Who::Viewer, PATH, question).await.is(200)
        }
    };
    let granted = ask(json!({"method": "GET", "path": "/charges?limit=3"}))
        .await
        .body;
    assert_eq!(granted["decision"], "allowed", "{granted}");
    assert_eq!(
        stage(&granted, "forward")["url"],
        "https://api.stripe.com/v1/charges?limit=3"
    );
    assert_eq!(
        stage(&granted, "inject")["credential_id"],
        json!(made.injected)
    );
    let denied = ask(json!({"method": "DELETE", "path": "/charges"})).await;
    assert!(
        !denied.text.contains("for admins"),
        "notes stay: {}",
        denied.text
    );
    let denied = denied.body;
    assert_eq!(
        (&denied["decision"], &denied["code"]),
        (&json!("denied"), &json!("proxy-access-denied"))
    );
    let scopes = stage(&denied, "authorize")["scopes"].as_array().unwrap();
    let proxy = scopes
        .iter()
        .find(|scope| scope["scope"] == "proxy")
        .unwrap();
    assert_eq!(proxy["outcome"], "deny");
    assert_eq!(proxy["rules"][0]["id"], json!(deny));
    assert_eq!(proxy["rules"][0]["message"], "no");
    assert_eq!(
        denied["stages"].as_array().unwrap().last().unwrap()["stage"],
        "authorize"
    );
    let json_type = json!({"content-type": "application/json"});
    for (amount, decision) in [("1", "allowed"), ("9", "denied")] {
        let text = format!("{{\"amount\":{amount}}}");
        let request = json!({"method": "POST", "path": "/", "headers": json_type, "body": text});
        let answer = ask(request).await.body;
        assert_eq!(answer["decision"], decision, "{answer}");
    }
    let malformed = ask(json!({"method": "GET", "path": "/../x"})).await.body;
    assert_eq!(malformed["code"], "malformed-request");
    // By alias or name, and with everything that is wrong at its place.
    api.patch(
        Who::Admin,
        &format!("/orgs/acme/proxies/{}", made.proxy),
        json!({"alias": "pay"}),
    )
    .await
    .is(200);
    let by_alias = json!({"proxy": "pay", "request": {"method": "GET", "path": "/"}});
    api.post(Who::Viewer, PATH, by_alias).await.is(200);
    for (question, pointer) in [
        (json!({"proxy": "pay"}), ""),
        (
            json!({"proxy": "nobody", "request": {"method": "GET", "path": "/"}}),
            "/proxy",
        ),
        (
            json!({"proxy": "pay", "request": {"method": "G T", "path": "/"}}),
            "/request/method",
        ),
        (
            json!({"proxy": "pay",
                   "request": {"method": "GET", "path": "/", "headers": {"a b": "c"}}}),
            "/request/headers/a b",
        ),
        (
            json!({"proxy": "pay", "request": {"method": "GET", "path": "/", "source": "x"}}),
            "/request/source",
        ),
        (json!({"proxy": "pay", "last": 5000}), "/last"),
        (
            json!({"record": "req_00000000000000000000000000"}),
            "/record",
        ),
    ] {
        let refused = api.post(Who::Viewer, PATH, question).await.is(422);
        assert_eq!(refused.faults()[0].0, pointer, "{}", refused.text);
    }
    assert_eq!(
        api.acme_version(),
        n + 1,
        "nothing was published but the alias"
    );
    let _ = body;
}

#[actix_web::test]
async fn a_change_is_tried_before_it_is_published() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let n = api.acme_version();
    let request = json!({"method": "GET", "path": "/admin/x"});
    let rule = json!({"create": "rules", "parent": made.proxy,
                      "object": {"effect": "deny", "path": {"pattern": "^/admin"}}});
    let question = |operations: Value| {
        let change = json!({ "operations": operations });
        json!({"proxy": made.proxy, "request": request, "change": change})
    };
    let would = api
        .post(Who::Member, PATH, question(json!([rule])))
        .await
        .is(200);
    assert_eq!(would.body["decision"], "denied", "{}", would.text);
    let off = json!([{"update": made.proxy, "patch": {"active": false}}]);
    let would = api.post(Who::Member, PATH, question(off)).await.is(200);
    assert_eq!(would.body["code"], "proxy-inactive");
    let wrong = json!([{"update": made.proxy, "patch": {"limits": {"per_minute": 0}}}]);
    let refused = api.post(Who::Member, PATH, question(wrong)).await.is(422);
    assert_eq!(
        refused.faults()[0].0,
        "/change/operations/0/patch/limits/per_minute"
    );
    // What one may not do, one may not try either.
    let target = json!([{"delete": made.target}]);
    api.post(Who::Member, PATH, question(target)).await.is(403);
    assert_eq!(api.acme_version(), n);
}

#[actix_web::test]
async fn the_dial_guard_is_asked_and_what_it_cannot_say_is_said() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let target = format!("/orgs/acme/targets/{}", made.target);
    api.patch(
        Who::Admin,
        &format!("/orgs/acme/proxies/{}", made.proxy),
        json!({"target_credential_id": null}),
    )
    .await
    .is(200);
    for (base_url, decision, address) in [
        ("https://10.0.0.7", "denied", json!(null)),
        ("https://8.8.8.8", "allowed", json!("may be dialled")),
        ("https://api.example.com", "allowed", json!("is a name")),
    ] {
        api.patch(Who::Admin, &target, json!({"base_url": base_url}))
            .await
            .is(200);
        let question = json!({"proxy": made.proxy, "request": {"method": "GET", "path": "/"}});
        let answer = api.post(Who::Viewer, PATH, question).await.is(200).body;
        assert_eq!(answer["decision"], decision, "{answer}");
        let forward = stage(&answer, "forward");
        assert_eq!(forward["address"], address, "{answer}");
        if decision == "denied" {
            assert_eq!(answer["code"], "upstream-blocked");
            assert_eq!(forward["outcome"], "end");
        }
    }
}
