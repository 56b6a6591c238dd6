//! What writes to ClickHouse: batches of all nodes gathered for a moment, one insert at a time.
//!
//! ClickHouse wants few large inserts. While one is under way the next gathers, up to a bound of
//! rows and bytes; whoever brings more waits. Everyone who brought a batch hears how its insert
//! ended, and keeps the batch until then: here nothing is held longer than one insert takes. After
//! a failure the next one waits, each time longer.

use std::sync::Arc;
use std::time::Duration;

use ::clickhouse::Client;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use super::row::Row;
use super::schema::{Schema, TABLE};
use super::{failed, late};
use crate::records::RecordsError;

/// Most rows of one insert, about.
const ROWS_MAX: usize = 65_536;
/// Most bytes of one insert, about.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// Batches that wait for the next insert; others wait before they are taken.
const WAITING_MAX: usize = 256;
/// Longest time for one insert: a node sends a batch again that is not acknowledged for 30 s.
const INSERT_MAX: Duration = Duration::from_secs(20);
/// First and longest wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// The end that takes batches.
pub(super) struct Writer {
    queue: mpsc::Sender<Waiting>,
}

/// A batch, and who waits for it.
struct Waiting {
    rows: Vec<Row>,
    bytes: usize,
    done: oneshot::Sender<Result<(), String>>,
}

impl Writer {
    /// Starts writing on `runtime`, until the writer is dropped.
    pub(super) fn start(
        client: Client,
        schema: Arc<Schema>,
        gather: Duration,
        runtime: &Handle,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let writing = Writing {
            client,
            schema,
            gather,
            waiting,
            next: None,
        };
        runtime.spawn(writing.run());
        Self { queue }
    }

    /// Waits until rows are stored.
    ///
    /// # Errors
    /// They are not known to be.
    pub(super) async fn write(&self, rows: Vec<Row>) -> Result<(), RecordsError> {
        if rows.is_empty() {
            return Ok(());
        }
        let bytes = rows.iter().map(Row::bytes).sum();
        let (done, stored) = oneshot::channel();
        let waiting = Waiting { rows, bytes, done };
        let gone = || RecordsError::Unavailable("this process is stopping".into());
        self.queue.send(waiting).await.map_err(|_| gone())?;
        let stored = stored.await.map_err(|_| gone())?;
        stored.map_err(RecordsError::Unavailable)
    }
}

struct Writing {
    client: Client,
    schema: Arc<Schema>,
    gather: Duration,
    waiting: mpsc::Receiver<Waiting>,
    /// One that was taken and found no room in the last insert.
    next: Option<Waiting>,
}

impl Writing {
    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        while let Some(group) = self.gather().await {
            let written = timeout(INSERT_MAX, self.insert(&group)).await;
            let written = written.unwrap_or_else(|_| Err(late()));
            let wait = match &written {
                Ok(()) => {
                    if backoff > BACKOFF_MIN {
                        info!("ClickHouse takes records again");
                    }
                    backoff = BACKOFF_MIN;
                    Duration::ZERO
                }
                Err(error) => {
                    if backoff == BACKOFF_MIN {
                        warn!("{error}; records wait where they came from");
                    }
                    // The table may be gone, or another one now.
                    self.schema.doubt().await;
                    self.client.clear_cached_metadata().await;
                    let wait = backoff;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    wait
                }
            };
            for batch in group {
                // Who went away meanwhile keeps the batch and sends it again.
                let result = match &written {
                    Ok(()) => Ok(()),
                    Err(RecordsError::Unavailable(why)) => Err(why.clone()),
                    Err(error) => Err(error.to_string()),
                };
                let _ = batch.done.send(result);
            }
            sleep(wait).await;
        }
    }

    /// Batches for one insert; `None` at the end.
    async fn gather(&mut self) -> Option<Vec<Waiting>> {
        let first = match self.next.take() {
            Some(first) => first,
            None => self.waiting.recv().await?,
        };
        let until = Instant::now() + self.gather;
        let (mut rows, mut bytes) = (first.rows.len(), first.bytes);
        let mut group = vec![first];
        while rows < ROWS_MAX && bytes < BYTES_MAX {
            let Ok(Some(more)) = timeout_at(until, self.waiting.recv()).await else {
                break;
            };
            if bytes + more.bytes > BYTES_MAX {
                self.next = Some(more);
                break;
            }
            (rows, bytes) = (rows + more.rows.len(), bytes + more.bytes);
            group.push(more);
        }
        Some(group)
    }

    async fn insert(&self, group: &[Waiting]) -> Result<(), RecordsError> {
        self.schema.ready().await?;
        let mut insert = self.client.insert::<Row>(TABLE).await.map_err(failed)?;
        for row in group.iter().flat_map(|batch| &batch.rows) {
            insert.write(row).await.map_err(failed)?;
        }
        insert.end().await.map_err(failed)
    }
}
