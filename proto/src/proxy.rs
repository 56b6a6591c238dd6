//! Proxies: what a caller calls. One or more proxy credentials, a target, a target credential.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::checks;
use crate::id::{CredentialId, TargetId};
use crate::meter::{Limit, MeterError, Window, share};
use crate::payload::PayloadPolicy;
use crate::problem::Problem;
use crate::regions::{self, Residency};
use crate::target::{Effect, Timeouts};
use crate::validation::Validation;

/// Default of [`Proxy::body_buffer_bytes`]: 10 MiB.
pub const BODY_BUFFER_BYTES_DEFAULT: u64 = 10 * 1024 * 1024;
/// Most proxy credentials on a proxy.
const CREDENTIALS_MAX: usize = 32;

/// The callable thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// Display name; the alias or the target's name when not given.
    #[serde(default)]
    pub name: String,
    /// Short name for the URL `/api/{org}.{alias}/…`; unique within the organisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Earlier aliases that it still answers to; set by the gateway when the alias changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_aliases: Vec<FormerAlias>,
    /// An inactive proxy answers 403 `proxy-inactive`. Default true.
    #[serde(default = "yes")]
    pub active: bool,
    /// Whoever presents one of these may call.
    pub proxy_credential_ids: Vec<CredentialId>,
    /// The regions that serve it, or `["*"]` for all. Default all.
    #[serde(
        default = "regions::everywhere",
        skip_serializing_if = "regions::is_everywhere"
    )]
    pub regions: Vec<String>,
    /// What becomes of calls in other regions. Default `reject`.
    #[serde(default, skip_serializing_if = "is_reject")]
    pub cross_region: CrossRegion,
    /// What other regions keep of it. Default `standard`.
    #[serde(default, skip_serializing_if = "Residency::is_standard")]
    pub residency: Residency,
    /// Where calls go.
    pub target_id: TargetId,
    /// What is injected; absent injects nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_credential_id: Option<CredentialId>,
    /// Effect when no rule of this proxy matches. Default `allow`.
    #[serde(default)]
    pub default_rule_effect: Effect,
    /// Rate limits of this proxy.
    #[serde(default)]
    pub limits: ProxyLimits,
    /// Overrides the target's timeouts.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// Largest body that is buffered for rules and filters, in bytes. Default 10 MiB.
    #[serde(default = "body_buffer_bytes_default")]
    pub body_buffer_bytes: u64,
    /// Cookies both ways. Default `drop` where a target credential is injected, else `pass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookies: Option<Cookies>,
    /// Whether URLs of the target in answers become the proxy's. Default `on`.
    #[serde(default)]
    pub rewrite_urls: RewriteUrls,
    /// Answers that name a third host. Default `pass`.
    #[serde(default)]
    pub foreign_urls: ForeignUrls,
    /// Whether answers in a content coding are searched for the injected secret. Default `plain`.
    #[serde(default, skip_serializing_if = "ScrubBodies::is_plain")]
    pub scrub: ScrubBodies,
    /// What becomes of error bodies where response filters apply. Default `filter`.
    #[serde(default)]
    pub error_bodies: ErrorBodies,
    /// Schemas that bodies must satisfy. Default none.
    #[serde(default, skip_serializing_if = "Validation::is_empty")]
    pub validation: Validation,
    /// What a caller's hang-up does to the upstream call. Default `cancel`.
    #[serde(default)]
    pub on_client_abort: OnClientAbort,
    /// Authentication headers of the caller that are passed on although they did not hold our
    /// key; never one that the target credential sets.
    #[serde(default)]
    pub forward_caller_headers: Vec<String>,
    /// What records keep of the path. Default `full`.
    #[serde(default)]
    pub record: RecordPolicy,
    /// Must be true when one of the credentials is of type `none`.
    #[serde(default)]
    pub acknowledge_open: bool,
    /// Own marks for finding it again.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// An alias that a proxy had before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FormerAlias {
    /// The alias.
    pub alias: String,
    /// Until when the proxy answers to it, unless another proxy takes it before (RFC 3339).
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
}

