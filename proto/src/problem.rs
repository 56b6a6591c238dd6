//! One thing that is wrong with a configuration object, in the form the API answers it.
//!
//! Validation never stops at the first fault: it returns a list of these, so that a caller can
//! repair a whole document in one go (`errors: [{pointer, code, detail}]` of a problem document).

use serde::Serialize;

/// A fault of one place in one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where, as an RFC 6901 JSON pointer into the object that was sent. Empty: the whole object.
    pub pointer: String,
    /// What kind of fault, stable and in kebab case: programs decide by it.
    pub code: &'static str,
    /// The value, the rule it broke and what to do, for a person.
    pub detail: String,
}

impl Problem {
    /// A problem at `pointer`.
    pub fn new(
        pointer: impl Into<String>,
        code: &'static str,
        detail: impl Into<String>,
    ) -> Problem {
        Problem {
            pointer: pointer.into(),
            code,
            detail: detail.into(),
        }
    }

    /// The same problem, seen from an object that holds the faulty one at `prefix`.
    ///
    /// ```
    /// use proto::problem::Problem;
    /// let inner = Problem::new("/paths/0", "path-invalid", "no leading `$`");
    /// assert_eq!(inner.under("/filters/3").pointer, "/filters/3/paths/0");
    /// ```
    pub fn under(self, prefix: &str) -> Problem {
        Problem {
            pointer: format!("{prefix}{}", self.pointer),
            ..self
        }
    }
}
