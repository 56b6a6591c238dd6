//! What a record and a trace say of the attempts towards a target. Pure.

use std::time::{Duration, Instant};

use proto::record::{Attempt, AttemptFailure};

use crate::upstream::{Answer, Earlier, Failure, FailureKind, Stopped};

/// Microseconds, as many as the field holds.
fn us(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// The attempts of a request that was answered; `begun_us` is when the first of them began, in
/// microseconds after the request's start.
pub fn answered(answer: &Answer, begun_us: u32, started: Instant) -> Vec<Attempt> {
    let mut attempts = earlier(&answer.earlier, begun_us, started);
    attempts.push(Attempt {
        started_us: follows(&attempts, begun_us),
        connect_us: us(answer.connect_time),
        wait_us: us(answer.first_byte_time),
        reused: answer.reused,
        status: Some(answer.status.as_u16()),
        failure: None,
    });
    attempts
}

/// The attempts of a request that was not answered. Whether a connection was there when the last
/// one failed is known from `attempts`: only what was sent counts there.
pub fn failed(failure: &Failure, begun_us: u32, now_us: u32, started: Instant) -> Vec<Attempt> {
    let mut attempts = earlier(&failure.earlier, begun_us, started);
    let last_us = follows(&attempts, begun_us);
    let whole_us = now_us.saturating_sub(last_us);
    let was_sent = failure.attempts as usize > attempts.len();
    attempts.push(Attempt {
        started_us: last_us,
        connect_us: if was_sent { 0 } else { whole_us },
        wait_us: if was_sent { whole_us } else { 0 },
        reused: false,
        status: None,
        failure: Some(name(&failure.kind)),
    });
    attempts
}

/// The attempts of a request that was stopped from this side. Of the one that was under way nothing
/// is known but for how long, and of those before it that were lost with it, not that either.
pub fn stopped<G>(
    stopped: &Stopped<G>,
    begun_us: u32,
    now_us: u32,
    started: Instant,
) -> Vec<Attempt> {
    let mut attempts = earlier(&stopped.earlier, begun_us, started);
    let made = stopped.attempts as usize;
    if made > attempts.len() {
        let started_us = follows(&attempts, begun_us);
        let unknown = |wait_us| Attempt {
            started_us,
            connect_us: 0,
            wait_us,
            reused: false,
            status: None,
            failure: None,
        };
        attempts.resize(made - 1, unknown(0));
        attempts.push(unknown(now_us.saturating_sub(started_us)));
    }
    attempts
}

/// When the attempt behind these began.
fn follows(attempts: &[Attempt], begun_us: u32) -> u32 {
    attempts.last().map_or(begun_us, |before| {
        before.started_us.saturating_add(before.wait_us)
    })
}

fn earlier(missed: &[Earlier], begun_us: u32, started: Instant) -> Vec<Attempt> {
    let mut attempts = Vec::with_capacity(missed.len() + 1);
    let mut at_us = begun_us;
    for missed in missed {
        let ended_us = us(missed.ended.saturating_duration_since(started)).max(at_us);
        attempts.push(Attempt {
            started_us: at_us,
            connect_us: 0,
            wait_us: ended_us - at_us,
            reused: true,
            status: None,
            failure: Some(name(&missed.kind)),
        });
        at_us = ended_us;
    }
    attempts
}

/// How records and spans name a failure.
pub fn name(kind: &FailureKind) -> AttemptFailure {
    match kind {
        FailureKind::Refused { .. } => AttemptFailure::Refused,
        FailureKind::Resolve(_) => AttemptFailure::Resolve,
        FailureKind::Connect(_) => AttemptFailure::Connect,
        FailureKind::ConnectTimeout => AttemptFailure::ConnectTimeout,
        FailureKind::Tls(_) => AttemptFailure::Tls,
        FailureKind::PoolExhausted => AttemptFailure::PoolExhausted,
        FailureKind::FirstByteTimeout => AttemptFailure::FirstByteTimeout,
        FailureKind::Held | FailureKind::TotalTimeout => AttemptFailure::TotalTimeout,
        FailureKind::Reset(_) => AttemptFailure::Reset,
        FailureKind::BadHttp(_) => AttemptFailure::BadHttp,
        FailureKind::CallerStalled | FailureKind::BodyFromCaller(_) => AttemptFailure::CallerBody,
        FailureKind::BadTarget => AttemptFailure::BadTarget,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_follow_each_other_within_the_request() {
        let started = Instant::now();
        let missed = Earlier {
            kind: FailureKind::Reset("gone".into()),
            ended: started + Duration::from_micros(300),
        };
        let failure = Failure {
            kind: FailureKind::FirstByteTimeout,
            maybe_carried_out: true,
            attempts: 2,
            earlier: vec![missed],
            again: None,
        };
        let attempts = failed(&failure, 100, 1_000, started);
        let times: Vec<_> = attempts
            .iter()
            .map(|a| (a.started_us, a.connect_us, a.wait_us, a.failure))
            .collect();
        assert_eq!(
            times,
            [
                (100, 0, 200, Some(AttemptFailure::Reset)),
                (300, 0, 700, Some(AttemptFailure::FirstByteTimeout)),
            ]
        );
    }

    #[test]
    fn what_was_sent_before_it_was_stopped_is_there() {
        let started = Instant::now();
        let stopped = |attempts: u32, earlier: Vec<Earlier>| {
            let stopped = Stopped {
                why: (),
                attempts,
                earlier,
            };
            let all = super::stopped(&stopped, 100, 1_000, started);
            let all = all.iter().map(|a| (a.started_us, a.wait_us, a.failure));
            all.collect::<Vec<_>>()
        };
        let missed = || Earlier {
            kind: FailureKind::Reset("gone".into()),
            ended: started + Duration::from_micros(300),
        };
        assert_eq!(stopped(0, Vec::new()), []);
        assert_eq!(stopped(1, Vec::new()), [(100, 900, None)]);
        let reset = (100, 200, Some(AttemptFailure::Reset));
        assert_eq!(stopped(1, vec![missed()]), [reset]);
        // The one that was lost with the other was there too.
        assert_eq!(stopped(2, Vec::new()), [(100, 0, None), (100, 900, None)]);
        assert_eq!(stopped(2, vec![missed()]), [reset, (300, 700, None)]);
    }

    #[test]
    fn an_attempt_without_a_connection_was_not_sent() {
        let started = Instant::now();
        let failure = Failure {
            kind: FailureKind::ConnectTimeout,
            maybe_carried_out: false,
            attempts: 0,
            earlier: Vec::new(),
            again: None,
        };
        let [only] = failed(&failure, 10, 5_010, started)[..] else {
            panic!("one attempt");
        };
        assert_eq!((only.connect_us, only.wait_us), (5_000, 0));
    }
}
