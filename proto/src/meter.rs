//! What a meter counts and how much of it may pass: the model of rate limits.
//!
//! Parsed once: a [`Limit`] that exists is within its bounds and has an algorithm that its window
//! supports, so that no later code needs an error for it. All limits of one meter share one key,
//! one state and one block; what is free is the smallest of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Largest amount of one limit: a token count must fit the 40 bits that a worker's cell has.
pub const LIMIT_MAX: u64 = 1_000_000_000_000;

/// Most limits of one meter: one per [`Window`].
pub const LIMITS_PER_METER_MAX: usize = 5;

const SECOND_NS: u64 = 1_000_000_000;

/// Length of the interval that a limit speaks about, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// One second.
    Second,
    /// Sixty seconds.
    Minute,
    /// 3,600 seconds.
    Hour,
    /// A day; with `fixed_window` the calendar day in UTC.
    Day,
    /// A calendar month in UTC.
    Month,
}

impl Window {
    /// The word for it in configuration, headers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// Its length in nanoseconds; a month counts 31 days, the longest that one can be.
    pub fn width_ns(self) -> u64 {
        match self {
            Self::Second => SECOND_NS,
            Self::Minute => 60 * SECOND_NS,
            Self::Hour => 3_600 * SECOND_NS,
            Self::Day => 86_400 * SECOND_NS,
            Self::Month => 31 * 86_400 * SECOND_NS,
        }
    }

    /// The algorithm of a limit that names none.
    pub fn default_algorithm(self) -> Algorithm {
        match self {
            Self::Second | Self::Minute | Self::Hour => Algorithm::SlidingWindow,
            Self::Day | Self::Month => Algorithm::FixedWindow,
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a window moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// In any interval of the window's length, sent ≤ limit (second, minute, hour).
    SlidingWindow,
    /// In each calendar window in UTC, sent ≤ limit (day, month).
    FixedWindow,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SlidingWindow => "sliding_window",
            Self::FixedWindow => "fixed_window",
        })
    }
}

/// At most so many per window. Valid by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "LimitFields")]
pub struct Limit {
    limit: u64,
    window: Window,
    algorithm: Algorithm,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitFields {
    limit: u64,
    window: Window,
    #[serde(default)]
    algorithm: Option<Algorithm>,
}

impl TryFrom<LimitFields> for Limit {
    type Error = MeterError;

    fn try_from(fields: LimitFields) -> Result<Self, MeterError> {
        let algorithm = fields
            .algorithm
            .unwrap_or(fields.window.default_algorithm());
        Self::with_algorithm(fields.limit, fields.window, algorithm)
    }
}

impl Limit {
    /// A limit with the window's default algorithm.
    ///
    /// # Errors
    /// [`MeterError::LimitRange`] when `limit` is 0 or above [`LIMIT_MAX`].
    pub fn new(limit: u64, window: Window) -> Result<Self, MeterError> {
        Self::with_algorithm(limit, window, window.default_algorithm())
    }

    /// A limit with a named algorithm.
    ///
    /// # Errors
    /// As [`Limit::new`], and [`MeterError::Algorithm`] when the window does not support it.
    pub fn with_algorithm(
        limit: u64,
        window: Window,
        algorithm: Algorithm,
    ) -> Result<Self, MeterError> {
        if limit == 0 || limit > LIMIT_MAX {
            return Err(MeterError::LimitRange(limit));
        }
        if algorithm != window.default_algorithm() {
            return Err(MeterError::Algorithm { algorithm, window });
        }
        Ok(Self {
            limit,
            window,
            algorithm,
        })
    }

    /// How many may pass per window, 1 to [`LIMIT_MAX`].
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The window.
    pub fn window(&self) -> Window {
        self.window
    }

    /// How the window moves.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// What a meter counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeterKind {
    /// Requests that are sent to the target, one each.
    #[default]
    RequestCount,
}

/// What a meter does when neither a token nor the store is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreLoss {
    /// Admit ⌊(limit − used as last seen) / nodes last known⌋ per window, nothing without a fresh
    /// view. With one node the limit holds, except for what a crash during the loss forgets.
    LocalShare,
    /// Admit nothing.
    FailClosed,
}

/// One meter as nodes use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterSpec {
    name: String,
    version: u64,
    kind: MeterKind,
    limits: Vec<Limit>,
    on_store_loss: StoreLoss,
}

impl MeterSpec {
    /// A meter of request counts with the default behaviour at a loss of the store: `local_share`
    /// when every window is under an hour, else `fail_closed`.
    ///
    /// `name` prefixes the policy names in headers and may be empty; `version` is the number of
    /// the configuration that holds the limits: a higher one replaces a lower one. No limits:
    /// observe only.
    ///
    /// # Errors
    /// [`MeterError::SameWindow`] when two limits have one window, [`MeterError::Name`] for a name
    /// that a header cannot hold.
    pub fn new(name: &str, version: u64, limits: Vec<Limit>) -> Result<Self, MeterError> {
        let printable = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !printable || name.len() > 64 {
            return Err(MeterError::Name(name.chars().take(64).collect()));
        }
        for (at, limit) in limits.iter().enumerate() {
            if limits
                .iter()
                .take(at)
                .any(|other| other.window == limit.window)
            {
                return Err(MeterError::SameWindow(limit.window));
            }
        }
        let fast = limits.iter().all(|limit| limit.window < Window::Hour);
        let on_store_loss = if fast {
            StoreLoss::LocalShare
        } else {
            StoreLoss::FailClosed
        };
        let name = name.to_owned();
        Ok(Self {
            name,
            version,
            kind: MeterKind::RequestCount,
            limits,
            on_store_loss,
        })
    }

