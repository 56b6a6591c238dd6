//! A defect of the gateway costs one request, whichever stage it is in.

use proto::record::Stage;
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait_status};
use crate::harness::gateway::Gateway;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::versions::run;

#[test]
fn a_panic_in_any_stage_is_one_500_and_is_counted() {
    let gateway = Gateway::configured("[gateway]\nworkers = 1\nfault_injection = true");
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    for stage in Stage::ALL {
        let name = stage.name();
        let fault = proxy
            .request("GET", "/")
            .field("requestrocket-fault", &format!("panic@{name}"));
        let answer = proxy.send(&fault);
        assert_eq!(answer.outcome(), (500, "internal-error"), "{name}");
        assert_eq!(answer.json()["code"], "internal-error", "{name}");
        assert!(!answer.text().contains(name), "{}", answer.text());
        let series = format!("requestrocket_stage_panics_total{{stage=\"{name}\"}}");
        assert_eq!(gateway.metric(&series), 1.0, "{name}");
        assert_eq!(proxy.get("/").status(), 200, "after a panic in {name}");
    }
    assert_eq!(gateway.metric("requestrocket_requests_in_flight"), 0.0);
}

/// How often one that fails again and again was begun anew is told where nodes are listed.
#[test]
fn a_stage_that_panics_again_and_again_serves_in_between_and_is_reported() {
    const PANICS: u64 = 50;
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let mut start = cluster.node_start("gw-1", "gw-1");
    start
        .config
        .push_str("[gateway]\nworkers = 1\nfault_injection = true\n");
    let node = Gateway::with(start);
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    for at in 0..PANICS {
        let stage = ["inject", "forward"][at as usize % 2];
        let fault = format!("panic@{stage}");
        let fault = proxy
            .request("GET", "/")
            .field("requestrocket-fault", &fault);
        assert_eq!(fault.send(&node.url).outcome(), (500, "internal-error"));
        assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
    }
    let restarts = wait_for("all of them in the node's entry", || {
        let nodes = control.operator("/nodes").json();
        let restarts = nodes["items"][0]["restarts"].clone();
        let all = restarts.as_object()?.values().filter_map(Value::as_u64);
        (all.sum::<u64>() == PANICS).then_some(restarts)
    });
    assert_eq!(
        restarts,
        json!({"inject": PANICS / 2, "forward": PANICS / 2})
    );
    let (good, shown) = run(&control, &["nodes"]);
    assert!(
        good && shown.contains("forward") && shown.contains("inject"),
        "{shown}"
    );
}

/// A node whose follower of the store panics again and again goes on serving, runs it again later
/// each time, says so where nodes are listed, and takes in what was published meanwhile.
#[test]
fn a_task_that_panics_again_and_again_runs_again_later_each_time_and_is_reported() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let mut start = cluster.node_start("gw-1", "gw-1");
    start
        .config
        .push_str("[gateway]\nworkers = 1\nfault_injection = true\n");
    let node = Gateway::with(start);
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let waits = || -> Vec<u64> {
        let log = node.log();
        let told = log
            .lines()
            .filter(|line| line.contains("task follow panicked"));
        let wait = |line: &str| {
            let (_, behind) = line.split_once("it runs again in ")?;
            behind.split_once(" ms")?.0.parse().ok()
        };
        told.filter_map(wait).collect()
    };
    for panics in 1..=4 {
        // One that waits for its next run cannot panic yet.
        wait_for("another panic", || {
            let fault = proxy
                .request("GET", "/")
                .field("requestrocket-fault", "panic@task:follow");
            assert_eq!(fault.send(&node.url).status(), 200, "requests go on");
            (waits().len() >= panics).then_some(())
        });
    }
    let waits = waits();
    assert_eq!(waits[..4], [100, 200, 400, 800], "{waits:?}");
    control.patch(&format!("/proxies/{}", proxy.id), json!({"active": false}));
    wait_status(&node, &proxy, "GET", 403);
    let count = json!(waits.len());
    wait_for("all of them in the node's entry", || {
        let nodes = control.operator("/nodes").json();
        (nodes["items"][0]["restarts"]["follow"] == count).then_some(())
    });
    let (good, shown) = run(&control, &["nodes"]);
    assert!(good && shown.contains("follow"), "{shown}");
    assert_eq!(node.stop().0.code(), Some(0));
}

/// What holds what no later run could have ends the process in order, for its service manager to
/// start it again.
#[test]
fn a_task_that_cannot_run_again_ends_the_process_in_order() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let mut start = cluster.node_start("gw-1", "gw-1");
    start
        .config
        .push_str("[gateway]\nworkers = 1\nfault_injection = true\n");
    let node = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let fault = proxy
        .request("GET", "/")
        .field("requestrocket-fault", "panic@task:tokens");
    assert_eq!(fault.send(&node.url).status(), 200);
    let (status, folder) = node.ended();
    assert_eq!(status.code(), Some(1));
    let log = std::fs::read_to_string(folder.path().join("log")).expect("its log");
    assert!(log.contains("task tokens panicked"), "{log}");
    wait_for("that it took its entry away", || {
        let nodes = control.operator("/nodes").json();
        (nodes["items"] == json!([])).then_some(())
    });
    let node = Gateway::inside(folder, &start);
    wait_status(&node, &proxy, "GET", 200);
}

#[test]
fn nobody_injects_faults_into_a_gateway_that_does_not_test_itself() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let fault = proxy
        .request("GET", "/")
        .field("requestrocket-fault", "panic@forward");
    assert_eq!(proxy.send(&fault).status(), 200);
    assert_eq!(upstream.last().field("requestrocket-fault"), None);
}
