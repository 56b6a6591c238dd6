//! Pure: may this address be dialled at all.
//!
//! The one place that decides which addresses a tenant can reach (`design.md` §8, Dial guard). It
//! works on resolved addresses, never on names, because a name can answer anything. It is an allow
//! list: only global unicast passes. A deny list would have to grow with every new special range;
//! here a range that is forgotten is one that stays closed as long as it lies outside
//! `2000::/3`, and within the two global spaces the table below names every special range of the
//! IANA registries (RFC 6890 and its successors).
//!
//! An address that passes is an [`AllowedAddr`], which only [`judge`] can make and which is the
//! only thing the dialler connects to: the judged address is the one connected to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What the operator permits one organisation beyond global addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PermitEntry {
    /// The addresses of the entry.
    pub network: IpNet,
    /// The ports of the entry; an empty list permits none.
    pub ports: Vec<RangeInclusive<u16>>,
}

impl PermitEntry {
    /// Every address and port but port 0.
    pub fn all() -> Vec<Self> {
        let any = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
        any.into_iter()
            .filter_map(|ip| IpNet::new(ip, 0).ok())
            .map(|network| Self {
                network,
                ports: vec![1..=u16::MAX],
            })
            .collect()
    }
}

/// Addresses that no setting can permit, besides the built-in metadata addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Never {
    /// Exact sockets: our own listeners, peer and control links, etcd endpoints. An unspecified
    /// address (`0.0.0.0`, `::`) is a wildcard bind: every address of this machine, on that port.
    pub sockets: Vec<SocketAddr>,
    /// Whole networks, on every port.
    pub networks: Vec<IpNet>,
    /// Sockets that come and go.
    pub learned: Learned,
}

/// Sockets like [`Never::sockets`] that become known while the process runs: the listeners of
/// control planes. All clones are one.
#[derive(Clone, Debug, Default)]
pub struct Learned(Arc<ArcSwap<Vec<SocketAddr>>>);

impl Learned {
    /// From now on these.
    pub fn set(&self, sockets: Vec<SocketAddr>) {
        self.0.store(Arc::new(sockets));
    }
}

/// Whether they are one: what they hold may change at any time.
impl PartialEq for Learned {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Learned {}

/// Everything that decides whether an address may be dialled for one target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardPolicy {
    /// The operator's `dial_guard.permit`, already reduced to the target's organisation.
    pub permit: Vec<PermitEntry>,
    /// The target's own `allow_networks`; takes effect only inside an entry of `permit`.
    pub allow_networks: Vec<IpNet>,
    /// Never dialled, whatever the two lists above say.
    pub never: Never,
}

/// An address that [`judge`] let pass. There is no other way to make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedAddr(SocketAddr);

impl AllowedAddr {
    /// The address to connect to.
    #[must_use]
    pub fn socket(self) -> SocketAddr {
        self.0
    }
}

/// Why an address was refused. For the log only: a caller learns `upstream-blocked`, nothing else,
/// or the guard would map our network for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// One of our own listeners, links or stores, or a metadata service.
    #[error("the address is one that no setting can permit")]
    Never,
    /// A special range, and no permit entry together with `allow_networks` names it.
    #[error("the address is {0}, and no permit entry with allow_networks names it")]
    NotGlobal(Range),
    /// A port that needs a permit entry of its own.
    #[error("port {0} needs a permit entry that names it")]
    Port(u16),
}

/// The special ranges by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// `0.0.0.0/8`, `::`.
    ThisNetwork,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// RFC 1918, unique local `fc00::/7`, site-local `fec0::/10`.
    Private,
    /// Shared address space of carrier NAT, `100.64.0.0/10` (RFC 6598).
    CarrierNat,
    /// `169.254.0.0/16`, `fe80::/10`.
    LinkLocal,
    /// `192.0.0.0/24`, `2001::/23` and other protocol assignments.
    Protocol,
    /// Documentation (RFC 5737, RFC 3849, RFC 9637).
    Documentation,
    /// Benchmarking (RFC 2544, RFC 5180).
    Benchmarking,
    /// `224.0.0.0/4`, `ff00::/8`.
    Multicast,
    /// Reserved, broadcast, or outside the global unicast space `2000::/3`.
    Reserved,
    /// IPv4 within IPv6: mapped, compatible, translated (NAT64), 6to4, Teredo, ISATAP.
    Embedded,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ThisNetwork => "of this network",
            Self::Loopback => "a loopback address",
            Self::Private => "private",
            Self::CarrierNat => "in shared address space",
            Self::LinkLocal => "link-local",
            Self::Protocol => "assigned to a protocol",
            Self::Documentation => "for documentation",
            Self::Benchmarking => "for benchmarking",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
            Self::Embedded => "an IPv4 address within IPv6",
        })
    }
}

