//! Callers that come by the clock, as those of the test of real processes do: each in always the
//! same time, whether it is served or refused, with one request on its way.
//!
//! Tokens come back in time with such calls, and a call in between finds none, whatever is done: a
//! way to give tokens that suits callers who come by chance may give these few or none.

use proto::meter::{Limit, Window};

use super::schedules::{check_all, per, run};
use super::simulation::{MS, Plan, SECOND};

/// How long use is looked at, after two windows.
const WINDOWS: u64 = 20;

/// Most come to one of three nodes: that which owns the key, or another one.
const SPREADS: [&[usize]; 3] = [
    &[0, 0, 0, 0, 1, 1, 2],
    &[1, 1, 1, 1, 2, 2, 0],
    &[2, 2, 2, 2, 0, 0, 1],
];

/// Longest times, in milliseconds: to the store and as long back, to a peer, from draw to send.
type Trips = (u64, u64, u64);

/// An idle machine; etcd on disks of its own; one where all processes wait for a core.
const TRIPS: [Trips; 4] = [(2, 1, 2), (10, 2, 2), (20, 3, 5), (30, 5, 5)];

/// Checks that in every spread, on sub-windows that begin at several times, so much of the limit is
/// used of a demand of so many calls a window.
fn check(limit: Limit, calls: u64, trips: Trips, least: u64) -> Result<String, String> {
    let width_ns = limit.window().width_ns();
    let (mut used, mut writes) = (Vec::new(), 0);
    for callers in SPREADS {
        for seed in 0..4 {
            let mut plan = Plan::new(vec![limit], width_ns / calls, (WINDOWS + 2) * width_ns);
            (plan.nodes, plan.callers) = (3, callers);
            let (trip, peer_trip, connect) = trips;
            (plan.trip_ns, plan.peer_trip_ns) = (trip * MS, peer_trip * MS);
            plan.connect_ns = connect * MS;
            let outcome = run(&plan, seed);
            let later = |at: &&u64| **at >= 2 * width_ns;
            let sent = outcome.sends.iter().filter(later).count() as u64;
            used.push(sent * 100 / (limit.limit() * WINDOWS));
            writes = writes.max(outcome.writes * SECOND / plan.length_ns);
        }
    }
    let worst = used.iter().copied().min().unwrap_or(0);
    let told = format!(
        "{} per {}, {calls} come, trips of {trips:?} ms: {used:?} of 100 used, at least {least}; \
         {writes} writes/s",
        limit.limit(),
        limit.window(),
    );
    match worst >= least && writes <= 30 {
        true => Ok(told),
        false => Err(told),
    }
}

/// The use that the test of real processes asks for is 60 of 100 (75 from 100 a second on) on a
/// machine with other work. Of ten a second, where fifteen come, every sixteenth call finds the
/// same token again: there are 93.
#[test]
fn callers_of_three_nodes_who_come_by_the_clock_use_the_limit() {
    let second = |limit: u64| per(limit, Window::Second);
    let rows = TRIPS.into_iter().flat_map(|trips| {
        [
            check(second(10), 15, trips, 80),
            check(second(10), 20, trips, 80),
            check(second(30), 45, trips, 80),
        ]
    });
    check_all(rows);
}

/// One who calls twice as often as its limit allows has all of its limit, from the first window on:
/// what is refused spends nothing.
#[test]
fn a_caller_at_twice_its_limit_gets_its_full_limit_not_zero() {
    for (nodes, callers) in [(1, &[0; 7][..]), (3, SPREADS[0])] {
        for (limit, least) in [(10, 85), (100, 95), (300, 95)] {
            let mut plan = Plan::new(
                vec![per(limit, Window::Second)],
                SECOND / (2 * limit),
                (WINDOWS + 1) * SECOND,
            );
            (plan.nodes, plan.callers) = (nodes, callers);
            (plan.trip_ns, plan.connect_ns) = (2 * MS, 2 * MS);
            plan.peer_trip_ns = if nodes > 1 { MS / 2 } else { 0 };
            let outcome = run(&plan, 1);
            let first = outcome.sends.iter().filter(|at| **at < SECOND).count() as u64;
            let used = (outcome.sends.len() as u64 - first) * 100 / (limit * WINDOWS);
            let told = format!("{nodes} nodes, {limit} a second: {first} at first, {used} of 100");
            eprintln!("{told}, {} refused", outcome.refused);
            assert!(first == limit && used >= least, "{told}");
        }
    }
}
