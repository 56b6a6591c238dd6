//! A secret on its way into the configuration: as it was given, or sealed already by the control
//! plane that first received it.

use serde::{Deserialize, Serialize};

use super::{
    Binding, DigestKey, Purpose, RegionPublicKey, SealError, Sealed, canonical_text,
    issued_is_well_formed, random_name, seal,
};
use crate::credential::{AuthType, Credential, CredentialKind, SECRET_NOT_SEARCHED, SecretInput};
use crate::hosts::HostPattern;
use crate::id::{CredentialId, OrgId};

/// A secret given with an operation, prepared once: what the object will say of it, and, for a
/// target credential, what is sealed. Never shown or stored as it is.
pub struct NewSecret {
    /// Keyed digest (proxy) or fingerprint (target), hex.
    pub digest: String,
    /// Names the sealed value; present for target credentials.
    pub seal_id: Option<String>,
    /// Whether the key was issued by us.
    pub issued: bool,
    /// The last four characters of an issued key.
    pub hint: Option<String>,
    form: Form,
}

/// What there is of a secret.
enum Form {
    /// Its digest is all that is needed: a proxy credential's.
    Digest,
    /// What is to be sealed: a target credential's.
    Plain(SecretInput),
    /// What another control plane sealed, or took the digest of, for a credential with these hosts.
    Ahead {
        of: (OrgId, CredentialId),
        hosts: Vec<HostPattern>,
        values: Vec<Sealed>,
    },
}

impl std::fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NewSecret(…)")
    }
}

impl NewSecret {
    /// Prepares a secret that was validated by [`Credential::validate_secret`].
    pub fn prepare(key: &DigestKey, credential: &Credential, input: SecretInput) -> Self {
        let text = canonical_text(credential.auth_type, &input);
        let (purpose, seal_id, form) = match credential.kind {
            CredentialKind::Proxy => (Purpose::ProxyCredential, None, Form::Digest),
            CredentialKind::Target => {
                let (purpose, name) = (Purpose::TargetFingerprint, random_name());
                (purpose, Some(name), Form::Plain(input))
            }
        };
        let issued = credential.kind == CredentialKind::Proxy && issued_is_well_formed(&text);
        Self {
            digest: hex::encode(key.digest(purpose, text.as_bytes())),
            seal_id,
            issued,
            // Issued keys are ASCII and much longer; a given secret is never hinted at.
            hint: issued.then(|| text.get(text.len() - 4..).unwrap_or_default().to_owned()),
            form,
        }
    }

    /// Whether it was prepared for a credential of this kind.
    pub fn is_of(&self, kind: CredentialKind) -> bool {
        self.seal_id.is_some() == (kind == CredentialKind::Target)
    }

    /// The credential for which another control plane sealed it, where one did.
    pub fn sealed_ahead_for(&self) -> Option<CredentialId> {
        match &self.form {
            Form::Ahead { of: (_, id), .. } => Some(*id),
            Form::Digest | Form::Plain(_) => None,
        }
    }

    /// What it was sealed for that is not this credential as it is.
    pub fn sealed_for_other(
        &self,
        named: (OrgId, CredentialId),
        credential: &Credential,
    ) -> Option<&'static str> {
        let Form::Ahead { of, hosts, .. } = &self.form else {
            return None;
        };
        let sorted = |hosts: &[HostPattern]| {
            let mut hosts = hosts.to_vec();
            hosts.sort_unstable();
            hosts.dedup();
            hosts
        };
        if *of != named {
            return Some("another credential");
        }
        (sorted(hosts) != sorted(&credential.hosts)).then_some("other hosts")
    }

    /// The secret sealed to a region; nothing where another control plane sealed it and not to
    /// this region, or where there is nothing to seal.
    ///
    /// # Errors
    /// As for [`seal`].
    pub fn sealed_to(
        &self,
        public: &RegionPublicKey,
        binding: &Binding<'_>,
    ) -> Result<Option<Sealed>, SealError> {
        match &self.form {
            Form::Digest => Ok(None),
            Form::Plain(input) => seal(public, binding, input).map(Some),
            Form::Ahead { values, .. } => {
                let mut values = values.iter();
                Ok(values.find(|of| of.region == public.region).cloned())
            }
        }
    }
}

