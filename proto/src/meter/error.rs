//! Why a limit or a meter cannot be.

use super::{Algorithm, CONCURRENCY_MAX, LIMIT_MAX, Window};

/// Why a limit or a meter is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    /// The amount is zero or too large.
    #[error("limit {0} is not between 1 and {LIMIT_MAX}; to refuse everything use a rule")]
    LimitRange(u64),
    /// A limit of anything but calls in flight needs a window.
    #[error("is missing: second, minute, hour, day or month")]
    NoWindow,
    /// Calls in flight are zero or too many.
    #[error("limit {0} is not between 1 and {CONCURRENCY_MAX} calls in flight")]
    SlotRange(u64),
    /// Calls in flight have no window and no burst.
    #[error("`concurrency` has no `window` and no `burst`; remove them")]
    SlotWindow,
    /// Only calls in flight can be lost.
    #[error("`on_lost` belongs to `algorithm: concurrency` only")]
    OnLost,
    /// The burst is zero or too large.
    #[error("burst {0} is not between 1 and {LIMIT_MAX}")]
    BurstRange(u64),
    /// Only token buckets have a burst.
    #[error("`burst` belongs to `algorithm: token_bucket` only")]
    BurstAlgorithm,
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
