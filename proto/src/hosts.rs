//! Where a target credential may be sent: exact hosts, or one wildcard label.
//!
//! The list is bound into the sealed secret, so that whoever may edit a target cannot point an
//! existing secret somewhere else. A wildcard directly below a public suffix, private section
//! included, would be other people's hosts: it is refused when it is saved, and matches nothing
//! wherever it comes from.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// A scheme that a target may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// The scheme's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port used when none is written.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Scheme, host and port of a destination: what the dialler connects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Lower-case host name, IPv4 address, or IPv6 address without brackets; no trailing dot.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// A host of an [`Origin`] as it stands in a URL: an IPv6 address has brackets there.
pub fn in_url(host: &str) -> Cow<'_, str> {
    match host.contains(':') {
        true => Cow::Owned(format!("[{host}]")),
        false => Cow::Borrowed(host),
    }
}

impl Origin {
    /// The origin of a parsed URL, or why it has none that we can reach.
    ///
    /// # Errors
    /// The scheme is not http or https, or the host is missing.
    pub fn of(url: &url::Url) -> Result<Self, String> {
        let scheme = match url.scheme() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            other => return Err(format!("scheme `{other}` is not http or https")),
        };
        let host = match url.host() {
            Some(url::Host::Domain(name)) => name.trim_end_matches('.').to_ascii_lowercase(),
            Some(url::Host::Ipv4(address)) => address.to_string(),
            Some(url::Host::Ipv6(address)) => address.to_string(),
            None => return Err("the URL has no host".into()),
        };
        if host.is_empty() {
            return Err("the URL has no host".into());
        }
        Ok(Self {
            scheme,
            host,
            port: url.port().unwrap_or(scheme.default_port()),
        })
    }

    /// `host` or `host:port` as it stands in a `Host` header field (RFC 9110 §7.2).
    pub fn authority(&self) -> String {
        let host = in_url(&self.host);
        if self.port == self.scheme.default_port() {
            host.into_owned()
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

/// One entry of a credential's `hosts`: an origin whose host may begin with `*.`.
///
/// Written `api.example.com`, `*.example.com`, `api.example.com:8443` or
/// `http://localhost:9000`; the scheme is https and its port 443 unless written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern {
    /// Scheme, host without the wildcard label, port.
    origin: Origin,
    /// Whether exactly one further label must stand before the host.
    wildcard: bool,
    /// Whether anybody may own a name that the wildcard stands for.
    too_wide: bool,
}

impl HostPattern {
    /// The pattern that matches exactly this origin.
    pub fn exact(origin: Origin) -> Self {
        Self {
            origin,
            wildcard: false,
            too_wide: false,
        }
    }

    /// Whether this is a wildcard over other people's names: directly below a public suffix.
    pub fn is_too_wide(&self) -> bool {
        self.too_wide
    }

    /// Whether the written form covers `origin`, be it too wide or not.
    pub fn covers(&self, origin: &Origin) -> bool {
        if self.origin.scheme != origin.scheme || self.origin.port != origin.port {
            return false;
        }
        if !self.wildcard {
            return self.origin.host == origin.host;
        }
        origin
            .host
            .strip_suffix(&self.origin.host)
            .and_then(|rest| rest.strip_suffix('.'))
            .is_some_and(|label| !label.is_empty() && !label.contains('.'))
    }

    /// Whether a secret bound to this pattern may be sent to `origin`.
    pub fn matches(&self, origin: &Origin) -> bool {
        !self.too_wide && self.covers(origin)
    }
}

/// A text that is no host pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a host: write api.example.com, api.example.com:8443, \
     *.example.com or [2001:db8::1]"
)]
pub struct HostPatternError(String);

impl FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<Self, HostPatternError> {
        let malformed = || HostPatternError(text.chars().take(100).collect());
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None => ("https", text),
        };
        let (wildcard, host) = match rest.strip_prefix("*.") {
            Some(host) => (true, host),
            None => (false, rest),
        };
        if host.is_empty() || host.contains(['/', '?', '#', '@', '*', '\\']) {
            return Err(malformed());
        }
        let url = url::Url::parse(&format!("{scheme}://{host}/")).map_err(|_| malformed())?;
        let origin = Origin::of(&url).map_err(|_| malformed())?;
        if wildcard {
            let numeric = url
                .host()
                .is_none_or(|host| !matches!(host, url::Host::Domain(_)));
            if numeric {
                return Err(malformed());
            }
        }
        let too_wide =
            wildcard && (is_public_suffix(&origin.host) || covers_public_suffixes(&origin.host));
        Ok(Self {
            origin,
            wildcard,
            too_wide,
        })
    }
}

