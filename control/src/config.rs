//! Boot settings of the control plane's API; everything else is versioned configuration.

use std::time::Duration;

use proto::forwarded::TrustedProxies;
use proto::seal::RegionPublicKey;
use proto::signature::VerifyingKey;

use crate::api::body::BodyWaits;
use crate::records::Retention;

/// The public keys of this region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionKeys {
    /// What secrets for it are sealed to.
    pub public: RegionPublicKey,
    /// What its versions are signed with.
    pub signers: Vec<VerifyingKey>,
}

/// What the REST API is told at boot.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// Base URL of this region's gateway, without a slash at its end; a proxy's `url` begins with
    /// it. Never taken from a request's `Host`, which the caller chooses.
    pub gateway_url: String,
    /// Slug of the organisation whose proxies the gateway answers to by their bare alias.
    pub default_org: String,
    /// The region's name, as in a proxy's `urls`.
    pub region: String,
    /// Hosts that are answered, without ports: the public name and the loopback names. A page in
    /// somebody's browser that was rebound to our address says another one.
    pub allowed_hosts: Vec<String>,
    /// Who is believed about where a request comes from.
    pub proxies: TrustedProxies,
    /// Longest time that a write may take, lost races included.
    pub write_deadline: Duration,
    /// Longest time that a read waits for the version that it presents.
    pub version_wait: Duration,
    /// How long the body of a call is waited for.
    pub body_waits: BodyWaits,
    /// Longest time that the outcome of a test request is waited for.
    pub test_wait: Duration,
    /// How old this region's copy of an organisation with another home may be while its tokens do
    /// something that is carried out here.
    pub auth_max_staleness: Duration,
    /// How long records are kept.
    pub retention: Retention,
    /// The keyed digest of the token that lets an operator act in this region without anything that
    /// is replicated.
    pub operator_digest: Option<[u8; 32]>,
    /// The keys of this region, where it can be one of several.
    pub keys: Option<RegionKeys>,
}

impl ApiSettings {
    /// Settings with the defaults of a single machine: loopback hosts, region `local`.
    pub fn new(gateway_url: &str) -> Self {
        Self {
            gateway_url: gateway_url.trim_end_matches('/').to_owned(),
            default_org: proto::org::DEFAULT.into(),
            region: "local".into(),
            allowed_hosts: ["localhost", "127.0.0.1", "[::1]"]
                .map(str::to_owned)
                .into(),
            proxies: TrustedProxies::default(),
            write_deadline: Duration::from_secs(10),
            version_wait: Duration::from_secs(2),
            body_waits: BodyWaits::default(),
            test_wait: Duration::from_secs(10),
            auth_max_staleness: Duration::from_secs(3_600),
            retention: Retention::default(),
            operator_digest: None,
            keys: None,
        }
    }

    /// Whether a `Host` header field names an allowed host, whatever its port.
    pub fn allows_host(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        self.allowed_hosts
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_hosts_are_answered() {
        let settings = ApiSettings::new("http://127.0.0.1:8080/");
        assert_eq!(settings.gateway_url, "http://127.0.0.1:8080");
        for (host, expected) in [
            ("localhost", true),
            ("LocalHost:8081", true),
            ("127.0.0.1:8081", true),
            ("[::1]:8081", true),
            ("[::1]", true),
            ("", false),
            ("m.example", false),
            ("localhost.m.example", false),
            ("m.example:localhost", false),
            ("127.0.0.1.m.example:80", false),
            ("[::2]:8081", false),
        ] {
            assert_eq!(settings.allows_host(host), expected, "{host}");
        }
    }
}
