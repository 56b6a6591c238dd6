//! What the caller gets: an answer of the target, or an early end as a problem document.
//!
//! The only place that turns outcomes into responses. Also the edge where `http` 1.x types (ours,
//! hyper's) become those of actix-web.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use actix_http::Response;
use actix_web::body::{BodySize, MessageBody};
use actix_web::http as old_http;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use proto::outcome::{Code, EarlyEnd};
use proto::record::Record;

use crate::copied_values::CopiedValues;
use crate::credentials::shown::shown;
use crate::explained;
use crate::flow::{Exchange, Outbound};
use crate::outbound::EventBody;
use crate::reflected::ScrubbedBody;
use crate::stages::record::Closing;
use crate::upstream::{AnswerBody, AnswerError};

const REQUEST_ID: HeaderName = HeaderName::from_static("requestrocket-request-id");
/// The code of a request's end.
pub const PROXY_CODE: HeaderName = HeaderName::from_static("requestrocket-proxy-code");
/// What it means in this case.
pub const PROXY_MESSAGE: HeaderName = HeaderName::from_static("requestrocket-proxy-message");
/// What the caller is warned of.
pub const PROXY_WARNING: HeaderName = HeaderName::from_static("requestrocket-proxy-warning");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Longest `requestrocket-proxy-message`, in bytes.
const MESSAGE_BYTES_MAX: usize = 500;

/// A response on its way from the pipeline to the listener.
pub struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: ReplyBody,
}

/// A response body; emits the request's record when it is dropped.
pub struct ReplyBody {
    content: Content,
    closing: Option<Box<Closing>>,
    /// Why the answer breaks off here, once what came before may be on its way.
    broken: Option<AnswerError>,
}

enum Content {
    Empty,
    /// The length that a GET's body would have had, for the answer to a HEAD.
    Announced(u64),
    Full(Bytes),
    Stream(Box<AnswerBody>),
    Events(Box<EventBody>),
    Scrubbed(Box<ScrubbedBody>),
}

impl Content {
    /// The next piece of what comes in pieces.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        match self {
            Self::Stream(body) => body.poll_piece(cx),
            Self::Events(body) => body.poll_piece(cx),
            Self::Scrubbed(body) => body.poll_piece(cx),
            Self::Empty | Self::Announced(_) | Self::Full(_) => Poll::Ready(None),
        }
    }
}