/// A secret that the control plane of one region sealed before it sent the write on to home: no
/// other one ever has it in plain text.
///
/// It holds for exactly one credential with exactly these hosts, and only from whoever has the
/// installation's key of digests, which control planes have and callers have not.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedAhead {
    org: OrgId,
    /// The credential that it is for, which may be yet to be made.
    credential: CredentialId,
    kind: CredentialKind,
    auth_type: AuthType,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<HostPattern>,
    /// [`submitted_identity`] of what was submitted.
    identity: String,
    digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal_id: Option<String>,
    #[serde(default)]
    issued: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// Places in the secret of what is too short to be searched for in answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_searched: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    values: Vec<Sealed>,
    /// Keyed digest over all the rest, hex.
    #[serde(default)]
    proof: String,
}

impl std::fmt::Debug for SealedAhead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealedAhead({})", self.credential)
    }
}

impl SealedAhead {
    /// Seals a validated secret to those of the regions `to` that the credential is for.
    ///
    /// # Errors
    /// As for [`seal`].
    pub fn new<'k>(
        key: &DigestKey,
        (org, id, credential): (OrgId, CredentialId, &Credential),
        (input, identity): (SecretInput, String),
        to: impl Iterator<Item = &'k RegionPublicKey>,
    ) -> Result<Self, SealError> {
        let warnings = credential.secret_warnings(&input);
        let secret = NewSecret::prepare(key, credential, input);
        let binding = Binding {
            org,
            credential: id,
            hosts: &credential.hosts,
            seal_id: secret.seal_id.as_deref().unwrap_or_default(),
        };
        let mut values = Vec::new();
        for public in to.filter(|to| credential.is_for_region(&to.region)) {
            values.extend(secret.sealed_to(public, &binding)?);
        }
        let mut ahead = Self {
            org,
            credential: id,
            kind: credential.kind,
            auth_type: credential.auth_type,
            hosts: credential.hosts.clone(),
            identity,
            digest: secret.digest,
            seal_id: secret.seal_id,
            issued: secret.issued,
            hint: secret.hint,
            not_searched: warnings
                .into_iter()
                .filter(|problem| problem.code == SECRET_NOT_SEARCHED)
                .map(|problem| problem.pointer)
                .collect(),
            values,
            proof: String::new(),
        };
        ahead.proof = hex::encode(ahead.digest_of_all(key));
        Ok(ahead)
    }

    /// Whether it is a secret to be sealed and none of the regions had a key.
    pub fn is_for_nobody(&self) -> bool {
        self.seal_id.is_some() && self.values.is_empty()
    }

    fn digest_of_all(&self, key: &DigestKey) -> [u8; 32] {
        let unproved = Self {
            proof: String::new(),
            ..self.clone()
        };
        // Serialising strings into memory cannot fail.
        let text = serde_json::to_vec(&unproved).unwrap_or_default();
        key.digest(Purpose::SealedAhead, &text)
    }

    /// Whether a control plane of this installation made it, as it is, for a credential of this
    /// kind and type.
    pub fn is_genuine(&self, key: &DigestKey, credential: &Credential) -> bool {
        let expected = self.digest_of_all(key);
        let proof = hex::decode(&self.proof).unwrap_or_default();
        let proved = aws_lc_rs::constant_time::verify_slices_are_equal(&expected, &proof).is_ok();
        let form = (self.kind, self.auth_type);
        proved && form == (credential.kind, credential.auth_type)
    }

    /// What an operation takes; see [`Self::is_genuine`].
    pub fn into_new_secret(self) -> NewSecret {
        NewSecret {
            digest: self.digest,
            seal_id: self.seal_id,
            issued: self.issued,
            hint: self.hint,
            form: Form::Ahead {
                of: (self.org, self.credential),
                hosts: self.hosts,
                values: self.values,
            },
        }
    }
}

