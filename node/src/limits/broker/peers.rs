//! What peers say, and what is said to them.

use std::collections::HashMap;
use std::sync::Arc;

use proto::meter::Share;
use proto::store::Revision;

use super::roster::Keys;
use super::{Broker, Slot, count};
use crate::limits::block::Opener;
use crate::limits::corrections::Correction;
use crate::limits::exchange::{
    self, Answer, Ask, BATCH_ITEMS_MAX, Item, Outbox, Reply, SpecForm, TokenBatch, Word,
};
use crate::limits::key::is_store_key;
use crate::limits::meter::Meter;
use crate::limits::owner::borrow::Told;

/// Keys that peers may make this node keep; for a further one they ask somebody else.
const KEYS_MAX: usize = 50_000;

impl Broker {
    /// A peer can be asked from now on.
    pub fn peer_up(&mut self, peer: Opener, now_ns: u64) {
        self.roster.up(peer);
        self.tell_return(peer, now_ns);
        if self.wall.is_unfit() {
            self.look_at_calendars(now_ns);
        }
    }

    /// A peer cannot be reached any more.
    pub fn peer_down(&mut self, peer: Opener, now_ns: u64) {
        self.roster.down(peer);
        let slots: Vec<Slot> = self.owners.keys().copied().collect();
        for slot in slots {
            let lost = self.owners.get_mut(&slot);
            if lost.is_some_and(|owner| owner.peer_lost(peer)) {
                self.schedule(slot, now_ns);
            }
        }
    }

    /// Takes what a peer says.
    pub fn peer_said(&mut self, from: Opener, batch: TokenBatch, now_ns: u64) {
        for Item { key, word } in batch.items {
            match word {
                Word::Ask(ask) => self.take_ask(from, key, (&ask, None), now_ns),
                Word::AskShare(ask, share) => {
                    self.take_ask(from, key, (&ask, Some(share)), now_ns);
                }
                Word::Answer(answer) => self.take_answer(from, &key, answer, now_ns),
                Word::Report(report) => match self.slots.get(&key).copied() {
                    Some(slot) => {
                        if let Some(owner) = self.owners.get_mut(&slot) {
                            owner.reported(from, report);
                        }
                        self.schedule(slot, now_ns);
                    }
                    None => {
                        let word = Word::Heard { part: report.part };
                        self.outgoing.push((from, Item { key, word }));
                    }
                },
                Word::Heard { part } => {
                    let owner = self.slots.get(&key).and_then(|s| self.owners.get_mut(s));
                    if let Some(owner) = owner {
                        owner.heard(from, part);
                    }
                }
                Word::Correct {
                    spec,
                    correction,
                    told,
                } => {
                    let correction = (correction, told);
                    self.take_correction(from, &key, (&spec, None), correction, now_ns);
                }
                Word::CorrectShare {
                    spec,
                    share,
                    correction,
                    told,
                } => {
                    let correction = (correction, told);
                    self.take_correction(from, &key, (&spec, Some(share)), correction, now_ns);
                }
                Word::Holding { levels } => {
                    let slot = self.slots.get(&key).copied();
                    let owner = slot.and_then(|slot| self.owners.get_mut(&slot));
                    if let (Some(owner), Some(slot)) = (owner, slot) {
                        owner.holding(from, levels, now_ns);
                        self.schedule(slot, now_ns);
                    }
                }
                Word::HeldElsewhere { levels } => {
                    let owner = self.slots.get(&key).and_then(|s| self.owners.get_mut(s));
                    if let Some(owner) = owner {
                        owner.held_elsewhere(from, levels, now_ns);
                    }
                }
                Word::Writing { per_second } => self.budget.heard(from, per_second, now_ns),
                Word::StoreReturned { ago_ns } => self.told_of_return(ago_ns, now_ns),
                Word::Corrected { number } => {
                    let owner = self.slots.get(&key).and_then(|s| self.owners.get_mut(s));
                    if let Some(owner) = owner {
                        owner.corrected(number);
                    }
                }
            }
        }
    }

    /// What is to be sent now, a batch or more for each peer.
    pub fn take_batches(&mut self) -> Vec<(Opener, TokenBatch)> {
        let mut batches: Vec<(Opener, TokenBatch)> = Vec::new();
        let mut open: HashMap<Opener, usize> = HashMap::new();
        for (to, item) in self.outgoing.drain(..) {
            let at = open.get(&to).and_then(|at| batches.get_mut(*at));
            match at {
                Some((_, batch)) if batch.items.len() < BATCH_ITEMS_MAX => batch.items.push(item),
                _ => {
                    open.insert(to, batches.len());
                    batches.push((to, TokenBatch { items: vec![item] }));
                }
            }
        }
        batches
    }

