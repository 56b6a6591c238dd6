//! Names to addresses, for what dials only.
//!
//! Names are absolute: no search domains, because `api` must never become
//! `api.internal.example`; and the machine's hosts file is not read, since what it names is ours,
//! not the tenant's. The operator's own file (`dial_guard.hosts_file`) is given as a map. Whatever
//! comes out is judged by `address.rs` afterwards; nothing here decides what may be reached.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};

use super::destination::Host;

/// Names that are answered from settings, in lower case without a final dot, before DNS is asked.
pub type Hosts = HashMap<String, Vec<IpAddr>>;

/// More addresses than any honest name has; an answer with more is refused rather than judged.
const ADDRESSES_MAX: usize = 64;

/// Positive answers are kept no longer than this, whatever their TTL, so that a failover by DNS
/// takes effect.
const POSITIVE_TTL_MAX: Duration = Duration::from_secs(60);

/// A name that does not exist may be created at any moment.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(5);

/// Names in the cache of one worker.
const CACHE_ENTRIES: u64 = 4096;

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The machine's resolver settings could not be read.
    #[error("the resolver settings of this machine could not be read: {0}")]
    Settings(String),
    /// DNS answered with an error, or not at all.
    #[error("the name could not be resolved: {0}")]
    Lookup(String),
    /// The name exists and has no address.
    #[error("the name has no address")]
    NoAddress,
    /// An answer that nobody should act on.
    #[error("the name has more than {ADDRESSES_MAX} addresses")]
    TooMany,
}

/// The addresses of a name that is not asked of DNS.
pub(super) fn known(name: &str, hosts: &Hosts) -> Option<Vec<IpAddr>> {
    if let Some(addresses) = hosts.get(name) {
        return Some(addresses.clone());
    }
    // RFC 6761 §6.3: never asked of DNS. Both are judged, so a guard that permits loopback has to
    // permit both.
    let is_local = name == "localhost" || name.ends_with(".localhost");
    is_local.then(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

/// The resolver of one worker, or of what looks after gateways.
#[derive(Default)]
pub(crate) struct Resolver {
    hosts: Hosts,
    /// Built on the first name that needs it: a node without names to resolve needs no DNS.
    dns: OnceLock<TokioResolver>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.hosts.len();
        write!(f, "Resolver({hosts} known names)")
    }
}

impl Resolver {
    pub(crate) fn new(hosts: Hosts) -> Self {
        Self {
            hosts,
            dns: OnceLock::new(),
        }
    }

    /// All addresses of a host, IPv4 first; at least one.
    pub(crate) async fn resolve(&self, host: &Host) -> Result<Vec<IpAddr>, ResolveError> {
        let name = match host {
            Host::Literal(ip) => return Ok(vec![*ip]),
            Host::Name(name) => name,
        };
        let addresses = if let Some(addresses) = known(name, &self.hosts) {
            addresses
        } else {
            let answer = self.dns()?.lookup_ip(format!("{name}.")).await;
            let answer = answer.map_err(|error| ResolveError::Lookup(error.to_string()))?;
            answer.iter().take(ADDRESSES_MAX + 1).collect()
        };
        match addresses.len() {
            0 => Err(ResolveError::NoAddress),
            1..=ADDRESSES_MAX => Ok(addresses),
            _ => Err(ResolveError::TooMany),
        }
    }

    fn dns(&self) -> Result<&TokioResolver, ResolveError> {
        if let Some(dns) = self.dns.get() {
            return Ok(dns);
        }
        let settings =
            |error: hickory_resolver::net::NetError| ResolveError::Settings(error.to_string());
        let mut builder = TokioResolver::builder_tokio().map_err(settings)?;
        let options = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Never;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = CACHE_ENTRIES;
        options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
        options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
        let dns = builder.build().map_err(settings)?;
        Ok(self.dns.get_or_init(|| dns))
    }
}
