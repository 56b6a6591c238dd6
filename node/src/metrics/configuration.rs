//! What of the configuration is in effect: enough to see a node that stays behind, or one that
//! could not make use of all of it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use proto::exposition::Families;

/// The configuration in effect.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    revision: AtomicI64,
    applied_at_ms: AtomicI64,
    compile_us: AtomicU64,
    faults: AtomicU64,
}

impl Configuration {
    pub(super) fn applied(&self, revision: i64, at_ms: i64, took: Duration, faults: usize) {
        self.revision.store(revision, Relaxed);
        self.applied_at_ms.store(at_ms, Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.compile_us.store(us, Relaxed);
        self.faults.store(faults as u64, Relaxed);
    }

    pub(super) fn collect(&self, out: &mut Families) {
        for (name, help, value) in [
            (
                "requestrocket_config_revision",
                "Revision of the store whose configuration is in effect.",
                self.revision.load(Relaxed) as f64,
            ),
            (
                "requestrocket_config_applied_timestamp_seconds",
                "When that came into effect.",
                self.applied_at_ms.load(Relaxed) as f64 / 1_000.0,
            ),
            (
                "requestrocket_config_lag_seconds",
                "How long the last change waited here to come into effect.",
                self.compile_us.load(Relaxed) as f64 / 1e6,
            ),
            (
                "requestrocket_config_faults",
                "Objects that keep an earlier form because the newest cannot be used.",
                self.faults.load(Relaxed) as f64,
            ),
        ] {
            out.gauge(name, help).is(value);
        }
    }
}
