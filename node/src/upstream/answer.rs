//! An answer while it is read: its head, and its body as a stream.
//!
//! The body holds the connection. When it has ended, with nothing left on the connection, the
//! connection goes back to its pool, at once and not when the value is dropped. In all other cases
//! (an error, a timeout, a drop before the end, an upload that nobody finished) the connection is
//! torn down, so that no byte of this exchange can meet the next one.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, StatusCode, Version};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::error::{AnswerError, Earlier};
use super::framing::Framing;
use super::head::Resend;
use super::lease::Lease;
use super::sent::Progress;
use super::timer::due;

/// What a target answered.
#[derive(Debug)]
pub struct Answer {
    /// The final status; interim answers (1xx) are skipped.
    pub status: StatusCode,
    /// The end-to-end fields. `Content-Length`, if there, is one valid number.
    pub headers: HeaderMap,
    /// The version the target answered in.
    pub version: Version,
    /// The body.
    pub body: AnswerBody,
    /// Attempts that were made, this one included; at least 1.
    pub attempts: u32,
    /// Whether the connection had served another exchange before.
    pub reused: bool,
    /// The address that answered.
    pub remote: SocketAddr,
    /// How long getting a connection took, in the last attempt; next to nothing when reused.
    pub connect_time: Duration,
    /// From sending the request to its answer's head, in the last attempt.
    pub first_byte_time: Duration,
    /// What went wrong before.
    pub earlier: Vec<Earlier>,
    /// The request, where it may be sent to another address of the target.
    pub again: Option<Resend>,
}

/// A lease with what decides whether its connection can serve again.
pub(super) struct Held {
    lease: Option<Lease>,
    progress: Option<Rc<Progress>>,
    framing: Framing,
}

impl Held {
    pub(super) fn new(lease: Lease, progress: Option<Rc<Progress>>, framing: Framing) -> Self {
        Self {
            lease: Some(lease),
            progress,
            framing,
        }
    }

    fn sent_all(&self) -> bool {
        self.progress
            .as_ref()
            .is_none_or(|progress| progress.ended())
    }

    /// The answer has ended as it should.
    fn give_back(mut self) {
        let clean = self.framing.reuse && self.sent_all();
        match self.lease.take() {
            Some(Lease::Http1 { conn, pool, .. }) if clean => {
                pool.release(conn, self.framing.keep_alive, Instant::now());
            }
            lease => drop(lease),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress
            && !progress.ended()
        {
            progress.cancel();
        }
    }
}

/// Sees a body pass, and may change what goes on of it.
pub trait Watch {
    /// The next piece; what goes on.
    fn piece(&mut self, piece: Bytes) -> Bytes;
    /// The body is complete; what is left to go on. Not called for one that is cut.
    fn ended(&mut self) -> Bytes;
}

/// The body of an answer. A stream of its pieces, as they came, without copying.
///
/// Trailers are kept aside ([`AnswerBody::trailers`]). After the end or an error the stream yields
/// nothing more.
pub struct AnswerBody {
    incoming: Incoming,
    /// A piece that was looked at and not yet taken.
    ahead: Option<Bytes>,
    held: Option<Held>,
    idle: Duration,
    /// When the silence becomes an error; set while waiting.
    quiet_due: Option<Instant>,
    total_due: Option<Instant>,
    trailers: Option<HeaderMap>,
    /// Who sees it pass; gone at its end.
    watch: Option<Box<dyn Watch>>,
}

impl std::fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AnswerBody({:?} bytes left)", self.remaining())
    }
}

impl AnswerBody {
    pub(super) fn new(
        incoming: Incoming,
        held: Held,
        idle: Duration,
        total_due: Option<Instant>,
    ) -> Self {
        let mut body = Self {
            incoming,
            ahead: None,
            held: Some(held),
            idle,
            quiet_due: None,
            total_due,
            trailers: None,
            watch: None,
        };
        if body.incoming.is_end_stream() {
            body.finish();
        }
        body
    }

