//! Stage 9: settle, and make the record. Never ends a request.
//!
//! The record is complete only when the last byte has gone, so it travels on with the reply as a
//! [`Closing`] and is emitted when that is dropped: after the body's end, an upstream's failure, a
//! caller's hang-up, or the end of the process.

use std::borrow::Cow;
use std::cell::Cell;
use std::mem::take;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::event_stream::StreamEnd;
use proto::outcome::Code;
use proto::proxy::OnClientAbort;
use proto::record::{Attempt, AuthFailure, Record};

use crate::actor::{Next, Stage, StageKind};
use crate::credentials::live::Whose;
use crate::events;
use crate::flow::{Caller, Exchange};
use crate::metrics::{Ending, MethodName, Metrics, Permit, ProxyCounters};
use crate::outbound::EventBody;
use crate::outcomes;
use crate::payload::Bodies;
use crate::records::allowance::Allowances;
use crate::records::{RecordBuffer, reduce, unmatched};
use crate::refused::{limited_by, refused_by};
use crate::scrubbed_body::ScrubbedBody;
use crate::snapshot::CompiledProxy;
use crate::spending::{Places, Spends};
use crate::telemetry::trace_id_text;
use crate::traces::{TraceSender, Traced};
use crate::upstream::{AnswerBody, AnswerError};

/// Longest time for which an answer is read on for a caller that has left.
const FINISH_MAX: Duration = Duration::from_secs(30);

/// Which node, as its records say.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The node's name.
    pub node: Arc<str>,
    /// Its region.
    pub region: Arc<str>,
}

/// The stage.
pub struct Recorder {
    /// Where finished records go.
    pub records: RecordBuffer,
    /// Counts ended requests.
    pub metrics: Metrics,
    /// What every record of this node says.
    pub origin: Arc<Origin>,
    /// How many records are kept of calls that need no key.
    pub allowances: Allowances,
    /// Where finished requests go, while traces are exported.
    pub traces: Option<TraceSender>,
}

impl Stage for Recorder {
    const KIND: StageKind = StageKind::Record;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        // Tokens drawn and not sent go back to their cells.
        exchange.tokens = None;
        let upstream_bytes = Some(exchange.notes.upstream_bytes).filter(|bytes| *bytes > 0);
        if let Some(failure) = exchange.notes.refusal {
            self.metrics.auth_failed(failure);
        }
        let sends = exchange.notes.sends.iter();
        let waited_us = sends.map(Attempt::took_us).sum::<u64>();
        // The last stage was left a moment ago: no need to look at the clock again.
        let passed_us = self.metrics.stages_left(&exchange.marks);
        self.metrics
            .took(u64::from(passed_us).saturating_sub(waited_us));
        let records = self.records_of(exchange);
        let record = match exchange.proxy.clone() {
            Some(proxy) => {
                let record = Arc::new(self.record(exchange, &proxy));
                outcomes::measure(&proxy, &record);
                Some(record)
            }
            None => self.unmatched(exchange).map(Arc::new),
        };
        let finish = exchange.proxy.as_ref().and_then(|proxy| {
            (proxy.on_client_abort == OnClientAbort::Finish).then_some(proxy.body_buffer_bytes)
        });
        exchange.closing = Some(Box::new(Closing {
            record,
            code: exchange.code(),
            method: MethodName::of(exchange.request.method.as_str()),
            status: exchange.status(),
            started: exchange.started,
            passed_us,
            request_bytes: exchange.notes.request_bytes.clone(),
            response_bytes: 0,
            upstream_bytes,
            completed: false,
            finish,
            counters: exchange.proxy.as_ref().map(|proxy| proxy.counters.clone()),
            records,
            metrics: self.metrics.clone(),
            _permit: exchange.permit.take(),
            places: Places::of(std::mem::take(&mut exchange.slots)),
            traced: Traced::of(self.traces.as_ref(), exchange),
            bodies: Bodies::of(exchange),
            spends: exchange.notes.spends.clone(),
        }));
        Next::Continue
    }
}

impl Recorder {
    /// The record of an attempt that matched no proxy, where there is room for it.
    fn unmatched(&mut self, exchange: &Exchange) -> Option<Record> {
        if exchange.notes.refusal != Some(AuthFailure::UnknownProxy) {
            return None;
        }
        if !self.allowances.unmatched.admits(exchange.started) {
            self.metrics.unmatched_dropped();
            return None;
        }
        let method = reduce::method(&exchange.request.method, unmatched::SHOWN_TO);
        Some(unmatched::record(exchange, &self.origin, method))
    }

    /// Where the record of a request goes when it is complete; of calls that are refused for their
    /// key only some are kept.
    fn records_of(&mut self, exchange: &Exchange) -> Option<RecordBuffer> {
        if let (Some(proxy), Some(_)) = (&exchange.proxy, exchange.notes.refusal)
            && !self.allowances.refused(proxy.id, exchange.started)
        {
            self.metrics.refused_dropped();
            return None;
        }
        Some(self.records.clone())
    }

