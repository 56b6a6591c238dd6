//! Where a call enters: a write goes on to home when that is another region, and a write made here
//! is answered with the regions that have it.

use std::rc::Rc;
use std::sync::Arc;

use actix_web::http::header::HeaderValue;
use actix_web::{HttpRequest, HttpResponse, web};
use proto::id::RequestId;

use super::replicated::{self, REPLICATED_TO};
use super::{Directory, forward};
use crate::api::answer::{VERSION_HEADER, marked, respond};
use crate::api::body;
use crate::api::error::Refusal;
use crate::route::Route;
use crate::router;
use crate::state::Control;

/// Serves a call.
pub async fn handle(
    control: Arc<Control>,
    route: Rc<Route>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    if route.local {
        return router::handle(control, route, request, payload).await;
    }
    let id = RequestId::new();
    let wanted = router::check_host(&control, &request)
        .and_then(|()| replicated::wanted(request.query_string(), control.directory()));
    let wait = match wanted {
        Ok(wait) => wait,
        Err(refusal) => return respond(Err(refusal), id),
    };
    if let Some(directory) = control.elsewhere() {
        let answer = match pass_on(&control, directory, &route, &request, payload).await {
            Ok(answer) => marked(answer, id),
            Err(refusal) => respond(Err(refusal), id),
        };
        control.counters.answered(answer.status().as_u16());
        return answer;
    }
    let mut answer = router::handle(control.clone(), route, request, payload).await;
    let made = answer.headers().get(VERSION_HEADER);
    let made = made.and_then(forward::version);
    if let (Some(directory), Some(made)) = (control.directory(), made) {
        let store = control.publisher.store();
        let told = replicated::to(store, &directory.regions, made, wait).await;
        if let Ok(told) = HeaderValue::from_str(&told) {
            answer.headers_mut().insert(REPLICATED_TO, told);
        }
    }
    answer
}

/// A write that another region carries out. The caller must be known here too, so that nobody else
/// makes this control plane call another.
async fn pass_on(
    control: &Control,
    directory: &Directory,
    route: &Route,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Refusal> {
    forward::refuse_loop(directory, request.headers())?;
    router::authenticate(control, request)?;
    let body = body::raw(request.headers(), payload, route.takes).await?;
    forward::forward(control, directory, request, body).await
}
