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
use crate::object::ObjectId;
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
    /// A stable word: `object-unreadable`, `version-unreadable`, `regressed`, `fact-unreadable`,
    /// `secret-unreadable`, `secret-missing`.
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
    let root_hash = *head
        .roots
        .get(EVERYWHERE)
        .ok_or_else(|| TreeError::Malformed("head", format!("names no root `{EVERYWHERE}`")))?;
    let root = Root::parse(&leaf(store, org, root_hash).await?)?;
    let held = previous.map(OrgConfig::held_leaves).unwrap_or_default();
    let missing: Vec<Hash> = root
        .leaves
        .values()
        .copied()
        .filter(|hash| !held.contains_key(hash))
        .collect();
    let contents: Vec<(Hash, Vec<u8>)> = futures_util::stream::iter(missing)
        .map(|hash| async move { Ok::<_, LoadError>((hash, leaf(store, org, hash).await?)) })
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
    let mut read = Vec::new();
    let mut faults = Vec::new();
    for (hash, content) in contents {
        let (bytes, faults_before) = (content.len(), faults.len());
        let ids = read_leaf(org, &content, previous, &mut objects, &mut faults);
        read.push(ReadLeaf {
            hash,
            bytes,
            ids,
            damaged: faults.len() > faults_before,
        });
    }
    let config = tree::assemble(org, head, &root, objects, read, previous);
    Ok(Loaded { config, faults })
}

/// Reads one leaf or root.
async fn leaf(store: &dyn Store, org: OrgId, hash: Hash) -> Result<Vec<u8>, LoadError> {
    let pair = store.get(&keys::leaf(org, &hash)).await?.value;
    let pair = pair.ok_or(LoadError::Missing(hash))?;
    Ok(tree::unpack(hash, &pair.value)?)
}

/// Adds a leaf's objects and returns the ids in it.
fn read_leaf(
    org: OrgId,
    content: &[u8],
    previous: Option<&OrgConfig>,
    objects: &mut Objects,
    faults: &mut Vec<Fault>,
) -> Vec<ObjectId> {
    let mut ids = Vec::new();
    for line in content
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let (id, object) = match tree::parse_line(line) {
            Ok(object) => {
                let old = previous.and_then(|config| config.objects.get(&object.id));
                let same = old.filter(|old| ***old == object);
                (
                    Some(object.id),
                    same.cloned().or_else(|| Some(Arc::new(object))),
                )
            }
            Err((id, detail)) => {
                let code = "object-unreadable";
                faults.push(Fault {
                    org: Some(org),
                    object: id,
                    code,
                    detail,
                });
                let old = id.and_then(|id| previous.and_then(|config| config.objects.get(&id)));
                (id, old.cloned())
            }
        };
        ids.extend(id);
        if let (Some(id), Some(object)) = (id, object) {
            objects.insert(id, object);
        }
    }
    ids
}

/// Lists every key with a prefix, page by page, all at one revision: `at`, or the newest.
///
/// # Errors
/// The store did not answer, or forgot the revision on the way.
pub async fn list(
    store: &dyn Store,
    prefix: &str,
    at: Option<Revision>,
    mut each: impl FnMut(super::KeyValue),
) -> Result<Revision, StoreError> {
    let (mut at, mut after) = (at, None);
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
