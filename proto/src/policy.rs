//! What the operator lets organisations ask for at all; settings of the installation, not
//! versioned configuration.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hosts::{Origin, Scheme, in_url};
use crate::problem::Problem;
use crate::proxy::Proxy;
use crate::regions;
use crate::target::{BaseUrl, Target};

/// The operator's limits on what a target may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Targets may speak plain HTTP. Default false.
    pub allow_http: bool,
    /// Targets may be reached without verifying their certificate, at the hosts of
    /// [`Policy::tls_exceptions`]. Default false.
    pub allow_insecure_tls: bool,
    /// Hosts whose certificates may be judged otherwise than by the platform. Default none.
    pub tls_exceptions: Vec<TlsException>,
    /// How long a proxy still answers to an alias that it had before. Default 24 h.
    pub alias_grace: Duration,
    /// The regions of the installation: what objects may name. Judged where configuration is
    /// changed, not by nodes.
    pub regions: Vec<String>,
    /// What is pinned to regions is kept by them and home alone. Default false: every region keeps
    /// everything, which is what earlier releases read.
    pub content_by_region: bool,
}

/// Default of [`Policy::alias_grace`].
pub const ALIAS_GRACE_DEFAULT: Duration = Duration::from_secs(86_400);

impl Default for Policy {
    fn default() -> Self {
        Self {
            allow_http: false,
            allow_insecure_tls: false,
            tls_exceptions: Vec::new(),
            alias_grace: ALIAS_GRACE_DEFAULT,
            regions: Vec::new(),
            content_by_region: false,
        }
    }
}

impl Policy {
    /// Every way in which a target leaves the policy.
    pub fn judge(&self, target: &Target) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (pointer, base) in target.bases() {
            self.judge_address(target, &base, &pointer, &mut problems);
        }
        problems
    }

    fn judge_address(
        &self,
        target: &Target,
        base: &BaseUrl,
        pointer: &str,
        problems: &mut Vec<Problem>,
    ) {
        let mut refuse = |pointer: &str, detail: &str| {
            // One fault of `tls` is told once, whichever address it is seen at first.
            if !problems.iter().any(|known| known.pointer == pointer) {
                problems.push(Problem::new(pointer, "policy", detail));
            }
        };
        let origin = &base.origin;
        if origin.scheme == Scheme::Http && !self.allow_http {
            let detail = "is plain http, which the operator's setting `policy.allow_http` forbids";
            refuse(pointer, detail);
        }
        // Whoever judges a certificate otherwise and answers DNS gets the secret.
        let named = self.tls_exceptions.iter().any(|e| e.covers(origin));
        let host = origin.authority();
        if target.tls.ca.is_some() && !named {
            let detail = format!(
                "is for hosts that the operator's setting `egress.tls_exceptions` names, and \
                 {host} is none of them"
            );
            refuse("/tls/ca", &detail);
        }
        if target.tls.insecure && !(named && self.allow_insecure_tls) {
            let mut missing = Vec::new();
            if !self.allow_insecure_tls {
                missing.push("`policy.allow_insecure_tls`".to_owned());
            }
            if !named {
                missing.push(format!("{host} in `egress.tls_exceptions`"));
            }
            let detail = format!(
                "turns off certificate checks; the operator's settings lack {}",
                missing.join(" and ")
            );
            refuse("/tls/insecure", &detail);
        }
    }

    /// Reports a region that the installation does not have.
    pub fn judge_region(&self, region: &str, pointer: &str, problems: &mut Vec<Problem>) {
        if !self.regions.is_empty() && !self.regions.iter().any(|known| known == region) {
            let detail = format!(
                "`{region}` is no region of this installation; there are {}",
                self.regions.join(", ")
            );
            problems.push(Problem::new(pointer, "unknown-region", detail));
        }
    }

    /// Reports regions of the `shared_by` below `at` that do not exist, or never use their share
    /// since only the `served` ones count anything.
    pub fn judge_shares(
        &self,
        listed: &[String],
        at: &str,
        served: &[String],
        problems: &mut Vec<Problem>,
    ) {
        for (place, region) in listed.iter().enumerate() {
            let pointer = format!("{at}/shared_by/{place}");
            if regions::include(served, region) {
                self.judge_region(region, &pointer, problems);
                continue;
            }
            let detail = format!(
                "what is counted here is in {} only: a share of `{region}` is never used",
                served.join(", ")
            );
            problems.push(Problem::new(pointer, "share-region", detail));
        }
    }

    /// Every reason why a proxy cannot be kept from other regions, while `home` is home.
    pub fn judge_residency(&self, proxy: &Proxy, home: &str, problems: &mut Vec<Problem>) {
        if proxy.residency.is_standard() {
            return;
        }
        if !self.content_by_region {
            let detail = "every region keeps everything here: `strict` needs the operator's \
                          setting `regions.content_by_region`";
            problems.push(Problem::new("/residency", "content-by-region", detail));
        }
        if !proxy.is_served_in(home) {
            let detail = format!(
                "home keeps everything, and region `{home}` is home: with `residency: strict` list \
                 it too, or let home be moved to one of the listed regions"
            );
            problems.push(Problem::new("/regions", "home-region", detail));
        }
    }
}