/// Metadata services of the clouds. Reaching one of them gives away the machine's identity.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// Ports of services that no HTTP target uses and that do harm when spoken to: 0, ssh, smtp, etcd.
const GUARDED_PORTS: [RangeInclusive<u16>; 4] = [0..=0, 22..=22, 25..=25, 2379..=2380];

/// Special IPv4 ranges (IANA IPv4 Special-Purpose Address Registry, plus multicast).
static SPECIAL_V4: LazyLock<Vec<(Ipv4Net, Range)>> = LazyLock::new(|| {
    let net = |a, b, c, d, length| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length);
    vec![
        (net(0, 0, 0, 0, 8), Range::ThisNetwork),
        (net(10, 0, 0, 0, 8), Range::Private),
        (net(100, 64, 0, 0, 10), Range::CarrierNat),
        (net(127, 0, 0, 0, 8), Range::Loopback),
        (net(169, 254, 0, 0, 16), Range::LinkLocal),
        (net(172, 16, 0, 0, 12), Range::Private),
        (net(192, 0, 0, 0, 24), Range::Protocol),
        (net(192, 0, 2, 0, 24), Range::Documentation),
        (net(192, 31, 196, 0, 24), Range::Protocol), // AS112, RFC 7535
        (net(192, 52, 193, 0, 24), Range::Protocol), // AMT, RFC 7450
        (net(192, 88, 99, 0, 24), Range::Embedded),  // 6to4 relays, RFC 7526
        (net(192, 168, 0, 0, 16), Range::Private),
        (net(192, 175, 48, 0, 24), Range::Protocol), // AS112, RFC 7534
        (net(198, 18, 0, 0, 15), Range::Benchmarking),
        (net(198, 51, 100, 0, 24), Range::Documentation),
        (net(203, 0, 113, 0, 24), Range::Documentation),
        (net(224, 0, 0, 0, 4), Range::Multicast),
        (net(240, 0, 0, 0, 4), Range::Reserved),
    ]
});

/// Special IPv6 ranges; what is neither here nor in `2000::/3` is reserved. The first match wins.
static SPECIAL_V6: LazyLock<Vec<(Ipv6Net, Range)>> = LazyLock::new(|| {
    let net = |a, b, c, length| Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length);
    let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
    let translated = Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0); // RFC 2765
    vec![
        (
            Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128),
            Range::ThisNetwork,
        ),
        (
            Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128),
            Range::Loopback,
        ),
        (Ipv6Net::new_assert(mapped, 96), Range::Embedded),
        (Ipv6Net::new_assert(translated, 96), Range::Embedded),
        (
            Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 96),
            Range::Embedded,
        ), // compatible
        (net(0x64, 0xff9b, 0, 96), Range::Embedded), // NAT64, RFC 6052
        (net(0x64, 0xff9b, 1, 48), Range::Embedded), // RFC 8215
        (net(0x100, 0, 0, 64), Range::Reserved),     // discard, RFC 6666
        (net(0x2001, 0, 0, 32), Range::Embedded),    // Teredo, RFC 4380
        (net(0x2001, 2, 0, 48), Range::Benchmarking), // RFC 5180
        (net(0x2001, 0, 0, 23), Range::Protocol),    // RFC 2928
        (net(0x2001, 0xdb8, 0, 32), Range::Documentation),
        (net(0x2002, 0, 0, 16), Range::Embedded), // 6to4, RFC 3056
        (net(0x2620, 0x4f, 0x8000, 48), Range::Protocol), // AS112, RFC 7534
        (net(0x3fff, 0, 0, 20), Range::Documentation), // RFC 9637
        (net(0x5f00, 0, 0, 16), Range::Reserved), // SRv6, RFC 9602
        (net(0xfc00, 0, 0, 7), Range::Private),
        (net(0xfe80, 0, 0, 10), Range::LinkLocal),
        (net(0xfec0, 0, 0, 10), Range::Private),
        (net(0xff00, 0, 0, 8), Range::Multicast),
    ]
});

