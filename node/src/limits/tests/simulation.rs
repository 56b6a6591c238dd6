//! The seeded simulation: real meters, brokers and owners, a store in memory, one virtual clock.
//!
//! After every step, on the true clock: in every interval of a window's length what was sent,
//! together with what all nodes could send at that very instant, stays within the limit. The
//! second half is conservation: a token that exists twice is seen before it is spent. A failure
//! prints its seed.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use proto::meter::{Estimate, Limit, MeterSpec, StoreLoss};
use proto::store::{Compare, Op, Revision, StoreError, Txn, TxnOutcome};

use super::faults::{Chance, Faults, Mutant, PAUSE_NS};
use super::judge::Judge;
use super::memory::Memory;
use super::network::Network;
use crate::limits::broker::{Broker, Call};
use crate::limits::exchange::{Reply, Word};
use crate::limits::meter::Meter;
use crate::limits::sweep::is_over;
use crate::limits::wall_clocks::Witness;
use crate::limits::{
    Clock, ClockSample, DrawAll, Limits, MeterKey, MeterSet, Moment, Opener, PeerEvent, Reserved,
    Sent, Settings, Tokens, WaitingAll, codec,
};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the meter that counts every request.
    pub limits: Vec<Limit>,
    /// Of further meters: each request is counted by one of these too, whichever chance says.
    pub beside: Vec<Vec<Limit>>,
    pub nodes: u64,
    /// Mean time between requests of all nodes together.
    pub every_ns: u64,
    pub length_ns: u64,
    /// Longest trip to the store; the way back takes as long.
    pub trip_ns: u64,
    /// Longest usual trip to a peer; 0: nodes have no links.
    pub peer_trip_ns: u64,
    /// Percent of all requests that come to the first node.
    pub uneven: u64,
    /// After so long that share goes to the next node; 0: it stays with the first.
    pub moves_ns: u64,
    /// Requests come one by one in always the same time, each to the next of these nodes; empty:
    /// by chance.
    pub spread: &'static [usize],
    /// As callers of real processes call: each calls one of these nodes again and again, in always
    /// the same time, and has one request on its way at most; all of them together come every
    /// `every_ns`. Empty: by `spread` or by chance.
    pub callers: &'static [usize],
    /// Longest usual time from draw to send.
    pub connect_ns: u64,
    /// Longest of one request in ten, where nodes stand still now and then.
    pub slow_ns: u64,
    /// Wall clock at the beginning.
    pub unix_ns: u64,
    pub faults: Faults,
    pub mutant: Option<Mutant>,
    pub on_store_loss: StoreLoss,
    /// What requests set aside and cost; none: each counts one.
    pub values: Option<Values>,
    /// Nodes compare their wall clocks.
    pub clocks: Option<Clocks>,
    /// The store is put back to what it held at the first instant, at the second.
    pub restored: Option<(u64, u64)>,
    /// When it is wiped.
    pub wiped_ns: Option<u64>,
    /// How often keys that nobody needs any more are deleted; 0 for never.
    pub sweep_ns: u64,
}

/// Wall clocks of nodes.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// So many nodes have a wrong one.
    pub wrong: u64,
    /// How far these are ahead; negative: behind.
    pub off_ns: i64,
    /// Mean time until one of these is set right, or wrong again; 0 for never.
    pub set_ns: u64,
    /// A control plane, whose clock is right, tells every node what it shows.
    pub control: bool,
}

/// Answers whose cost is known when they have ended.
#[derive(Clone, Copy, Debug)]
pub struct Values {
    /// What each sets aside.
    pub estimate: u64,
    /// What it costs, in percent of that: from and to.
    pub cost: (u64, u64),
    /// How long it takes at most.
    pub call_ns: u64,
}

impl Plan {
    pub fn new(limits: Vec<Limit>, every_ns: u64, length_ns: u64) -> Self {
        Self {
            limits,
            beside: Vec::new(),
            nodes: 1,
            every_ns,
            length_ns,
            trip_ns: 4 * MS,
            peer_trip_ns: 0,
            uneven: 0,
            moves_ns: 0,
            spread: &[],
            callers: &[],
            connect_ns: 5 * MS,
            slow_ns: 400 * MS,
            unix_ns: 1_767_225_600 * SECOND,
            faults: Faults::default(),
            mutant: None,
            on_store_loss: StoreLoss::FailClosed,
            values: None,
            clocks: None,
            restored: None,
            wiped_ns: None,
            sweep_ns: 0,
        }
    }
}

#[derive(Debug, Default)]
pub struct Outcome {
    /// What all answers have cost, and until when.
    pub cost: u64,
    /// Answers that were corrected.
    pub corrected: u64,
    /// True instants of all sends.
    pub sends: Vec<u64>,
    /// How many of them each of the further meters has counted.
    pub beside: Vec<u64>,
    pub requests: u64,
    pub refused: u64,
    pub writes: u64,
    /// Keys that were written in them.
    pub key_writes: u64,
    pub granted_after_wait: u64,
    /// Requests that left since the store was lost again and again.
    pub given_up: u64,
    /// How long a request has waited at most, for a token or a refusal.
    pub longest_wait_ns: u64,
    pub expired: u64,
    pub batches: u64,
    pub asks: u64,
    pub grants: u64,
    /// Keys that were deleted because nobody needed them any more.
    pub swept: u64,
}

/// What is not simulated reads it (the brokers' own error path, slots that nobody takes).
pub struct NoClock;

impl Clock for NoClock {
    fn boot_ns(&self) -> u64 {
        0
    }
    fn moment(&self) -> Moment {
        Moment::default()
    }
}

