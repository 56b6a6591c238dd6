//! Why a call was not carried out, and the one place where that becomes an HTTP answer.
//!
//! Every refusal has a [`Code`] that programs can rely on; code, status and title stand in one
//! table. The body is problem details for HTTP APIs (RFC 9457) with `code`, `request_id` and
//! `errors`, one entry per fault with its JSON pointer.

use actix_web::http::StatusCode;
use proto::id::RequestId;
use proto::outcome::ERROR_PAGES;
use proto::problem::Problem;
use serde_json::{Map, Value, json};

/// What went wrong, in a word that does not change between releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The body is not JSON.
    MalformedJson,
    /// A query parameter or header makes no sense.
    InvalidParameter,
    /// No token, or one that is unknown, expired or revoked.
    Unauthenticated,
    /// The token's role does not allow it.
    Forbidden,
    /// Nothing there that this token may know of.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The object is used by others, or a unique name is taken.
    Conflict,
    /// The object changed since it was read.
    PreconditionFailed,
    /// The body did not come in time.
    RequestTimeout,
    /// The body is larger than this API reads.
    BodyTooLarge,
    /// The body is not declared as JSON.
    UnsupportedMediaType,
    /// The `Host` is not one that this control answers.
    HostNotAllowed,
    /// The document is JSON and breaks rules.
    ValidationFailed,
    /// The `Idempotency-Key` was used with another request.
    IdempotencyKeyReused,
    /// The first request with this `Idempotency-Key` has not ended.
    IdempotencyKeyInUse,
    /// Too many wrong tokens from this address.
    TooManyAttempts,
    /// A defect of ours.
    Internal,
    /// The configuration store cannot be reached.
    StoreUnavailable,
    /// The store of records cannot be reached.
    RecordsUnavailable,
    /// The configuration store is full.
    StoreFull,
    /// The configuration store shows an older history than was seen before.
    StoreRegressed,
    /// The write was sent and its outcome cannot be learnt.
    OutcomeUnknown,
    /// The version that a read presents has not arrived here.
    VersionNotHere,
    /// The invitation of a region was used already.
    InvitationUsed,
    /// The invitation of a region is over.
    InvitationExpired,
    /// The region where versions are made cannot be reached.
    HomeUnavailable,
    /// The region where versions are made has just changed, or is changing.
    HomeMoved,
    /// The home of the organisation is not that of `system`, where this is carried out.
    HomeElsewhere,
    /// The copy of operators' tokens in this region is too old to change something by it.
    AuthStale,
    /// What some regions keep alone is not in this one, which has become home.
    SetUnavailable,
    /// More is asked of this process than it can do now.
    Overloaded,
    /// No node took what only a node can do, or none was done in time.
    NoNode,
}

impl Code {
    /// Every code, for the documentation and for tests.
    pub const ALL: &[Self] = &[
        Self::MalformedJson,
        Self::InvalidParameter,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::PreconditionFailed,
        Self::RequestTimeout,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::HostNotAllowed,
        Self::ValidationFailed,
        Self::IdempotencyKeyReused,
        Self::IdempotencyKeyInUse,
        Self::TooManyAttempts,
        Self::Internal,
        Self::StoreUnavailable,
        Self::RecordsUnavailable,
        Self::StoreFull,
        Self::StoreRegressed,
        Self::OutcomeUnknown,
        Self::VersionNotHere,
        Self::InvitationUsed,
        Self::InvitationExpired,
        Self::HomeUnavailable,
        Self::HomeMoved,
        Self::HomeElsewhere,
        Self::AuthStale,
        Self::SetUnavailable,
        Self::Overloaded,
        Self::NoNode,
    ];

    /// The code as it stands in answers, its status, and its title.
    pub fn facts(self) -> (&'static str, StatusCode, &'static str) {
        let (code, status, title) = self.row();
        // Every row holds a status of HTTP, which a test reads.
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, status, title)
    }

    fn row(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::MalformedJson => ("malformed-json", 400, "The body is not JSON"),
            Self::InvalidParameter => ("invalid-parameter", 400, "A parameter is not valid"),
            Self::Unauthenticated => ("unauthenticated", 401, "A valid API token is needed"),
            Self::Forbidden => ("forbidden", 403, "The token's role does not allow this"),
            Self::NotFound => ("not-found", 404, "Not found"),
            Self::MethodNotAllowed => ("method-not-allowed", 405, "The method does not exist here"),
            Self::Conflict => ("conflict", 409, "Other objects stand against it"),
            Self::PreconditionFailed => ("precondition-failed", 412, "The object has changed"),
            Self::RequestTimeout => ("request-timeout", 408, "The body did not come in time"),
            Self::BodyTooLarge => ("body-too-large", 413, "The body is too large"),
            Self::UnsupportedMediaType => ("unsupported-media-type", 415, "The body must be JSON"),
            Self::HostNotAllowed => ("host-not-allowed", 421, "This host is not served here"),
            Self::ValidationFailed => ("validation-failed", 422, "The document breaks rules"),
            Self::IdempotencyKeyReused => (
                "idempotency-key-reused",
                422,
                "The idempotency key belongs to another request",
            ),
            Self::IdempotencyKeyInUse => (
                "idempotency-key-in-use",
                409,
                "The first request with this key is still running",
            ),
            Self::TooManyAttempts => ("too-many-attempts", 429, "Too many wrong tokens"),
            Self::Internal => ("internal-error", 500, "Something broke here"),
            Self::StoreUnavailable => (
                "store-unavailable",
                503,
                "The configuration store cannot be reached",
            ),
            Self::RecordsUnavailable => (
                "records-unavailable",
                503,
                "The store of records cannot be reached",
            ),
            Self::StoreFull => ("store-full", 503, "The configuration store is full"),
            Self::StoreRegressed => (
                "store-regressed",
                503,
                "The configuration store was restored or wiped",
            ),
            Self::OutcomeUnknown => (
                "outcome-unknown",
                503,
                "The outcome of the write is unknown",
            ),
            Self::VersionNotHere => ("version-not-here", 503, "The version has not arrived here"),
            Self::InvitationUsed => ("invitation-used", 409, "The invitation was used already"),
            Self::InvitationExpired => ("invitation-expired", 410, "The invitation is over"),
            Self::HomeUnavailable => ("home-unavailable", 503, "The home region cannot be reached"),
            Self::HomeMoved => ("home-moved", 503, "The home region has changed"),
            Self::HomeElsewhere => ("home-elsewhere", 409, "Its home is another region"),
            Self::AuthStale => (
                "auth-stale",
                503,
                "The copy of operators' tokens is too old",
            ),
            Self::SetUnavailable => (
                "set-unavailable",
                503,
                "What some regions keep alone is not here",
            ),
            Self::Overloaded => ("overloaded", 503, "Too much is asked at once"),
            Self::NoNode => ("no-node", 504, "No node has answered"),
        }
    }

    /// The code as it stands in answers.
    pub fn as_str(self) -> &'static str {
        self.facts().0
    }

    /// The status that it answers with.
    pub fn status(self) -> StatusCode {
        self.facts().1
    }
}

