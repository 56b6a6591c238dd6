//! The listeners of a process: started together, stopped in order.

use std::net::TcpListener;
use std::sync::Arc;

use actix_web::dev::ServerHandle;
use control::Control;
use node::admin::{self, AdminSource};
use node::listener::ListenerHandle;
use node::worker::Shared;
use tokio::task::JoinHandle;

use crate::serve::CannotStart;

/// What is listened on, bound.
pub struct Listeners {
    /// For callers.
    pub gateway: TcpListener,
    /// For the REST API.
    pub control: TcpListener,
    /// For the operator's probes and metrics, if wanted.
    pub admin: Option<TcpListener>,
}

/// Running servers.
pub struct Servers {
    gateway: ListenerHandle,
    others: Vec<ServerHandle>,
    running: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Servers {
    /// Starts to serve.
    ///
    /// # Errors
    /// A setting of the gateway is out of its range, or a listener cannot be used.
    pub fn start(
        listeners: Listeners,
        shared: Shared,
        control: Control,
        metrics: Arc<dyn Fn() -> String + Send + Sync>,
    ) -> anyhow::Result<Self> {
        let (server, gateway) = node::gateway::serve(listeners.gateway, shared)
            .map_err(|error| CannotStart(format!("gateway settings: {error}")))?;
        let control = control::serve(listeners.control, Arc::new(control))?;
        let mut others = vec![control.handle()];
        let mut running = vec![actix_rt::spawn(server), actix_rt::spawn(control)];
        if let Some(listener) = listeners.admin {
            let admin = admin::serve(listener, AdminSource { metrics })?;
            others.push(admin.handle());
            running.push(actix_rt::spawn(admin));
        }
        Ok(Self {
            gateway,
            others,
            running,
        })
    }

    /// Takes nothing new and lets requests in flight end: callers first, so that who runs them can
    /// still see and steer the gateway.
    pub async fn drain(&self) {
        self.gateway.drain().await;
        for other in &self.others {
            other.stop(true).await;
        }
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
