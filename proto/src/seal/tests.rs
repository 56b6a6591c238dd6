//! Sealing: the RFC's vector, bindings, key rings, digests and issued keys.

use hpke::aead::AesGcm128;

use super::*;
use crate::credential::{Credential, CredentialKind, NamedSecret};

fn secret() -> SecretInput {
    key("sk_live_canary")
}

fn key(text: &str) -> SecretInput {
    let mut input = SecretInput::default();
    input.key = Some(text.to_owned());
    input
}

fn hosts(texts: &[&str]) -> Vec<HostPattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// RFC 9180 A.1.1: the same KEM and KDF as our suite; the appendix has no AES-256-GCM vector, and
/// the AEAD is the crate's type parameter.
#[test]
fn rfc_9180_vector() {
    let bytes = |text: &str| hex::decode(text).unwrap();
    let private = bytes("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8");
    let enc = bytes("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431");
    let plaintext = hpke::single_shot_open::<AesGcm128, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &<X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&private).unwrap(),
        &<X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(&enc).unwrap(),
        &bytes("4f6465206f6e2061204772656369616e2055726e"),
        &bytes(
            "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a9\
             6d8770ac83d07bea87e13c512a",
        ),
        &bytes("436f756e742d30"),
    )
    .unwrap();
    assert_eq!(plaintext, b"Beauty is truth, truth beauty");
}

#[test]
fn a_secret_opens_under_its_own_binding_only() {
    let ring = Keyring::generate("eu");
    let both = hosts(&["a.example.com", "b.example.com"]);
    let binding = Binding {
        org: OrgId::from_bits(1),
        credential: CredentialId::from_bits(2),
        hosts: &both,
        seal_id: "s",
    };
    let sealed = seal(&ring.public().unwrap(), &binding, &secret()).unwrap();
    assert_eq!(open(&ring, &binding, &sealed).unwrap().key, secret().key);
    let text = serde_json::to_string(&sealed).unwrap();
    assert!(!text.contains("canary"));

    let turned = hosts(&["b.example.com", "a.example.com", "a.example.com"]);
    let same = Binding {
        hosts: &turned,
        ..binding
    };
    assert!(open(&ring, &same, &sealed).is_ok(), "hosts are a set");

    let fewer = hosts(&["a.example.com"]);
    let more = hosts(&["a.example.com", "b.example.com", "c.example.com"]);
    let joined = hosts(&["a.example.com:443", "xb.example.com"]);
    for other in [
        Binding {
            org: OrgId::from_bits(9),
            ..binding
        },
        Binding {
            credential: CredentialId::from_bits(9),
            ..binding
        },
        Binding {
            seal_id: "t",
            ..binding
        },
        Binding {
            hosts: &fewer,
            ..binding
        },
        Binding {
            hosts: &more,
            ..binding
        },
        Binding {
            hosts: &joined,
            ..binding
        },
        Binding {
            hosts: &[],
            ..binding
        },
    ] {
        assert_eq!(
            open(&ring, &other, &sealed).unwrap_err(),
            SealError::Refused
        );
    }
}

#[test]
fn an_altered_value_does_not_open() {
    let ring = Keyring::generate("eu");
    let binding = Binding {
        org: OrgId::from_bits(1),
        credential: CredentialId::from_bits(2),
        hosts: &[],
        seal_id: "s",
    };
    let sealed = seal(&ring.public().unwrap(), &binding, &secret()).unwrap();
    let alter = |change: fn(&mut Sealed)| {
        let mut altered = sealed.clone();
        change(&mut altered);
        open(&ring, &binding, &altered).unwrap_err()
    };
    assert_eq!(alter(|s| s.ciphertext[0] ^= 1), SealError::Refused);
    assert_eq!(alter(|s| s.ciphertext.truncate(3)), SealError::Refused);
    assert_eq!(alter(|s| s.enc[0] ^= 1), SealError::Refused);
    assert_eq!(alter(|s| s.enc.truncate(3)), SealError::Refused);
    assert!(matches!(
        alter(|s| s.region = "us".into()),
        SealError::UnknownKey { .. }
    ));
    assert!(matches!(
        alter(|s| s.key_id = "x".into()),
        SealError::UnknownKey { .. }
    ));
    let other = Keyring::generate("eu");
    assert!(matches!(
        open(&other, &binding, &sealed).unwrap_err(),
        SealError::UnknownKey { .. }
    ));
}

