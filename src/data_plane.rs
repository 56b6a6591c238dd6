//! The data plane of a process: limits, the task that compiles configuration, and what the workers
//! of the gateway share.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use node::limits::{self, Limits, Opener, SystemClock};
use node::metrics::Metrics;
use node::records::RecordBatches;
use node::stages::record::Origin;
use node::sync::compile::Compiler;
use node::sync::guard::Guard;
use node::sync::membership::{self, Membership};
use node::sync::usage;
use node::upstream::{Hosts, UpstreamSettings};
use node::worker::Shared;
use proto::seal::Keyring;
use proto::store::Store;
use proto::store::follow::World;
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::hosts_file;
use crate::serve::CannotStart;
use crate::settings::{Settings, StoreKind};

/// How far the wall clocks of nodes that share limits may differ; calendar windows reckon with it.
const SKEW_MAX: Duration = Duration::from_secs(2);

/// Longest wait for the store when the node leaves.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// A data plane that is ready for its listener.
pub struct DataPlane {
    /// What the workers share.
    pub shared: Shared,
    /// The rate limits.
    pub limits: Arc<Limits>,
    /// The world that requests see.
    pub applied: watch::Receiver<Arc<World>>,
    /// The records of requests.
    pub batches: RecordBatches,
}

impl DataPlane {
    /// Starts limits and the task that compiles configuration. The first snapshot stands before
    /// the first connection is taken. `own` are addresses that no target may have.
    ///
    /// # Errors
    /// [`CannotStart`]: a setting of the dial guard is faulty.
    pub fn start(
        settings: &Settings,
        keyring: Arc<Keyring>,
        store: Arc<dyn Store>,
        mut worlds: watch::Receiver<Arc<World>>,
        own: Vec<SocketAddr>,
        background: &Runtime,
    ) -> anyhow::Result<Self> {
        let (sender, batches) = node::records::queue();
        let shared = shared(settings, &keyring, sender)?;
        let clock = Arc::new(SystemClock);
        let (limits, broker) = Limits::new(store, &limit_settings(settings), clock);
        background.spawn(broker);
        let mut own = own;
        own.extend(infrastructure(settings));
        let guard = Guard::new(&settings.dial_guard, own)
            .map_err(|error| CannotStart(error.to_string()))?;
        let default_org = settings.gateway.default_org.clone();
        let mut compiler = Compiler::new(keyring, limits.clone(), guard, default_org);
        let world = worlds.borrow_and_update().clone();
        let first = compiler.compile(&world);
        shared.snapshot.store(Arc::new(first.snapshot));
        let (sender, applied) = watch::channel(world);
        let snapshot = shared.snapshot.clone();
        background.spawn(node::sync::run(worlds, compiler, snapshot, sender));
        Ok(Self {
            shared,
            limits,
            applied,
            batches,
        })
    }

    /// Tells the others that this node is there, until what is returned is sent or dropped.
    pub fn join(&self, address: SocketAddr, store: Arc<dyn Store>, background: &Runtime) -> Joined {
        let membership = Membership {
            origin: self.shared.origin.clone(),
            address: address.to_string(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            applied: self.applied.clone(),
            metrics: self.shared.metrics.clone(),
            counted: {
                let limits = self.limits.clone();
                Box::new(move |nodes| limits.set_nodes(nodes))
            },
        };
        let (stop, stopping) = oneshot::channel();
        let (quiet, stopped) = oneshot::channel();
        let (limits, origin) = (self.limits.clone(), self.shared.origin.clone());
        let telling = usage::run(limits, origin, store.clone(), stopped);
        let running = background.spawn(async move {
            tokio::join!(membership::run(membership, store, stopping), telling);
        });
        Joined {
            stop,
            quiet,
            running,
        }
    }

    /// Renders the metrics.
    pub fn metrics(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let (metrics, limits) = (self.shared.metrics.clone(), self.limits.clone());
        Arc::new(move || metrics.render(limits.stats()))
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

fn limit_settings(settings: &Settings) -> limits::Settings {
    let alone = limits::Settings::single_node(incarnation());
    match settings.store.kind {
        StoreKind::Embedded => alone,
        StoreKind::Etcd => limits::Settings {
            nodes: settings.limits.nodes.max(1),
            max_skew: SKEW_MAX,
            ..alone
        },
    }
}

/// A new incarnation of this node: blocks that an earlier one left open are not its own.
fn incarnation() -> Opener {
    let bits = uuid::Uuid::now_v7().as_u128();
    Opener {
        node: (bits >> 64) as u64,
        boot: bits as u64,
    }
}

fn shared(
    settings: &Settings,
    keyring: &Keyring,
    records: node::records::RecordSender,
) -> anyhow::Result<Shared> {
    let hosts = match &settings.dial_guard.hosts_file {
        Some(path) => hosts_file::read(path)?,
        None => Hosts::default(),
    };
    let node = settings.node_name.clone().unwrap_or_else(host_name);
    Ok(Shared {
        snapshot: node::gateway::empty_snapshot(keyring.digest_key.clone()),
        settings: Arc::new(settings.gateway.clone()),
        upstream: UpstreamSettings {
            hosts,
            ..UpstreamSettings::default()
        },
        metrics: Metrics::default(),
        records,
        origin: Arc::new(Origin {
            node: node.into(),
            region: settings.region.as_str().into(),
        }),
    })
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_else(|_| "node".to_owned())
}
