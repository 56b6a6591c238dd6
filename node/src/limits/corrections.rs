//! What answers have cost beyond their estimates, or less: from the worker that saw an answer end
//! to the state of its key.
//!
//! An estimate is charged when its request is sent. What an answer has cost more is charged when
//! that is known, whatever is free: the state then counts more than its limit, and nothing is given
//! until that has left. What it has cost less is given back where it was charged, and only there: a
//! charge that is no longer counted is not given back. Where a state's ages differ from those of
//! the node that corrects, an older charge shrinks instead, which gives back less, never more.
//!
//! A node numbers what it has to correct and repeats it until it is in the state; the state keeps
//! the last number of each incarnation, so that a repetition, or another owner, changes nothing. Of
//! more incarnations than it has room for it forgets the one that has been silent longest. What one
//! that it does not know has to give back after such a time may have been given back already, and
//! is not.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::block::Opener;
use super::cell::Charge;
use super::state::{Charges, Instant, State};
use super::window::{calendar_window, sub_window_ns};

/// Corrections of one key that wait for the broker; of more, only what was missing is kept.
const WAITING_MAX: usize = 1_024;
/// How long after a part's end its charges are in the state, usually.
const SETTLED_NS: u64 = 300_000_000;
/// Incarnations that a state remembers.
pub const FOLDED_MAX: usize = 200;
/// A state remembers an incarnation's last number for so long, and for two windows at least. Of one
/// that it does not know, nothing is given back that is older.
const FOLDED_NS: u64 = 600_000_000_000;
/// Where there is no room, one that has been silent for so long is forgotten. It is more than
/// [`FOLDED_NS`], for ages are not exact.
const SILENT_NS: u64 = 1_200_000_000_000;
/// A calendar window is corrected by no charge so near to its beginning.
const BORDER_S: i64 = 1;
/// By so much an age may be too small: a message was on its way.
const TRIP_NS: u64 = 250_000_000;

/// One correction, on the clock of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When the estimate was charged; of what is missing, when that was known.
    pub at_ns: u64,
    /// From when on the charge is in the state.
    pub ready_ns: u64,
    /// What.
    pub change: Change,
}

/// What an answer has cost, against what was set aside for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What was set aside, where something is given back of it.
    pub reserved: u64,
    /// What is given back.
    pub less: u64,
    /// What is charged on top.
    pub more: u64,
}

/// What an incarnation has to correct, by age.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Correction {
    /// Rises with every correction of this incarnation.
    pub number: u64,
    /// (age in nanoseconds, what).
    pub changes: Vec<(u64, Change)>,
}

/// The last correction of an incarnation that is in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folded {
    /// Whose.
    pub opener: Opener,
    /// Its number.
    pub number: u64,
    /// How long ago.
    pub age_ns: u64,
}

/// What the workers have to say of one key.
#[derive(Debug, Default)]
pub(super) struct Corrections {
    waiting: Mutex<Vec<Entry>>,
}

impl Corrections {
    /// An answer has cost `actual`, for which `charges` were set aside. Whether the broker is to be
    /// told that something waits.
    pub fn add(&self, charges: &[Charge], actual: u64, now_ns: u64) -> bool {
        let reserved = charges
            .iter()
            .fold(0, |sum: u64, charge| sum.saturating_add(charge.amount));
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let before = waiting.len();
        if let Some(more) = actual.checked_sub(reserved).filter(|more| *more > 0) {
            let change = Change {
                more,
                ..Change::default()
            };
            let (at_ns, ready_ns) = (now_ns, now_ns);
            let entry = Entry {
                at_ns,
                ready_ns,
                change,
            };
            let is_more = |entry: &&mut Entry| entry.change.more > 0;
            let known = waiting.iter_mut().rev().find(is_more);
            match known.filter(|_| before >= WAITING_MAX) {
                // Charged late rather than early.
                Some(last) => {
                    last.change.add(change);
                    (last.at_ns, last.ready_ns) = (at_ns, ready_ns);
                }
                None => waiting.push(entry),
            }
        }
        let mut left = reserved.saturating_sub(actual);
        // The last to be charged is the last to leave: what is given back there helps longest.
        for charge in charges.iter().rev() {
            let less = left.min(charge.amount);
            left -= less;
            if less > 0 && waiting.len() < WAITING_MAX {
                let change = Change {
                    reserved: charge.amount,
                    less,
                    more: 0,
                };
                waiting.push(Entry {
                    at_ns: charge.at_ns,
                    ready_ns: charge.part_end_ns.saturating_add(SETTLED_NS),
                    change,
                });
            }
        }
        before == 0 && !waiting.is_empty()
    }

