//! Probes, metrics, and the description of this API.

use std::sync::Arc;

use actix_web::http::StatusCode;
use proto::exposition::text::Form;
use serde_json::json;

use super::answer::{Answer, Content};
use super::call::Call;
use super::error::Refusal;
use crate::route::{Gives, Route, Verb};
use crate::state::Control;

/// Paths that are also served at the root.
pub const PROBES: &[&str] = &["/healthz", "/readyz", "/metrics"];

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::open(
            Verb::Get,
            "/healthz",
            ("get_health", "Whether the process runs"),
            health,
        )
        .gives(Gives::One("Health")),
        Route::open(
            Verb::Get,
            "/readyz",
            ("get_readiness", "Whether it serves; 503 while it does not"),
            readiness,
        )
        .gives(Gives::One("Health")),
        Route::operator(
            Verb::Get,
            "/metrics",
            (
                "get_metrics",
                "Metrics as Prometheus text, or OpenMetrics with exemplars",
            ),
            metrics,
        )
        .gives(Gives::Text),
        Route::open(
            Verb::Get,
            "/openapi.json",
            ("get_openapi", "This document (OpenAPI 3.1)"),
            document,
        )
        .gives(Gives::Document),
    ]
}

async fn health(_control: Arc<Control>) -> Result<Answer, Refusal> {
    Ok(Answer::json(json!({ "status": "ok" })))
}

async fn readiness(control: Arc<Control>) -> Result<Answer, Refusal> {
    let readiness = control.readiness();
    let status = match readiness.serves() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let document = json!({ "status": readiness.as_str() });
    Ok(Answer::with(status, Content::Json(document)))
}

async fn metrics(call: Call) -> Result<Answer, Refusal> {
    let form = Form::accepted(call.request.accept.as_deref());
    let text = call.control.metrics().text(form);
    let answer = Answer::with(StatusCode::OK, Content::Text(form.media_type(), text));
    Ok(answer)
}

async fn document(_control: Arc<Control>) -> Result<Answer, Refusal> {
    let text = crate::openapi::openapi_json().to_owned();
    Ok(Answer::with(
        StatusCode::OK,
        Content::Text("application/json", text),
    ))
}