/// Ends an exchange: builds the reply and gives it to the listener's handler.
///
/// When nobody waits any more the reply is dropped, and its record says that the caller left.
pub fn reply(mut exchange: Box<Exchange>) {
    let closing = exchange.closing.take();
    let sender = exchange.reply.take();
    let (status, mut headers, content) = match exchange.end.take() {
        Some(end) => early(&end, &exchange),
        None => granted(&mut exchange),
    };
    let there = headers.remove(explained::EXPLAIN);
    if let Some(closing) = closing.as_ref().filter(|_| may_see_decisions(&exchange))
        && let Some(record) = closing.record()
        && let Some(explained) = explained::header(record, closing.code(), there.as_ref())
    {
        headers.insert(explained::EXPLAIN, explained);
    }
    let reply = Reply {
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

fn early(end: &EarlyEnd, exchange: &Exchange) -> (StatusCode, HeaderMap, Content) {
    let status = StatusCode::from_u16(end.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = HeaderMap::with_capacity(8 + end.headers.len());
    let id = exchange.id.text();
    ours(&mut headers, id.as_str(), end.code);
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
    let mut body = end.document(id.as_str()).to_string().into_bytes();
    // It quotes no answer; should a library ever do in an error, this is where it ends.
    if let Cow::Owned(found) = shown(&body) {
        headers.remove(PROXY_MESSAGE);
        body = found;
    }
    (status, headers, Content::Full(Bytes::from(body)))
}

fn granted(exchange: &mut Exchange) -> (StatusCode, HeaderMap, Content) {
    let Some(answer) = exchange.answer.take() else {
        let end = EarlyEnd::new(Code::InternalError, "the request ended without an answer");
        return early(&end, exchange);
    };
    let mut headers = answer.headers;
    ours(&mut headers, exchange.id.text().as_str(), exchange.code());
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
    (answer.status, headers, content)
}

fn announced(length: &Option<HeaderValue>) -> Content {
    let length = length
        .as_ref()
        .and_then(|value| value.to_str().ok()?.parse().ok());
    length.map_or(Content::Empty, Content::Announced)
}

fn ours(headers: &mut HeaderMap, id: &str, code: Code) {
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(PROXY_CODE, HeaderValue::from_static(code.as_str()));
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
            status,
            headers,
            mut body,
        } = self;
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
        let mut copied = CopiedValues::of(|| self.headers.values().map(HeaderValue::as_bytes));
        for (name, value) in &self.headers {
            let value = copied.next(value.len());
            let value = old_http::header::HeaderValue::from_maybe_shared(value);
            if let (Some(name), Ok(value)) = (old_name(name), value) {
                headers.append(name, value);
            }
        }
        response
    }
}

/// The same name; ours, which every answer has, need not be looked at letter by letter.
fn old_name(name: &HeaderName) -> Option<old_http::header::HeaderName> {
    use old_http::header::HeaderName as OldName;
    const ID: OldName = OldName::from_static("requestrocket-request-id");
    const CODE: OldName = OldName::from_static("requestrocket-proxy-code");
    match name.as_str() {
        "requestrocket-request-id" => Some(ID),
        "requestrocket-proxy-code" => Some(CODE),
        text => OldName::from_bytes(text.as_bytes()).ok(),
    }
}

/// The response to a request that never became an exchange, or whose exchange was lost.
pub fn bare(end: &EarlyEnd, request_id: &str) -> Response<ReplyBody> {
    let status = StatusCode::from_u16(end.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = HeaderMap::with_capacity(6);
    ours(&mut headers, request_id, end.code);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    for (name, value) in &end.headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    let document = end.document(request_id).to_string();
    let content = Content::Full(shown(document.as_bytes()).into_owned().into());
    Reply {
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

impl MessageBody for ReplyBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        match &self.content {
            // Leaves a `Content-Length` that the target gave for 304 as it is.
            Content::Empty => BodySize::None,
            Content::Announced(length) => BodySize::Sized(*length),
            Content::Full(bytes) => BodySize::Sized(bytes.len() as u64),
            Content::Stream(body) => match body.remaining() {
                Some(length) => BodySize::Sized(length),
                None => BodySize::Stream,
            },
            Content::Scrubbed(body) => match body.remaining() {
                Some(length) => BodySize::Sized(length),
                None => BodySize::Stream,
            },
            Content::Events(_) => BodySize::Stream,
        }
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error.into())));
        }
        let closing = this.closing.as_mut();
        let is_lost = closing.is_some_and(|closing| closing.places.is_lost(cx));
        let next = match &mut this.content {
            Content::Empty | Content::Announced(_) => None,
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                (!bytes.is_empty()).then_some(Ok(bytes))
            }
            body => match (body.poll_piece(cx), is_lost) {
                // One that is complete already is not broken off.
                (Poll::Ready(None), _) => None,
                (_, true) => Some(Err(AnswerError::PlaceLost)),
                (piece, false) => ready!(piece),
            },
        };
        if let Some(closing) = &mut this.closing {
            match &next {
                Some(Ok(bytes)) => closing.sent(bytes),
                Some(Err(error)) => closing.broke(error),
                None => closing.completed(),
            }
        }
        Poll::Ready(match next {
            Some(Ok(bytes)) => Some(Ok(bytes)),
            None => None,
            Some(Err(error)) => {
                // actix-web drops the connection at an error with what it has not flushed; it
                // flushes while it waits.
                this.broken = Some(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        })
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        let mut content = std::mem::replace(&mut self.content, Content::Empty);
        let Some(mut closing) = self.closing.take() else {
            return;
        };
        if let Content::Scrubbed(body) = content {
            closing.scrubbed(&body);
            let is_decoded = body.coded_bytes().is_some();
            content = match body.into_source() {
                Outbound::Stream(body) if !is_decoded || !body.is_ended() => Content::Stream(body),
                Outbound::Events(body) => Content::Events(body),
                // All coded bytes are here; whether all decoded ones were sent is told already.
                _ if is_decoded => return,
                _ => Content::Empty,
            };
        }
        match content {
            // Nothing left to send: actix does not poll a body of a known length to its end.
            Content::Empty | Content::Announced(_) => closing.completed(),
            Content::Full(bytes) if bytes.is_empty() => closing.completed(),
            Content::Stream(body) if body.is_ended() => closing.completed(),
            Content::Stream(body) => return closing.abandoned(*body),
            Content::Events(body) => {
                closing.filtered(&body);
                if let Some(source) = body.into_source() {
                    return closing.abandoned(source);
                }
            }
            Content::Full(_) | Content::Scrubbed(_) => {}
        }
        drop(closing);
    }
}
