//! Pauses: a target that asks to wait is waited for, by all nodes.
//!
//! A pause is a key in the store under a lease of its own length, never kept alive: `pauses/` and
//! the digest of the meter's key, with the length as its value. Who writes one pauses its own
//! process at once; all others learn of it by their watch. A pause ends when its time is over on
//! the own clock, counted from when it was learned of, or when its key goes before that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::store::{Event, Op, Range, Revision, Store, StoreError, Txn};
use proto::wire::{self, Message};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::clock::Clock;
use super::key::Digest;
use super::meter::Meter;
use super::registry::Registry;

/// Where pauses live in the store.
pub const PREFIX: &str = "pauses/";
/// Pauses that a process knows at a time; one more is not learned.
const KNOWN_MAX: usize = 10_000;
/// Pauses that wait to be written.
const ASKS_MAX: usize = 1_000;
/// A pause that would end no later than this after the known one is not written again.
const SAME_NS: u64 = 500_000_000;
/// How long after a failure the watch is opened again.
const AGAIN: Duration = Duration::from_millis(500);
/// Longest call to the store.
const CALL_MAX: Duration = Duration::from_secs(1);
/// Keys of one page of a list.
const PAGE: usize = 500;

/// The value in the store.
#[derive(Serialize, Deserialize)]
struct Pause {
    /// Its length in milliseconds, from when it was written.
    ms: u64,
}

impl Message for Pause {
    const SCHEMA: u16 = wire::SCHEMA_PAUSE;
}

/// The pauses of a process.
pub struct Pauses {
    clock: Arc<dyn Clock>,
    meters: Arc<Registry<Meter>>,
    /// Ends on the own clock, for meters that are made later.
    known: Mutex<HashMap<Digest, u64>>,
    asks: Mutex<Vec<(Digest, Duration)>>,
    woken: Notify,
    stopping: AtomicBool,
}

impl Pauses {
    pub(super) fn new(clock: Arc<dyn Clock>, meters: Arc<Registry<Meter>>) -> Self {
        Self {
            clock,
            meters,
            known: Mutex::default(),
            asks: Mutex::default(),
            woken: Notify::new(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.woken.notify_one();
    }

    /// Pauses a key here and everywhere; one that is paused as long already stays as it is.
    pub(super) fn begin(&self, digest: Digest, wait: Duration) {
        let until_ns = self.clock.boot_ns().saturating_add(super::nanos(wait));
        let known_ns = lock(&self.known).get(&digest).copied().unwrap_or(0);
        if until_ns <= known_ns.saturating_add(SAME_NS) {
            return;
        }
        self.learn(digest, until_ns);
        let mut asks = lock(&self.asks);
        if asks.len() < ASKS_MAX {
            asks.push((digest, wait));
            drop(asks);
            self.woken.notify_one();
        }
    }

    /// When the pause of a key ends; 0 for one that is not paused.
    pub(super) fn until_ns(&self, digest: &Digest) -> u64 {
        lock(&self.known).get(digest).copied().unwrap_or(0)
    }

    fn learn(&self, digest: Digest, until_ns: u64) {
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX {
            let now_ns = self.clock.boot_ns();
            known.retain(|_, until_ns| *until_ns > now_ns);
            if known.len() >= KNOWN_MAX && !known.contains_key(&digest) {
                return;
            }
        }
        known.insert(digest, until_ns);
        drop(known);
        if let Some(meter) = self.meters.find(&digest) {
            meter.pause(until_ns);
        }
    }

    fn forget(&self, digest: &Digest) {
        lock(&self.known).remove(digest);
        if let Some(meter) = self.meters.find(digest) {
            meter.pause(0);
        }
    }

    fn put(&self, key: &str, value: &[u8]) {
        let Some(digest) = digest_of(key) else {
            return;
        };
        match wire::decode::<Pause>(value) {
            Ok(Pause { ms }) => {
                let length_ns = super::nanos(Duration::from_millis(ms));
                self.learn(digest, self.clock.boot_ns().saturating_add(length_ns));
            }
            Err(error) => warn!(%key, "a pause that cannot be read is passed over: {error}"),
        }
    }
}

/// Writes pauses and watches those of others, until the process stops.
pub(super) async fn run(pauses: Arc<Pauses>, store: Arc<dyn Store>) {
    tokio::select! {
        () = write_all(&pauses, &*store) => {}
        () = watch_all(&pauses, &*store) => {}
    }
}

/// Ends when the process stops.
async fn write_all(pauses: &Pauses, store: &dyn Store) {
    loop {
        if pauses.stopping.load(Ordering::Acquire) {
            return;
        }
        let asks = std::mem::take(&mut *lock(&pauses.asks));
        if asks.is_empty() {
            pauses.woken.notified().await;
            continue;
        }
        for (digest, wait) in asks {
            if pauses.stopping.load(Ordering::Acquire) {
                return;
            }
            let key = format!("{PREFIX}{}", hex::encode(digest));
            let written = tokio::time::timeout(CALL_MAX, write(store, &key, wait)).await;
            let late = |_| Err(StoreError::OutcomeUnknown("no answer in time".into()));
            match written.unwrap_or_else(late) {
                Ok(()) => info!(%key, "the target asked to wait {wait:?}; {key} is paused"),
                // This process waits all the same; the next answer of the kind tells again.
                Err(error) => warn!(%key, "other nodes do not know of pause {key}: {error}"),
            }
        }
    }
}

async fn write(store: &dyn Store, key: &str, wait: Duration) -> Result<(), StoreError> {
    let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let value = wire::encode(&Pause { ms });
    let value = value.map_err(|error| StoreError::Invalid(error.to_string()))?;
    let lease = store.grant_lease(wait.max(Duration::from_secs(1))).await?;
    let put = Op::Put {
        key: key.to_owned(),
        value: value.into(),
        lease: Some(lease.id),
    };
    let txn = Txn {
        ops: vec![put],
        ..Txn::default()
    };
    store.txn(txn).await.map(drop)
}

async fn watch_all(pauses: &Pauses, store: &dyn Store) {
    loop {
        if let Err(error) = watch(pauses, store).await {
            tracing::debug!("pauses are watched again: {error}");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Lists what is paused, then follows the changes; ends with the watch.
async fn watch(pauses: &Pauses, store: &dyn Store) -> Result<(), StoreError> {
    let mut range = Range {
        prefix: PREFIX.to_owned(),
        after: None,
        limit: PAGE,
        at: None,
    };
    loop {
        let page = store.range(range.clone()).await?;
        for item in &page.items {
            pauses.put(&item.key, &item.value);
        }
        range.at = Some(page.revision);
        range.after = page.items.last().map(|item| item.key.clone());
        if !page.more {
            break;
        }
    }
    let from = Revision(range.at.map_or(0, |revision| revision.0).saturating_add(1));
    let mut watch = store.watch(PREFIX, from).await?;
    loop {
        for event in watch.next().await?.events {
            match event {
                Event::Put(item) => pauses.put(&item.key, &item.value),
                Event::Delete { key, .. } => {
                    if let Some(digest) = digest_of(&key) {
                        pauses.forget(&digest);
                    }
                }
            }
        }
    }
}

fn digest_of(key: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    hex::decode_to_slice(key.strip_prefix(PREFIX)?, &mut digest).ok()?;
    Some(digest)
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Pauses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pauses").finish_non_exhaustive()
    }
}
