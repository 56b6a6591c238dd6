//! The names of versions whose records have left the store.
//!
//! A node that was cut off for long asks whether what it serves is an ancestor of the head that it
//! finds. The records of the newest versions tell; for older ones this list does, with half of a
//! hash for each.

use serde::{Deserialize, Serialize};

use super::{Hash, Head};

/// Most versions that are listed: at 30 bytes each they stay far below a value's largest size.
const VERSIONS_MAX: usize = 2_000;
/// Characters of a hash that are kept: 64 bits.
const HASH_CHARS: usize = 16;

/// Versions in the order of their numbers, the value of `lineage/{org}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    versions: Vec<(u64, String)>,
}

/// Whether one version was made from another, by one step or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ancestry {
    /// It was.
    Descends,
    /// It was not: the store was restored or wiped.
    Broken,
    /// The earlier one is older than what the store still knows by name.
    Forgotten,
}

impl Lineage {
    /// Adds versions, and forgets the oldest beyond the bound.
    pub fn extend<'a>(&mut self, heads: impl Iterator<Item = &'a Head>) {
        self.versions
            .extend(heads.map(|head| (head.n, short(&head.hash))));
        self.versions.sort_unstable();
        self.versions.dedup_by_key(|(n, _)| *n);
        let excess = self.versions.len().saturating_sub(VERSIONS_MAX);
        self.versions.drain(..excess);
    }

    /// Forgets what comes after a version; answers whether there was something.
    pub fn truncate(&mut self, last: u64) -> bool {
        let before = self.versions.len();
        self.versions.retain(|(n, _)| *n <= last);
        self.versions.len() < before
    }

    /// Whether the history that this lists a part of holds a version, by its number and hash.
    pub fn holds(&self, n: u64, hash: &Hash) -> Ancestry {
        let oldest = self.versions.first().map(|(n, _)| *n);
        match self.named(n) {
            Some(name) if name == short(hash) => Ancestry::Descends,
            None if oldest.is_some_and(|oldest| n < oldest) => Ancestry::Forgotten,
            Some(_) | None => Ancestry::Broken,
        }
    }

    /// Whether it lists another version of this number. A number that it leaves out may be one that
    /// its store has never had.
    pub fn names_another(&self, n: u64, hash: &Hash) -> bool {
        self.named(n).is_some_and(|name| name != short(hash))
    }

    fn named(&self, n: u64) -> Option<&str> {
        let at = self.versions.binary_search_by_key(&n, |(n, _)| *n).ok()?;
        self.versions.get(at).map(|(_, name)| name.as_str())
    }
}

fn short(hash: &Hash) -> String {
    hash.to_string().chars().take(HASH_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Epoch;

    fn head(n: u64, content: &str) -> Head {
        Head {
            epoch: Epoch {
                counter: 1,
                region: "eu".into(),
            },
            n,
            hash: Hash::of(content.as_bytes()),
            parent: None,
            gc: 0,
            salt: String::new(),
            roots: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_version_is_an_ancestor_by_number_and_name() {
        let mut lineage = Lineage::default();
        lineage.extend([head(5, "five"), head(7, "seven")].iter());
        for (asked, expected) in [
            (head(5, "five"), Ancestry::Descends),
            (head(7, "seven"), Ancestry::Descends),
            (head(7, "another"), Ancestry::Broken),
            (head(6, "six"), Ancestry::Broken),
            (head(8, "eight"), Ancestry::Broken),
            (head(4, "four"), Ancestry::Forgotten),
        ] {
            let found = lineage.holds(asked.n, &asked.hash);
            assert_eq!(found, expected, "{}", asked.n);
            let is_another = (asked.n, expected) == (7, Ancestry::Broken);
            let found = lineage.names_another(asked.n, &asked.hash);
            assert_eq!(found, is_another, "{}", asked.n);
        }
        assert!(lineage.truncate(6) && !lineage.truncate(6));
        let seven = Hash::of(b"seven");
        assert_eq!(lineage.holds(7, &seven), Ancestry::Broken);
        assert!(!lineage.names_another(7, &Hash::of(b"another")));
        let empty = Lineage::default();
        assert_eq!(empty.holds(1, &seven), Ancestry::Broken);
    }

    #[test]
    fn it_has_a_bound_and_forgets_the_oldest() {
        let heads: Vec<Head> = (1..=2_500).map(|n| head(n, &n.to_string())).collect();
        let mut lineage = Lineage::default();
        for part in heads.chunks(100) {
            lineage.extend(part.iter());
        }
        lineage.extend(heads.iter().skip(2_400));
        assert_eq!(lineage.versions.len(), VERSIONS_MAX);
        for (at, expected) in [
            (499, Ancestry::Forgotten),
            (500, Ancestry::Descends),
            (2_499, Ancestry::Descends),
        ] {
            let Head { n, hash, .. } = &heads[at];
            assert_eq!(lineage.holds(*n, hash), expected, "{n}");
        }
        assert!(serde_json::to_vec(&lineage).unwrap().len() < 100_000);
    }
}
