//! Tasks that run as long as their process does: one that panics is run again, later each time, and
//! reported.
//!
//! A panic is a fault of ours, mostly on content that nobody foresaw. What it costs must be
//! bounded: without this the task would be gone without a word, and the process would serve an old
//! configuration for ever.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};

use crate::health::Health;

/// First and longest wait before the next run.
const WAIT_MIN: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Whoever ran for so long has recovered: the next panic is a first one.
const RECOVERED: Duration = Duration::from_secs(60);

/// The runs of one task.
pub struct Restarts {
    task: &'static str,
    health: Health,
    failures: u32,
}

impl Restarts {
    /// Of a task with this name, which logs and metrics show; kebab-case.
    pub fn of(task: &'static str, health: Health) -> Self {
        let failures = 0;
        Self {
            task,
            health,
            failures,
        }
    }

    /// What a run ended with; or nothing when it panicked, after the wait before the next one.
    /// What a run leaves behind must be usable by the next one.
    pub async fn run<T>(&mut self, run: impl Future<Output = T>) -> Option<T> {
        let begun = Instant::now();
        let panic = match AssertUnwindSafe(run).catch_unwind().await {
            Ok(value) => return Some(value),
            Err(panic) => panic,
        };
        if begun.elapsed() >= RECOVERED {
            self.failures = 0;
        }
        let wait = wait(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.health.task_failed(self.task);
        let (task, wait_ms) = (self.task, wait.as_millis());
        tracing::error!(
            task,
            wait_ms,
            "task {task} panicked ({}); it runs again in {wait_ms} ms",
            words(&*panic)
        );
        sleep(wait).await;
        None
    }

    /// A run went well although it has not ended: the next panic is a first one.
    pub fn went_well(&mut self) {
        self.failures = 0;
    }
}

/// How long the next run waits after so many panics in a row before this one.
fn wait(failures: u32) -> Duration {
    let wait = WAIT_MIN.saturating_mul(1 << failures.min(16));
    wait.min(WAIT_MAX)
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_comes_later_each_time() {
        let waits: Vec<_> = (0..40).map(wait).collect();
        assert_eq!((waits[0], waits[39]), (WAIT_MIN, WAIT_MAX));
        assert!(waits.is_sorted(), "{waits:?}");
    }

    #[tokio::test]
    async fn a_task_that_panics_is_run_again_and_reported() {
        let health = Health::default();
        let mut restarts = Restarts::of("follow", health.clone());
        assert_eq!(restarts.run(async { 7 }).await, Some(7));
        assert_eq!(health.tasks_failed(), []);
        for _ in 0..2 {
            let begun = Instant::now();
            let ended: Option<()> = restarts.run(async { panic!("on purpose") }).await;
            assert_eq!(ended, None);
            assert!(begun.elapsed() >= WAIT_MIN, "it waits");
        }
        assert_eq!(restarts.failures, 2);
        assert_eq!(restarts.run(async { 8 }).await, Some(8));
        restarts.went_well();
        assert_eq!(restarts.failures, 0);
        assert_eq!(health.tasks_failed(), [("follow", 2)]);
        let shown = "requestrocket_task_restarts_total{task=\"follow\"} 2\n";
        assert!(health.metrics().ends_with(shown), "{}", health.metrics());
    }
}
