//! Which secrets are over, told from node to node.
//!
//! A revocation reaches every node through the store. A node that is cut off from the store, but
//! not from callers, would honour a revoked key until the cut heals; so nodes tell each other what
//! facts they hold, and one without the store asks a peer for those that it lacks. Facts only ever
//! rise, so it does not matter who gives them, nor in what order.
//!
//! ```text
//! follower ── worlds ──▶ Merging ── worlds, facts of peers merged in ──▶ compile, kept copy
//!                           ▲   └──▶ announce ── HoldFacts ──▶ peers
//!                        learned ◀── Facts ── WantFacts ◀── HoldFacts of a peer, store away
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use proto::health::Health;
use proto::id::{CredentialId, OrgId};
use proto::keys::{self, Live};
use proto::restarts::Restarts;
use proto::retired::Retired;
use proto::store::follow::{OrgState, World};
use tokio::sync::{mpsc, watch};

use super::Peers;
use super::wire::{FACTS_PROTOCOL, FactsPage, HeldFact, PeerMessage};
use crate::limits::Opener;

/// How often a node tells what facts it holds, besides when they change.
const TELL: Duration = Duration::from_secs(5);
/// Facts in one answer.
const PAGE: usize = 4_096;
/// Answers that wait to be merged; a peer is asked again later for what finds no room.
const LEARNED: usize = 8;

/// A digest of all facts that a node holds.
pub type Digest = [u8; 32];

type OrgFacts = Arc<BTreeMap<CredentialId, Retired>>;
type Learned = Vec<(OrgId, CredentialId, Retired)>;

/// The facts of this node, for its links.
pub struct Facts {
    held: OnceLock<Held>,
    learned: mpsc::Sender<Learned>,
    taken: Mutex<Option<mpsc::Receiver<Learned>>>,
    /// What a peer held when all of its facts were taken.
    seen: Mutex<Option<Digest>>,
    /// Digests of organisations, with the facts that they are of.
    digests: Mutex<HashMap<OrgId, (OrgFacts, Digest)>>,
}

/// What is there once the configuration is.
struct Held {
    worlds: watch::Receiver<Arc<World>>,
    health: Health,
}

impl Default for Facts {
    fn default() -> Self {
        let (learned, taken) = mpsc::channel(LEARNED);
        Self {
            held: OnceLock::new(),
            learned,
            taken: Mutex::new(Some(taken)),
            seen: Mutex::default(),
            digests: Mutex::default(),
        }
    }
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Facts").finish_non_exhaustive()
    }
}

impl Facts {
    /// The worlds with what peers told merged in, kept current by what is returned beside them.
    /// Call it once.
    pub fn begin(
        self: &Arc<Self>,
        worlds: watch::Receiver<Arc<World>>,
        health: Health,
    ) -> (
        watch::Receiver<Arc<World>>,
        impl Future<Output = ()> + Send + use<>,
    ) {
        let (merged, receiver) = watch::channel(worlds.borrow().clone());
        let held = Held {
            worlds: receiver.clone(),
            health: health.clone(),
        };
        // Set once: a process follows one store.
        let _ = self.held.set(held);
        let taken = lock(&self.taken).take();
        let merging = Merging {
            worlds,
            taken,
            learned: BTreeMap::new(),
            merged,
        };
        (receiver, merging.run(health))
    }

    /// How many milliseconds ago the facts were known to be all there are; [`u64::MAX`] for never.
    fn age_ms(&self) -> u64 {
        let age = self.held.get().and_then(|held| held.health.facts_age());
        age.map_or(u64::MAX, ms)
    }

    /// A peer says what it holds: asks for it where the store is away and it is something new.
    pub(super) fn told(&self, peers: &Peers, peer: Opener, digest: Digest, age_ms: u64) {
        let Some(held) = self.held.get().filter(|held| !held.health.has_store()) else {
            return;
        };
        let world = held.worlds.borrow().clone();
        if digest == self.digest(&world) || *lock(&self.seen) == Some(digest) {
            self.whole(age_ms);
        } else {
            peers.send(peer, PeerMessage::WantFacts { after: None });
        }
    }

