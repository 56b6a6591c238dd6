//! The taker of one key: how many slots to hold, and the write that makes it so. No IO, no clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::store::Revision;

use super::state::SlotState;
use super::{REFUSED_NS, SLOT_TTL, Slots};
use crate::limits::block::Opener;
use crate::limits::revision_clock::RevisionClock;

const TTL_NS: u64 = SLOT_TTL.as_nanos() as u64;
/// By so much less than [`TTL_NS`] slots may be held, as a mark of the write that says so: what a
/// write of long ago has left is not taken for that of now.
const MARK_NS: u64 = 10_000_000;
/// Slots are renewed when a third of their time is over.
const RENEW_NS: u64 = TTL_NS / 3;
/// More than is needed is given back after this time.
const SURPLUS_NS: u64 = 500_000_000;
/// For so long others know that this node waits; longer than a holder takes to hear of it.
const WAIT_NS: u64 = TTL_NS / 2;
/// Who still waits says so again after this time, and hears by it what has become free.
const WAIT_AGAIN_NS: u64 = 1_000_000_000;
/// The same with many nodes on one key, which takes some thirty writes a second.
const WAIT_AGAIN_NS_MAX: u64 = 3_000_000_000;
/// For each of them.
const WAIT_EACH_NS: u64 = 33_000_000;
/// While one waits, this part of the limit is left free for it.
const STEP: u64 = 10;
/// A write that failed is tried again after this time.
const AGAIN_NS: u64 = 100_000_000;

/// What a node knows of one key's state.
#[derive(Debug)]
enum Base {
    /// Absent, or not seen yet.
    Absent,
    Held {
        state: SlotState,
        revision: Revision,
        since_ns: u64,
        ours: bool,
    },
}

#[derive(Debug)]
struct Attempt {
    next: SlotState,
    composed_ns: u64,
}

/// A write of one key.
#[derive(Clone, Debug)]
pub struct SlotWrite {
    /// Revision that the key must have; none: it must be absent.
    pub expected: Option<Revision>,
    /// The new state; none deletes the key.
    pub next: Option<SlotState>,
}

/// The taker of one key.
#[derive(Debug)]
pub struct Taker {
    slots: Arc<Slots>,
    me: Opener,
    base: Base,
    attempt: Option<Attempt>,
    /// Since when more is held than needed.
    surplus_since_ns: Option<u64>,
    renewed_ns: u64,
    retry_ns: u64,
    look_ns: u64,
}

impl Taker {
    pub fn new(slots: Arc<Slots>, me: Opener, now_ns: u64) -> Self {
        Self {
            slots,
            me,
            base: Base::Absent,
            attempt: None,
            surplus_since_ns: None,
            renewed_ns: 0,
            retry_ns: 0,
            look_ns: now_ns,
        }
    }

    pub fn key(&self) -> &str {
        &self.slots.store_key
    }

    /// When to look again.
    pub fn look_ns(&self) -> u64 {
        self.look_ns
    }

    /// Whether nothing is held and nothing is asked, so that it may be forgotten.
    pub fn is_done(&self) -> bool {
        let held = matches!(&self.base, Base::Held { state, .. } if state.of(self.me) > 0);
        let idle = self.slots.used() == 0 && self.slots.waiting.load(Ordering::Acquire) == 0;
        self.attempt.is_none() && !held && idle && self.look_ns == u64::MAX
    }

