//! Wrong protocols in windows of other kinds than the sliding one: the judge sees each of them.

use proto::meter::Window;

use super::calendar::day_plan;
use super::faults::{Chance, Mutant};
use super::schedules::{bucket, is_caught, lengthen, linked_plan, run, seeds};
use super::simulation::{MS, Plan};

/// A plan of the seed with a token bucket, or two.
fn bucket_plan(seed: u64) -> Plan {
    let mut plan = linked_plan(seed, None);
    let mut chance = Chance::new(seed ^ 0xb0c4e7);
    let limit = plan.limits[0].limit();
    let burst = (limit * chance.within(1, 30) / 10).max(1);
    plan.limits = match chance.within(0, 3) {
        0 => vec![bucket(limit * 60, Window::Minute, burst)],
        1 => vec![bucket(limit, Window::Second, burst)],
        _ => vec![
            bucket(limit, Window::Second, burst),
            bucket(limit * 40, Window::Minute, burst * 2),
        ],
    };
    if chance.percent(20) {
        plan.peer_trip_ns = 0;
    }
    plan
}

#[test]
fn no_bucket_gives_more_than_its_burst_and_its_rate_whatever_fails() {
    let (mut sent, mut grants) = (0, 0);
    let seeds = seeds(120);
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        let mut plan = bucket_plan(seed);
        lengthen(&mut plan);
        let outcome = run(&plan, seed);
        sent += outcome.sends.len() as u64;
        grants += outcome.grants;
    }
    // The seeds exercise what they are for.
    assert!(sent > 40 * runs && grants > 5 * runs, "{sent} {grants}");
}

/// What makes it likely that something goes wrong, in few nodes.
fn faulty(plan: &mut Plan, seed: u64, mutant: Mutant) {
    plan.mutant = Some(mutant);
    plan.nodes = 2 + seed % 4;
    plan.faults.unanswered = plan.faults.unanswered.max(10);
    plan.faults.crash_ns = 700 * MS;
    plan.faults.pause_ns = 400 * MS;
    (plan.faults.outage_ns, plan.faults.pause_max_ns) = (0, 0);
}

/// Asserts that each of these is seen in one of a thousand seeds.
fn check(mutants: &[Mutant], plan: impl Fn(u64, Mutant) -> Plan) {
    let caught = |mutant: &Mutant| {
        let seed = (0..1_000).find(|seed| is_caught(&plan(*seed, *mutant), *seed));
        eprintln!("{mutant:?}: seed {seed:?}");
        seed.is_some()
    };
    let (_, passed): (Vec<Mutant>, Vec<Mutant>) = mutants.iter().partition(|it| caught(it));
    assert!(passed.is_empty(), "{passed:?} pass");
}

/// One that settles by a difference is caught in windows and days: no seed of a bucket shows it.
#[test]
fn each_mutant_is_caught_in_buckets() {
    let mutants = [
        Mutant::ChargeAtDraw,
        Mutant::BlindOutcome,
        Mutant::RetriedBlindly,
        Mutant::ReportBeforeClose,
        Mutant::OtherIncarnationSettles,
        Mutant::WallClock,
        Mutant::SpendsForgotten,
    ];
    check(&mutants, |seed, mutant| {
        let mut plan = bucket_plan(seed);
        faulty(&mut plan, seed, mutant);
        plan
    });
}

#[test]
fn each_mutant_is_caught_in_calendar_windows() {
    let mutants = [
        Mutant::BlindOutcome,
        Mutant::RetriedBlindly,
        Mutant::ReportBeforeClose,
        Mutant::OtherIncarnationSettles,
        Mutant::SpendsForgotten,
        Mutant::SettleByDelta,
    ];
    check(&mutants, |seed, mutant| {
        let mut plan = day_plan(seed);
        faulty(&mut plan, seed, mutant);
        plan.clocks = None;
        plan
    });
}
