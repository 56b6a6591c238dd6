//! The broker: decides which keys are looked at, puts their writes into transactions, and tells
//! their owners what became of them.
//!
//! [`Broker`] is the decision and has no IO: it is handed instants and outcomes and gives calls,
//! so that the simulation runs exactly this code. [`run`] is the shell around it that owns the
//! store and the timer. A key that nobody asks for is not looked at and costs no store write.

mod budget;
mod calendar;
mod conflict;
mod health;
mod peers;
mod returned;
mod roster;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proto::store::{Compare, Op, StoreError, Txn, TxnOutcome};
use tracing::error;

use self::budget::Budget;
use self::calendar::Wall;
use self::health::{BACKOFF_MAX_NS, BACKOFF_MIN_NS, Health, Probe};
use self::roster::{Keys, Roster, key_hash};
use super::block::Opener;
use super::clock::Moment;
use super::codec;
use super::exchange::{Item, Outbox};
use super::meter::Meter;
use super::owner::{Around, Owner, Place, Write};
use super::ramp::Ramp;
use super::revision_clock::{Asking, RevisionClock};
use super::shared::Shared;

/// Keys in one transaction.
pub const KEYS_PER_TXN: usize = 60;
/// Calls to the store at a time.
pub const CALLS_MAX: usize = 8;
/// Keys that have waited for the store go together: in this time they are through.
const EVEN_S: u64 = 3;
/// Keys looked at in one turn, so that a turn stays short.
const LOOKS_PER_TURN: usize = KEYS_PER_TXN * CALLS_MAX;

/// A transaction to be sent; the answer comes back under its id.
#[derive(Debug)]
pub struct Call {
    /// Names the answer.
    pub id: u64,
    /// What to send.
    pub txn: Txn,
}

/// Names an owner: the meter's place in the order of first asks.
type Slot = u64;

/// What a call on its way is about.
#[derive(Debug, Default)]
struct Asked {
    sent_ns: u64,
    /// What was known of the store then.
    asking: Asking,
    slots: Vec<Slot>,
    /// It only reads.
    probe: Option<Probe>,
}

/// All keys of a process.
#[derive(Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    place: Place,
    owners: HashMap<Slot, Owner>,
    slots: HashMap<String, Slot>,
    looks: BTreeSet<(u64, Slot)>,
    /// Looked at while the store was away; looked at again when it is back.
    stalled: HashSet<Slot>,
    calls: HashMap<u64, Asked>,
    /// Keys that changed under us: each goes alone next time, not to take others with it.
    contended: HashSet<Slot>,
    proofs: RevisionClock,
    health: Health,
    backoff_ns: u64,
    contact_ns: u64,
    /// When the store answered last, whatever it was asked.
    heard_ns: u64,
    /// Whether it owes an answer for so long that peers are asked meanwhile.
    late: bool,
    next_slot: Slot,
    next_call: u64,
    next_id: u64,
    roster: Roster,
    budget: Budget,
    ramp: Ramp,
    wall: Wall,
    /// When peers are told again that the store went back.
    return_told_ns: Option<u64>,
    /// What is to be said to peers.
    outgoing: Vec<(Opener, Item)>,
}

impl Broker {
    /// A broker that knows no key yet.
    pub fn new(shared: Arc<Shared>, place: Place, key_writes_max: u64) -> Self {
        if !place.clocks_compared {
            // Nobody is waited for: there are those of the settings until somebody counts them.
            shared.set_nodes(shared.nodes());
        }
        Self {
            shared,
            place,
            owners: HashMap::new(),
            slots: HashMap::new(),
            looks: BTreeSet::new(),
            stalled: HashSet::new(),
            calls: HashMap::new(),
            contended: HashSet::new(),
            proofs: RevisionClock::default(),
            health: Health::Up,
            backoff_ns: BACKOFF_MIN_NS,
            contact_ns: 0,
            heard_ns: 0,
            late: false,
            next_slot: 0,
            next_call: 0,
            next_id: 1,
            roster: Roster::default(),
            budget: Budget::new(key_writes_max),
            ramp: Ramp::new(EVEN_S),
            wall: Wall::default(),
            return_told_ns: None,
            outgoing: Vec::new(),
        }
    }

