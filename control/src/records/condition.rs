//! What records can be asked for besides proxy, credential, status, code and time: every field by
//! its name, with how its value is written. Pure.

use ipnet::IpNet;
use proto::id::{CredentialId, FilterId, RuleId};
use proto::record::{AttemptFailure, AuthFailure, KeyHint, ScrubState, Stage};
use proto::wire::StoredRecord;
use serde::de::DeserializeOwned;

use super::query::StatusFilter;

/// One thing that must hold of a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition(pub(super) Kind);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    ProxyCredential(u128),
    TargetCredential(u128),
    Generation(String),
    Version(u64),
    Node(String),
    Region(String),
    Method(String),
    Path(String),
    Query(String),
    UpstreamStatus(StatusFilter),
    AuthFailure(AuthFailure),
    KeyPlace(String),
    KeyHint(KeyHint),
    DurationUs(Bounds),
    RequestBytes(Bounds),
    ResponseBytes(Bounds),
    Attempts(Bounds),
    Failure(AttemptFailure),
    LimitedBy(String),
    Meter(String),
    Rule(RuleId),
    Filter(FilterId),
    Source(IpNet),
    UserAgent(String),
    UpstreamId(String),
    TraceId(String),
    LeftGateway(String),
    ClientAborted(bool),
    Scrubbed(bool),
    Scrub(ScrubState),
    EndedBy(Stage),
}

/// A range of numbers, ends included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounds(pub u64, pub u64);

/// A field that can be asked for.
pub struct Field {
    /// The parameter's name.
    pub name: &'static str,
    /// What it asks for.
    pub meaning: &'static str,
    /// What its value must be, after "must be".
    pub expected: &'static str,
    parse: fn(&str) -> Option<Kind>,
}

impl Field {
    /// The condition that a value of this field is.
    pub fn condition(&self, text: &str) -> Option<Condition> {
        (self.parse)(text).map(Condition)
    }
}

const fn field(
    name: &'static str,
    meaning: &'static str,
    expected: &'static str,
    parse: fn(&str) -> Option<Kind>,
) -> Field {
    Field {
        name,
        meaning,
        expected,
        parse,
    }
}

const CREDENTIAL: &str = "the id of a credential, `crd_…`";
const NUMBER: &str = "a whole number";
const BOOLEAN: &str = "`true` or `false`";
const TEXT: &str = "a text";

