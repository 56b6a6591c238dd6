//! The taker of one key: keeps what it knows of the state, opens blocks and settles them.
//!
//! Every write is one transform of the newest known state: let the proven time pass, close what
//! others left open beyond its end, settle our own blocks, open a new one if tokens are wanted.
//! Nothing else is remembered of a write that failed: whether it was carried out is read off the
//! next state that is seen (block present, `left` fallen, block absent), and until that is seen a
//! block that may have been opened gives no token. No IO and no clock in here.

mod compose;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::meter::{MeterSpec, StoreLoss};
use proto::store::Revision;

use crate::limits::block::{Opener, amount_max, grid_ns, life_now_ns, life_ns, share_of};
use crate::limits::cell::Span;
use crate::limits::clock::Moment;
use crate::limits::credit::Loss;
use crate::limits::demand::{Demand, Pace};
use crate::limits::meter::{CELLS, Meter};
use crate::limits::part::{Candidate, Part};
use crate::limits::refusal::{Cause, Mode};
use crate::limits::revision_clock::RevisionClock;
use crate::limits::state::{Charges, State};
use crate::limits::view::{Verdict, View};

/// How long after its end a block may wait for another reason to write before it is settled.
const SETTLE_SLACK_NS: u64 = 100_000_000;
/// Blocks that may be open or not; older ones are treated as never opened by us.
const CANDIDATES_MAX: usize = 4;
/// A state that cannot be read is looked at again after this time.
const UNREADABLE_NS: u64 = 1_000_000_000;
/// The shortest time between two looks that nobody asked for.
const LOOK_MIN_NS: u64 = 1_000_000;

/// What an owner needs to know of its process; the same for all keys.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// This incarnation.
    pub me: Opener,
    /// How far another node's wall clock may lead.
    pub max_skew_ns: u64,
    /// `store_grace`.
    pub grace_ns: u64,
}

/// What surrounds one look at a key.
#[derive(Debug)]
pub struct Around<'a> {
    /// The instant.
    pub now: Moment,
    /// Ages that the store proves.
    pub proofs: &'a RevisionClock,
    /// Whether the store answered last time.
    pub store_up: bool,
    /// Nodes last known, this one included.
    pub nodes: u64,
    /// When it last answered anything.
    pub contact_ns: u64,
    /// Whether a write may be sent now.
    pub may_write: bool,
    /// Whether the process is leaving: everything is given back.
    pub leaving: bool,
    /// The next unused block id.
    pub next_id: u64,
}

/// A write of one key, to be put into a transaction.
#[derive(Clone, Debug)]
pub struct Write {
    /// Revision that the key must have; `None`: it must be absent.
    pub expected: Option<Revision>,
    /// The new state; `None` deletes the key.
    pub next: Option<State>,
}

#[derive(Debug)]
enum Base {
    /// Not seen yet, or seen to be absent.
    Absent,
    Held {
        state: State,
        revision: Revision,
        /// An instant that is not before the state's moment (ours: exactly its moment).
        since_ns: u64,
        ours: bool,
    },
}

#[derive(Debug)]
struct Attempt {
    next: Option<State>,
    composed_ns: u64,
}

/// The taker of one key.
#[derive(Debug)]
pub struct Owner {
    meter: Arc<Meter>,
    spec: Arc<MeterSpec>,
    place: Place,
    base: Base,
    parts: Vec<Part>,
    candidates: Vec<Candidate>,
    attempt: Option<Attempt>,
    loss: Loss,
    demand: Demand,
    pace: Pace,
    drawn_before: u64,
    used_ns: u64,
    answered_ns: u64,
    blocked_until_ns: u64,
    orphans_due_ns: Option<u64>,
    look_ns: u64,
}

impl Owner {
    /// A taker that has seen nothing yet.
    pub fn new(meter: Arc<Meter>, place: Place, now_ns: u64) -> Self {
        let spec = meter.spec.load_full();
        Self {
            meter,
            spec,
            place,
            base: Base::Absent,
            parts: Vec::new(),
            candidates: Vec::new(),
            attempt: None,
            loss: Loss::default(),
            demand: Demand::default(),
            pace: Pace::default(),
            drawn_before: 0,
            used_ns: now_ns,
            answered_ns: 0,
            blocked_until_ns: 0,
            orphans_due_ns: None,
            look_ns: now_ns,
        }
    }

