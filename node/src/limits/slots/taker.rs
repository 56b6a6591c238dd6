//! The taker of one key: how many slots to hold, and the write that makes it so. No IO, no clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::store::Revision;

use super::state::SlotState;
use super::{REFUSED_NS, SLOT_TTL, Slots};
use crate::limits::block::Opener;
use crate::limits::revision_clock::RevisionClock;

const TTL_NS: u64 = SLOT_TTL.as_nanos() as u64;
/// Slots are renewed when a third of their time is over.
const RENEW_NS: u64 = TTL_NS / 3;
/// More than is needed is given back after this time.
const SURPLUS_NS: u64 = 500_000_000;
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

    /// The write that is due now, if any; sets the next look.
    pub fn look(
        &mut self,
        proofs: &RevisionClock,
        now_ns: u64,
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
        let wanted = self.wanted(&state, leaving, unknown);
        // After an unknown outcome more may be held in the store than is granted here.
        let raise = wanted > held || wanted > self.slots.granted();
        let lower = wanted < held && !raise;
        if lower {
            self.surplus_since_ns.get_or_insert(now_ns);
        } else {
            self.surplus_since_ns = None;
        }
        // A limit that fell is not waited for.
        let limit = self.slots.spec.load().limit;
        let above = held > limit.saturating_sub(state.of_others(self.me));
        let surplus_over = self.surplus_since_ns.is_some_and(|since_ns| {
            leaving || above || now_ns >= since_ns.saturating_add(SURPLUS_NS)
        });
        let due = held > 0 && now_ns >= self.renewed_ns.saturating_add(RENEW_NS);
        if !(raise || surplus_over || due) {
            self.full(&state, now_ns);
            self.look_ns = self.next_look(held);
            return None;
        }
        // What is granted falls before it is written, and rises only after.
        let n = match lower {
            true => self.slots.grant(wanted),
            false => wanted,
        };
        if !state.set(self.me, n, TTL_NS) {
            self.full(&state, now_ns);
            self.look_ns = now_ns.saturating_add(AGAIN_NS);
            return None;
        }
        let write = SlotWrite {
            expected: self.expected(),
            next: (!state.held.is_empty()).then(|| state.clone()),
        };
        self.attempt = Some(Attempt {
            next: state,
            composed_ns: now_ns,
        });
        self.look_ns = u64::MAX;
        Some(write)
    }

    /// The write was carried out.
    pub fn committed(&mut self, revision: Revision, now_ns: u64) {
        let Some(Attempt { next, composed_ns }) = self.attempt.take() else {
            return;
        };
        let n = next.of(self.me);
        self.slots.grant(n);
        let ends_ns = composed_ns.saturating_add(TTL_NS);
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

    /// The key has another value; nothing was written.
    pub fn conflicted(&mut self, seen: Option<(SlotState, Revision)>, now_ns: u64) {
        self.attempt = None;
        self.heard(now_ns);
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
    /// what others leave. While it is `unknown` what others hold, no more than is granted.
    fn wanted(&self, state: &SlotState, leaving: bool, unknown: bool) -> u64 {
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
            false => limit.saturating_sub(state.of_others(self.me)),
        };
        let need = used.saturating_add(waiting).saturating_add(cushion);
        need.min(left).max(used)
    }

    /// Tells those who wait that all is in use.
    fn full(&self, state: &SlotState, now_ns: u64) {
        let waiting = self.slots.waiting.load(Ordering::Acquire);
        if waiting == 0 || self.slots.used() < self.slots.granted().min(state.of(self.me)) {
            return;
        }
        let until_ns = now_ns.saturating_add(REFUSED_NS);
        self.slots
            .refused_until_ns
            .store(until_ns, Ordering::Release);
        self.slots.answered.notify_waiters();
    }

    fn next_look(&self, held: u64) -> u64 {
        let renew_ns = match held {
            0 => u64::MAX,
            _ => self.renewed_ns.saturating_add(RENEW_NS),
        };
        let surplus_ns = self.surplus_since_ns;
        let surplus_ns = surplus_ns.map_or(u64::MAX, |since| since.saturating_add(SURPLUS_NS));
        renew_ns.min(surplus_ns)
    }
}
