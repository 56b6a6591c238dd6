//! What may be sent a second time without asking; see the head of `send.rs`.

use super::head::RequestHead;
use super::lease::Lease;
use super::retry::is_idempotent;
use crate::body::RequestBody;

/// Bodies up to this size are sent a second time where a replay is allowed (`design.md` §3).
pub const REPLAY_BYTES_MAX: u64 = 64 * 1024;

/// A second copy of a request that may be sent twice: to the same address where its connection had
/// been used before, or to another one.
pub(super) fn replay_copy(
    head: &RequestHead,
    body: &RequestBody,
    lease: &Lease,
) -> Option<(RequestHead, RequestBody)> {
    if !(lease.reused() || head.terms.has_alternatives) || !is_repeatable(head, body) {
        return None;
    }
    Some((head.clone(), body.replay()?))
}

/// Whether a request may be sent again although it may have been carried out.
fn is_repeatable(head: &RequestHead, body: &RequestBody) -> bool {
    let small = body
        .length()
        .is_some_and(|length| length <= REPLAY_BYTES_MAX);
    small && (head.terms.has_idempotency_key || is_idempotent(&head.method))
}
