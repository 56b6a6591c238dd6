//! The control plane: a REST API over versioned configuration, and the records of requests.
//!
//! A call goes through `router` (host, token, organisation, role, body), a handler in `api`, and,
//! for a write, `publish`. Handlers hold no rule of the model: those are in `proto`. Nothing here
//! is on the path of a request through the gateway.

pub mod api;
pub mod archive;
pub mod audit;
pub mod beat;
pub mod config;
mod connections;
pub mod dial_guard;
pub mod janitor;
pub mod link;
pub mod linked;
mod login;
pub mod metrics;
pub mod openapi;
pub mod operator;
mod private_sqlite;
pub mod publish;
pub mod records;
pub mod regions;
pub mod replication;
pub mod route;
pub mod router;
pub mod share;
pub mod state;
pub mod throttle;
pub mod trace_file;
mod unread;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer};
use rustls::ServerConfig;

pub use config::ApiSettings;
pub use connections::Connections;
pub use openapi::openapi_json;
pub use router::configure;
pub use state::{Control, ControlDeps};

/// Threads that serve the API. Calls are few and short; the gateway needs the cores.
const WORKERS: usize = 2;
/// Longest wait for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one worker; more wait to be accepted. So few that what each may hold of a body,
/// 1 MiB without a token, is no more memory than a machine has.
const CONNECTIONS_MAX: usize = 4_096;
/// How long running calls may take when the process stops.
const SHUTDOWN_SECONDS: u64 = 10;

/// Serves the API on a bound listener: HTTP/1.1, over TLS where a configuration of it is given. The
/// caller awaits the server, and stops it through its handle; signals are the caller's. Gives what
/// counts its connections.
///
/// # Errors
/// The listener cannot be used.
pub fn serve(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    control: Arc<Control>,
) -> std::io::Result<(Server, Connections)> {
    let connections = Connections::default();
    let counted = connections.clone();
    let server = HttpServer::new(move || {
        let app = App::new().wrap(from_fn(unread::closes));
        app.configure(configure(control.clone()))
    });
    let server = server
        .workers(WORKERS)
        .on_connect(move |_, of_connection| drop(of_connection.insert(counted.opened())))
        .client_request_timeout(HEAD_TIMEOUT)
        .max_connections(CONNECTIONS_MAX)
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals();
    let server = match tls {
        Some(tls) => server.listen_rustls_0_23(listener, tls)?,
        None => server.listen(listener)?,
    };
    Ok((server.run(), connections))
}
