//! Seals this region's own secrets anew, for the newest key of its key ring: `keyring rotate` put
//! that in, and the keys before it are to go.
//!
//! Which key is the newest stands in the key ring file of nodes alone: who can write to the store
//! cannot have anything sealed to a key of theirs. Nothing is sealed to a key that a node of the
//! region does not have yet, as far as the list of nodes tells, for that node could not open it.
//! One node does it. A value is written over the one that was opened, and over no other.
//!
//! Nodes serve what they have read, so a notice ([`keys::RESEALED`]) has them read again what is
//! sealed to another key. It comes after every pass that wrote something, and again where it may
//! have been lost: after a pass over the whole store, with which every leader begins, and where
//! this node still serves an older value than the store has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::id::CredentialId;
use proto::keys;
use proto::member::{Member, Sealing};
use proto::seal::{self, Binding, Keyring, RegionPublicKey, Sealed};
use proto::store::follow::{OrgState, World};
use proto::store::place::Place;
use proto::store::{Op, Revision, Store, StoreError, Txn, load, over};
use tokio::sync::watch;
use tracing::{info, warn};

/// Which node does it.
const ROLE: &str = "rotation";
/// How often what is older is looked for in what is served.
const LOOK: Duration = Duration::from_secs(3);
/// How often it is looked for in the store, in case that was put back.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// Values of an organisation that are sealed anew before the next one has its turn.
const AT_ONCE_MAX: usize = 2_000;

/// What seals anew.
pub struct Rotation {
    /// Where the values are.
    pub store: Arc<dyn Store>,
    /// The configuration that names them.
    pub worlds: watch::Receiver<Arc<World>>,
    /// What opens them, and the key that they are sealed to.
    pub keyring: Arc<Keyring>,
}

/// A value that is sealed to an older key.
struct Older {
    credential: CredentialId,
    seal_id: String,
    sealed: Sealed,
    key: String,
    revision: Revision,
}

/// What the store has of the values of an organisation.
struct Found {
    older: Vec<Older>,
    /// One that is served as an older one is sealed to the newest key there.
    is_behind: bool,
}

/// Values that stay as they are, by their keys in the store, and as of which revision: what cannot
/// be opened, and with revision 0 what is served and not in the store.
type Refused = BTreeMap<String, Revision>;

/// What a node says of itself: its keys, and what of this world is sealed to an older one.
pub fn sealing(keyring: &Keyring, world: &World) -> Sealing {
    let keys: Vec<String> = keyring.ids().map(str::to_owned).collect();
    let mut older: BTreeMap<String, u64> = BTreeMap::new();
    if keys.len() > 1 {
        let values = world.orgs.values().flat_map(|state| state.sealed.values());
        for value in values.filter(|value| keys.first() != Some(&value.key_id)) {
            *older.entry(value.key_id.clone()).or_default() += 1;
        }
    }
    Sealing { keys, older }
}