    /// Facts from a key on, for a peer.
    pub(super) fn page(&self, after: Option<&str>) -> PeerMessage {
        let world = self.held.get().map(|held| held.worlds.borrow().clone());
        let mut facts: Vec<HeldFact> = Vec::new();
        let mut more = false;
        let all = world.iter().flat_map(|world| facts_of(world));
        for (key, fact) in all.filter(|(key, _)| after.is_none_or(|after| key.as_str() > after)) {
            if facts.len() == PAGE {
                more = true;
                break;
            }
            let value = value_of(fact);
            facts.push(HeldFact { key, value });
        }
        let digest = world.as_deref().map(|world| self.digest(world));
        let digest = digest.unwrap_or_default();
        PeerMessage::Facts(FactsPage {
            facts,
            more,
            digest,
            age_ms: self.age_ms(),
        })
    }

    /// A page of a peer's facts; asks for the next one. What cannot be read is passed over: a peer
    /// of a later release may hold facts in a form that this one does not know.
    pub(super) fn learn(&self, peers: &Peers, peer: Opener, page: FactsPage) {
        let last = page.facts.last().map(|fact| fact.key.clone());
        let read = page.facts.iter().filter_map(|fact| {
            let Some(Live::Retired(org, credential)) = Live::parse(&fact.key) else {
                return None;
            };
            Some((org, credential, serde_json::from_slice(&fact.value).ok()?))
        });
        let read: Learned = read.collect();
        if self.learned.try_send(read).is_err() {
            return;
        }
        match last.filter(|_| page.more) {
            Some(last) => {
                let after = Some(last);
                peers.send(peer, PeerMessage::WantFacts { after });
            }
            None => {
                *lock(&self.seen) = Some(page.digest);
                self.whole(page.age_ms);
            }
        }
    }

    /// The digest of all facts of a world. An organisation's is made anew only when it changed.
    fn digest(&self, world: &World) -> Digest {
        let mut digests = lock(&self.digests);
        digests.retain(|org, _| world.orgs.contains_key(org));
        let mut whole = blake3::Hasher::new();
        for (org, state) in world
            .orgs
            .iter()
            .filter(|(_, state)| !state.retired.is_empty())
        {
            let known = digests.get(org);
            let digest = match known.filter(|(of, _)| Arc::ptr_eq(of, &state.retired)) {
                Some((_, digest)) => *digest,
                None => {
                    let digest = digest_of(&state.retired);
                    digests.insert(*org, (Arc::clone(&state.retired), digest));
                    digest
                }
            };
            whole.update(org.to_string().as_bytes());
            whole.update(&digest);
        }
        *whole.finalize().as_bytes()
    }

    /// All facts are known that somebody held who had them whole so long ago.
    fn whole(&self, age_ms: u64) {
        if let Some(held) = self.held.get().filter(|_| age_ms != u64::MAX) {
            held.health.facts_were_whole(Duration::from_millis(age_ms));
        }
    }
}

