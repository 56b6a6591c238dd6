//! Signatures of versions: the region that makes a version signs its record, so that every other
//! one knows who made what it is given, whoever passed it on.
//!
//! Ed25519 (RFC 8032). The private half is a file of the region's control planes alone; the public
//! halves stand in the file that control planes of all regions have. What is signed is the record
//! as the store holds it, which holds the head and so the hash of everything, together with
//! organisation and region, so that a signature holds for nothing else.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::id::OrgId;
use crate::seal::{KeyringError, base64_text, is_region_name};
use crate::tree::Hash;

/// Distinguishes what is signed here from everything else that the key could be made to sign.
const DOMAIN: &[u8] = b"requestrocket version signature 1\n";
/// Bytes of a seed and of a public key.
const KEY_BYTES: usize = 32;
/// Characters of a key's name.
const ID_CHARS: usize = 32;

/// The keys that a region signs with: a file of its control planes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningRing {
    /// The region.
    pub region: String,
    /// Newest first: the first one signs.
    keys: Vec<SigningKey>,
}

/// One of them; wiped when dropped.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct SigningKey {
    /// The private half, 32 bytes.
    #[serde(with = "base64_text")]
    seed: Vec<u8>,
}

/// The public half of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyingKey {
    /// Its name: the beginning of its hash.
    pub id: String,
    /// 32 bytes.
    #[serde(with = "base64_text")]
    pub key: Vec<u8>,
}

/// What signs.
pub struct Signer {
    region: String,
    public: VerifyingKey,
    pair: Ed25519KeyPair,
}

/// A signature as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The region that made the version.
    pub region: String,
    /// The key.
    pub key_id: String,
    /// 64 bytes.
    #[serde(with = "base64_text")]
    pub signature: Vec<u8>,
}

impl fmt::Debug for SigningRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningRing({})", self.region)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({}, {})", self.region, self.public.id)
    }
}

impl SigningRing {
    /// A ring without a key.
    pub fn empty(region: impl Into<String>) -> Self {
        Self {
            region: region.into(),
            keys: Vec::new(),
        }
    }

    /// Adds a fresh key, which signs from here on; gives its public half.
    pub fn rotate(&mut self) -> VerifyingKey {
        let seed = crate::seal::random::<KEY_BYTES>().to_vec();
        let key = SigningKey { seed };
        // 32 bytes are a seed, whatever they are.
        let pair = Ed25519KeyPair::from_seed_unchecked(&key.seed)
            .expect("every 32 bytes are an Ed25519 seed");
        self.keys.insert(0, key);
        VerifyingKey::of(&pair)
    }

    /// Reads and checks a ring from JSON.
    ///
    /// # Errors
    /// It is malformed or empty, or a key cannot be used. No error quotes the text.
    pub fn parse(json: &[u8]) -> Result<Self, KeyringError> {
        let ring: Self = serde_json::from_slice(json).map_err(KeyringError::malformed)?;
        if !is_region_name(&ring.region) {
            let region = crate::checks::printable(&ring.region);
            return Err(KeyringError::BadRegion(region));
        }
        for (at, key) in ring.keys.iter().enumerate() {
            if Ed25519KeyPair::from_seed_unchecked(&key.seed).is_err() {
                return Err(KeyringError::BadSigner(format!("number {}", at + 1)));
            }
        }
        match ring.keys.is_empty() {
            true => Err(KeyringError::Empty),
            false => Ok(ring),
        }
    }

    /// The ring as JSON, for a file that only its owner may read.
    pub fn to_json(&self) -> Zeroizing<String> {
        // Strings and lists only: serialising into memory cannot fail.
        Zeroizing::new(serde_json::to_string_pretty(self).unwrap_or_default())
    }

    /// The public halves of its keys, in the order in which they were made.
    pub fn verifying(&self) -> Vec<VerifyingKey> {
        let pairs = self.keys.iter().rev();
        let pairs = pairs.filter_map(|key| Ed25519KeyPair::from_seed_unchecked(&key.seed).ok());
        pairs.map(|pair| VerifyingKey::of(&pair)).collect()
    }

    /// What signs; `None` for an empty ring.
    pub fn signer(&self) -> Option<Signer> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&self.keys.first()?.seed).ok()?;
        Some(Signer {
            region: self.region.clone(),
            public: VerifyingKey::of(&pair),
            pair,
        })
    }
}

impl VerifyingKey {
    fn of(pair: &Ed25519KeyPair) -> Self {
        let key = pair.public_key().as_ref().to_vec();
        let mut id = Hash::of(&key).to_string();
        id.truncate(ID_CHARS);
        Self { id, key }
    }

    /// Whether it can be a key.
    pub fn is_well_formed(&self) -> bool {
        self.key.len() == KEY_BYTES
    }
}

impl Signer {
    /// The public half of its key.
    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    /// Signs the record of a version of an organisation.
    pub fn sign(&self, org: OrgId, record: &[u8]) -> Signature {
        let message = message(&self.region, org, record);
        Signature {
            region: self.region.clone(),
            key_id: self.public.id.clone(),
            signature: self.pair.sign(&message).as_ref().to_vec(),
        }
    }
}

