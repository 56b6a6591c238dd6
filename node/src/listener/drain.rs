//! The end of a listener: nobody who has a connection is turned away without an answer.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_server::ServerHandle;

use super::admission::Admission;

/// What becomes of connections that nobody has accepted yet when a listener drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// No new ones come in, those that are there are served; then the address refuses.
    Ends,
    /// Another process accepts them: it has the same socket.
    HandedOver,
}

/// Stops a listener and tells its numbers.
#[derive(Clone)]
pub struct ListenerHandle {
    server: ServerHandle,
    admission: Arc<Admission>,
    /// The listening socket, until the listener drains.
    socket: Arc<Mutex<Option<std::net::TcpListener>>>,
}

impl fmt::Debug for ListenerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerHandle")
            .field("admission", &self.admission)
            .finish_non_exhaustive()
    }
}

/// How long a connection without a request may hold up the end of a listener that drains.
const FRESH_MAX: Duration = Duration::from_secs(1);
/// How long none must have been seen: the thread that accepts may just be about to hand one on.
const QUIET: Duration = Duration::from_millis(50);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(5);

impl ListenerHandle {
    pub(super) fn new(
        server: ServerHandle,
        admission: Arc<Admission>,
        socket: std::net::TcpListener,
    ) -> Self {
        Self {
            server,
            admission,
            socket: Arc::new(Mutex::new(Some(socket))),
        }
    }

    /// Accepts nothing more, answers the first request of connections that were just made, closes
    /// idle ones, lets requests in hand end within `shutdown_timeout`, then ends the workers.
    pub async fn drain(&self, queue: Queue) {
        match queue {
            Queue::HandedOver => self.server.pause().await,
            Queue::Ends => self.keep_out(),
        }
        self.settle().await;
        self.forget_socket();
        self.server.stop(true).await;
    }

    /// Lets the queue of the socket run empty: a listener with a queue of none lets the system drop
    /// what asks for a connection, and it asks again; one that closes resets whoever is queued.
    fn keep_out(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = socket.as_ref()
            && let Err(error) = socket2::SockRef::from(socket).listen(0)
        {
            tracing::debug!(%error, "the queue of the listener stays open: {error}");
        }
    }

    /// Waits until the connections that were accepted have had their first request.
    async fn settle(&self) {
        let began = Instant::now();
        let mut quiet = began;
        while began.elapsed() < FRESH_MAX && quiet.elapsed() < QUIET {
            actix_rt::time::sleep(LOOK).await;
            if self.admission.fresh() > 0 {
                quiet = Instant::now();
            }
        }
    }

    fn forget_socket(&self) {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        *socket = None;
    }

    /// Ends the workers with whatever they have in hand.
    pub async fn stop(&self) {
        self.forget_socket();
        self.server.stop(false).await;
    }

    /// Connections that are open.
    pub fn connections_open(&self) -> usize {
        self.admission.open()
    }

    /// Connections that were refused for want of room, since the start.
    pub fn connections_refused(&self) -> u64 {
        self.admission.refused()
    }
}
