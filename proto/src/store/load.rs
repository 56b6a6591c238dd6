//! Reading versions: head, root, leaves, each verified by the hash it is named by.
//!
//! What an earlier version holds is not read again, and objects that did not change keep their
//! `Arc`. An object that this release cannot understand is a [`Fault`], and its previous good form
//! stays; whether that is good enough is the caller's decision (a node serves, control does not
//! publish).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::lines::{Leaf, Line};
use super::nearby::Source;
use super::{Range, Revision, Store, StoreError};
use crate::id::OrgId;
use crate::keys;
use crate::object::{Object, ObjectId};
use crate::tree::{
    self, EVERYWHERE, Hash, Head, HeldLeaf, Objects, OrgConfig, ReadLeaf, ReadSet, Root, TreeError,
};

/// Keys asked for in one page of a list.
pub(super) const PAGE_KEYS: usize = 500;

/// Something that could not be applied; what was good before stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The organisation it is in; absent for keys that belong to none.
    pub org: Option<OrgId>,
    /// The object it is in; absent when it concerns the whole version.
    pub object: Option<ObjectId>,
    /// A stable word: `object-unreadable`, `object-unusable`, `leaf-missing`, `leaf-unreadable`,
    /// `version-unreadable`, `store-regressed`, `fact-unreadable`, `secret-unreadable`,
    /// `secret-missing`.
    pub code: &'static str,
    /// What was found, in words.
    pub detail: String,
}

/// Why a version could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A leaf or root is not in the store. The head may have moved on meanwhile: read it again;
    /// only missing content of the current head is a fault.
    #[error("leaf {0} is missing")]
    Missing(Hash),
    /// Content is not what its name says.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// A version as read.
#[derive(Debug)]
pub struct Loaded {
    /// The version.
    pub config: OrgConfig,
    /// Objects of it that could not be understood.
    pub faults: Vec<Fault>,
}

/// Reads the head of an organisation and the revision of its last change.
///
/// # Errors
/// The store did not answer, or the head is not one.
pub async fn head(store: &dyn Store, org: OrgId) -> Result<Option<(Head, Revision)>, LoadError> {
    match store.get(&keys::head(org)).await?.value {
        Some(pair) => Ok(Some((Head::parse(&pair.value)?, pair.mod_revision))),
        None => Ok(None),
    }
}

/// What is read of a version, and what becomes of one of which a leaf is missing or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted<'r> {
    /// All sets that are here; what some regions keep alone is left out where something of it is
    /// missing. Damage refuses the version: nothing may be built on a part of it.
    All,
    /// What this region keeps. The rest of a damaged version is applied; objects of a leaf that
    /// cannot be read keep their previous form.
    Kept(&'r str),
}

/// Reads the version that a head names.
///
/// # Errors
/// The store did not answer, content is missing, or has another hash.
pub async fn version(
    store: &dyn Store,
    org: OrgId,
    head: Head,
    previous: Option<&OrgConfig>,
) -> Result<Loaded, LoadError> {
    version_of(Source::of(store), org, head, previous, Wanted::All).await
}

/// The same, with a choice of what is wanted. A root of all regions that cannot be read is an error
/// in either case.
///
/// # Errors
/// As for [`version`].
pub async fn version_of(
    source: Source<'_>,
    org: OrgId,
    head: Head,
    previous: Option<&OrgConfig>,
    wanted: Wanted<'_>,
) -> Result<Loaded, LoadError> {
    if !head.roots.contains_key(EVERYWHERE) {
        let why = format!("names no root `{EVERYWHERE}`");
        return Err(TreeError::Malformed("head", why).into());
    }
    let mut reading = Reading {
        source,
        org,
        previous,
        held: previous.map(OrgConfig::held_leaves).unwrap_or_default(),
        keeps: wanted != Wanted::All,
        faults: Vec::new(),
    };
    let is_wanted = |set: &str| match wanted {
        Wanted::All => true,
        Wanted::Kept(region) => head.is_kept(set, region),
    };
    let mut sets = BTreeMap::new();
    for (name, root) in head.roots.iter().filter(|(name, _)| is_wanted(name)) {
        match reading.set(name, *root).await {
            Ok(set) => drop(sets.insert(name.clone(), set)),
            // What is kept for other regions alone need not be here, or not all of it.
            Err(LoadError::Missing(_)) if name != EVERYWHERE => {}
            Err(error) => return Err(error),
        }
    }
    let faults = reading.faults;
    let config = tree::assemble(org, head, sets, previous);
    Ok(Loaded { config, faults })
}

/// A version that is being put together.
struct Reading<'a> {
    source: Source<'a>,
    org: OrgId,
    previous: Option<&'a OrgConfig>,
    held: BTreeMap<Hash, HeldLeaf<'a>>,
    /// Whether damaged parts keep their previous form.
    keeps: bool,
    faults: Vec<Fault>,
}

