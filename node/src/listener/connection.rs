//! What the socket and the service of one connection tell each other.
//!
//! The socket knows which request is whole and whether a body was cut; the service knows when an
//! answer is finished and whether it is the last. With both, a request is given to actix-web only
//! when the one before it is answered: no second request is run behind one that closes, and an
//! answer cannot be mixed up with the framing of another request.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_http::body::{BodySize, BoxBody, MessageBody};
use actix_http::{ConnectionType, Response, StatusCode, Version};
use bytes::Bytes;
use rustls_pki_types::CertificateDer;

use super::admission::{Admission, Fresh};
use super::refusal::Refusal;
use crate::metrics::Metrics;

/// What TLS found out about the client.
#[derive(Clone, Debug, Default)]
pub struct TlsFacts {
    /// The client's certificates, its own first; verified as the server's configuration says.
    pub peer_certificates: Vec<CertificateDer<'static>>,
    /// The name the client asked for.
    pub server_name: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    /// Says when every answer is the last.
    admission: Option<Arc<Admission>>,
    /// Until the first request.
    fresh: RefCell<Option<Fresh>>,
    /// Requests handed to actix-web.
    begun: Cell<u64>,
    /// Requests whose answer is given out or given up.
    answered: Cell<u64>,
    /// Whether the body of the request in hand has not ended yet.
    body_open: Cell<bool>,
    /// Whether no further request of this connection is served.
    closing: Cell<bool>,
    /// Why the body in hand was cut.
    fault: Cell<Option<Refusal>>,
    tls: Option<Rc<TlsFacts>>,
    metrics: Option<Metrics>,
}

/// A connection as a handler sees it: `req.conn_data::<Connection>()`.
#[derive(Clone, Debug, Default)]
pub struct Connection(Rc<State>);

impl Connection {
    /// A connection that has just been accepted; `metrics` count what it refuses.
    pub fn new(tls: Option<TlsFacts>, fresh: Fresh, metrics: Metrics) -> Self {
        Self(Rc::new(State {
            admission: Some(fresh.admission()),
            fresh: RefCell::new(Some(fresh)),
            tls: tls.map(Rc::new),
            metrics: Some(metrics),
            ..State::default()
        }))
    }

    /// Why the body of the request in hand was cut: bad framing (answer it with 400 and not with
    /// 502), or a client that stopped sending (408). `None` when the payload's error has another
    /// cause. [`Refusal::facts`] has status, code and text of the answer.
    pub fn body_fault(&self) -> Option<Refusal> {
        self.0.fault.get()
    }

    /// What TLS found out; `None` on a plain connection.
    pub fn tls(&self) -> Option<Rc<TlsFacts>> {
        self.0.tls.clone()
    }

    /// A request's head passes to actix-web.
    pub(super) fn begin_request(&self) {
        if self.0.begun.replace(self.0.begun.get() + 1) == 0 {
            self.0.fresh.take();
        }
        self.0.body_open.set(true);
    }

    /// Its body has passed too.
    pub(super) fn end_body(&self) {
        self.0.body_open.set(false);
    }

    /// Something on it is refused.
    pub(super) fn refused(&self, refusal: Refusal) {
        let code = refusal.facts().code;
        tracing::debug!(
            code = code.as_str(),
            ?refusal,
            "the listener refused a request"
        );
        if let Some(metrics) = &self.0.metrics {
            metrics.listener_refused(code);
        }
    }

    /// Its body is cut; the answer will be the last.
    pub(super) fn cut_body(&self, fault: Refusal) {
        self.0.fault.set(Some(fault));
        self.0.closing.set(true);
    }

    /// Nothing further is served.
    pub(super) fn close(&self) {
        self.0.closing.set(true);
    }

    /// Whether nothing further is served.
    pub(super) fn is_closing(&self) -> bool {
        self.0.closing.get()
    }

    /// Whether a request waits for its answer, or its answer is on the way.
    pub(super) fn in_flight(&self) -> bool {
        self.0.begun.get() != self.0.answered.get()
    }
}

/// Marks a request as answered when it goes: with the last byte of its answer's body taken by
/// actix-web, or with its future dropped.
#[derive(Debug)]
pub(super) struct Answering {
    connection: Option<Connection>,
    /// That of the request.
    version: Version,
}

impl Answering {
    pub(super) fn new(connection: Option<Connection>, version: Version) -> Self {
        Self {
            connection,
            version,
        }
    }

    /// Passes an answer on. It says `connection: close` when the listener drains, and when the
    /// request's body is still coming or was cut: what follows on the connection could not be told
    /// from the rest of that body. A client that speaks HTTP/1.0 knows no chunks (RFC 9112 6.1): a
    /// body of unknown length ends with the connection.
    pub(super) fn finish<B>(self, mut response: Response<B>) -> Response<AnswerBody>
    where
        B: MessageBody + 'static,
    {
        let is_unmeasured = matches!(response.body().size(), BodySize::Stream);
        if self.version < Version::HTTP_11 && is_unmeasured {
            let head = response.head_mut();
            head.no_chunking(true);
            head.set_connection_type(ConnectionType::Close);
        }
        if let Some(connection) = &self.connection {
            let tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let state = &connection.0;
            let leaving = || state.admission.as_ref().is_some_and(|all| all.is_leaving());
            if !tunnel && (state.body_open.get() || state.fault.get().is_some() || leaving()) {
                response
                    .head_mut()
                    .set_connection_type(ConnectionType::Close);
            }
            // A recycled head still has the version of the answer before it, and 1.0 would read as
            // `close`; actix-web sets the version that counts later.
            response.head_mut().version = Version::HTTP_11;
            if response.head().connection_type() == ConnectionType::Close {
                connection.close();
            }
        }
        response.map_body(|_, body| AnswerBody {
            inner: body.boxed(),
            _answering: self,
        })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(Connection(state)) = &self.connection {
            state.answered.set(state.answered.get() + 1);
        }
    }
}

/// An answer's body that tells when actix-web is done with it.
#[derive(Debug)]
pub(super) struct AnswerBody {
    inner: BoxBody,
    _answering: Answering,
}

impl MessageBody for AnswerBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.inner.size()
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().inner).poll_next(cx)
    }
}
