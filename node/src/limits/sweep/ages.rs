//! How long ago the store had which revision, as far as one node after another has seen it go by.
//!
//! It is kept in the store, moved only by compare-and-swap, and proves of a value how long it has
//! not moved: what was last changed at revision r is at least as old as the oldest revision from r
//! on that is known. Each writer adds what its own clock has counted since the one before, and the
//! revision that the log itself had then. So no wall clock is believed, a process that ends takes
//! nothing with it, and a store that goes back takes the log back with it.

use proto::store::Revision;
use proto::wire::{self, Message, WireError};
use serde::{Deserialize, Serialize};

/// Between two revisions that are kept lies so much at most, or [`APART`] of the later one's age.
const APART_NS: u64 = 15_000_000_000;
/// One in so many parts of an age: a value is found to be old by so much too late at most.
const APART: u64 = 8;
/// Most revisions of a log; those of ten years are fewer.
const ENTRIES_MAX: usize = 1_024;

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ages {
    /// (revision, how long ago the store had it at least, in nanoseconds), newest first.
    entries: Vec<(i64, u64)>,
}

impl Message for Ages {
    const SCHEMA: u16 = wire::SCHEMA_REVISION_AGES;
}

impl Ages {
    /// Lets a time pass that the own clock has counted.
    pub fn pass(&mut self, elapsed_ns: u64) {
        for (_, age_ns) in &mut self.entries {
            *age_ns = age_ns.saturating_add(elapsed_ns);
        }
    }

    /// Notes that the store had a revision so long ago; a later one than all that are known.
    pub fn note(&mut self, revision: Revision, age_ns: u64) {
        self.entries.insert(0, (revision.0, age_ns));
        let mut kept: Vec<(i64, u64)> = Vec::with_capacity(self.entries.len());
        for (at, entry) in self.entries.iter().enumerate() {
            let between = kept.last().zip(self.entries.get(at + 1));
            let spare = between.is_some_and(|((_, newer_ns), (_, older_ns))| {
                older_ns - newer_ns <= (newer_ns / APART).max(APART_NS)
            });
            if !spare {
                kept.push(*entry);
            }
        }
        self.entries = kept;
        self.entries.truncate(ENTRIES_MAX);
    }

    /// How long a value has not moved at least that was last changed at this revision.
    pub fn of(&self, revision: Revision) -> u64 {
        let later = self.entries.iter().filter(|(at, _)| *at >= revision.0);
        later.map(|(_, age_ns)| *age_ns).max().unwrap_or(0)
    }

    /// Its bytes in the store.
    ///
    /// # Errors
    /// The serializer refuses.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        wire::encode(self)
    }

    /// The log in some bytes.
    ///
    /// # Errors
    /// They are not a log of ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let ages: Self = wire::decode(bytes)?;
        let ordered = |pair: &[(i64, u64)]| pair[0].0 > pair[1].0 && pair[0].1 <= pair[1].1;
        if ages.entries.len() > ENTRIES_MAX || !ages.entries.windows(2).all(ordered) {
            return Err(WireError::Payload("revisions out of order".into()));
        }
        Ok(ages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_value_is_as_old_as_the_oldest_revision_that_had_it() {
        let mut ages = Ages::default();
        assert_eq!(ages.of(Revision(1)), 0);
        ages.note(Revision(10), SECOND);
        ages.pass(60 * SECOND);
        ages.note(Revision(20), 2 * SECOND);
        assert_eq!(ages.of(Revision(9)), 61 * SECOND);
        assert_eq!(ages.of(Revision(10)), 61 * SECOND);
        assert_eq!(ages.of(Revision(11)), 2 * SECOND);
        assert_eq!(ages.of(Revision(21)), 0);
        let again = Ages::decode(&ages.encode().unwrap()).unwrap();
        assert_eq!(again, ages);
    }

    #[test]
    fn ten_weeks_fit_and_no_age_is_told_too_high_or_much_too_low() {
        let mut ages = Ages::default();
        let (every, weeks) = (30, 10 * 7 * 86_400_u64);
        for at in (0..weeks).step_by(every) {
            ages.pass(every as u64 * SECOND);
            ages.note(Revision(at as i64), 0);
        }
        let bytes = ages.encode().unwrap();
        assert!(bytes.len() < 4_096, "{}", bytes.len());
        let last = weeks - every as u64;
        for true_s in [60, 120, 3_600, 86_400, 60 * 86_400] {
            let told_s = ages.of(Revision((last - true_s) as i64)) / SECOND;
            assert!(told_s <= true_s, "{told_s} of {true_s}");
            assert!(
                told_s + 60 >= true_s - true_s / APART,
                "{told_s} of {true_s}"
            );
        }
    }

    #[test]
    fn what_is_out_of_order_is_no_log() {
        for entries in [
            vec![(1, 5), (2, 9)],
            vec![(2, 9), (1, 5)],
            vec![(3, 1); 2],
            (0..2_000).map(|n| (3_000 - n, n as u64)).collect(),
        ] {
            let bytes = wire::encode(&Ages { entries }).unwrap();
            assert!(Ages::decode(&bytes).is_err());
        }
        assert!(Ages::decode(b"junk").is_err());
    }
}
