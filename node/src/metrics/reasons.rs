//! Counts by reason: why callers were refused, and why targets did not answer.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use proto::record::{AttemptFailure, AuthFailure};

use super::{Shared, head};

/// Why callers were refused and why targets did not answer.
pub(super) fn render(shared: &Shared, out: &mut String) {
    let name = "requestrocket_auth_failures_total";
    head(
        name,
        "Callers answered 401, by the reason, which they are not told.",
        "counter",
        out,
    );
    for (why, count) in AuthFailure::ALL.iter().zip(&shared.auth_failures) {
        let why = why.as_str();
        let _ = writeln!(out, "{name}{{reason=\"{why}\"}} {}", count.load(Relaxed));
    }
    let name = "requestrocket_upstream_failures_total";
    head(
        name,
        "Attempts towards targets without an answer, by the reason.",
        "counter",
        out,
    );
    for (why, count) in AttemptFailure::ALL.iter().zip(&shared.upstream_failures) {
        let why = why.as_str();
        let _ = writeln!(out, "{name}{{reason=\"{why}\"}} {}", count.load(Relaxed));
    }
    let name = "requestrocket_upstream_answers_total";
    head(
        name,
        "Answers of targets, by whether the connection was kept or new.",
        "counter",
        out,
    );
    for (connection, count) in ["new", "kept"].iter().zip(&shared.upstream_answers) {
        let count = count.load(Relaxed);
        let _ = writeln!(out, "{name}{{connection=\"{connection}\"}} {count}");
    }
}
