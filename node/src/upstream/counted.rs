//! How many connections the pools of all workers have. Each worker tells it when it looks through
//! its pools, so that requests pay nothing for it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use proto::exposition::Families;

/// Connections to targets, of all who share it.
#[derive(Clone, Debug, Default)]
pub struct ConnectionCounts(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: AtomicI64,
    idle: AtomicI64,
    opened: AtomicU64,
}

impl ConnectionCounts {
    /// As metrics.
    pub fn collect(&self, out: &mut Families) {
        let (open, idle) = (self.0.open.load(Relaxed), self.0.idle.load(Relaxed));
        let help = "Connections to targets, as counted once a second: in use, being opened, or \
                    kept for the next request.";
        let family = out.gauge("requestrocket_upstream_connections", help);
        // The two are not read at one instant.
        let active = open.saturating_sub(idle).max(0);
        for (state, count) in [("active", active), ("idle", idle.max(0))] {
            family.with([("state", state.into())], count as f64);
        }
        let help = "Connections to targets that were opened.";
        let family = out.counter("requestrocket_upstream_connections_opened_total", help);
        family.is(self.0.opened.load(Relaxed));
    }
}

/// What one worker's pools have told of themselves.
#[derive(Debug)]
pub(super) struct Told {
    counts: ConnectionCounts,
    open: Cell<i64>,
    idle: Cell<i64>,
}

impl Told {
    /// Nothing yet.
    pub(super) fn new(counts: ConnectionCounts) -> Self {
        Self {
            counts,
            open: Cell::new(0),
            idle: Cell::new(0),
        }
    }

    /// One more was opened.
    pub(super) fn opened(&self) {
        self.counts.0.opened.fetch_add(1, Relaxed);
    }

    /// So many are open, so many of them idle.
    pub(super) fn tell(&self, open: usize, idle: usize) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let (open, idle) = (number(open), number(idle));
        let counts = &self.counts.0;
        counts
            .open
            .fetch_add(open - self.open.replace(open), Relaxed);
        counts
            .idle
            .fetch_add(idle - self.idle.replace(idle), Relaxed);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tell(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proto::exposition::text::Form;

    use super::*;

    #[test]
    fn workers_are_added_up_and_leave_nothing_behind() {
        let counts = ConnectionCounts::default();
        let is = |active: u32, idle: u32, opened: u32| {
            let mut out = Families::default();
            counts.collect(&mut out);
            let text = out.text(Form::Prometheus);
            for line in [
                format!("requestrocket_upstream_connections{{state=\"active\"}} {active}"),
                format!("requestrocket_upstream_connections{{state=\"idle\"}} {idle}"),
                format!("requestrocket_upstream_connections_opened_total {opened}"),
            ] {
                assert!(text.lines().any(|found| found == line), "{line}\n{text}");
            }
        };
        is(0, 0, 0);
        let one = Told::new(counts.clone());
        let other = Told::new(counts.clone());
        one.opened();
        one.tell(3, 1);
        other.tell(5, 5);
        is(2, 6, 1);
        one.tell(2, 2);
        is(0, 7, 1);
        drop(other);
        is(0, 2, 1);
        drop(one);
        is(0, 0, 1);
    }
}
