//! One key of this node: keeps what it knows of the state, opens blocks and settles them, lends of
//! them to peers, or borrows from the peer that owns the key.
//!
//! Every write is one transform of the newest known state: let the proven time pass, close what
//! others left open beyond its end, settle our own blocks, open a new one if tokens are wanted.
//! Nothing else is remembered of a write that failed: whether it was carried out is read off the
//! next state that is seen (block present, `left` fallen, block absent), and until that is seen a
//! block that may have been opened gives no token. No IO and no clock in here.

mod alone;
mod amounts;
pub mod borrow;
mod compose;
mod correct;
mod divide;
mod held;
mod lend;
mod resolve;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::meter::{MeterSpec, StoreLoss};
use proto::store::Revision;

use crate::limits::block::{Opener, amount_max, grid_ns, life_now_ns, life_ns, share_of};
use crate::limits::cell::CELLS;
use crate::limits::cell::Span;
use crate::limits::clock::Moment;
use crate::limits::credit::Loss;
use crate::limits::demand::{Demand, Pace};
use crate::limits::exchange::Outbox;
use crate::limits::meter::Meter;
use crate::limits::part::{Candidate, Lent, Part, Source};
use crate::limits::refusal::{Cause, Mode};
use crate::limits::returned::Remembered;
use crate::limits::revision_clock::RevisionClock;
use crate::limits::state::{Charges, State};
use crate::limits::view::{Verdict, View};

use borrow::Borrowing;
use correct::Correcting;
use held::HeldBy;
use lend::Lending;

/// How long after its end a block may wait for another reason to write before it is settled.
const SETTLE_SLACK_NS: u64 = 100_000_000;
/// Blocks that may be open or not; older ones are treated as never opened by us.
const CANDIDATES_MAX: usize = 4;
/// A store that owes an answer for so long is late: who owns the key meanwhile is asked, so that
/// nobody waits for the end of the call. Well below every grace, well above what a store that works
/// takes.
pub(super) const LATE_NS: u64 = 100_000_000;
/// How long an owner may take to say anything.
const ANSWER_NS: u64 = 50_000_000;
/// The same where there is no store to take from in its place: one that is slow is not given up as
/// fast as one that is gone.
const ALONE_NS: u64 = 200_000_000;
/// And where somebody waits for us to ask.
const RELAY_NS: u64 = 20_000_000;
/// The shortest time between two looks that nobody asked for.
const LOOK_MIN_NS: u64 = 1_000_000;

/// So often a key is looked at of which something is remembered that the store may not know.
const REMEMBERED_NS: u64 = 3_600_000_000_000;

/// At the limit a node borrows for this part of a block's life only: the owner keeps the rest for
/// whoever needs it first.
const SCARCE: u64 = 20;

/// What an owner needs to know of its process; the same for all keys.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// This incarnation.
    pub me: Opener,
    /// How far the wall clock of a node may be from that of the others.
    pub max_skew_ns: u64,
    /// Whether nodes tell each other what their wall clocks show.
    pub clocks_compared: bool,
    /// `store_grace`.
    pub grace_ns: u64,
}

/// What surrounds one look at a key.
#[derive(Debug)]
pub struct Around<'a> {
    /// The instant, with the wall clock that the nodes agree on.
    pub now: Moment,
    /// Whether another node's clock says the same, or there is none.
    pub clock_confirmed: bool,
    /// Whether nothing is known yet of other nodes' clocks: no new calendar window is begun.
    pub clock_unknown: bool,
    /// Ages that the store proves.
    pub proofs: &'a RevisionClock,
    /// Whether the store answered last time.
    pub store_up: bool,
    /// Whether it owes an answer for so long that peers are asked meanwhile.
    pub late: bool,
    /// Nodes last known, this one included.
    pub nodes: u64,
    /// When it last answered anything.
    pub contact_ns: u64,
    /// Whether a write may be sent now.
    pub may_write: bool,
    /// A write was due and may not be sent now.
    pub held_back: bool,
    /// The store has only just come back and is not asked by all keys at once: not by this one yet.
    pub returning: bool,
    /// How many times its usual size and life a block has, so that there are fewer writes.
    pub growth: u64,
    /// Whether the process is leaving: everything is given back.
    pub leaving: bool,
    /// The next unused id of a block or an ask.
    pub next_id: u64,
    /// The peer that owns the key; `None` when this node takes from the store itself.
    pub supplier: Option<Opener>,
    /// What is said to peers.
    pub out: Outbox,
}

impl Around<'_> {
    /// Whether tokens can be taken from the store in time.
    fn has_store(&self) -> bool {
        self.store_up && !self.late
    }

    /// How long an owner may take to answer, who may be asked for others that wait.
    fn answer_within_ns(&self, relayed: bool) -> u64 {
        match relayed {
            true => RELAY_NS,
            false if self.has_store() => ANSWER_NS,
            false => ALONE_NS,
        }
    }
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
    key_hash: u64,
    spec: Arc<MeterSpec>,
    place: Place,
    base: Base,
    parts: Vec<Part>,
    candidates: Vec<Candidate>,
    attempt: Option<Attempt>,
    loss: Loss,
    demand: Demand,
    /// What comes to this node itself.
    local: Demand,
    pace: Pace,
    drawn_before: u64,
    used_ns: u64,
    answered_ns: u64,
    blocked_until_ns: u64,
    orphans_due_ns: Option<u64>,
    look_ns: u64,
    lending: Lending,
    held: HeldBy,
    borrowing: Borrowing,
    correcting: Correcting,
    /// Who owned the key at the last look; `None` before the first.
    owned_by: Option<Option<Opener>>,
    /// What was known when the store went back.
    remembered: Remembered,
}

