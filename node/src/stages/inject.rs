//! Stage 6: the caller's authentication goes, the target's credential comes.
//!
//! The only maker of [`Armed`], and so the only way to `forward`. A secret leaves only for the
//! hosts that it is bound to: the destination that will be dialled is compared, whatever the
//! configuration says.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};
use proto::health::Health;
use proto::outcome::{Code, EarlyEnd};
use proto::record::AuthFailure;

use crate::actor::{Next, Stage, StageKind};
use crate::credentials::stale::facts_are_young;
use crate::credentials::vault::Injection;
use crate::endpoints;
use crate::flow::{Exchange, Outgoing};
use crate::hygiene::fields;
use crate::metrics::Metrics;
use crate::rearming::{self, sendable};
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
        if let Some(end) = rearming::revoked(&proxy, exchange.caller.as_ref(), 1) {
            exchange.notes.refusal = Some(AuthFailure::Retired);
            return end.into();
        }
        let method = exchange.request.method.clone();
        if proxy.elsewhere.is_some() {
            exchange.armed = Some(as_it_is(method, outgoing));
            return Next::Continue;
        }
        let armed = match &proxy.target_credential {
            None => arm(method, outgoing, &proxy, &Injection::default()),
            Some(pinned) => {
                let successor = rearming::successor(pinned);
                let credential = successor.as_ref().unwrap_or(pinned);
                let armed = match self.injection(exchange, credential, &proxy) {
                    Ok(injection) => arm(method, outgoing, &proxy, injection),
                    Err(end) => return end.into(),
                };
                exchange.successor = successor;
                armed
            }
        };
        exchange.armed = Some(armed);
        Next::Continue
    }
}

impl Inject {
    fn injection<'c>(
        &self,
        exchange: &mut Exchange,
        credential: &'c TargetCredential,
        proxy: &CompiledProxy,
    ) -> Result<&'c Injection, EarlyEnd> {
        let told = (&self.metrics, exchange.noting(Self::KIND));
        sendable(told, credential, proxy)?;
        facts_are_young(&self.health, credential.max_fact_age, "target's")?;
        rearming::injection(credential)
    }
}

/// A request for the gateway of another region, which judges the caller itself.
fn as_it_is(method: Method, outgoing: Outgoing) -> Armed {
    let Outgoing {
        mut path,
        query,
        headers,
    } = outgoing;
    rearming::add_query(&mut path, query.as_deref(), &Injection::default());
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
    rearming::add_fields(&mut headers, injection);
    rearming::add_path(&mut path, proxy.target.base.path.len(), injection);
    rearming::add_query(&mut path, query.as_deref(), injection);
    Armed {
        method,
        path_and_query: Bytes::from(path),
        headers,
    }
}
