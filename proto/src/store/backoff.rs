//! How long to wait between tries to follow what the store holds.

use std::time::Duration;

/// First and longest wait after an error: everything is current again within 5 s after the store
/// is back.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Longer after each failure, up to a bound, and random, so that nodes get out of step.
pub fn backoff(failures: u32) -> Duration {
    let ceiling = BACKOFF_MIN
        .saturating_mul(1 << failures.min(10))
        .min(BACKOFF_MAX);
    BACKOFF_MIN / 2 + jitter(ceiling)
}

/// A random part of a duration.
pub fn jitter(whole: Duration) -> Duration {
    whole.mul_f64(f64::from(u32::from_ne_bytes(crate::seal::random())) / f64::from(u32::MAX))
}
