//! The routing table, and the way that every call takes: host, token, organisation, role, body,
//! handler, answer.
//!
//! One table drives what is served, the OpenAPI document, and the test that tries every route with
//! every role.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use proto::forwarded::TrustedProxies;
use proto::id::{OrgId, RequestId};
use proto::tree::SYSTEM_ORG;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::api::answer::{Answer, respond};
use crate::api::call::{self, Call, OrgCall, Presented, Query, Request};
use crate::api::error::{self, Code, Refusal};
use crate::api::idempotency::Keyed;
pub use crate::api::routes;
use crate::api::{self, body, idempotency};
use crate::login::{authenticate, token};
use crate::operator::Caller;
use crate::publish::Idempotency;
use crate::regions;
use crate::route::{Access, Answering, Gives, Need, Route, Served, Takes, Verb};
use crate::state::Control;

/// Where the API begins.
pub const BASE: &str = "/api/v1";

/// Adds the API to an actix application.
pub fn configure(control: Arc<Control>) -> impl FnOnce(&mut web::ServiceConfig) {
    move |config| {
        let mut by_path: BTreeMap<&'static str, Vec<Rc<Route>>> = BTreeMap::new();
        for route in routes() {
            by_path.entry(route.path).or_default().push(Rc::new(route));
        }
        for (path, routes) in by_path {
            config.service(resource(format!("{BASE}{path}"), &routes, &control));
            if api::health::PROBES.contains(&path) {
                // Probes of orchestrators look at the root.
                config.service(resource(path.to_owned(), &routes, &control));
            }
        }
        config.default_service(web::to(move |request: HttpRequest| {
            let control = control.clone();
            async move {
                let id = RequestId::new();
                respond(
                    check_host(&control, &request).and(Err(Refusal::not_found())),
                    id,
                )
            }
        }));
    }
}