/// Judges one resolved address.
///
/// `is_ours` says whether an address belongs to this machine. It is asked only where the port is
/// one of our wildcard listeners, since it may cost a system call.
///
/// # Errors
///
/// [`Refused`], for the log.
pub fn judge(
    address: SocketAddr,
    policy: &GuardPolicy,
    is_ours: &dyn Fn(IpAddr) -> bool,
) -> Result<AllowedAddr, Refused> {
    let (ip, port) = (address.ip(), address.port());
    let inner = embedded(ip);
    for ip in std::iter::once(ip).chain(inner.iter().copied()) {
        if is_never(ip, port, &policy.never, is_ours) {
            return Err(Refused::Never);
        }
    }
    if GUARDED_PORTS.iter().any(|range| range.contains(&port)) && !policy.permits(ip, port) {
        return Err(Refused::Port(port));
    }
    for ip in std::iter::once(ip).chain(inner) {
        if let Some(range) = special(ip)
            && !(policy.permits(ip, port) && policy.allows(ip))
        {
            return Err(Refused::NotGlobal(range));
        }
    }
    // Scope and flow are dropped: a scope would choose one of our interfaces.
    Ok(AllowedAddr(SocketAddr::new(ip, port)))
}

impl GuardPolicy {
    fn permits(&self, ip: IpAddr, port: u16) -> bool {
        self.permit.iter().any(|entry| {
            entry.network.contains(&ip) && entry.ports.iter().any(|range| range.contains(&port))
        })
    }

    fn allows(&self, ip: IpAddr) -> bool {
        self.allow_networks
            .iter()
            .any(|network| network.contains(&ip))
    }
}

fn is_never(ip: IpAddr, port: u16, never: &Never, is_ours: &dyn Fn(IpAddr) -> bool) -> bool {
    let own_socket = |own: &SocketAddr| {
        own.port() == port
            && if own.ip().is_unspecified() {
                ip.is_unspecified() || ip.is_loopback() || is_ours(ip)
            } else {
                // Connecting to the unspecified address reaches every loopback listener.
                own.ip() == ip || (ip.is_unspecified() && is_ours(own.ip()))
            }
    };
    METADATA.contains(&ip)
        || never.networks.iter().any(|network| network.contains(&ip))
        || never.sockets.iter().any(own_socket)
        || never.learned.0.load().iter().any(own_socket)
}

/// The special range of an address; `None` for global unicast.
fn special(ip: IpAddr) -> Option<Range> {
    match ip {
        IpAddr::V4(ip) => SPECIAL_V4
            .iter()
            .find(|(network, _)| network.contains(&ip))
            .map(|(_, range)| *range),
        IpAddr::V6(ip) => SPECIAL_V6
            .iter()
            .find(|(network, _)| network.contains(&ip))
            .map(|(_, range)| *range)
            .or((ip.segments()[0] & 0xe000 != 0x2000).then_some(Range::Reserved))
            // The interface id of ISATAP (RFC 5214 §6.1) can stand below any prefix.
            .or(isatap(ip).map(|_| Range::Embedded)),
    }
}

/// The IPv4 addresses that an IPv6 address may lead to.
fn embedded(ip: IpAddr) -> Vec<IpAddr> {
    let IpAddr::V6(ip) = ip else {
        return Vec::new();
    };
    let segments = ip.segments();
    let pair = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Unspecified and loopback are addresses of their own, not compatible ones.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => vec![pair(high, low)],
        // A local NAT64 prefix may be of any length below the /48, and nobody tells us which
        // (RFC 6052 §2.2: /96, /48, /56, /64): every reading has to pass.
        [0x64, 0xff9b, 1, a, b, c, high, low] => vec![
            pair(high, low),
            pair(a, (b & 0xff) << 8 | c >> 8),
            pair((a & 0xff) << 8 | b & 0xff, c),
            pair((b & 0xff) << 8 | c >> 8, (c & 0xff) << 8 | high >> 8),
        ],
        [0x2002, high, low, ..] => vec![pair(high, low)],
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            vec![pair(server_high, server_low), pair(!high, !low)]
        }
        _ => isatap(ip).into_iter().collect(),
    }
}

fn isatap(ip: Ipv6Addr) -> Option<IpAddr> {
    match ip.segments() {
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        _ => None,
    }
}
