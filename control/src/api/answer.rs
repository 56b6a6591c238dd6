//! What a handler answers with, and the one place where answers and refusals become HTTP.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use proto::id::{OrgId, RequestId};
use serde_json::Value;

use super::error::{Code, Refusal};
use super::precondition::etag;

/// The header by which writes tell their version and reads ask for one.
pub const VERSION_HEADER: HeaderName = HeaderName::from_static("requestrocket-version");
/// Names the regions that are missing in an answer that is sent as it comes, and why.
pub const PARTIAL_HEADER: HeaderName = HeaderName::from_static("requestrocket-partial");
const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("requestrocket-request-id");

/// A call that was carried out.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 200, 201, 204, 304, or 503 of a readiness probe.
    pub status: StatusCode,
    /// The version that last changed the object.
    pub etag: Option<u64>,
    /// Where the created object is.
    pub location: Option<String>,
    /// The version that the write made.
    pub version: Option<(OrgId, u64)>,
    /// Whether the write was carried out before, by a request of the same `Idempotency-Key` whose
    /// answer is not known here: a secret that was generated for this one is in force nowhere.
    pub replayed: bool,
    /// The regions that are missing in it, where the body cannot say so.
    pub partial: Option<String>,
    /// The body.
    pub content: Content,
}

/// The body of an answer.
#[derive(Clone, Debug)]
pub enum Content {
    /// None.
    Empty,
    /// JSON.
    Json(Value),
    /// Text of a media type.
    Text(&'static str, String),
    /// Bytes of a media type, sent as they come.
    Stream(&'static str, Pieces),
}

/// What a streamed answer is made of; it can be taken once.
#[derive(Clone)]
pub struct Pieces(Arc<Mutex<Option<PieceStream>>>);

type PieceStream = Pin<Box<dyn Stream<Item = Result<Bytes, Refusal>> + Send>>;

impl Pieces {
    /// Pieces that are made while they are sent.
    pub fn new(pieces: impl Stream<Item = Result<Bytes, Refusal>> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::pin(pieces)))))
    }

    fn take(&self) -> Option<PieceStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pieces")
    }
}

impl Content {
    /// How much it takes on the wire.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Json(value) => value.to_string().len(),
            Self::Text(_, text) => text.len(),
            // Only writes are kept, and none of them answers so.
            Self::Stream(..) => 0,
        }
    }
}

impl Answer {
    /// 200 with JSON.
    pub fn json(value: Value) -> Self {
        Self::with(StatusCode::OK, Content::Json(value))
    }

    /// 200 with pieces of a media type.
    pub fn stream(media_type: &'static str, pieces: Pieces) -> Self {
        Self::with(StatusCode::OK, Content::Stream(media_type, pieces))
    }

    /// 204.
    pub fn nothing() -> Self {
        Self::with(StatusCode::NO_CONTENT, Content::Empty)
    }

    /// 304: the caller has this version.
    pub fn not_modified(version: u64) -> Self {
        Self::with(StatusCode::NOT_MODIFIED, Content::Empty).etag(version)
    }

    /// An answer without headers of its own.
    pub fn with(status: StatusCode, content: Content) -> Self {
        Self {
            status,
            etag: None,
            location: None,
            version: None,
            replayed: false,
            partial: None,
            content,
        }
    }

    /// 201 with `Location`.
    pub fn created(mut self, location: String) -> Self {
        self.status = StatusCode::CREATED;
        self.location = Some(location);
        self
    }

    /// With an `ETag`.
    pub fn etag(mut self, version: u64) -> Self {
        self.etag = Some(version);
        self
    }

    /// With the regions that are missing in it, if any are.
    pub fn partial(mut self, missing: Option<String>) -> Self {
        self.partial = missing;
        self
    }

    /// With the version that the write made.
    pub fn version(mut self, org: OrgId, n: u64) -> Self {
        self.version = Some((org, n));
        self
    }
}

/// The HTTP answer. Nothing of this API may be stored by anybody or guessed at by a browser.
pub fn respond(result: Result<Answer, Refusal>, request_id: RequestId) -> HttpResponse {
    let response = match result {
        Ok(answer) => success(answer),
        Err(refusal) => failure(&refusal, request_id),
    };
    marked(response, request_id)
}

/// An answer with what every answer of this API has.
pub fn marked(mut response: HttpResponse, request_id: RequestId) -> HttpResponse {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if let Ok(id) = HeaderValue::from_str(request_id.text().as_str()) {
        headers.insert(REQUEST_ID_HEADER, id);
    }
    response
}

fn success(answer: Answer) -> HttpResponse {
    let mut builder = HttpResponse::build(answer.status);
    if let Some(version) = answer.etag {
        builder.insert_header((header::ETAG, etag(version)));
    }
    if let Some(location) = answer.location {
        builder.insert_header((header::LOCATION, location));
    }
    if let Some((org, n)) = answer.version {
        builder.insert_header((VERSION_HEADER, format!("{org}={n}")));
    }
    if let Some(missing) = answer.partial {
        builder.insert_header((PARTIAL_HEADER, missing));
    }
    match answer.content {
        Content::Empty => builder.finish(),
        Content::Json(value) => builder
            .content_type("application/json")
            .body(value.to_string()),
        Content::Text(media_type, text) => builder.content_type(media_type).body(text),
        Content::Stream(media_type, pieces) => match pieces.take() {
            Some(pieces) => builder
                .content_type(media_type)
                .streaming(pieces.map_err(broken)),
            None => builder.finish(),
        },
    }
}

/// An answer that has begun can only break off; the log says why.
fn broken(refusal: Refusal) -> std::io::Error {
    let detail = refusal.detail.as_str();
    tracing::error!(
        code = refusal.code.as_str(),
        "an answer broke off: {detail}"
    );
    std::io::Error::other(refusal.detail)
}

fn failure(refusal: &Refusal, request_id: RequestId) -> HttpResponse {
    let mut builder = HttpResponse::build(refusal.code.status());
    if refusal.code == Code::Unauthenticated {
        builder.insert_header((header::WWW_AUTHENTICATE, "Bearer realm=\"requestrocket\""));
    }
    if let Some(seconds) = refusal.retry_after_s {
        builder.insert_header((header::RETRY_AFTER, seconds.to_string()));
    }
    builder
        .content_type("application/problem+json")
        .body(refusal.document(request_id).to_string())
}
