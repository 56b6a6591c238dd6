//! What one caller may ask for at once, and what is told beyond it.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Who, api};
use crate::api::proxy_test::AT_ONE_TIME_MAX;

/// As many header fields as a map of them cannot hold.
fn many_fields() -> Map<String, Value> {
    let names = (0..33_000).map(|n| (format!("x{n}"), json!("")));
    names.collect()
}

#[actix_web::test]
async fn a_request_that_is_described_has_a_bounded_head() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let test = format!("/orgs/acme/proxies/{}/test", made.proxy);
    for headers in [
        json!(many_fields()),
        json!({"x": vec![""; 40_000]}),
        json!({"x": vec!["v"; 257]}),
        json!({"x": "v".repeat(65_536)}),
    ] {
        let request = json!({"method": "GET", "path": "/", "headers": headers});
        let body = json!({"proxy": made.proxy, "request": request});
        let told = api.post(Who::Viewer, "/orgs/acme/explain", body).await;
        assert_eq!(told.is(422).faults()[0].0, "/request/headers");
        let body = json!({ "request": request });
        let told = api.post(Who::Member, &test, body).await;
        assert_eq!(told.is(422).faults()[0].0, "/request/headers");
    }
    let fits = json!({"method": "GET", "path": "/", "headers": {"x": vec!["v"; 256]}});
    let body = json!({"proxy": made.proxy, "request": fits});
    api.post(Who::Viewer, "/orgs/acme/explain", body)
        .await
        .is(200);
}

#[actix_web::test]
async fn an_organisation_has_a_few_tests_under_way_and_each_is_bounded() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let test = format!("/orgs/acme/proxies/{}/test", made.proxy);
    let long = json!({"request": {"method": "GET", "path": format!("/{}", "a".repeat(131_072))}});
    let told = api.post(Who::Member, &test, long).await.is(422);
    assert_eq!(told.faults()[0].0, "/request");
    let elsewhere = json!({"request": {"method": "GET", "path": "/", "source": "10.0.0.1"}});
    let told = api.post(Who::Admin, &test, elsewhere).await.is(422);
    assert_eq!(told.faults()[0].0, "/request/source");
    let places: Vec<_> = (0..AT_ONE_TIME_MAX)
        .map(|_| api.control.tests.take(api.acme).unwrap())
        .collect();
    let full = api.post(Who::Member, &test, json!({})).await.is(503);
    assert_eq!(full.body["code"], "overloaded");
    drop(places);
    // Nobody takes it; that it was to be sent is in the audit.
    api.post(Who::Member, &test, json!({})).await.is(504);
    let audit = api
        .get(Who::Admin, "/orgs/acme/audit?limit=1")
        .await
        .is(200);
    let entry = &audit.body["items"][0];
    assert_eq!(entry["kind"], "test_sent", "{}", audit.text);
    assert_eq!(entry["author_name"], "Member");
    assert_eq!(entry["details"]["proxy_id"], made.proxy);
    assert_eq!(entry["details"]["credential_id"], made.key);
}

#[actix_web::test]
async fn lists_are_counted_before_anything_is_made_of_them() {
    let api = api().await;
    // Each of these is faulty by itself: that the list is too long is told first.
    let changes = json!({"operations": vec![json!(1); 1_001]});
    let told = api
        .post(Who::Admin, "/orgs/acme/changes", changes.clone())
        .await;
    assert_eq!(
        told.is(422).faults()[0],
        ("/operations".into(), "length".into())
    );
    let explain = json!({"proxy": "x", "last": 1, "change": changes});
    let told = api.post(Who::Admin, "/orgs/acme/explain", explain).await;
    assert_eq!(
        told.is(422).faults()[0],
        ("/change/operations".into(), "length".into())
    );
    let rules = vec![json!({}); 100_000];
    let config = json!({"format": "requestrocket/v1", "proxies": [{"rules": rules}]});
    let told = api.put(Who::Admin, "/orgs/acme/config", config).await;
    assert_eq!(told.is(413).body["code"], "body-too-large");
}

#[actix_web::test]
async fn spans_of_time_begin_before_they_end() {
    let api = api().await;
    for path in ["records", "records/export", "telemetry"] {
        let backwards = format!("/orgs/acme/{path}?from=1h&to=2h");
        let told = api.get(Who::Viewer, &backwards).await.is(400);
        assert!(told.text.contains("before `to`"), "{}", told.text);
        let forwards = format!("/orgs/acme/{path}?from=2h&to=1h");
        api.get(Who::Viewer, &forwards).await.is(200);
    }
}

/// What is answered to a head with the beginning of a chunked body, until the end of it.
#[actix_web::test]
async fn nobody_keeps_a_connection_by_a_body_that_nobody_reads() {
    let api = api().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let (server, _) = crate::serve(listener, None, api.control.clone()).unwrap();
    let handle = server.handle();
    let running = actix_web::rt::spawn(server);
    for (line, status) in [
        ("POST /api/v1/none", "404"),
        ("POST /api/v1/regions/join", "401"),
        ("POST /api/v1/orgs/acme/tokens", "401"),
        ("PATCH /api/v1/healthz", "405"),
    ] {
        let mut connection = TcpStream::connect(at).await.unwrap();
        let head = "HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\n \r\n";
        let sent = format!("{line} {head}");
        connection.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = connection.read_to_end(&mut answer);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        assert!(read.is_ok(), "{line}: the connection stays");
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    handle.stop(false).await;
    running.await.unwrap().unwrap();
}
