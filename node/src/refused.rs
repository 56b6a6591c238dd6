//! What callers and records are told by a meter: that nothing is left, or that little is.

use std::borrow::Cow;
use std::time::Duration;

use proto::meter::LimitAnswer;
use proto::outcome::{Code, EarlyEnd, Extra, MeterState, RefusingMeter};
use proto::record::{MeterRefusal, RefusalCause};

use crate::limits::{self, Cause, MeterStatus, Mode, Refusal, SlotRefusal};
use crate::metering::Applied;

/// What a caller is told whose limit is nearly used up, or is not counted with the other nodes
/// ([`alone`]).
pub fn warnings(applied: &Applied, alone: Option<(&str, Mode)>) -> impl Iterator<Item = String> {
    let without_store = alone.map(|(id, mode)| without_store(id, mode));
    near(applied).into_iter().chain(without_store)
}

fn near(applied: &Applied) -> Option<String> {
    let (meter, limit) = applied.first.near()?;
    let (id, most, window) = (meter.id(), limit.limit(), limit.window());
    Some(format!(
        "four fifths or more of the {most} per {window} of {id} are used"
    ))
}

/// What passes without its owner and the store, and how.
pub fn alone(applied: &Applied) -> Option<(&str, Mode)> {
    let meter = applied.first.passing_by();
    let slots = || {
        let mut all = applied.slots.iter();
        let open = all.find(|slots| slots.passes_all())?;
        Some((open.key().id(), Mode::Open))
    };
    meter.map(|(meter, mode)| (meter.id(), mode)).or_else(slots)
}

fn without_store(id: &str, mode: Mode) -> String {
    let mode = mode.name();
    format!("{id} goes by {mode}: neither the node that keeps it nor the store can be reached")
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
        name: name.clone(),
        window: "concurrency".to_owned(),
        limit: refusal.spec.limit,
        window_s: 0,
        remaining: 0,
        retry_after_s: limits::retry_after(refusal.retry_after),
    };
    let refused = MeterRefusal {
        meter: refusal.meter.clone(),
        window: Some("concurrency".into()),
        cause: match refusal.lost {
            true => RefusalCause::StoreLost,
            false => RefusalCause::InFlight,
        },
    };
    EarlyEnd::new(code, detail)
        .with(meter(vec![state], refused))
        .header("ratelimit", format!("\"{name}\";r=0"))
        .header(
            "ratelimit-policy",
            format!(
                "\"{name}\";q={};qu=\"concurrent-requests\"",
                refusal.spec.limit
            ),
        )
        .header("retry-after-ms", millis(refusal.retry_after))
        .header(
            "retry-after",
            limits::retry_after(refusal.retry_after).to_string(),
        )
}

/// The end of a call that loses its place among those in flight. Nobody is to send it again without
/// looking: it may have been carried out.
pub fn place_lost() -> EarlyEnd {
    let mut end = EarlyEnd::new(
        Code::LimitUnavailable,
        "this gateway reaches neither the store nor another node, and a limit of calls in flight \
         ends its calls then (`on_lost: cancel`); the request may have been carried out",
    );
    end.should_retry = Some(false);
    end
}

fn code(answer: LimitAnswer) -> Code {
    match answer {
        LimitAnswer::RateLimited => Code::RateLimited,
        LimitAnswer::BudgetExhausted => Code::BudgetExhausted,
    }
}

/// The windows whose limits refused a request, as its record has them.
pub fn limited_by(end: Option<&EarlyEnd>) -> Vec<Cow<'static, str>> {
    let Some(Extra::Meters(meter)) = end.map(|end| &end.extra) else {
        return Vec::new();
    };
    let empty = meter.limits.iter().filter(|meter| meter.remaining == 0);
    empty.map(|meter| Cow::Owned(meter.name.clone())).collect()
}

