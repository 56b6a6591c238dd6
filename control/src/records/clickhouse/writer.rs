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
        let (queue, writing) = Writing::new(client, schema, gather);
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

/// How long the next insert waits after failures in a row: twice as long each time, up to a bound.
#[derive(Debug, Default)]
struct Backoff(Option<Duration>);

impl Backoff {
    /// Whether the last insert has failed.
    fn lasts(&self) -> bool {
        self.0.is_some()
    }

    /// After one that failed.
    fn next(&mut self) -> Duration {
        let wait = self.0.map_or(BACKOFF_MIN, |last| last * 2);
        *self.0.insert(wait.min(BACKOFF_MAX))
    }

    /// After one that did not: whether those before had failed.
    fn ends(&mut self) -> bool {
        self.0.take().is_some()
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
    /// What writes the batches that come by the queue, which is given with it.
    fn new(client: Client, schema: Arc<Schema>, gather: Duration) -> (mpsc::Sender<Waiting>, Self) {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        let writing = Self {
            client,
            schema,
            gather,
            waiting,
            next: None,
        };
        (queue, writing)
    }

    async fn run(mut self) {
        let mut backoff = Backoff::default();
        while let Some(group) = self.gather().await {
            let written = timeout(INSERT_MAX, self.insert(&group)).await;
            let written = written.unwrap_or_else(|_| Err(late()));
            let wait = match &written {
                Ok(()) => {
                    if backoff.ends() {
                        info!("ClickHouse takes records again");
                    }
                    Duration::ZERO
                }
                Err(error) => {
                    if !backoff.lasts() {
                        warn!("{error}; records wait where they came from");
                    }
                    // The table may be gone, or another one now.
                    self.schema.doubt().await;
                    self.client.clear_cached_metadata().await;
                    backoff.next()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment that no test waits for: where it is needed, the group was full before.
    const DAY: Duration = Duration::from_secs(86_400);

    fn writing(gather: Duration) -> (mpsc::Sender<Waiting>, Writing) {
        let client = Client::default();
        let schema = Arc::new(Schema::new(&client, "requestrocket", 30));
        Writing::new(client, schema, gather)
    }

    /// A batch of so many rows that are taken to have so many bytes.
    fn batch(rows: usize, bytes: usize) -> Waiting {
        let rows = (0..rows).map(|_| Row::default()).collect();
        let (done, _) = oneshot::channel();
        Waiting { rows, bytes, done }
    }

    async fn gathered(writing: &mut Writing) -> Vec<(usize, usize)> {
        let group = writing.gather().await.unwrap();
        group
            .iter()
            .map(|batch| (batch.rows.len(), batch.bytes))
            .collect()
    }

    #[tokio::test]
    async fn an_insert_has_at_most_so_many_bytes() {
        let (queue, mut writing) = writing(DAY);
        let half = BYTES_MAX / 2;
        for bytes in [half, half, 1, half, half, BYTES_MAX + 1, 7] {
            queue.send(batch(1, bytes)).await.unwrap();
        }
        assert_eq!(gathered(&mut writing).await, [(1, half), (1, half)]);
        // The third would go beyond, begins the next one, and is not lost.
        assert_eq!(gathered(&mut writing).await, [(1, 1), (1, half)]);
        assert_eq!(gathered(&mut writing).await, [(1, half)]);
        // One that is too large alone goes alone.
        assert_eq!(gathered(&mut writing).await, [(1, BYTES_MAX + 1)]);
        drop(queue);
        assert_eq!(gathered(&mut writing).await, [(1, 7)]);
        assert!(writing.gather().await.is_none());
    }

    #[tokio::test]
    async fn an_insert_is_full_with_so_many_rows() {
        let (queue, mut writing) = writing(DAY);
        let some = ROWS_MAX / 4 + 1;
        for _ in 0..5 {
            queue.send(batch(some, 1)).await.unwrap();
        }
        // It ends with the batch that reaches the bound: never more than one batch beyond.
        assert_eq!(gathered(&mut writing).await, [(some, 1); 4]);
        drop(queue);
        assert_eq!(gathered(&mut writing).await, [(some, 1)]);
    }

    #[tokio::test]
    async fn what_is_not_full_is_written_after_a_moment() {
        let (queue, mut writing) = writing(Duration::from_millis(1));
        queue.send(batch(1, 1)).await.unwrap();
        assert_eq!(gathered(&mut writing).await, [(1, 1)]);
        // Whoever may bring more is still there.
        assert!(!queue.is_closed());
    }

    #[test]
    fn each_failure_waits_twice_as_long_up_to_a_bound() {
        let mut backoff = Backoff::default();
        assert!(!backoff.lasts() && !backoff.ends());
        let waits: Vec<u128> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert!(backoff.lasts() && backoff.ends());
        assert!(!backoff.lasts() && !backoff.ends());
        assert_eq!(backoff.next(), BACKOFF_MIN);
    }
}
