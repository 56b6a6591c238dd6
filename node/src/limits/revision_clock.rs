//! How old a value in the store is at least, proven by the store's own revisions.
//!
//! A state in the store holds ages relative to the moment that its writer composed it. The writer
//! itself knows when that was; anybody else may only add what the store proves. Every answer
//! carries the store's revision: a value that was last changed at revision r was written before
//! any answer with a revision ≥ r was received. So it is at least as old as the oldest such
//! answer. No clock of another machine, and no wall clock, is ever believed.
//!
//! Revisions only rise, unless the store is replaced by an earlier state of itself: restored from
//! a backup, or wiped. Then what was asked when revision r was known is answered with a lower one,
//! nothing that was proven holds any more, and what was given out since that state is forgotten.

use std::collections::VecDeque;

use proto::store::Revision;

/// Spacing of the answers kept for the last minute.
const FINE_NS: u64 = 100_000_000;
/// Spacing of older ones.
const COARSE_NS: u64 = 1_000_000_000;
/// From this age on one answer per [`COARSE_NS`] is enough.
const FINE_SPAN_NS: u64 = 60 * COARSE_NS;
/// Older answers are forgotten: no sliding window is longer than an hour.
const SPAN_NS: u64 = 3_601 * COARSE_NS;
/// Bound of the log: an hour by the second and a minute by the tenth, with room to spare.
const SAMPLES_MAX: usize = 4_800;
/// How long after the store went back what peers say of it may be from before.
const PEERS_LATE_NS: u64 = 5_000_000_000;
/// What peers tell of a store that went back is what is known already if it was so shortly after.
const SAME_NS: u64 = 5_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Sample {
    received_ns: u64,
    revision: Revision,
}

/// The log of (own clock at receipt, store revision).
#[derive(Debug, Default)]
pub struct RevisionClock {
    /// Ascending in both fields.
    recent: VecDeque<Sample>,
    /// Thinned; everything here is older than everything in `recent`.
    older: VecDeque<Sample>,
    /// The highest revision that was answered.
    newest: Revision,
    /// When the store was found to have gone back last.
    went_back_ns: Option<u64>,
}

/// What was known of the store when it was asked something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asking {
    newest: Revision,
    went_back_ns: Option<u64>,
}

impl RevisionClock {
    /// What is known now, to judge by it the answer to what is asked now.
    pub fn asking(&self) -> Asking {
        Asking {
            newest: self.newest,
            went_back_ns: self.went_back_ns,
        }
    }

    /// Notes the store's answer; whether it shows that the store went back.
    pub fn answered(&mut self, asking: Asking, received_ns: u64, revision: Revision) -> bool {
        if self.is_of_before(asking) {
            // It may tell of what is no more.
            return false;
        }
        let went_back = revision < asking.newest;
        if went_back {
            self.clear(received_ns);
        }
        self.note(received_ns, revision);
        went_back
    }

    /// Whether what was asked then may have been asked of a state that the store is known by now to
    /// have gone back from.
    pub fn is_of_before(&self, asking: Asking) -> bool {
        asking.went_back_ns != self.went_back_ns
    }

    /// Notes what a peer knew of the store.
    pub fn told(&mut self, received_ns: u64, revision: Revision) {
        let late = |at_ns: u64| received_ns.saturating_sub(at_ns) < PEERS_LATE_NS;
        if !self.went_back_ns.is_some_and(late) {
            self.note(received_ns, revision);
        }
    }

    /// A peer tells when it found that the store went back; whether that is news.
    pub fn told_of_return(&mut self, at_ns: u64) -> bool {
        let known = self.went_back_ns;
        let news = known.is_none_or(|known| at_ns > known.saturating_add(SAME_NS));
        if news {
            self.clear(at_ns);
        }
        news
    }

    /// A key holds what was written before what it is known to have held: the store went back, and
    /// has had so many changes since that no revision shows it.
    pub fn found_return(&mut self, now_ns: u64) {
        self.clear(now_ns);
    }

    /// How long ago the store was found to have gone back, while a window that was begun before
    /// that may last.
    pub fn went_back_ago_ns(&self, now_ns: u64) -> Option<u64> {
        let ago_ns = now_ns.saturating_sub(self.went_back_ns?);
        (ago_ns <= SPAN_NS.saturating_mul(2)).then_some(ago_ns)
    }

    /// Notes an answer. Kept are those that prove something new, one per 100 ms: in between a
    /// taker loses at most that much ageing of a value that somebody else wrote. An answer with a
    /// lower revision than an earlier one (two calls that crossed) proves nothing.
    fn note(&mut self, received_ns: u64, revision: Revision) {
        self.newest = self.newest.max(revision);
        if let Some(last) = self.recent.back().or(self.older.back()) {
            let spaced = received_ns >= last.received_ns.saturating_add(FINE_NS);
            if revision <= last.revision || !spaced {
                return;
            }
        }
        self.recent.push_back(Sample {
            received_ns,
            revision,
        });
        self.thin(received_ns);
    }

    /// Age that the store proves for a value last changed at `revision`; 0 when it proves none.
    pub fn age_ns(&self, revision: Revision, now_ns: u64) -> u64 {
        let oldest = |samples: &VecDeque<Sample>| {
            let at = samples.partition_point(|sample| sample.revision < revision);
            samples.get(at).copied()
        };
        let sample = oldest(&self.older).or_else(|| oldest(&self.recent));
        sample.map_or(0, |sample| now_ns.saturating_sub(sample.received_ns))
    }

