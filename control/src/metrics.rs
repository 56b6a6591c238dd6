//! Counters of the control plane in the Prometheus text format.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Classes of answers, by the first digit of their status.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

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

    /// All of them, after those of `others`.
    pub fn render(&self, others: String) -> String {
        let mut out = others;
        let name = "requestrocket_control_answers_total";
        let help = "Answers of the REST API.";
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
        for (class, count) in CLASSES.iter().zip(&self.0.answers) {
            let _ = writeln!(out, "{name}{{class=\"{class}\"}} {}", count.load(Relaxed));
        }
        for (name, help, kind, value) in [
            (
                "requestrocket_control_records_total",
                "Records of nodes that were stored here.",
                "counter",
                self.0.records.load(Relaxed),
            ),
            (
                "requestrocket_control_records_lost_total",
                "Records that nodes said they had lost.",
                "counter",
                self.0.lost.load(Relaxed),
            ),
            (
                "requestrocket_control_records_refused_total",
                "Records of nodes that the store did not take; they come again.",
                "counter",
                self.0.refused.load(Relaxed),
            ),
            (
                "requestrocket_control_nodes_connected",
                "Nodes that are connected to leave their records.",
                "gauge",
                self.0.nodes.load(Relaxed),
            ),
            (
                "requestrocket_control_followers",
                "Connections that follow records.",
                "gauge",
                self.0.followers.load(Relaxed),
            ),
        ] {
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        }
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
    use super::*;

    #[test]
    fn counters_are_rendered_after_those_of_others() {
        let metrics = Metrics::default();
        for status in [200, 204, 404, 503, 101] {
            metrics.answered(status);
        }
        metrics.stored(5, 2);
        metrics.refused(3);
        let connected = metrics.node();
        let text = metrics.render("other 1\n".into());
        assert!(text.starts_with("other 1\n# HELP requestrocket_control_answers_total"));
        for line in [
            "requestrocket_control_answers_total{class=\"2xx\"} 2",
            "requestrocket_control_answers_total{class=\"5xx\"} 1",
            "requestrocket_control_records_total 5",
            "requestrocket_control_records_lost_total 2",
            "requestrocket_control_records_refused_total 3",
            "requestrocket_control_nodes_connected 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        drop(connected);
        assert!(metrics.render(String::new()).contains("nodes_connected 0"));
    }
}