/// A call that is not carried out, with everything its author needs to mend it.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// What went wrong.
    pub code: Code,
    /// In words, with the next step.
    pub detail: String,
    /// The faults of the submitted document, if that is what is wrong.
    pub errors: Vec<Problem>,
    /// Ids of the objects that stand against it.
    pub used_by: Vec<String>,
    /// After how many seconds trying again can help.
    pub retry_after_s: Option<u64>,
    /// Whether it may have been carried out all the same, and the store cannot tell: repeated with
    /// its `Idempotency-Key` it is answered the same, and not carried out again.
    pub may_be_done: bool,
}

impl Refusal {
    /// A refusal with nothing but a code and words.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            used_by: Vec::new(),
            retry_after_s: None,
            may_be_done: false,
        }
    }

    /// Nothing there: the same bytes whether it never was, is gone, or is another tenant's.
    pub fn not_found() -> Self {
        Self::new(
            Code::NotFound,
            "nothing is here that this token may see; check the id and the organisation",
        )
    }

    /// The caller's role is too low.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(Code::Forbidden, detail)
    }

    /// A document with these faults.
    pub fn invalid(errors: Vec<Problem>) -> Self {
        let detail = match errors.as_slice() {
            [one] if one.pointer.is_empty() => one.detail.clone(),
            [one] => format!("{} {}", one.pointer, one.detail),
            many => format!("{} faults, listed in `errors`", many.len()),
        };
        Self {
            errors,
            ..Self::new(Code::ValidationFailed, detail)
        }
    }

    /// A query parameter that makes no sense.
    pub fn parameter(name: &str, detail: impl std::fmt::Display) -> Self {
        Self::new(
            Code::InvalidParameter,
            format!("parameter `{name}` {detail}"),
        )
    }

    /// The refusal that says when to come back.
    pub fn retry_after_s(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The refusal of what may have been carried out all the same.
    pub fn may_be_done(mut self) -> Self {
        self.may_be_done = true;
        self
    }

    /// The problem document.
    pub fn document(&self, request_id: RequestId) -> Value {
        let (code, status, title) = self.code.facts();
        let mut document = Map::new();
        document.insert("type".into(), json!(type_uri(code)));
        document.insert("title".into(), json!(title));
        document.insert("status".into(), json!(status.as_u16()));
        document.insert("detail".into(), json!(self.detail));
        document.insert("code".into(), json!(code));
        // Left out where one byte more than for an unknown id would tell two cases apart.
        if self.code != Code::NotFound {
            document.insert("request_id".into(), json!(request_id));
        }
        if !self.errors.is_empty() {
            document.insert("errors".into(), json!(self.errors));
        }
        if !self.used_by.is_empty() {
            document.insert("used_by".into(), json!(self.used_by));
        }
        Value::Object(document)
    }
}

/// What is told where a task of ours ended without an answer. What it panicked with is for the log:
/// it may quote what somebody sent.
pub fn broke_off(what: &str, error: &tokio::task::JoinError) -> Refusal {
    tracing::error!("{what} broke off: {error}");
    let detail = format!("{what} broke off; the log of this control plane says why");
    Refusal::new(Code::Internal, detail)
}

/// The `type` of a problem: the page that explains the code.
fn type_uri(code: &str) -> String {
    format!("{ERROR_PAGES}{code}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_errors_with_a_page() {
        let mut seen = HashSet::new();
        for code in Code::ALL {
            let (text, status, title) = code.facts();
            assert_eq!(status.as_u16(), code.row().1, "{text}");
            assert!(seen.insert(text), "{text} twice");
            assert!(
                status.is_client_error() || status.is_server_error(),
                "{text}"
            );
            assert!(
                text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{text}"
            );
            assert!(!title.is_empty());
            let page = format!("../docs/errors/{text}.md");
            let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
            assert!(page.exists(), "{text} has no page");
        }
    }

    #[test]
    fn a_document_names_every_fault() {
        let refusal = Refusal::invalid(vec![
            Problem::new("/a", "type", "must be a string"),
            Problem::new("/b", "required", "is missing"),
        ]);
        let document = refusal.document(RequestId::from_bits(1));
        assert_eq!(document["status"], 422);
        assert_eq!(document["code"], "validation-failed");
        assert_eq!(document["errors"][1]["pointer"], "/b");
    }
}
