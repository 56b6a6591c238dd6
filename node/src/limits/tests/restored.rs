//! The store is restored from a backup, or wiped, while nodes serve (part one, 13 C; part two, 16).

use proto::meter::{Limit, Window};

use super::faults::{Chance, Faults};
use super::schedules::{linked_plan, run, seeds};
use super::simulation::{Plan, SECOND, World};

/// A plan of the seed in which the store goes back by one to three seconds, or to nothing. By less
/// it may have as many revisions again before anybody who would notice asks it.
fn restored_plan(seed: u64) -> Plan {
    let mut plan = linked_plan(seed, None);
    let mut chance = Chance::new(seed ^ 0xbac0);
    plan.length_ns = 6 * SECOND;
    let back_ns = chance.within(2 * SECOND, 4 * SECOND);
    let saved_ns = match chance.percent(30) {
        true => 0,
        false => back_ns.saturating_sub(chance.within(SECOND, 3 * SECOND)),
    };
    plan.restored = Some((saved_ns, back_ns));
    // Who starts anew remembers nothing, and who cannot be told is not.
    plan.faults = Faults {
        crash_ns: 0,
        cut_ns: 0,
        ..plan.faults
    };
    plan
}

#[test]
fn no_more_than_the_limit_is_sent_when_the_store_goes_back() {
    let mut sent = 0;
    for seed in seeds(200) {
        sent += run(&restored_plan(seed), seed).sends.len();
    }
    assert!(sent > 4_000, "{sent}");
}

/// Of a day the larger number counts; the second after it is full is over in the next.
#[test]
fn what_a_node_remembers_of_a_day_counts_when_the_store_is_wiped() {
    let day = Limit::new(300, Window::Day).unwrap();
    let second = Limit::new(60, Window::Second).unwrap();
    for seed in 0..6 {
        let mut plan = Plan::new(vec![day, second], SECOND / 90, 12 * SECOND);
        (plan.nodes, plan.peer_trip_ns) = (3, 2_000_000);
        plan.faults = Faults::default();
        plan.restored = Some((0, 3 * SECOND));
        let outcome = World::new(&plan, seed).run().unwrap();
        let before = outcome.sends.iter().filter(|at| **at < 3 * SECOND).count();
        let all = outcome.sends.len();
        assert!(
            before > 140 && (280..=300).contains(&all),
            "{seed}: {before}, {all}"
        );
    }
}
