//! A meter, its broker and a store in memory, one step at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::meter::{Estimate, Limit, MeterSpec, StoreLoss, Window};
use proto::store::{StoreError, TxnOutcome};

use super::memory::Memory;
use crate::limits::broker::{Broker, Call};
use crate::limits::meter::{Draw, Meter, Waiting};
use crate::limits::refusal::{Cause, Mode};
use crate::limits::view::View;
use crate::limits::{Clock, Limits, MeterKey, Moment, Opener, Settings, codec};

const MS: u64 = 1_000_000;
/// Before anything that a test does.
const BEGUN_NS: u64 = 1_000 * MS;

/// The instant at which callers begin to wait, in nanoseconds.
struct Begun(u64);

impl Clock for Begun {
    fn boot_ns(&self) -> u64 {
        self.0
    }
    fn moment(&self) -> Moment {
        Moment::default()
    }
}

struct Node {
    limits: Arc<Limits>,
    broker: Broker,
    meter: Arc<Meter>,
    memory: Memory,
    now_ns: u64,
    /// Tokens that [`Node::wait`] has sent.
    sent: u64,
}

impl Node {
    fn new(nodes: u32, limit: u64, on_store_loss: StoreLoss) -> Self {
        Self::estimating(nodes, limit, on_store_loss, None)
    }

    /// The same with a meter of values, of which each request sets so much aside.
    fn estimating(nodes: u32, limit: u64, on_store_loss: StoreLoss, estimate: Option<u64>) -> Self {
        let mut settings = Settings::single_node(Opener { node: 1, boot: 1 });
        settings.nodes = nodes;
        let (limits, broker) = Limits::unserved(&settings, Arc::new(Begun(BEGUN_NS)));
        let limit = Limit::new(limit, Window::Minute).unwrap();
        let spec = MeterSpec::new("", 1, vec![limit]).unwrap();
        let spec = spec.estimating(estimate.map(Estimate::Given));
        let spec = Arc::new(spec.on_store_loss(on_store_loss));
        Self {
            meter: limits.meter(MeterKey::whole("key"), spec),
            limits,
            broker,
            memory: Memory::new(),
            now_ns: BEGUN_NS,
            sent: 0,
        }
    }

    fn turn(&mut self) -> Vec<Call> {
        self.broker.turn(Moment {
            boot_ns: self.now_ns,
            unix_ns: self.now_ns,
        })
    }

    /// Carries out what the broker wants, until it wants nothing more.
    fn serve(&mut self) {
        loop {
            let calls = self.turn();
            if calls.is_empty() {
                return;
            }
            for call in calls {
                let outcome = self.memory.txn(&call.txn);
                self.broker.answer(call.id, Ok(outcome), self.now_ns);
            }
        }
    }

    /// Sends all that is at hand, and waits for more.
    fn wait(&mut self) -> Waiting {
        loop {
            match self.meter.draw(0, self.now_ns) {
                Draw::Drawn(token) => {
                    token.send(self.now_ns).unwrap();
                    self.sent += 1;
                }
                Draw::Wait(waiting) => return waiting,
                Draw::Refused(refusal) => panic!("{refusal:?}"),
            }
        }
    }

    /// The store goes: what is on its way fails, and so does a look whether it is back.
    fn lose_store(&mut self, for_ms: u64) {
        for _ in 0..for_ms {
            self.now_ns += MS;
            for call in self.turn() {
                let error = StoreError::OutcomeUnknown("gone".into());
                self.broker.answer(call.id, Err(error), self.now_ns);
            }
        }
    }
}

#[test]
fn a_first_draw_waits_for_the_store_and_gets_a_token() {
    let mut node = Node::new(1, 60, StoreLoss::FailClosed);
    let waiting = node.wait();
    node.serve();
    let token = waiting.poll_now(node.now_ns).unwrap().unwrap();
    assert!(token.send(node.now_ns).is_ok());
}

#[test]
fn a_full_window_is_refused_with_the_time_of_the_next_token() {
    let mut node = Node::new(1, 3, StoreLoss::FailClosed);
    let mut sent = 0;
    let refusal = loop {
        let waiting = node.wait();
        node.now_ns += 100 * MS;
        node.serve();
        match waiting.poll_now(node.now_ns).unwrap() {
            Ok(token) => drop(token.send(node.now_ns).unwrap()),
            Err(refusal) => break refusal,
        }
        sent += 1;
    };
    assert_eq!(sent, 3);
    assert_eq!(refusal.cause, Cause::Empty);
    let seconds = refusal.retry_after.as_secs();
    assert!((55..=61).contains(&seconds), "{seconds}");
}

