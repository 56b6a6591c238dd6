//! Credentials: who proves what to whom. A proxy credential proves a caller to us, a target
//! credential proves us to the target.
//!
//! The object holds no secret. A proxy credential's secret is kept as a keyed digest, a target
//! credential's is sealed to the region's public key and stored beside the tree (`crate::seal`).

mod secret;
pub mod sending;

pub use self::secret::{SECRET_NOT_SEARCHED, secret_not_searched};

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::checks;
use crate::hosts::HostPattern;
use crate::problem::Problem;
use crate::regions;
use crate::target::Effect;
use crate::version::Generation;

/// Which side a credential is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// Proves a caller to the gateway.
    Proxy,
    /// Proves the gateway to a target.
    Target,
}

/// The form of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthType {
    /// A key in a header, a query parameter, or (target) the path.
    ApiKey,
    /// `Authorization: Bearer …` with an opaque token.
    Bearer,
    /// `Authorization: Basic …` (RFC 7617).
    Basic,
    /// `Authorization: Bearer …` with a fixed JWT.
    Jwt,
    /// Any headers and query parameters (target only).
    Custom,
    /// Nothing at all.
    None,
}

impl AuthType {
    /// The name used in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Bearer => "bearer",
            Self::Basic => "basic",
            Self::Jwt => "jwt",
            Self::Custom => "custom",
            Self::None => "none",
        }
    }
}

/// A credential without its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Display name.
    #[serde(default)]
    pub name: String,
    /// Which side it is for; cannot change.
    pub kind: CredentialKind,
    /// Its form; cannot change.
    pub auth_type: AuthType,
    /// Where a target credential may be sent. Required for target credentials that hold a secret;
    /// cannot change without giving the secret again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostPattern>,
    /// Where the secret stands in a request.
    #[serde(default)]
    pub settings: CredentialSettings,
    /// Effect when no rule of this credential matches. Default `allow`.
    #[serde(default)]
    pub default_rule_effect: Effect,
    /// Who may bind a target credential to a proxy. Default `admin`.
    #[serde(default)]
    pub use_by: UseBy,
    /// The regions whose nodes can open a target credential's secret, or `["*"]` for all. Default
    /// all. A region can be added only together with the secret.
    #[serde(
        default = "regions::everywhere",
        skip_serializing_if = "regions::is_everywhere"
    )]
    pub regions: Vec<String>,
    /// From when on a proxy credential is refused (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Whether callers with this proxy credential are told in `requestrocket-explain` what each
    /// stage decided. It names the rules and filters of all scopes by id.
    #[serde(default, skip_serializing_if = "is_false")]
    pub explain: bool,
    /// A node that is cut off from the store and from its peers does not learn that a secret was
    /// revoked. Longer than so many seconds after it last knew, it refuses this credential
    /// (`facts-stale`). 60 to 604,800; by default never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_fact_age_s: Option<u32>,
    /// Own marks for finding it again.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Seconds that [`Credential::max_fact_age_s`] may be. A node that reaches the store proves every
/// few seconds that it knows all; the shortest leaves room for an election of etcd.
pub const MAX_FACT_AGE_S: std::ops::RangeInclusive<u32> = 60..=604_800;

fn is_false(value: &bool) -> bool {
    !value
}

/// Who may bind a target credential to a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UseBy {
    /// Admins and owners.
    #[default]
    Admin,
    /// Members too.
    Member,
}

/// Where a secret stands. Which fields apply depends on kind and type; others are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialSettings {
    /// `api_key`: the header that holds the key. For target credentials one of `header`, `query`
    /// and `path` may be given, `x-api-key` is the default. For proxy credentials with a given
    /// key: the one header it is looked for in (default `authorization`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// `api_key`: the query parameter that holds the key. A key in a URL ends up in logs; for
    /// proxy credentials it is looked for only when this is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// Target `api_key`: a path such as `/bot{secret}`, put between base path and caller's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Target `api_key` in a header: text before the key, such as `Token `.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// The placeholder in [`CredentialSettings::path`].
pub const PATH_SECRET: &str = "{secret}";

