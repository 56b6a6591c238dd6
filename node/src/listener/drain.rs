//! The end of a listener: nobody who has a connection is turned away without an answer.

use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use actix_server::ServerHandle;
use proto::outcome::Code;
use socket2::{SockFilter, SockRef};
use tokio::sync::watch;

use super::admission::Admission;
use crate::metrics::Metrics;

/// What becomes of connections that nobody has accepted yet when a listener drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// No new ones come in, those that are there are served; then the address refuses.
    Ends,
    /// Another process accepts them: it has the same socket.
    HandedOver,
    /// Another process has the same socket, and accepts when this one has ended. Until idle
    /// connections are closed this one accepts too, so that nobody waits for these.
    Held,
}

/// Stops a listener and tells its numbers.
#[derive(Clone)]
pub struct ListenerHandle {
    server: ServerHandle,
    admission: Arc<Admission>,
    /// The listening socket, until the listener drains.
    socket: Arc<Mutex<Option<std::net::TcpListener>>>,
    idle_end: IdleEnd,
    times: DrainTimes,
    metrics: Metrics,
}

/// Tells every connection that it ends unless a request is in hand on it.
///
/// The server has a signal like it, which comes when its workers are told to end. That is too
/// early: a worker without a connection ends at once, also when it finishes a request whose caller
/// has left.
#[derive(Clone, Debug)]
pub(super) struct IdleEnd(Arc<watch::Sender<bool>>);

impl IdleEnd {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    fn comes(&self) {
        self.0.send_replace(true);
    }

    /// Ends when it has come.
    pub(super) async fn come(self) {
        // Never an error: the sender is held here.
        let _ = self.0.subscribe().wait_for(|come| *come).await;
    }
}

/// How long a listener that drains waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainTimes {
    /// For connections without a request.
    pub(super) idle: Duration,
    /// After that, for requests in hand.
    pub(super) in_hand: Duration,
}

impl fmt::Debug for ListenerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerHandle")
            .field("admission", &self.admission)
            .finish_non_exhaustive()
    }
}

/// How long a connection that was just made, and is without a request, may hold up the end of a
/// listener that drains.
const FRESH_MAX: Duration = Duration::from_secs(1);
/// Longest wait for workers that have no more time to let go what they have, and to record it.
const CUT_MAX: Duration = Duration::from_secs(5);
/// Looks in a row, 200 ms, at which none must have been there: the thread that accepts hears late
/// that it is to pause, and may just be about to hand one on. Counted, since on a machine that is
/// busy these looks come as late as that thread does.
pub const QUIET_LOOKS: u32 = 40;
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until there have been none at so many looks after the first, no longer than until `until`.
pub async fn none_left(count: impl Fn() -> usize, quiet_looks: u32, until: Instant) {
    let mut quiet = 0;
    while Instant::now() < until {
        quiet = match count() {
            0 if quiet >= quiet_looks => return,
            0 => quiet + 1,
            _ => 0,
        };
        actix_rt::time::sleep(LOOK).await;
    }
}

/// A classic BPF program over TCP segments to a listener (RFC 9293 3.1: the flags are byte 13, SYN
/// is bit 1): drops those that ask for a connection, passes those that complete one.
fn no_new_connections() -> [SockFilter; 4] {
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(JUMP_IF_SET, 1, 0, 0x02),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

impl ListenerHandle {
    pub(super) fn new(
        server: ServerHandle,
        admission: Arc<Admission>,
        socket: std::net::TcpListener,
        (times, idle_end): (DrainTimes, IdleEnd),
        metrics: Metrics,
    ) -> Self {
        Self {
            server,
            admission,
            times,
            idle_end,
            metrics,
            socket: Arc::new(Mutex::new(Some(socket))),
        }
    }

    /// Accepts nothing more, and makes the next answer of every connection its last. Connections
    /// that are idle are closed after `drain_idle`: a caller whose request is on its way when its
    /// connection closes cannot know whether it was carried out. Then requests in hand may end
    /// within `shutdown_timeout`, those too that are finished for a caller that has left, and the
    /// workers end: what they still have is cut.
    pub async fn drain(&self, queue: Queue) {
        match queue {
            Queue::HandedOver => self.server.pause().await,
            Queue::Ends => self.keep_out(),
            Queue::Held => {}
        }
        self.admission.leave();
        let began = Instant::now();
        if queue == Queue::Held {
            self.idle_end(began).await;
            self.server.pause().await;
        }
        self.fresh_are_served(Instant::now()).await;
        if queue == Queue::Ends {
            self.server.pause().await;
            self.refuse();
        }
        self.forget_socket();
        self.idle_end(began).await;
        self.idle_end.comes();
        let (cut, cut_at) = (self.metrics.cut(), Instant::now() + self.times.in_hand);
        cut.comes(cut_at);
        none_left(|| self.in_hand(), 0, cut_at).await;
        self.server.stop(!cut.has_come()).await;
        // The workers have been told to end, and may not have ended yet: who is cut writes its
        // record then.
        let cut_by = Instant::now() + CUT_MAX;
        none_left(|| self.in_flight(), 0, cut_by).await;
        let count = self.metrics.ended_with(Code::GatewayStopped);
        if count > 0 {
            tracing::warn!(
                count,
                "{count} requests had not ended within `gateway.drain_ms` and were cut; their \
                 records say `gateway-stopped`"
            );
        }
    }

    /// Connections, and requests: one may go on without the other.
    fn in_hand(&self) -> usize {
        self.admission.open().saturating_add(self.in_flight())
    }

    fn in_flight(&self) -> usize {
        usize::try_from(self.metrics.in_flight()).unwrap_or(usize::MAX)
    }

    /// Waits until no connection is open, or those that are have been idle for long enough.
    async fn idle_end(&self, began: Instant) {
        none_left(|| self.admission.open(), 0, began + self.times.idle).await;
    }

    /// Lets the queue of the socket run empty: who asks for a connection gets no answer, and asks
    /// again a second later. A listener that closes resets whoever is in its queue, with a request
    /// that may have been sent already.
    fn keep_out(&self) {
        self.with_socket("its queue stays open", |socket| {
            socket.attach_filter(&no_new_connections())
        });
    }

    /// The address takes no connections from here on: who asks again is refused.
    fn refuse(&self) {
        self.with_socket("it is refused later", |socket| {
            socket.shutdown(Shutdown::Read)
        });
    }

    fn with_socket(&self, else_: &str, act: impl FnOnce(SockRef<'_>) -> io::Result<()>) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = socket.as_ref()
            && let Err(error) = act(SockRef::from(socket))
        {
            tracing::debug!(%error, "the listener drains, but {else_}: {error}");
        }
    }

    /// Waits until the connections that were accepted have had their first request.
    async fn fresh_are_served(&self, began: Instant) {
        none_left(|| self.admission.fresh(), QUIET_LOOKS, began + FRESH_MAX).await;
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

    /// Whether it drains: every answer is the last of its connection.
    pub fn is_leaving(&self) -> bool {
        self.admission.is_leaving()
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
