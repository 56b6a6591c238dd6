//! Objects come, change, are found and go.

use actix_web::http::Method;
use serde_json::{Value, json};

use super::{Reply, Who, api};

#[actix_web::test]
async fn a_created_target_shows_what_it_will_do() {
    let api = api().await;
    let target = json!({"base_url": "https://api.openai.com/v1"});
    let target = api.make(Who::Admin, "targets", target).await;
    assert_eq!(target.body["name"], "api.openai.com");
    assert_eq!(target.body["default_rule_effect"], "allow");
    assert_eq!(target.body["effective_timeouts"]["first_byte_ms"], 600_000);
    assert_eq!(target.body["effective_timeouts"]["connect_ms"], 5_000);
    let location = format!("/api/v1/orgs/acme/targets/{}", target.id());
    assert_eq!(target.header("location"), Some(&*location));
    let etag = format!("\"{}\"", target.body["version"]);
    assert_eq!(target.header("etag"), Some(&*etag));
    let version = format!("{}={}", api.acme, target.body["version"]);
    assert_eq!(target.header("requestrocket-version"), Some(&*version));
}

#[actix_web::test]
async fn a_proxy_shows_its_url() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/proxies/{}", made.proxy);
    let proxy = api.get(Who::Viewer, &path).await.is(200);
    let url = format!("https://gw.example/api/{}", made.proxy);
    assert_eq!(proxy.body["url"], url.as_str());
    assert_eq!(proxy.body["urls"], json!({"local": url}));
    assert_eq!(proxy.body["name"], "api.stripe.com");
    assert_eq!(proxy.body.get("alias_url"), None);
    let named = json!({"alias": "stripe"});
    let proxy = api.patch(Who::Admin, &path, named).await.is(200);
    assert_eq!(
        proxy.body["url"],
        url.as_str(),
        "does not change with the alias"
    );
    assert_eq!(
        proxy.body["alias_url"],
        "https://gw.example/api/acme.stripe"
    );
}

#[actix_web::test]
async fn a_generated_key_is_shown_once_and_a_given_secret_never() {
    let api = api().await;
    let injected = json!({"kind": "target", "auth_type": "bearer", "hosts": ["api.openai.com"],
                          "secret": {"token": "sk-very-secret"}});
    let injected = api.make(Who::Admin, "credentials", injected).await;
    assert_eq!(injected.body["secret"]["state"], "active");
    let key = json!({"kind": "proxy", "auth_type": "api_key"});
    let key = api.make(Who::Member, "credentials", key).await;
    let once = key.body["secret"]["key"].as_str().unwrap().to_owned();
    assert!(once.starts_with("rr_live_"), "{once}");
    assert_eq!(key.body["secret"]["hint"], once[once.len() - 4..]);
    let bearer = json!({"kind": "proxy", "auth_type": "bearer"});
    let bearer = api.make(Who::Member, "credentials", bearer).await;
    assert!(
        bearer.body["secret"]["token"]
            .as_str()
            .unwrap()
            .starts_with("rr_live_")
    );
    let one = format!("/orgs/acme/credentials/{}", key.id());
    for path in ["/orgs/acme/credentials", &one] {
        let seen = api.get(Who::Viewer, path).await.is(200);
        for secret in [once.as_str(), "sk-very-secret", "digest", "seal_id"] {
            assert!(!seen.text.contains(secret), "{path} shows {secret}");
        }
    }
    assert!(!injected.text.contains("sk-very-secret"));
    let list = api
        .get(Who::Viewer, "/orgs/acme/credentials?kind=target")
        .await
        .is(200);
    assert_eq!(list.body["items"].as_array().unwrap().len(), 1);
}

