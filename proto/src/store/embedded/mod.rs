//! The embedded store: SQLite on one machine, for one process.
//!
//! In the manner of kine, an append-only table holds every change with its revision; the newest row
//! of a key is its value. One thread writes (`writer`), a few read (`readers`), callers on any
//! runtime wait for their answers. A commit is on the disk before it is acknowledged, so a process
//! that is killed, or a machine that loses power, loses nothing that was acknowledged.

mod batch;
mod beside;
mod fault;
mod file;
mod history;
mod leases;
mod readers;
mod room;
#[cfg(test)]
mod tests;
mod watch;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::batch::Batch;
use self::file::DataFile;
use self::readers::Readers;
pub use self::room::taken_bytes;
use self::watch::EmbeddedWatch;
use self::writer::{SWEEP_ROWS_MAX, Writer};
use super::limits;
use super::span::Span;
use super::{
    At, KeyValue, Lease, LeaseId, MemberSize, Page, Range, Revision, Store, StoreError,
    StoreFuture, Txn, TxnOutcome, Watch,
};

/// Connections that read at the same time.
const READERS: usize = 2;

/// What an operator may choose about the embedded store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedOptions {
    /// Longest time that a call may take, its wait in the queue included. Default 2 s.
    pub timeout: Duration,
    /// Largest size of the file, in bytes; beyond it writes answer [`StoreError::Full`].
    /// Default 8 GiB.
    pub size_bytes_max: u64,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(2),
            size_bytes_max: 8 << 30,
        }
    }
}

/// A store in one SQLite file.
///
/// Dropping it finishes what is queued and gives the file free. Its futures need a tokio runtime
/// with a timer, of any kind.
pub struct Embedded {
    writer: Writer,
    readers: Arc<Readers>,
    revisions: tokio::sync::watch::Receiver<Revision>,
    timeout: Duration,
    // Last, so that the file is given free when the threads are gone.
    file: DataFile,
}

impl Embedded {
    /// Opens the store in a file, which is created (readable by its owner only) when absent.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the file cannot be opened or another process has it,
    /// [`StoreError::Full`] when its disk is full or fails,
    /// [`StoreError::Corrupt`] when it is damaged, another program's, or a later release's; all
    /// name the file.
    pub fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        Self::open_with(path, &EmbeddedOptions::default())
    }

    /// Whether the file can be opened by this release, as far as that can be told while another
    /// process has it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is another program's, or a later release's.
    pub fn check(path: &Path) -> Result<(), StoreError> {
        DataFile::check(path)
    }

    /// Puts a backup in the place of the file while no process has it; without one, what is there
    /// is taken to be a backup. The logs of the former file, which SQLite would replay onto it, are
    /// moved aside, and the former file with them. Gives the new names of what was moved.
    ///
    /// # Errors
    /// As [`Embedded::open`]; the backup holds no store.
    pub fn restore(path: &Path, backup: Option<&Path>) -> Result<Vec<PathBuf>, StoreError> {
        DataFile::restore(path, backup)
    }

    /// [`Embedded::open`] with chosen options.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_with(path: &Path, options: &EmbeddedOptions) -> Result<Arc<Self>, StoreError> {
        let file = DataFile::take(path)?;
        let (writer, revisions) = Writer::start(file.open_writer(options.size_bytes_max)?)?;
        let connections = (0..READERS)
            .map(|_| file.open_reader())
            .collect::<Result<Vec<_>, _>>()?;
        let readers = Arc::new(Readers::start(connections)?);
        file.note();
        Ok(Arc::new(Self {
            writer,
            readers,
            revisions,
            timeout: options.timeout,
            file,
        }))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.readers.close();
    }
}

impl Store for Embedded {
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        let key = key.to_owned();
        Box::pin(async move {
            limits::check_key(&key)?;
            self.readers
                .run(self.timeout, move |db, _| history::get(db, &key))
                .await
        })
    }

    fn range(&self, range: Range) -> StoreFuture<'_, Page> {
        Box::pin(async move {
            limits::check_range(&range)?;
            let read = move |db: &rusqlite::Connection, by| history::page(db, &range, by);
            self.readers.run(self.timeout, read).await
        })
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        Box::pin(async move {
            limits::check_txn(&txn)?;
            self.writer
                .run(self.timeout, move |batch| batch.txn(&txn))
                .await
        })
    }

    fn watch(&self, prefix: &str, from: Revision) -> StoreFuture<'_, Box<dyn Watch>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            limits::check_watch(&prefix, from)?;
            let watch: Box<dyn Watch> = Box::new(EmbeddedWatch {
                readers: Arc::clone(&self.readers),
                revisions: self.revisions.clone(),
                span: Span::new("", &prefix, None),
                next: from,
                timeout: self.timeout,
                pending: VecDeque::new(),
                ended: None,
            });
            Ok(watch)
        })
    }

    fn grant_lease(&self, ttl: Duration) -> StoreFuture<'_, Lease> {
        Box::pin(async move {
            limits::check_ttl(ttl)?;
            self.writer
                .run(self.timeout, move |batch| batch.grant(ttl))
                .await
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            limits::check_lease(lease)?;
            self.writer
                .run(self.timeout, move |batch| batch.keep_alive(lease))
                .await
        })
    }

    fn revoke_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            limits::check_lease(lease)?;
            self.writer
                .run(self.timeout, move |batch| batch.end_lease(lease))
                .await
        })
    }

    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            limits::check_revision(revision)?;
            self.writer
                .run(self.timeout, move |batch| batch.compact(revision))
                .await
        })
    }

    fn reclaim_space(&self) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let begin = |batch: &mut Batch<'_>| batch.forget();
            let mut due = Some(self.writer.run(self.timeout, begin).await?);
            while let Some(slice) = due {
                let sweep = move |batch: &mut Batch<'_>| batch.sweep(slice, SWEEP_ROWS_MAX);
                due = self.writer.run(self.timeout, sweep).await?;
            }
            let takes_writes = |batch: &mut Batch<'_>| batch.takes_writes();
            self.writer.run(self.timeout, takes_writes).await
        })
    }

    fn sizes(&self) -> StoreFuture<'_, Vec<MemberSize>> {
        Box::pin(async move {
            let taken = |db: &rusqlite::Connection, _| Ok(taken_bytes(db)?);
            let bytes = self.readers.run(self.timeout, taken).await?;
            let member = self.file.name();
            Ok(vec![MemberSize { member, bytes }])
        })
    }
}
