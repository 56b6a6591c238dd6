//! An owner whose store is silent, as a cut makes it: the call fails only after seconds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::meter::Window;

use super::crowd::{SetClock, World, spec};
use crate::limits::broker::Broker;
use crate::limits::exchange::{Answer, Ask, Grant, Item, Reply, SpecForm, TokenBatch, Word};
use crate::limits::meter::{Draw, Waiting};
use crate::limits::{Clock, Limits, Meter, MeterKey, Opener, Settings};

const MS: u64 = 1_000_000;
const PEER: Opener = Opener { node: 2, boot: 1 };

struct Node {
    clock: Arc<SetClock>,
    broker: Broker,
}

impl Node {
    /// Lets the broker do what is due at this instant; gives the asks to its peer, and how many
    /// calls it makes.
    fn turn(&mut self, now_ns: u64) -> (Vec<(String, u64)>, usize) {
        self.clock.0.store(now_ns, Ordering::Relaxed);
        let calls = self.broker.turn(self.clock.moment()).len();
        let batches = self.broker.take_batches().into_iter();
        let items = batches.flat_map(|(to, batch)| batch.items.into_iter().map(move |i| (to, i)));
        let asks = items.filter_map(|(to, Item { key, word })| match word {
            Word::Ask(ask) if to == PEER => Some((key, ask.id)),
            _ => None,
        });
        (asks.collect(), calls)
    }

    /// Its peer says something about a key.
    fn said(&mut self, key: &str, word: Word, ms: u64) {
        let key = key.to_owned();
        let items = vec![Item { key, word }];
        self.broker.peer_said(PEER, TokenBatch { items }, ms * MS);
    }

    /// Its peer grants an ask.
    fn grants(&mut self, key: &str, ask: u64, amount: u64, ms: u64) {
        let grant = Grant {
            amount,
            life_ns: 200 * MS,
            sub_ns: 16 * MS,
            phase_ns: 0,
        };
        let answer = Answer {
            ask,
            reply: Reply::Granted(grant),
            seen: None,
            at_ns: ms * MS,
        };
        self.said(key, Word::Answer(answer), ms);
    }

    /// Its peer asks for others that wait; gives what it is told at once.
    fn relays(&mut self, meter: &Meter, id: u64, ms: u64) -> Vec<Reply> {
        let word = Word::Ask(Ask {
            id,
            spec: SpecForm::from(&*meter.configured()),
            wanted: 1,
            relayed: true,
        });
        self.said(&meter.store_key, word, ms);
        self.broker.turn(self.clock.moment());
        let batches = self.broker.take_batches().into_iter();
        let words = batches.flat_map(|(_, batch)| batch.items.into_iter().map(|item| item.word));
        let replies = words.filter_map(|word| match word {
            Word::Answer(answer) => Some(answer.reply),
            _ => None,
        });
        replies.collect()
    }
}

/// Those who call a meter, and what became of their calls.
#[derive(Default)]
struct Callers {
    waiting: Vec<Waiting>,
    sent: u64,
    refused: u64,
}

impl Callers {
    fn call(&mut self, meter: &Arc<Meter>, ms: u64) {
        match meter.draw(0, ms * MS) {
            Draw::Drawn(token) => self.sent += u64::from(token.send(ms * MS).is_ok()),
            Draw::Wait(waiting) => self.waiting.push(waiting),
            Draw::Refused(_) => self.refused += 1,
        }
    }

    /// Those who wait look whether they have an answer.
    fn look(&mut self, ms: u64) {
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting.poll_now(ms * MS) {
                Some(Ok(token)) => self.sent += u64::from(token.send(ms * MS).is_ok()),
                Some(Err(_)) => self.refused += 1,
                None => self.waiting.push(waiting),
            }
        }
    }
}

/// A node that is linked to another one, and a meter that it owns.
fn node() -> (Node, Arc<Meter>) {
    let clock = Arc::new(SetClock::default());
    let mut settings = Settings::single_node(Opener { node: 1, boot: 1 });
    settings.nodes = 2;
    let (limits, mut broker) = Limits::unserved(&settings, Arc::clone(&clock) as Arc<dyn Clock>);
    broker.peer_up(PEER, 0);
    let spec = spec(1_000, Window::Second);
    let mut node = Node { clock, broker };
    for key in 0u32.. {
        let key = MeterKey::of("mtr_1", key.to_be_bytes());
        let meter = limits.meter(key, Arc::clone(&spec));
        assert!(matches!(meter.draw(0, MS), Draw::Wait(_)));
        if let (asks, 1) = node.turn(MS) {
            assert!(
                asks.is_empty(),
                "whoever owns a key asks the store and nobody else"
            );
            return (node, meter);
        }
    }
    unreachable!("it owns about half of all keys")
}

