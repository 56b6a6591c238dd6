//! What records can be asked for besides proxy, credential, status, code and time: every field by
//! its name, with how its value is written. Pure.

use proto::id::CredentialId;
use serde::de::DeserializeOwned;

use super::condition::{Bounds, Condition, Kind, network};

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
        |t| at_least(t).map(Kind::RequestBytes),
    ),
    field(
        "request_bytes_max",
        "Body bytes received, at most",
        NUMBER,
        |t| at_most(t).map(Kind::RequestBytes),
    ),
    field(
        "response_bytes_min",
        "Body bytes sent, at least",
        NUMBER,
        |t| at_least(t).map(Kind::ResponseBytes),
    ),
    field(
        "response_bytes_max",
        "Body bytes sent, at most",
        NUMBER,
        |t| at_most(t).map(Kind::ResponseBytes),
    ),
    field(
        "upstream_request_bytes_min",
        "Body bytes sent to the target, at least",
        NUMBER,
        |t| at_least(t).map(Kind::UpstreamRequestBytes),
    ),
    field(
        "upstream_response_bytes_min",
        "Body bytes received from the target, at least",
        NUMBER,
        |t| at_least(t).map(Kind::UpstreamResponseBytes),
    ),
    field(
        "attempts_min",
        "Sent to the target at least so often",
        NUMBER,
        |t| at_least(t).map(Kind::Attempts),
    ),
    field(
        "attempts_max",
        "Sent to the target at most so often; 0 finds what never left",
        NUMBER,
        |t| at_most(t).map(Kind::Attempts),
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
        "cause",
        "Why a meter refused it, such as `empty` or `store-lost`",
        "a cause such as `empty`",
        |t| word(t).map(Kind::RefusalCause),
    ),
    field(
        "spent",
        "Id of a meter that it spent of; of the proxy for its own `limits`",
        TEXT,
        |t| Some(Kind::Spent(t.into())),
    ),
    field(
        "value_missing",
        "Id of a meter that counts values of answers and was told none",
        TEXT,
        |t| Some(Kind::ValueMissing(t.into())),
    ),
    field(
        "denied_by",
        "Scope whose rules, or whose default, refused it",
        "`proxy_credential`, `target_credential`, `proxy` or `target`",
        |t| word(t).map(Kind::DeniedBy),
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
        "endpoint",
        "Endpoint of the target that was asked, as `host:port`, where it has several",
        TEXT,
        |t| Some(Kind::Endpoint(t.into())),
    ),
    field(
        "forwarded_to",
        "Region that it was passed on to",
        TEXT,
        |t| Some(Kind::ForwardedTo(t.into())),
    ),
    field("forwarded_from", "Region that passed it on", TEXT, |t| {
        Some(Kind::ForwardedFrom(t.into()))
    }),
    field(
        "method_overridden",
        "Whether a header or the query said another method",
        BOOLEAN,
        |t| Some(Kind::MethodOverridden(t.parse().ok()?)),
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
    field(
        "event",
        "Something that happened inside a stage, such as `retry` or `hold-began`",
        "an event such as `retry`",
        |t| word(t).map(Kind::Event),
    ),
];

/// A value of an enumeration, by its name in JSON.
fn word<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
}

fn at_least(text: &str) -> Option<Bounds> {
    Some(Bounds(text.parse().ok()?, u64::MAX))
}

fn at_most(text: &str) -> Option<Bounds> {
    Some(Bounds(0, text.parse().ok()?))
}

fn micros(text: &str) -> Option<u64> {
    text.parse::<u64>().ok()?.checked_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("event", "breaker-opened", true),
            ("event", "breaker", false),
        ] {
            let field = FIELDS.iter().find(|field| field.name == name).unwrap();
            assert_eq!(field.condition(text).is_some(), good, "{name}={text}");
        }
    }

    /// A key that records get anew must become a field, or stand here with why it is none.
    #[test]
    fn every_key_of_a_record_can_be_asked_for() {
        let document: serde_json::Value =
            serde_json::from_str(crate::openapi::openapi_json()).unwrap();
        let keys = &document["components"]["schemas"]["Record"]["properties"];
        let asked = |key: &str| match key {
            // By their own parameters, or by the path of the call.
            "id" | "request_id" | "org_id" | "proxy_id" | "status" | "code" => true,
            "started_at" | "started_at_us" => true,
            // Times of stages are told in each record; bodies are nobody's to search.
            "stages" | "payload" => true,
            "proxy_credential_id" => has("proxy_credential"),
            "target_credential_id" => has("target_credential"),
            "proxy_credential_generation" | "target_credential_generation" => has("generation"),
            "config_version" => has("version"),
            "total_us" => has("duration_ms_min") && has("duration_ms_max"),
            "attempts" => has("attempts_min") && has("attempts_max"),
            "denials" => has("denied_by") && has("rule"),
            "shadow_rule_ids" => has("rule"),
            "filter_ids" => has("filter"),
            "source_address" => has("source"),
            "upstream_ids" => has("upstream_id"),
            "sends" => has("failure"),
            "endpoints" => has("endpoint"),
            "meters" => has("spent"),
            "presented" => has("key_place") && has("key_hint"),
            "refused_by" => has("meter") && has("cause"),
            // So much happens to hardly any request that it would be dropped.
            "events" | "events_dropped" => has("event"),
            bytes if bytes.ends_with("_bytes") => has(&format!("{bytes}_min")),
            other => has(other),
        };
        let keys = keys.as_object().expect("keys of a record");
        assert!(keys.len() > 40, "{keys:?}");
        for key in keys.keys() {
            assert!(asked(key), "records cannot be searched by `{key}`");
        }
    }

    fn has(name: &str) -> bool {
        FIELDS.iter().any(|field| field.name == name)
    }
}
