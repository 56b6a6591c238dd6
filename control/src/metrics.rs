//! Counters of the control plane.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::audit::Failure;
use proto::exposition::Families;

/// Classes of answers, by the first digit of their status.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// What is wrong with a token that is refused, in the order in which it is counted.
const FAILURES: [(Failure, &str); 2] =
    [(Failure::Unknown, "unknown"), (Failure::Expired, "expired")];

/// The counters of one process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Counters>);

/// What is counted.
#[derive(Debug, Default)]
pub struct Counters {
    answers: [AtomicU64; CLASSES.len()],
    records: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
    nodes: AtomicU64,
    followers: AtomicU64,
    audit_dropped: AtomicU64,
    logins_failed: [AtomicU64; FAILURES.len()],
}

impl Metrics {
    /// A call of the API was answered.
    pub fn answered(&self, status: u16) {
        let class = usize::from(status / 100).checked_sub(2);
        if let Some(count) = class.and_then(|class| self.0.answers.get(class)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Records of a node were stored; the node has lost some since it last told.
    pub fn stored(&self, records: u64, lost: u64) {
        self.0.records.fetch_add(records, Relaxed);
        self.0.lost.fetch_add(lost, Relaxed);
    }

    /// The store did not take records of a node, which sends them again.
    pub fn refused(&self, records: u64) {
        self.0.refused.fetch_add(records, Relaxed);
    }

    /// A wrong token was presented.
    pub fn login_failed(&self, why: Failure) {
        let place = FAILURES.iter().position(|(known, _)| *known == why);
        if let Some(count) = place.and_then(|place| self.0.logins_failed.get(place)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Failed logins are in no audit entry: there was no room for them.
    pub fn audit_dropped(&self, times: u64) {
        self.0.audit_dropped.fetch_add(times, Relaxed);
    }

    /// A node's connection is up until what is returned is dropped.
    pub fn node(&self) -> Connected {
        self.0.nodes.fetch_add(1, Relaxed);
        Connected(self.clone(), |counters| &counters.nodes)
    }

    /// Somebody follows records until what is returned is dropped.
    pub fn follower(&self) -> Connected {
        self.0.followers.fetch_add(1, Relaxed);
        Connected(self.clone(), |counters| &counters.followers)
    }

    /// All of them.
    pub fn families(&self) -> Families {
        let mut out = Families::default();
        let help = "Answers of the REST API.";
        let family = out.counter("requestrocket_control_answers_total", help);
        for (class, count) in CLASSES.into_iter().zip(&self.0.answers) {
            family.with([("class", class.into())], count.load(Relaxed));
        }
        let help = "Tokens that were presented and are not in force, or not any more.";
        let family = out.counter("requestrocket_control_logins_failed_total", help);
        for ((_, why), count) in FAILURES.into_iter().zip(&self.0.logins_failed) {
            family.with([("why", why.into())], count.load(Relaxed));
        }
        let counters = [
            (
                "requestrocket_control_records_total",
                "Records of nodes that were stored here.",
                &self.0.records,
            ),
            (
                "requestrocket_control_records_lost_total",
                "Records that nodes said they had lost.",
                &self.0.lost,
            ),
            (
                "requestrocket_control_records_refused_total",
                "Records of nodes that the store did not take; they come again.",
                &self.0.refused,
            ),
            (
                "requestrocket_control_audit_dropped_total",
                "Failed logins that no audit entry counts: there was no room for them.",
                &self.0.audit_dropped,
            ),
        ];
        for (name, help, count) in counters {
            out.counter(name, help).is(count.load(Relaxed));
        }
        let help = "Nodes that are connected to leave their records.";
        let family = out.gauge("requestrocket_control_nodes_connected", help);
        family.is(self.0.nodes.load(Relaxed));
        let help = "Connections that follow records.";
        let family = out.gauge("requestrocket_control_followers", help);
        family.is(self.0.followers.load(Relaxed));
        out
    }
}

/// Counts as connected until it is dropped.
pub struct Connected(Metrics, fn(&Counters) -> &AtomicU64);

impl Drop for Connected {
    fn drop(&mut self) {
        (self.1)(&self.0.0).fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proto::exposition::text::Form;

    use super::*;

    #[test]
    fn what_was_counted_is_told() {
        let metrics = Metrics::default();
        for status in [200, 204, 404, 503, 101] {
            metrics.answered(status);
        }
        metrics.stored(5, 2);
        metrics.refused(3);
        metrics.audit_dropped(4);
        metrics.login_failed(Failure::Expired);
        let connected = metrics.node();
        let text = metrics.families().text(Form::Prometheus);
        for line in [
            "requestrocket_control_answers_total{class=\"2xx\"} 2",
            "requestrocket_control_answers_total{class=\"5xx\"} 1",
            "requestrocket_control_records_total 5",
            "requestrocket_control_records_lost_total 2",
            "requestrocket_control_records_refused_total 3",
            "requestrocket_control_audit_dropped_total 4",
            "requestrocket_control_logins_failed_total{why=\"unknown\"} 0",
            "requestrocket_control_logins_failed_total{why=\"expired\"} 1",
            "requestrocket_control_nodes_connected 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        drop(connected);
        assert!(
            metrics
                .families()
                .text(Form::Prometheus)
                .contains("nodes_connected 0")
        );
    }
}
