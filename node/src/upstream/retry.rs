//! Pure: may a request be repeated, when, and within which budget.
//!
//! What is replayed without asking is in `send.rs`; this is for retries that a target's
//! configuration asks for.

use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use jiff::fmt::{rfc2822, strtime};
use jiff::tz::TimeZone;

/// Whether repeating a request has the effect of sending it once (RFC 9110 §9.2.2). Methods that
/// nobody knows are not.
#[must_use]
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// Holds retries to a share of the requests: a target that fails everything must not be asked
/// twice as often for it.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    /// A request adds 1, a retry takes [`RETRY_COST`].
    balance: u32,
}

/// Requests per retry: five, so that retries add at most 20 %.
const RETRY_COST: u32 = 5;

/// Most that is saved up: ten retries, so that a quiet hour does not pay for a storm.
const BALANCE_MAX: u32 = 10 * RETRY_COST;

impl Default for RetryBudget {
    /// Enough for one retry: a target with one request an hour may be retried as well.
    fn default() -> Self {
        Self {
            balance: RETRY_COST,
        }
    }
}

impl RetryBudget {
    /// Counts a request (not a retry).
    pub fn count_request(&mut self) {
        self.balance = self.balance.saturating_add(1).min(BALANCE_MAX);
    }

    /// Takes a retry out of the budget; `false` if it is used up.
    #[must_use]
    pub fn take_retry(&mut self) -> bool {
        match self.balance.checked_sub(RETRY_COST) {
            Some(rest) => {
                self.balance = rest;
                true
            }
            None => false,
        }
    }
}

/// The wait that a `Retry-After` field asks for (RFC 9110 §10.2.3): seconds, or a date in one of
/// the three forms of RFC 9110 §5.6.7. At most `most`; a date in the past is no wait. `None` if it
/// is neither.
#[must_use]
pub fn retry_after(value: &[u8], now: Timestamp, most: Duration) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too many digits for a number are a very long wait, not a malformed field.
        return Some(
            text.parse()
                .map_or(most, |seconds| Duration::from_secs(seconds).min(most)),
        );
    }
    let wait = http_date(text)?.duration_since(now);
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO).min(most))
}

fn http_date(text: &str) -> Option<Timestamp> {
    if let Ok(instant) = rfc2822::DateTimeParser::new().parse_timestamp(text) {
        return Some(instant);
    }
    let obsolete = ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    obsolete.iter().find_map(|form| {
        let date = strtime::parse(form, text).ok()?.to_datetime().ok()?;
        TimeZone::UTC.to_timestamp(date).ok()
    })
}

/// The wait before attempt `attempt` (the first retry is 1): a random part of
/// `base * 2^(attempt - 1)`, at most `most`.
///
/// Full jitter: callers that failed together must not come back together. `random` is in [0, 1).
#[must_use]
pub fn backoff(attempt: u32, base: Duration, most: Duration, random: f64) -> Duration {
    let factor = 1_u32
        .checked_shl(attempt.saturating_sub(1))
        .unwrap_or(u32::MAX);
    let ceiling = base.saturating_mul(factor).min(most);
    ceiling.mul_f64(random.clamp(0.0, 1.0))
}
