//! A body that is lent to a sending: where that ends before it asked for a byte, the body is had
//! back and may go elsewhere.

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::stream::poll_fn;

use crate::body::{ByteStream, RequestBody};

/// What is left with whoever lent a body.
pub enum Lent {
    /// It is in memory: this is it once more.
    Whole(RequestBody),
    /// It is a stream, with so many bytes still to come.
    Stream(Rc<RefCell<ByteStream>>, Option<u64>),
}

/// A body to send, and what it is had back from.
pub fn lend(body: RequestBody) -> (RequestBody, Lent) {
    match body {
        RequestBody::Stream { stream, length } => {
            let stream = Rc::new(RefCell::new(stream));
            let lent = Rc::clone(&stream);
            let pieces = poll_fn(move |cx| lent.borrow_mut().as_mut().poll_next(cx));
            let stream_lent = RequestBody::Stream {
                stream: Box::pin(pieces),
                length,
            };
            (stream_lent, Lent::Stream(stream, length))
        }
        RequestBody::Full(bytes) => {
            let again = RequestBody::Full(bytes.clone());
            (RequestBody::Full(bytes), Lent::Whole(again))
        }
        RequestBody::Empty => (RequestBody::Empty, Lent::Whole(RequestBody::Empty)),
    }
}

impl Lent {
    /// The body, where the sending that had it has ended. It must not have asked for a byte of it:
    /// what it took of a stream would be missing.
    pub fn take_back(self) -> Option<RequestBody> {
        match self {
            Self::Whole(body) => Some(body),
            Self::Stream(stream, length) => {
                let stream = Rc::into_inner(stream)?.into_inner();
                Some(RequestBody::Stream { stream, length })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::StreamExt;

    use super::*;

    async fn read(body: RequestBody) -> Vec<u8> {
        match body {
            RequestBody::Empty => Vec::new(),
            RequestBody::Full(bytes) => bytes.to_vec(),
            RequestBody::Stream { stream, .. } => {
                let pieces: Vec<_> = stream.map(|piece| piece.unwrap()).collect().await;
                pieces.concat()
            }
        }
    }

    #[tokio::test]
    async fn what_was_not_asked_for_is_had_back_whole() {
        let streamed = || RequestBody::Stream {
            stream: Box::pin(futures_util::stream::iter(
                ["ab", "c"].map(|piece| Ok(Bytes::from_static(piece.as_bytes()))),
            )),
            length: Some(3),
        };
        for (body, expected) in [
            (streamed as fn() -> RequestBody, "abc"),
            (|| RequestBody::Full("abc".into()), "abc"),
            (|| RequestBody::Empty, ""),
        ] {
            let (sent, lent) = lend(body());
            assert_eq!(sent.length(), body().length());
            assert_eq!(read(sent).await, expected.as_bytes());
            drop(lent);
            let (sent, lent) = lend(body());
            drop(sent);
            let back = lent.take_back().unwrap();
            assert_eq!(back.length(), body().length());
            assert_eq!(read(back).await, expected.as_bytes());
        }
        // As long as the sending is there, its stream is its own.
        let (sent, lent) = lend(streamed());
        assert!(lent.take_back().is_none());
        assert_eq!(read(sent).await, b"abc");
    }
}
