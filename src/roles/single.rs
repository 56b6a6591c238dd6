//! Node and control plane in one process: `dev` and `standalone`.

use std::sync::Arc;
use std::time::Instant;

use ::control::Control;
use ::control::records::{Records, RecordsError};
use ::node::metrics::Metrics;
use ::node::records::RecordBatches;
use ::node::records::losses::Losses;
use anyhow::Context;
use proto::org::DEFAULT;
use proto::seal::Keyring;
use tokio::runtime::Runtime;
use tracing::warn;
use zeroize::Zeroizing;

use super::Bound;
use crate::cli::Output;
use crate::configuration::Configuration;
use crate::data_plane::{DataPlane, DataPlaneParts};
use crate::demo::{self, Demo};
use crate::dialling;
use crate::footing::{self, Footing};
use crate::handover::{Handover, Place};
use crate::preflight;
use crate::private_file;
use crate::ready::Ready;
use crate::record_store;
use crate::serve::Mode;
use crate::servers::Servers;
use crate::settings::Settings;
use crate::stores;

/// What is ready before anything runs.
pub struct Single {
    /// Boot settings.
    pub settings: Settings,
    /// What is run.
    pub mode: Mode,
    /// How to say what was started.
    pub output: Output,
    /// The listeners.
    pub bound: Bound,
    /// The region's keys.
    pub keyring: Arc<Keyring>,
    /// The admin token that the operator gives.
    pub given: Option<Zeroizing<String>>,
    /// The data folder, and the process that this one replaces.
    pub place: Place,
}

impl Single {
    /// Starts everything, tells it, serves until a signal, and stops in order.
    ///
    /// # Errors
    /// [`crate::serve::CannotStart`] for what the operator can mend; others when a part fails.
    pub async fn serve(self, background: &Runtime) -> anyhow::Result<()> {
        let (settings, bound, keyring) = (self.settings, self.bound, self.keyring);
        let public = keyring.public_half().context("the key ring has no key")?;
        let handover = Handover::new(&settings.data_dir, self.mode.role(), bound.named())?;
        let check = || preflight::of_single(&settings, &public, bound.own()?);
        let place = self.place.take(check, stores::answers(&settings)).await?;
        let records = record_store::open(&settings, background.handle())?;
        let store = stores::open(&settings)?;
        let (at, given) = (store.clone(), self.given);
        let opened = Configuration::open(&settings, at, public, given, None, background);
        let mut configuration = opened.await?;
        let demo = match self.mode {
            Mode::Dev => Some(demo(&settings, &mut configuration).await?),
            Mode::Standalone => None,
        };
        let counters = ::control::metrics::Metrics::default();
        let health = configuration.health.clone();
        let own = bound.own()?;
        let parts = DataPlaneParts {
            footing: Footing::alone(&settings, (&keyring, &store), (&health, background))?,
            keyring,
            store: store.clone(),
            worlds: configuration.worlds.clone(),
            own: own.clone(),
            health: health.clone(),
        };
        let plane = DataPlane::start(&settings, parts, background)?;
        let metrics = super::metrics(&settings, Some(plane.metrics()), Some(&counters), &health);
        let told = super::export_metrics(&settings, &metrics)?;
        let joined = plane.join(bound.gateway_address()?, store.clone(), background);
        let counted = plane.shared.metrics.clone();
        let keeping = background.spawn(keep(plane.batches, records.clone(), counted));
        let mut servers = Servers::default();
        let listening = servers.gateway(bound.gateway, plane.shared)?;
        let gateway_url = settings.gateway.public_url.clone().unwrap_or(listening);
        let shown = (plane.applied, records.clone());
        let counted = (metrics.clone(), counters);
        let mut api = super::api(&settings, &configuration, shown, &gateway_url, counted)?;
        api.dial_guard = dialling::of(plane.guard, footing::hosts(&settings)?);
        let retention = api.settings.retention;
        let control = servers.control(bound.control, Control::new(api), &settings.control.tls)?;
        servers.admin(bound.admin, metrics, health.clone())?;
        let retaining = background.spawn(::control::records::keep(records, retention));
        let sweeping = super::Sweeping::start(&settings, (&configuration, own), background);
        let ready = Ready {
            gateway: Some(gateway_url),
            control: Some(control),
            link: None,
            token: configuration.token,
            demo,
        };
        let signals = super::announce(&ready, self.output, self.mode == Mode::Dev)?;
        place.serves();

        let why = signals.stopped(&health, handover).await;
        health.drain();
        joined.leave().await;
        servers.drain(why.queue()).await;
        plane.settling.settled().await;
        servers.ended().await?;
        retaining.abort();
        sweeping.stop().await;
        drop(store);
        super::flushed(keeping, plane.export.into_iter().chain(told)).await;
        why.outcome()
    }
}

/// Makes sure of the demo; in its place, why there is none.
async fn demo(
    settings: &Settings,
    configuration: &mut Configuration,
) -> anyhow::Result<Result<Demo, String>> {
    let Some(org) = configuration.default_org() else {
        return Ok(Err(format!("there is no organisation `{DEFAULT}`")));
    };
    let publisher = &configuration.publisher;
    let file = settings.data_dir.join("demo.json");
    let before: Option<Demo> =
        private_file::read(&file)?.and_then(|text| serde_json::from_str(&text).ok());
    let (echo, server) = demo::echo(before.as_ref().map(|demo| demo.echo))?;
    actix_rt::spawn(server);
    let made = demo::ensure(publisher, org, before, echo, &file).await?;
    configuration.caught_up(org).await?;
    Ok(made)
}

/// Writes batches of records until the queue ends. While ClickHouse is away a batch is tried again
/// and others wait in the queue; what finds no room there is dropped and counted.
async fn keep(mut batches: RecordBatches, records: Arc<Records>, metrics: Metrics) {
    let mut losses = Losses::default();
    while let Some((batch, _room)) = batches.next().await {
        let batch = Arc::new(batch);
        let kept = loop {
            match records.store(batch.clone()).await {
                // The store itself waits before it tries.
                Err(RecordsError::Unavailable(_)) => {}
                kept => break kept,
            }
        };
        if let Err(error) = kept {
            let count = batch.len() as u64;
            metrics.records_dropped(count);
            // A full disk refuses every batch: several in a second.
            if let Some(count) = losses.note(count, Instant::now()) {
                warn!(count, "{count} records could not be kept: {error}");
            }
        }
    }
}
