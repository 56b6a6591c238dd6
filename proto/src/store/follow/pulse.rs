//! Proof that a watch shows what the store holds.
//!
//! A healthy member of etcd can have a stream that is stuck, and a member that is cut off from the
//! others may still hold one open: such a watch is silent, exactly like one that has nothing to
//! say. So control writes a beat under the watched prefix, it is read (linearizably) every few
//! seconds, and the watch must show the revision that was read soon after. Without a control plane
//! there is no new beat, and no change that could be missed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::beat;
use crate::boot_instant::BootInstant;
use crate::health::Health;
use crate::keys;
use crate::store::backoff::jitter;
use crate::store::{Revision, Store, StoreError, StoreFuture};

/// How long after the read a watch may take to show what was read.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);
/// Reads in a row that may fail.
const FAILURES_MAX: u32 = 3;

/// Watches over one watch.
pub(super) struct Pulse {
    store: Arc<dyn Store>,
    health: Health,
    every: Duration,
    shown_within: Duration,
    state: State,
    failures: u32,
}

enum State {
    Rests(Instant),
    Reads(StoreFuture<'static, Option<Revision>>, BootInstant),
    Awaits(Revision, Awaited),
}

/// A beat that the watch has yet to show.
#[derive(Clone, Copy)]
struct Awaited {
    /// When it was asked for: what the store held then is known once the watch shows it.
    asked: BootInstant,
    by: Instant,
}

impl Pulse {
    pub fn new(store: Arc<dyn Store>, health: Health) -> Self {
        Self::every(store, health, beat::EVERY, SHOWN_WITHIN)
    }

    fn every(
        store: Arc<dyn Store>,
        health: Health,
        every: Duration,
        shown_within: Duration,
    ) -> Self {
        Self {
            store,
            health,
            every,
            shown_within,
            state: rest(every),
            failures: 0,
        }
    }

    /// Waits until the watch, which has shown everything up to `shown`, is known to be behind, or
    /// the store cannot be read; ready for nothing else. May be dropped and called again at any
    /// time.
    pub async fn lost(&mut self, shown: Revision) -> StoreError {
        loop {
            match &mut self.state {
                State::Rests(until) => {
                    sleep_until(*until).await;
                    self.state = State::Reads(read(self.store.clone()), BootInstant::now());
                }
                State::Reads(reading, asked) => match reading.await {
                    Ok(beat) => {
                        let asked = *asked;
                        self.failures = 0;
                        let by = Instant::now() + self.shown_within;
                        self.state = match beat {
                            Some(beat) => State::Awaits(beat, Awaited { asked, by }),
                            None => self.whole(asked),
                        };
                    }
                    Err(error) => {
                        self.failures += 1;
                        self.state = rest(self.every);
                        if self.failures >= FAILURES_MAX {
                            return error;
                        }
                    }
                },
                State::Awaits(beat, awaited) if shown >= *beat => {
                    let asked = awaited.asked;
                    self.state = self.whole(asked);
                }
                State::Awaits(beat, awaited) => {
                    let beat = *beat;
                    sleep_until(awaited.by).await;
                    self.state = rest(self.every);
                    return StoreError::Unavailable(format!(
                        "the watch shows nothing after revision {shown}, but a read showed the \
                         beat of control at revision {beat} {} s ago",
                        self.shown_within.as_secs_f64()
                    ));
                }
            }
        }
    }
}

impl Pulse {
    /// The watch has shown what the store held when it was asked.
    fn whole(&self, asked: BootInstant) -> State {
        self.health.facts_were_whole(asked.elapsed());
        rest(self.every)
    }
}

/// Random, so that nodes do not read at once.
fn rest(every: Duration) -> State {
    State::Rests(Instant::now() + every / 2 + jitter(every))
}

/// The revision at which the newest beat was written.
fn read(store: Arc<dyn Store>) -> StoreFuture<'static, Option<Revision>> {
    Box::pin(async move {
        let beat = store.get(keys::BEAT).await?.value;
        Ok(beat.map(|beat| beat.mod_revision))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;
    use crate::store::{Op, Txn, TxnOutcome};

    async fn beat(store: &dyn Store) -> Revision {
        let txn = Txn {
            ops: vec![Op::put(keys::BEAT, "a beat of any release")],
            ..Txn::default()
        };
        match store.txn(txn).await.unwrap() {
            TxnOutcome::Committed(revision) => revision,
            TxnOutcome::Conflict(_) => panic!("no compares"),
        }
    }

    fn fast(store: Arc<dyn Store>) -> Pulse {
        let (every, within) = (Duration::from_millis(10), Duration::from_millis(50));
        Pulse::every(store, Health::default(), every, within)
    }

    /// Whether it stays quiet for many of its turns.
    async fn is_quiet(pulse: &mut Pulse, shown: Revision) -> bool {
        let turns = Duration::from_millis(300);
        tokio::time::timeout(turns, pulse.lost(shown))
            .await
            .is_err()
    }

    #[tokio::test]
    async fn a_watch_that_does_not_show_a_beat_is_lost_and_one_that_does_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let mut pulse = fast(store.clone());
        assert!(is_quiet(&mut pulse, Revision(0)).await, "there is no beat");
        let first = beat(&*store).await;
        assert!(is_quiet(&mut pulse, first).await, "it was shown");
        let second = beat(&*store).await;
        let lost = pulse.lost(first).await.to_string();
        let named = lost.contains(&format!("beat of control at revision {second}"));
        assert!(named, "{lost}");
        assert!(is_quiet(&mut pulse, second).await, "it was shown later");
    }

    #[tokio::test]
    async fn a_watch_that_shows_other_things_meanwhile_is_lost_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let mut pulse = fast(store.clone());
        let before = Revision(beat(&*store).await.0 - 1);
        let lost = async {
            loop {
                let step = Duration::from_millis(1);
                if let Ok(lost) = tokio::time::timeout(step, pulse.lost(before)).await {
                    return lost;
                }
            }
        };
        assert!(matches!(lost.await, StoreError::Unavailable(_)));
    }
}