    /// The meter.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// When to look again if nobody asks before; `u64::MAX` for never.
    pub fn look_ns(&self) -> u64 {
        self.look_ns
    }

    /// Replaces the time of the next look.
    pub fn set_look_ns(&mut self, at_ns: u64) {
        self.look_ns = at_ns;
    }

    /// Revision that the next write will compare with; `None`: absent.
    pub fn expects(&self) -> Option<Revision> {
        match &self.base {
            Base::Absent => None,
            Base::Held { revision, .. } => Some(*revision),
        }
    }

    /// Whether nothing is left to do for the key, so that its taker may be forgotten.
    pub fn is_done(&self) -> bool {
        let known = matches!(self.base, Base::Held { .. });
        self.attempt.is_none() && self.parts.is_empty() && !known && self.look_ns == u64::MAX
    }

    /// Whether a leaving process has settled everything of this key that it can.
    pub fn is_settled(&self) -> bool {
        !self.is_writing() && self.parts.is_empty() && self.orphans_due_ns.is_none()
    }

    /// Looks at the key: closes parts that are over, publishes what workers may know, and gives
    /// the write that is due, if any.
    pub fn look(&mut self, around: &mut Around<'_>) -> Option<Write> {
        let now_ns = around.now.boot_ns;
        let asked = self.meter.asked.swap(false, Ordering::AcqRel);
        self.refresh_spec(around.leaving);
        self.close_finished(now_ns);
        let in_hand = self.meter.in_hand(now_ns);
        let waiting = self.meter.waiting.load(Ordering::Relaxed);
        let hungry = in_hand == 0 && (asked || waiting > 0) && !around.leaving;
        self.note_demand(now_ns, asked);
        self.loss.note(now_ns, hungry, in_hand, self.place.grace_ns);
        if self.attempt.is_some() || !around.store_up {
            self.without_answer(around, hungry);
            return None;
        }
        let (cells, me) = (&self.meter.cells, self.place.me);
        self.loss.over(cells, me, now_ns, hungry);
        if now_ns < self.blocked_until_ns {
            self.publish_lost(around, State::empty(&self.spec, now_ns, 0));
            self.look_ns = self.blocked_until_ns;
            return None;
        }
        self.compose(around, hungry, waiting)
    }

