//! What a process can be: everything on one machine, a node of a cluster, or a control plane of
//! one.

pub mod control;
pub mod node;
pub mod single;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use ::control::metrics::Metrics;
use ::control::records::Records;
use ::control::{ApiSettings, ControlDeps};
use anyhow::Context;
use proto::health::Health;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::configuration::{self, Configuration};
use crate::gauges;
use crate::serve::CannotStart;
use crate::settings::Settings;
use crate::traces::Export;

/// Longest wait for the last records when a process stops.
const RECORDS_FLUSH_MAX: Duration = Duration::from_secs(5);

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
}

impl Bound {
    /// Where callers connect.
    fn gateway_address(&self) -> anyhow::Result<std::net::SocketAddr> {
        let gateway = self.gateway.as_ref().context("no gateway address")?;
        Ok(gateway.local_addr()?)
    }

    /// Addresses that no target may have.
    fn own(&self) -> std::io::Result<Vec<std::net::SocketAddr>> {
        let all = [&self.gateway, &self.control, &self.admin, &self.link];
        let bound = all.into_iter().flatten();
        bound.map(TcpListener::local_addr).collect()
    }
}

/// What the REST API needs.
fn api(
    settings: &Settings,
    configuration: &Configuration,
    world: tokio::sync::watch::Receiver<Arc<proto::store::follow::World>>,
    records: Arc<Records>,
    gateway_url: &str,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
    counters: Metrics,
) -> ControlDeps {
    let mut api = ApiSettings::new(gateway_url);
    api.region.clone_from(&settings.region);
    api.default_org.clone_from(&settings.gateway.default_org);
    let hosts = settings.control.allowed_hosts.iter().cloned();
    api.allowed_hosts.extend(hosts);
    api.allowed_hosts
        .push(settings.control.listen.ip().to_string());
    let days = u64::from(settings.records.retention_days);
    api.retention.age_max = Duration::from_secs(days * 86_400);
    ControlDeps {
        settings: api,
        publisher: configuration.publisher.clone(),
        world,
        digest_key: configuration.publisher.digest_key().clone(),
        policy: configuration::policy(settings),
        records,
        metrics,
        counters,
        health: configuration.health.clone(),
    }
}

/// Renders the metrics of a process: those of its node, of its control plane, of its store.
fn metrics(
    settings: &Settings,
    of_node: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    of_control: Option<Metrics>,
    health: Health,
) -> Arc<dyn Fn() -> String + Send + Sync> {
    let settings = settings.clone();
    Arc::new(move || {
        let text = of_node.as_ref().map(|render| render()).unwrap_or_default();
        let mut text = text + &health.metrics();
        gauges::render(&settings, &mut text);
        match &of_control {
            Some(counters) => counters.render(text),
            None => text,
        }
    })
}

/// Opens the file with the records of requests.
fn records(settings: &Settings) -> anyhow::Result<Arc<Records>> {
    let file = settings.data_dir.join("records.sqlite");
    let records =
        Records::open(&file).map_err(|error| CannotStart(format!("the records file: {error}")))?;
    Ok(Arc::new(records))
}

/// Waits for the last records and traces: the workers are gone, so the queues end.
async fn flushed(keeping: JoinHandle<()>, export: Option<Export>) {
    if let Some(export) = export {
        export.leave().await;
    }
    let flushed = tokio::time::timeout(RECORDS_FLUSH_MAX, keeping).await;
    if flushed.is_err() {
        warn!("records were lost: nothing took them before the process ended");
    }
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
    info!("stopping: requests in flight may end");
    Ok(())
}
