//! The circuit breakers of targets: one for each target that asks for one, shared by the workers,
//! kept over versions that leave its settings and its target's address as they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::StatusCode;
use proto::breaker::BreakerSettings;
use proto::id::TargetId;
use proto::outcome::{Code, EarlyEnd};
use proto::target::Target;
use tracing::{info, warn};

use crate::upstream::breaker::{
    Admission, Breaker, BreakerPolicy, BreakerState, FailureRatio, Health, Ticket,
};
use crate::upstream::{Failure, FailureKind};

/// The breaker of a target.
#[derive(Debug)]
pub struct TargetBreaker {
    target: TargetId,
    // Held for a few comparisons, and only for targets that have a breaker.
    state: Mutex<Breaker>,
}

/// A request that the breaker let through. Dropped without an outcome it says nothing of the
/// target.
#[derive(Debug)]
pub struct Admitted {
    breaker: Arc<TargetBreaker>,
    ticket: Ticket,
    health: Health,
}

impl TargetBreaker {
    fn new(target: TargetId, settings: &BreakerSettings) -> Self {
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
            state: Mutex::new(Breaker::new(policy, Instant::now())),
        }
    }

    /// Lets a request through.
    ///
    /// # Errors
    /// The breaker is open: 503 `circuit-open` with the time until it is worth asking again.
    pub fn admit(self: &Arc<Self>) -> Result<Admitted, EarlyEnd> {
        let admission = self.with(|breaker| breaker.admit(Instant::now()));
        match admission {
            Admission::Pass(ticket) => Ok(Admitted {
                breaker: Arc::clone(self),
                ticket,
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

    /// Runs `act` on the breaker and tells when it opens or closes.
    fn with<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = breaker.state();
        let outcome = act(&mut breaker);
        let after = breaker.state();
        drop(breaker);
        if before != after {
            let target = self.target;
            match after {
                BreakerState::Open => warn!(%target, "the breaker of target {target} opens"),
                BreakerState::Probing => info!(%target, "target {target} is tried again"),
                BreakerState::Closed => info!(%target, "the breaker of target {target} closes"),
            }
        }
        outcome
    }
}

impl Admitted {
    /// The target answered with this status.
    pub fn answered(mut self, status: StatusCode) {
        let failed = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
        self.health = match failed {
            true => Health::Failure,
            false => Health::Success,
        };
    }

    /// The target did not answer.
    pub fn failed(mut self, failure: &Failure) {
        self.health = match failure.kind {
            FailureKind::Resolve(_)
            | FailureKind::Connect(_)
            | FailureKind::Reset(_)
            | FailureKind::BadHttp(_)
            | FailureKind::Tls(_)
            | FailureKind::ConnectTimeout
            | FailureKind::FirstByteTimeout
            | FailureKind::TotalTimeout => Health::Failure,
            // The gateway or the caller ended it.
            FailureKind::Refused { .. }
            | FailureKind::PoolExhausted
            | FailureKind::BadTarget
            | FailureKind::BodyFromCaller(_) => Health::Unknown,
        };
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let (ticket, health) = (self.ticket, self.health);
        self.breaker
            .with(|breaker| breaker.record(ticket, health, Instant::now()));
    }
}

/// The breakers in use, found again when a new version is compiled.
#[derive(Debug, Default)]
pub struct Breakers(HashMap<TargetId, Known>);

#[derive(Debug)]
struct Known {
    settings: BreakerSettings,
    base_url: String,
    breaker: Weak<TargetBreaker>,
}

impl Breakers {
    /// The breaker of a target, if it has one. What it has seen goes on where its settings and the
    /// target's address are as before.
    pub fn of(&mut self, id: TargetId, target: &Target) -> Option<Arc<TargetBreaker>> {
        let settings = target.breaker.as_ref()?;
        if let Some(known) = self.0.get(&id)
            && known.settings == *settings
            && known.base_url == target.base_url
            && let Some(breaker) = known.breaker.upgrade()
        {
            return Some(breaker);
        }
        let breaker = Arc::new(TargetBreaker::new(id, settings));
        let known = Known {
            settings: settings.clone(),
            base_url: target.base_url.clone(),
            breaker: Arc::downgrade(&breaker),
        };
        self.0.insert(id, known);
        Some(breaker)
    }

    /// Forgets the breakers that no compiled target has any more.
    pub fn tidy(&mut self) {
        self.0.retain(|_, known| known.breaker.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(json: serde_json::Value) -> Target {
        let mut body = serde_json::json!({"base_url": "https://api.example.com"});
        body["breaker"] = json;
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn failures_open_it_and_it_says_when_to_come_back() {
        let mut breakers = Breakers::default();
        let target = target(serde_json::json!({"consecutive_failures": 2, "open_ms": 3_600_000}));
        let breaker = breakers.of(TargetId::from_bits(1), &target).unwrap();
        let answered = |status: u16| {
            let admitted = breaker.admit().unwrap();
            admitted.answered(StatusCode::from_u16(status).unwrap());
        };
        answered(500);
        answered(501);
        answered(503);
        drop(breaker.admit().unwrap());
        answered(502);
        let end = breaker.admit().unwrap_err();
        assert_eq!(end.code, Code::CircuitOpen);
        assert_eq!(end.headers, [("retry-after", "3600".to_owned())]);
    }

    #[test]
    fn what_was_seen_goes_on_over_versions_that_leave_it_as_it_is() {
        let mut breakers = Breakers::default();
        let id = TargetId::from_bits(1);
        let first = target(serde_json::json!({"consecutive_failures": 2}));
        let breaker = breakers.of(id, &first).unwrap();
        let mut renamed = first.clone();
        renamed.name = "another".into();
        assert!(Arc::ptr_eq(&breaker, &breakers.of(id, &renamed).unwrap()));
        let mut moved = first.clone();
        moved.base_url = "https://other.example.com".into();
        let other = breakers.of(id, &moved).unwrap();
        assert!(!Arc::ptr_eq(&breaker, &other));
        drop((breaker, other));
        breakers.tidy();
        assert!(breakers.0.is_empty());
        assert!(breakers.of(id, &target(serde_json::Value::Null)).is_none());
    }
}
