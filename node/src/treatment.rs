//! What becomes of the body of an answer: which filters and schemas can look into it, and how.

use http::{HeaderMap, StatusCode, header};
use proto::event_stream::Framing;
use proto::filter::Kind;
use proto::outcome::{Code, EarlyEnd, Extra};
use proto::proxy::ErrorBodies;
use proto::validation::{BodyValidator, ValidationMode};

use crate::flow::{Answer, Notes, Outbound};
use crate::snapshot::CompiledProxy;
use crate::validating::{self, Side};

/// What happens to the body of an answer while filters or validation apply.
pub enum Treatment {
    /// Untouched, as the proxy says for error bodies.
    Pass,
    /// There is none, so nothing can leak, and what the request did is not hidden by a 422.
    Empty,
    /// Replaced by a problem document.
    Blank,
    /// Read whole and held against the schema; what goes on is what came.
    Validate,
    /// Read whole and filtered.
    Filter {
        /// Whether it is an error body.
        error: bool,
    },
    /// Filtered one document after another while it streams.
    Events(Framing),
}

/// What happens where filters apply.
///
/// # Errors
/// It cannot be filtered, so it is withheld.
pub fn filtering(
    answer: &Answer,
    proxy: &CompiledProxy,
    coded: bool,
) -> Result<Treatment, EarlyEnd> {
    if !answer.status.is_success() {
        return Ok(match proxy.error_bodies {
            ErrorBodies::Pass => Treatment::Pass,
            ErrorBodies::Blank => Treatment::Blank,
            ErrorBodies::Filter => Treatment::Filter { error: true },
        });
    }
    if is_empty(answer) {
        return Ok(Treatment::Empty);
    }
    let withheld = |why: &str| {
        let detail = format!(
            "filters apply to this proxy and the target's answer is {why}; it is withheld so that \
             nothing leaks"
        );
        let status = Extra::UpstreamStatus(answer.status.as_u16());
        EarlyEnd::new(Code::FilterNotJson, detail).with(status)
    };
    // Paths are from the root of the whole; a part may even be JSON with a root of its own.
    if answer.status == StatusCode::PARTIAL_CONTENT {
        return Err(withheld("a part, although none was asked for"));
    }
    match proto::filter::applies_to(content_type(&answer.headers)) {
        Kind::Json => Ok(Treatment::Filter { error: false }),
        Kind::EventStream | Kind::Ndjson if coded => {
            Err(withheld("a stream of events in a content coding"))
        }
        Kind::EventStream => Ok(Treatment::Events(Framing::EventStream)),
        Kind::Ndjson => Ok(Treatment::Events(Framing::Ndjson)),
        Kind::Other => Err(withheld(
            "not JSON (`application/json`, `+json`, NDJSON or a stream of JSON events)",
        )),
    }
}

/// What happens where a schema is all that applies.
///
/// # Errors
/// It cannot be held against the schema, which is enforced.
pub fn validation(
    answer: &Answer,
    validator: &BodyValidator,
    proxy: &CompiledProxy,
    coded: bool,
    notes: &mut Notes,
) -> Result<Treatment, EarlyEnd> {
    if is_empty(answer) {
        return Ok(Treatment::Empty);
    }
    let mut without = |why: &str| {
        validating::without(validator, Side::Response, why, notes).map(|()| Treatment::Pass)
    };
    if answer.status == StatusCode::PARTIAL_CONTENT {
        return without("and the target answered with a part, although none was asked for");
    }
    match proto::filter::applies_to(content_type(&answer.headers)) {
        Kind::EventStream | Kind::Ndjson if coded => {
            without("and the target answered with a stream of events in a content coding")
        }
        Kind::EventStream => Ok(Treatment::Events(Framing::EventStream)),
        Kind::Ndjson => Ok(Treatment::Events(Framing::Ndjson)),
        Kind::Json | Kind::Other if validator.mode == ValidationMode::Report => {
            match &answer.body {
                // What is too large to be looked at need not be withheld for it.
                Outbound::Stream(body)
                    if body
                        .remaining()
                        .is_some_and(|length| length > proxy.body_buffer_bytes as u64) =>
                {
                    without("and this one is larger than `body_buffer_bytes`")
                }
                _ => Ok(Treatment::Validate),
            }
        }
        Kind::Json | Kind::Other => Ok(Treatment::Validate),
    }
}

/// Whether the answer is known to have no body.
fn is_empty(answer: &Answer) -> bool {
    match &answer.body {
        Outbound::Empty => true,
        Outbound::Full(bytes) => bytes.is_empty(),
        Outbound::Stream(body) => body.remaining() == Some(0),
        Outbound::Events(_) | Outbound::Scrubbed(_) => false,
    }
}

/// The media type of an answer, as written.
pub fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// Whether a body must be decoded before it can be read.
pub fn is_coded(codings: &str) -> bool {
    let mut codings = codings.split(',').map(str::trim);
    codings.any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
}
