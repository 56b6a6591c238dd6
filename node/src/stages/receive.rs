//! Stage 1: the edge. A permit, the request's id, the configuration for the request's whole life,
//! and the proxy it names.
//!
//! Never tells whether a proxy exists: an unknown one goes on and `authenticate` answers it like a
//! wrong key.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use actix_http::{HttpMessage, Payload, Request as HttpRequest, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use proto::field_name::{self, is_there};
use proto::forwarded::TrustedProxies;
use proto::id::RequestId;
use proto::outcome::{Code, EarlyEnd};
use proto::rule::Facts;

use crate::actor::{Next, Stage, StageKind, overloaded};
use crate::answer;
use crate::body::BodyError;
use crate::copied_values::CopiedValues;
use crate::credentials::live::Whose;
use crate::elsewhere::{self, PASSED_ON};
use crate::flow::{Exchange, Inbound};
use crate::listener::connection::Connection;
use crate::metrics::{Ending, MethodName};
use crate::records::unmatched;
use crate::reply::seat;
use crate::reply_body::ReplyBody;
use crate::request::Request;
use crate::telemetry;
use crate::worker::Worker;

/// Serves one request: hands its exchange to the pipeline and waits for the reply.
///
/// actix drops this future when the caller's connection ends; the reply's seat is empty then, which
/// is how waiting stages learn that nobody waits any more.
pub async fn serve(worker: Rc<Worker>, mut request: HttpRequest) -> Response<ReplyBody> {
    let id = RequestId::new();
    let method = MethodName::of(request.method().as_str());
    let Some(permit) = worker.enter() else {
        let end = overloaded();
        worker.metrics().request_ended(&ended(method, &end), 0);
        return answer::bare(&end, id);
    };
    let (sender, receiver) = seat();
    let payload = request.take_payload();
    let exchange = match exchange(id, &request, payload, &worker) {
        Ok(mut exchange) => {
            exchange.reply = Some(sender);
            exchange.permit = Some(permit);
            exchange
        }
        Err(end) => {
            worker.metrics().request_ended(&ended(method, &end), 0);
            return answer::bare(&end, id);
        }
    };
    drop(request);
    if let Err((exchange, end)) = worker.submit(exchange) {
        worker.metrics().request_ended(&ended(method, &end), 0);
        drop(exchange);
        return answer::bare(&end, id);
    }
    match receiver.await {
        Some(reply) => reply.into_response(),
        None => {
            let detail = "the gateway failed on this request; it has been counted";
            let end = EarlyEnd::new(Code::InternalError, detail);
            worker.metrics().request_ended(&ended(method, &end), 0);
            answer::bare(&end, id)
        }
    }
}

/// About how many fields are added to a request on its way, such as `traceparent`: a map that grows
/// places all of its fields anew.
const ADDED_FIELDS: usize = 3;

/// How a request ended that no stage has seen to its end.
fn ended(method: MethodName, end: &EarlyEnd) -> Ending {
    Ending {
        method,
        status: Some(end.status),
        upstream_status: None,
        code: end.code,
    }
}

/// Turns actix-web's request into an exchange: the edge between its `http` 0.2 types and ours.
fn exchange(
    mut id: RequestId,
    from: &HttpRequest,
    payload: Payload,
    worker: &Worker,
) -> Result<Box<Exchange>, EarlyEnd> {
    let malformed = |detail: &'static str| EarlyEnd::new(Code::MalformedRequest, detail);
    let method = Method::from_bytes(from.method().as_str().as_bytes())
        .map_err(|_| malformed("the method is not a token"))?;
    let target = from
        .uri()
        .path_and_query()
        .map_or("", |target| target.as_str());
    if !target.starts_with('/') {
        return Err(malformed("the request target must begin with `/`"));
    }
    let fields = from.headers();
    let mut copied = CopiedValues::of(|| {
        let values = fields.iter().map(|(_, value)| value.as_bytes());
        std::iter::once(target.as_bytes()).chain(values)
    });
    let target = copied.next(target.len());
    let mut headers = HeaderMap::with_capacity(fields.len_keys() + ADDED_FIELDS);
    let mut passed_on = false;
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_str().as_bytes());
        let value = HeaderValue::from_maybe_shared(copied.next(value.len()));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(malformed("a header field is not valid"));
        };
        passed_on |= name == PASSED_ON;
        headers.append(name, value);
    }
    let mut peer = from
        .peer_addr()
        .ok_or_else(|| malformed("the connection has no peer address"))?;
    peer = caller(worker.proxies(), peer, &headers);
    let (fault, says_sent_at) = match worker.fault_injection() {
        true => faults(worker, &headers),
        false => (None, false),
    };
    let (snapshot, mut forwarded_from) = (worker.snapshot(), None);
    if passed_on {
        let line = (method.as_str(), &*target);
        let passed = elsewhere::take_passed_on(&mut headers, snapshot.digest_key(), line);
        if let Some(passed) = passed {
            // One for another region came astray or once more: it goes no further in any case.
            if passed.to == worker.region() {
                (id, peer) = (passed.id, elsewhere::caller_of(&passed));
            }
            forwarded_from = Some(passed.from.into());
        }
    }
    field_name::drop_nominated(&mut headers);
    let request = Request::new(method, target, headers, peer);
    let trace = worker.trace(&request.headers, id, forwarded_from.is_some());
    // Filled where it is: it is large, and each move would copy it.
    let mut exchange = Box::new(Exchange::arrived(id, trace, snapshot, request));
    let (headers, count) = (&exchange.request.headers, &exchange.notes.request_bytes);
    exchange.body = inbound(headers, payload, count, from.conn_data())?;
    exchange.notes.forwarded_from = forwarded_from;
    (exchange.fault, exchange.says_sent_at) = (fault, says_sent_at);
    Ok(exchange)
}

