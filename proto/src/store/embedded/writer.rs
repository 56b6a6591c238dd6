//! The one thread that writes.
//!
//! It takes jobs from a bounded queue and commits all that wait together: one fsync, many
//! transactions, each with a revision of its own. While one commit is on its way to the disk the
//! next batch gathers, so throughput grows with the number of callers and a lone caller waits for
//! nobody. Between batches the thread ends leases and removes what compactions forgot.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{oneshot, watch};

use super::batch::{Batch, Sweep};
use super::fault::{Fault, commit_failed, nothing_done};
use super::history;
use super::leases::{LeaseChange, LeaseClock};
use super::room::{Room, what_is_full};
use crate::store::{LeaseId, Revision, StoreError};

/// Jobs that may wait; beyond it callers are told that the store is unavailable.
pub(super) const QUEUE_MAX: usize = 1024;

/// Jobs committed together at most, so that the first of them does not wait long.
const BATCH_MAX: usize = 128;

/// Rows looked at between two batches while a compaction is being carried out.
pub(super) const SWEEP_ROWS_MAX: usize = 500;

/// Leases ended in one go.
const LEASE_ENDS_MAX: usize = 16;

/// How long the thread rests when nothing is due, or when ending leases failed.
const REST: Duration = Duration::from_secs(1);

/// A request to the writer: work to do in a batch, and somebody who waits for its result.
trait Job: Send {
    /// Does the work where somebody still waits; an error means that the whole batch must be
    /// rolled back.
    fn run(&mut self, batch: &mut Batch<'_>) -> rusqlite::Result<()>;
    /// Answers, after the batch was committed or why it was not.
    fn finish(self: Box<Self>, end: Result<(), StoreError>);
}

struct Task<T, F> {
    work: F,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
    deadline: Instant,
}

impl<T, F> Job for Task<T, F>
where
    T: Send,
    F: FnMut(&mut Batch<'_>) -> Result<T, Fault> + Send,
{
    fn run(&mut self, batch: &mut Batch<'_>) -> rusqlite::Result<()> {
        // What it answered in a batch that was rolled back was not done.
        self.result = None;
        // Who has given up was told that the outcome is unknown; better that nothing happens.
        if Instant::now() >= self.deadline || self.reply.is_closed() {
            return Ok(());
        }
        self.result = Some(match (self.work)(batch) {
            Ok(value) => Ok(value),
            Err(Fault::Refused(error)) => Err(error),
            Err(Fault::Broken(error)) => return Err(error),
        });
        Ok(())
    }

    fn finish(self: Box<Self>, end: Result<(), StoreError>) {
        let not_run = || {
            Err(StoreError::Unavailable(
                "the request was not carried out".into(),
            ))
        };
        let Self { result, reply, .. } = *self;
        // A caller who has given up already takes the outcome for unknown.
        let _ = reply.send(end.and_then(|()| result.unwrap_or_else(not_run)));
    }
}

/// The handle of the writing thread; the thread ends when it is dropped.
pub(super) struct Writer {
    queue: Option<SyncSender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread on its connection. Also gives the store's revision as it grows.
    pub(super) fn start(db: Connection) -> Result<(Self, watch::Receiver<Revision>), StoreError> {
        let broken = |error: rusqlite::Error| nothing_done(&error);
        let revision = history::revision(&db).map_err(broken)?;
        let compacted = history::compacted(&db).map_err(broken)?;
        let leases = restored_leases(&db, Instant::now()).map_err(broken)?;
        let (published, revisions) = watch::channel(revision);
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let writer = Thread {
            db,
            revision,
            published,
            leases,
            leases_rest_until: None,
            room: Room::default(),
            // A sweep that a crash interrupted begins again; without garbage it finds nothing.
            sweep: (compacted > Revision::default()).then_some(Sweep {
                until: compacted,
                row: 0,
            }),
            unsure: false,
        };
        let thread = thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&jobs))
            .map_err(|error| StoreError::Unavailable(format!("no thread: {error}")))?;
        Ok((
            Self {
                queue: Some(queue),
                thread: Some(thread),
            },
            revisions,
        ))
    }

    /// Has work done in the next batch and waits for its commit.
    pub(super) async fn run<T, F>(&self, timeout: Duration, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Batch<'_>) -> Result<T, Fault> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + timeout;
        let job = Box::new(Task {
            work,
            result: None,
            reply,
            deadline,
        });
        let Some(queue) = &self.queue else {
            return Err(stopped());
        };
        queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => {
                StoreError::Unavailable(format!("{QUEUE_MAX} writes wait already"))
            }
            TrySendError::Disconnected(_) => stopped(),
        })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(StoreError::OutcomeUnknown("the writer has stopped".into())),
            Err(_) => Err(StoreError::OutcomeUnknown(format!(
                "not done within {} s",
                timeout.as_secs_f64()
            ))),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // What waits is still written; a panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }
}