/// What a stored credential knows of its secret; set by control, shown by the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretState {
    /// The version that set it.
    pub generation: Generation,
    /// Proxy credential: keyed BLAKE3 of the secret, hex. Target credential: keyed fingerprint,
    /// so that `apply` can tell equal secrets without opening them.
    pub digest: String,
    /// Names the sealed value beside the tree and is bound into it; absent for proxy credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal_id: Option<String>,
    /// Whether the key was issued by us (begins with `rr_`).
    #[serde(default)]
    pub issued: bool,
    /// The last four characters of an issued key, for people to recognise it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When it was set.
    pub set_at: Timestamp,
}

/// A secret as submitted: write-only, never stored or shown.
///
/// `{key}`, `{token}`, `{username, password}` or `{headers, queries}`, by auth type.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct SecretInput {
    /// `api_key`; in a query or path it has at most 8,192 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `bearer` and `jwt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// `basic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// `basic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// `custom`: name and value of headers, in order; with those of queries they have at most
    /// 65,536 bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedSecret>,
    /// `custom`: name and value of query parameters, in order; they have at most 8,192 bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<NamedSecret>,
}

/// One header or query parameter of a `custom` credential.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct NamedSecret {
    /// Name of the header or parameter.
    pub name: String,
    /// Its value: the secret.
    pub value: String,
    /// Whether the value is none, but a constant (a region, a number of an account) that answers
    /// may hold as well: it is not searched there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub public: bool,
}

impl std::fmt::Debug for SecretInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretInput(…)")
    }
}

/// The code of a fault of `hosts`: a wildcard over other people's names.
pub const WILDCARD_TOO_WIDE: &str = "wildcard-too-wide";
/// Shortest secret that a user may give for a proxy credential, in characters.
pub const GIVEN_SECRET_CHARS_MIN: usize = 24;
/// Shortest secret that is searched in what a target answers, in bytes: a shorter one may be part
/// of innocent text.
pub const SEARCHED_SECRET_BYTES_MIN: usize = 12;
/// Longest secret part, in bytes.
pub const SECRET_BYTES_MAX: usize = 16_384;
/// Most bytes of the names and values of a `custom` secret together: a node that uses it holds each
/// value in every form in which a target may quote it.
pub const CUSTOM_SECRET_BYTES_MAX: usize = 65_536;
/// Longest secret that stands in a URL, in bytes: few servers take a longer one there.
pub const URL_SECRET_BYTES_MAX: usize = 8_192;

impl Credential {
    /// Fills what was not given and depends on other fields.
    pub fn complete(&mut self) {
        if self.name.is_empty() {
            let auth_type = self.auth_type.as_str();
            self.name = match self.hosts.first() {
                Some(host) => checks::made_name(&format!("{host} {auth_type}")),
                None => format!("{auth_type} credential"),
            };
        }
    }

    /// Whether nodes of a region can open its secret.
    pub fn is_for_region(&self, region: &str) -> bool {
        regions::include(&self.regions, region)
    }

    /// Whether this credential holds a secret at all.
    pub fn has_secret(&self) -> bool {
        self.auth_type != AuthType::None
    }

