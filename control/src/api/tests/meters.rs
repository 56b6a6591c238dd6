//! Meters hang on targets, credentials, proxies and the organisation; all faults are told at once.

use actix_web::http::Method;
use serde_json::{Value, json};

use super::{Who, api};

/// What a caller of type jwt presents.
const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg";

const CONFIG: &str = "/orgs/acme/config";

#[actix_web::test]
async fn a_meter_is_made_shown_changed_and_deleted_wherever_it_hangs() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    for place in [
        format!("/orgs/acme/targets/{}/meters", made.target),
        format!("/orgs/acme/credentials/{}/meters", made.injected),
        format!("/orgs/acme/credentials/{}/meters", made.key),
        format!("/orgs/acme/proxies/{}/meters", made.proxy),
        "/orgs/acme/meters".to_owned(),
    ] {
        let meter = json!({"name": "orders", "limits": [{"limit": 10, "window": "second"}],
                           "notes": "as agreed"});
        let meter = api.post(Who::Admin, &place, meter).await.is(201);
        assert!(meter.id().starts_with("mtr_"), "{}", meter.text);
        let one = format!("{place}/{}", meter.id());
        assert_eq!(meter.header("location"), Some(&*format!("/api/v1{one}")));
        let patch = json!({"key": {"by": "header", "name": "X-Customer"}});
        let changed = api.patch(Who::Admin, &one, patch).await.is(200);
        assert_eq!(changed.body["limits"][0]["limit"], 10, "{}", changed.text);
        assert_eq!(changed.body["key"]["name"], "X-Customer");
        let put = json!({"limits": []});
        let put = api.write(Who::Admin, Method::PUT, &one, put).await.is(200);
        assert_eq!(put.body["key"]["by"], "none");
        let list = api.get(Who::Member, &place).await.is(200);
        assert_eq!(list.body["items"], json!([put.body]));
        api.patch(Who::Admin, &one, json!({"notes": "x"}))
            .await
            .is(200);
        assert!(
            !api.get(Who::Viewer, &one)
                .await
                .is(200)
                .text
                .contains("notes")
        );
        api.delete(Who::Admin, &one).await.is(204);
        api.get(Who::Admin, &one).await.is(404);
    }
}

#[actix_web::test]
async fn meters_of_the_organisation_and_of_target_credentials_are_for_admins() {
    let api = api().await;
    let made = api.quick_path("member").await;
    let limit = json!({"limits": [{"limit": 10, "window": "second"}]});
    for place in [
        "/orgs/acme/meters".to_owned(),
        format!("/orgs/acme/credentials/{}/meters", made.injected),
        format!("/orgs/acme/targets/{}/meters", made.target),
    ] {
        api.post(Who::Member, &place, limit.clone()).await.is(403);
    }
    let org = api.acme.to_string();
    let list = json!({"operations": [{"create": "meters", "parent": org, "object": limit}]});
    api.post(Who::Member, "/orgs/acme/changes", list.clone())
        .await
        .is(403);
    api.post(Who::Admin, "/orgs/acme/changes", list)
        .await
        .is(200);
    let own = format!("/orgs/acme/proxies/{}/meters", made.proxy);
    api.post(Who::Member, &own, limit).await.is(201);
}

#[actix_web::test]
async fn every_fault_of_a_meter_is_told_at_once() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let place = format!("/orgs/acme/proxies/{}/meters", made.proxy);
    let pointers = |reply: &super::Reply| -> Vec<String> {
        let errors = reply.body["errors"].as_array().expect("errors");
        let pointer = |error: &Value| error["pointer"].as_str().expect("text").to_owned();
        errors.iter().map(pointer).collect()
    };
    let faulty = json!({"limits": [{"limit": 0, "window": "minute"},
                        {"limit": 1_000_000_000_001_u64, "window": "second"}],
                        "key": {"by": "header"}, "name": "a b"});
    let reply = api.post(Who::Admin, &place, faulty).await.is(422);
    assert_eq!(
        pointers(&reply),
        ["/name", "/limits/0/limit", "/limits/1/limit", "/key/name"],
        "{}",
        reply.text
    );
    for (faulty, pointer) in [
        (
            json!({"limits": [{"limit": -1, "window": "minute"}]}),
            "/limits/0/limit",
        ),
        (
            json!({"limits": [{"limit": 1e308, "window": "minute"}]}),
            "/limits/0/limit",
        ),
        (
            json!({"limits": [{"limit": 1, "window": "week"}]}),
            "/limits/0/window",
        ),
        (json!({"limits": [{"limit": 1}]}), "/limits/0/window"),
        (json!({"limts": []}), "/limts"),
    ] {
        let reply = api.post(Who::Admin, &place, faulty.clone()).await.is(422);
        assert_eq!(pointers(&reply), [pointer], "{faulty} {}", reply.text);
    }
}