    /// The write that is due now, if any; sets the next look. Nothing is written before `ready_ns`.
    pub fn look(
        &mut self,
        proofs: &RevisionClock,
        (now_ns, ready_ns): (u64, u64),
        leaving: bool,
    ) -> Option<SlotWrite> {
        self.slots.asked.store(false, Ordering::Release);
        if self.attempt.is_some() {
            self.look_ns = u64::MAX;
            return None;
        }
        if now_ns < self.retry_ns {
            self.look_ns = self.retry_ns;
            return None;
        }
        let mut state = self.current(proofs, now_ns);
        let held = state.of(self.me);
        let returned = proofs.went_back_ago_ns(now_ns);
        let unknown = returned.is_some_and(|ago_ns| ago_ns < TTL_NS);
        let most = self.most(&state);
        // What ends above it is not used again, before anything is written.
        self.slots.most.store(most, Ordering::Release);
        let wanted = self.wanted(&state, most, leaving, unknown);
        let waits = !leaving && self.waits(&state, wanted);
        // After an unknown outcome more may be held in the store than is granted here.
        let raise = wanted > held || wanted > self.slots.granted();
        let lower = wanted < held && !raise;
        if lower {
            self.surplus_since_ns.get_or_insert(now_ns);
        } else {
            self.surplus_since_ns = None;
        }
        // A limit that fell, and others who wait, are not kept waiting.
        let above = held > self.left(&state).min(most);
        let surplus_over = self.surplus_since_ns.is_some_and(|since_ns| {
            leaving || above || now_ns >= since_ns.saturating_add(SURPLUS_NS)
        });
        let renew_ns = self.renew_ns(&state);
        let tells = waits && state.waits_ns(self.me) <= WAIT_NS - again_ns(&state);
        if !(raise || surplus_over || now_ns >= renew_ns || tells) {
            self.full(&state, now_ns);
            let surplus_ns = self.surplus_since_ns;
            let over_ns = surplus_ns.map_or(u64::MAX, |since| since.saturating_add(SURPLUS_NS));
            self.look_ns = renew_ns.min(over_ns);
            return None;
        }
        if now_ns < ready_ns {
            self.full(&state, now_ns);
            self.look_ns = ready_ns;
            return None;
        }
        // What is granted falls before it is written, and rises only after.
        let n = match lower {
            true => self.slots.grant(wanted),
            false => wanted,
        };
        if !state.set(self.me, n, held_ns(now_ns)) {
            self.full(&state, now_ns);
            self.look_ns = now_ns.saturating_add(AGAIN_NS);
            return None;
        }
        // What it has waited for is its own until it has been of use.
        if waits || !raise {
            state.wait(self.me, waits.then_some(WAIT_NS));
        }
        Some(self.write(state, now_ns))
    }

    fn write(&mut self, next: SlotState, now_ns: u64) -> SlotWrite {
        let write = SlotWrite {
            expected: self.expected(),
            next: (!next.held.is_empty()).then(|| next.clone()),
        };
        self.attempt = Some(Attempt {
            next,
            composed_ns: now_ns,
        });
        self.look_ns = u64::MAX;
        write
    }

    /// The write was carried out.
    pub fn committed(&mut self, revision: Revision, now_ns: u64) {
        let Some(Attempt { next, composed_ns }) = self.attempt.take() else {
            return;
        };
        let n = next.of(self.me);
        self.slots.grant(n);
        let ends_ns = composed_ns.saturating_add(held_ns(composed_ns));
        self.slots.ends_ns.store(ends_ns, Ordering::Release);
        self.heard(now_ns);
        self.renewed_ns = composed_ns;
        self.surplus_since_ns = None;
        self.base = match next.held.is_empty() {
            true => Base::Absent,
            false => Base::Held {
                state: next,
                revision,
                since_ns: composed_ns,
                ours: true,
            },
        };
        self.slots.answered.notify_waiters();
        self.look_ns = now_ns;
    }

    /// The key has another value; nothing was written. Where it is what was to be written, another
    /// copy of the write was faster: it went through a peer too.
    pub fn conflicted(&mut self, seen: Option<(SlotState, Revision)>, now_ns: u64) {
        if let (Some((state, revision)), Some(attempt)) = (&seen, &self.attempt)
            && *state == attempt.next
        {
            self.committed(*revision, now_ns);
            return;
        }
        self.attempt = None;
        self.heard(now_ns);
        // What was held and is not any more is free for others, and was perhaps taken.
        let held = seen.as_ref().map_or(0, |(state, _)| state.of(self.me));
        self.slots.grant(held.min(self.slots.granted()));
        self.base = match seen {
            None => Base::Absent,
            Some((state, revision)) => Base::Held {
                state,
                revision,
                since_ns: now_ns,
                ours: false,
            },
        };
        self.look_ns = now_ns;
    }

    /// The store has answered.
    fn heard(&self, now_ns: u64) {
        self.slots.heard_ns.store(now_ns, Ordering::Release);
        self.slots.lost.store(false, Ordering::Release);
    }

    /// The write failed, or nobody knows: the next state that is seen tells, and until then no
    /// more is granted than before.
    pub fn failed(&mut self, now_ns: u64) {
        self.attempt = None;
        self.retry_ns = now_ns.saturating_add(AGAIN_NS);
        self.look_ns = self.retry_ns;
    }

    fn expected(&self) -> Option<Revision> {
        match &self.base {
            Base::Absent => None,
            Base::Held { revision, .. } => Some(*revision),
        }
    }