/// A host whose targets may have `tls.ca` and, where allowed at all, `tls.insecure`.
///
/// Written `legacy.internal`, `10.1.2.3:8443`, `[fd00::1]`, or `*.corp.example` for every name
/// below, at any depth; without a port it stands for every port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsException {
    /// Name or address as in [`Origin::host`]; without the wildcard label.
    host: String,
    wildcard: bool,
    port: Option<u16>,
}

impl TlsException {
    /// Whether it stands for a destination.
    pub fn covers(&self, origin: &Origin) -> bool {
        let named = match self.wildcard {
            false => origin.host == self.host,
            true => origin
                .host
                .strip_suffix(&self.host)
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        };
        named && self.port.is_none_or(|port| port == origin.port)
    }
}

/// A text that is no [`TlsException`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host: write legacy.internal, legacy.internal:8443 or *.corp.example")]
pub struct TlsExceptionError(String);

impl FromStr for TlsException {
    type Err = TlsExceptionError;

    fn from_str(text: &str) -> Result<Self, TlsExceptionError> {
        let wrong = || TlsExceptionError(text.chars().take(100).collect());
        let (wildcard, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        // The colons of an IPv6 address stand inside its brackets.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| wrong())?))
            }
            _ => (rest, None),
        };
        if host.is_empty() || host.contains(['/', '?', '#', '@', '*', '\\']) {
            return Err(wrong());
        }
        let url = url::Url::parse(&format!("https://{host}/")).map_err(|_| wrong())?;
        let origin = Origin::of(&url).map_err(|_| wrong())?;
        let is_name = matches!(url.host(), Some(url::Host::Domain(_)));
        if url.port().is_some() || (wildcard && !is_name) {
            return Err(wrong());
        }
        Ok(Self {
            host: origin.host,
            wildcard,
            port,
        })
    }
}

impl fmt::Display for TlsException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wildcard {
            f.write_str("*.")?;
        }
        f.write_str(&in_url(&self.host))?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Serialize for TlsException {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TlsException {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(policy: &Policy, target: serde_json::Value, expected: &[&str]) {
        let target: Target = serde_json::from_value(target).unwrap();
        let found = policy.judge(&target);
        let pointers: Vec<_> = found.iter().map(|p| p.pointer.as_str()).collect();
        assert_eq!(pointers, expected, "{target:?}");
        let names = |p: &Problem| p.detail.contains("`policy.") || p.detail.contains("`egress.");
        assert!(found.iter().all(names), "names the setting");
    }

    #[test]
    fn a_target_stays_within_the_policy() {
        let none = Policy::default();
        let all = Policy {
            allow_http: true,
            allow_insecure_tls: true,
            tls_exceptions: vec!["a.example".parse().unwrap()],
            ..Policy::default()
        };
        let https = serde_json::json!({"base_url": "https://a.example"});
        let http = serde_json::json!({"base_url": "http://a.example", "allow_http": true});
        let tls = |host: &str, tls| serde_json::json!({"base_url": host, "tls": tls});
        let insecure = serde_json::json!({"insecure": true});
        let own = serde_json::json!({"ca": "-----BEGIN CERTIFICATE-----"});
        check(&none, https, &[]);
        check(&none, http.clone(), &["/base_url"]);
        check(&all, http, &[]);
        for (host, excepted) in [
            ("https://a.example", true),
            ("https://a.example:8443/v1", true),
            ("https://A.example./", true),
            ("https://b.a.example", false),
            ("https://m.example", false),
        ] {
            let (ca, off): (&[&str], &[&str]) = match excepted {
                true => (&[], &[]),
                false => (&["/tls/ca"], &["/tls/insecure"]),
            };
            check(&all, tls(host, own.clone()), ca);
            check(&all, tls(host, insecure.clone()), off);
            check(&none, tls(host, own.clone()), &["/tls/ca"]);
            check(&none, tls(host, insecure.clone()), &["/tls/insecure"]);
        }
        let named = Policy {
            allow_insecure_tls: false,
            ..all
        };
        let host = "https://a.example";
        check(&named, tls(host, insecure), &["/tls/insecure"]);
        check(&named, tls(host, own), &[]);
    }

    #[test]
    fn an_exception_stands_for_its_own_hosts_only() {
        for (text, url, covered) in [
            ("legacy.internal", "https://legacy.internal:9443/", true),
            ("legacy.internal:443", "https://legacy.internal/", true),
            ("legacy.internal:8443", "https://legacy.internal/", false),
            ("*.corp.example", "https://a.b.corp.example/", true),
            ("*.corp.example", "https://corp.example/", false),
            ("*.corp.example", "https://evilcorp.example/", false),
            ("127.0.0.1", "https://0x7f.1:1/", true),
            ("[::1]", "https://[0:0::1]:1/", true),
            ("[::1]:2", "https://[::1]:1/", false),
        ] {
            let exception: TlsException = text.parse().unwrap();
            let origin = Origin::of(&url::Url::parse(url).unwrap()).unwrap();
            assert_eq!(exception.covers(&origin), covered, "{text} {url}");
            assert_eq!(exception.to_string(), text);
        }
        for bad in [
            "",
            "*",
            "*.",
            "a b",
            "https://a.example",
            "a:x",
            "::1",
            "*.127.0.0.1",
            "a/b",
        ] {
            assert!(bad.parse::<TlsException>().is_err(), "{bad}");
        }
    }
}
