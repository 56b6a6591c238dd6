//! Stage 2: presented credential to identity; then inactive proxies end.
//!
//! Every 401 is the same bytes but the request's id, whatever the reason and whether or not the
//! proxy exists. The reason goes into the record, and into `detail` only in development.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use proto::credential::AuthType;
use proto::health::Health;
use proto::id::CredentialId;
use proto::outcome::{Code, EarlyEnd};
use proto::record::{AuthFailure, KeyHint};

use crate::actor::{Next, Stage, StageKind};
use crate::credentials::stale::facts_are_young;
use crate::digests::Digests;
use crate::flow::{Caller, Exchange};
use crate::forgotten;
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
    /// Offer `Basic` beside `Bearer` in every 401.
    pub basic_challenge: bool,
    /// Knows how old what is known of revoked secrets is.
    pub health: Health,
}

impl Stage for Authenticate {
    const KIND: StageKind = StageKind::Authenticate;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let mut digests = Digests::new(exchange.snapshot.digest_key());
        let identified = match &exchange.proxy {
            None => {
                identify_unknown(&exchange.request, &mut digests);
                Err(AuthFailure::UnknownProxy)
            }
            Some(proxy) if exchange.assumed.is_some() => {
                assume(proxy, exchange.assumed, exchange.started_at)
            }
            Some(proxy) => identify(&exchange.request, proxy, &mut digests, exchange.started_at)
                .and_then(|caller| self.open_proxy_allows(exchange, proxy, caller)),
        };
        for key in digests.keys() {
            forgotten::forget(&mut exchange.notes, key);
        }
        let caller = match identified {
            Ok(caller) => caller,
            Err(refusal) => {
                digests.even_out();
                exchange.notes.refusal = Some(refusal);
                let proxy = exchange.proxy.as_deref();
                exchange.notes.presented = presented::recorded(&exchange.request, proxy);
                return self.unauthorized(refusal).into();
            }
        };
        let pinned = exchange.proxy.as_ref();
        let pinned = pinned.filter(|proxy| proxy.elsewhere.is_some()).cloned();
        let elsewhere = pinned.as_ref().and_then(|proxy| proxy.elsewhere.as_ref());
        // The gateway of the region that it is passed on to judges it itself.
        if !elsewhere.is_some_and(|elsewhere| elsewhere.passes_on(exchange)) {
            let proxy = exchange.proxy.as_ref();
            let credential = proxy.and_then(|proxy| proxy.credentials.get(caller.index));
            let is_pair = credential.is_some_and(|one| one.auth_type == AuthType::Basic);
            let copied = digests
                .accepted()
                .and_then(|key| presented::copied(&exchange.request, key, is_pair, &caller.places));
            take_key_out(&mut exchange.request, &caller.places);
            if let Some(forms) = copied {
                if presented::in_path(&exchange.request, &forms) {
                    exchange.caller = Some(caller);
                    return key_in_path().into();
                }
                let warning = presented::take_copies_out(&mut exchange.request, &forms);
                exchange.notes.warn(warning);
            }
        }
        let index = caller.index;
        exchange.caller = Some(caller);
        match &exchange.proxy {
            Some(proxy) if proxy.active => {
                let max_age = proxy.credentials[index].max_fact_age;
                let young = facts_are_young(&self.health, max_age, "caller's");
                let end = young.err();
                match end.or_else(|| elsewhere.and_then(|there| there.end(exchange))) {
                    Some(end) => end.into(),
                    None => Next::Continue,
                }
            }
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
        let challenge = match self.basic_challenge {
            true => "Bearer realm=\"requestrocket\", Basic realm=\"requestrocket\"",
            false => "Bearer realm=\"requestrocket\"",
        };
        end.with_status(401).header("www-authenticate", challenge)
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

/// What becomes of a request whose key stands in its path too, which goes to the target.
fn key_in_path() -> EarlyEnd {
    let detail = "the key of this request stands in its path too, which goes to the target; send \
                  it in a header alone";
    EarlyEnd::new(Code::MalformedRequest, detail)
}

/// A `Host` without its port.
fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Takes a test request's word for who calls: control has judged who may send one.
fn assume(
    proxy: &CompiledProxy,
    assumed: Option<CredentialId>,
    now: Timestamp,
) -> Result<Caller, AuthFailure> {
    let mut credentials = proxy.credentials.iter().enumerate();
    let found = credentials.find(|(_, credential)| Some(credential.id) == assumed);
    let (index, credential) = found.ok_or(AuthFailure::NoCredential)?;
    if is_over(credential, now) {
        return Err(AuthFailure::Expired);
    }
    Ok(unproved(index, credential.id))
}

/// A caller of whom nothing is known but the credential.
fn unproved(index: usize, credential: CredentialId) -> Caller {
    Caller {
        index,
        credential,
        generation: None,
        places: Vec::new(),
        hint: None,
        jwt: None,
    }
}

/// Finds out who calls.
///
/// # Errors
/// Why nobody was recognised.
pub fn identify<'r>(
    request: &'r Request,
    proxy: &CompiledProxy,
    digests: &mut Digests<'r>,
    now: Timestamp,
) -> Result<Caller, AuthFailure> {
    match presented::issued(request, &proxy.places) {
        Issued::Several => return Err(AuthFailure::Ambiguous),
        Issued::One(secret, places) => {
            let hint = KeyHint::of_known(&secret);
            let digest = digests.of(secret).ok_or(AuthFailure::WrongKey)?;
            return match find(proxy, &digest) {
                Some((index, credential)) => {
                    let generation = Some(judge(credential, &digest, now)?);
                    digests.accept(digest);
                    Ok(Caller {
                        generation,
                        places,
                        hint,
                        ..unproved(index, credential.id)
                    })
                }
                None => Err(AuthFailure::WrongKey),
            };
        }
        Issued::Nowhere => {}
    }
    identify_given(request, proxy, digests, now)
}

/// Looks for keys given by users, each in its one place, and for an open credential last.
fn identify_given<'r>(
    request: &'r Request,
    proxy: &CompiledProxy,
    digests: &mut Digests<'r>,
    now: Timestamp,
) -> Result<Caller, AuthFailure> {
    let mut refusal = AuthFailure::NoCredential;
    for (index, credential) in proxy.credentials.iter().enumerate() {
        let Some((secret, place)) = credential.presented(request) else {
            continue;
        };
        let asked = credential.auth_type == AuthType::Jwt && credential.metering.needs_claims();
        let jwt = asked.then(|| metering::jwt_payload(&secret)).flatten();
        let digest = digests.of(secret);
        let judged = match digest.filter(|digest| credential.knows(digest, false)) {
            Some(digest) => judge(credential, &digest, now).map(|found| (found, digest)),
            None if !credential.takes_given(now) => continue,
            None => Err(AuthFailure::WrongKey),
        };
        match judged {
            Ok((generation, digest)) => {
                digests.accept(digest);
                return Ok(Caller {
                    generation: Some(generation),
                    places: vec![place],
                    jwt,
                    ..unproved(index, credential.id)
                });
            }
            // The next one may have the same key and be in force. That a key was one once says more
            // than that it is none of the next credential.
            Err(AuthFailure::WrongKey) if refusal != AuthFailure::NoCredential => {}
            Err(found) => refusal = found,
        }
    }
    match refusal {
        AuthFailure::NoCredential => open(proxy, now),
        refusal => Err(refusal),
    }
}

