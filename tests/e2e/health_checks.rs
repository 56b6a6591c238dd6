//! Active health checks: an endpoint that says that it does not work is passed over before a
//! request fails there, and comes back when it says that it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_status};
use crate::endpoints::{Load, is_from, made};
use crate::harness::gateway::{Gateway, TARGET_SECRET};
use crate::harness::upstream::{After, Upstream, json_answer};
use crate::harness::wait_for;

/// An endpoint that answers all requests, and whose checks fail while it is `ill`.
fn checkable(name: &'static str) -> (Upstream, Arc<AtomicBool>) {
    let ill = Arc::new(AtomicBool::new(false));
    let is_ill = Arc::clone(&ill);
    let upstream = Upstream::start(move |request, connection| {
        let status = match request.target() == "/up" && is_ill.load(Ordering::SeqCst) {
            true => "503 Service Unavailable",
            false => "200 OK",
        };
        connection.send(json_answer(status, &format!("{{\"from\":\"{name}\"}}")));
        After::Keep
    });
    (upstream, ill)
}

fn checks(upstream: &Upstream) -> usize {
    let seen = upstream.seen();
    seen.iter().filter(|seen| seen.target() == "/up").count()
}

fn check(more: &Value) -> Value {
    let mut check = json!({"path": "/up", "interval_ms": 1_000, "healthy": 1, "unhealthy": 2});
    let fields = check.as_object_mut().expect("fields");
    fields.extend(more.as_object().expect("fields").clone());
    check
}

#[test]
fn an_endpoint_is_passed_over_before_a_request_fails_and_comes_back() {
    let gateway = Gateway::start();
    let (near, ill) = checkable("near");
    let (far, _) = checkable("far");
    let endpoints = [
        json!({"base_url": format!("{}/v1", near.url()), "weight": 1000}),
        json!({"base_url": format!("{}/v1", far.url()), "weight": 1}),
    ];
    let more = json!({"health_check": check(&json!({})), "slow_start_ms": 0});
    let made = made(&gateway, &endpoints, more);
    let posts = [("POST", "{\"pay\":1}"), ("GET", "")];
    let load = Load::of(&gateway, &made, &posts);
    load.wait("answers of the near one", 100, is_from("near"));
    ill.store(true, Ordering::SeqCst);
    let target = made.answer["target_id"].as_str().expect("an id").to_owned();
    let address = near.url()["http://".len()..].to_owned();
    let failing =
        format!("requestrocket_endpoint_failing{{target=\"{target}\",endpoint=\"{address}\"}}");
    wait_for("the verdict", || {
        (gateway.metric(&failing) == 1.0).then_some(())
    });
    let before = near.seen().len() - checks(&near);
    load.wait("answers of the far one", 500, is_from("far"));
    let after = near.seen().len() - checks(&near);
    // Requests that were on their way when the verdict came, one of each caller.
    assert!(after - before <= posts.len(), "{before} {after}");
    ill.store(false, Ordering::SeqCst);
    load.wait("answers of the near one again", 100, is_from("near"));
    let answers = load.end();
    let failed = answers.iter().filter(|(status, _)| *status != 200);
    assert_eq!(failed.count(), 0, "of {}", answers.len());
    let total = format!(
        "requestrocket_endpoint_checks_total{{target=\"{target}\",endpoint=\"{address}\",\
         outcome=\"failed\"}}"
    );
    assert!(gateway.metric(&total) >= 2.0);
    // They carry no credential, and go past the base path.
    for upstream in [&near, &far] {
        let seen = upstream.seen();
        for seen in seen.iter().filter(|seen| seen.target() == "/up") {
            assert_eq!(seen.field("user-agent"), Some("requestrocket-health-check"));
            assert!(
                seen.fields
                    .iter()
                    .all(|(_, value)| !value.contains("the-targets"))
            );
        }
    }

    // Without `health_check` nobody asks any more; the checks of another target tell the time.
    let (clock, _) = checkable("clock");
    let endpoints = [json!({"base_url": clock.url()})];
    let more = json!({"health_check": check(&json!({}))});
    let _clock = crate::endpoints::made(&gateway, &endpoints, more);
    let path = format!("/targets/{target}");
    gateway.patch(&path, json!({"health_check": null}));
    wait_for("the end of its series", || {
        let text = gateway.operator("/metrics").text();
        (!text.contains(&failing)).then_some(())
    });
    let (near_then, clock_then) = (checks(&near), checks(&clock));
    wait_for("further checks of another", || {
        (checks(&clock) >= clock_then + 4).then_some(())
    });
    // One may have been under way.
    assert!(checks(&near) <= near_then + 1);
}

#[test]
fn faults_of_the_settings_are_named() {
    let gateway = Gateway::start();
    let target = json!({"base_url": "https://a.example",
                        "health_check": {"path": "up", "interval_ms": 10}});
    let refused = gateway.api("POST", "/targets", Some(&target));
    assert_eq!(refused.status(), 422, "{}", refused.text());
    let errors = refused.json()["errors"].clone();
    let pointers: Vec<&str> = errors
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|error| error["pointer"].as_str())
        .collect();
    assert_eq!(
        pointers,
        ["/health_check/path", "/health_check/interval_ms"]
    );
}

#[test]
fn a_target_with_a_breaker_is_left_alone_and_the_nodes_say_so() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = [cluster.node("gw-1", "gw-1"), cluster.node("gw-2", "gw-2")];
    let (upstream, ill) = checkable("one");
    let with = |more: Value| json!({"health_check": check(&more)});
    let mut guarded = with(json!({"statuses": [200]}));
    guarded["breaker"] = json!({});
    let guarded = control.proxy_with(&upstream.url(), guarded, json!({}));
    let plain = control.proxy_with(&upstream.url(), with(json!({})), json!({}));
    for node in &nodes {
        wait_status(node, &guarded, "GET", 200);
        wait_status(node, &plain, "GET", 200);
    }
    ill.store(true, Ordering::SeqCst);
    let failing = |count: usize| {
        wait_for("what the nodes say", || {
            let listed = control.operator("/nodes").json();
            let items = listed["items"].as_array()?.clone();
            let of = |node: &Value| node["failing"].as_array().map_or(0, Vec::len);
            let all = items.len() == 2 && items.iter().all(|node| of(node) == count);
            all.then_some(items)
        })
    };
    for node in failing(2) {
        for one in node["failing"].as_array().expect("a list") {
            let target = one["target"].as_str().expect("an id");
            assert!([&guarded.target, &plain.target].contains(&&target.to_owned()));
            assert_eq!(one["detail"], "it answered 503");
            assert_eq!(one["endpoint"], upstream.url()["http://".len()..]);
        }
    }
    let listed = control.command(&["nodes"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("! endpoint-failing "), "{listed}");
    for node in &nodes {
        let refused = guarded.request("GET", "/").send(&node.url);
        assert_eq!(refused.status(), 503, "{}", refused.text());
        assert_eq!(refused.json()["code"], "circuit-open");
        assert!(refused.field("retry-after").is_some());
        // It has one address and no breaker: requests find out themselves.
        assert_eq!(plain.request("GET", "/").send(&node.url).status(), 200);
    }
    ill.store(false, Ordering::SeqCst);
    failing(0);
    for node in &nodes {
        wait_status(node, &guarded, "GET", 200);
    }
    let seen = upstream.seen();
    let asked = seen.iter().filter(|seen| seen.target() == "/up");
    for seen in asked {
        assert!(
            seen.fields
                .iter()
                .all(|(_, value)| !value.contains(TARGET_SECRET))
        );
    }
}
