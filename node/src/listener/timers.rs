//! A deadline that costs nearly nothing to move.
//!
//! A connection's deadline moves with every request, mostly into the future. The timer behind it
//! is moved only when it must ring earlier, or when it has rung too early; so a busy connection
//! touches the runtime's timer wheel once per deadline, not once per request.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A point in time, or none.
#[derive(Debug, Default)]
pub struct Deadline {
    at: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// No deadline.
    pub const fn none() -> Self {
        Self {
            at: None,
            timer: None,
        }
    }

    /// Whether there is one.
    pub const fn is_set(&self) -> bool {
        self.at.is_some()
    }

    /// Moves it to `after` from now.
    pub fn set(&mut self, after: Duration) {
        // An overflowing time is one that never comes.
        self.at = Instant::now().checked_add(after);
    }

    /// Takes it away.
    pub const fn clear(&mut self) {
        self.at = None;
    }

    /// Whether it is over; if not, the task is woken when it is.
    pub fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at) = self.at else {
            return false;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        while let Poll::Ready(()) = timer.as_mut().poll(cx) {
            if timer.deadline() >= at {
                return true;
            }
            timer.as_mut().reset(at);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);
    const SHORT: Duration = Duration::from_millis(5);

    async fn over(deadline: &mut Deadline) {
        std::future::poll_fn(|cx| {
            if deadline.is_over(cx) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    fn is_over_now(deadline: &mut Deadline) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        deadline.is_over(&mut cx)
    }

    #[actix_rt::test]
    async fn a_deadline_moves_both_ways() {
        let mut deadline = Deadline::none();
        assert!(!is_over_now(&mut deadline), "none is never over");
        deadline.set(LONG);
        assert!(deadline.is_set() && !is_over_now(&mut deadline));
        deadline.set(SHORT);
        over(&mut deadline).await;
        assert!(is_over_now(&mut deadline), "stays over");
        deadline.set(LONG);
        assert!(!is_over_now(&mut deadline), "moved on");
        deadline.set(SHORT);
        deadline.clear();
        assert!(!deadline.is_set() && !is_over_now(&mut deadline));
        deadline.set(SHORT);
        over(&mut deadline).await;
    }

    #[actix_rt::test]
    async fn a_timer_that_rings_early_is_set_again() {
        let mut deadline = Deadline::none();
        deadline.set(SHORT);
        assert!(!is_over_now(&mut deadline));
        deadline.set(SHORT * 4);
        let due = deadline.at.unwrap();
        over(&mut deadline).await;
        assert!(Instant::now() >= due);
    }
}
