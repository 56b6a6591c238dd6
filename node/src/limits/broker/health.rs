//! Whether the store answers the broker, and the probe that finds out when it does again.

use proto::keys;
use proto::store::{Compare, Op, Revision, StoreError, Txn};
use tracing::{info, warn};

use super::{Asked, Broker, CALLS_MAX, Call, KEYS_PER_TXN, Probe, Slot};
use crate::limits::key::PREFIX;
use crate::limits::owner::{LATE_NS, Owner};

pub(super) const BACKOFF_MIN_NS: u64 = 10_000_000;
pub(super) const BACKOFF_MAX_NS: u64 = 1_000_000_000;

#[derive(Debug)]
pub(super) enum Health {
    Up,
    /// The last call failed: one transaction at a time, which writes nothing, asks whether the
    /// store is back and what it holds of the keys that wait for it.
    Down {
        retry_ns: u64,
        probe: Option<u64>,
        /// A write was refused because the store is full. It answers reads all the same.
        full: bool,
    },
}

impl Broker {
    pub(super) fn probe(&mut self, now_ns: u64) -> Option<Call> {
        let Health::Down {
            retry_ns,
            probe,
            full,
        } = &mut self.health
        else {
            return None;
        };
        if probe.is_some() || now_ns < *retry_ns || self.calls.len() >= CALLS_MAX {
            return None;
        }
        let id = self.next_call;
        self.next_call += 1;
        *probe = Some(id);
        // A transaction without a read is answered by an etcd member that has lost its quorum, and
        // the store would seem to be back when it is not. It reads what the stalled keys hold, so
        // that every contact with the store gives them a fresh view to share from.
        let waiting = self.stalled.iter().filter_map(|slot| {
            let owner = self.owners.get(slot)?;
            (!owner.is_writing()).then_some((*slot, owner))
        });
        let mut waiting: Vec<(Slot, &Owner)> = waiting.take(KEYS_PER_TXN + 1).collect();
        let whole = waiting.len() <= KEYS_PER_TXN;
        waiting.truncate(KEYS_PER_TXN);
        let expected = waiting.iter().map(|(_, owner)| owner.expects()).collect();
        let slots = waiting.iter().map(|(slot, _)| *slot).collect();
        let keys = waiting.iter();
        let mut or_read: Vec<String> = keys.map(|(_, o)| o.meter().store_key.clone()).collect();
        if or_read.is_empty() {
            or_read.push(keys::BEAT.to_owned());
        }
        // What a full store refuses although it is never carried out (etcd counts what a
        // transaction could write). A key of ours, for there may be no right to others.
        let own = format!("{PREFIX}room");
        let room = Op::put(own, Vec::new());
        let ops = full.then_some(room).into_iter().collect();
        let never = Compare::ModRevision(keys::BEAT.to_owned(), Revision(i64::MAX));
        let txn = Txn {
            compares: vec![never],
            ops,
            or_read,
        };
        let probe = Some(Probe { expected, whole });
        let sent_ns = now_ns;
        let asked = Asked {
            sent_ns,
            asking: self.proofs.asking(),
            slots,
            probe,
        };
        self.calls.insert(id, asked);
        Some(Call { id, txn })
    }

    /// Whether the store has been silent for long on a write that it was asked for. Until the call
    /// has failed nobody knows whether it is away; whoever waits for a token cannot wait so long.
    pub(super) fn is_late(&self, now_ns: u64) -> bool {
        let writes = self.calls.values().filter(|asked| asked.probe.is_none());
        let first_ns = writes.map(|asked| asked.sent_ns).min();
        let silent = |sent_ns: u64| now_ns.saturating_sub(sent_ns.max(self.heard_ns));
        first_ns.is_some_and(|sent_ns| silent(sent_ns) >= LATE_NS)
    }

    pub(super) fn up(&mut self, now_ns: u64, wrote: bool) {
        if wrote {
            self.backoff_ns = BACKOFF_MIN_NS;
        }
        if matches!(self.health, Health::Down { .. }) {
            self.health = Health::Up;
            info!("the store answers again; tokens come from it");
            for slot in std::mem::take(&mut self.stalled) {
                self.schedule(slot, now_ns);
            }
        }
    }

    pub(super) fn down(&mut self, error: &StoreError, now_ns: u64) {
        if matches!(self.health, Health::Up) {
            warn!("a token write failed: {error}; asking whether the store is back");
        }
        let retry_ns = now_ns.saturating_add(self.backoff_ns);
        self.backoff_ns = self.backoff_ns.saturating_mul(2).min(BACKOFF_MAX_NS);
        let is_full = matches!(error, StoreError::Full(_));
        let was_full = matches!(self.health, Health::Down { full: true, .. });
        self.health = Health::Down {
            retry_ns,
            probe: None,
            full: is_full || was_full,
        };
    }
}
