//! The operator's listener of a node: probes and metrics, without a token.
//!
//! For orchestrators and Prometheus, on an address that only they reach: loopback, or a network of
//! the operator's. It tells nothing about organisations and changes nothing.

use std::net::TcpListener;

use actix_server::Server;
use actix_web::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, VARY};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use proto::exposition::MetricsSource;
use proto::exposition::text::Form;
use proto::health::Health;

/// What the listener tells.
#[derive(Clone)]
pub struct AdminSource {
    /// The metrics.
    pub metrics: MetricsSource,
    /// What a readiness probe is told.
    pub health: Health,
}

/// Serves on a bound listener. The caller awaits the server and stops it by its handle.
///
/// # Errors
/// The listener cannot be used.
pub fn serve(listener: TcpListener, source: AdminSource) -> std::io::Result<Server> {
    let app = move || {
        App::new()
            .app_data(web::Data::new(source.clone()))
            .route("/healthz", web::get().to(alive))
            .route("/readyz", web::get().to(ready))
            .route("/metrics", web::get().to(metrics))
    };
    let server = HttpServer::new(app)
        .workers(1)
        .disable_signals()
        .listen(listener)?
        .run();
    Ok(server)
}

async fn alive() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(serde_json::json!({ "status": "ok" }))
}

/// The listener opens when the first configuration is in force, so who reaches it was ready.
async fn ready(source: web::Data<AdminSource>) -> HttpResponse {
    let readiness = source.health.readiness();
    let mut answer = match readiness.serves() {
        true => HttpResponse::Ok(),
        false => HttpResponse::ServiceUnavailable(),
    };
    answer
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(serde_json::json!({ "status": readiness.as_str() }))
}

async fn metrics(source: web::Data<AdminSource>, request: HttpRequest) -> HttpResponse {
    let accept = request.headers().get(ACCEPT);
    let form = Form::accepted(accept.and_then(|value| value.to_str().ok()));
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, form.media_type()))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((VARY, "accept"))
        .body((source.metrics)().text(form))
}
