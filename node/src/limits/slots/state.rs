//! The value in the store of one concurrency limit: how many slots each incarnation holds.
//!
//! Moved only by compare-and-swap. An entry holds so many slots until its end; its incarnation
//! renews it while it has calls, and whoever sees it after its end may use its slots. Ends are
//! relative to the moment that the writer composed it; whoever reads it lets pass only the time
//! that it can prove, so that no entry ends early.

use proto::wire::{self, Message, WireError};
use serde::{Deserialize, Serialize};

use crate::limits::block::Opener;

/// Incarnations with slots of one key at a time.
pub const HOLDERS_MAX: usize = 128;
/// Largest encoded state.
const BYTES_MAX: usize = 8 * 1_024;

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
    /// How many.
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
            .retain(|held| held.ends_in_ns > 0 || held.opener == me);
    }

    /// Slots that others hold.
    pub fn of_others(&self, me: Opener) -> u64 {
        let others = self.held.iter().filter(|held| held.opener != me);
        others.fold(0, |sum, held| sum.saturating_add(held.n))
    }

    /// Slots that `me` holds.
    pub fn of(&self, me: Opener) -> u64 {
        let mine = self.held.iter().find(|held| held.opener == me);
        mine.map_or(0, |held| held.n)
    }

    /// Gives `me` so many slots for a time; false when there is no place for the entry.
    pub fn set(&mut self, me: Opener, n: u64, ends_in_ns: u64) -> bool {
        self.held.retain(|held| held.opener != me);
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
    }
}
