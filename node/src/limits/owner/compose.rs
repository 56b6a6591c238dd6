//! What one look at a key decides: how many tokens are wanted, the write that follows, what the
//! workers may know of it, and when to look again.

use std::sync::Arc;

use super::{
    Around, Attempt, Base, CANDIDATES_MAX, CELLS, Candidate, Cause, Charges, LATE_NS, LOOK_MIN_NS,
    Mode, Owner, Part, Remembered, SETTLE_SLACK_NS, Source, Span, State, Verdict, View, Write,
    grid_ns, life_now_ns, life_ns,
};

/// How long a leaving process refuses what it no longer draws.
const LEAVING_NS: u64 = 60_000_000_000;

impl Owner {
    /// The newest known state, moved to now, with our own spends entered. Nothing is written.
    pub(super) fn current(&self, around: &Around<'_>) -> State {
        let (now_ns, unix_s) = (around.now.boot_ns, around.now.unix_s());
        let me = self.place.me;
        let mut state = match &self.base {
            Base::Absent => State::empty(&self.spec, now_ns, unix_s),
            Base::Held {
                state,
                revision,
                since_ns,
                ours,
            } => {
                let own_ns = now_ns.saturating_sub(*since_ns);
                let proven_ns = if *ours {
                    0
                } else {
                    around.proofs.age_ns(*revision, now_ns)
                };
                let mut state = state.clone();
                let reached_s = match around.clock_unknown {
                    true => state.ends_by(unix_s),
                    false => unix_s,
                };
                state.pass(own_ns.max(proven_ns), reached_s, me);
                if around.clock_confirmed {
                    state.set_back(unix_s);
                }
                state.adopt(&self.spec, now_ns, unix_s);
                state
            }
        };
        for part in self.stored() {
            part.settle(&mut state, me, &self.meter.cells, now_ns);
        }
        // A block of ours whose tokens were never handed out goes back whole.
        let ours = |id: u64| self.stored().any(|part| part.block.id == id);
        state
            .open
            .retain(|block| block.opener != me || ours(block.id));
        if let Some(ago_ns) = around.proofs.went_back_ago_ns(now_ns) {
            // What was at hand then may have been sent for as long as a block lives.
            let life_ns = life_ns(&self.spec).saturating_mul(around.growth);
            state.fill(ago_ns.saturating_sub(life_ns));
        }
        state.recall(&self.remembered);
        state
    }

    /// The store went back: what is known now is kept beside what it says, and is read anew before
    /// anything is given of it. Its revision was never the store's, and peers are not told of it.
    pub(crate) fn store_went_back(&mut self) {
        let known = match (&self.base, &self.borrowing.seen) {
            (Base::Held { state, .. }, _) | (Base::Absent, Some((state, _))) => state,
            (Base::Absent, None) => return,
        };
        self.remembered.keep(&Remembered::of(known));
        self.base = Base::Absent;
        self.borrowing.seen = None;
    }

    /// The newest state that is known, from the owner or from the store, moved to now.
    pub(super) fn last_seen(&self, around: &Around<'_>) -> State {
        let since_ns = match &self.base {
            Base::Absent => 0,
            Base::Held { since_ns, .. } => *since_ns,
        };
        match &self.borrowing.seen {
            Some((state, at_ns)) if *at_ns >= since_ns => {
                let (now_ns, unix_s) = (around.now.boot_ns, around.now.unix_s());
                let mut state = state.clone();
                state.pass(now_ns.saturating_sub(*at_ns), unix_s, self.place.me);
                state.adopt(&self.spec, now_ns, unix_s);
                state
            }
            _ => self.current(around),
        }
    }

    /// Parts of blocks of ours.
    pub(super) fn stored(&self) -> impl Iterator<Item = &Part> {
        let stored = |part: &&Part| part.source == Source::Store;
        self.parts.iter().filter(stored)
    }

