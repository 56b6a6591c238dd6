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

#[test]
fn each_mutant_is_caught_in_buckets() {
    for mutant in [
        Mutant::ChargeAtDraw,
        Mutant::SettleByDelta,
        Mutant::BlindOutcome,
        Mutant::RetriedBlindly,
        Mutant::ReportBeforeClose,
        Mutant::OtherIncarnationSettles,
        Mutant::WallClock,
        Mutant::SpendsForgotten,
    ] {
        let caught = (0..1_000).find(|seed| {
            let mut plan = bucket_plan(*seed);
            faulty(&mut plan, *seed, mutant);
            is_caught(&plan, *seed)
        });
        eprintln!("{mutant:?} in buckets: seed {caught:?}");
        assert!(caught.is_some(), "{mutant:?} passes");
    }
}

#[test]
fn each_mutant_is_caught_in_calendar_windows() {
    for mutant in [
        Mutant::ChargeAtDraw,
        Mutant::SettleByDelta,
        Mutant::BlindOutcome,
        Mutant::RetriedBlindly,
        Mutant::ReportBeforeClose,
        Mutant::OtherIncarnationSettles,
        Mutant::SpendsForgotten,
    ] {
        let caught = (0..1_000).find(|seed| {
            let mut plan = day_plan(*seed);
            faulty(&mut plan, *seed, mutant);
            plan.clocks = None;
            // Of what several nodes send so near to the end of a day nobody can say of which it is.
            if mutant == Mutant::ChargeAtDraw {
                (plan.nodes, plan.peer_trip_ns) = (1, 0);
            }
            is_caught(&plan, *seed)
        });
        eprintln!("{mutant:?} in calendar windows: seed {caught:?}");
        assert!(caught.is_some(), "{mutant:?} passes");
    }
}
