//! What was revoked or replaced while a request waited, looked at once more in the poll of its
//! first write: for its body, tokens, a connection, or another attempt.
//!
//! A request keeps its configuration, but secrets are facts: a caller's key that was revoked sends
//! nothing any more, and a target's secret that was replaced goes in its new form, since a rotation
//! must cost no request.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use jiff::Timestamp;
use proto::credential::sending::{self, Standing, Withheld};
use proto::outcome::{Code, EarlyEnd};
use proto::record::{AuthFailure, SpanEventKind};
use tracing::error;

use crate::actor::StageKind;
use crate::credentials::vault::Injection;
use crate::credentials::words;
use crate::events::Noting;
use crate::flow::{Caller, Notes};
use crate::hygiene::fields;
use crate::metrics::Metrics;
use crate::snapshot::{CompiledProxy, TargetCredential};
use crate::spending::Attempts;
use crate::upstream::{Hold, Leave, RequestHead};

/// Looks again at one request.
pub struct Rearming<'e> {
    /// The configuration that it keeps.
    pub proxy: &'e CompiledProxy,
    /// Who calls.
    pub caller: Option<&'e Caller>,
    /// What its target's credential was replaced by, where it was.
    pub successor: &'e mut Option<Arc<TargetCredential>>,
    /// Says why its key is refused, and what else happens.
    pub notes: &'e mut Notes,
    /// When the request began.
    pub started: Instant,
    /// Counts secrets that were not sent.
    pub metrics: &'e Metrics,
}

impl Rearming<'_> {
    /// Looks, and then spends what the attempt costs: what is refused spends nothing.
    ///
    /// # Errors
    /// As [`Self::look`] and [`Attempts::spend`].
    pub fn admit(
        &mut self,
        attempts: &mut Attempts,
        (attempt, head): (u32, &mut RequestHead),
    ) -> Result<Leave, Hold<EarlyEnd>> {
        self.look(attempt, head).map_err(Hold::Refused)?;
        attempts.spend(attempt)
    }

    /// Ends a request whose caller's key is over, and puts the newest secret of its target into
    /// what is about to be sent, for the so-and-so-many-th time.
    ///
    /// # Errors
    /// 401, or 502 where there is no secret any more.
    fn look(&mut self, attempt: u32, head: &mut RequestHead) -> Result<(), EarlyEnd> {
        if let Some(end) = revoked(self.proxy, self.caller, attempt) {
            self.notes.refusal = Some(AuthFailure::Retired);
            return Err(end);
        }
        let Some(pinned) = &self.proxy.target_credential else {
            return Ok(());
        };
        let events = &mut self.notes.events;
        let noting = Noting::new(events, StageKind::Forward, self.started);
        let sent = self.successor.as_ref().unwrap_or(pinned);
        let newest = match successor(pinned) {
            Some(newest) if newest.generation != sent.generation => newest,
            // What was revoked since is known by its end alone.
            _ if !sent.end.is_known() => return Ok(()),
            _ => return sendable((self.metrics, noting), sent, self.proxy),
        };
        sendable((self.metrics, noting), &newest, self.proxy)?;
        let new = injection(&newest)?;
        let empty = Injection::default();
        // What cannot be opened was not sent either.
        let old = sent.secret.injection().unwrap_or(&empty);
        rearm(head, self.proxy.target.base.path.len(), old, new)?;
        *self.successor = Some(newest);
        Ok(())
    }
}

/// What has taken the place of a target's credential that a request has pinned.
pub fn successor(pinned: &TargetCredential) -> Option<Arc<TargetCredential>> {
    // Most were never replaced, and are known to stand.
    pinned.end.is_known().then(|| pinned.newest()).flatten()
}

/// The caller's key was in force when the request came, and may have been revoked since. `attempt`:
/// which sending it would be, from 1 on.
pub fn revoked(proxy: &CompiledProxy, caller: Option<&Caller>, attempt: u32) -> Option<EarlyEnd> {
    let caller = caller?;
    if !proxy.end.is_known() && !is_over(proxy, caller) {
        return None;
    }
    let detail = match (proxy.end.is_known(), attempt) {
        (true, 0 | 1) => "the organisation of this request's proxy was deleted before it was sent",
        (false, 0 | 1) => {
            "the key of this request was revoked before it could be sent; use the new one"
        }
        (_, _) => {
            "the key of this request was revoked before it could be sent once more; an earlier \
             attempt may have been carried out"
        }
    };
    let end = EarlyEnd::new(Code::AccessDenied, detail).with_status(401);
    Some(end.header("www-authenticate", "Bearer realm=\"requestrocket\""))
}

fn is_over(proxy: &CompiledProxy, caller: &Caller) -> bool {
    let credential = proxy.credentials.get(caller.index);
    let mut secrets = credential.iter().flat_map(|credential| &credential.secrets);
    let presented = secrets.find(|secret| Some(&secret.generation) == caller.generation.as_ref());
    presented.is_some_and(|secret| secret.end.is_known() && secret.end.is_over(Timestamp::now()))
}

