//! Validation: JSON Schema (2020-12) for the bodies that go through a proxy.
//!
//! It is the last step in either direction: what is judged is what goes on, a request as the
//! target gets it, an answer as the caller gets it. `format` and `content…` are annotations, as
//! the standard has it.
//!
//! **Bounded.** A schema names nothing outside itself: no reference is ever fetched. Whoever may
//! edit a proxy may write a schema, and nodes are shared, so a schema's work is bounded twice:
//! at save the subschemas that can apply to one value are counted through all references
//! ([`bounds`]), and over a body every value that is reached costs as much, from a budget
//! ([`instance`]). Patterns are those of rules: linear time, without look-around.

mod bounds;
mod compiled;
mod instance;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use compiled::{BodyValidator, Invalid, PROBLEMS_MAX};

use crate::problem::Problem;

/// Largest schema, in bytes of its JSON.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;

/// Schemas of the bodies that go through a proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// For bodies of requests, after request filters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<BodySchema>,
    /// For bodies of 2xx answers, after response filters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<BodySchema>,
}

/// A schema, and what becomes of a body that it does not describe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BodySchema {
    /// What happens to a body that is not valid. Default `enforce`.
    #[serde(default)]
    pub mode: ValidationMode,
    /// A JSON Schema of draft 2020-12, an object or a boolean, at most 64 KiB; `$ref` within it
    /// only.
    #[schema(value_type = Value)]
    pub schema: serde_json::Value,
}

/// What happens to a body that is not valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ValidationMode {
    /// It does not go on: 422 `validation-failed`.
    #[default]
    Enforce,
    /// It goes on; the answer carries a warning, and it is counted.
    Report,
}

/// Whether a request of this method says in a body what to do, so that one without a body cannot
/// satisfy a schema.
pub fn needs_body(method: &str) -> bool {
    matches!(method, "POST" | "PUT" | "PATCH")
}

impl Validation {
    /// Whether nothing is validated.
    pub fn is_empty(&self) -> bool {
        self.request.is_none() && self.response.is_none()
    }

    /// Everything that is wrong with the schemas, at `/request/schema/…` and
    /// `/response/schema/…`.
    pub fn validate(&self) -> Vec<Problem> {
        let bodies = [("/request", &self.request), ("/response", &self.response)];
        let given = bodies
            .into_iter()
            .filter_map(|(at, body)| Some((at, body.as_ref()?)));
        let problems = given.flat_map(|(at, body)| {
            let found = BodyValidator::new(body).err().unwrap_or_default();
            found.into_iter().map(move |problem| problem.below(at))
        });
        problems.collect()
    }

    /// An upper bound of what the patterns of the schemas take when compiled, in bytes.
    pub fn compiled_bytes_max(&self) -> usize {
        let bodies = [&self.request, &self.response].into_iter().flatten();
        bodies
            .map(|body| bounds::patterns_bytes_max(&body.schema))
            .sum()
    }
}
