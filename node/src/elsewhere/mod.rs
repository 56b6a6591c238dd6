//! Proxies that other regions serve: what becomes of a call here, and what a gateway tells another
//! with a request that it passes on.
//!
//! A call ends here, or is passed on (`passing`) to the nearest gateway (`gateways`) of a region
//! that serves it. Rules, filters, meters and credentials are that region's; here the caller is
//! only recognised, so that nobody else learns of the proxy or moves a byte between regions.

pub mod gateways;
pub mod passing;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use proto::outcome::{Code, EarlyEnd};
use proto::proxy::CrossRegion;
use proto::region_link::{FIELD, PassedOn};
use proto::seal::DigestKey;

use self::gateways::Gateway;
use crate::answer::{PROXY_CODE, PROXY_MESSAGE, PROXY_WARNING};
use crate::explained::EXPLAIN;
use crate::flow::Exchange;
use crate::metrics::AddressDurations;
use crate::upstream::Destination;

/// The field by which a gateway tells another of a request.
pub const PASSED_ON: HeaderName = HeaderName::from_static(FIELD);

/// How a proxy that is not served here is reached.
pub struct Elsewhere {
    /// What becomes of calls.
    pub cross_region: CrossRegion,
    /// This region.
    pub own: Arc<str>,
    /// The regions that serve it, in words.
    pub regions: Box<str>,
    /// The gateways of those whose gateway is known.
    pub gateways: Box<[RegionGateway]>,
}

/// A gateway of a region that serves a proxy.
pub struct RegionGateway {
    /// The region.
    pub region: Arc<str>,
    /// The proxy's URL there.
    pub url: Box<str>,
    /// The path of that URL.
    pub path: Box<str>,
    /// Where it is dialled.
    pub destination: Arc<Destination>,
    /// Whether it is there.
    pub gateway: Arc<Gateway>,
    /// How long attempts there take.
    pub durations: AddressDurations,
}

/// What another region's gateway said with its answer.
#[derive(Debug)]
pub struct Said {
    /// Its code.
    pub code: Code,
    /// Its message.
    pub message: Option<HeaderValue>,
    /// Its warning.
    pub warning: Option<HeaderValue>,
    /// What it decided.
    pub explained: Option<HeaderValue>,
}

impl Said {
    /// Tells the caller.
    pub fn tell(self, headers: &mut HeaderMap) {
        let told = [
            (PROXY_MESSAGE, self.message),
            (PROXY_WARNING, self.warning),
            (EXPLAIN, self.explained),
        ];
        for (name, value) in told {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
    }
}

impl Elsewhere {
    /// Whether a call is passed on, with its key.
    pub fn passes_on(&self, exchange: &Exchange) -> bool {
        self.cross_region == CrossRegion::Forward
            && exchange.assumed.is_none()
            && exchange.notes.forwarded_from.is_none()
    }

    /// How a call ends here whose caller holds a credential of the proxy; `None` where it is passed
    /// on.
    pub fn end(&self, exchange: &Exchange) -> Option<EarlyEnd> {
        if exchange.notes.forwarded_from.is_some() {
            let detail = "another region passed this on, and this one does not serve the proxy \
                          either; the regions do not agree on where it is served";
            return Some(EarlyEnd::new(Code::RegionUnavailable, detail).header("retry-after", "1"));
        }
        match self.cross_region {
            // A test request has no key that another region could judge.
            CrossRegion::Forward if exchange.assumed.is_none() => {
                let known = self.gateways.is_empty();
                known.then(|| EarlyEnd::new(Code::RegionUnavailable, self.unknown()))
            }
            CrossRegion::Redirect if exchange.assumed.is_none() => Some(self.redirect(exchange)),
            _ => {
                let regions = &self.regions;
                let detail = format!("this proxy is served in {regions}; call its URL there");
                Some(EarlyEnd::new(Code::WrongRegion, detail))
            }
        }
    }

    fn unknown(&self) -> String {
        let regions = &self.regions;
        format!("this proxy is served in {regions}, whose gateway is not known here; see `regions`")
    }

