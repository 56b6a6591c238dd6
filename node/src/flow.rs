//! One request on its way through the stages: the exchange, and the states it passes.
//!
//! The exchange is allocated once and every stage writes its result into it; stages do not name
//! each other, they meet here. What must not be reachable in a wrong order is a type that only one
//! stage can make: [`Armed`] comes from `inject` and is the only thing that `forward` can send.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;
use proto::filter::Redactions;
use proto::id::{CredentialId, FilterId, RequestId, RuleId};
use proto::outcome::{Code, EarlyEnd};
use proto::record::{
    Attempt, AuthFailure, Denial, KeyHint, PresentedKey, ScrubState, SpanEvents, StageTime,
    UpstreamId,
};

use crate::actor::{STAGES, StageKind};
use crate::body::{ByteStream, RequestBody};
use crate::elsewhere::Said;
use crate::events::us_since;
use crate::limits::{SlotToken, Tokens};
use crate::metering::Applied;
use crate::metrics::Permit;
use crate::outbound::EventBody;
use crate::payload::Capture;
use crate::presented::Place;
use crate::reply::ReplySender;
use crate::request::Request;
use crate::scrubbed_body::ScrubbedBody;
use crate::snapshot::{CompiledProxy, Snapshot, TargetCredential};
use crate::spending::Spends;
use crate::stages::inject::Armed;
use crate::stages::record::Closing;
use crate::telemetry::{TraceContext, trace_id_text};
use crate::upstream::AnswerBody;
use crate::validating::Violations;

/// A request between two stages.
pub struct Exchange {
    /// Its id, issued by `receive`.
    pub id: RequestId,
    /// When its head had arrived.
    pub started: Instant,
    /// The same by the wall clock.
    pub started_at: Timestamp,
    /// Microseconds after `started` at which each stage was left; 0 for stages not passed.
    pub marks: [u32; STAGES],
    /// Its place in a trace; none while traces are not exported.
    pub trace: Option<TraceContext>,
    /// The configuration in force for the request's whole life.
    pub snapshot: Arc<Snapshot>,
    /// The head as it came.
    pub request: Request,
    /// The body as it came.
    pub body: Inbound,
    /// *Received*: the proxy; none for an unknown one, which `authenticate` answers.
    pub proxy: Option<Arc<CompiledProxy>>,
    /// The proxy credential that a test request is taken to hold; no caller's request has one.
    pub assumed: Option<CredentialId>,
    /// *Identified*: who calls.
    pub caller: Option<Caller>,
    /// *Admitted*: the meters that count it; none where nothing does.
    pub applied: Option<Arc<Applied>>,
    /// Whether its target is asked for usage on behalf of a meter.
    pub usage_asked: bool,
    /// Whether all that it spends is drawn.
    pub drawn: bool,
    /// Tokens drawn from them and not yet sent.
    pub tokens: Option<Tokens>,
    /// Its places among the calls in flight.
    pub slots: Vec<SlotToken>,
    /// *Prepared*: what will be sent, before the credential.
    pub outgoing: Option<Outgoing>,
    /// *Armed*: what will be sent.
    pub armed: Option<Armed>,
    /// What is sent in the place of the target's credential, where that was replaced since the
    /// request came.
    pub successor: Option<Arc<TargetCredential>>,
    /// *Answered*: what the target said.
    pub answer: Option<Answer>,
    /// What the gateway of another region said with its answer.
    pub said: Option<Said>,
    /// The early end, if there was one.
    pub end: Option<Box<EarlyEnd>>,
    /// What the record will say beyond the above.
    pub notes: Notes,
    /// The record in the making, once `record` has been passed; emitted with the body's end.
    pub closing: Option<Box<Closing>>,
    /// Where the listener's handler waits for the reply.
    pub reply: Option<ReplySender>,
    /// The request's place among those in flight.
    pub permit: Option<Permit>,
    /// The stage that shall panic on this request; only with `gateway.fault_injection`.
    pub fault: Option<StageKind>,
    /// The target shall be told when the request was sent; only with `gateway.fault_injection`.
    pub says_sent_at: bool,
}

