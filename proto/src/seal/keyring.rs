//! A region's key ring: the key pairs that open sealed secrets, and the key of digests.
//!
//! A value: where it comes from (a file, the environment) is the caller's. Nodes hold all of it,
//! control the public half and the digest key.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, Serializable};

use super::{DigestKey, Random, RegionPublicKey, random_name};
use crate::signature::VerifyingKey;

/// More key pairs than a ring needs: one that is rotated every month has a year's.
const KEYS_MAX: usize = 16;

/// The keys of a region.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyring {
    /// The region's name.
    pub region: String,
    /// Newest first: the first one seals, all open.
    pub keys: Vec<KeyPair>,
    /// The key of digests; equal in all regions of an installation.
    pub digest_key: DigestKey,
    /// Keys of other regions that a person vouches for: what this region can open is sealed for
    /// these too, as far as its credentials are for them. One for each region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<RegionPublicKey>,
}

/// One key pair; its private half is wiped when dropped.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// Its name within the ring.
    id: String,
    /// X25519 private key, 32 bytes.
    #[serde(with = "super::base64_text")]
    private: Vec<u8>,
}

/// What a control plane has of a region's key ring: it seals secrets and opens none.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicKeyring {
    /// Seals.
    pub public: RegionPublicKey,
    /// The key of digests.
    pub digest_key: DigestKey,
    /// The keys that versions of the region are signed with. While there are none its versions are
    /// taken without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<VerifyingKey>,
}

impl std::fmt::Debug for PublicKeyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKeyring({})", self.public.region)
    }
}

impl PublicKeyring {
    /// Reads and checks the file of a control plane.
    ///
    /// # Errors
    /// It is malformed, or the key cannot be used. No error quotes the text.
    pub fn parse(json: &[u8]) -> Result<Self, KeyringError> {
        let ring: Self = serde_json::from_slice(json).map_err(KeyringError::malformed)?;
        if !ring.public.is_well_formed() {
            let id = crate::checks::printable(&ring.public.key_id);
            return Err(KeyringError::BadKey(id));
        }
        for (at, signer) in ring.signers.iter().enumerate() {
            let id = || crate::checks::printable(&signer.id);
            if !signer.is_well_formed() {
                return Err(KeyringError::BadSigner(id()));
            }
            if ring.signers[..at].iter().any(|other| other.id == signer.id) {
                return Err(KeyringError::Duplicate(id()));
            }
        }
        Ok(ring)
    }

    /// The same as JSON, for a file that only its owner may read: who has the digest key can test
    /// guesses of weak secrets.
    pub fn to_json(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_json::to_string_pretty(self).unwrap_or_default())
    }
}

/// Why a key ring cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// It is not the JSON of a key ring. The parser's own words could quote a key.
    #[error("is not a key ring (line {line}, column {column})")]
    Malformed {
        /// Where reading stopped.
        line: usize,
        /// Where reading stopped.
        column: usize,
    },
    /// It has no key, so nothing could be sealed.
    #[error("has no key")]
    Empty,
    /// A key is not 32 bytes.
    #[error("key `{0}` is not an X25519 key of 32 bytes")]
    BadKey(String),
    /// A key of signatures is not 32 bytes.
    #[error("key `{0}` is not an Ed25519 key of 32 bytes")]
    BadSigner(String),
    /// Two keys have one name.
    #[error("key `{0}` stands twice")]
    Duplicate(String),
    /// The region has no name that fits a store key.
    #[error("region `{0}` must be 1 to 40 characters of a-z, 0-9 and `-`")]
    BadRegion(String),
    /// It vouches for its own region, which needs nobody to.
    #[error("`trusted` lists the ring's own region `{0}`; it is for keys of others")]
    OwnTrusted(String),
    /// It vouches for two keys of one region: which of them counts would be chance.
    #[error("`trusted` lists region `{0}` twice")]
    TrustedTwice(String),
}

impl KeyringError {
    pub(crate) fn malformed(error: serde_json::Error) -> Self {
        Self::Malformed {
            line: error.line(),
            column: error.column(),
        }
    }
}

/// Whether a text can be the name of a region: a part of store keys and of versions' names.
pub fn is_region_name(text: &str) -> bool {
    let named = text
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    named && (1..=40).contains(&text.len())
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyPair({})", self.id)
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({})", self.region)
    }
}

