//! A node of a cluster: the data plane alone. Configuration and tokens come from etcd, records go
//! to a control plane.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::node::limits::Limits;
use ::node::peers::facts::Facts;
use ::node::peers::leaves::Leaves;
use ::node::records::RecordBatches;
use ::node::records::ship::{self, Destination};
use ::node::records::spool::Spool;
use ::node::worker::Shared;
use anyhow::Context;
use proto::health::Health;
use proto::restarts;
use proto::seal::Keyring;
use proto::store::follow::{Follower, World};
use proto::store::kept::{self, Kept};
use proto::store::{Store, StoreError};
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{error, warn};

use super::{Bound, Stop};
use crate::cli::Output;
use crate::configuration;
use crate::data_plane::{DataPlane, DataPlaneParts};
use crate::descriptors;
use crate::footing::Footing;
use crate::handover::{Folder, Handover, Place, Predecessor, Role, STORE_WAIT_MAX};
use crate::link_tls;
use crate::peering::Peering;
use crate::ready::Ready;
use crate::serve::{CannotStart, Mode};
use crate::servers::Servers;
use crate::settings::Settings;
use crate::stores;

/// Longest wait for the last copy of the configuration when the process stops.
const COPY_MAX: Duration = Duration::from_secs(5);

/// How often the place for records is tried to be opened.
const SPOOL_RETRY: Duration = Duration::from_secs(5);

/// Looks whether the settings say where control planes are.
///
/// # Errors
/// They do not.
pub fn check_endpoints(settings: &Settings) -> Result<(), CannotStart> {
    if !settings.link.endpoints.is_empty() {
        return Ok(());
    }
    let why = "`link.endpoints` is missing: where control planes take records, host:port";
    Err(CannotStart(why.into()))
}

/// What is ready before anything runs.
pub struct Node {
    /// Boot settings.
    pub settings: Settings,
    /// How to say what was started.
    pub output: Output,
    /// The listeners.
    pub bound: Bound,
    /// The region's keys.
    pub keyring: Arc<Keyring>,
    /// The data folder, and the process that this one replaces: the two share it for a while.
    pub place: Place,
}

impl Node {
    /// Starts, tells it, serves until a signal, and stops in order.
    ///
    /// # Errors
    /// [`CannotStart`] for what the operator can mend; others when a part fails.
    pub async fn serve(self, background: &Runtime) -> anyhow::Result<()> {
        let settings = self.settings;
        check_endpoints(&settings)?;
        let tls = link_tls::client(&settings.link)?;
        let store = stores::open(&settings)?;
        descriptors::raise(settings.gateway.connections_max, Mode::Standalone);
        let kept = kept(&settings, &self.keyring)?;
        let own = self.bound.own()?;
        let gateway = self.bound.gateway_address()?;
        let handover = Handover::new(&settings.data_dir, Role::Node, self.bound.named())?;
        let (folder, predecessor) = self.place.shared();
        let opens = (&*self.keyring, &store);
        let peers = (self.bound.peers, predecessor.as_ref());
        let begun = Begun::read(&settings, opens, &kept, peers, background).await?;
        let Begun {
            footing,
            worlds,
            health,
        } = begun;
        let (stop, stopping) = oneshot::channel();
        let followed = (worlds.clone(), health.clone());
        let parts = DataPlaneParts {
            keyring: self.keyring.clone(),
            store: store.clone(),
            worlds,
            own,
            health: health.clone(),
            footing,
        };
        let plane = DataPlane::start(&settings, parts, background)?;
        // Not before: what it takes from the machine would let callers wait longer.
        let copying = background.spawn(kept::run(kept, store.clone(), followed, stopping));
        super::look_for_default_org(&settings, &plane.applied.borrow());
        let metrics = super::metrics(&settings, Some(plane.metrics()), None, &health);
        let told = super::export_metrics(&settings, &metrics)?;
        let joined = plane.join(gateway, store.clone(), background);
        let queue = (plane.batches, spool(&settings, folder, background));
        let shipping = ship_records(&settings, tls, queue, &plane.shared, &plane.limits);
        let shipping = restarts::once("records", health.clone(), shipping);
        let shipping = background.spawn(shipping);
        let mut servers = Servers::default();
        let listening = servers.gateway(self.bound.gateway, plane.shared)?;
        servers.admin(self.bound.admin, metrics, health.clone())?;
        let ready = Ready {
            gateway: Some(listening),
            ..Ready::default()
        };
        let signals = super::announce(&ready, self.output, false)?;
        if let Some(predecessor) = predecessor {
            predecessor.replaced();
        }

        let why = signals.stopped(&health, handover).await;
        health.drain();
        joined.leave().await;
        servers.drain(why.queue()).await;
        plane.settling.settled().await;
        servers.ended().await?;
        match why {
            // The successor keeps copies, newer than what this process knows.
            Stop::Replaced(_) => copying.abort(),
            Stop::Signal(_) | Stop::Failed(..) => keep_last(stop, copying).await,
        }
        drop(store);
        super::flushed(shipping, plane.export.into_iter().chain(told)).await;
        why.outcome()
    }
}

