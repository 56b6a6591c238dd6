//! What `dev` has ready-made: an echo target and the proxy `demo` in front of it.

use std::net::{SocketAddr, TcpListener};

use actix_web::dev::Server;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// What is remembered of the demo between two runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Demo {
    /// Where the echo target listened.
    pub echo: SocketAddr,
    /// The key of the demo proxy.
    pub api_key: String,
    /// The demo's target.
    pub target_id: proto::id::TargetId,
    /// The demo's target credential.
    pub target_credential_id: proto::id::CredentialId,
}

/// Largest body that the echo target shows, in bytes.
const ECHO_BYTES_MAX: usize = 1024 * 1024;

/// Starts the echo target, where it was before if that port is free.
///
/// # Errors
/// No port is free.
pub fn echo(before: Option<SocketAddr>) -> std::io::Result<(SocketAddr, Server)> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = before
        .and_then(|address| TcpListener::bind(address).ok())
        .map_or_else(|| TcpListener::bind(loopback), Ok)?;
    let address = listener.local_addr()?;
    let server = HttpServer::new(|| {
        App::new()
            .app_data(web::PayloadConfig::new(ECHO_BYTES_MAX))
            .default_service(web::to(answer))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?
    .run();
    Ok((address, server))
}

/// Answers with what arrived, so that a person sees what the gateway sent.
async fn answer(request: HttpRequest, body: web::Bytes) -> HttpResponse {
    let headers: serde_json::Map<String, serde_json::Value> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned().into())
        })
        .collect();
    HttpResponse::Ok().json(json!({
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map_or("", |target| target.as_str()),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    }))
}
