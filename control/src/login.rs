//! Who calls: the token that a request presents; and what becomes of a wrong one.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::http::header;
use jiff::Timestamp;
use proto::audit::Failure;
use proto::tree::SYSTEM_ORG;

use crate::api::call;
use crate::api::error::{Code, Refusal};
use crate::audit::logins::Wrong;
use crate::operator::{Caller, bearer};
use crate::state::Control;
use crate::throttle::{self, Verdict};

/// The token that a request presents.
///
/// # Errors
/// It presents none: 401 with the form of what is asked for.
pub(crate) fn token<'r>(request: &'r HttpRequest, form: &str) -> Result<&'r str, Refusal> {
    let missing = || {
        let detail = format!("send `Authorization: Bearer {form}`");
        Refusal::new(Code::Unauthenticated, detail)
    };
    let value = call::single(request.headers(), &header::AUTHORIZATION, "Authorization")?;
    value.and_then(bearer).ok_or_else(missing)
}

/// The holder of the API token that a request presents.
///
/// # Errors
/// It presents none, or a wrong one: 401; 429 where many wrong ones came from there.
pub(crate) fn authenticate(control: &Control, request: &HttpRequest) -> Result<Caller, Refusal> {
    let token = token(request, "rr_api_…")?;
    if let Some(caller) = control.caller(token, Timestamp::now()) {
        return Ok(caller);
    }
    let source = call::source(request, &control.settings.proxies);
    Err(refused(control, control.expired(token), source))
}

/// What a token that is not in force is answered with, by how many came from its address.
pub(crate) fn wrong_token(control: &Control, source: Option<IpAddr>) -> Refusal {
    refused(control, None, source)
}

fn refused(control: &Control, expired: Option<Caller>, source: Option<IpAddr>) -> Refusal {
    audited(control, expired, source);
    let verdict = match source {
        Some(source) => control.wrong_token(source, Instant::now()),
        None => Verdict::Refuse,
    };
    match verdict {
        Verdict::Refuse => Refusal::new(
            Code::Unauthenticated,
            "this token is unknown, expired or revoked",
        ),
        Verdict::TooMany(wait) => too_many(wait),
    }
}

fn too_many(wait: Duration) -> Refusal {
    let detail = "too many wrong tokens came from this address; wait and mend the client";
    let seconds = wait.as_secs().saturating_add(1);
    Refusal::new(Code::TooManyAttempts, detail).retry_after_s(seconds)
}

/// Refuses a token that only the store can judge, where many wrong ones came from its address.
///
/// # Errors
/// 429.
pub(crate) fn worth_a_look(control: &Control, source: Option<IpAddr>) -> Result<(), Refusal> {
    let wait = source.and_then(|source| control.too_many_wrong(source, Instant::now()));
    wait.map_or(Ok(()), |wait| Err(too_many(wait)))
}

/// Counts a wrong token for the audit: of its organisation where it is known, else of `system`.
fn audited(control: &Control, expired: Option<Caller>, source: Option<IpAddr>) {
    let wrong = Wrong {
        org: expired.as_ref().map_or(SYSTEM_ORG, |caller| caller.org),
        why: match expired {
            Some(_) => Failure::Expired,
            None => Failure::Unknown,
        },
        token: expired.map(|caller| caller.token_id),
        source: source.map(throttle::network),
    };
    control.counters.login_failed(wrong.why);
    if control.logins.count(wrong, &control.counters) {
        let (store, counters) = (control.publisher.shared_store(), control.counters.clone());
        actix_web::rt::spawn(control.logins.clone().writing(store, counters));
    }
}