    /// The write was carried out at this revision.
    pub fn committed(&mut self, revision: Revision, now_ns: u64) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        let since_ns = attempt.composed_ns;
        self.base = match attempt.next {
            Some(state) => Base::Held {
                state,
                revision,
                since_ns,
                ours: true,
            },
            None => Base::Absent,
        };
        self.resolve(now_ns);
    }

    /// The key had another value; nothing was written. `seen` is what it holds.
    pub fn conflicted(&mut self, seen: Option<(State, Revision)>, now_ns: u64) {
        self.attempt = None;
        self.base = match seen {
            Some((state, revision)) => Base::Held {
                state,
                revision,
                since_ns: now_ns,
                ours: false,
            },
            None => Base::Absent,
        };
        self.resolve(now_ns);
    }

    /// The store still held the newest known state at `now_ns`.
    pub fn confirmed(&mut self, now_ns: u64) {
        self.answered_ns = now_ns;
    }

    /// Whether a write of the key is on its way.
    pub fn is_writing(&self) -> bool {
        self.attempt.is_some()
    }

    /// The write failed, or nobody knows: its block stays a candidate until a state is seen.
    pub fn failed(&mut self, now_ns: u64) {
        self.attempt = None;
        self.look_ns = now_ns;
    }

    /// The key holds something that is not a state of ours: nothing is taken from it, nothing is
    /// written over it, and it is looked at again later.
    pub fn unreadable(&mut self, now_ns: u64) {
        self.conflicted(None, now_ns);
        self.blocked_until_ns = now_ns.saturating_add(UNREADABLE_NS);
    }

    /// What has become of blocks, read off the state that is known now.
    fn resolve(&mut self, now_ns: u64) {
        self.answered_ns = now_ns;
        self.loss.answered();
        let me = self.place.me;
        let held = match &self.base {
            Base::Held { state, .. } => Some(state),
            Base::Absent => None,
        };
        let open = |id: u64| held.is_some_and(|state| state.has(me, id));
        let cells = &self.meter.cells;
        for part in self.parts.iter_mut().filter(|part| !open(part.block.id)) {
            // Gone from the store: settled by us, or closed by another after its end.
            part.close(cells);
            let drawn = part.drawn(cells, now_ns);
            self.drawn_before = self.drawn_before.saturating_add(drawn);
        }
        self.parts.retain(|part| open(part.block.id));
        if let Some(state) = held {
            self.loss.forget_entered(state, me);
        }
        let opened: Vec<Candidate> = self
            .candidates
            .iter()
            .filter(|candidate| open(candidate.id))
            .copied()
            .collect();
        self.candidates.clear();
        for candidate in opened {
            self.hand_out(candidate, now_ns);
        }
        let due_ns = now_ns.saturating_add(SETTLE_SLACK_NS);
        let orphan = self.has_orphan();
        self.orphans_due_ns = orphan.then(|| self.orphans_due_ns.unwrap_or(due_ns));
        self.look_ns = now_ns;
    }

    /// Whether a block of ours is open in the store whose tokens nobody has.
    fn has_orphan(&self) -> bool {
        let Base::Held { state, .. } = &self.base else {
            return false;
        };
        let known = |id: u64| self.parts.iter().any(|part| part.block.id == id);
        state
            .open
            .iter()
            .any(|block| block.opener == self.place.me && !known(block.id))
    }

    /// Puts a block's tokens into a free cell, if it still has time; else it goes back whole.
    fn hand_out(&mut self, block: Candidate, now_ns: u64) {
        let (Some(cell), true) = (self.free_cell(), now_ns < block.span.end_ns) else {
            return;
        };
        let part = Part {
            block,
            cell,
            closed: None,
        };
        self.parts.push(part);
        self.fill(&part, now_ns);
    }

    /// Opens the cell of a part that is on record, and rings for those who wait.
    fn fill(&self, part: &Part, now_ns: u64) {
        let Some(cell) = self.meter.cells.get(part.cell) else {
            return;
        };
        cell.open(part.block.amount, part.block.span);
        self.meter.refused.store(0, Ordering::Relaxed);
        self.point(now_ns);
        self.meter.answered.notify_waiters();
    }

    /// Lets draws begin at the part that ends first, and wake us when little is left.
    fn point(&self, now_ns: u64) {
        let live = self.parts.iter().filter(|part| part.closed.is_none());
        let filled = live.filter(|part| {
            self.meter
                .cells
                .get(part.cell)
                .is_some_and(|cell| cell.count(now_ns) > 0)
        });
        if let Some(first) = filled.min_by_key(|part| part.block.span.end_ns) {
            self.meter.hint.store(first.cell, Ordering::Relaxed);
        }
        let expected = self.demand.expected();
        let low = if expected >= 2 {
            expected.min(self.amount_max()) / 2
        } else {
            u64::MAX
        };
        self.meter.low_water.store(low, Ordering::Relaxed);
    }

    fn amount_max(&self) -> u64 {
        amount_max(self.spec.limits().iter().map(share_of))
    }

    /// A changed limit works at once: tokens of the old one are taken back.
    fn refresh_spec(&mut self, leaving: bool) {
        let spec = self.meter.spec.load_full();
        let changed = !Arc::ptr_eq(&spec, &self.spec);
        if changed || leaving {
            self.parts
                .iter_mut()
                .for_each(|part| part.close(&self.meter.cells));
        }
        self.spec = spec;
    }

    /// Closes parts whose end is over, and those whose every token was sent.
    fn close_finished(&mut self, now_ns: u64) {
        let cells = &self.meter.cells;
        for part in &mut self.parts {
            let sent: u64 = part.spends(cells).iter().sum();
            if now_ns >= part.block.span.end_ns || sent >= part.block.amount {
                part.close(cells);
            }
        }
        self.loss.close_finished(cells, self.place.me, now_ns);
    }

    fn note_demand(&mut self, now_ns: u64, asked: bool) {
        let cells = &self.meter.cells;
        let drawn: u64 = self
            .parts
            .iter()
            .map(|part| part.drawn(cells, now_ns))
            .sum();
        let unmet = self.meter.unmet.load(Ordering::Relaxed);
        let total = self
            .drawn_before
            .saturating_add(drawn)
            .saturating_add(unmet);
        self.demand.note(now_ns, total, life_ns(&self.spec));
        if asked || drawn > 0 {
            self.used_ns = now_ns;
        }
    }
}
