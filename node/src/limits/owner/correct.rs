//! What answers have cost on this node and on others, on its way into the state of a key.
//!
//! One correction of this node is on its way at a time, under a number of its own; what comes
//! meanwhile waits for the next. It goes to the owner of the key, or into our own next write, and
//! is repeated until a state is seen that has it. What is older than a window is let go of:
//! nothing of it is counted any more.

use std::collections::BTreeMap;

use super::{Around, Base, LOOK_MIN_NS, Owner, State};
use crate::limits::block::Opener;
use crate::limits::corrections::{Correction, Entry};
use crate::limits::exchange::{SpecForm, Told, Word};

/// Shortest time between two corrections of one key by one node.
const BETWEEN_NS: u64 = 125_000_000;
/// A correction that was not heard of is said again after this time.
const AGAIN_NS: u64 = 200_000_000;
/// What could not be written just now is tried again after this time.
const WRITE_NS: u64 = 10_000_000;
/// A correction is kept for one window, and for so long at least.
const KEEP_NS: u64 = 10_000_000_000;
/// Entries of one correction; the others wait for the next.
const ENTRIES_MAX: usize = 64;
/// Entries that wait; of more, only what is missing is kept.
const WAITING_MAX: usize = 1_024;
/// Incarnations whose corrections wait for a write.
const PEERS_MAX: usize = 1_024;

/// Corrections of one key.
#[derive(Debug, Default)]
pub(super) struct Correcting {
    waiting: Vec<Entry>,
    own: Option<Own>,
    next_ns: u64,
    /// What peers have said, and from when on its ages are to be counted.
    theirs: BTreeMap<Opener, (Correction, u64)>,
}

/// A correction of this node that is on its way.
#[derive(Debug)]
struct Own {
    number: u64,
    entries: Vec<Entry>,
    made_ns: u64,
    again_ns: u64,
}

impl Own {
    fn told(&self, now_ns: u64) -> Correction {
        let change = |entry: &Entry| (now_ns.saturating_sub(entry.at_ns), entry.change);
        Correction {
            number: self.number,
            changes: self.entries.iter().map(change).collect(),
        }
    }
}

impl Correcting {
    /// Whether nothing is to be corrected.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.own.is_none() && self.theirs.is_empty()
    }

    /// Whether peers wait for their corrections to be written.
    pub(super) fn owes_peers(&self) -> bool {
        !self.theirs.is_empty()
    }

    fn wait(&mut self, entry: Entry) {
        let full = self.waiting.len() >= WAITING_MAX;
        let same = self.waiting.iter_mut().find(|waiting| {
            let same_charge = (waiting.at_ns, waiting.ready_ns) == (entry.at_ns, entry.ready_ns);
            let more = |entry: &Entry| entry.change.more > 0;
            same_charge || (more(waiting) && more(&entry))
        });
        match same {
            Some(same) => {
                // What is missing is charged late rather than early.
                same.at_ns = same.at_ns.max(entry.at_ns);
                same.ready_ns = same.ready_ns.max(entry.ready_ns);
                same.change.add(entry.change);
            }
            // What is missing always counts; of those entries there is one.
            None if full && entry.change.more == 0 => {}
            None => self.waiting.push(entry),
        }
    }

    /// The entries of the next correction, which wait no longer. What is missing goes first: there
    /// may be more of the others in every round than one correction has room for.
    fn next(&mut self, now_ns: u64) -> Vec<Entry> {
        let waiting = std::mem::take(&mut self.waiting);
        let (mut ready, waiting): (Vec<Entry>, Vec<Entry>) = waiting
            .into_iter()
            .partition(|entry| entry.ready_ns <= now_ns);
        self.waiting = waiting;
        ready.sort_by_key(|entry| entry.change.more == 0);
        let rest = ready.split_off(ready.len().min(ENTRIES_MAX));
        self.waiting.extend(rest);
        ready
    }
}

