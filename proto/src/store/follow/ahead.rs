//! What a watch shows while something before it is still being applied.
//!
//! A large load waits for its turn, and a revocation behind it must not: so the watch is heard on
//! meanwhile.

use std::collections::VecDeque;
use std::pin::pin;

use tokio::sync::watch;

use crate::keys::Live;
use crate::store::{Change, Event, StoreError, Watch};

/// Changes that are heard ahead of their time; with more, nothing waits any longer.
const AHEAD_MAX: usize = 256;

/// A watch that is heard ahead.
pub(super) struct Ahead {
    watch: Box<dyn Watch>,
    heard: VecDeque<Result<Change, StoreError>>,
    hurry: watch::Sender<bool>,
}

impl Ahead {
    /// Tells by `hurry` when something urgent was heard.
    pub fn of(watch: Box<dyn Watch>, hurry: watch::Sender<bool>) -> Self {
        let heard = VecDeque::new();
        Self {
            watch,
            heard,
            hurry,
        }
    }

    /// The next change.
    pub async fn next(&mut self) -> Result<Change, StoreError> {
        match self.heard.pop_front() {
            Some(change) => change,
            None => self.watch.next().await,
        }
    }

    /// Does something to its end and hears what comes meanwhile. `urgent`: it revokes something
    /// itself.
    pub async fn during<T>(&mut self, urgent: bool, done: impl Future<Output = T>) -> T {
        let mut done = pin!(done);
        self.hurry.send_replace(urgent || self.is_urgent());
        loop {
            tokio::select! {
                biased;
                outcome = &mut done => return outcome,
                next = self.watch.next(), if self.listens() => {
                    self.heard.push_back(next);
                    if self.is_urgent() {
                        self.hurry.send_replace(true);
                    }
                }
            }
        }
    }

    /// A watch that has ended says nothing more.
    fn listens(&self) -> bool {
        self.heard.len() < AHEAD_MAX && self.heard.back().is_none_or(Result::is_ok)
    }

    fn is_urgent(&self) -> bool {
        !self.listens() || self.heard.iter().flatten().any(revokes)
    }
}

/// Whether a change says that a secret is over.
pub(super) fn revokes(change: &Change) -> bool {
    let mut events = change.events.iter();
    events.any(|event| match event {
        Event::Put(pair) => matches!(Live::parse(&pair.key), Some(Live::Retired(..))),
        Event::Delete { .. } => false,
    })
}
