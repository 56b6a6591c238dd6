//! Whether the version that a store shows was made from one that was seen before.

use super::{Store, StoreError};
use crate::id::OrgId;
use crate::keys;
use crate::tree::{Ancestry, Hash, Head, Lineage, VersionRecord};

/// Whether `new`, which the store holds, was made from `old`, by one step or several.
///
/// A store's own history is one line, since every head is written on a compare with the one
/// before. So `old` is an ancestor exactly if this store's record of its number is `old`; where
/// that record has left the store, the list of names that stayed tells. A higher epoch was opened
/// by a person and is followed.
///
/// # Errors
/// The store did not answer.
pub async fn ancestry(
    store: &dyn Store,
    org: OrgId,
    old: &Head,
    new: &Head,
) -> Result<Ancestry, StoreError> {
    if new.parent == Some(old.hash) || new == old {
        return Ok(Ancestry::Descends);
    }
    if new.epoch != old.epoch {
        return Ok(match new.epoch > old.epoch {
            true => Ancestry::Descends,
            false => Ancestry::Broken,
        });
    }
    if new.n <= old.n {
        return Ok(Ancestry::Broken);
    }
    holds(store, org, (old.n, &old.hash)).await
}

/// Whether the history that a store keeps holds a version, by its number and hash: its record of
/// that number tells, else the names of those whose records have left the store.
///
/// # Errors
/// The store did not answer.
pub async fn holds(
    store: &dyn Store,
    org: OrgId,
    (n, hash): (u64, &Hash),
) -> Result<Ancestry, StoreError> {
    let record = store.get(&keys::version(org, n)).await?.value;
    if let Some(record) = record {
        let record = serde_json::from_slice::<VersionRecord>(&record.value);
        return Ok(match record.is_ok_and(|record| record.head.hash == *hash) {
            true => Ancestry::Descends,
            false => Ancestry::Broken,
        });
    }
    Ok(lineage(store, org).await?.holds(n, hash))
}

/// The names of versions whose records have left the store; none where they cannot be read.
///
/// # Errors
/// The store did not answer.
pub async fn lineage(store: &dyn Store, org: OrgId) -> Result<Lineage, StoreError> {
    let lineage = store.get(&keys::lineage(org)).await?.value;
    let lineage = lineage.and_then(|pair| serde_json::from_slice(&pair.value).ok());
    Ok(lineage.unwrap_or_default())
}
