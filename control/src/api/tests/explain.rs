//! What would become of a request is said by the pipeline's own functions, and nothing is done.

use jiff::Timestamp;
use proto::id::{OrgId, RequestId};
use proto::record::Record;
use serde_json::{Value, json};

use super::{Made, Who, api};

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

/// A request of the proxy of which its record keeps all that records keep, with these fields
/// otherwise.
fn record(org: OrgId, made: &Made, n: u128, fields: Value) -> Record {
    let mut record = json!({
        "request_id": RequestId::from_bits(n), "org_id": org, "proxy_id": made.proxy,
        "proxy_credential_id": made.key, "config_version": 1, "node": "n", "region": "local",
        "method": "GET", "path": "/secret/x", "query": [{"name": "limit", "value": "9"}],
        "source_address": "192.0.2.7", "status": 200, "code": "proxy-access-granted",
        "started_at_us": Timestamp::now().as_microsecond(), "total_us": 5, "stages": [],
        "request_bytes": 0, "response_bytes": 0, "upstream_request_bytes": 0,
        "upstream_response_bytes": 0, "attempts": 1, "denials": [], "shadow_rule_ids": [],
        "filter_ids": [], "upstream_ids": [], "client_aborted": false, "scrubbed": 0
    });
    for (name, value) in fields.as_object().unwrap() {
        record[name] = value.clone();
    }
    serde_json::from_value(record).unwrap()
}

/// Each part of a rule about which a record is silent makes it unknown, and says what it needs;
/// what a record tells decides.
#[actix_web::test]
async fn what_a_record_does_not_tell_is_unknown_and_named() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let silent = json!({"path": "/secret/*", "source_address": "192.0.2.0/24",
                        "query": [{"name": "limit", "value": "REDACTED"}], "request_bytes": 5});
    let telling = record(api.acme, &made, 2, json!({}));
    let silent = record(api.acme, &made, 1, silent);
    api.control.records.insert(&[silent, telling]).unwrap();
    let of_proxy = format!("/orgs/acme/proxies/{}/rules", made.proxy);
    for (rule, needs, told) in [
        (
            json!({"body": [{"json_path": "$.a", "value": "^9"}]}),
            "needs the body",
            "no",
        ),
        (
            json!({"headers": [{"name": "x-a", "value": "^9"}]}),
            "needs header fields",
            "needs header fields",
        ),
        (
            json!({"query": [{"name": "limit", "value": "^9"}]}),
            "needs query values",
            "yes",
        ),
        (
            json!({"query": [{"name": "limit", "value": "^8"}]}),
            "needs query values",
            "no",
        ),
        (
            json!({"path": {"pattern": "^/secret"}}),
            "needs the whole path",
            "yes",
        ),
        (
            json!({"path": {"pattern": "^/public"}}),
            "needs the whole path",
            "no",
        ),
        (
            json!({"source": ["192.0.2.0/29"]}),
            "needs the caller's address",
            "yes",
        ),
        (
            json!({"source": ["192.0.2.8/29"]}),
            "needs the caller's address",
            "no",
        ),
    ] {
        let mut deny = json!({"effect": "deny"});
        let parts = rule.as_object().unwrap().clone();
        deny.as_object_mut().unwrap().extend(parts);
        let id = api.post(Who::Admin, &of_proxy, deny).await.is(201).id();
        for (n, expected) in [(1, needs), (2, told)] {
            let question = json!({"record": RequestId::from_bits(n)});
            let answer = api.post(Who::Viewer, PATH, question).await.is(200).body;
            let scopes = stage(&answer, "authorize")["scopes"].as_array().unwrap();
            let of_proxy = scopes.iter().find(|scope| scope["scope"] == "proxy");
            let scope = of_proxy.unwrap();
            let said = &scope["rules"][0];
            let (matches, decision) = match expected {
                "no" => (Value::Null, "allowed"),
                "yes" => (json!("yes"), "denied"),
                _ => (json!("unknown"), "unknown"),
            };
            assert_eq!(said["matches"], matches, "{rule} {n}: {answer}");
            assert_eq!(answer["decision"], decision, "{rule} {n}: {answer}");
            if decision == "unknown" {
                assert_eq!(said["because"], expected, "{rule} {n}");
                assert_eq!(scope["outcome"], "unknown", "{rule} {n}");
            }
        }
        let rule = format!("{of_proxy}/{id}");
        api.delete(Who::Admin, &rule).await.is(204);
    }
}

