//! Records on their way from workers to control: a bounded queue, sent in batches.
//!
//! A full queue drops the record and counts it; it never slows a request.

pub mod reduce;

use std::time::Duration;

use proto::record::Record;
use tokio::sync::mpsc;

/// Most records waiting to be shipped.
const QUEUE_MAX: usize = 16_384;
/// Most records in a batch.
const BATCH_MAX: usize = 512;
/// Longest time that a record waits for its batch to fill.
const BATCH_AGE_MAX: Duration = Duration::from_millis(200);

/// Takes finished records; clones share one queue.
#[derive(Clone, Debug)]
pub struct RecordSender {
    queue: mpsc::Sender<Record>,
}

impl RecordSender {
    /// Queues a record; false when there was no room for it.
    pub fn send(&self, record: Record) -> bool {
        self.queue.try_send(record).is_ok()
    }
}

/// Gives out batches of records.
#[derive(Debug)]
pub struct RecordBatches {
    queue: mpsc::Receiver<Record>,
}

/// A queue of records between the workers and whoever ships them.
pub fn queue() -> (RecordSender, RecordBatches) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    (
        RecordSender { queue: sender },
        RecordBatches { queue: receiver },
    )
}

impl RecordBatches {
    /// The next batch: what comes within a short time of its first record. `None` when every
    /// sender is gone and nothing is left.
    pub async fn next(&mut self) -> Option<Vec<Record>> {
        let mut batch = Vec::with_capacity(64);
        batch.push(self.queue.recv().await?);
        let deadline = tokio::time::Instant::now() + BATCH_AGE_MAX;
        while batch.len() < BATCH_MAX {
            match tokio::time::timeout_at(deadline, self.queue.recv()).await {
                Ok(Some(record)) => batch.push(record),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }
}
