//! How a request ends: one stable code per early end, with its status, title and advice.
//!
//! Every code has a page in `docs/errors`. To add one: a variant here, its row in
//! [`Code::facts`], its page; `tests/tidy.rs` fails when the page is missing.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::problem::Problem;
use crate::record::MeterRefusal;
use crate::rule::Denial;

/// Where the pages of the codes are; `type` of a problem document is this and the code.
pub const ERROR_PAGES: &str = "https://docs.requestrocket.dev/errors/";

/// The code of a request's end, as in `requestrocket-proxy-code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Code {
    /// The target answered; what the caller got is its answer.
    AccessGranted,
    /// No valid credential, or a rule denies.
    AccessDenied,
    /// The proxy is switched off.
    ProxyInactive,
    /// The request is not one that can be understood in exactly one way.
    MalformedRequest,
    /// The method is not served.
    MethodNotAllowed,
    /// Upgrades are not allowed on this proxy.
    UpgradeDenied,
    /// A meter is empty.
    RateLimited,
    /// A meter is empty that answers so.
    BudgetExhausted,
    /// The meter's state cannot be reached and the meter fails closed.
    LimitUnavailable,
    /// The body is larger than what is needed whole may be.
    RequestTooLarge,
    /// The caller stopped sending its body.
    RequestTimeout,
    /// The gateway has no room.
    Overloaded,
    /// The target credential cannot be used for this destination, or at all.
    CredentialUnavailable,
    /// A secret may have been revoked without this node having heard of it.
    FactsStale,
    /// The target's address may not be dialled.
    UpstreamBlocked,
    /// No connection, or it broke before an answer.
    UpstreamUnreachable,
    /// TLS with the target failed.
    UpstreamTls,
    /// The target did not answer in time.
    UpstreamTimeout,
    /// The target's circuit breaker is open.
    CircuitOpen,
    /// The target's answer is not HTTP.
    UpstreamInvalid,
    /// The answer is larger than what is needed whole may be.
    ResponseTooLarge,
    /// Filters apply and the answer is not JSON.
    FilterNotJson,
    /// The body breaks the proxy's schema.
    ValidationFailed,
    /// The answer names a third host and the proxy refuses that.
    RedirectBlocked,
    /// No gateway of the regions that serve the proxy can be reached.
    RegionUnavailable,
    /// The proxy is served in another region, under another URL.
    RegionRedirect,
    /// The proxy is not served in this region.
    WrongRegion,
    /// The caller went away.
    ClientAborted,
    /// The gateway ended before the target's answer did.
    GatewayStopped,
    /// A defect of the gateway.
    InternalError,
}

/// What is fixed for a code.
#[derive(Clone, Copy, Debug)]
pub struct CodeFacts {
    /// Its text.
    pub code: &'static str,
    /// The status it is answered with, where the case does not choose another.
    pub status: u16,
    /// Short and the same for every occurrence (RFC 9457 §3.1.3).
    pub title: &'static str,
    /// Whether the same request may succeed when sent again within a minute.
    pub retry_helps: bool,
}

const fn facts(
    code: &'static str,
    status: u16,
    title: &'static str,
    retry_helps: bool,
) -> CodeFacts {
    CodeFacts {
        code,
        status,
        title,
        retry_helps,
    }
}

