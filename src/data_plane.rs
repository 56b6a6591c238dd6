//! The data plane of a process: limits, the task that compiles configuration, and what the workers
//! of the gateway share.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use node::health_checks::HealthChecks;
use node::limits::{self, Limits, Opener};
use node::metrics::Metrics;
use node::peers::Known;
use node::records::RecordBatches;
use node::stages::record::Origin;
use node::sync::compile::{Compiler, CompilerParts};
use node::sync::guard::Guard;
use node::sync::membership::{self, Membership};
use node::sync::recovery;
use node::sync::test_requests;
use node::sync::{demand, usage};
use node::test_run::TestQueue;
use node::upstream::{Hosts, UpstreamSettings};
use node::worker::Shared;
use proto::exposition::MetricsSource;
use proto::health::Health;
use proto::restarts;
use proto::seal::Keyring;
use proto::store::Store;
use proto::store::follow::World;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::clock;
use crate::hosts_file;
use crate::otlp::Export;
use crate::peering::{self, Peering};
use crate::permissions;
use crate::resealing;
use crate::serve::CannotStart;
use crate::settings::Settings;
use crate::stores::StoreKind;
use crate::traces;

/// How far the wall clock of a node may be from those of its peers, which are compared; calendar
/// windows reckon with it.
const SKEW_MAX: Duration = Duration::from_millis(250);
/// The same where nobody compares them: no node listens for peers.
const UNKNOWN_SKEW_MAX: Duration = Duration::from_secs(2);

/// Longest wait for the store when the node leaves.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// A data plane that is ready for its listener.
pub struct DataPlane {
    /// What the workers share.
    pub shared: Shared,
    health: Health,
    /// The rate limits.
    pub limits: Arc<Limits>,
    /// The end of the rate limits.
    pub settling: Settling,
    /// The world that requests see.
    pub applied: watch::Receiver<Arc<World>>,
    /// The records of requests.
    pub batches: RecordBatches,
    /// The export of traces, where there is one.
    pub export: Option<Export>,
    /// Where peers dial this node, and where those it may dial are told.
    peers: Option<(String, watch::Sender<Vec<Known>>)>,
}

/// What a [`DataPlane`] is made of.
pub struct DataPlaneParts {
    /// Opens secrets.
    pub keyring: Arc<Keyring>,
    /// Where configuration and tokens are.
    pub store: Arc<dyn Store>,
    /// What the store holds.
    pub worlds: watch::Receiver<Arc<World>>,
    /// Addresses that no target may have.
    pub own: Vec<SocketAddr>,
    /// Is told what fails.
    pub health: Health,
    /// What links to other nodes need.
    pub peering: Option<Peering>,
}

impl DataPlane {
    /// Starts limits and the task that compiles configuration. The first snapshot stands before
    /// the first connection is taken. `own` are addresses that no target may have; `peering` is
    /// what links to other nodes need.
    ///
    /// # Errors
    /// [`CannotStart`]: a setting of the dial guard is faulty.
    pub fn start(
        settings: &Settings,
        parts: DataPlaneParts,
        background: &Runtime,
    ) -> anyhow::Result<Self> {
        resealing::begin(settings, &parts, background);
        let DataPlaneParts {
            keyring,
            store,
            mut worlds,
            mut own,
            health,
            peering,
        } = parts;
        let (sender, batches) = node::records::queue();
        let sender = sender.keeping(settings.records.enabled);
        let (shared, export) = shared(settings, &keyring, sender, health.clone())?;
        let incarnation = peering::incarnation(&shared.origin);
        let address = peering.as_ref().map(|peering| peering.address.clone());
        let clock = clock::of_limits(settings)?;
        let limits = limit_settings(settings, incarnation, peering.is_some());
        let (mut links, mut known, mut giving, mut nodes) = (None, None, None, Some(1));
        if let Some(peering) = peering {
            let running = (&health, background);
            let this = (incarnation, clock.clone());
            let peered = peering.start(&shared, this, worlds.clone(), running)?;
            links = Some(peered.links);
            known = Some(peered.known);
            nodes = peered.nodes;
            giving = Some((peered.leaves, peered.peers));
        }
        let (limits, broker) = Limits::linked(store, &limits, clock, links);
        nodes.iter().for_each(|nodes| limits.set_nodes(*nodes));
        let broker = restarts::once("tokens", health.clone(), broker);
        let settling = Settling {
            limits: limits.clone(),
            running: background.spawn(broker),
        };
        own.extend(infrastructure(settings));
        let guard = guard(settings, own)?;
        let mut compiler = Compiler::new(CompilerParts {
            keyring,
            limits: limits.clone(),
            guard,
            policy: permissions::policy(settings),
            default_org: settings.gateway.default_org.clone(),
            metrics: shared.metrics.clone(),
            health_checks: HealthChecks::new(shared.upstream.clone()),
        });
        let world = worlds.borrow_and_update().clone();
        let first = compiler.compile(&world);
        shared.snapshot.store(Arc::new(first.snapshot));
        let (sender, applied) = watch::channel(world);
        if let Some((leaves, peers)) = giving {
            leaves.begin(peers, applied.clone());
        }
        let snapshot = shared.snapshot.clone();
        let compiling = node::sync::run(worlds, compiler, snapshot, sender, health.clone());
        background.spawn(compiling);
        Ok(Self {
            health,
            shared,
            limits,
            settling,
            applied,
            batches: batches.logged(settings.log.requests),
            export,
            peers: address.zip(known),
        })
    }

