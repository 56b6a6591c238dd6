//! From which address a request comes when proxies of ours stand before a listener: what they say
//! of it counts as far as they are trusted, and what a caller says of itself never.
//!
//! Each proxy adds at the right the address that it was called from (RFC 7239 §5.2, or the older
//! `X-Forwarded-For`). So the list is walked from the right, past trusted proxies only; the first
//! other address is the caller's, and whatever stands left of it the caller may have written. What
//! is no address ends the walk at the hop before it. Only one of the two fields is read: a proxy
//! that writes one lets the other pass as the caller sent it.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The field in which trusted proxies name whom they were called by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For: 192.0.2.1, 10.0.0.7`, which most proxies write.
    #[default]
    XForwardedFor,
    /// `Forwarded: for=192.0.2.1, for="[2001:db8::1]:4711"` (RFC 7239).
    Forwarded,
}

impl ForwardedHeader {
    /// Its name on the wire, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }
}

/// Whom to believe about callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    /// Networks of the proxies before the listener; nobody is believed when empty.
    pub networks: Vec<IpNet>,
    /// Where they say it.
    pub header: ForwardedHeader,
}

impl TrustedProxies {
    /// Whether an address is that of a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let mut networks = self.networks.iter();
        networks.any(|network| network.contains(&address))
    }

    /// The address of the caller of a request that came from `peer`, with the lines of
    /// [`Self::header`] in their order.
    pub fn source<'h>(&self, peer: IpAddr, lines: impl Iterator<Item = &'h [u8]>) -> IpAddr {
        if !self.trusts(peer) {
            return peer;
        }
        let mut walk = Walk {
            proxies: self,
            end: None,
        };
        // Several lines are one list (RFC 9110 §5.3).
        for line in lines {
            let Ok(line) = std::str::from_utf8(line) else {
                walk.hop(None);
                continue;
            };
            match self.header {
                ForwardedHeader::XForwardedFor => {
                    line.split(',').for_each(|hop| walk.hop(node(hop)));
                }
                // With an open quotation mark a caller could hide what the proxy has added.
                ForwardedHeader::Forwarded if elements(line, &mut walk).is_none() => walk.hop(None),
                ForwardedHeader::Forwarded => {}
            }
        }
        walk.end.unwrap_or(peer)
    }
}

/// Where the walk from the right ends in the hops read so far, which come from the left: so nothing
/// has to be kept of them.
struct Walk<'p> {
    proxies: &'p TrustedProxies,
    /// None: at the hop that is read next, or at the peer.
    end: Option<IpAddr>,
}

impl Walk<'_> {
    fn hop(&mut self, address: Option<IpAddr>) {
        self.end = match address.map(|address| address.to_canonical()) {
            Some(proxy) if self.proxies.trusts(proxy) => self.end.or(Some(proxy)),
            // The caller; or what hides whoever is behind it.
            other => other,
        };
    }
}

/// An address with or without a port; IPv6 may stand in brackets.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches([' ', '\t']);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip());
    }
    // A port that the proxy does not tell (RFC 7239 §6.3).
    let text = match text.rsplit_once(":_") {
        Some((address, _)) if !address.contains(':') => return address.parse().ok(),
        Some((address, _)) => address,
        None => text,
    };
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse().ok().filter(IpAddr::is_ipv6)
}

/// Hands on the `for` of each element of a `Forwarded` line; none when the line breaks the grammar
/// of RFC 7239 §4.
fn elements(line: &str, walk: &mut Walk<'_>) -> Option<()> {
    let mut rest = line;
    let (mut address, mut seen) = (None, false);
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        let at = rest.find(['=', ',', ';']).unwrap_or(rest.len());
        if rest[at..].starts_with('=') {
            let name = &rest[..at];
            let (value, behind) = value(&rest[at + 1..])?;
            if name.eq_ignore_ascii_case("for") {
                // Named twice it says nothing.
                address = node(value).filter(|_| !seen);
                seen = true;
            }
            rest = behind.trim_start_matches([' ', '\t']);
        } else if rest[..at].trim().is_empty() {
            rest = &rest[at..];
        } else {
            return None;
        }
        let mut chars = rest.chars();
        match chars.next() {
            Some(';') => {}
            Some(',') => {
                walk.hop(address);
                (address, seen) = (None, false);
            }
            None => {
                walk.hop(address);
                return Some(());
            }
            Some(_) => return None,
        }
        rest = chars.as_str();
    }
}

