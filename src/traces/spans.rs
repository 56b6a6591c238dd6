//! A finished request as spans: one SERVER span, a child for each stage, a CLIENT span for each
//! attempt below `forward`. Names, types and statuses follow the stable semantic conventions for
//! HTTP; what is ours stands in [`super::attributes`]. Pure.

use std::borrow::Cow;

use node::metrics::{Ending, ErrorType, MethodName};
use node::telemetry::TraceContext;
use node::traces::Finished;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_sdk::Resource;
use prost::Message as _;
use proto::record::{Attempt, QueryField, Record, Stage};
use proto::target::BaseUrl;

use super::attributes as own;
use super::encode::{Head, Identity, Message, Template};
use super::events;
use crate::otlp;

/// Makes exports of finished requests.
pub struct Spans {
    resource: Vec<u8>,
    scope: Vec<u8>,
    scheme: Box<str>,
    /// By stage.
    plain: [Template; Stage::ALL.len()],
}

/// A finished request, as its spans tell it.
pub struct Told<'a> {
    /// What is known of it.
    pub record: &'a Record,
    /// Its place in the trace.
    pub context: &'a TraceContext,
    /// The target's id, where it is known.
    pub target_id: Option<&'a str>,
    /// The address of the target that the attempt at a place went to, where it is known.
    pub asked: &'a dyn Fn(usize) -> Option<&'a BaseUrl>,
}

/// What the span of a stage says that did not end the request.
const PASS: &str = "pass";

impl Spans {
    /// Spans of this process, whose callers speak to it with this scheme.
    pub fn new(resource: &Resource, scheme: &str) -> Self {
        let scope = InstrumentationScope {
            name: "requestrocket".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        Self {
            resource: otlp::encoded(resource),
            scope: scope.encode_to_vec(),
            scheme: scheme.into(),
            plain: plain_stages(),
        }
    }

    /// The spans of these requests, as one `ExportTraceServiceRequest`; `room` is written over.
    pub fn export(&self, finished: &[Finished], room: Vec<u8>) -> Vec<u8> {
        self.request(room, |scope_spans| {
            for one in finished {
                let target = &one.proxy.target;
                let endpoint = |at| target.endpoints.asked(&one.record.endpoints, at);
                let asked = |at| Some(endpoint(at).map_or(&target.base, |one| &one.base));
                let told = Told {
                    record: &one.record,
                    context: &one.context,
                    target_id: Some(&target.id_text),
                    asked: &asked,
                };
                self.write(&told, scope_spans);
            }
        })
    }

    /// The spans of one request, likewise.
    pub fn export_one(&self, told: &Told<'_>) -> Vec<u8> {
        self.request(Vec::new(), |scope_spans| self.write(told, scope_spans))
    }

    fn request(&self, room: Vec<u8>, write: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut request = Message::within(room);
        request.message(1, |resource_spans| {
            resource_spans.bytes(1, &self.resource);
            resource_spans.message(2, |scope_spans| {
                scope_spans.bytes(1, &self.scope);
                write(scope_spans);
            });
        });
        request.into_bytes()
    }

    /// The spans of a request, the SERVER span first.
    fn write(&self, told: &Told<'_>, out: &mut Message) {
        let record = told.record;
        self.server(told, out);
        let ended_by = record.ended_by();
        let mut at_us = 0;
        for (n, time) in record.stages.iter().enumerate() {
            let times = (at_us, at_us + u64::from(time.us));
            let id = told.context.further_span(n as u64);
            let ended = ended_by == Some(time.stage);
            stage(&self.plain, told, (id, time.stage), times, ended, out);
            if time.stage == Stage::Forward {
                let count = record.sends.len();
                for (at, attempt) in record.sends.iter().enumerate() {
                    let own_id = told.context.attempt_span(at, count);
                    client(told, (own_id, id), (at, attempt), times, out);
                }
            }
            at_us = times.1;
        }
        if !record
            .stages
            .iter()
            .any(|time| time.stage == Stage::Respond)
        {
            let id = told.context.further_span(99);
            let times = (at_us.min(record.total_us), record.total_us);
            let ended = ended_by == Some(Stage::Respond);
            stage(&self.plain, told, (id, Stage::Respond), times, ended, out);
        }
    }

    fn server(&self, told: &Told<'_>, out: &mut Message) {
        let record = told.record;
        let parent = told.context.parent();
        let ids = (
            told.context.span_id,
            parent.map_or(0, |parent| parent.span_id),
        );
        let kind = (SpanKind::Server, method_name(&record.method));
        let mut head = head(told, ids, kind, (0, record.total_us));
        head.parent_is_remote = parent.is_some();
        out.span(&head, |span| {
            if let (None, Some(caller)) = (parent, told.context.caller) {
                span.link(Identity {
                    trace_id: caller.trace_id,
                    span_id: caller.span_id,
                });
            }
            method(&record.method, span);
            span.text("url.scheme", &*self.scheme);
            // The caller's form (id or alias) is the same proxy; the id is what is never ambiguous.
            let proxy = record.proxy_id.text();
            let path = [&b"/api/"[..], proxy.as_ref(), record.path.as_bytes()];
            span.joined("url.path", &path);
            span.text_of("url.query", query(&record.query).as_deref());
            span.text_of("user_agent.original", record.user_agent.as_deref());
            span.text_of("client.address", record.source_address.as_deref());
            let error = server_error(record);
            status(record.status, error.as_deref(), span);
            own_attributes(told, span);
            span.dropped_events(record.events_dropped);
        });
    }
}

fn head<'t>(
    told: &Told<'_>,
    (id, parent): (u64, u64),
    (kind, name): (SpanKind, &'t str),
    (from_us, to_us): (u64, u64),
) -> Head<'t> {
    Head {
        identity: Identity {
            trace_id: told.context.trace_id,
            span_id: id,
        },
        parent,
        parent_is_remote: false,
        kind,
        name,
        times_ns: (told.at_ns(from_us), told.at_ns(to_us.max(from_us))),
    }
}

