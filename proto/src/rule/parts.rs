//! The compiled parts of a rule: one type a part, each with its question.

use std::borrow::Cow;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::HeaderName;
use ipnet::IpNet;
use regex::Regex;

use super::{Effect, Presence};
use crate::body_view::{BodyView, JsonPath, Unreadable};
use crate::query;

/// The registered methods of RFC 9110 and PATCH (RFC 5789); the bit is the place.
const METHODS: [&[u8]; 9] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT",
];
const GET: u16 = 1;
const HEAD: u16 = 1 << 1;
/// Every method that is none of [`METHODS`].
const OTHER: u16 = 1 << 15;

/// A method as a request gives it.
#[derive(Clone, Debug)]
pub(super) struct MethodName<'a> {
    name: Cow<'a, [u8]>,
    bit: u16,
}

impl<'a> MethodName<'a> {
    pub(super) fn new(name: Cow<'a, [u8]>) -> Self {
        let bit = method_bit(name.trim_ascii());
        Self { name, bit }
    }

    pub(super) fn is(&self, method: &[u8]) -> bool {
        self.name.trim_ascii().eq_ignore_ascii_case(method)
    }
}

fn method_bit(name: &[u8]) -> u16 {
    let place = METHODS
        .iter()
        .position(|method| method.eq_ignore_ascii_case(name));
    place.map_or(OTHER, |place| 1 << place)
}

/// The methods that a rule, or any rule of a scope, covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Methods {
    mask: u16,
    others: Vec<Vec<u8>>,
}

impl Methods {
    /// Adds a method; GET brings HEAD, since HEAD shows what GET would.
    pub(super) fn add(&mut self, name: &str) {
        let bit = method_bit(name.as_bytes());
        self.mask |= if bit == GET { GET | HEAD } else { bit };
        if bit == OTHER {
            self.others.push(name.as_bytes().to_vec());
        }
    }

    /// The methods of both.
    pub(super) fn with(mut self, more: &Self) -> Self {
        self.mask |= more.mask;
        self.others.extend_from_slice(&more.others);
        self
    }

    pub(super) fn cover(&self, method: &MethodName<'_>) -> bool {
        self.mask & method.bit != 0
            && (method.bit != OTHER || self.others.iter().any(|other| method.is(other)))
    }
}

/// Whether a part holds for an effect, given what each candidate value says.
///
/// A deny is satisfied by any value, an allow must not be fooled by a good value beside a bad one.
/// An absent part is the negation, so it asks the other way round.
pub(super) fn holds(
    effect: Effect,
    presence: Presence,
    mut fits: impl Iterator<Item = bool>,
) -> bool {
    let every = (effect == Effect::Allow) == (presence == Presence::Present);
    let present = if every {
        fits.next()
            .is_some_and(|first| first && fits.all(|fits| fits))
    } else {
        fits.any(|fits| fits)
    };
    present == (presence == Presence::Present)
}

/// How the name of a header or parameter is compared.
#[derive(Clone, Debug)]
pub(super) enum NameMatcher<E> {
    /// With one name, by lookup.
    Exact(E),
    /// With a pattern that fits whole names.
    Pattern(Regex),
}

/// A compiled condition on headers.
#[derive(Clone, Debug)]
pub(super) struct HeaderMatcher {
    pub(super) name: NameMatcher<HeaderName>,
    pub(super) value: Option<Regex>,
    pub(super) presence: Presence,
}

impl HeaderMatcher {
    pub(super) fn matches(&self, effect: Effect, headers: &HeaderMap) -> bool {
        let fits = |value: &http::HeaderValue| fits(self.value.as_ref(), value.as_bytes());
        match &self.name {
            NameMatcher::Exact(name) => holds(
                effect,
                self.presence,
                headers.get_all(name).iter().map(fits),
            ),
            NameMatcher::Pattern(pattern) => {
                let named = headers
                    .iter()
                    .filter(|(name, _)| pattern.is_match(name.as_str()));
                holds(effect, self.presence, named.map(|(_, value)| fits(value)))
            }
        }
    }
}

/// A compiled condition on query parameters.
#[derive(Clone, Debug)]
pub(super) struct QueryMatcher {
    pub(super) name: NameMatcher<Vec<u8>>,
    pub(super) value: Option<Regex>,
    pub(super) presence: Presence,
}

impl QueryMatcher {
    pub(super) fn matches(&self, effect: Effect, query: &[u8]) -> bool {
        let named = query::pairs(query).filter(|(name, _)| match &self.name {
            NameMatcher::Exact(exact) => **name == **exact,
            NameMatcher::Pattern(pattern) => pattern.is_match(&String::from_utf8_lossy(name)),
        });
        let values = named.map(|(_, value)| fits(self.value.as_ref(), &value));
        holds(effect, self.presence, values)
    }
}

/// Bytes that are not UTF-8 become U+FFFD: a pattern's `.` must see that something is there.
fn fits(pattern: Option<&Regex>, value: &[u8]) -> bool {
    pattern.is_none_or(|pattern| pattern.is_match(&String::from_utf8_lossy(value)))
}

/// A compiled condition on the body.
#[derive(Clone, Debug)]
pub(super) struct BodyMatcher {
    pub(super) path: JsonPath,
    pub(super) value: Option<Regex>,
    pub(super) presence: Presence,
}

impl BodyMatcher {
    pub(super) fn matches(&self, effect: Effect, view: &BodyView) -> Result<bool, Unreadable> {
        let mut readings = view.documents().iter();
        let Some(first) = readings.next() else {
            return Ok(holds(effect, self.presence, std::iter::empty()));
        };
        let mut matches = self.matches_document(effect, first)?;
        for reading in readings {
            let also = self.matches_document(effect, reading)?;
            matches = match effect {
                Effect::Deny => matches || also,
                Effect::Allow => matches && also,
            };
        }
        Ok(matches)
    }

    fn matches_document(
        &self,
        effect: Effect,
        document: &crate::body_view::Document,
    ) -> Result<bool, Unreadable> {
        let found = document.find(&self.path)?;
        let fits = found.iter().map(|text| match (&self.value, text) {
            (None, _) => true,
            (Some(pattern), Some(text)) => pattern.is_match(text),
            (Some(_), None) => false,
        });
        Ok(holds(effect, self.presence, fits))
    }
}

/// Reads a network or a single address; an IPv4-mapped one is its IPv4 form.
pub(super) fn parse_network(text: &str) -> Option<IpNet> {
    let network = match text.parse::<IpNet>() {
        Ok(network) => network,
        Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?),
    };
    let IpNet::V6(v6) = network else {
        return Some(network);
    };
    let mapped = v6
        .addr()
        .to_ipv4_mapped()
        .zip(v6.prefix_len().checked_sub(96));
    match mapped {
        Some((address, prefix)) => IpNet::new(address.into(), prefix).ok(),
        None => Some(network),
    }
}
