//! One limit: how many per which window, and how the window moves.
//!
//! Parsed once: a [`Limit`] that exists is within its bounds and has an algorithm that its window
//! supports, so that no later code needs an error for it. All limits of one meter share one key,
//! one state and one block; what is free is the smallest of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::MeterError;

/// Largest amount of one limit: a token count must fit the 40 bits that a worker's cell has.
pub const LIMIT_MAX: u64 = 1_000_000_000_000;

const SECOND_NS: u64 = 1_000_000_000;

/// Length of the interval that a limit speaks about, fastest first.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
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
    /// `burst` at once, refilled by `limit` per window: over any time T, sent ≤ burst + limit ·
    /// T / window (all but month).
    TokenBucket,
}

/// What a limit of a meter counts, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MeterAlgorithm {
    /// In any interval of the window's length, sent ≤ limit (second, minute, hour).
    SlidingWindow,
    /// In each calendar window in UTC, sent ≤ limit (day, month).
    FixedWindow,
    /// `burst` at once, refilled by `limit` per window (all but month).
    TokenBucket,
    /// Calls in flight ≤ limit; without a window.
    Concurrency,
}

/// What becomes of a call in flight whose node can renew its place neither itself nor through
/// another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnLost {
    /// It goes on. Others may have its place ten seconds after it was last renewed, so that more
    /// calls than the limit may be in flight until it ends.
    #[default]
    Keep,
    /// It is ended before others may have its place, so that the limit holds.
    Cancel,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SlidingWindow => "sliding_window",
            Self::FixedWindow => "fixed_window",
            Self::TokenBucket => "token_bucket",
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
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitFields {
    limit: u64,
    window: Window,
    #[serde(default)]
    algorithm: Option<Algorithm>,
    #[serde(default)]
    burst: Option<u64>,
}

impl TryFrom<LimitFields> for Limit {
    type Error = MeterError;

    fn try_from(fields: LimitFields) -> Result<Self, MeterError> {
        let algorithm = fields
            .algorithm
            .unwrap_or(fields.window.default_algorithm());
        let limit = Self::with_algorithm(fields.limit, fields.window, algorithm)?;
        match fields.burst {
            Some(burst) => limit.with_burst(burst),
            None => Ok(limit),
        }
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
        let fits = match algorithm {
            Algorithm::TokenBucket => window != Window::Month,
            other => other == window.default_algorithm(),
        };
        if !fits {
            return Err(MeterError::Algorithm { algorithm, window });
        }
        Ok(Self {
            limit,
            window,
            algorithm,
            burst: None,
        })
    }

    /// The same token bucket with another burst than one window's worth.
    ///
    /// # Errors
    /// [`MeterError::BurstRange`] when it is 0 or above [`LIMIT_MAX`],
    /// [`MeterError::BurstAlgorithm`] when the limit is no token bucket.
    pub fn with_burst(mut self, burst: u64) -> Result<Self, MeterError> {
        if self.algorithm != Algorithm::TokenBucket {
            return Err(MeterError::BurstAlgorithm);
        }
        if burst == 0 || burst > LIMIT_MAX {
            return Err(MeterError::BurstRange(burst));
        }
        self.burst = Some(burst);
        Ok(self)
    }

    /// The same limit with other amounts.
    pub(super) fn scaled(&self, scale: impl Fn(u64) -> u64) -> Self {
        Self {
            limit: scale(self.limit),
            burst: self.burst.map(&scale),
            ..*self
        }
    }

    /// How many may pass at once: the burst of a token bucket, else the limit.
    pub fn capacity(&self) -> u64 {
        self.burst.unwrap_or(self.limit)
    }

    /// How many may pass per window, 1 to [`LIMIT_MAX`]; 0 only of a region without a share.
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
        use Algorithm::{FixedWindow, SlidingWindow, TokenBucket};
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
        check(
            r#"{"limit":5,"window":"second","algorithm":"token_bucket","burst":50}"#,
            Ok((5, Window::Second, TokenBucket)),
        );
        check(
            r#"{"limit":5,"window":"month","algorithm":"token_bucket"}"#,
            Err("does not support"),
        );
        check(
            r#"{"limit":5,"window":"second","algorithm":"token_bucket","burst":0}"#,
            Err("burst 0"),
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
            Err("token_bucket"),
        );
    }
}
