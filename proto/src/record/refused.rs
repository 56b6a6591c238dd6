//! What a record says of the meter that refused a request.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A meter that refused a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeterRefusal {
    /// The id of the meter; of the proxy, where they are its own `limits`.
    pub meter: String,
    /// The window whose limit refused, such as `minute`, or `concurrency`; null where it was none
    /// of them alone.
    #[schema(value_type = Option<String>)]
    pub window: Option<Cow<'static, str>>,
    /// Why.
    pub cause: RefusalCause,
}

/// Why a meter refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCause {
    /// Nothing is left in the window, or less than is set aside for the request.
    Empty,
    /// The target asked to wait.
    Paused,
    /// As many requests as may wait for it are waiting.
    Crowded,
    /// The store of limits cannot be reached, and the meter gives nothing without it.
    StoreLost,
    /// All calls in flight are in use.
    InFlight,
}

impl RefusalCause {
    /// Every cause, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Empty,
        Self::Paused,
        Self::Crowded,
        Self::StoreLost,
        Self::InFlight,
    ];

    /// Its text, the same as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Paused => "paused",
            Self::Crowded => "crowded",
            Self::StoreLost => "store-lost",
            Self::InFlight => "in-flight",
        }
    }
}

/// As spans and the header `requestrocket-explain` have it: `mtr_…:minute:empty`.
impl fmt::Display for MeterRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.meter)?;
        if let Some(window) = &self.window {
            write!(f, "{window}:")?;
        }
        f.write_str(self.cause.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_written_as_in_json_and_stand_at_their_numbers() {
        for (at, cause) in RefusalCause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, at);
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }

    #[test]
    fn a_refusal_is_one_word() {
        let refusal = |window: Option<&'static str>, cause| MeterRefusal {
            meter: "mtr_1".to_owned(),
            window: window.map(Cow::Borrowed),
            cause,
        };
        let empty = refusal(Some("minute"), RefusalCause::Empty);
        assert_eq!(empty.to_string(), "mtr_1:minute:empty");
        let paused = refusal(None, RefusalCause::Paused);
        assert_eq!(paused.to_string(), "mtr_1:paused");
    }
}
