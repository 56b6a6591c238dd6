//! What the store holds instead of what was expected.

use proto::store::{At, KeyValue};
use tracing::error;

use super::{Broker, Owner, Probe, Slot, count};
use crate::limits::codec;

impl Broker {
    /// What keys hold whose write was not carried out, or that a probe has read.
    pub(super) fn conflict(
        &mut self,
        slots: &[Slot],
        seen: At<Vec<Option<KeyValue>>>,
        now_ns: u64,
        probe: Option<&Probe>,
    ) {
        if probe.is_none() {
            count(&self.shared.stats.conflicts);
        }
        if self.shows_return(slots, &seen.value, probe) {
            self.proofs.found_return(now_ns);
            self.store_went_back(now_ns);
        }
        for (at, (slot, found)) in slots.iter().zip(seen.value).enumerate() {
            let Some(owner) = self.owners.get(slot) else {
                continue;
            };
            let changed = owner.expects() != found.as_ref().map(|kv| kv.mod_revision);
            if let Some(probe) = probe {
                let known = probe
                    .expected
                    .get(at)
                    .is_some_and(|e| *e == owner.expects());
                if !known || owner.is_writing() {
                    continue;
                }
                if !changed {
                    self.each(&[*slot], |owner| owner.confirmed(now_ns));
                    continue;
                }
            }
            if !changed {
                // Another key of the transaction was in the way: this one goes again as it is.
                self.each(&[*slot], |owner| owner.goes_again(now_ns));
                continue;
            }
            if probe.is_none() {
                self.contended.insert(*slot);
            }
            let state = found.map(|kv| codec::decode(&kv.value).map(|s| (s, kv.mod_revision)));
            match state.transpose() {
                Ok(mut state) => {
                    let returning = self.ramp.is_steep();
                    self.each(&[*slot], |owner| {
                        owner.conflicted(state.take(), returning, now_ns);
                    });
                }
                Err(error) => {
                    count(&self.shared.stats.unreadable);
                    let key = owner.meter().store_key.clone();
                    error!(%key, "token state {key} is not touched, its meter is closed: {error}");
                    self.each(&[*slot], |owner| owner.unreadable(now_ns));
                }
            }
        }
    }

    /// Whether one of these keys was last written before what it is known to have held.
    fn shows_return(
        &self,
        slots: &[Slot],
        seen: &[Option<KeyValue>],
        probe: Option<&Probe>,
    ) -> bool {
        slots
            .iter()
            .zip(seen)
            .enumerate()
            .any(|(at, (slot, found))| {
                let known = self.owners.get(slot).and_then(Owner::expects);
                let asked = probe.is_none_or(|probe| probe.expected.get(at) == Some(&known));
                let found = found.as_ref().map(|found| found.mod_revision);
                asked && matches!((known, found), (Some(known), Some(found)) if found < known)
            })
    }
}
