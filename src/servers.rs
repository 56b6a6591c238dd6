//! The listeners of a process: started together, stopped in order.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::dev::{Server, ServerHandle};
use anyhow::Context;
use control::link::LinkDeps;
use control::{Connections, Control};
use node::admin::{self, AdminSource};
use node::config::TlsSettings;
use node::listener::{ListenerHandle, QUIET_LOOKS, Queue, none_left};
use node::worker::Shared;
use proto::exposition::MetricsSource;
use proto::health::Health;
use proto::restarts;
use rustls::ServerConfig;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::certificate_files;
use crate::serve::CannotStart;

/// How long connections to the REST API that are kept may go on once the process drains.
const KEPT_MAX: Duration = Duration::from_secs(1);

fn base_url(tls: &Option<ServerConfig>, address: SocketAddr) -> String {
    let scheme = if tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{address}")
}

/// Running servers.
#[derive(Default)]
pub struct Servers {
    gateway: Option<ListenerHandle>,
    others: Vec<ServerHandle>,
    /// Those to the REST API.
    connections: Connections,
    running: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Servers {
    /// Serves callers; gives its base URL.
    ///
    /// # Errors
    /// A setting of the gateway is out of its range, or the listener or its certificate cannot be
    /// used.
    pub fn gateway(
        &mut self,
        listener: Option<TcpListener>,
        shared: Shared,
    ) -> anyhow::Result<String> {
        let listener = listener.context("the gateway has no listener")?;
        let address = listener.local_addr()?;
        let tls = certificate_files::watched("gateway", &shared.settings.tls)?;
        let url = base_url(&tls, address);
        let (server, handle) = node::gateway::serve(listener, tls.map(Arc::new), shared)
            .map_err(|error| CannotStart(format!("gateway settings: {error}")))?;
        self.gateway = Some(handle);
        self.running.push(actix_rt::spawn(server));
        Ok(url)
    }

    /// Serves the REST API; gives its base URL.
    ///
    /// # Errors
    /// The listener or its certificate cannot be used.
    pub fn control(
        &mut self,
        listener: Option<TcpListener>,
        control: Control,
        tls: &TlsSettings,
    ) -> anyhow::Result<String> {
        let listener = listener.context("the control plane has no listener")?;
        let address = listener.local_addr()?;
        let tls = certificate_files::watched("control", tls)?;
        let url = base_url(&tls, address);
        let (server, connections) = control::serve(listener, tls, Arc::new(control))?;
        self.connections = connections;
        self.run(server);
        Ok(url)
    }

    /// Takes records of nodes, and serves the regions that follow, on the runtime behind the
    /// workers; gives the address.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn link(
        &mut self,
        listener: TcpListener,
        deps: LinkDeps,
        background: &Runtime,
    ) -> anyhow::Result<String> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let listener = {
            let _entered = background.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let health = deps.health.clone();
        let serving = restarts::once("link", health, control::link::serve(listener, deps));
        let running = background.spawn(async {
            serving.await;
            Ok(())
        });
        self.running.push(running);
        Ok(address)
    }

    /// Serves the operator's probes and metrics, where they are wanted.
    ///
    /// # Errors
    /// The listener cannot be used.
    pub fn admin(
        &mut self,
        listener: Option<TcpListener>,
        metrics: MetricsSource,
        health: Health,
    ) -> anyhow::Result<()> {
        if let Some(listener) = listener {
            self.run(admin::serve(listener, AdminSource { metrics, health })?);
        }
        Ok(())
    }

    fn run(&mut self, server: Server) {
        self.others.push(server.handle());
        self.running.push(actix_rt::spawn(server));
    }

    /// Takes nothing new and lets requests in flight end: callers first, so that who runs them can
    /// still see and steer the gateway. What the process tells of its health must be that it
    /// drains: by that the REST API makes each answer the last of its connection.
    pub async fn drain(&self, queue: Queue) {
        let began = Instant::now();
        if let Some(gateway) = &self.gateway {
            gateway.drain(queue).await;
        }
        // A server that stops closes connections on which the next request may be on its way.
        self.kept_end(began, 0).await;
        if queue != Queue::Ends {
            // The other process takes who comes from here on.
            for other in &self.others {
                other.pause().await;
            }
            self.kept_end(Instant::now(), QUIET_LOOKS).await;
        }
        for other in &self.others {
            other.stop(true).await;
        }
    }

    /// Waits until no connection to the REST API has been open at so many looks after the first.
    async fn kept_end(&self, began: Instant, quiet_looks: u32) {
        none_left(|| self.connections.open(), quiet_looks, began + KEPT_MAX).await;
    }

    /// Waits until all have ended.
    ///
    /// # Errors
    /// A server failed.
    pub async fn ended(self) -> anyhow::Result<()> {
        for server in self.running {
            server.await??;
        }
        Ok(())
    }
}
