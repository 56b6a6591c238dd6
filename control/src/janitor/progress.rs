//! How far each control plane has archived an organisation: the value of `archived/{org}`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Compare, Store, load};
use serde::{Deserialize, Serialize};

use super::JanitorError;

/// By the name of a control plane's archive: the newest version such that all before are in it,
/// itself included, that the store held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Progress(pub BTreeMap<String, u64>);

impl Progress {
    /// What the store says, and the compare that holds while it does.
    pub async fn read(store: &dyn Store, org: OrgId) -> Result<(Self, Compare), JanitorError> {
        let key = keys::archived(org);
        Ok(match store.get(&key).await?.value {
            None => (Self::default(), Compare::Absent(key)),
            Some(pair) => {
                let progress = serde_json::from_slice(&pair.value)
                    .map_err(|_| JanitorError::Unreadable(key.clone()))?;
                (progress, Compare::ModRevision(key, pair.mod_revision))
            }
        })
    }

    /// The version up to which every one of these control planes has archived.
    pub fn floor(&self, live: &BTreeSet<String>) -> u64 {
        let of = |name: &String| self.0.get(name).copied().unwrap_or(0);
        live.iter().map(of).min().unwrap_or(0)
    }

    pub fn to_json(&self) -> Bytes {
        // Texts and numbers only: serialising into memory cannot fail.
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// The archives of the control planes that are there.
pub(super) async fn live(store: &dyn Store) -> Result<BTreeSet<String>, JanitorError> {
    let mut names = BTreeSet::new();
    load::list(store, keys::CONTROLS, None, |pair| {
        names.extend(pair.key.strip_prefix(keys::CONTROLS).map(str::to_owned));
    })
    .await?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_control_plane_that_is_there_counts() {
        let progress = Progress(BTreeMap::from([("a".into(), 9), ("b".into(), 4)]));
        for (live, floor) in [
            (vec!["a", "b"], 4),
            (vec!["a"], 9),
            (vec!["a", "new"], 0),
            (vec![], 0),
        ] {
            let live = live.into_iter().map(str::to_owned).collect();
            assert_eq!(progress.floor(&live), floor, "{live:?}");
        }
    }
}