impl KeyPair {
    /// A fresh pair.
    pub fn generate() -> Self {
        let (private, _) = X25519HkdfSha256::gen_keypair_with_rng(&mut Random);
        Self {
            id: random_name(),
            private: private.to_bytes().to_vec(),
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn private(&self) -> &[u8] {
        &self.private
    }
}

impl Keyring {
    /// A new ring with one key pair.
    pub fn generate(region: impl Into<String>) -> Self {
        Self::generate_with(region, DigestKey::generate())
    }

    /// A new ring for a further region of the installation that this digest key is of.
    pub fn generate_with(region: impl Into<String>, digest_key: DigestKey) -> Self {
        Self {
            region: region.into(),
            keys: vec![KeyPair::generate()],
            digest_key,
            trusted: Vec::new(),
        }
    }

    /// Puts a fresh key pair first: it seals from now on, and those before it open what they
    /// opened. `None` where there are as many as a ring may have.
    pub fn rotate(&mut self) -> Option<&KeyPair> {
        if self.keys.len() >= KEYS_MAX {
            return None;
        }
        self.keys.insert(0, KeyPair::generate());
        self.keys.first()
    }

    /// Takes an older key out; whether it was there. The first one stays: it seals.
    pub fn forget(&mut self, id: &str) -> bool {
        let older = self.keys.iter().skip(1).position(|pair| pair.id == id);
        older.is_some_and(|at| {
            self.keys.remove(at + 1);
            true
        })
    }

    /// The names of its keys, the one that seals first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(KeyPair::id)
    }

    /// Vouches for the key of another region, in the place of what it had before; gives that.
    pub fn trust(&mut self, key: RegionPublicKey) -> Option<RegionPublicKey> {
        let known = self
            .trusted
            .iter_mut()
            .find(|known| known.region == key.region);
        match known {
            Some(known) => Some(std::mem::replace(known, key)),
            None => {
                self.trusted.push(key);
                None
            }
        }
    }

    /// Reads and checks a ring from JSON.
    ///
    /// # Errors
    /// It is malformed, empty, or a key in it cannot be used. No error quotes the text.
    pub fn parse(json: &[u8]) -> Result<Self, KeyringError> {
        let ring: Self = serde_json::from_slice(json).map_err(KeyringError::malformed)?;
        if !is_region_name(&ring.region) {
            return Err(KeyringError::BadRegion(crate::checks::printable(
                &ring.region,
            )));
        }
        for (at, pair) in ring.keys.iter().enumerate() {
            if <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&pair.private).is_err() {
                return Err(KeyringError::BadKey(crate::checks::printable(&pair.id)));
            }
            if ring.keys[..at].iter().any(|other| other.id == pair.id) {
                return Err(KeyringError::Duplicate(crate::checks::printable(&pair.id)));
            }
        }
        if ring.keys.is_empty() {
            return Err(KeyringError::Empty);
        }
        for (at, key) in ring.trusted.iter().enumerate() {
            let name = || crate::checks::printable(&key.region);
            if !is_region_name(&key.region) {
                return Err(KeyringError::BadRegion(name()));
            }
            if key.region == ring.region {
                return Err(KeyringError::OwnTrusted(name()));
            }
            let others = &ring.trusted[..at];
            if others.iter().any(|other| other.region == key.region) {
                return Err(KeyringError::TrustedTwice(name()));
            }
            if !key.is_well_formed() {
                return Err(KeyringError::BadKey(crate::checks::printable(&key.key_id)));
            }
        }
        Ok(ring)
    }

    /// The ring as JSON, for a file that only its owner may read.
    pub fn to_json(&self) -> Zeroizing<String> {
        // Strings and lists only: serialising into memory cannot fail.
        Zeroizing::new(serde_json::to_string_pretty(self).unwrap_or_default())
    }

    /// The public half of the key that seals; `None` for an empty ring.
    pub fn public(&self) -> Option<RegionPublicKey> {
        let pair = self.keys.first()?;
        let private = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&pair.private).ok()?;
        Some(RegionPublicKey {
            region: self.region.clone(),
            key_id: pair.id.clone(),
            key: X25519HkdfSha256::sk_to_pk(&private).to_bytes().to_vec(),
        })
    }

    /// What control planes have of the ring; `None` for an empty one.
    pub fn public_half(&self) -> Option<PublicKeyring> {
        Some(PublicKeyring {
            public: self.public()?,
            digest_key: self.digest_key.clone(),
            signers: Vec::new(),
        })
    }

    pub(super) fn pair(&self, region: &str, key_id: &str) -> Option<&KeyPair> {
        if region != self.region {
            return None;
        }
        self.keys.iter().find(|pair| pair.id == key_id)
    }
}
