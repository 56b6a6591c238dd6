//! A store that comes back after a while: all that waits for it does not go there at once.

use std::sync::Arc;

use proto::meter::Window;

use super::crowd::{World, spec};
use crate::limits::{Meter, MeterKey, Opener, Settings};

const MS: u64 = 1_000_000;

/// Calls in the fullest second.
fn fullest(called_ns: &[u64]) -> usize {
    let within = |at: usize| {
        let end_ns = called_ns[at] + 1_000 * MS;
        called_ns[at..]
            .iter()
            .take_while(|ns| **ns < end_ns)
            .count()
    };
    (0..called_ns.len()).map(within).max().unwrap_or(0)
}

/// A node with keys that are called in turn, so many each second.
struct Node {
    world: World,
    meters: Vec<Arc<Meter>>,
}

impl Node {
    fn new(node: u64, keys: usize) -> Self {
        Self::with(node, keys, 600)
    }

    /// Each key gives so many a minute.
    fn with(node: u64, keys: usize, limit: u64) -> Self {
        let world = World::of(Settings::single_node(Opener {
            node,
            boot: node * 7,
        }));
        let spec = spec(limit, Window::Minute);
        let meters = (0..keys).map(|n| {
            let key = MeterKey::of("m", n.to_string());
            world.limits.meter(key, Arc::clone(&spec))
        });
        let meters = meters.collect();
        Self { world, meters }
    }

    /// Calls to the store from one second to another, while each key is called once in so many
    /// milliseconds.
    fn run(&mut self, (from_s, to_s): (u64, u64), every_ms: u64) -> Vec<u64> {
        let before = self.world.called_ns.len();
        for ms in from_s * 1_000..to_s * 1_000 {
            for (at, meter) in self.meters.iter().enumerate() {
                if (ms + at as u64 * 13).is_multiple_of(every_ms) {
                    self.world.call(meter, ms * MS);
                }
            }
            self.world.turn(ms * MS);
        }
        self.world.called_ns[before..].to_vec()
    }
}

#[test]
fn a_store_that_comes_back_gets_no_more_than_twice_the_steady_calls_and_ten_in_any_second() {
    for (keys, every_ms) in [(3, 40), (40, 400), (400, 4_000)] {
        let mut node = Node::new(1, keys);
        node.run((1, 10), every_ms);
        let steady = fullest(&node.run((10, 20), every_ms));
        node.world.away = true;
        let away = fullest(&node.run((20, 60), every_ms));
        assert!(away <= 10, "{keys} keys: {away} while it is away");
        node.world.away = false;
        let lost = node.world.lost;
        let back = fullest(&node.run((60, 70), every_ms));
        let lost = node.world.lost - lost;
        eprintln!(
            "{keys} keys: {steady} calls a second, then {away}, then {back}; {lost} callers lost"
        );
        assert!(back <= 2 * steady + 10, "{keys} keys: {back} of {steady}");
        // And all is as before: nobody goes without.
        let (sent, lost) = (node.world.sent, node.world.lost);
        node.run((70, 75), every_ms);
        assert_eq!(node.world.lost, lost, "{keys} keys");
        let called = 5_000 / every_ms * keys as u64;
        let passed = node.world.sent - sent;
        assert!(
            passed >= called * 9 / 10,
            "{keys} keys: {passed} of {called}"
        );
    }
}

/// As each node does that writes a key while its owner had no store.
#[test]
fn who_is_beaten_to_a_store_that_has_come_back_goes_on_with_its_share() {
    // Of few steady calls the next one comes after more than a grace, of many after less.
    for every_ms in [5, 20, 100, 500, 1_000] {
        for times in 0..=12 {
            is_beaten(every_ms, times);
        }
    }
}

/// Whose key was called so often before it lost the store, and that is beaten so many times then.
/// Callers are few, and while all of them wait nobody asks anew.
fn is_beaten(every_ms: u64, times: usize) {
    const CALLERS: usize = 10;
    let mut node = Node::with(1, 1, 90_000);
    node.run((1, 3), every_ms);
    node.world.away = true;
    node.run((3, 40), 20);
    (node.world.away, node.world.beaten) = (false, times);
    let (lost, mut sent) = (node.world.lost, node.world.sent);
    let mut passed_ms = 40_000;
    for ms in 40_000..45_000 {
        if ms % 20 == 0 && node.world.waiting() < CALLERS {
            node.world.call(&node.meters[0], ms * MS);
        }
        node.world.turn(ms * MS);
        if node.world.sent > sent {
            (sent, passed_ms) = (node.world.sent, ms);
        }
        // Half of the time for which a caller waits.
        let dry_ms = ms - passed_ms;
        assert!(
            dry_ms < 300,
            "called every {every_ms} ms, beaten {times} times: nobody passes from {passed_ms} ms on"
        );
    }
    let went = times - node.world.beaten;
    assert!(went >= times.min(6), "it went to the store {went} times");
    assert_eq!(node.world.lost, lost);
}

/// All nodes lose a store at the same instant.
#[test]
fn nodes_that_have_lost_the_store_together_do_not_ask_for_it_together() {
    let last_ns = |node: u64| {
        let mut node = Node::new(node, 1);
        node.run((1, 3), 50);
        node.world.away = true;
        *node.run((3, 20), 50).last().expect("it asks on")
    };
    let mut parts: Vec<u64> = (1..=40).map(|node| last_ns(node) / (100 * MS)).collect();
    parts.sort_unstable();
    parts.dedup();
    assert!(parts.len() >= 6, "the last asks of 40 nodes: {parts:?}");
}
