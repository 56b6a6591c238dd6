//! `ETag`, `If-Match` and `If-None-Match` (RFC 9110 §8.8.3, §13.1).
//!
//! The entity tag of an object is the number of the version that last changed it, in quotes.

use super::error::Refusal;

/// Most tags in one header.
const TAGS_MAX: usize = 32;

/// What the caller says about the state that it acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `*`: any state of an object that exists.
    Exists,
    /// One of these versions.
    Versions(Vec<u64>),
}

impl Condition {
    /// Reads the value of `If-Match` or `If-None-Match`.
    ///
    /// Tags that no object of ours can have, weak ones included where `weak` forbids them, are
    /// kept out: they match nothing.
    ///
    /// # Errors
    /// The value is not a list of entity tags.
    pub fn parse(header: &'static str, value: &str, weak: Weak) -> Result<Self, Refusal> {
        if value.trim() == "*" {
            return Ok(Self::Exists);
        }
        let malformed = || {
            Refusal::parameter(
                header,
                "must hold entity tags in quotes, such as \"12\", as the `ETag` of an answer",
            )
        };
        let mut versions = Vec::new();
        for (at, tag) in value.split(',').enumerate() {
            let tag = tag.trim();
            let (is_weak, tag) = match tag.strip_prefix("W/") {
                Some(rest) => (true, rest),
                None => (false, tag),
            };
            let inner = tag
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'))
                .filter(|inner| !inner.contains('"') && at < TAGS_MAX)
                .ok_or_else(malformed)?;
            if (!is_weak || weak == Weak::Counts)
                && let Ok(version) = inner.parse()
            {
                versions.push(version);
            }
        }
        Ok(Self::Versions(versions))
    }

    /// Whether an object of this version meets it.
    pub fn met_by(&self, version: u64) -> bool {
        match self {
            Self::Exists => true,
            Self::Versions(versions) => versions.contains(&version),
        }
    }
}

/// Whether a weak tag `W/"1"` counts: for `If-None-Match` it does, for `If-Match` it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weak {
    /// Weak comparison.
    Counts,
    /// Strong comparison.
    Never,
}

/// The entity tag of a version.
pub fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_as_rfc_9110_says() {
        for (value, weak, version, expected) in [
            ("\"7\"", Weak::Never, 7, Some(true)),
            ("\"7\"", Weak::Never, 8, Some(false)),
            ("\"6\", \"7\"", Weak::Never, 7, Some(true)),
            ("*", Weak::Never, 7, Some(true)),
            ("W/\"7\"", Weak::Never, 7, Some(false)),
            ("W/\"7\"", Weak::Counts, 7, Some(true)),
            ("\"abc\"", Weak::Never, 7, Some(false)),
            ("7", Weak::Never, 7, None),
            ("\"7", Weak::Never, 7, None),
            ("", Weak::Never, 7, None),
            ("\"6\",,\"7\"", Weak::Never, 7, None),
        ] {
            let met = Condition::parse("If-Match", value, weak)
                .ok()
                .map(|condition| condition.met_by(version));
            assert_eq!(met, expected, "{value}");
        }
    }
}