    /// Takes from the notes what the record has.
    fn record(&self, exchange: &mut Exchange, proxy: &CompiledProxy) -> Record {
        let (events, events_dropped) = events::told(&mut exchange.notes);
        let injected = exchange.marks[StageKind::Inject as usize] != 0;
        let target_credential = exchange.target_credential().filter(|_| injected);
        let target_credential_id = target_credential.map(|credential| credential.id);
        let target_credential_generation =
            target_credential.and_then(|credential| credential.generation.clone());
        let (status, stages) = (exchange.status(), exchange.stage_times());
        let source_address = source(exchange, proxy);
        let (notes, caller) = (&mut exchange.notes, exchange.caller.as_ref());
        let (agent, whose) = (notes.agent.as_ref(), Whose::Orgs(proxy.org));
        let (path, query) = reduce::asked(notes, proxy);
        let bodies = self.metrics.bodies();
        bodies.seen(&notes.redacted, &notes.violations);
        Record {
            request_id: exchange.id,
            org_id: proxy.org,
            proxy_id: proxy.id,
            proxy_credential_id: caller.map(|caller| caller.credential),
            proxy_credential_generation: caller.and_then(|caller| caller.generation.clone()),
            target_credential_id,
            target_credential_generation,
            config_version: proxy.version.newest(),
            node: self.origin.node.clone(),
            region: self.origin.region.clone(),
            method: reduce::method(&exchange.request.method, whose),
            path,
            query,
            status,
            upstream_status: notes.upstream_status,
            code: Cow::Borrowed(""),
            auth_failure: notes.refusal,
            started_at_us: exchange.started_at.as_microsecond(),
            total_us: 0,
            stages,
            request_bytes: 0,
            response_bytes: 0,
            upstream_request_bytes: 0,
            upstream_response_bytes: 0,
            attempts: notes.attempts,
            denials: take(&mut notes.denials),
            shadow_rule_ids: take(&mut notes.shadow_rules),
            filter_ids: take(&mut notes.filters_changed),
            source_address,
            user_agent: agent.and_then(|agent| reduce::user_agent(agent, whose)),
            upstream_ids: take(&mut notes.upstream_ids),
            trace_id: notes.trace_id.map(trace_id_text),
            left_gateway: notes.left_gateway.take(),
            client_aborted: false,
            scrubbed: notes.scrubbed,
            sends: take(&mut notes.sends),
            limited_by: limited_by(exchange.end.as_deref()),
            scrub: notes.scrub,
            endpoints: take(&mut notes.endpoints),
            forwarded_to: outcomes::forwarded_to(proxy, notes.attempts, notes.endpoint),
            forwarded_from: notes.forwarded_from.take(),
            payload: None,
            meters: Vec::new(),
            presented: (notes.presented.take()).or_else(|| caller.and_then(Caller::presented)),
            refused_by: refused_by(exchange.end.as_deref()),
            method_overridden: notes.method_overridden,
            events,
            events_dropped,
            value_missing: Vec::new(),
        }
    }
}

/// Where a request came from; of a test nothing, since that is whatever its sender says.
fn source(exchange: &Exchange, proxy: &CompiledProxy) -> Option<String> {
    let kept = reduce::source(exchange.request.peer.ip(), proxy.record.source);
    kept.filter(|_| exchange.assumed.is_none())
}

/// A record that waits for the last byte of its answer.
pub struct Closing {
    /// Nobody else has it before it is complete.
    record: Option<Arc<Record>>,
    code: Code,
    method: MethodName,
    status: Option<u16>,
    started: Instant,
    /// When the last stage before this one was left, in microseconds after that.
    passed_us: u32,
    request_bytes: Rc<Cell<u64>>,
    response_bytes: u64,
    /// Where they are others than went to the caller.
    upstream_bytes: Option<u64>,
    completed: bool,
    /// Read the answer on, up to so many bytes, when the caller leaves.
    finish: Option<usize>,
    counters: Option<ProxyCounters>,
    /// Absent where it is not kept.
    records: Option<RecordBuffer>,
    metrics: Metrics,
    /// Held as long, and on while an answer is read to its end for a caller that left.
    _permit: Option<Permit>,
    /// Held to the last byte of the answer.
    pub places: Places,
    /// Who is told of it, while traces are exported.
    traced: Option<Traced>,
    bodies: Option<Box<Bodies>>,
    /// What it has spent, by now.
    pub spends: Spends,
}

