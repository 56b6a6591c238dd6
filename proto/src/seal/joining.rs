//! The digest key of an installation on its way to a region that joins it: sealed to that region's
//! public key and bound to the invitation, so that nobody on the way can read it, and no answer to
//! another invitation passes for this one.

use zeroize::Zeroizing;

use super::{DigestKey, Keyring, RegionPublicKey, SealError, Sealed, open_bytes, seal_bytes};

/// Separates this use of a region's key pair from that for secrets (RFC 9180 §5.1, `info`).
const INFO: &[u8] = b"requestrocket sealed digest key 1";

/// Seals the digest key to a region that joins by `invitation`.
///
/// # Errors
/// The public key is malformed.
pub fn seal_digest_key(
    public: &RegionPublicKey,
    invitation: &str,
    key: &DigestKey,
) -> Result<Sealed, SealError> {
    let text = Zeroizing::new(serde_json::to_vec(key).map_err(|_| SealError::Malformed)?);
    seal_bytes(public, (INFO, invitation.as_bytes()), &text)
}

/// Opens it in the region that joins.
///
/// # Errors
/// It is sealed to another key or for another invitation, was altered, or holds no digest key.
pub fn open_digest_key(
    keyring: &Keyring,
    invitation: &str,
    sealed: &Sealed,
) -> Result<DigestKey, SealError> {
    let text = open_bytes(keyring, (INFO, invitation.as_bytes()), sealed)?;
    serde_json::from_slice(&text).map_err(|_| SealError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::SecretInput;
    use crate::id::{CredentialId, OrgId};
    use crate::seal::{self, Binding};

    #[test]
    fn it_opens_in_its_region_and_for_its_invitation_alone() {
        let (ring, other) = (Keyring::generate("ap"), Keyring::generate("ap"));
        let public = ring.public().unwrap();
        let key = DigestKey::generate();
        let sealed = seal_digest_key(&public, "one", &key).unwrap();
        assert!(open_digest_key(&ring, "one", &sealed).unwrap() == key);
        assert_eq!(
            open_digest_key(&ring, "two", &sealed).err(),
            Some(SealError::Refused)
        );
        assert!(matches!(
            open_digest_key(&other, "one", &sealed).err(),
            Some(SealError::UnknownKey { .. })
        ));
        let mut altered = sealed.clone();
        altered.ciphertext[0] ^= 1;
        assert_eq!(
            open_digest_key(&ring, "one", &altered).err(),
            Some(SealError::Refused)
        );
        // Neither passes for the other.
        let binding = Binding {
            org: OrgId::from_bits(1),
            credential: CredentialId::from_bits(1),
            hosts: &[],
            seal_id: "one",
        };
        assert!(seal::open(&ring, &binding, &sealed).is_err());
        let secret = SecretInput::default();
        let secret = seal::seal(&public, &binding, &secret).unwrap();
        assert!(open_digest_key(&ring, "one", &secret).is_err());
    }
}
