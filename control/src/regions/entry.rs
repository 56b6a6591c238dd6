//! Where a call enters: a write goes on to the region that is home to its organisation, and so does
//! a read of configuration that is not here, or not all of it; a write made here is answered with
//! the regions that have it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::HeaderValue;
use actix_web::http::{ConnectionType, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use proto::health::Readiness;
use proto::id::{OrgId, RequestId};
use proto::tree::SYSTEM_ORG;

use super::forward::{FORWARDED_BY, Lacking};
use super::replicated::{self, REPLICATED_TO};
use super::{Directory, forward};
use crate::api::answer::{VERSION_HEADER, marked, respond};
use crate::api::error::{Code, Refusal};
use crate::api::{ahead, body};
use crate::login::authenticate;
use crate::operator::Caller;
use crate::route::{Access, Route, Served};
use crate::router;
use crate::state::{Control, presented_version};

/// How long a write waits while home moves.
const MOVE_MAX: Duration = Duration::from_secs(2);

/// Serves a call.
pub async fn handle(
    control: Arc<Control>,
    route: Rc<Route>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    let mut answer = carry_out(control.clone(), route, request, payload).await;
    // The next call would meet a process that has ended, or the rest of a body that nobody reads.
    let is_cut = answer.status() == StatusCode::REQUEST_TIMEOUT;
    if control.readiness() == Readiness::Draining || is_cut {
        answer.head_mut().set_connection_type(ConnectionType::Close);
    }
    answer
}

async fn carry_out(
    control: Arc<Control>,
    route: Rc<Route>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    match route.served {
        Served::AtHome => {}
        Served::Here => return router::handle(control, route, request, payload).await,
        Served::HereOrAtHome => return read(control, route, request, payload).await,
    }
    let id = RequestId::new();
    let wanted = router::check_host(&control, &request).and_then(|()| {
        let several = control.directory().is_some();
        replicated::wanted(request.query_string(), several)
    });
    let wait = match wanted {
        Ok(wait) => wait,
        Err(refusal) => return respond(Err(refusal), id),
    };
    let Some(directory) = control.directory() else {
        return router::handle(control, route, request, payload).await;
    };
    let org = org_of(&control, &route, &request);
    match elsewhere(directory, org).await {
        Ok(false) => {}
        Ok(true) => {
            let passed = pass_on(&control, directory, (&route, org), &request, payload).await;
            return passed_on(&control, passed, id);
        }
        Err(refusal) => return respond(Err(refusal), id),
    }
    let mut answer = router::handle(control.clone(), route, request, payload).await;
    let made = answer.headers().get(VERSION_HEADER);
    let made = made.and_then(forward::version);
    if let (Some(directory), Some(made)) = (control.directory(), made) {
        let store = control.publisher.store();
        let told = replicated::to(store, directory, made, wait).await;
        if let Ok(told) = HeaderValue::from_str(&told) {
            answer.headers_mut().insert(REPLICATED_TO, told);
        }
    }
    answer
}

/// The answer of a call that was to be carried out at home.
fn passed_on(
    control: &Control,
    passed: Result<HttpResponse, Refusal>,
    id: RequestId,
) -> HttpResponse {
    let answer = match passed {
        Ok(answer) => marked(answer, id),
        Err(refusal) => respond(Err(refusal), id),
    };
    control.counters.answered(answer.status().as_u16());
    answer
}

/// Serves a read of configuration.
async fn read(
    control: Arc<Control>,
    route: Rc<Route>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    match read_at_home(&control, &route, &request).await.transpose() {
        Some(passed) => passed_on(&control, passed, RequestId::new()),
        None => router::handle(control, route, request, payload).await,
    }
}

/// Reads at home what is not here; `None` where it is read, or refused, here. The caller must be
/// known here too, as in [`pass_on`].
async fn read_at_home(
    control: &Control,
    route: &Route,
    request: &HttpRequest,
) -> Result<Option<HttpResponse>, Refusal> {
    let headers = request.headers();
    let Some(directory) = control.directory() else {
        return Ok(None);
    };
    if headers.contains_key(FORWARDED_BY) {
        return Ok(None);
    }
    router::check_host(control, request)?;
    let (presented, org) = (presented_version(headers)?, org_of(control, route, request));
    let parts = parts_elsewhere(control, org);
    if presented.is_none() && parts.is_empty() {
        return Ok(None);
    }
    let caller = authenticate(control, request)?;
    // The operator's token of this region is unknown at home.
    if caller.is_local() {
        return Ok(None);
    }
    // Of an organisation that the caller has no role in nothing is waited for, here or at home.
    let presented = match presented {
        Some((of, _)) if caller.role_in(of).is_none() => return Ok(None),
        presented => presented,
    };
    let (of, lacking) = match presented {
        Some((of, n)) if !control.see_version(of, n).await => (of, Lacking::Version(of, n)),
        _ if !parts.is_empty() => (org, Lacking::Parts(org, parts)),
        _ => return Ok(None),
    };
    let Some(home) = directory.home_peer(of) else {
        return Ok(None);
    };
    let read = forward::read(control, directory, (home, &lacking), request);
    read.await.map(Some)
}

/// The regions of which something is kept elsewhere alone.
fn parts_elsewhere(control: &Control, org: OrgId) -> Vec<String> {
    let world = control.world();
    let state = world.orgs.get(&org);
    state.map_or_else(Vec::new, |state| state.config.withheld_regions())
}

/// Whose configuration a call is about: its path's organisation, or `system`, also where the
/// organisation itself is what an operator changes.
fn org_of(control: &Control, route: &Route, request: &HttpRequest) -> OrgId {
    let named = match route.access {
        Access::Org(..) => request.match_info().get("org"),
        Access::Open(_) | Access::Invited(_) | Access::Token(_) | Access::Operator(_) => None,
    };
    let found = named.and_then(|name| control.find_org(name));
    found.map_or(SYSTEM_ORG, |org| org.id)
}

/// Whether another region is home. A write that comes while home moves waits for that.
async fn elsewhere(directory: &Directory, org: OrgId) -> Result<bool, Refusal> {
    let own = &directory.regions.own;
    let mut home = directory.homes.of(org);
    if let Some(known) = &home
        && known.sealed.is_some()
        && known.region == *own
    {
        home = directory.homes.changed(org, home.as_ref(), MOVE_MAX).await;
    }
    match home {
        Some(home) if home.region == *own => match home.sealed {
            None => Ok(false),
            Some(seal) => {
                let detail = format!(
                    "home is being handed over from region {own} to region {}, which has not \
                     opened it yet; nothing was changed; try again",
                    seal.to
                );
                Err(Refusal::new(Code::HomeMoved, detail).retry_after_s(1))
            }
        },
        Some(_) => Ok(true),
        None => Ok(directory.regions.home != *own),
    }
}

/// A write that another region carries out. The caller must be known here too, so that nobody else
/// makes this control plane call another.
async fn pass_on(
    control: &Arc<Control>,
    directory: &Directory,
    (route, org): (&Route, OrgId),
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Refusal> {
    forward::refuse_loop(directory, org, request.headers())?;
    let caller = authenticate(control, request)?;
    let home = directory.home_peer(org);
    let home = home.ok_or_else(|| Refusal::new(Code::Internal, "home is not among the peers"))?;
    if caller.is_local() {
        let detail = format!(
            "this token holds in region {} only, and this is decided in region {}",
            directory.regions.own, home.name
        );
        return Err(Refusal::forbidden(detail));
    }
    refuse_stranger(control, &caller, route, request)?;
    let payload = (payload, control.settings.body_waits);
    let body = body::raw(request.headers(), payload, route.takes).await?;
    let (body, refusal) = ahead::sealed(control, route, (request, caller), body).await?;
    let answer = forward::write(control, directory, (home, org), request, body).await;
    let answer = answer.map_err(|refusal| {
        let regions = parts_elsewhere(control, org);
        naming_missing(refusal, (&directory.regions.own, &regions))
    });
    match (refusal, answer) {
        (Some(_), Ok(answer)) if answer.status().is_success() => Ok(answer),
        (Some(refusal), _) => Err(refusal),
        (None, answer) => answer,
    }
}

/// The same refusal; where home cannot be reached and this region lacks what these keep, also why
/// it does not become home in its place.
fn naming_missing(mut refusal: Refusal, (own, regions): (&str, &[String])) -> Refusal {
    if refusal.code == Code::HomeUnavailable && !regions.is_empty() {
        let regions = regions.join(", ");
        refusal.detail.push_str(&format!(
            "; what is pinned to {regions} is not in region {own}: `regions promote {own}` makes \
             it home of this organisation once {regions} or the home before can be asked for it; \
             with `--force` at once, and what is pinned there then stays as it is until it comes"
        ));
    }
    refusal
}

/// Refuses, before its body is read, a write by a token that home would answer 404 or 403 whatever
/// has changed there: one of another organisation. Its role is for home to judge.
fn refuse_stranger(
    control: &Control,
    caller: &Caller,
    route: &Route,
    request: &HttpRequest,
) -> Result<(), Refusal> {
    let named = request.match_info().get("org");
    let has_role = match route.access {
        Access::Org(..) => named
            .and_then(|name| control.find_org(name))
            .is_some_and(|org| caller.role_in(org.id).is_some()),
        Access::Operator(_) => caller.of_system,
        Access::Open(_) | Access::Invited(_) | Access::Token(_) => true,
    };
    // An operator may be ahead of what is known here.
    if has_role || caller.is_operator() {
        return Ok(());
    }
    match route.access {
        Access::Operator(_) => Err(router::not_an_operator()),
        _ => Err(Refusal::not_found()),
    }
}

#[cfg(test)]
mod tests {
    use crate::route::{Route, Served};
    use crate::router::routes;

    /// What is carried out in the region that is asked, of some routes, by name.
    fn here(of: fn(&Route) -> bool) -> Vec<&'static str> {
        let all = routes().into_iter();
        let here = all.filter(|route| route.served == Served::Here && of(route));
        let mut operations: Vec<_> = here.map(|route| route.operation).collect();
        operations.sort_unstable();
        operations
    }

    #[test]
    fn what_is_done_in_the_region_that_is_asked_is_known() {
        let here = here(|route| route.verb.writes() && route.changes);
        let expected = [
            "invite_region",
            "join_regions",
            "promote_region",
            "raise_meter",
            "recover_store",
            "revoke_credential",
            "test_proxy",
            "withdraw_invitation",
        ];
        assert_eq!(here, expected);
    }

    #[test]
    fn what_each_region_has_of_its_own_is_read_in_that_region_alone() {
        let own = here(|route| !route.verb.writes());
        let expected = [
            "export_records",
            "follow_records",
            "get_credential_use",
            "get_health",
            "get_invitation",
            "get_metrics",
            "get_openapi",
            "get_readiness",
            "get_record",
            "get_record_trace",
            "get_telemetry",
            "list_invitations",
            "list_meter_usage",
            "list_nodes",
            "list_records",
            "list_regions",
            "list_regressions",
            "list_replication",
            "list_unmatched",
            "list_versions_aside",
            "suggest_proxy_rules",
            "verify_audit",
        ];
        assert_eq!(own, expected);
    }
}