/// The first credential in force that asks for no key.
fn open(proxy: &CompiledProxy, now: Timestamp) -> Result<Caller, AuthFailure> {
    let mut refusal = AuthFailure::NoCredential;
    for (index, credential) in proxy.credentials.iter().enumerate() {
        if credential.auth_type != AuthType::None {
            continue;
        }
        match is_over(credential, now) {
            false => return Ok(unproved(index, credential.id)),
            true => refusal = AuthFailure::Expired,
        }
    }
    Err(refusal)
}

/// Digests what a known proxy would have digested.
fn identify_unknown<'r>(request: &'r Request, digests: &mut Digests<'r>) {
    match presented::issued(request, &presented::Extra::default()) {
        Issued::One(secret, _) => {
            digests.of(secret);
        }
        Issued::Several => {}
        Issued::Nowhere => {
            let pair = presented::basic(request).map(Cow::Owned);
            let token = presented::bearer(request).map(Cow::Borrowed);
            for secret in pair.into_iter().chain(token) {
                digests.of(secret);
            }
        }
    }
}

/// The credential of a key that we issued.
fn find<'p>(proxy: &'p CompiledProxy, digest: &[u8; 32]) -> Option<(usize, &'p ProxyCredential)> {
    // At most 32 credentials, each compared in constant time: no early exit tells which matched.
    let mut found = None;
    for (index, credential) in proxy.credentials.iter().enumerate() {
        if credential.knows(digest, true) {
            found = Some((index, credential));
        }
    }
    found
}

/// Whether a credential has expired.
fn is_over(credential: &ProxyCredential, now: Timestamp) -> bool {
    credential.expires_at.is_some_and(|end| end <= now)
}

/// Whether a recognised secret is still in force; gives the generation that set it.
fn judge(
    credential: &ProxyCredential,
    digest: &[u8; 32],
    now: Timestamp,
) -> Result<Arc<str>, AuthFailure> {
    if is_over(credential, now) {
        return Err(AuthFailure::Expired);
    }
    credential
        .secrets
        .iter()
        .find(|secret| secret.is(digest) && !secret.end.is_over(now))
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method};
    use proto::seal::DigestKey;

    #[test]
    fn an_unknown_proxy_digests_what_was_presented() {
        let made = |value: &str| {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_str(value).unwrap();
            headers.insert(http::header::AUTHORIZATION, value);
            let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
            let request = Request::new(Method::GET, Bytes::from_static(b"/"), headers, peer);
            let key = DigestKey::generate();
            let mut digests = Digests::new(&key);
            identify_unknown(&request, &mut digests);
            digests.made()
        };
        assert_eq!(made("Bearer rr_live_1"), 1);
        assert_eq!(made("Bearer given"), 1);
        assert_eq!(made("Basic dTpw"), 1);
        assert_eq!(made("Digest x"), 0);
    }
}