#[actix_web::test]
async fn a_key_is_rotated_with_an_overlap() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let rotate = format!("/orgs/acme/credentials/{}/rotate", made.key);
    let one = api
        .get(Who::Viewer, &format!("/orgs/acme/credentials/{}", made.key))
        .await;
    let two = api
        .post(Who::Member, &rotate, json!({"overlap_ms": 60_000}))
        .await
        .is(200);
    assert!(
        two.body["secret"]["key"]
            .as_str()
            .unwrap()
            .starts_with("rr_live_")
    );
    assert_ne!(
        one.body["secret"]["generation"],
        two.body["secret"]["generation"]
    );
    let again = api
        .get(Who::Viewer, &format!("/orgs/acme/credentials/{}", made.key))
        .await;
    assert!(again.body["secret"].get("key").is_none());
    // The former one is still accepted, and until when is told by both answers.
    for shown in [&two.body, &again.body] {
        let former = &shown["secret"]["former"];
        assert_eq!(former.as_array().map(Vec::len), Some(1), "{shown}");
        assert_eq!(former[0]["generation"], one.body["secret"]["generation"]);
        let until: jiff::Timestamp = former[0]["valid_until"].as_str().unwrap().parse().unwrap();
        let set: jiff::Timestamp = shown["secret"]["set_at"].as_str().unwrap().parse().unwrap();
        let overlap = until.duration_since(set).as_secs();
        assert!((59..=61).contains(&overlap), "{shown}");
    }
    // No body at all.
    let third = api
        .send(api.request(Who::Member, Method::POST, &rotate))
        .await
        .is(200);
    assert_eq!(third.body["secret"]["former"], json!(null), "over at once");
    for (body, pointer) in [
        (json!({"overlap_ms": -1}), "/overlap_ms"),
        (json!({"overlap_ms": 2_592_000_001u64}), "/overlap_ms"),
        (json!({"overlapms": 1}), "/overlapms"),
        (json!({"secret": {"key": "short"}}), "/secret/key"),
    ] {
        let reply = api.post(Who::Member, &rotate, body).await.is(422);
        assert_eq!(reply.faults()[0].0, pointer);
    }
    let rotate = format!("/orgs/acme/credentials/{}/rotate", made.injected);
    let reply = api
        .post(Who::Admin, &rotate, json!({"overlap_ms": 5}))
        .await
        .is(422);
    let pointers: Vec<_> = reply
        .faults()
        .into_iter()
        .map(|(pointer, _)| pointer)
        .collect();
    assert_eq!(pointers, ["/overlap_ms", "/secret"]);
    api.post(Who::Admin, &rotate, json!({"secret": {"token": "sk_2"}}))
        .await
        .is(200);
}

#[actix_web::test]
async fn preconditions_guard_changes() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/targets/{}", made.target);
    let read = api.get(Who::Viewer, &path).await.is(200);
    let etag = read.header("etag").unwrap().to_owned();
    let with = |method: Method, header: &'static str, value: &str| {
        api.request(Who::Admin, method, &path)
            .insert_header((header, value.to_owned()))
    };
    api.send(with(Method::GET, "if-none-match", &etag))
        .await
        .is(304);
    api.send(with(Method::GET, "if-none-match", "\"0\""))
        .await
        .is(200);
    let patch = |value: &str, name: &str| {
        with(Method::PATCH, "if-match", value).set_json(json!({ "name": name }))
    };
    let changed = api.send(patch(&etag, "a")).await.is(200);
    assert_ne!(changed.header("etag").unwrap(), etag);
    let stale = api.send(patch(&etag, "b")).await.is(412);
    assert_eq!(stale.body["code"], "precondition-failed");
    api.send(with(Method::DELETE, "if-match", &etag))
        .await
        .is(412);
    api.send(patch("*", "c")).await.is(200);
    api.send(patch("W/\"1\"", "d")).await.is(412);
    api.send(patch("nonsense", "d")).await.is(400);
    assert_eq!(api.get(Who::Viewer, &path).await.body["name"], "c");
}

#[actix_web::test]
async fn patch_merges_and_put_replaces() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/targets/{}", made.target);
    let patch = json!({"labels": {"a": "1", "b": "2"}, "timeouts": {"total_ms": 9_000}});
    api.patch(Who::Admin, &path, patch).await.is(200);
    let patch = json!({"labels": {"a": null}, "timeouts": {"connect_ms": 1_000}});
    let merged = api.patch(Who::Admin, &path, patch).await.is(200);
    assert_eq!(merged.body["labels"], json!({"b": "2"}));
    assert_eq!(
        merged.body["timeouts"],
        json!({"connect_ms": 1_000, "total_ms": 9_000})
    );
    let whole = json!({"base_url": "https://api.stripe.com"});
    let replaced = api
        .write(Who::Admin, Method::PUT, &path, whole)
        .await
        .is(200);
    assert_eq!(replaced.body["labels"], json!({}));
    assert_eq!(replaced.body["timeouts"], json!({}));
    let read_back = api.get(Who::Viewer, &path).await.is(200);
    assert_eq!(read_back.body, replaced.body, "a read sees the write");
    let etag = replaced.header("etag").unwrap().to_owned();
    let same = api.patch(Who::Admin, &path, json!({})).await.is(200);
    assert_eq!(same.header("etag").unwrap(), etag, "no change, no version");
}