struct Drawn {
    at_ns: u64,
    caller: Option<Busy>,
    /// Of which set of meters.
    set: usize,
    /// `None`: a token that a mutant made up or marked already, good until `until_ns`.
    tokens: Option<Tokens>,
    until_ns: u64,
}

/// A request that waits for one of its meters.
struct Held {
    since_ns: u64,
    caller: Option<Busy>,
    set: usize,
    /// It has its connection: it is sent at once.
    connected: bool,
    waiting: Box<WaitingAll>,
}

/// One of the callers that have one request on its way at most.
#[derive(Debug, Default)]
struct Caller {
    node: usize,
    due_ns: u64,
    /// How many requests of it are on their way.
    busy: Rc<Cell<u32>>,
}

/// A request of such a caller, until it is dropped.
#[derive(Debug)]
struct Busy(Rc<Cell<u32>>);

impl Busy {
    fn begins(busy: &Rc<Cell<u32>>) -> Self {
        busy.set(busy.get() + 1);
        Self(Rc::clone(busy))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A request whose answer ends at an instant.
struct Awaited {
    at_ns: u64,
    number: u64,
    actual: u64,
    reserved: Reserved,
}

struct Node {
    limits: Arc<Limits>,
    broker: Broker,
    /// The meter of every request, and then the others.
    meters: Vec<Arc<Meter>>,
    /// Those that one request draws from.
    sets: Vec<MeterSet>,
    me: Opener,
    /// Its boot clock is the true one + this.
    offset_ns: u64,
    /// Its wall clock is the true one + this.
    skew_ns: i64,
    paused_until_ns: u64,
    /// When it is told how many nodes there are.
    counted_ns: u64,
    /// A request came.
    touched: bool,
    drawn: Vec<Drawn>,
    /// Answers that are awaited.
    calls: Vec<Awaited>,
    waiting: Vec<Held>,
    answers: Vec<(u64, u64, Result<TxnOutcome, StoreError>)>,
    /// Events of its links, in the order of arrival.
    inbox: Vec<PeerEvent>,
    store_cut_until_ns: u64,
}

struct Execution {
    at_ns: u64,
    txn: Txn,
    node: u64,
    boot: u64,
    call: u64,
    /// When the caller hears, and whether it hears the truth; `None`: it gave up before.
    answer: Option<(u64, bool)>,
}

pub struct World {
    plan: Plan,
    chance: Chance,
    now_ns: u64,
    memory: Memory,
    /// By meter.
    specs: Vec<Arc<MeterSpec>>,
    nodes: Vec<Node>,
    executions: Vec<Execution>,
    store_gone_until_ns: u64,
    next_request_ns: u64,
    callers: Vec<Caller>,
    next_crash_ns: u64,
    next_pause_ns: u64,
    next_outage_ns: u64,
    next_cut_ns: u64,
    next_clocks_ns: u64,
    next_set_ns: u64,
    /// When the store is saved or put back next.
    next_store_ns: u64,
    saved: Option<Memory>,
    next_wipe_ns: u64,
    next_sweep_ns: u64,
    /// Since when the sweeper has seen which revision of a key.
    unmoved: HashMap<String, (Revision, u64)>,
    network: Network,
    boots: u64,
    /// `left` of a block as its opener last heard it (for the mutant).
    heard: HashMap<(Opener, u64), u64>,
    /// By meter.
    judges: Vec<Judge>,
    outcome: Outcome,
}

/// What a meter counts by.
fn store_key(at: usize) -> String {
    match at {
        0 => "simulated".to_owned(),
        at => format!("simulated-{at}"),
    }
}

/// What requests draw from: the first meter, and one of the others where there are any.
fn sets(meters: &[Arc<Meter>]) -> Vec<MeterSet> {
    let (all, others) = meters.split_at(1);
    let pair = |other: &Arc<Meter>| [all, &[Arc::clone(other)]].concat();
    match others.is_empty() {
        true => vec![MeterSet::new(all).unwrap()],
        false => (others
            .iter()
            .map(|other| MeterSet::new(&pair(other)).unwrap()))
        .collect(),
    }
}

/// The callers of a plan, who begin one after the other.
fn callers(plan: &Plan) -> Vec<Caller> {
    let places = plan.callers.iter().enumerate();
    let caller = |(at, node): (usize, &usize)| Caller {
        node: *node,
        due_ns: at as u64 * plan.every_ns,
        ..Caller::default()
    };
    places.map(caller).collect()
}

impl World {
    pub fn new(plan: &Plan, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let spec = |limits: &Vec<Limit>, estimate: Option<Estimate>| {
            let spec = MeterSpec::new("", 1, limits.clone()).unwrap();
            Arc::new(spec.on_store_loss(plan.on_store_loss).estimating(estimate))
        };
        let estimate = plan.values.map(|values| Estimate::Given(values.estimate));
        let mut specs = vec![spec(&plan.limits, estimate)];
        specs.extend(plan.beside.iter().map(|limits| spec(limits, None)));
        let edge_ns = if plan.nodes > 1 { 250 * MS } else { 0 };
        let judges = specs.iter().map(|spec| Judge::new(spec.limits(), edge_ns));
        let after = |chance: &mut Chance, mean_ns: u64| match mean_ns {
            0 => u64::MAX,
            mean_ns => chance.pause(mean_ns),
        };
        let mut world = Self {
            next_crash_ns: after(&mut chance, plan.faults.crash_ns),
            next_pause_ns: after(&mut chance, plan.faults.pause_ns),
            next_outage_ns: after(&mut chance, plan.faults.outage_ns).max(plan.faults.from_ns),
            next_cut_ns: after(&mut chance, plan.faults.cut_ns),
            next_clocks_ns: plan.clocks.map_or(u64::MAX, |_| 0),
            next_set_ns: after(&mut chance, plan.clocks.map_or(0, |clocks| clocks.set_ns)),
            next_store_ns: plan.restored.map_or(u64::MAX, |(saved_ns, _)| saved_ns),
            saved: None,
            next_wipe_ns: plan.wiped_ns.unwrap_or(u64::MAX),
            next_sweep_ns: if plan.sweep_ns > 0 { 0 } else { u64::MAX },
            unmoved: HashMap::new(),
            network: Network::default(),
            plan: plan.clone(),
            chance,
            now_ns: 0,
            memory: Memory::new(),
            judges: judges.collect(),
            specs,
            nodes: Vec::new(),
            executions: Vec::new(),
            store_gone_until_ns: 0,
            next_request_ns: if plan.callers.is_empty() { 0 } else { u64::MAX },
            callers: callers(plan),
            boots: 0,
            heard: HashMap::new(),
            outcome: Outcome {
                beside: vec![0; plan.beside.len()],
                ..Outcome::default()
            },
        };
        for node in 0..plan.nodes {
            let node = world.boot(node);
            world.nodes.push(node);
        }
        for at in 0..world.nodes.len() {
            world.link(at);
        }
        world
    }

    fn boot(&mut self, node: u64) -> Node {
        self.boots += 1;
        let same = self.plan.mutant == Some(Mutant::OtherIncarnationSettles);
        let me = Opener {
            node,
            boot: if same { 0 } else { self.boots },
        };
        let mut settings = Settings::single_node(me);
        settings.nodes = self.plan.nodes as u32;
        if self.plan.nodes > 1 {
            settings.max_skew = Duration::from_millis(250);
            settings.clocks_compared = self.compares_clocks();
        }
        // By the list of members, which takes trips to the store.
        let counted_ns = match settings.clocks_compared {
            true => self.now_ns + self.chance.within(0, 8 * self.plan.trip_ns),
            false => u64::MAX,
        };
        let (limits, broker) = Limits::unserved(&settings, Arc::new(NoClock));
        let meter = |(at, spec): (usize, &Arc<MeterSpec>)| {
            limits.meter(MeterKey::whole(store_key(at)), Arc::clone(spec))
        };
        let meters: Vec<_> = self.specs.iter().enumerate().map(meter).collect();
        let mut skew = if self.plan.nodes > 1 {
            self.chance.within(0, 120 * MS) as i64
        } else {
            0
        };
        if let Some(clocks) = self.plan.clocks.filter(|clocks| node < clocks.wrong) {
            skew += clocks.off_ns;
        }
        let offset_ns = self.chance.within(1, 100 * SECOND);
        self.tell_control_clock(&limits, offset_ns);
        Node {
            limits,
            broker,
            sets: sets(&meters),
            meters,
            me,
            offset_ns,
            skew_ns: skew,
            paused_until_ns: 0,
            counted_ns,
            touched: false,
            drawn: Vec::new(),
            calls: Vec::new(),
            waiting: Vec::new(),
            answers: Vec::new(),
            inbox: Vec::new(),
            store_cut_until_ns: 0,
        }
    }

    /// Links a node that has started with all others.
    fn link(&mut self, at: usize) {
        if self.plan.peer_trip_ns == 0 {
            return;
        }
        let me = self.nodes[at].me;
        let others: Vec<Opener> = self.nodes.iter().map(|n| n.me).collect();
        for other in others.into_iter().filter(|other| other.node != me.node) {
            let at_ns = self.now_ns + self.plan.peer_trip_ns;
            self.network.tell(at_ns, me, PeerEvent::Up(other));
            self.network.tell(at_ns, other, PeerEvent::Up(me));
        }
    }

    /// Runs to the end of the plan.
    pub fn run(mut self) -> Result<Outcome, String> {
        while self.now_ns < self.plan.length_ns {
            self.now_ns = self.next_event_ns().max(self.now_ns);
            self.chaos();
            self.restore();
            self.sweep();
            self.compare_clocks();
            self.execute();
            self.deliver();
            if self.now_ns >= self.next_request_ns {
                let at = self.next_caller();
                self.request(at, None);
            }
            self.call();
            for at in 0..self.nodes.len() {
                if std::mem::take(&mut self.nodes[at].touched)
                    || self.nodes[at].next_event_ns() <= self.now_ns
                {
                    self.serve(at)?;
                }
            }
            for (at, judge) in self.judges.iter_mut().enumerate() {
                let sendable = self.nodes.iter().map(|node| node.sendable(at, self.now_ns));
                let unix_ns = self.plan.unix_ns + self.now_ns;
                judge.check(self.now_ns, unix_ns, sendable.sum())?;
            }
        }
        Ok(self.outcome)
    }

    fn next_event_ns(&self) -> u64 {
        let own = [
            self.next_request_ns,
            self.next_crash_ns,
            self.next_pause_ns,
            self.next_outage_ns,
            self.next_cut_ns,
            self.next_clocks_ns,
            self.next_set_ns,
            self.next_store_ns,
            self.next_wipe_ns,
            self.next_sweep_ns,
            self.network.next_ns(),
            self.plan.length_ns,
        ];
        let idle = self.callers.iter().filter(|caller| caller.busy.get() == 0);
        let calls = idle.map(|caller| caller.due_ns);
        let executions = self.executions.iter().map(|execution| execution.at_ns);
        let nodes = self
            .nodes
            .iter()
            .map(|node| node.next_event_ns().max(self.now_ns + 1));
        own.into_iter()
            .chain(executions)
            .chain(calls)
            .chain(nodes)
            .min()
            .unwrap_or(self.plan.length_ns)
    }

    fn chaos(&mut self) {
        let now_ns = self.now_ns;
        let pick = self.chance.within(0, self.nodes.len() as u64) as usize;
        if now_ns >= self.next_crash_ns {
            self.next_crash_ns = now_ns + self.chance.pause(self.plan.faults.crash_ns);
            let before = self.nodes[pick].me;
            self.nodes[pick] = self.boot(pick as u64);
            if self.plan.peer_trip_ns > 0 {
                let others: Vec<Opener> = self.nodes.iter().map(|n| n.me).collect();
                for other in others {
                    self.network.tell(now_ns, other, PeerEvent::Down(before));
                }
                self.link(pick);
            }
        }
        if now_ns >= self.next_cut_ns {
            self.next_cut_ns = now_ns + self.chance.pause(self.plan.faults.cut_ns);
            let until_ns = now_ns + self.chance.within(20 * MS, 900 * MS);
            let other = self.chance.within(0, self.nodes.len() as u64);
            match other == pick as u64 {
                true => self.nodes[pick].store_cut_until_ns = until_ns,
                false => self.network.cut(pick as u64, other, until_ns),
            }
        }
        if now_ns >= self.next_pause_ns {
            self.next_pause_ns = now_ns + self.chance.pause(self.plan.faults.pause_ns);
            let longest_ns = match self.plan.faults.pause_max_ns {
                0 => PAUSE_NS,
                longest_ns => longest_ns,
            };
            let paused_ns = now_ns + self.chance.within(0, longest_ns);
            if self.plan.mutant == Some(Mutant::WallClock) {
                self.nodes[pick].offset_ns += self.chance.within(0, 900 * MS);
            }
            // Not one pause after another: a request that waits must be served in between.
            let node = &mut self.nodes[pick];
            if node.paused_until_ns + 300 * MS < now_ns {
                node.paused_until_ns = paused_ns;
                // What is beyond a usual pause is no wait for a token.
                let beyond_ns = (paused_ns - now_ns).saturating_sub(PAUSE_NS);
                node.waiting
                    .iter_mut()
                    .for_each(|held| held.since_ns += beyond_ns);
            }
        }
        if now_ns >= self.next_outage_ns {
            self.next_outage_ns = now_ns + self.chance.pause(self.plan.faults.outage_ns);
            self.store_gone_until_ns = now_ns + self.chance.within(50 * MS, 1_500 * MS);
        }
    }

    /// Saves the store, and later puts back what was saved; and wipes it.
    fn restore(&mut self) {
        if self.now_ns >= self.next_wipe_ns {
            self.next_wipe_ns = u64::MAX;
            self.memory = Memory::new();
        }
        let Some((_, back_ns)) = self.plan.restored else {
            return;
        };
        if self.now_ns >= self.next_store_ns {
            self.next_store_ns = match self.saved.take() {
                None => {
                    self.saved = Some(self.memory.clone());
                    back_ns
                }
                Some(saved) => {
                    self.memory = saved;
                    u64::MAX
                }
            };
        }
    }

    /// Deletes the keys that have not moved for as long as what they hold counts.
    fn sweep(&mut self) {
        let now_ns = self.now_ns;
        if now_ns < self.next_sweep_ns {
            return;
        }
        self.next_sweep_ns = now_ns + self.plan.sweep_ns;
        let keys: Vec<_> = self.memory.keys.values().cloned().collect();
        for pair in keys {
            let seen = self.unmoved.entry(pair.key.clone());
            let (revision, since_ns) = seen.or_insert((pair.mod_revision, now_ns));
            if *revision != pair.mod_revision {
                (*revision, *since_ns) = (pair.mod_revision, now_ns);
            }
            let state = codec::decode(&pair.value).unwrap();
            let unmoved_ns = now_ns - *since_ns;
            let over = match self.plan.mutant {
                Some(Mutant::SweptEarly) => unmoved_ns >= 100 * MS,
                _ => is_over(&state, unmoved_ns),
            };
            if over {
                self.memory.txn(&Txn {
                    compares: vec![Compare::ModRevision(pair.key.clone(), pair.mod_revision)],
                    ops: vec![Op::Delete(pair.key)],
                    or_read: Vec::new(),
                });
                self.outcome.swept += 1;
            }
        }
    }

    fn compares_clocks(&self) -> bool {
        self.plan.clocks.is_some() && self.plan.mutant != Some(Mutant::OwnClock)
    }

    /// A node that starts, and each once a second, hears the clock of a control plane.
    fn tell_control_clock(&self, limits: &Limits, offset_ns: u64) {
        if self.compares_clocks() && self.plan.clocks.is_some_and(|clocks| clocks.control) {
            let sample = ClockSample {
                asked_ns: (self.now_ns + offset_ns).saturating_sub(MS),
                heard_ns: self.now_ns + offset_ns,
                unix_ns: self.plan.unix_ns + self.now_ns,
            };
            let control = Witness::Control("c-1".into());
            limits.shared.heard_clock(control, sample);
        }
    }

    /// Once a second every node asks all others for their wall clocks; now and then one is set.
    fn compare_clocks(&mut self) {
        let now_ns = self.now_ns;
        if let (true, Some(clocks)) = (now_ns >= self.next_set_ns, self.plan.clocks) {
            self.next_set_ns = now_ns + self.chance.pause(clocks.set_ns);
            let at = self.chance.within(0, clocks.wrong) as usize;
            let wrong = self.nodes[at].skew_ns.unsigned_abs() > SECOND;
            self.nodes[at].skew_ns = if wrong { 0 } else { clocks.off_ns };
        }
        if now_ns < self.next_clocks_ns {
            return;
        }
        self.next_clocks_ns = now_ns + SECOND;
        if !self.compares_clocks() {
            return;
        }
        for node in &self.nodes {
            self.tell_control_clock(&node.limits, node.offset_ns);
        }
        let all: Vec<Opener> = self.nodes.iter().map(|node| node.me).collect();
        for (from, to) in all
            .iter()
            .flat_map(|from| all.iter().map(move |to| (from, to)))
        {
            let (asking, asked) = (from.node as usize, to.node as usize);
            let when = (now_ns, self.plan.peer_trip_ns, &self.plan.faults);
            let there = self.network.trip((*from, *to), when, &mut self.chance);
            let back = self.network.trip((*to, *from), when, &mut self.chance);
            let (false, Some(there), Some(back)) = (asking == asked, there, back) else {
                continue;
            };
            let read_ns = (now_ns + there).max(self.nodes[asked].paused_until_ns);
            let unix_ns = self.plan.unix_ns + read_ns;
            let offset_ns = self.nodes[asking].offset_ns;
            let sample = ClockSample {
                asked_ns: now_ns + offset_ns,
                heard_ns: read_ns + back + offset_ns,
                unix_ns: unix_ns.saturating_add_signed(self.nodes[asked].skew_ns),
            };
            let told = PeerEvent::Clock(*to, sample);
            self.network.tell(read_ns + back, *from, told);
        }
    }

    /// Carries out the calls that have reached the store.
    fn execute(&mut self) {
        self.executions.sort_by_key(|execution| execution.at_ns);
        while self
            .executions
            .first()
            .is_some_and(|first| first.at_ns <= self.now_ns)
        {
            let mut execution = self.executions.remove(0);
            self.mutate(&mut execution);
            let outcome = self.memory.txn(&execution.txn);
            let Some((at_ns, heard)) = execution.answer else {
                continue;
            };
            let result = if heard {
                Ok(outcome)
            } else {
                Err(StoreError::OutcomeUnknown("answer lost".into()))
            };
            self.answer(&execution, at_ns, result);
        }
    }

    /// Hands over what has come on the links. What is for an earlier start of a node is lost.
    fn deliver(&mut self) {
        for mut message in self.network.arrived(self.now_ns) {
            let node = self.nodes.iter_mut().find(|node| node.me == message.to);
            let Some(node) = node else { continue };
            if self.plan.mutant == Some(Mutant::LifeFromGrant) {
                lengthen(&mut message.event, 2 * self.plan.peer_trip_ns + 150 * MS);
            }
            if self.plan.mutant == Some(Mutant::SpendsForgotten) {
                forget_spends(&mut message.event);
            }
            if self.plan.mutant == Some(Mutant::CorrectionTwice) {
                renumber(&mut message.event, self.now_ns);
            }
            if self.plan.mutant == Some(Mutant::CorrectionYoung) {
                make_young(&mut message.event);
            }
            node.inbox.push(message.event);
            node.touched = true;
        }
    }

    fn answer(&mut self, call: &Execution, at_ns: u64, result: Result<TxnOutcome, StoreError>) {
        let is_unknown = matches!(result, Err(StoreError::OutcomeUnknown(_)));
        if self.plan.mutant == Some(Mutant::RetriedBlindly)
            && is_unknown
            && !call.txn.ops.is_empty()
        {
            let compares = Vec::new();
            let again = Execution {
                at_ns: at_ns + MS,
                txn: Txn {
                    compares,
                    ..call.txn.clone()
                },
                answer: Some((at_ns + 2 * MS, true)),
                ..*call
            };
            self.executions.push(again);
            return;
        }
        let blind = self.plan.mutant == Some(Mutant::BlindOutcome);
        let result = match result {
            Err(StoreError::OutcomeUnknown(_)) if blind && !call.txn.ops.is_empty() => {
                Ok(TxnOutcome::Committed(Revision(self.memory.revision)))
            }
            result => result,
        };
        if let (Ok(TxnOutcome::Committed(_)), Some(state)) = (&result, written(&call.txn)) {
            for block in &state.open {
                self.heard.insert((block.opener, block.id), block.left);
            }
        }
        let node = self
            .nodes
            .iter_mut()
            .find(|n| (n.me.node, n.me.boot) == (call.node, call.boot));
        if let Some(node) = node {
            node.answers.push((at_ns, call.call, result));
        }
    }

    /// Rewrites a settle as the delta from what its opener last heard.
    fn mutate(&mut self, execution: &mut Execution) {
        if self.plan.mutant != Some(Mutant::SettleByDelta) {
            return;
        }
        let stored = self
            .memory
            .keys
            .values()
            .next()
            .and_then(|kv| codec::decode(&kv.value).ok());
        let (Some(stored), Some(mut next)) = (stored, written(&execution.txn)) else {
            return;
        };
        for block in &mut next.open {
            let id = (block.opener, block.id);
            let before = stored.open.iter().find(|stored| stored.is(id.0, id.1));
            let (Some(before), Some(heard)) = (before, self.heard.get(&id)) else {
                continue;
            };
            let delta = heard.saturating_sub(block.left);
            block.left = before.left.saturating_sub(delta);
        }
        if let Some(Op::Put { value, .. }) = execution.txn.ops.first_mut() {
            *value = codec::encode(&next).unwrap().into();
        }
    }

    /// Callers that are due and have their answer call again.
    fn call(&mut self) {
        let now_ns = self.now_ns;
        let period_ns = self.plan.every_ns * self.callers.len() as u64;
        for at in 0..self.callers.len() {
            let caller = &mut self.callers[at];
            if caller.busy.get() == 0 && caller.due_ns <= now_ns {
                caller.due_ns = (caller.due_ns + period_ns).max(now_ns);
                let (node, busy) = (caller.node, Busy::begins(&caller.busy));
                self.request(node, Some(busy));
            }
        }
    }

    fn request(&mut self, at: usize, caller: Option<Busy>) {
        if self.nodes[at].paused_until_ns > self.now_ns {
            return;
        }
        self.outcome.requests += 1;
        self.nodes[at].touched = true;
        let now_ns = self.now_ns + self.nodes[at].offset_ns;
        let set = match self.nodes[at].sets.len() {
            1 => 0,
            sets => self.chance.within(0, sets as u64) as usize,
        };
        let drawn = self.nodes[at].sets[set].draw(now_ns);
        match drawn {
            DrawAll::Drawn(tokens) => self.drew(at, set, caller, tokens),
            DrawAll::Wait(waiting) => self.hold((at, caller), set, false, waiting),
            DrawAll::Refused(refusal) => {
                assert!(refusal.retry_after > Duration::ZERO);
                self.outcome.refused += 1;
            }
        }
    }

    /// Which node is called now, and sets when the next one is.
    fn next_caller(&mut self) -> usize {
        let (now_ns, every_ns, spread) = (self.now_ns, self.plan.every_ns, self.plan.spread);
        if !spread.is_empty() {
            self.next_request_ns = now_ns + every_ns;
            return spread[(now_ns / every_ns) as usize % spread.len()];
        }
        self.next_request_ns = now_ns + self.chance.pause(every_ns).max(1);
        let moved = now_ns.checked_div(self.plan.moves_ns).unwrap_or(0);
        match self.chance.percent(self.plan.uneven) {
            true => (moved % self.plan.nodes) as usize,
            false => self.chance.within(0, self.nodes.len() as u64) as usize,
        }
    }

    fn hold(
        &mut self,
        (at, caller): (usize, Option<Busy>),
        set: usize,
        connected: bool,
        waiting: Box<WaitingAll>,
    ) {
        self.nodes[at].waiting.push(Held {
            since_ns: self.now_ns,
            caller,
            set,
            connected,
            waiting,
        });
    }

    fn drew(&mut self, at: usize, set: usize, caller: Option<Busy>, tokens: Tokens) {
        let usual_ns = self.chance.within(0, self.plan.connect_ns.max(1));
        let slow = self.plan.faults.pause_ns > 0 && self.chance.percent(10);
        let delay_ns = if slow {
            self.chance.within(0, self.plan.slow_ns)
        } else {
            usual_ns
        };
        let node = &mut self.nodes[at];
        if self.plan.faults.pause_ns > 0 && self.chance.percent(5) {
            return; // the request ended early: the tokens are dropped and go back
        }
        let at_ns = self.now_ns + delay_ns;
        if self.plan.mutant == Some(Mutant::ChargeAtDraw) {
            if tokens.send(self.now_ns + node.offset_ns).is_ok() {
                // It is spent: nothing asks whether its part still lasts when it is sent.
                let until_ns = u64::MAX;
                node.drawn.push(Drawn {
                    at_ns,
                    caller,
                    set,
                    tokens: None,
                    until_ns,
                });
            }
            return;
        }
        node.drawn.push(Drawn {
            at_ns,
            caller,
            set,
            tokens: Some(tokens),
            until_ns: 0,
        });
    }

    /// Lets a node do what is due.
    fn serve(&mut self, at: usize) -> Result<(), String> {
        if self.nodes[at].paused_until_ns > self.now_ns {
            return Ok(());
        }
        self.send_due(at)?;
        self.settle_due(at);
        let now_ns = self.now_ns;
        let unix_ns = self.plan.unix_ns + now_ns;
        let node = &mut self.nodes[at];
        let moment = Moment {
            boot_ns: now_ns + node.offset_ns,
            unix_ns: unix_ns.saturating_add_signed(node.skew_ns),
        };
        if now_ns >= node.counted_ns {
            node.limits.set_nodes(self.plan.nodes);
            node.counted_ns = u64::MAX;
        }
        node.answers.sort_by_key(|(at_ns, call, _)| (*at_ns, *call));
        while node
            .answers
            .first()
            .is_some_and(|(at_ns, ..)| *at_ns <= now_ns)
        {
            let (_, call, result) = node.answers.remove(0);
            node.broker.answer(call, result, moment.boot_ns);
        }
        for event in std::mem::take(&mut node.inbox) {
            match event {
                PeerEvent::Up(peer) => node.broker.peer_up(peer, moment.boot_ns),
                PeerEvent::Down(peer) => node.broker.peer_down(peer, moment.boot_ns),
                PeerEvent::Clock(peer, sample) => node.broker.peer_clock(peer, sample),
                PeerEvent::Said(peer, batch) => {
                    node.broker.peer_said(peer, batch, moment.boot_ns);
                }
            }
        }
        // One more turn than needed: a waiter that is not served asks again.
        for _ in 0..2 {
            let before = self.rests(at);
            let calls = self.nodes[at].broker.turn(moment);
            self.phantoms(at, &before);
            for call in calls {
                self.send_call(at, call);
            }
            self.send_batches(at);
            self.poll_waiting(at, moment.boot_ns)?;
        }
        Ok(())
    }

    fn send_due(&mut self, at: usize) -> Result<(), String> {
        let now_ns = self.now_ns;
        let due = (self.nodes[at].drawn).extract_if(.., |drawn| drawn.at_ns <= now_ns);
        for drawn in due.collect::<Vec<_>>() {
            match drawn.tokens {
                Some(tokens) => self.send((at, drawn.caller), drawn.set, tokens)?,
                None if now_ns < drawn.until_ns => self.sent(at, drawn.set, Sent::default())?,
                None => self.outcome.expired += 1,
            }
        }
        Ok(())
    }

    /// What the upstream's gate does: tokens that are over are drawn again, before those of
    /// requests that have not had their turn.
    fn send(
        &mut self,
        (at, caller): (usize, Option<Busy>),
        set: usize,
        tokens: Tokens,
    ) -> Result<(), String> {
        let own_ns = self.now_ns + self.nodes[at].offset_ns;
        if let Ok(sent) = tokens.send(own_ns) {
            return self.sent(at, set, sent);
        }
        self.outcome.expired += 1;
        let drawn = self.nodes[at].sets[set].draw_again(own_ns);
        match drawn {
            DrawAll::Drawn(tokens) => match tokens.send(own_ns) {
                Ok(sent) => self.sent(at, set, sent)?,
                Err(_) => self.outcome.refused += 1,
            },
            DrawAll::Wait(waiting) => self.hold((at, caller), set, true, waiting),
            DrawAll::Refused(_) => self.outcome.refused += 1,
        }
        Ok(())
    }

    fn sent(&mut self, at: usize, set: usize, mut sent: Sent) -> Result<(), String> {
        let now_ns = self.now_ns;
        let unix_ns = self.plan.unix_ns + now_ns;
        let reserved = sent.reserved.pop();
        let amount = reserved.as_ref().map_or(1, Reserved::amount);
        self.outcome.sends.push(now_ns);
        let number = self.judges[0].sent(now_ns, unix_ns, amount)?;
        if let Some(beside) = self.outcome.beside.get_mut(set) {
            *beside += 1;
            self.judges[1 + set].sent(now_ns, unix_ns, 1)?;
        }
        if let (Some(reserved), Some(values)) = (reserved, self.plan.values) {
            let percent = self.chance.within(values.cost.0, values.cost.1 + 1);
            let call = Awaited {
                at_ns: now_ns + self.chance.within(0, values.call_ns),
                number,
                actual: amount * percent / 100,
                reserved,
            };
            self.nodes[at].calls.push(call);
        }
        Ok(())
    }

    /// Answers that have ended say what they have cost; one in twenty never does.
    fn settle_due(&mut self, at: usize) {
        let now_ns = self.now_ns;
        let node = &mut self.nodes[at];
        let ended = node.calls.extract_if(.., |call| call.at_ns <= now_ns);
        for call in ended.collect::<Vec<_>>() {
            if self.chance.percent(5) {
                self.outcome.cost += call.reserved.amount();
                continue;
            }
            self.judges[0].cost(call.number, call.actual);
            self.outcome.cost += call.actual;
            self.outcome.corrected += 1;
            call.reserved.settle(call.actual, now_ns + node.offset_ns);
        }
    }

    fn poll_waiting(&mut self, at: usize, boot_ns: u64) -> Result<(), String> {
        for held in std::mem::take(&mut self.nodes[at].waiting) {
            let (set, connected) = (held.set, held.connected);
            let waits_ns = self.now_ns.saturating_sub(held.since_ns);
            self.outcome.longest_wait_ns = self.outcome.longest_wait_ns.max(waits_ns);
            // The grace, a pause of the node, and the pace of writes, one after the other.
            let longest_ns = 2_500 * MS * self.nodes[at].sets[set].meters().len() as u64;
            let may_leave = self.plan.faults.outage_ns > 0 || self.plan.faults.pause_max_ns > 0;
            match held.waiting.poll_now(boot_ns) {
                DrawAll::Drawn(tokens) => {
                    self.outcome.granted_after_wait += 1;
                    match connected {
                        true => self.send((at, held.caller), set, tokens)?,
                        false => self.drew(at, set, held.caller, tokens),
                    }
                }
                DrawAll::Refused(refusal) => {
                    assert!(refusal.retry_after > Duration::ZERO);
                    self.outcome.refused += 1;
                }
                // With a store that goes again and again, or nodes that stand still for seconds,
                // callers leave, as in `Waiting::granted`.
                DrawAll::Wait(_) if waits_ns > longest_ns && may_leave => {
                    self.outcome.given_up += 1;
                }
                DrawAll::Wait(_) if waits_ns > longest_ns => {
                    let (since_ns, now_ns) = (held.since_ns, self.now_ns);
                    return Err(format!("a request waits since {since_ns} at {now_ns}"));
                }
                DrawAll::Wait(waiting) => self.nodes[at].waiting.push(Held { waiting, ..held }),
            }
        }
        Ok(())
    }

    fn send_batches(&mut self, at: usize) {
        let from = self.nodes[at].me;
        let calm = self.now_ns < self.plan.faults.from_ns;
        let faults = if calm {
            Faults::default()
        } else {
            self.plan.faults
        };
        for (to, batch) in self.nodes[at].broker.take_batches() {
            self.outcome.batches += 1;
            let asks = |word: &Word| matches!(word, Word::Ask(_));
            let grants = |word: &Word| match word {
                Word::Answer(answer) => matches!(answer.reply, Reply::Granted(_)),
                _ => false,
            };
            let count = |kind: &dyn Fn(&Word) -> bool| {
                batch.items.iter().filter(|item| kind(&item.word)).count() as u64
            };
            self.outcome.asks += count(&asks);
            self.outcome.grants += count(&grants);
            let when = (self.now_ns, self.plan.peer_trip_ns);
            self.network
                .post((from, to), &batch, when, &faults, &mut self.chance);
        }
    }

    fn send_call(&mut self, at: usize, call: Call) {
        let now_ns = self.now_ns;
        let calm = now_ns < self.plan.faults.from_ns;
        let faults = if calm {
            Faults::default()
        } else {
            self.plan.faults
        };
        if !call.txn.ops.is_empty() {
            self.outcome.writes += 1;
        }
        self.outcome.key_writes += call.txn.ops.len() as u64;
        let trip_ns = self
            .chance
            .within(self.plan.trip_ns / 10, self.plan.trip_ns);
        let slow = faults.lost > 0 && self.chance.percent(3);
        let back_ns = if slow {
            self.chance.within(0, 400 * MS)
        } else {
            trip_ns
        };
        let cut_until_ns = self.nodes[at].store_cut_until_ns;
        let gone = now_ns < self.store_gone_until_ns.max(cut_until_ns);
        let me = self.nodes[at].me;
        let mut execution = Execution {
            at_ns: now_ns + trip_ns,
            txn: call.txn,
            node: me.node,
            boot: me.boot,
            call: call.id,
            answer: Some((now_ns + trip_ns + back_ns, true)),
        };
        let roll = self.chance.within(0, 100);
        let (lost, unanswered, late) = (faults.lost, faults.unanswered, faults.late);
        if gone {
            let error = Err(StoreError::Unavailable("gone".into()));
            self.answer(&execution, now_ns + trip_ns, error);
            return;
        }
        if roll < lost {
            let error = Err(StoreError::OutcomeUnknown("never arrived".into()));
            self.answer(&execution, now_ns + 100 * MS, error);
            return;
        }
        if roll < lost + unanswered {
            execution.answer = Some((now_ns + 100 * MS, false));
        } else if roll < lost + unanswered + late {
            let error = Err(StoreError::OutcomeUnknown("given up".into()));
            self.answer(&execution, now_ns + 50 * MS, error);
            execution.at_ns = now_ns + self.chance.within(50 * MS, 500 * MS);
            execution.answer = None;
        }
        self.executions.push(execution);
    }

    fn rests(&self, at: usize) -> Vec<u64> {
        if self.plan.mutant != Some(Mutant::ReportBeforeClose) {
            return Vec::new();
        }
        self.nodes[at].meters[0]
            .cells
            .iter()
            .map(|cell| cell.rest())
            .collect()
    }

    /// Workers that drew what a part had left after it was reported.
    fn phantoms(&mut self, at: usize, before: &[u64]) {
        let now_ns = self.now_ns;
        let node = &mut self.nodes[at];
        for (cell, rest) in node.meters[0].cells.iter().zip(before) {
            for _ in cell.rest()..*rest {
                node.drawn.push(Drawn {
                    at_ns: now_ns,
                    caller: None,
                    set: 0,
                    tokens: None,
                    until_ns: now_ns + 200 * MS,
                });
            }
        }
    }
}

impl Node {
    fn next_event_ns(&self) -> u64 {
        let broker_ns = self.broker.due_ns().saturating_sub(self.offset_ns);
        let drawn = self.drawn.iter().map(|drawn| drawn.at_ns);
        let answers = self.answers.iter().map(|(at_ns, ..)| *at_ns);
        let calls = self.calls.iter().map(|call| call.at_ns);
        let heard = (!self.inbox.is_empty()).then_some(0);
        let next_ns = drawn
            .chain(answers)
            .chain(calls)
            .chain(heard)
            .min()
            .unwrap_or(u64::MAX)
            .min(broker_ns);
        next_ns.max(self.paused_until_ns)
    }

    /// What could be sent of a meter at this instant: in cells, and drawn from parts that stand.
    fn sendable(&self, at: usize, now_ns: u64) -> u64 {
        let (own_ns, meter) = (now_ns + self.offset_ns, &self.meters[at]);
        let drawn = self.drawn.iter().filter_map(|drawn| drawn.tokens.as_ref());
        let held = self.waiting.iter().map(|held| held.waiting.in_hand());
        let live = |tokens: &&Tokens| tokens.has_live(meter, own_ns);
        let live = drawn.chain(held).filter(live).count() as u64;
        meter.in_hand(own_ns) + meter.estimate() * live
    }
}

fn written(txn: &Txn) -> Option<crate::limits::state::State> {
    match txn.ops.first() {
        Some(Op::Put { value, .. }) => codec::decode(value).ok(),
        _ => None,
    }
}

/// Makes lives of lent parts longer.
fn lengthen(event: &mut PeerEvent, more_ns: u64) {
    let PeerEvent::Said(_, batch) = event else {
        return;
    };
    for item in &mut batch.items {
        if let Word::Answer(answer) = &mut item.word
            && let Reply::Granted(grant) = &mut answer.reply
        {
            grant.life_ns += more_ns;
        }
    }
}

/// Gives each correction a number of its own, whenever it comes.
fn renumber(event: &mut PeerEvent, now_ns: u64) {
    let PeerEvent::Said(_, batch) = event else {
        return;
    };
    for item in &mut batch.items {
        if let Word::Correct { correction, .. } = &mut item.word {
            correction.number = (1 << 40) + now_ns;
        }
    }
}

/// Makes what is corrected look as if it had been charged just now.
fn make_young(event: &mut PeerEvent) {
    let PeerEvent::Said(_, batch) = event else {
        return;
    };
    for item in &mut batch.items {
        if let Word::Correct {
            correction, told, ..
        } = &mut item.word
        {
            let changes = correction.changes.iter_mut();
            changes.for_each(|(age_ns, _)| *age_ns = 0);
            told.iter_mut().for_each(|told| told.since_ns += SECOND);
        }
    }
}

/// Makes reports say that nothing was spent.
fn forget_spends(event: &mut PeerEvent) {
    let PeerEvent::Said(_, batch) = event else {
        return;
    };
    for item in &mut batch.items {
        if let Word::Report(report) = &mut item.word {
            report.rest += report.spends.iter().sum::<u64>();
            report.spends = Default::default();
        }
    }
}
