//! The body of a request on its way to a target.
//!
//! Head and body travel apart (`design.md` §2): a stage hands this value on, and nobody reads a
//! byte of it before hyper asks for one, so that the target's pace is the caller's pace. A body is
//! not `Send`: it wraps the inbound stream of the worker that received the request.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body, Frame, SizeHint};

use crate::listener::refusal::Refusal;

/// A stream of body pieces that belongs to one worker thread.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>>>>;

/// Why an inbound body could not be read to its end. It is never the target's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The caller closed its connection in the middle of the body.
    #[error("the caller closed the connection before the body ended")]
    Disconnected,
    /// The listener refused to read on: wrong framing (RFC 9112 §7.1), more of it than it takes, or
    /// nothing for longer than it waits.
    #[error("{}", .0.facts().detail)]
    Refused(Refusal),
    /// The stream ended before the announced number of bytes.
    #[error("the body ended before its announced length")]
    ShorterThanLength,
    /// The stream went on after the announced number of bytes.
    #[error("the body is longer than its announced length")]
    LongerThanLength,
}

/// What a request carries besides its head.
#[derive(Default)]
pub enum RequestBody {
    /// No body at all.
    #[default]
    Empty,
    /// A body that is wholly in memory.
    Full(Bytes),
    /// A body that is read while it is sent.
    Stream {
        /// The pieces; never polled again after its end or an error.
        stream: ByteStream,
        /// Bytes still to come, if known: sent as `Content-Length`, and enforced.
        length: Option<u64>,
    },
}

impl RequestBody {
    /// Whether the same bytes can be sent a second time.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        !matches!(self, Self::Stream { .. })
    }

    /// Bytes still to come, where that is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Stream { length, .. } => *length,
        }
    }

    /// The same body once more, for a second attempt; a stream gives `None`.
    #[must_use]
    pub fn replay(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Full(bytes) => Some(Self::Full(bytes.clone())),
            Self::Stream { .. } => None,
        }
    }
}

impl fmt::Debug for RequestBody {
    /// Sizes only: bodies never reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Self::Stream { length, .. } => write!(f, "Stream({length:?} bytes)"),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Stream { stream, length } => {
                let Poll::Ready(next) = stream.as_mut().poll_next(cx) else {
                    return Poll::Pending;
                };
                let outcome = account(next, length);
                if !matches!(outcome, Some(Ok(_))) {
                    // A stream must not be polled after its end; hyper may ask once more.
                    *this = Self::Empty;
                }
                Poll::Ready(outcome.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.length() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.length()
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Holds a stream to its announced length.
///
/// hyper cuts what is too long without a word; a caller that announces 3 bytes and sends 30 must
/// not see the first 3 accepted, because the rest was perhaps meant as another request.
fn account(
    next: Option<Result<Bytes, BodyError>>,
    length: &mut Option<u64>,
) -> Option<Result<Bytes, BodyError>> {
    match (next, length) {
        (Some(Ok(piece)), Some(left)) => match left.checked_sub(piece.len() as u64) {
            Some(rest) => {
                *left = rest;
                Some(Ok(piece))
            }
            None => Some(Err(BodyError::LongerThanLength)),
        },
        (None, Some(1..)) => Some(Err(BodyError::ShorterThanLength)),
        (next, _) => next,
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn streamed(pieces: &[&'static str], length: Option<u64>) -> RequestBody {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Bytes::from_static(piece.as_bytes())))
            .collect();
        RequestBody::Stream {
            stream: Box::pin(futures_util::stream::iter(pieces)),
            length,
        }
    }

    /// Reads to the end as hyper does: not past `is_end_stream`, and once more after an error.
    fn read(body: &mut RequestBody) -> Result<String, BodyError> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut text = String::new();
        while !body.is_end_stream() {
            match Pin::new(&mut *body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
                }
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(None) => break,
                Poll::Pending => panic!("these streams are always ready"),
            }
        }
        Ok(text)
    }

    #[test]
    fn a_body_gives_its_bytes_and_holds_to_its_length() {
        let check =
            |mut body: RequestBody, length: Option<u64>, expect: Result<&str, BodyError>| {
                assert_eq!(body.length(), length, "{body:?}");
                assert_eq!(body.size_hint().exact(), length, "{body:?}");
                assert_eq!(read(&mut body), expect.map(str::to_owned), "{body:?}");
            };
        check(RequestBody::Empty, Some(0), Ok(""));
        check(RequestBody::Full(Bytes::new()), Some(0), Ok(""));
        check(
            RequestBody::Full(Bytes::from_static(b"abc")),
            Some(3),
            Ok("abc"),
        );
        check(streamed(&["ab", "c"], None), None, Ok("abc"));
        check(streamed(&[], None), None, Ok(""));
        check(streamed(&["ab", "c"], Some(3)), Some(3), Ok("abc"));
        check(streamed(&[], Some(0)), Some(0), Ok(""));
        check(
            streamed(&["ab"], Some(3)),
            Some(3),
            Err(BodyError::ShorterThanLength),
        );
        check(
            streamed(&["ab", "cd"], Some(3)),
            Some(3),
            Err(BodyError::LongerThanLength),
        );
    }

    #[test]
    fn only_a_body_in_memory_can_be_sent_again() {
        assert!(RequestBody::Empty.is_replayable());
        assert!(
            RequestBody::Full(Bytes::from_static(b"a"))
                .replay()
                .is_some()
        );
        assert!(!streamed(&["a"], Some(1)).is_replayable());
        assert!(streamed(&["a"], Some(1)).replay().is_none());
    }
}
