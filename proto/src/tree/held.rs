//! A version in memory as leaves again: for peers, for the copy on disk, for a store that lost
//! them, and for the version after it, which reads only what this one lacks.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pack::{Layout, Leaf, Root, TreeError, line, path, repack};
use super::sets::{self, Set};
use super::{Hash, Head, Objects, OrgConfig};
use crate::id::OrgId;
use crate::object::{Object, ObjectId};
use crate::version::Epoch;

/// A leaf of a version that is in memory.
#[derive(Clone, Copy, Debug)]
pub struct HeldLeaf<'a> {
    objects: &'a Objects,
    ids: &'a [ObjectId],
}

impl<'a> HeldLeaf<'a> {
    /// The objects in it.
    pub fn objects(self) -> impl Iterator<Item = &'a Arc<Object>> {
        self.ids.iter().filter_map(|id| self.objects.get(id))
    }
}

impl OrgConfig {
    /// The version before the first one: no objects, number 0, never stored.
    pub fn genesis(org: OrgId, epoch: Epoch) -> Self {
        let hash = Hash::of(b"");
        let head = Head {
            epoch,
            n: 0,
            hash,
            parent: None,
            gc: 0,
            salt: String::new(),
            roots: BTreeMap::new(),
        };
        Self {
            org,
            head,
            objects: Objects::new(),
            sets: sets::none(),
        }
    }

    /// An object as a set has it.
    pub fn in_set(&self, set: &str, id: ObjectId) -> Option<&Arc<Object>> {
        self.sets.get(set)?.objects.get(&id)
    }

    /// The objects of a set that stand below a place in the tree, wherever its leaves are cut.
    pub fn below(&self, set: &str, prefix: &str) -> Vec<&Arc<Object>> {
        let set = self.sets.get(set);
        let objects = set.into_iter().flat_map(|set| set.objects.iter());
        objects
            .filter(|(id, _)| path(**id).starts_with(prefix))
            .map(|(_, object)| object)
            .collect()
    }

    /// Whether some of it could not be read, so that earlier forms stand in for it.
    pub fn is_damaged(&self) -> bool {
        self.sets.values().any(|set| set.layout.is_damaged())
    }

    /// All leaves of this version, made of its objects, and the roots, which come with them. The
    /// roots are those of the head unless an object could not be read; those of sets that are not
    /// here are named as the head does.
    ///
    /// # Errors
    /// The configuration exceeds a bound.
    pub fn leaves(&self) -> Result<(BTreeMap<String, Hash>, Vec<Leaf>), TreeError> {
        let mut roots = self.head.roots.clone();
        let mut made = BTreeMap::new();
        for (name, set) in &self.sets {
            let ids: Vec<ObjectId> = set.objects.keys().copied().collect();
            let (layout, leaves) = repack(&Layout::empty(), &set.objects, &ids)?;
            roots.insert(name.clone(), layout.root);
            made.extend(leaves.into_iter().map(|leaf| (leaf.hash, leaf)));
        }
        Ok((roots, made.into_values().collect()))
    }

    /// A leaf or a root of this version, made of memory as the store holds it; `None` where the
    /// version has no such one here, or it holds an object that this release could not read.
    pub fn leaf(&self, hash: Hash) -> Option<Leaf> {
        let content = |set: &Set| set.content(hash);
        let content = self.sets.values().find_map(content)?;
        Leaf::of(&content).ok().filter(|leaf| leaf.hash == hash)
    }

    /// The objects in each leaf of this version. A leaf with an unreadable object is left out: it
    /// is to be read again.
    pub fn held_leaves(&self) -> BTreeMap<Hash, HeldLeaf<'_>> {
        let mut leaves = BTreeMap::new();
        for set in self.sets.values() {
            let whole = set.layout.entries.values().filter(|entry| !entry.damaged);
            leaves.extend(whole.map(|entry| {
                let (objects, ids) = (&set.objects, entry.ids.as_slice());
                (entry.hash, HeldLeaf { objects, ids })
            }));
        }
        leaves
    }

    /// The same of what one region keeps.
    pub fn reaches_in<'a>(&'a self, region: &'a str) -> impl Iterator<Item = Hash> + 'a {
        let kept = self.sets.iter();
        let kept = kept.filter(move |(name, _)| sets::is_kept_in(name, region));
        kept.flat_map(|(_, set)| set.layout.hashes())
    }

    /// The same of what alone may not be in a region at all.
    pub fn reaches_beyond<'a>(&'a self, region: &'a str) -> impl Iterator<Item = Hash> + 'a {
        let is_strict = |set: &str| sets::strictly(set).is_some();
        let beyond = move |set: &str| is_strict(set) && !sets::is_kept_in(set, region);
        let kept = self.sets.iter().filter(move |(set, _)| !beyond(set));
        let kept: std::collections::BTreeSet<Hash> =
            kept.flat_map(|(_, set)| set.layout.hashes()).collect();
        let hashes = self.sets.iter().filter(move |(set, _)| beyond(set));
        let hashes = hashes.flat_map(|(_, set)| set.layout.hashes());
        hashes.filter(move |hash| !kept.contains(hash))
    }

    /// The hashes of every leaf and of the roots.
    pub fn reaches(&self) -> impl Iterator<Item = Hash> + '_ {
        self.sets.values().flat_map(|set| set.layout.hashes())
    }
}

impl Set {
    fn content(&self, hash: Hash) -> Option<Vec<u8>> {
        let entries = &self.layout.entries;
        if hash == self.layout.root {
            let leaves = entries.iter().map(|(key, entry)| (key.clone(), entry.hash));
            let root = Root {
                leaves: leaves.collect(),
            };
            return serde_json::to_vec(&root).ok();
        }
        let entry = entries.values().find(|entry| entry.hash == hash)?;
        let lines = entry.ids.iter().map(|id| Some(line(self.objects.get(id)?)));
        Some(lines.collect::<Option<Vec<_>>>()?.concat())
    }
}