    /// Sends the caller to the nearest gateway.
    ///
    /// Where that region has another version of the proxy, it may send the caller back. Nothing
    /// tells it: a redirected request is a new one, in which nothing of ours is but the URL, and
    /// what is added to that reaches the target and breaks what is signed over it. That ends when
    /// the later version has arrived, and clients end it before: they follow some ten or twenty
    /// redirects (RFC 9110 §15.4). What would not end is prevented where it can be told: a gateway
    /// that is this region's own is no other's (`sync/compile/elsewhere.rs`).
    fn redirect(&self, exchange: &Exchange) -> EarlyEnd {
        if self.gateways.is_empty() {
            return EarlyEnd::new(Code::RegionUnavailable, self.unknown());
        }
        let Some(nearest) = self.leads_to() else {
            let detail = "no gateway of the regions that serve this proxy answers; the request was \
                          not carried out";
            return EarlyEnd::new(Code::RegionUnavailable, detail).header("retry-after", "1");
        };
        let rest = exchange.request.rest();
        let mut location = format!("{}{}", nearest.url, String::from_utf8_lossy(&rest));
        // The caller's key has been taken out of it.
        if let Some(query) = &exchange.request.query {
            location.push('?');
            location.push_str(&String::from_utf8_lossy(query));
        }
        let detail = format!("this proxy is served in {}; see `Location`", nearest.region);
        EarlyEnd::new(Code::RegionRedirect, detail).header("location", location)
    }

    /// The nearest gateway that is there, which a caller is redirected to.
    pub fn leads_to(&self) -> Option<&RegionGateway> {
        self.use_gateways();
        let nearest = self.gateways.get(*self.nearest().first()?);
        nearest.filter(|to| to.gateway.is_there())
    }

    /// All gateways are dialled for a while, so that it is known which are there.
    pub(super) fn use_gateways(&self) {
        for each in &self.gateways {
            each.gateway.use_it();
        }
    }

    /// The places of the gateways, those that are there first and the nearest of each first.
    pub fn nearest(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.gateways.len()).collect();
        order.sort_by_key(|at| {
            let gateway = &self.gateways[*at].gateway;
            (!gateway.is_there(), gateway.distance())
        });
        order
    }

    /// The field for a request to the gateway at a place.
    pub fn passed_on(&self, at: usize, exchange: &Exchange, target: &[u8]) -> Option<HeaderValue> {
        let passed = PassedOn {
            from: self.own.to_string(),
            to: self.gateways.get(at)?.region.to_string(),
            id: exchange.id,
            source: exchange.request.peer.ip(),
        };
        let key = exchange.snapshot.digest_key();
        let text = passed.seal(key, exchange.request.method.as_str(), target);
        HeaderValue::from_str(&text).ok()
    }
}

/// What a gateway said; `None` where the answer is none of a gateway.
pub fn said(headers: &HeaderMap) -> Option<Said> {
    let text = headers.get(&PROXY_CODE)?.as_bytes();
    let code = Code::ALL
        .iter()
        .find(|code| code.as_str().as_bytes() == text);
    Some(Said {
        code: code.copied().unwrap_or(Code::AccessGranted),
        message: headers.get(&PROXY_MESSAGE).cloned(),
        warning: headers.get(&PROXY_WARNING).cloned(),
        explained: headers.get(&EXPLAIN).cloned(),
    })
}

/// What another region's gateway told with a request for this one, where it is proven. The field
/// goes in any case.
pub fn take_passed_on(
    headers: &mut HeaderMap,
    key: &DigestKey,
    (method, target): (&str, &[u8]),
) -> Option<PassedOn> {
    let value = headers.remove(&PASSED_ON)?;
    PassedOn::open(key, value.as_bytes(), method, target)
}

/// The caller's address, whose port nobody knows.
pub fn caller_of(passed: &PassedOn) -> SocketAddr {
    SocketAddr::new(passed.source, 0)
}
