//! Between the contract's values and etcd's: the key prefix goes on here and comes off here.

use bytes::Bytes;
use etcd_client as etcd;
use etcd_client::{CompareOp, EventType, PutOptions, TxnOp, TxnOpResponse};

use crate::store::span::Span;
use crate::store::{
    At, Change, Compare, Event, KeyValue, LeaseId, Op, Revision, StoreError, Txn, TxnOutcome,
};

/// The prefix that all keys of this store have inside etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(pub(super) String);

impl Prefix {
    /// The key as etcd knows it.
    pub(super) fn add(&self, key: &str) -> Vec<u8> {
        [self.0.as_bytes(), key.as_bytes()].concat()
    }

    /// The span of etcd's keys for a prefix of ours.
    pub(super) fn span(&self, prefix: &str, after: Option<&str>) -> Span {
        Span::new(&self.0, prefix, after)
    }

    fn strip(&self, key: &[u8]) -> Result<String, StoreError> {
        key.strip_prefix(self.0.as_bytes())
            .and_then(|key| String::from_utf8(key.to_vec()).ok())
            .ok_or_else(|| {
                let key = String::from_utf8_lossy(key).into_owned();
                StoreError::Corrupt(format!("etcd holds the key {key:?}, which we never write"))
            })
    }

    /// A transaction as etcd takes it.
    pub(super) fn txn(&self, txn: &Txn) -> etcd::Txn {
        let read = |key: &String| TxnOp::get(self.add(key), None);
        etcd::Txn::new()
            .when(
                txn.compares
                    .iter()
                    .map(|compare| self.compare(compare))
                    .collect::<Vec<_>>(),
            )
            .and_then(txn.ops.iter().map(|op| self.op(op)).collect::<Vec<_>>())
            .or_else(txn.or_read.iter().map(read).collect::<Vec<_>>())
    }

    /// A transaction that reads keys and does nothing else: etcd writes nothing for it.
    pub(super) fn reads(&self, keys: &[String]) -> etcd::Txn {
        let read = |key: &String| TxnOp::get(self.add(key), None);
        etcd::Txn::new().and_then(keys.iter().map(read).collect::<Vec<_>>())
    }

    /// What a transaction has read.
    pub(super) fn found(
        &self,
        answer: &etcd::TxnResponse,
    ) -> Result<Vec<Option<KeyValue>>, StoreError> {
        let read = |answer: TxnOpResponse| match answer {
            TxnOpResponse::Get(found) => found
                .kvs()
                .first()
                .map(|found| self.key_value(found))
                .transpose(),
            _ => Err(StoreError::Corrupt(
                "etcd answered a read with something else".into(),
            )),
        };
        answer.op_responses().into_iter().map(read).collect()
    }

    fn compare(&self, compare: &Compare) -> etcd::Compare {
        match compare {
            // A key that is absent has version 0 for etcd.
            Compare::Absent(key) => etcd::Compare::version(self.add(key), CompareOp::Equal, 0),
            Compare::Present(key) => etcd::Compare::version(self.add(key), CompareOp::Greater, 0),
            Compare::ModRevision(key, revision) => {
                etcd::Compare::mod_revision(self.add(key), CompareOp::Equal, revision.0)
            }
            Compare::Value(key, value) => {
                etcd::Compare::value(self.add(key), CompareOp::Equal, value.to_vec())
            }
        }
    }

    fn op(&self, op: &Op) -> TxnOp {
        match op {
            Op::Put { key, value, lease } => {
                let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
                TxnOp::put(self.add(key), value.to_vec(), options)
            }
            Op::Delete(key) => TxnOp::delete(self.add(key), None),
        }
    }

    /// What became of a transaction.
    pub(super) fn outcome(&self, answer: &etcd::TxnResponse) -> Result<TxnOutcome, StoreError> {
        let revision = revision(answer.header())?;
        if answer.succeeded() {
            return Ok(TxnOutcome::Committed(revision));
        }
        let value = self.found(answer)?;
        Ok(TxnOutcome::Conflict(At { revision, value }))
    }

    /// A key with its value.
    pub(super) fn key_value(&self, found: &etcd::KeyValue) -> Result<KeyValue, StoreError> {
        Ok(KeyValue {
            key: self.strip(found.key())?,
            value: Bytes::copy_from_slice(found.value()),
            create_revision: Revision(found.create_revision()),
            mod_revision: Revision(found.mod_revision()),
            version: found.version(),
            lease: (found.lease() != 0).then_some(LeaseId(found.lease())),
        })
    }

    /// The events of one message, which may tell of several revisions, as changes.
    pub(super) fn changes(&self, events: &[etcd::Event]) -> Result<Vec<Change>, StoreError> {
        let events: Vec<(Revision, Event)> = events
            .iter()
            .map(|event| self.event(event))
            .collect::<Result<_, _>>()?;
        Ok(by_revision(events))
    }

    fn event(&self, event: &etcd::Event) -> Result<(Revision, Event), StoreError> {
        let Some(found) = event.kv() else {
            return Err(StoreError::Corrupt(
                "etcd sent an event without a key".into(),
            ));
        };
        let mod_revision = Revision(found.mod_revision());
        let event = match event.event_type() {
            EventType::Put => Event::Put(self.key_value(found)?),
            EventType::Delete => Event::Delete {
                key: self.strip(found.key())?,
                mod_revision,
            },
        };
        Ok((mod_revision, event))
    }
}

/// The store's revision at the time of an answer.
pub(super) fn revision(header: Option<&etcd::ResponseHeader>) -> Result<Revision, StoreError> {
    header
        .map(|header| Revision(header.revision()))
        .ok_or_else(|| StoreError::Corrupt("etcd answered without a header".into()))
}

fn by_revision(events: Vec<(Revision, Event)>) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    for (revision, event) in events {
        match changes.last_mut().filter(|last| last.revision == revision) {
            Some(last) => last.events.push(event),
            None => changes.push(Change {
                revision,
                events: vec![event],
            }),
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_one_revision_become_one_change() {
        let event = |revision: i64, key: &str| {
            let mod_revision = Revision(revision);
            (
                mod_revision,
                Event::Delete {
                    key: key.into(),
                    mod_revision,
                },
            )
        };
        let events = vec![event(3, "b"), event(3, "a"), event(4, "a"), event(6, "c")];
        let changes = by_revision(events.clone());
        let sizes: Vec<(i64, usize)> = changes
            .iter()
            .map(|change| (change.revision.0, change.events.len()))
            .collect();
        assert_eq!(sizes, [(3, 2), (4, 1), (6, 1)]);
        let flat: Vec<Event> = changes
            .into_iter()
            .flat_map(|change| change.events)
            .collect();
        assert_eq!(
            flat,
            events
                .into_iter()
                .map(|(_, event)| event)
                .collect::<Vec<_>>()
        );
        assert_eq!(by_revision(Vec::new()), []);
    }

    #[test]
    fn the_prefix_goes_on_and_comes_off() {
        let prefix = Prefix("/rr/".into());
        assert_eq!(prefix.add("live/head"), b"/rr/live/head");
        assert_eq!(prefix.strip(b"/rr/live/head"), Ok("live/head".to_owned()));
        for foreign in [&b"/other/key"[..], b"/r", b"", b"/rr/\xff"] {
            assert!(
                matches!(prefix.strip(foreign), Err(StoreError::Corrupt(_))),
                "{foreign:?}"
            );
        }
    }
}
