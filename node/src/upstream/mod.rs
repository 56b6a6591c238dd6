//! The client towards targets.
//!
//! Everything a tenant can name (targets, token endpoints, key sets) is called through this
//! module, so that the guard, the bounds and the timeouts hold for all of it. It stands on hyper's
//! connection-level API with a pool of our own; `design.md` §3 tells why.
//!
//! ```text
//! send.rs ── gate, send, wait, replay ──▶ answer.rs ── stream the body, give the connection back
//!    │  framing.rs (pure): fields of the connection     error.rs: what failed, whose fault
//!    ▼
//! acquire.rs ──▶ dial.rs ── resolve.rs, address.rs (pure), tls.rs ──▶ conn.rs
//!    └── pool.rs: share, bound, age the connections to one target
//! ```
//!
//! One [`Upstream`] per worker. Nothing in it is shared between threads and nothing is locked;
//! [`Destination`]s are shared, immutable, and belong to a configuration version. It needs a
//! current-thread runtime with a `LocalSet`, which is what an actix worker is.
//!
//! `breaker.rs` and `retry.rs` are pure and used by the forward stage.

mod acquire;
pub mod address;
mod answer;
pub mod breaker;
mod conn;
mod counted;
mod destination;
mod dial;
mod error;
pub mod foreseen;
mod framing;
mod gate;
mod head;
mod lease;
mod pool;
mod replay;
mod resolve;
pub mod retry;
mod send;
mod sent;
#[cfg(test)]
mod tests;
mod timer;
pub mod tls;
mod transport;

use std::rc::Rc;
use std::sync::Arc;

pub use acquire::PoolSettings;
pub use answer::{Answer, AnswerBody, Watch};
pub use counted::ConnectionCounts;
pub use destination::{
    BadHost, CONNECTIONS_MAX_DEFAULT, Destination, DestinationParts, Host, Timeouts,
};
pub use dial::is_our_address;
pub use error::{AnswerError, Earlier, Failure, FailureKind, Fault, SendError, Stopped};
pub use gate::{Gate, Hold, Leave};
pub use head::{RequestHead, Resend, Terms};
pub use replay::REPLAY_BYTES_MAX;
pub use resolve::{Hosts, ResolveError};

use crate::body::RequestBody;
use acquire::Pools;
pub(crate) use resolve::Resolver;

/// What one worker's client is made of.
#[derive(Clone, Debug, Default)]
pub struct UpstreamSettings {
    /// The operator's `dial_guard.hosts_file`: names that are not asked of DNS.
    pub hosts: Hosts,
    /// The bounds of the connection pools.
    pub pool: PoolSettings,
    /// Where it is told how many connections there are.
    pub counts: ConnectionCounts,
}

/// The client of one worker.
pub struct Upstream {
    pools: Rc<Pools>,
}

impl Upstream {
    /// A client without connections. Opens nothing and starts nothing until the first request.
    #[must_use]
    pub fn new(settings: UpstreamSettings) -> Self {
        Self {
            pools: Pools::new(
                settings.pool,
                Resolver::new(settings.hosts),
                settings.counts,
            ),
        }
    }

    /// Sends one request and waits for the head of its answer. Head and body are taken out where it
    /// is sent.
    ///
    /// `gate` is called with the attempt's number (from 1) for every attempt, in the same poll and
    /// directly before the request is handed to the connection. That is the instant at which
    /// tokens count as sent, and at which the gate may still change the head; an error of the gate
    /// ends the exchange.
    ///
    /// Dropping the future, or the answer's body before its end, closes the connection.
    ///
    /// # Errors
    ///
    /// [`SendError::Gate`] with the gate's own refusal, or [`SendError::Failed`]; the table of
    /// `error.rs` says what each kind means.
    pub fn send<G>(
        &self,
        destination: &Arc<Destination>,
        head: &mut RequestHead,
        body: &mut RequestBody,
        gate: &mut Gate<'_, G>,
    ) -> impl Future<Output = Result<Box<Answer>, SendError<G>>> {
        send::send(&self.pools, destination, head, body, gate)
    }

    /// Connections of this worker that are open or being opened.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.pools.open()
    }
}
