//! Chains that hold, and every way to break one.

use super::super::{Anchor, Failure, Said};
use super::*;
use crate::tree::OrgConfig;
use crate::version::Epoch;

const ORG: OrgId = OrgId::from_bits(7);

fn said(times: u64) -> Said {
    let at = "2026-11-28T10:00:00Z".parse().unwrap();
    Said {
        at,
        actor: "unknown".into(),
        source: None,
        act: Act::LoginFailed {
            why: Failure::Unknown,
            times,
            sources: None,
            until: at,
        },
    }
}

fn push(chain: &mut Chain, said: Said) -> Last {
    let last = chain.head.as_ref();
    let last = last.map(|head| serde_json::from_slice(head).unwrap());
    let (value, next) = Last::next(last, ORG, said);
    chain.entries.insert(next.seq, value);
    chain.head = Some(serde_json::to_vec(&next).unwrap());
    next
}

/// Five entries, and versions that were made after some of them.
fn kept() -> (Chain, Vec<VersionRecord>) {
    let mut chain = Chain::default();
    let mut versions: Vec<VersionRecord> = Vec::new();
    for times in 1..=5 {
        let last = push(&mut chain, said(times));
        if times % 2 == 0 {
            versions.push(version(versions.last(), Some(last)));
        }
    }
    (chain, versions)
}

fn version(before: Option<&VersionRecord>, last: Option<Last>) -> VersionRecord {
    let epoch = Epoch {
        counter: 1,
        region: "eu".into(),
    };
    let first = OrgConfig::genesis(ORG, epoch.clone()).head;
    let before = before.map_or(&first, |before| &before.head);
    let region = "eu".to_owned();
    let salt = last.map(|last| Anchor { region, last }.salt("salt"));
    VersionRecord {
        head: before.reopened(epoch, before.n + 1, salt.unwrap_or_default()),
        at: "2026-11-28T10:00:00Z".parse().unwrap(),
        author: "x".into(),
        source: None,
        changes: 0,
        changed: Vec::new(),
    }
}

/// The breaks after a change: entry, version, problem.
fn broken(
    change: impl FnOnce(&mut Chain, &mut Vec<VersionRecord>),
) -> Vec<(Option<u64>, Option<u64>, &'static str)> {
    let (mut chain, mut versions) = kept();
    change(&mut chain, &mut versions);
    let found = verify(ORG, "eu", &chain, &versions);
    let breaks = found.breaks.iter();
    breaks
        .map(|found| (found.entry, found.version, found.problem.as_str()))
        .collect()
}

fn edit(value: &mut Vec<u8>) {
    let text = String::from_utf8(value.clone()).unwrap();
    *value = text
        .replace("\"unknown\",\"act", "\"nobody\",\"act")
        .into_bytes();
    assert_ne!(text.as_bytes(), value.as_slice());
}

/// Everything from an entry on is written anew, so that it fits.
fn forge(chain: &mut Chain, from: u64) {
    let old = std::mem::take(chain);
    for (seq, value) in old.entries {
        let mut entry: Entry = serde_json::from_slice(&value).unwrap();
        if seq == from {
            entry.said.actor = "nobody".into();
        }
        push(chain, entry.said);
    }
}

#[test]
fn what_was_written_holds() {
    let (chain, versions) = kept();
    let found = verify(ORG, "eu", &chain, &versions);
    assert_eq!(found.breaks, []);
    assert_eq!(found.entries, Some((1, 5)));
    assert_eq!((found.anchored, found.anchored_until), (2, 4));
    let none = verify(ORG, "eu", &Chain::default(), &[version(None, None)]);
    assert_eq!(none, Verified::default());
    // What another region's chain was is not known here.
    let elsewhere = verify(ORG, "us", &Chain::default(), &versions);
    assert_eq!(elsewhere, Verified::default());
}

#[test]
fn every_change_is_named() {
    type Change = fn(&mut Chain, &mut Vec<VersionRecord>);
    type Broken = (Option<u64>, Option<u64>, &'static str);
    let rows: [(&str, Change, &[Broken]); 9] = [
        (
            "an entry is edited",
            |chain, _| edit(chain.entries.get_mut(&3).unwrap()),
            &[(Some(3), None, "changed")],
        ),
        (
            "the last entry is edited",
            |chain, _| edit(chain.entries.get_mut(&5).unwrap()),
            &[(Some(5), None, "changed")],
        ),
        (
            "an entry is no entry any more",
            |chain, _| drop(chain.entries.insert(3, b"{}".to_vec())),
            &[(Some(3), None, "changed")],
        ),
        (
            "an entry is removed",
            |chain, _| drop(chain.entries.remove(&3)),
            &[(Some(3), None, "missing")],
        ),
        (
            "the first entries are removed",
            |chain, _| chain.entries.retain(|seq, _| *seq > 2),
            &[(Some(2), None, "missing")],
        ),
        (
            "two entries are swapped",
            |chain, _| {
                let (two, three) = (chain.entries[&2].clone(), chain.entries[&3].clone());
                chain.entries.insert(2, three);
                chain.entries.insert(3, two);
            },
            &[(Some(2), None, "reordered"), (Some(3), None, "reordered")],
        ),
        (
            "the last entries are removed, and the head says nothing else",
            |chain, _| chain.entries.retain(|seq, _| *seq < 4),
            &[(Some(4), None, "missing")],
        ),
        (
            "everything after a change is forged, but for the versions",
            |chain, _| forge(chain, 2),
            &[(Some(2), Some(1), "changed"), (Some(4), Some(2), "changed")],
        ),
        (
            "a version is made to fit",
            |chain, versions| {
                forge(chain, 4);
                let (seq, hash) = (4, hash(ORG, &chain.entries[&4]));
                let region = "eu".to_owned();
                let last = Last { seq, hash };
                versions[1].head.salt = Anchor { region, last }.salt("salt");
            },
            &[(None, Some(2), "changed")],
        ),
    ];
    for (what, change, expected) in rows {
        assert_eq!(broken(change), expected, "{what}");
    }
}

#[test]
fn a_chain_that_was_cut_to_an_earlier_head_is_seen_by_a_version() {
    let found = broken(|chain, _| {
        chain.entries.retain(|seq, _| *seq <= 3);
        let last = Last {
            seq: 3,
            hash: hash(ORG, &chain.entries[&3]),
        };
        chain.head = Some(serde_json::to_vec(&last).unwrap());
    });
    assert_eq!(found, [(Some(4), Some(2), "missing")]);
    let all = broken(|chain, _| *chain = Chain::default());
    let expected = [(Some(2), Some(1), "missing"), (Some(4), Some(2), "missing")];
    assert_eq!(all, expected);
}

#[test]
fn entries_leave_where_an_entry_says_so() {
    let drops = |until| {
        move |chain: &mut Chain, _: &mut Vec<VersionRecord>| {
            let hash = hash(ORG, &chain.entries[&until]);
            let dropped = Said {
                act: Act::EntriesDropped { until, hash },
                ..said(1)
            };
            push(chain, dropped);
            chain.entries.retain(|seq, _| *seq > until);
        }
    };
    for until in [1, 2, 3, 5] {
        assert_eq!(broken(drops(until)), [], "{until}");
    }
    // Not those that are too young to leave.
    let young = broken(|chain, versions| {
        drops(2)(chain, versions);
        chain.kept_min = 100;
    });
    assert_eq!(young[0], (Some(2), None, "missing"));
    let more = broken(|chain, versions| {
        drops(2)(chain, versions);
        chain.entries.remove(&3);
    });
    assert_eq!(more, [(Some(3), None, "missing")]);
}
