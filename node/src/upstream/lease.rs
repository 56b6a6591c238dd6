//! What an exchange asks of the connection that it has leased, whichever protocol that speaks.

use std::net::SocketAddr;

use futures_util::future::Either;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::pool::Lease;
use super::sent::SentBody;

/// What hyper says of a request that it was given.
pub(super) type Outcome = Result<Response<Incoming>, TrySendError<Request<SentBody>>>;

impl Lease {
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
