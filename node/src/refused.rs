//! What callers are told by a meter: that nothing is left, or that little is.

use std::time::Duration;

use proto::meter::LimitAnswer;
use proto::outcome::{Code, EarlyEnd, Extra, MeterState};

use crate::limits::{self, Cause, MeterStatus, Refusal, SlotRefusal};
use crate::metering::Applied;

/// What a caller is told whose limit is nearly used up.
pub fn warning(applied: &Applied) -> Option<String> {
    let (meter, limit) = applied.first.near()?;
    let (id, most, window) = (meter.id(), limit.limit(), limit.window());
    Some(format!(
        "four fifths or more of the {most} per {window} of {id} are used"
    ))
}

/// The answer to a request for which no place among the calls in flight is free.
pub fn in_flight(refusal: &SlotRefusal) -> EarlyEnd {
    let named = named(&refusal.meter, &refusal.spec.name);
    let (code, detail) = if refusal.lost {
        let detail = format!("the state of {named} cannot be reached; try again");
        (Code::LimitUnavailable, detail)
    } else {
        let detail = format!(
            "all {} calls in flight of {named} are in use; try again when one has ended",
            refusal.spec.limit
        );
        (code(refusal.spec.answer), detail)
    };
    let name = match refusal.spec.name.as_str() {
        "" => "concurrency".to_owned(),
        name => format!("{name}-concurrency"),
    };
    let state = MeterState {
        id: refusal.meter.clone(),
        name,
        window: "concurrency".to_owned(),
        limit: refusal.spec.limit,
        window_s: 0,
        remaining: 0,
        retry_after_s: refusal.retry_after.as_secs().max(1),
    };
    EarlyEnd::new(code, detail)
        .with(Extra::Meters(vec![state]))
        .header("retry-after-ms", millis(refusal.retry_after))
        .header("retry-after", limits::retry_after(refusal.retry_after))
}

fn code(answer: LimitAnswer) -> Code {
    match answer {
        LimitAnswer::RateLimited => Code::RateLimited,
        LimitAnswer::BudgetExhausted => Code::BudgetExhausted,
    }
}

/// The answer to a request whose tokens could not be sent in time.
pub fn late() -> EarlyEnd {
    EarlyEnd::new(
        Code::RateLimited,
        "the tokens of this request ended before it could be sent; try again",
    )
    .header("retry-after", "1")
}

/// The answer to a refused request (draft-ietf-httpapi-ratelimit-headers).
pub fn refused(refusal: &Refusal) -> EarlyEnd {
    let wait = limits::retry_after(refusal.retry_after);
    let statuses = std::slice::from_ref(&refusal.status);
    let (code, detail) = match refusal.cause {
        Cause::Empty | Cause::Crowded => (code(refusal.answer), rate_limited(refusal, &wait)),
        Cause::Paused => {
            let named = named(&refusal.status.id, &refusal.status.name);
            let detail =
                format!("the target asked to wait and {named} does; try again in {wait} s");
            (Code::RateLimited, detail)
        }
        Cause::StoreLost => (
            Code::LimitUnavailable,
            format!(
                "the state of {} cannot be reached and it fails closed; try again",
                named(&refusal.status.id, &refusal.status.name)
            ),
        ),
    };
    let mut end = EarlyEnd::new(code, detail)
        .with(Extra::Meters(states(refusal)))
        .header("ratelimit", limits::rate_limit(statuses))
        .header("ratelimit-policy", limits::rate_limit_policy(statuses))
        .header("retry-after-ms", millis(refusal.retry_after))
        .header("retry-after", wait);
    if refusal.retry_after > RETRY_HELPS_MAX {
        end.should_retry = Some(false);
    }
    end
}

/// A retry within this time may help; SDKs that retry sooner on their own are told not to.
const RETRY_HELPS_MAX: Duration = Duration::from_secs(60);

/// The meter in words: the one of a proxy's `limits` has the proxy's id.
fn named(id: &str, name: &str) -> String {
    match name {
        "" => format!("meter {id}"),
        name => format!("meter {name} ({id})"),
    }
}

fn rate_limited(refusal: &Refusal, wait: &str) -> String {
    let named = named(&refusal.status.id, &refusal.status.name);
    match &refusal.limit {
        Some(limit) => format!(
            "the limit of {} per {} of {named} is used up; try again in {wait} s, or raise it",
            limit.limit, limit.window
        ),
        None => format!("too many requests wait for {named}; try again in {wait} s"),
    }
}

/// Whole milliseconds, rounded up, at least 1.
fn millis(wait: Duration) -> String {
    wait.as_nanos().div_ceil(1_000_000).max(1).to_string()
}

fn states(refusal: &Refusal) -> Vec<MeterState> {
    let MeterStatus {
        id, name, limits, ..
    } = &refusal.status;
    limits
        .iter()
        .map(|limit| MeterState {
            id: id.clone(),
            name: match name.as_str() {
                "" => limit.window.name().to_owned(),
                name => format!("{name}-{}", limit.window),
            },
            window: limit.window.name().to_owned(),
            limit: limit.limit,
            window_s: limit.window.width_ns() / 1_000_000_000,
            remaining: limit.remaining,
            retry_after_s: refusal.retry_after.as_secs().max(1),
        })
        .collect()
}
