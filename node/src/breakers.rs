//! The circuit breakers of targets: one for each address of a target that asks for one or has
//! several addresses, shared by the workers, kept over versions that leave its settings and the
//! address as they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::StatusCode;
use proto::breaker::BreakerSettings;
use proto::endpoint::WHOLE;
use proto::id::{OrgId, TargetId};
use proto::outcome::{Code, EarlyEnd};
use tracing::{info, warn};

use crate::upstream::breaker::{
    Admission, Breaker, BreakerPolicy, BreakerState, FailureRatio, Health, Ticket,
};
use crate::upstream::{Failure, Fault};

/// The least share of an endpoint that has just come back, in thousandths: enough to be noticed.
const SHARE_LEAST: u32 = 50;

/// The share of an endpoint that came back then, in thousandths.
pub fn risen(since: Instant, now: Instant, slow_start: Duration) -> u32 {
    let elapsed = now.saturating_duration_since(since);
    if elapsed >= slow_start {
        return WHOLE;
    }
    let part = elapsed.as_millis() * u128::from(WHOLE) / slow_start.as_millis().max(1);
    u32::try_from(part)
        .unwrap_or(WHOLE)
        .clamp(SHARE_LEAST, WHOLE)
}

/// The breaker of a target's address.
#[derive(Debug)]
pub struct TargetBreaker {
    target: TargetId,
    address: Box<str>,
    // Held for a few comparisons, and only for targets that have a breaker.
    state: Mutex<Watched>,
}

#[derive(Debug)]
struct Watched {
    breaker: Breaker,
    /// When it closed after it had been open.
    recovered_at: Option<Instant>,
}

/// A request that the breaker let through. Dropped without an outcome it says nothing of the
/// target.
#[derive(Debug)]
pub struct Admitted {
    breaker: Arc<TargetBreaker>,
    /// Gone when its outcome was told.
    ticket: Option<Ticket>,
    health: Health,
}

impl TargetBreaker {
    fn new(target: TargetId, address: &str, settings: &BreakerSettings) -> Self {
        let ms = Duration::from_millis;
        let policy = BreakerPolicy {
            consecutive_failures: settings.consecutive_failures(),
            failure_ratio: settings.failure_percent.map(|percent| FailureRatio {
                percent,
                requests_min: settings.requests_min,
                window: ms(settings.window_ms),
            }),
            open_for: ms(settings.open_ms),
            open_for_max: ms(settings.open_max_ms),
            probes: settings.probes,
        };
        Self {
            target,
            address: address.into(),
            state: Mutex::new(Watched {
                breaker: Breaker::new(policy, Instant::now()),
                recovered_at: None,
            }),
        }
    }

    /// How much of what falls to the address it may have, in thousandths: none while it is left
    /// alone, a rising part for so long after it came back.
    pub fn share(&self, now: Instant, slow_start: Duration) -> u32 {
        let watched = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !watched.breaker.would_admit(now) {
            return 0;
        }
        let closed = watched.breaker.state() == BreakerState::Closed;
        let Some(since) = watched.recovered_at.filter(|_| closed) else {
            return WHOLE;
        };
        risen(since, now, slow_start)
    }

    /// Whether it is left alone, for metrics.
    pub fn is_open(&self) -> bool {
        let watched = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        watched.breaker.state() != BreakerState::Closed
    }

    /// Lets a request through.
    ///
    /// # Errors
    /// The breaker is open: 503 `circuit-open` with the time until it is worth asking again.
    pub fn admit(self: &Arc<Self>) -> Result<Admitted, EarlyEnd> {
        let (admission, _) = self.with(|breaker| breaker.admit(Instant::now()));
        match admission {
            Admission::Pass(ticket) => Ok(Admitted {
                breaker: Arc::clone(self),
                ticket: Some(ticket),
                health: Health::Unknown,
            }),
            Admission::Refuse { retry_after } => {
                let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
                Err(EarlyEnd::new(
                    Code::CircuitOpen,
                    "the target has failed too often and is left alone for a while (`breaker` of \
                     the target); the request was not carried out",
                )
                .header("retry-after", seconds.max(1).to_string()))
            }
        }
    }

