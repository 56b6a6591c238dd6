//! Which secrets are over, in a file of its own: it is small, and written within a second of a
//! change, where the copy of a large configuration may be a minute behind. A copy is read only
//! together with it, so that no start without the store brings a revoked secret back.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::{FACTS, Kept, KeptError, PAUSE, json};
use crate::health::Health;
use crate::id::{CredentialId, OrgId};
use crate::keys;
use crate::retired::Retired;
use crate::store::Revision;
use crate::store::follow::World;

/// Facts by their keys.
type Facts = BTreeMap<String, Retired>;
/// The same facts have the same places.
type Known = Vec<(OrgId, Arc<BTreeMap<CredentialId, Retired>>)>;

impl Kept {
    /// Raises the facts of a copy to those that were kept last.
    ///
    /// # Errors
    /// [`KeptError`]: there is a file, and it cannot be read; then the copy may be too old.
    pub(super) fn raise_facts(&self, pairs: &mut BTreeMap<String, Bytes>) -> Result<(), KeptError> {
        let Some(content) = self.facts.read()? else {
            return Ok(());
        };
        let unreadable = |error: serde_json::Error| KeptError::Content(format!("facts: {error}"));
        let facts: Facts = serde_json::from_slice(&content).map_err(unreadable)?;
        for (key, fact) in facts {
            // What the copy has no organisation of is of a store that was wiped since.
            match keys::Live::parse(&key) {
                Some(keys::Live::Retired(org, _)) if pairs.contains_key(&keys::head(org)) => {}
                _ => continue,
            }
            let known = pairs.get(&key).map(|value| serde_json::from_slice(value));
            let fact = fact.joined(known.transpose().map_err(unreadable)?);
            pairs.insert(key, json(&fact));
        }
        Ok(())
    }

    /// Writes the facts of every world that has others than the one before, until worlds end.
    pub(super) async fn keep_facts(
        self: &Arc<Self>,
        worlds: &mut watch::Receiver<Arc<World>>,
        health: &Health,
    ) {
        // That there are none is written too, where no file says more: the copy before a damaged
        // one counts only with facts beside it.
        let mut known = self.facts.is_there().then(Known::new);
        let is_known = |known: &Option<Known>, world: &World| {
            known.as_ref().is_some_and(|known| same(known, world))
        };
        loop {
            let world = worlds.borrow_and_update().clone();
            let is_world = world.revision != Revision(0);
            if is_world && !is_known(&known, &world) && self.write_facts(&world, health).await {
                known = Some(of(&world));
            }
            tokio::time::sleep(PAUSE).await;
            let missed = is_world && !is_known(&known, &worlds.borrow());
            if !missed && worlds.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Kept {
    /// Writes the facts of a world; whether they are on disk.
    pub(super) async fn write_facts(self: &Arc<Self>, world: &World, health: &Health) -> bool {
        let content = serde_json::to_vec(&facts(world)).unwrap_or_default();
        let kept = Arc::clone(self);
        let write = move || kept.facts.write(content);
        let error = match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if health.kept(FACTS, error.clone())
            && let Some(error) = &error
        {
            tracing::warn!("revoked secrets are not on disk: {error}");
        }
        error.is_none()
    }
}

fn of(world: &World) -> Known {
    let states = world.orgs.iter();
    let with_facts = states.filter(|(_, state)| !state.retired.is_empty());
    with_facts
        .map(|(org, state)| (*org, Arc::clone(&state.retired)))
        .collect()
}

fn same(known: &Known, world: &World) -> bool {
    let now = of(world);
    known.len() == now.len()
        && known
            .iter()
            .zip(&now)
            .all(|(one, other)| one.0 == other.0 && Arc::ptr_eq(&one.1, &other.1))
}

fn facts(world: &World) -> Facts {
    let mut facts = Facts::new();
    for (org, retired) in of(world) {
        for (credential, fact) in retired.iter() {
            facts.insert(keys::retired(org, *credential), fact.clone());
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::seal::DigestKey;
    use crate::store::follow::OrgState;
    use crate::tree::OrgConfig;
    use crate::version::{Epoch, Generation};

    const ORG: OrgId = OrgId::from_bits(5);

    fn fact(n: u64) -> Retired {
        let epoch = Epoch {
            counter: 1,
            region: "eu".into(),
        };
        Retired {
            lowest: Generation { epoch, n },
            next: None,
        }
    }

    fn world(facts: &[(u128, u64)]) -> Arc<World> {
        let facts = facts.iter();
        let facts = facts.map(|(id, n)| (CredentialId::from_bits(*id), fact(*n)));
        let state = OrgState {
            config: Arc::new(OrgConfig::genesis(ORG, fact(1).lowest.epoch)),
            sealed: Arc::default(),
            sealed_whole: true,
            retired: Arc::new(facts.collect()),
        };
        let mut world = World {
            revision: Revision(1),
            ..World::default()
        };
        world.orgs.insert(ORG, Arc::new(state));
        Arc::new(world)
    }

    fn raised(kept: &Kept, copy: &[(u128, u64)]) -> Vec<u64> {
        let mut pairs: BTreeMap<String, Bytes> = facts(&world(copy))
            .iter()
            .map(|(key, fact)| (key.clone(), json(fact)))
            .collect();
        let mut elsewhere = pairs.clone();
        kept.raise_facts(&mut elsewhere).unwrap();
        assert_eq!(elsewhere, pairs, "without its organisation");
        pairs.insert(keys::head(ORG), Bytes::new());
        kept.raise_facts(&mut pairs).unwrap();
        pairs.remove(&keys::head(ORG));
        let read = |value: &Bytes| serde_json::from_slice::<Retired>(value).unwrap().lowest.n;
        pairs.values().map(read).collect()
    }

    #[tokio::test]
    async fn facts_of_after_the_copy_count() {
        let dir = tempfile::tempdir().unwrap();
        let key = DigestKey::from_bytes([1; 32]);
        let kept = Arc::new(Kept::new(dir.path().join("kept.bin"), &key, "eu").unwrap());
        assert_eq!(raised(&kept, &[(1, 3)]), [3], "none are kept");
        let (told, worlds) = watch::channel(world(&[(1, 5), (2, 4)]));
        let keeping = tokio::spawn({
            let (kept, mut worlds) = (kept.clone(), worlds.clone());
            async move { kept.keep_facts(&mut worlds, &Health::default()).await }
        });
        let come = async |expected: &[u64]| {
            let coming = async {
                while raised(&kept, &[(1, 3), (3, 9)]) != expected {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let came = tokio::time::timeout(Duration::from_secs(20), coming).await;
            came.expect("the facts are kept");
        };
        come(&[5, 4, 9]).await;
        told.send_replace(world(&[(1, 8), (2, 4)]));
        come(&[8, 4, 9]).await;
        drop(told);
        keeping.await.unwrap();
        // Of another key ring, or damaged: nobody knows what is missing.
        let other = DigestKey::from_bytes([2; 32]);
        let other = Kept::new(dir.path().join("kept.bin"), &other, "eu").unwrap();
        assert!(other.raise_facts(&mut BTreeMap::new()).is_err());
    }
}
