//! Browsers, guessers, probes, records.

use actix_web::http::Method;
use proto::id::{OrgId, ProxyId, RequestId};
use proto::record::{AuthFailure, Record};
use proto::tree::SYSTEM_ORG;
use serde_json::json;

use super::{Who, api};

#[actix_web::test]
async fn foreign_hosts_get_nothing() {
    let api = api().await;
    for (host, status) in [
        ("localhost", 200),
        ("127.0.0.1:9999", 200),
        ("[::1]:1", 200),
        ("m.example", 421),
        ("localhost.m.example", 421),
        ("", 421),
    ] {
        let request = api
            .request(Who::Admin, Method::GET, "/me")
            .insert_header(("host", host));
        let reply = api.send(request).await;
        assert_eq!(reply.status, status, "{host}");
    }
    let open = api.request(Who::Nobody, Method::GET, "/openapi.json");
    api.send(open.insert_header(("host", "m.example")))
        .await
        .is(421);
    let unknown = api
        .request(Who::Nobody, Method::GET, "/x")
        .insert_header(("host", "m.example"));
    api.send(unknown).await.is(421);
}

#[actix_web::test]
async fn answers_are_not_for_caches_or_other_origins() {
    let api = api().await;
    for path in ["/me", "/healthz", "/nothing", "/orgs/acme/targets"] {
        let request = api.request(Who::Admin, Method::GET, path);
        let reply = api
            .send(request.insert_header(("origin", "https://m.example")))
            .await;
        assert_eq!(reply.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(
            reply.header("x-content-type-options"),
            Some("nosniff"),
            "{path}"
        );
        assert!(reply.header("requestrocket-request-id").is_some(), "{path}");
        let cors = reply
            .headers
            .keys()
            .any(|name| name.as_str().starts_with("access-control-"));
        assert!(!cors, "{path}");
    }
    let preflight = api.request(Who::Nobody, Method::OPTIONS, "/orgs/acme/targets");
    api.send(preflight.insert_header(("origin", "https://m.example")))
        .await
        .is(405);
}

#[actix_web::test]
async fn wrong_tokens_are_throttled_and_right_ones_pass() {
    let api = api().await;
    let with = |token: &str| {
        let request = api.request(Who::Nobody, Method::GET, "/me");
        api.send(request.insert_header(("authorization", format!("Bearer {token}"))))
    };
    for n in 0..10 {
        with(&format!("rr_api_{n}")).await.is(401);
    }
    let reply = with("rr_api_x").await.is(429);
    assert_eq!(reply.body["code"], "too-many-attempts");
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() <= 61);
    api.get(Who::Admin, "/me").await.is(200);
}

#[actix_web::test]
async fn wrong_tokens_are_counted_by_caller_not_by_proxy() {
    let api = api().await;
    let from = |peer: &str, caller: &str| {
        let peer = format!("{peer}:4000").parse().unwrap();
        let request = api.request(Who::Nobody, Method::GET, "/me").peer_addr(peer);
        let request = request.insert_header(("authorization", "Bearer rr_api_no"));
        api.send(request.insert_header(("x-forwarded-for", caller)))
    };
    for _ in 0..10 {
        from("198.51.100.1", "6.6.6.6, 192.0.2.7").await.is(401);
    }
    // Through another proxy too, whatever else the caller claims.
    let forged = "203.0.113.1, 192.0.2.7, 198.51.100.1";
    from("198.51.100.2", forged).await.is(429);
    from("198.51.100.1", "192.0.2.8").await.is(401);
    // Who is no proxy cannot change its address.
    for n in 0..10 {
        from("203.0.113.9", &format!("192.0.2.{n}")).await.is(401);
    }
    from("203.0.113.9", "192.0.2.99").await.is(429);
}

#[actix_web::test]
async fn an_expired_token_is_refused() {
    let api = api().await;
    let lasts = json!({"name": "t", "role": "viewer", "expires_at": "2999-01-01T00:00:00Z"});
    let lasts = api.post(Who::Admin, "/orgs/acme/tokens", lasts).await;
    let lasts = lasts.is(201).body["secret"]["token"].clone();
    let lasts = lasts.as_str().unwrap().to_owned();
    let is_over = api.expired_token(api.acme).await;
    for (token, status) in [(is_over, 401), (lasts, 200)] {
        let request = api.request(Who::Nobody, Method::GET, "/me");
        let request = request.insert_header(("authorization", format!("Bearer {token}")));
        api.send(request).await.is(status);
    }
}

