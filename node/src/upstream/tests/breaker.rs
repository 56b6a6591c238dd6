//! The circuit breaker as a list of events.

use std::time::Instant;

use super::super::breaker::*;
use super::*;

/// One thing that happens, and what is expected of it.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A request passes and ends like this.
    Ends(Health),
    /// A request is refused.
    Refused,
    /// So many milliseconds go by.
    After(u64),
    /// The state is this.
    Is(BreakerState),
}
use BreakerState::*;
use Event::*;
use Health::*;

fn check(policy: &BreakerPolicy, events: &[Event]) {
    let mut now = Instant::now();
    let mut breaker = Breaker::new(policy.clone(), now);
    for (at, event) in events.iter().enumerate() {
        match event {
            Ends(health) => match breaker.admit(now) {
                Admission::Pass(ticket) => breaker.record(ticket, *health, now),
                Admission::Refuse { .. } => panic!("{at}: refused in {events:?}"),
            },
            Refused => {
                let admission = breaker.admit(now);
                assert!(
                    matches!(admission, Admission::Refuse { .. }),
                    "{at} in {events:?}"
                );
            }
            After(ms) => now += Duration::from_millis(*ms),
            Is(state) => assert_eq!(breaker.state(), *state, "{at} in {events:?}"),
        }
    }
}

fn policy() -> BreakerPolicy {
    BreakerPolicy {
        consecutive_failures: None,
        failure_ratio: None,
        open_for: Duration::from_millis(100),
        open_for_max: Duration::from_millis(300),
        probes: 2,
    }
}

#[test]
fn failures_in_a_row_open_it() {
    let policy = BreakerPolicy {
        consecutive_failures: Some(3),
        ..policy()
    };
    let fail = [Ends(Failure); 3];
    check(
        &policy,
        &[
            Ends(Failure),
            Ends(Failure),
            Ends(Success),
            Ends(Failure),
            Is(Closed),
        ],
    );
    check(
        &policy,
        &[
            Ends(Failure),
            Ends(Failure),
            Ends(Unknown),
            Ends(Failure),
            Is(Open),
        ],
    );
    let after = |events: &[Event]| check(&policy, &[&fail[..], events].concat());
    after(&[Is(Open), Refused, After(99), Refused]);
    // Two probes, one after the other, close it.
    after(&[
        After(100),
        Ends(Success),
        Is(Probing),
        Ends(Success),
        Is(Closed),
    ]);
    after(&[
        After(100),
        Ends(Unknown),
        Is(Probing),
        Ends(Success),
        Ends(Success),
        Is(Closed),
    ]);
    // A failed probe doubles the time, up to the most.
    after(&[
        After(100),
        Ends(Failure),
        Is(Open),
        After(199),
        Refused,
        After(1),
        Ends(Success),
    ]);
    let twice = [
        After(100),
        Ends(Failure),
        After(200),
        Ends(Failure),
        After(299),
        Refused,
    ];
    after(
        &[
            &twice[..],
            &[After(1), Ends(Success), Ends(Success), Is(Closed)],
        ]
        .concat(),
    );
    // Closed again it starts anew: the count, and the time.
    let again = [
        After(100),
        Ends(Success),
        Ends(Success),
        Ends(Failure),
        Ends(Failure),
        Is(Closed),
    ];
    after(
        &[
            &again[..],
            &[Ends(Failure), Is(Open), After(100), Ends(Success)],
        ]
        .concat(),
    );
}