impl Closing {
    /// The record as far as it is made.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_deref()
    }

    /// The outcome as far as it is known.
    pub fn code(&self) -> Code {
        self.code
    }

    /// These bytes of the body have been given to the caller's connection.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.response_bytes += bytes.len() as u64;
        if let Some(bodies) = &mut self.bodies {
            bodies.sent(bytes);
        }
    }

    /// Nothing is left to send.
    pub fn completed(&mut self) {
        self.completed = true;
    }

    /// The target's answer broke off; the caller's connection is closed so that it notices.
    pub fn broke(&mut self, error: &AnswerError) {
        self.completed = true;
        self.code = match error {
            AnswerError::IdleTimeout | AnswerError::TotalTimeout => Code::UpstreamTimeout,
            AnswerError::BodyFromCaller(_) => Code::ClientAborted,
            AnswerError::Broken(_) => Code::UpstreamUnreachable,
            AnswerError::PlaceLost => Code::LimitUnavailable,
        };
    }

    /// The answer was a stream of documents that filters have seen, as far as it came.
    pub fn filtered(&mut self, body: &EventBody) {
        self.upstream_bytes = Some(body.taken());
        self.completed |= body.is_ended();
        match body.cut() {
            Some(StreamEnd::Unreadable(_)) => self.code = Code::FilterNotJson,
            Some(StreamEnd::Invalid) => self.code = Code::ValidationFailed,
            Some(StreamEnd::TooLarge { .. }) => self.code = Code::ResponseTooLarge,
            None => {}
        }
        let (redacted, violations) = (body.redacted(), body.violations());
        self.metrics.bodies().seen(&redacted, &violations);
        if let Some(record) = self.record.as_mut().and_then(Arc::get_mut) {
            events::add_late(record, body.events(self.started));
            record.filter_ids.extend(body.changed());
        }
    }

    /// The answer was searched for the injected secret while it streamed.
    pub fn scrubbed(&mut self, body: &ScrubbedBody) {
        let coded = body.coded_bytes().filter(|bytes| *bytes > 0);
        self.upstream_bytes = coded.or(self.upstream_bytes);
        if let Some(record) = self.record.as_mut().and_then(Arc::get_mut) {
            record.scrubbed = record.scrubbed.saturating_add(body.times());
            events::add_late(record, body.event(self.started).into_iter());
        }
    }

    /// The caller left while the answer was coming: reads it to its end where the proxy says so.
    pub fn abandoned(mut self: Box<Self>, mut body: AnswerBody) {
        let Some(bytes_max) = self.finish else {
            return;
        };
        let before = self.upstream_bytes.unwrap_or(self.response_bytes);
        actix_rt::spawn(async move {
            let mut read = 0;
            let reading = async {
                while let Some(piece) = std::future::poll_fn(|cx| body.poll_piece(cx)).await {
                    match piece {
                        Ok(bytes) => read += bytes.len() as u64,
                        Err(_) => break,
                    }
                    if read > bytes_max as u64 {
                        break;
                    }
                }
            };
            let reading = tokio::time::timeout(FINISH_MAX, reading);
            self.places.while_held(reading).await;
            self.upstream_bytes = Some(before + read);
            // What the answer has cost is settled before the record says it.
            drop(body);
        });
    }

    /// Adds what is known only at the end.
    fn complete(&mut self, record: &mut Record, (code, us): (Code, u64)) {
        record.code = code.as_str().into();
        record.total_us = us;
        record.request_bytes = self.request_bytes.get();
        record.response_bytes = self.response_bytes;
        if record.attempts > 0 {
            record.upstream_request_bytes = record.request_bytes;
            record.upstream_response_bytes = self.upstream_bytes.unwrap_or(self.response_bytes);
        }
        record.client_aborted = code == Code::ClientAborted;
        record.status = self.status;
        record.payload = self.bodies.take().map(|bodies| bodies.payload());
        (record.meters, record.value_missing) = self.spends.take();
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let left = !self.completed || self.code == Code::ClientAborted;
        let code = match left {
            true => self.metrics.cut().unfinished(),
            false => self.code,
        };
        if left && matches!(self.code, Code::ClientAborted | Code::GatewayStopped) {
            self.status = None;
        }
        let ending = Ending {
            method: self.method,
            status: self.status,
            upstream_status: self
                .record
                .as_ref()
                .and_then(|record| record.upstream_status),
            code,
        };
        self.metrics.request_ended(&ending, us);
        self.metrics
            .responded(us.saturating_sub(self.passed_us.into()));
        let Some(mut shared) = self.record.take() else {
            return;
        };
        if let Some(record) = Arc::get_mut(&mut shared) {
            self.complete(record, (code, us));
        }
        if let Some(counters) = &self.counters {
            counters.ended(shared.status);
        }
        if let Some(traced) = &self.traced {
            traced.ended(&shared);
        }
        if let Some(records) = &self.records {
            records.push(shared);
        }
    }
}
