//! What is said of an object that is valid and probably not meant, beside its fields.

use jiff::Timestamp;
use proto::problem::Problem;
use serde_json::{Map, Value, json};

/// Adds to what is said of an object.
pub fn warn(shown: &mut Map<String, Value>, warnings: Vec<Problem>) {
    if warnings.is_empty() {
        return;
    }
    let said = shown.entry("warnings").or_insert_with(|| json!([]));
    if let Value::Array(said) = said {
        said.extend(warnings.iter().map(|warning| json!(warning)));
    }
}

/// The same, to an answer.
pub fn add(shown: &mut Value, warnings: Vec<Problem>) {
    if let Value::Object(shown) = shown {
        warn(shown, warnings);
    }
}

/// What is said of an `expires_at` that is over.
pub fn past(expires_at: Option<Timestamp>, now: Timestamp) -> Vec<Problem> {
    let past = expires_at.filter(|at| *at <= now);
    let warning = past.map(|at| {
        let detail = format!(
            "{at} is in the past: it is refused as expired until this is later or taken away \
             (null)"
        );
        Problem::new("/expires_at", "expired", detail)
    });
    warning.into_iter().collect()
}