/// Where a request comes from that trusted proxies may have passed on; they tell no port.
fn caller(proxies: &TrustedProxies, peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
    if !proxies.trusts(peer.ip()) {
        return peer;
    }
    let lines = headers.get_all(proxies.header.name());
    let lines = lines.iter().map(HeaderValue::as_bytes);
    match proxies.source(peer.ip(), lines) {
        source if source == peer.ip() => peer,
        source => SocketAddr::new(source, 0),
    }
}

/// The stage at which the request asks for a panic, and whether the target is to be told when it
/// was sent; a task that it names panics now. See `gateway.fault_injection`.
fn faults(worker: &Worker, headers: &HeaderMap) -> (Option<StageKind>, bool) {
    let wanted = headers.get("requestrocket-fault");
    let Some(wanted) = wanted.and_then(|wanted| wanted.to_str().ok()) else {
        return (None, false);
    };
    let panics = wanted.strip_prefix("panic@").unwrap_or_default();
    if let Some(task) = panics.strip_prefix("task:") {
        worker.health().break_task(task);
    }
    let mut stages = StageKind::ALL.into_iter();
    (
        stages.find(|stage| stage.name() == panics),
        wanted == "sent-at",
    )
}

fn inbound(
    headers: &HeaderMap,
    payload: Payload,
    count: &Rc<Cell<u64>>,
    connection: Option<&Connection>,
) -> Result<Inbound, EarlyEnd> {
    let chunked = is_there(headers, &header::TRANSFER_ENCODING);
    if !chunked && !is_there(headers, &header::CONTENT_LENGTH) {
        return Ok(Inbound::None);
    }
    let length = match headers.get(header::CONTENT_LENGTH) {
        Some(value) => {
            let parsed = value
                .to_str()
                .ok()
                .and_then(|text| text.parse::<u64>().ok());
            let detail = "Content-Length is not a number";
            Some(parsed.ok_or_else(|| EarlyEnd::new(Code::MalformedRequest, detail))?)
        }
        None => None,
    };
    if !chunked && length.unwrap_or(0) == 0 {
        return Ok(Inbound::None);
    }
    let (count, connection) = (count.clone(), connection.cloned());
    let stream = payload.map(move |piece| {
        let bytes = piece.map_err(|_| body_error(connection.as_ref()))?;
        count.set(count.get() + bytes.len() as u64);
        Ok(bytes)
    });
    Ok(Inbound::Stream {
        stream: Box::pin(stream),
        length: length.filter(|_| !chunked),
    })
}

/// Why a body ended too early, as the listener's socket saw it.
fn body_error(connection: Option<&Connection>) -> BodyError {
    match connection.and_then(Connection::body_fault) {
        Some(refusal) => BodyError::Refused(refusal),
        None => BodyError::Disconnected,
    }
}

/// Notes the trace that a request is in: its caller's, unless records and spans would show a
/// secret.
fn note_trace(exchange: &mut Exchange, whose: Whose) {
    let headers = &exchange.request.headers;
    let (id, is_told) = match &exchange.trace {
        Some(trace) => (Some(trace.trace_id), trace.caller.is_some()),
        None => {
            let caller = telemetry::callers(headers);
            (caller.map(|caller| caller.trace_id), caller.is_some())
        }
    };
    exchange.notes.trace_id = id;
    if is_told && telemetry::are_secret(headers, whose) {
        exchange.trace = exchange.trace.map(|trace| trace.apart(exchange.id.bits()));
        exchange.notes.trace_id = exchange.trace.map(|trace| trace.trace_id);
    }
}

/// The stage.
pub struct Receive;

impl Stage for Receive {
    const KIND: StageKind = StageKind::Receive;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        exchange.notes.agent = exchange.request.headers.get(header::USER_AGENT).cloned();
        let found = exchange
            .request
            .split_proxy_key()
            .map(|key| exchange.snapshot.find(key, exchange.started_at));
        let proxy = found.as_ref().and_then(Option::as_deref);
        let whose = proxy.map_or(unmatched::SHOWN_TO, |proxy| Whose::Orgs(proxy.org));
        note_trace(exchange, whose);
        let called = || Bytes::copy_from_slice(exchange.request.called_name());
        match found {
            Some(None) => {
                exchange.notes.path = called();
                Next::Continue
            }
            Some(proxy) => {
                exchange.proxy = proxy;
                exchange.notes.path = exchange.request.rest();
                exchange.notes.query = exchange.request.query.clone();
                let Request {
                    method,
                    headers,
                    query,
                    ..
                } = &exchange.request;
                let query = query.as_deref().unwrap_or_default();
                exchange.notes.method_overridden =
                    Facts::method_overridden(method.as_str(), query, headers);
                Next::Continue
            }
            None if exchange.request.is_proxy_form() => {
                exchange.notes.path = called();
                Next::Continue
            }
            None => {
                let detail = "nothing is served here; call /api/{proxy}/… with the URL that the \
                              proxy's `url` shows";
                EarlyEnd::new(Code::MalformedRequest, detail)
                    .with_status(404)
                    .into()
            }
        }
    }
}
