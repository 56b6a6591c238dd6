//! What an answer of several regions says of those that are missing in it, and why they are.

use serde_json::{Value, json};

use crate::api::error::Refusal;

/// Why a region is missing in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its control plane cannot be reached.
    Unreachable,
    /// It did not answer in time.
    Late,
    /// It refused, with this status.
    Refused(u16),
    /// It failed, broke off, or answered what cannot be read.
    Failed,
    /// Its control plane is of a release that cannot answer this.
    TooOld,
}

impl Reason {
    /// As it stands in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Late => "late",
            Self::Refused(_) => "refused",
            Self::Failed => "failed",
            Self::TooOld => "too-old",
        }
    }
}

/// A region that is missing in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The region.
    pub region: String,
    /// Why.
    pub reason: Reason,
    /// The same in words.
    pub detail: String,
}

impl Missing {
    /// A region that is missing for this reason.
    pub fn new(region: &str, reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            region: region.to_owned(),
            reason,
            detail: detail.into(),
        }
    }

    /// This region, whose own store refused.
    pub(super) fn own(region: &str, refusal: &Refusal) -> Self {
        Self::new(region, Reason::Failed, refusal.detail.clone())
    }

    /// It gave an answer that cannot be read.
    pub fn unreadable(region: &str) -> Self {
        Self::new(region, Reason::Failed, "its answer cannot be read")
    }
}

/// What every answer of several regions says: which have answered, and which are missing and why.
pub fn say(answer: &mut Value, answered: &[String], missing: &[Missing]) {
    let missing = missing.iter().map(|missing| {
        json!({
            "region": missing.region,
            "reason": missing.reason.as_str(),
            "detail": missing.detail,
        })
    });
    answer["regions"] = json!(answered);
    answer["partial"] = missing.collect();
}

/// The same in a field of an answer's head: `eu=unreachable, us=late`.
pub fn in_head(missing: &[Missing]) -> Option<String> {
    let each = |missing: &Missing| format!("{}={}", missing.region, missing.reason.as_str());
    let all: Vec<String> = missing.iter().map(each).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// What [`say`] adds to a schema's properties.
pub fn properties() -> [(&'static str, Value); 2] {
    let text = |description: &str| json!({"type": "string", "description": description});
    let missing = json!({
        "type": "object",
        "properties": {
            "region": text("The region"),
            "reason": {
                "type": "string",
                "enum": ["unreachable", "late", "refused", "failed", "too-old"],
            },
            "detail": text("The same in words"),
        }
    });
    [
        (
            "regions",
            json!({"type": "array", "items": {"type": "string"},
                   "description": "With `regions`: those that have answered"}),
        ),
        (
            "partial",
            json!({"type": "array", "items": missing,
                   "description": "With `regions`: those that are missing in this answer"}),
        ),
    ]
}