    /// Takes what an owner has to say and has noticed.
    pub(super) fn said(&mut self, key: &str, out: Outbox, now_ns: u64) {
        for silent in out.silent {
            count(&self.shared.stats.peer_silences);
            self.roster.pass_over(silent, Keys::All, now_ns);
        }
        for (to, word) in out.words {
            match &word {
                Word::Ask(_) | Word::AskShare(..) => count(&self.shared.stats.peer_asks),
                Word::Answer(Answer {
                    reply: Reply::Granted(_),
                    ..
                }) => count(&self.shared.stats.peer_grants),
                _ => {}
            }
            let key = key.to_owned();
            self.outgoing.push((to, Item { key, word }));
        }
    }

    fn take_correction(
        &mut self,
        from: Opener,
        key: &str,
        spec: (&SpecForm, Option<Share>),
        (correction, told): (Correction, Option<exchange::Told>),
        now_ns: u64,
    ) {
        // Where there is no place for the key it comes again, here or elsewhere.
        if let Some(slot) = self.slot_of_peer(key, spec, now_ns) {
            if let Some(owner) = self.owners.get_mut(&slot) {
                owner.corrected_by(from, correction, told, now_ns);
            }
            self.schedule(slot, now_ns);
        }
    }

    fn take_ask(
        &mut self,
        from: Opener,
        key: String,
        (ask, share): (&Ask, Option<Share>),
        now_ns: u64,
    ) {
        let Some(slot) = self.slot_of_peer(&key, (&ask.spec, share), now_ns) else {
            let answer = Answer {
                ask: ask.id,
                reply: Reply::NoStore,
                seen: None,
                at_ns: 0,
            };
            let word = Word::Answer(answer);
            self.outgoing.push((from, Item { key, word }));
            return;
        };
        if let Some(owner) = self.owners.get_mut(&slot) {
            owner.asked(from, ask, now_ns);
        }
        self.schedule(slot, now_ns);
    }

    /// The place of a key that a peer speaks of, with the limits that it knows; none where it is
    /// no key, or there is no place for it.
    fn slot_of_peer(
        &mut self,
        key: &str,
        (spec, share): (&SpecForm, Option<Share>),
        now_ns: u64,
    ) -> Option<Slot> {
        let known = self.slots.get(key).copied();
        let told_id = spec.meter().map(str::to_owned);
        let spec = spec.spec().filter(|_| is_store_key(key))?;
        if known.is_none() && self.owners.len() >= KEYS_MAX {
            return None;
        }
        let spec = spec.sharing(share);
        let slot = known.unwrap_or_else(|| {
            let (spec, shared) = (Arc::new(spec.clone()), Arc::clone(&self.shared));
            let new = || Meter::told(key.to_owned(), Arc::clone(&spec), Arc::clone(&shared));
            let meter = self.shared.meter(key, new);
            self.slot(meter, now_ns)
        });
        let owner = self.owners.get_mut(&slot)?;
        let meter = owner.meter();
        if let (Some(id), None) = (told_id, meter.belongs_to()) {
            // An error means that somebody was faster, with the same id.
            let _ = meter.told_id.set(id);
            self.shared.named(meter);
        }
        meter.respec_told(spec);
        Some(slot)
    }

    fn take_answer(&mut self, from: Opener, key: &str, answer: Answer, now_ns: u64) {
        let Some(slot) = self.slots.get(key).copied() else {
            return;
        };
        let revision = answer.seen.as_ref().map_or(0, |seen| seen.revision);
        let Some(owner) = self.owners.get_mut(&slot) else {
            return;
        };
        // A node whose clock is off serves all that goes by no calendar.
        let keys = Keys::like(owner.has_calendar());
        match owner.answered(from, answer, now_ns) {
            Told::Served => {
                self.contact_ns = now_ns;
                self.roster.served(from, keys);
                if revision > 0 {
                    // The peer knew this revision before it answered.
                    self.proofs.told(now_ns, Revision(revision));
                }
            }
            Told::NoStore => self.roster.has_no_store(from, keys, now_ns),
            Told::Nothing => {}
        }
        self.schedule(slot, now_ns);
    }
}
