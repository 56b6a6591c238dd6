//! Why an exchange with a target failed, whose fault it is, and whether it may have happened.
//!
//! | kind | fault | early end | may have been carried out |
//! |---|---|---|---|
//! | `Refused` | configuration | `upstream-blocked` | no |
//! | `Resolve`, `Connect` | target | `upstream-unreachable` | no |
//! | `ConnectTimeout` | target | `upstream-timeout` | no |
//! | `Tls` | target | `upstream-tls` | no |
//! | `PoolExhausted` | gateway | `overloaded` | no |
//! | `Held` | gateway | `upstream-timeout` | no |
//! | `FirstByteTimeout`, `TotalTimeout` | target | `upstream-timeout` | if anything was sent |
//! | `Reset` | target | `upstream-unreachable` | if anything was sent |
//! | `BadHttp` | target | `upstream-unreachable` | yes |
//! | `BadTarget` | gateway | `malformed-request` | no |
//! | `CallerStalled` | caller | `upstream-timeout` | yes |
//! | `BodyFromCaller` | caller | none: the caller is gone or malformed | yes |

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::address::Refused;
use super::head::Resend;
use super::resolve::ResolveError;
use crate::body::BodyError;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller's: its body failed.
    Caller,
    /// Whoever configured the target or the guard.
    Configuration,
    /// The target's, or of the network in between.
    Target,
    /// Ours: a bound of this node is reached.
    Gateway,
}

/// What went wrong. The texts are for the log; the addresses in them never reach a caller.
#[derive(Debug, thiserror::Error)]
pub enum FailureKind {
    /// The dial guard refused an address of the target.
    #[error("the dial guard refused {address}: {reason}")]
    Refused {
        /// The address that was refused.
        address: SocketAddr,
        /// The rule it broke.
        reason: Refused,
    },
    /// The target's name has no usable address.
    #[error(transparent)]
    Resolve(ResolveError),
    /// No address took the connection.
    #[error("connecting failed: {0}")]
    Connect(#[source] io::Error),
    /// No connection within `timeouts.connect`.
    #[error("no connection within the connect timeout")]
    ConnectTimeout,
    /// The TLS handshake failed: a wrong name, an unknown authority, an old version.
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    /// All connections to the target were busy for `timeouts.connect`, or too many requests wait.
    #[error("all connections to the target are in use")]
    PoolExhausted,
    /// `timeouts.total` was over while a limit, or the want of a connection, still held the request
    /// here: the target was never asked.
    #[error("held here until the total time was over")]
    Held,
    /// No head of an answer within `timeouts.first_byte`.
    #[error("no first byte within the time for it")]
    FirstByteTimeout,
    /// `timeouts.total` was over before the head of an answer came.
    #[error("no answer within the total time")]
    TotalTimeout,
    /// `timeouts.total` was over while the caller's body still came: the target had nothing to
    /// answer yet.
    #[error("the body of the request had not come within the total time")]
    CallerStalled,
    /// The connection ended before an answer came.
    #[error("the connection ended before an answer: {0}")]
    Reset(Cow<'static, str>),
    /// What came is not HTTP, or not safe to pass on.
    #[error("the answer is not valid HTTP: {0}")]
    BadHttp(Cow<'static, str>),
    /// The inbound body failed while it was sent.
    #[error("the body of the request failed: {0}")]
    BodyFromCaller(#[source] BodyError),
    /// A target that is not in origin form, or `CONNECT`; earlier stages refuse both.
    #[error("the request's target is not a path, or its method is CONNECT")]
    BadTarget,
}

impl FailureKind {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Refused { .. } => Fault::Configuration,
            Self::PoolExhausted | Self::Held | Self::BadTarget => Fault::Gateway,
            Self::CallerStalled | Self::BodyFromCaller(_) => Fault::Caller,
            _ => Fault::Target,
        }
    }

    /// Whether it was seen before anything of the attempt was sent.
    #[must_use]
    pub fn is_before_sending(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Resolve(_)
            | Self::Connect(_)
            | Self::ConnectTimeout
            | Self::Tls(_)
            | Self::PoolExhausted
            | Self::Held
            | Self::BadTarget => true,
            Self::FirstByteTimeout
            | Self::TotalTimeout
            | Self::CallerStalled
            | Self::Reset(_)
            | Self::BadHttp(_)
            | Self::BodyFromCaller(_) => false,
        }
    }

    /// The code of the early end (`design.md` §2); `None` where the caller's own body failed.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Refused { .. } => Some("upstream-blocked"),
            Self::Resolve(_) | Self::Connect(_) | Self::Reset(_) | Self::BadHttp(_) => {
                Some("upstream-unreachable")
            }
            Self::ConnectTimeout
            | Self::Held
            | Self::FirstByteTimeout
            | Self::TotalTimeout
            | Self::CallerStalled => Some("upstream-timeout"),
            Self::Tls(_) => Some("upstream-tls"),
            Self::PoolExhausted => Some("overloaded"),
            Self::BadTarget => Some("malformed-request"),
            Self::BodyFromCaller(_) => None,
        }
    }
}

