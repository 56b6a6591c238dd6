//! Compiles proxies that other regions serve: who may call them, and the gateways there.

use std::sync::Arc;
use std::time::Duration;

use proto::hosts::Origin;
use proto::id::ProxyId;
use proto::path::PathOptions;
use proto::proxy::{
    CrossRegion, ErrorBodies, ForeignUrls, OnClientAbort, Proxy, RewriteUrls, ScrubBodies,
};
use proto::regions::Gateways;
use proto::rule::RuleSet;
use proto::target::{BaseUrl, Effect, Target};

use super::{OrgCompiler, credentials};
use crate::elsewhere::{Elsewhere, RegionGateway};
use crate::endpoints::{Endpoint, Endpoints};
use crate::hygiene::fields::RequestFields;
use crate::metering::Metering;
use crate::metrics::AddressDurations;
use crate::snapshot::{CompiledProxy, CompiledTarget, End, FormVersion, ProxyCredential};
use crate::upstream::tls::TlsSpec;
use crate::upstream::{self, CONNECTIONS_MAX_DEFAULT, Destination, DestinationParts, Host};

/// The other region has timeouts of its own, and a gateway that is gone is noticed by dials; this
/// only bounds what no answer will ever come to.
const ANSWER_MAX: Duration = Duration::from_secs(3_600);
/// How much longer than there an answer may stand still here: that region tells why it ended.
const IDLE_MORE: Duration = Duration::from_secs(5);

impl OrgCompiler<'_> {
    /// The form of a proxy that this region does not serve.
    pub(super) fn elsewhere(
        &mut self,
        id: ProxyId,
        proxy: &Proxy,
    ) -> Result<CompiledProxy, String> {
        let state = self.state;
        let none = self.no_rules(Effect::Allow)?;
        let mut accepted = Vec::with_capacity(proxy.proxy_credential_ids.len());
        for credential in &proxy.proxy_credential_ids {
            let whole = self.proxy_credential(*credential, id, proxy)?;
            accepted.push(ProxyCredential {
                rules: Arc::clone(&none),
                response_filters: None,
                request_filters: None,
                metering: self.unmetered()?,
                ..whole
            });
        }
        let places = credentials::places(state, proxy, &accepted);
        let key_queries = credentials::key_queries(&places, &accepted);
        let target = state.config.target(proxy.target_id);
        let regions = proxy.regions.join(", ").into();
        let gateways = self.gateways(id, proxy, target)?;
        Ok(CompiledProxy {
            id,
            id_text: id.to_string().into(),
            org: state.config.org,
            alias: proxy.alias.as_deref().map(Into::into),
            former_aliases: proxy.former_aliases.clone(),
            version: FormVersion::of(Arc::clone(self.version)),
            end: End::new(None),
            active: proxy.active,
            places,
            credentials: accepted,
            rules: Arc::clone(&none),
            destinations: Box::default(),
            target: Arc::new(stands_for(proxy, target, none)?),
            target_credential: None,
            elsewhere: Some(Elsewhere {
                cross_region: proxy.cross_region,
                own: self.compiler.parts.keyring.region.as_str().into(),
                regions,
                gateways,
            }),
            first_byte_text: Box::default(),
            request_fields: RequestFields::default(),
            forward_caller_headers: Vec::new(),
            cookies: true,
            rewrite_urls: RewriteUrls::Off,
            // The region that serves it does it.
            scrub: ScrubBodies::Plain,
            foreign_urls: ForeignUrls::Pass,
            error_bodies: ErrorBodies::Pass,
            request_validator: None,
            response_validator: None,
            on_client_abort: OnClientAbort::Cancel,
            body_buffer_bytes: usize::try_from(proxy.body_buffer_bytes).unwrap_or(usize::MAX),
            record: proxy.record.clone(),
            key_queries,
            counters: self.compiler.parts.metrics.proxy(&id.to_string()),
        })
    }

    /// Meters count where a request is served.
    fn unmetered(&self) -> Result<Metering, String> {
        let limits = Arc::clone(&self.compiler.parts.limits);
        let newcomers = limits.newcomers(self.state.config.org.bits());
        Metering::new(Vec::new(), 0, limits, newcomers).map_err(|error| error.to_string())
    }

    /// The gateways of the regions that serve a proxy, with its URL there.
    fn gateways(
        &self,
        id: ProxyId,
        proxy: &Proxy,
        target: Option<&Target>,
    ) -> Result<Box<[RegionGateway]>, String> {
        let idle_ms = target.and_then(|target| proxy.timeouts.or(target.timeouts).idle_ms);
        let default = upstream::Timeouts::default().idle;
        let idle = idle_ms.map_or(default, Duration::from_millis) + IDLE_MORE;
        let there = |url: &str| {
            let url = format!("{url}/api/{id}");
            let (base, host) = address(&url)?;
            Some((url, base, host))
        };
        let urls = &self.compiler.gateways.urls;
        let here = urls.get(&self.compiler.parts.keyring.region);
        let here = here.and_then(|url| there(url));
        let mut found = Vec::new();
        for region in &proxy.regions {
            // A region that nobody knows the gateway of cannot be reached through it. One whose
            // gateway cannot be read is no other: it takes no right from what its proxies say.
            let known = urls.get(region).and_then(|url| there(url));
            let Some((url, base, host)) = known else {
                continue;
            };
            // Nor can one that is found under this region's own URL (all behind one name, say): a
            // caller who is redirected there comes back, and again.
            if here.as_ref().is_some_and(|(_, here, _)| *here == base) {
                continue;
            }
            let gateway = self.compiler.known_gateways.at(&host, base.origin.port);
            if proxy.cross_region == CrossRegion::Redirect {
                gateway.keep_in_view();
            }
            found.push(RegionGateway {
                region: region.as_str().into(),
                path: base.path.as_str().into(),
                url: url.into(),
                destination: Arc::new(self.gateway_destination(&base.origin, host, idle)?),
                gateway,
                durations: self.compiler.parts.metrics.address(&base.origin),
            });
        }
        Ok(found.into())
    }

    fn gateway_destination(
        &self,
        origin: &Origin,
        host: Host,
        idle: Duration,
    ) -> Result<Destination, String> {
        let tls = self.compiler.tls.get(&TlsSpec::default());
        Destination::new(DestinationParts {
            scheme: origin.scheme,
            host,
            port: origin.port,
            tls: tls.map_err(|error| error.to_string())?,
            http2: false,
            tenant: 0,
            guard: Arc::new(self.compiler.parts.guard.of_gateways()),
            timeouts: upstream::Timeouts {
                connect: upstream::Timeouts::default().connect,
                first_byte: ANSWER_MAX,
                idle,
                total: None,
            },
            connections_max: CONNECTIONS_MAX_DEFAULT,
        })
        .map_err(|error| error.to_string())
    }
}

