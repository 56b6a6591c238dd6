//! A version put together from what was read of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::pack::{Entry, Layout, Root};
use super::sets::{self, Set, Sets};
use super::{Hash, Head, Objects, OrgConfig};
use crate::id::OrgId;
use crate::object::{Object, ObjectId};

/// One line of a leaf: an object, or its id as far as it can be told and what is wrong with it.
///
/// # Errors
/// The line is no object of this release.
pub fn parse_line(line: &[u8]) -> Result<Object, (Option<ObjectId>, String)> {
    #[derive(Deserialize)]
    struct Named {
        id: ObjectId,
    }
    serde_json::from_slice(line).map_err(|error| {
        let named = serde_json::from_slice::<Named>(line).ok();
        (named.map(|named| named.id), error.to_string())
    })
}

/// A leaf as it was read.
#[derive(Clone, Debug)]
pub struct ReadLeaf {
    /// Its name.
    pub hash: Hash,
    /// Size of its content, in bytes.
    pub bytes: usize,
    /// The ids in it, those of unreadable objects included where they can be told.
    pub ids: Vec<ObjectId>,
    /// Whether it holds an unreadable object.
    pub damaged: bool,
}

/// One set of a version as it was read: its root, all its objects, and the leaves that were read
/// because the version before does not hold them.
#[derive(Debug)]
pub struct ReadSet {
    /// What lists its leaves.
    pub root: Root,
    /// Its objects.
    pub objects: Objects,
    /// The leaves that were read.
    pub read: Vec<ReadLeaf>,
}

/// Puts a version together from its sets, by the names that the head has for them. Those that are
/// left out are withheld.
pub fn assemble(
    org: OrgId,
    head: Head,
    read: BTreeMap<String, ReadSet>,
    previous: Option<&OrgConfig>,
) -> OrgConfig {
    let held = previous.iter().flat_map(|config| config.sets.values());
    let held = held.flat_map(|set| set.layout.entries.values());
    let mut known: BTreeMap<Hash, Arc<Entry>> =
        held.map(|entry| (entry.hash, Arc::clone(entry))).collect();
    let mut sets = Sets::new();
    for (name, set) in read {
        known.extend(set.read.into_iter().map(|leaf| (leaf.hash, entry(leaf))));
        let entries = set.root.leaves.iter().filter_map(|(prefix, hash)| {
            known
                .get(hash)
                .map(|entry| (prefix.clone(), Arc::clone(entry)))
        });
        let layout = Layout {
            root: head.roots.get(&name).copied().unwrap_or(head.hash),
            entries: entries.collect(),
        };
        let objects = set.objects;
        sets.insert(name, Set { objects, layout });
    }
    OrgConfig {
        org,
        objects: sets::union(&sets),
        sets,
        head,
    }
}

fn entry(leaf: ReadLeaf) -> Arc<Entry> {
    let ReadLeaf {
        hash,
        bytes,
        ids,
        damaged,
    } = leaf;
    Arc::new(Entry {
        hash,
        bytes,
        ids,
        damaged,
    })
}
