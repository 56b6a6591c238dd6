//! Reading a request's body into memory, for the stages that need it whole.
//!
//! Only what a rule, filter or validation needs is buffered, and only up to the proxy's
//! `body_buffer_bytes`; a larger body keeps what was read and streams on.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use proto::outcome::{Code, EarlyEnd};

use crate::actor::Next;
use crate::body::{BodyError, ByteStream};
use crate::cut::Cut;
use crate::facts::Read;
use crate::flow::{Exchange, Inbound};
use crate::limits::SlotToken;
use crate::reply::ReplySender;
use crate::{refused, spending};

/// What came of buffering.
pub enum Buffered {
    /// The whole body.
    Whole(Bytes),
    /// It is larger than allowed; `exchange.body` is [`Inbound::Oversize`].
    TooLarge,
}

/// Looks at the whole body, as far as it may be buffered, and ends the request or lets it go on.
/// Waits for one that still comes; one that a test run brings along is there.
pub fn look_at_whole(
    exchange: &mut Exchange,
    bytes_max: usize,
    look: impl FnOnce(&mut Exchange, &Read) -> Option<EarlyEnd> + 'static,
) -> Next {
    let read = match &exchange.body {
        Inbound::Stream { .. } => {
            return buffer(bytes_max, move |exchange, buffered| {
                let read = match buffered {
                    Buffered::Whole(bytes) => Read::Whole(bytes),
                    Buffered::TooLarge => Read::TooLarge,
                };
                look(exchange, &read)
            });
        }
        Inbound::None => Read::Whole(Bytes::new()),
        Inbound::Buffered(bytes) if bytes.len() <= bytes_max => Read::Whole(bytes.clone()),
        Inbound::Buffered(_) | Inbound::Oversize { .. } => Read::TooLarge,
    };
    look(exchange, &read).map_or(Next::Continue, Into::into)
}

/// Waits for the body, then looks at it and ends the request or lets it go on.
pub fn buffer(
    bytes_max: usize,
    look: impl FnOnce(&mut Exchange, Buffered) -> Option<EarlyEnd> + 'static,
) -> Next {
    Next::Wait(Box::new(move |mut exchange| {
        Box::pin(async move {
            let end = match hold(&mut exchange, bytes_max).await {
                Err(end) => Some(end),
                Ok(()) => {
                    let read = match &exchange.body {
                        Inbound::Buffered(bytes) => Buffered::Whole(bytes.clone()),
                        Inbound::None => Buffered::Whole(Bytes::new()),
                        _ => Buffered::TooLarge,
                    };
                    look(&mut exchange, read)
                }
            };
            (exchange, end.map(Box::new))
        })
    }))
}

/// Reads the body into memory, as far as it may be.
///
/// # Errors
/// It cannot be read, or the caller left.
pub async fn hold(exchange: &mut Exchange, bytes_max: usize) -> Result<(), EarlyEnd> {
    exchange.body = match (std::mem::take(&mut exchange.body), exchange.reply.as_mut()) {
        (Inbound::Stream { stream, length }, Some(reply)) => tokio::select! {
            biased;
            () = reply.closed() => return Err(gone()),
            read = read(stream, length, bytes_max) => read.map_err(broken)?,
        },
        (other, _) => other,
    };
    Ok(())
}

async fn read(
    mut stream: ByteStream,
    length: Option<u64>,
    bytes_max: usize,
) -> Result<Inbound, BodyError> {
    if length.is_some_and(|length| length > bytes_max as u64) {
        return Ok(Inbound::Oversize {
            read: Bytes::new(),
            stream,
            length,
        });
    }
    let announced = usize::try_from(length.unwrap_or(0)).unwrap_or(0);
    let mut body = BytesMut::with_capacity(announced.min(bytes_max));
    while let Some(piece) = stream.next().await {
        body.extend_from_slice(&piece?);
        if body.len() > bytes_max {
            return Ok(Inbound::Oversize {
                read: body.freeze(),
                stream,
                length,
            });
        }
    }
    Ok(Inbound::Buffered(body.freeze()))
}

/// Waits for what a target does, for as long as somebody wants it: the caller, where a way to learn
/// that it left is given, and the process; and for as long as the call has its places among those
/// in flight.
///
/// # Errors
/// The end of a request that nobody waits for any more, or that has lost its place.
pub async fn while_wanted<T>(
    (reply, slots): (Option<&mut ReplySender>, &[SlotToken]),
    cut: &Cut,
    sending: Pin<&mut impl Future<Output = T>>,
) -> Result<T, EarlyEnd> {
    let left = async {
        match reply {
            Some(reply) => reply.closed().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        // First: connections to targets may have ended before, with the worker.
        () = cut.passed() => Err(stopped()),
        sent = sending => Ok(sent),
        () = left => Err(gone()),
        () = spending::any_lost(slots) => Err(refused::place_lost()),
    }
}

/// The end of a request that the process has no more time for.
fn stopped() -> EarlyEnd {
    EarlyEnd::new(
        Code::GatewayStopped,
        "this gateway ends, and the target did not answer within `gateway.drain_ms`; the request \
         may have been carried out",
    )
}

/// The end of a request whose caller left.
pub fn gone() -> EarlyEnd {
    EarlyEnd::new(Code::ClientAborted, "the caller closed its connection")
}

/// The end of a request whose body cannot be read.
pub fn broken(error: BodyError) -> EarlyEnd {
    match error {
        BodyError::Disconnected => gone(),
        BodyError::Refused(refusal) => {
            let facts = refusal.facts();
            EarlyEnd::new(facts.code, facts.detail).with_status(facts.status)
        }
        other => EarlyEnd::new(Code::MalformedRequest, other.to_string()),
    }
}
