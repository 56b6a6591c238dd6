//! A control plane of a cluster: REST API, publisher, and the records of nodes. Requests of callers
//! never pass it.

use ::control::metrics::Metrics;
use ::control::{Control, link};
use proto::seal::PublicKeyring;
use tokio::runtime::Runtime;
use zeroize::Zeroizing;

use super::Bound;
use crate::cli::Output;
use crate::configuration::Configuration;
use crate::link_tls;
use crate::ready::Ready;
use crate::serve::CannotStart;
use crate::servers::Servers;
use crate::settings::Settings;
use crate::stores;

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
}

impl ControlPlane {
    /// Starts, tells it, serves until a signal, and stops in order.
    ///
    /// # Errors
    /// [`CannotStart`] for what the operator can mend; others when a part fails.
    pub async fn serve(self, background: &Runtime) -> anyhow::Result<()> {
        let settings = self.settings;
        let Some(gateway_url) = settings.gateway.public_url.clone() else {
            let why = "`gateway.public_url` is missing: under which URL callers reach the nodes";
            return Err(CannotStart(why.into()).into());
        };
        let store = stores::open(&settings)?;
        let mut configuration =
            Configuration::open(&settings, store.clone(), self.keys, self.given, background)
                .await?;
        configuration.caught_up().await?;
        let records = super::records(&settings)?;
        let counters = Metrics::default();
        let taken_at = match self.bound.link {
            Some(listener) => {
                let tls = link_tls::server(&settings.link)?;
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                let _entered = background.enter();
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let taking = link::serve(listener, tls, records.clone(), counters.clone());
                background.spawn(taking);
                Some(address.to_string())
            }
            None => None,
        };
        let health = configuration.health.clone();
        let metrics = super::metrics(&settings, None, Some(counters.clone()), health.clone());
        let world = configuration.worlds.clone();
        let api = super::api(
            &settings,
            &configuration,
            world,
            records.clone(),
            &gateway_url,
            metrics.clone(),
            counters,
        );
        let retention = api.settings.retention;
        let mut servers = Servers::default();
        let address = servers.control(self.bound.control, Control::new(api))?;
        servers.admin(self.bound.admin, metrics, health.clone())?;
        let retaining = background.spawn(::control::records::keep(records, retention));
        let ready = Ready {
            gateway: Some(gateway_url),
            control: Some(format!("http://{address}")),
            link: taken_at,
            token: Some((configuration.token, configuration.token_file)),
            demo: None,
        };
        ready.tell(self.output, false)?;

        super::stopped().await?;
        health.drain();
        servers.drain().await;
        servers.ended().await?;
        retaining.abort();
        drop(store);
        Ok(())
    }
}
