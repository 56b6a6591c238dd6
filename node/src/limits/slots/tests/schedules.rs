//! What the simulation of slots must show: the bound under every fault, each mutant caught, the
//! use.

use proto::meter::StoreLoss;

use super::world::{MS, Mutant, Outcome, Plan, SECOND, World};
use crate::limits::tests::faults::{Chance, Faults};
use crate::limits::tests::schedules::seeds;

fn run(plan: &Plan, seed: u64) -> Outcome {
    match World::new(plan, seed).run() {
        Ok(outcome) => outcome,
        Err(fault) => panic!("seed {seed}: {fault}\n{plan:?}"),
    }
}

/// A plan drawn from the seed: limit, load, nodes and faults.
fn random_plan(seed: u64) -> Plan {
    let mut chance = Chance::new(seed ^ 0x51075);
    let limit = match chance.within(0, 3) {
        0 => chance.within(1, 4),
        1 => chance.within(4, 25),
        _ => chance.within(25, 200),
    };
    let call_ns = [200 * MS, 2 * SECOND, 25 * SECOND][chance.within(0, 3) as usize];
    let load = chance.within(3, 20); // tenths of the limit
    let often = |chance: &mut Chance, mean_ns: u64| if chance.percent(50) { mean_ns } else { 0 };
    let faults = Faults {
        lost: chance.within(0, 6),
        unanswered: chance.within(0, 8),
        late: chance.within(0, 8),
        crash_ns: often(&mut chance, 6 * SECOND),
        pause_ns: often(&mut chance, 5 * SECOND),
        pause_max_ns: [SECOND, 15 * SECOND][chance.within(0, 2) as usize],
        outage_ns: often(&mut chance, 20 * SECOND),
        cut_ns: [0, 2 * SECOND, 8 * SECOND][chance.within(0, 3) as usize],
        peer_lost: chance.within(0, 20),
        ..Faults::default()
    };
    let change = chance.percent(30).then(|| {
        let limit = (limit * chance.within(3, 20) / 10).max(1);
        (chance.within(SECOND, 15 * SECOND), limit)
    });
    Plan {
        limit,
        change,
        nodes: match chance.percent(3) {
            true => 100,
            false => chance.within(1, 11),
        },
        every_ns: (call_ns / 2 * 10 / (limit * load)).max(MS / 2),
        uneven: chance.within(0, 90),
        moves_ns: [0, 3 * SECOND][chance.within(0, 2) as usize],
        call_ns,
        length_ns: 60 * SECOND,
        trip_ns: [4 * MS, 40 * MS][chance.within(0, 2) as usize],
        linked: chance.percent(60),
        cut_max_ns: [SECOND, 15 * SECOND][chance.within(0, 2) as usize],
        faults,
        on_store_loss: match chance.percent(30) {
            true => StoreLoss::LocalShare,
            false => StoreLoss::FailClosed,
        },
        cancels_lost: chance.percent(20),
        mutant: None,
    }
}

#[test]
fn no_more_calls_are_in_flight_than_the_limit_whatever_fails() {
    let mut all = Outcome::default();
    let seeds = seeds(40);
    let runs = seeds.end - seeds.start;
    for seed in seeds {
        let outcome = run(&random_plan(seed), seed);
        all.taken += outcome.taken;
        all.refused += outcome.refused;
        all.lost += outcome.lost;
        all.orphans += outcome.orphans;
        all.cancelled += outcome.cancelled;
    }
    eprintln!("{runs} seeds: {all:?}");
    // The seeds exercise what they are for.
    let many = all.taken > 100 * runs && all.refused > 20 * runs;
    let faulty = all.lost > runs && all.orphans > runs && all.cancelled > runs / 20;
    assert!(many && faulty, "{all:?}");
}

#[test]
fn each_mutant_of_slots_is_caught() {
    for mutant in [
        Mutant::RaisedEarly,
        Mutant::LoweredLate,
        Mutant::BlindOutcome,
        Mutant::RetriedBlindly,
        Mutant::WallClock,
    ] {
        let caught = (0..1_000).find(|seed| {
            let mut plan = random_plan(*seed);
            plan.nodes = 2 + seed % 3;
            let sound = World::new(&plan, *seed).run().is_ok();
            plan.mutant = Some(mutant);
            sound && World::new(&plan, *seed).run().is_err()
        });
        eprintln!("{mutant:?}: seed {caught:?}");
        assert!(caught.is_some(), "{mutant:?} passes");
    }
}

/// Without faults, at one and a half times the demand, on three nodes of which one has most of it.
#[test]
fn slots_are_used_wherever_the_callers_are() {
    for (limit, least) in [(20, 70), (100, 80)] {
        let call_ns = 200 * MS;
        let plan = Plan {
            limit,
            change: None,
            nodes: 3,
            every_ns: call_ns / 2 * 10 / (limit * 15),
            uneven: 40,
            moves_ns: 0,
            call_ns,
            length_ns: 60 * SECOND,
            trip_ns: 2 * MS,
            linked: true,
            cut_max_ns: SECOND,
            faults: Faults::default(),
            on_store_loss: StoreLoss::FailClosed,
            cancels_lost: false,
            mutant: None,
        };
        let outcome = run(&plan, 1);
        let could = u128::from(limit) * u128::from(plan.length_ns);
        let used = outcome.used_ns * 100 / could;
        let per_second = outcome.writes / 60;
        eprintln!("{limit} slots: {used} % used, {per_second} writes/s, {outcome:?}");
        assert!(used >= least && per_second <= 30, "{used} % {per_second}");
    }
}
