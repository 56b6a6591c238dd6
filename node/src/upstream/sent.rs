//! A request body in hyper's hands, and what the exchange needs to know about it.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::body::{BodyError, RequestBody};

/// How far a streamed body has got. Bodies in memory need none: they are written at once.
pub(super) struct Progress {
    ended: Cell<bool>,
    cancelled: Cell<bool>,
    failed: Cell<Option<BodyError>>,
    moved: Cell<Instant>,
}

impl Progress {
    /// Whether every piece was handed over.
    pub(super) fn ended(&self) -> bool {
        self.ended.get()
    }

    /// Why the inbound body failed, if it did.
    pub(super) fn failed(&self) -> Option<BodyError> {
        self.failed.get()
    }

    /// When the last piece was handed over.
    pub(super) fn moved(&self) -> Instant {
        self.moved.get()
    }

    /// Ends the body at its next poll: nobody wants the rest.
    pub(super) fn cancel(&self) {
        self.cancelled.set(true);
    }
}

/// The body type of all our connections.
pub(super) struct SentBody {
    body: RequestBody,
    progress: Option<Rc<Progress>>,
}

impl SentBody {
    /// Wraps a body; the progress is shared with the exchange, and `None` for a body in memory.
    pub(super) fn new(body: RequestBody, now: Instant) -> (Self, Option<Rc<Progress>>) {
        let progress = (!body.is_replayable()).then(|| {
            Rc::new(Progress {
                ended: Cell::new(body.is_end_stream()),
                cancelled: Cell::new(false),
                failed: Cell::new(None),
                moved: Cell::new(now),
            })
        });
        (
            Self {
                body,
                progress: progress.clone(),
            },
            progress,
        )
    }

    /// The body itself, when hyper gives the request back.
    pub(super) fn into_inner(self) -> RequestBody {
        self.body
    }
}

impl Body for SentBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(progress) = &this.progress else {
            return Pin::new(&mut this.body).poll_frame(cx);
        };
        if progress.cancelled.get() {
            return Poll::Ready(Some(Err(BodyError::Disconnected)));
        }
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(piece) = &frame {
            progress.moved.set(Instant::now());
            match piece {
                Some(Ok(_)) => progress.ended.set(this.body.is_end_stream()),
                Some(Err(error)) => progress.failed.set(Some(*error)),
                None => progress.ended.set(true),
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
