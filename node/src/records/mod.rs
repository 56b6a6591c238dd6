//! Records on their way from workers to control: batched on each worker, queued between threads.
//!
//! A worker collects its records without locks and hands them over in batches: one wake-up of
//! another thread for many requests. The queue is bounded; what finds no room is dropped and
//! counted, and never slows a request.

pub mod allowance;
mod frames;
pub mod lines;
mod link;
pub mod losses;
pub mod reduce;
pub mod ship;
pub mod spool;
#[cfg(test)]
pub(crate) mod tests;
pub mod unmatched;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use proto::record::Record;
use tokio::sync::mpsc;

use crate::metrics::Metrics;

/// Most records in memory between the workers and who stores them.
const QUEUE_MAX: usize = 16_384;
/// Most records in a batch.
const BATCH_MAX: usize = 512;
/// Largest batch, in bytes of [`weight`]: a frame holds four times as much.
const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most bytes of these: callers choose how long a path and a query are.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest time that a record waits for its batch to fill.
const BATCH_AGE_MAX: Duration = Duration::from_millis(200);

/// Records that travel together; who exports their traces holds them as well.
pub type Batch = Vec<Arc<Record>>;

/// The end of the queue that takes batches; clones share one queue.
#[derive(Clone, Debug)]
pub struct RecordSender {
    queue: mpsc::UnboundedSender<Batch>,
    queued: Arc<Queued>,
    /// Whether records are wanted at all.
    keeps: bool,
}

/// What waits in memory, and bounds it, since batches differ in size.
#[derive(Debug, Default)]
struct Queued {
    records: AtomicUsize,
    bytes: AtomicUsize,
}

impl Queued {
    fn give_back(&self, records: usize, bytes: usize) {
        self.records.fetch_sub(records, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
    }
}

/// Room in memory that a batch takes until it is stored, on disk or lost: it is given back when
/// this goes, so that what the queue holds and what is under way are never more than its bounds.
#[derive(Debug)]
pub struct Room {
    queued: Arc<Queued>,
    records: usize,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.queued.give_back(self.records, self.bytes);
    }
}

/// About how many bytes a record takes.
fn weight(record: &Record) -> usize {
    let query = record
        .query
        .iter()
        .map(|field| field.name.len() + field.value.len() + 16);
    let rules = record.denials.iter().map(|denial| denial.rule_ids.len());
    let ids = rules.sum::<usize>() + record.shadow_rule_ids.len() + record.filter_ids.len();
    let upstream = record
        .upstream_ids
        .iter()
        .map(|id| id.header.len() + id.value.len());
    let payload = record
        .payload
        .as_ref()
        .map_or(0, |payload| payload.weight());
    512 + record.path.len() + query.sum::<usize>() + ids * 32 + upstream.sum::<usize>() + payload
}

fn weight_of(batch: &Batch) -> usize {
    batch.iter().map(|record| weight(record)).sum()
}

/// Leaves out what was captured of bodies, and says so.
fn withhold_bodies(record: &mut Arc<Record>) {
    if record.payload.is_some()
        && let Some(payload) = &mut Arc::make_mut(record).payload
    {
        payload.withhold("memory");
    }
}

impl RecordSender {
    /// The same, or one that nothing goes into.
    #[must_use]
    pub fn keeping(self, keeps: bool) -> Self {
        Self { keeps, ..self }
    }

    /// Queues a batch, without bodies where there is no room for them; false when there was none
    /// for the rest either.
    fn send(&self, mut batch: Batch) -> bool {
        let bytes = weight_of(&batch);
        if self.has_room(batch.len(), bytes) {
            return self.queue.send(batch).is_ok();
        }
        batch.iter_mut().for_each(withhold_bodies);
        let less = weight_of(&batch);
        less < bytes && self.has_room(batch.len(), less) && self.queue.send(batch).is_ok()
    }

    /// Takes room in the queue, where there is so much.
    fn has_room(&self, count: usize, bytes: usize) -> bool {
        let records = self.queued.records.fetch_add(count, Relaxed) + count;
        let in_all = self.queued.bytes.fetch_add(bytes, Relaxed) + bytes;
        if records > QUEUE_MAX || in_all > QUEUE_BYTES_MAX {
            self.queued.give_back(count, bytes);
            return false;
        }
        true
    }
}

