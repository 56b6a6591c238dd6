//! Requests that two meters count, both at their limits.

use std::sync::Arc;

use proto::meter::{Algorithm, Limit, MeterSpec, Window};

use super::faults::Chance;
use super::schedules::{bucket, check_all, lengthen, linked_plan, per, run, seeds};
use super::simulation::{MS, Plan, SECOND};
use crate::limits::{Limits, MeterKey, MeterSet, Opener, Settings, SystemClock};

/// Tokens in a thousand seconds.
fn rate(limit: &Limit) -> u64 {
    let width_s = limit.window().width_ns() / SECOND;
    limit.limit() * 1_000 / width_s
}

/// What is used of the tighter of two limits, or of one limit and the sum of several beside it of
/// which each request is counted by one, at so many tenths of the demand. Of all requests two in
/// five come to the first node. The bound of each is judged all the time.
fn check(nodes: u64, first: Limit, beside: &[Limit], tenths: u64) -> Result<String, String> {
    let tighter = rate(&first).min(beside.iter().map(rate).sum());
    let width_ns = |limit: &Limit| match limit.algorithm() {
        Algorithm::TokenBucket => SECOND,
        _ => limit.window().width_ns(),
    };
    let longest_ns = beside.iter().map(width_ns).fold(width_ns(&first), u64::max);
    let windows = if longest_ns > SECOND { 1 } else { 20 };
    // The first window begins with all of its limit at once.
    let (from_ns, to_ns) = (longest_ns * 3 / 2, longest_ns * (2 * windows + 3) / 2);
    let every_ns = SECOND * 10_000 / (tighter * tenths);
    let mut plan = Plan::new(vec![first], every_ns, to_ns);
    plan.beside = beside.iter().map(|limit| vec![*limit]).collect();
    (plan.trip_ns, plan.connect_ns, plan.peer_trip_ns) = (2 * MS, 2 * MS, MS / 2);
    (plan.nodes, plan.uneven) = (nodes, 40);
    let outcome = run(&plan, 1);
    let sent = outcome.sends.iter().filter(|at_ns| **at_ns >= from_ns);
    let may = tighter * (to_ns - from_ns) / SECOND / 1_000;
    let used = sent.count() as f64 / may as f64;
    let name = |limit: &Limit| format!("{} per {}", limit.limit(), limit.window());
    let beside: Vec<String> = beside.iter().map(name).collect();
    let told = format!(
        "{nodes} nodes, {} and {} at {tenths} tenths: {used:.3} used, {:?} by each, {} writes",
        name(&first),
        beside.join(" or "),
        outcome.beside,
        outcome.writes,
    );
    match used >= 0.85 {
        true => Ok(told),
        false => Err(told),
    }
}

/// Twelve of part one of the schedules: tokens of both are seldom at hand together.
#[test]
fn two_meters_at_their_limits_use_the_tighter_one() {
    let second = |limit: u64| per(limit, Window::Second);
    let minute = |limit: u64| per(limit, Window::Minute);
    check_all([
        // The slow window is the tighter one, or both are the same, or the fast one.
        check(3, second(100), &[minute(5_000)], 15),
        check(5, second(20), &[minute(1_200)], 20),
        check(3, second(20), &[minute(4_000)], 20),
        check(10, second(40), &[minute(1_210)], 15),
    ]);
}

#[test]
fn two_meters_of_one_window_or_of_two_kinds_use_the_tighter_one() {
    let second = |limit: u64| per(limit, Window::Second);
    check_all([
        check(3, second(100), &[second(100)], 15),
        check(5, second(100), &[second(104)], 20),
        check(3, second(50), &[bucket(50, Window::Second, 50)], 15),
        check(5, second(100), &[bucket(6_000, Window::Minute, 100)], 20),
        check(
            3,
            bucket(20, Window::Second, 60),
            &[per(1_000, Window::Minute)],
            15,
        ),
    ]);
}

/// The target's limit, which all proxies share, and one of each proxy.
#[test]
fn proxies_with_limits_of_their_own_use_the_one_that_they_share() {
    let second = |limit: u64| per(limit, Window::Second);
    check_all([
        check(3, second(100), &[second(30); 4], 15),
        check(5, second(100), &[second(50); 4], 20),
        check(10, second(100), &[second(20); 4], 15),
        check(3, per(1_500, Window::Minute), &[second(9); 3], 15),
    ]);
}

/// Whatever fails, neither limit is passed: what one meter gave goes back where the other has
/// nothing, once.
#[test]
fn the_bounds_of_both_meters_hold_whatever_fails() {
    let (mut sent, mut refused, mut expired) = (0, 0, 0);
    let seeds = seeds(60);
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        let mut plan = linked_plan(seed, None);
        let mut chance = Chance::new(seed ^ 0xbe51de);
        if chance.percent(30) {
            plan.peer_trip_ns = 0;
        }
        let limit = plan.limits[0].limit();
        let near = |chance: &mut Chance| (limit * chance.within(5, 15) / 10).max(1);
        plan.beside = (0..chance.within(1, 4))
            .map(|_| match chance.within(0, 4) {
                0 => vec![per(near(&mut chance), Window::Second)],
                1 => vec![per(near(&mut chance) * 3, Window::Minute)],
                2 => vec![per(near(&mut chance) * 3, Window::Day)],
                _ => {
                    let (limit, burst) = (near(&mut chance), near(&mut chance));
                    vec![bucket(limit, Window::Second, burst)]
                }
            })
            .collect();
        lengthen(&mut plan);
        let outcome = run(&plan, seed);
        sent += outcome.sends.len() as u64;
        refused += outcome.refused;
        expired += outcome.expired;
    }
    // The seeds exercise what they are for.
    let many = sent > 40 * runs && refused > 40 * runs && expired > runs / 2;
    assert!(many, "{sent} {refused} {expired}");
}

#[test]
fn further_attempts_spend_the_meters_that_say_so_in_the_same_order() {
    let settings = Settings::single_node(Opener { node: 1, boot: 1 });
    let (limits, _broker) = Limits::unserved(&settings, Arc::new(SystemClock));
    let meter = |name: &str, window: Window| {
        let spec = MeterSpec::new("", 1, vec![per(10, window)]).unwrap();
        limits.meter(MeterKey::whole(name), Arc::new(spec))
    };
    let second = meter("second", Window::Second);
    let minute = meter("minute", Window::Minute);
    let day = meter("day", Window::Day);
    let rows = [
        (&second, true),
        (&minute, false),
        (&day, false),
        (&day, true),
    ];
    let rows = rows.map(|(meter, repeats)| (Arc::clone(meter), repeats));
    let set = MeterSet::repeating(rows.into()).unwrap();
    let ids = |set: &MeterSet| -> Vec<String> {
        let all = set.meters().iter();
        all.map(|meter| meter.id().to_owned()).collect()
    };
    assert_eq!(
        ids(&set),
        ["day", "minute", "second"],
        "one named twice counts once"
    );
    assert_eq!(ids(&set.repeated()), ["day", "second"]);
    assert_eq!(ids(&set.repeated().repeated()), ["day", "second"]);
}
