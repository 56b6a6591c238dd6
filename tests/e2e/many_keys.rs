//! A limit for each source address, and addresses that come once and never again: neither etcd nor
//! the process keeps them. There are 2,000, or as many as `REQUESTROCKET_ADDRESSES` says; 100,000
//! take ten minutes, since an organisation may have 200 new ones a second.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cluster::{Cluster, wait_known};
use crate::harness::gateway::Gateway;
use crate::harness::http::Connection;
use crate::harness::metrics;
use crate::harness::stores::{dump, part};
use crate::harness::upstream::Upstream;
use crate::harness::{address, wait_for};

/// Between two addresses.
const PERIOD: Duration = Duration::from_millis(6);
/// How often is looked at what there is.
const LOOKS: u32 = 10;
/// A key counts for a window, and is deleted after another: a second each.
const KEPT: usize = 800;
/// What a process may take more of while addresses come that it has no room for anyway.
const GROWTH_MIB: u64 = 64;

fn addresses() -> u32 {
    let given = std::env::var("REQUESTROCKET_ADDRESSES");
    given.map_or(2_000, |text| text.parse().expect("a number"))
}

#[test]
fn addresses_that_come_once_are_kept_neither_by_etcd_nor_by_the_process() {
    let cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let mut start = cluster.node_start("gw-1", "gw-1");
    let admin = address::reserved().to_string();
    start.config = start.config.replace("nodes = 2", "nodes = 1");
    start.config.push_str(&format!(
        "[gateway]\ntrusted_proxies = [\"127.0.0.0/8\"]\n[admin]\nlisten = {admin:?}\n"
    ));
    let admin = format!("http://{admin}");
    let node = Gateway::with(start);
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    let limits = json!([{"limit": 5, "window": "second"}]);
    control.create(
        &format!("/proxies/{}/meters", proxy.id),
        json!({"limits": limits, "key": {"by": "source"}}),
    );
    wait_known(&control, [&node]);
    let kept = || part(&dump(&cluster.etcd[0].endpoint()), &["tokens/"]).len();
    let (all, begun) = (addresses(), Instant::now());
    let (mut due, mut most, mut early_mib, mut refused) = (Instant::now(), 0, 0, 0);
    let mut connection = Connection::open(&node.url);
    for n in 0..all {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due = (due + PERIOD).max(Instant::now());
        let [_, a, b, c] = n.to_be_bytes();
        let from = format!("10.{a}.{b}.{c}");
        let request = proxy.request("GET", "/").field("x-forwarded-for", &from);
        connection.send(request.bytes(&node.url));
        let answer = connection.read().expect("an answer");
        refused += u32::from(answer.status() != 200);
        if (n + 1).is_multiple_of(all.div_ceil(LOOKS)) {
            let (now, mib) = (kept(), node.resident_kib() / 1024);
            eprintln!(
                "{} addresses in {:?}: {now} keys in etcd, {mib} MiB",
                n + 1,
                begun.elapsed()
            );
            most = most.max(now);
            if early_mib == 0 {
                early_mib = mib;
            }
        }
    }
    let overflows = metrics::at(&admin, "requestrocket_limit_overflows_total");
    assert_eq!(overflows, Some(0.0), "each had a key of its own");
    // A machine with other work may be late with tokens.
    assert!(refused <= all / 20, "{refused} of {all} got none");
    let growth_mib = (node.resident_kib() / 1024).saturating_sub(early_mib);
    assert!(
        most > 0 && most <= KEPT,
        "{most} of {all} are in etcd at once"
    );
    assert!(growth_mib <= GROWTH_MIB, "{growth_mib} MiB more");
    wait_for("an empty etcd", || (kept() == 0).then_some(()));
}
