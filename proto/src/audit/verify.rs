//! Whether a chain of entries holds: what was kept, against itself, against how far it is said to
//! be, and against what versions of the configuration say of it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Act, Entry, Last, hash};
use crate::id::OrgId;
use crate::tree::{Hash, VersionRecord};

/// Breaks that are told; what follows one is rarely news.
pub const BREAKS_MAX: usize = 20;

/// A chain as it was read, all at one revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// So many entries stay at least when old ones leave: where an entry says that later ones left,
    /// it was not written by whoever lets old ones leave.
    pub kept_min: u64,
    /// The values of entries, by the numbers in their keys.
    pub entries: BTreeMap<u64, Vec<u8>>,
    /// The value of `keys::audit_head`.
    pub head: Option<Vec<u8>>,
}

/// What is wrong with an entry or a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is not what it was.
    Changed,
    /// It is not there any more.
    Missing,
    /// It stands where another one was.
    Reordered,
}

impl Problem {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Missing => "missing",
            Self::Reordered => "reordered",
        }
    }
}

/// Where something does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// The entry.
    pub entry: Option<u64>,
    /// The version that is broken, or that says so of the entry.
    pub version: Option<u64>,
    /// What is wrong.
    pub problem: Problem,
    /// The same for a person.
    pub detail: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// The first entry that is kept, and the last.
    pub entries: Option<(u64, u64)>,
    /// Versions that say of an entry that is kept, and how that was.
    pub anchored: u64,
    /// The newest entry that a version says of: what follows could be cut off unseen.
    pub anchored_until: u64,
    /// The first breaks, entries first.
    pub breaks: Vec<Break>,
}

impl Verified {
    fn fails(&mut self, entry: u64, problem: Problem, detail: impl Into<String>) {
        let known = |found: &Break| found.entry == Some(entry);
        if self.breaks.len() < BREAKS_MAX && !self.breaks.iter().any(known) {
            self.breaks.push(Break {
                entry: Some(entry),
                version: None,
                problem,
                detail: detail.into(),
            });
        }
    }

    fn fails_by(&mut self, version: u64, entry: u64, problem: Problem, detail: String) {
        let before = self.breaks.len();
        self.fails(entry, problem, detail);
        for found in self.breaks.iter_mut().skip(before) {
            found.version = Some(version);
        }
    }

    fn fails_at(&mut self, version: u64, problem: Problem, detail: impl Into<String>) {
        if self.breaks.len() < BREAKS_MAX {
            self.breaks.push(Break {
                entry: None,
                version: Some(version),
                problem,
                detail: detail.into(),
            });
        }
    }
}

/// The part of an entry that chains it, which every release writes.
#[derive(Deserialize)]
struct Link {
    seq: u64,
    #[serde(default)]
    before: Option<Hash>,
}

/// Walks a chain, and the versions that are kept, in the order of their numbers.
pub fn verify(org: OrgId, region: &str, chain: &Chain, versions: &[VersionRecord]) -> Verified {
    let mut found = Verified::default();
    let hashes = walk(org, chain, &mut found);
    anchors(region, &hashes, versions, &mut found);
    history(versions, &mut found);
    found
}

/// The hashes of the entries that are there, and of the last one that left, by number.
fn walk(org: OrgId, chain: &Chain, found: &mut Verified) -> BTreeMap<u64, Hash> {
    let mut hashes = BTreeMap::new();
    let mut last: Option<Last> = None;
    for (&seq, value) in &chain.entries {
        let link: Option<Link> = serde_json::from_slice(value).ok();
        let before = link.as_ref().and_then(|link| link.before);
        let stands = link.as_ref().is_some_and(|link| link.seq == seq);
        match last {
            None => begins(org, chain, (seq, before), &mut hashes, found),
            Some(last) if last.seq.saturating_add(1) < seq => {
                let from = last.seq.saturating_add(1);
                let detail = gap(from, seq.saturating_sub(1));
                found.fails(from, Problem::Missing, detail);
            }
            Some(last) if stands && before != Some(last.hash) => {
                let detail = format!("entry {seq} was written after another entry {}", last.seq);
                found.fails(last.seq, Problem::Changed, detail);
            }
            Some(_) => {}
        }
        match link {
            None => found.fails(seq, Problem::Changed, "it cannot be read"),
            Some(link) if link.seq != seq => {
                let detail = format!("entry {} stands in its place", link.seq);
                found.fails(seq, Problem::Reordered, detail);
            }
            Some(_) => {}
        }
        let hash = hash(org, value);
        hashes.insert(seq, hash);
        last = Some(Last { seq, hash });
    }
    let first = chain.entries.keys().next();
    found.entries = first.zip(last).map(|(first, last)| (*first, last.seq));
    ends(chain, last, found);
    hashes
}

