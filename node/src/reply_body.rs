//! The body of a reply, as actix-web takes it: whole, or piece by piece.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;

use crate::flow::Outbound;
use crate::outbound::EventBody;
use crate::scrubbed_body::ScrubbedBody;
use crate::stages::record::Closing;
use crate::upstream::{AnswerBody, AnswerError};
/// A response body; emits the request's record when it is dropped.
pub struct ReplyBody {
    pub(crate) content: Content,
    pub(crate) closing: Option<Box<Closing>>,
    /// Why the answer breaks off here, once what came before may be on its way.
    pub(crate) broken: Option<AnswerError>,
}

/// What a response body holds.
pub(crate) enum Content {
    Empty,
    /// The length that a GET's body would have had, for the answer to a HEAD.
    Announced(u64),
    Full(Bytes),
    Stream(Box<AnswerBody>),
    Events(Box<EventBody>),
    Scrubbed(Box<ScrubbedBody>),
}

impl Content {
    /// The next piece of what comes in pieces.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        match self {
            Self::Stream(body) => body.poll_piece(cx),
            Self::Events(body) => body.poll_piece(cx),
            Self::Scrubbed(body) => body.poll_piece(cx),
            Self::Empty | Self::Announced(_) | Self::Full(_) => Poll::Ready(None),
        }
    }
}

impl MessageBody for ReplyBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        match &self.content {
            // Leaves a `Content-Length` that the target gave for 304 as it is.
            Content::Empty => BodySize::None,
            Content::Announced(length) => BodySize::Sized(*length),
            Content::Full(bytes) => BodySize::Sized(bytes.len() as u64),
            Content::Stream(body) => match body.remaining() {
                Some(length) => BodySize::Sized(length),
                None => BodySize::Stream,
            },
            Content::Scrubbed(body) => match body.remaining() {
                Some(length) => BodySize::Sized(length),
                None => BodySize::Stream,
            },
            Content::Events(_) => BodySize::Stream,
        }
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error.into())));
        }
        let closing = this.closing.as_mut();
        let is_lost = closing.is_some_and(|closing| closing.places.is_lost(cx));
        let next = match &mut this.content {
            Content::Empty | Content::Announced(_) => None,
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                (!bytes.is_empty()).then_some(Ok(bytes))
            }
            body => match (body.poll_piece(cx), is_lost) {
                // One that is complete already is not broken off.
                (Poll::Ready(None), _) => None,
                (_, true) => Some(Err(AnswerError::PlaceLost)),
                (piece, false) => ready!(piece),
            },
        };
        if let Some(closing) = &mut this.closing {
            match &next {
                Some(Ok(bytes)) => closing.sent(bytes),
                Some(Err(error)) => closing.broke(error),
                None => closing.completed(),
            }
        }
        Poll::Ready(match next {
            Some(Ok(bytes)) => Some(Ok(bytes)),
            None => None,
            Some(Err(error)) => {
                // actix-web drops the connection at an error with what it has not flushed; it
                // flushes while it waits.
                this.broken = Some(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        })
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        let mut content = std::mem::replace(&mut self.content, Content::Empty);
        let Some(mut closing) = self.closing.take() else {
            return;
        };
        if let Content::Scrubbed(body) = content {
            closing.scrubbed(&body);
            let is_decoded = body.coded_bytes().is_some();
            content = match body.into_source() {
                Outbound::Stream(body) if !is_decoded || !body.is_ended() => Content::Stream(body),
                Outbound::Events(body) => Content::Events(body),
                // All coded bytes are here; whether all decoded ones were sent is told already.
                _ if is_decoded => return,
                _ => Content::Empty,
            };
        }
        match content {
            // Nothing left to send: actix does not poll a body of a known length to its end.
            Content::Empty | Content::Announced(_) => closing.completed(),
            Content::Full(bytes) if bytes.is_empty() => closing.completed(),
            Content::Stream(body) if body.is_ended() => closing.completed(),
            Content::Stream(body) => return closing.abandoned(*body),
            Content::Events(body) => {
                closing.filtered(&body);
                if let Some(source) = body.into_source() {
                    return closing.abandoned(source);
                }
            }
            Content::Full(_) | Content::Scrubbed(_) => {}
        }
        drop(closing);
    }
}
