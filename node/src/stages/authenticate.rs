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
use proto::seal::{DigestKey, Purpose};

use crate::actor::{Next, Stage, StageKind};
use crate::credentials::stale::facts_are_young;
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
        for (key, _) in &digests.known {
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
    if credential.expires_at.is_some_and(|end| end <= now) {
        return Err(AuthFailure::Expired);
    }
    Ok(Caller {
        index,
        credential: credential.id,
        generation: None,
        places: Vec::new(),
        hint: None,
        jwt: None,
    })
}

/// Digests that every refusal has cost: one of an issued key, and those of the few forms in which
/// one request can present keys that users gave.
const DIGESTS_REFUSED: usize = 8;
/// Longest secret that is digested, in bytes; no stored one is longer.
const SECRET_BYTES_MAX: usize = proto::credential::SECRET_BYTES_MAX * 2 + 1;

/// The digests of one request's keys: each different key costs one, however many credentials it is
/// compared with.
pub struct Digests<'r> {
    key: &'r DigestKey,
    known: Vec<(Cow<'r, [u8]>, [u8; 32])>,
    made: usize,
    accepted: Option<[u8; 32]>,
}

impl<'r> Digests<'r> {
    /// Of no key yet.
    pub fn new(key: &'r DigestKey) -> Self {
        Self {
            key,
            known: Vec::new(),
            made: 0,
            accepted: None,
        }
    }

    /// The digest of a presented key; none where it is longer than any secret.
    fn of(&mut self, secret: Cow<'r, [u8]>) -> Option<[u8; 32]> {
        if secret.len() > SECRET_BYTES_MAX {
            return None;
        }
        if let Some((_, digest)) = self.known.iter().find(|(known, _)| *known == secret) {
            return Some(*digest);
        }
        self.made += 1;
        let digest = self.key.digest(Purpose::ProxyCredential, &secret);
        self.known.push((secret, digest));
        Some(digest)
    }

    /// The key that was accepted.
    fn accepted(&self) -> Option<&[u8]> {
        let mut known = self.known.iter();
        let (key, _) = known.find(|(_, digest)| Some(digest) == self.accepted.as_ref())?;
        Some(key)
    }

    /// Makes as many more as any refusal costs, so that time does not tell a proxy that exists, or
    /// what it expects, from one that does not.
    fn even_out(&mut self) {
        for _ in self.made..DIGESTS_REFUSED {
            let digest = self.key.digest(Purpose::ProxyCredential, presented::ISSUED);
            std::hint::black_box(digest);
        }
        self.made = self.made.max(DIGESTS_REFUSED);
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
            return match find(proxy, &digest, |credential| credential.issued) {
                Some((index, credential)) => {
                    let generation = Some(judge(credential, &digest, now)?);
                    digests.accepted = Some(digest);
                    Ok(Caller {
                        index,
                        credential: credential.id,
                        generation,
                        places,
                        hint,
                        jwt: None,
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
        let digest = digests.of(secret).filter(|digest| credential.knows(digest));
        let Some(digest) = digest else {
            refusal = AuthFailure::WrongKey;
            continue;
        };
        let generation = Some(judge(credential, &digest, now)?);
        digests.accepted = Some(digest);
        let places = vec![place];
        return Ok(Caller {
            index,
            credential: credential.id,
            generation,
            places,
            hint: None,
            jwt,
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
                hint: None,
                jwt: None,
            });
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

    /// How many digests a refusal costs that found these keys.
    fn cost(keys: &[&str]) -> usize {
        let key = DigestKey::generate();
        let mut digests = Digests::new(&key);
        for key in keys {
            digests.of(Cow::Borrowed(key.as_bytes()));
        }
        digests.even_out();
        digests.made
    }

    #[test]
    fn every_refusal_costs_the_same() {
        let long = "x".repeat(SECRET_BYTES_MAX + 1);
        for keys in [
            &[][..],
            &["rr_live_1"],
            &["a", "b", "a"],
            &[&long],
            &["a", "b", "c", "d", "e", "f", "g", "h"],
        ] {
            assert_eq!(cost(keys), DIGESTS_REFUSED, "{keys:?}");
        }
    }

    #[test]
    fn one_key_is_digested_once_and_an_endless_one_never() {
        let key = DigestKey::generate();
        let mut digests = Digests::new(&key);
        let one = digests.of(Cow::Borrowed(b"a"));
        assert_eq!(
            (digests.of(Cow::Owned(b"a".to_vec())), digests.made),
            (one, 1)
        );
        assert_ne!(digests.of(Cow::Borrowed(b"b")), one);
        assert_eq!(
            digests.of(Cow::Owned(vec![b'x'; SECRET_BYTES_MAX + 1])),
            None
        );
        assert_eq!(digests.made, 2);
    }

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
            digests.made
        };
        assert_eq!(made("Bearer rr_live_1"), 1);
        assert_eq!(made("Bearer given"), 1);
        assert_eq!(made("Basic dTpw"), 1);
        assert_eq!(made("Digest x"), 0);
    }
}