impl Exchange {
    /// A request whose head has arrived just now, before any stage has seen it.
    pub fn arrived(
        id: RequestId,
        trace: Option<TraceContext>,
        snapshot: Arc<Snapshot>,
        request: Request,
    ) -> Self {
        Self {
            id,
            started: Instant::now(),
            started_at: Timestamp::now(),
            marks: Default::default(),
            trace,
            snapshot,
            request,
            body: Inbound::None,
            proxy: None,
            assumed: None,
            caller: None,
            applied: None,
            usage_asked: false,
            drawn: false,
            tokens: None,
            slots: Vec::new(),
            outgoing: None,
            armed: None,
            successor: None,
            answer: None,
            said: None,
            end: None,
            notes: Notes::default(),
            closing: None,
            reply: None,
            permit: None,
            fault: None,
            says_sent_at: false,
        }
    }

    /// The credential that its target is sent.
    pub fn target_credential(&self) -> Option<&Arc<TargetCredential>> {
        let pinned = || self.proxy.as_ref()?.target_credential.as_ref();
        self.successor.as_ref().or_else(pinned)
    }
}

/// A request's body on its way in.
#[derive(Default)]
pub enum Inbound {
    /// There is none, or it has been taken.
    #[default]
    None,
    /// It has not been read.
    Stream {
        /// The pieces.
        stream: ByteStream,
        /// Its announced length in bytes.
        length: Option<u64>,
    },
    /// It was read whole.
    Buffered(Bytes),
    /// It is larger than may be buffered: what was read, and the rest.
    Oversize {
        /// The pieces already read.
        read: Bytes,
        /// The rest.
        stream: ByteStream,
        /// The whole body's announced length in bytes.
        length: Option<u64>,
    },
}

impl Inbound {
    /// The body as it is sent on; nothing stays.
    pub fn take(&mut self) -> RequestBody {
        match std::mem::take(self) {
            Self::None => RequestBody::Empty,
            Self::Stream { stream, length } => RequestBody::Stream { stream, length },
            Self::Buffered(bytes) if bytes.is_empty() => RequestBody::Empty,
            Self::Buffered(bytes) => RequestBody::Full(bytes),
            Self::Oversize {
                read,
                stream,
                length,
            } => {
                let first = futures_util::stream::once(std::future::ready(Ok(read)));
                let stream = Box::pin(futures_util::StreamExt::chain(first, stream));
                RequestBody::Stream { stream, length }
            }
        }
    }
}

/// Who calls, as `authenticate` found out.
#[derive(Debug)]
pub struct Caller {
    /// Place of the credential among the proxy's.
    pub index: usize,
    /// Its id.
    pub credential: CredentialId,
    /// The version that set the secret it presented.
    pub generation: Option<Arc<str>>,
    /// Where the key stood.
    pub places: Vec<Place>,
    /// The end of an issued key, for people to recognise it.
    pub hint: Option<KeyHint>,
    /// The payload of the JWT that it presented, where a meter asks for a claim.
    pub jwt: Option<Box<[u8]>>,
}

impl Caller {
    /// What the record says of its key.
    pub fn presented(&self) -> Option<PresentedKey> {
        let place = self.places.first()?.recorded();
        let hint = self.hint;
        Some(PresentedKey { place, hint })
    }
}

/// The request towards the target, before the credential is added.
#[derive(Debug)]
pub struct Outgoing {
    /// Path and query in origin form.
    pub path: Vec<u8>,
    /// The query without `?`.
    pub query: Option<Bytes>,
    /// Fields of the caller that go on.
    pub headers: HeaderMap,
}

/// A target's answer on its way to the caller.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// The `Content-Length` that it announced, for answers whose body does not travel.
    pub announced_length: Option<HeaderValue>,
    /// Its body.
    pub body: Outbound,
}

/// An answer's body.
pub enum Outbound {
    /// None.
    Empty,
    /// Streams from the target.
    Stream(Box<AnswerBody>),
    /// In memory.
    Full(Bytes),
    /// Streams through filters, document by document.
    Events(Box<EventBody>),
    /// Streams through the search for the injected secret.
    Scrubbed(Box<ScrubbedBody>),
}