/// A node of three that was used, and whose store then goes.
fn cut(on_store_loss: StoreLoss) -> Node {
    let mut node = Node::new(3, 60_000, on_store_loss);
    let waiting = node.wait();
    node.serve();
    drop(waiting);
    node
}

#[test]
fn without_the_store_a_node_gives_its_share_after_the_grace() {
    let mut node = cut(StoreLoss::LocalShare);
    let waiting = node.wait();
    node.lose_store(299);
    assert!(waiting.poll_now(node.now_ns).is_none());
    node.lose_store(20);
    assert!(waiting.poll_now(node.now_ns).unwrap().is_ok());
    assert_eq!(told(&node), (1, Some(Mode::LocalShare)));
    let mut closed = cut(StoreLoss::FailClosed);
    let waiting = closed.wait();
    closed.lose_store(320);
    let refusal = waiting.poll_now(closed.now_ns).unwrap().unwrap_err();
    assert_eq!(refusal.cause, Cause::StoreLost);
    assert_eq!(told(&closed), (1, None), "nothing passes");
}

/// Meters of the node that go without the store, and what this one lets requests pass by.
fn told(node: &Node) -> (u64, Option<Mode>) {
    let alone = node.meter.shared.stats.alone.load(Ordering::Relaxed);
    (alone, node.meter.passes_by())
}

/// What is used up of a share is no fault of the store; who has no share cannot give anything.
#[test]
fn a_share_that_is_used_up_refuses_as_a_limit_does_and_no_share_as_a_store_that_is_gone() {
    for (nodes, cause) in [(2, Cause::Empty), (1_000, Cause::StoreLost)] {
        let mut node = Node::new(nodes, 60, StoreLoss::LocalShare);
        let waiting = node.wait();
        node.serve();
        drop(waiting);
        let mut passed = 0;
        let refusal = loop {
            node.lose_store(20);
            match node.meter.draw(0, node.now_ns) {
                Draw::Drawn(token) => passed += u32::from(token.send(node.now_ns).is_ok()),
                Draw::Wait(waiting) => drop(waiting),
                Draw::Refused(refusal) => break refusal,
            }
            assert!(passed <= 60, "more than the limit");
        };
        assert_eq!(refusal.cause, cause, "{nodes} nodes, {passed} passed");
        assert!(refusal.retry_after > Duration::ZERO);
        assert_eq!(passed > 20, nodes == 2, "{passed} of a share of {nodes}");
    }
}

#[test]
fn a_limit_that_fails_open_lets_all_pass_while_the_store_is_gone() {
    let mut node = cut(StoreLoss::FailOpen);
    assert_eq!(told(&node), (0, None));
    let waiting = node.wait();
    node.lose_store(299);
    assert!(waiting.poll_now(node.now_ns).is_none(), "the grace first");
    node.lose_store(20);
    let token = waiting.poll_now(node.now_ns).unwrap().unwrap();
    let sent = token.send(node.now_ns).unwrap();
    assert!(sent.spent.is_empty(), "nothing was spent");
    let mut passed = 0;
    for _ in 0..400 {
        node.lose_store(1);
        match node.meter.draw(0, node.now_ns) {
            Draw::Drawn(token) => passed += u32::from(token.send(node.now_ns).is_ok()),
            Draw::Wait(waiting) => {
                node.lose_store(1);
                let token = waiting.poll_now(node.now_ns).unwrap().unwrap();
                passed += u32::from(token.send(node.now_ns).is_ok());
            }
            Draw::Refused(refusal) => panic!("{refusal:?}"),
        }
    }
    assert_eq!(passed, 400);
    assert_eq!(node.meter.status(node.now_ns).mode, Mode::Open);
    assert_eq!(told(&node), (1, Some(Mode::Open)));
    let degraded_s = || -> Vec<(&str, f64)> { node.meter.shared.stats.degraded_s().collect() };
    let seconds: Vec<f64> = degraded_s().iter().map(|(_, seconds)| *seconds).collect();
    assert_eq!((seconds[0], seconds[1]), (0.0, 0.0));
    assert!((0.3..=0.6).contains(&seconds[2]), "{seconds:?}");
    // It is back: what is sent is spent again, and the limit holds.
    for _ in 0..3_000 {
        node.now_ns += MS;
        node.serve();
    }
    let token = match node.meter.draw(0, node.now_ns) {
        Draw::Drawn(token) => token,
        Draw::Wait(waiting) => {
            node.serve();
            waiting.poll_now(node.now_ns).unwrap().unwrap()
        }
        Draw::Refused(refusal) => panic!("{refusal:?}"),
    };
    assert!(!token.send(node.now_ns).unwrap().spent.is_empty());
    assert_eq!(node.meter.status(node.now_ns).mode, Mode::Store);
    assert_eq!(told(&node), (0, None));
}

