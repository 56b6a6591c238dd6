//! A version put together from what was read of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::pack::{Entry, Layout, Root};
use super::{EVERYWHERE, Hash, Head, Objects, OrgConfig};
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

/// Puts a version together from its root, the objects of all its leaves, and the leaves that were
/// read because `previous` does not hold them.
pub fn assemble(
    org: OrgId,
    head: Head,
    root: &Root,
    objects: Objects,
    read: Vec<ReadLeaf>,
    previous: Option<&OrgConfig>,
) -> OrgConfig {
    let held = previous
        .iter()
        .flat_map(|config| config.layout.entries.values());
    let mut known: BTreeMap<Hash, Arc<Entry>> =
        held.map(|entry| (entry.hash, Arc::clone(entry))).collect();
    for ReadLeaf {
        hash,
        bytes,
        ids,
        damaged,
    } in read
    {
        known.insert(
            hash,
            Arc::new(Entry {
                hash,
                bytes,
                ids,
                damaged,
            }),
        );
    }
    let entries = root.leaves.iter().filter_map(|(prefix, hash)| {
        known
            .get(hash)
            .map(|entry| (prefix.clone(), Arc::clone(entry)))
    });
    let entries = entries.collect();
    let root = head.roots.get(EVERYWHERE).copied().unwrap_or(head.hash);
    OrgConfig {
        org,
        layout: Layout { root, entries },
        head,
        objects,
    }
}
