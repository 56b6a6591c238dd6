//! That a clock is not that of the control plane which was asked, in words.

use serde_json::Value;

/// What is said of who has `clock_ahead_ms`, against the clock of `whose`; nothing where that is
/// null.
pub(super) fn words(told: &Value, whose: &str) -> Option<String> {
    let ahead_ms = told["clock_ahead_ms"].as_i64()?;
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    let seconds = ahead_ms.unsigned_abs() as f64 / 1e3;
    Some(format!(
        "clock-skew its clock is {seconds:.1} s {side} {whose}; set both by NTP"
    ))
}
