//! The links between simulated nodes: delay, loss, repetition, reordering, cuts.

use super::faults::{Chance, Faults};
use super::simulation::MS;
use crate::limits::exchange::TokenBatch;
use crate::limits::{Opener, PeerEvent};

/// What is on its way to one start of a node.
#[derive(Debug)]
pub struct Message {
    pub at_ns: u64,
    pub to: Opener,
    pub event: PeerEvent,
}

/// All links.
#[derive(Debug, Default)]
pub struct Network {
    pub messages: Vec<Message>,
    /// Pairs of nodes that do not hear each other, and until when.
    cuts: Vec<(u64, u64, u64)>,
}

impl Network {
    /// Cuts a pair for a while. Neither is told.
    pub fn cut(&mut self, one: u64, other: u64, until_ns: u64) {
        self.cuts.push((one, other, until_ns));
    }

    /// Sends a batch, with what can happen to it on the way.
    pub fn post(
        &mut self,
        (from, to): (Opener, Opener),
        batch: &TokenBatch,
        (now_ns, trip_ns): (u64, u64),
        faults: &Faults,
        chance: &mut Chance,
    ) {
        let cut = self.is_cut(from, to, now_ns);
        let copies = if chance.percent(faults.peer_doubled) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let late_ns = match chance.percent(faults.peer_late) {
                true => chance.within(0, 150 * MS),
                false => 0,
            };
            let at_ns = now_ns + chance.within(trip_ns / 4, trip_ns) + late_ns;
            if !cut && !chance.percent(faults.peer_lost) {
                let event = PeerEvent::Said(from, batch.clone());
                self.messages.push(Message { at_ns, to, event });
            }
        }
    }

    /// How long something else takes on the way; `None` when it is lost.
    pub fn trip(
        &self,
        (from, to): (Opener, Opener),
        (now_ns, trip_ns, faults): (u64, u64, &Faults),
        chance: &mut Chance,
    ) -> Option<u64> {
        let late_ns = match chance.percent(faults.peer_late) {
            true => chance.within(0, 150 * MS),
            false => 0,
        };
        let trip_ns = chance.within(trip_ns / 4, trip_ns) + late_ns;
        let lost = chance.percent(faults.peer_lost) || self.is_cut(from, to, now_ns);
        (!lost).then_some(trip_ns)
    }

    fn is_cut(&self, from: Opener, to: Opener, now_ns: u64) -> bool {
        self.cuts.iter().any(|(one, other, until_ns)| {
            now_ns < *until_ns && [(*one, *other), (*other, *one)].contains(&(from.node, to.node))
        })
    }

    /// Tells a node of a link, for certain.
    pub fn tell(&mut self, at_ns: u64, to: Opener, event: PeerEvent) {
        self.messages.push(Message { at_ns, to, event });
    }

    /// When the next message arrives.
    pub fn next_ns(&self) -> u64 {
        let arrivals = self.messages.iter().map(|message| message.at_ns);
        arrivals.min().unwrap_or(u64::MAX)
    }

    /// What has arrived, in the order of arrival.
    pub fn arrived(&mut self, now_ns: u64) -> Vec<Message> {
        if self.next_ns() > now_ns {
            return Vec::new();
        }
        let (mut arrived, later): (Vec<Message>, Vec<Message>) = std::mem::take(&mut self.messages)
            .into_iter()
            .partition(|message| message.at_ns <= now_ns);
        self.messages = later;
        arrived.sort_by_key(|message| message.at_ns);
        arrived
    }
}
