//! Targets: the upstream APIs that callers reach through a proxy.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::breaker::BreakerSettings;
use crate::checks;
use crate::endpoint::{self, Endpoint};
use crate::health_check::HealthCheck;
use crate::hosts::{Origin, Scheme};
use crate::path::PathOptions;
use crate::problem::Problem;

/// Default of [`Target::slow_start_ms`].
pub const SLOW_START_MS_DEFAULT: u64 = 10_000;

/// What happens to a request that no rule of a scope matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It may pass.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

/// An upstream API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Display name; the host of `base_url` when not given.
    #[serde(default)]
    pub name: String,
    /// Where requests go: scheme, host, optional port and base path. No userinfo, query, fragment.
    pub base_url: String,
    /// Its addresses, where it has several: requests go to the nearest that works, `base_url` is
    /// one of them. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Over how many milliseconds requests come back to an endpoint that was left alone, 0 for at
    /// once. Default 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_ms: Option<u64>,
    /// Effect when no rule of this target matches. Default `allow`.
    #[serde(default)]
    pub default_rule_effect: Effect,
    /// How long to wait for what.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How the target's certificate is judged.
    #[serde(default)]
    pub tls: TargetTls,
    /// Speak HTTP/2 where the target offers it by ALPN. Default false.
    #[serde(default)]
    pub http2: bool,
    /// Allow a `http://` base URL; also needs the operator's `policy.allow_http`. Default false.
    #[serde(default)]
    pub allow_http: bool,
    /// Non-public networks that this target may lie in. Takes effect only inside an entry of the
    /// operator's `dial_guard.permit` for this organisation.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub allow_networks: Vec<IpNet>,
    /// Headers of the caller that are passed although they override the method or the path or
    /// claim an address (`X-HTTP-Method-Override`, `X-Original-URL`, `X-Forwarded-For`, …).
    #[serde(default)]
    pub pass_headers: Vec<String>,
    /// Pass header names with `_` instead of answering 400: upstreams that map `_` to `-` could
    /// read them as another header. Default false.
    #[serde(default)]
    pub allow_underscore_headers: bool,
    /// How paths are read by rules.
    #[serde(default)]
    pub path: PathPolicy,
    /// What may be sent again after a failure.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// When it is left alone because it fails. Default never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerSettings>,
    /// How its endpoints are asked whether they work, without waiting for requests to fail. Default
    /// not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// What the target learns of the trace that a request belongs to. Default `traceparent`.
    #[serde(default)]
    pub propagate_trace: PropagateTrace,
    /// Own marks for finding it again.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// See [`Target::propagate_trace`] (W3C Trace Context, W3C Baggage).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PropagateTrace {
    /// Nothing.
    Off,
    /// `traceparent`: the trace's id and the span that calls.
    #[default]
    Traceparent,
    /// `tracestate` and `baggage` of the caller too: they hold data of its own systems, so this is
    /// for targets that belong to them.
    Full,
}

/// Waiting times in milliseconds; what is absent takes the default that the answer shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// Until a connection stands, TLS included. Default 5,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<u64>,
    /// From the request's last byte to the answer's first. Default 60,000; 600,000 for hosts of
    /// known LLM APIs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<u64>,
    /// Between two pieces of a body. Default 300,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// For the whole exchange, repetitions included, from when the limits have let the request go.
    /// Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<u64>,
}

/// Hosts of LLM APIs whose SDKs wait ten minutes for the first byte.
const SLOW_FIRST_BYTE: &[&str] = &[
    "api.openai.com",
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    "api.mistral.ai",
    "api.cohere.com",
    "api.groq.com",
    "api.deepseek.com",
    "api.x.ai",
    "api.together.xyz",
    "openrouter.ai",
    "api.perplexity.ai",
    "api.fireworks.ai",
];

impl Timeouts {
    /// These, with what is absent taken from `fallback`.
    pub fn or(self, fallback: Self) -> Self {
        Self {
            connect_ms: self.connect_ms.or(fallback.connect_ms),
            first_byte_ms: self.first_byte_ms.or(fallback.first_byte_ms),
            idle_ms: self.idle_ms.or(fallback.idle_ms),
            total_ms: self.total_ms.or(fallback.total_ms),
        }
    }

    /// The defaults for a host.
    pub fn defaults_for(host: &str) -> Self {
        let slow = SLOW_FIRST_BYTE.contains(&host) || host.ends_with(".openai.azure.com");
        Self {
            connect_ms: Some(5_000),
            first_byte_ms: Some(if slow { 600_000 } else { 60_000 }),
            idle_ms: Some(300_000),
            total_ms: None,
        }
    }

    /// Reports values outside 1 ms to one day.
    pub fn check(&self, pointer: &str, problems: &mut Vec<Problem>) {
        let fields = [
            ("connect_ms", self.connect_ms, 60_000),
            ("first_byte_ms", self.first_byte_ms, 3_600_000),
            ("idle_ms", self.idle_ms, 3_600_000),
            ("total_ms", self.total_ms, 86_400_000),
        ];
        for (field, value, max) in fields {
            checks::range(value, 1..=max, &format!("{pointer}/{field}"), problems);
        }
    }
}

/// TLS towards a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetTls {
    /// PEM certificates of authorities to trust instead of the platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Do not verify the certificate; needs the operator's `policy.allow_insecure_tls`.
    #[serde(default)]
    pub insecure: bool,
}

