//! The store contract: what node and control need of a configuration store, in etcd's words.
//!
//! Two implementations exist, `embedded` (SQLite, one machine) and `etcd` (clusters); one contract
//! suite (`tests/store`) runs the same cases on both. Every call has a deadline, every answer
//! carries the store's revision, and an unknown outcome is an error kind of its own: the caller
//! reads back what identifies its write instead of retrying blindly. What either store would refuse
//! is refused by both in the same words ([`limits`]), so that code tried on one runs on the other.

pub mod ancestry;
pub mod backoff;
pub mod chunks;
pub mod embedded;
pub mod etcd;
pub mod facts;
pub mod follow;
pub mod frozen;
pub mod kept;
pub mod lacking;
pub mod limits;
mod lines;
pub mod load;
pub mod nearby;
pub mod over;
pub mod place;
pub mod recovery;
mod span;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

pub use limits::{TXN_BYTES_MAX, TXN_OPS_MAX};

/// A store revision: grows by one with every transaction that changes at least one key.
///
/// All keys changed by one transaction carry the same revision (etcd's `mod_revision`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl Revision {
    /// The revision that follows this one: where a watch begins after a list.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a lease; keys put under it are deleted when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// One key with its value, as etcd keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, without the store's prefix handling: exactly as it was put.
    pub key: String,
    /// The value's bytes.
    pub value: Bytes,
    /// Revision of the transaction that created this incarnation of the key.
    pub create_revision: Revision,
    /// Revision of the last change.
    pub mod_revision: Revision,
    /// Number of changes since creation, 1 for a fresh key.
    pub version: i64,
    /// The lease the key lives under, if any.
    pub lease: Option<LeaseId>,
}

/// A value read together with the store's revision at the time of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// The store's revision when it answered.
    pub revision: Revision,
    /// What was read.
    pub value: T,
}

/// What a [`Store::range`] reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Every key that begins with these characters.
    pub prefix: String,
    /// Only keys that sort after this one: the `last key` of the page before.
    pub after: Option<String>,
    /// At most so many keys, at least one; a page may hold fewer to stay under the store's message
    /// limit.
    pub limit: usize,
    /// Read as of this revision (pages of one listing); `None` reads the newest. A revision that
    /// the store has not reached yet is [`StoreError::Invalid`].
    pub at: Option<Revision>,
}

/// One page of a [`Store::range`], in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The revision the page was read at: pass it as [`Range::at`] for the following pages.
    pub revision: Revision,
    /// Keys in ascending byte order.
    pub items: Vec<KeyValue>,
    /// Whether keys follow the last one of this page.
    pub more: bool,
}

/// A condition of a transaction; all must hold for its puts and deletes to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Present(String),
    /// The key exists and was last changed at this revision.
    ModRevision(String, Revision),
    /// The key exists and holds exactly this value.
    Value(String, Bytes),
}

/// A change made by a transaction whose compares hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Bytes,
        /// The lease it shall live under.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; nothing happens when it does not exist.
    Delete(String),
}

impl Op {
    /// A put without a lease.
    pub fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        Self::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        }
    }

    /// The key that it changes.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete(key) => key,
        }
    }
}

/// Compares, then changes; or, when a compare fails, reads. Atomic either way.
///
/// At most [`TXN_OPS_MAX`] entries in each list; a key may be named by one op only. Key and value
/// sizes are bounded, see [`limits`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Applied in one revision when they do.
    pub ops: Vec<Op>,
    /// Keys read when they do not, in the same trip.
    pub or_read: Vec<String>,
}

/// What became of a [`Txn`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// The compares held and every op was applied at this revision (the current one without ops).
    Committed(Revision),
    /// A compare failed; nothing changed. Holds what `or_read` named, in that order.
    Conflict(At<Vec<Option<KeyValue>>>),
}

impl TxnOutcome {
    /// The store's revision when it carried the transaction out, or refused it.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Committed(revision) => *revision,
            Self::Conflict(seen) => seen.revision,
        }
    }
}

/// One change seen by a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The key was created or changed.
    Put(KeyValue),
    /// The key was deleted, by a transaction or by the end of its lease.
    Delete {
        /// The key.
        key: String,
        /// Revision of the transaction that deleted it.
        mod_revision: Revision,
    },
}

/// All changes of one revision that a watch covers; a revision is never split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision of every event in it.
    pub revision: Revision,
    /// Events in the order of the transaction's ops.
    pub events: Vec<Event>,
}

