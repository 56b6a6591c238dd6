//! What the caller gets: an answer of the target, or an early end as a problem document.
//!
//! The only place that turns outcomes into responses. Also the edge where `http` 1.x types (ours,
//! hyper's) become those of actix-web.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::Pin;

use actix_http::Response;
use actix_web::body::MessageBody;
use actix_web::http as old_http;
use actix_web::http::header::{HeaderName as OldName, HeaderValue as OldValue};
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use proto::field_name::is_there;
use proto::id::{OrgId, RequestId};
use proto::outcome::{Code, EarlyEnd, Extra};
use proto::problem::Problem;
use proto::record::Record;

use crate::copied_values::CopiedValues;
use crate::credentials::live::Whose;
use crate::credentials::shown::shown_text;
use crate::explained;
use crate::flow::{Exchange, Outbound};
use crate::reply_body::{Content, ReplyBody};

const REQUEST_ID: HeaderName = HeaderName::from_static("requestrocket-request-id");
const OLD_REQUEST_ID: OldName = OldName::from_static("requestrocket-request-id");
const OLD_CODE: OldName = OldName::from_static("requestrocket-proxy-code");
/// The code of a request's end.
pub const PROXY_CODE: HeaderName = HeaderName::from_static("requestrocket-proxy-code");
/// What it means in this case.
pub const PROXY_MESSAGE: HeaderName = HeaderName::from_static("requestrocket-proxy-message");
/// What the caller is warned of.
pub const PROXY_WARNING: HeaderName = HeaderName::from_static("requestrocket-proxy-warning");
/// Whether SDKs should try again by themselves.
pub const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Longest `requestrocket-proxy-message`, in bytes.
const MESSAGE_BYTES_MAX: usize = 500;

/// A response on its way from the pipeline to the listener.
pub struct Reply {
    id: RequestId,
    code: Code,
    status: StatusCode,
    /// All but those that every answer has: id and code.
    headers: HeaderMap,
    body: ReplyBody,
}

/// What a reply is made of besides its request.
type Parts = (Code, StatusCode, HeaderMap, Content);

/// Ends an exchange: builds the reply and gives it to the listener's handler.
///
/// When nobody waits any more the reply is dropped, and its record says that the caller left.
pub fn reply(mut exchange: Box<Exchange>) {
    let closing = exchange.closing.take();
    let sender = exchange.reply.take();
    let (code, status, mut headers, content) = match exchange.end.take() {
        Some(end) => early(&end, &exchange),
        None => granted(&mut exchange),
    };
    let there = match is_there(&headers, &explained::EXPLAIN) {
        true => headers.remove(explained::EXPLAIN),
        false => None,
    };
    if let Some(closing) = closing.as_ref().filter(|_| may_see_decisions(&exchange))
        && let Some(record) = closing.record()
        && let Some(explained) = explained::header(
            record,
            &closing.spends.by_now(),
            closing.code(),
            there.as_ref(),
        )
    {
        headers.insert(explained::EXPLAIN, explained);
    }
    let reply = Reply {
        id: exchange.id,
        code,
        status,
        headers,
        body: ReplyBody {
            content,
            closing,
            broken: None,
        },
    };
    if let Some(sender) = sender {
        sender.send(reply);
    }
}

/// Whether the caller proved a credential that is told what was decided.
fn may_see_decisions(exchange: &Exchange) -> bool {
    let proxy = exchange.proxy.as_ref();
    let caller = exchange.caller.as_ref();
    proxy
        .zip(caller)
        .and_then(|(proxy, caller)| proxy.credentials.get(caller.index))
        .is_some_and(|credential| credential.explain)
}

fn early(end: &EarlyEnd, exchange: &Exchange) -> Parts {
    let end = without_secrets(end, exchange.proxy.as_ref().map(|proxy| proxy.org));
    let status = StatusCode::from_u16(end.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = HeaderMap::with_capacity(8 + end.headers.len());
    if let Some(message) = message(&end.detail) {
        headers.insert(PROXY_MESSAGE, message);
    }
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(should) = end.should_retry {
        let value = if should { "true" } else { "false" };
        headers.insert(SHOULD_RETRY, HeaderValue::from_static(value));
    }
    for (name, value) in &end.headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let body = end.document(exchange.id.text().as_str()).to_string();
    (end.code, status, headers, Content::Full(Bytes::from(body)))
}

/// The same end without secrets of the organisation in what it quotes. It quotes no answer; should
/// a library ever do in an error, this is where it ends. Our own constant words stay what they are,
/// whatever an organisation has saved as a secret.
fn without_secrets(end: &EarlyEnd, org: Option<OrgId>) -> Cow<'_, EarlyEnd> {
    let whose = Whose::of(org);
    let mut end = Cow::Borrowed(end);
    if let Cow::Owned(detail) = &end.detail
        && let Cow::Owned(clean) = shown_text(detail, whose)
    {
        end.to_mut().detail = clean.into();
    }
    if let Extra::Errors(errors) = &end.extra {
        let clean = |error: &Problem| Problem {
            pointer: shown_text(&error.pointer, whose).into_owned(),
            code: error.code,
            detail: shown_text(&error.detail, whose).into_owned(),
        };
        let errors = errors.iter().map(clean).collect();
        end.to_mut().extra = Extra::Errors(errors);
    }
    end
}