/// Tells peers what this node holds, when it changes and now and then, until the worlds end.
pub async fn announce(peers: Peers, facts: Arc<Facts>, mut worlds: watch::Receiver<Arc<World>>) {
    let mut told;
    loop {
        let digest = facts.digest(&worlds.borrow_and_update());
        told = Some(digest);
        let age_ms = facts.age_ms();
        peers.broadcast(FACTS_PROTOCOL, &PeerMessage::HoldFacts { digest, age_ms });
        let due = tokio::time::sleep(TELL);
        tokio::pin!(due);
        loop {
            tokio::select! {
                changed = worlds.changed() => match changed {
                    Ok(()) if told == Some(facts.digest(&worlds.borrow_and_update())) => {}
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = &mut due => break,
            }
        }
    }
}

/// Passes worlds on, with what peers told merged in.
struct Merging {
    worlds: watch::Receiver<Arc<World>>,
    /// None once nobody can tell anything any more.
    taken: Option<mpsc::Receiver<Learned>>,
    learned: BTreeMap<OrgId, BTreeMap<CredentialId, Retired>>,
    merged: watch::Sender<Arc<World>>,
}

impl Merging {
    /// Until the worlds end.
    async fn run(mut self, health: Health) {
        let mut restarts = Restarts::of("facts", health);
        while restarts.run(self.rounds()).await.is_none() {}
    }

    async fn rounds(&mut self) {
        loop {
            self.pass_on();
            let next = tokio::select! {
                changed = self.worlds.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                next = next_of(&mut self.taken) => next,
            };
            match next {
                Some(next) => self.learn(next),
                None => self.taken = None,
            }
        }
    }

    fn learn(&mut self, told: Learned) {
        for (org, credential, fact) in told {
            let of_org = self.learned.entry(org).or_default();
            let known = of_org.remove(&credential);
            of_org.insert(credential, fact.joined(known));
        }
    }

    fn pass_on(&mut self) {
        let world = self.worlds.borrow_and_update().clone();
        self.learned.retain(|org, facts| {
            let state = world.orgs.get(org);
            state.is_none_or(|state| {
                facts.retain(|credential, fact| !holds(state, *credential, fact));
                !facts.is_empty()
            })
        });
        let before = self.merged.borrow().clone();
        let merged = merge(&world, &before, &self.learned);
        self.merged.send_if_modified(|shown| {
            let changed = !Arc::ptr_eq(shown, &merged);
            *shown = merged;
            changed
        });
    }
}

/// What was told next; never ready where nobody tells anything.
async fn next_of(taken: &mut Option<mpsc::Receiver<Learned>>) -> Option<Learned> {
    match taken {
        Some(taken) => taken.recv().await,
        None => std::future::pending().await,
    }
}

/// A world with facts merged in. An organisation that has the same facts as `before` keeps its
/// state, so that nothing of it is compiled again.
fn merge(
    world: &Arc<World>,
    before: &World,
    learned: &BTreeMap<OrgId, BTreeMap<CredentialId, Retired>>,
) -> Arc<World> {
    let mut merged: Option<World> = None;
    for (org, facts) in learned {
        let Some(state) = world.orgs.get(org) else {
            continue;
        };
        let mut retired = BTreeMap::clone(&state.retired);
        for (credential, fact) in facts {
            let known = retired.remove(credential);
            retired.insert(*credential, fact.clone().joined(known));
        }
        let same = before.orgs.get(org).filter(|old| {
            Arc::ptr_eq(&old.config, &state.config)
                && Arc::ptr_eq(&old.sealed, &state.sealed)
                && *old.retired == retired
        });
        let state = match same {
            Some(old) => Arc::clone(old),
            None => Arc::new(OrgState {
                config: Arc::clone(&state.config),
                sealed: Arc::clone(&state.sealed),
                sealed_whole: state.sealed_whole,
                retired: Arc::new(retired),
            }),
        };
        let merged = merged.get_or_insert_with(|| World::clone(world));
        merged.orgs.insert(*org, state);
    }
    merged.map_or_else(|| Arc::clone(world), Arc::new)
}

/// Whether a fact changes nothing.
fn holds(state: &OrgState, credential: CredentialId, fact: &Retired) -> bool {
    let known = state.retired.get(&credential);
    known.is_some_and(|known| known.clone().merge(fact.clone()) == *known)
}

/// All facts of a world, in the order of their keys.
fn facts_of(world: &World) -> impl Iterator<Item = (String, &Retired)> {
    let mut all: Vec<_> = world
        .orgs
        .iter()
        .flat_map(|(org, state)| {
            let facts = state.retired.iter();
            facts.map(|(credential, fact)| (keys::retired(*org, *credential), fact))
        })
        .collect();
    all.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    all.into_iter()
}

fn digest_of(facts: &BTreeMap<CredentialId, Retired>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for (credential, fact) in facts {
        hasher.update(credential.to_string().as_bytes());
        hasher.update(&value_of(fact));
    }
    *hasher.finalize().as_bytes()
}

/// As the store holds it. Numbers and texts: serialising them cannot fail.
fn value_of(fact: &Retired) -> Vec<u8> {
    serde_json::to_vec(fact).unwrap_or_default()
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proto::tree::OrgConfig;
    use proto::version::{Epoch, Generation};

    use super::*;

    const ORG: OrgId = OrgId::from_bits(5);

    fn credential(n: u128) -> CredentialId {
        CredentialId::from_bits(n)
    }

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

    fn world(facts: impl IntoIterator<Item = (u128, u64)>) -> Arc<World> {
        let facts = facts.into_iter().map(|(id, n)| (credential(id), fact(n)));
        let state = OrgState {
            config: Arc::new(OrgConfig::genesis(ORG, fact(1).lowest.epoch)),
            sealed: Arc::default(),
            sealed_whole: true,
            retired: Arc::new(facts.collect()),
        };
        let mut world = World::default();
        world.orgs.insert(ORG, Arc::new(state));
        Arc::new(world)
    }

    #[test]
    fn facts_of_peers_only_raise_and_what_does_not_change_is_the_same() {
        let store = world([(1, 5), (2, 5)]);
        let nothing = BTreeMap::new();
        assert!(Arc::ptr_eq(&merge(&store, &store, &nothing), &store));
        let learned = BTreeMap::from([(credential(1), fact(7)), (credential(3), fact(2))]);
        let elsewhere = BTreeMap::from([(credential(9), fact(9))]);
        let learned = BTreeMap::from([(ORG, learned), (OrgId::from_bits(8), elsewhere)]);
        let merged = merge(&store, &store, &learned);
        let expected = [(1, 7), (2, 5), (3, 2)].map(|(id, n)| (credential(id), fact(n)));
        assert_eq!(*merged.orgs[&ORG].retired, BTreeMap::from(expected));
        assert_eq!(merged.orgs.len(), 1, "no organisation comes from a fact");
        let again = merge(&store, &merged, &learned);
        assert!(Arc::ptr_eq(&again.orgs[&ORG], &merged.orgs[&ORG]));
    }

    #[test]
    fn equal_facts_have_one_digest() {
        let facts = Facts::default();
        let first = facts.digest(&world([(1, 5)]));
        assert_eq!(first, Facts::default().digest(&world([(1, 5)])));
        assert_ne!(first, facts.digest(&world([(1, 6)])));
        assert_ne!(first, facts.digest(&world([(2, 5)])));
        assert_eq!(facts.digest(&world([])), facts.digest(&World::default()));
    }

    #[test]
    fn pages_together_hold_every_fact_once() {
        let facts = Arc::new(Facts::default());
        let count = u128::try_from(2 * PAGE + 10).unwrap();
        let (_store, worlds) = watch::channel(world((1..=count).map(|id| (id, 1))));
        let (_serves, _merging) = facts.begin(worlds, Health::default());
        let (mut after, mut keys) = (None::<String>, Vec::new());
        loop {
            let PeerMessage::Facts(page) = facts.page(after.as_deref()) else {
                panic!("a page");
            };
            assert!(page.facts.len() <= PAGE);
            assert_eq!(page.age_ms, u64::MAX, "not proven yet");
            keys.extend(page.facts.into_iter().map(|fact| fact.key));
            after = keys.last().cloned();
            if !page.more {
                break;
            }
        }
        assert_eq!(keys.len(), 2 * PAGE + 10);
        assert!(keys.is_sorted());
        keys.dedup();
        assert_eq!(keys.len(), 2 * PAGE + 10);
    }
}
