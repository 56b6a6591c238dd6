//! A request as it is handed to the client, but for its body.

use http::header::HeaderName;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method};
use tokio::time::Instant;

use super::gate::Leave;
use crate::body::RequestBody;
use crate::limits::{Clock, SystemClock};

/// The head of a request as it is to be sent. `Host`, the length fields and hop-by-hop fields are
/// ours: what stands here under those names is replaced or dropped.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Path and query, sent byte for byte. Starts with `/`; only `OPTIONS` may ask for `*`.
    pub target: PathAndQuery,
    /// The fields, in the order in which they are sent.
    pub headers: HeaderMap,
    /// Under which it is sent.
    pub terms: Terms,
}

/// What holds for a request besides its text.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The target recognises a repetition of this request, whatever its method: it carries the
    /// field that the target's `retry.idempotency_header` names.
    pub has_idempotency_key: bool,
    /// The target has other addresses, to which the request may go where it may be sent again: it
    /// comes back with what was missed.
    pub has_alternatives: bool,
    /// From when on `timeouts.total` counts.
    pub asked_at: Instant,
    /// The request tells the target when the gate let it go; see `gateway.fault_injection`.
    pub says_sent_at: bool,
}

impl Terms {
    /// Those of a request that is asked for now, of which nothing else is known.
    pub fn now() -> Self {
        Self {
            has_idempotency_key: false,
            has_alternatives: false,
            asked_at: Instant::now(),
            says_sent_at: false,
        }
    }
}

/// A request that may be sent again.
pub type Resend = Box<(RequestHead, RequestBody)>;

/// See [`Terms::says_sent_at`].
const SENT_AT: HeaderName = HeaderName::from_static("requestrocket-sent-at");

impl RequestHead {
    /// All of it; what stays is empty.
    pub(super) fn take(&mut self) -> Self {
        Self {
            method: std::mem::take(&mut self.method),
            target: self.take_target(),
            headers: std::mem::take(&mut self.headers),
            terms: self.terms,
        }
    }

    /// Its target; what stays is `/`.
    pub(super) fn take_target(&mut self) -> PathAndQuery {
        std::mem::replace(&mut self.target, PathAndQuery::from_static("/"))
    }

    /// Tells the target for which instant the gate has counted it, else when this is called, where
    /// that is wanted.
    pub fn tell_sent_at(&mut self, leave: Leave) {
        if self.terms.says_sent_at {
            let at_ns = leave.unwrap_or_else(|| SystemClock.boot_ns());
            self.headers.insert(SENT_AT, HeaderValue::from(at_ns));
        }
    }
}