    fn current(&self, proofs: &RevisionClock, now_ns: u64) -> SlotState {
        let Base::Held {
            state,
            revision,
            since_ns,
            ours,
        } = &self.base
        else {
            return SlotState::default();
        };
        let own_ns = now_ns.saturating_sub(*since_ns);
        let proven_ns = match ours {
            true => 0,
            false => proofs.age_ns(*revision, now_ns),
        };
        let mut state = state.clone();
        state.pass(own_ns.max(proven_ns), self.me);
        state
    }

    /// What is in use and waited for, and a few more; never below what is in use, never above
    /// what others leave, nor above the `most` that it may hold. While it is `unknown` what others
    /// hold, no more than is granted.
    fn wanted(&self, state: &SlotState, most: u64, leaving: bool, unknown: bool) -> u64 {
        let used = self.slots.used();
        if leaving {
            return used;
        }
        let limit = self.slots.spec.load().limit;
        let waiting = self.slots.waiting.load(Ordering::Acquire);
        let active = used > 0 || waiting > 0;
        let cushion = if active { limit / 20 } else { 0 };
        let left = match unknown {
            true => self.slots.granted(),
            false => self.left(state),
        };
        let need = used.saturating_add(waiting).saturating_add(cushion);
        need.min(left).min(most).max(used)
    }

    /// What others leave.
    fn left(&self, state: &SlotState) -> u64 {
        let limit = self.slots.spec.load().limit;
        limit.saturating_sub(state.of_others(self.me))
    }

    /// The most that this node may hold: what others leave, so that where all together have too
    /// many no call begins for one that ends. While others wait, so much is left free for each that
    /// it gets on, until this one holds an equal part only; not all at once, since nobody knows how
    /// many they will use.
    fn most(&self, state: &SlotState) -> u64 {
        let limit = self.slots.spec.load().limit;
        let left = self.left(state);
        let others = state.others_wait(self.me);
        if others == 0 {
            return left;
        }
        let free = others.saturating_mul((limit / STEP).max(1));
        let most = left.saturating_sub(free);
        most.max(state.share(self.me, limit)).min(left)
    }

    /// Whether callers find nothing free although this node would hold less than an equal part.
    fn waits(&self, state: &SlotState, wanted: u64) -> bool {
        let waiting = self.slots.waiting.load(Ordering::Acquire);
        let missing = self.slots.used().saturating_add(waiting) > wanted;
        let mut known = state.clone();
        known.wait(self.me, Some(WAIT_NS));
        // What cannot be divided goes round to nobody: it would for ever.
        let share = known.least_share(self.me, self.slots.spec.load().limit);
        // Unless there is no place to say so.
        let said = known.waits_ns(self.me) > 0;
        waiting > 0 && missing && said && wanted < share.max(1)
    }

    /// Tells those who wait that all is in use.
    fn full(&self, state: &SlotState, now_ns: u64) {
        let waiting = self.slots.waiting.load(Ordering::Acquire);
        let at_hand = self.slots.granted().min(state.of(self.me));
        let most = self.slots.most.load(Ordering::Acquire);
        if waiting == 0 || self.slots.used() < at_hand.min(most) {
            return;
        }
        let until_ns = now_ns.saturating_add(REFUSED_NS);
        self.slots
            .refused_until_ns
            .store(until_ns, Ordering::Release);
        self.slots.answered.notify_waiters();
    }

    /// When its slots are to be renewed; sooner while others wait, to hear when they do not, and
    /// while they take this node to wait.
    fn renew_ns(&self, state: &SlotState) -> u64 {
        let known = state.others_wait(self.me) > 0 || state.waits_ns(self.me) > 0;
        match state.of(self.me) {
            0 => u64::MAX,
            _ if known => self.renewed_ns.saturating_add(again_ns(state)),
            _ => self.renewed_ns.saturating_add(RENEW_NS),
        }
    }
}

/// For how long slots are held by a write that was composed then.
fn held_ns(composed_ns: u64) -> u64 {
    TTL_NS - composed_ns % MARK_NS
}

/// When who waits says so again, by how many have an entry.
fn again_ns(state: &SlotState) -> u64 {
    let each_ns = WAIT_EACH_NS.saturating_mul(state.held.len() as u64);
    each_ns.clamp(WAIT_AGAIN_NS, WAIT_AGAIN_NS_MAX)
}
