//! Counts by reason: why callers were refused, why targets did not answer, how limits stand.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::exposition::Families;
use proto::outcome::Code;
use proto::record::{AttemptFailure, AuthFailure};

use super::Shared;
use crate::actor::StageKind;
use crate::limits::Stats;

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

/// Who waits at limits, how far the own clock is off, and for how long limits went by what they do
/// without owner and store.
pub(super) fn limits(limits: &Stats, out: &mut Families) {
    let help = "Callers that wait for their turn at a rate limit now.";
    let family = out.gauge("requestrocket_limit_callers_held", help);
    family.is(limits.holding.load(Relaxed));
    let help = "How far the wall clock is ahead of that of this node and its peers together.";
    let family = out.gauge("requestrocket_limit_clock_ahead_seconds", help);
    family.is(limits.clock_ahead_ns.load(Relaxed) as f64 / 1e9);
    let name = "requestrocket_limit_degraded_seconds_total";
    let help = "Seconds, summed over the keys of limits, in which callers asked for tokens and \
                neither the owner nor etcd gave any, by what the limit does then.";
    let family = out.counter(name, help);
    for (does, seconds) in limits.degraded_s() {
        family.with([("on_store_loss", does.into())], seconds);
    }
    let help = "Meters of which neither the owner nor etcd gives tokens that callers ask for.";
    let family = out.gauge("requestrocket_limit_meters_degraded", help);
    family.is(limits.alone.load(Relaxed));
}

/// A counter with a series for each code.
pub(super) fn by_code(
    name: &'static str,
    help: &'static str,
    counts: &[AtomicU64],
    out: &mut Families,
) {
    let family = out.counter(name, help);
    for (code, count) in Code::ALL.iter().zip(counts) {
        family.with([("code", code.as_str().into())], count.load(Relaxed));
    }
}

/// A counter with a series for each stage.
pub(super) fn by_stage(
    name: &'static str,
    help: &'static str,
    counts: &[AtomicU64],
    out: &mut Families,
) {
    let family = out.counter(name, help);
    for (stage, count) in StageKind::ALL.iter().zip(counts) {
        family.with([("stage", stage.name().into())], count.load(Relaxed));
    }
}
