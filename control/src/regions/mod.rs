//! The regions of an installation: which one this is, which one is home, and where the others are.
//!
//! Boot settings of every control plane, equal in all regions but for the own name. Nothing here
//! does IO.

pub mod ask;
pub mod asked_in_vain;
pub mod entry;
pub mod forward;
pub mod gateways;
pub mod homes;
pub mod invitations;
pub mod missing;
pub mod replicated;
pub mod staleness;
pub mod status;

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;

use proto::id::OrgId;
use proto::seal::RegionPublicKey;
use proto::signature::VerifyingKey;
use proto::tree::SYSTEM_ORG;

pub use self::homes::{Facts, Homes};
pub use self::status::Status;
use crate::replication::Replication;

/// All regions as one control plane sees them.
#[derive(Clone, Debug)]
pub struct Regions {
    /// The region of this control plane.
    pub own: String,
    /// The region that is home to what has no fact yet: by the settings, before home ever moved.
    pub home: String,
    /// What versions of this region are signed with; none where it has no key.
    pub signers: Vec<VerifyingKey>,
    /// The other regions.
    pub peers: Vec<Peer>,
}

/// Another region.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Base URL of its REST API, without a slash at its end.
    pub control: String,
    /// Base URL of its gateway, without a slash at its end, where it is known.
    pub gateway: Option<String>,
    /// The link listeners of its control planes, `host:port` each; any one will do.
    pub replication: Vec<String>,
    /// What secrets for it are sealed to.
    pub public: RegionPublicKey,
    /// What its versions are signed with; while there are none they are taken without.
    pub signers: Vec<VerifyingKey>,
}

impl Peer {
    /// The hosts under which its control planes are reached: what their certificates name.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.replication.iter().map(|endpoint| host_of(endpoint))
    }
}

/// Whether a text is `host:port`, as in a peer's `replication`; an IPv6 address has brackets.
pub fn is_endpoint(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| {
        let is_host = match host.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')) {
            Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains([':', '[', ']']),
        };
        is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// A text as the base URL of a REST API or a gateway; `None` where it is none.
pub fn base_url(text: &str) -> Option<url::Url> {
    let url = url::Url::parse(text).ok()?;
    let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    (["http", "https"].contains(&url.scheme()) && is_plain).then_some(url)
}

/// Whether a URL leads to this machine itself.
pub fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Whether what is sent to a URL can be overheard on the way.
pub fn is_plain(url: &url::Url) -> bool {
    url.scheme() == "http" && !is_loopback(url)
}

/// The host of `host:port`, without brackets.
pub fn host_of(endpoint: &str) -> &str {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    host.trim_matches(['[', ']'])
}

impl Regions {
    /// Another region by name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// The keys that versions of a region are signed with; `None` for a region that is not known.
    pub fn signers(&self, region: &str) -> Option<&[VerifyingKey]> {
        match region == self.own {
            true => Some(&self.signers),
            false => self.peer(region).map(|peer| &*peer.signers),
        }
    }

    /// The names of all, the own one first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let peers = self.peers.iter().map(|peer| peer.name.as_str());
        std::iter::once(self.own.as_str()).chain(peers)
    }
}

/// What the API knows of regions: the directory, which is home to what, and how far each has come.
#[derive(Clone)]
pub struct Directory {
    /// The directory.
    pub regions: Arc<Regions>,
    /// Which is home to what.
    pub homes: Homes,
    /// What moves home.
    pub replication: Arc<Replication>,
    /// How far each has come.
    pub status: Arc<Status>,
    /// Whom an `https` control plane of another region is to be certified by.
    pub trust: Option<Arc<rustls::ClientConfig>>,
}

impl Directory {
    /// Whether versions of an organisation are made here, or were until it was sealed.
    pub fn is_home(&self, org: OrgId) -> bool {
        self.homes.region_of(org) == self.regions.own
    }

    /// The other regions that are home to something, by name; that of `system` is one whether its
    /// fact is known yet or not.
    pub fn other_homes(&self) -> Vec<String> {
        let of_system = self.homes.region_of(SYSTEM_ORG);
        let facts = self.homes.facts();
        let facts = facts.borrow();
        let homes = facts.values().map(|home| home.region.clone());
        let homes: BTreeSet<String> = homes.chain([of_system]).collect();
        homes
            .into_iter()
            .filter(|home| self.regions.peer(home).is_some())
            .collect()
    }

    /// Whether this region is home to anything.
    pub fn is_home_to_any(&self) -> bool {
        let own = &self.regions.own;
        let is_own = |facts: &Facts| facts.values().any(|home| home.region == *own);
        self.is_home(SYSTEM_ORG) || is_own(&self.homes.facts().borrow())
    }

    /// The home region of an organisation, where that is another one.
    pub fn home_peer(&self, org: OrgId) -> Option<&Peer> {
        self.regions.peer(&self.homes.region_of(org))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_ports() {
        for (endpoint, host) in [
            ("control.eu:8082", "control.eu"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:1", "::1"),
            ("control.eu", "control.eu"),
        ] {
            assert_eq!(host_of(endpoint), host);
        }
    }

    #[test]
    fn an_endpoint_is_told_from_what_cannot_be_dialled() {
        for (text, expected) in [
            ("control.eu:8082", true),
            ("127.0.0.1:1", true),
            ("[fd00::1]:8082", true),
            ("fd00::1:8082", false),
            ("[fd00::1]", false),
            ("[control.eu]:8082", false),
            ("control.eu:0", false),
            ("control.eu", false),
            (":8082", false),
        ] {
            assert_eq!(is_endpoint(text), expected, "{text}");
        }
    }
}