/// Every field, by name.
pub const FIELDS: &[Field] = &[
    field(
        "proxy_credential",
        "Id of the credential that the caller proved",
        CREDENTIAL,
        |t| {
            Some(Kind::ProxyCredential(
                t.parse::<CredentialId>().ok()?.bits(),
            ))
        },
    ),
    field(
        "target_credential",
        "Id of the credential that was injected",
        CREDENTIAL,
        |t| {
            Some(Kind::TargetCredential(
                t.parse::<CredentialId>().ok()?.bits(),
            ))
        },
    ),
    field(
        "generation",
        "Generation of the secret on either side, such as `1.local.7`",
        TEXT,
        |t| Some(Kind::Generation(t.into())),
    ),
    field(
        "version",
        "Number of the configuration version that decided",
        NUMBER,
        |t| Some(Kind::Version(t.parse().ok()?)),
    ),
    field("node", "Name of the node", TEXT, |t| {
        Some(Kind::Node(t.into()))
    }),
    field("region", "Region of the node", TEXT, |t| {
        Some(Kind::Region(t.into()))
    }),
    field("method", "Method of the request", TEXT, |t| {
        Some(Kind::Method(t.to_ascii_uppercase()))
    }),
    field(
        "path",
        "Path behind the proxy; `*` stands for anything, as in `/v1/*`",
        TEXT,
        |t| Some(Kind::Path(t.into())),
    ),
    field(
        "query",
        "Name of a query parameter that is there",
        TEXT,
        |t| Some(Kind::Query(t.into())),
    ),
    field(
        "upstream_status",
        "The target's status, such as `503`, or a class such as `5xx`",
        "a status such as 429, or a class such as 4xx",
        |t| Some(Kind::UpstreamStatus(t.parse().ok()?)),
    ),
    field(
        "auth_failure",
        "Why the caller was answered 401, such as `wrong-key`",
        "a reason such as `wrong-key`",
        |t| word(t).map(Kind::AuthFailure),
    ),
    field(
        "key_place",
        "Where the caller's key stood: a header's name, or `query`",
        TEXT,
        |t| Some(Kind::KeyPlace(t.to_ascii_lowercase())),
    ),
    field(
        "key_hint",
        "The last four characters of the issued key that was presented, right or not",
        "the four characters that a credential's `secret.hint` shows",
        |t| t.parse().ok().map(Kind::KeyHint),
    ),
    field(
        "duration_ms_min",
        "Took at least so many milliseconds",
        NUMBER,
        |t| Some(Kind::DurationUs(Bounds(micros(t)?, u64::MAX))),
    ),
    field(
        "duration_ms_max",
        "Took at most so many milliseconds",
        NUMBER,
        |t| Some(Kind::DurationUs(Bounds(0, micros(t)?))),
    ),
    field(
        "request_bytes_min",
        "Body bytes received, at least",
        NUMBER,
        |t| Some(Kind::RequestBytes(Bounds(t.parse().ok()?, u64::MAX))),
    ),
    field(
        "response_bytes_min",
        "Body bytes sent, at least",
        NUMBER,
        |t| Some(Kind::ResponseBytes(Bounds(t.parse().ok()?, u64::MAX))),
    ),
    field(
        "attempts_min",
        "Sent to the target at least so often",
        NUMBER,
        |t| Some(Kind::Attempts(Bounds(t.parse().ok()?, u64::MAX))),
    ),
    field(
        "failure",
        "Why an attempt got no answer, such as `first-byte-timeout`",
        "a reason such as `connect` or `first-byte-timeout`",
        |t| word(t).map(Kind::Failure),
    ),
    field(
        "limited_by",
        "Window of a limit that refused it, such as `minute`",
        TEXT,
        |t| Some(Kind::LimitedBy(t.into())),
    ),
    field(
        "meter",
        "Id of a meter that refused it; of the proxy for its own `limits`",
        TEXT,
        |t| Some(Kind::Meter(t.into())),
    ),
    field(
        "rule",
        "Id of a rule that denied it, or would have in shadow mode",
        "the id of a rule, `rul_…`",
        |t| Some(Kind::Rule(t.parse().ok()?)),
    ),
    field(
        "filter",
        "Id of a filter that changed the answer",
        "the id of a filter, `flt_…`",
        |t| Some(Kind::Filter(t.parse().ok()?)),
    ),
    field(
        "source",
        "The caller's address, or a network in which it lies",
        "an address or a network such as 192.0.2.0/24",
        |t| network(t).map(Kind::Source),
    ),
    field(
        "user_agent",
        "A part of the caller's `User-Agent`, in any case",
        TEXT,
        |t| Some(Kind::UserAgent(t.to_lowercase())),
    ),
    field(
        "upstream_id",
        "The target's own id for the call",
        TEXT,
        |t| Some(Kind::UpstreamId(t.into())),
    ),
    field("trace_id", "The W3C trace id", "32 hex digits", |t| {
        (t.len() == 32).then(|| Kind::TraceId(t.to_ascii_lowercase()))
    }),
    field(
        "left_gateway",
        "Host that an answer sent the caller to",
        TEXT,
        |t| Some(Kind::LeftGateway(t.into())),
    ),
    field(
        "client_aborted",
        "Whether the caller left early",
        BOOLEAN,
        |t| Some(Kind::ClientAborted(t.parse().ok()?)),
    ),
    field(
        "scrubbed",
        "Whether an injected secret was overwritten",
        BOOLEAN,
        |t| Some(Kind::Scrubbed(t.parse().ok()?)),
    ),
    field(
        "scrub",
        "Whether the answer was searched for the injected secret",
        "`none`, `searched` or `skipped`",
        |t| word(t).map(Kind::Scrub),
    ),
    field(
        "ended_by",
        "The stage in which it ended early, such as `authorize`; `respond` where the answer broke \
         off or the caller left",
        "a stage such as `authorize`",
        |t| word(t).map(Kind::EndedBy),
    ),
];

/// A value of an enumeration, by its name in JSON.
fn word<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
}

fn micros(text: &str) -> Option<u64> {
    text.parse::<u64>().ok()?.checked_mul(1_000)
}

/// An address or a network, as records and searches write it.
pub(super) fn network(text: &str) -> Option<IpNet> {
    text.parse()
        .ok()
        .or_else(|| Some(IpNet::from(text.parse::<std::net::IpAddr>().ok()?)))
}

