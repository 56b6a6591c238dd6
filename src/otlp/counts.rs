//! What became of the exports of this process, whatever it is: nodes and control planes count the
//! same.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::exposition::Families;

/// Those of this process.
pub static COUNTS: Counts = Counts {
    metrics_exported: AtomicU64::new(0),
    metric_export_failures: AtomicU64::new(0),
};

/// How often.
pub struct Counts {
    /// The collector took the metrics.
    pub metrics_exported: AtomicU64,
    /// It did not.
    pub metric_export_failures: AtomicU64,
}

impl Counts {
    /// One more.
    pub fn count(of: &AtomicU64) {
        of.fetch_add(1, Relaxed);
    }

    /// Adds all of them.
    pub fn add_to(&self, out: &mut Families) {
        for (name, help, count) in [
            (
                "requestrocket_metric_exports_total",
                "Times that the collector took all metrics.",
                &self.metrics_exported,
            ),
            (
                "requestrocket_metric_export_failures_total",
                "Times that the collector did not take metrics.",
                &self.metric_export_failures,
            ),
        ] {
            out.counter(name, help).is(count.load(Relaxed));
        }
    }
}
