//! Slots of concurrency limits for a node that the store does not answer: a peer that it answers
//! carries out their writes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use proto::store::{At, Compare, KeyValue, Op, Revision, Store, StoreFuture, Txn, TxnOutcome};
use tokio::sync::{Semaphore, oneshot};

use super::Peers;
use super::wire::{PeerMessage, SLOTS_PROTOCOL, SlotsWritten};
use crate::limits::Opener;
use crate::limits::slots::relayed::{Relaying, SlotPeers};
use crate::limits::slots::{self, state::SlotState};

/// Peers that are asked, one after the other.
const PEERS_ASKED: usize = 2;
/// How long one may take.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long the store may take for a peer.
const STORE_MAX: Duration = Duration::from_millis(400);
/// Writes for peers at one time.
const RELAYED_MAX: usize = 64;

/// What waits for peers, and what is done for them.
#[derive(Default)]
pub(super) struct Relay {
    /// The store; set when the limits are served.
    store: OnceLock<Arc<dyn Store>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<SlotsWritten>>>,
    serial: AtomicU64,
    running: Running,
}

struct Running(Arc<Semaphore>);

impl Default for Running {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(RELAYED_MAX)))
    }
}

impl Relay {
    /// A peer has answered.
    pub fn answered(&self, ask: u64, written: SlotsWritten) {
        let waiting = self.lock().remove(&ask);
        if let Some(waiting) = waiting {
            // An error means that nobody waits any more.
            let _ = waiting.send(written);
        }
    }

    /// Carries out a write for a peer, and answers it.
    pub fn write(&self, peers: &Peers, peer: Opener, write: Write) {
        let ask = write.ask;
        let room = Arc::clone(&self.running.0).try_acquire_owned();
        let (Some(store), Some(txn), Ok(room)) = (self.store.get(), write.txn(), room) else {
            let written = SlotsWritten::Unreached;
            peers.send(peer, PeerMessage::SlotsWritten { ask, written });
            return;
        };
        let (peers, writing) = (peers.clone(), store_write(store, txn));
        tokio::spawn(async move {
            let written = writing.await;
            peers.send(peer, PeerMessage::SlotsWritten { ask, written });
            drop(room);
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<SlotsWritten>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A write that a peer asks for.
pub(super) struct Write {
    pub ask: u64,
    pub key: String,
    pub expected: Option<i64>,
    pub next: Option<Vec<u8>>,
}

impl Write {
    /// The transaction, where it is one of slots.
    fn txn(self) -> Option<Txn> {
        let key = self.key;
        let is_of_slots = key.starts_with(slots::PREFIX);
        let is_state = |next: &Vec<u8>| SlotState::decode(next).is_ok();
        if !is_of_slots || !self.next.as_ref().is_none_or(is_state) {
            return None;
        }
        let compare = match self.expected {
            Some(revision) => Compare::ModRevision(key.clone(), Revision(revision)),
            None => Compare::Absent(key.clone()),
        };
        let op = match self.next {
            Some(next) => Op::put(key.clone(), next),
            None => Op::Delete(key.clone()),
        };
        Some(Txn {
            compares: vec![compare],
            ops: vec![op],
            or_read: vec![key],
        })
    }

    /// The same as a write of a transaction of slots.
    fn of(ask: u64, txn: &Txn) -> Option<Self> {
        let ([compare], [op]) = (&txn.compares[..], &txn.ops[..]) else {
            return None;
        };
        let (key, expected) = match compare {
            Compare::ModRevision(key, revision) => (key.clone(), Some(revision.0)),
            Compare::Absent(key) => (key.clone(), None),
            _ => return None,
        };
        let next = match op {
            Op::Put { value, .. } => Some(value.to_vec()),
            Op::Delete(_) => None,
        };
        Some(Self {
            ask,
            key,
            expected,
            next,
        })
    }
}

fn store_write(
    store: &Arc<dyn Store>,
    txn: Txn,
) -> impl Future<Output = SlotsWritten> + Send + use<> {
    let store = Arc::clone(store);
    async move {
        let writing: StoreFuture<'_, TxnOutcome> = store.txn(txn);
        match tokio::time::timeout(STORE_MAX, writing).await {
            Ok(Ok(TxnOutcome::Committed(at))) => SlotsWritten::Committed { revision: at.0 },
            Ok(Ok(TxnOutcome::Conflict(seen))) => {
                let found = seen.value.into_iter().next().flatten();
                SlotsWritten::Conflict {
                    revision: seen.revision.0,
                    found: found.map(|pair| (pair.value.to_vec(), pair.mod_revision.0)),
                }
            }
            // Who asks learns by the next state that it sees whether it was carried out.
            Ok(Err(_)) | Err(_) => SlotsWritten::Unreached,
        }
    }
}

impl Peers {
    /// From now on writes of slots are carried out for peers, in this store.
    pub fn write_slots_for_peers(&self, store: Arc<dyn Store>) {
        // Set once: a process has one store.
        let _ = self.shared.relay.store.set(store);
    }

    async fn ask_to_write(&self, peer: Opener, txn: &Txn) -> Option<TxnOutcome> {
        let relay = &self.shared.relay;
        let ask = relay.serial.fetch_add(1, Ordering::Relaxed);
        let Write {
            key,
            expected,
            next,
            ..
        } = Write::of(ask, txn)?;
        let (sender, answer) = oneshot::channel();
        relay.lock().insert(ask, sender);
        let _waiting = Waiting { relay, ask };
        let write = PeerMessage::WriteSlots {
            ask,
            key: key.clone(),
            expected,
            next,
        };
        if !self.send(peer, write) {
            return None;
        }
        match tokio::time::timeout(ANSWER_MAX, answer).await.ok()?.ok()? {
            SlotsWritten::Committed { revision } => Some(TxnOutcome::Committed(Revision(revision))),
            SlotsWritten::Conflict { revision, found } => {
                let pair = found.map(|(value, at)| KeyValue {
                    key,
                    value: value.into(),
                    create_revision: Revision(at),
                    mod_revision: Revision(at),
                    version: 1,
                    lease: None,
                });
                Some(TxnOutcome::Conflict(At {
                    revision: Revision(revision),
                    value: vec![pair],
                }))
            }
            SlotsWritten::Unreached => None,
        }
    }
}

impl SlotPeers for Peers {
    fn relay(&self, txn: Txn) -> Relaying<'_> {
        Box::pin(async move {
            for peer in self.speaking(SLOTS_PROTOCOL, PEERS_ASKED) {
                if let Some(outcome) = self.ask_to_write(peer, &txn).await {
                    return Some(outcome);
                }
            }
            None
        })
    }
}

/// An answer that is waited for.
struct Waiting<'a> {
    relay: &'a Relay,
    ask: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.relay.lock().remove(&self.ask);
    }
}
