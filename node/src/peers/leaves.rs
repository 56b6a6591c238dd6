//! Leaves of configurations, asked of two peers before the store.
//!
//! A leaf is named by the hash of its content, so it does not matter who gives it: what does not
//! have the hash is not taken. After a large publish the store is read by the first nodes only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use proto::keys;
use proto::store::follow::World;
use proto::store::{
    At, KeyValue, Lease, LeaseId, Page, Range, Revision, Store, StoreFuture, Txn, TxnOutcome, Watch,
};
use proto::tree;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Peers;
use super::wire::PeerMessage;
use crate::limits::Opener;

/// Peers that are asked, one after the other.
const PEERS_ASKED: usize = 2;
/// How long one may take.
const ANSWER_MAX: Duration = Duration::from_millis(100);

/// Who did not answer in time is not asked for so long: of a large configuration there are
/// hundreds of leaves to ask for.
const SILENT_REST: Duration = Duration::from_secs(5);

/// Leaves that this node can give and those that it waits for.
#[derive(Default)]
pub struct Leaves {
    /// What this node serves; set when it does.
    applied: OnceLock<watch::Receiver<Arc<World>>>,
    /// The links; set when there are any.
    peers: OnceLock<Peers>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Option<Vec<u8>>>>>,
    silent: Mutex<Silent>,
    serial: AtomicU64,
}

impl Leaves {
    /// From now on peers are asked, and given what `applied` holds.
    pub fn begin(&self, peers: Peers, applied: watch::Receiver<Arc<World>>) {
        // Set once: a process has one set of links.
        let _ = self.applied.set(applied);
        let _ = self.peers.set(peers);
    }

    /// A leaf or root that this node serves, as the store holds it.
    pub fn held(&self, key: &str) -> Option<Vec<u8>> {
        let (org, hash) = keys::parse_leaf(key)?;
        let world = self.applied.get()?.borrow().clone();
        let leaf = world.orgs.get(&org)?.config.leaf(hash)?;
        Some(leaf.packed)
    }

    /// A peer has answered.
    pub fn answered(&self, ask: u64, packed: Option<Vec<u8>>) {
        let waiting = self.waiting().remove(&ask);
        if let Some(waiting) = waiting {
            // An error means that nobody waits any more.
            let _ = waiting.send(packed);
        }
    }

    /// The store, with leaves asked of peers first.
    pub fn before(self: &Arc<Self>, store: Arc<dyn Store>) -> Arc<dyn Store> {
        let leaves = Arc::clone(self);
        Arc::new(PeersFirst { store, leaves })
    }

    /// Asks peers for a leaf; only one with the right hash is taken.
    async fn ask(&self, key: &str) -> Option<Vec<u8>> {
        let (_, hash) = keys::parse_leaf(key)?;
        let peers = self.peers.get()?;
        let some = peers.some(PEERS_ASKED);
        let asked = some
            .iter()
            .filter(|peer| !self.silent().is(**peer, Instant::now()));
        for peer in asked {
            let ask = self.serial.fetch_add(1, Ordering::Relaxed);
            let (sender, answer) = oneshot::channel();
            self.waiting().insert(ask, sender);
            let key = key.to_owned();
            let sent = peers.send(*peer, PeerMessage::WantLeaf { ask, key });
            let answer = match sent {
                true => tokio::time::timeout(ANSWER_MAX, answer).await,
                false => Ok(Ok(None)),
            };
            self.waiting().remove(&ask);
            if answer.is_err() {
                self.silent().note(*peer, Instant::now());
            }
            if let Ok(Ok(Some(packed))) = answer
                && tree::unpack(hash, &packed).is_ok()
            {
                let stats = &peers.shared.stats;
                stats.leaves_from_peers.fetch_add(1, Ordering::Relaxed);
                return Some(packed);
            }
        }
        if !some.is_empty() {
            let stats = &peers.shared.stats;
            stats.leaves_from_store.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    fn silent(&self) -> std::sync::MutexGuard<'_, Silent> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Option<Vec<u8>>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl std::fmt::Debug for Leaves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The links name it in turn.
        f.debug_struct("Leaves").finish_non_exhaustive()
    }
}

/// A store that asks peers for leaves before it asks the one behind it.
struct PeersFirst {
    store: Arc<dyn Store>,
    leaves: Arc<Leaves>,
}

impl Store for PeersFirst {
    /// A leaf from a peer has revision 0: no store has answered.
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        if keys::parse_leaf(key).is_none() {
            return self.store.get(key);
        }
        let key = key.to_owned();
        Box::pin(async move {
            let Some(packed) = self.leaves.ask(&key).await else {
                return self.store.get(&key).await;
            };
            let revision = Revision(0);
            let value = Some(KeyValue {
                key,
                value: packed.into(),
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                lease: None,
            });
            Ok(At { revision, value })
        })
    }

    fn range(&self, range: Range) -> StoreFuture<'_, Page> {
        self.store.range(range)
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        self.store.txn(txn)
    }

    fn watch(&self, prefix: &str, from: Revision) -> StoreFuture<'_, Box<dyn Watch>> {
        self.store.watch(prefix, from)
    }

    fn grant_lease(&self, ttl: Duration) -> StoreFuture<'_, Lease> {
        self.store.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.store.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.store.revoke_lease(lease)
    }

    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()> {
        self.store.compact(revision)
    }

    fn prefer_another(&self) {
        self.store.prefer_another();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_left_out_for_a_while() {
        let peer = |node| Opener { node, boot: 1 };
        let (mut silent, at) = (Silent::default(), Instant::now());
        silent.note(peer(1), at);
        assert!(silent.is(peer(1), at + SILENT_REST / 2) && !silent.is(peer(2), at));
        assert!(!silent.is(peer(1), at + SILENT_REST));
        silent.note(peer(2), at + SILENT_REST);
        assert_eq!(silent.0.len(), 1, "who may be asked again is forgotten");
    }
}
