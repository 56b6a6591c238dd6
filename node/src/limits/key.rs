//! What a meter counts by, and its key in the store.

/// Where token states live in the store.
pub const PREFIX: &str = "tokens/";

/// One meter and the value that it counts by.
///
/// Keys in the store are hashed: a value may be a header or a caller's name, of any length, and
/// is nobody's business there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MeterKey {
    meter: String,
    subject: Subject,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Whole,
    Value(String),
    Overflow,
}

impl MeterKey {
    /// A meter that counts everything together.
    pub fn whole(meter: impl Into<String>) -> Self {
        Self {
            meter: meter.into(),
            subject: Subject::Whole,
        }
    }

    /// A meter that counts per value of something (proxy, caller, header, ...).
    pub fn of(meter: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            meter: meter.into(),
            subject: Subject::Value(value.into()),
        }
    }

    /// What keys of the meter share once there are too many of them.
    pub fn overflow(&self) -> Self {
        Self {
            meter: self.meter.clone(),
            subject: Subject::Overflow,
        }
    }

    /// Whether it is the shared key.
    pub fn is_overflow(&self) -> bool {
        self.subject == Subject::Overflow
    }

    /// The meter's id.
    pub fn meter(&self) -> &str {
        &self.meter
    }

    /// The key in the store.
    pub fn store_key(&self) -> String {
        let (kind, value) = match &self.subject {
            Subject::Whole => (0_u8, ""),
            Subject::Value(value) => (1, value.as_str()),
            Subject::Overflow => (2, ""),
        };
        let mut hash = blake3::Hasher::new();
        hash.update(&(self.meter.len() as u64).to_le_bytes());
        hash.update(self.meter.as_bytes());
        hash.update(&[kind]);
        hash.update(value.as_bytes());
        format!(
            "{PREFIX}{}",
            hash.finalize().to_hex().get(..32).unwrap_or_default()
        )
    }
}

/// Whether it has the form of a [`MeterKey::store_key`].
pub fn is_store_key(key: &str) -> bool {
    let digits = key.strip_prefix(PREFIX);
    digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
