//! Every metric of the data plane, with its name, meaning and text form, in one place.
//!
//! To add one: a field here, its lines in [`Metrics::render`], its line in `docs/metrics.md`
//! (`tests/tidy.rs` compares). Names follow `[namespace_]name[_unit][_total]`; labels have few,
//! fixed values.

mod bodies;
mod configuration;
mod counters;
mod endpoints;
mod histogram;
mod proxies;
mod reasons;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use proto::outcome::Code;
use proto::record::{AttemptFailure, AuthFailure};

use crate::actor::{STAGES, StageKind};
use crate::breakers::TargetBreaker;
use crate::limits::Stats;
use crate::peers::PeerStats;
pub use bodies::Bodies;
use configuration::Configuration;
pub use endpoints::EndpointCounters;
use histogram::{Histogram, OVERHEAD_US, REQUEST_US};
use proxies::Proxies;
pub use proxies::{OVERFLOW, PROXIES_MAX, ProxyCounters};

/// The counters of a node; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    requests: [AtomicU64; Code::ALL.len()],
    stage_panics: [AtomicU64; STAGES],
    mailbox_full: [AtomicU64; STAGES],
    in_flight: AtomicU64,
    replays: AtomicU64,
    records_dropped: AtomicU64,
    records_spooled: AtomicU64,
    traces_exported: AtomicU64,
    traces_dropped: AtomicU64,
    trace_export_failures: AtomicU64,
    secrets_refused: AtomicU64,
    secrets_reflected: AtomicU64,
    bodies: Bodies,
    unmatched_dropped: AtomicU64,
    listener_refused: [AtomicU64; Code::ALL.len()],
    auth_failures: [AtomicU64; AuthFailure::ALL.len()],
    upstream_failures: [AtomicU64; AttemptFailure::ALL.len()],
    upstream_answers: [AtomicU64; 2],
    proxies: Proxies,
    endpoints: endpoints::Endpoints,
    configuration: Configuration,
    server: Histogram,
    client: Histogram,
    overhead: Histogram,
    peers: Arc<PeerStats>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            requests: std::array::from_fn(|_| AtomicU64::new(0)),
            stage_panics: Default::default(),
            mailbox_full: Default::default(),
            in_flight: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            records_dropped: AtomicU64::new(0),
            records_spooled: AtomicU64::new(0),
            traces_exported: AtomicU64::new(0),
            traces_dropped: AtomicU64::new(0),
            trace_export_failures: AtomicU64::new(0),
            secrets_refused: AtomicU64::new(0),
            secrets_reflected: AtomicU64::new(0),
            bodies: Bodies::default(),
            unmatched_dropped: AtomicU64::new(0),
            listener_refused: std::array::from_fn(|_| AtomicU64::new(0)),
            auth_failures: Default::default(),
            upstream_failures: Default::default(),
            upstream_answers: Default::default(),
            proxies: Proxies::default(),
            endpoints: endpoints::Endpoints::default(),
            configuration: Configuration::default(),
            server: Histogram::new(REQUEST_US),
            client: Histogram::new(REQUEST_US),
            overhead: Histogram::new(OVERHEAD_US),
            peers: Arc::default(),
        }
    }
}

/// A plain counter: its name, its meaning, its value.
type Plain<'a> = (&'static str, &'static str, &'a AtomicU64);

impl Metrics {
    /// A request has ended with this code after so many microseconds.
    pub fn request_ended(&self, code: Code, duration_us: u64) {
        if let Some(at) = Code::ALL.iter().position(|known| *known == code) {
            self.shared.requests[at].fetch_add(1, Relaxed);
        }
        self.shared.server.observe(duration_us);
    }

    /// A target has answered after so many microseconds, on a connection that was kept or is new.
    pub fn upstream_answered(&self, duration_us: u64, kept: bool) {
        self.shared.client.observe(duration_us);
        self.shared.upstream_answers[usize::from(kept)].fetch_add(1, Relaxed);
    }

    /// An attempt got no answer.
    pub fn upstream_failed(&self, failure: AttemptFailure) {
        self.shared.upstream_failures[failure as usize].fetch_add(1, Relaxed);
    }

    /// A caller was answered 401.
    pub fn auth_failed(&self, failure: AuthFailure) {
        self.shared.auth_failures[failure as usize].fetch_add(1, Relaxed);
    }

    /// The gateway itself took so many microseconds for a request until its answer's head was
    /// ready: all but the waiting for the target.
    pub fn took(&self, overhead_us: u64) {
        self.shared.overhead.observe(overhead_us);
    }

