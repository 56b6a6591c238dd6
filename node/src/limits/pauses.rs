//! What targets ask for is kept by all nodes: to wait, or to send less.
//!
//! Each is a key in the store under a lease of its own length, never kept alive: `pauses/` and the
//! digest of the meter's key, then nothing (the key waits), `/b` and a hash (what the target counts
//! at one of its limits waits), or `/slow` (the key gives a part of its limits). Who writes one
//! keeps to it at once; all others learn of it by their watch. It ends when its time is over on the
//! own clock, counted from when it was learned of, or when its key goes before that. One that is
//! there already is replaced by a longer one only: nodes that are told different times at once do
//! not undo each other's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::store::{Compare, KeyValue, Op, Revision, Store, StoreError, Txn, TxnOutcome};
use proto::wire::{self, Message};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::key::{self, Digest};
use super::meter::Meter;
use super::restraint::{Bucket, TENTHS};
use super::shared::Shared;

/// Where they live in the store.
pub const PREFIX: &str = "pauses/";
/// How many a process knows at a time; one more is not learned.
const KNOWN_MAX: usize = 10_000;
/// How many wait to be written.
const ASKS_MAX: usize = 1_000;
/// One that would end no later than this after the known one is not written again.
const SAME_NS: u64 = 500_000_000;
/// Longest call to the store.
const CALL_MAX: Duration = Duration::from_secs(1);

/// The value of a pause in the store.
#[derive(Serialize, Deserialize)]
struct Pause {
    /// Its length in milliseconds, from when it was written.
    ms: u64,
}

impl Message for Pause {
    const SCHEMA: u16 = wire::SCHEMA_PAUSE;
}

/// The value of a slowed key in the store.
#[derive(Serialize, Deserialize)]
struct Slow {
    ms: u64,
    /// How much of its limits it gives.
    tenths: u64,
}

impl Message for Slow {
    const SCHEMA: u16 = wire::SCHEMA_SLOW;
}

/// What is asked of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Pause,
    Bucket(Bucket),
    Slow,
}

/// One key of the store.
type Place = (Digest, Kind);

/// Until when it holds, and how much is given meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    until_ns: u64,
    tenths: u64,
    /// Where the store says so; what this process asks for is not there yet.
    revision: Option<Revision>,
}

/// What is to be written; no length: it is ended.
#[derive(Clone, Copy, Debug)]
struct Wish {
    place: Place,
    wait: Option<Duration>,
    tenths: u64,
    /// What it replaces in the store.
    replaces: Option<Revision>,
}

/// The pauses of a process.
pub struct Pauses {
    shared: Arc<Shared>,
    /// For meters that are made later as well.
    known: Mutex<HashMap<Place, Known>>,
    wishes: Mutex<Vec<Wish>>,
    woken: Notify,
    stopping: AtomicBool,
}

impl Pauses {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            known: Mutex::default(),
            wishes: Mutex::default(),
            woken: Notify::new(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.woken.notify_one();
    }

    /// Pauses a key here and everywhere; whether that is news: one that is paused as long already
    /// stays as it is.
    pub(super) fn begin(&self, digest: Digest, wait: Duration) -> bool {
        self.ask((digest, Kind::Pause), wait, 0)
    }

    /// The same for what the target counts at one of its limits.
    pub(super) fn begin_bucket(&self, digest: Digest, bucket: Bucket, wait: Duration) -> bool {
        self.ask((digest, Kind::Bucket(bucket)), wait, 0)
    }

    /// Lets a key give so many tenths of its limits, here and everywhere.
    pub(super) fn slow(&self, digest: Digest, tenths: u64, wait: Duration) -> bool {
        self.ask((digest, Kind::Slow), wait, tenths)
    }

    /// Ends what holds of a key.
    pub(super) fn end(&self, digest: Digest) {
        for kind in [Kind::Pause, Kind::Slow] {
            let place = (digest, kind);
            if lock(&self.known).contains_key(&place) {
                self.forget(place);
                self.wish(place, None, 0, None);
            }
        }
    }

