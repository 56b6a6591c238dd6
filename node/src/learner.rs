//! Meters that learn from what their target answers: they wait when it asks, send less when little
//! is left, and go on as before when it answers well again.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use proto::id::RequestId;
use proto::meter::LearnFrom;
use tracing::warn;

use crate::learning::{self, Left, lesson};
use crate::limits::{Clock, Limits, Meter, Refusal, SystemClock, TENTHS, tenths_of};
use crate::upstream;

/// A meter that learns.
#[derive(Clone, Debug)]
pub struct Learner {
    /// The key of a request.
    pub meter: Arc<Meter>,
    /// In whose words the target tells.
    pub from: LearnFrom,
    /// Longest pause.
    pub pause_max: Duration,
}

/// The part of a path by which it is guessed at which of its limits a target counts a request.
pub fn route(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    path.split(|byte| *byte == b'/').next().unwrap_or_default()
}

/// The refusal of a request that the target counts at a limit of its own that is used up.
pub fn route_paused(learners: &[Learner], path: &[u8]) -> Option<Refusal> {
    let mut named = learners
        .iter()
        .filter(|learner| names_buckets(learner.from))
        .peekable();
    // Few have one, and the clock costs what a token does.
    named.peek()?;
    let now_ns = SystemClock.boot_ns();
    named.find_map(|learner| learner.meter.route_paused(route(path), now_ns))
}

/// Whether a vendor says at which of its limits it counts a request.
fn names_buckets(from: LearnFrom) -> bool {
    from == LearnFrom::Github
}

/// Takes what an answer says.
pub fn learn(
    limits: &Limits,
    learners: &[Learner],
    request: RequestId,
    path: &[u8],
    answer: &upstream::Answer,
) {
    let now = Timestamp::now();
    let now_ns = SystemClock.boot_ns();
    let took_ns = u64::try_from(answer.first_byte_time.as_nanos()).unwrap_or(u64::MAX);
    let sent_ns = now_ns.saturating_sub(took_ns);
    for learner in learners {
        let Learner {
            meter,
            from,
            pause_max,
        } = learner;
        let of_values = meter.reserves();
        let (status, headers) = (answer.status, &answer.headers);
        let told = lesson(*from, of_values, status, headers, now, *pause_max);
        let bucket = match names_buckets(*from) {
            true => headers.get(learning::BUCKET).map(|name| name.as_bytes()),
            false => None,
        };
        if let Some(bucket) = bucket {
            limits.note_route(meter, route(path), bucket);
        }
        if let Some(wait) = told.pause {
            let in_a_row = limits.pause(meter, bucket, wait);
            if in_a_row > 1 {
                let id = meter.id();
                warn!(
                    meter = %id, %request,
                    "the target of meter {id} asked to wait {in_a_row} times in a row, the last \
                     time for {wait:?} by its answer to request {request}"
                );
            }
            continue;
        }
        if !is_well(status) {
            continue;
        }
        limits.answered_well(meter, sent_ns);
        if let Some(left) = told.left {
            adapt(limits, learner, left);
        }
    }
}

fn is_well(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// Sends less where little is left, and as much as before where enough is.
fn adapt(limits: &Limits, learner: &Learner, left: Left) {
    let meter = &learner.meter;
    let (now, wanted) = (
        meter.slowed_to(),
        tenths_of(meter.configured().limits(), left.remaining, left.reset),
    );
    // Not at each answer: by two tenths, or back to all.
    if wanted == TENTHS && now < TENTHS {
        limits.go_on(meter);
    } else if wanted + 1 < now {
        limits.slow(meter, wanted, left.reset.min(learner.pause_max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_the_first_part_of_a_path() {
        for (path, expected) in [
            ("/search/code", "search"),
            ("/search", "search"),
            ("", ""),
            ("/", ""),
            ("//x", ""),
        ] {
            assert_eq!(route(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }
}
