//! Many callers at once on a key that nobody has used: how many writes it takes to answer them.

use std::sync::Arc;

use proto::meter::Window;

use super::crowd::{World, spec};
use crate::limits::exchange::{Ask, Item, Reply, SpecForm, TokenBatch, Word};
use crate::limits::{Meter, MeterKey, Opener};

const MS: u64 = 1_000_000;
/// When all call, and when they have long been answered.
const AT_MS: u64 = 1_000;
const OVER_MS: u64 = 1_400;

/// So many call a meter at once: how many of them are sent, and how many writes the store has seen
/// when the last of these is.
fn burst(limit: u64, window: Window, calls: u64) -> (u64, u64) {
    let mut world = World::new(10);
    let meter = world
        .limits
        .meter(MeterKey::whole("m"), spec(limit, window));
    (0..calls).for_each(|_| world.call(&meter, AT_MS * MS));
    let (mut sent, mut writes, mut writes_before) = (0, 0, 0);
    for ms in AT_MS..OVER_MS {
        world.turn(ms * MS);
        if world.sent > sent {
            // What is written beside is for those who come next.
            (sent, writes) = (world.sent, writes_before);
        }
        writes_before = world.writes;
    }
    (sent, writes)
}

#[test]
fn a_burst_on_a_fresh_key_takes_one_write_and_no_more_than_the_limit() {
    for (limit, window, calls) in [
        (33, Window::Second, 33),
        (33, Window::Second, 50),
        (1, Window::Second, 5),
        (1_000, Window::Second, 400),
        (600, Window::Minute, 500),
        (5_000, Window::Day, 900),
    ] {
        let (sent, writes) = burst(limit, window, calls);
        let told = format!("{calls} calls at {limit} per {window}");
        assert_eq!((sent, writes), (calls.min(limit), 1), "{told}");
    }
}

const PEER: Opener = Opener { node: 2, boot: 1 };

/// A node with a peer, and one of its meters.
fn linked(limit: u64, key: u32) -> (World, Arc<Meter>) {
    let mut world = World::new(100);
    world.limits.set_nodes(2);
    world.broker.peer_up(PEER, 0);
    let key = MeterKey::of("mtr_1", key.to_be_bytes());
    let meter = world.limits.meter(key, spec(limit, Window::Second));
    (world, meter)
}

/// The same with a meter that it owns: it asks nobody for tokens of it.
fn owned(limit: u64) -> (World, Arc<Meter>) {
    let is_owned = |key: &u32| {
        let (mut world, meter) = linked(limit, *key);
        world.call(&meter, AT_MS * MS);
        world.turn(AT_MS * MS);
        world.writes > 0
    };
    let key = (0..1_000).find(is_owned).expect("it owns about half");
    linked(limit, key)
}

/// So many call this node at once, and a peer asks for so many: what each gets, and the writes.
fn shared_burst(limit: u64, here: u64, there: u64) -> (u64, u64, u64) {
    let (mut world, meter) = owned(limit);
    (0..here).for_each(|_| world.call(&meter, AT_MS * MS));
    let ask = Word::Ask(Ask {
        id: 1,
        spec: SpecForm::from(&*meter.configured()),
        wanted: there,
        relayed: false,
    });
    let key = meter.store_key.clone();
    let items = vec![Item { key, word: ask }];
    world
        .broker
        .peer_said(PEER, TokenBatch { items }, AT_MS * MS);
    let (mut lent, mut sent, mut writes) = (0, 0, 0);
    for ms in AT_MS..AT_MS + 30 {
        world.turn(ms * MS);
        let batches = world.broker.take_batches().into_iter();
        for item in batches.flat_map(|(_, batch)| batch.items) {
            if let Word::Answer(answer) = item.word
                && let Reply::Granted(grant) = answer.reply
            {
                lent += grant.amount;
                writes = world.writes;
            }
        }
        if world.sent > sent {
            (sent, writes) = (world.sent, world.writes);
        }
    }
    (sent, lent, writes)
}

/// What waits on another node is in the same write, and where there is too little each has a part.
#[test]
fn a_burst_on_several_nodes_takes_one_write_and_is_divided() {
    assert_eq!(shared_burst(33, 10, 23), (10, 23, 1));
    let (sent, lent, writes) = shared_burst(33, 33, 33);
    assert_eq!((sent + lent, writes), (33, 1));
    assert!(sent >= 16 && lent >= 16, "{sent} here, {lent} there");
}
