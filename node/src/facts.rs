//! What rules and meters judge of a request: its paths, its query, its fields, and what is known
//! of its body.

use bytes::Bytes;
use http::{HeaderMap, header};
use proto::body_view::{BodyLimits, BodyView, Unreadable};
use proto::outcome::{Code, EarlyEnd};
use proto::path::PathReading;
use proto::rule::{self, BodyFacts, Facts};

use crate::request::Request;
use crate::snapshot::CompiledProxy;

/// What was read of the body.
pub enum Read {
    /// Nothing yet.
    Nothing,
    /// All of it.
    Whole(Bytes),
    /// It is larger than what is buffered.
    TooLarge,
}

/// Hands the facts of a request to `judge`.
///
/// # Errors
/// 400 for a request that cannot be read in exactly the ways that are judged.
pub fn with_facts<T>(
    request: &Request,
    proxy: &CompiledProxy,
    read: &Read,
    judge: impl FnOnce(&Facts<'_>) -> T,
) -> Result<T, EarlyEnd> {
    let rest = request.rest();
    let path = PathReading::parse(&rest, proxy.target.path)
        .map_err(|refused| malformed(refused.to_string()))?;
    let overrides = path_overrides(&request.headers, proxy)?;
    let query = request.query.clone().unwrap_or_default();
    let view = match read {
        Read::Nothing => None,
        Read::TooLarge => Some(Err(Unreadable::TooLarge)),
        Read::Whole(bytes) => Some(view(&request.headers, bytes, proxy.body_buffer_bytes)),
    };
    let method = request.method.as_str().as_bytes();
    let facts = Facts::new(method, &path, &query, &request.headers, request.peer.ip())
        .with_path_overrides(&overrides)
        .with_body(BodyFacts::of(view.as_ref()));
    Ok(judge(&facts))
}

/// The paths that a target which gets such headers could route by.
fn path_overrides<'h>(
    headers: &'h HeaderMap,
    proxy: &CompiledProxy,
) -> Result<Vec<PathReading<'h>>, EarlyEnd> {
    let pass = &proxy.request_fields.pass;
    rule::path_overrides(headers, |name| pass.contains(name), proxy.target.path)
        .map_err(|(name, refused)| malformed(format!("{name}: {refused}")))
}

fn malformed(detail: String) -> EarlyEnd {
    EarlyEnd::new(Code::MalformedRequest, detail)
}

fn view(headers: &HeaderMap, bytes: &Bytes, bytes_max: usize) -> Result<BodyView, Unreadable> {
    let joined = |name| {
        let values: Vec<&[u8]> = headers
            .get_all(name)
            .iter()
            .map(http::HeaderValue::as_bytes)
            .collect();
        (!values.is_empty()).then(|| values.join(&b","[..]))
    };
    BodyView::read(
        joined(header::CONTENT_TYPE).as_deref(),
        joined(header::CONTENT_ENCODING).as_deref(),
        bytes,
        &BodyLimits::new(bytes_max),
    )
}
