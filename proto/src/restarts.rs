//! Tasks that run as long as their process does: one that panics is run again, later each time, and
//! reported; one that holds what no later run could have ends the process in order, so that it is
//! started anew.
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
        let run = breakable(self.task, &self.health, run);
        let panic = match AssertUnwindSafe(run).catch_unwind().await {
            Ok(value) => return Some(value),
            Err(panic) => panic,
        };
        let wait = self.wait_after(begun.elapsed());
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

    /// The wait after a run of this length that panicked.
    fn wait_after(&mut self, ran: Duration) -> Duration {
        if ran >= RECOVERED {
            self.failures = 0;
        }
        let wait = wait(self.failures);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// A run went well although it has not ended: the next panic is a first one.
    pub fn went_well(&mut self) {
        self.failures = 0;
    }
}

/// Runs a task again each time that it panics, until a run ends; `begin` makes a run.
pub async fn again<T, F: Future<Output = T>>(
    task: &'static str,
    health: Health,
    mut begin: impl FnMut() -> F,
) -> T {
    let mut restarts = Restarts::of(task, health);
    loop {
        if let Some(ended) = restarts.run(async { begin().await }).await {
            return ended;
        }
    }
}

/// Runs a task that can run only once: what it holds is lost with it. When it panics the process is
/// told to end in order ([`Health::died`]).
pub async fn once(task: &'static str, health: Health, run: impl Future<Output = ()>) {
    let run = breakable(task, &health, run);
    if let Err(panic) = AssertUnwindSafe(run).catch_unwind().await {
        tracing::error!(
            task,
            "task {task} panicked ({}): this process ends",
            words(&*panic)
        );
        health.task_failed(task);
        health.task_died(task);
    }
}

/// A run that panics when its task is told to ([`Health::break_task`]).
async fn breakable<T>(task: &'static str, health: &Health, run: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        ended = run => ended,
        () = health.told_to_panic(task) => panic!("told to"),
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

    #[test]
    fn a_task_that_panics_again_and_again_is_run_ever_less_until_it_has_run_for_a_while() {
        let mut restarts = Restarts::of("compile", Health::default());
        let mut waits = |runs: usize, ran: Duration| -> Vec<u128> {
            let wait = |_| restarts.wait_after(ran).as_millis();
            (0..runs).map(wait).collect()
        };
        let at_once = Duration::ZERO;
        let doubled = [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600];
        assert_eq!(waits(9, at_once), doubled);
        assert_eq!(waits(3, at_once), [30_000; 3]);
        let almost = RECOVERED - Duration::from_millis(1);
        assert_eq!(waits(1, almost), [30_000]);
        assert_eq!(waits(1, RECOVERED), [100]);
        assert_eq!(waits(2, at_once), [200, 400]);
    }

    #[tokio::test]
    async fn a_task_is_run_until_it_ends() {
        let health = Health::default();
        let mut runs = 0;
        let ended = again("beat", health.clone(), || {
            runs += 1;
            let run = runs;
            async move {
                assert_ne!(run, 1, "on purpose");
                run
            }
        });
        assert_eq!(ended.await, 2);
        assert_eq!(health.tasks_failed(), [("beat", 1)]);
    }

    #[tokio::test]
    async fn a_task_that_can_run_only_once_ends_the_process() {
        let health = Health::default();
        once("tokens", health.clone(), async {}).await;
        assert_eq!(health.tasks_failed(), []);
        let died = tokio::spawn({
            let health = health.clone();
            async move { health.died().await }
        });
        once("tokens", health.clone(), async { panic!("on purpose") }).await;
        assert_eq!(died.await.unwrap(), "tokens");
        assert_eq!(health.died().await, "tokens", "whenever it is asked");
        assert_eq!(health.tasks_failed(), [("tokens", 1)]);
    }

    #[tokio::test]
    async fn a_task_panics_when_it_is_told_to_and_no_other_one_does() {
        let health = Health::default();
        let mut runs = 0;
        let ended = again("beat", health.clone(), || {
            runs += 1;
            let (run, health) = (runs, health.clone());
            async move {
                if run == 1 {
                    tokio::task::yield_now().await;
                    health.break_task("follow");
                    tokio::task::yield_now().await;
                    health.break_task("beat");
                    std::future::pending::<()>().await;
                }
                run
            }
        });
        assert_eq!(ended.await, 2);
        assert_eq!(health.tasks_failed(), [("beat", 1)]);
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
        let text = health
            .families()
            .text(crate::exposition::text::Form::Prometheus);
        assert!(text.ends_with(shown), "{text}");
    }
}
