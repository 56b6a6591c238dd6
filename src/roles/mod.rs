//! What a process can be: everything on one machine, a node of a cluster, or a control plane of
//! one.

pub mod control;
pub mod node;
pub mod single;

use std::io::IsTerminal;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use ::control::linked::Linked;
use ::control::metrics::Metrics;
use ::control::records::Records;
use ::control::{ApiSettings, ControlDeps};
use ::node::listener::Queue;
use anyhow::Context;
use proto::exposition::MetricsSource;
use proto::health::Health;
use proto::seal::Purpose;
use proto::store::follow::World;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::cli::Output;
use crate::configuration::Configuration;
use crate::gauges;
use crate::handover::{Handover, Shared, Successor};
use crate::otlp::counts::COUNTS;
use crate::otlp::{self, Export};
use crate::permissions;
use crate::ready::Ready;
use crate::serve::CannotStart;
use crate::settings::Settings;

/// Longest wait for the last records when a process stops.
const RECORDS_FLUSH_MAX: Duration = Duration::from_secs(5);

/// Longest wait for the store when a control plane gives up its place.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// Listeners that every role may have, bound.
pub struct Bound {
    /// For callers.
    pub gateway: Option<TcpListener>,
    /// For the REST API.
    pub control: Option<TcpListener>,
    /// For the operator's probes and metrics.
    pub admin: Option<TcpListener>,
    /// For the records of nodes.
    pub link: Option<TcpListener>,
    /// For the links of other nodes.
    pub peers: Option<TcpListener>,
}

impl Bound {
    /// Where callers connect.
    fn gateway_address(&self) -> anyhow::Result<std::net::SocketAddr> {
        let gateway = self.gateway.as_ref().context("no gateway address")?;
        Ok(gateway.local_addr()?)
    }

    /// All, by the names under which they are handed over.
    fn named(&self) -> impl Iterator<Item = (&'static str, &TcpListener)> {
        let all = [
            ("gateway", &self.gateway),
            ("control", &self.control),
            ("admin", &self.admin),
            ("link", &self.link),
            ("peers", &self.peers),
        ];
        let bound = all.into_iter();
        bound.filter_map(|(name, listener)| Some((name, listener.as_ref()?)))
    }

    /// Addresses that no target may have.
    fn own(&self) -> std::io::Result<Vec<std::net::SocketAddr>> {
        self.named().map(|(_, bound)| bound.local_addr()).collect()
    }
}

/// Says where `gateway.default_org` names nobody: no alias alone would be found, and nobody told.
fn look_for_default_org(settings: &Settings, world: &World) {
    let wanted = &settings.gateway.default_org;
    if let Some(detail) = without_default_org(wanted, world) {
        warn!("{detail}");
    }
}

fn without_default_org(wanted: &str, world: &World) -> Option<String> {
    // A store from which nothing came yet says nothing of what there is.
    let is_known = world.slugs.is_empty() || world.org(wanted).is_some();
    (!is_known).then(|| {
        format!(
            "`gateway.default_org` is `{wanted}`, and there is no such organisation: proxies are \
             reached by their ids and as /api/ORG.ALIAS alone; create it, or name one that \
             `requestrocket list orgs` shows"
        )
    })
}

