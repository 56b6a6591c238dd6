//! A limit by the day while the day ends, on three nodes whose clocks are seconds apart: the one in
//! the middle is the time. Judged by the time at which each request's token was spent. The limit is
//! 200 a day, or `REQUESTROCKET_CHAOS_LIMIT_PER_DAY`.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use node::limits::{Clock, Moment, SystemClock};
use serde_json::json;

use super::cluster;
use super::limits::{Kind, Limited};
use crate::harness::wait_for;

/// Three nodes and all that they need are there by then, and a small limit is used.
const UNTIL_MIDNIGHT: Duration = Duration::from_secs(75);
/// And so many calls a second more of a large one.
const CALLS_PER_SECOND: usize = 400;
/// The clocks of two of the nodes are off by so much, one this way and one that.
const APART_MS: i64 = 3_000;
/// So near to midnight a request may be of either day: how far from each other the clocks may be
/// of nodes that begin a day, and a little for what is slow.
const EDGE_NS: u64 = 300_000_000;
/// The next day has begun by then for whoever calls.
const BEGUN_NS: u64 = 3_000_000_000;

#[test]
fn a_day_ends_at_one_time_on_nodes_whose_clocks_are_apart() {
    const DAY_MS: u64 = 86_400_000;
    let Moment { boot_ns, unix_ns } = SystemClock.moment();
    let limit = limit();
    let limit_f = f64::from(u32::try_from(limit).expect("a limit"));
    let more = u64::try_from(limit / CALLS_PER_SECOND).expect("seconds");
    let until_midnight = UNTIL_MIDNIGHT + Duration::from_secs(more);
    let midnight_ns = boot_ns + u64::try_from(until_midnight.as_nanos()).expect("some time");
    let to_midnight_ms = DAY_MS - unix_ns / 1_000_000 % DAY_MS;
    let until_ms = u64::try_from(until_midnight.as_millis()).expect("some time");
    let ahead_ms = i64::try_from(to_midnight_ms).expect("a day") - until_ms.cast_signed();
    let clocks = [ahead_ms - APART_MS, ahead_ms, ahead_ms + APART_MS];
    cluster::run_at(clocks, |cluster, _| {
        let aheads = [-APART_MS, 0, APART_MS];
        for (node, ahead_ms) in cluster.nodes.iter().zip(aheads) {
            wait_for("clocks that are compared", || {
                let ahead_s = node.metric("requestrocket_limit_clock_ahead_seconds")?;
                let off_ms = ahead_s * 1e3 - ahead_ms as f64;
                (off_ms.abs() < 100.0).then_some(())
            });
        }
        let spec = json!({"limit": limit, "window": "day"});
        let per_second = (limit_f / 50.0).max(60.0);
        let limited = Limited::new(
            cluster,
            "a-day",
            (limit, spec),
            14,
            per_second,
            Kind::Closed,
        );
        cluster.agrees(0);
        let nodes = cluster.nodes.iter();
        let urls: Vec<_> = nodes.map(|node| node.gateway().url.clone()).collect();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..limited.callers {
                let (limited, urls, stop) = (&limited, &urls, &stop);
                scope.spawn(move || limited.call(urls, number, stop));
            }
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // A block of a twentieth may be lost to who does not use it.
                let most = limit - limit / 10;
                reach(&limited, most, "the limit of the first day");
                assert!(
                    SystemClock.boot_ns() < midnight_ns - EDGE_NS,
                    "it took too long"
                );
                let left_ns = (midnight_ns + EDGE_NS).saturating_sub(SystemClock.boot_ns());
                thread::sleep(Duration::from_nanos(left_ns));
                reach(&limited, limit + most, "the limit of the next day");
                // And a while at the limit.
                thread::sleep(Duration::from_secs(2));
            }));
            stop.store(true, Relaxed);
            if let Err(panic) = ended {
                std::panic::resume_unwind(panic);
            }
        });
        judge(&limited, limit, midnight_ns);
    });
}

/// Of one day, and of the next.
fn limit() -> usize {
    let given = std::env::var("REQUESTROCKET_CHAOS_LIMIT_PER_DAY");
    given.map_or(200, |text| text.parse().expect("a number"))
}

/// Waits until so many calls have been sent; a large number in steps.
fn reach(limited: &Limited, most: usize, what: &str) {
    let begun = limited.sent();
    for step in 1..=10 {
        let next = begun + most.saturating_sub(begun) * step / 10;
        wait_for(what, || (limited.sent() >= next).then_some(()));
    }
}

fn judge(limited: &Limited, limit: usize, midnight_ns: u64) {
    let mut sent: Vec<u64> = limited.calls().iter().map(|call| call.sent).collect();
    sent.sort_unstable();
    let before = sent.partition_point(|at| *at < midnight_ns - EDGE_NS);
    let after = sent.len() - sent.partition_point(|at| *at < midnight_ns + EDGE_NS);
    let all = sent.len();
    eprintln!("{before} before midnight, {after} after it, {all} in all");
    assert!(
        before <= limit && after <= limit && all <= 2 * limit,
        "{before} {after} {all}"
    );
    let next = sent.iter().find(|at| **at >= midnight_ns - EDGE_NS);
    let begun_ns = next.expect("requests of the next day") - (midnight_ns - EDGE_NS);
    eprintln!(
        "the next day begins {} ms after midnight",
        (begun_ns as f64 - EDGE_NS as f64) / 1e6
    );
    assert!(
        begun_ns < EDGE_NS + BEGUN_NS,
        "the next day begins {begun_ns} ns late"
    );
}