/// The span of a stage that was passed and has nothing to say, for each of them.
fn plain_stages() -> [Template; Stage::ALL.len()] {
    Stage::ALL.map(|stage| {
        let identity = Identity {
            trace_id: 1,
            span_id: 1,
        };
        let head = Head {
            identity,
            parent: 1,
            parent_is_remote: false,
            kind: SpanKind::Internal,
            name: stage.name(),
            times_ns: (0, 0),
        };
        Template::of(&head, |span| span.text(own::OUTCOME, PASS))
    })
}

/// Whether the span of a stage says more than that it was passed.
fn says_more(record: &Record, stage: Stage) -> bool {
    match stage {
        _ if events::are_in(record, stage) => true,
        Stage::Authenticate => {
            record.auth_failure.is_some() || record.proxy_credential_id.is_some()
        }
        Stage::Authorize => !record.denials.is_empty() || !record.shadow_rule_ids.is_empty(),
        Stage::Limit => {
            let lists = [
                record.limited_by.len(),
                record.refused_by.len(),
                record.meters.len(),
            ];
            lists.into_iter().any(|count| count > 0)
        }
        Stage::Inject => record.target_credential_id.is_some(),
        Stage::Filter => !record.filter_ids.is_empty(),
        _ => false,
    }
}

fn stage(
    plain: &[Template; Stage::ALL.len()],
    told: &Told<'_>,
    (id, stage): (u64, Stage),
    times: (u64, u64),
    ended: bool,
    out: &mut Message,
) {
    let record = told.record;
    let kind = (SpanKind::Internal, stage.name());
    let head = head(told, (id, told.context.span_id), kind, times);
    if !ended && !says_more(record, stage) {
        return out.again(&plain[stage as usize], &head);
    }
    out.span(&head, |span| {
        span.text(own::OUTCOME, if ended { "end" } else { PASS });
        match stage {
            Stage::Authenticate => {
                let failure = record.auth_failure.map(|why| why.as_str());
                span.text_of(own::AUTH_FAILURE, failure);
                if let Some(id) = record.proxy_credential_id {
                    span.text(own::PROXY_CREDENTIAL, id.text());
                }
            }
            Stage::Authorize => {
                let denying = record.denials.iter().flat_map(|denial| &denial.rule_ids);
                span.list(own::DENYING_RULES, denying.map(ToString::to_string));
                let shadow = record.shadow_rule_ids.iter();
                span.list(own::SHADOW_RULES, shadow.map(ToString::to_string));
            }
            Stage::Limit => {
                span.list(own::LIMITED_BY, record.limited_by.iter());
                span.list(
                    own::REFUSED_BY,
                    record.refused_by.iter().map(ToString::to_string),
                );
                let meters = &record.meters;
                span.list(own::METERS, meters.iter().map(|spend| &*spend.meter));
                let spent = meters.iter().map(|spend| spend.tokens);
                let spent = spent.map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX));
                span.ints(own::METERS_SPENT, spent);
            }
            Stage::Inject => {
                if let Some(id) = record.target_credential_id {
                    span.text(own::TARGET_CREDENTIAL, id.text());
                }
            }
            Stage::Filter => {
                let filters = record.filter_ids.iter();
                span.list(own::FILTERS, filters.map(ToString::to_string));
            }
            _ => {}
        }
        events::add(told, stage, times, span);
    });
}