    pub fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Change {
    /// Adds another one of the same instant.
    pub fn add(&mut self, other: Self) {
        self.reserved = self.reserved.saturating_add(other.reserved);
        self.less = self.less.saturating_add(other.less);
        self.more = self.more.saturating_add(other.more);
    }
}

impl State {
    /// Enters a correction that another `late_ns` have passed since; false when it is in already,
    /// or cannot be.
    pub fn correct(
        &mut self,
        opener: Opener,
        correction: &Correction,
        late_ns: u64,
        unix_s: i64,
    ) -> bool {
        let place = self
            .folded
            .iter()
            .position(|folded| folded.opener == opener);
        match place.and_then(|at| self.folded.get_mut(at)) {
            Some(folded) if folded.number >= correction.number => return false,
            Some(folded) => (folded.number, folded.age_ns) = (correction.number, 0),
            None => {
                if !self.has_room_to_fold() {
                    return false;
                }
                self.folded.push(Folded {
                    opener,
                    number: correction.number,
                    age_ns: 0,
                });
            }
        }
        for (age_ns, change) in &correction.changes {
            let age_ns = age_ns.saturating_add(late_ns);
            let age_s = i64::try_from(age_ns / 1_000_000_000).unwrap_or(i64::MAX);
            let at = Instant {
                age_ns,
                unix_s: unix_s.saturating_sub(age_s),
            };
            self.charge(change.more, at);
            if place.is_some() || age_ns < FOLDED_NS {
                self.give_back(*change, at);
            }
        }
        true
    }

    /// Whether another incarnation can be remembered, in place of one that is silent if need be.
    fn has_room_to_fold(&mut self) -> bool {
        if self.folded.len() < FOLDED_MAX {
            return true;
        }
        let places = self.folded.iter().enumerate();
        let silent = places.max_by_key(|(_, folded)| folded.age_ns);
        match silent.filter(|(_, folded)| folded.age_ns > SILENT_NS) {
            Some((at, _)) => {
                self.folded.swap_remove(at);
                true
            }
            None => false,
        }
    }

    /// The last correction of an incarnation that is in it; 0 for none.
    pub fn folded(&self, opener: Opener) -> u64 {
        let mut folded = self.folded.iter();
        let known = folded.find(|folded| folded.opener == opener);
        known.map_or(0, |folded| folded.number)
    }

    /// Lets time pass over what is remembered of corrections.
    pub(super) fn pass_folded(&mut self, elapsed_ns: u64) {
        let widths = self.limits.iter().map(|usage| usage.window.width_ns());
        let keep_ns = widths.max().unwrap_or(0).saturating_mul(2).max(FOLDED_NS);
        for folded in &mut self.folded {
            folded.age_ns = folded.age_ns.saturating_add(elapsed_ns);
        }
        self.folded.retain(|folded| folded.age_ns <= keep_ns);
    }

