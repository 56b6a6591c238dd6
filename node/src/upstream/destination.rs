//! Where a request goes: a target's address and terms, built once per configuration version.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::uri::{Authority, Scheme as UriScheme};
use proto::hosts::{Origin, Scheme, in_url};

use super::address::GuardPolicy;
use super::tls::TlsSettings;

/// The host of a URL, in its one reading.
///
/// All spellings of an IPv4 address that the URL standard knows (`0x7f.1`, `2130706433`, `127.1`)
/// are literals here, so that none of them is taken for a name and resolved by something that
/// reads it otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address literal.
    Literal(IpAddr),
    /// A name in lower-case ASCII (punycode), absolute, without the final dot.
    Name(String),
}

/// A text that is no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host: give a name, an IPv4 address, or an IPv6 address in brackets")]
pub struct BadHost(String);

impl Host {
    /// The host of an origin.
    ///
    /// # Errors
    ///
    /// [`BadHost`] for a name that is longer than names may be.
    pub fn of(origin: &Origin) -> Result<Self, BadHost> {
        Self::parse(&in_url(&origin.host))
    }

    /// Reads a host as the URL standard does.
    ///
    /// # Errors
    ///
    /// [`BadHost`] for an empty, malformed or over-long text.
    pub fn parse(text: &str) -> Result<Self, BadHost> {
        let bad = || BadHost(text.chars().take(80).collect());
        match url::Host::parse(text).map_err(|_| bad())? {
            url::Host::Ipv4(ip) => Ok(Self::Literal(ip.into())),
            url::Host::Ipv6(ip) => Ok(Self::Literal(ip.into())),
            url::Host::Domain(name) => {
                let name = name.strip_suffix('.').unwrap_or(&name);
                let fits = |label: &str| (1..=63).contains(&label.len());
                if name.len() > 253 || !name.split('.').all(fits) {
                    return Err(bad());
                }
                Ok(Self::Name(name.to_owned()))
            }
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Literal(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Literal(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// How long each step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until there is a connection: waiting for a place in the pool, resolving, connecting, TLS.
    pub connect: Duration,
    /// From the last piece of the request to the head of the answer.
    pub first_byte: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
    /// The whole exchange, answer body included; `None` for no limit.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    /// The defaults of `design.md` §10: 5 s, 60 s, 300 s, none.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(300),
            total: None,
        }
    }
}

/// What a [`Destination`] is made of.
#[derive(Clone, Debug)]
pub struct DestinationParts {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Whom to connect to.
    pub host: Host,
    /// The port to connect to.
    pub port: u16,
    /// How the certificate is checked; ignored for [`Scheme::Http`].
    pub tls: Arc<TlsSettings>,
    /// Whether HTTP/2 may be negotiated. Only TLS negotiates: there is no HTTP/2 in plain text.
    pub http2: bool,
    /// Whose requests share connections: a reader that is slow holds up the streams beside its own,
    /// and what a target takes a connection to have proven is proven for nobody else.
    pub tenant: u128,
    /// Which addresses may be dialled.
    pub guard: Arc<GuardPolicy>,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// Connections per worker, idle ones included.
    pub connections_max: usize,
}

/// Connections per target and worker unless the target says otherwise.
pub const CONNECTIONS_MAX_DEFAULT: usize = 256;

/// Where a request goes. Immutable; shared by all workers of a configuration version.
#[derive(Clone, Debug)]
pub struct Destination {
    pub(super) parts: DestinationParts,
    pub(super) host_header: HeaderValue,
    pub(super) authority: Authority,
    pub(super) key: PoolKey,
}

impl Destination {
    /// Builds the value, with the text of the `Host` field and the key of its connections.
    ///
    /// # Errors
    ///
    /// [`BadHost`] if the host cannot stand in a `Host` field.
    pub fn new(parts: DestinationParts) -> Result<Self, BadHost> {
        let mut text = parts.host.to_string();
        if parts.port != parts.scheme.default_port() {
            text = format!("{text}:{}", parts.port);
        }
        let authority: Authority = text.parse().map_err(|_| BadHost(text.clone()))?;
        let host_header = HeaderValue::from_str(&text).map_err(|_| BadHost(text.clone()))?;
        let key = PoolKey::of(&parts);
        Ok(Self {
            parts,
            host_header,
            authority,
            key,
        })
    }

    /// The parts it was built of.
    #[must_use]
    pub fn parts(&self) -> &DestinationParts {
        &self.parts
    }

    /// The `Host` field of a request to this destination.
    #[must_use]
    pub fn host_header(&self) -> &HeaderValue {
        &self.host_header
    }

    pub(super) fn uri_scheme(&self) -> UriScheme {
        match self.parts.scheme {
            Scheme::Http => UriScheme::HTTP,
            Scheme::Https => UriScheme::HTTPS,
        }
    }
}

/// Which connections may serve a destination: those with the same tenant, scheme, host, port, TLS
/// identity, guard policy and protocol choice, and no others.
///
/// A digest, so that a request finds its pool by comparing 16 bytes. It is collision-free in the
/// cryptographic sense (BLAKE3): a tenant cannot construct a target that lands in another's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PoolKey([u8; 16]);

impl PoolKey {
    fn of(parts: &DestinationParts) -> Self {
        let mut digest = Digest::new();
        digest.field(&[parts.scheme as u8, u8::from(parts.http2)]);
        digest.field(&parts.tenant.to_be_bytes());
        digest.field(parts.host.to_string().as_bytes());
        digest.field(&parts.port.to_be_bytes());
        match parts.scheme {
            Scheme::Http => digest.field(&[]),
            Scheme::Https => digest.field(parts.tls.identity()),
        }
        let guard = &parts.guard;
        digest.list(&guard.permit, |digest, entry| {
            digest.field(entry.network.to_string().as_bytes());
            digest.list(&entry.ports, |digest, ports| {
                digest.field(&ports.start().to_be_bytes());
                digest.field(&ports.end().to_be_bytes());
            });
        });
        digest.list(&guard.allow_networks, |digest, network| {
            digest.field(network.to_string().as_bytes());
        });
        digest.list(&guard.never.sockets, |digest, socket| {
            digest.field(socket.to_string().as_bytes());
        });
        digest.list(&guard.never.networks, |digest, network| {
            digest.field(network.to_string().as_bytes());
        });
        Self(digest.finish())
    }
}

/// A digest over fields that cannot run into each other: each is preceded by its length.
pub(super) struct Digest(blake3::Hasher);

impl Digest {
    pub(super) fn new() -> Self {
        Self(blake3::Hasher::new())
    }

    pub(super) fn field(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    pub(super) fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.0.update(&(items.len() as u64).to_be_bytes());
        for item in items {
            each(self, item);
        }
    }

    pub(super) fn finish(&self) -> [u8; 16] {
        let mut out = [0; 16];
        self.0.finalize_xof().fill(&mut out);
        out
    }
}