#[actix_web::test]
async fn pages_join_to_the_whole_list() {
    let api = api().await;
    let mut made = Vec::new();
    for n in 0..5 {
        let target = json!({"base_url": format!("https://{n}.example.com")});
        made.push(
            api.post(Who::Admin, "/orgs/acme/targets", target)
                .await
                .is(201)
                .id(),
        );
    }
    let (mut seen, mut next) = (Vec::new(), String::new());
    loop {
        let page = api
            .get(Who::Viewer, &format!("/orgs/acme/targets?limit=2{next}"))
            .await
            .is(200);
        let items = page.body["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        seen.extend(
            items
                .iter()
                .map(|item| item["id"].as_str().unwrap().to_owned()),
        );
        match page.body["next_cursor"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, made);
    for bad in [
        "limit=0",
        "limit=501",
        "limit=x",
        "cursor=!",
        "cursor=cHJ4",
        "limt=2",
    ] {
        api.get(Who::Viewer, &format!("/orgs/acme/targets?{bad}"))
            .await
            .is(400);
    }
}

#[actix_web::test]
async fn what_is_in_use_stays_and_says_by_whom() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    for path in [
        format!("/orgs/acme/targets/{}", made.target),
        format!("/orgs/acme/credentials/{}", made.injected),
        format!("/orgs/acme/credentials/{}", made.key),
    ] {
        let reply = api.delete(Who::Admin, &path).await.is(409);
        assert_eq!(reply.body["used_by"], json!([made.proxy]));
        assert!(reply.body["detail"].as_str().unwrap().contains(&made.proxy));
    }
    let alias = json!({"alias": "pay"});
    api.patch(
        Who::Admin,
        &format!("/orgs/acme/proxies/{}", made.proxy),
        alias,
    )
    .await
    .is(200);
    let twin =
        json!({"target_id": made.target, "proxy_credential_ids": [made.key], "alias": "pay"});
    let reply = api
        .post(Who::Admin, "/orgs/acme/proxies", twin)
        .await
        .is(409);
    assert_eq!(reply.body["used_by"], json!([made.proxy]));
    api.delete(Who::Admin, &format!("/orgs/acme/proxies/{}", made.proxy))
        .await
        .is(204);
    api.delete(Who::Admin, &format!("/orgs/acme/targets/{}", made.target))
        .await
        .is(204);
    api.get(Who::Admin, &format!("/orgs/acme/targets/{}", made.target))
        .await
        .is(404);
}

#[actix_web::test]
async fn organisations_are_the_operators() {
    let api = api().await;
    let made = api
        .post(Who::Operator, "/orgs", json!({"slug": "new-one"}))
        .await
        .is(201);
    assert_eq!(made.body["name"], "new-one");
    let location = format!("/api/v1/orgs/{}", made.id());
    assert_eq!(made.header("location"), Some(&*location));
    api.post(Who::Operator, "/orgs", json!({"slug": "new-one"}))
        .await
        .is(409);
    api.post(Who::Operator, "/orgs", json!({"slug": "Bad Slug"}))
        .await
        .is(422);
    api.patch(Who::Operator, "/orgs/new-one", json!({"name": "New"}))
        .await
        .is(200);
    api.patch(Who::Operator, "/orgs/new-one", json!({"slug": "other-one"}))
        .await
        .is(422);
    let token = json!({"name": "first", "role": "admin"});
    api.post(Who::Operator, "/orgs/new-one/tokens", token)
        .await
        .is(201);
    let target = json!({"base_url": "https://a.example"});
    let target = api
        .post(Who::Operator, "/orgs/new-one/targets", target)
        .await
        .is(201)
        .id();
    let reply = api.delete(Who::Operator, "/orgs/new-one").await.is(409);
    assert_eq!(reply.body["used_by"], json!([target]));
    api.delete(Who::Operator, &format!("/orgs/new-one/targets/{target}"))
        .await
        .is(204);
    api.delete(Who::Operator, "/orgs/new-one").await.is(204);
    api.get(Who::Operator, "/orgs/new-one").await.is(404);
    let mine = api.get(Who::Viewer, "/orgs/acme").await.is(200);
    assert_eq!(mine.body["slug"], "acme");
    let all = api.get(Who::Operator, "/orgs").await.is(200);
    let slugs: Vec<_> = all.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|org| org["slug"].clone())
        .collect();
    assert_eq!(slugs, ["system", "default", "acme", "other"]);
}