    /// Looks at every key that asked or is due, and gives the calls to make.
    pub fn turn(&mut self, own: Moment) -> Vec<Call> {
        let now = self.tell_time(own);
        self.take_asks(now.boot_ns);
        self.tell_return_again(now.boot_ns);
        self.tell_writing(now.boot_ns);
        self.late = self.is_late(now.boot_ns);
        self.budget.turn(now.boot_ns, self.shared.nodes());
        let leaving = self.shared.is_stopping();
        if leaving {
            self.looks = self
                .owners
                .keys()
                .map(|slot| (now.boot_ns, *slot))
                .collect();
        }
        let mut calls: Vec<Call> = self.probe(now.boot_ns).into_iter().collect();
        let mut room = CALLS_MAX.saturating_sub(self.calls.len());
        if !leaving {
            room = self.ramp.room(now.boot_ns, room);
        }
        let due: Vec<Slot> = self
            .looks
            .iter()
            .take_while(|(at_ns, _)| *at_ns <= now.boot_ns)
            .map(|(_, slot)| *slot)
            .take(LOOKS_PER_TURN)
            .collect();
        let mut together = Vec::new();
        for slot in due {
            // One that goes alone does not go with a call that is only begun.
            let alone = usize::from(self.contended.contains(&slot)) * (KEYS_PER_TXN - 1);
            let full = calls.len() + (together.len() + alone) / KEYS_PER_TXN >= room;
            let Some((key, write)) = self.look(slot, now, !full, leaving) else {
                continue;
            };
            if self.contended.remove(&slot) {
                calls.extend(self.call(vec![(slot, key, write)], now.boot_ns));
            } else {
                together.push((slot, key, write));
            }
        }
        while !together.is_empty() {
            let rest = together.split_off(together.len().min(KEYS_PER_TXN));
            calls.extend(self.call(std::mem::replace(&mut together, rest), now.boot_ns));
        }
        calls
    }

    /// Takes the outcome of a call.
    pub fn answer(&mut self, id: u64, result: Result<TxnOutcome, StoreError>, now_ns: u64) {
        let asked = self.calls.remove(&id).unwrap_or_default();
        let (slots, probe) = (asked.slots, asked.probe);
        match result {
            Ok(outcome) => {
                self.heard_ns = now_ns;
                // A key that was not read keeps the share of its view from before this contact.
                if probe.as_ref().is_none_or(|probe| probe.whole) {
                    self.contact_ns = now_ns;
                }
                let of_before = self.note_revision(asked.asking, outcome.revision(), now_ns);
                self.answered(probe.as_ref(), now_ns);
                match outcome {
                    TxnOutcome::Committed(revision) => {
                        self.each(&slots, |owner| owner.committed(revision, now_ns));
                    }
                    TxnOutcome::Conflict(seen) => {
                        self.conflict(&slots, seen, now_ns, probe.as_ref())
                    }
                }
                if of_before {
                    self.each(&slots, Owner::store_went_back);
                }
            }
            Err(error) => {
                count(&self.shared.stats.failures);
                self.down(&error, probe.as_ref(), now_ns);
                if probe.is_none() {
                    self.each(&slots, |owner| owner.failed(now_ns));
                    self.stalled.extend(&slots);
                }
            }
        }
    }

    /// When the next turn is due if nothing happens before; `u64::MAX` for never.
    pub fn due_ns(&self) -> u64 {
        let look_ns = self.looks.first().map_or(u64::MAX, |(at_ns, _)| *at_ns);
        let look_ns = look_ns.min(self.return_told_ns.unwrap_or(u64::MAX));
        match self.stalled.is_empty() {
            true => look_ns,
            false => look_ns.min(self.probe_due_ns()),
        }
    }

    /// Whether a leaving process has nothing more to give back.
    pub fn is_settled(&self) -> bool {
        self.owners.values().all(Owner::is_settled)
    }

