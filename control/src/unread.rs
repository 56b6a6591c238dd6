//! A connection with a body that nobody read is closed once it is answered.
//!
//! Of a chunked body nobody knows how much is to come, and the server would go on reading it for as
//! long as it trickles, to keep the connection for the next call: whoever has no token could so
//! take all connections that there are, for as long as they like. It closes one whose body is still
//! held when its answer has gone, so that is what is done here.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::header;
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage};
use bytes::Bytes;
use futures_util::Stream;

/// Answers a call, and holds its body until the answer has gone.
pub(crate) async fn closes(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if !request.headers().contains_key(header::TRANSFER_ENCODING) {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let held = Held(Rc::new(RefCell::new(request.take_payload())));
    let read: Pin<Box<dyn Stream<Item = _>>> = Box::pin(held.clone());
    request.set_payload(Payload::from(read));
    let answer = next.call(request).await?;
    Ok(answer.map_body(|_, body| {
        BoxBody::new(Holding {
            body: Box::pin(body),
            _held: held,
        })
    }))
}

/// A body that is read and held.
#[derive(Clone)]
struct Held(Rc<RefCell<Payload>>);

impl Stream for Held {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(context)
    }
}

/// The body of an answer, with that of its request.
struct Holding<B> {
    body: B,
    _held: Held,
}

impl<B: MessageBody> MessageBody for Holding<Pin<Box<B>>> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.body.as_mut().poll_next(context)
    }
}
