//! Stage 6: the caller's authentication goes, the target's credential comes.
//!
//! The only maker of [`Armed`], and so the only way to `forward`. A secret leaves only for the
//! hosts that it is bound to: the destination that will be dialled is compared, whatever the
//! configuration says.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};
use jiff::Timestamp;
use proto::health::Health;
use proto::outcome::{Code, EarlyEnd};
use proto::record::AuthFailure;
use tracing::error;

use crate::actor::{Next, Stage, StageKind};
use crate::credentials::stale::facts_are_young;
use crate::credentials::vault::Injection;
use crate::endpoints;
use crate::flow::{Exchange, Outgoing};
use crate::hygiene::fields;
use crate::metrics::Metrics;
use crate::snapshot::{CompiledProxy, TargetCredential};

/// A request that may be sent.
pub struct Armed {
    method: Method,
    path_and_query: Bytes,
    headers: HeaderMap,
}

impl Armed {
    /// Its parts, for the one stage that sends it.
    pub fn into_parts(self) -> (Method, Bytes, HeaderMap) {
        (self.method, self.path_and_query, self.headers)
    }
}

/// The stage.
pub struct Inject {
    /// Counts secrets that were not sent.
    pub metrics: Metrics,
    /// Knows how old what is known of revoked secrets is.
    pub health: Health,
}

impl Stage for Inject {
    const KIND: StageKind = StageKind::Inject;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let (Some(proxy), Some(outgoing)) = (exchange.proxy.clone(), exchange.outgoing.take())
        else {
            return EarlyEnd::new(Code::InternalError, "inject met no prepared request").into();
        };
        if proxy.target.forbidden {
            let detail = "the operator's settings (`policy`, `egress.tls_exceptions`) do not let \
                          this target be called as it is; saving it again tells why";
            return EarlyEnd::new(Code::UpstreamBlocked, detail).into();
        }
        if proxy.target.endpoints.are_none() {
            return endpoints::outside().into();
        }
        if let Some(end) = revoked(exchange, &proxy) {
            return end.into();
        }
        let method = exchange.request.method.clone();
        if proxy.elsewhere.is_some() {
            exchange.armed = Some(as_it_is(method, outgoing));
            return Next::Continue;
        }
        let armed = match &proxy.target_credential {
            None => arm(method, outgoing, &proxy, &Injection::default()),
            Some(credential) => match self.injection(credential, &proxy) {
                Ok(injection) => arm(method, outgoing, &proxy, injection),
                Err(end) => return end.into(),
            },
        };
        exchange.armed = Some(armed);
        Next::Continue
    }
}

impl Inject {
    fn injection<'c>(
        &self,
        credential: &'c TargetCredential,
        proxy: &CompiledProxy,
    ) -> Result<&'c Injection, EarlyEnd> {
        let hosts = &credential.hosts;
        let mut endpoints = proxy.target.endpoints.iter();
        let bound = endpoints.all(|at| hosts.iter().any(|host| host.matches(&at.base.origin)));
        let secretless = credential.auth_type == proto::credential::AuthType::None;
        if !bound && !secretless {
            self.metrics.secret_refused();
            error!(
                event = "credential-host-mismatch",
                credential = %credential.id,
                proxy = %proxy.id,
                "credential {} is not bound to a host of proxy {}'s target; nothing was sent",
                credential.id,
                proxy.id
            );
            let detail = "the target credential is not bound to this target's host; add the host \
                          to its `hosts` and give the secret again";
            return Err(EarlyEnd::new(Code::CredentialUnavailable, detail));
        }
        facts_are_young(&self.health, credential.max_fact_age, "target's")?;
        credential
            .secret
            .injection()
            .map_err(|error| EarlyEnd::new(Code::CredentialUnavailable, error.to_string()))
    }
}

/// The caller's key was in force when the request came, and may have been revoked while its body
/// did.
fn revoked(exchange: &mut Exchange, proxy: &CompiledProxy) -> Option<EarlyEnd> {
    let caller = exchange.caller.as_ref()?;
    let (credential, generation) = (proxy.credentials.get(caller.index)?, &caller.generation);
    let mut secrets = credential.secrets.iter();
    let presented = secrets.find(|secret| Some(&secret.generation) == generation.as_ref())?;
    if !presented.end.is_known() || !presented.end.is_over(Timestamp::now()) {
        return None;
    }
    exchange.notes.refusal = Some(AuthFailure::Retired);
    let detail = "the key of this request was revoked before it could be sent; use the new one";
    let end = EarlyEnd::new(Code::AccessDenied, detail).with_status(401);
    Some(end.header("www-authenticate", "Bearer realm=\"requestrocket\""))
}

/// A request for the gateway of another region, which judges the caller itself.
fn as_it_is(method: Method, outgoing: Outgoing) -> Armed {
    let Outgoing {
        mut path,
        query,
        headers,
    } = outgoing;
    add_query(&mut path, query.as_deref(), &Injection::default());
    Armed {
        method,
        path_and_query: Bytes::from(path),
        headers,
    }
}

/// Removes what belongs to the caller's authentication and adds the credential.
fn arm(method: Method, outgoing: Outgoing, proxy: &CompiledProxy, injection: &Injection) -> Armed {
    let Outgoing {
        mut path,
        query,
        mut headers,
    } = outgoing;
    let authenticates = |name: &&HeaderName| {
        fields::authenticates(name) && !proxy.forward_caller_headers.contains(name)
    };
    while let Some(name) = headers.keys().find(authenticates).cloned() {
        headers.remove(name);
    }
    for (name, _) in &injection.headers {
        fields::remove_equivalent(&mut headers, name);
    }
    for (name, value) in &injection.headers {
        headers.append(name.clone(), value.clone());
    }
    if let Some(part) = &injection.path {
        // Between the base path and the caller's: both are whole segments.
        path.splice(
            proxy.target.base.path.len()..proxy.target.base.path.len(),
            part.bytes(),
        );
    }
    add_query(&mut path, query.as_deref(), injection);
    Armed {
        method,
        path_and_query: Bytes::from(path),
        headers,
    }
}

/// Appends the caller's query without what will be injected, then what is injected.
fn add_query(path: &mut Vec<u8>, query: Option<&[u8]>, injection: &Injection) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    #[test]
    fn a_query_is_kept_byte_for_byte_but_for_what_is_injected() {
        let check = |query: Option<&str>, names: &[&str], expected: &str| {
            let queries = names
                .iter()
                .map(|name| ((*name).into(), Zeroizing::new(format!("{name}=real"))))
                .collect();
            let injection = Injection {
                queries,
                ..Injection::default()
            };
            let mut path = b"/x".to_vec();
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
}
