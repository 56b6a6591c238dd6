//! A control plane of a cluster: REST API, publisher, and the records of nodes. Requests of callers
//! never pass it.

use std::sync::Arc;

use ::control::Control;
use ::control::config::RegionKeys;
use ::control::link::LinkDeps;
use ::control::linked::Linked;
use ::control::metrics::Metrics;
use ::control::regions::{Directory, Homes, Regions, Status, gateways};
use ::control::replication::{ANSWER_BYTES, Dialer, Follower, NotGiven, Replication, Source};
use proto::exposition::MetricsSource;
use proto::restarts;
use proto::seal::PublicKeyring;
use proto::store::Store;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use super::Bound;
use crate::cli::Output;
use crate::clock;
use crate::configuration::Configuration;
use crate::handover::{Handover, Place, Role};
use crate::link_tls;
use crate::preflight;
use crate::ready::Ready;
use crate::record_store;
use crate::regions;
use crate::serve::CannotStart;
use crate::servers::Servers;
use crate::settings::Settings;
use crate::stores;

/// Under which URL callers reach the nodes.
///
/// # Errors
/// The settings do not say: a control plane cannot know.
pub fn gateway_url(settings: &Settings) -> Result<String, CannotStart> {
    let given = settings.gateway.public_url.clone();
    given.ok_or_else(|| {
        let why = "`gateway.public_url` is missing: under which URL callers reach the nodes";
        CannotStart(why.into())
    })
}

/// What is ready before anything runs.
pub struct ControlPlane {
    /// Boot settings.
    pub settings: Settings,
    /// How to say what was started.
    pub output: Output,
    /// The listeners.
    pub bound: Bound,
    /// What it has of the region's keys.
    pub keys: PublicKeyring,
    /// The admin token that the operator gives.
    pub given: Option<Zeroizing<String>>,
    /// The data folder, and the process that this one replaces.
    pub place: Place,
}

impl ControlPlane {
    /// Starts, tells it, serves until a signal, and stops in order.
    ///
    /// # Errors
    /// [`CannotStart`] for what the operator can mend; others when a part fails.
    pub async fn serve(self, background: &Runtime) -> anyhow::Result<()> {
        let settings = self.settings;
        let gateway_url = gateway_url(&settings)?;
        let handover = Handover::new(&settings.data_dir, Role::Control, self.bound.named())?;
        let listens = self.bound.own()?;
        let check = || preflight::of_control(&settings, &self.keys);
        let place = self.place.take(check, stores::answers(&settings)).await?;
        let records = record_store::open(&settings, background.handle())?;
        let store = stores::open(&settings)?;
        let regions = regions::open(&settings, &self.keys)?;
        for warning in regions::warnings(&settings) {
            tracing::warn!("{warning}");
        }
        let (shared, keys, given) = (keys_of(&self.keys, &settings), self.keys, self.given);
        let (of, at) = (regions.as_deref(), store.clone());
        let opened = Configuration::open(&settings, at, keys, given, of, background);
        let configuration = opened.await?;
        let (counters, linked) = (Metrics::default(), Linked::default());
        let parts = (&store, &configuration, &settings);
        let replicated = |regions| replicate(regions, parts, background);
        let directory = regions.map(replicated).transpose()?;
        let (health, mut servers) = (configuration.health.clone(), Servers::default());
        let link = |listener| {
            let link = LinkDeps {
                tls: link_tls::server(&settings.link)?,
                records: records.clone(),
                metrics: counters.clone(),
                linked: linked.clone(),
                source: directory.as_ref().map(source),
                health: health.clone(),
                name: settings.name(),
                clock_ahead_ns: clock::ahead_ns(&settings)?,
            };
            servers.link(listener, link, background)
        };
        let taken_at = self.bound.link.map(link).transpose()?;
        let metrics = super::metrics(&settings, None, Some(&counters), &health);
        let metrics = of_cluster(metrics, &configuration, directory.as_ref());
        let told = super::export_metrics(&settings, &metrics)?;
        let shown = (configuration.worlds.clone(), records.clone());
        let counted = (metrics.clone(), counters);
        let mut api = super::api(&settings, &configuration, shown, &gateway_url, counted)?;
        (api.linked, api.settings.keys) = (linked, shared);
        let keeping = ::control::records::keep(records, api.settings.retention);
        let control = Control::new(api).with_regions(directory);
        let listening = servers.control(self.bound.control, control, &settings.control.tls)?;
        servers.admin(self.bound.admin, metrics, health.clone())?;
        let retaining = background.spawn(keeping);
        let sweeping = super::Sweeping::start(&settings, (&configuration, listens), background);
        let ready = Ready {
            gateway: Some(gateway_url),
            control: Some(listening),
            link: taken_at,
            token: configuration.token,
            ..Ready::default()
        };
        let signals = super::announce(&ready, self.output, false)?;
        place.serves();
        let why = signals.stopped(&health, handover).await;
        health.drain();
        servers.drain(why.queue()).await;
        servers.ended().await?;
        retaining.abort();
        sweeping.stop().await;
        drop(store);
        super::left(told).await;
        why.outcome()
    }
}

