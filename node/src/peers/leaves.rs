//! Leaves of configurations, asked of two peers before the store.
//!
//! A leaf is named by the hash of its content, so it does not matter who gives it: what does not
//! have the hash is not taken. A node gives what it serves, and while it still loads what it has
//! read so far: of many nodes that read one large version the first ones read the store.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::id::OrgId;
use proto::keys;
use proto::store::follow::World;
use proto::store::nearby::{self, NearFuture, Nearby};
use proto::tree::{self, Hash};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Peers;
use super::wire::PeerMessage;
use crate::limits::Opener;

/// Peers that are asked, one after the other.
const PEERS_ASKED: usize = 2;
/// The next one is asked as well when an answer takes so long.
const LATE: Duration = Duration::from_millis(100);
/// How long one may take.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// Who did not answer in time is not asked for so long: of a large configuration there are
/// hundreds of leaves to ask for.
const SILENT_REST: Duration = Duration::from_secs(5);
/// With so many silent peers none is asked: it is this node that hears nothing, and of a hundred
/// each would cost its wait.
const SILENT_MAX: usize = 4;
/// What is kept of a version while it is read, in bytes.
const READ_BYTES_MAX: usize = 64 * 1_024 * 1_024;

/// Leaves that this node can give and those that it waits for.
pub struct Leaves {
    /// What this node serves; set when it does.
    applied: OnceLock<watch::Receiver<Arc<World>>>,
    /// The links; set when there are any.
    peers: OnceLock<Peers>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Option<Vec<u8>>>>>,
    silent: Mutex<Silent>,
    /// Who gave the last one: of a version that few have yet it has more.
    giver: Mutex<Option<Opener>>,
    read: Mutex<ReadLeaves>,
    serial: AtomicU64,
    nodes: AtomicU64,
    /// Draws when to read, between 0 and 1.
    draw: fn() -> f64,
}

impl Default for Leaves {
    fn default() -> Self {
        Self {
            applied: OnceLock::new(),
            peers: OnceLock::new(),
            waiting: Mutex::default(),
            silent: Mutex::default(),
            giver: Mutex::default(),
            read: Mutex::default(),
            serial: AtomicU64::new(0),
            nodes: AtomicU64::new(1),
            draw: rand::random,
        }
    }
}

impl Leaves {
    /// From now on peers are asked.
    pub fn linked(&self, peers: Peers) {
        // Set once: a process has one set of links.
        let _ = self.peers.set(peers);
    }

    /// From now on peers are given what `applied` holds; what was kept for them while it was read
    /// goes as soon as it is there.
    pub fn begin(
        self: &Arc<Self>,
        mut applied: watch::Receiver<Arc<World>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        // Set once: a process serves one configuration.
        let _ = self.applied.set(applied.clone());
        let leaves = Arc::clone(self);
        async move {
            loop {
                *leaves.read() = ReadLeaves::default();
                if applied.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// How many nodes may read the same at one time, this one included.
    pub fn set_nodes(&self, nodes: u64) {
        self.nodes.store(nodes, Ordering::Relaxed);
    }

    /// A leaf or root that this node has, as the store holds it.
    pub fn held(&self, key: &str) -> Option<Vec<u8>> {
        let (org, hash) = keys::parse_leaf(key)?;
        let read = self.read().leaves.get(key).cloned();
        read.map(Vec::from).or_else(|| {
            let world = self.applied.get()?.borrow().clone();
            let leaf = world.orgs.get(&org)?.config.leaf(hash)?;
            Some(leaf.packed)
        })
    }

    /// A peer has answered.
    pub fn answered(&self, ask: u64, packed: Option<Vec<u8>>) {
        let waiting = lock(&self.waiting).remove(&ask);
        if let Some(waiting) = waiting {
            // An error means that nobody waits any more.
            let _ = waiting.send(packed);
        }
    }

    /// Asks peers for a leaf: the next one when the one before has none, or is late; then whoever
    /// has it first.
    async fn ask(&self, org: OrgId, hash: Hash) -> Option<Vec<u8>> {
        let peers = self.peers.get()?;
        let key = keys::leaf(org, &hash);
        let mut next = self.candidates(peers).into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            let now = Instant::now();
            let peer = next.find(|peer| lock(&self.silent).may_be_asked(*peer, now));
            let is_last = peer.is_none();
            asked.extend(peer.map(|peer| self.ask_one(peers, peer, (&key, hash))));
            let answer = match is_last {
                true => asked.next().await,
                false => tokio::time::timeout(LATE, asked.next())
                    .await
                    .ok()
                    .flatten(),
            };
            match answer.flatten() {
                Some(content) => return Some(content),
                None if is_last && asked.is_empty() => return None,
                None => {}
            }
        }
    }

    /// Whom to ask, in this order.
    fn candidates(&self, peers: &Peers) -> Vec<Opener> {
        let giver = *lock(&self.giver);
        let giver = giver.filter(|giver| peers.has(*giver));
        let others = peers.some(PEERS_ASKED).into_iter();
        let others = others.filter(|peer| Some(*peer) != giver);
        giver.into_iter().chain(others).take(PEERS_ASKED).collect()
    }

    /// Asks one peer; only what has the hash is taken.
    async fn ask_one(
        &self,
        peers: &Peers,
        peer: Opener,
        (key, hash): (&str, Hash),
    ) -> Option<Vec<u8>> {
        let ask = self.serial.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.waiting).insert(ask, sender);
        // Who had it first ends the wait for the others.
        let _waiting = Waiting { leaves: self, ask };
        let want = key.to_owned();
        if !peers.send(peer, PeerMessage::WantLeaf { ask, key: want }) {
            return None;
        }
        let Ok(answer) = tokio::time::timeout(ANSWER_MAX, answer).await else {
            lock(&self.silent).note(peer, Instant::now());
            return None;
        };
        let packed = answer.ok()??;
        let content = tree::unpack(hash, &packed).ok()?;
        let stats = &peers.shared.stats;
        stats.leaves_from_peers.fetch_add(1, Ordering::Relaxed);
        *lock(&self.giver) = Some(peer);
        self.read().keep(key.to_owned(), packed.into());
        Some(content)
    }

    /// When to begin to read so much.
    fn start(&self, bytes: u64) -> Duration {
        let nodes = self.nodes.load(Ordering::Relaxed);
        nearby::start(bytes, nodes, (self.draw)())
    }

    fn read(&self) -> MutexGuard<'_, ReadLeaves> {
        lock(&self.read)
    }
}

