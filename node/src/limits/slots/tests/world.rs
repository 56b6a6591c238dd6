//! The seeded simulation of slots: real slots and takers of several nodes, a store in memory, one
//! virtual clock.
//!
//! After every step, on the true clock: calls in flight, together with those that all nodes could
//! begin at that very instant, stay within the limit. Not counted is a call whose node has not
//! renewed its slots for `SLOT_TTL` while it was in flight: others have these by then, and it goes
//! on. A failure prints its seed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::meter::{LimitAnswer, StoreLoss};

use super::judge::Judge;
use super::store::{self, Answer, Link};
use crate::limits::revision_clock::RevisionClock;
use crate::limits::slots::taker::Taker;
use crate::limits::slots::waits::Waits;
use crate::limits::slots::{SLOT_TTL, SlotShared, SlotSpec, SlotToken, Slots, run};
use crate::limits::tests::faults::{Chance, Faults};
use crate::limits::tests::simulation::NoClock;
use crate::limits::{MeterKey, Opener};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;
pub const TTL_NS: u64 = SLOT_TTL.as_nanos() as u64;
/// For so long a caller waits for a store that says nothing.
const GRACE_NS: u64 = 300 * MS;

/// A wrong protocol, acted out at the seams of the right one; the judge must see each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// More is granted before the store is known to have it.
    RaisedEarly,
    /// What is given back is used until the store has it.
    LoweredLate,
    /// A write whose outcome is unknown counts as done.
    BlindOutcome,
    /// It is made again, over whatever stands there by then.
    RetriedBlindly,
    /// What others hold is taken to be as old as a clock says that is set now and then.
    WallClock,
}

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    pub limit: u64,
    /// When it becomes another one.
    pub change: Option<(u64, u64)>,
    pub nodes: u64,
    /// Mean time between calls of all nodes together.
    pub every_ns: u64,
    /// Percent of all calls that come to the first node.
    pub uneven: u64,
    /// After so long that share goes to the next node; 0: it stays with the first.
    pub moves_ns: u64,
    /// How long a call takes at most.
    pub call_ns: u64,
    pub length_ns: u64,
    /// Longest usual trip to the store; the way back takes as long.
    pub trip_ns: u64,
    /// Nodes have links, and write through each other.
    pub linked: bool,
    /// Longest cut of a node from the store.
    pub cut_max_ns: u64,
    pub faults: Faults,
    pub on_store_loss: StoreLoss,
    pub cancels_lost: bool,
    pub mutant: Option<Mutant>,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub requests: u64,
    pub taken: u64,
    pub refused: u64,
    /// Those that found no answer of the store.
    pub lost: u64,
    /// Calls that others' slots were not counted with any more.
    pub orphans: u64,
    /// Calls that were ended because their slots were lost.
    pub cancelled: u64,
    pub writes: u64,
    /// Slots in use, times nanoseconds.
    pub used_ns: u128,
}

pub struct InFlight {
    pub ends_ns: u64,
    pub orphan: bool,
    pub _token: SlotToken,
}

pub struct Node {
    pub me: Opener,
    pub shared: Arc<SlotShared>,
    pub slots: Arc<Slots>,
    pub taker: Option<Taker>,
    /// When its taker looks again, on the own clock.
    pub look_ns: u64,
    pub proofs: RevisionClock,
    /// Its own clock is the true one + this.
    pub offset_ns: u64,
    pub paused_until_ns: u64,
    pub link: Link,
    pub answers: Vec<Answer>,
    pub calls: Vec<InFlight>,
    pub waiting: Vec<(u64, Waits)>,
    /// When it hears of the limit's change.
    pub changes_ns: u64,
    pub touched: bool,
}

pub struct World {
    pub plan: Plan,
    pub chance: Chance,
    pub now_ns: u64,
    pub store: store::Shared,
    pub nodes: Vec<Node>,
    pub boots: u64,
    pub next_call_ns: u64,
    pub next_crash_ns: u64,
    pub next_pause_ns: u64,
    pub next_outage_ns: u64,
    pub next_cut_ns: u64,
    pub judge: Judge,
    pub outcome: Outcome,
}

impl World {
    pub fn new(plan: &Plan, seed: u64) -> Self {
        let mut chance = Chance::new(seed ^ 0x5107);
        let after = |chance: &mut Chance, mean_ns: u64| match mean_ns {
            0 => u64::MAX,
            mean_ns => chance.pause(mean_ns),
        };
        let mut world = Self {
            next_crash_ns: after(&mut chance, plan.faults.crash_ns),
            next_pause_ns: after(&mut chance, plan.faults.pause_ns),
            next_outage_ns: after(&mut chance, plan.faults.outage_ns),
            next_cut_ns: after(&mut chance, plan.faults.cut_ns),
            plan: plan.clone(),
            chance,
            now_ns: 0,
            store: store::Shared::default(),
            nodes: Vec::new(),
            boots: 0,
            next_call_ns: 0,
            judge: Judge::new(plan),
            outcome: Outcome::default(),
        };
        for node in 0..plan.nodes {
            let node = world.boot(node);
            world.nodes.push(node);
        }
        world
    }