impl Owner {
    /// A taker that has seen nothing yet.
    pub fn new(meter: Arc<Meter>, key_hash: u64, place: Place, now_ns: u64) -> Self {
        let spec = meter.spec.load_full();
        Self {
            meter,
            key_hash,
            spec,
            place,
            base: Base::Absent,
            parts: Vec::new(),
            candidates: Vec::new(),
            attempt: None,
            loss: Loss::default(),
            demand: Demand::default(),
            local: Demand::default(),
            pace: Pace::default(),
            drawn_before: 0,
            used_ns: now_ns,
            answered_ns: 0,
            blocked_until_ns: 0,
            orphans_due_ns: None,
            look_ns: now_ns,
            lending: Lending::default(),
            held: HeldBy::default(),
            borrowing: Borrowing::default(),
            correcting: Correcting::default(),
            owned_by: None,
            remembered: Remembered::default(),
        }
    }

    /// The meter.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// What orders the nodes that may own it.
    pub fn key_hash(&self) -> u64 {
        self.key_hash
    }

    /// Notes who owns the key now; whether that is another one than before.
    pub fn moves_to(&mut self, owner: Option<Opener>) -> bool {
        let before = self.owned_by.replace(owner);
        before.is_some_and(|before| before != owner)
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
        let quiet = self.lending.is_empty() && self.borrowing.is_empty();
        let quiet = quiet && self.correcting.is_empty();
        let quiet = quiet && self.attempt.is_none() && !self.loss.has_credit();
        let nothing = self.parts.is_empty() && !known && quiet;
        nothing && self.look_ns == u64::MAX
    }

    /// Whether a leaving process has settled everything of this key that it can.
    pub fn is_settled(&self) -> bool {
        let settled = self.parts.is_empty() && self.correcting.is_empty();
        !self.is_writing() && settled && self.orphans_due_ns.is_none()
    }

    /// Looks at the key: closes parts that are over, publishes what workers may know, and gives
    /// the write that is due, if any.
    pub fn look(&mut self, around: &mut Around<'_>) -> Option<Write> {
        let now_ns = around.now.boot_ns;
        let asked = self.meter.asked.swap(false, Ordering::AcqRel);
        self.meter.end_slow(now_ns);
        self.meter.renew_share(now_ns);
        self.refresh_spec(around.leaving);
        self.close_finished(now_ns);
        self.loss
            .forget_passed(now_ns, around.now.unix_s(), self.place.me);
        self.give_back(around);
        self.expire_ask(around);
        let in_hand = self.meter.in_hand(now_ns);
        let waiting = self.meter.waiting.load(Ordering::Relaxed);
        let few = match self.spec.estimate() {
            None => in_hand == 0,
            Some(_) => in_hand < waiting.max(1),
        };
        let hungry = few && (asked || waiting > 0) && !around.leaving;
        self.note_demand(now_ns, asked);
        // Who was refused waits for the limit, not for an answer.
        let missed = hungry && now_ns >= self.borrowing.refused_until_ns;
        self.note_missed(now_ns, missed, in_hand);
        self.take_relayed(around);
        if around.leaving {
            around.supplier = None;
        }
        self.note_corrections(around);
        let write = self.decide(around, hungry, waiting);
        self.tell_correction(around);
        self.answer_asks(around);
        let word_ns = self
            .next_word_ns(now_ns)
            .min(self.next_correction_ns(around));
        self.look_ns = self.look_ns.min(word_ns);
        self.look_for_credit(now_ns);
        if !self.remembered.is_over(around.now.unix_s()) {
            // Who is not to be looked at any more is forgotten, with all that it remembers.
            let again_ns = now_ns.saturating_add(REMEMBERED_NS);
            self.look_ns = self.look_ns.min(again_ns);
        }
        write
    }

    fn decide(&mut self, around: &mut Around<'_>, hungry: bool, waiting: u64) -> Option<Write> {
        let now_ns = around.now.boot_ns;
        // Whoever borrows learns by silence alone that nobody gives: it asks the store nothing.
        let lost = self.loss.is_lost();
        if around.supplier.is_some() && !lost {
            return self.borrow(around, hungry, waiting);
        }
        // Who has to wait for a store that has come back goes on as if it were away.
        let returning = lost && around.returning;
        around.held_back |= returning && around.store_up;
        let away = !around.store_up || returning;
        if self.attempt.is_some() || away || around.supplier.is_some() {
            // A peer may serve although nothing came in time: it is asked on.
            self.ask_on(around, hungry, waiting);
            self.without_answer(around, hungry);
            return None;
        }
        let (cells, me) = (&self.meter.cells, self.place.me);
        self.loss.over(cells, me, now_ns, hungry);
        // What was given on credit ends here: whoever comes next is to find something.
        let hungry = hungry || (lost && self.loss.has_credit() && !around.leaving);
        if now_ns < self.blocked_until_ns {
            self.publish_lost(around, State::empty(&self.spec, now_ns, 0));
            self.look_ns = self.blocked_until_ns;
            return None;
        }
        self.compose(around, hungry, waiting)
    }

    /// Whether a write of the key is on its way.
    pub fn is_writing(&self) -> bool {
        self.attempt.is_some()
    }

    fn amount_max(&self) -> u64 {
        amount_max(self.spec.limits().iter().map(share_of))
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
        let life_ns = life_ns(&self.spec);
        self.demand.note(now_ns, total, life_ns);
        let local = total.saturating_sub(self.lending.lent);
        self.local.note(now_ns, local, life_ns);
        if asked || drawn > 0 {
            self.used_ns = now_ns;
        }
    }
}
