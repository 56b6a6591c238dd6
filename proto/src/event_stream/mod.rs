//! Filters on streams of JSON documents: server-sent events and newline-delimited JSON.
//!
//! Bytes go in as they arrive, in pieces of any size; filtered bytes come out as soon as an event
//! or a line is complete. How the input was cut makes no difference to what comes out. Memory is
//! bounded by one event.
//!
//! **Framing of SSE** (WHATWG HTML §9.2): lines end with CRLF, LF or CR, an empty line ends an
//! event. All line ends come out as LF. The `data` lines of an event are joined by LF, filtered as
//! one document, and come out as `data` lines again; `event`, `id` and `retry` lines stay.
//! Comments are handed on as soon as they are complete, so that heartbeats are not held back.
//! Lines with other field names mean nothing to a client and are dropped: a filter cannot say what
//! is in them.
//!
//! Where the proxy has a schema for answers, each document is held against it once it is filtered.
//!
//! **What is not JSON** (`hardening` 20): an event with no or empty data passes, so does one whose
//! data is exactly `[DONE]`, and a short `ping`. Anything else ends the stream: the event is
//! dropped and the last thing that the caller gets is an `event: error` (or a line, in NDJSON)
//! whose data is `{"code": …, "detail": …}`. The same holds for an event above the cap.

mod lines;
mod sse;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::filter::{FilterError, FilterSet, Redactions};
use crate::validation::{BodyValidator, ValidationMode};

/// How documents are told apart in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `text/event-stream`
    EventStream,
    /// One document per line, as in `application/x-ndjson`.
    Ndjson,
}

/// Why a stream was ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    /// A document that cannot be filtered.
    #[error(transparent)]
    Unreadable(FilterError),
    /// A document that the schema of the proxy does not describe.
    #[error("a document breaks the schema that this proxy has for answers")]
    Invalid,
    /// One event or line is larger than the cap.
    #[error("one event is larger than {event_bytes_max} bytes")]
    TooLarge {
        /// The cap.
        event_bytes_max: usize,
    },
}

impl StreamEnd {
    /// The stable code that the last event and the record carry.
    pub fn code(&self) -> &'static str {
        match self {
            StreamEnd::Unreadable(fault) => fault.code(),
            StreamEnd::Invalid => "validation-failed",
            StreamEnd::TooLarge { .. } => "response-too-large",
        }
    }

    /// The data of the last event: one line of JSON.
    fn to_json(self) -> String {
        serde_json::json!({ "code": self.code(), "detail": self.to_string() }).to_string()
    }
}

/// One stream on its way through the filters.
#[derive(Debug)]
pub struct EventFilter {
    documents: Documents,
    framing: State,
    ended: Option<StreamEnd>,
}

#[derive(Debug)]
enum State {
    EventStream(sse::EventStream),
    Ndjson(lines::Ndjson),
}

/// What both framings need: the filters, the cap, and the account of what changed.
#[derive(Debug)]
struct Documents {
    filters: Arc<FilterSet>,
    event_bytes_max: usize,
    changed: BTreeSet<Arc<str>>,
    redacted: Redactions,
    validator: Option<Arc<BodyValidator>>,
    violations: u32,
}

impl Documents {
    /// Filters one document, then holds what is left against the schema.
    fn filter(&mut self, document: &[u8]) -> Result<Vec<u8>, StreamEnd> {
        let applied = self
            .filters
            .apply(document)
            .map_err(StreamEnd::Unreadable)?;
        self.changed.extend(applied.changed);
        self.redacted.add(&applied.redacted);
        if let Some(validator) = &self.validator
            && validator.check(&applied.body).is_err()
        {
            self.violations = self.violations.saturating_add(1);
            if validator.mode == ValidationMode::Enforce {
                return Err(StreamEnd::Invalid);
            }
        }
        Ok(applied.body)
    }

    /// Refuses an event that has grown to `bytes`.
    fn check_size(&self, bytes: usize) -> Result<(), StreamEnd> {
        let event_bytes_max = self.event_bytes_max;
        if bytes > event_bytes_max {
            Err(StreamEnd::TooLarge { event_bytes_max })
        } else {
            Ok(())
        }
    }
}

impl EventFilter {
    /// A stream at its start. `event_bytes_max` bounds one event or line, without line ends.
    pub fn new(filters: Arc<FilterSet>, framing: Framing, event_bytes_max: usize) -> EventFilter {
        EventFilter {
            documents: Documents {
                filters,
                event_bytes_max,
                changed: BTreeSet::new(),
                redacted: Redactions::default(),
                validator: None,
                violations: 0,
            },
            framing: match framing {
                Framing::EventStream => State::EventStream(sse::EventStream::default()),
                Framing::Ndjson => State::Ndjson(lines::Ndjson::default()),
            },
            ended: None,
        }
    }

    /// The same stream with each of its documents held against a schema.
    pub fn validated(mut self, validator: Option<Arc<BodyValidator>>) -> EventFilter {
        self.documents.validator = validator;
        self
    }

    /// Documents that broke the schema so far, and what happens to them.
    pub fn violations(&self) -> Option<(ValidationMode, u32)> {
        let validator = self.documents.validator.as_ref()?;
        Some((validator.mode, self.documents.violations))
    }

    /// Takes the next bytes of the stream and appends to `out` what may go on now.
    ///
    /// After [`EventFilter::ended`] gives a reason, nothing is taken any more: the caller of this
    /// sends `out`, then closes both sides.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.ended.is_some() {
            return;
        }
        let result = match &mut self.framing {
            State::EventStream(stream) => stream.push(bytes, &mut self.documents, out),
            State::Ndjson(stream) => stream.push(bytes, &mut self.documents, out),
        };
        self.end_on_error(result, out);
    }

    /// The stream is complete: appends what is left of it.
    ///
    /// An event without its closing empty line is handed on if it can be filtered; if not it is
    /// discarded in silence, as every client of the standard does with it. A last line of NDJSON
    /// needs no line end.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.ended.is_some() {
            return;
        }
        let result = match &mut self.framing {
            State::EventStream(stream) => {
                stream.finish(&mut self.documents, out);
                Ok(())
            }
            State::Ndjson(stream) => stream.finish(&mut self.documents, out),
        };
        self.end_on_error(result, out);
    }

    /// Why the stream was ended early, if it was. `out` then holds the event that says so.
    pub fn ended(&self) -> Option<StreamEnd> {
        self.ended
    }

    /// The filters that changed something in any event so far, by id.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.documents.changed.iter().map(AsRef::as_ref)
    }

    /// How often what was redacted so far.
    pub fn redacted(&self) -> Redactions {
        self.documents.redacted
    }

    fn end_on_error(&mut self, result: Result<(), StreamEnd>, out: &mut Vec<u8>) {
        let Err(end) = result else { return };
        let json = end.to_json();
        let last = match self.framing {
            State::EventStream(_) => format!("event: error\ndata: {json}\n\n"),
            State::Ndjson(_) => format!("{json}\n"),
        };
        out.extend_from_slice(last.as_bytes());
        self.ended = Some(end);
    }
}
