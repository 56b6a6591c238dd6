//! A store in memory: the transactions of the contract, nothing else.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::store::{At, Compare, KeyValue, Op, Revision, Txn, TxnOutcome};

#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub revision: i64,
    pub keys: BTreeMap<String, KeyValue>,
}

impl Memory {
    /// A store that holds nothing.
    pub fn new() -> Self {
        Self {
            revision: 1,
            ..Self::default()
        }
    }

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

    /// Another was faster than this transaction: what it writes is as it was, at a later revision.
    pub fn write_again(&mut self, txn: &Txn) {
        self.revision += 1;
        for key in txn.ops.iter().map(Op::key) {
            if let Some(held) = self.keys.get(key).cloned() {
                self.put(key, held.value);
            }
        }
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
