//! Credentials: who proves what to whom. A proxy credential proves a caller to us, a target
//! credential proves us to the target.
//!
//! The object holds no secret. A proxy credential's secret is kept as a keyed digest, a target
//! credential's is sealed to the region's public key and stored beside the tree (`crate::seal`).

mod secret;
pub mod sending;
mod validate;

pub use self::secret::{SECRET_NOT_SEARCHED, secret_not_searched};

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::checks;
use crate::hosts::HostPattern;
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
    /// How urgent callers with this proxy credential are where a meter holds them
    /// (`at_limit.hold`): 0 (the default) to 9, higher ones go first. What a request says in the
    /// meter's `priority_header` goes before it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u8,
    /// Own marks for finding it again.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Seconds that [`Credential::max_fact_age_s`] may be. A node that reaches the store proves every
/// few seconds that it knows all; the shortest leaves room for an election of etcd.
pub const MAX_FACT_AGE_S: std::ops::RangeInclusive<u32> = 60..=604_800;

/// Most that [`Credential::priority`] may be.
pub const PRIORITY_MAX: u8 = 9;

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u8) -> bool {
    *value == 0
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
}

#[cfg(test)]
mod tests;
