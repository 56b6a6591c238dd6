//! Organisations, API tokens, and who may do what.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::checks;
use crate::problem::Problem;
use crate::proxy::ProxyLimits;

/// The slug of the organisation that holds organisations and operators.
pub const SYSTEM: &str = "system";
/// The slug of the organisation that a fresh installation has.
pub const DEFAULT: &str = "default";

/// A tenant. An object of the organisation `system`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Org {
    /// Its name in URLs: `[a-z0-9-]{1,40}`, unique; cannot change.
    pub slug: String,
    /// Display name; the slug when not given.
    #[serde(default)]
    pub name: String,
    /// The `limits` of a proxy that is created without any. They are copied then: a later change
    /// is for later proxies, and a proxy's own may be changed like any others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_limits: Option<ProxyLimits>,
}

impl Org {
    /// Fills what was not given and depends on other fields.
    pub fn complete(&mut self) {
        if self.name.is_empty() {
            self.name.clone_from(&self.slug);
        }
    }

    /// Every problem of the object itself.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        checks::slug(&self.slug, "/slug", &mut problems);
        checks::own_name(&self.name, Some(&self.slug), &mut problems);
        let limits = self.default_limits.iter().flat_map(ProxyLimits::validate);
        problems.extend(limits.map(|problem| problem.below("/default_limits")));
        problems
    }
}

/// What a token may do within its organisation; each role includes the ones below it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Proxies, proxy credentials, and the policy that hangs on them.
    Member,
    /// Credentials, targets, tokens, and every policy that hangs on them.
    Admin,
    /// Everything in the organisation, its deletion included.
    Owner,
}

/// An API token, without its secret: an object of its own organisation.
///
/// A token of the organisation `system` is an operator's: with role `admin` or `owner` it may act
/// in every organisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiToken {
    /// Display name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// From when on it is refused (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

impl ApiToken {
    /// Every problem of the object itself.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        checks::name(&self.name, "/name", &mut problems);
        problems
    }
}