/// A node that has read its configuration.
struct Begun {
    footing: Footing,
    worlds: watch::Receiver<Arc<World>>,
    health: Health,
}

impl Begun {
    /// Reads it and follows it from here on. `predecessor`: who serves on this folder so far.
    async fn read(
        settings: &Settings,
        (keyring, store): (&Keyring, &Arc<dyn Store>),
        kept: &Kept,
        (listener, predecessor): (Option<TcpListener>, Option<&Predecessor>),
        background: &Runtime,
    ) -> anyhow::Result<Self> {
        let leaves = Arc::<Leaves>::default();
        let mut peering = Peering::new(settings, &leaves, listener)?;
        let facts = peering.as_ref().map(|peering| peering.facts.clone());
        let (mut follower, worlds) = Follower::new(store.clone(), settings.region.clone());
        follower.ask_first(leaves.clone());
        let health = follower.health();
        let mut start = || {
            let (running, opens) = ((&health, background), (keyring, store.clone()));
            Footing::start(settings, opens, (peering.take(), leaves.clone()), running)
        };
        // A process that takes the place of another one finds its copy on disk, and leaves it the
        // links as long as it serves.
        let early = match predecessor {
            None => Some(start()?),
            Some(_) => None,
        };
        let beside = (early.as_ref(), predecessor);
        begin(settings, store, (kept, &mut follower), beside).await?;
        let footing = early.map_or_else(start, Ok)?;
        background.spawn(follower.run());
        let worlds = with_peers(facts.as_ref(), worlds, &health, background);
        Ok(Self {
            footing,
            worlds,
            health,
        })
    }
}

/// What the store shows, with what peers tell, where there are any: the copy on disk has it too.
fn with_peers(
    facts: Option<&Arc<Facts>>,
    worlds: watch::Receiver<Arc<World>>,
    health: &Health,
    background: &Runtime,
) -> watch::Receiver<Arc<World>> {
    let Some(facts) = facts else {
        return worlds;
    };
    let (worlds, merging) = facts.begin(worlds, health.clone());
    background.spawn(merging);
    worlds
}

/// Waits until the newest configuration is on disk.
async fn keep_last(stop: oneshot::Sender<()>, copying: JoinHandle<()>) {
    // An error means that it has ended already.
    let _ = stop.send(());
    let copied = tokio::time::timeout(COPY_MAX, copying).await;
    if copied.is_err() {
        warn!("the newest configuration was not kept on disk before the process ended");
    }
}

/// Opens the place on disk for records as soon as the data folder is this process's, and holds the
/// folder.
fn spool(settings: &Settings, folder: Folder, background: &Runtime) -> oneshot::Receiver<Spool> {
    let (opened, spool) = oneshot::channel();
    let dir = settings.data_dir.clone();
    let bytes_max = settings.records.spool_bytes;
    background.spawn(async move {
        let _claim = match folder.claim().await {
            Ok(claim) => claim,
            Err(error) => {
                error!(
                    "{} cannot be locked, records wait in memory only: {error}",
                    dir.display()
                );
                return;
            }
        };
        kept::sweep(&dir);
        let spool = open_spool(&dir, bytes_max).await;
        // An error means that nothing ships any more.
        drop(opened.send(spool));
        std::future::pending::<()>().await;
    });
    spool
}

