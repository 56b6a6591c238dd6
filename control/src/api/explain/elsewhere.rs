//! A proxy that the region asked does not serve: what its nodes do with a call, and where it goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::id::CredentialId;
use proto::outcome::Code;
use proto::policy::Policy;
use proto::proxy::{CrossRegion, Proxy};
use proto::retired::Retired;
use serde_json::{Value, json};

use crate::dial_guard::DialGuard;

/// Where it is explained, with what counts there beside the configuration.
#[derive(Clone)]
pub struct Here {
    /// The region.
    pub region: String,
    /// The gateways of the other regions: base URL by name.
    pub gateways: BTreeMap<String, String>,
    /// Slug of the organisation.
    pub org: String,
    /// The operator's limits on targets.
    pub policy: Policy,
    /// Which secrets of the organisation are over.
    pub retired: Arc<BTreeMap<CredentialId, Retired>>,
    /// Says which addresses may be dialled.
    pub dial_guard: DialGuard,
}

/// What becomes of a call whose caller is known.
pub enum Course<'a> {
    /// It is served in this region.
    Served(&'a str),
    /// It is passed on, to one of these.
    PassedOn(&'a str, Value),
    /// It ends here.
    Ends(Code, String),
}

impl Here {
    /// What becomes of a call of a proxy here.
    pub fn course<'a>(&'a self, id: &str, proxy: &'a Proxy) -> Course<'a> {
        if proxy.is_served_in(&self.region) {
            return Course::Served(&self.region);
        }
        let regions = proxy.regions.join(", ");
        let known = proxy.regions.iter().filter_map(|region| {
            let url = format!("{}/api/{id}", self.gateways.get(region)?);
            Some((region.as_str(), url))
        });
        let known: Vec<(&str, String)> = known.collect();
        let Some((first, url)) = known.first() else {
            let detail = format!("served in {regions}, whose gateway is not known here");
            let code = match proxy.cross_region {
                CrossRegion::Reject => Code::WrongRegion,
                CrossRegion::Forward | CrossRegion::Redirect => Code::RegionUnavailable,
            };
            return Course::Ends(code, detail);
        };
        match proxy.cross_region {
            CrossRegion::Reject => Course::Ends(Code::WrongRegion, format!("served in {regions}")),
            CrossRegion::Redirect => Course::Ends(
                Code::RegionRedirect,
                format!("to {url}, or the nearest of {regions}"),
            ),
            CrossRegion::Forward => {
                let to = known.iter();
                let to = to.map(|(region, url)| json!({"region": region, "url": url}));
                Course::PassedOn(first, to.collect())
            }
        }
    }
}