/// Whether `host` is itself a public suffix (ICANN or private section, publicsuffix.org), or a
/// single label.
fn is_public_suffix(host: &str) -> bool {
    !host.contains('.') || psl::suffix(host.as_bytes()).is_none_or(|suffix| suffix == host)
}

/// Whether each name one label below `host` is a public suffix (the list's `*.` rules): anybody
/// can have a name there.
fn covers_public_suffixes(host: &str) -> bool {
    let below = format!("any-name.{host}");
    psl::suffix(below.as_bytes()).is_some_and(|suffix| suffix == below.as_str())
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin.scheme == Scheme::Http {
            f.write_str("http://")?;
        }
        if self.wildcard {
            f.write_str("*.")?;
        }
        f.write_str(&self.origin.authority())
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for HostPattern {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        <String as utoipa::PartialSchema>::schema()
    }
}
impl ToSchema for HostPattern {}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Origin {
        Origin::of(&url::Url::parse(url).unwrap()).unwrap()
    }

    #[test]
    fn a_pattern_matches_its_own_hosts_only() {
        for (pattern, url, expected) in [
            ("api.stripe.com", "https://api.stripe.com/v1", true),
            ("api.stripe.com", "https://API.Stripe.com./v1", true),
            ("api.stripe.com", "http://api.stripe.com/v1", false),
            ("api.stripe.com", "https://api.stripe.com:8443/v1", false),
            ("api.stripe.com", "https://m.example/", false),
            ("api.stripe.com", "https://api.stripe.com.m.example/", false),
            ("api.stripe.com:8443", "https://api.stripe.com:8443/", true),
            ("*.example.com", "https://a.example.com/", true),
            ("*.example.com", "https://a.b.example.com/", false),
            ("*.example.com", "https://example.com/", false),
            ("*.example.com", "https://xexample.com/", false),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000/x", true),
            ("http://127.0.0.1:9000", "http://0x7f.1:9000/x", true),
            ("http://[::1]:9000", "http://[0:0::1]:9000/x", true),
            ("[2001:db8::1]", "https://[2001:db8::1]/x", true),
            ("[2001:db8::1]:8443", "https://[2001:db8::1]:8443/x", true),
            ("[2001:db8::1]", "https://[2001:db8::2]/x", false),
        ] {
            let parsed: HostPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(&origin(url)), expected, "{pattern} {url}");
            assert_eq!(parsed.to_string().parse::<HostPattern>().unwrap(), parsed);
        }
    }

    #[test]
    fn a_wildcard_over_other_peoples_names_matches_nothing() {
        for (pattern, below) in [
            ("*.myshopify.com", "shop.myshopify.com"),
            ("*.s3.amazonaws.com", "bucket.s3.amazonaws.com"),
            ("*.workers.dev", "a.workers.dev"),
            ("*.co.uk", "a.co.uk"),
            ("*.com", "a.com"),
            ("*.localhost", "a.localhost"),
            // Names below are public suffixes by a rule with `*.` of the list.
            ("*.compute-1.amazonaws.com", "a.compute-1.amazonaws.com"),
            ("*.elb.amazonaws.com", "a.elb.amazonaws.com"),
            ("*.platformsh.site", "a.platformsh.site"),
        ] {
            let parsed: HostPattern = pattern.parse().unwrap();
            let origin = origin(&format!("https://{below}/"));
            assert!(parsed.is_too_wide() && parsed.covers(&origin), "{pattern}");
            assert!(!parsed.matches(&origin), "{pattern}");
            let exact: HostPattern = below.parse().unwrap();
            assert!(!exact.is_too_wide() && exact.matches(&origin), "{below}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for pattern in [
            "*",
            "",
            "a.*.example.com",
            "*.127.0.0.1",
            "ftp://example.com",
            "user@example.com",
            "example.com/path",
            "exa mple.com",
            "2001:db8::1",
            "*.[::1]",
        ] {
            assert!(pattern.parse::<HostPattern>().is_err(), "{pattern}");
        }
    }
}
