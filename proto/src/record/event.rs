//! What happened inside a stage of a request: the events of its spans. Pure.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Attempt, Stage};

/// Most events that the record of one request has; those that come later are counted.
pub const SPAN_EVENTS_MAX: usize = 16;

/// Something that happened inside a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpanEvent {
    /// The stage in which it happened.
    pub stage: Stage,
    /// When: microseconds after the request's start.
    pub at_us: u32,
    /// What it was.
    pub kind: SpanEventKind,
    /// What it happened to: the id of a meter, a credential or a filter, or the endpoint of a
    /// target, where there are several.
    #[schema(value_type = Option<String>)]
    pub subject: Option<Arc<str>>,
    /// The place of a retry among the retries, from 1 on; how often a secret was overwritten.
    pub count: Option<u32>,
}

/// What can happen inside a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SpanEventKind {
    /// It was sent to the target once more.
    Retry,
    /// It began to wait for its turn at a meter, or for a place among the calls in flight.
    HoldBegan,
    /// It had its turn or place there, was refused, or its caller left.
    HoldEnded,
    /// What came of it made the circuit breaker of the target open.
    BreakerOpened,
    /// Its target is no host that its credential may be sent to.
    CredentialHostMismatch,
    /// The answer held the secret that it was sent with, which was overwritten.
    SecretReflected,
    /// A filter changed its body or that of its answer.
    FilterChanged,
    /// A meter let it pass by the node's own share: neither the node that keeps the meter nor the
    /// store could be reached.
    MeterLocalShare,
    /// A meter let it pass without counting, for the same reason.
    MeterFailOpen,
}

impl SpanEventKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Retry,
        Self::HoldBegan,
        Self::HoldEnded,
        Self::BreakerOpened,
        Self::CredentialHostMismatch,
        Self::SecretReflected,
        Self::FilterChanged,
        Self::MeterLocalShare,
        Self::MeterFailOpen,
    ];

    /// Its text, the same as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::HoldBegan => "hold-began",
            Self::HoldEnded => "hold-ended",
            Self::BreakerOpened => "breaker-opened",
            Self::CredentialHostMismatch => "credential-host-mismatch",
            Self::SecretReflected => "secret-reflected",
            Self::FilterChanged => "filter-changed",
            Self::MeterLocalShare => "meter-local-share",
            Self::MeterFailOpen => "meter-fail-open",
        }
    }
}

impl SpanEvent {
    /// Something that happened in this stage, so many microseconds after the request's start.
    pub fn new(kind: SpanEventKind, stage: Stage, at_us: u32) -> Self {
        Self {
            stage,
            at_us,
            kind,
            subject: None,
            count: None,
        }
    }

    /// The same with what it happened to.
    #[must_use]
    pub fn of(self, subject: Option<Arc<str>>) -> Self {
        Self { subject, ..self }
    }

    /// The same with a count.
    #[must_use]
    pub fn counted(self, count: u32) -> Self {
        let count = Some(count);
        Self { count, ..self }
    }
}

/// The events of one request, [`SPAN_EVENTS_MAX`] at most. Nothing is allocated before the first.
#[derive(Debug, Default)]
pub struct SpanEvents {
    kept: Vec<SpanEvent>,
    dropped: u32,
}

impl SpanEvents {
    /// Goes on with what a record has.
    pub fn going_on(kept: Vec<SpanEvent>, dropped: u32) -> Self {
        Self { kept, dropped }
    }

    /// Adds one, or counts it where there are enough.
    pub fn add(&mut self, event: SpanEvent) {
        match self.kept.len() < SPAN_EVENTS_MAX {
            true => self.kept.push(event),
            false => self.dropped = self.dropped.saturating_add(1),
        }
    }

    /// Adds those of another list.
    pub fn join(&mut self, others: Self) {
        let Self { kept, dropped } = others;
        self.dropped = self.dropped.saturating_add(dropped);
        kept.into_iter().for_each(|event| self.add(event));
    }

    /// Adds each attempt but the first as a retry; `endpoints` are those of the attempts.
    pub fn add_retries(&mut self, sends: &[Attempt], endpoints: &[Arc<str>]) {
        for (at, attempt) in sends.iter().enumerate().skip(1) {
            let event = SpanEvent::new(SpanEventKind::Retry, Stage::Forward, attempt.started_us);
            let count = u32::try_from(at).unwrap_or(u32::MAX);
            self.add(event.of(endpoints.get(at).cloned()).counted(count));
        }
    }

    /// All of them in the order of their times, and how many more there were.
    pub fn into_parts(self) -> (Vec<SpanEvent>, u32) {
        let Self { mut kept, dropped } = self;
        kept.sort_by_key(|event| event.at_us);
        (kept, dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at_us: u32) -> SpanEvent {
        SpanEvent::new(SpanEventKind::HoldBegan, Stage::Limit, at_us)
    }

    #[test]
    fn kinds_stand_at_their_numbers_and_are_named_as_in_json() {
        for (at, kind) in SpanEventKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "{}", kind.as_str());
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn there_are_so_many_and_the_others_are_counted() {
        let mut events = SpanEvents::default();
        let mut others = SpanEvents::default();
        for n in 0..SPAN_EVENTS_MAX as u32 {
            events.add(at(100 - n));
            others.add(at(n));
        }
        others.add(at(7));
        events.join(others);
        let (kept, dropped) = events.into_parts();
        assert_eq!((kept.len(), dropped), (SPAN_EVENTS_MAX, 17));
        assert!(kept.is_sorted_by_key(|event| event.at_us));
        let mut events = SpanEvents::going_on(kept, dropped);
        events.add(at(200));
        assert_eq!(events.into_parts().1, 18);
    }

    #[test]
    fn each_attempt_but_the_first_is_a_retry() {
        let attempt = |started_us| Attempt {
            started_us,
            connect_us: 0,
            wait_us: 1,
            reused: false,
            status: Some(503),
            failure: None,
        };
        let mut events = SpanEvents::default();
        events.add_retries(&[attempt(5)], &[]);
        assert!(events.kept.is_empty());
        let labels = ["a:443".into(), "b:443".into()];
        events.add_retries(&[attempt(5), attempt(9)], &labels);
        let retry = SpanEvent::new(SpanEventKind::Retry, Stage::Forward, 9);
        let retry = retry.of(Some("b:443".into())).counted(1);
        assert_eq!(events.into_parts(), (vec![retry], 0));
    }
}
