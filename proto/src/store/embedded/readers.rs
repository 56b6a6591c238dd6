//! The threads that read, each with a connection of its own.
//!
//! Threads of our own rather than a runtime's blocking pool: callers run on many kinds of runtime,
//! some with no such pool, and a handful of connections is all that SQLite has use for.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::fault::Fault;
use crate::store::StoreError;

/// Reads that may wait; beyond it callers are told that the store is unavailable.
const QUEUE_MAX: usize = 1024;

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// The handle of the reading threads.
pub(super) struct Readers {
    queue: Mutex<Option<SyncSender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Readers {
    /// Starts one thread for each connection.
    pub(super) fn start(connections: Vec<Connection>) -> Result<Self, StoreError> {
        let (queue, jobs) = sync_channel::<Job>(QUEUE_MAX);
        let jobs = Arc::new(Mutex::new(jobs));
        let spawn = |db: Connection| {
            let jobs = Arc::clone(&jobs);
            thread::Builder::new()
                .name("store-reader".into())
                .spawn(move || serve(&db, &jobs))
        };
        let threads = connections.into_iter().map(spawn).collect::<Result<_, _>>();
        let threads =
            threads.map_err(|error| StoreError::Unavailable(format!("no thread: {error}")))?;
        Ok(Self {
            queue: Mutex::new(Some(queue)),
            threads: Mutex::new(threads),
        })
    }

    /// Has work done inside one read transaction, which sees one moment of the store.
    ///
    /// The moment is after the call, so every write acknowledged before it is seen.
    pub(super) async fn run<T, F>(&self, timeout: Duration, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, Instant) -> Result<T, Fault> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + timeout;
        self.send(Box::new(move |db| {
            if Instant::now() < deadline && !reply.is_closed() {
                // A caller who left in the meantime needs no answer.
                let _ = reply.send(in_transaction(db, |db| work(db, deadline)));
            }
        }))?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(StoreError::Unavailable(format!(
                "not read within {} s",
                timeout.as_secs_f64()
            ))),
        }
    }

    /// Ends the threads; further reads fail.
    pub(super) fn close(&self) {
        drop(
            self.queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A panic of the thread has been reported by itself.
            let _ = thread.join();
        }
    }

    fn send(&self, job: Job) -> Result<(), StoreError> {
        match &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(queue) => queue.try_send(job).map_err(|error| match error {
                TrySendError::Full(_) => {
                    StoreError::Unavailable(format!("{QUEUE_MAX} reads wait already"))
                }
                TrySendError::Disconnected(_) => closed(),
            }),
            None => Err(closed()),
        }
    }
}

fn serve(db: &Connection, jobs: &Mutex<Receiver<Job>>) {
    loop {
        // Held while waiting: the other threads wait for the lock instead of the queue.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(db),
            Err(_) => return,
        }
    }
}

fn in_transaction<T>(
    db: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, StoreError> {
    let transaction = db.unchecked_transaction().map_err(Fault::from)?;
    Ok(work(&transaction)?)
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}
