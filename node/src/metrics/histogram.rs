//! A histogram of durations with fixed buckets. One addition per bucket and observation, no lock.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::head;

/// Most buckets of a histogram, without the last.
const BUCKETS_MAX: usize = 14;

/// Bounds for whole requests, in microseconds.
pub(super) const REQUEST_US: [u64; BUCKETS_MAX] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    10_000_000, 60_000_000,
];
/// Bounds for the gateway's own part of them.
pub(super) const OVERHEAD_US: [u64; BUCKETS_MAX] = [
    20, 40, 60, 80, 100, 150, 200, 300, 500, 1_000, 2_500, 5_000, 25_000, 100_000,
];

/// Counts of durations.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds_us: [u64; BUCKETS_MAX],
    buckets: [AtomicU64; BUCKETS_MAX + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds_us: [u64; BUCKETS_MAX]) -> Self {
        Self {
            bounds_us,
            buckets: Default::default(),
            sum_us: AtomicU64::new(0),
        }
    }

    pub(super) fn observe(&self, us: u64) {
        let at = self.bounds_us.iter().position(|bound| us <= *bound);
        self.buckets[at.unwrap_or(BUCKETS_MAX)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    pub(super) fn render(&self, name: &str, help: &str, out: &mut String) {
        head(name, help, "histogram", out);
        let mut count = 0;
        for (at, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Relaxed);
            let _ = match self.bounds_us.get(at) {
                Some(us) => writeln!(out, "{name}_bucket{{le=\"{}\"}} {count}", seconds(*us)),
                None => writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}"),
            };
        }
        let sum = seconds(self.sum_us.load(Relaxed));
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {count}");
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