    /// Tells the others that this node is there, until what is returned is sent or dropped.
    pub fn join(
        &mut self,
        address: SocketAddr,
        store: Arc<dyn Store>,
        background: &Runtime,
    ) -> Joined {
        let (dialled, known) = self.peers.take().unzip();
        let membership = Membership {
            origin: self.shared.origin.clone(),
            address: callers_address(address, dialled.as_deref()),
            peers: dialled,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            applied: self.applied.clone(),
            metrics: self.shared.metrics.clone(),
            degraded: {
                let limits = self.limits.clone();
                Box::new(move || limits.stats().alone.load(Ordering::Relaxed))
            },
            health: self.health.clone(),
            counted: {
                let limits = self.limits.clone();
                Box::new(move |nodes, others| {
                    limits.set_nodes(nodes);
                    if let Some(known) = &known {
                        known.send_if_modified(|before| {
                            let changed = *before != others;
                            *before = others;
                            changed
                        });
                    }
                })
            },
        };
        let tests = {
            let (applied, store, shared) =
                (self.applied.clone(), store.clone(), self.shared.clone());
            move || {
                let (tests, origin) = (shared.tests.clone(), shared.origin.clone());
                test_requests::run(applied.clone(), store.clone(), tests, origin)
            }
        };
        background.spawn(restarts::again("test-requests", self.health.clone(), tests));
        let answering = {
            let (applied, store) = (self.applied.clone(), store.clone());
            let name = self.shared.origin.node.clone();
            move || recovery::run(name.clone(), store.clone(), applied.clone())
        };
        background.spawn(restarts::again("recovery", self.health.clone(), answering));
        let (stop, stopping) = oneshot::channel();
        let (quiet, stopped) = oneshot::channel();
        let (limits, origin) = (self.limits.clone(), self.shared.origin.clone());
        let asking = demand::run(limits.clone(), store.clone(), self.health.clone());
        let telling = usage::run(limits, origin, store.clone(), self.health.clone(), stopped);
        let telling = async {
            tokio::select! {
                () = telling => {}
                () = asking => {}
            }
        };
        let running = background.spawn(async move {
            tokio::join!(membership::run(membership, store, stopping), telling);
        });
        Joined {
            stop,
            quiet,
            running,
        }
    }

    /// Tells the metrics.
    pub fn metrics(&self) -> MetricsSource {
        let (metrics, limits) = (self.shared.metrics.clone(), self.limits.clone());
        Arc::new(move || metrics.families(limits.stats()))
    }
}

/// Looks whether a data plane could be started; `own` are addresses that no target may have.
///
/// # Errors
/// As for [`DataPlane::start`].
pub fn check(settings: &Settings, own: Vec<SocketAddr>) -> anyhow::Result<()> {
    clock::of_limits(settings)?;
    hosts(settings)?;
    traces::check(settings).map_err(|error| CannotStart(format!("{error:#}")))?;
    guard(settings, own).map(drop)
}

/// Rate limits that hold tokens.
pub struct Settling {
    limits: Arc<Limits>,
    running: JoinHandle<()>,
}

impl Settling {
    /// Writes to the store what was spent and gives the rest back: what is not settled counts as
    /// spent. To be called when no request is left.
    pub async fn settled(self) {
        self.limits.stop();
        if tokio::time::timeout(LEAVE_MAX, self.running).await.is_err() {
            warn!(
                "tokens in hand were not given back before the process ended: they count as spent"
            );
        }
    }
}

