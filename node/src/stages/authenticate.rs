//! Stage 2: presented credential to identity; then inactive proxies end.
//!
//! Every 401 is the same bytes but the request's id, whatever the reason and whether or not the
//! proxy exists. The reason goes into the record, and into `detail` only in development.

use std::sync::Arc;

use jiff::Timestamp;
use proto::credential::AuthType;
use proto::outcome::{Code, EarlyEnd};
use proto::record::AuthFailure;
use proto::seal::{DigestKey, Purpose};
use tracing::Span;

use crate::actor::{Next, Stage, StageKind};
use crate::flow::{Caller, Exchange};
use crate::metering;
use crate::presented::{self, Issued, Place};
use crate::request::Request;
use crate::snapshot::{CompiledProxy, ProxyCredential};

/// What every 401 says.
const UNAUTHORIZED: &str = "no valid credential for this proxy was presented; send its key as \
                            `Authorization: Bearer <key>` and check the proxy's URL";

/// The stage.
pub struct Authenticate {
    /// Put the reason into `detail`.
    pub explain: bool,
    /// Host names that open proxies answer to.
    pub allowed_hosts: Vec<String>,
}

impl Stage for Authenticate {
    const KIND: StageKind = StageKind::Authenticate;

    fn span(parent: &Span) -> Span {
        tracing::info_span!(parent: parent, "authenticate")
    }

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let identified = match &exchange.proxy {
            None => {
                // The same work as for a known proxy, so that time does not tell them apart.
                let key = exchange.snapshot.digest_key();
                let _ = identify_unknown(&exchange.request, key);
                Err(AuthFailure::UnknownProxy)
            }
            Some(proxy) => {
                let key = exchange.snapshot.digest_key();
                identify(&exchange.request, proxy, key, exchange.started_at)
                    .and_then(|caller| self.open_proxy_allows(exchange, proxy, caller))
            }
        };
        let caller = match identified {
            Ok(caller) => caller,
            Err(refusal) => {
                exchange.notes.refusal = Some(refusal);
                return self.unauthorized(refusal).into();
            }
        };
        take_key_out(&mut exchange.request, &caller.places);
        exchange.caller = Some(caller);
        match &exchange.proxy {
            Some(proxy) if proxy.active => Next::Continue,
            _ => {
                let detail = "this proxy is switched off; set `active` to use it again";
                EarlyEnd::new(Code::ProxyInactive, detail).into()
            }
        }
    }
}

impl Authenticate {
    fn unauthorized(&self, refusal: AuthFailure) -> EarlyEnd {
        let end = match self.explain {
            true => EarlyEnd::new(
                Code::AccessDenied,
                format!(
                    "{UNAUTHORIZED} ({}; shown in development only)",
                    refusal.as_str()
                ),
            ),
            false => EarlyEnd::new(Code::AccessDenied, UNAUTHORIZED),
        };
        end.with_status(401)
            .header("www-authenticate", "Bearer realm=\"requestrocket\"")
    }

    /// A proxy that anybody may call answers only its own host names, and no page of another site
    /// (DNS rebinding, simple cross-site requests).
    fn open_proxy_allows(
        &self,
        exchange: &Exchange,
        proxy: &CompiledProxy,
        caller: Caller,
    ) -> Result<Caller, AuthFailure> {
        if proxy.credentials[caller.index].auth_type != AuthType::None {
            return Ok(caller);
        }
        let headers = &exchange.request.headers;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text("host").map(host_name).unwrap_or_default();
        let names = ["localhost", "127.0.0.1", "[::1]"];
        let loopback = names.iter().any(|name| host.eq_ignore_ascii_case(name));
        let allowed = |name: &String| name.eq_ignore_ascii_case(host);
        if !loopback && !self.allowed_hosts.iter().any(allowed) {
            return Err(AuthFailure::ForeignHost);
        }
        let other_site = matches!(text("sec-fetch-site"), Some("cross-site" | "same-site"));
        if headers.contains_key("origin") || other_site {
            return Err(AuthFailure::CrossSite);
        }
        Ok(caller)
    }
}

