//! What has become of blocks whose write was sent, and where their tokens go.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::store::Revision;

use super::{Base, Candidate, Owner, Part, SETTLE_SLACK_NS, Source, State};

/// A state that cannot be read is looked at again after this time.
const UNREADABLE_NS: u64 = 1_000_000_000;

impl Owner {
    /// The write was carried out at this revision.
    pub fn committed(&mut self, revision: Revision, now_ns: u64) {
        let Some(attempt) = self.attempt.take() else {
            return;
        };
        self.loss.answered();
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

    /// The key had another value; nothing was written. `seen` is what it holds. While the store is
    /// `returning`, many write it at once: whoever is beaten again and again waits no longer than
    /// for a store that does not answer.
    pub fn conflicted(&mut self, seen: Option<(State, Revision)>, returning: bool, now_ns: u64) {
        self.loss.beaten(returning && self.shares());
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

    /// The key holds something that is not a state of ours: nothing is taken from it, nothing is
    /// written over it, and it is looked at again later.
    pub fn unreadable(&mut self, now_ns: u64) {
        self.conflicted(None, false, now_ns);
        self.blocked_until_ns = now_ns.saturating_add(UNREADABLE_NS);
    }

    /// The write failed, or nobody knows: its block stays a candidate until a state is seen.
    pub fn failed(&mut self, now_ns: u64) {
        self.loss.failed(self.shares(), self.place.grace_ns);
        self.goes_again(now_ns);
    }

    /// The write was not carried out, for a reason that is none of this key's, and goes again.
    pub fn goes_again(&mut self, now_ns: u64) {
        self.loss.goes_on(self.shares());
        self.attempt = None;
        self.look_ns = now_ns;
    }

    /// A changed limit works at once: tokens of the old one are taken back.
    pub(super) fn refresh_spec(&mut self, leaving: bool) {
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
    pub(super) fn close_finished(&mut self, now_ns: u64) {
        let cells = &self.meter.cells;
        for part in &mut self.parts {
            let sent: u64 = part.spends(cells).iter().sum();
            if now_ns >= part.block.span.end_ns || sent >= part.own_amount() {
                part.close(cells);
            }
        }
        self.loss.close_finished(cells, self.place.me, now_ns);
    }

    /// What has become of blocks, read off the state that is known now.
    pub(super) fn resolve(&mut self, now_ns: u64) {
        self.answered_ns = now_ns;
        let me = self.place.me;
        let held = match &self.base {
            Base::Held { state, .. } => Some(state),
            Base::Absent => None,
        };
        let open = |id: u64| held.is_some_and(|state| state.has(me, id));
        let cells = &self.meter.cells;
        let gone = |part: &Part| part.source == Source::Store && !open(part.block.id);
        let stats = &self.meter.shared.stats;
        for part in self.parts.iter_mut().filter(|part| gone(part)) {
            // Gone from the store: settled by us, or closed by another after its end.
            part.close(cells);
            part.account(stats);
            let drawn = part.drawn(cells, now_ns);
            self.drawn_before = self.drawn_before.saturating_add(drawn);
        }
        self.parts.retain(|part| !gone(part));
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
        self.forget_corrected();
        let due_ns = now_ns.saturating_add(SETTLE_SLACK_NS);
        let orphan = self.has_orphan();
        self.orphans_due_ns = orphan.then(|| self.orphans_due_ns.unwrap_or(due_ns));
        self.look_ns = now_ns;
    }

    /// Whether a block of ours is open in the store whose tokens nobody has.
    pub(super) fn has_orphan(&self) -> bool {
        let Base::Held { state, .. } = &self.base else {
            return false;
        };
        let stored = |part: &&Part| part.source == Source::Store;
        let known = |id: u64| {
            let mut parts = self.parts.iter().filter(stored);
            parts.any(|part| part.block.id == id)
        };
        state
            .open
            .iter()
            .any(|block| block.opener == self.place.me && !known(block.id))
    }

    /// Puts a block's tokens into a free cell, less what peers wait for, if it still has time; else
    /// it goes back whole.
    fn hand_out(&mut self, block: Candidate, now_ns: u64) {
        let (Some(cell), true) = (self.free_cell(), now_ns < block.span.end_ns) else {
            return;
        };
        let mut part = Part::new(block, Source::Store, cell);
        self.lend_of_new(&mut part, now_ns);
        self.fill(part, now_ns);
    }

    /// Opens the cell of a part, takes it on record, and rings for those who wait.
    pub(super) fn fill(&mut self, part: Part, now_ns: u64) {
        let granted = &self.meter.shared.stats.granted;
        granted.fetch_add(part.own_amount(), Ordering::Relaxed);
        self.open_cell(&part);
        self.parts.push(part);
        self.point(now_ns);
        self.meter.answered.notify_waiters();
    }

    /// Lets workers draw a part's tokens.
    pub(super) fn open_cell(&self, part: &Part) {
        if let Some(cell) = self.meter.cells.made().get(part.cell) {
            cell.open(part.own_amount(), part.block.span);
            self.meter.refused.store(0, Ordering::Relaxed);
        }
    }

    /// Lets draws begin at the part that ends first, and wake us when little is left.
    pub(super) fn point(&self, now_ns: u64) {
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
        let low = if self.is_steady(expected) {
            expected.min(self.amount_max()) / 2
        } else {
            u64::MAX
        };
        self.meter.low_water.store(low, Ordering::Relaxed);
    }
}
