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
    plan.limits = match chance.within(0, 5) {
        0 => vec![bucket(limit * 60, Window::Minute, burst)],
        1 => vec![bucket(limit, Window::Second, burst)],
        // What is sent is paid back from when it is charged on, a block's life later. Only where
        // little is paid back meanwhile does a token that is missing in between show.
        2 => vec![bucket(limit * 6, Window::Minute, burst)],
        3 => vec![bucket(limit, Window::Hour, burst)],
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

#[test]
fn each_mutant_is_caught_in_buckets() {
    let mutants = [
        Mutant::ChargeAtDraw,
        Mutant::SettleByDelta,
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

/// Ages that a wall clock measures are no fault here: a calendar window asks nobody how long ago
/// something was charged, only in which window. What a wrong wall clock does to it is another
/// breakage, which `calendar` catches ([`Mutant::OwnClock`]).
#[test]
fn each_mutant_is_caught_in_calendar_windows() {
    let mutants = [
        Mutant::ChargeAtDraw,
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
        // A block that a crash or a lost answer leaves behind is charged in full for the day, and
        // hides what is sent in it beyond the limit.
        if seed % 2 == 0 {
            plan.faults.crash_ns = 0;
            (plan.faults.lost, plan.faults.unanswered, plan.faults.late) = (0, 0, 0);
        }
        plan
    });
}
