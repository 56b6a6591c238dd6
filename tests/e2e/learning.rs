//! What meters learn from the answers of their targets, in the words of each vendor.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::cluster::Cluster;
use crate::harness::gateway::Gateway;
use crate::harness::upstream::{After, Upstream, json_answer};
use crate::harness::wait_for;
use crate::tokens::{current, linked};

/// An answer without a body.
fn bare(status: &str, fields: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}content-length: 0\r\n\r\n")
}

#[test]
fn two_busy_answers_on_one_node_stop_all_three() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let nodes = linked(&cluster);
    let upstream = Upstream::fixed(bare("429 Too Many Requests", "retry-after: 3\r\n"));
    let proxy = control.proxy(&upstream.url());
    let place = format!("/credentials/{}/meters", proxy.target_credential);
    control.create(&place, json!({"name": "vendor"}));
    current(&control);
    let call = |node: usize| proxy.request("GET", "/").send(&nodes[node].gateway.url);
    let (first, second) = (call(0), call(0));
    assert_eq!(
        first.outcome(),
        (429, "proxy-access-granted"),
        "the target's own"
    );
    assert_eq!(second.outcome(), (429, "rate-limited"), "not asked again");
    let begun = std::time::Instant::now();
    for node in 1..3 {
        let refused = wait_for("a pause on another node", || {
            let answer = call(node);
            (answer.outcome() == (429, "rate-limited")).then_some(answer)
        });
        eprintln!("node {node} waits after {:?}", begun.elapsed());
        assert!(
            refused.text().contains("asked to wait"),
            "{}",
            refused.text()
        );
        let ms = refused.field("retry-after-ms").expect("a time");
        assert!(ms.parse::<u64>().expect("a number") <= 3_000, "{ms}");
    }
    // All of them ask it again afterwards.
    for node in 0..3 {
        let seen = upstream.seen().len();
        wait_for("the end of the pause", || {
            call(node);
            (upstream.seen().len() > seen).then_some(())
        });
    }
}

#[test]
fn a_limit_of_github_that_is_used_up_stops_what_it_counts_and_nothing_else() {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|request, connection| {
        let search = request.target().contains("/search");
        let resource = if search { "search" } else { "core" };
        let used_up = search && request.target().ends_with("/last");
        let left = if used_up { 0 } else { 20 };
        let fields = format!(
            "x-ratelimit-resource: {resource}\r\nx-ratelimit-remaining: {left}\r\n\
             x-ratelimit-reset: 9999999999\r\n"
        );
        let status = if used_up { "403 Forbidden" } else { "200 OK" };
        connection.send(bare(status, &fields));
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/credentials/{}/meters", proxy.target_credential);
    let learn = json!({"from": "github", "pause_max_ms": 600_000});
    gateway.create(&place, json!({"name": "github", "learn": learn}));
    assert_eq!(proxy.get("/search/code").status(), 200);
    assert_eq!(proxy.get("/repos/a").status(), 200);
    assert_eq!(
        proxy.get("/search/last").outcome(),
        (403, "proxy-access-granted")
    );
    assert_eq!(proxy.get("/search/code").outcome(), (429, "rate-limited"));
    assert_eq!(proxy.get("/repos/a").status(), 200);
    assert_eq!(proxy.get("/gists").status(), 200);
}

#[test]
fn little_that_is_left_slows_a_meter_and_a_good_answer_lets_it_go_on() {
    let gateway = Gateway::start();
    let left = Arc::new(AtomicUsize::new(1));
    let told = Arc::clone(&left);
    let upstream = Upstream::start(move |_, connection| {
        let fields = format!(
            "x-ratelimit-remaining-requests: {}\r\nx-ratelimit-reset-requests: 1m0s\r\n",
            told.load(Ordering::Relaxed)
        );
        connection.send(bare("200 OK", &fields));
        After::Keep
    });
    let metered = || {
        let proxy = gateway.proxy(&upstream.url());
        let place = format!("/credentials/{}/meters", proxy.target_credential);
        let limits = json!([{"limit": 100, "window": "minute"}]);
        let learn = json!({"from": "openai"});
        gateway.create(&place, json!({"limits": limits, "learn": learn}));
        proxy
    };
    // Never below a tenth of it, and a few while nobody knew.
    let proxy = metered();
    let granted = (0..30).filter(|_| proxy.get("/").status() == 200).count();
    assert!((10..=16).contains(&granted), "{granted}");
    let refused = proxy.get("/");
    assert_eq!(
        refused.field("ratelimit-policy"),
        Some("\"minute\";q=10;w=60")
    );
    // One that is let through learns that there is enough again.
    let proxy = metered();
    assert_eq!(proxy.get("/").status(), 200);
    left.store(1_000, Ordering::Relaxed);
    assert_eq!(proxy.get("/").status(), 200);
    let granted = (0..30).filter(|_| proxy.get("/").status() == 200).count();
    assert_eq!(granted, 30);
}

#[test]
fn a_target_that_asks_to_wait_again_and_again_is_told_of() {
    let gateway = Gateway::start();
    let upstream = Upstream::start(|request, connection| {
        match request.target().ends_with("/well") {
            true => connection.send(json_answer("200 OK", "{}")),
            false => connection.send(bare("503 Service Unavailable", "retry-after: 1\r\n")),
        }
        After::Keep
    });
    let proxy = gateway.proxy(&upstream.url());
    let place = format!("/targets/{}/meters", proxy.target);
    gateway.create(&place, json!({"name": "busy"}));
    let busy = |path: &str| {
        wait_for("an answer of the target", || {
            let answer = proxy.get(path);
            let own = answer.field("requestrocket-proxy-code") == Some("proxy-access-granted");
            own.then_some(answer)
        })
    };
    busy("/");
    busy("/well");
    busy("/");
    assert!(!gateway.log().contains("in a row"), "{}", gateway.log());
    let second = busy("/");
    let id = second.field("requestrocket-request-id").expect("an id");
    let log = wait_for("the event", || {
        let log = gateway.log();
        log.contains("2 times in a row").then_some(log)
    });
    assert!(log.contains(id), "{log}");
}