#[test]
fn what_answers_cost_while_a_limit_fails_open_is_not_charged_later() {
    let mut node = Node::estimating(3, 1_000, StoreLoss::FailOpen, Some(40));
    let waiting = node.wait();
    node.serve();
    let token = waiting.poll_now(node.now_ns).unwrap().unwrap();
    let sent = token.send(node.now_ns).unwrap();
    sent.reserved
        .into_iter()
        .for_each(|r| r.settle(40, node.now_ns));
    let Draw::Wait(waiting) = node.meter.draw(0, node.now_ns) else {
        panic!("nothing is at hand");
    };
    node.lose_store(320);
    let token = waiting.poll_now(node.now_ns).unwrap().unwrap();
    let sent = token.send(node.now_ns).unwrap();
    for reserved in sent.reserved {
        assert_eq!(reserved.amount(), 0);
        reserved.settle(100_000, node.now_ns);
    }
    for _ in 0..3_000 {
        node.now_ns += MS;
        node.serve();
    }
    let limits = node.meter.status(node.now_ns).limits;
    assert!(limits[0].remaining >= 900, "{limits:?}");
}

/// Nobody asks again while the answer is out: the broker must look by itself.
#[test]
fn a_write_without_an_answer_is_looked_at_when_the_grace_is_over() {
    let mut node = cut(StoreLoss::LocalShare);
    node.now_ns += 700 * MS;
    node.serve();
    let waiting = node.wait();
    assert_eq!(node.turn().len(), 1);
    let due_ns = node.broker.due_ns();
    assert!(
        due_ns <= node.now_ns + 300 * MS,
        "in {} ms",
        (due_ns - node.now_ns) / MS
    );
    node.now_ns += 300 * MS;
    assert!(node.turn().is_empty());
    assert!(matches!(waiting.poll_now(node.now_ns), Some(Ok(_))));
}

#[test]
fn a_store_that_goes_again_before_it_took_the_credit_leaves_the_share() {
    let mut node = cut(StoreLoss::LocalShare);
    for round in 0..3 {
        let waiting = node.wait();
        node.lose_store(2_000);
        let token = waiting.poll_now(node.now_ns);
        assert!(matches!(token, Some(Ok(_))), "round {round}: {token:?}");
        drop(waiting);
        // It answers what writes nothing, and the write that follows gets lost.
        let waiting = node.wait();
        let mut lost = false;
        while !lost {
            node.now_ns += MS;
            for call in node.turn() {
                let outcome = node.memory.clone().txn(&call.txn);
                lost = matches!(outcome, TxnOutcome::Committed(_));
                let result = match lost {
                    true => Err(StoreError::OutcomeUnknown("gone".into())),
                    false => Ok(outcome),
                };
                node.broker.answer(call.id, result, node.now_ns);
            }
        }
        node.lose_store(400);
        let token = waiting.poll_now(node.now_ns);
        assert!(matches!(token, Some(Ok(_))), "round {round}: {token:?}");
    }
    // Back for good: everything that was given on credit is in the state, once.
    let before = 60_000 - node.meter.status(node.now_ns).limits[0].remaining;
    node.serve();
    let after = 60_000 - node.meter.status(node.now_ns).limits[0].remaining;
    assert!(after >= before && after < 60_000 / 2, "{before} {after}");
}

/// Beyond its quota etcd answers reads and refuses whatever could write: that is a store that is
/// gone, not one that comes and goes.
#[test]
fn a_full_store_is_one_that_is_gone() {
    let mut node = cut(StoreLoss::LocalShare);
    let mut refused = 0;
    for round in 0..12 {
        let waiting = node.wait();
        let mut waited_ms = 0;
        let token = loop {
            node.now_ns += MS;
            waited_ms += 1;
            for call in node.turn() {
                let result = match call.txn.ops.is_empty() {
                    true => Ok(node.memory.txn(&call.txn)),
                    false => Err(StoreError::Full("database space exceeded".into())),
                };
                refused += u32::from(result.is_err());
                node.broker.answer(call.id, result, node.now_ns);
            }
            if let Some(token) = waiting.poll_now(node.now_ns) {
                break token;
            }
        };
        assert!(token.is_ok(), "round {round}: {token:?}");
        // Only the first one waits for the grace.
        assert!(
            waited_ms <= 2 || round == 0,
            "round {round}: {waited_ms} ms"
        );
        drop((token, waiting));
        node.now_ns += 500 * MS;
    }
    assert!(refused <= 40, "{refused} calls");
    // It has room again: what was given on credit is in the state.
    let sent = node.sent;
    for _ in 0..20 {
        node.now_ns += 100 * MS;
        node.serve();
    }
    let stored = &node.memory.keys[&node.meter.store_key];
    let state = codec::decode(&stored.value).unwrap();
    let used = state.limits[0].used() + state.open_left();
    assert!(used >= sent, "{sent} were sent, the store knows of {used}");
}

