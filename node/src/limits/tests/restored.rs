//! The store is restored from a backup, or wiped, while nodes serve (part one, 13 C; part two, 16).

use std::sync::Arc;

use proto::meter::{Limit, MeterSpec, Window};
use proto::store::TxnOutcome;

use super::faults::{Chance, Faults};
use super::memory::Memory;
use super::schedules::{linked_plan, run, seeds};
use super::simulation::{MS, Plan, SECOND, World};
use crate::limits::broker::{Broker, Call};
use crate::limits::meter::{Draw, Meter};
use crate::limits::{Limits, MeterKey, Moment, Opener, Settings, SystemClock};

/// A plan of the seed in which the store goes back by one to three seconds, or to nothing. By less
/// it may have as many revisions again before anybody who would notice asks it.
fn restored_plan(seed: u64) -> Plan {
    let mut plan = linked_plan(seed, None);
    let mut chance = Chance::new(seed ^ 0xbac0);
    plan.length_ns = 6 * SECOND;
    let back_ns = chance.within(2 * SECOND, 4 * SECOND);
    let saved_ns = match chance.percent(30) {
        true => 0,
        false => back_ns.saturating_sub(chance.within(SECOND, 3 * SECOND)),
    };
    plan.restored = Some((saved_ns, back_ns));
    // Who starts anew remembers nothing, and who cannot be told is not.
    plan.faults = Faults {
        crash_ns: 0,
        cut_ns: 0,
        ..plan.faults
    };
    plan
}

#[test]
fn no_more_than_the_limit_is_sent_when_the_store_goes_back() {
    let mut sent = 0;
    for seed in seeds(200) {
        sent += run(&restored_plan(seed), seed).sends.len();
    }
    assert!(sent > 4_000, "{sent}");
}

/// Of a day the larger number counts; the second after it is full is over in the next.
#[test]
fn what_a_node_remembers_of_a_day_counts_when_the_store_is_wiped() {
    let day = Limit::new(300, Window::Day).unwrap();
    let second = Limit::new(60, Window::Second).unwrap();
    for seed in 0..6 {
        let mut plan = Plan::new(vec![day, second], SECOND / 90, 12 * SECOND);
        (plan.nodes, plan.peer_trip_ns) = (3, 2_000_000);
        plan.faults = Faults::default();
        plan.restored = Some((0, 3 * SECOND));
        let outcome = World::new(&plan, seed).run().unwrap();
        let before = outcome.sends.iter().filter(|at| **at < 3 * SECOND).count();
        let all = outcome.sends.len();
        assert!(
            before > 140 && (280..=300).contains(&all),
            "{seed}: {before}, {all}"
        );
    }
}

#[test]
fn a_store_that_is_wiped_after_it_was_restored_gives_no_day_again() {
    let day = Limit::new(300, Window::Day).unwrap();
    let second = Limit::new(60, Window::Second).unwrap();
    for seed in seeds(12) {
        let mut plan = Plan::new(vec![day, second], SECOND / 90, 14 * SECOND);
        (plan.nodes, plan.peer_trip_ns) = (1 + seed % 3, 2_000_000);
        plan.faults = Faults::default();
        plan.restored = Some((SECOND, 4 * SECOND));
        plan.wiped_ns = Some(6 * SECOND);
        let sent = run(&plan, seed).sends.len();
        assert!((270..=300).contains(&sent), "{seed}: {sent}");
    }
}

/// What it knows of a key that the store holds no more, and that nobody calls for a while.
#[test]
fn a_node_remembers_a_day_of_which_it_has_nothing_left_to_do() {
    let day = Limit::new(20, Window::Day).unwrap();
    let second = Limit::new(60, Window::Second).unwrap();
    for seed in seeds(12) {
        let mut plan = Plan::new(vec![day, second], SECOND, 60 * SECOND);
        plan.faults = Faults::default();
        plan.wiped_ns = Some(12 * SECOND);
        let sent = run(&plan, seed).sends.len();
        assert!((15..=20).contains(&sent), "{seed}: {sent}");
    }
}

/// A node and its store, step by step.
struct Alone {
    broker: Broker,
    memory: Memory,
    now_ns: u64,
}

impl Alone {
    fn moment(&self) -> Moment {
        Moment {
            boot_ns: self.now_ns,
            unix_ns: 1_767_268_800 * SECOND + self.now_ns,
        }
    }

