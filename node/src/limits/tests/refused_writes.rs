//! A store that takes no writes and answers reads, as one whose disk is full does: what limits give
//! meanwhile, and when it takes writes again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::meter::{Algorithm, Limit, MeterSpec, StoreLoss, Window};
use proto::store::{StoreError, Txn, TxnOutcome};

use super::crowd::SetClock;
use super::judge::Judge;
use super::memory::Memory;
use super::simulation::{MS, SECOND};
use crate::limits::broker::{Broker, Call};
use crate::limits::meter::{Draw, Meter, Waiting};
use crate::limits::{Clock, Limits, MeterKey, Opener, Sent, Settings};

const LIMIT: u64 = 60;
/// Between two looks at what is due.
const STEP_NS: u64 = 5 * MS;
/// Between two requests: ten times the limit.
const EVERY_NS: u64 = 100 * MS;
const TRIP_NS: u64 = 5 * MS;
/// A hundred seconds before midnight.
const BEGIN_NS: u64 = 86_300 * SECOND;

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    Done,
    /// Refused, nothing is done.
    Full,
    /// Nobody knows: nothing is done.
    Lost,
    /// Nobody knows: it is done.
    Unanswered,
    /// Each of these, one after the other.
    InTurn,
}

/// A store and what it does with writes.
struct Disk {
    memory: Memory,
    writes: Writes,
    /// Whether a write whose compares do not hold is refused as well.
    strict: bool,
    turn: usize,
    /// Calls that only read, and others.
    reads: u64,
    asked: u64,
}

impl Disk {
    fn new(memory: Memory, writes: Writes) -> Self {
        Self {
            memory,
            writes,
            strict: true,
            turn: 0,
            reads: 0,
            asked: 0,
        }
    }

    fn txn(&mut self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        match txn.ops.is_empty() {
            true => self.reads += 1,
            false => self.asked += 1,
        }
        let mut writes = self.writes;
        if writes == Writes::InTurn {
            let kinds = [Writes::Unanswered, Writes::Full, Writes::Lost];
            writes = kinds[self.turn % kinds.len()];
            self.turn += 1;
        }
        let unknown = || Err(StoreError::OutcomeUnknown("fsync failed".into()));
        let refuse = !txn.ops.is_empty() && (self.strict || self.would_write(txn));
        match writes {
            Writes::Full if refuse => Err(StoreError::Full("no space left".into())),
            Writes::Lost if refuse => unknown(),
            Writes::Unanswered if refuse => {
                self.memory.txn(txn);
                unknown()
            }
            _ => Ok(self.memory.txn(txn)),
        }
    }

    fn would_write(&self, txn: &Txn) -> bool {
        let tried = self.memory.clone().txn(txn);
        matches!(tried, TxnOutcome::Committed(_))
    }
}

/// One node under a load far above its limit.
struct World {
    clock: Arc<SetClock>,
    limits: Arc<Limits>,
    broker: Broker,
    spec: Arc<MeterSpec>,
    meter: Arc<Meter>,
    disk: Disk,
    judge: Judge,
    answers: VecDeque<(u64, u64, Result<TxnOutcome, StoreError>)>,
    waiting: Vec<Waiting>,
    now_ns: u64,
    /// Tokens that were spent, and requests that passed without one.
    spent: u64,
    free: u64,
}

impl World {
    fn new(nodes: u32, limit: Limit, loss: StoreLoss, disk: Disk) -> Self {
        let clock = Arc::new(SetClock::default());
        let boot = 1 + disk.memory.revision.unsigned_abs();
        let mut settings = Settings::single_node(Opener { node: 1, boot });
        settings.nodes = nodes;
        let (limits, broker) = Limits::unserved(&settings, Arc::clone(&clock) as Arc<dyn Clock>);
        let spec = MeterSpec::new("", 1, vec![limit]).unwrap();
        let spec = Arc::new(spec.on_store_loss(loss));
        Self {
            meter: limits.meter(MeterKey::whole("key"), Arc::clone(&spec)),
            spec,
            limits,
            clock,
            broker,
            disk,
            judge: Judge::new(&[limit], 0),
            answers: VecDeque::new(),
            waiting: Vec::new(),
            now_ns: BEGIN_NS,
            spent: 0,
            free: 0,
        }
    }

