//! The records of requests: kept, found, counted, followed, and dropped when they are old.
//!
//! One contract over two stores. [`sqlite`] keeps them in files of this machine. [`clickhouse`]
//! keeps them in a database of a cluster, for several control planes. What a question means does
//! not depend on the store: the same suite of tests passes on both (`tests/records`).
//!
//! Calls block; run them on a thread that may. [`Records::store`] is the one that need not.

pub mod aggregate;
pub mod carried;
pub mod clickhouse;
pub mod condition;
mod counted;
pub mod credential_use;
pub mod field;
mod follow;
mod later;
mod pending;
pub mod places;
mod query;
mod retain;
mod sketch;
mod sqlite;
pub mod tally;

use std::borrow::Borrow;
use std::path::Path;
use std::sync::Arc;

use proto::id::{OrgId, RequestId};
use proto::record::Record;
use tokio::runtime::Handle;

use aggregate::{Aggregates, Question};
use clickhouse::{ClickHouse, ClickHouseSettings};
use follow::Tails;
pub use follow::{Following, Tail};
use later::Later;
pub use query::{RecordCursor, RecordFilter, StatusFilter};
pub use retain::{Retention, keep};
use sqlite::Sqlite;

use crate::private_sqlite;

/// Why the records store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// SQLite failed: the disk is full, the file is damaged or locked.
    #[error("the records store failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file was written by another release.
    #[error("the records file has layout {found}, this program knows 1 to {known}")]
    Layout {
        /// What the file says.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// It cannot be seen whether a file is there: its disk fails, or is not mounted.
    #[error("the files of the records store are not there, or cannot be looked at: {0}")]
    Away(String),
    /// A record is larger than a block may be, or there is no memory to compress it.
    #[error("records cannot be packed: {0}")]
    Pack(String),
    /// A stored block, or a stored record of an earlier layout, does not decode.
    #[error("stored records are damaged: {0}")]
    Damaged(String),
    /// Storing panicked.
    #[error("storing records broke off: {0}")]
    BrokenOff(String),
    /// ClickHouse cannot be reached, does not answer in time, or refuses.
    #[error("ClickHouse does not serve records: {0}")]
    Unavailable(String),
}

impl RecordsError {
    /// Whether the disk is full or fails: it may do better later.
    pub fn is_of_disk(&self) -> bool {
        matches!(self, Self::Sqlite(error) if private_sqlite::is_of_disk(error))
    }
}

/// The open store. Clones of an `Arc` of it serve every thread.
#[derive(Debug)]
pub struct Records {
    store: Store,
    tails: Tails,
}

#[derive(Debug)]
enum Store {
    Sqlite(Box<Later>),
    ClickHouse(Box<ClickHouse>),
}

impl Records {
    /// Opens or creates the file of a SQLite store. A file of layout 1 is converted, which takes
    /// about a minute for a million records; a conversion that breaks off leaves it as it was.
    ///
    /// # Errors
    /// The file cannot be opened, is no SQLite file, or has a layout that is not known. A disk that
    /// is full or fails is no error yet: it is opened when it is used.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        Ok(Self {
            store: Store::Sqlite(Box::new(Later::open(path)?)),
            tails: Tails::default(),
        })
    }

    /// Whether the file of a SQLite store can be opened by this release, as far as that can be told
    /// while another process has it.
    ///
    /// # Errors
    /// It is no SQLite file, or has a layout that is not known.
    pub fn check(path: &Path) -> Result<(), RecordsError> {
        Sqlite::check(path)
    }

    /// A store in ClickHouse, which need not be reachable yet. What runs behind calls does so on
    /// `runtime`, which needs a thread of its own.
    pub fn in_clickhouse(settings: ClickHouseSettings, runtime: Handle) -> Self {
        Self {
            store: Store::ClickHouse(Box::new(ClickHouse::new(settings, runtime))),
            tails: Tails::default(),
        }
    }

    /// Stores a batch; gives how many of its records were not known to be there. A batch may be
    /// sent again, and a record may come again in another batch: it is shown once.
    ///
    /// # Errors
    /// Nothing of the batch is known to be stored.
    pub fn insert<R: Borrow<Record>>(&self, batch: &[R]) -> Result<usize, RecordsError> {
        match &self.store {
            Store::Sqlite(store) => store.get()?.insert(batch, &self.tails),
            Store::ClickHouse(store) => store.insert(batch, &self.tails),
        }
    }

    /// The same without holding up the caller's thread, however long ClickHouse takes.
    ///
    /// # Errors
    /// Nothing of the batch is known to be stored.
    pub async fn store<R>(self: &Arc<Self>, batch: Arc<Vec<R>>) -> Result<usize, RecordsError>
    where
        R: Borrow<Record> + Send + Sync + 'static,
    {
        match &self.store {
            Store::Sqlite(_) => {
                let records = Arc::clone(self);
                let stored = tokio::task::spawn_blocking(move || records.insert(&batch)).await;
                stored.unwrap_or_else(|error| Err(RecordsError::BrokenOff(error.to_string())))
            }
            Store::ClickHouse(store) => store.store(&batch, &self.tails).await,
        }
    }

    /// One record of an organisation.
    ///
    /// # Errors
    /// The store failed or what it holds is damaged; an unknown id is `None`.
    pub fn get(&self, org: OrgId, id: RequestId) -> Result<Option<Record>, RecordsError> {
        match &self.store {
            Store::Sqlite(store) => store.get()?.get(org, id),
            Store::ClickHouse(store) => store.get(org, id),
        }
    }

    /// Records of an organisation, newest first, at most `limit`; and where the next page begins,
    /// when more follow. A search that reads very much in vain may end early, with what it has and
    /// the place to go on.
    ///
    /// # Errors
    /// The store failed or what it holds is damaged.
    pub fn list(
        &self,
        org: OrgId,
        filter: &RecordFilter,
        limit: usize,
    ) -> Result<(Vec<Record>, Option<RecordCursor>), RecordsError> {
        match &self.store {
            Store::Sqlite(store) => store.get()?.list(org, filter, limit),
            Store::ClickHouse(store) => store.list(org, filter, limit),
        }
    }

    /// Answers a question about many records.
    ///
    /// # Errors
    /// The store failed or what it holds is damaged.
    pub fn aggregate(&self, question: &Question) -> Result<Aggregates, RecordsError> {
        match &self.store {
            Store::Sqlite(store) => store.get()?.aggregate(question),
            Store::ClickHouse(store) => store.aggregate(question),
        }
    }

    /// Drops records that are too old or too many; gives how many went. Bounded work: call it again
    /// and again.
    ///
    /// # Errors
    /// The store failed; what was dropped before stays dropped.
    pub fn retain(&self, retention: Retention, now_us: i64) -> Result<u64, RecordsError> {
        match &self.store {
            Store::Sqlite(store) => {
                let dropped = store.get()?.retain(retention, now_us)?;
                Ok(dropped.unsigned_abs())
            }
            Store::ClickHouse(store) => store.retain(retention),
        }
    }

    /// Waits until the store has begun another file: there may be more than may be kept.
    pub(crate) async fn grown(&self) {
        match &self.store {
            Store::Sqlite(store) => match store.opened() {
                Some(store) => store.grown().await,
                None => std::future::pending().await,
            },
            Store::ClickHouse(_) => std::future::pending().await,
        }
    }

    /// Follows records of an organisation that are stored here from now on; `None` while too many
    /// do.
    pub fn follow(&self, org: OrgId, filter: RecordFilter) -> Option<Following> {
        self.tails.follow(org, filter)
    }
}