/// A node that the others know of.
pub struct Joined {
    stop: oneshot::Sender<()>,
    quiet: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Joined {
    /// Takes the node off the list.
    pub async fn leave(self) {
        // An error means that it has ended already.
        let _ = self.stop.send(());
        let _ = self.quiet.send(());
        let _ = tokio::time::timeout(LEAVE_MAX, self.running).await;
    }
}

/// Addresses of etcd and of control planes, as they resolve now: no target may have one, whatever
/// `dial_guard.permit` says.
fn infrastructure(settings: &Settings) -> Vec<SocketAddr> {
    let etcd = settings.store.endpoints.iter().map(|endpoint| {
        let rest = endpoint.rsplit("://").next().unwrap_or(endpoint);
        rest.trim_end_matches('/').to_owned()
    });
    let mut found = Vec::new();
    for name in etcd.chain(settings.link.endpoints.iter().cloned()) {
        match name.to_socket_addrs() {
            Ok(addresses) => found.extend(addresses),
            Err(error) => warn!("{name} cannot be kept from targets, it does not resolve: {error}"),
        }
    }
    found
}

/// `linked`: nodes tell each other what their clocks show.
fn limit_settings(settings: &Settings, incarnation: Opener, linked: bool) -> limits::Settings {
    let alone = limits::Settings {
        key_writes_max: settings.limits.max_key_writes.max(1),
        ..limits::Settings::single_node(incarnation)
    };
    match settings.store.kind {
        StoreKind::Embedded => alone,
        StoreKind::Etcd => limits::Settings {
            nodes: settings.limits.nodes.max(1),
            max_skew: if linked { SKEW_MAX } else { UNKNOWN_SKEW_MAX },
            clocks_compared: linked,
            ..alone
        },
    }
}

fn hosts(settings: &Settings) -> anyhow::Result<Hosts> {
    match &settings.dial_guard.hosts_file {
        Some(path) => hosts_file::read(path),
        None => Ok(Hosts::default()),
    }
}

fn guard(settings: &Settings, own: Vec<SocketAddr>) -> anyhow::Result<Guard> {
    let guard = Guard::new(&settings.dial_guard, own);
    Ok(guard.map_err(|error| CannotStart(error.to_string()))?)
}

fn shared(
    settings: &Settings,
    keyring: &Keyring,
    records: node::records::RecordSender,
    health: Health,
) -> anyhow::Result<(Shared, Option<Export>)> {
    let hosts = hosts(settings)?;
    let metrics = Metrics::default();
    if settings.gateway.tls.cert_file.is_some() {
        metrics.set_https();
    }
    let started =
        traces::start(settings, &metrics).map_err(|error| CannotStart(format!("{error:#}")))?;
    let (traces, export) = started.unzip();
    let shared = Shared {
        snapshot: node::gateway::empty_snapshot(keyring.digest_key.clone()),
        settings: Arc::new(settings.gateway.clone()),
        upstream: UpstreamSettings {
            hosts,
            counts: metrics.connections(),
            ..UpstreamSettings::default()
        },
        metrics,
        records,
        traces,
        origin: Arc::new(Origin {
            node: settings.name().into(),
            region: settings.region.as_str().into(),
        }),
        tests: TestQueue::default(),
        health,
    };
    Ok((shared, export))
}

/// Where callers find the node, which may listen on all addresses of its machine (`0.0.0.0`): by
/// the host that its peers dial, where that is known.
fn callers_address(bound: SocketAddr, dialled: Option<&str>) -> String {
    match dialled.and_then(|dialled| dialled.rsplit_once(':')) {
        Some((host, _)) if bound.ip().is_unspecified() => format!("{host}:{}", bound.port()),
        _ => bound.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_find_a_node_where_its_peers_do() {
        for (bound, dialled, expected) in [
            ("0.0.0.0:8080", Some("gw-1:8083"), "gw-1:8080"),
            ("[::]:8080", Some("[fd00::1]:8083"), "[fd00::1]:8080"),
            ("10.0.0.7:8080", Some("gw-1:8083"), "10.0.0.7:8080"),
            ("0.0.0.0:8080", None, "0.0.0.0:8080"),
        ] {
            let bound = bound.parse().unwrap();
            assert_eq!(callers_address(bound, dialled), expected);
        }
    }
}
