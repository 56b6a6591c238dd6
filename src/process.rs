//! Node and control in one process: what is started, in which order, and how it stops.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use control::publish::{Publisher, PublisherOptions};
use control::records::{Records, Retention};
use control::{ApiSettings, Control, ControlDeps, Readiness};
use jiff::Timestamp;
use node::limits::{self, Limits, Opener, SystemClock};
use node::metrics::Metrics;
use node::records::RecordBatches;
use node::stages::record::Origin;
use node::sync::compile::Compiler;
use node::sync::guard::Guard;
use node::upstream::{Hosts, UpstreamSettings};
use node::worker::Shared;
use proto::id::OrgId;
use proto::org::DEFAULT;
use proto::policy::Policy;
use proto::seal::Keyring;
use proto::store::Store;
use proto::store::embedded::Embedded;
use proto::store::follow::{Follower, World};
use proto::version::Epoch;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::bootstrap::{self, AdminToken};
use crate::cli::Output;
use crate::demo::{self, Demo};
use crate::hosts_file;
use crate::private_file;
use crate::ready::Ready;
use crate::serve::{CannotStart, Mode};
use crate::servers::{Listeners, Servers};
use crate::settings::Settings;

/// Longest wait for the store and the first configuration at a start.
const START_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the last records when the process stops.
const RECORDS_FLUSH_MAX: Duration = Duration::from_secs(5);

/// What is ready before anything runs.
pub struct Process {
    /// Boot settings.
    pub settings: Settings,
    /// What is run.
    pub mode: Mode,
    /// How to say what was started.
    pub output: Output,
    /// The callers' listener, bound.
    pub gateway: TcpListener,
    /// The REST API's listener, bound.
    pub control: TcpListener,
    /// The operator's listener for probes and metrics, bound, if one is wanted.
    pub admin: Option<TcpListener>,
    /// The region's keys.
    pub keyring: Arc<Keyring>,
    /// The admin token that the operator gives.
    pub given: Option<Zeroizing<String>>,
}

/// The configuration side of a process.
struct Configured {
    store: Arc<dyn Store>,
    publisher: Arc<Publisher>,
    worlds: watch::Receiver<Arc<World>>,
    token: AdminToken,
    token_file: PathBuf,
    demo: Option<Demo>,
}

/// The data plane's parts that are not the listener.
struct DataPlane {
    shared: Shared,
    limits: Arc<Limits>,
    /// The world that requests see.
    applied: watch::Receiver<Arc<World>>,
    records: Arc<Records>,
    /// Ends when the queue of records has ended and is written.
    keeping: JoinHandle<()>,
}

impl Process {
    /// Starts everything, tells it, serves until a signal, and stops in order.
    ///
    /// # Errors
    /// [`CannotStart`] for what the operator can mend; others when a part fails.
    pub async fn serve(self, background: &Runtime) -> anyhow::Result<()> {
        let configured = self.configure(background).await?;
        let gateway_address = self.gateway.local_addr()?;
        let control_address = self.control.local_addr()?;
        let mut own = vec![gateway_address, control_address];
        own.extend(
            self.admin
                .as_ref()
                .map(TcpListener::local_addr)
                .transpose()?,
        );
        let plane = self.data_plane(&configured, own, background)?;
        let gateway_url = self.gateway_url(gateway_address);
        let Configured {
            store,
            publisher,
            token,
            token_file,
            demo,
            ..
        } = configured;
        let metrics: Arc<dyn Fn() -> String + Send + Sync> = {
            let (metrics, limits) = (plane.shared.metrics.clone(), plane.limits.clone());
            Arc::new(move || metrics.render(limits.stats()))
        };
        let records = plane.records.clone();
        let api = self.api(
            publisher,
            plane.applied,
            records,
            &gateway_url,
            metrics.clone(),
        );
        let retention = api.settings.retention;
        let (output, mode) = (self.output, self.mode);
        let control = Control::new(api);
        let listeners = Listeners {
            gateway: self.gateway,
            control: self.control,
            admin: self.admin,
        };
        let servers = Servers::start(listeners, plane.shared, control, metrics)?;
        let retaining = background.spawn(control::records::keep(plane.records, retention));
        let ready = Ready {
            gateway: gateway_url,
            control: format!("http://{control_address}"),
            token,
            token_file,
            demo,
        };
        ready.tell(output, mode)?;

        stopped().await?;
        info!("stopping: requests in flight may end");
        servers.drain().await;
        plane.limits.stop();
        servers.ended().await?;
        retaining.abort();
        drop(store);
        // The workers are gone, so the queue ends and what is left in it is written.
        let flushed = tokio::time::timeout(RECORDS_FLUSH_MAX, plane.keeping).await;
        if flushed.is_err() {
            warn!("records were still being written when the process ended");
        }
        Ok(())
    }