/// See [`Proxy::cross_region`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CrossRegion {
    /// They are passed on to the gateway of a region that serves it.
    Forward,
    /// They are answered 307 with the URL there.
    Redirect,
    /// They are answered 421.
    #[default]
    Reject,
}

// What is as ever is not written, so that earlier releases read it.
fn is_reject(cross_region: &CrossRegion) -> bool {
    *cross_region == CrossRegion::Reject
}

fn yes() -> bool {
    true
}

fn body_buffer_bytes_default() -> u64 {
    BODY_BUFFER_BYTES_DEFAULT
}

/// Rate limits that every proxy can carry; one meter with two limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyLimits {
    /// At most so many requests in any 60 seconds (sliding window).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u64>,
    /// At most so many requests in a day (UTC calendar).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_day: Option<u64>,
    /// The regions that have these limits together, each a share of them; a region that is not
    /// listed has none. Absent: each region gives the limits by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_by: Vec<String>,
}

impl ProxyLimits {
    /// The limits in the form that nodes use.
    ///
    /// # Errors
    /// As [`Limit::new`].
    pub fn compile(&self) -> Result<Vec<Limit>, MeterError> {
        let wanted = [
            (self.per_minute, Window::Minute),
            (self.per_day, Window::Day),
        ];
        let wanted = wanted.into_iter();
        let wanted = wanted.filter_map(|(limit, window)| Some((limit?, window)));
        wanted
            .map(|(limit, window)| Limit::new(limit, window))
            .collect()
    }

    /// Every problem of the limits themselves.
    pub fn validate(&self) -> Vec<Problem> {
        let limits = [("/per_minute", self.per_minute), ("/per_day", self.per_day)];
        let mut problems = Vec::new();
        for (pointer, value) in limits {
            checks::range(value, 1..=1 << 40, pointer, &mut problems);
        }
        let limits = limits
            .into_iter()
            .filter_map(|(pointer, limit)| Some((pointer.to_owned(), limit?)));
        problems.extend(share::check(&self.shared_by, limits));
        if !self.shared_by.is_empty() && self.per_minute.is_none() && self.per_day.is_none() {
            let detail = "says nothing without a limit; add one or remove this";
            problems.push(Problem::new("/shared_by", "not-applicable", detail));
        }
        problems
    }
}

/// See [`Proxy::cookies`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cookies {
    /// `Cookie` and `Set-Cookie` are removed.
    Drop,
    /// They pass; `Domain` is removed and `Path` mapped to the proxy's.
    Pass,
}

/// See [`Proxy::scrub`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubBodies {
    /// They pass as they come, and their records say `scrub: skipped`.
    #[default]
    Plain,
    /// They are decoded while they stream, and reach the caller without the coding. The target is
    /// asked for such that can be decoded.
    Decode,
}

impl ScrubBodies {
    // What is as ever is not written, so that earlier releases read it.
    fn is_plain(&self) -> bool {
        *self == Self::Plain
    }
}

/// See [`Proxy::rewrite_urls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewriteUrls {
    /// The target's URLs become the proxy's.
    #[default]
    On,
    /// Bytes stay as they came.
    Off,
}

/// See [`Proxy::foreign_urls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ForeignUrls {
    /// They pass and the record notes the host.
    #[default]
    Pass,
    /// The answer becomes 502 `redirect-blocked`.
    Refuse,
}

/// See [`Proxy::error_bodies`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorBodies {
    /// JSON is filtered; blanked where a retain applies or the body is not JSON.
    #[default]
    Filter,
    /// They pass untouched.
    Pass,
    /// They are replaced by a problem document.
    Blank,
}

/// See [`Proxy::on_client_abort`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnClientAbort {
    /// The upstream call is cancelled.
    #[default]
    Cancel,
    /// The answer is read to its end (bounded) and recorded.
    Finish,
}