/// A probe that takes long, an upload say, leaves the target alone no longer than a failed one.
#[test]
fn a_probe_without_an_outcome_holds_up_no_other() {
    let mut now = Instant::now();
    let policy = BreakerPolicy {
        consecutive_failures: Some(1),
        ..policy()
    };
    let opened = |now: Instant| {
        let mut breaker = Breaker::new(policy.clone(), now);
        let Admission::Pass(ticket) = breaker.admit(now) else {
            panic!("it is closed");
        };
        breaker.record(ticket, Failure, now);
        breaker
    };
    let pass = |breaker: &mut Breaker, now: Instant| {
        assert!(breaker.would_admit(now));
        match breaker.admit(now) {
            Admission::Pass(ticket) => ticket,
            Admission::Refuse { retry_after } => panic!("refused for {retry_after:?}"),
        }
    };
    for health in [Success, Failure, Unknown] {
        let mut breaker = opened(now);
        now += policy.open_for;
        let first = pass(&mut breaker, now);
        now += Duration::from_millis(99);
        assert!(!breaker.would_admit(now));
        let retry_after = Duration::from_millis(1);
        assert_eq!(breaker.admit(now), Admission::Refuse { retry_after });
        now += retry_after;
        let second = pass(&mut breaker, now);
        assert!(!breaker.would_admit(now), "one each time");
        // The first one's outcome counts, late as it is.
        breaker.record(first, health, now);
        match health {
            Success => {
                breaker.record(second, Success, now);
                assert_eq!(breaker.state(), Closed);
            }
            Failure => {
                assert_eq!(breaker.state(), Open);
                breaker.record(second, Success, now);
                assert_eq!(breaker.state(), Open, "of an earlier state");
            }
            Unknown => assert_eq!(breaker.state(), Probing),
        }
    }
}

#[test]
fn a_share_of_failures_opens_it() {
    let ratio = FailureRatio {
        percent: 50,
        requests_min: 4,
        window: Duration::from_millis(1000),
    };
    let policy = BreakerPolicy {
        failure_ratio: Some(ratio),
        ..policy()
    };
    let (good, bad) = (Ends(Success), Ends(Failure));
    check(&policy, &[bad, bad, bad, Is(Closed), bad, Is(Open)]);
    check(&policy, &[good, bad, good, bad, Is(Open)]);
    check(
        &policy,
        &[good, good, good, bad, bad, Is(Closed), bad, Is(Open)],
    );
    // What is older than the window is forgotten, part by part.
    check(&policy, &[bad, bad, bad, After(1100), bad, Is(Closed)]);
    check(
        &policy,
        &[bad, bad, After(500), bad, After(600), bad, Is(Closed)],
    );
    check(
        &policy,
        &[bad, bad, After(500), bad, After(300), bad, Is(Open)],
    );
    check(
        &policy,
        &[
            bad,
            bad,
            bad,
            After(3_600_000),
            bad,
            bad,
            bad,
            Is(Closed),
            bad,
            Is(Open),
        ],
    );
}

#[test]
fn without_a_rule_it_never_opens() {
    check(
        &policy(),
        &[&[Ends(Failure); 50][..], &[Is(Closed)]].concat(),
    );
}

#[test]
fn one_probe_at_a_time_and_old_outcomes_count_for_nothing() {
    let now = Instant::now();
    let policy = BreakerPolicy {
        consecutive_failures: Some(1),
        probes: 1,
        ..policy()
    };
    let mut breaker = Breaker::new(policy, now);
    let ticket = |admission| match admission {
        Admission::Pass(ticket) => ticket,
        Admission::Refuse { retry_after } => panic!("refused for {retry_after:?}"),
    };
    let slow = ticket(breaker.admit(now));
    let failing = ticket(breaker.admit(now));
    breaker.record(failing, Failure, now);
    let left = Duration::from_millis(60);
    let admission = breaker.admit(now + Duration::from_millis(40));
    assert_eq!(admission, Admission::Refuse { retry_after: left });
    let later = now + Duration::from_millis(100);
    let probe = ticket(breaker.admit(later));
    assert!(
        matches!(breaker.admit(later), Admission::Refuse { .. }),
        "a probe is under way"
    );
    breaker.record(slow, Failure, later);
    assert_eq!(breaker.state(), Probing);
    breaker.record(probe, Success, later);
    assert_eq!(breaker.state(), Closed);
}
