//! What may be sent a second time without asking; see the head of `send.rs`.

use super::pool::Lease;
use super::retry::is_idempotent;
use super::send::RequestHead;
use crate::body::RequestBody;

/// Bodies up to this size are sent a second time where a replay is allowed (`design.md` §3).
pub const REPLAY_BYTES_MAX: u64 = 64 * 1024;

/// A second copy of a request that may be sent twice.
pub(super) fn replay_copy(
    head: &RequestHead,
    body: &RequestBody,
    lease: &Lease,
) -> Option<(RequestHead, RequestBody)> {
    let small = body
        .length()
        .is_some_and(|length| length <= REPLAY_BYTES_MAX);
    let repeatable = head.has_idempotency_key || is_idempotent(&head.method);
    if !(lease.reused() && small && repeatable) {
        return None;
    }
    Some((head.clone(), body.replay()?))
}
