//! One thing that is wrong with an object, named by where it stands.
//!
//! Validation collects all of them, so that a user corrects an object once instead of once per
//! attempt. The API answers them as the `errors` member of its problem document.

use serde::Serialize;

/// A finding about one place of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// JSON pointer (RFC 6901) to the place, from the root of the validated object.
    pub pointer: String,
    /// Stable, machine-readable name of the rule that was broken.
    pub code: &'static str,
    /// The value, the rule it broke and what to do, for people.
    pub detail: String,
}

impl Problem {
    /// A problem at `pointer`.
    pub fn new(
        pointer: impl Into<String>,
        code: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self { pointer: pointer.into(), code, detail: detail.into() }
    }
}