    fn ask(&self, place: Place, wait: Duration, tenths: u64) -> bool {
        let now_ns = self.shared.clock.boot_ns();
        let until_ns = now_ns.saturating_add(super::nanos(wait));
        let before = lock(&self.known).get(&place).copied();
        let known = before.filter(|known| known.until_ns > now_ns && known.tenths == tenths);
        if known.is_some_and(|known| until_ns <= known.until_ns.saturating_add(SAME_NS)) {
            return false;
        }
        let replaces = before.and_then(|known| known.revision);
        let new = Known {
            until_ns,
            tenths,
            revision: None,
        };
        self.learn(place, new);
        self.wish(place, Some(wait), tenths, replaces);
        true
    }

    fn wish(&self, place: Place, wait: Option<Duration>, tenths: u64, replaces: Option<Revision>) {
        let mut wishes = lock(&self.wishes);
        if wishes.len() < ASKS_MAX {
            wishes.push(Wish {
                place,
                wait,
                tenths,
                replaces,
            });
            drop(wishes);
            self.woken.notify_one();
        }
    }

    /// Tells a meter that has just been made.
    pub(super) fn tell(&self, digest: &Digest, meter: &Arc<Meter>) {
        let known: Vec<(Kind, Known)> = {
            let known = lock(&self.known);
            let own = known.iter().filter(|((of, _), _)| of == digest);
            own.map(|((_, kind), known)| (*kind, *known)).collect()
        };
        for (kind, known) in known {
            self.put_on(meter, kind, known);
        }
    }

    /// Whether nothing is known: the usual case.
    pub(super) fn are_none(&self) -> bool {
        lock(&self.known).is_empty()
    }

    fn learn(&self, place: Place, new: Known) {
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX {
            let now_ns = self.shared.clock.boot_ns();
            known.retain(|_, known| known.until_ns > now_ns);
            if known.len() >= KNOWN_MAX && !known.contains_key(&place) {
                return;
            }
        }
        known.insert(place, new);
        drop(known);
        self.put(place, new);
    }

    fn forget(&self, place: Place) {
        lock(&self.known).remove(&place);
        let none = Known {
            until_ns: 0,
            tenths: TENTHS,
            revision: None,
        };
        self.put(place, none);
    }

    fn put(&self, (digest, kind): Place, known: Known) {
        // One that only peers have asked for lends to them what it gives.
        if let Some(meter) = self.shared.find(&key::store_key_of(&digest)) {
            self.put_on(&meter, kind, known);
        }
    }

    fn put_on(&self, meter: &Arc<Meter>, kind: Kind, known: Known) {
        match kind {
            Kind::Pause => meter.pause(known.until_ns, self.shared.clock.boot_ns()),
            Kind::Bucket(bucket) => meter.pause_bucket(bucket, known.until_ns),
            Kind::Slow => meter.slow(known.tenths, known.until_ns),
        }
    }

    /// What the store says of a key.
    pub(super) fn heard(&self, key: &str, item: Option<&KeyValue>) {
        let Some(place) = place_of(key) else {
            return;
        };
        let Some(item) = item else {
            return self.forget(place);
        };
        match decode(place.1, &item.value) {
            Ok((length, tenths)) => {
                let length_ns = super::nanos(length);
                let until_ns = self.shared.clock.boot_ns().saturating_add(length_ns);
                // One of our own that is longer is on its way to the store.
                let own = lock(&self.known).get(&place).copied();
                let longer = own.is_some_and(|own| {
                    own.revision.is_none() && own.tenths == tenths && own.until_ns > until_ns
                });
                if !longer {
                    let told = Known {
                        until_ns,
                        tenths,
                        revision: Some(item.mod_revision),
                    };
                    self.learn(place, told);
                }
            }
            Err(error) => warn!(%key, "a pause that cannot be read is passed over: {error}"),
        }
    }
}

/// Writes what is wished for; ends when the process stops.
pub(super) async fn write_all(pauses: &Pauses, store: &dyn Store) {
    loop {
        if pauses.stopping.load(Ordering::Acquire) {
            return;
        }
        let wishes = std::mem::take(&mut *lock(&pauses.wishes));
        if wishes.is_empty() {
            pauses.woken.notified().await;
            continue;
        }
        for wish in wishes {
            if pauses.stopping.load(Ordering::Acquire) {
                return;
            }
            let key = key_of(wish.place);
            let written = tokio::time::timeout(CALL_MAX, write(pauses, store, &key, wish)).await;
            let late = |_| Err(StoreError::OutcomeUnknown("no answer in time".into()));
            match (written.unwrap_or_else(late), wish.wait) {
                (Ok(()), Some(wait)) => {
                    info!(%key, "the target asked to wait {wait:?}; {key} is kept to by all nodes");
                }
                (Ok(()), None) => info!(%key, "the target answers well again; {key} is over"),
                // This process keeps to it all the same; the next answer of the kind tells again.
                (Err(error), _) => warn!(%key, "other nodes do not know of {key}: {error}"),
            }
        }
    }
}

