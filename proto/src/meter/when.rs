//! Which requests a meter counts.
//!
//! A request must not slip past a meter by being readable in two ways, so `when` is judged like a
//! deny rule: it matches if *any* reading of the request satisfies each of its parts, and a part
//! on a body that cannot be read exactly one way matches.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::rule::{BodyPart, Effect, Facts, NamedPart, Outcome, PathPart, Rule, RuleSet};

/// The requests that a meter counts: those that match every part that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// Any of these methods; empty: every method. `GET` covers HEAD.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// The path after the proxy's name, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathPart>,
    /// Header fields; each element must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedPart>,
    /// Query parameters, form-decoded; each element must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<NamedPart>,
    /// What stands in the body, such as `model`; each element must match. The body is read into
    /// memory for it, up to the proxy's `body_buffer_bytes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub body: Vec<BodyPart>,
    /// Any of these networks (CIDR) or addresses holds the caller's address; empty: every address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
}

/// Whether a meter counts a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// The body decides, and has not been read.
    NeedsBody,
}

/// A compiled [`When`].
#[derive(Clone, Debug)]
pub struct WhenSet(RuleSet);

impl When {
    /// Everything that is wrong with it; pointers begin at the condition.
    pub fn validate(&self) -> Vec<Problem> {
        self.rule().validate()
    }

    /// The form that requests are judged by.
    ///
    /// # Errors
    /// As [`When::validate`].
    pub fn compile(&self) -> Result<WhenSet, Vec<Problem>> {
        RuleSet::compile(&[self.rule()], Effect::Allow).map(WhenSet)
    }

    /// Upper bound of the memory of its compiled patterns, in bytes.
    pub fn compiled_bytes_max(&self) -> usize {
        self.rule().compiled_bytes_max()
    }

    /// Whether no part is given, so that every request matches.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The same as a deny rule, which is how it is judged and explained.
    pub fn rule(&self) -> Rule {
        let Self {
            methods,
            path,
            headers,
            query,
            body,
            source,
        } = self.clone();
        Rule {
            id: "when".to_owned(),
            effect: Effect::Deny,
            priority: 0,
            mode: Default::default(),
            methods,
            path,
            headers,
            query,
            body,
            source,
            on_unreadable: Default::default(),
            message: None,
            notes: None,
        }
    }
}

impl WhenSet {
    /// Whether a request matches.
    pub fn applies(&self, facts: &Facts<'_>) -> Applies {
        match self.0.evaluate(facts).outcome {
            Outcome::Denied { .. } => Applies::Yes,
            Outcome::Allowed { .. } => Applies::No,
            Outcome::NeedsBody => Applies::NeedsBody,
        }
    }
}