    /// The write that is due now, if any; publishes the view and sets the next look.
    pub(super) fn compose(
        &mut self,
        around: &mut Around<'_>,
        hungry: bool,
        waiting: u64,
    ) -> Option<Write> {
        let now_ns = around.now.boot_ns;
        let me = self.place.me;
        let growth = around.growth;
        let mut next = self.current(around);
        let owns = around.supplier.is_none();
        if owns && self.may_delete(&next, now_ns) {
            return self.delete(around, now_ns);
        }
        let two_windows_ns = self.slowest_ns().saturating_mul(2);
        let mut corrected = self.enter_corrections(&mut next, around);
        if next.is_overdrawn() && self.take_back() {
            // What an answer has cost beyond the limit is paid off before anything else passes.
            next = self.current(around);
            corrected = self.enter_corrections(&mut next, around);
        }
        let entered = self.loss.enter(&mut next, me, now_ns, two_windows_ns) | corrected;
        let wanted = if around.leaving || !owns {
            0
        } else {
            self.wanted(hungry, waiting, growth, now_ns)
        };
        let at_once = self.larger(growth, waiting);
        let life_ns = life_now_ns(&self.spec, around.now, self.place.max_skew_ns, growth);
        let ready = around.may_write && now_ns >= self.pace.ready_ns();
        let border_ns = self.border_ns(&next, wanted, now_ns);
        let block = self.block(around, &next, life_ns);
        let slot = self.free_cell().is_some();
        let opened = if ready && slot && wanted > 0 && border_ns.is_none() {
            next.open(wanted, at_once, block.block(me, now_ns))
        } else {
            0
        };
        let verdict = self.verdict(&next, around, opened, life_ns);
        if opened > 0 {
            around.next_id += 1;
            if self.candidates.len() >= CANDIDATES_MAX {
                self.candidates.remove(0);
            }
            self.candidates.push(Candidate {
                amount: opened,
                ..block
            });
        }
        if owns {
            self.lending.verdict = Some(verdict);
            self.publish(&next, around, verdict, Mode::Store);
        }
        let due = entered || self.settle_due(around) || (wanted > 0 && self.owes_bucket());
        around.held_back |= !around.may_write && (due || (wanted > 0 && next.free() > 0));
        if opened == 0 && !(due && ready) {
            self.loss.not_entered();
            let look_ns = self.next_look(around, verdict, wanted > 0 || due, slot);
            self.look_ns = border_ns.map_or(look_ns, |at_ns| look_ns.max(at_ns));
            return None;
        }
        Some(self.write(Some(next), now_ns))
    }

    fn write(&mut self, next: Option<State>, now_ns: u64) -> Write {
        let expected = self.expects();
        self.pace.spend(now_ns);
        self.look_ns = self
            .live_end_ns()
            .unwrap_or(u64::MAX)
            .max(now_ns + LOOK_MIN_NS);
        let over_ns = self.grace_over_ns();
        if let Some(over_ns) = over_ns {
            self.look_ns = self.look_ns.min(over_ns.max(now_ns + LOOK_MIN_NS));
        }
        if over_ns.is_some() || self.lending.wanted() > 0 {
            self.look_ns = self.look_ns.min(now_ns.saturating_add(LATE_NS));
        }
        self.attempt = Some(Attempt {
            next: next.clone(),
            composed_ns: now_ns,
        });
        Write { expected, next }
    }

    /// The block that would be opened, counted on the finest ring's own sub-windows.
    pub(super) fn block(&self, around: &Around<'_>, state: &State, life_ns: u64) -> Candidate {
        let now_ns = around.now.boot_ns;
        let sub_ns = grid_ns(&self.spec);
        let finest = state
            .limits
            .iter()
            .filter_map(|usage| match &usage.charges {
                Charges::Sliding(ring) => Some((usage.window, ring.phase_ns)),
                Charges::Fixed(_) | Charges::Bucket(_) => None,
            });
        let phase_ns = finest.min().map_or(0, |(_, phase_ns)| phase_ns);
        let span = Span::new(now_ns, now_ns.saturating_add(life_ns), sub_ns, phase_ns);
        Candidate {
            id: around.next_id,
            amount: 0,
            span,
            unix_s: state.charged_at(around.now.unix_s()),
        }
    }

    fn verdict(&self, next: &State, around: &Around<'_>, opened: u64, life_ns: u64) -> Verdict {
        let now_ns = around.now.boot_ns;
        if around.leaving {
            let until_ns = now_ns.saturating_add(LEAVING_NS);
            return Verdict::Refuse {
                until_ns,
                cause: Cause::StoreLost,
            };
        }
        let free = next.free();
        if opened > 0 || self.meter.in_hand(now_ns) > 0 || (free > 0 && life_ns > 0) {
            return Verdict::Ask;
        }
        let in_ns = if free > 0 {
            // The calendar window ends; nothing more is opened in it.
            self.place.max_skew_ns
        } else {
            next.free_in(1, around.now.unix_ns).0
        };
        let until_ns = now_ns
            .saturating_add(in_ns.max(LOOK_MIN_NS))
            .max(self.pace.ready_ns());
        Verdict::Refuse {
            until_ns,
            cause: Cause::Empty,
        }
    }