/// Length and tenths of a value.
fn decode(kind: Kind, value: &[u8]) -> Result<(Duration, u64), wire::WireError> {
    let (ms, tenths) = match kind {
        Kind::Pause | Kind::Bucket(_) => (wire::decode::<Pause>(value)?.ms, 0),
        Kind::Slow => {
            let told = wire::decode::<Slow>(value)?;
            (told.ms, told.tenths)
        }
    };
    Ok((Duration::from_millis(ms), tenths))
}

/// Writes a pause, or ends one. One that this process had not heard of stays where it is longer.
async fn write(
    pauses: &Pauses,
    store: &dyn Store,
    key: &str,
    wish: Wish,
) -> Result<(), StoreError> {
    let Some(wait) = wish.wait else {
        let txn = Txn {
            ops: vec![Op::Delete(key.to_owned())],
            ..Txn::default()
        };
        return store.txn(txn).await.map(drop);
    };
    let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let value = match wish.place.1 {
        Kind::Pause | Kind::Bucket(_) => wire::encode(&Pause { ms }),
        Kind::Slow => wire::encode(&Slow {
            ms,
            tenths: wish.tenths,
        }),
    };
    let value = value.map_err(|error| StoreError::Invalid(error.to_string()))?;
    let lease = store.grant_lease(wait.max(Duration::from_secs(1))).await?;
    let put = Op::Put {
        key: key.to_owned(),
        value: value.into(),
        lease: Some(lease.id),
    };
    let mut replaces = wish.replaces;
    loop {
        let compare = match replaces {
            None => Compare::Absent(key.to_owned()),
            Some(revision) => Compare::ModRevision(key.to_owned(), revision),
        };
        let txn = Txn {
            compares: vec![compare],
            ops: vec![put.clone()],
            or_read: vec![key.to_owned()],
        };
        let TxnOutcome::Conflict(seen) = store.txn(txn).await? else {
            return Ok(());
        };
        let found = seen.value.into_iter().next().flatten();
        let Some(found) = found else {
            replaces = None;
            continue;
        };
        replaces = Some(found.mod_revision);
        let there = decode(wish.place.1, &found.value).ok();
        if there.is_some_and(|there| there.1 == wish.tenths && there.0 >= wait) {
            pauses.heard(key, Some(&found));
            return store.revoke_lease(lease.id).await;
        }
    }
}

fn key_of((digest, kind): Place) -> String {
    let digest = hex::encode(digest);
    match kind {
        Kind::Pause => format!("{PREFIX}{digest}"),
        Kind::Bucket(bucket) => format!("{PREFIX}{digest}/b{bucket:016x}"),
        Kind::Slow => format!("{PREFIX}{digest}/slow"),
    }
}

fn place_of(key: &str) -> Option<Place> {
    let rest = key.strip_prefix(PREFIX)?;
    let (text, kind) = match rest.split_once('/') {
        None => (rest, Kind::Pause),
        Some((text, "slow")) => (text, Kind::Slow),
        Some((text, kind)) => {
            let bucket = u64::from_str_radix(kind.strip_prefix('b')?, 16).ok()?;
            (text, Kind::Bucket(bucket))
        }
    };
    let mut digest = Digest::default();
    hex::decode_to_slice(text, &mut digest).ok()?;
    Some((digest, kind))
}

fn lock<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Pauses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pauses").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        for kind in [
            Kind::Pause,
            Kind::Bucket(0),
            Kind::Bucket(u64::MAX),
            Kind::Slow,
        ] {
            let place = ([7; 16], kind);
            assert_eq!(place_of(&key_of(place)), Some(place), "{kind:?}");
        }
        for foreign in [
            "pauses/",
            "pauses/07",
            "pauses/x/slow",
            "tokens/07",
            "pauses/07/z",
        ] {
            assert_eq!(place_of(foreign), None, "{foreign}");
        }
    }
}
