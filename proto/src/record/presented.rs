//! What a record says of the key that a caller presented: enough for people to recognise it, and
//! nothing that opens anything.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use crate::seal::issued_is_well_formed;

/// The key that a caller presented, be it the right one or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresentedKey {
    /// Where it stood: the header's name in lower case, or `query`.
    #[schema(value_type = String)]
    pub place: Cow<'static, str>,
    /// The last four characters of an issued key, as the credential's `secret.hint` has them; null
    /// of a key that a user gave, or that is not whole.
    #[schema(value_type = Option<String>)]
    pub hint: Option<KeyHint>,
}

/// The last four characters of an issued key. They belong to its checksum, not to its random part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyHint([u8; KeyHint::CHARS]);

impl KeyHint {
    /// How many characters it has.
    pub const CHARS: usize = 4;

    /// That of an issued key; `None` where `key` is none, or is mistyped.
    pub fn of(key: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?;
        issued_is_well_formed(text).then(|| Self::of_known(key))?
    }

    /// That of a key which is known to be an issued one.
    pub fn of_known(key: &[u8]) -> Option<Self> {
        let end: &[u8; Self::CHARS] = key.last_chunk()?;
        let is_plain = end.iter().all(u8::is_ascii_alphanumeric);
        is_plain.then_some(Self(*end))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::str::FromStr for KeyHint {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let hint = Self::of_known(text.as_bytes());
        hint.filter(|_| text.len() == Self::CHARS).ok_or(())
    }
}

impl fmt::Display for KeyHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for KeyHint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for KeyHint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = KeyHint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("four letters or digits")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<KeyHint, E> {
                text.parse()
                    .map_err(|()| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{issue_api_token, issue_key};

    #[test]
    fn a_hint_is_of_whole_issued_keys_alone() {
        let key = issue_key();
        let hint = KeyHint::of(key.as_bytes()).unwrap();
        assert_eq!(hint.as_str(), &key[key.len() - 4..]);
        let json = serde_json::to_string(&hint).unwrap();
        assert_eq!(serde_json::from_str::<KeyHint>(&json).unwrap(), hint);
        assert!(KeyHint::of(issue_api_token().as_bytes()).is_some());
        let cut = &key.as_bytes()[..key.len() - 1];
        for none in [cut, b"rr_live_abcd", b"secret", b"", b"\xff\xff\xff\xff"] {
            assert_eq!(KeyHint::of(none), None, "{none:?}");
        }
        for no_hint in ["\"abc\"", "\"abcde\"", "\"a-cd\"", "\"é€\"", "7"] {
            assert!(serde_json::from_str::<KeyHint>(no_hint).is_err());
        }
    }
}
