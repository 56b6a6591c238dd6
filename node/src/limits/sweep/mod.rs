//! Deletes keys of limits that nobody uses any more: whoever used one deletes it when it is idle,
//! but a process that was killed does not.
//!
//! One node of a region does it: the one whose log of ages ([`ages`]) is in the store, which it
//! writes again and again while there are keys. A node whose log does not move is followed by
//! another. Every deletion compares the log, and the key with what was read of it: of two that
//! sweep, of one that slept, and of one that speaks to a store that went back, nothing is deleted
//! that has moved. Who still holds a deleted state finds the key absent, and all that its state
//! said is over: it begins anew.

mod ages;
mod dead;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::keys::SWEPT;
use proto::store::{Compare, KeyValue, Op, Range, Revision, Store, StoreError, Txn, TxnOutcome};
use tracing::{debug, info, warn};

use super::clock::Clock;
use super::shared::Shared;
use super::{key, slots};
use ages::Ages;

#[cfg(test)]
pub(super) use dead::is_over;

/// What is swept.
const PREFIXES: [&str; 2] = [key::PREFIX, slots::PREFIX];
/// Keys read at a time.
const PAGE_KEYS: usize = 500;
/// Keys deleted in one transaction; each is compared too.
const AT_ONCE: usize = 50;
/// Time between two pages.
const PAGE_EVERY: Duration = Duration::from_secs(5);
/// Time until all is looked through again, and until another node is looked at.
const PASS_EVERY: Duration = Duration::from_secs(60);
/// How often the log is written while there are keys.
const LOG_EVERY_NS: u64 = 30_000_000_000;
/// A log that has not moved for so long has no writer any more.
const SILENT_NS: u64 = 150_000_000_000;

/// The log as this process last knew it.
#[derive(Debug)]
struct Log {
    ages: Ages,
    /// Of its last write.
    revision: Revision,
    /// An instant that is not before its ages are told for.
    since_ns: u64,
    /// An instant at which the store had its revision.
    known_ns: u64,
    ours: bool,
}

/// What one process has swept.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    log: Option<Log>,
    /// Of [`PREFIXES`].
    prefix: usize,
    /// The last key that was read of it.
    after: Option<String>,
    /// Keys that this pass has deleted.
    deleted: u64,
}

/// Sweeps until it is dropped.
pub(super) async fn run(store: Arc<dyn Store>, shared: Arc<Shared>) {
    let mut sweep = Sweep::default();
    let mut pause = PAGE_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        pause = match sweep.turn(&*store, &shared).await {
            Ok(pause) => pause,
            Err(error) => {
                debug!("idle keys of limits are not swept for now: {error}");
                PASS_EVERY
            }
        };
    }
}

impl Sweep {
    /// One page, if this node is the one that sweeps. Gives the time until the next turn.
    ///
    /// # Errors
    /// The store did not answer.
    async fn turn(&mut self, store: &dyn Store, shared: &Shared) -> Result<Duration, StoreError> {
        let clock = &*shared.clock;
        if !self.read_log(store, clock).await? || !self.leads(clock.boot_ns()) {
            return Ok(PASS_EVERY);
        }
        let Some(prefix) = PREFIXES.get(self.prefix) else {
            return Ok(self.end());
        };
        let range = Range {
            prefix: (*prefix).to_owned(),
            after: self.after.take(),
            limit: PAGE_KEYS,
            at: None,
        };
        let page = store.range(range).await?;
        if !page.items.is_empty() && !self.write_log(store, clock).await? {
            return Ok(PASS_EVERY);
        }
        match (page.more, page.items.last()) {
            (true, Some(last)) => self.after = Some(last.key.clone()),
            _ => self.prefix += 1,
        }
        let now_ns = clock.boot_ns();
        let dead = |pair: &&KeyValue| {
            dead::is_dead(
                &pair.key,
                &pair.value,
                self.age_ns(pair.mod_revision, now_ns),
            )
        };
        let dead: Vec<&KeyValue> = page.items.iter().filter(dead).collect();
        for part in dead.chunks(AT_ONCE) {
            let deleted = self.delete(store, part).await?;
            self.deleted += deleted;
            shared.stats.swept.fetch_add(deleted, Ordering::Relaxed);
        }
        match PREFIXES.len() > self.prefix {
            true if page.items.is_empty() => Ok(Duration::ZERO),
            true => Ok(PAGE_EVERY),
            false => Ok(self.end()),
        }
    }