fn resource(path: String, routes: &[Rc<Route>], control: &Arc<Control>) -> actix_web::Resource {
    let mut resource = web::resource(path);
    for route in routes {
        let guard = match route.verb {
            Verb::Get => web::get(),
            Verb::Post => web::post(),
            Verb::Put => web::put(),
            Verb::Patch => web::patch(),
            Verb::Delete => web::delete(),
        };
        let (route, control) = (route.clone(), control.clone());
        resource = resource.route(
            guard.to(move |request: HttpRequest, payload: web::Payload| {
                regions::entry::handle(control.clone(), route.clone(), request, payload)
            }),
        );
    }
    let allow = routes
        .iter()
        .map(|route| route.verb.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    let control = control.clone();
    resource.default_service(web::to(move |request: HttpRequest| {
        let (allow, control) = (allow.clone(), control.clone());
        async move { method_not_allowed(&control, &request, &allow) }
    }))
}

fn method_not_allowed(control: &Control, request: &HttpRequest, allow: &str) -> HttpResponse {
    let detail = format!("allowed here are {allow}");
    let refusal = Refusal::new(Code::MethodNotAllowed, detail);
    let mut response = respond(
        check_host(control, request).and(Err(refusal)),
        RequestId::new(),
    );
    if let Ok(value) = header::HeaderValue::from_str(allow) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

/// Carries a call out in this region.
pub(crate) async fn handle(
    control: Arc<Control>,
    route: Rc<Route>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    let id = RequestId::new();
    let span = route.span(id);
    let serving = serve(&control, &route, &request, payload);
    let result = tracing::Instrument::instrument(serving, span.clone()).await;
    if let Err(refusal) = &result
        && refusal.code.status().is_server_error()
    {
        let (operation, detail) = (route.operation, refusal.detail.as_str());
        tracing::error!(
            request.id = %id, operation, code = refusal.code.as_str(),
            "{operation} failed: {detail}"
        );
    }
    let response = respond(result, id);
    control.counters.answered(response.status().as_u16());
    span.record("http.response.status_code", response.status().as_u16());
    response
}

async fn serve(
    control: &Arc<Control>,
    route: &Route,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<Answer, Refusal> {
    check_host(control, request)?;
    let handler = match &route.access {
        Access::Open(run) => return run(control.clone()).await,
        Access::Invited(run) => {
            let presented = presented(control, route, request, payload).await?;
            return run(presented).await;
        }
        Access::Token(run) | Access::Operator(run) => Handler::Call(run.clone()),
        Access::Org(need, run) => Handler::Org(*need, run.clone()),
    };
    let caller = admitted(control, route, request)?;
    control.wait_for_version(&caller, request.headers()).await?;
    // The version that is now here may have changed what the token may do.
    let mut ready = handler.judged(control, route, request).await?;
    let payload = (payload, control.settings.body_waits);
    let document = body::read(request.headers(), payload, route.takes).await?;
    if route.takes != Takes::Nothing {
        // Whoever sends the body decides how long that takes. A token that was revoked meanwhile,
        // or has ended, or lost its role, does nothing more.
        ready = handler.judged(control, route, request).await?;
    }
    if !route.verb.writes() {
        return ready.run(document, None).await;
    }
    // Of what changes nothing no answer is kept, and none is needed.
    let key = match route.changes && !ready.is_dry_run() {
        true => idempotency::key(request, ready.caller(), ready.org())?,
        false => None,
    };
    let keyed = key.map(|key| Keyed {
        key,
        digest: idempotency::digest(control, (route.verb, request), &document),
        deletes_in: (route.verb == Verb::Delete).then(|| ready.org()),
    });
    // A task of its own: the caller's hang-up must not leave a write half observed, nor its
    // idempotency key taken for a day.
    let control = control.clone();
    let task = actix_web::rt::spawn(async move {
        match keyed {
            None => ready.run(document, None).await,
            Some(keyed) => {
                idempotency::once(&control, keyed, |kept| ready.run(document, Some(kept))).await
            }
        }
    });
    task.await
        .map_err(|error| error::broke_off("the write", &error))?
}

/// A browser that was led here under a foreign name must get nothing (DNS rebinding).
pub(crate) fn check_host(control: &Control, request: &HttpRequest) -> Result<(), Refusal> {
    let mut hosts = request
        .headers()
        .get_all(header::HOST)
        .filter_map(|host| host.to_str().ok());
    let host = hosts.next().unwrap_or_default();
    let authority = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let allowed = hosts.next().is_none()
        && control.settings.allows_host(host)
        && authority.is_none_or(|authority| control.settings.allows_host(authority));
    if allowed {
        return Ok(());
    }
    Err(Refusal::new(
        Code::HostNotAllowed,
        "this control answers only the hosts in its setting `control.allowed_hosts`",
    ))
}

async fn presented(
    control: &Arc<Control>,
    route: &Route,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<Presented, Refusal> {
    let token = Zeroizing::new(token(request, "rr_join_…")?.to_owned());
    let source = call::source(request, &control.settings.proxies);
    // Nobody without an invitation has a body kept here.
    api::invitations::usable(control, &token, source).await?;
    let waits = control.settings.body_waits;
    Ok(Presented {
        control: control.clone(),
        token,
        source,
        body: body::read(request.headers(), (payload, waits), route.takes).await?,
    })
}

/// Who calls, if a token of that kind may call this at all.
fn admitted(control: &Control, route: &Route, request: &HttpRequest) -> Result<Caller, Refusal> {
    let caller = authenticate(control, request)?;
    if caller.is_local() && !route.by_local_operator {
        let detail = "the operator's token of a region is for `regions` and `recovery` only; use \
                      an API token";
        return Err(Refusal::forbidden(detail));
    }
    Ok(caller)
}

pub(crate) fn not_an_operator() -> Refusal {
    let detail = "this is for operators: a token of role admin or owner in organisation `system`";
    Refusal::forbidden(detail)
}

/// What a row runs, before who calls is proved.
enum Handler {
    Call(Rc<dyn Fn(Call) -> Answering>),
    Org(Need, Rc<dyn Fn(OrgCall) -> Answering>),
}

/// A call that may run, but for its body.
enum Ready {
    Call(Box<Call>, Rc<dyn Fn(Call) -> Answering>),
    Org(Box<OrgCall>, Rc<dyn Fn(OrgCall) -> Answering>),
}

impl Handler {
    /// Judges who calls by what is known now.
    async fn judged(
        &self,
        control: &Arc<Control>,
        route: &Route,
        request: &HttpRequest,
    ) -> Result<Ready, Refusal> {
        let caller = admitted(control, route, request)?;
        if matches!(route.access, Access::Operator(_)) && !caller.is_operator() {
            return Err(not_an_operator());
        }
        if route.changes {
            regions::staleness::refuse(control, &caller).await?;
        }
        self.admit(control, route, request, caller)
    }

    fn admit(
        &self,
        control: &Arc<Control>,
        route: &Route,
        request: &HttpRequest,
        caller: Caller,
    ) -> Result<Ready, Refusal> {
        let parts = read_request(route, request, &control.settings.proxies)?;
        let control = control.clone();
        match self {
            Self::Call(run) => {
                let call = Call {
                    control,
                    caller,
                    request: parts,
                };
                Ok(Ready::Call(Box::new(call), run.clone()))
            }
            Self::Org(need, run) => {
                let call = org_call(control, route, *need, (caller, parts))?;
                Ok(Ready::Org(Box::new(call), run.clone()))
            }
        }
    }
}

pub(crate) fn org_call(
    control: Arc<Control>,
    route: &Route,
    need: Need,
    (caller, request): (Caller, Request),
) -> Result<OrgCall, Refusal> {
    // An organisation that the caller is not in answers like one that is not there.
    let org = control
        .find_org(request.part("org"))
        .ok_or_else(Refusal::not_found)?;
    let role = caller.role_in(org.id).ok_or_else(Refusal::not_found)?;
    call::require(role, need.least(), route.operation)?;
    Ok(OrgCall {
        control,
        caller,
        role,
        org,
        request,
    })
}

impl Ready {
    fn caller(&self) -> &Caller {
        match self {
            Self::Call(call, _) => &call.caller,
            Self::Org(call, _) => &call.caller,
        }
    }

    /// Whether it asks for nothing but what a change would do.
    fn is_dry_run(&self) -> bool {
        let request = match self {
            Self::Call(call, _) => &call.request,
            Self::Org(call, _) => &call.request,
        };
        request.query.get("dry_run") == Some("true")
    }

    /// The organisation whose configuration it is about.
    fn org(&self) -> OrgId {
        match self {
            Self::Call(..) => SYSTEM_ORG,
            Self::Org(call, _) => call.org_id(),
        }
    }

    fn run(self, document: Value, idempotency: Option<Idempotency>) -> Answering {
        match self {
            Self::Call(mut call, run) => {
                (call.request.body, call.request.idempotency) = (document, idempotency);
                run(*call)
            }
            Self::Org(mut call, run) => {
                (call.request.body, call.request.idempotency) = (document, idempotency);
                run(*call)
            }
        }
    }
}

pub(crate) fn read_request(
    route: &Route,
    request: &HttpRequest,
    proxies: &TrustedProxies,
) -> Result<Request, Refusal> {
    let mut known: Vec<&str> = route.parameters.iter().map(|(name, _)| *name).collect();
    if matches!(route.gives, Gives::List(_)) {
        known.extend(["limit", "cursor"]);
    }
    known.extend((route.served == Served::AtHome).then_some(regions::replicated::DURABILITY));
    let path = route
        .path_parameters()
        .map(|name| (name, request.match_info().query(name).to_owned()))
        .collect();
    let text = |name: &str| {
        let value = request.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let (if_match, if_none_match) = call::conditions(request.headers())?;
    Ok(Request {
        path,
        query: Query::parse(request.query_string(), &known)?,
        if_match,
        if_none_match,
        accept: text(header::ACCEPT.as_str()),
        last_event: text("last-event-id"),
        idempotency: None,
        source: call::source(request, proxies),
        asking: call::Asking::of(request.headers()),
        body: Value::Null,
    })
}