    /// What is asked of the store, and its answers, which have not come yet.
    fn ask(&mut self) -> Vec<(u64, TxnOutcome)> {
        self.now_ns += 20 * MS;
        let calls = self.broker.turn(self.moment());
        let carried_out = |call: Call| (call.id, self.memory.txn(&call.txn));
        calls.into_iter().map(carried_out).collect()
    }

    fn hear(&mut self, answers: Vec<(u64, TxnOutcome)>) {
        for (call, outcome) in answers {
            self.broker.answer(call, Ok(outcome), self.now_ns);
        }
    }

    /// Sends as many calls as the meter lets.
    fn send_all(&mut self, meter: &Arc<Meter>) -> u64 {
        self.send(meter, u64::MAX)
    }

    /// The same, and no more than `most`.
    fn send(&mut self, meter: &Arc<Meter>, most: u64) -> u64 {
        let mut sent = 0;
        while sent < most {
            let waiting = match meter.draw(0, self.now_ns) {
                Draw::Drawn(token) => {
                    sent += u64::from(token.send(self.now_ns).is_ok());
                    continue;
                }
                Draw::Refused(_) => return sent,
                Draw::Wait(waiting) => waiting,
            };
            let said = std::iter::repeat_with(|| {
                let answers = self.ask();
                self.hear(answers);
                waiting.poll_now(self.now_ns)
            });
            match said.take(100).flatten().next() {
                Some(Ok(token)) => sent += u64::from(token.send(self.now_ns).is_ok()),
                Some(Err(_)) => return sent,
                None => panic!("nothing is said"),
            }
        }
        sent
    }
}

/// A block of a store that is no more, heard of when that is known already, may be sent.
#[test]
fn an_answer_of_before_that_comes_late_is_remembered() {
    let settings = Settings::single_node(Opener { node: 1, boot: 1 });
    let (limits, broker) = Limits::unserved(&settings, Arc::new(SystemClock));
    let meter = |name: &str, window| {
        let limit = Limit::new(10, window).unwrap();
        let spec = Arc::new(MeterSpec::new("", 1, vec![limit]).unwrap());
        limits.meter(MeterKey::whole(name), spec)
    };
    let (day, other) = (meter("day", Window::Day), meter("other", Window::Second));
    let mut node = Alone {
        broker,
        memory: Memory::new(),
        now_ns: SECOND,
    };
    node.memory.revision = 100;
    let Draw::Wait(first) = day.draw(0, node.now_ns) else {
        panic!("nobody has given anything yet");
    };
    let answers = node.ask();
    node.hear(answers);
    let first = first.poll_now(node.now_ns).unwrap().unwrap();
    first.send(node.now_ns).unwrap();
    let Draw::Wait(second) = day.draw(0, node.now_ns) else {
        panic!("a block is of one token");
    };
    let late = node.ask();
    assert_eq!(late.len(), 1);

    node.memory = Memory::new();
    let Draw::Wait(waiting) = other.draw(0, node.now_ns) else {
        panic!("nobody has given anything yet");
    };
    let answers = node.ask();
    node.hear(answers);
    drop(waiting);
    node.hear(late);
    let second = second.poll_now(node.now_ns).unwrap().unwrap();
    second.send(node.now_ns).unwrap();
    assert_eq!(node.send_all(&day), 8);
}

/// By its revisions alone nobody would know: it has had as many changes again.
#[test]
fn a_key_that_was_written_before_what_it_held_shows_that_the_store_went_back() {
    let settings = Settings::single_node(Opener { node: 1, boot: 1 });
    let (limits, broker) = Limits::unserved(&settings, Arc::new(SystemClock));
    let limit = Limit::new(100, Window::Hour).unwrap();
    let spec = Arc::new(MeterSpec::new("", 1, vec![limit]).unwrap());
    let hour = limits.meter(MeterKey::whole("hour"), spec);
    let mut node = Alone {
        broker,
        memory: Memory::new(),
        now_ns: SECOND,
    };
    node.memory.revision = 100;
    assert_eq!(node.send(&hour, 40), 40);
    let saved = node.memory.clone();
    assert_eq!(node.send(&hour, 30), 30);
    node.memory = saved;
    node.memory.revision = 10_000;
    let more = node.send_all(&hour);
    assert!(more <= 30, "{more} on top of 70 of 100");
}
