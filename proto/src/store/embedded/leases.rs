//! When leases end: pure bookkeeping over a monotonic clock that the caller reads.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::store::LeaseId;

/// What a committed transaction did to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LeaseChange {
    /// It was granted with this time to live.
    Granted(LeaseId, Duration),
    /// It begins its time to live anew.
    Renewed(LeaseId),
    /// It is gone.
    Ended(LeaseId),
}

/// The leases that live, and the instants at which they end.
#[derive(Debug, Default)]
pub(super) struct LeaseClock {
    leases: HashMap<LeaseId, (Duration, Instant)>,
    ends: BTreeSet<(Instant, i64)>,
}

impl LeaseClock {
    /// Notes a change made at `now`.
    pub(super) fn apply(&mut self, change: LeaseChange, now: Instant) {
        match change {
            LeaseChange::Granted(lease, ttl) => self.start(lease, ttl, now),
            LeaseChange::Renewed(lease) => {
                if let Some((ttl, _)) = self.leases.get(&lease).copied() {
                    self.start(lease, ttl, now);
                }
            }
            LeaseChange::Ended(lease) => self.forget(lease),
        }
    }

    /// At most `count` leases whose time is over at `now`, the longest overdue first.
    pub(super) fn due(&self, now: Instant, count: usize) -> Vec<LeaseId> {
        let over = self.ends.iter().take_while(|(end, _)| *end <= now);
        over.take(count).map(|(_, lease)| LeaseId(*lease)).collect()
    }

    /// When the next lease ends.
    pub(super) fn next(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    fn start(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        self.forget(lease);
        // Times to live are bounded by `LEASE_TTL_MAX`, far from the end of the clock.
        let end = now.checked_add(ttl).unwrap_or(now);
        self.leases.insert(lease, (ttl, end));
        self.ends.insert((end, lease.0));
    }

    fn forget(&mut self, lease: LeaseId) {
        if let Some((_, end)) = self.leases.remove(&lease) {
            self.ends.remove(&(end, lease.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_its_ttl_after_its_grant_or_last_renewal() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let (a, b) = (LeaseId(1), LeaseId(2));
        let mut clock = LeaseClock::default();
        let check = |clock: &LeaseClock, seconds: u64, due: &[LeaseId], what: &str| {
            assert_eq!(clock.due(at(seconds), 10), due, "{what}");
        };
        assert_eq!(clock.next(), None, "no lease, no end");
        clock.apply(LeaseChange::Granted(a, Duration::from_secs(10)), at(0));
        clock.apply(LeaseChange::Granted(b, Duration::from_secs(5)), at(0));
        assert_eq!(clock.next(), Some(at(5)), "the earliest end is next");
        check(&clock, 4, &[], "none ends early");
        check(&clock, 5, &[b], "one ends at its time");
        check(&clock, 10, &[b, a], "the longest overdue first");
        clock.apply(LeaseChange::Renewed(b), at(4));
        check(&clock, 8, &[], "a renewed lease lives on");
        check(&clock, 9, &[b], "for its ttl");
        clock.apply(LeaseChange::Ended(b), at(9));
        check(&clock, 100, &[a], "an ended lease does not end again");
        clock.apply(LeaseChange::Renewed(b), at(100));
        check(&clock, 200, &[a], "nor does it come back");
        assert_eq!(clock.due(at(200), 0), &[], "no more than asked for");
    }
}
