//! Every metric of the data plane, with its name, meaning and text form, in one place.
//!
//! To add one: a field here, its lines in [`Metrics::render`], its line in `docs/metrics.md`
//! (`tests/tidy.rs` compares). Names follow `[namespace_]name[_unit][_total]`; labels have few,
//! fixed values.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::outcome::Code;

use crate::actor::{STAGES, StageKind};
use crate::limits::Stats;

/// Upper bounds of the duration histograms' buckets, in microseconds.
const BUCKETS_US: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    10_000_000, 60_000_000,
];

/// The counters of a node; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    requests: [AtomicU64; Code::ALL.len()],
    stage_panics: [AtomicU64; STAGES],
    mailbox_full: [AtomicU64; STAGES],
    in_flight: AtomicU64,
    replays: AtomicU64,
    records_dropped: AtomicU64,
    records_spooled: AtomicU64,
    secrets_refused: AtomicU64,
    listener_refused: [AtomicU64; Code::ALL.len()],
    server: Histogram,
    client: Histogram,
}

/// A plain counter: its name, its meaning, its value.
type Plain<'a> = (&'static str, &'static str, &'a AtomicU64);

#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn observe(&self, us: u64) {
        let at = BUCKETS_US
            .iter()
            .position(|bound| us <= *bound)
            .unwrap_or(BUCKETS_US.len());
        self.buckets[at].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    fn render(&self, name: &str, help: &str, out: &mut String) {
        head(name, help, "histogram", out);
        let mut count = 0;
        for (at, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Relaxed);
            let _ = match BUCKETS_US.get(at) {
                Some(us) => writeln!(out, "{name}_bucket{{le=\"{}\"}} {count}", seconds(*us)),
                None => writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}"),
            };
        }
        let sum = seconds(self.sum_us.load(Relaxed));
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {count}");
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

impl Metrics {
    /// A request has ended with this code after so many microseconds.
    pub fn request_ended(&self, code: Code, duration_us: u64) {
        if let Some(at) = Code::ALL.iter().position(|known| *known == code) {
            self.shared.requests[at].fetch_add(1, Relaxed);
        }
        self.shared.server.observe(duration_us);
    }

    /// A target has answered after so many microseconds.
    pub fn upstream_answered(&self, duration_us: u64) {
        self.shared.client.observe(duration_us);
    }

    /// A stage's decision panicked.
    pub fn stage_panicked(&self, stage: StageKind) {
        self.shared.stage_panics[stage as usize].fetch_add(1, Relaxed);
    }

    /// The mailbox behind this stage had no room.
    pub fn mailbox_full(&self, stage: StageKind) {
        self.shared.mailbox_full[stage as usize].fetch_add(1, Relaxed);
    }

    /// A request was sent again on a new connection.
    pub fn replayed(&self) {
        self.shared.replays.fetch_add(1, Relaxed);
    }

    /// So many records could not be kept.
    pub fn records_dropped(&self, count: u64) {
        self.shared.records_dropped.fetch_add(count, Relaxed);
    }

    /// Records that could not be kept so far.
    pub fn records_dropped_so_far(&self) -> u64 {
        self.shared.records_dropped.load(Relaxed)
    }

    /// So many records wait on disk.
    pub fn records_spooled(&self, count: u64) {
        self.shared.records_spooled.store(count, Relaxed);
    }

    /// A secret was not sent because its destination is outside the credential's `hosts`.
    pub fn secret_refused(&self) {
        self.shared.secrets_refused.fetch_add(1, Relaxed);
    }

    /// The listener refused a connection, or what came on one, before it was a request.
    pub fn listener_refused(&self, code: Code) {
        if let Some(at) = Code::ALL.iter().position(|known| *known == code) {
            self.shared.listener_refused[at].fetch_add(1, Relaxed);
        }
    }

    /// Takes one of `max` places for a request in flight.
    pub fn enter(&self, max: u64) -> Option<Permit> {
        let before = self.shared.in_flight.fetch_add(1, Relaxed);
        let permit = Permit {
            metrics: self.clone(),
        };
        (before < max).then_some(permit)
    }

