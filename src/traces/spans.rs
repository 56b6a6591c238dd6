//! A finished request as spans: one SERVER span, a child for each stage, a CLIENT span for each
//! attempt below `forward`. Names, types and statuses follow the stable semantic conventions for
//! HTTP; what is ours stands in [`super::attributes`]. Pure.

use std::time::{Duration, SystemTime};

use node::metrics::{Ending, ErrorType, MethodName};
use node::traces::Finished;
use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use proto::record::{Attempt, QueryField, Record, Stage};
use proto::target::BaseUrl;

use super::attributes as own;

/// Makes spans of finished requests.
pub struct Spans {
    scope: InstrumentationScope,
    scheme: &'static str,
}

impl Spans {
    /// Spans of this program, whose callers speak to it with this scheme.
    pub fn new(scheme: &'static str) -> Self {
        let scope = InstrumentationScope::builder("requestrocket")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Self { scope, scheme }
    }

    /// The spans of a request, the SERVER span first.
    pub fn of(&self, finished: &Finished) -> Vec<SpanData> {
        let record = &finished.record;
        let mut spans = Vec::with_capacity(2 + record.stages.len() + record.sends.len());
        spans.push(self.server(finished));
        let ended_by = ended_by(record);
        let mut at_us = 0;
        for (n, time) in record.stages.iter().enumerate() {
            let times = (at_us, at_us + u64::from(time.us));
            let id = finished.context.further_span(n as u64);
            let ended = ended_by == Some(time.stage);
            spans.push(self.stage(finished, (id, time.stage), times, ended));
            if time.stage == Stage::Forward {
                let count = record.sends.len();
                for (at, attempt) in record.sends.iter().enumerate() {
                    let own_id = finished.context.attempt_span(at, count);
                    spans.push(self.client(finished, (own_id, id), (at, attempt), times));
                }
            }
            at_us = times.1;
        }
        if !record
            .stages
            .iter()
            .any(|time| time.stage == Stage::Respond)
        {
            let id = finished.context.further_span(99);
            let times = (at_us.min(record.total_us), record.total_us);
            spans.push(self.stage(finished, (id, Stage::Respond), times, false));
        }
        spans
    }

