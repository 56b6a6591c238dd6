//! A request as it is handed to the client, but for its body.

use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use tokio::time::Instant;

use crate::body::RequestBody;

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
}

/// A request that may be sent again.
pub type Resend = Box<(RequestHead, RequestBody)>;
