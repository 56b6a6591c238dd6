//! Keys that are deleted because nobody needs them any more, under owners that still know them.

use super::faults::{Chance, Mutant};
use super::schedules::{is_caught, linked_plan, per, run, seeds};
use super::simulation::{MS, Plan, SECOND};
use proto::meter::Window;

/// Few requests, with rests that are longer than two windows, and nodes that come and go.
fn plan(seed: u64, mutant: Option<Mutant>) -> Plan {
    let mut plan = linked_plan(seed, mutant);
    let mut chance = Chance::new(seed ^ 0x5eeb);
    plan.limits = vec![per(chance.within(1, 4), Window::Second)];
    plan.every_ns = [150, 500, 1_200][chance.within(0, 3) as usize] * MS;
    plan.length_ns = 12 * SECOND;
    plan.faults.crash_ns = 1_500 * MS;
    plan.sweep_ns = 70 * MS;
    plan
}

#[test]
fn no_more_than_the_limit_is_sent_when_keys_are_deleted_under_their_owners() {
    let (mut sent, mut swept, seeds) = (0, 0, seeds(150));
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        let outcome = run(&plan(seed, None), seed);
        sent += outcome.sends.len() as u64;
        swept += outcome.swept;
    }
    // The seeds exercise what they are for.
    assert!(sent > 5 * runs && swept > runs / 2, "{sent} {swept}");
}

#[test]
fn a_key_that_is_deleted_too_early_is_seen_by_the_judge() {
    let mutant = Some(Mutant::SweptEarly);
    let caught = (0..1_000).find(|seed| is_caught(&plan(*seed, mutant), *seed));
    assert!(caught.is_some());
}