/// Why a signature does not show that a region made a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Nobody has signed it.
    #[error("it has no signature")]
    Absent,
    /// It is no signature at all.
    #[error("its signature cannot be read")]
    Malformed,
    /// The region has no such key, as far as is known here.
    #[error("it is signed with key `{0}`, which is not among the keys of region {1}")]
    UnknownKey(String, String),
    /// The key did not sign this.
    #[error("its signature is not of what it holds: it was altered, or region {0} did not make it")]
    Wrong(String),
}

impl Signature {
    /// Reads one as the store holds it; nothing stands for none.
    ///
    /// # Errors
    /// [`SignatureError::Absent`], [`SignatureError::Malformed`].
    pub fn parse(json: &[u8]) -> Result<Self, SignatureError> {
        match json {
            [] => Err(SignatureError::Absent),
            json => serde_json::from_slice(json).map_err(|_| SignatureError::Malformed),
        }
    }

    /// Whether the region that it names signed this record with one of these keys of it.
    ///
    /// # Errors
    /// [`SignatureError::UnknownKey`], [`SignatureError::Wrong`].
    pub fn verify(
        &self,
        org: OrgId,
        record: &[u8],
        keys: &[VerifyingKey],
    ) -> Result<(), SignatureError> {
        let region = crate::checks::printable(&self.region);
        let Some(key) = keys.iter().find(|key| key.id == self.key_id) else {
            let id = crate::checks::printable(&self.key_id);
            return Err(SignatureError::UnknownKey(id, region));
        };
        let message = message(&self.region, org, record);
        let verified = UnparsedPublicKey::new(&ED25519, &key.key).verify(&message, &self.signature);
        verified.map_err(|_| SignatureError::Wrong(region))
    }
}

fn message(region: &str, org: OrgId, record: &[u8]) -> Vec<u8> {
    let mut message = DOMAIN.to_vec();
    for part in [region.as_bytes(), org.to_string().as_bytes(), record] {
        message.extend_from_slice(&(part.len() as u64).to_be_bytes());
        message.extend_from_slice(part);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_one_record_of_one_organisation_and_region() {
        let mut ring = SigningRing::empty("us");
        assert!(ring.signer().is_none());
        let first = ring.rotate();
        let signer = ring.signer().unwrap();
        assert_eq!(*signer.public(), first);
        let (org, other) = (OrgId::from_bits(1), OrgId::from_bits(2));
        let signature = signer.sign(org, b"record");
        let json = serde_json::to_vec(&signature).unwrap();
        assert_eq!(Signature::parse(&json).unwrap(), signature);
        let keys = [first.clone()];
        assert_eq!(signature.verify(org, b"record", &keys), Ok(()));
        let wrong = Err(SignatureError::Wrong("us".into()));
        assert_eq!(signature.verify(org, b"Record", &keys), wrong);
        assert_eq!(signature.verify(other, b"record", &keys), wrong);
        let of_eu = Signature {
            region: "eu".into(),
            ..signature.clone()
        };
        let refused = of_eu.verify(org, b"record", &keys);
        assert_eq!(refused, Err(SignatureError::Wrong("eu".into())));
        let unknown = signature.verify(org, b"record", &[]);
        assert_eq!(
            unknown,
            Err(SignatureError::UnknownKey(first.id.clone(), "us".into()))
        );
        // After a rotation both keys hold while both are listed.
        let second = ring.rotate();
        let newer = ring.signer().unwrap().sign(org, b"record");
        let both = [first, second];
        assert!(signature.verify(org, b"record", &both).is_ok());
        assert!(newer.verify(org, b"record", &both).is_ok());
        assert!(newer.verify(org, b"record", &both[..1]).is_err());
        for (json, error) in [
            (&b""[..], SignatureError::Absent),
            (b"{}", SignatureError::Malformed),
            (b"\xff", SignatureError::Malformed),
        ] {
            assert_eq!(Signature::parse(json), Err(error));
        }
    }

    #[test]
    fn a_ring_is_a_file_that_is_checked() {
        let mut ring = SigningRing::empty("us");
        ring.rotate();
        let json = ring.to_json();
        let read = SigningRing::parse(json.as_bytes()).unwrap();
        let (one, two) = (read.signer().unwrap(), ring.signer().unwrap());
        assert_eq!(one.public(), two.public());
        let short = r#"{"region": "us", "keys": [{"seed": "AAAA"}]}"#;
        let region = r#"{"region": "U S", "keys": []}"#;
        let empty = r#"{"region": "us", "keys": []}"#;
        for (json, expected) in [
            (short, KeyringError::BadSigner("number 1".into())),
            (region, KeyringError::BadRegion("U S".into())),
            (empty, KeyringError::Empty),
        ] {
            assert_eq!(SigningRing::parse(json.as_bytes()).unwrap_err(), expected);
        }
        assert!(!format!("{ring:?} {one:?}").contains("seed"));
    }
}
