//! The value in the store of one concurrency limit: how many slots each incarnation holds.
//!
//! Moved only by compare-and-swap. An entry holds so many slots until its end; its incarnation
//! renews it while it has calls, and whoever sees it after its end may use its slots. Ends are
//! relative to the moment that the writer composed it; whoever reads it lets pass only the time
//! that it can prove, so that no entry ends early.
//!
//! An entry of no slots says that its incarnation has callers that find none free. It is of the
//! same form, since a program that could not read a state would lose its slots while its calls go
//! on.

use proto::wire::{self, Message, WireError};
use serde::{Deserialize, Serialize};

use crate::limits::block::Opener;

/// Incarnations with slots of one key at a time.
pub const HOLDERS_MAX: usize = 128;
/// Largest encoded state.
const BYTES_MAX: usize = 8 * 1_024;
/// With so many entries there is no place for one more that waits: who holds goes before.
const WAITING_BELOW: usize = HOLDERS_MAX - 8;

/// Slots of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Who holds how many.
    pub held: Vec<Held>,
}

/// The slots of one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Whose.
    pub opener: Opener,
    /// How many; 0: it waits for some.
    pub n: u64,
    /// End, relative to the moment that the state speaks about.
    pub ends_in_ns: u64,
}

impl Message for SlotState {
    const SCHEMA: u16 = wire::SCHEMA_SLOT_STATE;
}

impl SlotState {
    /// Lets a proven time pass, and takes out what has ended, but never what is `me`'s.
    pub fn pass(&mut self, elapsed_ns: u64, me: Opener) {
        for held in &mut self.held {
            held.ends_in_ns = held.ends_in_ns.saturating_sub(elapsed_ns);
        }
        self.held
            .retain(|held| held.ends_in_ns > 0 || held.holds(me));
    }

    /// Slots that others hold.
    pub fn of_others(&self, me: Opener) -> u64 {
        let others = self.held.iter().filter(|held| held.opener != me);
        others.fold(0, |sum, held| sum.saturating_add(held.n))
    }

    /// Slots that `me` holds.
    pub fn of(&self, me: Opener) -> u64 {
        let mine = self.held.iter().find(|held| held.holds(me));
        mine.map_or(0, |held| held.n)
    }

    /// For how long it is still known that `me` waits.
    pub fn waits_ns(&self, me: Opener) -> u64 {
        let mine = self.held.iter().find(|held| held.waits(me));
        mine.map_or(0, |held| held.ends_in_ns)
    }

    /// Lets it be known for a time that `me` waits, in the place that it has among those who do;
    /// none: that it does not. Where there is no place for it, it stays unknown.
    pub fn wait(&mut self, me: Opener, ends_in_ns: Option<u64>) {
        let Some(ends_in_ns) = ends_in_ns else {
            self.held.retain(|held| !held.waits(me));
            return;
        };
        if let Some(held) = self.held.iter_mut().find(|held| held.waits(me)) {
            held.ends_in_ns = ends_in_ns;
        } else if self.held.len() < WAITING_BELOW {
            self.held.push(Held {
                opener: me,
                n: 0,
                ends_in_ns,
            });
        }
    }

    /// Others that wait.
    pub fn others_wait(&self, me: Opener) -> u64 {
        let waits = |held: &&Held| held.n == 0 && held.opener != me;
        self.held.iter().filter(waits).count() as u64
    }

    /// An equal part of the limit for `me`, among all that hold or wait; what cannot be divided is
    /// of those that wait longest.
    pub fn share(&self, me: Opener, limit: u64) -> u64 {
        let order = self.order(me);
        let nodes = order.len() as u64;
        let place = order.iter().position(|opener| *opener == me);
        let place = place.map_or(u64::MAX, |place| place as u64);
        limit / nodes + u64::from(place < limit % nodes)
    }

    /// The part that is everybody's among all that hold or wait, `me` among them.
    pub fn least_share(&self, me: Opener, limit: u64) -> u64 {
        limit / self.order(me).len() as u64
    }

    /// All that wait, then all that hold, `me` among them, each once.
    fn order(&self, me: Opener) -> Vec<Opener> {
        let waiting = self.held.iter().filter(|held| held.n == 0);
        let holding = self.held.iter().filter(|held| held.n > 0);
        let mut order: Vec<Opener> = Vec::new();
        for opener in waiting.chain(holding).map(|held| held.opener).chain([me]) {
            if !order.contains(&opener) {
                order.push(opener);
            }
        }
        order
    }