    /// What the meters share with it.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn take_asks(&mut self, now_ns: u64) {
        for meter in self.shared.take_asks() {
            let slot = self.slot(meter, now_ns);
            self.schedule(slot, now_ns);
        }
    }

    /// The place of a meter, made where it has none.
    fn slot(&mut self, meter: Arc<Meter>, now_ns: u64) -> Slot {
        if let Some(slot) = self.slots.get(&meter.store_key) {
            return *slot;
        }
        let slot = self.next_slot;
        self.next_slot += 1;
        self.slots.insert(meter.store_key.clone(), slot);
        let hash = key_hash(&meter.store_key);
        let owner = Owner::new(meter, hash, self.place, now_ns);
        self.owners.insert(slot, owner);
        slot
    }

    /// Replaces the time of the next look.
    fn schedule(&mut self, slot: Slot, at_ns: u64) {
        let Some(owner) = self.owners.get_mut(&slot) else {
            return;
        };
        self.looks.remove(&(owner.look_ns(), slot));
        owner.set_look_ns(at_ns);
        if at_ns != u64::MAX {
            self.looks.insert((at_ns, slot));
        }
    }

    fn look(
        &mut self,
        slot: Slot,
        now: Moment,
        may_write: bool,
        leaving: bool,
    ) -> Option<(String, Write)> {
        let owner = self.owners.get_mut(&slot)?;
        self.looks.remove(&(owner.look_ns(), slot));
        let store_up = matches!(self.health, Health::Up);
        // Who has no clock takes no part of a calendar window; leaving, it gives back what it has.
        let able = store_up && (leaving || !self.wall.is_unfit() || !owner.has_calendar());
        let (me, hash) = (self.place.me.node, owner.key_hash());
        let ready_ns = self.budget.ready_ns();
        let mut around = Around {
            now,
            clock_confirmed: self.wall.confirmed,
            clock_unknown: self.wall.is_unknown,
            proofs: &self.proofs,
            store_up: able,
            late: self.late,
            nodes: self.shared.nodes(),
            contact_ns: self.contact_ns,
            may_write: may_write && (leaving || now.boot_ns >= ready_ns),
            returning: !may_write && self.ramp.is_steep(),
            held_back: false,
            growth: self.budget.growth(),
            leaving,
            next_id: self.next_id,
            supplier: {
                let key = (hash, Keys::like(owner.has_calendar()));
                self.roster
                    .supplier((me, able && !self.late), key, now.boot_ns)
            },
            out: Outbox::default(),
        };
        if owner.moves_to(around.supplier) {
            count(&self.shared.stats.owner_changes);
        }
        let write = owner.look(&mut around);
        if write.is_some() {
            self.budget.spend(now.boot_ns);
        } else if around.held_back {
            self.budget.hold_back();
            self.ramp.hold_back(now.boot_ns);
            let ready_ns = ready_ns.max(self.ramp.ready_ns(now.boot_ns));
            owner.put_off(ready_ns, now.boot_ns);
        }
        self.next_id = around.next_id;
        let (out, key) = (around.out, owner.meter().store_key.clone());
        if !out.silent.is_empty() {
            owner.set_look_ns(now.boot_ns);
        }
        if owner.look_ns() != u64::MAX {
            self.looks.insert((owner.look_ns(), slot));
        }
        if owner.is_done() {
            self.owners.remove(&slot);
            self.slots.remove(&key);
            self.contended.remove(&slot);
        } else if !store_up {
            let unread = owner.is_unread() && !owner.is_writing();
            self.stalled.insert(slot);
            self.stalled_unread(unread);
        }
        self.said(&key, out, now.boot_ns);
        write.map(|write| (key, write))
    }

    /// One transaction of these writes; a state that cannot be encoded fails its owner alone.
    fn call(&mut self, writes: Vec<(Slot, String, Write)>, sent_ns: u64) -> Option<Call> {
        let (mut txn, mut slots) = (Txn::default(), Vec::new());
        for (slot, key, write) in writes {
            let op = match write.next.as_ref().map(codec::encode).transpose() {
                Ok(Some(bytes)) => Op::put(key.clone(), bytes),
                Ok(None) => Op::Delete(key.clone()),
                Err(error) => {
                    error!(%key, "token state of {key} cannot be written: {error}");
                    let later_ns = self.shared.clock.boot_ns().saturating_add(BACKOFF_MAX_NS);
                    self.owners.get_mut(&slot)?.goes_again(later_ns);
                    continue;
                }
            };
            txn.compares.push(match write.expected {
                Some(revision) => Compare::ModRevision(key.clone(), revision),
                None => Compare::Absent(key.clone()),
            });
            txn.ops.push(op);
            txn.or_read.push(key);
            slots.push(slot);
        }
        if slots.is_empty() {
            return None;
        }
        count(&self.shared.stats.store_calls);
        let key_writes = &self.shared.stats.key_writes;
        key_writes.fetch_add(slots.len() as u64, Ordering::Relaxed);
        let id = self.next_call;
        self.next_call += 1;
        self.ramp.called(sent_ns);
        let asked = Asked {
            sent_ns,
            asking: self.proofs.asking(),
            slots,
            probe: None,
        };
        self.calls.insert(id, asked);
        Some(Call { id, txn })
    }

    /// Tells owners something that makes them due.
    fn each(&mut self, slots: &[Slot], mut tell: impl FnMut(&mut Owner)) {
        for slot in slots {
            let Some(owner) = self.owners.get_mut(slot) else {
                continue;
            };
            self.looks.remove(&(owner.look_ns(), *slot));
            tell(owner);
            self.looks.insert((owner.look_ns(), *slot));
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