/// Opens the place again and again until the disk allows it: traffic matters more than what is told
/// of it.
async fn open_spool(dir: &Path, bytes_max: u64) -> Spool {
    let place = dir.join("spool");
    let mut is_told = false;
    loop {
        match Spool::open(&place, bytes_max) {
            Ok(spool) => return spool,
            Err(error) if !is_told => {
                is_told = true;
                let place = place.display();
                error!("{place} cannot be used, records wait in memory until it can: {error}");
            }
            Err(_) => {}
        }
        tokio::time::sleep(SPOOL_RETRY).await;
    }
}

/// Takes records to control planes, over the disk while none is there.
fn ship_records(
    settings: &Settings,
    tls: Arc<rustls::ClientConfig>,
    (batches, spool): (RecordBatches, oneshot::Receiver<Spool>),
    shared: &Shared,
    limits: &Arc<Limits>,
) -> impl Future<Output = ()> + use<> {
    let destination = Destination {
        endpoints: settings.link.endpoints.clone(),
        tls,
    };
    let (origin, metrics) = (shared.origin.clone(), shared.metrics.clone());
    // Without links each node believes its own clock.
    let clocks = settings.peers.listen.is_some().then(|| limits.clone());
    ship::run(batches, spool, destination, origin, metrics, clocks)
}

fn kept(settings: &Settings, keyring: &Keyring) -> anyhow::Result<Kept> {
    let file = settings.data_dir.join("kept.bin");
    Ok(Kept::new(file, &keyring.digest_key, &settings.region)?)
}

/// The first world: that of the store, or else the one that was kept. What is not kept is asked of
/// peers, where `footing` has links. While an old process serves, only the store's counts: what is
/// kept may lack what that one has.
async fn begin(
    settings: &Settings,
    store: &Arc<dyn Store>,
    (kept, follower): (&Kept, &mut Follower),
    (footing, predecessor): (Option<&Footing>, Option<&Predecessor>),
) -> anyhow::Result<()> {
    let mut has_copy = begin_with_copy(settings, kept, follower).await?;
    if let Some(predecessor) = predecessor {
        let caught = reached(settings, store, (&mut *follower, STORE_WAIT_MAX), footing);
        match predecessor.while_it_serves(caught).await {
            Some(begun) => return begun.map_err(stores::cannot_take_over),
            None => warn!("the old process is gone or ends before the store was read"),
        }
        // It has kept more since.
        has_copy = begin_with_copy(settings, kept, follower).await?;
    }
    let wait = match has_copy {
        true => configuration::STORE_GRACE,
        false => configuration::START_MAX,
    };
    match reached(settings, store, (follower, wait), footing).await {
        Ok(()) => Ok(()),
        Err(error) if has_copy => {
            follower.health().store_reached(false);
            warn!("the store cannot be reached, serving the configuration kept on disk: {error}");
            Ok(())
        }
        Err(error) => Err(stores::cannot_begin(error)),
    }
}

/// Takes the world that was kept on disk, if there is one that may be used.
async fn begin_with_copy(
    settings: &Settings,
    kept: &Kept,
    follower: &mut Follower,
) -> anyhow::Result<bool> {
    let age_max = Duration::from_secs(settings.store.kept_max_s);
    let copy = kept.read(age_max).unwrap_or_else(|error| {
        warn!("the configuration kept on disk is not used: {error}");
        None
    });
    let Some((copy, age)) = copy else {
        return Ok(false);
    };
    let begun = follower.begin_with(Arc::new(copy), age).await;
    begun.context("reading the configuration kept on disk")?;
    Ok(true)
}

/// Waits so long for the store, and takes its world.
async fn reached(
    settings: &Settings,
    store: &Arc<dyn Store>,
    (follower, wait): (&mut Follower, Duration),
    footing: Option<&Footing>,
) -> Result<(), StoreError> {
    let until = Instant::now() + wait;
    stores::reach(store, wait).await?;
    caught_up(settings, &**store, follower.catch_up(until), footing).await
}

/// Catches up, with whoever else is there.
async fn caught_up(
    settings: &Settings,
    store: &dyn Store,
    catching: impl Future<Output = Result<(), StoreError>>,
    footing: Option<&Footing>,
) -> Result<(), StoreError> {
    let Some(footing) = footing else {
        return catching.await;
    };
    footing.meet(settings, store).await;
    tokio::select! {
        caught = catching => caught,
        never = footing.keep_looking(settings, store) => match never {},
    }
}