/// The meter that refused a request, as its record has it.
pub fn refused_by(end: Option<&EarlyEnd>) -> Vec<MeterRefusal> {
    match end.map(|end| &end.extra) {
        Some(Extra::Meters(meter)) => vec![meter.refusal.clone()],
        _ => Vec::new(),
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
        Cause::Empty | Cause::Crowded => (code(refusal.answer), rate_limited(refusal, wait)),
        Cause::Paused => {
            let named = named(&refusal.status.id, &refusal.status.name);
            let detail =
                format!("the target asked to wait and {named} does; try again in {wait} s");
            (Code::RateLimited, detail)
        }
        Cause::StoreLost => (
            Code::LimitUnavailable,
            format!(
                "the state of {} cannot be reached and it gives nothing meanwhile; try again",
                named(&refusal.status.id, &refusal.status.name)
            ),
        ),
    };
    let mut end = EarlyEnd::new(code, detail)
        .with(meter(states(refusal), named_in_records(refusal)))
        .header("ratelimit", limits::rate_limit(statuses))
        .header("ratelimit-policy", limits::rate_limit_policy(statuses))
        .header("retry-after-ms", millis(refusal.retry_after))
        .header("retry-after", wait.to_string());
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

fn meter(limits: Vec<MeterState>, refusal: MeterRefusal) -> Extra {
    Extra::Meters(Box::new(RefusingMeter { limits, refusal }))
}

/// The refusal as records have it.
fn named_in_records(refusal: &Refusal) -> MeterRefusal {
    let cause = match refusal.cause {
        Cause::Empty => RefusalCause::Empty,
        Cause::Paused => RefusalCause::Paused,
        Cause::Crowded => RefusalCause::Crowded,
        Cause::StoreLost => RefusalCause::StoreLost,
    };
    // Whatever else refuses, refuses for the meter as a whole.
    let limit = refusal.limit.filter(|_| refusal.cause == Cause::Empty);
    MeterRefusal {
        meter: refusal.status.id.clone(),
        window: limit.map(|limit| limit.window.name().into()),
        cause,
    }
}

fn rate_limited(refusal: &Refusal, wait: u64) -> String {
    let named = named(&refusal.status.id, &refusal.status.name);
    match &refusal.limit {
        Some(limit) if limit.remaining > 0 => format!(
            "{} of {} per {} of {named} left, and {} are set aside for this request until its \
             answer tells what it costs; try again in {wait} s, send one that asks for less, or \
             raise the limit",
            limit.remaining, limit.limit, limit.window, refusal.set_aside
        ),
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
            retry_after_s: limits::retry_after(refusal.retry_after),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proto::meter::{StoreLoss, Window};

    use super::*;
    use crate::limits::{LimitStatus, Mode, SlotSpec};

    /// What a refusal tells its caller to wait: `retry_after_s` of each meter, and both headers.
    fn waits(end: &EarlyEnd) -> (Vec<u64>, Vec<String>) {
        let Extra::Meters(meter) = &end.extra else {
            panic!("no meters: {end:?}");
        };
        let told = meter
            .limits
            .iter()
            .map(|meter| meter.retry_after_s)
            .collect();
        let named = |name| end.headers.iter().find(|(header, _)| *header == name);
        let value = |name| named(name).map(|(_, value)| value.clone());
        let headers = ["retry-after", "retry-after-ms"].into_iter();
        (told, headers.filter_map(value).collect())
    }

    #[test]
    fn whoever_waits_as_told_does_not_come_too_early() {
        let limit = |window| LimitStatus {
            window,
            limit: 60,
            remaining: 0,
            reset: Duration::from_millis(12_001),
        };
        let status = MeterStatus {
            id: "mtr_1".to_owned(),
            name: String::new(),
            mode: Mode::Store,
            limits: vec![limit(Window::Minute), limit(Window::Day)],
        };
        let tokens = |ms| Refusal {
            cause: Cause::Empty,
            answer: LimitAnswer::RateLimited,
            limit: None,
            set_aside: 1,
            retry_after: Duration::from_millis(ms),
            reset: Duration::from_millis(ms),
            status: status.clone(),
        };
        let slots = |ms| no_slot(false, Duration::from_millis(ms));
        for (ms, s) in [(34_022, 35), (34_000, 34), (1, 1)] {
            let headers = vec![s.to_string(), ms.to_string()];
            assert_eq!(waits(&refused(&tokens(ms))), (vec![s, s], headers.clone()));
            assert_eq!(waits(&in_flight(&slots(ms))), (vec![s], headers));
        }
    }

    /// The refusal of a meter of calls in flight.
    fn no_slot(lost: bool, retry_after: Duration) -> SlotRefusal {
        SlotRefusal {
            meter: "mtr_2".to_owned(),
            spec: Arc::new(SlotSpec {
                name: String::new(),
                version: 1,
                limit: 5,
                on_store_loss: StoreLoss::LocalShare,
                cancels_lost: false,
                answer: LimitAnswer::RateLimited,
            }),
            lost,
            retry_after,
        }
    }

    #[test]
    fn calls_in_flight_are_a_policy_of_their_own_unit() {
        let end = in_flight(&no_slot(false, Duration::from_secs(1)));
        let value = |name| {
            let mut named = end.headers.iter().filter(|(header, _)| *header == name);
            named.next().map(|(_, value)| value.as_str())
        };
        assert_eq!(value("ratelimit"), Some(r#""concurrency";r=0"#));
        let policy = r#""concurrency";q=5;qu="concurrent-requests""#;
        assert_eq!(value("ratelimit-policy"), Some(policy));
    }

    #[test]
    fn a_record_names_the_meter_the_window_and_the_cause() {
        let limit = LimitStatus {
            window: Window::Day,
            limit: 60,
            remaining: 0,
            reset: Duration::from_secs(1),
        };
        let refusal = |cause| Refusal {
            cause,
            answer: LimitAnswer::BudgetExhausted,
            limit: Some(limit),
            set_aside: 1,
            retry_after: Duration::from_secs(1),
            reset: Duration::from_secs(1),
            status: MeterStatus {
                id: "mtr_1".to_owned(),
                name: String::new(),
                mode: Mode::Store,
                // A meter of values may have something left, and refuse what costs more.
                limits: vec![LimitStatus {
                    remaining: 5,
                    ..limit
                }],
            },
        };
        let told = |end: &EarlyEnd| match &end.extra {
            Extra::Meters(meter) => meter.refusal.to_string(),
            extra => panic!("no meters: {extra:?}"),
        };
        for (cause, expected) in [
            (Cause::Empty, "mtr_1:day:empty"),
            (Cause::Paused, "mtr_1:paused"),
            (Cause::Crowded, "mtr_1:crowded"),
            (Cause::StoreLost, "mtr_1:store-lost"),
        ] {
            assert_eq!(told(&refused(&refusal(cause))), expected);
        }
        for (lost, expected) in [
            (false, "mtr_2:concurrency:in-flight"),
            (true, "mtr_2:concurrency:store-lost"),
        ] {
            let refusal = no_slot(lost, Duration::from_secs(1));
            assert_eq!(told(&in_flight(&refusal)), expected);
        }
    }
}
