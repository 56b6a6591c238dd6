//! Meters that count values, in simulation: what is set aside stays within the limit, what is given
//! back is given back once, what was missing is paid off.

use proto::meter::{Limit, StoreLoss, Window};

use super::faults::{Chance, Mutant};
use super::schedules::{is_caught, lengthen, linked_plan, run, seeds};
use super::simulation::{MS, Plan, SECOND, Values};

/// A plan of the seed whose requests set many tokens aside.
fn value_plan(seed: u64, mutant: Option<Mutant>) -> Plan {
    let mut plan = linked_plan(seed, mutant);
    let mut chance = Chance::new(seed ^ 0x7a1e);
    let estimate = chance.within(2, 500);
    let limits = plan.limits.iter();
    let larger = |limit: &Limit| Limit::new(limit.limit() * estimate, limit.window()).unwrap();
    plan.limits = limits.map(larger).collect();
    if chance.percent(20) {
        plan.nodes = 1;
    }
    plan.values = Some(Values {
        estimate,
        cost: [(0, 100), (0, 300), (10, 40)][chance.within(0, 3) as usize],
        call_ns: [200 * MS, 1_500 * MS][chance.within(0, 2) as usize],
    });
    if chance.percent(30) {
        plan.on_store_loss = StoreLoss::FailClosed;
    }
    plan
}

#[test]
fn no_more_than_the_limit_is_set_aside_whatever_answers_cost() {
    let (mut sent, mut corrected) = (0, 0);
    let seeds = seeds(120);
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        let mut plan = value_plan(seed, None);
        lengthen(&mut plan);
        let outcome = run(&plan, seed);
        sent += outcome.sends.len() as u64;
        corrected += outcome.corrected;
    }
    assert!(
        sent > 40 * runs && corrected > 30 * runs,
        "{sent} {corrected}"
    );
}

/// What fails is found again by its seed alone.
#[test]
fn a_seed_plays_the_same_each_time() {
    for seed in 0..10 {
        for plan in [linked_plan(seed, None), value_plan(seed, None)] {
            let [one, other] = [(), ()].map(|()| run(&plan, seed));
            assert_eq!(one.sends, other.sends, "seed {seed}");
            assert_eq!(
                (one.writes, one.batches),
                (other.writes, other.batches),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn each_mutant_of_corrections_is_caught() {
    for mutant in [
        Mutant::CorrectionTwice,
        Mutant::CorrectionYoung,
        Mutant::SpendsForgotten,
    ] {
        let caught = (0..1_000).find(|seed| {
            let mut plan = value_plan(*seed, Some(mutant));
            plan.nodes = plan.nodes.max(2);
            plan.limits.truncate(1);
            let minute = Limit::new(plan.limits[0].limit() * 2, Window::Minute).unwrap();
            plan.limits.push(minute);
            plan.faults.crash_ns = 0;
            plan.values = plan.values.map(|values| Values {
                cost: (0, 30),
                ..values
            });
            is_caught(&plan, *seed)
        });
        assert!(caught.is_some(), "{mutant:?} passes");
    }
}

/// What answers cost over a long time, in percent of the limit, at twice the demand.
fn cost(nodes: u64, cost: (u64, u64), limit: Limit, estimate: u64) -> u64 {
    let width_ns = limit.window().width_ns();
    let windows = 5;
    let calls = limit.limit() * 100 * 2 / (estimate * cost.0.max(1));
    let mut plan = Plan::new(vec![limit], width_ns / calls, windows * width_ns);
    (plan.trip_ns, plan.connect_ns, plan.nodes) = (2 * MS, 2 * MS, nodes);
    plan.peer_trip_ns = if nodes > 1 { MS / 2 } else { 0 };
    plan.values = Some(Values {
        estimate,
        cost,
        call_ns: 2 * SECOND,
    });
    let outcome = run(&plan, 1);
    outcome.cost * 100 / (limit.limit() * windows)
}

/// Too low an estimate is paid off; too high a one is given back and used.
#[test]
fn in_the_long_run_answers_cost_the_limit_whatever_was_estimated() {
    let limit = Limit::new(100_000, Window::Minute).unwrap();
    for nodes in [1, 3] {
        for (percent, allowed) in [
            ((25, 25), 80..=101),
            ((100, 100), 85..=101),
            ((300, 300), 85..=115),
        ] {
            let used = cost(nodes, percent, limit, 2_000);
            eprintln!("{nodes} nodes, answers of {percent:?} percent: {used} percent of the limit");
            assert!(
                allowed.contains(&used),
                "{nodes} nodes, {percent:?}: {used}"
            );
        }
    }
}

/// What is given back keeps the meter from being empty: at twice the demand nobody queues for it
/// all the same, but is served or refused as soon as is known what there is. (Of the limit about
/// 60 percent are used: what a call sets aside is missing until it has ended.)
#[test]
fn at_the_limit_requests_are_refused_instead_of_waiting_for_what_is_given_back() {
    for nodes in [1, 5] {
        let limit = Limit::new(20_000, Window::Second).unwrap();
        let mut plan = Plan::new(vec![limit], 2 * MS, 10 * SECOND);
        (plan.trip_ns, plan.connect_ns, plan.nodes) = (4 * MS, 5 * MS, nodes);
        plan.peer_trip_ns = if nodes > 1 { 2 * MS } else { 0 };
        plan.uneven = 60;
        plan.values = Some(Values {
            estimate: 94,
            cost: (0, 100),
            call_ns: 200 * MS,
        });
        let outcome = run(&plan, 1);
        let (wait_ms, used) = (outcome.longest_wait_ns / MS, outcome.cost / 2_000);
        eprintln!("{nodes} nodes: at most {wait_ms} ms waited, {used} percent of the limit cost");
        assert!(outcome.refused > 0 && wait_ms < 300, "{wait_ms} ms");
        assert!(used >= 55, "{used} percent");
    }
}
