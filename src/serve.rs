//! Runs node and control in one process: `dev` and `standalone`.

use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use control::publish::{Publisher, PublisherOptions};
use control::records::{Records, Retention};
use control::{ApiSettings, Control, ControlDeps, Readiness};
use jiff::Timestamp;
use node::config::Permission;
use node::limits::{self, Limits, Opener, SystemClock};
use node::metrics::Metrics;
use node::records::RecordBatches;
use node::stages::record::Origin;
use node::sync::compile::Compiler;
use node::sync::guard::Guard;
use node::upstream::UpstreamSettings;
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
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::bootstrap::{self, AdminToken};
use crate::cli::{DevArgs, Output, StandaloneArgs};
use crate::demo::{self, Demo};
use crate::settings::{self, Settings};
use crate::{logging, private_file, say};

/// The process cannot start, for a reason that its operator can mend: one line, exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotStart(pub String);

/// Longest wait for the store and the first configuration at a start.
const START_MAX: Duration = Duration::from_secs(10);
/// Threads of the runtime that serves store, limits and telemetry.
const BACKGROUND_THREADS: usize = 2;

/// Runs `requestrocket dev`.
///
/// # Errors
/// [`CannotStart`] and settings errors before anything runs; later ones when a part fails.
pub fn dev(args: &DevArgs) -> anyhow::Result<()> {
    let mut base = Settings::default();
    base.gateway.explain_unauthorized = true;
    base.policy.allow_http = true;
    base.log.filter = "warn".into();
    base.dial_guard.permit = ["127.0.0.0/8", "::1/128"]
        .iter()
        .filter_map(|network| network.parse().ok())
        .map(|network| Permission {
            network,
            ports: vec!["1-65535".into()],
            orgs: vec!["*".into()],
        })
        .collect();
    let mut settings = settings::load(&base, args.config.as_deref(), std::env::vars())?;
    if let Some(gateway) = args.gateway {
        settings.gateway.listen = gateway;
    }
    if let Some(control) = args.control {
        settings.control.listen = control;
    }
    if let Some(data_dir) = &args.data_dir {
        settings.data_dir.clone_from(data_dir);
    }
    run(settings, Mode::Dev, args.output)
}

/// Runs `requestrocket standalone`.
///
/// # Errors
/// As for [`dev`].
pub fn standalone(args: &StandaloneArgs) -> anyhow::Result<()> {
    let base = Settings::default();
    let mut settings = settings::load(&base, args.config.as_deref(), std::env::vars())?;
    settings.control.insecure |= args.insecure_control;
    run(settings, Mode::Standalone, args.output)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Dev,
    Standalone,
}

fn run(settings: Settings, mode: Mode, output: Output) -> anyhow::Result<()> {
    let given = bootstrap::given(&settings.control)?;
    let control_address = settings.control.listen;
    if !control_address.ip().is_loopback() && !settings.control.insecure {
        return Err(CannotStart(format!(
            "the control address {control_address} is not loopback and has no TLS; put a TLS \
             proxy before a loopback address, or accept it with --insecure-control \
             (`control.insecure`)"
        ))
        .into());
    }
    make_folder(&settings.data_dir)?;
    let gateway = bind(settings.gateway.listen, "gateway")?;
    let control = bind(settings.control.listen, "control")?;
    let keyring = Arc::new(keyring(&settings)?);
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(BACKGROUND_THREADS)
        .thread_name("background")
        .enable_all()
        .build()?;
    let telemetry = logging::install(&settings.log, &background)?;
    let parts = Parts {
        settings,
        mode,
        output,
        gateway,
        control,
        keyring,
        given,
    };
    let outcome = actix_rt::System::new().block_on(parts.serve(&background));
    telemetry.shutdown();
    background.shutdown_timeout(Duration::from_secs(2));
    outcome
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    let probe = path.join(".writable");
    made.and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(|error| {
            CannotStart(format!(
                "the data folder {} cannot be written: {error}; choose another with --data-dir \
                 (`data_dir`)",
                path.display()
            ))
        })?;
    Ok(())
}

