//! A request body in hyper's hands, and what the exchange needs to know about it.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::body::{BodyError, RequestBody};

/// Pieces of a body in memory on a shared connection. Given whole it would all be hyper's at once,
/// and how far it has got would not be known.
const PIECE: usize = 64 * 1024;

/// How far a body has got. One in memory needs none where its connection tells what was written.
pub(super) struct Progress {
    ended: Cell<bool>,
    cancelled: Cell<bool>,
    failed: Cell<Option<BodyError>>,
    moved: Cell<Instant>,
    starved: Cell<bool>,
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

    /// Whether the caller's next piece is being waited for: nothing else holds up the request.
    pub(super) fn is_starved(&self) -> bool {
        self.starved.get()
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
    /// Wraps a body; the progress is shared with the exchange. It is `None` for a body in memory,
    /// but for a large one on a connection that other requests share.
    pub(super) fn new(
        body: RequestBody,
        is_shared: bool,
        now: Instant,
    ) -> (Self, Option<Rc<Progress>>) {
        let in_pieces = is_shared && body.length().is_some_and(|length| length > PIECE as u64);
        let progress = (in_pieces || !body.is_replayable()).then(|| {
            Rc::new(Progress {
                ended: Cell::new(body.is_end_stream()),
                cancelled: Cell::new(false),
                failed: Cell::new(None),
                moved: Cell::new(now),
                starved: Cell::new(false),
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
        let frame = match &mut this.body {
            RequestBody::Full(bytes) if bytes.len() > PIECE => {
                Poll::Ready(Some(Ok(Frame::data(bytes.split_to(PIECE)))))
            }
            body => Pin::new(body).poll_frame(cx),
        };
        progress.starved.set(frame.is_pending());
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

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_large_body_in_memory_shows_how_far_it_is_on_a_shared_connection() {
        let mut cx = Context::from_waker(Waker::noop());
        let body = || RequestBody::Full(vec![b'x'; 2 * PIECE + 1].into());
        let long_ago = Instant::now();
        assert!(SentBody::new(body(), false, long_ago).1.is_none());
        let (mut sent, progress) = SentBody::new(body(), true, long_ago);
        let progress = progress.unwrap();
        let mut moved = long_ago;
        for (size, ended) in [(PIECE, false), (PIECE, false), (1, true)] {
            let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut sent).poll_frame(&mut cx) else {
                panic!("all of it is there");
            };
            assert_eq!(frame.into_data().unwrap().len(), size);
            assert_eq!(progress.ended(), ended);
            assert!(progress.moved() > moved && !progress.is_starved());
            moved = progress.moved();
        }
        assert!(sent.is_end_stream());
    }
}
