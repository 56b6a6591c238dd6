//! Sealing of target secrets to a region's public key (HPKE, RFC 9180).
//!
//! Control holds public keys only: it stores secrets that it cannot read. A sealed value is bound
//! to its organisation, credential, hosts and seal id as associated data, so that whoever may
//! write the store can neither move a secret to another credential nor widen where it is sent.
//! The binding names the seal id (random) instead of the generation: a lost race changes the
//! number of a version, never what was sealed.
//!
//! Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.

mod digest;
mod joining;
mod keyring;
mod new_secret;

use std::convert::Infallible;

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub use self::digest::{
    DigestKey, Purpose, invitation_id, invited_region, issue_api_token, issue_invitation,
    issue_key, issued_is_well_formed,
};
pub use self::joining::{open_digest_key, seal_digest_key};
pub use self::keyring::{KeyPair, Keyring, KeyringError, PublicKeyring, is_region_name};
pub use self::new_secret::{NewSecret, SealedAhead, submitted_identity};
use crate::credential::{AuthType, SecretInput};
use crate::hosts::HostPattern;
use crate::id::{CredentialId, OrgId};

/// Separates this use of the key pair from every other one (RFC 9180 §5.1, `info`).
const INFO: &[u8] = b"requestrocket sealed secret 1";
/// Longest plaintext that is sealed: 32 parts of 16 KiB and their names, in bytes.
const PLAINTEXT_BYTES_MAX: usize = 640 * 1024;

/// The public half of a region's sealing key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionPublicKey {
    /// The region whose nodes can open what is sealed to it.
    pub region: String,
    /// Names the key pair within the region's key ring.
    pub key_id: String,
    /// The X25519 public key.
    #[serde(with = "base64_text")]
    pub key: Vec<u8>,
}

impl RegionPublicKey {
    /// Whether something can be sealed to it.
    pub fn is_well_formed(&self) -> bool {
        <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&self.key).is_ok()
    }

    /// What two people compare to know that they mean the same key of the same region: SHA-256
    /// over both, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for part in [self.region.as_bytes(), &self.key] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hex::encode(hash.finalize())
    }
}

/// A sealed secret as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// The key pair that opens it.
    pub key_id: String,
    /// The region of the key pair.
    pub region: String,
    /// The encapsulated key.
    #[serde(with = "base64_text")]
    pub enc: Vec<u8>,
    /// The secret, encrypted and authenticated together with its binding.
    #[serde(with = "base64_text")]
    pub ciphertext: Vec<u8>,
}

/// What a sealed secret is for; a secret opens under exactly the binding it was sealed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding<'a> {
    /// The organisation.
    pub org: OrgId,
    /// The credential.
    pub credential: CredentialId,
    /// Where the secret may be sent; order and repetition do not matter.
    pub hosts: &'a [HostPattern],
    /// The seal's own name.
    pub seal_id: &'a str,
}

impl Binding<'_> {
    /// The associated data: every part preceded by its length, so no two bindings look alike.
    fn encode(&self) -> Vec<u8> {
        let mut hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        hosts.sort_unstable();
        hosts.dedup();
        let mut out = b"requestrocket binding 1".to_vec();
        let parts = [
            self.org.to_string(),
            self.credential.to_string(),
            self.seal_id.to_owned(),
        ];
        for part in parts.iter().chain(&hosts) {
            out.extend_from_slice(&(part.len() as u64).to_be_bytes());
            out.extend_from_slice(part.as_bytes());
        }
        out
    }
}

/// Why a secret could not be sealed or opened. Says nothing of the secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The public or private key is not an X25519 key.
    #[error("key `{0}` is not an X25519 key")]
    BadKey(String),
    /// The key ring has no such key: it was sealed for another region or an older ring.
    #[error("no key `{key_id}` of region `{region}` in this key ring")]
    UnknownKey {
        /// The key asked for.
        key_id: String,
        /// Its region.
        region: String,
    },
    /// Wrong key, another binding, or altered bytes.
    #[error("the sealed value does not open under this key and binding")]
    Refused,
    /// It opened, but is not a secret of a known shape.
    #[error("the sealed value holds no secret of a known shape")]
    Malformed,
    /// The secret is too large.
    #[error("the secret is larger than {PLAINTEXT_BYTES_MAX} bytes")]
    TooLarge,
}