impl Code {
    /// Every code, for registries and tests.
    pub const ALL: &'static [Self] = &[
        Self::AccessGranted,
        Self::AccessDenied,
        Self::ProxyInactive,
        Self::MalformedRequest,
        Self::MethodNotAllowed,
        Self::UpgradeDenied,
        Self::RateLimited,
        Self::BudgetExhausted,
        Self::LimitUnavailable,
        Self::RequestTooLarge,
        Self::RequestTimeout,
        Self::Overloaded,
        Self::CredentialUnavailable,
        Self::FactsStale,
        Self::UpstreamBlocked,
        Self::UpstreamUnreachable,
        Self::UpstreamTls,
        Self::UpstreamTimeout,
        Self::CircuitOpen,
        Self::UpstreamInvalid,
        Self::ResponseTooLarge,
        Self::FilterNotJson,
        Self::ValidationFailed,
        Self::RedirectBlocked,
        Self::RegionUnavailable,
        Self::RegionRedirect,
        Self::WrongRegion,
        Self::ClientAborted,
        Self::GatewayStopped,
        Self::InternalError,
    ];

    /// What is fixed for this code.
    pub const fn facts(self) -> CodeFacts {
        match self {
            Self::AccessGranted => facts("proxy-access-granted", 200, "Granted", true),
            Self::AccessDenied => facts("proxy-access-denied", 400, "Access denied", true),
            Self::ProxyInactive => facts("proxy-inactive", 403, "Proxy inactive", true),
            Self::MalformedRequest => facts("malformed-request", 400, "Malformed request", true),
            Self::MethodNotAllowed => facts("method-not-allowed", 405, "Method not allowed", true),
            Self::UpgradeDenied => facts("upgrade-denied", 400, "Upgrade denied", true),
            Self::RateLimited => facts("rate-limited", 429, "Rate limited", true),
            Self::BudgetExhausted => facts("budget-exhausted", 402, "Budget exhausted", false),
            Self::LimitUnavailable => facts("limit-unavailable", 503, "Limit unavailable", true),
            Self::RequestTooLarge => facts("request-too-large", 413, "Request too large", true),
            Self::RequestTimeout => facts("request-timeout", 408, "Request timeout", true),
            Self::Overloaded => facts("overloaded", 503, "Overloaded", true),
            Self::CredentialUnavailable => facts(
                "credential-unavailable",
                502,
                "Credential unavailable",
                false,
            ),
            Self::FactsStale => facts("facts-stale", 503, "Facts stale", true),
            Self::UpstreamBlocked => facts("upstream-blocked", 502, "Upstream blocked", false),
            Self::UpstreamUnreachable => {
                facts("upstream-unreachable", 502, "Upstream unreachable", true)
            }
            Self::UpstreamTls => facts("upstream-tls", 502, "Upstream TLS failure", false),
            Self::UpstreamTimeout => facts("upstream-timeout", 504, "Upstream timeout", true),
            Self::CircuitOpen => facts("circuit-open", 503, "Circuit open", true),
            Self::UpstreamInvalid => facts("upstream-invalid", 502, "Upstream invalid", true),
            Self::ResponseTooLarge => facts("response-too-large", 502, "Response too large", false),
            Self::FilterNotJson => facts("filter-not-json", 422, "Body not filterable", false),
            Self::ValidationFailed => facts("validation-failed", 422, "Validation failed", false),
            Self::RedirectBlocked => facts("redirect-blocked", 502, "Redirect blocked", false),
            Self::RegionUnavailable => facts("region-unavailable", 503, "Region unavailable", true),
            Self::RegionRedirect => facts("region-redirect", 307, "Served elsewhere", true),
            Self::WrongRegion => facts("wrong-region", 421, "Not served here", false),
            Self::ClientAborted => facts("client-aborted", 499, "Client aborted", true),
            Self::GatewayStopped => facts("gateway-stopped", 503, "Gateway stopped", true),
            Self::InternalError => facts("internal-error", 500, "Internal error", true),
        }
    }

    /// Its text.
    pub const fn as_str(self) -> &'static str {
        self.facts().code
    }

    /// The code with this text.
    pub fn named(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request's early end: what the caller is told instead of a target's answer.
#[derive(Clone, Debug)]
pub struct EarlyEnd {
    /// Why.
    pub code: Code,
    /// The status, normally [`CodeFacts::status`].
    pub status: u16,
    /// What happened and what to do next; never a secret, never an inner address.
    pub detail: Cow<'static, str>,
    /// Members of the case.
    pub extra: Extra,
    /// Response header fields of the case, such as `Retry-After`.
    pub headers: Vec<(&'static str, String)>,
    /// Whether the caller should try again; `None` says nothing.
    pub should_retry: Option<bool>,
}

/// Further members of the problem document, by case.
#[derive(Clone, Debug, Default)]
pub enum Extra {
    /// None.
    #[default]
    None,
    /// Every scope that denied, with its matching rules.
    Denials(Vec<Denial>),
    /// The meter that refused.
    Meters(Box<RefusingMeter>),
    /// What is wrong with the request.
    Errors(Vec<Problem>),
    /// The status of the target's answer that is not shown.
    UpstreamStatus(u16),
}

/// A meter that refuses a request.
#[derive(Clone, Debug)]
pub struct RefusingMeter {
    /// Its limits, as the caller sees them.
    pub limits: Vec<MeterState>,
    /// Which it is and why it refuses, as records have it.
    pub refusal: MeterRefusal,
}

/// A meter as a refused caller sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeterState {
    /// Id of the meter; of the proxy for its own `limits`.
    pub id: String,
    /// Its name in `RateLimit` headers: `minute`, or `orders-minute` of a meter named `orders`.
    pub name: String,
    /// The window's word: `minute`.
    pub window: String,
    /// Permissions per window.
    pub limit: u64,
    /// Length of the window in seconds.
    pub window_s: u64,
    /// Permissions left.
    pub remaining: u64,
    /// Seconds until the next one.
    pub retry_after_s: u64,
}

impl EarlyEnd {
    /// An end with the code's own status.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let facts = code.facts();
        Self {
            code,
            status: facts.status,
            detail: detail.into(),
            extra: Extra::None,
            headers: Vec::new(),
            should_retry: (!facts.retry_helps).then_some(false),
        }
    }

    /// The same end with another status.
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// The same end with members of its case.
    pub fn with(mut self, extra: Extra) -> Self {
        self.extra = extra;
        self
    }

    /// The same end with a response header field.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The problem document (RFC 9457) for the caller.
    pub fn document(&self, request_id: &str) -> serde_json::Value {
        let facts = self.code.facts();
        let mut document = serde_json::json!({
            "type": format!("{ERROR_PAGES}{}", facts.code),
            "title": facts.title,
            "status": self.status,
            "detail": self.detail,
            "code": facts.code,
            "request_id": request_id,
        });
        match &self.extra {
            Extra::None => {}
            Extra::Denials(denials) => document["denials"] = serde_json::json!(denials),
            Extra::Meters(meter) => document["meters"] = serde_json::json!(meter.limits),
            Extra::Errors(errors) => document["errors"] = serde_json::json!(errors),
            Extra::UpstreamStatus(status) => document["upstream_status"] = (*status).into(),
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_errors() {
        for (at, code) in Code::ALL.iter().enumerate() {
            let facts = code.facts();
            assert!(
                Code::ALL[..at]
                    .iter()
                    .all(|other| other.as_str() != facts.code),
                "{code}"
            );
            let least = match code {
                Code::AccessGranted => 200,
                Code::RegionRedirect => 307,
                _ => 400,
            };
            assert!(facts.status >= least, "{code}");
        }
    }

    #[test]
    fn a_document_says_what_and_why() {
        let end = EarlyEnd::new(Code::UpstreamTls, "certificate expired").header("a", "b");
        let document = end.document("req_1");
        assert_eq!(document["code"], "upstream-tls");
        assert_eq!(document["status"], 502);
        assert_eq!(document["request_id"], "req_1");
        assert_eq!(end.should_retry, Some(false));
    }
}