/// The first entry that is kept is the first of all, or a later one says what left before it.
fn begins(
    org: OrgId,
    chain: &Chain,
    (first, before): (u64, Option<Hash>),
    hashes: &mut BTreeMap<u64, Hash>,
    found: &mut Verified,
) {
    let (Some(until), Some(hash)) = (first.checked_sub(1).filter(|n| *n > 0), before) else {
        if first > 1 || before.is_some() {
            let detail = gap(1, first.saturating_sub(1).max(1));
            found.fails(1, Problem::Missing, detail);
        }
        return;
    };
    let says = |value: &Vec<u8>| {
        let entry: Option<Entry> = serde_json::from_slice(value).ok();
        let dropped = Act::EntriesDropped { until, hash };
        let is_old = |seq: u64| seq.saturating_sub(until) >= chain.kept_min;
        entry.is_some_and(|entry| entry.said.act == dropped && is_old(entry.seq))
    };
    match chain.entries.values().any(says) {
        true => drop(hashes.insert(until, hash)),
        false => {
            let detail = format!("{}, and no entry of {org} says so", gap(1, until));
            found.fails(until, Problem::Missing, detail);
        }
    }
}

/// The last entry is the one that the head names.
fn ends(chain: &Chain, last: Option<Last>, found: &mut Verified) {
    let head = match &chain.head {
        None => None,
        Some(value) => match serde_json::from_slice::<Last>(value) {
            Ok(head) => Some(head),
            Err(_) => {
                let seq = last.map_or(0, |last| last.seq);
                return found.fails(seq, Problem::Changed, "the head of the chain is unreadable");
            }
        },
    };
    match (head, last) {
        (None, None) => {}
        (Some(head), last) if last.is_none_or(|last| last.seq < head.seq) => {
            let from = last.map_or(1, |last| last.seq.saturating_add(1));
            found.fails(from, Problem::Missing, gap(from, head.seq));
        }
        (Some(head), Some(last)) if head == last => {}
        (_, Some(last)) => {
            let detail = "the head of the chain names another one as the last";
            found.fails(last.seq, Problem::Changed, detail);
        }
        (Some(_), None) => {}
    }
}

fn gap(from: u64, to: u64) -> String {
    match from == to {
        true => format!("entry {from} is not there"),
        false => format!("entries {from} to {to} are not there"),
    }
}

/// What versions say of entries.
fn anchors(
    region: &str,
    hashes: &BTreeMap<u64, Hash>,
    versions: &[VersionRecord],
    found: &mut Verified,
) {
    let first = hashes.keys().next().copied();
    for head in versions.iter().map(|record| &record.head) {
        let Some(anchor) = head.audit().filter(|anchor| anchor.region == region) else {
            continue;
        };
        let (n, Last { seq, hash: then }) = (head.n, anchor.last);
        match hashes.get(&seq) {
            Some(hash) if *hash == then => {
                found.anchored += 1;
                found.anchored_until = found.anchored_until.max(seq);
            }
            Some(_) => {
                let detail = format!("version {n} was made after another entry {seq}");
                found.fails_by(n, seq, Problem::Changed, detail);
            }
            // It left, as an entry says.
            None if first.is_some_and(|first| seq < first) => {}
            None => {
                let detail = format!("version {n} was made after entry {seq}, which is not there");
                found.fails_by(n, seq, Problem::Missing, detail);
            }
        }
    }
}

/// Versions are chained by their own hashes. Numbers may have gaps, where a store was restored or
/// old versions left; another epoch may begin at any earlier version.
fn history(versions: &[VersionRecord], found: &mut Verified) {
    let mut before: Option<&VersionRecord> = None;
    for record in versions {
        let head = &record.head;
        if !head.is_genuine() {
            let detail = "its hash is not that of its fields";
            found.fails_at(head.n, Problem::Changed, detail);
        }
        if let Some(before) = before.map(|before| &before.head)
            && before.n.saturating_add(1) == head.n
            && before.epoch == head.epoch
            && head.parent != Some(before.hash)
        {
            let detail = format!("it was made from another version {}", before.n);
            found.fails_at(head.n, Problem::Changed, detail);
        }
        before = Some(record);
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