    /// Runs `act` on the breaker and tells when it opens or closes; gives whether it opened.
    fn with<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> (T, bool) {
        let mut watched = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = watched.breaker.state();
        let outcome = act(&mut watched.breaker);
        let after = watched.breaker.state();
        if before != after && after == BreakerState::Closed {
            watched.recovered_at = Some(Instant::now());
        }
        drop(watched);
        if before != after {
            let (target, at) = (self.target, &self.address);
            match after {
                BreakerState::Open => warn!(%target, "the breaker of target {target} opens ({at})"),
                BreakerState::Probing => info!(%target, "target {target} is tried again ({at})"),
                BreakerState::Closed => {
                    info!(%target, "the breaker of target {target} closes ({at})");
                }
            }
        }
        (outcome, before != after && after == BreakerState::Open)
    }
}

impl Admitted {
    /// The target answered with this status. Gives whether the breaker opens for it.
    pub fn answered(mut self, status: StatusCode) -> bool {
        let failed = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
        self.health = match failed {
            true => Health::Failure,
            false => Health::Success,
        };
        self.tell()
    }

    /// The target did not answer. Gives whether the breaker opens for it.
    pub fn failed(mut self, failure: &Failure) -> bool {
        self.health = match failure.kind.fault() {
            Fault::Target => Health::Failure,
            // The gateway or the caller ended it.
            Fault::Configuration | Fault::Gateway | Fault::Caller => Health::Unknown,
        };
        self.tell()
    }

    fn tell(&mut self) -> bool {
        let Some(ticket) = self.ticket.take() else {
            return false;
        };
        let health = self.health;
        let record = |breaker: &mut Breaker| breaker.record(ticket, health, Instant::now());
        self.breaker.with(record).1
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.tell();
    }
}

/// The breakers in use, found again when a new version is compiled.
#[derive(Debug, Default)]
pub struct Breakers(Mutex<ByAddress>);

/// By the address of a target.
type ByAddress = HashMap<(OrgId, TargetId, Box<str>), Known>;

#[derive(Debug)]
struct Known {
    settings: BreakerSettings,
    breaker: Weak<TargetBreaker>,
}

impl Breakers {
    /// The breaker of a target's address. What it has seen goes on where its settings are as
    /// before.
    pub fn of(
        &self,
        (org, id): (OrgId, TargetId),
        address: &str,
        settings: &BreakerSettings,
    ) -> Arc<TargetBreaker> {
        let key = (org, id, Box::from(address));
        let mut all = self.all();
        if let Some(known) = all.get(&key)
            && known.settings == *settings
            && let Some(breaker) = known.breaker.upgrade()
        {
            return breaker;
        }
        let breaker = Arc::new(TargetBreaker::new(id, address, settings));
        let known = Known {
            settings: settings.clone(),
            breaker: Arc::downgrade(&breaker),
        };
        all.insert(key, known);
        breaker
    }

    /// Forgets the breakers that no compiled target has any more.
    pub fn tidy(&self) {
        self.all()
            .retain(|_, known| known.breaker.strong_count() > 0);
    }

    /// Held while one is looked up: proxies are compiled side by side.
    fn all(&self) -> MutexGuard<'_, ByAddress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::FailureKind;

    const ID: (OrgId, TargetId) = (OrgId::from_bits(1), TargetId::from_bits(1));

    fn settings(json: serde_json::Value) -> BreakerSettings {
        serde_json::from_value(json).unwrap()
    }

    fn answered(breaker: &Arc<TargetBreaker>, status: u16) -> bool {
        let admitted = breaker.admit().unwrap();
        admitted.answered(StatusCode::from_u16(status).unwrap())
    }

