//! A node that is killed under load loses the records of its last moment and no others.

use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Connection;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// How long before its end a request must have ended for its record to be safe: four times of what
/// the docs state, for machines that do much besides.
const SAFE: Duration = Duration::from_secs(2);
/// How long there is load before the kill.
const LOAD: Duration = Duration::from_secs(4);
/// Between two requests: each record is asked for.
const PACE: Duration = Duration::from_millis(5);

/// Ids of requests with when they were answered.
type Answered = Vec<(String, Instant)>;

fn load(node: &Gateway, proxy: &Proxy) -> Answered {
    let bytes = proxy.request("GET", "/loaded").bytes(&node.url);
    let mut caller = Connection::open(&node.url);
    let (begun, mut answered) = (Instant::now(), Answered::new());
    while begun.elapsed() < LOAD {
        caller.send(&bytes);
        let answer = caller.read().expect("an answer");
        assert_eq!(answer.status(), 200);
        let id = answer.field("requestrocket-request-id").expect("an id");
        answered.push((id.to_owned(), Instant::now()));
        std::thread::sleep(PACE);
    }
    answered
}

/// Each record of those that ended early enough is there, and at least half of the rest.
fn check(control: &Gateway, answered: &Answered, killed: Instant) {
    let is_safe = |at: &Instant| *at + SAFE < killed;
    let safe = answered.iter().filter(|(_, at)| is_safe(at));
    let mut count = 0;
    for (id, _) in safe {
        assert_eq!(control.record(id)["path"], "/loaded");
        count += 1;
    }
    assert!(count > 100, "{count} requests are no load");
    let late = || answered.iter().filter(|(_, at)| !is_safe(at));
    let is_lost = |id: &str| {
        let answer = control.api("GET", &format!("/records/{id}"), None);
        answer.status() == 404
    };
    let (late, lost) = (late().count(), late().filter(|(id, _)| is_lost(id)).count());
    assert!(lost < late / 2, "{lost} of {late} are those of no moment");
}

#[test]
fn a_node_that_is_killed_loses_no_record_but_those_of_its_last_moment() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let start = cluster.node_start("gw-1", "gw-1");
    let node = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_for("the proxy", || {
        let answer = proxy.request("GET", "/").send(&node.url);
        (answer.status() == 200).then_some(())
    });

    // A control plane takes them.
    let answered = load(&node, &proxy);
    let killed = Instant::now();
    let inside = node.kill();
    check(&control, &answered, killed);

    // None does: they wait on the node's disk, which outlives the process.
    let node = Gateway::inside(inside, &start);
    let folder = control.kill();
    let answered = load(&node, &proxy);
    let killed = Instant::now();
    let inside = node.kill();
    let node = Gateway::inside(inside, &start);
    let control = Gateway::inside(folder, &cluster.control_start());
    check(&control, &answered, killed);
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
}