#[actix_web::test]
async fn probes_need_no_token_and_metrics_do() {
    let api = api().await;
    assert_eq!(
        api.get(Who::Nobody, "/healthz").await.is(200).body["status"],
        "ok"
    );
    assert_eq!(
        api.get(Who::Nobody, "/readyz").await.is(200).body["status"],
        "ok"
    );
    let root = api.request(Who::Nobody, Method::GET, "").uri("/healthz");
    api.send(root).await.is(200);
    api.get(Who::Nobody, "/metrics").await.is(401);
    api.get(Who::Owner, "/metrics").await.is(403);
    let metrics = api.get(Who::Operator, "/metrics").await.is(200);
    assert_eq!(metrics.text, "# HELP up It runs.\n# TYPE up gauge\nup 1\n");
    let request = api.request(Who::Operator, Method::GET, "/metrics");
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let open = api.send(request.insert_header(("accept", accept))).await;
    assert!(open.is(200).text.ends_with("\nup 1\n# EOF\n"));
    let document = api.get(Who::Nobody, "/openapi.json").await.is(200);
    assert_eq!(document.body["openapi"], "3.1.0");
}

#[actix_web::test]
async fn a_read_waits_for_the_version_that_it_presents() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let with = |version: String| {
        let path = format!("/orgs/acme/targets/{}", made.target);
        let request = api.request(Who::Viewer, Method::GET, &path);
        api.send(request.insert_header(("requestrocket-version", version)))
    };
    let n = api.control.config(api.acme).unwrap().head.n;
    with(format!("{}={n}", api.acme)).await.is(200);
    with("nonsense".into()).await.is(400);
    let reply = with(format!("{}={}", api.acme, n + 1)).await.is(503);
    assert_eq!(reply.body["code"], "version-not-here");
}

fn record(n: u128, org: OrgId, status: u16) -> Record {
    let json = json!({
        "request_id": RequestId::from_bits(n), "org_id": org, "proxy_id": ProxyId::from_bits(n % 2),
        "config_version": 1, "node": "n", "region": "local", "method": "GET", "path": "/",
        "query": [], "status": status, "code": "proxy-access-granted",
        "started_at_us": 1_000_000 * i64::try_from(n).unwrap(), "total_us": 5, "stages": [],
        "request_bytes": 0, "response_bytes": 0, "upstream_request_bytes": 0,
        "upstream_response_bytes": 0, "attempts": 1, "denials": [], "shadow_rule_ids": [],
        "filter_ids": [], "upstream_ids": [], "client_aborted": false, "scrubbed": 0
    });
    serde_json::from_value(json).unwrap()
}

/// A hundred requests of 1 to 100 ms, of which the last 25 failed.
#[actix_web::test]
async fn sums_have_the_rates_and_quantiles_of_what_was_recorded() {
    let api = api().await;
    let batch = (1..=100).map(|n| {
        let mut one = record(n, api.acme, if n > 75 { 503 } else { 200 });
        one.total_us = 1_000 * u64::try_from(n).unwrap();
        one
    });
    let batch: Vec<_> = batch.collect();
    api.control.records.insert(&batch).unwrap();
    // Request n began in second n.
    let path = "/orgs/acme/telemetry?bucket=1m&from=1970-01-01T00:00:00Z&to=1970-01-01T00:01:50Z";
    let answer = api.get(Who::Viewer, path).await.is(200).body;
    let group = &answer["groups"][0];
    let number = |of: &serde_json::Value, name: &str| of[name].as_f64().unwrap();
    assert_eq!(
        (&group["count"], &group["errors"]),
        (&100.into(), &25.into())
    );
    assert_eq!(number(group, "error_rate"), 0.25);
    let ms = &group["duration_ms"];
    assert_eq!(number(ms, "mean"), 50.5);
    for (name, exact) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0)] {
        // Within 2 %, of this request or of its neighbour.
        let (least, most) = ((exact - 1.0) * 0.98, (exact + 1.0) * 1.02);
        let found = number(ms, name);
        assert!((least..=most).contains(&found), "{name} {found}");
    }
    let buckets = group["buckets"].as_array().unwrap();
    let rates: Vec<f64> = buckets
        .iter()
        .map(|one| number(one, "error_rate"))
        .collect();
    assert_eq!(rates, [0.0, 25.0 / 41.0], "{answer}");
    let found = number(&buckets[1]["duration_ms"], "p90");
    assert!((96.0 * 0.98..=98.0 * 1.02).contains(&found), "{found}");
}

