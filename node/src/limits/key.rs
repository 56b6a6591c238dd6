//! What a meter counts by, and its key in the store.

use std::io::Write;
use std::sync::Arc;

use super::memo;

/// Where token states live in the store.
pub const PREFIX: &str = "tokens/";

/// Longest value that a meter counts by, in bytes; a longer one shares the overflow key, so that
/// the work for a request does not grow with what its caller puts into a header.
pub const VALUE_BYTES_MAX: usize = 1_024;

/// What tells keys apart: half of a BLAKE3 of meter and value.
pub type Digest = [u8; 16];

/// One meter and the value that it counts by.
///
/// Keys in the store are hashed: a value may be a header or a caller's name, of any length, and
/// is nobody's business there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MeterKey {
    meter: String,
    /// Shared with records of what was spent.
    id: Arc<str>,
    subject: Subject,
    digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Whole,
    /// As people read it.
    Value(String),
    Overflow,
}

const WHOLE: u8 = 0;
const VALUE: u8 = 1;
const OVERFLOW: u8 = 2;

/// The id of a meter, without the number of its reset.
fn id_of(meter: &str) -> Arc<str> {
    meter.split('/').next().unwrap_or_default().into()
}

impl MeterKey {
    /// A meter that counts everything together.
    pub fn whole(meter: impl Into<String>) -> Self {
        let meter = meter.into();
        let digest = digest(&meter, WHOLE, b"");
        Self {
            id: id_of(&meter),
            meter,
            subject: Subject::Whole,
            digest,
        }
    }

    /// A meter that counts per value of something (proxy, caller, header, ...).
    pub fn of(meter: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        let (meter, value) = (meter.into(), value.as_ref());
        let digest = Self::digest_of(&meter, value);
        Self {
            id: id_of(&meter),
            meter,
            subject: Subject::Value(String::from_utf8_lossy(value).into_owned()),
            digest,
        }
    }

    /// The digest of [`MeterKey::of`], without making the key.
    pub fn digest_of(meter: &str, value: &[u8]) -> Digest {
        digest(meter, VALUE, value)
    }

    /// What keys of the meter share once there are too many of them.
    pub fn overflow(&self) -> Self {
        Self::overflow_of(&self.meter)
    }

    /// The overflow key of a meter.
    pub fn overflow_of(meter: &str) -> Self {
        Self {
            meter: meter.to_owned(),
            id: id_of(meter),
            subject: Subject::Overflow,
            digest: digest(meter, OVERFLOW, b""),
        }
    }

    /// Whether it is the shared key.
    pub fn is_overflow(&self) -> bool {
        self.subject == Subject::Overflow
    }

    /// What the meter's counts are kept under.
    pub fn meter(&self) -> &str {
        &self.meter
    }

    /// The meter's id, whichever reset it is.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The same for who keeps it.
    pub fn shared_id(&self) -> Arc<str> {
        Arc::clone(&self.id)
    }

    /// The value that it counts by; none where everything, or the overflow, counts together.
    pub fn value(&self) -> Option<&str> {
        match &self.subject {
            Subject::Value(value) => Some(value),
            Subject::Whole | Subject::Overflow => None,
        }
    }

    /// What tells it apart.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The key in the store.
    pub fn store_key(&self) -> String {
        store_key_of(&self.digest)
    }
}

/// The key in the store of what a digest tells apart.
pub fn store_key_of(digest: &Digest) -> String {
    format!("{PREFIX}{}", hex::encode(digest))
}

/// Up to here a meter and its value are hashed in one go, which costs half: it is done for every
/// request that is counted by what it brings.
const SHORT: usize = 192;

fn digest(meter: &str, kind: u8, value: &[u8]) -> Digest {
    let length = (meter.len() as u64).to_le_bytes();
    let parts = [&length[..], meter.as_bytes(), &[kind], value];
    let mut buffer = [0; SHORT];
    let mut rest = &mut buffer[..];
    let fits = parts.iter().all(|part| rest.write_all(part).is_ok());
    let used = SHORT - rest.len();
    match buffer.get(..used) {
        Some(whole) if fits => memo::digest(whole, |whole| half(&blake3::hash(whole))),
        _ => {
            let mut hash = blake3::Hasher::new();
            parts.iter().for_each(|part| {
                hash.update(part);
            });
            half(&hash.finalize())
        }
    }
}

fn half(hash: &blake3::Hash) -> Digest {
    let mut digest = Digest::default();
    let half = hash.as_bytes().iter();
    digest
        .iter_mut()
        .zip(half)
        .for_each(|(to, from)| *to = *from);
    digest
}

/// Whether it has the form of a [`MeterKey::store_key`].
pub fn is_store_key(key: &str) -> bool {
    let digits = key.strip_prefix(PREFIX);
    digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the store already must be found by every version.
    #[test]
    fn a_digest_is_the_same_however_long_its_parts_are() {
        for length in [0, 1, 24, 150, 160, 200, 1_024] {
            let value = vec![b'v'; length];
            let mut hash = blake3::Hasher::new();
            hash.update(&7_u64.to_le_bytes());
            hash.update(b"mtr_abc");
            hash.update(&[VALUE]);
            hash.update(&value);
            let mut whole = Digest::default();
            hash.finalize_xof().fill(&mut whole);
            assert_eq!(MeterKey::of("mtr_abc", &value).digest(), whole, "{length}");
        }
    }

    #[test]
    fn keys_that_differ_in_anything_differ_in_the_store() {
        let keys = [
            MeterKey::whole("a"),
            MeterKey::whole("ab"),
            MeterKey::of("a", ""),
            MeterKey::of("a", "b"),
            MeterKey::of("ab", ""),
            MeterKey::whole("a").overflow(),
        ];
        let stored: std::collections::HashSet<_> = keys.iter().map(MeterKey::store_key).collect();
        assert_eq!(stored.len(), keys.len());
        assert_eq!(
            MeterKey::of("a", "b").overflow(),
            MeterKey::whole("a").overflow()
        );
        assert!(
            stored
                .iter()
                .all(|key| key.starts_with(PREFIX) && key.len() == 39)
        );
        assert!(stored.iter().all(|key| is_store_key(key)));
        assert!(!is_store_key("live/head/x") && !is_store_key("tokens/../live"));
    }
}
