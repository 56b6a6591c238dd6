//! Many keys at once: what they cost the store, and what stays of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proto::meter::{Limit, MeterSpec, Window};
use proto::store::{StoreError, TxnOutcome};

use super::memory::Memory;
use crate::limits::broker::{Broker, Call};
use crate::limits::exchange::{Item, TokenBatch, Word};
use crate::limits::meter::{Draw, Meter, Waiting};
use crate::limits::refusal::{Cause, Refusal};
use crate::limits::{Clock, Limits, MeterKey, Moment, Opener, Settings, Token};

const MS: u64 = 1_000_000;

/// A clock that a test sets.
#[derive(Default)]
pub(super) struct SetClock(pub(super) AtomicU64);

impl Clock for SetClock {
    fn boot_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn moment(&self) -> Moment {
        let now_ns = self.boot_ns();
        Moment {
            boot_ns: now_ns,
            unix_ns: now_ns,
        }
    }
}

pub(super) struct World {
    clock: Arc<SetClock>,
    pub(super) limits: Arc<Limits>,
    pub(super) broker: Broker,
    memory: Memory,
    answers: VecDeque<(u64, u64, Result<TxnOutcome, StoreError>)>,
    waiting: Vec<Waiting>,
    writes: u64,
    pub(super) sent: u64,
    /// Refused because nobody gave tokens.
    pub(super) lost: u64,
    /// The store answers no call.
    pub(super) away: bool,
    /// So many of the next calls find that another node was faster.
    pub(super) beaten: usize,
    /// When calls were made to the store.
    pub(super) called_ns: Vec<u64>,
}

impl World {
    pub(super) fn new(keys_max: usize) -> Self {
        let mut settings = Settings::single_node(Opener { node: 1, boot: 1 });
        settings.keys_max = keys_max;
        Self::of(settings)
    }

    pub(super) fn of(settings: Settings) -> Self {
        let clock = Arc::new(SetClock::default());
        let (limits, broker) = Limits::unserved(&settings, Arc::clone(&clock) as Arc<dyn Clock>);
        let memory = Memory::new();
        Self {
            clock,
            limits,
            broker,
            memory,
            answers: VecDeque::new(),
            waiting: Vec::new(),
            writes: 0,
            sent: 0,
            lost: 0,
            away: false,
            beaten: 0,
            called_ns: Vec::new(),
        }
    }

    pub(super) fn call(&mut self, meter: &Arc<Meter>, now_ns: u64) {
        match meter.draw(0, now_ns) {
            Draw::Drawn(token) => self.passed(token, now_ns),
            Draw::Wait(waiting) => self.waiting.push(waiting),
            Draw::Refused(refusal) => self.refused(&refusal),
        }
    }

    fn passed(&mut self, token: Token, now_ns: u64) {
        self.sent += u64::from(token.send(now_ns).is_ok());
    }

    fn refused(&mut self, refusal: &Refusal) {
        self.lost += u64::from(refusal.cause == Cause::StoreLost);
    }

    /// How many callers wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes what has come, and lets the broker do what is due. Who waits looks again when it is
    /// told to, and not before.
    pub(super) fn turn(&mut self, now_ns: u64) {
        self.clock.0.store(now_ns, Ordering::Relaxed);
        let meters: Vec<Arc<Meter>> = self.waiting.iter().map(|w| Arc::clone(w.meter())).collect();
        let told = meters.iter().map(|meter| {
            let mut told = Box::pin(meter.answered.notified());
            told.as_mut().enable();
            told
        });
        let told: Vec<_> = told.collect();
        while self
            .answers
            .front()
            .is_some_and(|(at_ns, ..)| *at_ns <= now_ns)
        {
            if let Some((_, id, outcome)) = self.answers.pop_front() {
                self.broker.answer(id, outcome, now_ns);
            }
        }
        self.let_act(now_ns);
        for (waiting, mut told) in std::mem::take(&mut self.waiting).into_iter().zip(told) {
            if !told.as_mut().enable() {
                self.waiting.push(waiting);
                continue;
            }
            match waiting.poll_now(now_ns) {
                Some(Ok(token)) => self.passed(token, now_ns),
                Some(Err(refusal)) => self.refused(&refusal),
                None => self.waiting.push(waiting),
            }
        }
    }

    /// Makes the calls to the store that are due.
    fn let_act(&mut self, now_ns: u64) {
        for Call { id, txn } in self.broker.turn(self.clock.moment()) {
            if self.beaten > 0 && !self.away && !txn.ops.is_empty() {
                self.beaten -= 1;
                self.memory.write_again(&txn);
            }
            self.writes += txn.ops.len() as u64;
            self.called_ns.push(now_ns);
            let outcome = match self.away {
                true => Err(StoreError::Unavailable("it is away".into())),
                false => Ok(self.memory.txn(&txn)),
            };
            self.answers.push_back((now_ns + 2 * MS, id, outcome));
        }
    }
}

