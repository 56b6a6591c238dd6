//! A deadline that costs nothing while answers come quickly.
//!
//! The timer is made when something has to be waited for, and it is set again only when it rings
//! too early: moving the deadline forward for every piece of a body would take the timer wheel's
//! lock each time.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// One deadline of one exchange.
#[derive(Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready when `due` is over; otherwise the task is woken then, or earlier.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// Longer times than this mean "no limit"; it keeps `now + after` from overflowing.
const AFTER_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The instant `after` from `now`.
pub(super) fn due(now: Instant, after: Duration) -> Instant {
    now + after.min(AFTER_MAX)
}
