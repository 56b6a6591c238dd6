//! A histogram of durations with fixed buckets. One addition per bucket and observation, no lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use proto::exposition::{Durations, Exemplar};

/// Most buckets of a histogram, without the last.
const BUCKETS_MAX: usize = 18;

/// Bounds for whole requests, in microseconds: those that the semantic conventions of
/// OpenTelemetry recommend (5 ms to 10 s), and two more at each end, for targets nearby and for
/// answers that take their time.
pub(super) const REQUEST_US: &[u64] = &[
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000,
    1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000, 30_000_000, 60_000_000,
];
/// Bounds for the gateway's own part of them.
pub(super) const OVERHEAD_US: &[u64] = &[
    20, 40, 60, 80, 100, 150, 200, 300, 500, 1_000, 2_500, 5_000, 25_000, 100_000,
];

const _: () = assert!(REQUEST_US.len() <= BUCKETS_MAX && OVERHEAD_US.len() <= BUCKETS_MAX);

/// Counts of durations.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds_us: &'static [u64],
    buckets: [AtomicU64; BUCKETS_MAX + 1],
    sum_us: AtomicU64,
    /// At most one for each bucket, by rising value. Written by the exporter of traces alone.
    exemplars: Mutex<Vec<Exemplar>>,
}

impl Histogram {
    pub(super) fn new(bounds_us: &'static [u64]) -> Self {
        Self {
            bounds_us,
            buckets: Default::default(),
            sum_us: AtomicU64::new(0),
            exemplars: Mutex::default(),
        }
    }

    pub(super) fn observe(&self, us: u64) {
        self.buckets[self.bucket(us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    fn bucket(&self, us: u64) -> usize {
        let at = self.bounds_us.iter().position(|bound| us <= *bound);
        at.unwrap_or(self.bounds_us.len())
    }

    /// Shows this request, in the place of the one that was shown for its bucket.
    pub(super) fn exemplify(&self, exemplar: Exemplar) {
        let bucket = self.bucket(exemplar.value_us);
        let mut shown = self
            .exemplars
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let found = shown.binary_search_by_key(&bucket, |one| self.bucket(one.value_us));
        match found {
            Ok(at) => shown[at] = exemplar,
            Err(at) => shown.insert(at, exemplar),
        }
    }

    /// What was observed so far.
    pub(super) fn durations(&self) -> Durations {
        let buckets = self.buckets.iter().take(self.bounds_us.len() + 1);
        let exemplars = self
            .exemplars
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Durations {
            bounds_us: self.bounds_us,
            counts: buckets.map(|bucket| bucket.load(Relaxed)).collect(),
            sum_us: self.sum_us.load(Relaxed),
            exemplars: exemplars.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_that_the_conventions_recommend_is_there() {
        let recommended_s = [
            0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
        ];
        for bound_s in recommended_s {
            let us = (bound_s * 1e6) as u64;
            assert!(REQUEST_US.contains(&us), "{bound_s}");
        }
        assert!(REQUEST_US.is_sorted() && OVERHEAD_US.is_sorted());
    }

    #[test]
    fn one_exemplar_for_each_bucket_the_newest() {
        let histogram = Histogram::new(REQUEST_US);
        for (value_us, trace_id) in [(900, 1), (70_000_000, 2), (1_000, 3), (1_001, 4)] {
            histogram.observe(value_us);
            histogram.exemplify(Exemplar {
                value_us,
                at_ms: 0,
                trace_id,
                span_id: 0,
            });
        }
        let durations = histogram.durations();
        let shown: Vec<u128> = durations.exemplars.iter().map(|one| one.trace_id).collect();
        assert_eq!(shown, [3, 4, 2]);
        assert_eq!(durations.count(), 4);
        assert_eq!((durations.counts[0], durations.counts[18]), (2, 1));
    }
}