/// A failed exchange.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct Failure {
    /// What went wrong, last.
    #[source]
    pub kind: FailureKind,
    /// Whether the target may have done what was asked: bytes of the request left and nothing
    /// proves that they were not acted on. Where `false`, repeating it is safe for any method.
    pub maybe_carried_out: bool,
    /// Attempts that were let through by the gate.
    pub attempts: u32,
    /// What went wrong before.
    pub earlier: Vec<Earlier>,
    /// The request, where it may be sent to another address of the target.
    pub again: Option<Resend>,
}

/// An attempt after which another was made.
#[derive(Debug)]
pub struct Earlier {
    /// What went wrong.
    pub kind: FailureKind,
    /// When that was seen.
    pub ended: Instant,
}

/// The outcome of a send that brought no answer.
#[derive(Debug)]
pub enum SendError<G> {
    /// The gate refused an attempt, or nobody waits for an answer any more. `maybe_carried_out` is
    /// `false` in the sense of [`Failure`]: an earlier attempt was given back unwritten, or was of
    /// an idempotent request.
    Gate(Stopped<G>),
    /// The exchange failed.
    Failed(Failure),
}

impl Failure {
    /// The same where another attempt was made before, which the target may have carried out.
    pub fn after(self, earlier: Vec<Earlier>, maybe_carried_out: bool) -> Self {
        Self {
            earlier,
            ..self.after_others(maybe_carried_out)
        }
    }

    /// The same where others were asked before, one of which may have carried it out.
    pub fn after_others(self, maybe_carried_out: bool) -> Self {
        Self {
            kind: match self.kind {
                // Of what was written before it cannot be said that it was held.
                FailureKind::Held if maybe_carried_out => FailureKind::TotalTimeout,
                kind => kind,
            },
            maybe_carried_out: self.maybe_carried_out || maybe_carried_out,
            ..self
        }
    }
}

/// A send that was stopped from this side.
#[derive(Debug)]
pub struct Stopped<G> {
    /// Why.
    pub why: G,
    /// Attempts that were let through by the gate before.
    pub attempts: u32,
    /// What went wrong before.
    pub earlier: Vec<Earlier>,
}

impl<G> Stopped<G> {
    /// After so many attempts.
    pub fn after(attempts: u32, why: G) -> Self {
        Self {
            why,
            attempts,
            earlier: Vec::new(),
        }
    }
}

/// How the body of an answer ended too early. The connection is closed in all cases.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Fewer bytes than announced, a chunk cut short, bad chunk framing, or a reset.
    #[error("the body of the answer broke off: {0}")]
    Broken(String),
    /// Nothing came for `timeouts.idle`.
    #[error("the answer stalled for longer than the idle timeout")]
    IdleTimeout,
    /// `timeouts.total` is over.
    #[error("the answer took longer than the total time")]
    TotalTimeout,
    /// The inbound body failed while the answer was already coming.
    #[error("the body of the request failed: {0}")]
    BodyFromCaller(BodyError),
    /// The call lost its place among those in flight (`on_lost: cancel`).
    #[error("the call lost its place among those in flight")]
    PlaceLost,
}
