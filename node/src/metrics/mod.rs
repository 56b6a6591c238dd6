//! Every metric of the data plane, with its name and meaning, in one place.
//!
//! To add one: a field here, its lines in [`Metrics::families`], its line in `docs/metrics.md`
//! (`tests/tidy.rs` compares). Names follow `[namespace_]name[_unit][_total]`; labels have few,
//! fixed values.

mod addresses;
mod bodies;
#[cfg(test)]
mod cardinality;
mod checks;
mod configuration;
mod counters;
mod endings;
mod endpoints;
mod held;
mod histogram;
mod proxies;
mod reasons;
mod stages;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proto::exposition::{Exemplar, Families};
use proto::hosts::Origin;
use proto::outcome::Code;
use proto::record::{AttemptFailure, AuthFailure};

use crate::actor::{STAGES, StageKind};
use crate::breakers::TargetBreaker;
use crate::cut::Cut;
use crate::health_checks::Checked;
use crate::limits::Stats;
use crate::peers::PeerStats;
use crate::upstream::ConnectionCounts;
pub use addresses::AddressDurations;
use addresses::Addresses;
pub use bodies::Bodies;
use configuration::Configuration;
use endings::ServerDurations;
pub use endings::{Ending, ErrorType, MethodName};
pub use endpoints::EndpointCounters;
use histogram::{Histogram, OVERHEAD_US};
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
    refused_dropped: AtomicU64,
    listener_refused: [AtomicU64; Code::ALL.len()],
    auth_failures: [AtomicU64; AuthFailure::ALL.len()],
    upstream_failures: [AtomicU64; AttemptFailure::ALL.len()],
    upstream_answers: [AtomicU64; 2],
    proxies: Proxies,
    endpoints: endpoints::Endpoints,
    checks: checks::Checks,
    configuration: Configuration,
    server: ServerDurations,
    scheme: OnceLock<&'static str>,
    addresses: Addresses,
    overhead: Histogram,
    stages: stages::StageDurations,
    connections: ConnectionCounts,
    peers: Arc<PeerStats>,
    cut: Cut,
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
            refused_dropped: AtomicU64::new(0),
            listener_refused: std::array::from_fn(|_| AtomicU64::new(0)),
            auth_failures: Default::default(),
            upstream_failures: Default::default(),
            upstream_answers: Default::default(),
            proxies: Proxies::default(),
            endpoints: endpoints::Endpoints::default(),
            checks: checks::Checks::default(),
            configuration: Configuration::default(),
            server: ServerDurations::default(),
            scheme: OnceLock::new(),
            addresses: Addresses::default(),
            overhead: Histogram::new(OVERHEAD_US),
            stages: stages::StageDurations::default(),
            connections: ConnectionCounts::default(),
            peers: Arc::default(),
            cut: Cut::default(),
        }
    }
}

/// A plain counter: its name, its meaning, its value.
type Plain<'a> = (&'static str, &'static str, &'a AtomicU64);

impl Metrics {
    /// Where pools tell how many connections to targets they have.
    pub fn connections(&self) -> ConnectionCounts {
        self.shared.connections.clone()
    }

    /// So many requests have ended with this code.
    pub fn ended_with(&self, code: Code) -> u64 {
        let at = Code::ALL.iter().position(|known| *known == code);
        at.map_or(0, |at| self.shared.requests[at].load(Relaxed))
    }

    /// When requests in hand are cut.
    pub fn cut(&self) -> &Cut {
        &self.shared.cut
    }

    /// A request has ended after so many microseconds.
    pub fn request_ended(&self, ending: &Ending, duration_us: u64) {
        if let Some(at) = Code::ALL.iter().position(|known| *known == ending.code) {
            self.shared.requests[at].fetch_add(1, Relaxed);
        }
        self.shared.server.observe(ending, duration_us);
    }

    /// A collector has taken the trace of a request that ended so.
    pub fn request_exemplified(&self, ending: &Ending, exemplar: Exemplar) {
        self.shared.server.exemplify(ending, exemplar);
    }