#[actix_web::test]
async fn a_repeated_write_happens_once() {
    let api = api().await;
    let send = |key: &'static str, body: serde_json::Value| {
        let request = api
            .request(Who::Admin, Method::POST, "/orgs/acme/credentials")
            .insert_header(("idempotency-key", key))
            .set_json(body);
        api.send(request)
    };
    let body = json!({"kind": "proxy", "auth_type": "api_key", "name": "a"});
    let first = send("k1", body.clone()).await.is(201);
    let again = send("k1", body.clone()).await.is(201);
    assert_eq!(first.body, again.body, "the generated key included");
    let other = send("k1", json!({"kind": "proxy", "auth_type": "bearer"}))
        .await
        .is(422);
    assert_eq!(other.body["code"], "idempotency-key-reused");
    // This process forgets, as after a restart; the store does not.
    *api.control.idempotency() = Default::default();
    let recalled = send("k1", body.clone()).await.is(201);
    assert_eq!(recalled.id(), first.id());
    // Another key was generated then, and is in force; this one would be in force nowhere.
    assert!(recalled.body["secret"].get("key").is_none());
    let warned = &recalled.body["warnings"][0];
    assert_eq!(
        (&warned["pointer"], &warned["code"]),
        (&json!("/secret/key"), &json!("shown-before"))
    );
    assert!(first.body.get("warnings").is_none(), "{}", first.text);
    let hint = |reply: &Reply| reply.body["secret"]["hint"].clone();
    assert_eq!(hint(&recalled), hint(&first));
    assert!(send("k2", body).await.is(201).id() != first.id());
    let list = api.get(Who::Viewer, "/orgs/acme/credentials").await;
    assert_eq!(list.body["items"].as_array().unwrap().len(), 2);
}

#[actix_web::test]
async fn a_repeated_list_that_changed_nothing_shows_no_change() {
    let api = api().await;
    let target = json!({"base_url": "https://a.example", "name": "a"});
    let target = api.make(Who::Admin, "targets", target).await.id();
    let send = || {
        let same = json!({"operations": [{"update": target, "patch": {"name": "a"}}]});
        let request = api.request(Who::Admin, Method::POST, "/orgs/acme/changes");
        api.send(
            request
                .insert_header(("idempotency-key", "k1"))
                .set_json(same),
        )
    };
    let first = send().await.is(200);
    assert_eq!(first.body["changes"], json!([]));
    let path = format!("/orgs/acme/targets/{target}");
    api.patch(Who::Admin, &path, json!({"name": "theirs"}))
        .await
        .is(200);
    // This process forgets, as after a restart; the store does not.
    *api.control.idempotency() = Default::default();
    let again = send().await.is(200);
    assert_eq!(again.body["changes"], json!([]), "{}", again.text);
    assert_eq!(again.body["to"], first.body["to"]);
    let now = api.get(Who::Admin, &path).await.is(200);
    assert_eq!(now.body["name"], "theirs");
}

#[actix_web::test]
async fn a_deletion_that_is_repeated_is_answered_as_the_first() {
    let api = api().await;
    let target = json!({"base_url": "https://a.example"});
    let target = api.make(Who::Admin, "targets", target).await.id();
    let delete = |key: &'static str| {
        let path = format!("/orgs/acme/targets/{target}");
        let request = api.request(Who::Admin, Method::DELETE, &path);
        api.send(request.insert_header(("idempotency-key", key)))
    };
    let first = delete("k1").await.is(204);
    // The answer was lost, and another control plane is asked.
    *api.control.idempotency() = Default::default();
    let again = delete("k1").await.is(204);
    let version = first.header("requestrocket-version");
    assert!(version.is_some());
    assert_eq!(again.header("requestrocket-version"), version);
    delete("k2").await.is(404);
}

