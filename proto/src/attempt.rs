//! One attempt to get an answer from a target, as records keep it. Plain, like a record itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One attempt to get an answer from the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// When a connection for it was asked for: microseconds after the request's start.
    pub started_us: u32,
    /// From then until there was one, in microseconds.
    pub connect_us: u32,
    /// From sending the request until the answer's head had come, or the attempt had failed, in
    /// microseconds.
    pub wait_us: u32,
    /// Whether its connection had served a request before.
    pub reused: bool,
    /// What the target answered.
    pub status: Option<u16>,
    /// Why there was no answer.
    pub failure: Option<AttemptFailure>,
}

impl Attempt {
    /// The whole attempt, in microseconds.
    pub fn took_us(&self) -> u64 {
        u64::from(self.connect_us) + u64::from(self.wait_us)
    }
}

/// Why an attempt got no answer from the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AttemptFailure {
    /// The dial guard refused the target's address.
    Refused,
    /// The target's name has no address.
    Resolve,
    /// No address took the connection.
    Connect,
    /// No connection in time.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// All connections were busy.
    PoolExhausted,
    /// No first byte of an answer in time.
    FirstByteTimeout,
    /// No answer in the whole time for it.
    TotalTimeout,
    /// The connection ended before an answer.
    Reset,
    /// What came was not HTTP.
    BadHttp,
    /// The caller's body broke off.
    CallerBody,
    /// The request cannot be sent as it is.
    BadTarget,
    /// Something that this program does not know the name of.
    Other,
}

impl AttemptFailure {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::Refused,
        Self::Resolve,
        Self::Connect,
        Self::ConnectTimeout,
        Self::Tls,
        Self::PoolExhausted,
        Self::FirstByteTimeout,
        Self::TotalTimeout,
        Self::Reset,
        Self::BadHttp,
        Self::CallerBody,
        Self::BadTarget,
        Self::Other,
    ];

    /// Its text, the same as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect-timeout",
            Self::Tls => "tls",
            Self::PoolExhausted => "pool-exhausted",
            Self::FirstByteTimeout => "first-byte-timeout",
            Self::TotalTimeout => "total-timeout",
            Self::Reset => "reset",
            Self::BadHttp => "bad-http",
            Self::CallerBody => "caller-body",
            Self::BadTarget => "bad-target",
            Self::Other => "other",
        }
    }
}
