//! A meter with a token bucket, its broker and a store in memory, millisecond by millisecond.

use std::collections::VecDeque;
use std::sync::Arc;

use proto::meter::{Algorithm, Limit, MeterSpec, Window};
use proto::store::{StoreError, TxnOutcome};

use super::memory::Memory;
use crate::limits::broker::{Broker, Call};
use crate::limits::meter::{Draw, Meter, Waiting};
use crate::limits::{Clock, Limits, MeterKey, Moment, Opener, Settings};

const MS: u64 = 1_000_000;

struct NoClock;

impl Clock for NoClock {
    fn boot_ns(&self) -> u64 {
        0
    }
    fn moment(&self) -> Moment {
        Moment::default()
    }
}

struct Node {
    broker: Broker,
    meter: Arc<Meter>,
    waiting: VecDeque<Waiting>,
    answers: Vec<(u64, u64, Result<TxnOutcome, StoreError>)>,
}

impl Node {
    fn new(node: u64, spec: &Arc<MeterSpec>) -> Self {
        let mut settings = Settings::single_node(Opener { node, boot: 1 });
        settings.nodes = 2;
        let (limits, broker) = Limits::unserved(&settings, Arc::new(NoClock));
        Self {
            meter: limits.meter(MeterKey::whole("key"), Arc::clone(spec)),
            broker,
            waiting: VecDeque::new(),
            answers: Vec::new(),
        }
    }

    /// One millisecond: answers that are due, `demand` callers, one turn. What was sent.
    fn step(&mut self, now_ns: u64, demand: u64, memory: &mut Memory) -> u64 {
        let mut sent = 0;
        let due = self.answers.extract_if(.., |(at_ns, ..)| *at_ns <= now_ns);
        for (_, id, outcome) in due.collect::<Vec<_>>() {
            self.broker.answer(id, outcome, now_ns);
        }
        self.waiting
            .retain(|waiting| match waiting.poll_now(now_ns) {
                Some(Ok(token)) => {
                    sent += u64::from(token.send(now_ns).is_ok());
                    false
                }
                Some(Err(_)) => false,
                None => true,
            });
        for _ in 0..demand {
            match self.meter.draw(0, now_ns) {
                Draw::Drawn(token) => sent += u64::from(token.send(now_ns).is_ok()),
                Draw::Wait(waiting) => self.waiting.push_back(waiting),
                Draw::Refused(_) => {}
            }
        }
        let now = Moment {
            boot_ns: now_ns,
            unix_ns: now_ns,
        };
        for Call { id, txn } in self.broker.turn(now) {
            let outcome = memory.txn(&txn);
            self.answers.push((now_ns + 2 * MS, id, Ok(outcome)));
        }
        sent
    }
}

fn run(rate: u64, window: Window, burst: u64, nodes: u64, seconds: u64) -> Vec<(u64, u64)> {
    let limit = Limit::with_algorithm(rate, window, Algorithm::TokenBucket).unwrap();
    let limit = limit.with_burst(burst).unwrap();
    let spec = Arc::new(MeterSpec::new("", 1, vec![limit]).unwrap());
    let mut memory = Memory::new();
    let mut all: Vec<Node> = (1..=nodes).map(|node| Node::new(node, &spec)).collect();
    let mut sends = Vec::new();
    for at_ms in 1_000..1_000 + seconds * 1_000 {
        let now_ns = at_ms * MS;
        // Half as much again as the rate, spread over the nodes.
        let wanted = |ms: u64| ms * rate * 3 / 2 / (window.width_ns() / MS) / nodes;
        let demand = wanted(at_ms) - wanted(at_ms - 1);
        for node in &mut all {
            let sent = node.step(now_ns, demand, &mut memory);
            sends.push((now_ns, sent));
        }
    }
    sends
}

#[track_caller]
fn check(rate: u64, burst: u64, nodes: u64) {
    // Nodes without peers take in turns: what one has taken and not sent yet, the others miss.
    let least = if nodes > 1 { 75 } else { 85 };
    check_window(rate, Window::Second, burst, nodes, least);
}

#[track_caller]
fn check_window(rate: u64, window: Window, burst: u64, nodes: u64, least: u64) {
    let (width_ms, seconds) = (
        window.width_ns() / MS,
        10 * (window.width_ns() / MS / 1_000),
    );
    let sends = run(rate, window, burst, nodes, seconds.min(60));
    let seconds = seconds.min(60);
    let mut before = Vec::with_capacity(sends.len());
    let mut total = 0;
    for (_, n) in &sends {
        before.push(total);
        total += n;
    }
    // The tightest of all intervals, in one pass: the most that any has over what it may have.
    let owed = |at: usize, sum: u64| {
        let (at_ns, _) = sends.get(at).copied().unwrap_or_default();
        i128::from(sum) * i128::from(width_ms) - i128::from(at_ns / MS) * i128::from(rate)
    };
    let (mut lowest, mut worst) = (i128::MAX, i128::MIN);
    for (at, first) in before.iter().enumerate() {
        lowest = lowest.min(owed(at, *first));
        let (_, n) = sends.get(at).copied().unwrap_or_default();
        worst = worst.max(owed(at, first + n) - lowest);
    }
    let most = i128::from(burst) * i128::from(width_ms);
    assert!(
        worst <= most,
        "{rate}/s, burst {burst}, {nodes} nodes: {worst} over {most}"
    );
    let may = burst + rate * seconds * 1_000 / width_ms;
    let used = total * 100 / may;
    assert!(
        used >= least,
        "{rate}/s, burst {burst}, {nodes} nodes: {used} % used"
    );
}

#[test]
fn no_interval_has_more_than_burst_and_rate_and_nearly_all_is_used() {
    check(1_000, 1_000, 1);
    check(1_000, 100, 1);
    check(100, 500, 1);
    check(10, 10, 1);
    check(1_000, 1_000, 3);
    check(50, 20, 3);
}

/// A burst that is filled many times in the life of a block is filled as fast as a large one. With
/// a burst of one nothing is filled while the token waits for its caller.
#[test]
fn a_small_burst_is_filled_as_fast_as_its_limit_says() {
    check_window(300, Window::Minute, 5, 1, 85);
    check_window(300, Window::Minute, 2, 1, 80);
    check_window(300, Window::Minute, 1, 1, 60);
    check_window(6_000, Window::Minute, 10, 1, 80);
    check_window(20, Window::Second, 2, 1, 75);
    check_window(300, Window::Minute, 5, 3, 65);
}