    fn span(
        &self,
        finished: &Finished,
        (id, parent): (u64, u64),
        (kind, name): (SpanKind, String),
        (from_us, to_us): (u64, u64),
    ) -> SpanData {
        let begun = started(&finished.record);
        SpanData {
            span_context: context(finished.context.trace_id, id, false),
            parent_span_id: span_id(parent),
            parent_span_is_remote: false,
            span_kind: kind,
            name: name.into(),
            start_time: begun + Duration::from_micros(from_us),
            end_time: begun + Duration::from_micros(to_us.max(from_us)),
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn server(&self, finished: &Finished) -> SpanData {
        let record = &finished.record;
        let parent = finished.context.parent();
        let ids = (
            finished.context.span_id,
            parent.map_or(0, |parent| parent.span_id),
        );
        let name = (SpanKind::Server, method_name(&record.method));
        let mut span = self.span(finished, ids, name, (0, record.total_us));
        span.parent_span_is_remote = parent.is_some();
        if let (None, Some(caller)) = (parent, finished.context.caller) {
            let context = context(caller.trace_id, caller.span_id, true);
            span.links.links.push(Link::new(context, Vec::new(), 0));
        }
        let mut attributes = method(&record.method);
        attributes.push(text("url.scheme", self.scheme));
        // The caller's form (id or alias) is the same proxy; the id is what is never ambiguous.
        let path = format!("/api/{}{}", record.proxy_id, record.path);
        attributes.push(text("url.path", &path));
        push(
            &mut attributes,
            "url.query",
            query(&record.query).as_deref(),
        );
        push(
            &mut attributes,
            "user_agent.original",
            record.user_agent.as_deref(),
        );
        push(
            &mut attributes,
            "client.address",
            record.source_address.as_deref(),
        );
        let error = server_error(record);
        status(&mut span, &mut attributes, record.status, error.as_deref());
        attributes.extend(own_attributes(finished));
        span.attributes = attributes;
        span
    }

    fn stage(
        &self,
        finished: &Finished,
        (id, stage): (u64, Stage),
        times: (u64, u64),
        ended: bool,
    ) -> SpanData {
        let record = &finished.record;
        let name = (SpanKind::Internal, stage.name().to_owned());
        let mut span = self.span(finished, (id, finished.context.span_id), name, times);
        let outcome = if ended { "end" } else { "pass" };
        let mut attributes = vec![text(own::OUTCOME, outcome)];
        match stage {
            Stage::Authenticate => {
                let failure = record.auth_failure.map(|why| why.as_str());
                push(&mut attributes, own::AUTH_FAILURE, failure);
                let id = record.proxy_credential_id.map(|id| id.to_string());
                push(&mut attributes, own::PROXY_CREDENTIAL, id.as_deref());
            }
            Stage::Authorize => {
                let denying = record.denials.iter().flat_map(|denial| &denial.rule_ids);
                list(&mut attributes, own::DENYING_RULES, denying);
                list(
                    &mut attributes,
                    own::SHADOW_RULES,
                    record.shadow_rule_ids.iter(),
                );
            }
            Stage::Limit => list(&mut attributes, own::LIMITED_BY, record.limited_by.iter()),
            Stage::Inject => {
                let id = record.target_credential_id.map(|id| id.to_string());
                push(&mut attributes, own::TARGET_CREDENTIAL, id.as_deref());
            }
            Stage::Filter => list(&mut attributes, own::FILTERS, record.filter_ids.iter()),
            _ => {}
        }
        span.attributes = attributes;
        span
    }

    fn client(
        &self,
        finished: &Finished,
        ids: (u64, u64),
        (at, attempt): (usize, &Attempt),
        within: (u64, u64),
    ) -> SpanData {
        let record = &finished.record;
        let from_us = u64::from(attempt.started_us).clamp(within.0, within.1);
        let took_us = u64::from(attempt.connect_us) + u64::from(attempt.wait_us);
        let to_us = (from_us + took_us).min(within.1);
        let name = (SpanKind::Client, method_name(&record.method));
        let mut span = self.span(finished, ids, name, (from_us, to_us));
        let mut attributes = method(&record.method);
        let base = asked(finished, at);
        attributes.push(text("server.address", &base.origin.host));
        attributes.push(KeyValue::new("server.port", i64::from(base.origin.port)));
        attributes.push(text("url.full", &url_full(finished, base)));
        if at > 0 {
            let count = i64::try_from(at).unwrap_or(i64::MAX);
            attributes.push(KeyValue::new("http.request.resend_count", count));
        }
        attributes.push(KeyValue::new(own::REUSED, attempt.reused));
        let error = match (attempt.status, attempt.failure) {
            (Some(status), _) => (status >= 400).then(|| status.to_string()),
            (None, failure) => Some(failure.map_or("other", |f| f.as_str()).to_owned()),
        };
        status(&mut span, &mut attributes, attempt.status, error.as_deref());
        span.attributes = attributes;
        span
    }
}

/// The address of the target that an attempt went to.
fn asked(finished: &Finished, at: usize) -> &BaseUrl {
    let target = &finished.proxy.target;
    let asked = target.endpoints.asked(&finished.record.endpoints, at);
    asked.map_or(&target.base, |endpoint| &endpoint.base)
}

/// What is the target's URL without what inject added, and with the values of the query left out
/// that records leave out.
fn url_full(finished: &Finished, base: &BaseUrl) -> String {
    let record = &finished.record;
    let query = query(&record.query).map(|query| format!("?{query}"));
    format!(
        "{}{}{}{}",
        base.origin,
        base.path,
        record.path,
        query.unwrap_or_default()
    )
}

fn query(fields: &[QueryField]) -> Option<String> {
    let fields: Vec<String> = fields
        .iter()
        .map(|field| format!("{}={}", field.name, field.value))
        .collect();
    (!fields.is_empty()).then(|| fields.join("&"))
}

/// The stage that ended the request before it was sent or answered.
fn ended_by(record: &Record) -> Option<Stage> {
    if record.code == "proxy-access-granted" || record.code == "client-aborted" {
        return None;
    }
    let mut passed = record.stages.iter().rev().map(|time| time.stage);
    passed.find(|stage| *stage < Stage::Record)
}

/// `error.type` of the SERVER span: 4xx are the caller's and no error of ours.
fn server_error(record: &Record) -> Option<String> {
    match Ending::of(record).error()? {
        ErrorType::Status => record.status.map(|status| status.to_string()),
        ErrorType::Code(code) => Some(code.as_str().to_owned()),
    }
}

fn status(
    span: &mut SpanData,
    attributes: &mut Vec<KeyValue>,
    status: Option<u16>,
    error: Option<&str>,
) {
    if let Some(status) = status {
        attributes.push(KeyValue::new(
            "http.response.status_code",
            i64::from(status),
        ));
    }
    if let Some(error) = error {
        attributes.push(text("error.type", error));
        // The description is left out where the status code says it.
        span.status = Status::error("");
    }
}

fn own_attributes(finished: &Finished) -> Vec<KeyValue> {
    let record = &finished.record;
    let mut attributes = vec![
        text(own::REQUEST_ID, &record.request_id.to_string()),
        text(own::ORG_ID, &record.org_id.to_string()),
        text(own::PROXY_ID, &record.proxy_id.to_string()),
        text(own::TARGET_ID, &finished.proxy.target.id.to_string()),
        KeyValue::new(
            own::VERSION,
            i64::try_from(record.config_version).unwrap_or(i64::MAX),
        ),
        text(own::NODE, &record.node),
        text(own::CODE, &record.code),
    ];
    let credentials = [
        (own::PROXY_CREDENTIAL, record.proxy_credential_id),
        (own::TARGET_CREDENTIAL, record.target_credential_id),
    ];
    for (name, id) in credentials {
        push(
            &mut attributes,
            name,
            id.map(|id| id.to_string()).as_deref(),
        );
    }
    attributes
}

fn method_name(method: &str) -> String {
    match MethodName::of(method).is_known() {
        true => method.to_owned(),
        false => "HTTP".to_owned(),
    }
}

fn method(method: &str) -> Vec<KeyValue> {
    let name = MethodName::of(method);
    let mut attributes = vec![text("http.request.method", name.as_str())];
    if !name.is_known() {
        attributes.push(text("http.request.method_original", method));
    }
    attributes
}

fn text(name: &'static str, value: &str) -> KeyValue {
    KeyValue::new(name, value.to_owned())
}

fn push(attributes: &mut Vec<KeyValue>, name: &'static str, value: Option<&str>) {
    attributes.extend(value.map(|value| text(name, value)));
}

fn list<T: ToString>(
    attributes: &mut Vec<KeyValue>,
    name: &'static str,
    values: impl Iterator<Item = T>,
) {
    let values: Vec<StringValue> = values.map(|value| value.to_string().into()).collect();
    if !values.is_empty() {
        attributes.push(KeyValue::new(name, Value::Array(Array::String(values))));
    }
}

fn started(record: &Record) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(record.started_at_us.max(0).unsigned_abs())
}

fn context(trace_id: u128, id: u64, remote: bool) -> SpanContext {
    let trace_id = TraceId::from_bytes(trace_id.to_be_bytes());
    SpanContext::new(
        trace_id,
        span_id(id),
        TraceFlags::SAMPLED,
        remote,
        TraceState::NONE,
    )
}

fn span_id(id: u64) -> SpanId {
    SpanId::from_bytes(id.to_be_bytes())
}