    fn boot(&mut self, node: u64) -> Node {
        self.boots += 1;
        let me = Opener {
            node,
            boot: self.boots,
        };
        let grace = Duration::from_nanos(GRACE_NS);
        let shared = SlotShared::new(Arc::new(NoClock), grace, Arc::default(), Arc::default());
        let shared = Arc::new(shared);
        let changed = self.plan.change.filter(|(at_ns, _)| *at_ns <= self.now_ns);
        let spec = match changed {
            Some((_, limit)) => self.spec(2, limit),
            None => self.spec(1, self.plan.limit),
        };
        let key = MeterKey::whole("simulated");
        let heard_ns = self.chance.within(0, 2 * SECOND);
        let later = self.plan.change.filter(|(at_ns, _)| *at_ns > self.now_ns);
        Node {
            me,
            slots: Arc::new(Slots::new(key, spec, Arc::clone(&shared))),
            shared,
            taker: None,
            look_ns: u64::MAX,
            proofs: RevisionClock::default(),
            offset_ns: self.chance.within(1, 100 * SECOND),
            paused_until_ns: 0,
            link: Link::default(),
            answers: Vec::new(),
            calls: Vec::new(),
            waiting: Vec::new(),
            changes_ns: later.map_or(u64::MAX, |(at_ns, _)| at_ns + heard_ns),
            touched: false,
        }
    }

    fn spec(&self, version: u64, limit: u64) -> SlotSpec {
        SlotSpec {
            name: String::new(),
            version,
            limit,
            on_store_loss: self.plan.on_store_loss,
            cancels_lost: self.plan.cancels_lost,
            answer: LimitAnswer::default(),
        }
    }

    /// Runs to the end of the plan.
    pub fn run(mut self) -> Result<Outcome, String> {
        while self.now_ns < self.plan.length_ns {
            let next_ns = self.next_event_ns().max(self.now_ns);
            let used: u64 = self.nodes.iter().map(|node| node.slots.used()).sum();
            self.outcome.used_ns += u128::from(used) * u128::from(next_ns - self.now_ns);
            self.now_ns = next_ns;
            self.chaos();
            self.execute();
            if self.now_ns >= self.next_call_ns {
                self.call();
            }
            for at in 0..self.nodes.len() {
                if std::mem::take(&mut self.nodes[at].touched)
                    || self.nodes[at].next_event_ns() <= self.now_ns
                {
                    self.serve(at);
                }
            }
            self.judge.check(self.now_ns, &mut self.nodes)?;
        }
        self.outcome.orphans = self.judge.orphans;
        Ok(self.outcome)
    }

    fn next_event_ns(&self) -> u64 {
        let own = [
            self.next_call_ns,
            self.next_crash_ns,
            self.next_pause_ns,
            self.next_outage_ns,
            self.next_cut_ns,
            self.store.next_ns(),
            self.plan.length_ns,
        ];
        let nodes = self.nodes.iter().map(|node| node.next_event_ns());
        let nodes = nodes.map(|at_ns| at_ns.max(self.now_ns + 1));
        own.into_iter().chain(nodes).min().unwrap_or(u64::MAX)
    }

    fn chaos(&mut self) {
        let (now_ns, faults) = (self.now_ns, self.plan.faults);
        let pick = self.chance.within(0, self.nodes.len() as u64) as usize;
        if now_ns >= self.next_crash_ns {
            self.next_crash_ns = now_ns + self.chance.pause(faults.crash_ns);
            // Its calls end with it.
            self.nodes[pick] = self.boot(pick as u64);
        }
        if now_ns >= self.next_pause_ns {
            self.next_pause_ns = now_ns + self.chance.pause(faults.pause_ns);
            let paused_ns = self.chance.within(0, faults.pause_max_ns);
            let node = &mut self.nodes[pick];
            node.paused_until_ns = node.paused_until_ns.max(now_ns + paused_ns);
        }
        if now_ns >= self.next_cut_ns {
            self.next_cut_ns = now_ns + self.chance.pause(faults.cut_ns);
            let until_ns = now_ns + self.chance.within(20 * MS, self.plan.cut_max_ns);
            let link = &mut self.nodes[pick].link;
            link.cut_until_ns = until_ns;
            if self.chance.percent(50) {
                link.alone_until_ns = until_ns;
            }
        }
        if now_ns >= self.next_outage_ns {
            self.next_outage_ns = now_ns + self.chance.pause(faults.outage_ns);
            self.store.gone_until_ns = now_ns + self.chance.within(50 * MS, self.plan.cut_max_ns);
        }
    }

