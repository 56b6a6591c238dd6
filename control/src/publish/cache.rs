//! One slot per organisation: its queue, and the newest version that was read or made.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use proto::id::OrgId;
use proto::keys;
use proto::store::ancestry::ancestry;
use proto::store::load::{self, LoadError};
use proto::store::{Compare, Store};
use proto::tree::{Ancestry, Head, OrgConfig, SYSTEM_ORG};
use tokio::sync::Semaphore;

use super::PublishError;
use super::regression::Regressions;

/// Publishes of one organisation that may wait at one time, the running one included.
const WAITING_MAX: usize = 64;
/// Organisations whose newest version is kept in memory.
const SLOTS_MAX: usize = 256;
/// Times a head is read again because its content was swept meanwhile.
const READS_MAX: usize = 3;

/// All slots. Bounded: the ones unused for longest go first.
#[derive(Default)]
pub(super) struct Slots {
    by_org: Mutex<HashMap<OrgId, Arc<Slot>>>,
    uses: AtomicU64,
}

/// See the module.
pub(super) struct Slot {
    /// Whoever holds it publishes; fair.
    pub queue: tokio::sync::Mutex<()>,
    /// Bounds who waits for it.
    pub waiting: Semaphore,
    /// Whether the last publish had to take the turn.
    pub races: AtomicBool,
    // Held for a clone only, never across an await.
    newest: Mutex<Option<Arc<OrgConfig>>>,
    used: AtomicU64,
}

/// A version to build on, and the compare that holds while it is the newest.
pub(super) struct Parent {
    pub config: Arc<OrgConfig>,
    pub unchanged: Compare,
}

impl Slots {
    pub fn of(&self, org: OrgId) -> Arc<Slot> {
        let use_now = self.uses.fetch_add(1, Ordering::Relaxed);
        // A poisoned map is whole: every change to it is one call.
        let mut slots = self.by_org.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SLOTS_MAX && !slots.contains_key(&org) {
            let idle = slots
                .iter()
                .filter(|(_, slot)| Arc::strong_count(slot) == 1);
            let oldest = idle.min_by_key(|(_, slot)| slot.used.load(Ordering::Relaxed));
            if let Some(oldest) = oldest.map(|(org, _)| *org) {
                slots.remove(&oldest);
            }
        }
        let slot = slots.entry(org).or_insert_with(|| {
            Arc::new(Slot {
                queue: tokio::sync::Mutex::new(()),
                waiting: Semaphore::new(WAITING_MAX),
                races: AtomicBool::new(false),
                newest: Mutex::new(None),
                used: AtomicU64::new(use_now),
            })
        });
        slot.used.store(use_now, Ordering::Relaxed);
        Arc::clone(slot)
    }
}

impl Slot {
    fn known(&self) -> Option<Arc<OrgConfig>> {
        self.newest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Remembers a version, unless a newer one is known.
    pub fn keep(&self, config: &Arc<OrgConfig>) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if is_newer(config, newest.as_deref()) {
            *newest = Some(Arc::clone(config));
        }
    }

    /// Forgets the version of an organisation that was deleted.
    pub fn forget(&self) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The newest version in the store.
    pub async fn newest(
        &self,
        store: &dyn Store,
        org: OrgId,
        regressions: &Regressions,
    ) -> Result<Parent, PublishError> {
        let mut missing = None;
        for _ in 0..READS_MAX {
            // Before the head is read: what others publish after that is no regression.
            let (known, seen) = (self.known(), regressions.seen(org));
            let found = load::head(store, org).await.map_err(unreadable)?;
            let Some((head, revision)) = found else {
                return Err(absent(org, regressions));
            };
            let unchanged = Compare::ModRevision(keys::head(org), revision);
            // Others publish too: what was seen may be newer than what was made here.
            let seen = seen.map(|state| Arc::clone(&state.config));
            let seen = seen.filter(|seen| is_newer(seen, known.as_deref()));
            refuse_regression(store, org, seen.as_deref(), &head).await?;
            // What the store has lost of a version that was seen whole is not needed of it.
            let mut here = seen.iter().chain(&known);
            if let Some(config) = here.find(|config| is_all_of(config, &head)).cloned() {
                return Ok(Parent { config, unchanged });
            }
            refuse_regression(store, org, known.as_deref(), &head).await?;
            let nearest = seen.as_deref().or(known.as_deref());
            match load::version(store, org, head, nearest).await {
                Ok(loaded) => {
                    // A version built on a part of its parent would lose the rest.
                    if let Some(fault) = loaded.faults.first() {
                        let id = fault.object.map(|id| id.to_string()).unwrap_or_default();
                        return Err(PublishError::Unreadable(format!("{id}: {}", fault.detail)));
                    }
                    let config = Arc::new(loaded.config);
                    self.keep(&config);
                    return Ok(Parent { config, unchanged });
                }
                Err(LoadError::Missing(hash)) => missing = Some(hash),
                Err(error) => return Err(unreadable(error)),
            }
        }
        let hash = missing.map(|hash| hash.to_string()).unwrap_or_default();
        Err(PublishError::Unreadable(format!("leaf {hash} is missing")))
    }
}

/// Whether one version is of a later history than another, or later in the same.
fn is_newer(one: &OrgConfig, other: Option<&OrgConfig>) -> bool {
    other.is_none_or(|other| (&other.head.epoch, other.head.n) < (&one.head.epoch, one.head.n))
}

/// Whether it is the version of a head, with what regions keep alone, that may have come since, and
/// without a part that could not be read.
fn is_all_of(known: &OrgConfig, head: &Head) -> bool {
    known.head == *head && known.withheld().next().is_none() && !known.is_damaged()
}

fn unreadable(error: LoadError) -> PublishError {
    match error {
        LoadError::Store(error) => PublishError::Store(error),
        error => PublishError::Unreadable(error.to_string()),
    }
}

/// What it means that an organisation has no head: it is none, or the store was wiped.
fn absent(org: OrgId, regressions: &Regressions) -> PublishError {
    let seen = regressions.seen(org).map(|state| state.config.head.n);
    match seen {
        Some(seen) if org == SYSTEM_ORG || regressions.witness(org).is_some() => {
            let found = 0;
            PublishError::Regressed { org, seen, found }
        }
        _ => PublishError::OrgUnknown(org),
    }
}

/// Reads are linearizable, so a head that was not made from one seen before comes from a restored
/// or wiped store.
async fn refuse_regression(
    store: &dyn Store,
    org: OrgId,
    known: Option<&OrgConfig>,
    head: &Head,
) -> Result<(), PublishError> {
    let Some(seen) = known.map(|known| &known.head) else {
        return Ok(());
    };
    match ancestry(store, org, seen, head).await? {
        // Where this process was away for so long the others have seen what lies between.
        Ancestry::Descends | Ancestry::Forgotten => Ok(()),
        Ancestry::Broken => Err(PublishError::Regressed {
            org,
            seen: seen.n,
            found: head.n,
        }),
    }
}