    /// Gives `me` so many slots for a time; false when there is no place for the entry.
    pub fn set(&mut self, me: Opener, n: u64, ends_in_ns: u64) -> bool {
        self.held.retain(|held| !held.holds(me));
        if n == 0 {
            return true;
        }
        if self.held.len() >= HOLDERS_MAX {
            return false;
        }
        self.held.push(Held {
            opener: me,
            n,
            ends_in_ns,
        });
        true
    }

    /// Its bytes in the store.
    ///
    /// # Errors
    /// The serializer refuses.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        wire::encode(self)
    }

    /// The state in some bytes.
    ///
    /// # Errors
    /// They are not a state of ours.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > BYTES_MAX {
            return Err(WireError::TooLarge(bytes.len()));
        }
        let state: Self = wire::decode(bytes)?;
        if state.held.len() > HOLDERS_MAX {
            return Err(WireError::Payload("too many holders of slots".into()));
        }
        Ok(state)
    }
}

impl Held {
    fn holds(&self, me: Opener) -> bool {
        self.opener == me && self.n > 0
    }

    fn waits(&self, me: Opener) -> bool {
        self.opener == me && self.n == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Opener = Opener { node: 1, boot: 1 };
    const B: Opener = Opener { node: 2, boot: 1 };

    #[test]
    fn what_has_ended_is_free_again_but_ones_own_is_not() {
        let mut state = SlotState::default();
        assert!(state.set(A, 3, 100) && state.set(B, 4, 50));
        assert_eq!((state.of(A), state.of_others(A)), (3, 4));
        let mut later = state.clone();
        later.pass(50, A);
        assert_eq!((later.of(A), later.of_others(A)), (3, 0));
        later.pass(60, A);
        assert_eq!(later.of(A), 3);
        state.pass(100, B);
        assert_eq!((state.of(B), state.of_others(B)), (4, 0));
        assert!(state.set(B, 0, 1));
        assert_eq!(state, SlotState::default());
    }

    #[test]
    fn each_has_an_equal_part_and_who_waits_longest_what_is_left_over() {
        const C: Opener = Opener { node: 3, boot: 1 };
        let mut state = SlotState::default();
        assert!(state.set(A, 20, 100));
        assert_eq!((state.others_wait(A), state.share(A, 20)), (0, 20));
        state.wait(B, Some(50));
        assert_eq!(
            (state.of(B), state.of_others(B), state.waits_ns(B)),
            (0, 20, 50)
        );
        assert_eq!((state.others_wait(A), state.others_wait(B)), (1, 0));
        assert_eq!(state.share(A, 20), 10);
        state.wait(C, Some(60));
        state.wait(B, Some(70));
        let shares = |limit| [A, B, C].map(|me| state.share(me, limit));
        assert_eq!(shares(20), [6, 7, 7]);
        assert_eq!(shares(1), [0, 1, 0]);
        // Who holds some may wait for more.
        assert!(state.set(B, 3, 100));
        assert_eq!((state.of(B), state.waits_ns(B)), (3, 70));
        state.wait(B, None);
        assert_eq!((state.of(B), state.waits_ns(B)), (3, 0));
        assert_eq!(state.others_wait(A), 1, "C does");
        state.pass(60, A);
        assert_eq!(state.others_wait(A), 0);
    }

    #[test]
    fn schema_16_has_these_bytes() {
        let mut state = SlotState::default();
        assert!(state.set(A, 3, 250));
        let bytes = state.encode().unwrap();
        assert_eq!(
            hex::encode(&bytes),
            "525257310100100000000501010103fa".to_owned()
        );
        assert_eq!(SlotState::decode(&bytes).unwrap(), state);
        assert!(SlotState::decode(b"junk").is_err());
        // Programs that know of nobody who waits read it too, as a holder of nothing.
        state.wait(B, Some(5));
        let bytes = state.encode().unwrap();
        assert_eq!(
            hex::encode(&bytes),
            "525257310100100000000902010103fa02010005".to_owned()
        );
        assert_eq!(SlotState::decode(&bytes).unwrap(), state);
    }
}