/// What tells whether two submitted secrets are the same text, and nothing else of them.
pub fn submitted_identity(key: &DigestKey, text: &str) -> String {
    hex::encode(key.digest(Purpose::Submitted, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{Keyring, open};
    use serde_json::json;

    fn credential(kind: &str, hosts: &[&str]) -> Credential {
        let fields = json!({"kind": kind, "auth_type": "bearer", "hosts": hosts});
        serde_json::from_value(fields).unwrap()
    }

    fn token(text: &str) -> SecretInput {
        serde_json::from_value(json!({ "token": text })).unwrap()
    }

    const ORG: OrgId = OrgId::from_bits(1);
    const ID: CredentialId = CredentialId::from_bits(2);

    #[test]
    fn a_secret_sealed_ahead_opens_in_the_regions_of_its_credential_only() {
        let (key, eu, us) = (
            DigestKey::generate(),
            Keyring::generate("eu"),
            Keyring::generate("us"),
        );
        let mut of = credential("target", &["b.example", "a.example"]);
        of.regions = vec!["eu".into()];
        let (to_eu, to_us) = (eu.public().unwrap(), us.public().unwrap());
        let both = [to_us.clone(), to_eu.clone()];
        let given = (token("canary-of-eu"), "same".to_owned());
        let ahead = SealedAhead::new(&key, (ORG, ID, &of), given, both.iter()).unwrap();
        let sent = serde_json::to_string(&ahead).unwrap();
        assert!(!sent.contains("canary"));

        let came: SealedAhead = serde_json::from_str(&sent).unwrap();
        assert!(came.is_genuine(&key, &of));
        let secret = came.into_new_secret();
        let plain = NewSecret::prepare(&key, &of, token("canary-of-eu"));
        assert_eq!(secret.digest, plain.digest);
        let seal_id = secret.seal_id.clone().unwrap();
        let hosts = of.hosts.iter().rev().cloned().collect::<Vec<_>>();
        let binding = Binding {
            org: ORG,
            credential: ID,
            hosts: &hosts,
            seal_id: &seal_id,
        };
        assert_eq!(secret.sealed_to(&to_us, &binding), Ok(None));
        let sealed = secret.sealed_to(&to_eu, &binding).unwrap().unwrap();
        let opened = open(&eu, &binding, &sealed).unwrap();
        assert_eq!(opened.token.as_deref(), Some("canary-of-eu"));
    }

    #[test]
    fn a_secret_sealed_ahead_is_for_one_credential_as_it_was() {
        let key = DigestKey::generate();
        let of = credential("target", &["b.example", "a.example"]);
        let given = (token("canary"), "same".to_owned());
        let ahead = SealedAhead::new(&key, (ORG, ID, &of), given, std::iter::empty()).unwrap();
        assert!(!ahead.is_genuine(&DigestKey::generate(), &of));
        assert!(!ahead.is_genuine(&key, &credential("proxy", &[])));
        for field in ["digest", "identity", "hosts", "credential", "proof"] {
            let mut fields = serde_json::to_value(&ahead).unwrap();
            fields[field] = match field {
                "hosts" => json!(["evil.example"]),
                "credential" => json!(CredentialId::from_bits(3)),
                _ => json!("00"),
            };
            let altered: SealedAhead = serde_json::from_value(fields).unwrap();
            assert!(!altered.is_genuine(&key, &of), "{field}");
        }

        let secret = ahead.into_new_secret();
        let (other, another) = (Some("other hosts"), Some("another credential"));
        let turned = credential("target", &["a.example", "b.example"]);
        let fewer = credential("target", &["a.example"]);
        for (place, of, expected) in [
            ((ORG, ID), &of, None),
            // Their order means nothing.
            ((ORG, ID), &turned, None),
            ((ORG, ID), &fewer, other),
            ((ORG, CredentialId::from_bits(3)), &of, another),
            ((OrgId::from_bits(9), ID), &of, another),
        ] {
            assert_eq!(secret.sealed_for_other(place, of), expected);
        }
        let plain = NewSecret::prepare(&key, &of, token("canary"));
        let anywhere = (ORG, CredentialId::from_bits(3));
        assert_eq!(plain.sealed_for_other(anywhere, &of), None);
    }
}
