//! Writes of slots that the store does not answer, sent through a peer that reaches it.
//!
//! A write is a compare-and-swap, so it does not matter who carries it out, nor whether it is sent
//! twice: at most one of them finds what it compares with, and the other one is told what is there.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use proto::store::{Store, StoreError, Txn, TxnOutcome};

/// A peer is asked as well when the store takes so long.
const LATE: Duration = Duration::from_millis(100);
/// The same while the store was late the last time; long enough for one that is back.
const STILL_LATE: Duration = Duration::from_millis(20);

/// What a peer has made of a write; `None` where no peer reaches the store.
pub type Relaying<'a> = Pin<Box<dyn Future<Output = Option<TxnOutcome>> + Send + 'a>>;

/// Peers that may reach the store.
pub trait SlotPeers: Send + Sync {
    /// Lets one of them carry out a write of one key below [`super::PREFIX`].
    fn relay(&self, txn: Txn) -> Relaying<'_>;
}

/// The way to the store, straight or through a peer.
pub struct Writing {
    store: Arc<dyn Store>,
    timeout: Duration,
    peers: Option<Arc<dyn SlotPeers>>,
    /// Whether the store was late when it was asked last.
    late: AtomicBool,
}

impl Writing {
    /// Calls to the store end after `timeout`.
    pub fn new(
        store: Arc<dyn Store>,
        timeout: Duration,
        peers: Option<Arc<dyn SlotPeers>>,
    ) -> Self {
        Self {
            store,
            timeout,
            peers,
            late: AtomicBool::new(false),
        }
    }

    /// Carries out a write.
    pub async fn write(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let Some(peers) = &self.peers else {
            return self.straight(txn).await;
        };
        let straight = Box::pin(self.straight(txn.clone()));
        let relayed = Box::pin(async {
            let wait = match self.late.load(Ordering::Relaxed) {
                true => STILL_LATE,
                false => LATE,
            };
            tokio::time::sleep(wait).await;
            peers.relay(txn).await
        });
        match select(straight, relayed).await {
            Either::Left((Err(error), relayed)) => {
                self.late.store(true, Ordering::Relaxed);
                relayed.await.ok_or(error)
            }
            Either::Left((Ok(outcome), _)) => {
                self.late.store(false, Ordering::Relaxed);
                Ok(outcome)
            }
            Either::Right((Some(outcome), _)) => {
                self.late.store(true, Ordering::Relaxed);
                Ok(outcome)
            }
            Either::Right((None, straight)) => {
                let outcome = straight.await;
                self.late.store(outcome.is_err(), Ordering::Relaxed);
                outcome
            }
        }
    }

    async fn straight(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.store.txn(txn)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StoreError::OutcomeUnknown(format!(
                "no answer within {timeout:?}"
            ))),
        }
    }
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writing").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicUsize;

    use proto::store::embedded::Embedded;
    use proto::store::frozen::Frozen;
    use proto::store::{At, Compare, Op, Revision};

    use super::*;

    /// Answers each write with a conflict at a revision of its own, and counts them.
    #[derive(Default)]
    struct Peer {
        asked: AtomicUsize,
        reaches_none: bool,
    }

    impl SlotPeers for Peer {
        fn relay(&self, _: Txn) -> Relaying<'_> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let conflict = TxnOutcome::Conflict(At {
                revision: Revision(77),
                value: vec![None],
            });
            let answer = (!self.reaches_none).then_some(conflict);
            Box::pin(std::future::ready(answer))
        }
    }

    fn write() -> Txn {
        Txn {
            compares: vec![Compare::Absent("slots/a".into())],
            ops: vec![Op::put("slots/a", "x")],
            or_read: vec!["slots/a".into()],
        }
    }

    #[tokio::test]
    async fn a_peer_is_asked_where_the_store_does_not_answer_and_else_not() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store")).unwrap();
        let long = Duration::from_secs(600);
        // It refuses every write.
        let gone: Arc<dyn Store> = Arc::new(Frozen::new(Revision(1), BTreeMap::new()));
        let peer = Arc::new(Peer::default());
        let asked = || peer.asked.load(Ordering::SeqCst);
        let there = Writing::new(store, long, Some(peer.clone()));
        assert!(matches!(
            there.write(write()).await,
            Ok(TxnOutcome::Committed(_))
        ));
        assert_eq!(asked(), 0);
        let away = Writing::new(gone.clone(), long, Some(peer.clone()));
        let relayed = away.write(write()).await;
        assert!(matches!(relayed, Ok(TxnOutcome::Conflict(seen)) if seen.revision.0 == 77));
        assert_eq!(asked(), 1);
        let nobody = Arc::new(Peer {
            reaches_none: true,
            ..Peer::default()
        });
        let alone = Writing::new(gone.clone(), long, Some(nobody));
        assert!(alone.write(write()).await.is_err());
        let unlinked = Writing::new(gone, long, None);
        assert!(unlinked.write(write()).await.is_err());
    }
}
