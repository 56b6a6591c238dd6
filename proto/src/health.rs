//! Whether a process serves, and whether it does so from what it had before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::beat::SKEW_MAX;
use crate::boot_instant::BootInstant;
use crate::exposition::Families;

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
/// The facts were not all there are at any time that is known.
const NEVER_WHOLE: i64 = i64::MIN;

#[derive(Debug)]
struct State {
    draining: watch::Sender<bool>,
    store_away: AtomicBool,
    regressed: AtomicU64,
    /// Milliseconds that our clock is ahead of that of the last beat; [`NO_BEAT`] before one.
    clock_ahead_ms: AtomicI64,
    /// Facts grow old while the machine sleeps as well.
    begun: BootInstant,
    /// Milliseconds after `begun` at which the facts were all there are, negative for before it;
    /// [`NEVER_WHOLE`].
    facts_whole_at: AtomicI64,
    /// Panics by task.
    failed: Mutex<BTreeMap<&'static str, u64>>,
    /// Why files of the copy on disk cannot be written, by name, of those that were tried; empty
    /// while they can.
    kept: Mutex<BTreeMap<&'static str, String>>,
    /// The first task that is gone for good.
    died: watch::Sender<Option<&'static str>>,
    /// The task that was last told to panic.
    broken: watch::Sender<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            draining: watch::Sender::new(false),
            store_away: AtomicBool::default(),
            regressed: AtomicU64::default(),
            clock_ahead_ms: AtomicI64::new(NO_BEAT),
            begun: BootInstant::now(),
            facts_whole_at: AtomicI64::new(NEVER_WHOLE),
            failed: Mutex::default(),
            kept: Mutex::default(),
            died: watch::Sender::new(None),
            broken: watch::Sender::default(),
        }
    }
}

impl Health {
    /// The process ends from here on.
    pub fn drain(&self) {
        self.0.draining.send_replace(true);
    }

    /// Waits until the process ends: who keeps a connection open without a request ends it then.
    pub async fn draining(&self) {
        let mut draining = self.0.draining.subscribe();
        // The sender lives as long as `self`.
        let _ = draining.wait_for(|draining| *draining).await;
    }

    /// Whether the store was reached when it was last asked for the configuration.
    pub fn store_reached(&self, reached: bool) {
        self.0.store_away.store(!reached, Relaxed);
    }

    /// Whether the store is reached.
    pub fn has_store(&self) -> bool {
        !self.0.store_away.load(Relaxed)
    }

    /// So long ago, everything was known here that the store held: which secrets are over, above
    /// all. Proven by the store itself, by a peer, or by the age of a copy.
    pub fn facts_were_whole(&self, ago: Duration) {
        let ago_ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        let at = self.now_ms().saturating_sub(ago_ms);
        self.0.facts_whole_at.fetch_max(at, Relaxed);
    }

    /// How long ago it was last proven that everything is known here that the store holds; a few
    /// seconds while it is reached. `None`: never.
    pub fn facts_age(&self) -> Option<Duration> {
        let at = self.0.facts_whole_at.load(Relaxed);
        let age_ms = self.now_ms().saturating_sub(at);
        (at != NEVER_WHOLE).then(|| Duration::from_millis(age_ms.unsigned_abs()))
    }

    /// Whether a secret may be over for longer than this without being known here to be.
    pub fn facts_are_older_than(&self, age_max: Duration) -> bool {
        self.facts_age().is_none_or(|age| age > age_max)
    }

