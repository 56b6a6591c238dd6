//! Objects ↔ leaves: how a version is cut into content-addressed pieces, and read back.
//!
//! A leaf holds the canonical JSON of objects, one a line, in the order of their ids. Leaves form
//! a binary trie over the hash of the object's id: a node with more than 64 KiB and more than one
//! object is split by its next bit. So the cut is a function of the content alone (equal content,
//! equal hashes), and a change touches its own leaf, its root, and rarely a neighbour. A fixed
//! fan-out for the whole organisation would rewrite every leaf whenever it doubles.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Hash, Objects};
use crate::object::{Object, ObjectId};

/// A leaf larger than this is split, in bytes of uncompressed content.
const LEAF_SPLIT_BYTES: usize = 64 * 1024;
/// Largest uncompressed content of a leaf or root that is read, in bytes.
pub const LEAF_BYTES_MAX: usize = 1024 * 1024;
/// Largest configuration of an organisation, in bytes of uncompressed content.
const CONFIG_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Deepest split; the hash of 100,000 ids needs about 20 bits.
const DEPTH_MAX: usize = 32;
/// The compression level of leaves: zstd's default.
const ZSTD_LEVEL: i32 = 3;

/// Why content from the store, or a version to be stored, is not a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// It cannot be read as what it should be.
    #[error("{0} cannot be read: {1}")]
    Malformed(&'static str, String),
    /// Its content is not what its name says.
    #[error("{0} {1} does not have the content that its hash names")]
    WrongHash(&'static str, Hash),
    /// A bound is exceeded.
    #[error("{0}")]
    TooLarge(String),
    /// What some regions keep alone is not here, and the version would change it.
    #[error("what is kept for {} alone is not here, and would be changed", .0.join(", "))]
    Withheld(Vec<String>),
}

/// A leaf or root as the store holds it: `leaf/{org}/{hash}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// SHA-256 of the uncompressed content.
    pub hash: Hash,
    /// The content, compressed with zstd.
    pub packed: Vec<u8>,
}

impl Leaf {
    pub(super) fn of(content: &[u8]) -> Result<Self, TreeError> {
        let packed = zstd::bulk::compress(content, ZSTD_LEVEL)
            .map_err(|error| TreeError::Malformed("leaf", error.to_string()))?;
        Ok(Self {
            hash: Hash::of(content),
            packed,
        })
    }
}

/// Opens a leaf or root and checks that its content has the hash it is named by.
///
/// # Errors
/// The bytes are not zstd, hold too much, or have another hash.
pub fn unpack(hash: Hash, packed: &[u8]) -> Result<Vec<u8>, TreeError> {
    let content = zstd::bulk::decompress(packed, LEAF_BYTES_MAX)
        .map_err(|error| TreeError::Malformed("leaf", error.to_string()))?;
    if Hash::of(&content) == hash {
        Ok(content)
    } else {
        Err(TreeError::WrongHash("leaf", hash))
    }
}

/// The list of leaves: bits of the id's hash, as a text of `0` and `1`, to the leaf's hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Every leaf that is not empty.
    pub leaves: BTreeMap<String, Hash>,
}

impl Root {
    /// Reads a root's content.
    ///
    /// # Errors
    /// It is not a root.
    pub fn parse(content: &[u8]) -> Result<Self, TreeError> {
        serde_json::from_slice(content)
            .map_err(|error| TreeError::Malformed("root", error.to_string()))
    }
}

/// One leaf of a version that is in memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub hash: Hash,
    /// Size of its content.
    pub bytes: usize,
    pub ids: Vec<ObjectId>,
    /// Whether it holds an object that this release could not read, so that what is in memory is
    /// not what the hash names.
    pub damaged: bool,
}

/// Where the objects of a version stand.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) root: Hash,
    pub(super) entries: BTreeMap<String, Arc<Entry>>,
}

impl Layout {
    /// Nothing, which is never stored.
    pub(super) fn empty() -> Self {
        Self {
            root: Hash::of(b""),
            entries: BTreeMap::new(),
        }
    }