/// Seals a secret to a region.
///
/// # Errors
/// The public key is malformed, or the secret is too large.
pub fn seal(
    public: &RegionPublicKey,
    binding: &Binding<'_>,
    secret: &SecretInput,
) -> Result<Sealed, SealError> {
    let plaintext = Zeroizing::new(serde_json::to_vec(secret).map_err(|_| SealError::Malformed)?);
    if plaintext.len() > PLAINTEXT_BYTES_MAX {
        return Err(SealError::TooLarge);
    }
    seal_bytes(public, (INFO, &binding.encode()), &plaintext)
}

/// Seals bytes for a use (`info`), bound to associated data.
fn seal_bytes(
    public: &RegionPublicKey,
    (info, bound): (&[u8], &[u8]),
    plaintext: &[u8],
) -> Result<Sealed, SealError> {
    let bad_key = || SealError::BadKey(public.key_id.clone());
    let key =
        <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&public.key).map_err(|_| bad_key())?;
    let (enc, ciphertext) = hpke::single_shot_seal_with_rng::<
        AesGcm256,
        HkdfSha256,
        X25519HkdfSha256,
    >(&OpModeS::Base, &key, info, plaintext, bound, &mut Random)
    .map_err(|_| bad_key())?;
    Ok(Sealed {
        key_id: public.key_id.clone(),
        region: public.region.clone(),
        enc: enc.to_bytes().to_vec(),
        ciphertext,
    })
}

/// Opens a sealed secret with the key pair that it names.
///
/// # Errors
/// The key pair is not in the ring; or the value was altered, or sealed under another binding.
pub fn open(
    keyring: &Keyring,
    binding: &Binding<'_>,
    sealed: &Sealed,
) -> Result<SecretInput, SealError> {
    let plaintext = open_bytes(keyring, (INFO, &binding.encode()), sealed)?;
    serde_json::from_slice(&plaintext).map_err(|_| SealError::Malformed)
}

/// Opens what [`seal_bytes`] sealed for the same use, bound to the same.
fn open_bytes(
    keyring: &Keyring,
    (info, bound): (&[u8], &[u8]),
    sealed: &Sealed,
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let pair = keyring
        .pair(&sealed.region, &sealed.key_id)
        .ok_or_else(|| SealError::UnknownKey {
            key_id: sealed.key_id.clone(),
            region: sealed.region.clone(),
        })?;
    let key = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(pair.private())
        .map_err(|_| SealError::BadKey(pair.id().to_owned()))?;
    let enc = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(&sealed.enc)
        .map_err(|_| SealError::Refused)?;
    hpke::single_shot_open::<AesGcm256, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &key,
        &enc,
        info,
        &sealed.ciphertext,
        bound,
    )
    .map(Zeroizing::new)
    .map_err(|_| SealError::Refused)
}

/// Opens a sealed secret and seals it for another region, under the same binding.
///
/// # Errors
/// As for [`open`] and [`seal`].
pub fn reseal(
    keyring: &Keyring,
    to: &RegionPublicKey,
    binding: &Binding<'_>,
    sealed: &Sealed,
) -> Result<Sealed, SealError> {
    // `SecretInput` wipes its parts when it is dropped.
    let secret = open(keyring, binding, sealed)?;
    seal(to, binding, &secret)
}

/// The one text of a secret that its digest is taken of: what a caller presents.
///
/// `basic` is `user:password` (RFC 7617 §2); `custom` is JSON; the others are the key or token.
pub fn canonical_text(auth_type: AuthType, secret: &SecretInput) -> Zeroizing<String> {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    Zeroizing::new(match auth_type {
        AuthType::ApiKey => part(&secret.key),
        AuthType::Bearer | AuthType::Jwt => part(&secret.token),
        AuthType::Basic => {
            let username = Zeroizing::new(part(&secret.username));
            let password = Zeroizing::new(part(&secret.password));
            let mut text = String::with_capacity(username.len() + password.len() + 1);
            text.push_str(&username);
            text.push(':');
            text.push_str(&password);
            text
        }
        // Serialising strings into memory cannot fail.
        AuthType::Custom => serde_json::to_string(secret).unwrap_or_default(),
        AuthType::None => String::new(),
    })
}

/// A fresh 128-bit name as 32 hex digits.
pub fn random_name() -> String {
    hex::encode(random::<16>())
}

/// Bytes from the operating system's seeded generator (aws-lc).
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    fill(&mut bytes);
    bytes
}

fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("aws-lc seeds its generator or ends the process");
}

/// aws-lc's generator as hpke wants it.
struct Random;

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_ne_bytes(random()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_ne_bytes(random()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        fill(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Random {}

/// Bytes as base64 text (RFC 4648 §4) in JSON.
pub(crate) mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
