//! A node of a cluster: the data plane alone. Configuration and tokens come from etcd, records go
//! to a control plane.

use std::sync::Arc;

use ::node::records::ship::{self, Destination};
use anyhow::Context;
use proto::seal::Keyring;
use tokio::runtime::Runtime;
use tracing::{info, warn};

use super::Bound;
use crate::cli::Output;
use crate::configuration;
use crate::data_plane::DataPlane;
use crate::link_tls;
use crate::ready::Ready;
use crate::serve::CannotStart;
use crate::servers::Servers;
use crate::settings::Settings;
use crate::stores;

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
        let mut worlds = configuration::follow(&settings, store.clone(), background);
        info!("waiting for the configuration");
        let followed = worlds.wait_for(|world| world.revision.0 > 0);
        tokio::time::timeout(configuration::START_MAX, followed)
            .await
            .context("the store cannot be reached, or holds no configuration yet")??;
        let own = self.bound.own()?;
        let plane = DataPlane::start(
            &settings,
            self.keyring,
            store.clone(),
            worlds,
            own,
            background,
        )?;
        let metrics = plane.metrics();
        let destination = Destination {
            endpoints: settings.link.endpoints.clone(),
            tls,
        };
        let (origin, counters) = (plane.shared.origin.clone(), plane.shared.metrics.clone());
        let shipping = background.spawn(ship::run(plane.batches, destination, origin, counters));
        let mut servers = Servers::default();
        let address = servers.gateway(self.bound.gateway, plane.shared)?;
        servers.admin(self.bound.admin, metrics)?;
        let ready = Ready {
            gateway: Some(format!("http://{address}")),
            control: None,
            link: None,
            token: None,
            demo: None,
        };
        ready.tell(self.output, false)?;

        super::stopped().await?;
        servers.drain().await;
        plane.limits.stop();
        servers.ended().await?;
        drop(store);
        let flushed = tokio::time::timeout(super::RECORDS_FLUSH_MAX, shipping).await;
        if flushed.is_err() {
            warn!("records were lost: no control plane took them before the process ended");
        }
        Ok(())
    }
}
