//! One connection: hyper's handshake, who drives it, and how it ends.
//!
//! An HTTP/1.1 connection is driven by whoever holds it: the exchange, within the task of its
//! caller, so that no other task has to be woken for the request to be written and for the answer
//! to be read; and the pool, which looks at an idle one before it gives it out, and now and then:
//! that is what notices that the target closed, and what refuses bytes that nobody asked for. Only
//! where an answer begins before the request's body has ended does it get a task of its own: the
//! rest of the body must not wait for a caller that reads its answer slowly.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::AsyncWrite;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

use super::error::FailureKind;
use super::pool::Slot;
use super::sent::SentBody;
use super::timer::Timer;
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
    pub(super) written: Rc<Cell<u64>>,
    pub(super) remote: SocketAddr,
    pub(super) born: Instant,
    /// When the idle connection is no longer used.
    pub(super) stale_at: Instant,
    /// The deadline of the exchange under way. It stays with the connection, because one that is
    /// moved into the future costs nothing.
    pub(super) timer: Timer,
    driver: Driver,
    // Last: the place in the pool is free when the connection is gone.
    _slot: Slot,
}

/// Who reads and writes on a connection.
enum Driver {
    /// Whoever holds it.
    Holder(Box<http1::Connection<TokioIo<Transport>, SentBody>>),
    /// A task.
    Task(AbortHandle),
    /// Nobody: it has ended.
    Nobody,
}

impl Http1Conn {
    /// Reads and writes what can be read and written now; the task is woken when that may be more.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Driver::Holder(connection) = &mut self.driver
            && Pin::new(&mut **connection).poll(cx).is_ready()
        {
            // An error has reached the exchange that it belongs to; the end of an idle connection
            // is no event.
            self.driver = Driver::Nobody;
        }
    }

    /// Finds out whether the idle connection is still good. Nobody is woken for it.
    pub(super) fn look(&mut self) {
        self.drive(&mut Context::from_waker(Waker::noop()));
    }

    /// Whether nothing happens on it without [`Self::drive`].
    pub(super) fn is_held(&self) -> bool {
        matches!(self.driver, Driver::Holder(_))
    }

    /// Gives it a task of its own.
    pub(super) fn detach(&mut self) {
        match std::mem::replace(&mut self.driver, Driver::Nobody) {
            Driver::Holder(connection) => {
                let task = tokio::task::spawn_local(async move {
                    let _ = connection.await;
                });
                self.driver = Driver::Task(task.abort_handle());
            }
            other => self.driver = other,
        }
    }
}

impl Drop for Http1Conn {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.driver, Driver::Nobody) {
            Driver::Task(task) if self.busy => task.abort(),
            // TLS's farewell, if it can be written at once.
            Driver::Holder(connection) if !self.busy => {
                let mut io = connection.into_parts().io.into_inner();
                let mut cx = Context::from_waker(Waker::noop());
                let _ = Pin::new(&mut io).poll_shutdown(&mut cx);
            }
            // The sender's end lets the task close the connection.
            Driver::Task(_) | Driver::Holder(_) | Driver::Nobody => {}
        }
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
    /// Driven by a task; none once it has ended. hyper knows that nobody takes requests any more by
    /// its being gone.
    connection: Rc<RefCell<Option<Streams>>>,
    _slot: Slot,
}

type Streams = http2::Connection<TokioIo<Transport>, SentBody, LocalExecutor>;

impl Http2Conn {
    /// How many streams the target takes at a time; one more would wait on the connection, unseen.
    /// Until its settings have come it is what hyper takes it to be.
    pub(super) fn streams_max(&self) -> usize {
        match self.connection.try_borrow() {
            Ok(connection) => (connection.as_ref()).map_or(0, Streams::current_max_send_streams),
            Err(_) => usize::MAX,
        }
    }
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
    let remote = transport.remote;
    let (received, written) = (transport.received(), transport.written());
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(transport))
        .await
        .map_err(|error| FailureKind::Reset(error.to_string().into()))?;
    let now = Instant::now();
    Ok(Connected::Http1(Box::new(Http1Conn {
        sender,
        busy: true,
        received,
        written,
        remote,
        born: now,
        stale_at: now,
        timer: Timer::default(),
        driver: Driver::Holder(Box::new(connection)),
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
    let connection = Rc::new(RefCell::new(Some(connection)));
    let driven = Rc::clone(&connection);
    tokio::task::spawn_local(async move {
        poll_fn(|cx| match driven.borrow_mut().as_mut() {
            Some(connection) => Pin::new(connection).poll(cx).map(drop),
            None => Poll::Ready(()),
        })
        .await;
        // Requests that it held come back now: nothing is borrowed while it is dropped.
        let ended = driven.borrow_mut().take();
        drop(ended);
    });
    let now = Instant::now();
    Ok(Connected::Http2(Rc::new(Http2Conn {
        sender,
        streams: Cell::new(0),
        remote,
        born: now,
        stale_at: Cell::new(now),
        connection,
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
