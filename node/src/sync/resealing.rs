//! Seals secrets for regions that were added after the secrets were set: control planes cannot,
//! since they open none.
//!
//! Only for keys that the key ring file of this region's nodes vouches for, which no control plane
//! can write: who can write to the store, or to the settings of control planes, can name a region,
//! and gets nothing for it. Only what this region can open, and only for regions that the
//! credential is for, by the version that is in force. One node does it for each such region.
//!
//! A value is written on a compare with the head that it was decided by, so that none appears
//! after a version that left the region out or ended the secret; and never over another one, since
//! the region may have newer keys than this one knows of.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use proto::id::OrgId;
use proto::seal::{self, Binding, Keyring, RegionPublicKey};
use proto::store::follow::{OrgState, World};
use proto::store::lacking::{self, Lacking, SealedName};
use proto::store::load::LoadError;
use proto::store::place::Place;
use proto::store::{Op, Store, StoreError};
use tokio::sync::watch;
use tracing::{info, warn};

/// How often secrets are looked for.
const LOOK: Duration = Duration::from_secs(2);
/// How often the file is asked which keys are vouched for.
const ASK: Duration = Duration::from_secs(5);
/// How often everything is looked for again, in case the store lost what it had.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// What seals secrets for other regions.
pub struct Resealing {
    /// Where they are.
    pub store: Arc<dyn Store>,
    /// The configuration that names them.
    pub worlds: watch::Receiver<Arc<World>>,
    /// What opens them.
    pub keyring: Arc<Keyring>,
    /// The keys that a person vouches for, as the file says now.
    pub trusted: Box<dyn Fn() -> Vec<RegionPublicKey> + Send + Sync>,
}

impl Resealing {
    /// Runs until it is dropped.
    pub async fn run(&self) {
        let mut trusted: Vec<RegionPublicKey> = Vec::new();
        loop {
            let jobs: Vec<_> = trusted.iter().map(|key| Box::pin(self.job(key))).collect();
            let now = tokio::select! {
                now = self.other_than(&trusted) => now,
                () = never_or(jobs) => continue,
            };
            for key in now.iter().filter(|key| !trusted.contains(key)) {
                let (region, fingerprint) = (&key.region, key.fingerprint());
                info!(
                    region,
                    fingerprint,
                    "secrets of this region are sealed for region {region} too: the key ring \
                     vouches for its key {fingerprint}"
                );
            }
            trusted = now;
        }
    }

    /// Waits until other keys than these are vouched for.
    async fn other_than(&self, known: &[RegionPublicKey]) -> Vec<RegionPublicKey> {
        loop {
            let now = (self.trusted)();
            if now != known {
                return now;
            }
            tokio::time::sleep(ASK).await;
        }
    }

    /// Seals for one region, whenever this node has the place.
    async fn job(&self, key: &RegionPublicKey) {
        let role = format!("resealing-{}", key.region);
        loop {
            let ended = match Place::take(&self.store, &role).await {
                Ok(place) => self.lead(&place, key).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                let region = &key.region;
                warn!(
                    region,
                    "nothing is sealed for region {region} for now: {error}"
                );
            }
            tokio::time::sleep(ASK).await;
        }
    }

