//! One thing that is wrong with an object, said so that its author can find and mend it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A fault in submitted data. All faults of an object are reported together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Where: a JSON pointer (RFC 6901) into the submitted document, `""` for the whole.
    pub pointer: String,
    /// Which rule was broken: a stable, kebab-case code.
    #[serde(skip_deserializing, default = "unknown_code")]
    pub code: &'static str,
    /// What is wrong and what to do, in words.
    pub detail: String,
}

fn unknown_code() -> &'static str {
    "unknown"
}

impl Problem {
    /// A problem at `pointer`.
    pub fn new(pointer: impl Into<String>, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            code,
            detail: detail.into(),
        }
    }

    /// The same problem, seen from a document that holds this one at `prefix`.
    pub fn below(mut self, prefix: &str) -> Self {
        self.pointer.insert_str(0, prefix);
        self
    }
}
