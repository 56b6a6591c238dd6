//! The data plane of a process: limits, the task that compiles configuration, and what the workers
//! of the gateway share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use node::health_checks::HealthChecks;
use node::limits::Limits;
use node::peers::leaves::Leaves;
use node::records::RecordBatches;
use node::sync::compile::{Compiler, CompilerParts};
use node::sync::guard::Guard;
use node::sync::membership::{self, Membership};
use node::sync::names::Names;
use node::sync::planes::{Endpoints, Planes};
use node::sync::recovery;
use node::sync::test_requests;
use node::sync::{demand, usage};
use node::upstream::is_our_address;
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

use crate::clock;
use crate::footing::{self, Footing, LEAVE_MAX, Settling};
use crate::otlp::Export;
use crate::peering::{Linked, tell};
use crate::permissions;
use crate::resealing;
use crate::serve::CannotStart;
use crate::settings::Settings;
use crate::traces;

/// A data plane that is ready for its listener.
pub struct DataPlane {
    /// What the workers share.
    pub shared: Shared,
    health: Health,
    keyring: Arc<Keyring>,
    /// What settings name of our own.
    named: Arc<Endpoints>,
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
    /// Which addresses may be dialled.
    pub guard: Guard,
    nodes: Nodes,
}

/// Who is told of the nodes of the region.
struct Nodes {
    links: Option<Linked>,
    leaves: Arc<Leaves>,
    /// So many are assumed at least.
    least: u64,
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
    /// What stands already.
    pub footing: Footing,
}

impl DataPlane {
    /// Starts the task that compiles configuration. The first snapshot stands before the first
    /// connection is taken. `own` are addresses that no target may have.
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
            store: _,
            mut worlds,
            mut own,
            health,
            footing,
        } = parts;
        let Footing {
            shared,
            limits,
            settling,
            batches,
            export,
            links,
            leaves,
        } = footing;
        let named = Arc::new(Endpoints {
            links: Names::of(settings.link.endpoints.iter().cloned()),
            store: Names::of(etcd(settings)),
        });
        own.extend(named.addresses());
        let guard = guard(settings, own)?;
        let mut compiler = Compiler::new(CompilerParts {
            keyring: keyring.clone(),
            limits: limits.clone(),
            guard: guard.clone(),
            policy: permissions::policy(settings),
            default_org: settings.gateway.default_org.clone(),
            metrics: shared.metrics.clone(),
            health_checks: HealthChecks::new(shared.upstream.clone()),
            hosts: shared.upstream.hosts.clone(),
        });
        let world = worlds.borrow_and_update().clone();
        let first = compiler.compile(&world);
        shared.snapshot.store(Arc::new(first.snapshot));
        let (sender, applied) = watch::channel(world);
        if let Some(links) = &links {
            links.announce(worlds.clone(), &health, background);
        }
        background.spawn(leaves.begin(applied.clone()));
        let snapshot = shared.snapshot.clone();
        let compiling = node::sync::run(worlds, compiler, snapshot, sender, health.clone());
        background.spawn(compiling);
        Ok(Self {
            health,
            keyring,
            named,
            shared,
            limits,
            settling,
            applied,
            batches,
            export,
            guard,
            nodes: Nodes {
                links,
                leaves,
                least: u64::from(settings.limits.nodes),
            },
        })
    }

    /// Tells the others that this node is there, until what is returned is sent or dropped.
    pub fn join(&self, address: SocketAddr, store: Arc<dyn Store>, background: &Runtime) -> Joined {
        let links = self.nodes.links.as_ref();
        let dialled = links.map(|links| links.address.clone());
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
            keyring: self.keyring.clone(),
            counted: {
                let known = links.map(|links| links.known.clone());
                let (limits, leaves) = (self.limits.clone(), self.nodes.leaves.clone());
                let least = self.nodes.least;
                Box::new(move |nodes, others| {
                    limits.set_nodes(nodes);
                    leaves.set_nodes(nodes.max(least));
                    known.iter().for_each(|known| tell(known, others.clone()));
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
        background.spawn(self.planes(store.clone()));
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

    /// Keeps the dial guard from the control planes of the region, as long as it runs.
    fn planes(&self, store: Arc<dyn Store>) -> impl Future<Output = ()> + use<> {
        let (named, learned) = (self.named.clone(), self.guard.learned());
        let planes = Arc::new(Planes::new(store, named, is_our_address, learned));
        restarts::again("planes", self.health.clone(), move || {
            let planes = planes.clone();
            async move { planes.run().await }
        })
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
    footing::hosts(settings)?;
    traces::check(settings).map_err(|error| CannotStart(format!("{error:#}")))?;
    guard(settings, own).map(drop)
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

/// The members of etcd, host and port each.
fn etcd(settings: &Settings) -> impl Iterator<Item = String> + '_ {
    settings.store.endpoints.iter().map(|endpoint| {
        let rest = endpoint.rsplit("://").next().unwrap_or(endpoint);
        rest.trim_end_matches('/').to_owned()
    })
}

fn guard(settings: &Settings, own: Vec<SocketAddr>) -> anyhow::Result<Guard> {
    let guard = Guard::new(&settings.dial_guard, own);
    Ok(guard.map_err(|error| CannotStart(error.to_string()))?)
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
