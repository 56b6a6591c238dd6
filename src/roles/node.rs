//! A node of a cluster: the data plane alone. Configuration and tokens come from etcd, records go
//! to a control plane.

use std::sync::Arc;
use std::time::Duration;

use ::node::records::RecordBatches;
use ::node::records::ship::{self, Destination};
use ::node::records::spool::Spool;
use ::node::sync::kept::{self, Kept};
use ::node::worker::Shared;
use anyhow::Context;
use proto::seal::Keyring;
use proto::store::follow::Follower;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, warn};

use super::Bound;
use crate::cli::Output;
use crate::configuration;
use crate::data_plane::DataPlane;
use crate::descriptors;
use crate::link_tls;
use crate::ready::Ready;
use crate::serve::{CannotStart, Mode};
use crate::servers::Servers;
use crate::settings::Settings;
use crate::stores;

/// Longest wait for a store that cannot be reached, where there is a kept copy to start from.
const STORE_GRACE: Duration = Duration::from_secs(2);

/// Longest wait for the last copy of the configuration when the process stops.
const COPY_MAX: Duration = Duration::from_secs(5);

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
}

impl Node {
    /// Starts, tells it, serves until a signal, and stops in order.
    ///
    /// # Errors
    /// [`CannotStart`] for what the operator can mend; others when a part fails.
    pub async fn serve(self, background: &Runtime) -> anyhow::Result<()> {
        let settings = self.settings;
        if settings.link.endpoints.is_empty() {
            let why = "`link.endpoints` is missing: where control planes take records, host:port";
            return Err(CannotStart(why.into()).into());
        }
        let tls = link_tls::client(&settings.link)?;
        let store = stores::open(&settings)?;
        descriptors::raise(settings.gateway.connections_max, Mode::Standalone);
        let kept = kept(&settings, &self.keyring)?;
        let (mut follower, worlds) = Follower::new(store.clone(), settings.region.clone());
        begin(&settings, &kept, &mut follower).await?;
        let health = follower.health();
        background.spawn(follower.run());
        let (stop, stopping) = oneshot::channel();
        let copying = kept::run(kept, store.clone(), worlds.clone(), stopping);
        let copying = background.spawn(copying);
        let own = self.bound.own()?;
        let plane = DataPlane::start(
            &settings,
            self.keyring,
            store.clone(),
            worlds,
            own,
            background,
        )?;
        let metrics = super::metrics(&settings, Some(plane.metrics()), None, health.clone());
        let gateway = self.bound.gateway_address()?;
        let joined = plane.join(gateway, store.clone(), background);
        let shipping = ship_records(&settings, tls, plane.batches, &plane.shared);
        let shipping = background.spawn(shipping);
        let mut servers = Servers::default();
        let address = servers.gateway(self.bound.gateway, plane.shared)?;
        servers.admin(self.bound.admin, metrics, health.clone())?;
        let ready = Ready {
            gateway: Some(format!("http://{address}")),
            control: None,
            link: None,
            token: None,
            demo: None,
        };
        ready.tell(self.output, false)?;

        super::stopped().await?;
        health.drain();
        joined.leave().await;
        servers.drain().await;
        plane.limits.stop();
        servers.ended().await?;
        // An error means that it has ended already.
        let _ = stop.send(());
        let copied = tokio::time::timeout(COPY_MAX, copying).await;
        if copied.is_err() {
            warn!("the newest configuration was not kept on disk before the process ended");
        }
        drop(store);
        super::flushed(shipping, plane.export).await;
        Ok(())
    }
}

/// Takes records to control planes, over the disk while none is there.
fn ship_records(
    settings: &Settings,
    tls: Arc<rustls::ClientConfig>,
    batches: RecordBatches,
    shared: &Shared,
) -> impl Future<Output = ()> + use<> {
    let dir = settings.data_dir.join("spool");
    let spool = Spool::open(&dir, settings.records.spool_bytes);
    // Traffic matters more than what is told of it.
    let spool = spool.inspect_err(|error| {
        let dir = dir.display();
        error!("{dir} cannot be used, records wait in memory only: {error}");
    });
    let destination = Destination {
        endpoints: settings.link.endpoints.clone(),
        tls,
    };
    let (origin, metrics) = (shared.origin.clone(), shared.metrics.clone());
    ship::run(batches, spool.ok(), destination, origin, metrics)
}

fn kept(settings: &Settings, keyring: &Keyring) -> anyhow::Result<Kept> {
    let file = settings.data_dir.join("kept.bin");
    Ok(Kept::new(file, &keyring.digest_key, &settings.region)?)
}

/// The first world: that of the store, or else the one that was kept.
async fn begin(settings: &Settings, kept: &Kept, follower: &mut Follower) -> anyhow::Result<()> {
    let age_max = Duration::from_secs(settings.store.kept_max_s);
    let copy = kept.read(age_max).unwrap_or_else(|error| {
        warn!("the configuration kept on disk is not used: {error}");
        None
    });
    let has_copy = copy.is_some();
    if let Some(copy) = copy {
        let begun = follower.begin_with(Arc::new(copy)).await;
        begun.context("reading the configuration kept on disk")?;
    }
    let wait = if has_copy {
        STORE_GRACE
    } else {
        configuration::START_MAX
    };
    match follower.catch_up(Instant::now() + wait).await {
        Ok(()) => Ok(()),
        Err(error) if has_copy => {
            follower.health().store_reached(false);
            warn!("the store cannot be reached, serving the configuration kept on disk: {error}");
            Ok(())
        }
        Err(error) => {
            Err(error).context("the store cannot be reached, and nothing is kept on disk")
        }
    }
}