impl Owner {
    /// Takes what workers have said, and makes a correction of it where one is due.
    pub(super) fn note_corrections(&mut self, around: &mut Around<'_>) {
        let now_ns = around.now.boot_ns;
        let keep_ns = self.slowest_ns().max(KEEP_NS);
        let correcting = &mut self.correcting;
        for entry in self.meter.corrections.take() {
            correcting.wait(entry);
        }
        let old = |at_ns: u64| now_ns.saturating_sub(at_ns) > keep_ns;
        correcting.waiting.retain(|entry| !old(entry.at_ns));
        correcting.theirs.retain(|_, (_, at_ns)| !old(*at_ns));
        if correcting.own.as_ref().is_some_and(|own| old(own.made_ns)) {
            correcting.own = None;
        }
        let due = now_ns >= correcting.next_ns || around.leaving;
        if correcting.own.is_some() || !due {
            return;
        }
        let ready = correcting.next(now_ns);
        if around.leaving {
            // The charges of these are not in the state yet, and nobody is there to wait for that.
            correcting.waiting.retain(|entry| entry.ready_ns <= now_ns);
        }
        if ready.is_empty() {
            return;
        }
        correcting.own = Some(Own {
            number: around.next_id,
            entries: ready,
            made_ns: now_ns,
            again_ns: now_ns,
        });
        around.next_id += 1;
        correcting.next_ns = now_ns.saturating_add(BETWEEN_NS);
    }

    /// Tells the owner of the key.
    pub(super) fn tell_correction(&mut self, around: &mut Around<'_>) {
        let now_ns = around.now.boot_ns;
        let (Some(owner), Some(own)) = (around.supplier, &mut self.correcting.own) else {
            return;
        };
        let told = self.borrowing.told(owner, now_ns);
        if now_ns >= own.again_ns {
            own.again_ns = now_ns.saturating_add(AGAIN_NS);
            let configured = self.meter.configured();
            let spec = SpecForm::from(&*configured).of(self.meter.belongs_to());
            let correction = own.told(now_ns);
            let word = match configured.share() {
                None => Word::Correct {
                    spec,
                    correction,
                    told,
                },
                Some(share) => Word::CorrectShare {
                    spec,
                    share,
                    correction,
                    told,
                },
            };
            around.out.words.push((owner, word));
        }
    }

    /// Enters what is to be corrected into a state that may be written; whether there was anything.
    pub(super) fn enter_corrections(&self, state: &mut State, around: &Around<'_>) -> bool {
        let (now_ns, unix_s) = (around.now.boot_ns, around.now.unix_s());
        let mut entered = false;
        let own = self.correcting.own.as_ref();
        if let Some(own) = own.filter(|_| around.supplier.is_none()) {
            entered |= state.correct(self.place.me, &own.told(now_ns), 0, unix_s);
        }
        for (opener, (correction, at_ns)) in &self.correcting.theirs {
            let late_ns = now_ns.saturating_sub(*at_ns);
            entered |= state.correct(*opener, correction, late_ns, unix_s);
        }
        entered
    }

    /// Lets go of what the state from the store has in it, and says so to who waits for that.
    pub(super) fn forget_corrected(&mut self) {
        let Base::Held { state, .. } = &self.base else {
            return;
        };
        let correcting = &mut self.correcting;
        if (correcting.own.as_ref()).is_some_and(|own| state.folded(self.place.me) >= own.number) {
            correcting.own = None;
        }
        let mut done = Vec::new();
        correcting.theirs.retain(|opener, (correction, _)| {
            let number = correction.number;
            let is_in = state.folded(*opener) >= number;
            if is_in {
                done.push((*opener, Word::Corrected { number }));
            }
            !is_in
        });
        done.into_iter()
            .for_each(|(to, word)| self.lending.tell(to, word));
    }

