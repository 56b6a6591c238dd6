//! When content that could not be read is worth another try.
//!
//! A list of everything is much to ask of the store for what may be missing for days: the waits
//! grow, for all that is missing together. What goes missing anew begins them again, so that the
//! lasting fault of one organisation does not slow the healing of another's.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::news;
use crate::id::OrgId;
use crate::object::ObjectId;
use crate::store::backoff::jitter;
use crate::store::load::Fault;

/// The first wait, without its jitter.
const WAIT: Duration = Duration::from_secs(10);
/// The longest wait, after several tries in vain, its jitter included.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What is missing, whatever was last said of it.
type Missing = (Option<OrgId>, Option<ObjectId>, &'static str);

/// See the module.
#[derive(Default)]
pub(super) struct Retries {
    /// How often in a row all was listed for it.
    tries: u32,
    missing: BTreeSet<Missing>,
}

impl Retries {
    /// Takes note of the faults that there are; tells whether one that may heal is new.
    pub fn heard<'f>(&mut self, faults: impl Iterator<Item = &'f Fault>) -> bool {
        let hopeful = faults.filter(|fault| news::may_come(fault.code));
        let missing = hopeful.map(|fault| (fault.org, fault.object, fault.code));
        let missing: BTreeSet<Missing> = missing.collect();
        let is_new = !missing.is_subset(&self.missing);
        if is_new || missing.is_empty() {
            self.tries = 0;
        }
        self.missing = missing;
        is_new
    }

    /// Takes note that everything is about to be listed for what is missing.
    pub fn tried(&mut self) {
        self.tries = self.tries.saturating_add(1);
    }

    /// When to try again, if anything may heal.
    pub fn due(&self) -> Option<Instant> {
        let wait = self.wait();
        (!self.missing.is_empty()).then(|| Instant::now() + wait + jitter(wait))
    }

    /// The wait; its jitter is at most as long again.
    fn wait(&self) -> Duration {
        let wait = WAIT.saturating_mul(1 << self.tries.min(5));
        wait.min(WAIT_MAX / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(org: u128) -> Fault {
        Fault {
            org: Some(OrgId::from_bits(org)),
            object: None,
            code: "leaf-missing",
            detail: String::new(),
        }
    }

    #[test]
    fn what_is_missing_anew_is_looked_for_soon_however_long_another_is_missing() {
        let mut retries = Retries::default();
        assert!(retries.due().is_none());
        assert!(retries.heard([missing(1)].iter()));
        assert_eq!(retries.wait(), WAIT);
        for _ in 0..9 {
            retries.tried();
            assert!(!retries.heard([missing(1)].iter()));
        }
        assert!(retries.due().is_some());
        assert_eq!(retries.wait() * 2, WAIT_MAX, "with the longest jitter");
        assert!(retries.heard([missing(1), missing(2)].iter()));
        assert_eq!(retries.wait(), WAIT);
        retries.tried();
        assert!(
            !retries.heard([missing(1)].iter()),
            "the other one is there"
        );
        assert_eq!(retries.wait(), WAIT * 2);
        assert!(retries.heard([missing(2)].iter()), "and missing again");
        // What no waiting mends does not count.
        let unusable = Fault {
            code: "object-unusable",
            ..missing(3)
        };
        assert!(!retries.heard([unusable].iter()));
        assert!(retries.due().is_none());
        assert_eq!(retries.wait(), WAIT);
    }
}