/// A summary does not take what it cannot know for an answer.
#[actix_web::test]
async fn a_summary_counts_what_is_not_known_apart() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    // Two with a body that is not kept, one without any, one that the rule below denies surely.
    let records = [
        json!({"method": "PUT", "request_bytes": 5}),
        json!({"method": "PUT", "request_bytes": 7}),
        json!({"method": "PUT"}),
        json!({"method": "DELETE"}),
    ];
    let records = (1..).zip(records);
    let records: Vec<Record> = records
        .map(|(n, fields)| record(api.acme, &made, n, fields))
        .collect();
    api.control.records.insert(&records).unwrap();
    let create = |rule: Value| json!({"create": "rules", "parent": made.proxy, "object": rule});
    let by_body = json!({"effect": "deny", "body": [{"json_path": "$.a", "value": "^9"}]});
    let by_method = json!({"effect": "deny", "methods": ["DELETE"]});
    let operations = json!([create(by_body.clone()), create(by_method)]);
    let question = json!({"proxy": made.proxy, "last": 10, "change": {"operations": operations}});
    let answer = api.post(Who::Member, PATH, question).await.is(200).body;
    let counts = |of: &Value| ["allowed", "denied", "unknown"].map(|name| of[name].as_u64());
    assert_eq!(answer["looked_at"], 4, "{answer}");
    assert_eq!(counts(&answer), [Some(1), Some(1), Some(2)], "{answer}");
    let changed = &answer["changed_by_this"];
    assert_eq!(counts(changed), [Some(0), Some(1), Some(2)], "{answer}");
    let otherwise = answer["decided_otherwise"].as_array().unwrap();
    assert_eq!(otherwise.len(), 1, "only what is sure: {answer}");
    // Also of what is published.
    let rules = format!("/orgs/acme/proxies/{}/rules", made.proxy);
    api.post(Who::Admin, &rules, by_body).await.is(201);
    let question = json!({"proxy": made.proxy, "last": 10});
    let answer = api.post(Who::Viewer, PATH, question).await.is(200).body;
    assert_eq!(counts(&answer), [Some(2), Some(0), Some(2)], "{answer}");
    assert!(answer["changed_by_this"].is_null(), "{answer}");
}

#[actix_web::test]
async fn limits_and_meters_are_told_with_whether_they_count() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let proxy = format!("/orgs/acme/proxies/{}", made.proxy);
    let ask = |request: Value| {
        let question = json!({"proxy": made.proxy, "request": request});
        let api = &api;
        async move {
            let answer = api.post(Who::Viewer, PATH, question).await.is(200).body;
            stage(&answer, "limit").clone()
        }
    };
    let get = || json!({"method": "GET", "path": "/v1"});
    let none = ask(get()).await;
    assert_eq!((&none["limits"], &none["meters"]), (&json!([]), &json!([])));
    assert!(none["assumed"].is_null(), "{none}");

    let limits = json!({"limits": {"per_minute": 30, "per_day": 1000}});
    api.patch(Who::Admin, &proxy, limits).await.is(200);
    let minute = json!([{"limit": 5, "window": "minute"}]);
    let posts = json!({"name": "posts", "limits": minute, "when": {"methods": ["POST"]}});
    let bodies = json!({"name": "bodies", "limits": minute,
                        "when": {"body": [{"json_path": "$.model", "value": "^big$"}]}});
    let all = json!({"name": "all", "limits": minute});
    let place = format!("{proxy}/meters");
    let mut ids = Vec::new();
    for (at, meter) in [
        (&*place, posts),
        (&place, bodies),
        ("/orgs/acme/meters", all),
    ] {
        ids.push(api.post(Who::Admin, at, meter).await.is(201).id());
    }
    let counted = |told: &Value| -> Vec<Value> {
        let meters = told["meters"].as_array().unwrap();
        let of = |id: &String| meters.iter().find(|meter| meter["id"] == **id);
        ids.iter()
            .map(|id| of(id).unwrap()["counts"].clone())
            .collect()
    };
    let big = json!({"method": "POST", "path": "/v1", "body": "{\"model\":\"big\"}",
                     "headers": {"content-type": "application/json"}});
    for (request, expected) in [(get(), ["no", "no", "yes"]), (big, ["yes", "yes", "yes"])] {
        let told = ask(request).await;
        assert_eq!(counted(&told), expected, "{told}");
        let windows = json!([{"window": "minute", "limit": 30}, {"window": "day", "limit": 1000}]);
        assert_eq!(told["limits"], windows);
        assert!(told["assumed"].is_string(), "{told}");
        let first = told["meters"].as_array().unwrap();
        let posts = first.iter().find(|meter| meter["name"] == "posts").unwrap();
        assert_eq!(posts["on"], json!(made.proxy), "{posts}");
        assert_eq!(posts["limits"][0]["limit"], 5, "{posts}");
    }
    // Of a recorded request whose body is not kept.
    let fields = json!({"method": "PUT", "request_bytes": 5});
    let records = [record(api.acme, &made, 1, fields)];
    api.control.records.insert(&records).unwrap();
    let question = json!({"record": RequestId::from_bits(1)});
    let answer = api.post(Who::Viewer, PATH, question).await.is(200).body;
    assert_eq!(counted(stage(&answer, "limit")), ["no", "unknown", "yes"]);
}
