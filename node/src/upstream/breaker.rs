//! Pure: a circuit breaker: closed, open, probing. Off unless a target asks for it.
//!
//! Two rules open it, either alone or both: so many failures in a row, which finds a target that
//! is down within a few requests even at low traffic; and a share of failures within a window,
//! which finds one that fails every other request and would never fail often enough in a row. The
//! share needs a least number of requests, or one failure at night would be 100 %.
//!
//! Open, it refuses for `open_for`; then it lets `probes` requests through, one after the other.
//! All must succeed to close it, and one failure opens it again, for twice as long each time. A
//! probe may take minutes, or wait on this side before it is sent: one that has no outcome after
//! `open_for` holds up no other, and its outcome still counts.
//!
//! The clock is an argument. Outcomes of requests that were admitted in an earlier state are
//! ignored: a slow failure from before must not end a probe of now.

use std::time::{Duration, Instant};

/// Parts of the window; the oldest is forgotten as a whole.
const PARTS: usize = 10;

/// When a breaker opens and closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Opens at so many failures in a row; `None` turns this rule off. Zero counts as one.
    pub consecutive_failures: Option<u32>,
    /// Opens at this share of failures in the window; `None` turns this rule off.
    pub failure_ratio: Option<FailureRatio>,
    /// How long it refuses the first time.
    pub open_for: Duration,
    /// The longest it refuses, when probes keep failing.
    pub open_for_max: Duration,
    /// Requests that must succeed before it closes. Zero counts as one.
    pub probes: u32,
}

/// A share of failures within a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureRatio {
    /// The share, in percent: 1 to 100.
    pub percent: u32,
    /// Requests in the window below which the share says nothing.
    pub requests_min: u64,
    /// The length of the window.
    pub window: Duration,
}

/// How an admitted request ended, as far as the target's health goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// An answer that says that the target works, 4xx included.
    Success,
    /// No answer, or one that says that it does not.
    Failure,
    /// Says nothing: the caller left, or the gate refused.
    Unknown,
}

/// The answer to "may this request go".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Yes; the ticket goes back with the outcome.
    Pass(Ticket),
    /// No; this long until it is worth asking again.
    Refuse {
        /// Time until the next probe may go.
        retry_after: Duration,
    },
}

/// Ties an outcome to the state in which its request was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a probe whose outcome is never recorded keeps the breaker from closing"]
pub struct Ticket(u64);

/// What the breaker does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// All pass.
    Closed,
    /// None pass.
    Open,
    /// One at a time passes, or one each time that the breaker was open for.
    Probing,
}

#[derive(Clone, Copy, Debug)]
enum Inner {
    Closed {
        failures_in_row: u32,
    },
    Open {
        until: Instant,
    },
    Probing {
        /// When the newest probe without an outcome went.
        in_flight: Option<Instant>,
        succeeded: u32,
    },
}

/// The breaker of one target.
#[derive(Clone, Debug)]
pub struct Breaker {
    policy: BreakerPolicy,
    inner: Inner,
    /// Changes with every state; see [`Ticket`].
    generation: u64,
    open_for: Duration,
    window: Window,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(policy: BreakerPolicy, now: Instant) -> Self {
        let length = policy
            .failure_ratio
            .as_ref()
            .map_or(Duration::ZERO, |ratio| ratio.window);
        Self {
            open_for: policy.open_for,
            policy,
            inner: Inner::Closed { failures_in_row: 0 },
            generation: 0,
            window: Window::new(length, now),
        }
    }

