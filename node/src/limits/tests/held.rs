//! Callers that are held on the owner of a key and on its peer.

use std::sync::Arc;

use proto::meter::{Hold, Limit, MeterSpec, Window};

use super::crowd::World;
use crate::limits::exchange::{Ask, Item, Reply, SpecForm, TokenBatch, Word};
use crate::limits::hold::{LAST, Level, Rank};
use crate::limits::meter::Draw;
use crate::limits::{Meter, MeterKey, Opener};

const MS: u64 = 1_000_000;
const PEER: Opener = Opener { node: 2, boot: 1 };

/// A node with a peer and a meter that it owns, of which each block is one token.
fn owner() -> (World, Arc<Meter>) {
    let limit = Limit::new(20, Window::Second).unwrap();
    let hold = Hold {
        max_wait_ms: 60_000,
        max_waiting: 100,
    };
    let spec = MeterSpec::new("", 1, vec![limit]).unwrap();
    let spec = Arc::new(spec.holding(Some(hold)));
    let mut world = World::new(100);
    world.limits.set_nodes(2);
    world.broker.peer_up(PEER, 0);
    for key in 0u32.. {
        let key = MeterKey::of("mtr_1", key.to_be_bytes());
        let meter = world.limits.meter(key, Arc::clone(&spec));
        world.call(&meter, MS);
        world.turn(MS);
        let words = world.broker.take_batches().into_iter();
        let mut words = words.flat_map(|(_, batch)| batch.items);
        if !words.any(|item| item.key == meter.store_key) {
            return (world, meter);
        }
    }
    unreachable!("it owns about half of all keys")
}

/// One waits here from the tenth millisecond on, and one on the peer for so many milliseconds at
/// the twelfth. Whether the first token goes to the peer.
fn is_lent(waits_there_ms: u64) -> bool {
    let (mut world, meter) = owner();
    for ms in 2..10 {
        world.turn(ms * MS);
    }
    assert_eq!(world.sent, 1, "the first caller was served");
    let entered = meter.held.enter(Rank::First(0), 1, 100, 10 * MS);
    let (_ticket, _) = entered.expect("a place");
    let Draw::Wait(_waiting) = meter.draw(0, 10 * MS) else {
        panic!("nobody overtakes")
    };
    world.turn(11 * MS);
    let level = Level {
        behind: LAST,
        tokens: 1,
        since_ns: waits_there_ms * MS,
        newest_ns: waits_there_ms * MS,
    };
    let ask = Word::Ask(Ask {
        id: 1,
        spec: SpecForm::from(&*meter.configured()),
        wanted: 1,
        relayed: false,
    });
    let levels = Word::Holding {
        levels: vec![level],
    };
    let key = meter.store_key.clone();
    let items = [ask, levels].map(|word| {
        let key = key.clone();
        Item { key, word }
    });
    let items = items.into();
    world.broker.peer_said(PEER, TokenBatch { items }, 12 * MS);
    for ms in 12..500 {
        world.turn(ms * MS);
        let batches = world.broker.take_batches().into_iter();
        let mut words =
            batches.flat_map(|(_, batch)| batch.items.into_iter().map(|item| item.word));
        let is_grant = |word: Word| match word {
            Word::Answer(answer) => matches!(answer.reply, Reply::Granted(_)),
            _ => false,
        };
        if words.any(is_grant) {
            return true;
        }
        if meter.in_hand(ms * MS) > 0 {
            return false;
        }
    }
    panic!("nobody is served");
}

/// A token that has come for the first of all who wait is not lent while that is on its way to it.
#[test]
fn who_came_first_is_served_first_whichever_node_it_called() {
    assert!(!is_lent(1), "the one here came first");
    assert!(is_lent(9), "the one there came first");
}
