//! The audit of what makes no version: failed logins and raises, between versions, verified.

use actix_web::http::Method;
use proto::keys;
use proto::store::{Op, Txn};
use serde_json::{Value, json};

use super::{Who, api};

const AUDIT: &str = "/orgs/acme/audit";

fn kinds(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| item["kind"].as_str().unwrap().to_owned())
        .collect()
}

#[actix_web::test]
async fn raises_stand_between_versions_and_the_chain_is_verified() {
    let api = api().await;
    let limited = json!({"limits": [{"limit": 10, "window": "second"}]});
    let meter = api.make(Who::Admin, "meters", limited).await.id();
    let raise = format!("/orgs/acme/meters/{meter}/raise");
    let body = json!({"percent": 200, "seconds": 60});
    api.post(Who::Admin, &raise, body).await.is(200);
    let ends = json!({"percent": 100});
    api.post(Who::Operator, &raise, ends).await.is(200);
    api.make(Who::Admin, "meters", json!({})).await;

    let list = api
        .get(Who::Admin, &format!("{AUDIT}?limit=4"))
        .await
        .is(200);
    let expected = ["version", "meter_raised", "meter_raised", "version"];
    assert_eq!(kinds(&list.body), expected, "{}", list.text);
    let item = &list.body["items"][2];
    assert_eq!(item["details"]["meter_id"], meter);
    assert_eq!(item["details"]["percent"], 200);
    assert_eq!(
        (&item["entry"], &item["source"]),
        (&json!(1), &json!("192.0.2.9"))
    );
    assert_eq!(
        (&item["author_name"], &item["region"]),
        (&json!("Admin"), &json!("local"))
    );
    assert_eq!(list.body["items"][1]["author_name"], "Admin", "of `system`");

    // Pages of one say the same as a page of all.
    let all = api
        .get(Who::Admin, &format!("{AUDIT}?limit=50"))
        .await
        .is(200);
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = format!("{AUDIT}?limit=1{cursor}");
        let page = api.get(Who::Admin, &page).await.is(200);
        paged.extend(page.body["items"].as_array().unwrap().clone());
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(json!(paged), all.body["items"]);
    api.get(Who::Admin, &format!("{AUDIT}?cursor=x"))
        .await
        .is(400);

    let verify = format!("{AUDIT}/verify");
    api.get(Who::Member, &verify).await.is(403);
    let found = api.get(Who::Admin, &verify).await.is(200);
    assert_eq!(found.body["holds"], true, "{}", found.text);
    assert_eq!(found.body["last_entry"], 2);
    assert_eq!(
        found.body["anchored_until"], 2,
        "the version after them says so"
    );
    for method in [Method::DELETE, Method::POST, Method::PUT, Method::PATCH] {
        for path in [AUDIT, &format!("{AUDIT}/1"), &verify] {
            let reply = api
                .send(api.request(Who::Operator, method.clone(), path))
                .await;
            assert!(
                matches!(reply.status, 404 | 405),
                "{method} {path} {}",
                reply.text
            );
        }
    }

    let store = api.control.publisher.store();
    let key = keys::audit_entry(api.acme, 1);
    let value = store.get(&key).await.unwrap().value.unwrap().value;
    let edited = String::from_utf8(value.to_vec())
        .unwrap()
        .replace("200", "101");
    let txn = Txn {
        ops: vec![Op::put(key, edited)],
        ..Txn::default()
    };
    store.txn(txn).await.unwrap();
    let found = api.get(Who::Admin, &verify).await.is(200);
    assert_eq!(found.body["holds"], false);
    let broken = &found.body["breaks"][0];
    assert_eq!(
        (&broken["entry"], &broken["problem"]),
        (&json!(1), &json!("changed"))
    );
}

#[actix_web::test]
async fn failed_logins_are_counted_by_source_in_the_audit_of_system() {
    let api = api().await;
    for _ in 0..12 {
        let request = api.request(Who::Nobody, Method::GET, "/me");
        let wrong = request.insert_header(("authorization", "Bearer rr_api_wrong"));
        let status = api.send(wrong).await.status;
        assert!(matches!(status, 401 | 429), "{status}");
    }
    // No token at all is no failed login.
    api.get(Who::Nobody, "/me").await.is(401);
    let list = api
        .get(Who::Operator, "/orgs/system/audit?limit=1")
        .await
        .is(200);
    let item = &list.body["items"][0];
    assert_eq!(item["kind"], "login_failed", "{}", list.text);
    assert_eq!(
        (&item["author"], &item["source"]),
        (&json!("unknown"), &json!("192.0.2.9"))
    );
    assert_eq!(item["details"]["times"], 12);
    assert_eq!(item["details"]["why"], "unknown");
    assert!(!list.text.contains("rr_api_wrong"));
    let form = proto::exposition::text::Form::Prometheus;
    let metrics = api.control.counters.families().text(form);
    let counted = "requestrocket_control_logins_failed_total{why=\"unknown\"} 12";
    assert!(metrics.contains(counted), "{metrics}");
    let found = api
        .get(Who::Operator, "/orgs/system/audit/verify")
        .await
        .is(200);
    assert_eq!(
        (&found.body["holds"], &found.body["last_entry"]),
        (&json!(true), &json!(1))
    );
}

#[actix_web::test]
async fn an_expired_token_is_named_in_its_organisations_audit() {
    let api = api().await;
    let token = api.expired_token(api.acme).await;
    let request = api.request(Who::Nobody, Method::GET, "/me");
    let wrong = request.insert_header(("authorization", format!("Bearer {token}")));
    assert_eq!(api.send(wrong).await.status, 401);
    let list = api
        .get(Who::Admin, &format!("{AUDIT}?limit=1"))
        .await
        .is(200);
    let item = &list.body["items"][0];
    assert_eq!(item["details"]["why"], "expired", "{}", list.text);
    assert_eq!(item["author_name"], "expired");
    assert!(item["author"].as_str().unwrap().starts_with("tok_"));
}