fn granted(exchange: &mut Exchange) -> Parts {
    let Some(answer) = exchange.answer.take() else {
        let end = EarlyEnd::new(Code::InternalError, "the request ended without an answer");
        return early(&end, exchange);
    };
    let (code, mut headers) = (exchange.code(), answer.headers);
    if let Some(said) = exchange.said.take() {
        said.tell(&mut headers);
    }
    if let Some(warning) = exchange.notes.warning.as_deref().and_then(message) {
        headers.insert(PROXY_WARNING, warning);
    }
    let bodyless = exchange.request.method == Method::HEAD
        || matches!(
            answer.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    let content = match answer.body {
        _ if bodyless => announced(&answer.announced_length),
        Outbound::Empty => Content::Full(Bytes::new()),
        Outbound::Full(bytes) => Content::Full(bytes),
        Outbound::Stream(body) => Content::Stream(body),
        Outbound::Events(body) => Content::Events(body),
        Outbound::Scrubbed(body) => Content::Scrubbed(body),
    };
    (code, answer.status, headers, content)
}

fn announced(length: &Option<HeaderValue>) -> Content {
    let length = length
        .as_ref()
        .and_then(|value| value.to_str().ok()?.parse().ok());
    length.map_or(Content::Empty, Content::Announced)
}

/// A detail as a field value: printable ASCII, not too long.
fn message(detail: &str) -> Option<HeaderValue> {
    let printable = |c: char| {
        if c.is_ascii_graphic() || c == ' ' {
            c
        } else {
            '?'
        }
    };
    let text: String = detail
        .chars()
        .take(MESSAGE_BYTES_MAX)
        .map(printable)
        .collect();
    HeaderValue::from_str(&text).ok()
}

/// A reply that was read to its end, or as far as wanted.
pub struct Collected {
    /// Its status.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// The first of its body.
    pub body: Vec<u8>,
    /// Whether that is all of it.
    pub whole: bool,
    /// What the request's record will say, but for what its end adds.
    pub record: Option<Record>,
}

impl Reply {
    /// Reads the body as its caller would, and keeps the first `bytes_max` of it. A body that
    /// does not end before `deadline` is left there.
    pub async fn collect(self, bytes_max: usize, deadline: tokio::time::Instant) -> Collected {
        let Self {
            id,
            code,
            status,
            mut headers,
            mut body,
        } = self;
        if let Ok(id) = HeaderValue::from_str(id.text().as_str()) {
            headers.insert(REQUEST_ID, id);
        }
        headers.insert(PROXY_CODE, HeaderValue::from_static(code.as_str()));
        let record = body.closing.as_ref().and_then(|closing| closing.record());
        let record = record.cloned();
        let (mut kept, mut whole) = (Vec::new(), true);
        let reading = async {
            while let Some(piece) = poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await {
                let Ok(bytes) = piece else {
                    whole = false;
                    return;
                };
                let room = bytes_max.saturating_sub(kept.len()).min(bytes.len());
                kept.extend_from_slice(&bytes[..room]);
                whole &= room == bytes.len();
            }
        };
        let in_time = tokio::time::timeout_at(deadline, reading).await.is_ok();
        Collected {
            status,
            headers,
            body: kept,
            whole: whole && in_time,
            record,
        }
    }

    /// The same as a response of actix-web.
    pub fn into_response(self) -> Response<ReplyBody> {
        let status = old_http::StatusCode::from_u16(self.status.as_u16())
            .unwrap_or(old_http::StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::with_body(status, self.body);
        let headers = response.headers_mut();
        let id = self.id.text();
        let mut copied = CopiedValues::of(|| {
            let values = self.headers.values().map(HeaderValue::as_bytes);
            values.chain([id.as_str().as_bytes()])
        });
        for (name, value) in &self.headers {
            let value = OldValue::from_maybe_shared(copied.next(value.len()));
            let name = OldName::from_bytes(name.as_str().as_bytes());
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        if let Ok(id) = OldValue::from_maybe_shared(copied.next(id.as_str().len())) {
            headers.append(OLD_REQUEST_ID, id);
        }
        headers.append(OLD_CODE, OldValue::from_static(self.code.as_str()));
        response
    }
}

/// The response to a request that never became an exchange, or whose exchange was lost.
pub fn bare(end: &EarlyEnd, id: RequestId) -> Response<ReplyBody> {
    let end = without_secrets(end, None);
    let status = StatusCode::from_u16(end.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    for (name, value) in &end.headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let content = Content::Full(end.document(id.text().as_str()).to_string().into());
    Reply {
        id,
        code: end.code,
        status,
        headers,
        body: ReplyBody {
            content,
            closing: None,
            broken: None,
        },
    }
    .into_response()
}
