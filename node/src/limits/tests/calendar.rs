//! Calendar windows in simulation: what is sent before and after the end of a day, by nodes of
//! which some have a wrong clock.

use proto::meter::{Limit, Window};

use super::faults::{Chance, Faults, Mutant};
use super::schedules::{is_caught, lengthen, linked_plan, run, seeds};
use super::simulation::{Clocks, MS, Plan, SECOND};

const HOUR: i64 = 3_600 * SECOND as i64;
/// A day ends then.
const MIDNIGHT: u64 = 1_767_225_600 * SECOND;

/// A plan of the seed in which a day ends, with a minority of wrong clocks.
pub fn day_plan(seed: u64) -> Plan {
    let mut plan = linked_plan(seed, None);
    let mut chance = Chance::new(seed ^ 0xca1e);
    plan.nodes = chance.within(2, 6);
    let limit = chance.within(10, 300);
    plan.limits = vec![Limit::new(limit, Window::Day).unwrap()];
    if chance.percent(30) {
        plan.limits.push(Limit::new(limit, Window::Second).unwrap());
    }
    let until_ns = chance.within(SECOND, 6 * SECOND);
    plan.unix_ns = MIDNIGHT - until_ns;
    plan.length_ns = 12 * SECOND;
    // Some that are drawn on the one day are ready on the other.
    plan.slow_ns = 3 * SECOND;
    plan.every_ns = plan.length_ns / (limit * chance.within(1, 8));
    let off_ns = [
        HOUR,
        -HOUR,
        25 * HOUR,
        8_766 * HOUR,
        -8_766 * HOUR,
        2 * SECOND as i64,
        -2 * SECOND as i64,
    ][chance.within(0, 7) as usize];
    plan.clocks = Some(Clocks {
        wrong: (plan.nodes - 1) / 2,
        off_ns,
        set_ns: [0, 3 * SECOND][chance.within(0, 2) as usize],
        control: false,
    });
    if plan.nodes < 3 || chance.percent(30) {
        plan.clocks = plan.clocks.map(|clocks| Clocks {
            set_ns: 0,
            ..clocks
        });
    }
    plan
}

#[test]
fn no_day_has_more_than_its_limit_whichever_clocks_are_wrong() {
    let (mut sent, mut limits) = (0, 0);
    let seeds = seeds(300);
    for seed in seeds {
        let mut plan = day_plan(seed);
        lengthen(&mut plan);
        let outcome = run(&plan, seed);
        sent += outcome.sends.len() as u64;
        limits += plan.limits[0].limit();
    }
    // Most of them use more than half of the one day and of the other.
    assert!(sent > limits, "{sent} of {limits} a day");
}

/// Of two nodes, or of four, half may have a wrong clock where a control plane has a right one.
#[test]
fn a_control_plane_tells_which_of_two_clocks_is_wrong() {
    let (mut sent, mut limits) = (0, 0);
    for seed in seeds(100) {
        let mut plan = day_plan(seed);
        plan.nodes = 2 * (1 + seed % 2);
        plan.clocks = plan.clocks.map(|clocks| Clocks {
            wrong: plan.nodes / 2,
            control: true,
            ..clocks
        });
        lengthen(&mut plan);
        let outcome = run(&plan, seed);
        sent += outcome.sends.len() as u64;
        limits += plan.limits[0].limit();
    }
    // Some are without a store, or stand still, for much of it.
    assert!(sent * 10 > limits * 9, "{sent} of {limits} a day");
}

/// With one wrong clock of three the day begins when it does, by the clocks of the others.
#[test]
fn a_wrong_clock_neither_opens_a_day_early_nor_late() {
    for off_ns in [HOUR, -HOUR, 2 * SECOND as i64, -2 * SECOND as i64] {
        for seed in 0..6 {
            let mut plan = Plan::new(
                vec![Limit::new(50, Window::Day).unwrap()],
                20 * MS,
                12 * SECOND,
            );
            (plan.nodes, plan.peer_trip_ns) = (3, 2 * MS);
            plan.unix_ns = MIDNIGHT - 6 * SECOND;
            plan.faults = Faults::default();
            plan.clocks = Some(Clocks {
                wrong: 1,
                off_ns,
                set_ns: 0,
                control: false,
            });
            let outcome = run(&plan, seed);
            let early = outcome
                .sends
                .iter()
                .filter(|at| **at < 6 * SECOND - 250 * MS)
                .count();
            let late = outcome.sends.len() - early;
            // One that was drawn last may not have been sent before the end.
            assert!(
                early == 50 && (48..=50).contains(&late),
                "seed {seed}: {early}, {late}"
            );
            let begun = outcome.sends.get(50).copied().unwrap_or(0);
            let off = begun.abs_diff(6 * SECOND);
            assert!(
                off < 700 * MS,
                "seed {seed}, off by {off_ns} ns: {off} ns off"
            );
        }
    }
}

/// A node that believes its own clock is seen by the judge.
#[test]
fn a_node_that_believes_its_own_clock_is_caught() {
    let caught = (0..1_000).find(|seed| {
        let mut plan = day_plan(*seed);
        plan.mutant = Some(Mutant::OwnClock);
        is_caught(&plan, *seed)
    });
    assert!(caught.is_some());
}
