//! Typed identifiers: `tgt_…`, `crd_…`, `prx_…`, … are UUIDv7 in Crockford's base32.
//!
//! A [`TargetId`] cannot be passed where a [`ProxyId`] is wanted. Ids are issued by control only;
//! their 74 random bits make them unguessable, their time part keeps them sorted by creation.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What an id names; gives its prefix.
pub trait Kind {
    /// The three letters before the underscore.
    const PREFIX: &'static str;
    /// The word for it in messages.
    const NAME: &'static str;
}

/// The id of one thing of kind `K`.
pub struct Id<K> {
    bits: u128,
    kind: PhantomData<fn() -> K>,
}

/// The kinds of things that have ids.
pub mod kind {
    use super::Kind;

    macro_rules! kinds {
        ($($(#[$doc:meta])* $name:ident, $prefix:literal, $word:literal;)*) => {$(
            $(#[$doc])*
            #[derive(Debug)]
            pub enum $name {}
            impl Kind for $name {
                const PREFIX: &'static str = $prefix;
                const NAME: &'static str = $word;
            }
        )*};
    }

    kinds! {
        /// A tenant.
        Org, "org", "organisation";
        /// An upstream API.
        Target, "tgt", "target";
        /// A proxy or target credential.
        Credential, "crd", "credential";
        /// The callable thing.
        Proxy, "prx", "proxy";
        /// A rule of one scope.
        Rule, "rul", "rule";
        /// A response or request filter.
        Filter, "flt", "filter";
        /// A rate limit or other meter.
        Meter, "mtr", "meter";
        /// An API token of the control plane.
        Token, "tok", "token";
        /// One request through the gateway.
        Request, "req", "request";
        /// A data-plane process.
        Node, "nod", "node";
    }
}

/// Id of an organisation.
pub type OrgId = Id<kind::Org>;
/// Id of a target.
pub type TargetId = Id<kind::Target>;
/// Id of a credential of either kind.
pub type CredentialId = Id<kind::Credential>;
/// Id of a proxy.
pub type ProxyId = Id<kind::Proxy>;
/// Id of a rule.
pub type RuleId = Id<kind::Rule>;
/// Id of a filter.
pub type FilterId = Id<kind::Filter>;
/// Id of a meter.
pub type MeterId = Id<kind::Meter>;
/// Id of an API token.
pub type TokenId = Id<kind::Token>;
/// Id of a request.
pub type RequestId = Id<kind::Request>;
/// Id of a node.
pub type NodeId = Id<kind::Node>;

/// Crockford's base32, lower case: no i, l, o, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 26 characters of 5 bits hold 128 bits; the first one uses only 3.
const TEXT_LEN: usize = 26;
/// Characters that a machine word of 64 bits holds.
const PIECE_LEN: usize = 12;

impl<K: Kind> Id<K> {
    /// A fresh id, from the clock and 74 random bits (UUIDv7, RFC 9562).
    pub fn new() -> Self {
        Self::from_bits(uuid::Uuid::now_v7().as_u128())
    }

    /// The id with these 128 bits.
    pub const fn from_bits(bits: u128) -> Self {
        Self {
            bits,
            kind: PhantomData,
        }
    }

    /// The id's 128 bits.
    pub const fn bits(self) -> u128 {
        self.bits
    }

    /// The id as text in a buffer on the stack, for places that must not allocate.
    pub fn text(self) -> IdText {
        let mut text = [0u8; 4 + TEXT_LEN];
        text[..3].copy_from_slice(K::PREFIX.as_bytes());
        text[3] = b'_';
        // In pieces that fit a machine word: shifting 128 bits takes several times as long.
        let mut left = self.bits;
        for piece in text[4..].rchunks_mut(PIECE_LEN) {
            let mut word = left as u64;
            for slot in piece.iter_mut().rev() {
                *slot = ALPHABET[(word & 31) as usize];
                word >>= 5;
            }
            left >>= 5 * PIECE_LEN;
        }
        IdText(text)
    }
}

/// An id's text without allocation; see [`Id::text`].
#[derive(Clone, Copy)]
pub struct IdText([u8; 4 + TEXT_LEN]);

impl IdText {
    /// The characters.
    pub fn as_str(&self) -> &str {
        // The alphabet is ASCII, so this never takes the default.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl AsRef<[u8]> for IdText {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} id: expected `{prefix}_` and 26 characters of 0-9 a-z")]
pub struct IdError {
    text: String,
    kind: &'static str,
    prefix: &'static str,
}

impl<K: Kind> FromStr for Id<K> {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        parse(text, K::PREFIX)
            .map(Self::from_bits)
            .ok_or_else(|| IdError {
                text: text.chars().take(64).collect(),
                kind: K::NAME,
                prefix: K::PREFIX,
            })
    }
}

fn parse(text: &str, prefix: &str) -> Option<u128> {
    let digits = text.strip_prefix(prefix)?.strip_prefix('_')?.as_bytes();
    if digits.len() != TEXT_LEN || digits[0] > b'7' {
        return None;
    }
    digits.iter().try_fold(0u128, |bits, digit| {
        let value = ALPHABET.iter().position(|known| known == digit)?;
        Some((bits << 5) | value as u128)
    })
}

impl<K: Kind> Default for Id<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.bits == other.bits
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bits.cmp(&other.bits)
    }
}
impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits.hash(state);
    }
}
impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}
impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text().as_str())
    }
}
impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
impl<K: Kind> utoipa::PartialSchema for Id<K> {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some(format!(
                "^{}_[0-7][0-9a-hjkmnp-tv-z]{{25}}$",
                K::PREFIX
            )))
            .description(Some(format!("Id of a {}", K::NAME)))
            .into()
    }
}
impl<K: Kind> utoipa::ToSchema for Id<K> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for bits in [0, 1, u128::MAX, 0x0192_f00d_7000_8000_0000_0000_0000_0001] {
            let id = ProxyId::from_bits(bits);
            assert_eq!(id.to_string().parse::<ProxyId>(), Ok(id));
        }
        let (first, second) = (RequestId::new(), RequestId::new());
        assert_ne!(first, second);
        assert!(
            first.to_string() <= second.to_string(),
            "ids sort by creation"
        );
    }

    #[test]
    fn other_texts_are_refused() {
        let good = ProxyId::from_bits(7).to_string();
        for bad in [
            "",
            "prx_",
            "prx",
            &good[..29],
            &format!("{good}0"),
            &good.replace("prx", "tgt"),
            &good.replace('7', "u"),
            &good.to_uppercase(),
            "prx_80000000000000000000000000",
            "prx_é0000000000000000000000000",
        ] {
            assert!(bad.parse::<ProxyId>().is_err(), "{bad}");
        }
    }
}