    /// Opens the store and makes sure of organisations, token and demo.
    async fn configure(&self, background: &Runtime) -> anyhow::Result<Configured> {
        let data_dir = &self.settings.data_dir;
        let store: Arc<dyn Store> = Embedded::open(&data_dir.join("store.sqlite"))
            .map_err(|error| CannotStart(error.to_string()))?;
        let publisher = Arc::new(self.publisher(store.clone())?);
        let deadline = tokio::time::Instant::now() + START_MAX;
        let prepared = publisher.bootstrap(deadline).await;
        prepared.context("preparing the store")?;
        let token_file = data_dir.join("admin-token");
        let token = bootstrap::admin_token(&publisher, self.given.clone(), &token_file).await?;
        let (follower, mut worlds) = Follower::new(store.clone(), self.settings.region.clone());
        background.spawn(follower.run());
        let org = default_org(&mut worlds).await?;
        let demo = match self.mode {
            Mode::Dev => Some(self.demo(&publisher, org).await?),
            Mode::Standalone => None,
        };
        let newest = publisher.load(org).await?.head.n;
        seen(&mut worlds, org, newest).await?;
        Ok(Configured {
            store,
            publisher,
            worlds,
            token,
            token_file,
            demo,
        })
    }

    /// Starts limits, records and the task that compiles configuration. The first snapshot stands
    /// before the first connection is taken.
    fn data_plane(
        &self,
        configured: &Configured,
        own: Vec<SocketAddr>,
        background: &Runtime,
    ) -> anyhow::Result<DataPlane> {
        let metrics = Metrics::default();
        let (sender, batches) = node::records::queue();
        let shared = self.shared(metrics.clone(), sender)?;
        let settings = limits::Settings::single_node(incarnation());
        let clock = Arc::new(SystemClock);
        let (limits, broker) = Limits::new(configured.store.clone(), &settings, clock);
        background.spawn(broker);
        let guard = Guard::new(&self.settings.dial_guard, own)
            .map_err(|error| CannotStart(error.to_string()))?;
        let default_org = self.settings.gateway.default_org.clone();
        let mut compiler = Compiler::new(self.keyring.clone(), limits.clone(), guard, default_org);
        let mut worlds = configured.worlds.clone();
        let world = worlds.borrow_and_update().clone();
        let first = compiler.compile(&world);
        shared.snapshot.store(Arc::new(first.snapshot));
        let (sender, applied) = watch::channel(world);
        let snapshot = shared.snapshot.clone();
        background.spawn(node::sync::run(worlds, compiler, snapshot, sender));
        let file = self.settings.data_dir.join("records.sqlite");
        let records = Records::open(&file)
            .map_err(|error| CannotStart(format!("the records file: {error}")))?;
        let records = Arc::new(records);
        let keeping = background.spawn(keep_records(batches, records.clone(), metrics));
        Ok(DataPlane {
            shared,
            limits,
            applied,
            records,
            keeping,
        })
    }

    fn publisher(&self, store: Arc<dyn Store>) -> anyhow::Result<Publisher> {
        let public = self.keyring.public().context("the key ring has no key")?;
        Ok(Publisher::new(PublisherOptions {
            store,
            public,
            digest_key: self.keyring.digest_key.clone(),
            policy: self.policy(),
            epoch: Epoch {
                counter: 1,
                region: self.settings.region.clone(),
            },
            clock: Arc::new(Timestamp::now),
        }))
    }

    fn policy(&self) -> Policy {
        Policy {
            allow_http: self.settings.policy.allow_http,
            allow_insecure_tls: self.settings.policy.allow_insecure_tls,
        }
    }