    fn give_back(&mut self, change: Change, at: Instant) {
        for usage in &mut self.limits {
            let window = usage.window;
            match &mut usage.charges {
                Charges::Sliding(ring) => {
                    ring.give_back(at.age_ns, change.less, sub_window_ns(window));
                }
                Charges::Fixed(calendar) => {
                    let number = calendar_window(window, at.unix_s);
                    let surely = calendar_window(window, at.unix_s.saturating_sub(BORDER_S));
                    if number == surely {
                        calendar.give_back(number, change.less);
                    }
                }
                Charges::Bucket(bucket) => {
                    let age_ns = at.age_ns.saturating_add(TRIP_NS);
                    bucket.give_back(change.less, change.reserved, age_ns, window.width_ns());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::meter::{Algorithm, Limit, MeterSpec, Window};

    use super::*;
    use crate::limits::codec;

    const SECOND: u64 = 1_000_000_000;
    const ME: Opener = Opener { node: 1, boot: 7 };
    /// A second inside of a day.
    const NOON_S: i64 = 1_767_268_800;

    fn state(limits: Vec<Limit>) -> State {
        State::empty(&MeterSpec::new("", 1, limits).unwrap(), 0, NOON_S)
    }

    fn at(age_ns: u64) -> Instant {
        let age_s = (age_ns / SECOND) as i64;
        Instant {
            age_ns,
            unix_s: NOON_S - age_s,
        }
    }

    fn correction(number: u64, age_ns: u64, change: Change) -> Correction {
        Correction {
            number,
            changes: vec![(age_ns, change)],
        }
    }

    fn less(reserved: u64, less: u64) -> Change {
        Change {
            reserved,
            less,
            more: 0,
        }
    }

    #[test]
    fn a_correction_counts_once_however_often_it_comes() {
        let mut state = state(vec![Limit::new(100, Window::Minute).unwrap()]);
        state.charge(60, at(5 * SECOND));
        let first = correction(3, 5 * SECOND, less(60, 20));
        assert!(state.correct(ME, &first, 0, NOON_S));
        assert_eq!(state.free(), 60);
        assert!(!state.correct(ME, &first, 0, NOON_S));
        assert!(!state.correct(ME, &correction(2, 5 * SECOND, less(60, 20)), 0, NOON_S));
        assert_eq!((state.free(), state.folded(ME)), (60, 3));
        let other = Opener { node: 2, boot: 7 };
        assert!(state.correct(other, &first, 0, NOON_S));
        assert_eq!(state.free(), 80);
        let bytes = codec::encode(&state).unwrap();
        assert_eq!(
            codec::decode(&bytes).unwrap(),
            state,
            "and another owner knows it"
        );
    }

    #[test]
    fn what_is_missing_is_charged_beyond_the_limit_and_paid_off_first() {
        let mut state = state(vec![Limit::new(100, Window::Minute).unwrap()]);
        let more = Change {
            more: 250,
            ..Change::default()
        };
        assert!(state.correct(ME, &correction(1, 0, more), 0, NOON_S));
        assert_eq!(state.free(), 0);
        state.pass(59 * SECOND, NOON_S + 59, ME);
        assert_eq!(state.free(), 0);
        state.pass(3 * SECOND, NOON_S + 62, ME);
        assert_eq!(state.free(), 100);
    }

    #[test]
    fn nothing_is_given_back_that_is_no_longer_counted() {
        let mut state = state(vec![Limit::new(100, Window::Minute).unwrap()]);
        state.charge(60, at(2 * SECOND));
        for age_s in [62, 3_600] {
            let late = correction(age_s, age_s * SECOND, less(60, 60));
            assert!(state.correct(ME, &late, 0, NOON_S));
            assert_eq!(state.free(), 40, "{age_s}");
        }
        // Nor of a charge that is younger than the one that is corrected.
        assert!(state.correct(ME, &correction(4_000, 10 * SECOND, less(60, 60)), 0, NOON_S));
        assert_eq!(state.free(), 40);
        // An older one shrinks instead.
        assert!(state.correct(ME, &correction(4_001, 0, less(9, 5)), SECOND / 2, NOON_S));
        assert_eq!(state.free(), 45);
    }

    #[test]
    fn a_day_is_given_back_what_it_has_paid() {
        let mut state = state(vec![Limit::new(100, Window::Day).unwrap()]);
        state.charge(60, at(0));
        let yesterday = correction(1, 13 * 3_600 * SECOND, less(50, 50));
        assert!(state.correct(ME, &yesterday, 0, NOON_S));
        assert_eq!(state.free(), 40);
        assert!(state.correct(ME, &correction(2, 3_600 * SECOND, less(50, 50)), 0, NOON_S));
        assert_eq!(state.free(), 90);
        assert!(state.correct(ME, &correction(3, 0, less(50, 50)), 0, NOON_S));
        assert_eq!(state.free(), 100);
    }

    #[test]
    fn a_bucket_is_given_back_what_it_still_lacks() {
        let bucket = Limit::with_algorithm(60, Window::Minute, Algorithm::TokenBucket).unwrap();
        let mut state = state(vec![bucket]);
        state.charge(30, at(0));
        state.pass(20 * SECOND, NOON_S, ME);
        assert_eq!(state.free(), 50);
        // Of the thirty, twenty have come back by themselves, and a little more may have.
        assert!(state.correct(ME, &correction(1, 20 * SECOND, less(30, 30)), 0, NOON_S));
        assert_eq!(state.free(), 59);
        assert!(state.correct(ME, &correction(2, 40 * SECOND, less(30, 30)), 0, NOON_S));
        assert_eq!(state.free(), 59);
    }

    #[test]
    fn a_state_forgets_who_has_not_corrected_for_long_and_has_a_bound() {
        let mut state = state(vec![Limit::new(100, Window::Second).unwrap()]);
        for node in 0..FOLDED_MAX as u64 + 1 {
            let taken = state.correct(
                Opener { node, boot: 1 },
                &correction(1, 0, less(1, 1)),
                0,
                0,
            );
            assert_eq!(taken, node < FOLDED_MAX as u64);
        }
        assert!(codec::encode(&state).unwrap().len() < codec::BYTES_MAX);
        state.pass(599 * SECOND, NOON_S, ME);
        assert_eq!(state.folded.len(), FOLDED_MAX);
        state.pass(2 * SECOND, NOON_S, ME);
        assert!(state.folded.is_empty());
    }

    #[test]
    fn who_has_been_silent_longest_is_forgotten_for_others_and_gives_nothing_back_twice() {
        let mut state = state(vec![Limit::new(1_000, Window::Day).unwrap()]);
        let opener = |node| Opener { node, boot: 1 };
        state.charge(500, at(0));
        let first = correction(1, 0, less(1, 1));
        for node in 0..FOLDED_MAX as u64 {
            assert!(state.correct(opener(node), &first, 0, NOON_S));
            state.pass(10 * SECOND, NOON_S, ME);
        }
        let free = state.free();
        assert!(state.correct(opener(1_000), &first, 0, NOON_S));
        assert_eq!(state.free(), free + 1);
        assert_eq!((state.folded(opener(0)), state.folded(opener(1))), (0, 1));
        // What the forgotten one says again is as old as what was forgotten.
        assert!(state.correct(opener(0), &first, 2_000 * SECOND, NOON_S));
        assert_eq!(state.free(), free + 1, "it has been given back already");
        let more = correction(1, 0, more_of(7));
        assert!(state.correct(opener(1_001), &more, 0, NOON_S));
        assert_eq!(
            state.free(),
            free - 6,
            "what is missing is never passed over"
        );
    }

    #[test]
    fn what_is_missing_is_kept_however_much_waits_to_be_given_back() {
        let corrections = Corrections::default();
        let charge = Charge {
            at_ns: 1,
            amount: 1,
            part_end_ns: 2,
        };
        for _ in 0..=WAITING_MAX {
            corrections.add(std::slice::from_ref(&charge), 0, 9);
        }
        corrections.add(&[], 5, 10);
        corrections.add(&[], 3, 11);
        let all = corrections.take();
        let more: Vec<_> = all.iter().filter(|entry| entry.change.more > 0).collect();
        let [only] = more[..] else {
            panic!("{more:?}");
        };
        assert_eq!(
            (only.change, only.at_ns, only.ready_ns),
            (more_of(8), 11, 11)
        );
        assert_eq!(all.len(), WAITING_MAX + 1);
    }

    fn more_of(more: u64) -> Change {
        Change {
            more,
            ..Change::default()
        }
    }

    #[test]
    fn the_last_charge_is_corrected_first() {
        let corrections = Corrections::default();
        let charge = |amount, at_ns| Charge {
            amount,
            at_ns,
            part_end_ns: at_ns + 1,
        };
        let charges = [charge(10, 1), charge(20, 2)];
        assert!(corrections.add(&charges, 5, 9));
        assert!(
            !corrections.add(&charges, 40, 9),
            "the broker knows already"
        );
        assert!(!corrections.add(&charges, 30, 9), "as estimated");
        let taken: Vec<_> = corrections
            .take()
            .iter()
            .map(|e| (e.at_ns, e.change))
            .collect();
        let more = Change {
            more: 10,
            ..Change::default()
        };
        assert_eq!(taken, [(2, less(20, 20)), (1, less(10, 5)), (9, more)]);
        assert!(!corrections.add(&charges, 30, 9), "nothing to tell");
    }

    #[test]
    fn of_too_many_corrections_those_that_are_missing_stay() {
        let corrections = Corrections::default();
        for n in 0..3 * WAITING_MAX as u64 {
            corrections.add(&[], 1 + n % 2, n);
        }
        let taken = corrections.take();
        let more: u64 = taken.iter().map(|entry| entry.change.more).sum();
        assert_eq!(
            (taken.len(), more),
            (WAITING_MAX, 3 * WAITING_MAX as u64 * 3 / 2)
        );
    }
}