fn stopped() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

/// Leases survive a restart with their full time, as their owners could not renew meanwhile.
fn restored_leases(db: &Connection, now: Instant) -> rusqlite::Result<LeaseClock> {
    let mut leases = LeaseClock::default();
    let mut statement = db.prepare("SELECT id, ttl_ms FROM lease")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let ttl_ms: i64 = row.get(1)?;
        let ttl = Duration::from_millis(ttl_ms.unsigned_abs());
        leases.apply(LeaseChange::Granted(LeaseId(row.get(0)?), ttl), now);
    }
    Ok(leases)
}

struct Thread {
    db: Connection,
    revision: Revision,
    published: watch::Sender<Revision>,
    leases: LeaseClock,
    leases_rest_until: Option<Instant>,
    room: Room,
    sweep: Option<Sweep>,
    /// Whether the revision may be another one: a commit failed, and it was not read back.
    unsure: bool,
}

impl Thread {
    fn run(mut self, jobs: &Receiver<Box<dyn Job>>) {
        loop {
            match jobs.recv_timeout(self.rest(Instant::now())) {
                Ok(first) => {
                    let more = jobs.try_iter().take(BATCH_MAX - 1);
                    self.write(std::iter::once(first).chain(more).collect());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.end_leases(Instant::now());
            self.sweep();
        }
    }

    /// How long nothing but a job needs the thread.
    fn rest(&self, now: Instant) -> Duration {
        if self.sweep.is_some() {
            return Duration::ZERO;
        }
        let next = self.leases_rest_until.or(self.leases.next());
        next.map_or(REST, |next| next.saturating_duration_since(now).min(REST))
    }

    fn write(&mut self, mut jobs: Vec<Box<dyn Job>>) {
        let end = self.commit(|batch| jobs.iter_mut().try_for_each(|job| job.run(batch)));
        match end {
            // One of them broke the batch (the largest did not fit the disk): each by itself then.
            Err(End::RolledBack(_)) if jobs.len() > 1 => {
                for mut job in jobs {
                    let end = self.commit(|batch| job.run(batch));
                    job.finish(end.map_err(StoreError::from));
                }
            }
            end => {
                let end = end.map_err(StoreError::from);
                jobs.into_iter().for_each(|job| job.finish(end.clone()));
            }
        }
    }

    fn end_leases(&mut self, now: Instant) {
        if self.leases_rest_until.is_some_and(|until| now < until) {
            return;
        }
        let due = self.leases.due(now, LEASE_ENDS_MAX);
        if due.is_empty() {
            return;
        }
        let ended = self.commit(|batch| due.iter().try_for_each(|lease| end_lease(batch, *lease)));
        if let Err(error) = &ended
            && self.leases_rest_until.is_none()
        {
            let error = StoreError::from(error.clone());
            tracing::warn!(%error, "leases that are over cannot be ended, trying every second");
        }
        self.leases_rest_until = ended.is_err().then_some(now + REST);
    }

    fn sweep(&mut self) {
        let Some(sweep) = self.sweep else { return };
        let mut rest = None;
        let swept = self.commit(|batch| match batch.sweep(sweep, SWEEP_ROWS_MAX) {
            Ok(swept) => {
                rest = swept;
                Ok(())
            }
            Err(Fault::Broken(error)) => Err(error),
            Err(Fault::Refused(_)) => Ok(()),
        });
        if let Err(error) = swept {
            let error = StoreError::from(error);
            tracing::warn!(%error, "a compaction stopped, the next one goes on with its work");
        }
        self.sweep = rest;
    }

    /// Runs work in one SQLite transaction, then notes and announces what it has changed.
    fn commit(
        &mut self,
        work: impl FnOnce(&mut Batch<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), End> {
        let ours = (!self.unsure).then_some(self.revision);
        let done = attempt(&mut self.db, (ours, &mut self.room), work);
        let done = done.map_err(|end| match end {
            End::RolledBack(StoreError::Full(text)) => {
                let text = format!("{text}: {}", what_is_full(&self.db));
                End::RolledBack(StoreError::Full(text))
            }
            end => end,
        });
        match &done {
            Ok(done) => {
                if done.revision > self.revision {
                    self.room.is_there();
                }
                let now = Instant::now();
                done.leases
                    .iter()
                    .for_each(|change| self.leases.apply(*change, now));
                if let Some(until) = done.compacted {
                    self.sweep = Some(Sweep { until, row: 0 });
                }
                self.revision = done.revision;
                self.unsure = false;
            }
            Err(End::RolledBack(error)) => {
                if matches!(error, StoreError::Full(_) | StoreError::Unavailable(_)) {
                    self.room.is_lacking(error.clone());
                }
            }
            Err(End::Unknown(error)) => {
                // Who asks whether writes are taken again writes nothing, and would hear yes.
                self.room
                    .is_lacking(StoreError::Unavailable(error.to_string()));
                // Read back; while that fails too, the next commit goes on from what it finds.
                match history::revision(&self.db) {
                    Ok(revision) => (self.revision, self.unsure) = (revision, false),
                    Err(_) => self.unsure = true,
                }
            }
        }
        if *self.published.borrow() != self.revision {
            self.published.send_replace(self.revision);
        }
        done.map(|_| ())
    }
}

/// How a batch failed.
#[derive(Clone, Debug)]
enum End {
    /// Nothing of it was done.
    RolledBack(StoreError),
    /// It may have been committed.
    Unknown(StoreError),
}

impl From<End> for StoreError {
    fn from(end: End) -> Self {
        match end {
            End::RolledBack(error) | End::Unknown(error) => error,
        }
    }
}

struct Done {
    revision: Revision,
    leases: Vec<LeaseChange>,
    compacted: Option<Revision>,
}

/// Begins at the revision that the file has, which must be `ours` where that is known.
fn attempt(
    db: &mut Connection,
    (ours, room): (Option<Revision>, &mut Room),
    work: impl FnOnce(&mut Batch<'_>) -> rusqlite::Result<()>,
) -> Result<Done, End> {
    let rolled_back = |error: rusqlite::Error| End::RolledBack(nothing_done(&error));
    let transaction = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(rolled_back)?;
    let revision = history::revision(&transaction).map_err(rolled_back)?;
    if ours.is_some_and(|ours| ours != revision) {
        let why = format!(
            "somebody else writes to the store's file: it is at revision {revision}; end the other \
             process, or start this one again where the file was put back"
        );
        return Err(End::RolledBack(StoreError::Unavailable(why)));
    }
    let mut batch = Batch::new(&transaction, revision).within(room);
    work(&mut batch).map_err(rolled_back)?;
    let done = Done {
        revision: batch.revision(),
        leases: std::mem::take(&mut batch.leases),
        compacted: batch.compacted,
    };
    transaction
        .commit()
        .map_err(|error| match commit_failed(&error) {
            error @ StoreError::OutcomeUnknown(_) => End::Unknown(error),
            error => End::RolledBack(error),
        })?;
    Ok(done)
}

fn end_lease(batch: &mut Batch<'_>, lease: LeaseId) -> rusqlite::Result<()> {
    match batch.end_lease(lease) {
        Ok(()) => Ok(()),
        Err(Fault::Broken(error)) => Err(error),
        Err(Fault::Refused(_)) => {
            // Revoked already, only the clock has not heard of it.
            batch.leases.push(LeaseChange::Ended(lease));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::file;
    use crate::store::{Op, Txn};

    #[test]
    fn what_was_rolled_back_is_not_acknowledged_when_its_time_is_over() {
        let db = Connection::open_in_memory().unwrap();
        file::lay_out(&db).unwrap();
        let txn = Txn {
            ops: vec![Op::put("a", "1")],
            ..Txn::default()
        };
        let (reply, mut answer) = oneshot::channel();
        let mut task = Box::new(Task {
            work: move |batch: &mut Batch<'_>| batch.txn(&txn),
            result: None,
            reply,
            deadline: Instant::now() + Duration::from_secs(60),
        });
        let run = |task: &mut Box<Task<_, _>>| {
            let mut batch = Batch::new(&db, Revision(1));
            task.run(&mut batch).unwrap();
            batch.revision()
        };
        assert_eq!(run(&mut task), Revision(2));
        // Somebody else broke the batch, and it is tried by itself too late.
        task.deadline = Instant::now();
        assert_eq!(run(&mut task), Revision(1));
        task.finish(Ok(()));
        let told = answer.try_recv().unwrap();
        assert!(matches!(told, Err(StoreError::Unavailable(_))), "{told:?}");
    }
}
