//! `mask`: a value makes way for a string that says less.
//!
//! The value keeps its place and its name. What stands there instead is always a string, whatever
//! the type of the value was; `null` stays, for it hides nothing. Of an object or array all that
//! is in it goes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::json_text::{JsonText, Kind, NodeId};
use crate::problem::Problem;

/// Longest fixed text, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// Most characters that `last` keeps.
pub const LAST_MAX: u8 = 32;
/// What stands for a value where nothing else is said, and before the characters that are kept.
const STARS: &str = "***";
/// Hex digits of a hash that are shown: 128 bits, so that no two values share one by chance.
const HASH_DIGITS: usize = 32;

/// What a `mask` puts in the place of a value: one of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mask {
    /// This text, at most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// `***` and so many of the last characters of the value, 1 to 32. Of a value that is not at
    /// least twice as long, and of an object or array, `***` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u8>,
    /// `hash:` and 32 hex digits of a keyed hash, the same for equal texts everywhere in the
    /// organisation, so that values can be told apart and joined without being seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hash: bool,
}

/// A [`Mask`] that says one thing. In the order of what they give away, least first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum With {
    Text(String),
    Hash,
    Last(u8),
}

/// An organisation's key for [`Mask::hash`].
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MaskKey([u8; 32]);

impl MaskKey {
    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MaskKey(…)")
    }
}

impl Mask {
    /// What it says; a fixed text where nothing is.
    ///
    /// # Errors
    /// The problem.
    pub(super) fn with(&self) -> Result<With, Problem> {
        match (&self.text, self.last, self.hash) {
            (Some(text), None, false) if text.len() > TEXT_BYTES_MAX => {
                let length = text.len();
                let detail =
                    format!("the text has {length} bytes, at most {TEXT_BYTES_MAX} are allowed");
                Err(Problem::new("/mask/text", "mask-text-too-long", detail))
            }
            (None, Some(last), false) if !(1..=LAST_MAX).contains(&last) => {
                let detail = format!("1 to {LAST_MAX} characters can be kept");
                Err(Problem::new("/mask/last", "mask-last-range", detail))
            }
            (Some(text), None, false) => Ok(With::Text(text.clone())),
            (None, Some(last), false) => Ok(With::Last(last)),
            (None, None, true) => Ok(With::Hash),
            (None, None, false) => Ok(With::default()),
            _ => {
                let detail = "name one of `text`, `last` and `hash`";
                Err(Problem::new("/mask", "mask-not-one", detail))
            }
        }
    }
}

impl Default for With {
    fn default() -> Self {
        Self::Text(STARS.to_owned())
    }
}

impl With {
    /// What stands in the place of a value; nothing where it stays.
    pub(super) fn of(&self, document: &JsonText<'_>, id: NodeId, key: &MaskKey) -> Option<String> {
        let kind = document.kind(id);
        if kind == Kind::Null {
            return None;
        }
        Some(match self {
            With::Text(text) => text.clone(),
            With::Last(_) if kind.is_container() => STARS.to_owned(),
            With::Last(count) => {
                let text = text_of(document, id);
                let kept = usize::from(*count);
                let mut ends = text.char_indices().rev();
                let start = ends.nth(kept.saturating_sub(1)).map(|(at, _)| at);
                let long = start.is_some_and(|at| text[..at].chars().nth(kept - 1).is_some());
                match start.filter(|_| long) {
                    Some(at) => format!("{STARS}{}", &text[at..]),
                    None => STARS.to_owned(),
                }
            }
            With::Hash => {
                let mut hash = blake3::keyed_hash(&key.0, text_of(document, id).as_bytes())
                    .to_hex()
                    .to_string();
                hash.truncate(HASH_DIGITS);
                format!("hash:{hash}")
            }
        })
    }
}

/// The text of a string without escapes, of another value as it stands there.
fn text_of<'t>(document: &'t JsonText<'_>, id: NodeId) -> std::borrow::Cow<'t, str> {
    match document.kind(id) {
        Kind::String => document.string(id),
        _ => document.render_value(id),
    }
}