/// A token or a quoted string (RFC 9110 §5.6) and what is behind it. Escapes stay: no address needs
/// one.
fn value(text: &str) -> Option<(&str, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let at = text.find([',', ';', ' ', '\t', '"']).unwrap_or(text.len());
        return Some((&text[..at], &text[at..]));
    };
    let mut chars = quoted.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((&quoted[..at], &quoted[at + 1..])),
            (_, '\\') => drop(chars.next()?),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trusted(header: ForwardedHeader) -> TrustedProxies {
        let networks = ["10.0.0.0/8", "2001:db8::/32"];
        TrustedProxies {
            networks: networks.map(|text| text.parse().unwrap()).into(),
            header,
        }
    }

    fn source(header: ForwardedHeader, peer: &str, lines: &[&str]) -> String {
        let lines = lines.iter().map(|line| line.as_bytes());
        let found = trusted(header).source(peer.parse().unwrap(), lines);
        found.to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_no_trusted_proxy_is_the_caller() {
        let check = |peer: &str, lines: &[&str], expected: &str| {
            let found = source(ForwardedHeader::XForwardedFor, peer, lines);
            assert_eq!(found, expected, "{peer} {lines:?}");
        };
        check("10.0.0.1", &["192.0.2.1"], "192.0.2.1");
        check("10.0.0.1", &["6.6.6.6, 192.0.2.1"], "192.0.2.1");
        check("10.0.0.1", &["6.6.6.6, 192.0.2.1, 10.0.0.2"], "192.0.2.1");
        check(
            "10.0.0.1",
            &["6.6.6.6", "192.0.2.1", "10.0.0.2"],
            "192.0.2.1",
        );
        check("10.0.0.1", &["192.0.2.1:4711"], "192.0.2.1");
        check("10.0.0.1", &["[2001:db9::1]:4711"], "2001:db9::1");
        check("2001:db8::5", &["2001:db9::1"], "2001:db9::1");
        check("::ffff:10.0.0.1", &["::ffff:192.0.2.1"], "192.0.2.1");
        check("10.0.0.1", &["10.0.0.9, 10.0.0.2"], "10.0.0.9");
        // Not believed: who is no proxy of ours, and what is no address.
        check("192.0.2.9", &["10.0.0.1"], "192.0.2.9");
        check("192.0.2.9", &["6.6.6.6"], "192.0.2.9");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &[""], "10.0.0.1");
        check("10.0.0.1", &["6.6.6.6, unknown"], "10.0.0.1");
        check("10.0.0.1", &["6.6.6.6, garbage, 10.0.0.2"], "10.0.0.2");
        check("10.0.0.1", &["6.6.6.6,"], "10.0.0.1");
        let long = vec!["10.0.0.2"; 100].join(",");
        check("10.0.0.1", &[&format!("6.6.6.6,{long}")], "6.6.6.6");
    }

    #[test]
    fn the_same_of_rfc_7239() {
        let check = |lines: &[&str], expected: &str| {
            let found = source(ForwardedHeader::Forwarded, "10.0.0.1", lines);
            assert_eq!(found, expected, "{lines:?}");
        };
        check(&["for=192.0.2.1"], "192.0.2.1");
        check(&["For=\"[2001:db9::17]:4711\";proto=https"], "2001:db9::17");
        check(&["for=\"[2001:db9::17]:_hidden\""], "2001:db9::17");
        check(&["for=\"192.0.2.1:_hidden\""], "192.0.2.1");
        check(&["proto=https;by=10.0.0.7; for=192.0.2.1"], "192.0.2.1");
        check(
            &["for=6.6.6.6, for=192.0.2.1;proto=http, for=10.0.0.3"],
            "192.0.2.1",
        );
        check(&["for=6.6.6.6", "for=192.0.2.1"], "192.0.2.1");
        check(&["for=6.6.6.6, for=unknown"], "10.0.0.1");
        check(&["for=6.6.6.6, for=_hidden, for=10.0.0.3"], "10.0.0.3");
        check(&["for=6.6.6.6, proto=https"], "10.0.0.1");
        check(&["for=6.6.6.6;for=192.0.2.1"], "10.0.0.1");
        check(&["for=6.6.6.6;for=192.0.2.1;for=192.0.2.1"], "10.0.0.1");
        check(&["for=\"192.0.2.\\1\""], "10.0.0.1");
        // What a caller writes must not swallow what the proxy adds behind it.
        check(&["for=6.6.6.6;a=\", for=192.0.2.1"], "10.0.0.1");
        check(&["for=6.6.6.6;a=\", for=\"[2001:db9::1]\""], "10.0.0.1");
        check(&["for=\"6.6.6.6\\\", for=192.0.2.1"], "10.0.0.1");
        check(&["6.6.6.6, for=192.0.2.1"], "10.0.0.1");
        check(&["for=6.6.6.6;a=\"", "for=192.0.2.1"], "192.0.2.1");
    }

    #[test]
    fn nobody_is_believed_by_default() {
        let line: &[u8] = b"192.0.2.1";
        let peer = IpAddr::from([127, 0, 0, 1]);
        let found = TrustedProxies::default().source(peer, std::iter::once(line));
        assert_eq!(found, peer);
    }

    proptest! {
        #[test]
        fn what_a_caller_writes_never_stands_for_what_a_proxy_adds(
            forged in prop::collection::vec("[ -~\t]{0,40}", 0..4),
            by_rfc in any::<bool>(),
        ) {
            let (header, added) = match by_rfc {
                true => (ForwardedHeader::Forwarded, "for=192.0.2.1"),
                false => (ForwardedHeader::XForwardedFor, "192.0.2.1"),
            };
            let proxies = trusted(header);
            let peer = IpAddr::from([10, 0, 0, 1]);
            let lines = || forged.iter().map(|line| line.as_bytes());
            // As a line of its own; and at the end of the caller's, where it may be lost.
            let added_line = lines().chain([added.as_bytes()]);
            prop_assert_eq!(proxies.source(peer, added_line).to_string(), "192.0.2.1");
            let joined = format!("{}, {added}", forged.join(", "));
            let found = proxies.source(peer, std::iter::once(joined.as_bytes())).to_string();
            prop_assert!(found == "192.0.2.1" || found == "10.0.0.1", "{}", found);
            // From somebody else none of it counts.
            let other = IpAddr::from([192, 0, 2, 9]);
            prop_assert_eq!(proxies.source(other, lines()), other);
        }
    }
}
