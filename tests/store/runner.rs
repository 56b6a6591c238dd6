//! Runs trials by name, a group of them after another, the groups side by side.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use crate::AnyStore;

/// A trial that takes longer hangs. Far above what the slowest takes on a busy machine.
const TRIAL_TIME_MAX: Duration = Duration::from_secs(120);

type Outcome = Pin<Box<dyn Future<Output = ()>>>;

/// One sentence of the contract, to be tried on a store.
pub struct Case {
    pub name: &'static str,
    run: Box<dyn Fn(AnyStore) -> Outcome + Send>,
}

/// A case from its name and what it does.
pub fn case<F, R>(name: &'static str, run: F) -> Case
where
    F: Fn(AnyStore) -> R + Send + 'static,
    R: Future<Output = ()> + 'static,
{
    Case {
        name,
        run: Box::new(move |store| Box::pin(run(store))),
    }
}

impl Case {
    /// Tries it on a store; fails by panic.
    pub fn try_on(&self, store: AnyStore) {
        block_on((self.run)(store));
    }
}

/// A test with its full name.
pub struct Trial {
    pub name: String,
    pub run: Box<dyn FnOnce() + Send>,
}

impl Trial {
    pub fn new(name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }
}

/// Waits for a future on a runtime as the workers of a node have it: a single thread.
pub fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let in_time = async { tokio::time::timeout(TRIAL_TIME_MAX, future).await };
    runtime.block_on(in_time).expect("the trial ends in time");
}

/// Runs what the command line picks and tells the result as `cargo test` does.
pub fn run(groups: Vec<Vec<Trial>>) -> ExitCode {
    let choice = Choice::read(std::env::args().skip(1));
    let picked: Vec<Vec<Trial>> = groups
        .into_iter()
        .map(|group| {
            group
                .into_iter()
                .filter(|trial| choice.picks(&trial.name))
                .collect()
        })
        .collect();
    let count: usize = picked.iter().map(Vec::len).sum();
    if choice.list {
        picked
            .iter()
            .flatten()
            .for_each(|trial| say(&format!("{}: test", trial.name)));
        return ExitCode::SUCCESS;
    }
    say(&format!("\nrunning {count} tests"));
    let failed: Vec<String> = std::thread::scope(|scope| {
        let spawn = |group| scope.spawn(move || run_group(group));
        let threads: Vec<_> = picked.into_iter().map(spawn).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("trials are caught"))
            .collect()
    });
    if !failed.is_empty() {
        say(&format!("\nfailures:\n    {}", failed.join("\n    ")));
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    let passed = count - failed.len();
    say(&format!(
        "\ntest result: {verdict}. {passed} passed; {} failed",
        failed.len()
    ));
    ExitCode::from(u8::from(!failed.is_empty()))
}

fn run_group(group: Vec<Trial>) -> Vec<String> {
    let mut failed = Vec::new();
    for Trial { name, run } in group {
        let passed = catch_unwind(AssertUnwindSafe(run)).is_ok();
        say(&format!(
            "test {name} ... {}",
            if passed { "ok" } else { "FAILED" }
        ));
        if !passed {
            failed.push(name);
        }
    }
    failed
}

fn say(line: &str) {
    // Nobody listens any more when it fails.
    let _ = writeln!(io::stdout(), "{line}");
}

/// The part of libtest's command line that picks tests; other flags change nothing.
#[derive(Default)]
struct Choice {
    parts: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    list: bool,
}

impl Choice {
    fn read(mut args: impl Iterator<Item = String>) -> Self {
        let mut choice = Self::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => choice.exact = true,
                "--list" => choice.list = true,
                "--skip" => choice.skipped.extend(args.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" | "-Z" => {
                    args.next();
                }
                flag if flag.starts_with('-') => {}
                _ => choice.parts.push(arg),
            }
        }
        choice
    }

    fn picks(&self, name: &str) -> bool {
        let fits = |part: &String| {
            if self.exact {
                name == part
            } else {
                name.contains(part)
            }
        };
        (self.parts.is_empty() || self.parts.iter().any(fits)) && !self.skipped.iter().any(fits)
    }
}
