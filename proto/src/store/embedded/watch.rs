//! A watch: told of new revisions, it reads the changes from the table.
//!
//! Only the number of the newest revision is broadcast. What happened is read from history, at the
//! pace of the watch's owner, by the same query whether it lies in the past or has just been
//! committed: no gap and no double where history meets the present, and no queue that a slow owner
//! could fill. One who is slower than compaction gets the error that sends him back to a list.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::history;
use super::readers::Readers;
use crate::store::span::Span;
use crate::store::{Change, Revision, StoreError, StoreFuture, Watch};

/// An open watch on the embedded store.
pub(super) struct EmbeddedWatch {
    pub(super) readers: Arc<Readers>,
    pub(super) revisions: watch::Receiver<Revision>,
    pub(super) span: Span,
    /// The first revision that has not been read.
    pub(super) next: Revision,
    /// Longest time that one reading may take.
    pub(super) timeout: Duration,
    pub(super) pending: VecDeque<Change>,
    /// Why the watch has ended.
    pub(super) ended: Option<StoreError>,
}

impl EmbeddedWatch {
    async fn advance(&mut self) -> Result<Change, StoreError> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Ok(change);
            }
            if self.next <= *self.revisions.borrow_and_update() {
                self.read().await?;
            } else {
                let closed = |_| StoreError::Unavailable("the store is closed".into());
                self.revisions.changed().await.map_err(closed)?;
            }
        }
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        let (span, from) = (self.span.clone(), self.next);
        // What was read in half of the time is still waited for.
        let half = self.timeout / 2;
        let read = move |db: &rusqlite::Connection, by: std::time::Instant| {
            history::changes(db, &span, from, by.checked_sub(half).unwrap_or(by))
        };
        let found = self.readers.run(self.timeout, read).await?;
        self.pending = found.changes.into();
        self.next = found.next;
        Ok(())
    }
}

impl Watch for EmbeddedWatch {
    fn next(&mut self) -> StoreFuture<'_, Change> {
        Box::pin(async move {
            if let Some(error) = &self.ended {
                return Err(error.clone());
            }
            let change = self.advance().await;
            self.ended = change.as_ref().err().cloned();
            change
        })
    }
}
