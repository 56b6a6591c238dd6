//! A connection in use for one exchange, whichever protocol it speaks.

use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Context;

use futures_util::future::Either;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::conn::{Http1Conn, Http2Conn};
use super::pool::TargetPool;
use super::sent::SentBody;
use super::timer::Timer;

/// What hyper says of a request that it was given.
pub(super) type Outcome = Result<Response<Incoming>, TrySendError<Request<SentBody>>>;

/// A connection in use for one exchange.
pub(super) enum Lease {
    /// Alone.
    Http1 {
        conn: Box<Http1Conn>,
        pool: Rc<TargetPool>,
        reused: bool,
    },
    /// One stream of a shared connection.
    Http2 { stream: StreamLease, reused: bool },
}

/// One stream's place on a shared connection.
pub(super) struct StreamLease {
    pub(super) conn: Rc<Http2Conn>,
    /// The deadline of the exchange.
    timer: Timer,
    pool: Rc<TargetPool>,
}

impl StreamLease {
    /// Takes a place; it is given back when this is dropped.
    pub(super) fn new(conn: Rc<Http2Conn>, pool: Rc<TargetPool>) -> Self {
        conn.streams.set(conn.streams.get() + 1);
        Self {
            conn,
            timer: Timer::default(),
            pool,
        }
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.pool.release_stream(&self.conn);
    }
}

impl Lease {
    /// Reads and writes what can be read and written now, where nobody else does.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Self::Http1 { conn, .. } = self {
            conn.drive(cx);
        }
    }

    /// Whether nothing happens on the connection without [`Self::drive`].
    pub(super) fn is_held(&self) -> bool {
        matches!(self, Self::Http1 { conn, .. } if conn.is_held())
    }

    /// Lets the connection go on while nobody polls the exchange.
    pub(super) fn detach(&mut self) {
        if let Self::Http1 { conn, .. } = self {
            conn.detach();
        }
    }

    /// The deadline of the exchange.
    pub(super) fn timer(&mut self) -> &mut Timer {
        match self {
            Self::Http1 { conn, .. } => &mut conn.timer,
            Self::Http2 { stream, .. } => &mut stream.timer,
        }
    }

    /// Whether the connection had served another exchange before.
    pub(super) fn reused(&self) -> bool {
        match self {
            Self::Http1 { reused, .. } | Self::Http2 { reused, .. } => *reused,
        }
    }

    /// The address at its other end.
    pub(super) fn remote(&self) -> SocketAddr {
        match self {
            Self::Http1 { conn, .. } => conn.remote,
            Self::Http2 { stream, .. } => stream.conn.remote,
        }
    }

    /// Bytes received on the connection so far. On a shared one they say nothing about a stream.
    pub(super) fn received(&self) -> u64 {
        match self {
            Self::Http1 { conn, .. } => conn.received.get(),
            Self::Http2 { .. } => 0,
        }
    }

    /// Bytes written on the connection so far, as `received`.
    pub(super) fn written(&self) -> u64 {
        match self {
            Self::Http1 { conn, .. } => conn.written.get(),
            Self::Http2 { .. } => 0,
        }
    }

    /// Hands the request to hyper, now; the future only waits for the answer.
    pub(super) fn send(
        mut self,
        request: Request<SentBody>,
    ) -> (Self, impl Future<Output = Outcome>) {
        let outcome = match &mut self {
            Self::Http1 { conn, .. } => Either::Left(conn.sender.try_send_request(request)),
            Self::Http2 { stream, .. } => {
                Either::Right(stream.conn.sender.clone().try_send_request(request))
            }
        };
        (self, outcome)
    }
}