    async fn lead(&self, place: &Place, key: &RegionPublicKey) -> Result<(), StoreError> {
        let (mut lacking, mut refused) = (Lacking::default(), BTreeSet::new());
        let begun = Instant::now();
        while !place.is_lost() && begun.elapsed() < LOOK_AGAIN {
            self.pass(place, key, (&mut lacking, &mut refused)).await?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Seals what is lacking now.
    async fn pass(
        &self,
        place: &Place,
        key: &RegionPublicKey,
        (lacking, refused): (&mut Lacking, &mut BTreeSet<SealedName>),
    ) -> Result<(), StoreError> {
        let world = self.worlds.borrow().clone();
        lacking.retain(|org| world.orgs.contains_key(&org));
        for (org, state) in &world.orgs {
            let names = self.lacks(lacking, state, key).await?;
            if names.is_empty() {
                continue;
            }
            let sealed = self.sealed(*org, state, (key, names), refused).await;
            match self.write(*org, state, place, sealed).await {
                Err(LoadError::Store(error)) => return Err(error),
                // Others are not kept waiting.
                Err(error) => warn!(%org, "nothing of {org} is sealed for others: {error}"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// The values that the other region should have, and does not, of what is here.
    async fn lacks(
        &self,
        lacking: &mut Lacking,
        state: &OrgState,
        key: &RegionPublicKey,
    ) -> Result<Vec<SealedName>, StoreError> {
        let (own, other) = (self.keyring.region.as_str(), key.region.as_str());
        let both = |credential: &proto::credential::Credential| {
            let both = credential.is_for_region(own) && credential.is_for_region(other);
            both.then_some(other).into_iter().collect()
        };
        let names = lacking.look(&*self.store, &state.config, both).await?;
        Ok(names.iter().cloned().collect())
    }

    /// The values, sealed for the other region, as far as they are here and in force.
    async fn sealed(
        &self,
        org: OrgId,
        state: &OrgState,
        (key, names): (&RegionPublicKey, Vec<SealedName>),
        refused: &mut BTreeSet<SealedName>,
    ) -> Vec<Op> {
        let (mut ops, now) = (Vec::new(), jiff::Timestamp::now());
        for name in names {
            if refused.contains(&name) {
                continue;
            }
            // A value takes a fraction of a millisecond, and there may be thousands.
            tokio::task::yield_now().await;
            let Some(stored) = state.config.credential(name.credential) else {
                continue;
            };
            let over = state
                .retired
                .get(&name.credential)
                .zip(stored.secret.as_ref());
            if over.is_some_and(|(fact, secret)| fact.covers(&secret.generation, now)) {
                continue;
            }
            let here = (name.credential, name.seal_id.clone());
            let Some(value) = state.sealed.get(&here) else {
                continue;
            };
            let binding = Binding {
                org,
                credential: name.credential,
                hosts: &stored.credential.hosts,
                seal_id: &name.seal_id,
            };
            match seal::reseal(&self.keyring, key, &binding, value) {
                Ok(sealed) => {
                    // A struct of texts always serialises.
                    let json = serde_json::to_vec(&sealed).unwrap_or_default();
                    ops.push(Op::put(name.key(org), json));
                }
                Err(error) => {
                    let (id, region) = (name.credential, &key.region);
                    warn!(%org, credential = %id, region,
                          "the secret of {id} is not sealed for region {region}: {error}");
                    refused.insert(name);
                }
            }
        }
        ops
    }

    /// Writes values while the version that they were decided by is in force. What does not come
    /// about is looked for again.
    async fn write(
        &self,
        org: OrgId,
        state: &OrgState,
        place: &Place,
        ops: Vec<Op>,
    ) -> Result<(), LoadError> {
        let written = lacking::fill(&*self.store, &state.config, &[place.held()], ops).await?;
        if written > 0 {
            info!(%org, written, "{written} secrets of {org} were sealed for another region");
        }
        Ok(())
    }
}

/// Waits for what never ends; for ever where there is nothing to wait for.
async fn never_or(jobs: Vec<std::pin::Pin<Box<impl Future<Output = ()>>>>) {
    match jobs.is_empty() {
        true => std::future::pending().await,
        false => drop(select_all(jobs).await),
    }
}

#[cfg(test)]
mod tests {
    use proto::keys;
    use proto::retired::Retired;
    use proto::seal::Sealed;
    use proto::store::Txn;
    use proto::version::Generation;

    use super::*;
    use crate::sync::sealed_scene::{CREDENTIAL, ORG, Scene};

    impl Scene {
        /// One pass for a region's key, of a node that sees these facts.
        async fn pass(&self, key: &RegionPublicKey, retired: Option<Retired>, place: &Place) {
            let (_sender, worlds) = watch::channel(self.world(retired));
            let resealing = Resealing {
                store: self.store.clone(),
                worlds,
                keyring: self.us.clone(),
                trusted: Box::new(Vec::new),
            };
            let (mut lacking, mut refused) = (Lacking::default(), BTreeSet::new());
            let pass = resealing.pass(place, key, (&mut lacking, &mut refused));
            pass.await.unwrap();
        }

        async fn place(&self) -> Place {
            Place::take(&self.store, "resealing").await.unwrap()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_secret_is_sealed_once_for_a_region_that_is_vouched_for() {
        let scene = Scene::new().await;
        let (eu, place) = (Keyring::generate("eu"), scene.place().await);
        scene.pass(&eu.public().unwrap(), None, &place).await;
        let first = scene.value("eu").await.expect("a value");
        let value: Sealed = serde_json::from_slice(&first).unwrap();
        let hosts = ["a.example".parse().unwrap()];
        let binding = Binding {
            org: ORG,
            credential: CREDENTIAL,
            hosts: &hosts,
            seal_id: &scene.seal_id,
        };
        let opened = seal::open(&eu, &binding, &value).unwrap();
        assert_eq!(opened.token.as_deref(), Some("canary"));
        assert!(seal::open(&scene.us, &binding, &value).is_err());
        // What is there stays, whatever it is sealed to.
        let other = Keyring::generate("eu").public().unwrap();
        scene.pass(&other, None, &place).await;
        assert_eq!(scene.value("eu").await, Some(first));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_sealed_beyond_what_is_in_force() {
        let scene = Scene::new().await;
        let place = scene.place().await;
        let ap = Keyring::generate("ap").public().unwrap();
        scene.pass(&ap, None, &place).await;
        assert_eq!(
            scene.value("ap").await,
            None,
            "the credential is not for ap"
        );
        let eu = Keyring::generate("eu").public().unwrap();
        let lowest = Generation {
            n: scene.config.head.n + 1,
            ..scene.config.head.generation()
        };
        let over = Retired { lowest, next: None };
        scene.pass(&eu, Some(over), &place).await;
        assert_eq!(scene.value("eu").await, None, "the secret is over");
        let put = |key: String, value: Vec<u8>| Txn {
            ops: vec![Op::put(key, value)],
            ..Txn::default()
        };
        // Another version is in force than the node has seen.
        let (epoch, n) = (scene.config.head.epoch.clone(), scene.config.head.n + 1);
        let head = scene.config.head.reopened(epoch, n, seal::random_name());
        let newer = put(keys::head(ORG), head.to_json());
        scene.store.txn(newer).await.unwrap();
        scene.pass(&eu, None, &place).await;
        assert_eq!(scene.value("eu").await, None, "it may leave eu out");
        let again = put(keys::head(ORG), scene.config.head.to_json());
        scene.store.txn(again).await.unwrap();
        // Another node does it.
        let taken = put(keys::leader("resealing"), b"another".to_vec());
        scene.store.txn(taken).await.unwrap();
        scene.pass(&eu, None, &place).await;
        assert_eq!(scene.value("eu").await, None, "the place is lost");
        let own = scene.value("us").await;
        assert_eq!(own, None, "nothing else is written either");
    }
}
