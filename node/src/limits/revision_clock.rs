//! How old a value in the store is at least, proven by the store's own revisions.
//!
//! A state in the store holds ages relative to the moment that its writer composed it. The writer
//! itself knows when that was; anybody else may only add what the store proves. Every answer
//! carries the store's revision: a value that was last changed at revision r was written before
//! any answer with a revision ≥ r was received. So it is at least as old as the oldest such
//! answer. No clock of another machine, and no wall clock, is ever believed.

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
}

impl RevisionClock {
    /// Notes an answer. Kept are those that prove something new, one per 100 ms: in between a
    /// taker loses at most that much ageing of a value that somebody else wrote. An answer with a
    /// lower revision than an earlier one (two calls that crossed) proves nothing.
    pub fn note(&mut self, received_ns: u64, revision: Revision) {
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

    /// Forgets everything: the store went back to an earlier state of itself.
    pub fn clear(&mut self) {
        self.recent.clear();
        self.older.clear();
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
        clock.clear();
        assert_eq!(clock.age_ns(half_hour, now_ns), 0);
    }
}