    /// Requests in flight now.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.load(Relaxed)
    }

    /// The Prometheus text form (version 0.0.4), with the counters of the rate limits.
    pub fn render(&self, limits: &Stats) -> String {
        let shared = &*self.shared;
        let mut out = String::with_capacity(8192);
        let name = "requestrocket_requests_total";
        by_code(name, "Requests ended, by code.", &shared.requests, &mut out);
        by_code(
            "requestrocket_listener_refusals_total",
            "Connections and heads that were refused before they were requests, by code.",
            &shared.listener_refused,
            &mut out,
        );
        by_stage(
            "requestrocket_stage_panics_total",
            "Panics caught, by stage.",
            &shared.stage_panics,
            &mut out,
        );
        by_stage(
            "requestrocket_mailbox_full_total",
            "Requests ended because the mailbox behind a stage was full.",
            &shared.mailbox_full,
            &mut out,
        );
        for (name, help, count) in shared.plain().into_iter().chain(of_limits(limits)) {
            head(name, help, "counter", &mut out);
            let _ = writeln!(out, "{name} {}", count.load(Relaxed));
        }
        let name = "requestrocket_requests_in_flight";
        head(name, "Requests in flight.", "gauge", &mut out);
        let _ = writeln!(out, "{name} {}", self.in_flight());
        let name = "requestrocket_records_spooled";
        let help = "Records that wait on disk for a control plane.";
        head(name, help, "gauge", &mut out);
        let _ = writeln!(out, "{name} {}", shared.records_spooled.load(Relaxed));
        let name = "http_server_request_duration_seconds";
        let help = "Duration of requests at the gateway.";
        shared.server.render(name, help, &mut out);
        let name = "http_client_request_duration_seconds";
        let help = "Time until a target's answer began.";
        shared.client.render(name, help, &mut out);
        out
    }
}

impl Shared {
    fn plain(&self) -> [Plain<'_>; 3] {
        [
            (
                "requestrocket_upstream_replays_total",
                "Requests sent again on a new connection.",
                &self.replays,
            ),
            (
                "requestrocket_records_dropped_total",
                "Records that could not be kept.",
                &self.records_dropped,
            ),
            (
                "requestrocket_secrets_refused_total",
                "Secrets not sent because the destination is outside the credential's hosts.",
                &self.secrets_refused,
            ),
        ]
    }
}

fn of_limits(limits: &Stats) -> [Plain<'_>; 8] {
    [
        (
            "requestrocket_limit_held_total",
            "Requests that waited for their turn at a rate limit.",
            &limits.held,
        ),
        (
            "requestrocket_limit_refusals_total",
            "Draws that a rate limit refused.",
            &limits.refused,
        ),
        (
            "requestrocket_limit_store_calls_total",
            "Store transactions of the rate limits.",
            &limits.store_calls,
        ),
        (
            "requestrocket_limit_key_writes_total",
            "Keys written in these transactions.",
            &limits.key_writes,
        ),
        (
            "requestrocket_limit_conflicts_total",
            "Transactions that found a value of another writer.",
            &limits.conflicts,
        ),
        (
            "requestrocket_limit_failures_total",
            "Transactions that failed or whose outcome is unknown.",
            &limits.failures,
        ),
        (
            "requestrocket_limit_unreadable_total",
            "States in the store that could not be read.",
            &limits.unreadable,
        ),
        (
            "requestrocket_limit_overflows_total",
            "Times that a key was put on the key shared by all beyond the most.",
            &limits.overflowed,
        ),
    ]
}

fn head(name: &str, help: &str, kind: &str, out: &mut String) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn by_code(name: &str, help: &str, counts: &[AtomicU64], out: &mut String) {
    head(name, help, "counter", out);
    for (code, count) in Code::ALL.iter().zip(counts) {
        let _ = writeln!(out, "{name}{{code=\"{code}\"}} {}", count.load(Relaxed));
    }
}

fn by_stage(name: &str, help: &str, counts: &[AtomicU64], out: &mut String) {
    head(name, help, "counter", out);
    for (stage, count) in StageKind::ALL.iter().zip(counts) {
        let stage = stage.name();
        let _ = writeln!(out, "{name}{{stage=\"{stage}\"}} {}", count.load(Relaxed));
    }
}

/// One request's place among those in flight; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    metrics: Metrics,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.metrics.shared.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_bounded_and_come_back() {
        let metrics = Metrics::default();
        let first = metrics.enter(1);
        assert!(first.is_some());
        assert!(metrics.enter(1).is_none(), "a refused one leaves no trace");
        assert_eq!(metrics.in_flight(), 1);
        drop(first);
        assert!(metrics.enter(1).is_some());
    }

    #[test]
    fn text_form_counts() {
        let metrics = Metrics::default();
        metrics.request_ended(Code::RateLimited, 300);
        metrics.stage_panicked(StageKind::Limit);
        metrics.listener_refused(Code::Overloaded);
        let limits = Stats::default();
        limits.conflicts.fetch_add(3, Relaxed);
        let text = metrics.render(&limits);
        for line in [
            "requestrocket_requests_total{code=\"rate-limited\"} 1",
            "requestrocket_stage_panics_total{stage=\"limit\"} 1",
            "http_server_request_duration_seconds_bucket{le=\"0.00025\"} 0",
            "http_server_request_duration_seconds_bucket{le=\"0.0005\"} 1",
            "http_server_request_duration_seconds_count 1",
            "requestrocket_listener_refusals_total{code=\"overloaded\"} 1",
            "requestrocket_limit_conflicts_total 3",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