/// An open watch: a stream of changes in revision order.
///
/// Ends with an error when the connection breaks or when the changes it still has to deliver were
/// compacted (also when that was so from the start); it never resumes by itself. The owner lists
/// again and opens a new watch from the list's revision + 1. A start that the store has not reached
/// yet is waited for in silence: the list before it would have shown a store that went back.
pub trait Watch: Send {
    /// The next change; waits for it. After an error every further call returns an error. The
    /// future may be dropped at any time without losing a change.
    fn next(&mut self) -> StoreFuture<'_, Change>;
}

/// A lease granted by the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// The time to live that the store really granted, never less than asked for.
    pub ttl: Duration,
}

/// Why a store call failed. The kinds are what a caller must tell apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was done: the store could not be reached. Safe to try again.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// Nothing was done, and nothing will be before a person changes settings here or in the store:
    /// it is of an unsupported release, or refuses who we are, or shows a certificate that the
    /// settings do not trust.
    #[error("the store cannot be used as it is set: {0}")]
    Unusable(String),
    /// The call may or may not have been carried out. Read back what identifies the write.
    #[error("the outcome of the store call is unknown: {0}")]
    OutcomeUnknown(String),
    /// The revision asked for has been compacted; list again. Holds the oldest one still kept,
    /// where the store says it.
    #[error("revision compacted; list again")]
    Compacted(Option<Revision>),
    /// The request exceeds a size or count limit of the store; it will never succeed as it is.
    #[error("too large for the store: {0}")]
    TooLarge(String),
    /// The store is full: reads work, writes do not until space is freed.
    #[error("the store is full: {0}")]
    Full(String),
    /// The lease does not exist or has ended.
    #[error("lease {} not found", .0.0)]
    LeaseNotFound(LeaseId),
    /// The request makes no sense (an empty key, one key in two ops): a defect of the caller.
    #[error("invalid store request: {0}")]
    Invalid(String),
    /// The store's files or answers cannot be understood.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
}

/// The answer of a store call, boxed so that `Arc<dyn Store>` serves every caller.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What a member of the store has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSize {
    /// Its address, or the name of its file.
    pub member: String,
    /// Bytes of its file that a quota counts.
    pub bytes: u64,
}

/// A revisioned key-value store with transactions, watches and leases.
///
/// Reads are linearizable. Futures may be dropped at any time; a write whose future is dropped has
/// an unknown outcome.
pub trait Store: Send + Sync + 'static {
    /// Reads one key.
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>>;

    /// Reads several keys: what there is of each, in their order. One call where the store has
    /// such a one; they need not be of one revision.
    fn get_all(&self, keys: Vec<String>) -> StoreFuture<'_, Vec<Option<KeyValue>>> {
        Box::pin(async move {
            limits::check_keys(&keys)?;
            let mut found = Vec::with_capacity(keys.len());
            for key in keys {
                found.push(self.get(&key).await?.value);
            }
            Ok(found)
        })
    }

    /// Reads keys by prefix, a page at a time, all pages at one revision.
    fn range(&self, range: Range) -> StoreFuture<'_, Page>;

    /// Runs a transaction.
    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome>;

    /// Opens a watch over a prefix, beginning with the changes of revision `from`.
    ///
    /// Returns once the store has registered it, so a change made after the return is seen.
    fn watch(&self, prefix: &str, from: Revision) -> StoreFuture<'_, Box<dyn Watch>>;

    /// Grants a lease of at least `ttl`.
    fn grant_lease(&self, ttl: Duration) -> StoreFuture<'_, Lease>;

    /// Renews a lease for its full time to live.
    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()>;

    /// Ends a lease now and deletes the keys under it.
    fn revoke_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()>;

    /// Forgets history below a revision; current values stay. Does nothing when that is done.
    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()>;

    /// Forgets old changes and gives the space that they took back, so that a store that was full
    /// takes writes again. May take minutes, in which members do not answer, one at a time.
    fn reclaim_space(&self) -> StoreFuture<'_, ()> {
        let why = "this store gives no space back";
        Box::pin(async move { Err(StoreError::Invalid(why.into())) })
    }

    /// What each member of the store has taken of its quota; the embedded store is one. Members
    /// that do not answer are left out.
    fn sizes(&self) -> StoreFuture<'_, Vec<MemberSize>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Where calls and watches begin now, for [`Store::leave`].
    fn place(&self) -> usize {
        0
    }

    /// Tells the store that a connection there delivers stale or no data though calls succeed, so
    /// that following calls and watches try another endpoint where there is one.
    fn leave(&self, _place: usize) {}
}
