//! Boot settings of the control plane's listener, the REST API.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use node::config::TlsSettings;
use proto::forwarded::{ForwardedHeader, TrustedProxies};
use serde::{Deserialize, Serialize};

/// The control plane's listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlSettings {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Host names it answers to, besides loopback names and its own address.
    pub allowed_hosts: Vec<String>,
    /// Networks of proxies before this listener that are believed about where a request comes from.
    pub trusted_proxies: Vec<IpNet>,
    /// The field in which they say it.
    pub forwarded_header: ForwardedHeader,
    /// Certificate that clients of the API see; plain HTTP without one.
    pub tls: TlsSettings,
    /// Listen on an address that is not loopback although there is no TLS.
    pub insecure: bool,
    /// The bootstrap token, instead of a generated one; at least 32 characters.
    pub admin_token: Option<String>,
    /// A file that holds it.
    pub admin_token_file: Option<PathBuf>,
    /// A file with a token that no configuration knows, at least 32 characters: it promotes and
    /// recovers this region when nothing else can be reached.
    pub operator_token_file: Option<PathBuf>,
    /// How old this region's copy of an organisation with another home may be, in seconds, while
    /// its API tokens do something that is carried out here.
    pub auth_max_staleness_s: u32,
}

impl Default for ControlSettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8081)),
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            tls: TlsSettings::default(),
            insecure: false,
            admin_token: None,
            admin_token_file: None,
            operator_token_file: None,
            auth_max_staleness_s: 3_600,
        }
    }
}

impl ControlSettings {
    /// Who is believed about clients of the API.
    pub fn proxies(&self) -> TrustedProxies {
        TrustedProxies {
            networks: self.trusted_proxies.clone(),
            header: self.forwarded_header,
        }
    }
}