/// What records keep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecordPolicy {
    /// How much of the path.
    #[serde(default)]
    pub path: RecordPath,
    /// Query parameters whose values may be recorded.
    #[serde(default)]
    pub query_allow: Vec<String>,
    /// How much of the caller's address.
    #[serde(default)]
    pub source: RecordSource,
    /// What of bodies. Default nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadPolicy>,
}

/// See [`RecordPolicy::path`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordPath {
    /// As called.
    #[default]
    Full,
    /// Long or random segments become `*`.
    Template,
    /// Not at all.
    None,
}

/// See [`RecordPolicy::source`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordSource {
    /// The whole address.
    #[default]
    Full,
    /// The /24 or /48 that it lies in.
    Prefix,
    /// Not at all.
    None,
}

impl Proxy {
    /// Whether cookies pass, once the default is applied.
    ///
    /// `injects`: whether a target credential with a secret is bound.
    pub fn cookies_pass(&self, injects: bool) -> bool {
        match self.cookies {
            Some(cookies) => cookies == Cookies::Pass,
            None => !injects,
        }
    }

    /// Whether the nodes of a region serve it.
    pub fn is_served_in(&self, region: &str) -> bool {
        regions::include(&self.regions, region)
    }

    /// Every problem of the object itself; references are judged with the whole configuration.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        checks::own_name(&self.name, self.alias.as_deref(), &mut problems);
        if let Some(alias) = &self.alias {
            checks::slug(alias, "/alias", &mut problems);
        }
        regions::check(&self.regions, &mut problems);
        self.check_residency(&mut problems);
        let count = self.proxy_credential_ids.len();
        if count == 0 || count > CREDENTIALS_MAX {
            let detail = format!(
                "names {count} credentials; 1 to {CREDENTIALS_MAX} are needed (one of type \
                 `none` with `acknowledge_open` makes an open proxy)"
            );
            problems.push(Problem::new("/proxy_credential_ids", "count", detail));
        }
        for (at, id) in self.proxy_credential_ids.iter().enumerate() {
            if self.proxy_credential_ids[..at].contains(id) {
                let pointer = format!("/proxy_credential_ids/{at}");
                problems.push(Problem::new(
                    pointer,
                    "duplicate",
                    format!("{id} is named twice"),
                ));
            }
        }
        let of_limits = self.limits.validate().into_iter();
        problems.extend(of_limits.map(|problem| problem.below("/limits")));
        self.timeouts.check("/timeouts", &mut problems);
        checks::range(
            Some(self.body_buffer_bytes),
            1024..=104_857_600,
            "/body_buffer_bytes",
            &mut problems,
        );
        checks::header_names(
            &self.forward_caller_headers,
            "/forward_caller_headers",
            &mut problems,
        );
        if self.record.query_allow.len() > 64 {
            let detail = "at most 64 query parameters";
            problems.push(Problem::new("/record/query_allow", "too-many", detail));
        }
        if let Some(payload) = &self.record.payload {
            payload.problems("/record/payload", &mut problems);
        }
        checks::labels(&self.labels, &mut problems);
        let schemas = self.validation.validate().into_iter();
        problems.extend(schemas.map(|problem| problem.below("/validation")));
        problems
    }

    fn check_residency(&self, problems: &mut Vec<Problem>) {
        if self.residency.is_standard() {
            return;
        }
        if regions::is_everywhere(&self.regions) {
            let detail = "`strict` keeps it in its regions: list them in `regions`";
            problems.push(Problem::new("/residency", "regions", detail));
        }
        if self.cross_region != CrossRegion::Reject {
            let detail = "with `residency: strict` no other region knows of it: calls there are \
                          answered as if there were no such proxy; leave `cross_region` out";
            problems.push(Problem::new("/cross_region", "residency", detail));
        }
    }
}