    /// Whether an object could not be read, so that leaves made of memory would lack it.
    pub(super) fn is_damaged(&self) -> bool {
        self.entries.values().any(|entry| entry.damaged)
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = Hash> + '_ {
        let leaves = self.entries.values().map(|entry| entry.hash);
        leaves.chain(std::iter::once(self.root))
    }

    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Arc<Entry>)> {
        self.entries
            .range(prefix.to_owned()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// Whether everything below a node belongs into one leaf. Looks at few leaves: the first
    /// ones already exceed the bound, or there are no more.
    fn is_one_leaf(&self, prefix: &str) -> bool {
        let (mut bytes, mut count) = (0, 0);
        for (_, entry) in self.below(prefix) {
            (bytes, count) = (bytes + entry.bytes, count + entry.ids.len());
            if bytes > LEAF_SPLIT_BYTES && count > 1 {
                return false;
            }
        }
        true
    }

    /// The leaf that an object stands in, or the empty place where it would.
    fn place(&self, id: ObjectId) -> String {
        let path = path(id);
        for depth in 0..DEPTH_MAX {
            // Digits are ASCII, so every cut is between characters.
            let prefix = &path[..depth];
            if self.entries.contains_key(prefix) || self.below(prefix).next().is_none() {
                return prefix.to_owned();
            }
        }
        path
    }
}

/// The first 32 bits of the hash of an id, as digits.
pub(super) fn path(id: ObjectId) -> String {
    format!("{:032b}", Hash::of(id.to_string().as_bytes()).first_bits())
}

/// One object as a line of a leaf: canonical JSON (sorted keys, no spaces) and a line feed.
pub(super) fn line(object: &Object) -> Vec<u8> {
    // An object's keys are texts, so it always has a JSON form.
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value.sort_all_objects();
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Rebuilds the leaves that hold changed objects, and the root.
pub(super) fn repack(
    parent: &Layout,
    objects: &Objects,
    changed: &[ObjectId],
) -> Result<(Layout, Vec<Leaf>), TreeError> {
    let mut layout = parent.clone();
    let known: BTreeSet<Hash> = parent.hashes().collect();
    let mut touched: BTreeMap<String, BTreeSet<ObjectId>> = BTreeMap::new();
    for id in changed {
        touched.entry(layout.place(*id)).or_default().insert(*id);
    }
    let mut leaves = BTreeMap::new();
    for (prefix, ids) in &touched {
        let old = layout.entries.remove(prefix);
        let kept = old.iter().flat_map(|entry| entry.ids.iter());
        let ids: BTreeSet<ObjectId> = kept
            .chain(ids)
            .copied()
            .filter(|id| objects.contains_key(id))
            .collect();
        build(
            prefix.clone(),
            ids.into_iter().collect(),
            objects,
            &mut layout,
            &mut leaves,
        )?;
    }
    for prefix in touched.keys() {
        merge_up(prefix, objects, &mut layout, &mut leaves)?;
    }
    let bytes: usize = layout.entries.values().map(|entry| entry.bytes).sum();
    if bytes > CONFIG_BYTES_MAX {
        let detail = format!("the configuration is larger than {CONFIG_BYTES_MAX} bytes");
        return Err(TreeError::TooLarge(detail));
    }
    let root = Root {
        leaves: layout
            .entries
            .iter()
            .map(|(key, entry)| (key.clone(), entry.hash))
            .collect(),
    };
    let content = serde_json::to_vec(&root)
        .map_err(|error| TreeError::Malformed("root", error.to_string()))?;
    if content.len() > LEAF_BYTES_MAX {
        return Err(TreeError::TooLarge(
            "the configuration has too many leaves".into(),
        ));
    }
    let root = Leaf::of(&content)?;
    layout.root = root.hash;
    // A leaf that was built and then merged away is not part of the version.
    let reached: BTreeSet<Hash> = layout.hashes().collect();
    let fresh = |hash: &Hash| reached.contains(hash) && !known.contains(hash);
    leaves.insert(root.hash, root);
    leaves.retain(|hash, _| fresh(hash));
    Ok((layout, leaves.into_values().collect()))
}

/// Makes one leaf at `prefix`, or splits it by the next bit.
fn build(
    prefix: String,
    ids: Vec<ObjectId>,
    objects: &Objects,
    layout: &mut Layout,
    leaves: &mut BTreeMap<Hash, Leaf>,
) -> Result<(), TreeError> {
    let item = |id: &ObjectId| Some((path(*id), *id, line(objects.get(id)?)));
    let items: Vec<_> = ids.iter().filter_map(item).collect();
    // A work list instead of recursion; its depth is bounded by DEPTH_MAX.
    let mut work = vec![(prefix, items)];
    while let Some((prefix, items)) = work.pop() {
        if items.is_empty() {
            continue;
        }
        let bytes: usize = items.iter().map(|(_, _, line)| line.len()).sum();
        let small = bytes <= LEAF_SPLIT_BYTES || items.len() == 1;
        if !small && prefix.len() < DEPTH_MAX {
            let one = format!("{prefix}1");
            let (ones, zeros) = items
                .into_iter()
                .partition(|(path, ..)| path.starts_with(&one));
            work.push((format!("{prefix}0"), zeros));
            work.push((one, ones));
            continue;
        }
        if bytes > LEAF_BYTES_MAX {
            return Err(TreeError::TooLarge("a leaf is too large".into()));
        }
        let content: Vec<u8> = items
            .iter()
            .flat_map(|(_, _, line)| line)
            .copied()
            .collect();
        let leaf = Leaf::of(&content)?;
        let ids = items.into_iter().map(|(_, id, _)| id).collect();
        layout.entries.insert(
            prefix,
            Arc::new(Entry {
                hash: leaf.hash,
                bytes,
                ids,
                damaged: false,
            }),
        );
        leaves.insert(leaf.hash, leaf);
    }
    Ok(())
}

/// Joins neighbours that have become small enough to be one leaf.
fn merge_up(
    prefix: &str,
    objects: &Objects,
    layout: &mut Layout,
    leaves: &mut BTreeMap<Hash, Leaf>,
) -> Result<(), TreeError> {
    let whole = (0..=prefix.len()).find(|depth| layout.is_one_leaf(&prefix[..*depth]));
    let Some(node) = whole.map(|depth| prefix[..depth].to_owned()) else {
        return Ok(());
    };
    let keys: Vec<String> = layout.below(&node).map(|(key, _)| key.clone()).collect();
    if keys.iter().all(|key| *key == node) {
        return Ok(());
    }
    let entries: Vec<_> = keys
        .iter()
        .filter_map(|key| layout.entries.remove(key))
        .collect();
    let mut ids: Vec<ObjectId> = entries.iter().flat_map(|entry| entry.ids.clone()).collect();
    ids.sort_unstable();
    build(node, ids, objects, layout, leaves)
}
