//! The beat of the control planes: one key under `live/`, written every few seconds. A node whose
//! watch does not show it has a watch that shows nothing, and a node whose clock is far from it has
//! a clock that is wrong, or control has.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Time between two beats.
pub const EVERY: Duration = Duration::from_secs(5);

/// Clocks further apart than this are reported: ends of rotations, expiry and calendar windows go
/// by them.
pub const SKEW_MAX: Duration = Duration::from_secs(2);

/// What the key holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// When it was written, by the clock of the control plane.
    pub at: Timestamp,
    /// Which control plane wrote it.
    pub by: String,
}

impl Beat {
    /// Milliseconds that a clock showing `now`, as the beat arrives, is ahead of the writer's;
    /// negative when it is behind.
    pub fn offset_ms(&self, now: Timestamp) -> i64 {
        now.as_millisecond()
            .saturating_sub(self.at.as_millisecond())
    }
}
