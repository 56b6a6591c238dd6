//! Few tokens in a minute, of which each counts: five for a whole cluster.

use proto::meter::{Algorithm, Limit, Window};

use super::faults::Chance;
use super::schedules::{linked_plan, per, run, seeds};
use super::simulation::{MS, Plan, SECOND};

/// A plan of the seed over two and a half minutes, with demand from what the limit gives to a
/// hundred times as much.
fn slow_plan(seed: u64) -> Plan {
    let mut plan = linked_plan(seed, None);
    let mut chance = Chance::new(seed ^ 0x510e);
    plan.nodes = chance.within(2, 11);
    let limit = match chance.percent(50) {
        true => 5,
        false => chance.within(1, 30),
    };
    plan.limits = vec![per(limit, Window::Minute)];
    if chance.percent(20) {
        plan.limits.push(per(1, Window::Second));
    }
    if chance.percent(20) {
        let day = Limit::with_algorithm(limit * 2, Window::Day, Algorithm::FixedWindow);
        plan.limits.push(day.unwrap());
    }
    plan.every_ns = 60 * SECOND * 2 / (limit * [2, 3, 20, 200][chance.within(0, 4) as usize]);
    plan.length_ns = 150 * SECOND;
    let faults = &mut plan.faults;
    for mean_ns in [
        &mut faults.crash_ns,
        &mut faults.pause_ns,
        &mut faults.outage_ns,
        &mut faults.cut_ns,
    ] {
        *mean_ns *= [1, 10][chance.within(0, 2) as usize];
    }
    plan
}

#[test]
fn no_minute_has_more_than_its_few_tokens_whatever_fails() {
    let (mut sent, mut limits) = (0, 0);
    for seed in seeds(60) {
        let plan = slow_plan(seed);
        let outcome = run(&plan, seed);
        sent += outcome.sends.len() as u64;
        limits += plan.limits[0].limit();
    }
    // The seeds exercise what they are for: more than one minute is used.
    assert!(sent * 2 > limits * 3, "{sent} of {limits} a minute");
}

/// Below ten in a window each token comes back no later than a window and two sub-windows after it
/// was used, wherever somebody waits for it, and a key is written no more than twice for each.
#[test]
fn of_five_a_minute_each_comes_again_after_a_minute_and_two_sixtieths() {
    const CALLS_NS: u64 = 100 * MS;
    for (nodes, limit) in [(1, 5), (3, 5), (3, 1), (10, 9)] {
        let mut plan = Plan::new(vec![per(limit, Window::Minute)], CALLS_NS, 400 * SECOND);
        (plan.trip_ns, plan.connect_ns) = (2 * MS, 2 * MS);
        (plan.nodes, plan.uneven) = (nodes, if nodes > 1 { 40 } else { 0 });
        plan.peer_trip_ns = if nodes > 1 { MS / 2 } else { 0 };
        let outcome = run(&plan, 1);
        let again = outcome.sends.windows(limit as usize + 1);
        let latest_ns = again.map(|sends| sends[limit as usize] - sends[0]).max();
        let (sent, writes) = (outcome.sends.len() as u64, outcome.writes);
        eprintln!(
            "{nodes} nodes, {limit} a minute: {sent} sent, {writes} writes, each again after at \
             most {} ms",
            latest_ns.unwrap_or(0) / MS
        );
        // Somebody comes ten times a second on average.
        let most_ns = 62 * SECOND + SECOND;
        assert!(latest_ns.is_some_and(|ns| ns <= most_ns), "{latest_ns:?}");
        assert!(sent >= 6 * limit, "{sent} sent");
        assert!(writes <= 2 * sent + 400, "{writes} writes for {sent}");
    }
}