/// A `Host` without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Finds out who calls.
///
/// # Errors
/// Why nobody was recognised.
pub fn identify(
    request: &Request,
    proxy: &CompiledProxy,
    key: &DigestKey,
    now: Timestamp,
) -> Result<Caller, AuthFailure> {
    match presented::issued(request, &proxy.places) {
        Issued::Several => return Err(AuthFailure::Ambiguous),
        Issued::One(secret, places) => {
            let digest = digest_of(key, &secret);
            return match find(proxy, &digest, |credential| credential.issued) {
                Some((index, credential)) => {
                    let generation = Some(judge(credential, &digest, now)?);
                    Ok(Caller {
                        index,
                        credential: credential.id,
                        generation,
                        places,
                        jwt: None,
                    })
                }
                None => Err(AuthFailure::WrongKey),
            };
        }
        Issued::Nowhere => {}
    }
    identify_given(request, proxy, key, now)
}

/// Looks for keys given by users, each in its one place, and for an open credential last.
fn identify_given(
    request: &Request,
    proxy: &CompiledProxy,
    key: &DigestKey,
    now: Timestamp,
) -> Result<Caller, AuthFailure> {
    let mut refusal = AuthFailure::NoCredential;
    for (index, credential) in proxy.credentials.iter().enumerate() {
        let Some((secret, place)) = credential.presented(request) else {
            continue;
        };
        let digest = digest_of(key, &secret);
        if !credential.knows(&digest) {
            refusal = AuthFailure::WrongKey;
            continue;
        }
        let generation = Some(judge(credential, &digest, now)?);
        let places = vec![place];
        let asked = credential.auth_type == AuthType::Jwt && credential.metering.needs_claims();
        return Ok(Caller {
            index,
            credential: credential.id,
            generation,
            places,
            jwt: asked.then(|| metering::jwt_payload(&secret)).flatten(),
        });
    }
    if refusal == AuthFailure::NoCredential {
        let open = |credential: &&ProxyCredential| credential.auth_type == AuthType::None;
        if let Some(index) = proxy.credentials.iter().position(|c| open(&c)) {
            let credential = proxy.credentials[index].id;
            return Ok(Caller {
                index,
                credential,
                generation: None,
                places: Vec::new(),
                jwt: None,
            });
        }
    }
    Err(refusal)
}

fn digest_of(key: &DigestKey, secret: &[u8]) -> [u8; 32] {
    key.digest(Purpose::ProxyCredential, secret)
}

fn identify_unknown(request: &Request, key: &DigestKey) -> [u8; 32] {
    match presented::issued(request, &presented::Extra::default()) {
        Issued::One(secret, _) => digest_of(key, &secret),
        _ => digest_of(key, b"rr_"),
    }
}

fn find<'p>(
    proxy: &'p CompiledProxy,
    digest: &[u8; 32],
    wanted: impl Fn(&ProxyCredential) -> bool,
) -> Option<(usize, &'p ProxyCredential)> {
    // At most 32 credentials, each compared in constant time: no early exit tells which matched.
    let mut found = None;
    for (index, credential) in proxy.credentials.iter().enumerate() {
        if wanted(credential) && credential.knows(digest) {
            found = Some((index, credential));
        }
    }
    found
}

/// Whether a recognised secret is still in force; gives the generation that set it.
fn judge(
    credential: &ProxyCredential,
    digest: &[u8; 32],
    now: Timestamp,
) -> Result<Arc<str>, AuthFailure> {
    if credential.expires_at.is_some_and(|end| end <= now) {
        return Err(AuthFailure::Expired);
    }
    credential
        .secrets
        .iter()
        .find(|secret| secret.is(digest) && secret.valid_until.is_none_or(|end| now < end))
        .map(|secret| secret.generation.clone())
        .ok_or(AuthFailure::Retired)
}

/// Empties every place that held the caller's key, before anything else reads the request.
fn take_key_out(request: &mut Request, places: &[Place]) {
    for place in places {
        match place {
            Place::Header(name) => {
                request.headers.remove(name);
            }
            Place::Query(name) => {
                if let Some(query) = &request.query
                    && let Some(rest) = proto::query::remove(query, name.as_bytes())
                {
                    let rest = rest.into_owned();
                    request.query = (!rest.is_empty()).then(|| rest.into());
                }
            }
        }
    }
}