    /// Ends a pass.
    fn end(&mut self) -> Duration {
        let deleted = std::mem::take(&mut self.deleted);
        if deleted > 0 {
            info!("{deleted} keys of limits that nobody uses any more were deleted");
        }
        (self.prefix, self.after) = (0, None);
        PASS_EVERY
    }

    /// Looks who sweeps; whether that can be told.
    async fn read_log(&mut self, store: &dyn Store, clock: &dyn Clock) -> Result<bool, StoreError> {
        let found = store.get(SWEPT).await?.value;
        let now_ns = clock.boot_ns();
        let known = self.log.as_ref().map(|log| log.revision);
        let Some(pair) = found else {
            self.log = None;
            return Ok(true);
        };
        if known == Some(pair.mod_revision) {
            return Ok(true);
        }
        match Ages::decode(&pair.value) {
            Ok(ages) => {
                self.log = Some(Log {
                    ages,
                    revision: pair.mod_revision,
                    since_ns: now_ns,
                    known_ns: now_ns,
                    ours: false,
                });
                Ok(true)
            }
            Err(error) => {
                warn!("idle keys of limits stay, {SWEPT} cannot be read: {error}");
                self.log = None;
                Ok(false)
            }
        }
    }

    /// Whether this node sweeps: it wrote the log last, or there is none, or nobody writes it.
    fn leads(&self, now_ns: u64) -> bool {
        self.log
            .as_ref()
            .is_none_or(|log| log.ours || now_ns.saturating_sub(log.known_ns) >= SILENT_NS)
    }

    /// Writes the log if that is due; whether this node is still the one that does.
    async fn write_log(
        &mut self,
        store: &dyn Store,
        clock: &dyn Clock,
    ) -> Result<bool, StoreError> {
        let now_ns = clock.boot_ns();
        let (mut ages, mut compare) = (Ages::default(), Compare::Absent(SWEPT.to_owned()));
        if let Some(log) = &self.log {
            let elapsed_ns = now_ns.saturating_sub(log.since_ns);
            if log.ours && elapsed_ns < LOG_EVERY_NS {
                return Ok(true);
            }
            ages.clone_from(&log.ages);
            ages.pass(elapsed_ns);
            ages.note(log.revision, now_ns.saturating_sub(log.known_ns));
            compare = Compare::ModRevision(SWEPT.to_owned(), log.revision);
        }
        let bytes = ages.encode();
        let bytes = bytes.map_err(|error| StoreError::Invalid(error.to_string()))?;
        let txn = Txn {
            compares: vec![compare],
            ops: vec![Op::put(SWEPT, bytes)],
            or_read: Vec::new(),
        };
        let outcome = store.txn(txn).await?;
        let TxnOutcome::Committed(revision) = outcome else {
            return Ok(false);
        };
        self.log = Some(Log {
            ages,
            revision,
            since_ns: now_ns,
            known_ns: clock.boot_ns(),
            ours: true,
        });
        Ok(true)
    }

    /// How long a value of this revision has not moved at least.
    fn age_ns(&self, revision: Revision, now_ns: u64) -> u64 {
        let Some(log) = &self.log else {
            return 0;
        };
        if log.ages.of(revision) > 0 {
            let elapsed_ns = now_ns.saturating_sub(log.since_ns);
            return log.ages.of(revision).saturating_add(elapsed_ns);
        }
        match revision <= log.revision {
            true => now_ns.saturating_sub(log.known_ns),
            false => 0,
        }
    }

    /// Deletes keys that have not moved since they were read; how many.
    async fn delete(&self, store: &dyn Store, dead: &[&KeyValue]) -> Result<u64, StoreError> {
        let Some(log) = &self.log else {
            return Ok(0);
        };
        let mut compares = vec![Compare::ModRevision(SWEPT.to_owned(), log.revision)];
        let unmoved = |pair: &&KeyValue| Compare::ModRevision(pair.key.clone(), pair.mod_revision);
        compares.extend(dead.iter().map(unmoved));
        let txn = Txn {
            compares,
            ops: dead
                .iter()
                .map(|pair| Op::Delete(pair.key.clone()))
                .collect(),
            or_read: Vec::new(),
        };
        match store.txn(txn).await? {
            TxnOutcome::Committed(_) => Ok(dead.len() as u64),
            // One of them has moved: the others wait for the next pass.
            TxnOutcome::Conflict(_) => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests;