    /// Callers speak TLS to the gateway.
    pub fn set_https(&self) {
        // Set before: the listener has one scheme for as long as it lives.
        let _ = self.shared.scheme.set("https");
    }

    /// How callers speak to the gateway, as in URLs.
    pub fn scheme(&self) -> &'static str {
        self.shared.scheme.get().copied().unwrap_or("http")
    }

    /// The durations of attempts at an address.
    pub fn address(&self, origin: &Origin) -> AddressDurations {
        self.shared.addresses.of(origin)
    }

    /// A target has answered, on a connection that was kept or is new.
    pub fn upstream_answered(&self, kept: bool) {
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
        self.shared.addresses.configured();
        self.shared.proxies.configured();
        self.shared.endpoints.configured();
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

    /// An endpoint has health checks from now on.
    pub fn checked(&self, checked: &Arc<Checked>) {
        self.shared.checks.add(checked);
    }

    /// The endpoints that fail their health checks.
    pub fn failing(&self) -> Vec<Arc<Checked>> {
        let mut all = self.shared.checks.all();
        all.retain(|checked| checked.fails());
        all
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

    /// All of them, with the counters of the rate limits.
    pub fn families(&self, limits: &Stats) -> Families {
        let shared = &*self.shared;
        let mut out = Families::default();
        let name = "requestrocket_requests_total";
        reasons::by_code(name, "Requests ended, by code.", &shared.requests, &mut out);
        reasons::by_code(
            "requestrocket_listener_refusals_total",
            "Connections and heads that were refused before they were requests, by code.",
            &shared.listener_refused,
            &mut out,
        );
        reasons::by_stage(
            "requestrocket_stage_panics_total",
            "Panics caught, by stage.",
            &shared.stage_panics,
            &mut out,
        );
        reasons::by_stage(
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
            out.counter(name, help).is(count.load(Relaxed));
        }
        reasons::collect(shared, &mut out);
        shared.bodies.collect(&mut out);
        shared.proxies.collect(&mut out);
        shared.endpoints.collect(&mut out);
        shared.checks.collect(&mut out);
        shared.configuration.collect(&mut out);
        let name = "requestrocket_requests_in_flight";
        out.gauge(name, "Requests in flight.").is(self.in_flight());
        reasons::limits(limits, &mut out);
        let help = "Nodes that this one is linked with.";
        let family = out.gauge("requestrocket_peers_linked", help);
        family.is(shared.peers.linked.load(Relaxed));
        let help = "Records that wait on disk for a control plane.";
        let family = out.gauge("requestrocket_records_spooled", help);
        family.is(shared.records_spooled.load(Relaxed));
        let help = "Duration of requests at the gateway.";
        let family = out.histogram("http_server_request_duration_seconds", help);
        shared.server.add_to(family, self.scheme());
        shared.addresses.collect(&mut out);
        let help = "Time of requests in the gateway until the answer's head, without the target.";
        let family = out.histogram("requestrocket_overhead_seconds", help);
        family.is(shared.overhead.durations());
        shared.stages.collect(&mut out);
        shared.connections.collect(&mut out);
        out
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
    use proto::exposition::text::Form;

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
        let ending = Ending {
            method: MethodName::of("GET"),
            status: Some(429),
            upstream_status: None,
            code: Code::RateLimited,
        };
        metrics.request_ended(&ending, 1_500);
        metrics.stage_panicked(StageKind::Limit);
        metrics.listener_refused(Code::Overloaded);
        let limits = Stats::default();
        limits.conflicts.fetch_add(3, Relaxed);
        let text = metrics.families(&limits).text(Form::Prometheus);
        for line in [
            "requestrocket_requests_total{code=\"rate-limited\"} 1",
            "requestrocket_stage_panics_total{stage=\"limit\"} 1",
            "url_scheme=\"http\",le=\"0.001\"} 0",
            "url_scheme=\"http\",le=\"0.0025\"} 1",
            "http_response_status_code=\"429\",url_scheme=\"http\"} 1",
            "requestrocket_listener_refusals_total{code=\"overloaded\"} 1",
            "requestrocket_limit_conflicts_total 3",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
