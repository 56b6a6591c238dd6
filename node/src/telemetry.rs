//! Trace context of a request: taken from the caller, shown as spans, passed on to the target.
//!
//! Spans are `tracing` spans; where an OTLP exporter is installed they become a trace of
//! OpenTelemetry. What the target learns of it is the target's `propagate_trace`: by default
//! `traceparent` (W3C Trace Context); `tracestate` and `baggage` carry internal data.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use proto::id::RequestId;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::request::Request;

/// The field that carries a trace's identity.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The span of a whole request, as a child of the caller's.
pub fn request_span(request: &Request, id: RequestId) -> Span {
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        otel.name = request.method.as_str(),
        http.request.method = request.method.as_str(),
        requestrocket.request_id = %id,
        http.response.status_code = tracing::field::Empty,
        requestrocket.code = tracing::field::Empty,
    );
    if !span.is_disabled() && request.headers.contains_key(TRACEPARENT) {
        let parent = opentelemetry::global::get_text_map_propagator(|propagator| {
            propagator.extract(&Fields(&request.headers))
        });
        // An error means that no OpenTelemetry layer is installed: then there is no trace to join.
        let _ = span.set_parent(parent);
    }
    span
}

/// The trace id of a request: of its span, or else of the caller's `traceparent`.
pub fn trace_id(span: &Span, headers: &HeaderMap) -> Option<String> {
    let own = match span.is_disabled() {
        true => opentelemetry::TraceId::INVALID,
        false => span.context().span().span_context().trace_id(),
    };
    if own != opentelemetry::TraceId::INVALID {
        return Some(own.to_string());
    }
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let id = text.split('-').nth(1)?;
    let valid = id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (valid && id.bytes().any(|b| b != b'0')).then(|| id.to_owned())
}

/// Makes the current span the parent of what the target does.
pub fn pass_on(headers: &mut HeaderMap) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    let context = span.context();
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Out(headers));
    });
}

struct Fields<'a>(&'a HeaderMap);

impl Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Out<'a>(&'a mut HeaderMap);

impl Injector for Out<'_> {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT.as_str()
            && let Ok(value) = HeaderValue::from_str(&value)
        {
            self.0.insert(TRACEPARENT, value);
        }
    }
}