/// What stages note for the record.
#[derive(Default)]
pub struct Notes {
    /// Why the caller was refused with 401: never told to the caller.
    pub refusal: Option<AuthFailure>,
    /// Scopes that denied.
    pub denials: Vec<Denial>,
    /// Rules in shadow mode that matched.
    pub shadow_rules: Vec<RuleId>,
    /// Filters that changed the body.
    pub filters_changed: Vec<FilterId>,
    /// How often what was redacted in bodies that were read whole.
    pub redacted: Redactions,
    /// Bodies that broke a schema.
    pub violations: Violations,
    /// What the caller is warned of.
    pub warning: Option<String>,
    /// The target's status, also where the caller got another.
    pub upstream_status: Option<u16>,
    /// Attempts made towards the target.
    pub attempts: u32,
    /// Each of them.
    pub sends: Vec<Attempt>,
    /// When the target was turned to last, in microseconds after the request's start.
    pub sending_us: u32,
    /// The endpoint of each of them, where the target has several.
    pub endpoints: Vec<Arc<str>>,
    /// Which of the target's addresses was asked last, by its place among them.
    pub endpoint: usize,
    /// Microseconds from sending to the answer's first byte.
    pub upstream_us: u64,
    /// Bytes of the answer's body, where the gateway held it whole.
    pub upstream_bytes: u64,
    /// The host that a redirect or link of the answer leads to, outside the gateway.
    pub left_gateway: Option<String>,
    /// How often the injected secret was found in the answer and overwritten.
    pub scrubbed: u32,
    /// Whether the answer was searched for it.
    pub scrub: ScrubState,
    /// The target's ids for this request.
    pub upstream_ids: Vec<UpstreamId>,
    /// The caller's program, as it says.
    pub agent: Option<HeaderValue>,
    /// The path as sent, kept for the record before it is moved on; of an attempt that matches no
    /// proxy the name that it called.
    pub path: Bytes,
    /// The query as the caller sent it, likewise; its values are never recorded unasked.
    pub query: Option<Bytes>,
    /// Bytes of the request's body that were read, counted while it streams.
    pub request_bytes: Rc<Cell<u64>>,
    /// The region that passed it on to this one.
    pub forwarded_from: Option<Arc<str>>,
    /// Whether a header or the query says another method; `None` where a form's body may.
    pub method_overridden: Option<bool>,
    /// What the record says of the key that a caller presented who was refused.
    pub presented: Option<PresentedKey>,
    /// The beginning of the request's body, where its record is to have it.
    pub payload: Option<Rc<RefCell<Capture>>>,
    /// What it has spent of its meters; an answer may correct it while it passes.
    pub spends: Spends,
    /// The W3C trace id of the request.
    pub trace_id: Option<u128>,
    /// What happened inside stages.
    pub events: SpanEvents,
}

impl Notes {
    /// Adds to what the caller is warned of.
    pub fn warn(&mut self, warning: String) {
        self.warning = Some(match self.warning.take() {
            Some(before) => format!("{before}; {warning}"),
            None => warning,
        });
    }
}

impl Exchange {
    /// Notes the time at which a stage was left.
    pub fn mark(&mut self, stage: StageKind) {
        // Zero means "not passed", so the first microsecond counts as one.
        self.marks[stage as usize] = self.elapsed_us().max(1);
    }

    /// Microseconds since its start, as many as marks hold.
    pub fn elapsed_us(&self) -> u32 {
        us_since(self.started)
    }

    /// What the caller is answered.
    pub fn status(&self) -> Option<u16> {
        let answered = || self.answer.as_ref().map(|answer| answer.status.as_u16());
        let ended = self.end.as_ref().map(|end| end.status);
        ended.or_else(answered)
    }

    /// The trace and the span of the request, as log lines name them; both where traces are
    /// exported, else the caller's trace, where it has one.
    pub fn trace_ids(&self) -> (Option<String>, Option<String>) {
        let span = self.trace.map(|trace| format!("{:016x}", trace.span_id));
        (self.notes.trace_id.map(trace_id_text), span)
    }

    /// How long each passed stage took, from the times at which they were left.
    pub fn stage_times(&self) -> Vec<StageTime> {
        let mut before = 0;
        let mut times = Vec::with_capacity(self.marks.len());
        for (stage, left) in StageKind::ALL.into_iter().zip(&self.marks) {
            if *left != 0 {
                times.push(StageTime {
                    stage,
                    us: left.saturating_sub(before),
                });
                before = *left;
            }
        }
        times
    }

    /// The code that the record and the answer's header carry.
    pub fn code(&self) -> Code {
        let said = self.said.as_ref().map(|said| said.code);
        let ended = self.end.as_ref().map(|end| end.code);
        ended.or(said).unwrap_or(Code::AccessGranted)
    }
}