    /// Every problem of the object itself.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        checks::name(&self.name, "/name", &mut problems);
        checks::labels(&self.labels, &mut problems);
        match self.kind {
            CredentialKind::Proxy => self.validate_proxy(&mut problems),
            CredentialKind::Target => self.validate_target(&mut problems),
        }
        self.validate_placement(&mut problems);
        if let Some(age) = self.max_fact_age_s.filter(|s| !MAX_FACT_AGE_S.contains(s)) {
            let (least, most) = (MAX_FACT_AGE_S.start(), MAX_FACT_AGE_S.end());
            let detail = format!("{age} is not within {least} to {most} seconds");
            problems.push(Problem::new("/max_fact_age_s", "range", detail));
        }
        problems
    }

    fn validate_proxy(&self, problems: &mut Vec<Problem>) {
        if self.auth_type == AuthType::Custom {
            let detail = "`custom` is for target credentials; use api_key, bearer, basic, jwt \
                          or none";
            problems.push(Problem::new("/auth_type", "auth-type", detail));
        }
        if !self.hosts.is_empty() {
            let detail = "only target credentials are bound to hosts";
            problems.push(Problem::new("/hosts", "not-applicable", detail));
        }
        if self.use_by != UseBy::Admin {
            let detail = "only target credentials have `use_by`";
            problems.push(Problem::new("/use_by", "not-applicable", detail));
        }
        if !regions::is_everywhere(&self.regions) {
            let detail = "only target credentials are kept in some regions; callers are told from \
                          strangers in all";
            problems.push(Problem::new("/regions", "not-applicable", detail));
        }
    }

    fn validate_target(&self, problems: &mut Vec<Problem>) {
        if self.hosts.is_empty() && self.has_secret() {
            let detail = "a target credential names the hosts that its secret may be sent to, \
                          for instance [\"api.example.com\"]";
            problems.push(Problem::new("/hosts", "required", detail));
        }
        regions::check(&self.regions, problems);
        if self.hosts.len() > 64 {
            problems.push(Problem::new("/hosts", "too-many", "at most 64 hosts"));
        }
        for (at, host) in self.hosts.iter().enumerate() {
            if host.is_too_wide() {
                let detail = format!(
                    "`{host}` is directly below a public suffix, so anybody may own a name in it; \
                     write the exact host names instead"
                );
                let pointer = format!("/hosts/{at}");
                problems.push(Problem::new(pointer, WILDCARD_TOO_WIDE, detail));
            }
        }
        if self.explain {
            let detail = "only callers are told what was decided: set it on a proxy credential";
            problems.push(Problem::new("/explain", "not-applicable", detail));
        }
        if self.expires_at.is_some() {
            let detail = "only proxy credentials expire; rotate or delete this one";
            problems.push(Problem::new("/expires_at", "not-applicable", detail));
        }
    }

    /// Which of `header`, `query`, `path`, `prefix` may be given, and whether they are well formed.
    fn validate_placement(&self, problems: &mut Vec<Problem>) {
        let settings = &self.settings;
        let is_key = self.auth_type == AuthType::ApiKey;
        let target = self.kind == CredentialKind::Target;
        for (field, given, applies) in [
            ("header", settings.header.is_some(), is_key),
            ("query", settings.query.is_some(), is_key),
            ("path", settings.path.is_some(), is_key && target),
            ("prefix", settings.prefix.is_some(), is_key && target),
        ] {
            if given && !applies {
                let detail = format!(
                    "does not apply to a {} credential of type {}",
                    if target { "target" } else { "proxy" },
                    self.auth_type.as_str()
                );
                problems.push(Problem::new(
                    format!("/settings/{field}"),
                    "not-applicable",
                    detail,
                ));
            }
        }
        if let Some(header) = &settings.header {
            checks::settable_header(header, "/settings/header", problems);
        }
        if settings
            .query
            .as_ref()
            .is_some_and(|q| q.is_empty() || q.len() > 256)
        {
            problems.push(Problem::new("/settings/query", "length", "1 to 256 bytes"));
        }
        if settings
            .prefix
            .as_ref()
            .is_some_and(|prefix| prefix.len() > 256 || !checks::is_field_value(prefix.as_bytes()))
        {
            let detail = "at most 256 bytes without control characters";
            problems.push(Problem::new("/settings/prefix", "header-value", detail));
        }
        if let Some(path) = &settings.path {
            let clean = path
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"?#%\\;\"<>".contains(&b));
            let whole = path.matches(PATH_SECRET).count() == 1;
            if !path.starts_with('/') || !clean || !whole || path.contains("..") {
                let detail = "must begin with `/` and hold `{secret}` once, like `/bot{secret}`";
                problems.push(Problem::new("/settings/path", "path-template", detail));
            }
        }
        let places = [&settings.header, &settings.query, &settings.path];
        if target && places.into_iter().flatten().count() > 1 {
            let detail = "give one of header, query and path";
            problems.push(Problem::new("/settings", "contradiction", detail));
        }
    }
}

#[cfg(test)]
mod tests;