/// One worker's records that are not yet queued; clones share them.
///
/// What is left when the last clone goes is queued then.
#[derive(Clone)]
pub struct RecordBuffer(Rc<Pending>);

struct Pending {
    sender: RecordSender,
    metrics: Metrics,
    batch: RefCell<Batch>,
    /// Bytes of the batch.
    bytes: Cell<usize>,
}

impl RecordBuffer {
    /// An empty buffer of the current worker.
    pub fn new(sender: RecordSender, metrics: Metrics) -> Self {
        Self(Rc::new(Pending {
            sender,
            metrics,
            batch: RefCell::default(),
            bytes: Cell::new(0),
        }))
    }

    /// Takes a finished record.
    pub fn push(&self, record: Arc<Record>) {
        if !self.0.sender.keeps {
            return;
        }
        let bytes = self.0.bytes.get() + weight(&record);
        self.0.bytes.set(bytes);
        let count = {
            let mut batch = self.0.batch.borrow_mut();
            if batch.capacity() == 0 {
                batch.reserve_exact(BATCH_MAX);
            }
            batch.push(record);
            batch.len()
        };
        if count >= BATCH_MAX || bytes >= BATCH_BYTES_MAX {
            self.0.flush();
        } else if count == 1 {
            let pending = Rc::downgrade(&self.0);
            actix_rt::spawn(async move {
                tokio::time::sleep(BATCH_AGE_MAX).await;
                if let Some(pending) = pending.upgrade() {
                    pending.flush();
                }
            });
        }
    }
}

impl Pending {
    fn flush(&self) {
        let batch = self.batch.take();
        self.bytes.set(0);
        let count = batch.len();
        if count > 0 && !self.sender.send(batch) {
            self.metrics.records_dropped(count as u64);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The end of the queue that gives batches out.
#[derive(Debug)]
pub struct RecordBatches {
    queue: mpsc::UnboundedReceiver<Batch>,
    queued: Arc<Queued>,
    /// What the last batch had no room for.
    rest: Batch,
    /// Whether each record is logged as well.
    logged: bool,
}

/// A queue of records between the workers and whoever ships them.
pub fn queue() -> (RecordSender, RecordBatches) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let queued = Arc::<Queued>::default();
    let sender = RecordSender {
        queue: sender,
        queued: queued.clone(),
        keeps: true,
    };
    let batches = RecordBatches {
        queue: receiver,
        queued,
        rest: Batch::new(),
        logged: false,
    };
    (sender, batches)
}

impl RecordBatches {
    /// Logs a line for each record that is given out.
    #[must_use]
    pub fn logged(self, logged: bool) -> Self {
        Self { logged, ..self }
    }

    /// The next batch, with what other workers have ready, and the room that it takes for as long
    /// as it is nowhere but in memory; `None` when every sender is gone and nothing is left.
    pub async fn next(&mut self) -> Option<(Batch, Room)> {
        let mut batch = match std::mem::take(&mut self.rest) {
            rest if rest.is_empty() => self.queue.recv().await?,
            rest => rest,
        };
        while batch.len() < BATCH_MAX
            && let Ok(more) = self.queue.try_recv()
        {
            batch.extend(more);
        }
        let (mut count, mut bytes) = (0, 0);
        for record in &batch {
            let with = bytes + weight(record);
            if count > 0 && with > BATCH_BYTES_MAX {
                break;
            }
            (count, bytes) = (count + 1, with);
        }
        self.rest = batch.split_off(count);
        let room = Room {
            queued: Arc::clone(&self.queued),
            records: count,
            bytes,
        };
        if self.logged {
            batch.iter().for_each(|record| lines::log(record));
        }
        Some((batch, room))
    }

    /// Whether memory fills up faster than it is emptied.
    pub fn is_half_full(&self) -> bool {
        let records = self.queued.records.load(Relaxed);
        let bytes = self.queued.bytes.load(Relaxed);
        records > QUEUE_MAX / 2 || bytes > QUEUE_BYTES_MAX / 2
    }
}