    fn now_ms(&self) -> i64 {
        i64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(i64::MAX)
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

    /// Whether a file of the copy on disk could be written, or why not; true when that is new.
    pub fn kept(&self, file: &'static str, error: Option<String>) -> bool {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let error = error.unwrap_or_default();
        let is_written = error.is_empty();
        let before = kept.insert(file, error);
        before.is_none_or(|before| before.is_empty()) != is_written
    }

    /// Files of the copy on disk that cannot be written, and why.
    pub fn not_kept(&self) -> BTreeMap<String, String> {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = kept.iter().filter(|(_, error)| !error.is_empty());
        failing
            .map(|(file, error)| ((*file).to_owned(), error.clone()))
            .collect()
    }

    /// A task of the process panicked and is run again.
    pub fn task_failed(&self, task: &'static str) {
        let mut failed = self.0.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed.entry(task).or_default() += 1;
    }

    /// A task of the process panicked and cannot be run again: the process is to end in order.
    pub fn task_died(&self, task: &'static str) {
        self.0.died.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(task);
            is_first
        });
    }

    /// Waits for a task that is gone for good; says which. Never ready while all are well.
    pub async fn died(&self) -> &'static str {
        let mut died = self.0.died.subscribe();
        match died.wait_for(Option::is_some).await.map(|task| *task) {
            Ok(Some(task)) => task,
            // The sender lives as long as `self`.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Lets a task that runs now panic. For tests of the process itself: see
    /// `gateway.fault_injection`.
    pub fn break_task(&self, task: &str) {
        self.0.broken.send_replace(task.to_owned());
    }

    /// Waits until this task is told to panic.
    pub(crate) async fn told_to_panic(&self, task: &str) {
        let mut broken = self.0.broken.subscribe();
        loop {
            // The sender lives as long as `self`.
            if broken.changed().await.is_err() {
                std::future::pending().await
            }
            if *broken.borrow_and_update() == task {
                return;
            }
        }
    }

    /// Tasks that panicked, and how often.
    pub fn tasks_failed(&self) -> Vec<(&'static str, u64)> {
        let failed = self.0.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.iter().map(|(task, count)| (*task, *count)).collect()
    }

    /// What is known of the store, and which tasks were run again.
    pub fn families(&self) -> Families {
        let mut out = Families::default();
        let help = "1 while the store of the configuration can be reached.";
        let family = out.gauge("requestrocket_store_reachable", help);
        family.is(u64::from(self.has_store()));
        let help = "Organisations of which the store holds less than is served.";
        let family = out.gauge("requestrocket_store_regressed", help);
        family.is(self.0.regressed.load(Relaxed) as f64);
        if let Some(offset_ms) = self.clock_ahead_ms() {
            let help = "How far this clock is ahead of that of the control plane heard last.";
            let family = out.gauge("requestrocket_clock_offset_seconds", help);
            family.is(offset_ms as f64 / 1e3);
        }
        if let Some(age) = self.facts_age() {
            let help = "How long ago it was last proven that every revoked secret is known here.";
            let family = out.gauge("requestrocket_facts_age_seconds", help);
            family.is(age.as_secs_f64());
        }
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "1 while this file of the copy of the configuration on disk cannot be written.";
        let family = out.gauge("requestrocket_kept_failing", help);
        for (file, error) in &*kept {
            family.with([("file", (*file).into())], u64::from(!error.is_empty()));
        }
        drop(kept);
        let help = "Background tasks that panicked and were run again.";
        let family = out.counter("requestrocket_task_restarts_total", help);
        for (task, count) in self.tasks_failed() {
            family.with([("task", task.into())], count);
        }
        out
    }

    /// What a probe is told now.
    pub fn readiness(&self) -> Readiness {
        match (*self.0.draining.borrow(), self.has_store()) {
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
    use crate::boot_instant::asleep;
    use crate::exposition::text::Form;

    fn text(health: &Health) -> String {
        health.families().text(Form::Prometheus)
    }

    #[test]
    fn clocks_further_apart_than_two_seconds_are_told() {
        let health = Health::default();
        assert!(!text(&health).contains("clock_offset"));
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
        let metrics = text(&health);
        assert!(metrics.contains("\nrequestrocket_clock_offset_seconds -1.999\n"));
    }

    #[test]
    fn what_cannot_be_kept_is_told_when_that_is_new() {
        let health = Health::default();
        assert!(!health.kept("kept.bin", None));
        assert!(health.not_kept().is_empty());
        assert!(text(&health).contains("requestrocket_kept_failing{file=\"kept.bin\"} 0\n"));
        assert!(health.kept("kept.bin", Some("full".into())));
        assert!(!health.kept("kept.bin", Some("still full".into())));
        assert!(health.kept("kept-facts.bin", Some("full".into())));
        assert_eq!(health.not_kept()["kept.bin"], "still full");
        assert!(text(&health).contains("requestrocket_kept_failing{file=\"kept.bin\"} 1\n"));
        assert!(health.kept("kept.bin", None));
        assert_eq!(health.not_kept().len(), 1);
    }

    #[test]
    fn the_age_of_facts_is_that_of_the_newest_proof() {
        let health = Health::default();
        assert_eq!(health.facts_age(), None);
        assert!(
            health.facts_are_older_than(Duration::MAX),
            "nothing is known"
        );
        assert!(!text(&health).contains("facts_age"));
        let (hour, day) = (Duration::from_secs(3_600), Duration::from_secs(86_400));
        health.facts_were_whole(day);
        assert!(health.facts_age().is_some_and(|age| age >= day));
        health.facts_were_whole(hour);
        health.facts_were_whole(Duration::MAX);
        assert!(
            health
                .facts_age()
                .is_some_and(|age| age >= hour && age < day)
        );
        assert!(health.facts_are_older_than(hour / 2) && !health.facts_are_older_than(day));
        assert!(text(&health).contains("\nrequestrocket_facts_age_seconds 36"));
        asleep::sleep(day);
        assert!(
            health.facts_are_older_than(day),
            "the machine slept for a day"
        );
    }

    #[test]
    fn who_ends_takes_nothing_new_and_who_has_no_store_still_does() {
        let health = Health::default();
        assert_eq!(health.readiness(), Readiness::Ready);
        health.store_reached(false);
        assert_eq!(health.clone().readiness(), Readiness::Degraded);
        assert!(health.readiness().serves());
        health.store_regressed(2);
        let metrics = text(&health);
        assert!(metrics.contains("\nrequestrocket_store_reachable 0\n"));
        assert!(metrics.contains("\nrequestrocket_store_regressed 2\n"));
        health.drain();
        assert_eq!(health.readiness(), Readiness::Draining);
        assert!(!health.readiness().serves());
    }
}
