//! Whether the store answers the broker, and the probe that finds out when it does again.

use proto::keys;
use proto::store::{Compare, Op, Revision, StoreError, Txn};
use tracing::{info, warn};

use super::{Asked, Broker, CALLS_MAX, Call, KEYS_PER_TXN, Slot};
use crate::limits::key::PREFIX;
use crate::limits::owner::{LATE_NS, Owner};
use crate::limits::ramp::spread_ns;

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
        /// A write was refused because the store is full, or it takes none for another reason.
        full: Option<Full>,
    },
}

/// What is known of a store that takes no writes. It answers reads all the same: where limits go
/// on without it, they share what is free by what keys hold now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Full {
    /// What keys hold is to be read next.
    reads: bool,
    /// Whether it answers that, as far as is known.
    readable: bool,
}

/// What was known when a probe was sent.
#[derive(Debug)]
pub(super) struct Probe {
    /// Revision of each key's newest known state: an answer that comes after the key has moved on
    /// tells of its past.
    pub expected: Vec<Option<Revision>>,
    /// Whether it reads every key that waits for the store.
    pub whole: bool,
    /// It asks a store without writes for what keys hold, and not whether it takes them again.
    pub reads: bool,
}

impl Broker {
    pub(super) fn probe(&mut self, now_ns: u64) -> Option<Call> {
        if now_ns < self.probe_due_ns() {
            return None;
        }
        let id = self.next_call;
        let Health::Down {
            retry_ns,
            probe,
            full,
        } = &mut self.health
        else {
            return None;
        };
        *probe = Some(id);
        // Whether it takes writes again is asked first where both are due: keys that are new may
        // come for ever, each to be read at once.
        let reads = full
            .as_mut()
            .map(|full| now_ns < *retry_ns && std::mem::take(&mut full.reads));
        self.next_call += 1;
        let (slots, or_read, known) = self.to_read();
        // What a full store refuses although it is never carried out (etcd counts what a
        // transaction could write). A key of ours, for there may be no right to others.
        let own = format!("{PREFIX}room");
        let room = Op::put(own, Vec::new());
        let ops = (reads == Some(false)).then_some(room).into_iter().collect();
        let never = Compare::ModRevision(keys::BEAT.to_owned(), Revision(i64::MAX));
        let txn = Txn {
            compares: vec![never],
            ops,
            or_read,
        };
        let probe = Some(Probe {
            reads: reads == Some(true),
            ..known
        });
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

    /// The keys that wait for the store, those first of which the least is known: their places,
    /// what to read, and what is known of them.
    fn to_read(&self) -> (Vec<Slot>, Vec<String>, Probe) {
        // A transaction without a read is answered by an etcd member that has lost its quorum, and
        // the store would seem to be back when it is not. It reads what the stalled keys hold, so
        // that every contact with the store gives them a fresh view to share from.
        let waiting = self.stalled.iter().filter_map(|slot| {
            let owner = self.owners.get(slot)?;
            (!owner.is_writing()).then_some((*slot, owner))
        });
        let mut waiting: Vec<(Slot, &Owner)> = waiting.collect();
        let whole = waiting.len() <= KEYS_PER_TXN;
        if !whole {
            let heard_ns = |(_, owner): &(Slot, &Owner)| owner.heard_ns();
            waiting.select_nth_unstable_by_key(KEYS_PER_TXN, heard_ns);
            waiting.truncate(KEYS_PER_TXN);
        }
        let expected = waiting.iter().map(|(_, owner)| owner.expects()).collect();
        let slots = waiting.iter().map(|(slot, _)| *slot).collect();
        let keys = waiting.iter();
        let mut or_read: Vec<String> = keys.map(|(_, o)| o.meter().store_key.clone()).collect();
        if or_read.is_empty() {
            or_read.push(keys::BEAT.to_owned());
        }
        let known = Probe {
            expected,
            whole,
            reads: false,
        };
        (slots, or_read, known)
    }

    /// When the next probe is due; `u64::MAX` for never, as while one is under way.
    pub(super) fn probe_due_ns(&self) -> u64 {
        match &self.health {
            Health::Down {
                retry_ns,
                probe: None,
                full,
            } if self.calls.len() < CALLS_MAX => match full {
                Some(Full { reads: true, .. }) if !self.stalled.is_empty() => 0,
                _ => *retry_ns,
            },
            _ => u64::MAX,
        }
    }

    /// A key waits for the store, of which nothing may have been heard yet: what it holds is read
    /// at once where that can be.
    pub(super) fn stalled_unread(&mut self, unread: bool) {
        if let Health::Down {
            full: Some(full), ..
        } = &mut self.health
        {
            full.reads |= unread && full.readable;
        }
    }

    /// Whether the store has been silent for long on a write that it was asked for. Until the call
    /// has failed nobody knows whether it is away; whoever waits for a token cannot wait so long.
    pub(super) fn is_late(&self, now_ns: u64) -> bool {
        let writes = self.calls.values().filter(|asked| asked.probe.is_none());
        let first_ns = writes.map(|asked| asked.sent_ns).min();
        let silent = |sent_ns: u64| now_ns.saturating_sub(sent_ns.max(self.heard_ns));
        first_ns.is_some_and(|sent_ns| silent(sent_ns) >= LATE_NS)
    }

    /// The store has answered a write, or a probe.
    pub(super) fn answered(&mut self, probe: Option<&Probe>, now_ns: u64) {
        match (probe, &mut self.health) {
            (Some(Probe { reads: true, .. }), Health::Down { probe, full, .. }) => {
                *probe = None;
                if let Some(full) = full {
                    full.readable = true;
                }
            }
            // It was found to have room meanwhile.
            (Some(Probe { reads: true, .. }), Health::Up) => {}
            (Some(_), _) => self.up(now_ns),
            (None, _) => {
                self.backoff_ns = BACKOFF_MIN_NS;
                self.up(now_ns);
            }
        }
    }

    fn up(&mut self, now_ns: u64) {
        if matches!(self.health, Health::Down { .. }) {
            self.health = Health::Up;
            self.ramp.answered(now_ns);
            self.roster.store_is_back();
            info!("the store answers again; tokens come from it");
            self.shared.store_answers();
            for slot in std::mem::take(&mut self.stalled) {
                self.schedule(slot, now_ns);
            }
        }
    }

    pub(super) fn down(&mut self, error: &StoreError, probe: Option<&Probe>, now_ns: u64) {
        if matches!(self.health, Health::Up) {
            warn!("a token write failed: {error}; asking whether the store is back");
        }
        let refuses = match &self.health {
            Health::Down { full, .. } => full.is_some(),
            // It answered a probe, and then took no write.
            Health::Up => probe.is_none() && self.backoff_ns > BACKOFF_MIN_NS,
        };
        let reads = probe.is_none_or(|probe| !probe.reads);
        let full = (refuses || matches!(error, StoreError::Full(_))).then_some(Full {
            reads,
            readable: reads,
        });
        self.ramp.lost(now_ns);
        // All nodes have lost it at once.
        let seed = self.place.me.boot ^ self.place.me.node.rotate_left(32) ^ self.next_call;
        let wait_ns = self.backoff_ns * 3 / 4 + spread_ns(seed, self.backoff_ns / 2);
        let retry_ns = now_ns.saturating_add(wait_ns);
        self.backoff_ns = self.backoff_ns.saturating_mul(2).min(BACKOFF_MAX_NS);
        self.health = Health::Down {
            retry_ns,
            probe: None,
            full,
        };
    }
}
