//! Whether what is asked for holds of a record. Pure.

use ipnet::IpNet;
use proto::id::{FilterId, RuleId};
use proto::record::{
    AttemptFailure, AuthFailure, KeyHint, RecordScope, RefusalCause, ScrubState, SpanEventKind,
    Stage,
};
use proto::wire::StoredRecord;

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
    UpstreamRequestBytes(Bounds),
    UpstreamResponseBytes(Bounds),
    Attempts(Bounds),
    Failure(AttemptFailure),
    LimitedBy(String),
    Meter(String),
    RefusalCause(RefusalCause),
    Spent(String),
    ValueMissing(String),
    DeniedBy(RecordScope),
    Rule(RuleId),
    Filter(FilterId),
    Source(IpNet),
    UserAgent(String),
    UpstreamId(String),
    TraceId(String),
    LeftGateway(String),
    Endpoint(String),
    ForwardedTo(String),
    ForwardedFrom(String),
    MethodOverridden(bool),
    ClientAborted(bool),
    Scrubbed(bool),
    Scrub(ScrubState),
    EndedBy(Stage),
    Event(SpanEventKind),
}

/// A range of numbers, ends included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bounds(pub u64, pub u64);

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
            Kind::UpstreamRequestBytes(bounds) => bounds.hold(record.upstream_request_bytes),
            Kind::UpstreamResponseBytes(bounds) => bounds.hold(record.upstream_response_bytes),
            Kind::Attempts(bounds) => bounds.hold(record.attempts.into()),
            Kind::Failure(reason) => record.sends.iter().any(|s| s.failure == Some(*reason)),
            Kind::LimitedBy(window) => record.limited_by.iter().any(|name| name == window),
            Kind::Meter(id) => record.refused_by.iter().any(|one| one.meter == *id),
            Kind::RefusalCause(cause) => record.refused_by.iter().any(|one| one.cause == *cause),
            Kind::Spent(id) => record.meters.iter().any(|spend| *spend.meter == **id),
            Kind::ValueMissing(id) => record.value_missing.iter().any(|of| **of == **id),
            Kind::DeniedBy(scope) => record.denials.iter().any(|denial| denial.scope == *scope),
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
            Kind::Endpoint(name) => record.endpoints.iter().any(|asked| **asked == **name),
            Kind::ForwardedTo(region) => is(record.forwarded_to, region),
            Kind::ForwardedFrom(region) => is(record.forwarded_from, region),
            Kind::MethodOverridden(wanted) => record.method_overridden == Some(*wanted),
            Kind::ClientAborted(wanted) => record.client_aborted == *wanted,
            Kind::Scrubbed(wanted) => (record.scrubbed > 0) == *wanted,
            Kind::Scrub(state) => record.scrub == *state,
            Kind::EndedBy(stage) => record.ended_by() == Some(*stage),
            Kind::Event(kind) => record.events.iter().any(|event| event.kind == *kind),
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
}