impl Reading<'_> {
    /// Reads the leaves of a set that the version before does not hold.
    async fn set(&mut self, name: &str, root: Hash) -> Result<ReadSet, LoadError> {
        let (source, org) = (self.source, self.org);
        let root = Root::parse(&source.leaf(org, root).await?)?;
        let mut objects = Objects::new();
        let mut missing = Vec::new();
        for (prefix, hash) in &root.leaves {
            match self.held.get(hash) {
                None => missing.push((prefix.clone(), *hash)),
                Some(held) => held.objects().for_each(|object| {
                    objects.insert(object.id, Arc::clone(object));
                }),
            }
        }
        let leaves = source.leaves(org, missing).await?;
        let mut read = Vec::with_capacity(leaves.len());
        for (prefix, hash, leaf) in leaves {
            let place = (name, prefix.as_str());
            read.push(match leaf {
                Ok(Leaf { bytes, lines }) => self.leaf(place, (hash, bytes), lines, &mut objects),
                Err(error) if self.keeps => self.lost(place, hash, &error, &mut objects),
                Err(error) => return Err(error),
            });
        }
        Ok(ReadSet {
            root,
            objects,
            read,
        })
    }

    /// Adds a leaf's objects.
    fn leaf(
        &mut self,
        place: (&str, &str),
        (hash, bytes): (Hash, usize),
        lines: Vec<Line>,
        objects: &mut Objects,
    ) -> ReadLeaf {
        let faults_before = self.faults.len();
        let (mut ids, mut nameless) = (Vec::with_capacity(lines.len()), false);
        for line in lines {
            match line {
                Ok(object) => {
                    let id = object.id;
                    let same = self.old(place.0, id).filter(|old| **old == *object);
                    let object = same.unwrap_or(object);
                    objects.insert(id, object);
                    ids.push(id);
                }
                Err((id, detail)) => {
                    self.fault("object-unreadable", id, detail);
                    nameless |= id.is_none();
                    ids.extend(id);
                    let old = id.and_then(|id| Some((id, self.old(place.0, id)?)));
                    if let Some((id, old)) = old {
                        objects.insert(id, old);
                    }
                }
            }
        }
        // A line that does not even tell whose it is may be any object's that is not in the leaf.
        if nameless {
            ids.extend(self.keep_below(place, objects));
        }
        ReadLeaf {
            hash,
            bytes,
            ids,
            damaged: self.faults.len() > faults_before,
        }
    }

    /// Objects of a leaf that cannot be read keep their previous form.
    fn lost(
        &mut self,
        place: (&str, &str),
        hash: Hash,
        error: &LoadError,
        objects: &mut Objects,
    ) -> ReadLeaf {
        let code = match error {
            LoadError::Missing(_) => "leaf-missing",
            LoadError::Store(_) | LoadError::Tree(_) => "leaf-unreadable",
        };
        self.fault(code, None, error.to_string());
        ReadLeaf {
            hash,
            bytes: 0,
            ids: self.keep_below(place, objects),
            damaged: true,
        }
    }

    /// Keeps the previous form of objects below a place that are not read already.
    fn keep_below(&self, (set, prefix): (&str, &str), objects: &mut Objects) -> Vec<ObjectId> {
        let previous = self.previous.iter();
        let mut kept = Vec::new();
        for old in previous.flat_map(|previous| previous.below(set, prefix)) {
            if !objects.contains_key(&old.id) {
                objects.insert(old.id, Arc::clone(old));
                kept.push(old.id);
            }
        }
        kept
    }

    fn old(&self, set: &str, id: ObjectId) -> Option<Arc<Object>> {
        self.previous?.in_set(set, id).cloned()
    }

    fn fault(&mut self, code: &'static str, object: Option<ObjectId>, detail: String) {
        self.faults.push(Fault {
            org: Some(self.org),
            object,
            code,
            detail,
        });
    }
}

/// Lists every key with a prefix, page by page, all at one revision: `at`, or the newest.
///
/// # Errors
/// The store did not answer, or forgot the revision on the way.
pub async fn list(
    store: &dyn Store,
    prefix: &str,
    at: Option<Revision>,
    each: impl FnMut(super::KeyValue),
) -> Result<Revision, StoreError> {
    list_after(store, prefix, None, at, each).await
}

/// The same, of the keys that sort after a place.
///
/// # Errors
/// As for [`list`].
pub async fn list_after(
    store: &dyn Store,
    prefix: &str,
    after: Option<&str>,
    at: Option<Revision>,
    each: impl FnMut(super::KeyValue),
) -> Result<Revision, StoreError> {
    list_to(store, prefix, (after, None), at, each).await
}

/// The same, and none after the page that reaches `last`, a key.
///
/// # Errors
/// As for [`list`].
pub(super) async fn list_to(
    store: &dyn Store,
    prefix: &str,
    (after, last): (Option<&str>, Option<&str>),
    at: Option<Revision>,
    mut each: impl FnMut(super::KeyValue),
) -> Result<Revision, StoreError> {
    let (mut at, mut after) = (at, after.map(str::to_owned));
    loop {
        let prefix = prefix.to_owned();
        let page = store
            .range(Range {
                prefix,
                after,
                limit: PAGE_KEYS,
                at,
            })
            .await?;
        let revision = *at.get_or_insert(page.revision);
        after = page.items.last().map(|last| last.key.clone());
        page.items.into_iter().for_each(&mut each);
        let is_there = last.is_some_and(|last| after.as_deref() >= Some(last));
        if !page.more || after.is_none() || is_there {
            return Ok(revision);
        }
    }
}