impl Condition {
    /// Whether it holds of a record.
    pub(super) fn holds(&self, record: &StoredRecord<'_>) -> bool {
        let is = |value: Option<&str>, wanted: &str| value == Some(wanted);
        match &self.0 {
            Kind::ProxyCredential(id) => record.proxy_credential_id == Some(*id),
            Kind::TargetCredential(id) => record.target_credential_id == Some(*id),
            Kind::Generation(text) => {
                is(record.proxy_credential_generation, text)
                    || is(record.target_credential_generation, text)
            }
            Kind::Version(n) => record.config_version == *n,
            Kind::Node(text) => record.node == text,
            Kind::Region(text) => record.region == text,
            Kind::Method(text) => record.method == text,
            Kind::Path(pattern) => fits(pattern, record.path),
            Kind::Query(name) => record.query.iter().any(|field| field.name == *name),
            Kind::UpstreamStatus(status) => status.holds(record.upstream_status),
            Kind::AuthFailure(reason) => record.auth_failure == Some(*reason),
            Kind::KeyPlace(wanted) => record.presented.is_some_and(|(place, _)| place == wanted),
            Kind::KeyHint(wanted) => record.presented.and_then(|(_, hint)| hint) == Some(*wanted),
            Kind::DurationUs(bounds) => bounds.hold(record.total_us),
            Kind::RequestBytes(bounds) => bounds.hold(record.request_bytes),
            Kind::ResponseBytes(bounds) => bounds.hold(record.response_bytes),
            Kind::Attempts(bounds) => bounds.hold(record.attempts.into()),
            Kind::Failure(reason) => record.sends.iter().any(|s| s.failure == Some(*reason)),
            Kind::LimitedBy(window) => record.limited_by.iter().any(|name| name == window),
            Kind::Meter(id) => record.refused_by.iter().any(|one| one.meter == *id),
            Kind::Rule(id) => {
                let mut denials = record.denials.iter();
                denials.any(|denial| denial.rule_ids.contains(id))
                    || record.shadow_rule_ids.contains(id)
            }
            Kind::Filter(id) => record.filter_ids.contains(id),
            Kind::Source(network) => record
                .source_address
                .is_some_and(|text| within(text, network)),
            Kind::UserAgent(part) => record
                .user_agent
                .is_some_and(|agent| agent.to_lowercase().contains(part)),
            Kind::UpstreamId(text) => record.upstream_ids.iter().any(|id| id.value == *text),
            Kind::TraceId(text) => is(record.trace_id, text),
            Kind::LeftGateway(host) => is(record.left_gateway, host),
            Kind::ClientAborted(wanted) => record.client_aborted == *wanted,
            Kind::Scrubbed(wanted) => (record.scrubbed > 0) == *wanted,
            Kind::Scrub(state) => record.scrub == *state,
            Kind::EndedBy(stage) => record.ended_by() == Some(*stage),
        }
    }
}

impl Bounds {
    fn hold(self, number: u64) -> bool {
        (self.0..=self.1).contains(&number)
    }
}

/// Records may hold a network instead of an address: see `record.source` of a proxy.
fn within(recorded: &str, wanted: &IpNet) -> bool {
    network(recorded).is_some_and(|recorded| wanted.contains(&recorded))
}

/// Whether a path fits a pattern in which `*` stands for anything. Linear in the path for each
/// part between two stars.
fn fits(pattern: &str, path: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == path;
    };
    let Some(mut left) = path.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_paths() {
        for (pattern, path, fit) in [
            ("/v1/charges", "/v1/charges", true),
            ("/v1/charges", "/v1/charges/1", false),
            ("/v1/*", "/v1/charges/1", true),
            ("/v1/*", "/v2/charges", false),
            ("*/1", "/v1/charges/1", true),
            ("/v1/*/refund", "/v1/charges/ch_1/refund", true),
            ("/v1/*/refund", "/v1/refund", false),
            ("*", "", true),
            ("/a*a", "/a", false),
            ("**", "/x", true),
        ] {
            assert_eq!(fits(pattern, path), fit, "{pattern} {path}");
        }
    }

    #[test]
    fn addresses_and_networks() {
        for (wanted, recorded, inside) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.0/24", "192.0.2.200", true),
            ("192.0.2.0/24", "192.0.2.0/24", true),
            ("192.0.2.7", "192.0.2.0/24", false),
            ("2001:db8::/32", "2001:db8::1", true),
            ("192.0.2.0/24", "no address", false),
        ] {
            let network = network(wanted).unwrap();
            assert_eq!(within(recorded, &network), inside, "{wanted} {recorded}");
        }
    }

    #[test]
    fn values_are_checked() {
        for (name, text, good) in [
            ("auth_failure", "wrong-key", true),
            ("auth_failure", "tired", false),
            ("failure", "first-byte-timeout", true),
            ("upstream_status", "5xx", true),
            ("upstream_status", "6xx", false),
            ("duration_ms_min", "200", true),
            ("duration_ms_min", "-1", false),
            ("duration_ms_max", "18446744073709551615", false),
            ("source", "10.0.0.0/33", false),
            ("trace_id", "abc", false),
            ("client_aborted", "yes", false),
            ("ended_by", "limit", true),
        ] {
            let field = FIELDS.iter().find(|field| field.name == name).unwrap();
            assert_eq!(field.condition(text).is_some(), good, "{name}={text}");
        }
    }
}
