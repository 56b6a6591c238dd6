//! What happens inside the stages of a request, noted for its record: what becomes the events of
//! its spans. Nothing is made where nothing happens.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use proto::filter::Applied;
use proto::id::FilterId;
use proto::record::{Record, SpanEvent, SpanEventKind, SpanEvents};

use crate::actor::StageKind;
use crate::flow::{Exchange, Notes};
use crate::limits::{Mode, OnHold};

/// Microseconds since then, as many as marks hold.
pub fn us_since(started: Instant) -> u32 {
    u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// Notes what happens in a stage.
pub struct Noting<'n> {
    events: &'n mut SpanEvents,
    stage: StageKind,
    started: Instant,
}

impl<'n> Noting<'n> {
    /// Notes it there, for a request that began then.
    pub fn new(events: &'n mut SpanEvents, stage: StageKind, started: Instant) -> Self {
        Self {
            events,
            stage,
            started,
        }
    }

    /// Notes what happens just now, and to what.
    pub fn add(&mut self, kind: SpanEventKind, subject: Option<Arc<str>>) {
        let event = SpanEvent::new(kind, self.stage, us_since(self.started));
        self.events.add(event.of(subject));
    }

    /// Notes that the request waits for its turn at a meter, or no more.
    pub fn hold(&mut self, what: OnHold, meter: Option<Arc<str>>) {
        let kind = match what {
            OnHold::Began => SpanEventKind::HoldBegan,
            OnHold::Ended => SpanEventKind::HoldEnded,
        };
        self.add(kind, meter);
    }

    /// Notes that a meter is spent of without its owner and the store.
    pub fn spent_alone(&mut self, meter: &str, mode: Mode) {
        let kind = match mode {
            Mode::Open => SpanEventKind::MeterFailOpen,
            Mode::LocalShare | Mode::Lost | Mode::Store => SpanEventKind::MeterLocalShare,
        };
        self.add(kind, Some(meter.into()));
    }
}

impl Exchange {
    /// Notes what happens in a stage.
    pub fn noting(&mut self, stage: StageKind) -> Noting<'_> {
        Noting::new(&mut self.notes.events, stage, self.started)
    }

    /// Notes what filters did to a body just now, and gives what may go on of it.
    pub fn filtered(&mut self, applied: Applied, stage: StageKind) -> Bytes {
        for id in &applied.changed {
            let mut noting = self.noting(stage);
            noting.add(SpanEventKind::FilterChanged, Some(Arc::clone(id)));
            self.notes.filters_changed.extend(id.parse::<FilterId>());
        }
        self.notes.redacted.add(&applied.redacted);
        applied.body.into()
    }
}

/// What the record says of them: all so far, retries among them, and how many more there were.
pub fn told(notes: &mut Notes) -> (Vec<SpanEvent>, u32) {
    let mut events = std::mem::take(&mut notes.events);
    events.add_retries(&notes.sends, &notes.endpoints);
    events.into_parts()
}

/// Adds what happened after a record was made.
pub fn add_late(record: &mut Record, events: impl Iterator<Item = SpanEvent>) {
    let mut all = SpanEvents::going_on(std::mem::take(&mut record.events), record.events_dropped);
    events.for_each(|event| all.add(event));
    (record.events, record.events_dropped) = all.into_parts();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_says_what_and_to_which_meter() {
        let mut events = SpanEvents::default();
        let mut noting = Noting::new(&mut events, StageKind::Limit, Instant::now());
        let meter = || Some(Arc::from("mtr_1"));
        noting.hold(OnHold::Began, meter());
        noting.hold(OnHold::Ended, meter());
        noting.spent_alone("mtr_1", Mode::Open);
        noting.spent_alone("mtr_1", Mode::LocalShare);
        let (events, dropped) = events.into_parts();
        let kinds = events.iter().map(|event| event.kind);
        let expected = [
            SpanEventKind::HoldBegan,
            SpanEventKind::HoldEnded,
            SpanEventKind::MeterFailOpen,
            SpanEventKind::MeterLocalShare,
        ];
        assert_eq!((kinds.collect::<Vec<_>>(), dropped), (expected.to_vec(), 0));
        let is_there =
            |event: &SpanEvent| event.stage == StageKind::Limit && event.subject == meter();
        assert!(events.iter().all(is_there), "{events:?}");
    }
}