/// What the REST API needs: what it shows, where callers connect, what it tells and counts.
fn api(
    settings: &Settings,
    configuration: &Configuration,
    (world, records): (watch::Receiver<Arc<World>>, Arc<Records>),
    gateway_url: &str,
    (metrics, counters): (MetricsSource, Metrics),
) -> anyhow::Result<ControlDeps> {
    look_for_default_org(settings, &world.borrow());
    let mut api = ApiSettings::new(gateway_url);
    let operator = crate::bootstrap::operator_token(&settings.control)?;
    let digest = |token: &str| {
        let publisher = &configuration.publisher;
        publisher.digest(Purpose::ApiToken, token.as_bytes())
    };
    api.operator_digest = operator.map(|token| digest(&token));
    api.region.clone_from(&settings.region);
    api.default_org.clone_from(&settings.gateway.default_org);
    let hosts = settings.control.allowed_hosts.iter().cloned();
    api.allowed_hosts.extend(hosts);
    api.allowed_hosts
        .push(settings.control.listen.ip().to_string());
    api.proxies = settings.control.proxies();
    api.auth_max_staleness = Duration::from_secs(settings.control.auth_max_staleness_s.into());
    let days = u64::from(settings.records.retention_days);
    api.retention.age_max = Duration::from_secs(days * 86_400);
    api.retention.bytes_max = settings.records.retention_bytes;
    Ok(ControlDeps {
        settings: api,
        publisher: configuration.publisher.clone(),
        world,
        digest_key: configuration.publisher.digest_key().clone(),
        policy: permissions::policy(settings),
        records,
        metrics,
        counters,
        linked: Linked::default(),
        health: configuration.health.clone(),
        trace_file: crate::traces::file::of,
        dial_guard: crate::dialling::elsewhere(),
    })
}

/// Tells the metrics of a process: those of its node, of its control plane, of its store.
fn metrics(
    settings: &Settings,
    of_node: Option<MetricsSource>,
    of_control: Option<&Metrics>,
    health: &Health,
) -> MetricsSource {
    let (settings, health) = (settings.clone(), health.clone());
    let of_control = of_control.cloned();
    Arc::new(move || {
        let mut families = of_node.as_ref().map(|told| told()).unwrap_or_default();
        families.extend(health.families());
        gauges::add_to(&mut families, &settings);
        COUNTS.add_to(&mut families);
        if let Some(counters) = &of_control {
            families.extend(counters.families());
        }
        families
    })
}

/// Starts the export of metrics, where the settings name a collector.
fn export_metrics(settings: &Settings, metrics: &MetricsSource) -> anyhow::Result<Option<Export>> {
    let started = otlp::metrics::start(settings, metrics.clone());
    started.map_err(|error| CannotStart(format!("{error:#}")).into())
}

/// Waits for what is left to export, each a moment.
async fn left(exports: impl IntoIterator<Item = Export>) {
    let leaving = exports.into_iter().map(Export::leave);
    futures_util::future::join_all(leaving).await;
}

/// Waits for the last records, traces and metrics: the workers are gone, so the queues end.
async fn flushed(keeping: JoinHandle<()>, exports: impl IntoIterator<Item = Export>) {
    left(exports).await;
    let flushed = tokio::time::timeout(RECORDS_FLUSH_MAX, keeping).await;
    if flushed.is_err() {
        warn!("records were lost: nothing took them before the process ended");
    }
}

/// The janitor of this process.
struct Sweeping {
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Sweeping {
    /// Begins; `listens` is where this process does.
    fn start(
        settings: &Settings,
        (configuration, listens): (&Configuration, Vec<std::net::SocketAddr>),
        background: &Runtime,
    ) -> Self {
        let (stop, stopping) = oneshot::channel();
        let janitor = crate::configuration::janitor(settings, configuration, listens);
        let running = background.spawn(janitor.run(configuration.health.clone(), stopping));
        Self { stop, running }
    }

    /// Lets another control plane do it from here on.
    async fn stop(self) {
        // An error means that it has ended already.
        let _ = self.stop.send(());
        let _ = tokio::time::timeout(LEAVE_MAX, self.running).await;
    }
}

impl Stop {
    /// What becomes of connections that nobody has accepted yet.
    fn queue(&self) -> Queue {
        match self {
            Self::Replaced(successor) => successor.queue(),
            Self::Signal(shared) | Self::Failed(_, shared) => shared.queue(),
        }
    }

