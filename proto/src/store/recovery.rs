//! Writing back, from what a process serves, what a restored or wiped store has lost.
//!
//! A person asks one node (`live/recovery`); the node writes the content of every organisation in
//! which the store regressed, and of those that the request names: facts, sealed values, leaves.
//! None of that is in effect by itself. Then it says what it wrote (`recovery/offer/…`), and
//! control makes it the newest version.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::chunks::chunks;
use super::facts::{self, RaiseError, UnreadableFact};
use super::follow::{OrgState, World};
use super::{Op, Store, StoreError, Txn};
use crate::id::OrgId;
use crate::keys;
use crate::tree::{EVERYWHERE, Hash, Head, TreeError};

/// The code of a [`super::load::Fault`] of an organisation in which the store went back.
pub const REGRESSED: &str = "store-regressed";

/// Codes of faults that end when what is served is written back: the store went back, or its
/// content was damaged.
const RECOVERABLE: [&str; 5] = [
    REGRESSED,
    "version-unreadable",
    "object-unreadable",
    "leaf-missing",
    "leaf-unreadable",
];

/// A person's request, the value of [`keys::RECOVERY_ASK`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Names the request.
    pub id: String,
    /// The `node_name` of the node that is asked.
    pub node: String,
    /// Organisations of which the store has lost something that control does not hold either, with
    /// the hashes of their heads. A node that serves such a version misses nothing, and so does
    /// not see that by itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub orgs: BTreeMap<OrgId, Hash>,
}

/// What a node wrote of one organisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// The version that it serves.
    pub head: Head,
    /// The root of what it serves: that of the version, unless some of it could not be read.
    pub root: Hash,
    /// The same of what is pinned to regions; those that it does not serve as the version names
    /// them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pinned: BTreeMap<String, Hash>,
    /// The revision of `gc/{org}` before the first leaf was written; 0 where there is none.
    pub gc: i64,
}

/// What came of an [`Ask`], the value of [`keys::recovery_offered`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offered {
    /// Organisations with an offer.
    pub orgs: Vec<OrgId>,
}

/// Why content could not be written back.
#[derive(Debug, thiserror::Error)]
pub enum WriteBackError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The content exceeds a bound of the tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A stored fact makes no sense.
    #[error(transparent)]
    Fact(#[from] UnreadableFact),
}

impl From<RaiseError> for WriteBackError {
    fn from(error: RaiseError) -> Self {
        match error {
            RaiseError::Store(error) => error.into(),
            RaiseError::Unreadable(error) => error.into(),
        }
    }
}

/// Organisations in which the store went back behind what `world` serves.
pub fn regressed(world: &World) -> BTreeSet<OrgId> {
    let faults = world.faults.iter().filter(|fault| fault.code == REGRESSED);
    faults.filter_map(|fault| fault.org).collect()
}

/// Whether a fault with this code ends when what is served is written back.
pub fn is_recoverable(code: &str) -> bool {
    RECOVERABLE.contains(&code)
}

/// Organisations of which `world` serves what the store does not hold, or not any more.
pub fn recoverable(world: &World) -> BTreeSet<OrgId> {
    let faults = world
        .faults
        .iter()
        .filter(|fault| is_recoverable(fault.code));
    faults.filter_map(|fault| fault.org).collect()
}

/// Writes facts, sealed values and leaves of an organisation. Nothing of it is in effect but the
/// facts, which only rise.
///
/// # Errors
/// [`WriteBackError`]; what was written stays, and is swept.
pub async fn write_content(
    store: &dyn Store,
    org: OrgId,
    state: &OrgState,
) -> Result<Offer, WriteBackError> {
    raise_facts(store, org, state).await?;
    let gc = store.get(&keys::gc(org)).await?.value;
    let (mut pinned, leaves) = state.config.leaves()?;
    let everywhere = pinned.remove(EVERYWHERE);
    let mut ops: Vec<Op> = leaves
        .into_iter()
        .map(|leaf| Op::put(keys::leaf(org, &leaf.hash), leaf.packed))
        .collect();
    ops.extend(state.sealed.iter().map(|((credential, seal_id), sealed)| {
        let key = keys::secret(org, *credential, seal_id, &sealed.region);
        Op::put(key, json(&**sealed))
    }));
    for ops in chunks(ops) {
        let txn = Txn {
            ops,
            ..Txn::default()
        };
        store.txn(txn).await?;
    }
    Ok(Offer {
        head: state.config.head.clone(),
        // Every version has one.
        root: everywhere.unwrap_or(state.config.head.hash),
        pinned,
        gc: gc.map_or(0, |pair| pair.mod_revision.0),
    })
}

/// Raises the facts in the store to those that are known here.
///
/// # Errors
/// The store failed, or holds a fact that cannot be read.
pub async fn raise_facts(
    store: &dyn Store,
    org: OrgId,
    state: &OrgState,
) -> Result<(), WriteBackError> {
    let known = state.retired.iter();
    let known = known.map(|(credential, fact)| (*credential, fact.clone()));
    Ok(facts::raise(store, org, known.collect()).await?)
}

fn json(value: &impl Serialize) -> Bytes {
    // Structs of texts, numbers and lists: serialising into memory cannot fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}