    async fn demo(&self, publisher: &Publisher, org: OrgId) -> anyhow::Result<Demo> {
        let file = self.settings.data_dir.join("demo.json");
        let before: Option<Demo> =
            private_file::read(&file)?.and_then(|text| serde_json::from_str(&text).ok());
        let (echo, server) = demo::echo(before.as_ref().map(|demo| demo.echo))?;
        actix_rt::spawn(server);
        demo::ensure(publisher, org, before, echo, &file).await
    }

    fn shared(
        &self,
        metrics: Metrics,
        records: node::records::RecordSender,
    ) -> anyhow::Result<Shared> {
        let node = self.settings.node_name.clone().unwrap_or_else(host_name);
        let hosts = match &self.settings.dial_guard.hosts_file {
            Some(path) => hosts_file::read(path)?,
            None => Hosts::default(),
        };
        Ok(Shared {
            snapshot: node::gateway::empty_snapshot(self.keyring.digest_key.clone()),
            settings: Arc::new(self.settings.gateway.clone()),
            upstream: UpstreamSettings {
                hosts,
                ..UpstreamSettings::default()
            },
            metrics,
            records,
            origin: Arc::new(Origin {
                node: node.into(),
                region: self.settings.region.as_str().into(),
            }),
        })
    }

    fn gateway_url(&self, address: SocketAddr) -> String {
        let url = self.settings.gateway.public_url.clone();
        url.unwrap_or_else(|| format!("http://{address}"))
    }

    fn api(
        &self,
        publisher: Arc<Publisher>,
        world: watch::Receiver<Arc<World>>,
        records: Arc<Records>,
        gateway_url: &str,
        metrics: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> ControlDeps {
        let mut settings = ApiSettings::new(gateway_url);
        settings.region.clone_from(&self.settings.region);
        settings
            .default_org
            .clone_from(&self.settings.gateway.default_org);
        settings
            .allowed_hosts
            .extend(self.settings.control.allowed_hosts.iter().cloned());
        settings
            .allowed_hosts
            .push(self.settings.control.listen.ip().to_string());
        let days = u64::from(self.settings.records.retention_days);
        settings.retention = Retention {
            age_max: Duration::from_secs(days * 86_400),
            ..Retention::default()
        };
        ControlDeps {
            settings,
            publisher,
            world,
            digest_key: self.keyring.digest_key.clone(),
            policy: self.policy(),
            records,
            metrics,
            readiness: Arc::new(|| Readiness::Ready),
        }
    }
}

/// The id of the organisation `default`, once the follower has seen it.
async fn default_org(worlds: &mut watch::Receiver<Arc<World>>) -> anyhow::Result<OrgId> {
    let found = worlds.wait_for(|world| world.org(DEFAULT).is_some());
    let world = tokio::time::timeout(START_MAX, found)
        .await
        .context("the store's configuration did not appear in time")??;
    let org = world
        .org(DEFAULT)
        .context("organisation `default` is missing")?;
    Ok(org.config.org)
}

/// Waits until the follower has seen a version.
async fn seen(worlds: &mut watch::Receiver<Arc<World>>, org: OrgId, n: u64) -> anyhow::Result<()> {
    let found = worlds.wait_for(|world| {
        world
            .orgs
            .get(&org)
            .is_some_and(|state| state.config.head.n >= n)
    });
    tokio::time::timeout(START_MAX, found)
        .await
        .context("the newest configuration did not appear in time")??;
    Ok(())
}

/// Writes batches of records until the queue ends.
async fn keep_records(mut batches: RecordBatches, records: Arc<Records>, metrics: Metrics) {
    while let Some(batch) = batches.next().await {
        let records = records.clone();
        let count = batch.len();
        let kept = tokio::task::spawn_blocking(move || records.insert(&batch)).await;
        if let Ok(Err(error)) = &kept {
            warn!(count, "{count} records could not be kept: {error}");
        }
        if !matches!(kept, Ok(Ok(_))) {
            metrics.records_dropped(count as u64);
        }
    }
}

/// A new incarnation of this node: blocks that an earlier one left open are not its own.
fn incarnation() -> Opener {
    let bits = uuid::Uuid::now_v7().as_u128();
    Opener {
        node: 1,
        boot: bits as u64,
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_else(|_| "node".to_owned())
}

/// Waits for SIGINT or SIGTERM.
async fn stopped() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