    /// What the process ends with: an error where it was not asked to, or where nobody serves in
    /// its place, so that whoever started it starts it again.
    fn outcome(self) -> anyhow::Result<()> {
        match self {
            Self::Replaced(successor) if !successor.takes_over() => anyhow::bail!(
                "the process that was to take over is gone (see its log): start this one again"
            ),
            Self::Signal(_) | Self::Replaced(_) => Ok(()),
            Self::Failed(task, _) => anyhow::bail!(
                "the task `{task}` panicked and cannot be run again (see the log above); requests \
                 in flight were served to their end: start the process again"
            ),
        }
    }
}

/// Says that the process serves. Whoever reads that may stop it at once: the signals are caught
/// before.
fn announce(ready: &Ready, output: Output, dev: bool) -> anyhow::Result<StopSignals> {
    let signals = StopSignals::catch()?;
    ready.tell(output, dev);
    Ok(signals)
}

/// The signals that ask a process to stop, caught from here on.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Hangup,
}

impl StopSignals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: Hangup {
                signal: signal(SignalKind::hangup())?,
                stops: std::io::stdin().is_terminal(),
            },
        })
    }

    /// Waits for SIGINT, SIGTERM or the end of the terminal, until another process has taken this
    /// one's place, or until a task is gone that cannot be run again.
    async fn stopped(mut self, health: &Health, handover: Handover) -> Stop {
        let shared = handover.shared();
        let why = tokio::select! {
            _ = self.interrupt.recv() => Stop::Signal(shared),
            _ = self.terminate.recv() => Stop::Signal(shared),
            () = self.hangup.stops() => Stop::Signal(shared),
            successor = handover.replaced() => Stop::Replaced(successor),
            task = health.died() => Stop::Failed(task, shared),
        };
        info!("stopping: requests in flight may end");
        why
    }
}

/// SIGHUP. It says that the terminal is gone where there is one. To a service it means that its
/// settings are to be read again, which they are at a start alone: it goes on.
struct Hangup {
    signal: Signal,
    stops: bool,
}

impl Hangup {
    /// Waits for one that stops the process.
    async fn stops(&mut self) {
        while self.signal.recv().await.is_some() && !self.stops {
            warn!(
                "SIGHUP changes nothing: settings are read at a start alone (certificates of \
                 listeners, and certificates and authorities of the link, whenever they change); \
                 SIGTERM stops the process"
            );
        }
    }
}

/// Why a process stops.
#[derive(Debug)]
enum Stop {
    /// It was asked to. A successor may have the listeners already.
    Signal(Shared),
    /// Another process takes its place, with its data folder.
    Replaced(Successor),
    /// A task is gone that cannot be run again.
    Failed(&'static str, Shared),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::Role;

    #[test]
    fn a_default_organisation_that_does_not_exist_is_told() {
        let mut world = World::default();
        assert_eq!(
            without_default_org("acme", &world),
            None,
            "nothing is known yet"
        );
        let org = proto::id::OrgId::from_bits(7);
        world.slugs.insert("default".into(), org);
        let told = without_default_org("acme", &world).unwrap();
        assert!(
            told.starts_with("`gateway.default_org` is `acme`"),
            "{told}"
        );
        let epoch = proto::version::Epoch {
            counter: 1,
            region: "eu".into(),
        };
        let state = proto::store::follow::OrgState {
            config: Arc::new(proto::tree::OrgConfig::genesis(org, epoch)),
            sealed: Arc::default(),
            sealed_whole: true,
            retired: Arc::default(),
        };
        world.orgs.insert(org, Arc::new(state));
        assert_eq!(without_default_org("default", &world), None);
    }

    #[tokio::test]
    async fn a_task_that_is_gone_for_good_stops_the_process_with_an_error() {
        let health = Health::default();
        health.task_died("tokens");
        let signals = StopSignals::catch().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let handover = Handover::new(dir.path(), Role::Node, []).unwrap();
        let why = signals.stopped(&health, handover).await;
        assert!(matches!(why, Stop::Failed("tokens", _)), "{why:?}");
        let error = why.outcome().unwrap_err().to_string();
        assert!(error.contains("task `tokens` panicked"), "{error}");
        let handover = Handover::new(dir.path(), Role::Node, []).unwrap();
        assert!(Stop::Signal(handover.shared()).outcome().is_ok());
    }
}
