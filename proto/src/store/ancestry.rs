//! Whether the version that a store shows was made from one that was seen before.

use super::{Store, StoreError};
use crate::id::OrgId;
use crate::keys;
use crate::tree::{Ancestry, Head, Lineage, VersionRecord};

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
    let known = |descends| match descends {
        true => Ancestry::Descends,
        false => Ancestry::Broken,
    };
    if new.parent == Some(old.hash) || new == old {
        return Ok(Ancestry::Descends);
    }
    if new.epoch != old.epoch {
        return Ok(known(new.epoch > old.epoch));
    }
    if new.n <= old.n {
        return Ok(Ancestry::Broken);
    }
    let record = store.get(&keys::version(org, old.n)).await?.value;
    if let Some(record) = record {
        let record = serde_json::from_slice::<VersionRecord>(&record.value);
        return Ok(known(
            record.is_ok_and(|record| record.head.hash == old.hash),
        ));
    }
    let lineage = store.get(&keys::lineage(org)).await?.value;
    let lineage = lineage.and_then(|pair| serde_json::from_slice::<Lineage>(&pair.value).ok());
    Ok(lineage.unwrap_or_default().holds(old))
}
