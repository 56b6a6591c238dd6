//! An answer's body on its way back: read whole for filters that need it so, or filtered document
//! by document while it streams.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use proto::event_stream::{EventFilter, StreamEnd};
use proto::filter::Redactions;
use proto::id::FilterId;
use proto::outcome::{Code, EarlyEnd};
use proto::record::{SpanEvent, SpanEventKind, Stage};

use crate::events::us_since;
use crate::flow::Outbound;
use crate::upstream::{AnswerBody, AnswerError};
use crate::validating::{Side, Violations};
use crate::{inbound, refused};

/// The end of a request whose answer needs more memory than its proxy allows.
pub fn too_large(bytes_max: usize) -> EarlyEnd {
    let detail = format!(
        "the answer is larger than {bytes_max} bytes (`body_buffer_bytes` of the proxy) and \
         filters or validation need it whole; raise the limit or ask for less"
    );
    EarlyEnd::new(Code::ResponseTooLarge, detail)
}

/// Reads a body of at most `bytes_max` bytes.
///
/// # Errors
/// It is larger, or it broke off.
pub async fn read(mut body: AnswerBody, bytes_max: usize) -> Result<Bytes, EarlyEnd> {
    if body
        .remaining()
        .is_some_and(|length| length > bytes_max as u64)
    {
        return Err(too_large(bytes_max));
    }
    let mut whole = BytesMut::new();
    while let Some(piece) = poll_fn(|cx| body.poll_piece(cx)).await {
        whole.extend_from_slice(&piece.map_err(|error| broken(&error))?);
        if whole.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
    }
    Ok(whole.freeze())
}

/// The end of a request whose answer broke off before any of it was passed on.
pub fn broken(error: &AnswerError) -> EarlyEnd {
    match error {
        AnswerError::IdleTimeout | AnswerError::TotalTimeout => EarlyEnd::new(
            Code::UpstreamTimeout,
            "the target's answer stalled before its end (`timeouts.idle_ms`)",
        ),
        AnswerError::BodyFromCaller(error) => inbound::broken(*error),
        AnswerError::PlaceLost => refused::place_lost(),
        AnswerError::Broken(_) => EarlyEnd::new(
            Code::UpstreamUnreachable,
            "the target's answer broke off before its end; the request may have been carried out",
        ),
    }
}

/// A stream of documents, each filtered when it is complete.
pub struct EventBody {
    /// What is left of the target's answer; gone when it has ended.
    source: Option<Outbound>,
    filter: EventFilter,
    /// Bytes that the target sent so far.
    taken: u64,
}

impl EventBody {
    /// The documents of `source` as `filter` lets them through.
    pub fn new(source: Outbound, filter: EventFilter) -> Self {
        Self {
            source: Some(source),
            filter,
            taken: 0,
        }
    }

    /// The next documents that may go on.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        let mut out = Vec::new();
        while let Some(source) = &mut self.source {
            let piece = match source {
                Outbound::Stream(body) => ready!(body.poll_piece(cx)),
                Outbound::Full(bytes) if !bytes.is_empty() => Some(Ok(std::mem::take(bytes))),
                Outbound::Full(_)
                | Outbound::Empty
                | Outbound::Events(_)
                | Outbound::Scrubbed(_) => None,
            };
            match piece {
                Some(Ok(piece)) => {
                    self.taken += piece.len() as u64;
                    self.filter.push(&piece, &mut out);
                }
                Some(Err(error)) => {
                    self.source = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.source = None;
                    self.filter.finish(&mut out);
                }
            }
            if self.filter.ended().is_some() {
                // Closes the target's connection: nothing behind this may pass.
                self.source = None;
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(out.into())));
            }
        }
        Poll::Ready(None)
    }

    /// What is left of the target's answer, for who reads it to its end.
    pub fn into_source(self) -> Option<AnswerBody> {
        match self.source {
            Some(Outbound::Stream(body)) => Some(*body),
            _ => None,
        }
    }

    /// Whether nothing is left to send.
    pub fn is_ended(&self) -> bool {
        self.source.is_none()
    }

    /// Bytes that the target sent so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Why the stream was ended before its time, if it was.
    pub fn cut(&self) -> Option<StreamEnd> {
        self.filter.ended()
    }

    /// Documents that broke the schema so far.
    pub fn violations(&self) -> Violations {
        let mut violations = Violations::default();
        if let Some((mode, count)) = self.filter.violations() {
            violations.add(Side::Response, mode, count);
        }
        violations
    }

    /// How often what was redacted so far.
    pub fn redacted(&self) -> Redactions {
        self.filter.redacted()
    }

    /// The filters that changed something so far.
    pub fn changed(&self) -> impl Iterator<Item = FilterId> {
        self.filter.changed().filter_map(|id| id.parse().ok())
    }

    /// The same for the record of a request that began then, as it is known now.
    pub fn events(&self, started: Instant) -> impl Iterator<Item = SpanEvent> {
        let at_us = us_since(started);
        self.filter.changed().map(move |id| {
            let kind = SpanEventKind::FilterChanged;
            SpanEvent::new(kind, Stage::Respond, at_us).of(Some(id.into()))
        })
    }
}