/// How the canonical reading of a path treats escapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PathPolicy {
    /// `refuse` (default) answers 400 to an escape that decodes to another escape.
    #[serde(default)]
    pub double_encoding: DoubleEncoding,
    /// `decode` (default) reads `%2F` as `/` for rules; `opaque` leaves it, for upstreams that do.
    #[serde(default)]
    pub encoded_slash: EncodedSlash,
}

/// See [`PathPolicy::double_encoding`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoubleEncoding {
    /// Answer 400.
    #[default]
    Refuse,
    /// Let it pass.
    Pass,
}

/// See [`PathPolicy::encoded_slash`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EncodedSlash {
    /// Rules read it as `/`.
    #[default]
    Decode,
    /// Rules read it as written.
    Opaque,
}

/// What may be sent again beyond the replay that needs no asking (see `docs/concepts.md`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// The header by which this target recognises a repeated request; a request that carries it
    /// is replayed like an idempotent one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_header: Option<String>,
}

/// A parsed `base_url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    /// Scheme, host, port.
    pub origin: Origin,
    /// The path without a trailing slash: `""` or `/v1`.
    pub path: String,
}

impl BaseUrl {
    /// Parses and checks a base URL.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > 2048 {
            return Err("is longer than 2,048 bytes".into());
        }
        let url = url::Url::parse(text).map_err(|error| {
            format!("is not a URL ({error}); write it like https://api.example.com/v1")
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("holds a user or password; put it into a target credential".into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("holds a query or fragment; put a key into a target credential".into());
        }
        let origin = Origin::of(&url)?;
        let path = url.path().trim_end_matches('/').to_owned();
        // What is joined to this path is checked as well; here only the base itself.
        let lower = path.to_ascii_lowercase();
        if lower.contains("%2e") || lower.contains("%00") || lower.contains("%25") {
            return Err("its path holds an escaped dot, NUL or percent sign".into());
        }
        Ok(Self { origin, path })
    }
}

impl Target {
    /// Fills what was not given and depends on other fields.
    pub fn complete(&mut self) {
        if self.name.is_empty()
            && let Ok(base) = BaseUrl::parse(&self.base_url)
        {
            self.name = checks::made_name(&base.origin.host);
        }
    }

    /// Every URL that requests to it may go to: with a pointer, those that cannot be read left out.
    pub fn bases(&self) -> impl Iterator<Item = (String, BaseUrl)> {
        self.bases_where(|_| true)
    }

    /// The same without the endpoints that do not count.
    pub fn bases_where(
        &self,
        counts: impl Fn(&Endpoint) -> bool,
    ) -> impl Iterator<Item = (String, BaseUrl)> {
        let listed = self.endpoints.iter().enumerate();
        let listed = listed.filter(move |(_, endpoint)| counts(endpoint));
        let listed = listed.map(|(at, endpoint)| {
            (
                format!("/endpoints/{at}/base_url"),
                endpoint.base_url.as_str(),
            )
        });
        let alone = self.endpoints.is_empty();
        let alone = alone.then(|| ("/base_url".to_owned(), self.base_url.as_str()));
        let all = alone.into_iter().chain(listed);
        all.filter_map(|(pointer, text)| Some((pointer, BaseUrl::parse(text).ok()?)))
    }

    /// How paths to it are read.
    pub fn path_options(&self) -> PathOptions {
        PathOptions {
            double_encoding: self.path.double_encoding,
            encoded_slash: self.path.encoded_slash,
        }
    }

    /// Every problem of the object itself; references and operator policy are judged elsewhere.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let base = BaseUrl::parse(&self.base_url);
        // A name that is not given is made of the URL: one fault is not told twice.
        if base.is_ok() || !self.name.is_empty() {
            checks::name(&self.name, "/name", &mut problems);
        }
        endpoint::check(&self.endpoints, base.as_ref().ok(), &mut problems);
        let longest = 0..=3_600_000;
        checks::range(self.slow_start_ms, longest, "/slow_start_ms", &mut problems);
        if let Err(detail) = base {
            problems.push(Problem::new("/base_url", "base-url", detail));
        }
        for (pointer, base) in self.bases() {
            if base.origin.scheme == Scheme::Http && !self.allow_http {
                let detail = "is plain http; use https, or set `allow_http`";
                problems.push(Problem::new(pointer, "plain-http", detail));
            }
        }
        self.timeouts.check("/timeouts", &mut problems);
        if self
            .tls
            .ca
            .as_ref()
            .is_some_and(|pem| pem.len() > 65_536 || !pem.contains("-----BEGIN CERTIFICATE-----"))
        {
            let detail = "must be PEM certificates (`-----BEGIN CERTIFICATE-----`), at most 64 KiB";
            problems.push(Problem::new("/tls/ca", "pem", detail));
        }
        if self.allow_networks.len() > 64 {
            problems.push(Problem::new(
                "/allow_networks",
                "too-many",
                "at most 64 networks",
            ));
        }
        checks::header_names(&self.pass_headers, "/pass_headers", &mut problems);
        if let Some(header) = &self.retry.idempotency_header {
            checks::settable_header(header, "/retry/idempotency_header", &mut problems);
        }
        if let Some(breaker) = &self.breaker {
            breaker.check("/breaker", &mut problems);
        }
        if let Some(check) = &self.health_check {
            check.check("/health_check", &mut problems);
        }
        checks::labels(&self.labels, &mut problems);
        problems
    }
}