    /// Goes on for so long; how many tokens were spent. No window has more than the limit, with
    /// what could be sent at any instant.
    fn run(&mut self, for_ns: u64) -> Result<u64, String> {
        let (until_ns, before) = (self.now_ns + for_ns, self.spent);
        while self.now_ns < until_ns {
            self.now_ns += STEP_NS;
            self.clock.0.store(self.now_ns, Ordering::Relaxed);
            if self.now_ns.is_multiple_of(EVERY_NS) {
                match self.meter.draw(0, self.now_ns) {
                    Draw::Drawn(token) => self.sent(token.send(self.now_ns).ok())?,
                    Draw::Wait(waiting) => self.waiting.push(waiting),
                    Draw::Refused(_) => {}
                }
            }
            self.talk();
            for waiting in std::mem::take(&mut self.waiting) {
                match waiting.poll_now(self.now_ns) {
                    Some(Ok(token)) => self.sent(token.send(self.now_ns).ok())?,
                    Some(Err(_)) => {}
                    None => self.waiting.push(waiting),
                }
            }
            let at_hand = self.meter.in_hand(self.now_ns);
            self.judge.check(self.now_ns, self.now_ns, at_hand)?;
        }
        Ok(self.spent - before)
    }

    /// What the store has answered by now, and what it is asked.
    fn talk(&mut self) {
        while let Some((at_ns, ..)) = self.answers.front()
            && *at_ns <= self.now_ns
            && let Some((_, id, result)) = self.answers.pop_front()
        {
            self.broker.answer(id, result, self.now_ns);
        }
        for Call { id, txn } in self.broker.turn(self.clock.moment()) {
            let result = self.disk.txn(&txn);
            self.answers.push_back((self.now_ns + TRIP_NS, id, result));
        }
    }

    /// How long it takes after the first request of a limit that was never used until the store is
    /// read, and until it has its token. The other limit is asked on.
    fn first_of(&mut self, key: &str) -> (u64, u64) {
        let (spec, began_ns) = (Arc::clone(&self.spec), self.now_ns);
        let (reads, mut read_ns) = (self.disk.reads, u64::MAX);
        let meter = self.limits.meter(MeterKey::whole(key), spec);
        let mut draw = meter.draw(0, self.now_ns);
        loop {
            let waiting = match draw {
                Draw::Drawn(_) => return (read_ns, self.now_ns - began_ns),
                Draw::Wait(waiting) => waiting,
                Draw::Refused(refusal) => panic!("{key}: {refusal:?}"),
            };
            self.run(STEP_NS).unwrap();
            if self.disk.reads > reads {
                read_ns = read_ns.min(self.now_ns - began_ns);
            }
            draw = match waiting.poll_now(self.now_ns) {
                Some(Ok(token)) => Draw::Drawn(token),
                Some(Err(refusal)) => Draw::Refused(refusal),
                None => Draw::Wait(waiting),
            };
        }
    }

    fn sent(&mut self, sent: Option<Sent>) -> Result<(), String> {
        match sent {
            None => {}
            Some(sent) if sent.spent.is_empty() => self.free += 1,
            Some(_) => {
                self.spent += 1;
                self.judge.sent(self.now_ns, self.now_ns, 1)?;
            }
        }
        Ok(())
    }
}

fn limits() -> [Limit; 3] {
    let of = |n, window, algorithm| Limit::with_algorithm(n, window, algorithm).unwrap();
    [
        of(LIMIT, Window::Minute, Algorithm::SlidingWindow),
        of(LIMIT, Window::Minute, Algorithm::TokenBucket),
        of(LIMIT * 10, Window::Day, Algorithm::FixedWindow),
    ]
}

/// The disk fills in the middle of use, and has room again minutes later.
#[test]
fn no_limit_gives_more_while_writes_fail_nor_when_they_succeed_again() {
    let kinds = [
        Writes::Full,
        Writes::Lost,
        Writes::Unanswered,
        Writes::InTurn,
    ];
    let losses = [
        StoreLoss::LocalShare,
        StoreLoss::FailClosed,
        StoreLoss::FailOpen,
    ];
    for (limit, writes, strict) in limits()
        .into_iter()
        .flat_map(|limit| kinds.map(|kind| (limit, kind)))
        .flat_map(|(limit, kind)| [(limit, kind, true), (limit, kind, false)])
    {
        for loss in losses {
            let what = format!("{:?} {writes:?} {strict} {loss:?}", limit.algorithm());
            let disk = Disk::new(Memory::new(), Writes::Done);
            let mut world = World::new(1, limit, loss, disk);
            world.disk.strict = strict;
            let run = |world: &mut World, seconds: u64| match world.run(seconds * SECOND) {
                Ok(spent) => spent,
                Err(fault) => panic!("{what}: {fault}"),
            };
            run(&mut world, 3);
            for (away_s, back_s) in [(20, 7), (150, 130)] {
                world.disk.writes = writes;
                let (spent, free) = (run(&mut world, away_s), world.free);
                world.disk.writes = Writes::Done;
                let after = run(&mut world, back_s);
                eprintln!("{what}: {spent} spent in {away_s} s, {free} free, then {after}");
                if away_s > 60 && limit.algorithm() == Algorithm::SlidingWindow {
                    let some = match loss {
                        StoreLoss::LocalShare if strict => spent >= LIMIT,
                        StoreLoss::FailOpen if strict => free >= 10 * away_s / 2,
                        _ => true,
                    };
                    assert!(some, "{what}: {spent} spent, {free} free");
                    assert!(after >= LIMIT, "{what}: {after} when it is back");
                }
            }
        }
    }
}