/// What other regions are told of this one's keys, where these can reach it.
fn keys_of(keys: &PublicKeyring, settings: &Settings) -> Option<RegionKeys> {
    settings.link.listen.map(|_| RegionKeys {
        public: keys.public.clone(),
        signers: keys.signers.clone(),
    })
}

/// Follows the other regions from here on, and tells nodes where they are; gives what the API knows
/// of them.
fn replicate(
    regions: Arc<Regions>,
    (store, configuration, settings): (&Arc<dyn Store>, &Configuration, &Settings),
    background: &Runtime,
) -> anyhow::Result<Directory> {
    let health = &configuration.health;
    let (homes, following) = Homes::follow(store.clone(), &regions.home);
    background.spawn(restarts::once("homes", health.clone(), following));
    let status = Arc::new(Status::default());
    let replication = Arc::new(Replication {
        publisher: configuration.publisher.clone(),
        store: store.clone(),
        worlds: configuration.worlds.clone(),
        regions: regions.clone(),
        homes: homes.clone(),
        status: status.clone(),
        shared: Arc::default(),
        dialer: Dialer::Tls(link_tls::client(&settings.link)?),
    });
    let follower = replication.clone();
    let follow = move || Follower::new(follower.clone()).run();
    background.spawn(restarts::again("replication", health.clone(), follow));
    let publisher = configuration.publisher.clone();
    background.spawn(async move { publisher.sign_kept_until_done().await });
    let own = settings.gateway.public_url.as_deref().unwrap_or_default();
    let (store, all) = (store.clone(), gateways::of(&regions, own));
    let name = configuration.archive.name().to_owned();
    let keep = move || gateways::keep(store.clone(), all.clone(), name.clone());
    background.spawn(restarts::again("gateways", health.clone(), keep));
    Ok(Directory {
        trust: regions::trust(&regions)?,
        regions,
        homes,
        replication,
        status,
    })
}

/// What answers other regions.
fn source(directory: &Directory) -> Arc<Source> {
    let replication = &directory.replication;
    Arc::new(Source {
        store: replication.store.clone(),
        worlds: replication.worlds.clone(),
        homes: directory.homes.clone(),
        regions: directory.regions.clone(),
        shared: replication.shared.clone(),
        status: directory.status.clone(),
        not_given: NotGiven::default(),
        answer_bytes: ANSWER_BYTES,
    })
}

/// The same, with how full the store is, what it has lost, and what is replicated.
fn of_cluster(
    metrics: MetricsSource,
    configuration: &Configuration,
    directory: Option<&Directory>,
) -> MetricsSource {
    let (publisher, directory) = (configuration.publisher.clone(), directory.cloned());
    Arc::new(move || {
        let mut families = metrics();
        families.extend(publisher.room_families());
        families.extend(publisher.mending_families());
        if let Some(directory) = &directory {
            families.extend(directory.status.families(&directory.other_homes()));
        }
        families
    })
}