#[actix_web::test]
async fn no_request_has_more_meters_than_it_can_spend_at() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let target = format!("/orgs/acme/targets/{}/meters", made.target);
    for _ in 0..4 {
        api.post(Who::Admin, &target, json!({})).await.is(201);
    }
    for _ in 0..4 {
        api.post(Who::Admin, "/orgs/acme/meters", json!({}))
            .await
            .is(201);
    }
    let proxy = format!("/orgs/acme/proxies/{}/meters", made.proxy);
    let refused = api.post(Who::Admin, &proxy, json!({})).await.is(422);
    assert!(refused.text.contains("too-many-meters"), "{}", refused.text);
    assert!(refused.text.contains(&made.proxy), "{}", refused.text);
}

#[actix_web::test]
async fn meters_travel_with_the_configuration() {
    let api = api().await;
    let document = json!({
        "format": "requestrocket/1",
        "meters": [{"limits": [{"limit": 100, "window": "day"}]}],
        "targets": [{
            "name": "stripe", "base_url": "https://api.stripe.com",
            "meters": [{"name": "all", "limits": [{"limit": 10, "window": "second"}],
                        "key": {"by": "source"}}],
        }],
    });
    let done = api.put(Who::Admin, CONFIG, document.clone()).await.is(200);
    assert_eq!(
        done.body["changes"].as_array().map(Vec::len),
        Some(3),
        "{}",
        done.text
    );
    let exported = api.get(Who::Member, CONFIG).await.is(200);
    assert_eq!(
        exported.body["meters"][0]["limits"][0]["limit"], 100,
        "{}",
        exported.text
    );
    assert_eq!(
        exported.body["targets"][0]["meters"][0]["key"]["by"],
        "source"
    );
    let again = api.put(Who::Admin, CONFIG, exported.body).await.is(200);
    assert_eq!(again.body["changes"], json!([]), "{}", again.text);
    let mut fewer = document;
    fewer["meters"] = json!([]);
    let done = api.put(Who::Admin, CONFIG, fewer).await.is(200);
    assert_eq!(
        done.body["changes"][0]["change"], "deleted",
        "{}",
        done.text
    );
    let to = done.body["to"].as_u64().expect("a version");
    let back = format!("/orgs/acme/versions/{}/rollback", to - 1);
    api.post(Who::Admin, &back, json!({})).await.is(200);
    let list = api.get(Who::Member, "/orgs/acme/meters").await.is(200);
    assert_eq!(
        list.body["items"][0]["limits"][0]["limit"], 100,
        "{}",
        list.text
    );
}

#[actix_web::test]
async fn what_cannot_be_raised_is_told_with_what_to_do_instead() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let place = format!("/orgs/acme/proxies/{}/meters", made.proxy);
    let slots = json!({"limit": 4, "algorithm": "concurrency"});
    let window = json!({"limit": 10, "window": "second"});
    let raise = |id: &str| format!("/orgs/acme/meters/{id}/raise");
    let double = json!({"percent": 200, "seconds": 60});
    for limits in [json!([slots]), json!([])] {
        let meter = api
            .post(Who::Admin, &place, json!({"limits": limits}))
            .await;
        let meter = meter.is(201).id();
        let refused = api.post(Who::Admin, &raise(&meter), double.clone()).await;
        let refused = refused.is(422);
        let fault = ("/percent".to_owned(), "not-applicable".to_owned());
        assert_eq!(refused.faults(), [fault], "{}", refused.text);
        // What was raised before it became so can be ended.
        let end = json!({"percent": 100});
        api.post(Who::Admin, &raise(&meter), end).await.is(200);
    }
    let both = json!({"limits": [slots, window]});
    let both = api.post(Who::Admin, &place, both).await.is(201).id();
    api.post(Who::Admin, &raise(&both), double.clone())
        .await
        .is(200);
    let own = api
        .post(Who::Admin, &raise(&made.proxy), double.clone())
        .await;
    let own = own.is(422);
    assert!(own.text.contains("on the proxy"), "{}", own.text);
    let unknown = raise("prx_00000000000000000000000000");
    api.post(Who::Admin, &unknown, double).await.is(404);
}

