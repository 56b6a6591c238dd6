//! Whether a process serves, and whether it does so from what it had before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::beat::SKEW_MAX;

/// What a readiness probe is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It serves.
    Ready,
    /// It serves, from what it had before: the store cannot be reached.
    Degraded,
    /// It is ending: requests in flight may end, new ones belong elsewhere.
    Draining,
}

impl Readiness {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ok",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
        }
    }

    /// Whether new requests belong here.
    pub fn serves(self) -> bool {
        self != Self::Draining
    }
}

/// The state behind the probes of one process; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<State>);

/// No clock was compared yet.
const NO_BEAT: i64 = i64::MIN;

#[derive(Debug)]
struct State {
    draining: AtomicBool,
    store_away: AtomicBool,
    regressed: AtomicU64,
    /// Milliseconds that our clock is ahead of that of the last beat; [`NO_BEAT`] before one.
    clock_ahead_ms: AtomicI64,
    /// Panics by task.
    failed: Mutex<BTreeMap<&'static str, u64>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            draining: AtomicBool::default(),
            store_away: AtomicBool::default(),
            regressed: AtomicU64::default(),
            clock_ahead_ms: AtomicI64::new(NO_BEAT),
            failed: Mutex::default(),
        }
    }
}

impl Health {
    /// The process ends from here on.
    pub fn drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// Whether the store was reached when it was last asked for the configuration.
    pub fn store_reached(&self, reached: bool) {
        self.0.store_away.store(!reached, Relaxed);
    }

    /// Whether the store is reached.
    pub fn has_store(&self) -> bool {
        !self.0.store_away.load(Relaxed)
    }

    /// In how many organisations the store went back behind what is served.
    pub fn store_regressed(&self, orgs: u64) {
        self.0.regressed.store(orgs, Relaxed);
    }

    /// By how many milliseconds our clock is ahead of that of the control plane `of`; negative when
    /// it is behind. Further than [`SKEW_MAX`] is logged when it begins and when it ends.
    pub fn clock_is_ahead(&self, of: &str, offset_ms: i64) {
        let before = self.0.clock_ahead_ms.swap(offset_ms, Relaxed);
        let (was, is) = (before != NO_BEAT && is_skewed(before), is_skewed(offset_ms));
        if is && !was {
            tracing::error!(
                control = of,
                offset_ms,
                "the clock of this machine is {offset_ms} ms ahead of that of control plane {of}: \
                 set both by NTP; until then keys expire and days begin at different times"
            );
        } else if was && !is {
            tracing::info!(control = of, offset_ms, "the clocks agree again");
        }
    }

    /// By how many milliseconds our clock was ahead of that of a control plane, when one was last
    /// heard; negative when it was behind.
    pub fn clock_ahead_ms(&self) -> Option<i64> {
        Some(self.0.clock_ahead_ms.load(Relaxed)).filter(|offset| *offset != NO_BEAT)
    }

    /// The same where it is further than [`SKEW_MAX`].
    pub fn skew_ms(&self) -> Option<i64> {
        self.clock_ahead_ms().filter(|offset| is_skewed(*offset))
    }

    /// A task of the process panicked and is run again.
    pub fn task_failed(&self, task: &'static str) {
        let mut failed = self.0.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed.entry(task).or_default() += 1;
    }

    /// Tasks that panicked, and how often.
    pub fn tasks_failed(&self) -> Vec<(&'static str, u64)> {
        let failed = self.0.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.iter().map(|(task, count)| (*task, *count)).collect()
    }

    /// What is known of the store, and which tasks were run again, in the Prometheus text format.
    pub fn metrics(&self) -> String {
        let name = "requestrocket_store_reachable";
        let help = "1 while the store of the configuration can be reached.";
        let value = u8::from(self.has_store());
        let mut text = format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
        let name = "requestrocket_store_regressed";
        let help = "Organisations of which the store holds less than is served.";
        let value = self.0.regressed.load(Relaxed);
        text.push_str(&format!(
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
        ));
        if let Some(offset_ms) = self.clock_ahead_ms() {
            let name = "requestrocket_clock_offset_seconds";
            let help = "How far this clock is ahead of that of the control plane heard last.";
            let value = offset_ms as f64 / 1e3;
            text.push_str(&format!(
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"
            ));
        }
        let name = "requestrocket_task_restarts_total";
        let help = "Background tasks that panicked and were run again.";
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} counter\n"));
        for (task, count) in self.tasks_failed() {
            text.push_str(&format!("{name}{{task=\"{task}\"}} {count}\n"));
        }
        text
    }

    /// What a probe is told now.
    pub fn readiness(&self) -> Readiness {
        match (self.0.draining.load(Relaxed), self.has_store()) {
            (true, _) => Readiness::Draining,
            (false, true) => Readiness::Ready,
            (false, false) => Readiness::Degraded,
        }
    }
}

fn is_skewed(offset_ms: i64) -> bool {
    u128::from(offset_ms.unsigned_abs()) > SKEW_MAX.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_further_apart_than_two_seconds_are_told() {
        let health = Health::default();
        assert!(!health.metrics().contains("clock_offset"));
        for (offset_ms, skew) in [
            (0, None),
            (2_000, None),
            (2_001, Some(2_001)),
            (-2_001, Some(-2_001)),
            (i64::MAX, Some(i64::MAX)),
            (-1_999, None),
        ] {
            health.clock_is_ahead("c1", offset_ms);
            assert_eq!(health.clock_ahead_ms(), Some(offset_ms));
            assert_eq!(health.skew_ms(), skew, "{offset_ms}");
        }
        let metrics = health.metrics();
        assert!(metrics.contains("\nrequestrocket_clock_offset_seconds -1.999\n"));
    }

    #[test]
    fn who_ends_takes_nothing_new_and_who_has_no_store_still_does() {
        let health = Health::default();
        assert_eq!(health.readiness(), Readiness::Ready);
        health.store_reached(false);
        assert_eq!(health.clone().readiness(), Readiness::Degraded);
        assert!(health.readiness().serves());
        health.store_regressed(2);
        let metrics = health.metrics();
        assert!(metrics.contains("\nrequestrocket_store_reachable 0\n"));
        assert!(metrics.contains("\nrequestrocket_store_regressed 2\n"));
        health.drain();
        assert_eq!(health.readiness(), Readiness::Draining);
        assert!(!health.readiness().serves());
    }
}