pub(super) fn spec(limit: u64, window: Window) -> Arc<MeterSpec> {
    let limit = Limit::new(limit, window).unwrap();
    Arc::new(MeterSpec::new("", 1, vec![limit]).unwrap())
}

/// A hundred keys at their limit, each of which would write thirty times a second.
#[test]
fn a_hundred_hot_keys_together_stay_under_the_writes_of_a_second_and_use_their_limits() {
    let (per_second, used) = hot(1, 100, 6);
    eprintln!("100 hot keys: {per_second} key writes a second, {used} % used");
    assert!(per_second <= 1_010, "{per_second} writes");
    assert!((70..=100).contains(&used), "{used} % used");
}

/// The same keys owned by forty nodes, each with its part of the writes.
#[test]
fn hot_keys_of_many_nodes_stay_under_the_writes_of_a_second_together() {
    let (per_second, used) = hot(40, 3, 2);
    eprintln!("120 hot keys of 40 nodes: {per_second} key writes a second, {used} % used");
    assert!(per_second <= 1_100, "{per_second} writes");
    assert!((70..=100).contains(&used), "{used} % used");
}

/// So many nodes own so many keys each, at one and a half times their limit: key writes a second
/// of all together over some seconds, and how much of the limits is used, in percent.
fn hot(nodes: u64, keys: u64, seconds: u64) -> (u64, u64) {
    const LIMIT: u64 = 100;
    let spec = spec(LIMIT, Window::Second);
    let (from, to) = (3_000, 3_000 + seconds * 1_000);
    let (mut writes, mut sent) = (0, 0);
    for node in 0..nodes {
        let mut world = World::new(1_000);
        world.limits.set_nodes(nodes);
        let others = (100..100 + nodes - 1).map(|node| Opener { node, boot: 1 });
        let others: Vec<Opener> = others.collect();
        let keys = (0..keys).map(|n| MeterKey::of("m", format!("{node}-{n}")));
        let meters: Vec<_> = keys
            .map(|key| world.limits.meter(key, Arc::clone(&spec)))
            .collect();
        for ms in 1_000..to + 1_000 {
            if ms == from + 1_000 {
                (writes, sent) = (writes - world.writes as i64, sent - world.sent as i64);
            }
            for (at, meter) in meters.iter().enumerate() {
                if (ms * 3 + at as u64) % 20 < 3 {
                    world.call(meter, ms * MS);
                }
            }
            // The others write as much as this one.
            let word = Word::Writing {
                per_second: 1_000 / nodes,
            };
            for other in others.iter().filter(|_| ms % 1_000 == 0) {
                let (key, word) = (String::new(), word.clone());
                let items = vec![Item { key, word }];
                world
                    .broker
                    .peer_said(*other, TokenBatch { items }, ms * MS);
            }
            world.turn(ms * MS);
        }
        (writes, sent) = (writes + world.writes as i64, sent + world.sent as i64);
    }
    let all = nodes * keys * LIMIT * seconds;
    (writes as u64 / seconds, sent as u64 * 100 / all)
}

/// Keys that come once and never again leave nothing behind, in the store or in the process.
#[test]
fn a_hundred_thousand_keys_in_an_hour_leave_no_more_than_those_of_the_last_minutes() {
    let mut world = World::new(10_000);
    let spec = spec(10, Window::Minute);
    let newcomers = world.limits.newcomers(1);
    let (mut most_stored, mut most_known) = (0, 0);
    for n in 0..100_000_u64 {
        // Twenty-eight in a second.
        let now_ns = 1_000 * MS + n * 36 * MS;
        world.clock.0.store(now_ns, Ordering::Relaxed);
        let value = n.to_string();
        let meter = world.limits.keyed("m", value.as_bytes(), &spec, &newcomers);
        assert!(!meter.key().unwrap().is_overflow(), "{n}");
        world.call(&meter, now_ns);
        drop(meter);
        for step in 0..4 {
            world.turn(now_ns + step * 9 * MS);
        }
        most_stored = most_stored.max(world.memory.keys.len());
        if n % 1_000 == 0 {
            most_known = most_known.max(world.limits.registry.all().len());
        }
    }
    eprintln!(
        "100,000 keys: at most {most_stored} in the store and {most_known} in the process, \
         {} writes, {} sent",
        world.writes, world.sent
    );
    assert_eq!(world.sent, 100_000, "each is a key of its own");
    // A key is kept for two of its windows after it was used last.
    assert!(
        most_stored <= 4_000 && most_known <= 8_000,
        "{most_stored} {most_known}"
    );
    for step in 0..400 {
        world.turn(4_000_000 * MS + step * 1_000 * MS);
    }
    assert!(world.memory.keys.is_empty(), "{}", world.memory.keys.len());
}
