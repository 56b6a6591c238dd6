//! What became of the exports of this process, whatever it is: nodes and control planes count the
//! same.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::exposition::Families;

/// Those of this process.
pub static COUNTS: Counts = Counts {
    metrics_exported: AtomicU64::new(0),
    metric_export_failures: AtomicU64::new(0),
    logs_exported: AtomicU64::new(0),
    logs_dropped: AtomicU64::new(0),
    log_export_failures: AtomicU64::new(0),
};

/// How often.
pub struct Counts {
    /// The collector took the metrics.
    pub metrics_exported: AtomicU64,
    /// It did not.
    pub metric_export_failures: AtomicU64,
    /// Log lines that the collector took.
    pub logs_exported: AtomicU64,
    /// Log lines that were not kept for it, or that it did not take.
    pub logs_dropped: AtomicU64,
    /// The collector did not take log lines.
    pub log_export_failures: AtomicU64,
}

impl Counts {
    /// So many more.
    pub fn count(of: &AtomicU64, more: u64) {
        of.fetch_add(more, Relaxed);
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
            (
                "requestrocket_logs_exported_total",
                "Log lines that the collector took.",
                &self.logs_exported,
            ),
            (
                "requestrocket_logs_dropped_total",
                "Log lines that no collector got: the queue was full, or none took them.",
                &self.logs_dropped,
            ),
            (
                "requestrocket_log_export_failures_total",
                "Batches of log lines that the collector did not take.",
                &self.log_export_failures,
            ),
        ] {
            out.counter(name, help).is(count.load(Relaxed));
        }
    }
}