#[test]
fn an_older_key_still_opens_and_the_first_one_seals() {
    let mut ring = Keyring::generate("eu");
    let binding = Binding {
        org: OrgId::from_bits(1),
        credential: CredentialId::from_bits(2),
        hosts: &[],
        seal_id: "s",
    };
    let old = seal(&ring.public().unwrap(), &binding, &secret()).unwrap();
    ring.keys.insert(0, KeyPair::generate());
    let new = seal(&ring.public().unwrap(), &binding, &secret()).unwrap();
    assert_ne!(old.key_id, new.key_id);
    assert!(open(&ring, &binding, &old).is_ok() && open(&ring, &binding, &new).is_ok());
}

#[test]
fn a_key_ring_survives_its_file_and_shows_nothing() {
    let ring = Keyring::generate("eu");
    let json = ring.to_json();
    let read = Keyring::parse(json.as_bytes()).unwrap();
    assert_eq!(read.public(), ring.public());
    let digest = |ring: &Keyring| ring.digest_key.digest(Purpose::ApiToken, b"x");
    assert_eq!(digest(&read), digest(&ring));
    let shown = format!("{ring:?} {:?}", ring.keys[0]);
    assert!(!shown.contains("private"), "{shown}");
    for (bad, expected) in [
        (json.replace("\"eu\"", "\"e/u\""), "region `e/u`"),
        (json.replace("digest_key", "digest"), "is not a key ring"),
        (
            r#"{"region":"eu","keys":[],"digest_key":""}"#.into(),
            "is not a key ring",
        ),
        (
            json.replace("\"private\": \"", "\"private\": \"AAAA"),
            "is not an X25519",
        ),
    ] {
        let error = Keyring::parse(bad.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn digests_are_keyed_and_separated_by_purpose() {
    let (one, other) = (
        DigestKey::from_bytes([1; 32]),
        DigestKey::from_bytes([2; 32]),
    );
    let digest = one.digest(Purpose::ProxyCredential, b"x");
    assert_eq!(digest, one.digest(Purpose::ProxyCredential, b"x"));
    assert_ne!(digest, other.digest(Purpose::ProxyCredential, b"x"));
    assert_ne!(digest, one.digest(Purpose::ApiToken, b"x"));
    assert_ne!(digest, one.digest(Purpose::TargetFingerprint, b"x"));
}

#[test]
fn issued_keys_are_recognised_and_mistyped_ones_are_not() {
    for (key, prefix) in [(issue_key(), "rr_live_"), (issue_api_token(), "rr_api_")] {
        assert!(key.starts_with(prefix));
        assert!(issued_is_well_formed(&key), "{}", *key);
        assert_eq!(key.len(), prefix.len() + 49);
        assert_ne!(*key, *issue_key());
        let end = if key.ends_with('x') { "y" } else { "x" };
        let cut = &key[..key.len() - 1];
        for bad in [
            format!("{cut}{end}"),
            cut.into(),
            format!("{}a", *key),
            "rr_live_".into(),
        ] {
            assert!(!issued_is_well_formed(&bad), "{bad}");
        }
    }
    assert!(!issued_is_well_formed("rr_live_é"));
}

#[test]
fn every_shape_has_one_text() {
    let secret = SecretInput {
        key: Some("k".into()),
        token: Some("t".into()),
        username: Some("u".into()),
        password: Some("p:w".into()),
        headers: vec![NamedSecret {
            name: "X-A".into(),
            value: "v".into(),
            public: false,
        }],
        queries: vec![],
    };
    for (auth_type, expected) in [
        (AuthType::ApiKey, "k"),
        (AuthType::Bearer, "t"),
        (AuthType::Jwt, "t"),
        (AuthType::Basic, "u:p:w"),
        (AuthType::None, ""),
    ] {
        assert_eq!(*canonical_text(auth_type, &secret), expected);
    }
    assert!(canonical_text(AuthType::Custom, &secret).contains(r#""name":"X-A""#));
}

#[test]
fn a_prepared_secret_keeps_only_what_is_needed() {
    let digests = DigestKey::generate();
    let credential = |kind: &str| -> Credential {
        serde_json::from_value(serde_json::json!({"kind": kind, "auth_type": "api_key"})).unwrap()
    };
    let given = NewSecret::prepare(&digests, &credential("proxy"), secret());
    assert!(given.is_of(CredentialKind::Proxy) && !given.is_of(CredentialKind::Target));
    assert!(given.seal_id.is_none() && !given.issued);
    assert_eq!(given.hint, None, "nothing of a given secret is shown");
    let issued = key(&issue_key());
    let issued = NewSecret::prepare(&digests, &credential("proxy"), issued);
    assert!(issued.issued && issued.hint.as_ref().is_some_and(|hint| hint.len() == 4));
    let target = NewSecret::prepare(&digests, &credential("target"), secret());
    assert!(target.is_of(CredentialKind::Target) && target.seal_id.is_some());
    assert!(!format!("{target:?}").contains("canary"));
}

#[test]
fn a_ring_vouches_for_one_key_of_each_other_region() {
    let mut ring = Keyring::generate("us");
    let plain = ring.to_json();
    assert!(!plain.contains("trusted"), "earlier releases read it");
    let key = |region: &str| Keyring::generate(region).public().unwrap();
    let (eu, newer, ap) = (key("eu"), key("eu"), key("ap"));
    assert_eq!(ring.trust(eu.clone()), None);
    assert_eq!(ring.trust(newer.clone()), Some(eu.clone()));
    assert_eq!(ring.trust(ap.clone()), None);
    let read = Keyring::parse(ring.to_json().as_bytes()).unwrap();
    assert_eq!(read.trusted, [newer.clone(), ap.clone()]);
    assert_ne!(eu.fingerprint(), newer.fingerprint());
    let renamed = RegionPublicKey {
        region: "mars".into(),
        ..newer.clone()
    };
    assert_ne!(renamed.fingerprint(), newer.fingerprint());

    let short = RegionPublicKey {
        key: vec![1; 31],
        ..ap.clone()
    };
    let nameless = RegionPublicKey {
        region: "A/b".into(),
        ..ap
    };
    let name = || "eu".to_owned();
    for (trusted, expected) in [
        (vec![eu, newer], KeyringError::TrustedTwice(name())),
        (vec![key("us")], KeyringError::OwnTrusted("us".into())),
        (
            vec![short.clone()],
            KeyringError::BadKey(short.key_id.clone()),
        ),
        (vec![nameless], KeyringError::BadRegion("A/b".into())),
    ] {
        ring.trusted = trusted;
        assert_eq!(
            Keyring::parse(ring.to_json().as_bytes()).err(),
            Some(expected)
        );
    }
}

#[test]
fn a_secret_is_sealed_anew_by_who_can_open_it_alone() {
    let (us, eu) = (Keyring::generate("us"), Keyring::generate("eu"));
    let hosts = ["a.example".parse().unwrap()];
    let binding = |seal_id| Binding {
        org: OrgId::from_bits(1),
        credential: CredentialId::from_bits(2),
        hosts: &hosts,
        seal_id,
    };
    let mut secret = SecretInput::default();
    secret.token = Some("canary".into());
    let sealed = seal(&us.public().unwrap(), &binding("s"), &secret).unwrap();
    let to = eu.public().unwrap();
    let again = reseal(&us, &to, &binding("s"), &sealed).unwrap();
    assert_eq!((again.region.as_str(), &again.key_id), ("eu", &to.key_id));
    let opened = open(&eu, &binding("s"), &again).unwrap();
    assert_eq!(opened.token.as_deref(), Some("canary"));
    let other = reseal(&us, &to, &binding("t"), &sealed);
    assert_eq!(other.err(), Some(SealError::Refused));
    assert!(matches!(
        reseal(&eu, &to, &binding("s"), &sealed),
        Err(SealError::UnknownKey { .. })
    ));
}
