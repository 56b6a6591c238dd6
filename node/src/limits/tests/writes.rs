//! How often a key is written, each write counted, those too that meet another one. What many keys
//! are written together is in `crowd`.

use proto::meter::Window;

use super::schedules::{per, run};
use super::simulation::{MS, Outcome, Plan, SECOND};

/// Without faults, at one and a half times the demand.
fn calm(nodes: u64, limit: u64, seconds: u64) -> Outcome {
    let limits = vec![per(limit, Window::Second)];
    let mut plan = Plan::new(limits, SECOND * 2 / (limit * 3), seconds * SECOND);
    (plan.trip_ns, plan.connect_ns) = (2 * MS, 2 * MS);
    (plan.nodes, plan.uneven, plan.peer_trip_ns) = (nodes, 40, MS / 2);
    run(&plan, 1)
}

#[test]
fn a_hot_key_is_written_thirty_times_a_second_at_most_by_three_nodes_and_by_a_hundred() {
    for (nodes, limit, seconds) in [(3, 1_000, 6), (3, 10, 20), (100, 1_000, 8)] {
        let outcome = calm(nodes, limit, seconds);
        let writes = outcome.key_writes;
        eprintln!("{nodes} nodes, {limit} a second: {writes} writes in {seconds} s");
        // One that was late is made up for, and owners that follow each other keep each to its own
        // pace.
        let most = 30 * seconds + nodes.min(10);
        assert!(writes > 0 && writes <= most, "{writes} writes");
    }
}