#[actix_web::test]
async fn a_repeated_write_says_where_a_key_is_not_shown_again() {
    let api = api().await;
    let target = json!({"base_url": "https://api.stripe.com"});
    let key = json!({"kind": "proxy", "auth_type": "api_key"});
    let injected = json!({"kind": "target", "auth_type": "bearer", "secret": {"token": "sk_1"}});
    let given = json!({"kind": "proxy", "auth_type": "basic",
                       "secret": {"username": "u", "password": "Wq8-long-enough-to-be-strong"}});
    let inline = |caller: &Value| json!({"target": target, "credentials": [injected, caller]});
    let create =
        |what: &str, object: &Value| json!({"operations": [{"create": what, "object": object}]});
    let token = json!({"name": "t", "role": "viewer"});
    for (at, (what, body, place)) in [
        ("tokens", token, Some("/warnings/0")),
        ("changes", create("credentials", &key), Some("/warnings/0")),
        ("proxies", inline(&key), Some("/credentials/1/warnings/0")),
        ("changes", create("targets", &target), None),
        ("proxies", inline(&given), None),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/orgs/acme/{what}");
        let send = || {
            let request = api.request(Who::Owner, Method::POST, &path);
            let request = request.insert_header(("idempotency-key", format!("k{at}")));
            api.send(request.set_json(body.clone()))
        };
        let first = send().await;
        assert!(matches!(first.status, 200 | 201), "{what}: {}", first.text);
        assert!(
            !first.text.contains("shown-before"),
            "{what}: {}",
            first.text
        );
        // Another control plane is asked.
        *api.control.idempotency() = Default::default();
        let again = send().await.is(first.status);
        let code = place.map(|place| again.body.pointer(place).map(|one| one["code"].clone()));
        match code {
            Some(code) => assert_eq!(code, Some(json!("shown-before")), "{}", again.text),
            None => assert!(!again.text.contains("shown-before"), "{}", again.text),
        }
    }
}

#[actix_web::test]
async fn a_dry_run_takes_no_key() {
    let api = api().await;
    let send = |key: &'static str, query: &'static str, body: serde_json::Value| {
        let path = format!("/orgs/acme/changes{query}");
        let request = api.request(Who::Admin, Method::POST, &path);
        api.send(
            request
                .insert_header(("idempotency-key", key))
                .set_json(body),
        )
    };
    let create = json!({"operations": [
        {"create": "targets", "object": {"base_url": "https://a.example"}}]});
    send("k1", "?dry_run=true", create.clone()).await.is(200);
    send("k1", "", create).await.is(200);
}

#[actix_web::test]
async fn a_wildcard_over_other_peoples_names_is_answered_with_the_names_in_use() {
    let api = api().await;
    for shop in ["a-shop", "b-shop"] {
        let target = json!({"base_url": format!("https://{shop}.myshopify.com/admin")});
        api.make(Who::Admin, "targets", target).await;
    }
    let body = |hosts: serde_json::Value| {
        let mut body = json!({"kind": "target", "auth_type": "bearer", "secret": {"token": "x"}});
        body["hosts"] = hosts;
        body
    };
    let wide = body(json!([
        "api.example.com",
        "*.myshopify.com",
        "*.s3.amazonaws.com"
    ]));
    let path = "/orgs/acme/credentials";
    let reply = api.post(Who::Admin, path, wide.clone()).await.is(422);
    let faults = reply.faults();
    let code = "wildcard-too-wide".to_owned();
    assert_eq!(
        faults,
        [("/hosts/1".into(), code.clone()), ("/hosts/2".into(), code)]
    );
    let detail = reply.body["errors"][0]["detail"].as_str().unwrap();
    let offered = "your targets use [\"a-shop.myshopify.com\", \"b-shop.myshopify.com\"]";
    assert!(detail.contains(offered), "{detail}");
    let none = reply.body["errors"][1]["detail"].as_str().unwrap();
    assert!(!none.contains("your targets"), "{none}");
    // The same where it is part of a list of changes, or of a file.
    let changes = json!({"operations": [{"create": "credentials", "object": wide}]});
    let reply = api
        .post(Who::Admin, "/orgs/acme/changes", changes)
        .await
        .is(422);
    assert_eq!(reply.faults()[0].0, "/operations/0/object/hosts/1");
    let offered = body(json!(["a-shop.myshopify.com", "*.example.com"]));
    let made = api.post(Who::Admin, path, offered).await.is(201).id();
    let patch = json!({"hosts": ["*.myshopify.com"], "secret": {"token": "y"}});
    let path = format!("{path}/{made}");
    let reply = api.patch(Who::Admin, &path, patch).await.is(422);
    assert_eq!(reply.faults()[0].1, "wildcard-too-wide");
}

