//! The instant at which a process that ends has no more time for the requests that it has in hand.
//!
//! The workers end then, with whatever they hold. Who waits for a target gives up, and a request
//! that ends unfinished says that the gateway stopped, and not that its caller left.

use std::future::{Future, poll_fn};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Instant;

use proto::outcome::Code;

/// See the module; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cut(Arc<OnceLock<Instant>>);

impl Cut {
    /// Requests in hand have until then. The first word counts.
    pub fn comes(&self, at: Instant) {
        // Set before: a listener drains once.
        let _ = self.0.set(at);
    }

    /// Whether the time is over.
    pub fn has_come(&self) -> bool {
        self.0.get().is_some_and(|at| Instant::now() >= *at)
    }

    /// Ends when the time is over.
    ///
    /// No waker is kept: whoever polls this is polled a last time when its worker ends.
    pub fn passed(&self) -> impl Future<Output = ()> {
        poll_fn(|_| match self.has_come() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
    }

    /// The outcome of a request that ends now and is not answered to its end.
    pub fn unfinished(&self) -> Code {
        match self.has_come() {
            true => Code::GatewayStopped,
            false => Code::ClientAborted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_is_unfinished_has_left_until_the_time_is_over() {
        let (cut, now) = (Cut::default(), Instant::now());
        assert_eq!(cut.unfinished(), Code::ClientAborted);
        cut.comes(now + Duration::from_secs(3_600));
        assert_eq!(cut.unfinished(), Code::ClientAborted);
        let cut = Cut::default();
        cut.comes(now);
        assert_eq!(cut.unfinished(), Code::GatewayStopped);
        cut.comes(now + Duration::from_secs(3_600));
        assert!(cut.has_come(), "the first word counts");
    }
}