#[actix_web::test]
async fn records_are_listed_read_and_kept_apart() {
    let api = api().await;
    let batch: Vec<_> = (1..=5)
        .map(|n| record(n, api.acme, if n == 3 { 429 } else { 200 }))
        .collect();
    api.control.records.insert(&batch).unwrap();
    api.control
        .records
        .insert(&[record(9, OrgId::from_bits(77), 200)])
        .unwrap();
    let ids = |query: &str| {
        let path = format!("/orgs/acme/records{query}");
        let api = &api;
        async move {
            let list = api.get(Who::Viewer, &path).await.is(200);
            let items = list.body["items"].as_array().unwrap().clone();
            let id = |item: &serde_json::Value| item["id"].as_str().unwrap().parse().unwrap();
            let ids = items
                .iter()
                .map(|item| RequestId::bits(id(item)))
                .collect::<Vec<_>>();
            (ids, list.body["next_cursor"].as_str().map(str::to_owned))
        }
    };
    assert_eq!(ids("").await.0, [5, 4, 3, 2, 1]);
    assert_eq!(ids("?status=4xx").await.0, [3]);
    assert_eq!(
        ids(&format!("?proxy={}", ProxyId::from_bits(0))).await.0,
        [4, 2]
    );
    assert_eq!(
        ids("?from=1970-01-01T00:00:02Z&to=1970-01-01T00:00:04Z")
            .await
            .0,
        [3, 2]
    );
    assert_eq!(ids("?code=rate-limited").await.0, [0u128; 0]);
    let (first, cursor) = ids("?limit=3").await;
    assert_eq!(first, [5, 4, 3]);
    assert_eq!(
        ids(&format!("?limit=3&cursor={}", cursor.unwrap())).await,
        (vec![2, 1], None)
    );
    for bad in [
        "status=9",
        "proxy=x",
        "from=yesterday",
        "cursor=Yg",
        "statu=200",
    ] {
        api.get(Who::Viewer, &format!("/orgs/acme/records?{bad}"))
            .await
            .is(400);
    }
    let slip = api.get(Who::Viewer, "/orgs/acme/records?code=rate-limted");
    let slip = slip.await.is(400);
    assert!(slip.text.contains("`rate-limited`"), "{}", slip.text);
    let strange = api.get(Who::Viewer, "/orgs/acme/records?code=zzz");
    let strange = strange.await.is(400);
    assert!(
        strange.text.contains("proxy-access-granted"),
        "{}",
        strange.text
    );
    let one = RequestId::from_bits(3);
    let reply = api
        .get(Who::Viewer, &format!("/orgs/acme/records/{one}"))
        .await
        .is(200);
    assert_eq!(reply.body["started_at"], "1970-01-01T00:00:03Z");
    let foreign = RequestId::from_bits(9);
    api.get(Who::Viewer, &format!("/orgs/acme/records/{foreign}"))
        .await
        .is(404);
}

#[actix_web::test]
async fn a_bound_listener_is_served_until_it_is_stopped() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let api = api().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (server, connections) = crate::serve(listener, None, api.control.clone()).unwrap();
    let handle = server.handle();
    let running = actix_web::rt::spawn(server);
    let mut kept = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\n\r\n");
    kept.write_all(head.as_bytes()).await.unwrap();
    assert!(kept.read(&mut [0; 1024]).await.unwrap() > 0);
    assert_eq!(connections.open(), 1);
    drop(kept);
    while connections.open() > 0 {
        tokio::task::yield_now().await;
    }
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("{\"status\":\"ok\"}"), "{answer}");
    handle.stop(true).await;
    running.await.unwrap().unwrap();
}