fn client(
    told: &Told<'_>,
    ids: (u64, u64),
    (at, attempt): (usize, &Attempt),
    within: (u64, u64),
    out: &mut Message,
) {
    let record = told.record;
    let from_us = u64::from(attempt.started_us).clamp(within.0, within.1);
    let to_us = (from_us + attempt.took_us()).min(within.1);
    let kind = (SpanKind::Client, method_name(&record.method));
    let head = head(told, ids, kind, (from_us, to_us));
    out.span(&head, |span| {
        method(&record.method, span);
        if let Some(base) = (told.asked)(at) {
            span.text("server.address", &base.origin.host);
            span.int("server.port", i64::from(base.origin.port));
            url_full(told, base, span);
        }
        if at > 0 {
            let count = i64::try_from(at).unwrap_or(i64::MAX);
            span.int("http.request.resend_count", count);
        }
        span.flag(own::REUSED, attempt.reused);
        let error: Option<Cow<'_, str>> = match (attempt.status, attempt.failure) {
            (Some(status), _) if status >= 400 => Some(status.to_string().into()),
            (Some(_), _) => broken(record, at).map(Cow::Borrowed),
            (None, failure) => Some(failure.map_or("other", |f| f.as_str()).into()),
        };
        status(attempt.status, error.as_deref(), span);
    });
}

/// What is the target's URL without what inject added, and with the values of the query left out
/// that records leave out.
fn url_full(told: &Told<'_>, base: &BaseUrl, span: &mut Message) {
    let record = told.record;
    let (origin, query) = (base.origin.to_string(), query(&record.query));
    let sign = if query.is_some() { "?" } else { "" };
    let query = query.unwrap_or_default();
    let pieces = [&origin, &base.path, &record.path, sign, &query];
    span.joined("url.full", &pieces.map(str::as_bytes));
}

fn query(fields: &[QueryField]) -> Option<String> {
    let fields: Vec<String> = fields
        .iter()
        .map(|field| format!("{}={}", field.name, field.value))
        .collect();
    (!fields.is_empty()).then(|| fields.join("&"))
}

/// What broke off the answer to an attempt, where the target did.
fn broken(record: &Record, at: usize) -> Option<&str> {
    let is_last = at + 1 == record.sends.len();
    let broke = is_last && record.code.starts_with("upstream-") && record.broke_off();
    broke.then_some(&*record.code)
}

/// `error.type` of the SERVER span: 4xx are the caller's and no error of ours, but for an answer
/// that broke off.
fn server_error(record: &Record) -> Option<String> {
    match Ending::of(record).error()? {
        ErrorType::Status => record.status.map(|status| status.to_string()),
        ErrorType::Code(code) => Some(code.as_str().to_owned()),
    }
}

fn status(status: Option<u16>, error: Option<&str>, span: &mut Message) {
    if let Some(status) = status {
        span.int("http.response.status_code", i64::from(status));
    }
    if let Some(error) = error {
        span.text("error.type", error);
        span.error();
    }
}

fn own_attributes(told: &Told<'_>, span: &mut Message) {
    let record = told.record;
    span.text(own::REQUEST_ID, record.request_id.text());
    span.text(own::ORG_ID, record.org_id.text());
    span.text(own::PROXY_ID, record.proxy_id.text());
    span.text_of(own::TARGET_ID, told.target_id);
    let version = i64::try_from(record.config_version).unwrap_or(i64::MAX);
    span.int(own::VERSION, version);
    span.text(own::NODE, &*record.node);
    span.text(own::CODE, &*record.code);
    let credentials = [
        (own::PROXY_CREDENTIAL, record.proxy_credential_id),
        (own::TARGET_CREDENTIAL, record.target_credential_id),
    ];
    for (name, id) in credentials {
        if let Some(id) = id {
            span.text(name, id.text());
        }
    }
}

fn method_name(method: &str) -> &str {
    match MethodName::of(method).is_known() {
        true => method,
        false => "HTTP",
    }
}

fn method(method: &str, span: &mut Message) {
    let name = MethodName::of(method);
    span.text("http.request.method", name.as_str());
    if !name.is_known() {
        span.text("http.request.method_original", method);
    }
}