    /// A peer has something to correct. How long the message was on its way nobody knows: its ages
    /// are counted from the instant that it was told of, which is no later than the true one. What
    /// cannot be dated so is not given back: it might be taken from younger charges.
    pub fn corrected_by(
        &mut self,
        from: Opener,
        mut correction: Correction,
        told: Option<Told>,
        now_ns: u64,
    ) {
        let told = told.filter(|told| told.at_ns <= now_ns);
        let since_ns = told.map_or(now_ns, |told| {
            // Two clocks may run a thousandth apart.
            let since_ns = told.since_ns - told.since_ns / 1_000;
            told.at_ns.saturating_add(since_ns).min(now_ns)
        });
        if told.is_none() {
            correction
                .changes
                .iter_mut()
                .for_each(|(_, change)| change.less = 0);
        }
        let theirs = &mut self.correcting.theirs;
        let number = correction.number;
        let newer = theirs
            .get(&from)
            .is_none_or(|(known, _)| known.number <= number);
        if newer && (theirs.contains_key(&from) || theirs.len() < PEERS_MAX) {
            theirs.insert(from, (correction, since_ns));
        }
        self.used_ns = now_ns;
        self.forget_corrected();
    }

    /// The owner has written a correction of ours.
    pub fn corrected(&mut self, number: u64) {
        let own = &mut self.correcting.own;
        if own.as_ref().is_some_and(|own| own.number == number) {
            *own = None;
        }
    }

    /// When something is to be corrected next.
    pub(super) fn next_correction_ns(&self, around: &Around<'_>) -> u64 {
        let now_ns = around.now.boot_ns;
        let correcting = &self.correcting;
        let ready = correcting.waiting.iter().map(|entry| entry.ready_ns).min();
        let mut looks = vec![u64::MAX];
        if let (Some(ready_ns), None) = (ready, &correcting.own) {
            looks.push(ready_ns.max(correcting.next_ns));
        }
        let writes = correcting.owes_peers() || around.supplier.is_none();
        match &correcting.own {
            Some(own) if around.supplier.is_some() => looks.push(own.again_ns),
            None if !correcting.owes_peers() => {}
            _ if self.attempt.is_some() || !writes => {}
            _ if around.store_up => {
                looks.push(self.pace.ready_ns().max(now_ns.saturating_add(WRITE_NS)));
            }
            _ => looks.push(now_ns.saturating_add(AGAIN_NS)),
        }
        let next_ns = looks.into_iter().min().unwrap_or(u64::MAX);
        next_ns.max(now_ns.saturating_add(LOOK_MIN_NS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::corrections::Change;

    /// In each round come as many others as one correction has room for, and something missing.
    #[test]
    fn what_is_missing_is_not_overtaken_for_ever() {
        let mut correcting = Correcting::default();
        let mut others = 0;
        let mut less = |at_ns: u64| {
            others += 1;
            Entry {
                // Charges of their own: what is of one charge is one entry.
                at_ns: at_ns + others,
                ready_ns: at_ns,
                change: Change {
                    reserved: 2,
                    less: 1,
                    more: 0,
                },
            }
        };
        let more = |at_ns: u64| Entry {
            at_ns,
            ready_ns: at_ns,
            change: Change {
                more: 1,
                ..Change::default()
            },
        };
        for round in 0..3 {
            let now_ns = round * BETWEEN_NS;
            // Before it and behind it.
            (0..ENTRIES_MAX).for_each(|_| correcting.wait(less(now_ns)));
            correcting.wait(more(now_ns));
            (0..ENTRIES_MAX).for_each(|_| correcting.wait(less(now_ns)));
            let sent = correcting.next(now_ns);
            assert_eq!(sent.len(), ENTRIES_MAX);
            let missing: u64 = sent.iter().map(|entry| entry.change.more).sum();
            assert_eq!(missing, 1, "round {round}");
        }
    }

    #[test]
    fn what_is_not_ready_waits() {
        let mut correcting = Correcting::default();
        let change = Change {
            reserved: 2,
            less: 1,
            more: 0,
        };
        for ready_ns in [10, 20] {
            correcting.wait(Entry {
                at_ns: 1,
                ready_ns,
                change,
            });
        }
        let ready = |entries: Vec<Entry>| -> Vec<u64> {
            entries.iter().map(|entry| entry.ready_ns).collect()
        };
        assert_eq!(ready(correcting.next(10)), [10]);
        assert_eq!(ready(correcting.next(19)), [0; 0]);
        assert_eq!(ready(correcting.next(20)), [20]);
    }
}