/// Says which gateways of other regions nobody is sent to: what these serve is answered as if their
/// gateways were not known.
pub(super) fn tell_unused(gateways: &Gateways, own: &str) {
    for (region, url, why) in unused(gateways, own) {
        tracing::warn!(
            region,
            "the gateway of region {region}, {url}, {why}: calls of proxies that it serves are \
             not sent there; correct its `gateway` in `regions.peers`"
        );
    }
}

fn unused<'g>(
    gateways: &'g Gateways,
    own: &str,
) -> impl Iterator<Item = (&'g str, &'g str, &'static str)> {
    let here = gateways.urls.get(own).and_then(|url| address(url));
    let others = gateways
        .urls
        .iter()
        .filter(move |(region, _)| *region != own);
    others.filter_map(move |(region, url)| {
        let why = match (address(url), &here) {
            (None, _) => "is no URL that can be dialled",
            (Some((there, _)), Some((here, _))) if there == *here => {
                "is this region's own, where they would be sent there again"
            }
            _ => return None,
        };
        Some((region.as_str(), url.as_str(), why))
    })
}

/// A gateway's URL as what is dialled; none where it cannot be.
fn address(url: &str) -> Option<(BaseUrl, Host)> {
    let base = BaseUrl::parse(url).ok()?;
    let host = Host::of(&base.origin).ok()?;
    Some((base, host))
}

/// What stands for the target: nothing is sent to it from here.
fn stands_for(
    proxy: &Proxy,
    target: Option<&Target>,
    rules: Arc<RuleSet>,
) -> Result<CompiledTarget, String> {
    let base = BaseUrl::parse("https://gateway.invalid")?;
    let endpoint = Endpoint {
        base: base.clone(),
        label: base.origin.authority().into(),
        distance: 0,
        weight: 1,
        breaker: None,
        checked: None,
        named: false,
        counters: None,
        durations: AddressDurations::default(),
    };
    Ok(CompiledTarget {
        id: proxy.target_id,
        id_text: proxy.target_id.to_string().into(),
        base,
        endpoints: Endpoints::new(vec![endpoint], Duration::ZERO, false),
        origins: Box::default(),
        path: target.map_or_else(PathOptions::default, Target::path_options),
        forbidden: false,
        rules,
        idempotency_header: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_nobody_is_sent_to_is_named() {
        let long = format!("https://{}.example", "a".repeat(64));
        let urls = [
            ("ap", "https://ap.example/base"),
            ("eu", "http://[::1]:81"),
            ("mars", "https://mars.example:port"),
            ("moon", &long),
            ("one", "https://here.example/base/"),
            ("own", "https://HERE.example:443/base"),
            ("us", "https://192.0.2.1"),
        ];
        let urls = urls.map(|(region, url)| (region.to_owned(), url.to_owned()));
        let gateways = Gateways { urls: urls.into() };
        let named = |own: &'static str| -> Vec<&str> {
            unused(&gateways, own)
                .map(|(region, _, _)| region)
                .collect()
        };
        assert_eq!(named("own"), ["mars", "moon", "one"]);
        assert_eq!(named("mars"), ["moon"], "the own is another's matter");
        let why = unused(&gateways, "own").last().map(|(_, _, why)| why);
        assert!(why.is_some_and(|why| why.contains("own")), "{why:?}");
    }
}