    /// The state, for metrics.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match self.inner {
            Inner::Closed { .. } => BreakerState::Closed,
            Inner::Open { .. } => BreakerState::Open,
            Inner::Probing { .. } => BreakerState::Probing,
        }
    }

    /// Whether [`Self::admit`] would let a request go now.
    #[must_use]
    pub fn would_admit(&self, now: Instant) -> bool {
        match self.inner {
            Inner::Closed { .. } => true,
            Inner::Open { until } => now >= until,
            Inner::Probing { in_flight, .. } => self.probe_in(in_flight, now).is_zero(),
        }
    }

    /// Whether a request may go now.
    pub fn admit(&mut self, now: Instant) -> Admission {
        if let Inner::Open { until } = self.inner {
            let left = until.saturating_duration_since(now);
            if !left.is_zero() {
                return Admission::Refuse { retry_after: left };
            }
            self.enter(Inner::Probing {
                in_flight: None,
                succeeded: 0,
            });
        }
        if let Inner::Probing { in_flight, .. } = self.inner {
            let retry_after = self.probe_in(in_flight, now);
            if !retry_after.is_zero() {
                return Admission::Refuse { retry_after };
            }
        }
        if let Inner::Probing { in_flight, .. } = &mut self.inner {
            *in_flight = Some(now);
        }
        Admission::Pass(Ticket(self.generation))
    }

    /// How long until another probe may go while this one is under way.
    fn probe_in(&self, in_flight: Option<Instant>, now: Instant) -> Duration {
        in_flight.map_or(Duration::ZERO, |since| {
            let waited = now.saturating_duration_since(since);
            self.open_for.saturating_sub(waited)
        })
    }

    /// How an admitted request ended.
    pub fn record(&mut self, ticket: Ticket, health: Health, now: Instant) {
        if ticket.0 != self.generation {
            return;
        }
        match &mut self.inner {
            Inner::Closed { failures_in_row } => {
                match health {
                    Health::Success => *failures_in_row = 0,
                    Health::Failure => *failures_in_row = failures_in_row.saturating_add(1),
                    Health::Unknown => return,
                }
                let in_row = *failures_in_row;
                self.window.count(health, now);
                if health == Health::Failure && self.must_open(in_row) {
                    self.open(now);
                }
            }
            Inner::Probing {
                in_flight,
                succeeded,
            } => {
                *in_flight = None;
                match health {
                    Health::Success => *succeeded = succeeded.saturating_add(1),
                    Health::Failure => {
                        let doubled = self.open_for.saturating_mul(2);
                        self.open_for = doubled.min(self.policy.open_for_max);
                        return self.open(now);
                    }
                    Health::Unknown => {}
                }
                if *succeeded >= self.policy.probes.max(1) {
                    self.open_for = self.policy.open_for;
                    self.window.clear(now);
                    self.enter(Inner::Closed { failures_in_row: 0 });
                }
            }
            // No ticket carries the generation of an open breaker.
            Inner::Open { .. } => {}
        }
    }

    fn must_open(&self, in_row: u32) -> bool {
        let by_row = self
            .policy
            .consecutive_failures
            .is_some_and(|most| in_row >= most.max(1));
        let by_ratio = self.policy.failure_ratio.as_ref().is_some_and(|ratio| {
            let (all, failed) = self.window.totals();
            all >= ratio.requests_min
                && failed.saturating_mul(100) >= all.saturating_mul(u64::from(ratio.percent))
        });
        by_row || by_ratio
    }

    fn open(&mut self, now: Instant) {
        // A time too long to be added means "for good"; the longest that can be added is close.
        let until = now.checked_add(self.open_for).unwrap_or(now);
        self.enter(Inner::Open { until });
    }

    fn enter(&mut self, inner: Inner) {
        self.inner = inner;
        self.generation = self.generation.wrapping_add(1);
    }
}

/// Counts of the last `PARTS` parts of the window.
#[derive(Clone, Debug)]
struct Window {
    part: Duration,
    /// (all, failed); the newest is at `newest`.
    parts: [(u64, u64); PARTS],
    newest: usize,
    newest_since: Instant,
}

impl Window {
    fn new(length: Duration, now: Instant) -> Self {
        let part = length / PARTS as u32;
        Self {
            part,
            parts: [(0, 0); PARTS],
            newest: 0,
            newest_since: now,
        }
    }

    fn clear(&mut self, now: Instant) {
        self.parts = [(0, 0); PARTS];
        self.newest_since = now;
    }

    fn count(&mut self, health: Health, now: Instant) {
        self.roll(now);
        if let Some((all, failed)) = self.parts.get_mut(self.newest) {
            *all = all.saturating_add(1);
            *failed = failed.saturating_add(u64::from(health == Health::Failure));
        }
    }

    fn roll(&mut self, now: Instant) {
        if self.part.is_zero() {
            return;
        }
        for _ in 0..PARTS {
            if now.saturating_duration_since(self.newest_since) < self.part {
                return;
            }
            self.newest = (self.newest + 1) % PARTS;
            self.newest_since += self.part;
            if let Some(part) = self.parts.get_mut(self.newest) {
                *part = (0, 0);
            }
        }
        // Silent for longer than the whole window: all parts are empty now.
        self.newest_since = self.newest_since.max(now);
    }

    fn totals(&self) -> (u64, u64) {
        self.parts.iter().fold((0, 0), |(all, failed), part| {
            (part.0.saturating_add(all), part.1.saturating_add(failed))
        })
    }
}
