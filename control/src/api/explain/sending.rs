//! The target's credential and the way to the target: what may be sent, and where it would go.

use jiff::Timestamp;
use proto::credential::sending::{self, Standing};
use proto::endpoint::{self, Endpoint};
use proto::outcome::Code;
use proto::path::PathReading;
use proto::residence::Residence;
use proto::target::BaseUrl;
use serde_json::json;

use super::described::Described;
use super::elsewhere::Course;
use super::judge::{Explained, Judged};
use crate::dial_guard::{Asked, Foreseen};

impl<'a> Judged<'a> {
    pub(super) fn inject(&self, explained: &mut Explained, _: &Described, now: Timestamp) {
        if let Some(problem) = self.here.policy.judge(self.target).first() {
            let (pointer, detail) = (&problem.pointer, &problem.detail);
            let detail = format!("`{pointer}` of the target {detail}");
            return explained.end("inject", Code::UpstreamBlocked, &detail);
        }
        let residence = self.residence();
        if residence.is_outside(self.target) {
            let detail = format!("the target has no endpoint in {}", residence.words());
            return explained.end("inject", Code::UpstreamBlocked, &detail);
        }
        let Some((id, stored)) = self.injected else {
            return explained.pass("inject", json!({"credential_id": null}));
        };
        let credential = &stored.credential;
        let facts = self.here.retired.get(&id);
        let standing = Standing::of(stored.secret.as_ref(), facts, now);
        let bases: Vec<BaseUrl> = residence.bases(self.target).collect();
        let origins = bases.iter().map(|base| &base.origin);
        let form = (credential.auth_type, credential.hosts.as_slice());
        if let Err(withheld) = sending::judge(form, standing, origins) {
            let detail = format!("{id}: {withheld}");
            return explained.end("inject", Code::CredentialUnavailable, &detail);
        }
        let kind = credential.auth_type.as_str();
        explained.pass("inject", json!({"credential_id": id, "auth_type": kind}));
    }

    pub(super) fn forward(&self, explained: &mut Explained, request: &Described, _: Timestamp) {
        let path = PathReading::parse(&request.path, self.target.path_options());
        let endpoints = self.endpoints();
        let nearest = endpoints.first().map(|(_, endpoint)| &endpoint.base_url);
        let base_url = nearest.unwrap_or(&self.target.base_url);
        let (Ok(base), Ok(path)) = (BaseUrl::parse(base_url), path) else {
            return;
        };
        if let Some(detail) = self.refused(&base, &endpoints) {
            return explained.end("forward", Code::UpstreamBlocked, detail);
        }
        let path = path.join(&base.path);
        let (scheme, authority) = (base.origin.scheme.as_str(), base.origin.authority());
        let path = String::from_utf8_lossy(&path);
        let mut url = format!("{scheme}://{authority}{path}");
        if let Some(query) = &request.query {
            url.push('?');
            url.push_str(&String::from_utf8_lossy(query));
        }
        let address = told(self.foreseen(&base));
        let mut facts = json!({"method": request.method, "url": url, "address": address,
                               "assumed": "nothing is sent"});
        if !endpoints.is_empty() {
            let shown = |(distance, endpoint): &(u8, &Endpoint)| {
                let base = BaseUrl::parse(&endpoint.base_url).ok();
                let address = base.map(|base| told(self.foreseen(&base)));
                json!({"region": endpoint.region, "base_url": endpoint.base_url,
                       "weight": endpoint.weight, "distance": distance, "address": address})
            };
            facts["endpoints"] = endpoints.iter().map(shown).collect();
        }
        explained.pass("forward", facts);
    }

    /// What the dial guard says of an address.
    fn foreseen(&self, base: &BaseUrl) -> Foreseen {
        (self.here.dial_guard)(&Asked {
            org: &self.here.org,
            allow_networks: &self.target.allow_networks,
            origin: &base.origin,
            is_here: matches!(self.course(), Course::Served(_)),
        })
    }

    /// What a caller is told where all of the nearest addresses are refused: what is refused is
    /// tried nowhere else.
    fn refused(&self, base: &BaseUrl, endpoints: &[(u8, &Endpoint)]) -> Option<&'static str> {
        let Foreseen::Refused(detail) = self.foreseen(base) else {
            return None;
        };
        let nearest = endpoints.first().map(|(distance, _)| *distance);
        let mut near = endpoints
            .iter()
            .filter(|(distance, _)| Some(*distance) == nearest);
        let is_refused = |(_, endpoint): &(u8, &Endpoint)| {
            let base = BaseUrl::parse(&endpoint.base_url);
            base.is_ok_and(|base| matches!(self.foreseen(&base), Foreseen::Refused(_)))
        };
        near.all(is_refused).then_some(detail)
    }

    /// Those of the target's endpoints that calls may go to, as the region's nodes ask them, each
    /// with how near it is.
    fn endpoints(&self) -> Vec<(u8, &'a Endpoint)> {
        let listed = &self.target.endpoints;
        let region = match self.course() {
            Course::Served(region) | Course::PassedOn(region, _) => region,
            Course::Ends(..) => &self.here.region,
        };
        let distances = endpoint::distances(listed, region);
        let residence = self.residence();
        let near = distances.into_iter().zip(listed);
        let mut order: Vec<_> = near.filter(|(_, one)| residence.has(one)).collect();
        order.sort_by_key(|(distance, _)| *distance);
        order
    }

    /// The regions that its calls stay in.
    fn residence(&self) -> Residence<'a> {
        let injected = self.injected.map(|(_, stored)| &stored.credential);
        Residence::of(self.proxy, injected)
    }
}

/// What is shown of an address beside its URL.
fn told(foreseen: Foreseen) -> &'static str {
    match foreseen {
        Foreseen::Passes => "may be dialled",
        Foreseen::Refused(_) => "may not be dialled",
        Foreseen::AtDialling(why) => why,
    }
}
