//! What a meter counts by.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::checks;
use crate::problem::Problem;

/// What a meter counts by: each value has the whole limit for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CountBy {
    /// What tells requests apart. Default `none`.
    #[serde(default)]
    pub by: KeySource,
    /// Name of the header or claim; only for these two. A request without it counts under a key
    /// of its own for all that have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// See [`CountBy::by`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// All requests together.
    #[default]
    None,
    /// The proxy that is called.
    Proxy,
    /// The proxy credential that the caller presents.
    Caller,
    /// The target credential that is injected.
    TargetCredential,
    /// All values of a header field.
    Header,
    /// A claim of the JWT that the caller presents.
    Claim,
    /// The caller's address; of IPv6 the first 64 bits, since who has one has all the others.
    Source,
}

impl KeySource {
    /// Whether it needs [`CountBy::name`].
    pub fn is_named(self) -> bool {
        matches!(self, Self::Header | Self::Claim)
    }
}

impl CountBy {
    /// Everything that is wrong with it; pointers begin at the key.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (&self.name, self.by) {
            (None, by) if by.is_named() => {
                let detail = "is missing: which header or claim?";
                problems.push(Problem::new("/name", "required", detail));
            }
            (Some(_), by) if !by.is_named() => {
                let detail = "belongs to `by: header` and `by: claim` only; remove it";
                problems.push(Problem::new("/name", "not-applicable", detail));
            }
            (Some(name), KeySource::Header) if !checks::is_token(name) || name.len() > 256 => {
                let detail = format!("`{}` is not a header name", checks::printable(name));
                problems.push(Problem::new("/name", "header-name", detail));
            }
            (Some(name), KeySource::Claim) => checks::name(name, "/name", &mut problems),
            _ => {}
        }
        problems
    }
}