#[actix_web::test]
async fn a_reset_is_a_version_that_counts_one_up_wherever_the_meter_hangs() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let limited = json!({"name": "m", "limits": [{"limit": 10, "window": "day"}]});
    let reset = |id: &str| format!("/orgs/acme/meters/{id}/reset");
    for place in [
        "/orgs/acme/meters".to_owned(),
        format!("/orgs/acme/credentials/{}/meters", made.key),
        format!("/orgs/acme/proxies/{}/meters", made.proxy),
    ] {
        let meter = api.post(Who::Admin, &place, limited.clone()).await.is(201);
        let (id, version) = (meter.id(), meter.body["version"].as_u64().unwrap());
        for times in 1..=2 {
            let after = api.post(Who::Admin, &reset(&id), json!({})).await.is(200);
            assert_eq!(after.body["resets"], times, "{}", after.text);
            assert_eq!(after.body["version"], version + times, "{}", after.text);
            assert_eq!(after.body["limits"], meter.body["limits"]);
        }
        // What was forgotten stays so, whatever a document says of the rest.
        let one = format!("{place}/{id}");
        let put = api.put(Who::Admin, &one, limited.clone()).await.is(200);
        assert_eq!(put.body["resets"], 2, "{}", put.text);
        api.post(Who::Member, &reset(&id), json!({})).await.is(403);
    }
    let own = api.post(Who::Admin, &reset(&made.proxy), json!({})).await;
    let own = own.is(422);
    assert!(own.text.contains("on the proxy"), "{}", own.text);
    for unknown in [
        "mtr_00000000000000000000000000",
        "prx_00000000000000000000000000",
        &made.target,
    ] {
        api.post(Who::Admin, &reset(unknown), json!({}))
            .await
            .is(404);
    }
}

#[actix_web::test]
async fn a_meter_by_a_claim_that_nobody_presents_is_warned_of() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let by_claim = json!({"key": {"by": "claim", "name": "sub"},
                          "limits": [{"limit": 10, "window": "minute"}]});
    let warned = |meter: &super::Reply| meter.body["warnings"][0]["code"].clone();
    let of_proxy = format!("/orgs/acme/proxies/{}/meters", made.proxy);
    for (place, expected) in [
        (of_proxy.clone(), json!("claim-without-jwt")),
        (
            format!("/orgs/acme/credentials/{}/meters", made.key),
            json!("claim-without-jwt"),
        ),
        // Here it may be one of many proxies.
        (
            format!("/orgs/acme/targets/{}/meters", made.target),
            json!(null),
        ),
    ] {
        let meter = api.post(Who::Admin, &place, by_claim.clone()).await.is(201);
        assert_eq!(warned(&meter), expected, "{place}: {}", meter.text);
    }
    let other = json!({"key": {"by": "caller"}, "limits": [{"limit": 10, "window": "minute"}]});
    let other = api.post(Who::Admin, &of_proxy, other).await.is(201);
    assert_eq!(warned(&other), json!(null));
    // With a caller that presents one nothing is said any more.
    let jwt = json!({"kind": "proxy", "auth_type": "jwt", "secret": {"token": JWT}});
    let jwt = api.post(Who::Admin, "/orgs/acme/credentials", jwt).await;
    let jwt = jwt.is(201).id();
    let both = json!({"proxy_credential_ids": [made.key, jwt]});
    api.patch(
        Who::Admin,
        &format!("/orgs/acme/proxies/{}", made.proxy),
        both,
    )
    .await
    .is(200);
    let meter = api.post(Who::Admin, &of_proxy, by_claim).await.is(201);
    assert_eq!(warned(&meter), json!(null), "{}", meter.text);
}