#[actix_web::test]
async fn a_renamed_proxy_shows_the_aliases_that_it_still_answers_to() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let path = format!("/orgs/acme/proxies/{}", made.proxy);
    let rename = |alias: serde_json::Value| {
        let patch = json!({"alias": alias});
        let (api, path) = (&api, &path);
        async move {
            let shown = api.patch(Who::Member, path, patch).await.is(200).body;
            let former = shown["former_aliases"].as_array().cloned();
            let former = former.unwrap_or_default();
            let day = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
            for former in &former {
                let until: jiff::Timestamp = former["until"].as_str().unwrap().parse().unwrap();
                assert!(
                    until.duration_until(day).abs().as_secs() < 3_600,
                    "{former}"
                );
            }
            former
                .iter()
                .map(|f| f["alias"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        }
    };
    let none: [&str; 0] = [];
    assert_eq!(rename(json!("one")).await, none);
    assert_eq!(rename(json!("two")).await, ["one"]);
    assert_eq!(rename(json!("three")).await, ["one", "two"]);
    assert_eq!(rename(json!("one")).await, ["two", "three"]);
    assert_eq!(rename(json!(null)).await, ["two", "three", "one"]);
    for n in 0..20 {
        rename(json!(format!("n{n}"))).await;
    }
    assert_eq!(rename(json!("n20")).await.len(), 8, "the newest");
    // A change of something else leaves them, a copy of the object does not set them.
    let whole = api.get(Who::Viewer, &path).await.is(200).body;
    let inactive = api
        .patch(Who::Member, &path, json!({"active": false}))
        .await
        .is(200);
    assert_eq!(inactive.body["former_aliases"], whole["former_aliases"]);
    let given = json!({"former_aliases": []});
    let reply = api.patch(Who::Admin, &path, given).await.is(422);
    assert_eq!(
        reply.faults(),
        [("/former_aliases".into(), "read-only".into())]
    );
    // They are free for others.
    let second = json!({"alias": "n19", "target_id": made.target,
                        "proxy_credential_ids": [made.key]});
    api.make(Who::Member, "proxies", second).await;
    let exported = api.get(Who::Admin, "/orgs/acme/config").await.is(200);
    assert!(!exported.text.contains("former_aliases"));
}

#[actix_web::test]
async fn an_end_that_is_past_is_told_and_one_that_is_no_time_is_refused() {
    let api = api().await;
    for (path, object) in [
        (
            "/orgs/acme/credentials",
            json!({"kind": "proxy", "auth_type": "api_key"}),
        ),
        ("/orgs/acme/tokens", json!({"name": "t", "role": "viewer"})),
    ] {
        let with = |end: &str| {
            let mut object = object.clone();
            object["expires_at"] = json!(end);
            object
        };
        let past = api
            .post(Who::Owner, path, with("2020-01-01T00:00:00Z"))
            .await;
        if path.ends_with("/tokens") {
            // It could do nothing, and nobody would know why.
            assert_eq!(past.is(422).faults()[0].0, "/expires_at");
        } else {
            let past = past.is(201);
            let warned = &past.body["warnings"][0];
            assert_eq!(
                (&warned["pointer"], &warned["code"]),
                (&json!("/expires_at"), &json!("expired")),
                "{}",
                past.text
            );
            let one = format!("{path}/{}", past.id());
            let end = json!({"expires_at": "2999-01-01T00:00:00+01:00"});
            let later = api.patch(Who::Owner, &one, end).await.is(200);
            assert!(later.body.get("warnings").is_none(), "{}", later.text);
        }
        for wrong in ["2027-01-01", "2027-01-01T00:00:00", "tomorrow", ""] {
            let refused = api.post(Who::Owner, path, with(wrong)).await.is(422);
            assert_eq!(refused.faults()[0].0, "/expires_at");
            let detail = refused.body["errors"][0]["detail"].as_str().unwrap();
            assert!(detail.contains("as in 2027-01-31T18:00:00Z"), "{detail}");
        }
    }
}
