//! Test requests: what is put into the store for nodes, and what is made of what they put back.

use std::time::Duration;

use actix_web::http::Method;
use proto::keys;
use proto::store::{Op, Range, Store, Txn};
use proto::test_request::TestRequest;
use serde_json::{Value, json};

use super::{Api, Who, api};

/// Waits for a test request as a node does.
async fn posted(store: &dyn Store) -> (TestRequest, Option<proto::store::LeaseId>) {
    let range = Range {
        prefix: keys::TESTS.into(),
        after: None,
        limit: 1,
        at: None,
    };
    loop {
        if let Some(pair) = store.range(range.clone()).await.unwrap().items.pop() {
            return (serde_json::from_slice(&pair.value).unwrap(), pair.lease);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until no test request is in the store.
async fn none_posted(store: &dyn Store) {
    let range = Range {
        prefix: keys::TESTS.into(),
        after: None,
        limit: 1,
        at: None,
    };
    while !store.range(range.clone()).await.unwrap().items.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Puts something about a test request into the store, as a node does.
async fn put<S>(api: &Api<S>, key: String, value: Value, lease: Option<proto::store::LeaseId>) {
    let value = match value {
        Value::String(text) => text,
        value => value.to_string(),
    };
    let op = Op::Put {
        key,
        value: value.into(),
        lease,
    };
    let txn = Txn {
        ops: vec![op],
        ..Txn::default()
    };
    api.control.publisher.store().txn(txn).await.unwrap();
}

fn outcome() -> Value {
    json!({"node": "gw-1", "status": 200, "code": "proxy-access-granted", "upstream_status": 200,
           "attempts": 1, "total_us": 1200, "stages": [{"stage": "receive", "us": 5}]})
}

#[actix_web::test]
async fn a_test_request_goes_to_a_node_and_its_outcome_comes_back() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/proxies/{}/test", made.proxy);
    let body = json!({"request": {
        "method": "POST", "path": "/v1/charges?a=b", "body": "{}",
        "headers": {"x-one": ["1", "2"], "authorization": "Bearer rr_live_abc"},
    }});
    let node = async {
        let (request, lease) = posted(api.control.publisher.store()).await;
        assert_eq!(request.proxy.to_string(), made.proxy);
        assert_eq!(request.credential.to_string(), made.key);
        assert_eq!(
            (&*request.method, &*request.path),
            ("POST", "/v1/charges?a=b")
        );
        assert_eq!((&*request.body, request.answer), ("{}", false));
        assert_eq!(request.source.to_string(), "192.0.2.9");
        let names: Vec<&str> = request
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(
            names,
            ["x-one", "x-one", "user-agent"],
            "no key is taken along"
        );
        put(&api, keys::test_taken(request.id), json!("gw-1"), lease).await;
        put(&api, keys::test_outcome(request.id), outcome(), lease).await;
        request.id
    };
    let (reply, id) = tokio::join!(api.post(Who::Member, &path, body), node);
    let shown = reply.is(200).body;
    assert_eq!(shown["request_id"], json!(id));
    assert_eq!(
        (&shown["node"], &shown["status"]),
        (&json!("gw-1"), &json!(200))
    );
    assert_eq!(shown["stages"][0]["stage"], "receive");
    // Nothing of it stays.
    let store = api.control.publisher.store();
    for key in [keys::test(id), keys::test_taken(id), keys::test_outcome(id)] {
        while store.get(&key).await.unwrap().value.is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[actix_web::test]
async fn without_a_node_or_in_time_it_is_a_504_that_says_which() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/proxies/{}/test", made.proxy);
    let alone = api.post(Who::Member, &path, json!({})).await.is(504);
    assert_eq!(alone.body["code"], "no-node");
    assert!(alone.text.contains("no node has taken"), "{}", alone.text);
    none_posted(api.control.publisher.store()).await;
    let slow = async {
        let (request, lease) = posted(api.control.publisher.store()).await;
        put(&api, keys::test_taken(request.id), json!("gw-1"), lease).await;
        request.id
    };
    let (reply, id) = tokio::join!(api.post(Who::Member, &path, json!({})), slow);
    let reply = reply.is(504);
    assert!(reply.text.contains("gw-1"), "{}", reply.text);
    assert!(reply.text.contains(&id.to_string()), "{}", reply.text);
}

#[actix_web::test]
async fn what_a_node_may_have_sent_is_not_sent_again_for_the_same_key() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/proxies/{}/test", made.proxy);
    let send = || {
        let request = api.request(Who::Member, Method::POST, &path);
        api.send(request.insert_header(("idempotency-key", "k1")))
    };
    // No node was there: a repeat is sent.
    let alone = send().await.is(504);
    assert!(alone.text.contains("no node has taken"), "{}", alone.text);
    // A node takes it and dies.
    let slow = async {
        let (request, lease) = posted(api.control.publisher.store()).await;
        put(&api, keys::test_taken(request.id), json!("gw-1"), lease).await;
        request.id
    };
    let (first, id) = tokio::join!(send(), slow);
    let first = first.is(504);
    assert!(first.text.contains(&id.to_string()), "{}", first.text);
    let again = send().await.is(504);
    assert_eq!(again.body["detail"], first.body["detail"]);
    // Another key is another request.
    none_posted(api.control.publisher.store()).await;
    let other = async {
        let (request, lease) = posted(api.control.publisher.store()).await;
        put(&api, keys::test_outcome(request.id), outcome(), lease).await;
        request.id
    };
    let request = api.request(Who::Member, Method::POST, &path);
    let request = api.send(request.insert_header(("idempotency-key", "k2")));
    let (sent, other) = tokio::join!(request, other);
    assert_eq!(sent.is(200).body["request_id"], json!(other));
    assert_ne!(other, id);
}

/// A node that comes late to a request that nobody waits for finds nothing to take.
#[actix_web::test]
async fn what_was_given_up_is_gone_before_its_lease() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/proxies/{}/test", made.proxy);
    let seen = posted(api.control.publisher.store());
    let (alone, (request, _)) = tokio::join!(api.post(Who::Member, &path, json!({})), seen);
    alone.is(504);
    let found = api.control.publisher.store().get(&keys::test(request.id));
    assert_eq!(found.await.unwrap().value, None);
}

#[actix_web::test]
async fn what_cannot_be_sent_is_told_before_anybody_is_asked() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/proxies/{}/test", made.proxy);
    let request = |fields: Value| {
        let mut request = json!({"method": "GET", "path": "/"});
        request
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        json!({"request": request})
    };
    for (body, place) in [
        (request(json!({"path": "v1"})), "/request/path"),
        (request(json!({"method": "G T"})), "/request/method"),
        (
            request(json!({"headers": {"a b": "c"}})),
            "/request/headers/a b",
        ),
        (
            request(json!({"headers": {"host": "x"}})),
            "/request/headers/host",
        ),
        (
            request(json!({"body": "x".repeat(65_537)})),
            "/request/body",
        ),
        (json!({"credential": made.injected}), "/credential"),
        (json!({"requst": {}}), "/requst"),
    ] {
        let reply = api.post(Who::Admin, &path, body.clone()).await.is(422);
        assert_eq!(reply.faults()[0].0, place, "{body}");
    }
    // The target's answer is for admins, whatever the rest.
    api.post(Who::Member, &path, json!({"answer": true}))
        .await
        .is(403);
    api.post(Who::Viewer, &path, json!({})).await.is(403);
    api.post(Who::Stranger, &path, json!({})).await.is(404);
    let unknown = "/orgs/acme/proxies/prx_00000000000000000000000000/test";
    api.post(Who::Admin, unknown, json!({})).await.is(404);
}
