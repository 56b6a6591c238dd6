//! Which of a target's endpoints a call may go to: none in a region that its proxy does not list,
//! nor in one that the secret it carries is not kept in.
//!
//! An endpoint without `region` is near to all regions, and outside of none. Pure.

use crate::credential::Credential;
use crate::endpoint::Endpoint;
use crate::proxy::Proxy;
use crate::regions;
use crate::target::{BaseUrl, Target};

/// The regions that the calls of a proxy stay in.
#[derive(Clone, Copy, Debug)]
pub struct Residence<'a> {
    proxy: &'a [String],
    /// Those of the target credential, where it has a secret.
    secret: Option<&'a [String]>,
}

impl<'a> Residence<'a> {
    /// That of a proxy's calls, which carry its target credential.
    pub fn of(proxy: &'a Proxy, credential: Option<&'a Credential>) -> Self {
        let secret = credential.filter(|credential| credential.has_secret());
        Self {
            proxy: &proxy.regions,
            secret: secret.map(|credential| credential.regions.as_slice()),
        }
    }

    /// Whether calls may go to an endpoint.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        endpoint
            .region
            .as_deref()
            .is_none_or(|region| self.includes(region))
    }

    /// Whether a target has endpoints, and calls may go to none of them.
    pub fn is_outside(&self, target: &Target) -> bool {
        let endpoints = &target.endpoints;
        !endpoints.is_empty() && !endpoints.iter().any(|endpoint| self.has(endpoint))
    }

    /// Those of a target's addresses that calls may go to; one that cannot be read is left out.
    pub fn bases(&self, target: &Target) -> impl Iterator<Item = BaseUrl> {
        let bases = target.bases_where(|endpoint| self.has(endpoint));
        bases.map(|(_, base)| base)
    }

    /// Its regions in words: "eu, us".
    pub fn words(&self) -> String {
        let listed = match self.secret {
            Some(secret) if regions::is_everywhere(self.proxy) => secret,
            _ => self.proxy,
        };
        let common: Vec<&str> = listed
            .iter()
            .map(String::as_str)
            .filter(|region| self.includes(region))
            .collect();
        match common.is_empty() {
            true => "a region that the proxy and its credential both list".to_owned(),
            false => common.join(", "),
        }
    }

    fn includes(&self, region: &str) -> bool {
        let kept = |secret| regions::include(secret, region);
        regions::include(self.proxy, region) && self.secret.is_none_or(kept)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::id::TargetId;

    fn proxy_of(regions: &[&str]) -> Proxy {
        let target = TargetId::from_bits(0).to_string();
        let fields = json!({"target_id": target, "regions": regions, "proxy_credential_ids": []});
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn calls_stay_in_the_regions_of_their_proxy_and_their_secret() {
        let all = ["eu", "us", "ap"].map(Some).into_iter().chain([None]);
        let endpoints: Vec<_> = all
            .map(|region| json!({"region": region, "base_url": "https://a.example"}))
            .collect();
        let mut target: Target = serde_json::from_value(json!({
            "base_url": "https://a.example", "endpoints": endpoints,
        }))
        .unwrap();
        let mut check = |proxy: &[&str], secret: Option<&[&str]>, expected: [bool; 3], words| {
            let proxy = proxy_of(proxy);
            let credential = secret.map(|regions| -> Credential {
                serde_json::from_value(json!({
                    "name": "c", "kind": "target", "auth_type": "bearer", "regions": regions,
                }))
                .unwrap()
            });
            let residence = Residence::of(&proxy, credential.as_ref());
            let found: Vec<bool> = target.endpoints.iter().map(|e| residence.has(e)).collect();
            assert_eq!(found[..3], expected, "{words}");
            assert!(found[3], "{words}: an endpoint without region");
            let inside = found.iter().filter(|inside| **inside).count();
            assert_eq!(residence.bases(&target).count(), inside);
            assert!(!residence.is_outside(&target));
            let near = target.endpoints.pop().unwrap();
            assert_eq!(residence.is_outside(&target), expected == [false; 3]);
            target.endpoints.push(near);
            assert_eq!(residence.words(), words);
        };
        let none = "a region that the proxy and its credential both list";
        check(&["*"], None, [true; 3], "*");
        check(&["eu"], None, [true, false, false], "eu");
        check(&["us", "eu"], Some(&["*"]), [true, true, false], "us, eu");
        check(&["*"], Some(&["ap"]), [false, false, true], "ap");
        check(&["eu", "us"], Some(&["us"]), [false, true, false], "us");
        check(&["eu"], Some(&["us"]), [false; 3], none);
        check(&["mars"], None, [false; 3], "mars");
    }

    #[test]
    fn a_credential_without_secret_and_a_target_with_one_address_bind_nothing() {
        let credential: Credential = serde_json::from_value(json!({
            "name": "c", "kind": "target", "auth_type": "none", "regions": ["ap"],
        }))
        .unwrap();
        let proxy = proxy_of(&["eu"]);
        let residence = Residence::of(&proxy, Some(&credential));
        assert_eq!(residence.words(), "eu");
        let target = json!({"base_url": "https://a.example"});
        let target: Target = serde_json::from_value(target).unwrap();
        assert!(!residence.is_outside(&target));
        assert_eq!(residence.bases(&target).count(), 1);
    }
}
