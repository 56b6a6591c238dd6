//! The digests of the keys that one request presents: each different key costs one, and every
//! refusal costs the same. Pure.

use std::borrow::Cow;

use proto::seal::{DigestKey, Purpose};

use crate::presented;

/// Digests that every refusal has cost: one of an issued key, and those of the few forms in which
/// one request can present keys that users gave.
const DIGESTS_REFUSED: usize = 8;
/// Longest secret that is digested, in bytes; no stored one is longer.
const SECRET_BYTES_MAX: usize = proto::credential::SECRET_BYTES_MAX * 2 + 1;

/// The digests of one request's keys: each different key costs one, however many credentials it is
/// compared with.
pub struct Digests<'r> {
    key: &'r DigestKey,
    known: Vec<(Cow<'r, [u8]>, [u8; 32])>,
    made: usize,
    accepted: Option<[u8; 32]>,
}

impl<'r> Digests<'r> {
    /// Of no key yet.
    pub fn new(key: &'r DigestKey) -> Self {
        Self {
            key,
            known: Vec::new(),
            made: 0,
            accepted: None,
        }
    }

    /// The digest of a presented key; none where it is longer than any secret.
    pub fn of(&mut self, secret: Cow<'r, [u8]>) -> Option<[u8; 32]> {
        if secret.len() > SECRET_BYTES_MAX {
            return None;
        }
        if let Some((_, digest)) = self.known.iter().find(|(known, _)| *known == secret) {
            return Some(*digest);
        }
        self.made += 1;
        let digest = self.key.digest(Purpose::ProxyCredential, &secret);
        self.known.push((secret, digest));
        Some(digest)
    }

    /// The key of this digest was accepted.
    pub fn accept(&mut self, digest: [u8; 32]) {
        self.accepted = Some(digest);
    }

    /// The keys that were digested.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.known.iter().map(|(key, _)| &**key)
    }

    /// How many digests were made.
    #[cfg(test)]
    pub fn made(&self) -> usize {
        self.made
    }

    /// The key that was accepted.
    pub fn accepted(&self) -> Option<&[u8]> {
        let mut known = self.known.iter();
        let (key, _) = known.find(|(_, digest)| Some(digest) == self.accepted.as_ref())?;
        Some(key)
    }

    /// Makes as many more as any refusal costs, so that time does not tell a proxy that exists, or
    /// what it expects, from one that does not.
    pub fn even_out(&mut self) {
        for _ in self.made..DIGESTS_REFUSED {
            let digest = self.key.digest(Purpose::ProxyCredential, presented::ISSUED);
            std::hint::black_box(digest);
        }
        self.made = self.made.max(DIGESTS_REFUSED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many digests a refusal costs that found these keys.
    fn cost(keys: &[&str]) -> usize {
        let key = DigestKey::generate();
        let mut digests = Digests::new(&key);
        for key in keys {
            digests.of(Cow::Borrowed(key.as_bytes()));
        }
        digests.even_out();
        digests.made
    }

    #[test]
    fn every_refusal_costs_the_same() {
        let long = "x".repeat(SECRET_BYTES_MAX + 1);
        for keys in [
            &[][..],
            &["rr_live_1"],
            &["a", "b", "a"],
            &[&long],
            &["a", "b", "c", "d", "e", "f", "g", "h"],
        ] {
            assert_eq!(cost(keys), DIGESTS_REFUSED, "{keys:?}");
        }
    }

    #[test]
    fn one_key_is_digested_once_and_an_endless_one_never() {
        let key = DigestKey::generate();
        let mut digests = Digests::new(&key);
        let one = digests.of(Cow::Borrowed(b"a"));
        assert_eq!(
            (digests.of(Cow::Owned(b"a".to_vec())), digests.made),
            (one, 1)
        );
        assert_ne!(digests.of(Cow::Borrowed(b"b")), one);
        assert_eq!(
            digests.of(Cow::Owned(vec![b'x'; SECRET_BYTES_MAX + 1])),
            None
        );
        assert_eq!(digests.made, 2);
    }
}
