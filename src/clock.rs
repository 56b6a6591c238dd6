//! The wall clock that limits by day and month go by, and that nodes are told.

use std::sync::Arc;

use node::limits::{Clock, ShiftedClock, SystemClock};
use tracing::warn;

use crate::serve::CannotStart;
use crate::settings::Settings;

/// The clocks that limits go by.
///
/// # Errors
/// [`CannotStart`]: a fault is to be injected where none may be.
pub fn of_limits(settings: &Settings) -> Result<Arc<dyn Clock>, CannotStart> {
    if settings.gateway.fault_injection {
        warn!(
            "gateway.fault_injection is on: callers may ask this gateway for faults, it is a test"
        );
    }
    Ok(match ahead_ns(settings)? {
        0 => Arc::new(SystemClock),
        ahead_ns => Arc::new(ShiftedClock { ahead_ns }),
    })
}

/// How far the wall clock of this process is taken to be ahead; 0 but for tests of the gateway
/// itself.
///
/// # Errors
/// [`CannotStart`]: it is set where faults may not be injected.
pub fn ahead_ns(settings: &Settings) -> Result<i64, CannotStart> {
    let gateway = &settings.gateway;
    let ahead_ms = gateway.fault_clock_ahead_ms;
    if ahead_ms == 0 {
        return Ok(0);
    }
    if !gateway.fault_injection {
        let why = "gateway.fault_clock_ahead_ms is for tests of the gateway itself: remove it, or \
                   set gateway.fault_injection = true as well";
        return Err(CannotStart(why.into()));
    }
    warn!(
        ahead_ms,
        "gateway.fault_clock_ahead_ms: limits by day and month take the time to be {ahead_ms} ms \
         later than it is, this is a test"
    );
    Ok(ahead_ms.saturating_mul(1_000_000))
}
