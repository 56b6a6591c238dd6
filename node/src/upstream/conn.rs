//! One connection with its driver task: hyper's handshake, and how it ends.
//!
//! The driver is a local task of the worker. An idle connection needs it as much as a busy one: it
//! is what notices that the target closed, and what refuses bytes that nobody asked for.

use std::cell::Cell;
use std::rc::Rc;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::error::FailureKind;
use super::pool::Slot;
use super::sent::SentBody;
use super::transport::Transport;

/// Largest head of an answer, and largest trailers: 256 KiB, as large as the listener's limits
/// times two, since targets send long `set-cookie` and policy fields.
///
/// Of fields there may be 100 (as in Envoy): hyper's own bound, for which it needs no memory beside
/// its stack.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// Read and write buffer of one connection: what one slow reader can hold in memory here.
const BUFFER_BYTES_MAX: usize = 400 * 1024;

/// HTTP/2 windows: what one stream, and all of them, may have in flight towards us.
const H2_STREAM_WINDOW: u32 = 1024 * 1024;
const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A dead HTTP/2 connection would fail everything that is multiplexed on it, one by one.
const H2_PING_INTERVAL: Duration = Duration::from_secs(20);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection after its handshake.
pub(super) enum Connected {
    /// One exchange at a time.
    Http1(Box<Http1Conn>),
    /// Many streams.
    Http2(Rc<Http2Conn>),
}

/// An HTTP/1.1 connection. Whoever holds it has it alone.
pub(super) struct Http1Conn {
    pub(super) sender: http1::SendRequest<SentBody>,
    /// Set while an exchange is under way: a connection that is dropped in this state has bytes on
    /// it that belong to one caller, and is torn down rather than ended politely.
    pub(super) busy: bool,
    pub(super) received: Rc<Cell<u64>>,
    pub(super) remote: SocketAddr,
    pub(super) born: Instant,
    /// When the idle connection is no longer used.
    pub(super) stale_at: Instant,
    driver: AbortHandle,
    // Last: the place in the pool is free when the connection is gone.
    _slot: Slot,
}

impl Drop for Http1Conn {
    fn drop(&mut self) {
        if self.busy {
            self.driver.abort();
        }
        // Otherwise the sender's end lets the driver close the connection, with TLS's farewell.
    }
}

/// An HTTP/2 connection, shared by its streams.
pub(super) struct Http2Conn {
    pub(super) sender: http2::SendRequest<SentBody>,
    pub(super) streams: Cell<usize>,
    pub(super) remote: SocketAddr,
    pub(super) born: Instant,
    /// When it is closed, if no stream is open by then.
    pub(super) stale_at: Cell<Instant>,
    _slot: Slot,
}

/// hyper's handshake over a fresh transport, before `deadline`.
pub(super) async fn connect(
    transport: Transport,
    slot: Slot,
    deadline: Instant,
) -> Result<Connected, FailureKind> {
    if transport.is_http2() {
        connect_http2(transport, slot, deadline).await
    } else {
        connect_http1(transport, slot).await
    }
}

async fn connect_http1(transport: Transport, slot: Slot) -> Result<Connected, FailureKind> {
    let (remote, received) = (transport.remote, transport.received());
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(transport))
        .await
        .map_err(|error| FailureKind::Reset(error.to_string().into()))?;
    let driver = tokio::task::spawn_local(async move {
        // Errors reach the exchange that they belong to; an idle connection's end is no event.
        let _ = connection.await;
    });
    let now = Instant::now();
    Ok(Connected::Http1(Box::new(Http1Conn {
        sender,
        busy: true,
        received,
        remote,
        born: now,
        stale_at: now,
        driver: driver.abort_handle(),
        _slot: slot,
    })))
}

async fn connect_http2(
    transport: Transport,
    slot: Slot,
    deadline: Instant,
) -> Result<Connected, FailureKind> {
    let remote = transport.remote;
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_TIMEOUT);
    let (sender, connection) = timeout_at(deadline, builder.handshake(TokioIo::new(transport)))
        .await
        .map_err(|_| FailureKind::ConnectTimeout)?
        .map_err(|error| FailureKind::Reset(error.to_string().into()))?;
    tokio::task::spawn_local(async move {
        let _ = connection.await;
    });
    let now = Instant::now();
    Ok(Connected::Http2(Rc::new(Http2Conn {
        sender,
        streams: Cell::new(0),
        remote,
        born: now,
        stale_at: Cell::new(now),
        _slot: slot,
    })))
}

/// Runs hyper's HTTP/2 tasks on this worker: our bodies are not `Send`.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
