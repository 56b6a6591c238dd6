//! A store in memory: the transactions of the contract, nothing else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proto::store::{
    At, Compare, KeyValue, Lease, LeaseId, Op, Page, Range, Revision, Store, StoreError,
    StoreFuture, Txn, TxnOutcome, Watch,
};

#[derive(Debug, Default)]
pub struct Memory {
    pub revision: i64,
    pub keys: BTreeMap<String, KeyValue>,
}

impl Memory {
    fn holds(&self, compare: &Compare) -> bool {
        let at = |key: &String| self.keys.get(key);
        match compare {
            Compare::Absent(key) => at(key).is_none(),
            Compare::Present(key) => at(key).is_some(),
            Compare::ModRevision(key, revision) => {
                at(key).is_some_and(|kv| kv.mod_revision == *revision)
            }
            Compare::Value(key, value) => at(key).is_some_and(|kv| kv.value == *value),
        }
    }

    pub fn put(&mut self, key: &str, value: Bytes) {
        let revision = Revision(self.revision);
        let before = self.keys.get(key);
        let kv = KeyValue {
            key: key.to_owned(),
            value,
            create_revision: before.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: before.map_or(1, |kv| kv.version + 1),
            lease: None,
        };
        self.keys.insert(key.to_owned(), kv);
    }

    pub fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            let value = txn
                .or_read
                .iter()
                .map(|key| self.keys.get(key).cloned())
                .collect();
            return TxnOutcome::Conflict(At {
                revision: Revision(self.revision),
                value,
            });
        }
        if !txn.ops.is_empty() {
            self.revision += 1;
        }
        for op in &txn.ops {
            match op {
                Op::Put { key, value, .. } => self.put(key, value.clone()),
                Op::Delete(key) => {
                    self.keys.remove(key);
                }
            }
        }
        TxnOutcome::Committed(Revision(self.revision))
    }
}

/// The same behind the trait, with faults to switch on.
#[derive(Debug, Default)]
pub struct MemoryStore {
    pub memory: Mutex<Memory>,
    pub txns: AtomicU64,
    /// Answers `Unavailable`.
    pub gone: AtomicBool,
    /// Never answers.
    pub silent: AtomicBool,
    /// Carries out, then answers `OutcomeUnknown`, once.
    pub lose_answer: AtomicBool,
}

impl MemoryStore {
    pub fn shared() -> Arc<Self> {
        Arc::new(Self {
            memory: Mutex::new(Memory {
                revision: 1,
                ..Memory::default()
            }),
            ..Self::default()
        })
    }
}

fn unused<T: Send + 'static>() -> StoreFuture<'static, T> {
    Box::pin(async {
        Err(StoreError::Invalid(
            "the limits do not use this call".into(),
        ))
    })
}

impl Store for MemoryStore {
    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if self.gone.load(Ordering::SeqCst) {
                return Err(StoreError::Unavailable("switched off".into()));
            }
            self.txns.fetch_add(1, Ordering::SeqCst);
            let outcome = self.memory.lock().unwrap().txn(&txn);
            if !txn.ops.is_empty() && self.lose_answer.swap(false, Ordering::SeqCst) {
                return Err(StoreError::OutcomeUnknown("answer lost".into()));
            }
            Ok(outcome)
        })
    }

    fn get(&self, _: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        unused()
    }
    fn range(&self, _: Range) -> StoreFuture<'_, Page> {
        unused()
    }
    fn watch(&self, _: &str, _: Revision) -> StoreFuture<'_, Box<dyn Watch>> {
        unused()
    }
    fn grant_lease(&self, _: Duration) -> StoreFuture<'_, Lease> {
        unused()
    }
    fn keep_alive(&self, _: LeaseId) -> StoreFuture<'_, ()> {
        unused()
    }
    fn revoke_lease(&self, _: LeaseId) -> StoreFuture<'_, ()> {
        unused()
    }
    fn compact(&self, _: Revision) -> StoreFuture<'_, ()> {
        unused()
    }
}