    /// Bytes still to come, where the target announced it.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        let ahead = self.ahead.as_ref().map_or(0, Bytes::len) as u64;
        let behind = self.incoming.size_hint().exact()?;
        behind.checked_add(ahead)
    }

    /// Whether the body has ended, by its end or by an error, and nothing of it is left to take.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.held.is_none() && self.ahead.is_none()
    }

    /// Looks at what has come with the head, without waiting: the whole body, where that is so.
    ///
    /// # Errors
    /// The body is broken already, so that the answer need not be begun.
    pub async fn whole(&mut self) -> Result<Option<Bytes>, AnswerError> {
        if self.held.is_some() && self.ahead.is_none() {
            let looked = poll_fn(|cx| Poll::Ready(self.look(cx))).await;
            if let Poll::Ready(Some(piece)) = looked {
                self.ahead = Some(piece?);
            }
        }
        Ok(match &self.held {
            None => Some(self.ahead.take().unwrap_or_default()),
            Some(_) => None,
        })
    }

    /// The trailer fields, after the end of the body, if there were any.
    pub fn trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    /// Lets somebody see all that has not been taken yet.
    pub fn watched_by(&mut self, watch: Box<dyn Watch>) {
        self.watch = Some(watch);
    }

    /// The next piece; what [`Stream::poll_next`] does.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        loop {
            let next = std::task::ready!(self.poll_unseen(cx));
            let Some(watch) = &mut self.watch else {
                return Poll::Ready(next);
            };
            let piece = match next {
                Some(Ok(piece)) => watch.piece(piece),
                Some(Err(error)) => {
                    self.watch = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => Bytes::new(),
            };
            // Not one poll later, here too.
            let rest = match self.held.is_none() && self.ahead.is_none() {
                true => self.watch.take().map(|mut watch| watch.ended()),
                false => None,
            };
            let rest = rest.unwrap_or_default();
            match (piece.is_empty(), rest.is_empty()) {
                (false, true) => return Poll::Ready(Some(Ok(piece))),
                (true, false) => return Poll::Ready(Some(Ok(rest))),
                (false, false) => {
                    let both = [&piece[..], &rest[..]].concat();
                    return Poll::Ready(Some(Ok(both.into())));
                }
                (true, true) if self.watch.is_none() => return Poll::Ready(None),
                (true, true) => {}
            }
        }
    }

    fn poll_unseen(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        if let Some(piece) = self.ahead.take() {
            return Poll::Ready(Some(Ok(piece)));
        }
        if self.held.is_none() {
            return Poll::Ready(None);
        }
        if self.total_due.is_some_and(|total| Instant::now() >= total) {
            return self.fail(AnswerError::TotalTimeout);
        }
        match self.look(cx) {
            Poll::Pending => self.poll_silence(cx),
            ready => ready,
        }
    }

    /// What is there of the body.
    fn look(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        loop {
            match std::task::ready!(self.poll_frame(cx)) {
                Some(Ok(frame)) => {
                    self.quiet_due = None;
                    match frame.into_data() {
                        Ok(piece) => {
                            // Not one poll later: the caller may never ask again.
                            if self.incoming.is_end_stream() {
                                self.finish();
                            }
                            return Poll::Ready(Some(Ok(piece)));
                        }
                        Err(frame) => self.trailers = frame.into_trailers().ok(),
                    }
                }
                Some(Err(error)) => {
                    let failed = self
                        .held
                        .as_ref()
                        .and_then(|held| held.progress.as_ref()?.failed());
                    return self.fail(match failed {
                        Some(error) => AnswerError::BodyFromCaller(error),
                        None => AnswerError::Broken(super::send::describe(&error)),
                    });
                }
                None => {
                    self.finish();
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// What hyper has, or what it gets when it is let read.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let incoming = Pin::new(&mut self.incoming);
        let lease = self.held.as_mut().and_then(|held| held.lease.as_mut());
        let Some(lease) = lease.filter(|lease| lease.is_held()) else {
            return incoming.poll_frame(cx);
        };
        // What comes is put there by `drive` below: nobody has to be woken.
        let mut quietly = Context::from_waker(Waker::noop());
        if let Poll::Ready(frame) = incoming.poll_frame(&mut quietly) {
            return Poll::Ready(frame);
        }
        lease.drive(cx);
        Pin::new(&mut self.incoming).poll_frame(&mut quietly)
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        let idle = self.idle;
        let quiet_due = *self
            .quiet_due
            .get_or_insert_with(|| due(Instant::now(), idle));
        let first_due = self
            .total_due
            .map_or(quiet_due, |total| total.min(quiet_due));
        let lease = self.held.as_mut().and_then(|held| held.lease.as_mut());
        if lease.is_some_and(|lease| lease.timer().poll(cx, first_due).is_pending()) {
            return Poll::Pending;
        }
        self.fail(if first_due < quiet_due {
            AnswerError::TotalTimeout
        } else {
            AnswerError::IdleTimeout
        })
    }

    fn finish(&mut self) {
        if let Some(held) = self.held.take() {
            held.give_back();
        }
    }

    fn fail(&mut self, error: AnswerError) -> Poll<Option<Result<Bytes, AnswerError>>> {
        // Dropped, not given back: the connection is closed.
        self.held = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for AnswerBody {
    type Item = Result<Bytes, AnswerError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_piece(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, self.is_ended().then_some(0))
    }
}