    pub(super) fn settle_due(&self, around: &Around<'_>) -> bool {
        let now_ns = around.now.boot_ns;
        let over = |part: &Part| {
            part.is_final(now_ns)
                && (around.leaving
                    || now_ns >= part.block.span.end_ns.saturating_add(SETTLE_SLACK_NS))
        };
        let orphans = self
            .orphans_due_ns
            .is_some_and(|due_ns| around.leaving || now_ns >= due_ns);
        orphans || self.stored().any(over)
    }

    fn next_look(&self, around: &Around<'_>, verdict: Verdict, due: bool, slot: bool) -> u64 {
        let now_ns = around.now.boot_ns;
        let expects = self.is_steady(self.demand.expected());
        let mut looks = vec![u64::MAX];
        for part in &self.parts {
            let end_ns = part.block.span.end_ns;
            looks.push(match part.closed {
                Some(_) if around.leaving => part.final_by_ns().max(self.pace.ready_ns()),
                Some(_) => end_ns
                    .saturating_add(SETTLE_SLACK_NS)
                    .max(self.pace.ready_ns()),
                None => end_ns,
            });
            let ahead_ns = end_ns.saturating_sub(life_ns(&self.spec) / 4);
            if part.closed.is_none() && expects && ahead_ns > now_ns {
                looks.push(ahead_ns);
            }
        }
        match verdict {
            Verdict::Refuse { until_ns, .. } if expects || due => looks.push(until_ns),
            Verdict::Ask if due && slot => looks.push(self.pace.ready_ns()),
            _ => {}
        }
        looks.extend(
            self.orphans_due_ns
                .map(|due_ns| due_ns.max(self.pace.ready_ns())),
        );
        if matches!(self.base, Base::Held { .. }) {
            let idle_ns = self
                .used_ns
                .saturating_add(self.slowest_ns().saturating_mul(2));
            let again_ns = now_ns.saturating_add(self.slowest_ns() / 2);
            looks.push(if idle_ns > now_ns { idle_ns } else { again_ns });
        }
        let earliest = looks.into_iter().min().unwrap_or(u64::MAX);
        earliest.max(now_ns.saturating_add(LOOK_MIN_NS))
    }

    pub(super) fn slowest_ns(&self) -> u64 {
        self.spec.slowest().map_or(0, |window| window.width_ns())
    }

    pub(super) fn live_end_ns(&self) -> Option<u64> {
        let live = self.parts.iter().filter(|part| part.closed.is_none());
        live.map(|part| part.block.span.end_ns)
            .chain(self.loss.ends_ns())
            .min()
    }

    pub(super) fn free_cell(&self) -> Option<usize> {
        let busy = |cell: usize| {
            let mut live = self.parts.iter().filter(|part| part.closed.is_none());
            live.any(|part| part.cell == cell) || self.loss.uses(cell)
        };
        (0..CELLS).find(|cell| !busy(*cell))
    }

    fn may_delete(&self, next: &State, now_ns: u64) -> bool {
        let idle_ns = now_ns.saturating_sub(self.used_ns);
        matches!(self.base, Base::Held { .. })
            && idle_ns >= self.slowest_ns().saturating_mul(2)
            && self.is_settled()
            && self.correcting.is_empty()
            && self.candidates.is_empty()
            && !self.loss.has_credit()
            && next.is_idle()
    }

    fn delete(&mut self, around: &Around<'_>, now_ns: u64) -> Option<Write> {
        if around.may_write {
            return Some(self.write(None, now_ns));
        }
        self.look_ns = now_ns.saturating_add(LOOK_MIN_NS);
        None
    }

    pub(super) fn publish(&self, state: &State, around: &Around<'_>, verdict: Verdict, mode: Mode) {
        self.meter.publish(View {
            spec: Arc::clone(&self.spec),
            state: state.clone(),
            at: around.now,
            verdict,
            mode,
            answered_ns: self.answered_ns,
            coming: self.coming(),
        });
        if verdict != Verdict::Ask {
            self.meter.answered.notify_waiters();
        }
    }
}
