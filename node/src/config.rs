//! Boot settings of the data plane. Everything else is versioned configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use proto::forwarded::{ForwardedHeader, TrustedProxies};
use serde::{Deserialize, Serialize};

/// The listener that callers connect to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewaySettings {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate that callers see; plain HTTP without one.
    pub tls: TlsSettings,
    /// Base URL under which callers reach this gateway; the listening address when absent.
    pub public_url: Option<String>,
    /// Organisation whose proxies answer to `/api/{alias}` without its slug.
    pub default_org: String,
    /// Host names that open proxies (credential type `none`) answer to, besides loopback names.
    pub allowed_hosts: Vec<String>,
    /// Networks of proxies before this listener that are believed about where a request comes from.
    pub trusted_proxies: Vec<IpNet>,
    /// The field in which they say it.
    pub forwarded_header: ForwardedHeader,
    /// Worker threads; 0 takes one per core.
    pub workers: usize,
    /// Most requests in flight; more are answered 503 `overloaded`.
    pub requests_in_flight_max: u64,
    /// Most requests waiting before one stage of one worker.
    pub mailbox_capacity: usize,
    /// Most open connections of callers.
    pub connections_max: usize,
    /// Most open connections of one IPv4 address or IPv6 /64; 0 sets no such limit.
    pub connections_per_ip_max: usize,
    /// Largest request head, in bytes.
    pub head_bytes_max: usize,
    /// Longest time for a request's head to arrive, in milliseconds.
    pub head_timeout_ms: u64,
    /// Longest pause inside a request's body, in milliseconds.
    pub body_idle_timeout_ms: u64,
    /// How long an idle connection of a caller is kept, in milliseconds.
    pub keep_alive_ms: u64,
    /// How long connections without a request are kept at shutdown, in milliseconds.
    pub drain_idle_ms: u64,
    /// Longest time for requests in flight to end at shutdown, after that, in milliseconds.
    pub drain_ms: u64,
    /// Put the reason of a 401 into its `detail`. For development: it tells whether a proxy
    /// exists.
    pub explain_unauthorized: bool,
    /// Offer `Basic` beside `Bearer` in every 401, for clients that send a key only when asked
    /// (git, wget, browsers).
    pub basic_challenge: bool,
    /// Obey the header `requestrocket-fault`: `panic@{stage}` lets that stage panic with the
    /// request's path in what it says, `panic@task:{task}` that background task of this process,
    /// `sent-at` has the target told in `requestrocket-sent-at` when the request left
    /// (CLOCK_BOOTTIME in nanoseconds). For tests of the gateway itself.
    pub fault_injection: bool,
    /// Limits by day and month take this process's wall clock to be so far ahead, in milliseconds;
    /// negative: behind. So does a control plane where nodes ask it for the time. Only with
    /// `fault_injection`, and for tests of the gateway itself: a real machine is given the right
    /// time.
    pub fault_clock_ahead_ms: i64,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            tls: TlsSettings::default(),
            public_url: None,
            default_org: "default".into(),
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            workers: 0,
            requests_in_flight_max: 10_000,
            mailbox_capacity: 1_024,
            connections_max: 25_000,
            connections_per_ip_max: 0,
            head_bytes_max: 65_535,
            head_timeout_ms: 10_000,
            body_idle_timeout_ms: 60_000,
            keep_alive_ms: 75_000,
            drain_idle_ms: 1_000,
            drain_ms: 30_000,
            explain_unauthorized: false,
            basic_challenge: false,
            fault_injection: false,
            fault_clock_ahead_ms: 0,
        }
    }
}

impl GatewaySettings {
    /// Who is believed about callers.
    pub fn proxies(&self) -> TrustedProxies {
        TrustedProxies {
            networks: self.trusted_proxies.clone(),
            header: self.forwarded_header,
        }
    }
}

/// The certificate of a listener. Both files or none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// A PEM file with the certificate, followed by those of the authorities between it and a root.
    pub cert_file: Option<PathBuf>,
    /// A PEM file with its key.
    pub key_file: Option<PathBuf>,
}

/// Which addresses that are not public tenants may ask for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DialGuardSettings {
    /// Exceptions; default none.
    pub permit: Vec<Permission>,
    /// A file in the form of `/etc/hosts` whose names are resolved first.
    pub hosts_file: Option<PathBuf>,
}

/// One exception of the dial guard.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permission {
    /// The network that may be dialled.
    pub network: IpNet,
    /// Its ports, each `443` or `8000-8999`; default `["443"]`.
    #[serde(default = "https_only")]
    pub ports: Vec<String>,
    /// Slugs of the organisations it is for; `["*"]` for all.
    pub orgs: Vec<String>,
}

fn https_only() -> Vec<String> {
    vec!["443".into()]
}