fn bind(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| {
        CannotStart(format!(
            "the {what} address {address} cannot be used: {error}; choose another with --{what} \
             (`{what}.listen`), port 0 takes a free one"
        ))
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Reads the key ring, or makes one at the first start.
fn keyring(settings: &Settings) -> anyhow::Result<Keyring> {
    let path = settings.data_dir.join("keyring.json");
    let unusable = |reason: String| {
        CannotStart(format!(
            "the key ring {} cannot be used: {reason}",
            path.display()
        ))
    };
    let found = private_file::read(&path).map_err(|error| unusable(error.to_string()))?;
    if let Some(text) = found {
        let text = Zeroizing::new(text);
        let ring = Keyring::parse(text.as_bytes()).map_err(|error| unusable(error.to_string()))?;
        if ring.region != settings.region {
            let reason = format!("it is of region {}, not {}", ring.region, settings.region);
            return Err(unusable(reason).into());
        }
        return Ok(ring);
    }
    let ring = Keyring::generate(&*settings.region);
    Keyring::parse(ring.to_json().as_bytes()).map_err(|error| unusable(error.to_string()))?;
    private_file::write(&path, ring.to_json().as_bytes())
        .map_err(|error| unusable(error.to_string()))?;
    Ok(ring)
}

/// What is ready before anything runs.
struct Parts {
    settings: Settings,
    mode: Mode,
    output: Output,
    gateway: TcpListener,
    control: TcpListener,
    keyring: Arc<Keyring>,
    given: Option<Zeroizing<String>>,
}

impl Parts {
    async fn serve(self, background: &Runtime) -> anyhow::Result<()> {
        let data_dir = self.settings.data_dir.clone();
        let store: Arc<dyn Store> = Embedded::open(&data_dir.join("store.sqlite"))
            .map_err(|error| CannotStart(error.to_string()))?;
        let publisher = Arc::new(self.publisher(store.clone())?);
        let deadline = tokio::time::Instant::now() + START_MAX;
        publisher
            .bootstrap(deadline)
            .await
            .context("preparing the store")?;
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

        let gateway_address = self.gateway.local_addr()?;
        let control_address = self.control.local_addr()?;
        let metrics = Metrics::default();
        let (records, batches) = node::records::queue();
        let shared = self.shared(metrics.clone(), records);
        let (limits, broker) = Limits::new(
            store.clone(),
            &limits::Settings::single_node(incarnation()),
            Arc::new(SystemClock),
        );
        background.spawn(broker);
        let guard = Guard::new(
            &self.settings.dial_guard,
            vec![gateway_address, control_address],
        )
        .map_err(|error| CannotStart(error.to_string()))?;
        let mut compiler = Compiler::new(
            self.keyring.clone(),
            limits.clone(),
            guard,
            self.settings.gateway.default_org.clone(),
        );
        // The first snapshot stands before the first connection is taken.
        let first = compiler.compile(&worlds.borrow_and_update().clone());
        shared.snapshot.store(Arc::new(first.snapshot));
        let (applied, worlds_applied) = watch::channel(worlds.borrow().clone());
        background.spawn(node::sync::run(
            worlds,
            compiler,
            shared.snapshot.clone(),
            applied,
        ));
        let kept = Arc::new(
            Records::open(&data_dir.join("records.sqlite"))
                .map_err(|error| CannotStart(format!("the records file: {error}")))?,
        );
        let keeping = background.spawn(keep_records(batches, kept.clone(), metrics.clone()));

        let gateway_url = self.gateway_url(gateway_address);
        let api = self.api(publisher, worlds_applied, kept, &gateway_url, metrics);
        let ready = Ready {
            gateway: gateway_url,
            control: format!("http://{control_address}"),
            token,
            token_file,
            demo,
        };
        let (gateway, handle) = node::gateway::serve(self.gateway, shared)
            .map_err(|error| CannotStart(format!("gateway settings: {error}")))?;
        let control = control::serve(self.control, Arc::new(Control::new(api)))?;
        let control_handle = control.handle();
        let serving = actix_rt::spawn(gateway);
        let answering = actix_rt::spawn(control);
        ready.tell(self.output, self.mode)?;

        stopped().await?;
        info!("stopping: requests in flight may end");
        handle.drain().await;
        control_handle.stop(true).await;
        limits.stop();
        serving.await??;
        answering.await??;
        drop(store);
        // The workers are gone, so the queue ends and what is left in it is written.
        if tokio::time::timeout(Duration::from_secs(5), keeping)
            .await
            .is_err()
        {
            warn!("records were still being written when the process ended");
        }
        Ok(())
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

    fn shared(&self, metrics: Metrics, records: node::records::RecordSender) -> Shared {
        let node = self.settings.node_name.clone().unwrap_or_else(host_name);
        Shared {
            snapshot: node::gateway::empty_snapshot(self.keyring.digest_key.clone()),
            settings: Arc::new(self.settings.gateway.clone()),
            upstream: UpstreamSettings::default(),
            metrics,
            records,
            origin: Arc::new(Origin {
                node,
                region: self.settings.region.clone(),
            }),
        }
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
        metrics: Metrics,
    ) -> ControlDeps {
        let mut settings = ApiSettings::new(gateway_url);
        settings.region.clone_from(&self.settings.region);
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
            metrics: Arc::new(move || metrics.render()),
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
            (0..count).for_each(|_| metrics.record_dropped());
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

/// What is told when everything runs.
struct Ready {
    gateway: String,
    control: String,
    token: AdminToken,
    token_file: PathBuf,
    demo: Option<Demo>,
}

impl Ready {
    fn tell(&self, output: Output, mode: Mode) -> anyhow::Result<()> {
        let terminal = std::io::stdout().is_terminal();
        // A shown token is not written down; a program's or a service's log never holds it.
        let keep = self.token.fresh && (mode == Mode::Dev || !terminal);
        if let Some(token) = self.token.text.as_ref().filter(|_| keep) {
            private_file::write(&self.token_file, token.as_bytes())
                .with_context(|| format!("writing {}", self.token_file.display()))?;
        }
        match output {
            Output::Json => say(&self.json().to_string()),
            Output::Text => say(&self.text(mode, terminal)),
        }
        Ok(())
    }

    fn demo_url(&self) -> String {
        format!("{}/api/demo", self.gateway)
    }

    fn json(&self) -> serde_json::Value {
        let token = self.token.text.as_ref().map(|token| token.as_str());
        let mut line = serde_json::json!({
            "gateway": self.gateway,
            "control": self.control,
            "org": DEFAULT,
            "admin_token": token,
        });
        if let Some(demo) = &self.demo {
            line["demo"] = serde_json::json!({ "url": self.demo_url(), "api_key": demo.api_key });
        }
        line
    }

    fn text(&self, mode: Mode, terminal: bool) -> String {
        let mut lines = vec![
            format!("gateway      {}", self.gateway),
            format!("control      {}", self.control),
        ];
        let shown = mode == Mode::Dev || (self.token.fresh && terminal);
        match &self.token.text {
            Some(token) if shown => lines.push(format!("admin token  {}", token.as_str())),
            Some(_) if self.token.fresh => {
                lines.push(format!("admin token  in {}", self.token_file.display()));
            }
            _ => {}
        }
        if let Some(demo) = &self.demo {
            lines.push(String::new());
            lines.push(format!(
                "curl -H \"Authorization: Bearer {}\" {}/hello",
                demo.api_key,
                self.demo_url()
            ));
        }
        lines.join("\n")
    }
}
