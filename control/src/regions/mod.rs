//! The regions of an installation: which one this is, which one is home, and where the others are.
//!
//! Boot settings of every control plane, equal in all regions but for the own name. Nothing here
//! does IO.

pub mod entry;
pub mod forward;
pub mod replicated;
pub mod status;

use std::sync::Arc;

use proto::seal::RegionPublicKey;

pub use self::status::Status;

/// All regions as one control plane sees them.
#[derive(Clone, Debug)]
pub struct Regions {
    /// The region of this control plane.
    pub own: String,
    /// The region in which versions are made.
    pub home: String,
    /// The other regions.
    pub peers: Vec<Peer>,
}

/// Another region.
#[derive(Clone, Debug)]
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
}

impl Peer {
    /// The hosts under which its control planes are reached: what their certificates name.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.replication.iter().map(|endpoint| host_of(endpoint))
    }
}

/// The host of `host:port`, without brackets.
pub fn host_of(endpoint: &str) -> &str {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    host.trim_matches(['[', ']'])
}

impl Regions {
    /// Whether versions are made here.
    pub fn is_home(&self) -> bool {
        self.own == self.home
    }

    /// Another region by name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// The home region, where that is another one.
    pub fn home_peer(&self) -> Option<&Peer> {
        self.peer(&self.home)
    }
}

/// What the API knows of regions: the directory, and how far each has come.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The directory.
    pub regions: Arc<Regions>,
    /// How far each has come.
    pub status: Arc<Status>,
    /// Whom an `https` control plane of another region is to be certified by.
    pub trust: Option<Arc<rustls::ClientConfig>>,
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
}