    /// The same meter with a chosen behaviour at a loss of the store.
    #[must_use]
    pub fn on_store_loss(mut self, behaviour: StoreLoss) -> Self {
        self.on_store_loss = behaviour;
        self
    }

    /// Prefix of its policy names; may be empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of the configuration that holds its limits.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What it counts.
    pub fn kind(&self) -> MeterKind {
        self.kind
    }

    /// Its limits, at most one per window.
    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// What it does when the store is gone.
    pub fn store_loss(&self) -> StoreLoss {
        self.on_store_loss
    }

    /// Its slowest window; `None` when it only observes.
    pub fn slowest(&self) -> Option<Window> {
        self.limits.iter().map(|limit| limit.window).max()
    }
}

/// Why a limit or a meter is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    /// The amount is zero or too large.
    #[error("limit {0} is not between 1 and {LIMIT_MAX}; to refuse everything use a rule")]
    LimitRange(u64),
    /// The window does not support the algorithm.
    #[error(
        "{algorithm} does not support a window of one {window}; use {}",
        window.default_algorithm()
    )]
    Algorithm {
        /// What was asked for.
        algorithm: Algorithm,
        /// For which window.
        window: Window,
    },
    /// Two limits of one meter have the same window.
    #[error("two limits per {0}; keep the smaller one")]
    SameWindow(Window),
    /// The name cannot be part of a header.
    #[error("meter name {0:?} is not up to 64 of letters, digits, '-', '_' and '.'")]
    Name(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: Result<(u64, Window, Algorithm), &str>) {
        let parsed = serde_json::from_str::<Limit>(json);
        match (parsed, expected) {
            (Ok(limit), Ok(fields)) => {
                assert_eq!(
                    (limit.limit(), limit.window(), limit.algorithm()),
                    fields,
                    "{json}"
                );
                let again = serde_json::to_string(&limit).unwrap();
                assert_eq!(
                    serde_json::from_str::<Limit>(&again).unwrap(),
                    limit,
                    "{json}"
                );
            }
            (Err(error), Err(part)) => {
                assert!(error.to_string().contains(part), "{json}: {error}");
            }
            (parsed, expected) => panic!("{json}: {parsed:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_limit_is_valid_or_does_not_exist() {
        use Algorithm::{FixedWindow, SlidingWindow};
        check(
            r#"{"limit":5,"window":"minute"}"#,
            Ok((5, Window::Minute, SlidingWindow)),
        );
        check(
            r#"{"limit":5,"window":"hour"}"#,
            Ok((5, Window::Hour, SlidingWindow)),
        );
        check(
            r#"{"limit":5,"window":"day"}"#,
            Ok((5, Window::Day, FixedWindow)),
        );
        check(
            r#"{"limit":5,"window":"month","algorithm":"fixed_window"}"#,
            Ok((5, Window::Month, FixedWindow)),
        );
        check(
            r#"{"limit":1000000000000,"window":"second"}"#,
            Ok((LIMIT_MAX, Window::Second, SlidingWindow)),
        );
        check(r#"{"limit":0,"window":"minute"}"#, Err("use a rule"));
        check(
            r#"{"limit":1000000000001,"window":"minute"}"#,
            Err("not between"),
        );
        check(r#"{"limit":-1,"window":"minute"}"#, Err("invalid value"));
        check(r#"{"limit":5,"window":"week"}"#, Err("unknown variant"));
        check(
            r#"{"limit":5,"window":"day","algorithm":"sliding_window"}"#,
            Err("use fixed_window"),
        );
        check(
            r#"{"limit":5,"window":"day","burst":1}"#,
            Err("unknown field"),
        );
    }

    fn spec(windows: &[Window]) -> Result<MeterSpec, MeterError> {
        let limits = windows
            .iter()
            .map(|window| Limit::new(10, *window).unwrap())
            .collect();
        MeterSpec::new("orders", 1, limits)
    }

    #[test]
    fn a_meter_has_one_limit_per_window_and_a_behaviour_without_store() {
        use Window::{Day, Hour, Minute, Second};
        let loss = |windows: &[Window]| spec(windows).unwrap().store_loss();
        assert_eq!(loss(&[Second, Minute]), StoreLoss::LocalShare);
        assert_eq!(loss(&[Hour]), StoreLoss::FailClosed);
        assert_eq!(loss(&[Minute, Day]), StoreLoss::FailClosed);
        assert_eq!(spec(&[Minute, Day, Second]).unwrap().slowest(), Some(Day));
        assert_eq!(spec(&[]).unwrap().slowest(), None);
        assert_eq!(
            spec(&[Minute, Second, Minute]),
            Err(MeterError::SameWindow(Minute))
        );
        assert!(matches!(
            MeterSpec::new("a b", 1, vec![]),
            Err(MeterError::Name(_))
        ));
        assert!(matches!(
            MeterSpec::new("a\"", 1, vec![]),
            Err(MeterError::Name(_))
        ));
    }
}
