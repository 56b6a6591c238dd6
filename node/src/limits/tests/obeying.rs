//! Callers that were refused and come again when they were told to: as many as there are tokens
//! succeed, and who comes after them is told a later time.

use std::sync::Arc;

use proptest::prelude::*;
use proto::meter::{Algorithm, Limit, MeterSpec, Window};

use super::crowd::World;
use crate::limits::{MeterKey, retry_after};

const MS: u64 = 1_000_000;
/// What a store call takes, and the pace of writes lets one wait, is over by then.
const SETTLED_MS: u64 = 100;

/// By which field a caller goes.
#[derive(Clone, Copy, Debug)]
enum By {
    /// `Retry-After`.
    Seconds,
    /// `retry-after-ms`.
    Millis,
}

fn limit(window: Window) -> impl Strategy<Value = (Limit, u64)> {
    // Of buckets there are the numbers below.
    let algorithms = [Algorithm::SlidingWindow, Algorithm::FixedWindow];
    (1..40_u64, proptest::sample::select(algorithms.to_vec())).prop_filter_map(
        "no algorithm of that window",
        move |(limit, algorithm)| {
            Some((Limit::with_algorithm(limit, window, algorithm).ok()?, limit))
        },
    )
}

/// Uses all of a limit, sends so many more callers that are refused, and lets them come again as
/// told. How long each that was refused at once was told to wait, in their order, and how many of
/// the first `most` were refused once more.
fn check(limit: Limit, most: u64, (used_over_ms, more): (u64, u64), by: By) -> (Vec<u64>, u64) {
    let mut world = World::new(10);
    let spec = Arc::new(MeterSpec::new("", 1, vec![limit]).unwrap());
    let meter = world.limits.meter(MeterKey::whole("m"), spec);
    let mut ms = 1_000;
    let mut until = |world: &mut World, to: u64| {
        while ms < to {
            ms += 1;
            world.turn(ms * MS);
        }
    };
    for n in 0..most {
        until(&mut world, 1_000 + n * used_over_ms / most);
        world.call(&meter, (1_000 + n * used_over_ms / most) * MS);
    }
    let full_ms = 1_000 + used_over_ms + SETTLED_MS;
    until(&mut world, full_ms);
    let all = usize::try_from(most + more).unwrap();
    let asked_ns = full_ms * MS;
    (0..all).for_each(|name| world.call_as(name, &meter, asked_ns));
    until(&mut world, full_ms + SETTLED_MS);
    assert_eq!(world.ended.len(), all, "everybody has an answer");
    // Those for whom there still was something (a bucket fills, a window ends) are not refused.
    let refused = std::mem::take(&mut world.ended).into_iter();
    let refused = refused.filter_map(|(name, at_ns, end)| Some((name, at_ns, end.err()?)));
    let mut waits = Vec::new();
    let mut comes: Vec<(u64, usize)> = Vec::new();
    for (at, (_, at_ns, refusal)) in refused.enumerate() {
        let wait = refusal.retry_after;
        // One that has waited before it was refused has its number from the end of that.
        if at_ns == asked_ns {
            waits.push(u64::try_from(wait.as_nanos()).unwrap());
        }
        let told_ms = match by {
            By::Seconds => retry_after(wait) * 1_000,
            By::Millis => u64::try_from(wait.as_nanos().div_ceil(u128::from(MS))).unwrap(),
        };
        if (at as u64) < most {
            // Or later: that time may be over.
            let at_ms = at_ns / MS + told_ms;
            comes.push((at_ms.max(full_ms + SETTLED_MS), at));
        }
    }
    comes.sort_unstable();
    for (at_ms, name) in &comes {
        until(&mut world, *at_ms);
        world.call_as(*name, &meter, at_ms * MS);
    }
    let last_ms = comes.last().map_or(0, |(at_ms, _)| *at_ms);
    until(&mut world, last_ms + 1_000);
    assert_eq!(world.ended.len(), comes.len(), "everybody has an answer");
    let again = world.ended.iter().filter(|(_, _, end)| end.is_err());
    (waits, again.count() as u64)
}

/// A limit of so many a second.
fn a_second(limit: u64, algorithm: Algorithm) -> Limit {
    Limit::with_algorithm(limit, Window::Second, algorithm).unwrap()
}

/// Writes that were too close to the token's time, and buckets that had not been told of what was
/// sent, had one of them refused again.
#[test]
fn callers_of_small_limits_are_not_refused_again() {
    let buckets = [1, 17, 30].map(|limit| a_second(limit, Algorithm::TokenBucket));
    for limit in [a_second(3, Algorithm::SlidingWindow)]
        .into_iter()
        .chain(buckets)
    {
        for used_over_ms in [0, 2, 20, 51, 102, 278] {
            for by in [By::Millis, By::Seconds] {
                let (waits, again) = check(limit, limit.limit(), (used_over_ms, 3), by);
                assert_eq!(again, 0, "{limit:?} {used_over_ms} ms {by:?}: {waits:?}");
            }
        }
    }
}

/// A token that has come for the first of those who were told does not make the next who is refused
/// come at the second one's time.
#[test]
fn who_is_refused_after_a_refill_is_told_of_a_token_that_nobody_was_told_of() {
    let mut world = World::new(10);
    let limit = a_second(3, Algorithm::SlidingWindow);
    let spec = Arc::new(MeterSpec::new("", 1, vec![limit]).unwrap());
    let meter = world.limits.meter(MeterKey::whole("m"), spec);
    let mut told_ms = Vec::new();
    let mut ms = 1_000;
    while told_ms.len() < 4 {
        let calls = match told_ms.len() {
            0 if [1_000, 1_100, 1_200].contains(&ms) => 1,
            0 if ms == 1_300 => 3,
            // The first of them comes, and then one who was not told of anything.
            3 if ms == told_ms[0] || ms == told_ms[0] + 10 => 1,
            _ => 0,
        };
        (0..calls).for_each(|_| world.call_as(0, &meter, ms * MS));
        world.turn(ms * MS);
        for (_, at_ns, end) in world.ended.drain(..) {
            if let Err(refusal) = end {
                told_ms.push(at_ns / MS + refusal.retry_after.as_millis() as u64 + 1);
            }
        }
        ms += 1;
        assert!(ms < 4_000, "{told_ms:?}");
    }
    assert_eq!(world.sent, 4, "the first came when it was told");
    assert!(
        told_ms.is_sorted() && told_ms[3] > told_ms[2],
        "{told_ms:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn as_many_as_there_are_tokens_succeed_when_they_obey(
        (limit, most) in limit(Window::Second),
        (used_over_ms, more) in (0..400_u64, 0..40_u64),
        by in prop_oneof![Just(By::Seconds), Just(By::Millis)],
    ) {
        let (waits, again) = check(limit, most, (used_over_ms, more), by);
        prop_assert_eq!(again, 0, "{:?}", waits);
        prop_assert!(waits.iter().all(|wait| *wait > 0), "{waits:?}");
        prop_assert!(waits.is_sorted(), "who is refused later comes later: {waits:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn so_it_is_in_longer_windows(
        (limit, most) in limit(Window::Minute),
        (used_over_ms, more) in (0..20_000_u64, 0..40_u64),
        by in prop_oneof![Just(By::Seconds), Just(By::Millis)],
    ) {
        let (waits, again) = check(limit, most, (used_over_ms, more), by);
        prop_assert_eq!(again, 0, "{:?}", waits);
        prop_assert!(waits.is_sorted(), "{waits:?}");
    }
}