#[test]
fn who_owns_a_key_asks_its_peers_while_the_store_is_late() {
    let (mut node, meter) = node();
    let Draw::Wait(waiting) = meter.draw(0, 2 * MS) else {
        panic!("nothing has been granted yet")
    };
    let mut asked = None;
    for ms in 2..=400 {
        let (asks, _) = node.turn(ms * MS);
        if let Some((key, id)) = asks.into_iter().find(|(key, _)| *key == meter.store_key) {
            asked = Some((ms, key, id));
            break;
        }
    }
    let (ms, key, ask) = asked.expect("its peer is asked before the grace is over");
    assert!((101..=110).contains(&ms), "asked at {ms} ms");
    // The peer, which knows this node as the owner, asks back before it serves: it is not to wait.
    assert_eq!(node.relays(&meter, 1, ms), [Reply::NoStore]);
    node.grants(&key, ask, 10, ms);
    let token = waiting.poll_now(ms * MS).expect("an end").expect("a token");
    assert!(token.send(ms * MS).is_ok());
}

/// Whoever is cut from the store stays the first owner for its peers, which ask it again and again
/// whether it has tokens. That keeps it from nothing: they serve it all the while.
#[test]
fn who_cannot_serve_what_is_relayed_to_it_goes_on_asking() {
    let (mut node, meter) = node();
    let (mut callers, mut relays) = (Callers::default(), 0);
    for ms in 2..=4_000u64 {
        if ms % 10 == 0 {
            callers.call(&meter, ms);
        }
        let (asks, _) = node.turn(ms * MS);
        for (key, id) in asks {
            node.grants(&key, id, 3, ms);
        }
        if ms >= 150 && ms % 250 == 0 {
            relays += 1;
            assert_eq!(node.relays(&meter, relays, ms), [Reply::NoStore], "{ms} ms");
        }
        callers.look(ms);
    }
    let Callers { sent, refused, .. } = callers;
    assert_eq!(refused, 0, "{sent} sent");
    assert!(sent >= 390, "{sent} sent");
}

/// Peers of a busy machine take their time. Who has no store has nobody else: a peer that is slow
/// is not taken for one that is gone.
#[test]
fn a_peer_that_is_slow_to_answer_serves_who_has_no_store() {
    for slow_ms in [40, 80, 150] {
        let (mut node, meter) = node();
        let (mut callers, mut answers) = (Callers::default(), VecDeque::new());
        for ms in 2..=4_000u64 {
            let (asks, _) = node.turn(ms * MS);
            answers.extend(asks.into_iter().map(|(key, id)| (ms + slow_ms, key, id)));
            while let Some((_, key, id)) = answers.pop_front_if(|(due_ms, ..)| *due_ms <= ms) {
                node.grants(&key, id, 40, ms);
            }
            if ms % 10 == 0 {
                callers.call(&meter, ms);
            }
            callers.look(ms);
            // Until then it finds out that the store does not answer.
            if ms < 500 {
                callers.refused = 0;
            }
        }
        let Callers { sent, refused, .. } = callers;
        assert_eq!(refused, 0, "after {slow_ms} ms: {sent} sent");
        assert!(sent >= 340, "after {slow_ms} ms: {sent} sent");
    }
}

/// A store that works, and a node that can reach it but none of its peers.
#[test]
fn who_is_cut_from_its_peers_takes_from_the_store() {
    for key in 0u32..12 {
        let mut world = World::new(10_000);
        world.limits.set_nodes(3);
        world.broker.peer_up(PEER, 0);
        world.broker.peer_up(Opener { node: 3, boot: 1 }, 0);
        let key = MeterKey::of("mtr_1", key.to_be_bytes());
        let meter = world.limits.meter(key, spec(200, Window::Second));
        for ms in 1..=4_000u64 {
            if ms % 10 == 0 {
                world.call(&meter, ms * MS);
            }
            world.turn(ms * MS);
            // What it says to them never arrives.
            world.broker.take_batches();
        }
        assert_eq!(world.lost, 0, "the store was there: {} sent", world.sent);
    }
}
