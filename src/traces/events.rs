//! What happened inside a stage, as events of its span. Pure.

use proto::record::{Record, Stage};

use super::attributes as own;
use super::encode::Message;
use super::spans::Told;

/// Whether something happened in a stage.
pub fn are_in(record: &Record, stage: Stage) -> bool {
    record.events.iter().any(|event| event.stage == stage)
}

/// Adds what happened in a stage to its span, which lies between these times.
pub fn add(told: &Told<'_>, stage: Stage, (from_us, to_us): (u64, u64), span: &mut Message) {
    let events = told.record.events.iter();
    for event in events.filter(|event| event.stage == stage) {
        // The time of the stage itself was taken with another look at the clock.
        let at_us = u64::from(event.at_us).clamp(from_us, to_us.max(from_us));
        let subject = event.subject.as_deref();
        let count = event.count.map(i64::from);
        span.event(
            (own::event(event.kind), told.at_ns(at_us)),
            subject.map(|subject| (own::subject(event.kind), subject)),
            count.map(|count| (own::count(event.kind), count)),
        );
    }
}

impl Told<'_> {
    /// So many microseconds after the request's start, in nanoseconds since the Unix epoch.
    pub fn at_ns(&self, us: u64) -> u64 {
        let started_us = self.record.started_at_us.max(0).unsigned_abs();
        started_us.saturating_add(us).saturating_mul(1_000)
    }
}