    /// The configuration of a revision came into effect at an instant, in milliseconds since the
    /// Unix epoch, after it was waited for; so many of its objects cannot be used.
    pub fn configured(&self, revision: i64, at_ms: i64, waited: Duration, faults: usize) {
        let configuration = &self.shared.configuration;
        configuration.applied(revision, at_ms, waited, faults);
    }

    /// The counters of a proxy.
    pub fn proxy(&self, id: &str) -> ProxyCounters {
        self.shared.proxies.counters(id)
    }

    /// The counters of a target's endpoint.
    pub fn endpoint(
        &self,
        target: &str,
        address: &str,
        breaker: &Arc<TargetBreaker>,
    ) -> EndpointCounters {
        self.shared.endpoints.counters(target, address, breaker)
    }

    /// A request went on to another endpoint of its target.
    pub fn failed_over(&self) {
        self.shared.endpoints.failed_over();
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

    /// The traces of so many requests were sent to the collector.
    pub fn traces_exported(&self, count: u64) {
        self.shared.traces_exported.fetch_add(count, Relaxed);
    }

    /// The traces of so many requests could not be kept.
    pub fn traces_dropped(&self, count: u64) {
        self.shared.traces_dropped.fetch_add(count, Relaxed);
    }

    /// The collector did not take a batch.
    pub fn trace_export_failed(&self) {
        self.shared.trace_export_failures.fetch_add(1, Relaxed);
    }

    /// A secret was not sent because its destination is outside the credential's `hosts`.
    pub fn secret_refused(&self) {
        self.shared.secrets_refused.fetch_add(1, Relaxed);
    }

    /// An answer held the secret that was injected.
    pub fn secret_reflected(&self) {
        self.shared.secrets_reflected.fetch_add(1, Relaxed);
    }

    /// What filters and schemas found in bodies.
    pub fn bodies(&self) -> &Bodies {
        &self.shared.bodies
    }

    /// An attempt that matches no proxy was not kept: there were too many.
    pub fn unmatched_dropped(&self) {
        self.shared.unmatched_dropped.fetch_add(1, Relaxed);
    }

    /// The listener refused a connection, or what came on one, before it was a request.
    pub fn listener_refused(&self, code: Code) {
        if let Some(at) = Code::ALL.iter().position(|known| *known == code) {
            self.shared.listener_refused[at].fetch_add(1, Relaxed);
        }
    }

    /// The counts of the links to peers.
    pub fn peers(&self) -> Arc<PeerStats> {
        Arc::clone(&self.shared.peers)
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
        let counters = shared
            .plain()
            .into_iter()
            .chain(counters::of_limits(limits))
            .chain(counters::of_tokens(limits));
        for (name, help, count) in counters.chain(counters::of_peers(&shared.peers)) {
            head(name, help, "counter", &mut out);
            let _ = writeln!(out, "{name} {}", count.load(Relaxed));
        }
        reasons::render(shared, &mut out);
        shared.bodies.render(&mut out);
        shared.proxies.render(&mut out);
        shared.endpoints.render(&mut out);
        shared.configuration.render(&mut out);
        let name = "requestrocket_requests_in_flight";
        head(name, "Requests in flight.", "gauge", &mut out);
        let _ = writeln!(out, "{name} {}", self.in_flight());
        let name = "requestrocket_peers_linked";
        head(
            name,
            "Nodes that this one is linked with.",
            "gauge",
            &mut out,
        );
        let _ = writeln!(out, "{name} {}", shared.peers.linked.load(Relaxed));
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
        let name = "requestrocket_overhead_seconds";
        let help = "Time of requests in the gateway until the answer's head, without the target.";
        shared.overhead.render(name, help, &mut out);
        out
    }
}

impl Shared {
    fn plain(&self) -> [Plain<'_>; 8] {
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
                "requestrocket_traces_exported_total",
                "Requests whose trace was sent to the collector.",
                &self.traces_exported,
            ),
            (
                "requestrocket_traces_dropped_total",
                "Requests whose trace could not be kept.",
                &self.traces_dropped,
            ),
            (
                "requestrocket_trace_export_failures_total",
                "Batches of traces that the collector did not take.",
                &self.trace_export_failures,
            ),
            (
                "requestrocket_secrets_refused_total",
                "Secrets not sent because the destination is outside the credential's hosts.",
                &self.secrets_refused,
            ),
            (
                "requestrocket_secrets_reflected_total",
                "Answers in which the injected secret was found and overwritten.",
                &self.secrets_reflected,
            ),
            (
                "requestrocket_unmatched_dropped_total",
                "Attempts that match no proxy and were not kept: there were too many.",
                &self.unmatched_dropped,
            ),
        ]
    }
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
