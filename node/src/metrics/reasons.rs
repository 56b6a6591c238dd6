//! Counts by reason: why callers were refused, and why targets did not answer.

use std::sync::atomic::Ordering::Relaxed;

use proto::exposition::Families;
use proto::record::{AttemptFailure, AuthFailure};

use super::Shared;

/// Why callers were refused and why targets did not answer.
pub(super) fn collect(shared: &Shared, out: &mut Families) {
    let name = "requestrocket_auth_failures_total";
    let help = "Callers answered 401, by the reason, which they are not told.";
    let family = out.counter(name, help);
    for (why, count) in AuthFailure::ALL.iter().zip(&shared.auth_failures) {
        family.with([("reason", why.as_str().into())], count.load(Relaxed));
    }
    let name = "requestrocket_upstream_failures_total";
    let help = "Attempts towards targets without an answer, by the reason.";
    let family = out.counter(name, help);
    for (why, count) in AttemptFailure::ALL.iter().zip(&shared.upstream_failures) {
        family.with([("reason", why.as_str().into())], count.load(Relaxed));
    }
    let name = "requestrocket_upstream_answers_total";
    let help = "Answers of targets, by whether the connection was kept or new.";
    let family = out.counter(name, help);
    for (connection, count) in ["new", "kept"].into_iter().zip(&shared.upstream_answers) {
        family.with([("connection", connection.into())], count.load(Relaxed));
    }
}