    fn call(&mut self) {
        self.next_call_ns = self.now_ns + self.chance.pause(self.plan.every_ns).max(1);
        let moved = self.now_ns.checked_div(self.plan.moves_ns).unwrap_or(0);
        let at = match self.chance.percent(self.plan.uneven) {
            true => (moved % self.plan.nodes) as usize,
            false => self.chance.within(0, self.nodes.len() as u64) as usize,
        };
        let node = &mut self.nodes[at];
        if node.paused_until_ns > self.now_ns {
            return;
        }
        self.outcome.requests += 1;
        node.touched = true;
        match node.slots.try_take(self.now_ns + node.offset_ns) {
            Some(token) => self.begin(at, token),
            None => {
                let own_ns = self.now_ns + node.offset_ns;
                let waits = Waits::new(&node.slots, own_ns).expect("few wait");
                node.waiting.push((self.now_ns, waits));
            }
        }
    }

    fn begin(&mut self, at: usize, token: SlotToken) {
        self.outcome.taken += 1;
        let ends_ns = self.now_ns + self.chance.within(0, self.plan.call_ns);
        self.nodes[at].calls.push(InFlight {
            ends_ns,
            orphan: false,
            _token: token,
        });
    }

    /// What a node does at this instant, as `run` does it.
    fn serve(&mut self, at: usize) {
        let now_ns = self.now_ns;
        let node = &mut self.nodes[at];
        if node.paused_until_ns > now_ns {
            return;
        }
        let own_ns = now_ns + node.offset_ns;
        if now_ns >= node.changes_ns {
            node.changes_ns = u64::MAX;
            let limit = self.plan.change.map_or(0, |(_, limit)| limit);
            let spec = self.spec(2, limit);
            self.nodes[at].slots.respec(&spec);
        }
        let node = &mut self.nodes[at];
        let ended_ns = node.slots.ends_ns.load(Ordering::Acquire);
        if self.plan.cancels_lost && own_ns >= ended_ns {
            self.outcome.cancelled += node.calls.len() as u64;
            node.calls.clear();
        }
        node.calls.retain(|call| call.ends_ns > now_ns);
        self.hear(at);
        // One more turn than needed: a waiter that is not served asks again.
        for _ in 0..2 {
            self.poll_waiting(at);
            self.look(at);
        }
    }

    fn poll_waiting(&mut self, at: usize) {
        let own_ns = self.now_ns + self.nodes[at].offset_ns;
        for (since_ns, waits) in std::mem::take(&mut self.nodes[at].waiting) {
            let outcome = match waits.look(own_ns) {
                None if self.now_ns >= since_ns + GRACE_NS => Some(waits.over()),
                outcome => outcome,
            };
            match outcome {
                None => self.nodes[at].waiting.push((since_ns, waits)),
                Some(Ok(token)) => {
                    drop(waits);
                    self.begin(at, token);
                }
                Some(Err(refusal)) => {
                    self.outcome.refused += 1;
                    self.outcome.lost += u64::from(refusal.lost);
                }
            }
        }
    }

    /// Lets the taker look where that is due or asked, and sends what it writes.
    fn look(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let own_ns = self.now_ns + node.offset_ns;
        for slots in node.shared.take_asks() {
            node.taker
                .get_or_insert_with(|| Taker::new(slots, node.me, own_ns));
            // Callers may come before the taker has its turn.
            node.look_ns = node.look_ns.min(own_ns + self.chance.within(0, 2 * MS));
        }
        if own_ns < node.look_ns {
            return;
        }
        let Some(taker) = &mut node.taker else {
            node.look_ns = u64::MAX;
            return;
        };
        let granted = node.slots.granted();
        let write = taker.look(&node.proofs, (own_ns, own_ns), false);
        node.reschedule();
        let Some(write) = write else { return };
        let next = write.next.as_ref().map_or(0, |next| next.of(node.me));
        match self.plan.mutant {
            Some(Mutant::RaisedEarly) if next > granted => drop(node.slots.grant(next)),
            Some(Mutant::LoweredLate) if next < granted => drop(node.slots.grant(granted)),
            _ => {}
        }
        self.outcome.writes += 1;
        let txn = run::txn(&node.slots.store_key, write).expect("a small state");
        self.send(at, txn);
    }
}

impl Node {
    pub fn reschedule(&mut self) {
        self.look_ns = self.taker.as_ref().map_or(u64::MAX, Taker::look_ns);
        if self.taker.as_ref().is_some_and(Taker::is_done) {
            self.taker = None;
        }
    }

    fn next_event_ns(&self) -> u64 {
        let look_ns = self.look_ns.saturating_sub(self.offset_ns);
        let calls = self.calls.iter().map(|call| call.ends_ns);
        let answers = self.answers.iter().map(|answer| answer.at_ns);
        let waiting = self.waiting.iter().map(|(since_ns, _)| since_ns + GRACE_NS);
        let own = [look_ns, self.changes_ns];
        let next = own.into_iter().chain(calls).chain(answers).chain(waiting);
        let next_ns = next.min().unwrap_or(u64::MAX);
        next_ns.max(self.paused_until_ns)
    }
}