/// Whether the target's credential may be sent, by the function that explanations use too.
///
/// # Errors
/// 502: it is not for the target's hosts, or there is no secret in force.
pub fn sendable(
    told: (&Metrics, Noting<'_>),
    credential: &TargetCredential,
    proxy: &CompiledProxy,
) -> Result<(), EarlyEnd> {
    let origins = proxy.target.endpoints.iter().map(|at| &at.base.origin);
    let form = (credential.auth_type, credential.hosts.as_slice());
    match sending::judge(form, standing(credential), origins) {
        Ok(()) => Ok(()),
        Err(Withheld::Unbound) => Err(unbound(told, credential, proxy)),
        Err(why) => Err(EarlyEnd::new(Code::CredentialUnavailable, why.to_string())),
    }
}

fn standing(credential: &TargetCredential) -> Standing {
    let is_over = || credential.end.is_over(Timestamp::now());
    match credential.generation {
        _ if credential.end.is_known() && is_over() => Standing::Revoked,
        None => Standing::Missing,
        Some(_) => Standing::InForce,
    }
}

/// The end of a request to a host that its credential is not for, counted, noted and told the
/// operator.
fn unbound(
    (metrics, mut noting): (&Metrics, Noting<'_>),
    credential: &TargetCredential,
    proxy: &CompiledProxy,
) -> EarlyEnd {
    metrics.secret_refused();
    let id = credential.id.to_string();
    noting.add(SpanEventKind::CredentialHostMismatch, Some(id.into()));
    error!(
        event = words::HOST_MISMATCH,
        credential = %credential.id,
        proxy = %proxy.id,
        "credential {} is not bound to a host of proxy {}'s target; nothing was sent",
        credential.id,
        proxy.id
    );
    EarlyEnd::new(Code::CredentialUnavailable, Withheld::Unbound.to_string())
}

/// A secret in the form in which it is sent.
///
/// # Errors
/// 502: there is none that can be sent.
pub fn injection(credential: &TargetCredential) -> Result<&Injection, EarlyEnd> {
    let opened = credential.secret.injection();
    opened.map_err(|error| EarlyEnd::new(Code::CredentialUnavailable, error.to_string()))
}

/// Puts a credential into fields in which nothing of it stands yet.
pub fn add_fields(headers: &mut HeaderMap, injection: &Injection) {
    for (name, _) in &injection.headers {
        fields::remove_equivalent(headers, name);
    }
    for (name, value) in &injection.headers {
        headers.append(name.clone(), value.clone());
    }
}

/// Puts a credential's part into a path, between the base path and the caller's: both are whole
/// segments.
pub fn add_path(path: &mut Vec<u8>, base: usize, injection: &Injection) {
    if let Some(part) = &injection.path {
        path.splice(base..base, part.bytes());
    }
}

/// Appends the caller's query without what will be injected, then what is injected.
pub fn add_query(path: &mut Vec<u8>, query: Option<&[u8]>, injection: &Injection) {
    let mut kept = query.map(std::borrow::Cow::Borrowed);
    for (name, _) in &injection.queries {
        let removed = kept.as_deref().and_then(|query| {
            proto::query::remove_equivalent(query, name.as_bytes()).map(|rest| rest.into_owned())
        });
        if let Some(rest) = removed {
            kept = (!rest.is_empty()).then_some(std::borrow::Cow::Owned(rest));
        }
    }
    let mut separator = b'?';
    let injected = injection.queries.iter().map(|(_, pair)| pair.as_bytes());
    for part in kept.as_deref().into_iter().chain(injected) {
        path.push(separator);
        path.extend_from_slice(part);
        separator = b'&';
    }
}

/// Takes one credential out of a head that was armed with it and puts another in.
fn rearm(
    head: &mut RequestHead,
    base: usize,
    old: &Injection,
    new: &Injection,
) -> Result<(), EarlyEnd> {
    for (name, _) in &old.headers {
        head.headers.remove(name);
    }
    add_fields(&mut head.headers, new);
    let is_in_url = |one: &Injection| one.path.is_some() || !one.queries.is_empty();
    if !is_in_url(old) && !is_in_url(new) || head.method == Method::CONNECT {
        return Ok(());
    }
    let target = disarmed(head.target.as_str(), base, old);
    let (mut path, query) = target.ok_or_else(|| {
        let detail = "the request was not armed with the secret that is to be replaced";
        EarlyEnd::new(Code::InternalError, detail)
    })?;
    add_path(&mut path, base, new);
    add_query(&mut path, query.as_deref(), new);
    head.target = PathAndQuery::from_maybe_shared(Bytes::from(path)).map_err(|_| {
        let detail = "the path and query cannot be sent with the credential's new secret";
        EarlyEnd::new(Code::CredentialUnavailable, detail)
    })?;
    Ok(())
}

/// Path and query without what a credential has put there.
fn disarmed(target: &str, base: usize, old: &Injection) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let (path, mut query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    for (_, pair) in old.queries.iter().rev() {
        let rest = query?.strip_suffix(pair.as_str())?;
        query = match rest {
            "" => None,
            rest => Some(rest.strip_suffix('&')?),
        };
    }
    let mut path = path.as_bytes().to_vec();
    if let Some(part) = &old.path {
        let end = base.checked_add(part.len())?;
        (path.get(base..end)? == part.as_bytes()).then_some(())?;
        path.drain(base..end);
    }
    Some((path, query.map(|query| query.as_bytes().to_vec())))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;
    use crate::upstream::Terms;

    fn injection_of(header: Option<&str>, queries: &[&str], path: Option<&str>) -> Injection {
        let header = header.map(|value| ("x-api-key", value)).into_iter();
        Injection {
            headers: header
                .map(|(name, value)| {
                    let value = HeaderValue::from_str(value).unwrap();
                    (http::HeaderName::from_static(name), value)
                })
                .collect(),
            queries: queries
                .iter()
                .map(|pair| {
                    let name = pair.split('=').next().unwrap();
                    (name.into(), Zeroizing::new((*pair).to_owned()))
                })
                .collect(),
            path: path.map(|path| Zeroizing::new(path.to_owned())),
            ..Injection::default()
        }
    }

    fn armed(base: &str, rest: &str, query: Option<&str>, injection: &Injection) -> RequestHead {
        let mut path = format!("{base}{rest}").into_bytes();
        add_path(&mut path, base.len(), injection);
        add_query(&mut path, query.map(str::as_bytes), injection);
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static("*/*"));
        add_fields(&mut headers, injection);
        RequestHead {
            method: Method::GET,
            target: PathAndQuery::from_maybe_shared(Bytes::from(path)).unwrap(),
            headers,
            terms: Terms::now(),
        }
    }

    #[test]
    fn a_query_is_kept_byte_for_byte_but_for_what_is_injected() {
        let check = |query: Option<&str>, names: &[&str], expected: &str| {
            let pairs: Vec<String> = names.iter().map(|name| format!("{name}=real")).collect();
            let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
            let mut path = b"/x".to_vec();
            let injection = injection_of(None, &pairs, None);
            add_query(&mut path, query.map(str::as_bytes), &injection);
            assert_eq!(String::from_utf8(path).unwrap(), expected);
        };
        check(None, &[], "/x");
        check(Some("a=%20&&b=+"), &[], "/x?a=%20&&b=+");
        check(Some(""), &[], "/x?");
        check(None, &["key"], "/x?key=real");
        check(Some("a=1"), &["key"], "/x?a=1&key=real");
        check(Some("k%65y=evil&a=1&key=evil"), &["key"], "/x?a=1&key=real");
        check(Some("key=evil"), &["key"], "/x?key=real");
    }

    #[test]
    fn a_head_that_was_not_armed_with_a_secret_is_not_sent_with_another_one() {
        let (old, new) = (
            injection_of(None, &["key=old"], None),
            injection_of(None, &["key=new"], None),
        );
        let mut head = armed("/v1", "/x", Some("key=other"), &Injection::default());
        assert!(rearm(&mut head, 3, &old, &new).is_err());
    }

    proptest! {
        /// However a request was armed, with another secret it is what it would have been with
        /// that one from the start.
        #[test]
        fn a_rearmed_head_is_the_one_that_the_new_secret_makes(
            base in "(/[a-z]{1,3}){0,2}",
            rest in "(/[a-z%0-9]{1,4}){1,3}",
            query in proptest::option::of("[a-z&=]{0,12}"),
            old in ("[a-z]{1,5}", "[a-z0-9]{1,5}", "/[a-z0-9]{1,6}"),
            new in ("[a-z]{1,5}", "[a-z0-9]{1,5}", "/[a-z0-9]{1,6}"),
            in_header: bool,
            queries in 0_usize..3,
            in_path: bool,
        ) {
            let of = |(header, query, path): &(String, String, String)| {
                let pairs = [format!("key={query}"), format!("sig={query}{header}")];
                let pairs: Vec<&str> = pairs.iter().take(queries).map(String::as_str).collect();
                let header = in_header.then_some(header.as_str());
                injection_of(header, &pairs, in_path.then_some(path.as_str()))
            };
            let (old, new) = (of(&old), of(&new));
            let query = query.as_deref();
            let mut head = armed(&base, &rest, query, &old);
            rearm(&mut head, base.len(), &old, &new).unwrap();
            let expected = armed(&base, &rest, query, &new);
            prop_assert_eq!(head.target, expected.target);
            prop_assert_eq!(head.headers, expected.headers);
        }
    }
}