    #[test]
    fn failures_open_it_and_it_says_when_to_come_back() {
        let breakers = Breakers::default();
        let json = serde_json::json!({"consecutive_failures": 2, "open_ms": 3_600_000});
        let breaker = breakers.of(ID, "https://a.example", &settings(json));
        for status in [500, 501, 503] {
            assert!(!answered(&breaker, status));
        }
        drop(breaker.admit().unwrap());
        assert!(answered(&breaker, 502), "and says that it opened");
        let end = breaker.admit().unwrap_err();
        assert_eq!(end.code, Code::CircuitOpen);
        assert_eq!(end.headers, [("retry-after", "3600".to_owned())]);
        assert!(breaker.is_open());
        assert_eq!(breaker.share(Instant::now(), Duration::ZERO), 0);
    }

    /// Whose fault a failure is, and whether it opens a breaker, are one answer.
    #[test]
    fn only_what_is_a_targets_fault_counts() {
        let breakers = Breakers::default();
        let one = settings(serde_json::json!({"consecutive_failures": 1}));
        for (at, kind) in [
            FailureKind::Held,
            FailureKind::PoolExhausted,
            FailureKind::BadTarget,
            FailureKind::CallerStalled,
            FailureKind::TotalTimeout,
            FailureKind::FirstByteTimeout,
            FailureKind::ConnectTimeout,
            FailureKind::Reset("".into()),
        ]
        .into_iter()
        .enumerate()
        {
            let breaker = breakers.of(ID, &at.to_string(), &one);
            let is_targets = kind.fault() == Fault::Target;
            assert_eq!(is_targets, at > 3, "{kind}");
            let opened = breaker.admit().unwrap().failed(&Failure {
                kind,
                maybe_carried_out: false,
                attempts: 0,
                earlier: Vec::new(),
                again: None,
            });
            assert_eq!(
                (breaker.is_open(), opened),
                (is_targets, is_targets),
                "{at}"
            );
        }
    }

    #[test]
    fn what_was_seen_goes_on_over_versions_that_leave_it_as_it_is() {
        let breakers = Breakers::default();
        let id = ID;
        let two = settings(serde_json::json!({"consecutive_failures": 2}));
        let breaker = breakers.of(id, "https://a.example", &two);
        let same = breakers.of(id, "https://a.example", &two);
        assert!(Arc::ptr_eq(&breaker, &same));
        let moved = breakers.of(id, "https://b.example", &two);
        assert!(!Arc::ptr_eq(&breaker, &moved));
        // An id says nothing of another organisation's target.
        let other = (OrgId::from_bits(2), id.1);
        let others = breakers.of(other, "https://a.example", &two);
        assert!(!Arc::ptr_eq(&breaker, &others));
        let three = settings(serde_json::json!({"consecutive_failures": 3}));
        let stricter = breakers.of(id, "https://a.example", &three);
        assert!(!Arc::ptr_eq(&breaker, &stricter));
        drop((breaker, same, moved, others, stricter));
        breakers.tidy();
        assert!(breakers.all().is_empty());
    }

    #[test]
    fn what_comes_back_gets_a_rising_share() {
        let breakers = Breakers::default();
        let json = serde_json::json!({"consecutive_failures": 1, "open_ms": 100});
        let breaker = breakers.of(ID, "https://a.example", &settings(json));
        let slow = Duration::from_secs(10);
        assert_eq!(
            breaker.share(Instant::now(), slow),
            WHOLE,
            "it never failed"
        );
        answered(&breaker, 500);
        let later = Instant::now() + Duration::from_millis(100);
        assert_eq!(breaker.share(later, slow), WHOLE, "a probe may go");
        let (admission, _) = breaker.with(|breaker| breaker.admit(later));
        let Admission::Pass(ticket) = admission else {
            panic!("a probe may go");
        };
        assert_eq!(breaker.share(later, slow), 0, "one probe at a time");
        breaker.with(|breaker| breaker.record(ticket, Health::Success, later));
        let since = breaker.state.lock().unwrap().recovered_at.unwrap();
        for (ms, share) in [
            (0, SHARE_LEAST),
            (1_000, 100),
            (5_000, 500),
            (10_000, WHOLE),
        ] {
            let at = since + Duration::from_millis(ms);
            assert_eq!(breaker.share(at, slow), share, "{ms} ms after");
        }
        assert_eq!(breaker.share(since, Duration::ZERO), WHOLE);
    }
}