/// What a store that is full answers meanwhile makes nobody wait for a second grace.
#[test]
fn callers_wait_one_grace_and_a_half_however_often_the_store_seems_to_be_back() {
    let mut node = cut(StoreLoss::LocalShare);
    node.now_ns += 700 * MS;
    node.serve();
    let waiting = node.wait();
    let (mut waited_ms, mut out) = (0, Vec::new());
    let token = loop {
        node.now_ns += MS;
        waited_ms += 1;
        let due = node.now_ns;
        // A write is refused 240 ms after it was sent; what only reads is answered at once.
        for call in node.turn() {
            match call.txn.ops.is_empty() {
                true => {
                    let outcome = Ok(node.memory.txn(&call.txn));
                    node.broker.answer(call.id, outcome, node.now_ns);
                }
                false => out.push((due + 240 * MS, call.id)),
            }
        }
        let (refused, left): (Vec<_>, _) = out.into_iter().partition(|(at, _)| *at <= due);
        out = left;
        for (_, id) in refused {
            let error = StoreError::OutcomeUnknown("slow".into());
            node.broker.answer(id, Err(error), node.now_ns);
        }
        if let Some(token) = waiting.poll_now(node.now_ns) {
            break token;
        }
    };
    assert!(token.is_ok(), "{token:?}");
    assert!(waited_ms <= 460, "{waited_ms} ms");
}

/// Tokens that others took first are an answer too: the store is not gone.
#[tokio::test]
async fn who_waits_for_a_store_that_answers_others_is_not_told_that_it_is_gone() {
    let mut node = cut(StoreLoss::LocalShare);
    node.now_ns += 700 * MS;
    node.serve();
    let waiting = node.wait();
    let grace = node.meter.shared.store_grace;
    let granted = tokio::spawn(async move { waiting.granted(0, &mut |_, _| ()).await });
    tokio::time::sleep(grace).await;
    assert!(!granted.is_finished());
    // It was heard of since, and nobody rang: what came was for others.
    let heard = View {
        answered_ns: node.now_ns,
        ..View::clone(&node.meter.view.load())
    };
    node.meter.publish(heard);
    tokio::time::sleep(grace + grace / 2).await;
    assert!(!granted.is_finished(), "{:?}", granted.await);
    node.now_ns += 400 * MS;
    node.serve();
    let token = granted.await.expect("no panic");
    assert!(token.is_ok(), "{token:?}");
}

/// A probe that is answered after its key has moved on tells of the past: what was spent since
/// stays spent.
#[test]
fn a_late_answer_of_a_probe_makes_no_key_forget_what_was_sent() {
    let mut node = cut(StoreLoss::LocalShare);
    let limit = Limit::new(60_000, Window::Minute).unwrap();
    let spec = Arc::new(MeterSpec::new("other", 1, vec![limit]).unwrap());
    let other = node.limits.meter(MeterKey::whole("other"), spec);
    node.serve();
    // Two calls are out, one for each key; the first one fails.
    let waiting = node.wait();
    let first = node.turn();
    assert!(matches!(other.draw(0, node.now_ns), Draw::Wait(_)));
    let second = node.turn();
    assert_eq!((first.len(), second.len()), (1, 1));
    let lost = StoreError::OutcomeUnknown("gone".into());
    node.broker.answer(first[0].id, Err(lost), node.now_ns);
    node.now_ns += 20 * MS;
    let probes = node.turn();
    let probe = probes
        .iter()
        .find(|call| call.txn.ops.is_empty())
        .expect("a probe");
    let stale = node.memory.txn(&probe.txn);
    // The other key's call is answered: the store is up, the first key gets its block and sends.
    let outcome = node.memory.txn(&second[0].txn);
    node.broker.answer(second[0].id, Ok(outcome), node.now_ns);
    node.now_ns += 100 * MS;
    node.serve();
    let token = waiting.poll_now(node.now_ns).unwrap().unwrap();
    token.send(node.now_ns).unwrap();
    drop(waiting);
    drop(node.wait());
    let sent = node.sent + 1;
    node.broker.answer(probe.id, Ok(stale), node.now_ns);
    for _ in 0..20 {
        node.now_ns += 100 * MS;
        node.serve();
    }
    let stored = node
        .memory
        .keys
        .get(&node.meter.store_key)
        .expect("a state");
    let state = codec::decode(&stored.value).unwrap();
    let used = state.limits[0].used() + state.open_left();
    assert!(used >= sent, "{sent} were sent, the store knows of {used}");
}