impl Nearby for Leaves {
    fn leaf(&self, org: OrgId, hash: Hash) -> NearFuture<'_, Option<Vec<u8>>> {
        Box::pin(self.ask(org, hash))
    }

    fn stored(&self, org: OrgId, hash: Hash, packed: &Bytes) {
        let Some(peers) = self.peers.get() else {
            return;
        };
        if peers.are_any() {
            let stats = &peers.shared.stats;
            stats.leaves_from_store.fetch_add(1, Ordering::Relaxed);
        }
        self.read().keep(keys::leaf(org, &hash), packed.clone());
    }

    fn turn(&self, bytes: u64) -> NearFuture<'_, ()> {
        Box::pin(tokio::time::sleep(self.start(bytes)))
    }
}

/// An answer that is waited for.
struct Waiting<'a> {
    leaves: &'a Leaves,
    ask: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.leaves.waiting).remove(&self.ask);
    }
}

/// What was read of versions that are not served yet, by key, as the store holds it.
#[derive(Default)]
struct ReadLeaves {
    leaves: HashMap<String, Bytes>,
    bytes: usize,
}

impl ReadLeaves {
    /// Keeps a leaf, where there is room.
    fn keep(&mut self, key: String, packed: Bytes) {
        let bytes = self.bytes + packed.len();
        if bytes <= READ_BYTES_MAX && self.leaves.insert(key, packed).is_none() {
            self.bytes = bytes;
        }
    }
}

/// Peers that did not answer in time, and when that was.
#[derive(Default)]
struct Silent(HashMap<Opener, Instant>);

impl Silent {
    fn note(&mut self, peer: Opener, now: Instant) {
        self.0
            .retain(|_, since| now.duration_since(*since) < SILENT_REST);
        self.0.insert(peer, now);
    }

    fn is(&self, peer: Opener, now: Instant) -> bool {
        let since = self.0.get(&peer);
        since.is_some_and(|since| now.duration_since(*since) < SILENT_REST)
    }

    /// Whether it is worth while to ask a peer.
    fn may_be_asked(&self, peer: Opener, now: Instant) -> bool {
        let silent = self.0.keys().filter(|silent| self.is(**silent, now));
        !self.is(peer, now) && silent.count() < SILENT_MAX
    }
}

impl std::fmt::Debug for Leaves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The links name it in turn.
        f.debug_struct("Leaves").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_left_out_for_a_while() {
        let peer = |node| Opener { node, boot: 1 };
        let (mut silent, at) = (Silent::default(), Instant::now());
        silent.note(peer(1), at);
        let (now, later) = (at + SILENT_REST / 2, at + SILENT_REST);
        assert!(!silent.may_be_asked(peer(1), now) && silent.may_be_asked(peer(2), now));
        assert!(silent.may_be_asked(peer(1), later));
        silent.note(peer(2), later);
        assert_eq!(silent.0.len(), 1, "who may be asked again is forgotten");
    }

    #[test]
    fn with_several_silent_peers_nobody_is_asked_for_a_while() {
        let peer = |node| Opener { node, boot: 1 };
        let (mut silent, at) = (Silent::default(), Instant::now());
        let most = SILENT_MAX as u64;
        (1..most).for_each(|node| silent.note(peer(node), at));
        assert!(silent.may_be_asked(peer(most + 1), at));
        silent.note(peer(most), at);
        assert!(!silent.may_be_asked(peer(most + 1), at));
        assert!(silent.may_be_asked(peer(most + 1), at + SILENT_REST));
    }

    #[test]
    fn what_is_read_is_kept_up_to_a_bound_and_each_leaf_once() {
        let mut read = ReadLeaves::default();
        let half = Bytes::from(vec![0; READ_BYTES_MAX / 2]);
        read.keep("a".into(), half.clone());
        read.keep("a".into(), half.clone());
        assert_eq!(read.bytes, half.len());
        read.keep("b".into(), half.clone());
        read.keep("c".into(), Bytes::from_static(b"1"));
        let mut kept: Vec<_> = read.leaves.keys().cloned().collect();
        kept.sort();
        assert_eq!(kept, ["a", "b"]);
    }

    #[test]
    fn a_large_read_begins_when_it_is_drawn_to() {
        let leaves = Leaves {
            draw: || 0.5,
            ..Leaves::default()
        };
        let (little, much) = (1 << 20, 50_000_000);
        assert_eq!(leaves.start(much), Duration::ZERO, "nobody else reads");
        leaves.set_nodes(4);
        assert_eq!(leaves.start(much), Duration::from_secs(2));
        assert_eq!(leaves.start(little), Duration::ZERO);
    }
}