impl Rotation {
    /// Runs until it is dropped.
    pub async fn run(&self) {
        let newest = self.keyring.public();
        let Some(newest) = newest.filter(|_| self.keyring.keys.len() > 1) else {
            // Nothing was sealed to another one that could be opened.
            return std::future::pending().await;
        };
        loop {
            let ended = match Place::take(&self.store, ROLE).await {
                Ok(place) => self.lead(&place, &newest).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                let key = &newest.key_id;
                warn!(key, "nothing is sealed to key {key} for now: {error}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn lead(&self, place: &Place, newest: &RegionPublicKey) -> Result<(), StoreError> {
        let (mut told, mut refused) = (BTreeSet::new(), Refused::new());
        let mut looked_at: Option<Instant> = None;
        while !place.is_lost() {
            let without = self.nodes_without(&newest.key_id).await?;
            if without.is_empty() {
                let whole = looked_at.is_none_or(|at| at.elapsed() >= LOOK_AGAIN);
                let is_all = self.pass(place, (newest, whole), &mut refused).await?;
                if whole && is_all {
                    looked_at = Some(Instant::now());
                }
            } else if without != told {
                let names: Vec<&str> = without.iter().map(String::as_str).collect();
                let (key, nodes) = (&newest.key_id, names.join(", "));
                warn!(
                    key,
                    nodes,
                    "secrets stay sealed to older keys until every node has key {key} in its key \
                     ring file; without it is {nodes}"
                );
            }
            told = without;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// The nodes of the region that could not open what is sealed to a key.
    async fn nodes_without(&self, key_id: &str) -> Result<BTreeSet<String>, StoreError> {
        let (mut without, mut listed) = (BTreeSet::new(), false);
        load::list(&*self.store, keys::NODES, None, |pair| {
            listed = true;
            // One of another release that cannot be read is a node all the same.
            let Ok(member) = serde_json::from_slice::<Member>(&pair.value) else {
                without.insert(pair.key);
                return;
            };
            let sealing = member.sealing.unwrap_or_default();
            if member.region == self.keyring.region && !sealing.keys.iter().any(|id| id == key_id) {
                without.insert(member.name);
            }
        })
        .await?;
        if !listed {
            without.insert("every node that is not in the list yet".to_owned());
        }
        Ok(without)
    }

    /// Seals anew what is older now: by what is served, or by the `whole` store. Says whether that
    /// was all.
    async fn pass(
        &self,
        place: &Place,
        (newest, whole): (&RegionPublicKey, bool),
        refused: &mut Refused,
    ) -> Result<bool, StoreError> {
        let world = self.worlds.borrow().clone();
        let (mut written, mut is_all, mut is_behind) = (0, true, false);
        for state in world.orgs.values() {
            let mut served = self.served_older(state, &newest.key_id);
            if !whole && served.iter().all(|key| refused.contains_key(key)) {
                continue;
            }
            let looked_for = (&mut served, &*refused);
            let found = self.older(state, &newest.key_id, looked_for).await?;
            is_behind |= found.is_behind;
            if found.older.len() < AT_ONCE_MAX {
                for key in served {
                    refused.entry(key).or_default();
                }
            } else {
                is_all = false;
            }
            let sealed = self.sealed(state, (newest, found.older), refused).await;
            written += over::put_over(&*self.store, &[place.held()], sealed).await?;
        }
        let due = written > 0 || whole || is_behind;
        self.tell(place, newest, due).await?;
        if written > 0 {
            let key = &newest.key_id;
            info!(
                key,
                written, "{written} secrets were sealed anew, to key {key}"
            );
        }
        Ok(is_all)
    }

    /// Writes the notice, where it is `due` or not of this key.
    async fn tell(
        &self,
        place: &Place,
        newest: &RegionPublicKey,
        due: bool,
    ) -> Result<(), StoreError> {
        let key = &newest.key_id;
        let noticed = self.store.get(keys::RESEALED).await?.value;
        if due || noticed.is_none_or(|pair| pair.value != key.as_bytes()) {
            let notice = Txn {
                compares: vec![place.held()],
                ops: vec![Op::put(keys::RESEALED.to_owned(), key.clone())],
                ..Txn::default()
            };
            self.store.txn(notice).await?;
        }
        Ok(())
    }

    /// The keys of the values that are served and sealed to another key.
    fn served_older(&self, state: &OrgState, newest: &str) -> BTreeSet<String> {
        let older = state.sealed.iter();
        let older = older.filter(|(_, value)| value.key_id != newest);
        let key = |(credential, seal_id): &(CredentialId, String)| {
            keys::secret(state.config.org, *credential, seal_id, &self.keyring.region)
        };
        older.map(|(name, _)| key(name)).collect()
    }

    /// The values in the store that a version names, and that are sealed to another key and not
    /// refused. Takes what it finds out of what is `served` as an older one.
    async fn older(
        &self,
        state: &OrgState,
        newest: &str,
        (served, refused): (&mut BTreeSet<String>, &Refused),
    ) -> Result<Found, StoreError> {
        let (mut older, mut is_behind) = (Vec::new(), false);
        load::list(
            &*self.store,
            &keys::secrets(state.config.org),
            None,
            |pair| {
                let Some((credential, seal_id, region)) = keys::parse_secret(&pair.key) else {
                    return;
                };
                if region != self.keyring.region {
                    return;
                }
                let stored = state.config.credential(credential);
                if stored
                    .and_then(|stored| stored.seal_id())
                    .map(String::as_str)
                    != Some(seal_id)
                {
                    return;
                }
                // What cannot be read is told by who serves it.
                let Ok(sealed) = serde_json::from_slice::<Sealed>(&pair.value) else {
                    return;
                };
                if sealed.key_id == newest {
                    is_behind |= served.remove(&pair.key);
                    return;
                }
                let is_refused = refused.get(&pair.key) == Some(&pair.mod_revision);
                if !is_refused && older.len() < AT_ONCE_MAX {
                    served.remove(&pair.key);
                    older.push(Older {
                        credential,
                        seal_id: seal_id.to_owned(),
                        sealed,
                        revision: pair.mod_revision,
                        key: pair.key,
                    });
                }
            },
        )
        .await?;
        Ok(Found { older, is_behind })
    }

    /// The values, sealed to the newest key, with the revision of what each takes the place of.
    async fn sealed(
        &self,
        state: &OrgState,
        (newest, older): (&RegionPublicKey, Vec<Older>),
        refused: &mut Refused,
    ) -> Vec<(Op, Revision)> {
        let mut ops = Vec::with_capacity(older.len());
        for value in older {
            // A value takes a fraction of a millisecond, and there may be thousands.
            tokio::task::yield_now().await;
            let Some(stored) = state.config.credential(value.credential) else {
                continue;
            };
            let org = state.config.org;
            let binding = Binding {
                org,
                credential: value.credential,
                hosts: &stored.credential.hosts,
                seal_id: &value.seal_id,
            };
            match seal::reseal(&self.keyring, newest, &binding, &value.sealed) {
                Ok(sealed) => {
                    // A struct of texts always serialises.
                    let json = serde_json::to_vec(&sealed).unwrap_or_default();
                    refused.remove(&value.key);
                    ops.push((Op::put(value.key, json), value.revision));
                }
                Err(error) => {
                    let (id, key) = (value.credential, &newest.key_id);
                    warn!(%org, credential = %id, key,
                          "the secret of {id} is not sealed to key {key}: {error}");
                    refused.insert(value.key, value.revision);
                }
            }
        }
        ops
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proto::id::NodeId;

    use super::*;
    use crate::sync::sealed_scene::{CREDENTIAL, ORG, Scene};

    fn node(name: &str, keyring: &Keyring) -> Op {
        let member = Member {
            id: NodeId::new(),
            name: name.into(),
            region: keyring.region.clone(),
            address: "127.0.0.1:1".into(),
            peers: None,
            program: "1.2.3".into(),
            started_at: Timestamp::now(),
            revision: 1,
            serves: String::new(),
            in_flight: 0,
            clock_ahead_ms: None,
            meters_degraded: 0,
            restarts: BTreeMap::new(),
            not_kept: BTreeMap::new(),
            sealing: Some(sealing(keyring, &World::default())),
            failing: Vec::new(),
            faults: Vec::new(),
        };
        let key = format!("{}{name}", keys::NODES);
        Op::put(key, serde_json::to_vec(&member).unwrap())
    }

    /// Region us, whose secret is sealed to the only key that there was.
    struct Rotated {
        scene: Scene,
        rotation: Rotation,
        newest: RegionPublicKey,
        place: Place,
        refused: Refused,
    }

    impl Rotated {
        async fn new() -> Self {
            let scene = Scene::new().await;
            let mut ring = Keyring::clone(&scene.us);
            ring.rotate().unwrap();
            let (_, worlds) = watch::channel(scene.world(None));
            let rotation = Rotation {
                store: scene.store.clone(),
                worlds,
                keyring: Arc::new(ring),
            };
            scene.write(vec![scene.put_of("us", &scene.sealed)]).await;
            Self {
                newest: rotation.keyring.public().unwrap(),
                place: Place::take(&scene.store, ROLE).await.unwrap(),
                refused: Refused::new(),
                scene,
                rotation,
            }
        }

        async fn pass(&mut self, whole: bool) {
            let pass = (&self.newest, whole);
            let done = self.rotation.pass(&self.place, pass, &mut self.refused);
            done.await.unwrap();
        }

        async fn value(&self) -> Sealed {
            let value = self.scene.value("us").await.expect("a value");
            serde_json::from_slice(&value).unwrap()
        }

        async fn notice(&self) -> Option<String> {
            let found = self.scene.store.get(keys::RESEALED).await.unwrap().value;
            found.map(|pair| String::from_utf8(pair.value.to_vec()).unwrap())
        }

        async fn notice_revision(&self) -> Option<Revision> {
            let found = self.scene.store.get(keys::RESEALED).await.unwrap().value;
            found.map(|pair| pair.mod_revision)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_secret_is_sealed_anew_and_who_serves_is_told() {
        let mut rotated = Rotated::new().await;
        let before = sealing(&rotated.rotation.keyring, &rotated.scene.world(None));
        assert_eq!(before.older.values().sum::<u64>(), 1);
        rotated.pass(false).await;
        let value = rotated.value().await;
        assert_eq!(value.key_id, rotated.newest.key_id);
        assert_eq!(rotated.notice().await.as_ref(), Some(&value.key_id));
        let hosts = ["a.example".parse().unwrap()];
        let binding = Binding {
            org: ORG,
            credential: CREDENTIAL,
            hosts: &hosts,
            seal_id: &rotated.scene.seal_id,
        };
        // The key that it was sealed to is needed no more.
        let mut ring = Keyring::clone(&rotated.rotation.keyring);
        assert!(ring.forget(&rotated.scene.sealed.key_id));
        let opened = seal::open(&ring, &binding, &value).unwrap();
        assert_eq!(opened.token.as_deref(), Some("canary"));
        assert!(!ring.forget(&rotated.newest.key_id), "it seals");
        rotated.pass(true).await;
        assert_eq!(rotated.value().await, value, "it is not sealed again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_store_got_back_is_found_in_it() {
        let mut rotated = Rotated::new().await;
        rotated.pass(false).await;
        let put_back = rotated.scene.put_of("us", &rotated.scene.sealed);
        rotated.scene.write(vec![put_back]).await;
        rotated.pass(true).await;
        assert_eq!(rotated.value().await.key_id, rotated.newest.key_id);
    }

    /// The store failed between the values and the notice.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_notice_that_was_lost_is_told_again() {
        let mut rotated = Rotated::new().await;
        let forgotten = || vec![Op::Delete(keys::RESEALED.to_owned())];
        let told = || vec![Op::put(keys::RESEALED.to_owned(), "as before")];
        for whole in [false, true] {
            rotated.pass(whole).await;
            rotated.scene.write(forgotten()).await;
            rotated.pass(whole).await;
            assert!(rotated.notice().await.is_some());
            rotated.scene.write(told()).await;
            let before = rotated.notice_revision().await;
            rotated.pass(whole).await;
            let after = rotated.notice_revision().await;
            assert!(after > before);
            rotated.pass(whole).await;
            let again = rotated.notice_revision().await;
            assert!(again > after, "this node serves the older one still");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_opened_is_left_until_all_is_looked_for() {
        let mut rotated = Rotated::new().await;
        let mut strange = rotated.scene.sealed.clone();
        strange.key_id = Keyring::generate("us").public().unwrap().key_id;
        let put = rotated.scene.put_of("us", &strange);
        rotated.scene.write(vec![put]).await;
        rotated.pass(false).await;
        assert_eq!(rotated.refused.len(), 1);
        let before = rotated.notice_revision().await;
        let put = rotated.scene.put_of("us", &rotated.scene.sealed);
        rotated.scene.write(vec![put]).await;
        rotated.pass(false).await;
        assert_eq!(rotated.value().await, rotated.scene.sealed, "not listed");
        assert_eq!(rotated.notice_revision().await, before);
        rotated.pass(true).await;
        assert_eq!(rotated.value().await.key_id, rotated.newest.key_id);
        assert!(rotated.refused.is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_store_has_lost_is_left_until_all_is_looked_for() {
        let mut rotated = Rotated::new().await;
        let key = keys::secret(ORG, CREDENTIAL, &rotated.scene.seal_id, "us");
        rotated.scene.write(vec![Op::Delete(key)]).await;
        rotated.pass(false).await;
        assert_eq!(rotated.refused.len(), 1);
        let before = rotated.notice_revision().await;
        rotated.pass(false).await;
        assert_eq!(rotated.notice_revision().await, before);
        let put = rotated.scene.put_of("us", &rotated.scene.sealed);
        rotated.scene.write(vec![put]).await;
        rotated.pass(true).await;
        assert_eq!(rotated.value().await.key_id, rotated.newest.key_id);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_written_that_was_not_opened_or_by_who_lost_the_place() {
        let mut rotated = Rotated::new().await;
        let stranger = Keyring::generate("us").public().unwrap();
        let mut strange = rotated.scene.sealed.clone();
        strange.key_id = stranger.key_id;
        let put = rotated.scene.put_of("us", &strange);
        rotated.scene.write(vec![put]).await;
        rotated.pass(true).await;
        assert_eq!(rotated.value().await, strange);
        assert_eq!(rotated.refused.len(), 1, "it is told once");

        let put = rotated.scene.put_of("us", &rotated.scene.sealed);
        rotated.scene.write(vec![put]).await;
        rotated.refused.clear();
        let taken = Op::put(keys::leader(ROLE), b"another".to_vec());
        rotated.scene.write(vec![taken]).await;
        rotated.pass(true).await;
        assert_eq!(rotated.value().await, rotated.scene.sealed);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_sealed_to_a_key_that_a_node_does_not_have() {
        let rotated = Rotated::new().await;
        let (rotation, old) = (&rotated.rotation, &rotated.scene.us);
        let without = async || {
            let without = rotation.nodes_without(&rotated.newest.key_id).await;
            without.unwrap().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(without().await.len(), 1, "nobody is listed yet");
        let both = vec![node("gw-1", &rotation.keyring), node("gw-2", old)];
        rotated.scene.write(both).await;
        assert_eq!(without().await, ["gw-2"]);
        let unreadable = Op::put(format!("{}x", keys::NODES), "{}");
        rotated
            .scene
            .write(vec![node("gw-2", &rotation.keyring), unreadable])
            .await;
        assert_eq!(without().await, ["nodes/x"]);
        rotated
            .scene
            .write(vec![Op::Delete("nodes/x".into())])
            .await;
        assert!(without().await.is_empty());
    }
}