/// A file for viewers says the target of a request only while that is known: records do not have
/// it, and a proxy that was changed since may have had another.
#[actix_web::test]
async fn a_trace_as_a_file_names_the_target_that_is_known() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let proxy = format!("/orgs/acme/proxies/{}", made.proxy);
    let version = api.get(Who::Viewer, &proxy).await.is(200).body["version"].clone();
    let called = Record {
        proxy_id: made.proxy.parse().unwrap(),
        config_version: version.as_u64().unwrap(),
        ..record(1, api.acme, 200)
    };
    let id = called.request_id;
    let unknown = record(2, api.acme, 200);
    let other = unknown.request_id;
    api.control.records.insert(&[called, unknown]).unwrap();
    let file = |id: RequestId| format!("/orgs/acme/records/{id}/trace?format=otlp");
    let found = api.get(Who::Viewer, &file(id)).await.is(200).body;
    let expected = json!({"request": id, "target": made.target, "scheme": "https"});
    assert_eq!(found, expected);
    let found = api.get(Who::Viewer, &file(other)).await.is(200).body;
    assert_eq!(found["target"], json!(null));
    let change = json!({"alias": "stripe"});
    api.patch(Who::Admin, &proxy, change).await.is(200);
    let found = api.get(Who::Viewer, &file(id)).await.is(200).body;
    assert_eq!(found["target"], json!(null));
    let path = format!("/orgs/acme/records/{id}/trace?format=jaeger");
    let refused = api.get(Who::Viewer, &path).await.is(400).body;
    assert!(
        refused.to_string().contains("must be `spans` or `otlp`"),
        "{refused}"
    );
}

#[actix_web::test]
async fn attempts_that_match_no_proxy_are_the_operators_and_name_the_nearest() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/proxies/{}", made.proxy);
    let alias = json!({"alias": "stripe"});
    api.patch(Who::Admin, &path, alias).await.is(200);
    let attempt = |n: u128, name: &str| Record {
        path: name.into(),
        auth_failure: Some(AuthFailure::UnknownProxy),
        ..record(n, SYSTEM_ORG, 401)
    };
    let other = record(9, api.acme, 401);
    let batch = [attempt(1, "acme.strpie"), attempt(2, "wp-login.php"), other];
    api.control.records.insert(&batch).unwrap();
    let reply = api.get(Who::Operator, "/unmatched").await.is(200);
    let items = reply.body["items"].as_array().unwrap();
    let seen: Vec<_> = items.iter().map(|i| (&i["name"], &i["nearest"])).collect();
    let null = json!(null);
    assert_eq!(
        seen,
        [
            (&json!("wp-login.php"), &null),
            (&json!("acme.strpie"), &json!("acme.stripe"))
        ]
    );
    assert_eq!(items[0]["reason"], "unknown-proxy");
    let first = api.get(Who::Operator, "/unmatched?limit=1").await.is(200);
    let cursor = first.body["next_cursor"].as_str().unwrap().to_owned();
    let second = format!("/unmatched?limit=1&cursor={cursor}");
    let second = api.get(Who::Operator, &second).await.is(200);
    assert_eq!(second.body["items"][0]["name"], "acme.strpie");
    api.get(Who::Operator, "/unmatched?cursor=x").await.is(400);
    for who in [Who::Owner, Who::SystemMember] {
        api.get(who, "/unmatched").await.is(403);
    }
    let own = api.get(Who::Owner, "/orgs/acme/records").await.is(200);
    assert_eq!(own.body["items"].as_array().unwrap().len(), 1);
}

#[actix_web::test]
async fn the_use_of_a_credential_that_is_not_there_is_404() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = |id: &str| format!("/orgs/acme/credentials/{id}/use");
    for id in [&made.key, &made.injected] {
        let reply = api.get(Who::Viewer, &path(id)).await.is(200);
        assert_eq!(reply.body["used_24h"], 0);
    }
    let unknown = "crd_00000000000000000000000000";
    api.get(Who::Viewer, &path(unknown)).await.is(404);
}
