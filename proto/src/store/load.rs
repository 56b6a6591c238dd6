//! Reading versions: head, root, leaves, each verified by the hash it is named by.
//!
//! What an earlier version holds is not read again, and objects that did not change keep their
//! `Arc`. An object that this release cannot understand is a [`Fault`], and its previous good form
//! stays; whether that is good enough is the caller's decision (a node serves, control does not
//! publish).

use std::sync::Arc;

use futures_util::stream::{StreamExt, TryStreamExt};

use super::{Range, Revision, Store, StoreError};
use crate::id::OrgId;
use crate::keys;
use crate::object::{Object, ObjectId};
use crate::tree::{self, EVERYWHERE, Hash, Head, Objects, OrgConfig, ReadLeaf, Root, TreeError};

/// Reads under way at one time.
const READS_MAX: usize = 8;
/// Keys asked for in one page of a list.
const PAGE_KEYS: usize = 500;

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

/// What becomes of a version of which a leaf is missing or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It is not read: nothing may be built on a part of it.
    Refuse,
    /// The rest of it is applied; objects of that leaf keep their previous form.
    Keep,
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
    version_or(store, org, head, previous, Damage::Refuse).await
}

/// The same, with a choice for leaves that cannot be read. A root that cannot be read is an error
/// in either case.
///
/// # Errors
/// As for [`version`].
pub async fn version_or(
    store: &dyn Store,
    org: OrgId,
    head: Head,
    previous: Option<&OrgConfig>,
    damage: Damage,
) -> Result<Loaded, LoadError> {
    let root_hash = *head
        .roots
        .get(EVERYWHERE)
        .ok_or_else(|| TreeError::Malformed("head", format!("names no root `{EVERYWHERE}`")))?;
    let root = Root::parse(&leaf(store, org, root_hash).await?)?;
    let held = previous.map(OrgConfig::held_leaves).unwrap_or_default();
    let missing: Vec<(String, Hash)> = root
        .leaves
        .iter()
        .filter(|(_, hash)| !held.contains_key(hash))
        .map(|(prefix, hash)| (prefix.clone(), *hash))
        .collect();
    let contents: Vec<(String, Hash, Result<Vec<u8>, LoadError>)> =
        futures_util::stream::iter(missing)
            .map(|(prefix, hash)| async move {
                match leaf(store, org, hash).await {
                    Err(LoadError::Store(error)) => Err(error),
                    content => Ok((prefix, hash, content)),
                }
            })
            .buffer_unordered(READS_MAX)
            .try_collect()
            .await?;

    let mut objects = Objects::new();
    for id in root
        .leaves
        .values()
        .filter_map(|hash| held.get(hash))
        .copied()
        .flatten()
    {
        if let Some(object) = previous.and_then(|config| config.objects.get(id)) {
            objects.insert(*id, Arc::clone(object));
        }
    }
    let mut reading = Reading {
        org,
        previous,
        objects,
        faults: Vec::new(),
    };
    let mut read = Vec::new();
    for (prefix, hash, content) in contents {
        read.push(match content {
            Ok(content) => reading.leaf(&prefix, hash, &content),
            Err(error) if damage == Damage::Keep => reading.lost(&prefix, hash, &error),
            Err(error) => return Err(error),
        });
    }
    let Reading {
        objects, faults, ..
    } = reading;
    let config = tree::assemble(org, head, &root, objects, read, previous);
    Ok(Loaded { config, faults })
}

/// Reads one leaf or root.
async fn leaf(store: &dyn Store, org: OrgId, hash: Hash) -> Result<Vec<u8>, LoadError> {
    let pair = store.get(&keys::leaf(org, &hash)).await?.value;
    let pair = pair.ok_or(LoadError::Missing(hash))?;
    Ok(tree::unpack(hash, &pair.value)?)
}

/// A version that is being put together.
struct Reading<'a> {
    org: OrgId,
    previous: Option<&'a OrgConfig>,
    objects: Objects,
    faults: Vec<Fault>,
}

impl Reading<'_> {
    /// Adds a leaf's objects.
    fn leaf(&mut self, prefix: &str, hash: Hash, content: &[u8]) -> ReadLeaf {
        let faults_before = self.faults.len();
        let (mut ids, mut nameless) = (Vec::new(), false);
        for line in content
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            match tree::parse_line(line) {
                Ok(object) => {
                    let id = object.id;
                    let same = self.old(id).filter(|old| **old == object);
                    let object = same.unwrap_or_else(|| Arc::new(object));
                    self.objects.insert(id, object);
                    ids.push(id);
                }
                Err((id, detail)) => {
                    self.fault("object-unreadable", id, detail);
                    nameless |= id.is_none();
                    ids.extend(id);
                    if let Some((id, old)) = id.and_then(|id| Some((id, self.old(id)?))) {
                        self.objects.insert(id, old);
                    }
                }
            }
        }
        // A line that does not even tell whose it is may be any object's that is not in the leaf.
        if nameless {
            ids.extend(self.keep_below(prefix));
        }
        ReadLeaf {
            hash,
            bytes: content.len(),
            ids,
            damaged: self.faults.len() > faults_before,
        }
    }

    /// Objects of a leaf that cannot be read keep their previous form.
    fn lost(&mut self, prefix: &str, hash: Hash, error: &LoadError) -> ReadLeaf {
        let code = match error {
            LoadError::Missing(_) => "leaf-missing",
            LoadError::Store(_) | LoadError::Tree(_) => "leaf-unreadable",
        };
        self.fault(code, None, error.to_string());
        ReadLeaf {
            hash,
            bytes: 0,
            ids: self.keep_below(prefix),
            damaged: true,
        }
    }

    /// Keeps the previous form of objects below a place that are not read already.
    fn keep_below(&mut self, prefix: &str) -> Vec<ObjectId> {
        let Some(previous) = self.previous else {
            return Vec::new();
        };
        let mut kept = Vec::new();
        for id in previous.ids_below(prefix) {
            if let (false, Some(old)) = (self.objects.contains_key(&id), self.old(id)) {
                self.objects.insert(id, old);
                kept.push(id);
            }
        }
        kept
    }

    fn old(&self, id: ObjectId) -> Option<Arc<Object>> {
        self.previous?.objects.get(&id).cloned()
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
        if !page.more || after.is_none() {
            return Ok(revision);
        }
    }
}