    /// Forgets everything that an earlier state of the store does not prove.
    fn clear(&mut self, at_ns: u64) {
        self.recent.clear();
        self.older.clear();
        self.newest = Revision::default();
        self.went_back_ns = Some(at_ns);
    }

    fn thin(&mut self, now_ns: u64) {
        while let Some(first) = self.recent.front().copied() {
            if now_ns.saturating_sub(first.received_ns) <= FINE_SPAN_NS {
                break;
            }
            self.recent.pop_front();
            let spaced = self
                .older
                .back()
                .is_none_or(|kept| first.received_ns.saturating_sub(kept.received_ns) >= COARSE_NS);
            if spaced {
                self.older.push_back(first);
            }
        }
        while let Some(first) = self.older.front() {
            let forgotten = now_ns.saturating_sub(first.received_ns) > SPAN_NS;
            if !forgotten && self.older.len() + self.recent.len() <= SAMPLES_MAX {
                break;
            }
            self.older.pop_front();
        }
        if self.recent.len() > SAMPLES_MAX {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Notes answers at (ms, revision), then asks for the age of a revision at an instant.
    fn check(answers: &[(u64, i64)], revision: i64, now_ms: u64, age_ms: u64) {
        let mut clock = RevisionClock::default();
        for (at_ms, revision) in answers {
            clock.note(at_ms * MS, Revision(*revision));
        }
        let age_ns = clock.age_ns(Revision(revision), now_ms * MS);
        assert_eq!(
            age_ns,
            age_ms * MS,
            "{answers:?}, revision {revision} at {now_ms} ms"
        );
    }

    #[test]
    fn a_value_is_as_old_as_the_oldest_answer_that_knew_its_revision() {
        check(&[], 1, 5_000, 0);
        check(&[(0, 10)], 10, 5_000, 5_000);
        check(&[(0, 10)], 11, 5_000, 0);
        check(&[(0, 10), (1_000, 20), (2_000, 30)], 11, 5_000, 4_000);
        check(&[(0, 10), (1_000, 20), (2_000, 30)], 20, 5_000, 4_000);
        check(&[(0, 10), (1_000, 20), (2_000, 30)], 21, 5_000, 3_000);
        check(&[(0, 10), (1_000, 20), (2_000, 5)], 15, 5_000, 4_000); // an answer that crossed
        check(&[(0, 10), (50, 20), (150, 30)], 15, 1_000, 850); // one per 100 ms
    }

    #[test]
    fn the_log_is_bounded_and_keeps_an_hour() {
        let mut clock = RevisionClock::default();
        let mut revision = 0;
        for at_ms in (0..7_200_000).step_by(50) {
            revision += 1;
            clock.note(at_ms * MS, Revision(revision));
        }
        assert!(clock.recent.len() + clock.older.len() <= SAMPLES_MAX);
        let now_ns = 7_200_000 * MS;
        let half_hour = Revision(revision / 4 * 3);
        let age_s = clock.age_ns(half_hour, now_ns) / 1_000_000_000;
        assert!((1_797..=1_800).contains(&age_s), "{age_s}");
    }

    #[test]
    fn a_store_that_went_back_proves_nothing_of_what_was_before() {
        let mut clock = RevisionClock::default();
        assert!(!clock.answered(clock.asking(), MS, Revision(1_500)));
        // Two calls that crossed: the later answer was asked for before the earlier one was known.
        let crossed = clock.asking();
        assert!(!clock.answered(clock.asking(), 200 * MS, Revision(1_520)));
        assert!(!clock.answered(crossed, 300 * MS, Revision(1_510)));
        let before = clock.asking();
        assert!(clock.answered(clock.asking(), 9_000 * MS, Revision(1_450)));
        assert_eq!(clock.age_ns(Revision(1_460), 9_500 * MS), 0);
        assert_eq!(clock.age_ns(Revision(1_450), 9_500 * MS), 500 * MS);
        assert_eq!(clock.went_back_ago_ns(9_500 * MS), Some(500 * MS));
        // What was asked before, and what peers knew before, is of the old store.
        assert!(!clock.answered(before, 9_600 * MS, Revision(1_530)));
        clock.told(9_700 * MS, Revision(1_530));
        assert_eq!(clock.age_ns(Revision(1_500), 10_000 * MS), 0);
        assert!(!clock.answered(clock.asking(), 9_800 * MS, Revision(1_451)));
        clock.told(15_000 * MS, Revision(1_530));
        assert_eq!(clock.age_ns(Revision(1_500), 15_500 * MS), 500 * MS);
        assert_eq!(clock.went_back_ago_ns(3 * SPAN_NS), None);
    }

    #[test]
    fn what_a_peer_tells_of_a_return_counts_once() {
        let mut clock = RevisionClock::default();
        assert!(!clock.answered(clock.asking(), MS, Revision(1_500)));
        assert!(clock.told_of_return(10_000 * MS));
        assert_eq!(clock.age_ns(Revision(1_400), 10_500 * MS), 0);
        assert!(!clock.told_of_return(9_000 * MS) && !clock.told_of_return(12_000 * MS));
        assert!(clock.told_of_return(16_000 * MS), "another one");
    }
}
