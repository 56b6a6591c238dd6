//! When a target that fails is left alone for a while: the settings of its circuit breaker.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::checks;
use crate::problem::Problem;

/// A circuit breaker: it opens after failures, refuses with 503 `circuit-open`, then lets single
/// requests through until they succeed. A failure is no answer, or one with a status from 500 on
/// except 501. Each node judges by what it sees itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerSettings {
    /// Opens at so many failures in a row, 1 to 1,000. Default 5, or off where `failure_percent` is
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// Opens at this share of failures within `window_ms`, 1 to 100. Default off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_percent: Option<u32>,
    /// Requests within `window_ms` below which the share says nothing. Default 20.
    pub requests_min: u64,
    /// Length of the window of `failure_percent`, 1,000 to 3,600,000. Default 10,000.
    pub window_ms: u64,
    /// How long it stays open the first time, 100 to 3,600,000. Default 5,000. Twice as long each
    /// time that a probe fails.
    pub open_ms: u64,
    /// The longest it stays open, `open_ms` to 3,600,000. Default 60,000.
    pub open_max_ms: u64,
    /// Requests that must succeed, one after the other, before it closes: 1 to 100. Default 1.
    pub probes: u32,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            consecutive_failures: None,
            failure_percent: None,
            requests_min: 20,
            window_ms: 10_000,
            open_ms: 5_000,
            open_max_ms: 60_000,
            probes: 1,
        }
    }
}

/// Failures in a row that open a breaker of which nothing else is said.
const CONSECUTIVE_FAILURES: u32 = 5;

impl BreakerSettings {
    /// Failures in a row at which it opens; `None` where only the share counts.
    pub fn consecutive_failures(&self) -> Option<u32> {
        match (self.consecutive_failures, self.failure_percent) {
            (None, None) => Some(CONSECUTIVE_FAILURES),
            (given, _) => given,
        }
    }

    /// Reports values out of their range.
    pub fn check(&self, pointer: &str, problems: &mut Vec<Problem>) {
        let longest = 3_600_000;
        let fields = [
            (
                "consecutive_failures",
                self.consecutive_failures.map(u64::from),
                1..=1_000,
            ),
            (
                "failure_percent",
                self.failure_percent.map(u64::from),
                1..=100,
            ),
            ("requests_min", Some(self.requests_min), 1..=1_000_000),
            ("window_ms", Some(self.window_ms), 1_000..=longest),
            ("open_ms", Some(self.open_ms), 100..=longest),
            (
                "open_max_ms",
                Some(self.open_max_ms),
                self.open_ms.min(longest)..=longest,
            ),
            ("probes", Some(u64::from(self.probes)), 1..=100),
        ];
        for (field, value, range) in fields {
            checks::range(value, range, &format!("{pointer}/{field}"), problems);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> BreakerSettings {
        serde_json::from_str(json).unwrap()
    }

    fn pointers(json: &str) -> Vec<String> {
        let mut problems = Vec::new();
        parsed(json).check("/breaker", &mut problems);
        let pointer = |problem: Problem| problem.pointer;
        problems.into_iter().map(pointer).collect()
    }

    #[test]
    fn nothing_given_is_five_failures_in_a_row() {
        assert_eq!(parsed("{}").consecutive_failures(), Some(5));
        let share = parsed(r#"{"failure_percent": 50}"#);
        assert_eq!(share.consecutive_failures(), None);
        assert!(pointers("{}").is_empty());
    }

    #[test]
    fn every_value_out_of_its_range_is_named() {
        let all = r#"{"consecutive_failures": 0, "failure_percent": 101, "requests_min": 0,
            "window_ms": 5, "open_ms": 99, "open_max_ms": 98, "probes": 0}"#;
        assert_eq!(
            pointers(all),
            [
                "/breaker/consecutive_failures",
                "/breaker/failure_percent",
                "/breaker/requests_min",
                "/breaker/window_ms",
                "/breaker/open_ms",
                "/breaker/open_max_ms",
                "/breaker/probes"
            ]
        );
    }
}
