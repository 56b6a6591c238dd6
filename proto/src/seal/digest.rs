//! Keyed digests of what callers present, and the keys that we issue.
//!
//! Issued keys have 256 random bits, so a fast keyed hash (BLAKE3) is enough and a slow one
//! would only be a way to exhaust the data path. The key makes stolen digests of weaker, given
//! secrets useless without it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::fill;

/// The installation's key for digests: 32 bytes, base64 in a key ring file.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DigestKey([u8; 32]);

/// What a digest is of; digests of different purposes never match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A caller's secret.
    ProxyCredential,
    /// A target credential's secret, to tell equal ones without opening them.
    TargetFingerprint,
    /// A token of the REST API.
    ApiToken,
    /// The key of the configuration that a node keeps on its disk; the secret is the region.
    KeptCopy,
    /// What gateways of two regions tell each other with a request.
    RegionLink,
    /// An organisation's key for masks that hash; the secret is the organisation's name.
    Masks,
    /// A secret as it was submitted, to tell whether two requests are the same one.
    Submitted,
    /// What one control plane tells another of a secret that it sealed.
    SealedAhead,
}

impl DigestKey {
    /// A fresh key.
    pub fn generate() -> Self {
        let mut key = Self([0; 32]);
        fill(&mut key.0);
        key
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Keyed BLAKE3 of a secret, separated by purpose.
    pub fn digest(&self, purpose: Purpose, secret: &[u8]) -> [u8; 32] {
        // All marks have one length, so no mark and secret together look like another pair.
        let mark: &[u8; 8] = match purpose {
            Purpose::ProxyCredential => b"rr proxy",
            Purpose::TargetFingerprint => b"rr targt",
            Purpose::ApiToken => b"rr token",
            Purpose::KeptCopy => b"rr kept.",
            Purpose::RegionLink => b"rr regns",
            Purpose::Masks => b"rr masks",
            Purpose::Submitted => b"rr given",
            Purpose::SealedAhead => b"rr ahead",
        };
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(mark);
        hasher.update(secret);
        *hasher.finalize().as_bytes()
    }
}

impl PartialEq for DigestKey {
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Serialize for DigestKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        super::base64_text::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for DigestKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Zeroizing::new(super::base64_text::deserialize(deserializer)?);
        let key = bytes.as_slice().try_into();
        let key = key.map_err(|_| serde::de::Error::custom("`digest_key` must have 32 bytes"))?;
        Ok(Self(key))
    }
}

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 43 characters of log2(62) = 5.95 bits hold 256 bits.
const RANDOM_CHARS: usize = 43;
/// Enough to tell a mistyped key from a revoked one without a lookup; no security rests on it.
const CHECK_CHARS: usize = 6;
const KEY_PREFIX: &str = "rr_live_";
const API_TOKEN_PREFIX: &str = "rr_api_";

/// A new key for a proxy credential: `rr_live_`, 256 random bits, a checksum; one word for a
/// double click.
pub fn issue_key() -> Zeroizing<String> {
    issue(KEY_PREFIX)
}

/// A new token for the REST API: `rr_api_`, 256 random bits, a checksum.
pub fn issue_api_token() -> Zeroizing<String> {
    issue(API_TOKEN_PREFIX)
}

/// What invitations of regions begin with; the region's name follows.
const JOIN_PREFIX: &str = "rr_join_";

/// A new invitation for a region: `rr_join_`, its name, 256 random bits, a checksum.
pub fn issue_invitation(region: &str) -> Zeroizing<String> {
    issue(&format!("{JOIN_PREFIX}{region}_"))
}

/// What an invitation is kept and spoken of by: it tells nobody the token.
pub fn invitation_id(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// The region that an invitation is for; `None` where the text is none, or is not whole.
pub fn invited_region(token: &str) -> Option<&str> {
    let (region, random) = token.strip_prefix(JOIN_PREFIX)?.rsplit_once('_')?;
    let is_whole = random.len() == RANDOM_CHARS + CHECK_CHARS
        && token
            .len()
            .checked_sub(CHECK_CHARS)
            .and_then(|at| token.split_at_checked(at))
            .is_some_and(|(text, check)| checksum(text) == check);
    (is_whole && super::is_region_name(region)).then_some(region)
}

fn issue(prefix: &str) -> Zeroizing<String> {
    // The capacity is final: a growing string would leave copies of the key in freed memory.
    let mut text = String::with_capacity(prefix.len() + RANDOM_CHARS + CHECK_CHARS);
    text.push_str(prefix);
    let mut text = Zeroizing::new(text);
    let mut byte = [0u8; 1];
    while text.len() < prefix.len() + RANDOM_CHARS {
        fill(&mut byte);
        // 248 = 4 · 62: values above it would favour the first letters.
        if byte[0] < 248 {
            text.push(char::from(BASE62[usize::from(byte[0] % 62)]));
        }
    }
    byte.zeroize();
    let check = checksum(&text);
    text.push_str(&check);
    text
}

fn checksum(text: &str) -> String {
    let hash = blake3::hash(text.as_bytes());
    let letter = |byte: &u8| char::from(BASE62[usize::from(byte % 62)]);
    hash.as_bytes()
        .iter()
        .take(CHECK_CHARS)
        .map(letter)
        .collect()
}

/// Whether a text has the form of a key or token that we issue, checksum included.
pub fn issued_is_well_formed(text: &str) -> bool {
    let Some(rest) = [KEY_PREFIX, API_TOKEN_PREFIX]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
    else {
        return false;
    };
    if rest.len() != RANDOM_CHARS + CHECK_CHARS || !rest.bytes().all(|b| BASE62.contains(&b)) {
        return false;
    }
    // All ASCII, so the split stands between characters.
    let (body, check) = text.split_at(text.len() - CHECK_CHARS);
    checksum(body) == check
}