/// What a full store holds can be read, and is what there is to share.
#[test]
fn a_limit_that_was_never_used_before_shares_what_a_full_store_shows_to_be_free() {
    let given = |nodes: u32, loss: StoreLoss, memory: Memory| {
        let limit = Limit::new(LIMIT, Window::Minute).unwrap();
        let mut world = World::new(nodes, limit, loss, Disk::new(memory, Writes::Full));
        world.run(50 * SECOND).unwrap()
    };
    let share = |nodes: u32, memory: &Memory| given(nodes, StoreLoss::LocalShare, memory.clone());
    let unused = Memory::new();
    for (nodes, part) in [(1, LIMIT), (3, LIMIT / 3)] {
        let given = share(nodes, &unused);
        assert!((part - 1..=part).contains(&given), "{given} of {part}");
    }
    assert_eq!(given(1, StoreLoss::FailClosed, unused.clone()), 0);
    // Another node has used it up just before.
    let limit = Limit::new(LIMIT, Window::Minute).unwrap();
    let disk = Disk::new(unused, Writes::Done);
    let mut other = World::new(1, limit, StoreLoss::LocalShare, disk);
    assert!(other.run(30 * SECOND).unwrap() >= LIMIT - 1);
    let used = other.disk.memory;
    assert!(share(1, &used) <= 1, "nothing is free");
}

/// Nobody waits for more than the grace, also for limits that come one after the other.
#[test]
fn what_a_full_store_holds_is_read_once_a_second_and_at_once_for_a_new_limit() {
    let limit = Limit::new(LIMIT, Window::Minute).unwrap();
    let disk = Disk::new(Memory::new(), Writes::Full);
    let mut world = World::new(1, limit, StoreLoss::LocalShare, disk);
    world.run(20 * SECOND).unwrap();
    assert!(world.spent > 0);
    let (reads, asked) = (world.disk.reads, world.disk.asked);
    world.run(10 * SECOND).unwrap();
    let (reads, asked) = (world.disk.reads - reads, world.disk.asked - asked);
    assert!((5..=12).contains(&reads), "{reads} reads in 10 s");
    assert!((5..=12).contains(&asked), "{asked} refusals in 10 s");
    let grace_ns = 300 * MS;
    for at in 0..20 {
        let (read_ns, token_ns) = world.first_of(&format!("new-{at}"));
        // A question that is on its way is waited for.
        let at_once_ns = TRIP_NS + 2 * STEP_NS;
        assert!(read_ns <= at_once_ns, "new-{at} was read in {read_ns} ns");
        assert!(token_ns <= grace_ns + STEP_NS, "new-{at}: {token_ns} ns");
        world.run(SECOND / 10).unwrap();
    }
}

/// A store is asked whether it takes writes again although there is always a new limit to read.
#[test]
fn limits_that_come_for_ever_do_not_keep_a_store_full() {
    let limit = Limit::new(LIMIT, Window::Minute).unwrap();
    let disk = Disk::new(Memory::new(), Writes::Full);
    let mut world = World::new(1, limit, StoreLoss::LocalShare, disk);
    world.run(5 * SECOND).unwrap();
    let hail = |world: &mut World, for_ns: u64| {
        let (until_ns, asked) = (world.now_ns + for_ns, world.disk.asked);
        while world.now_ns < until_ns {
            let key = MeterKey::whole(format!("new-{}", world.now_ns));
            let spec = Arc::clone(&world.spec);
            let _ = world.limits.meter(key, spec).draw(0, world.now_ns);
            world.run(STEP_NS).unwrap();
        }
        world.disk.asked - asked
    };
    let asked = hail(&mut world, 10 * SECOND);
    assert!((5..=12).contains(&asked), "{asked} refusals in 10 s");
    world.disk.writes = Writes::Done;
    hail(&mut world, 2 * SECOND);
    assert!(!world.disk.memory.keys.is_empty(), "nothing is written");
}

/// What a key gave on credit is not forgotten when nobody asks it for a moment.
#[test]
fn a_limit_that_rests_gives_no_more_than_one_that_is_asked_on() {
    for limit in limits() {
        let disk = Disk::new(Memory::new(), Writes::Full);
        let mut world = World::new(1, limit, StoreLoss::LocalShare, disk);
        world.run(30 * SECOND).unwrap();
        for round in 0..400 {
            let until_ns = world.now_ns + 305 * MS;
            while world.now_ns < until_ns {
                world.now_ns += STEP_NS;
                world.clock.0.store(world.now_ns, Ordering::Relaxed);
                world.talk();
            }
            let ran = world.run(SECOND / 10);
            ran.unwrap_or_else(|fault| panic!("{:?} round {round}: {fault}", limit.algorithm()));
        }
    }
}
