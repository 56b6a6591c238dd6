//! Which keys of limits say nothing any more, judged by how long they have not moved.

use crate::limits::block::Opener;
use crate::limits::codec;
use crate::limits::key::is_store_key;
use crate::limits::slots::{self, state::SlotState};
use crate::limits::state::{Charges, State, Usage};

/// Before this time no key is dead: whoever uses it deletes it itself.
const LEAST_NS: u64 = 60_000_000_000;

/// Whether what a key holds counts no more, when it has not moved for this time. What cannot be
/// read, because a newer release wrote it or nobody of ours, may count.
pub fn is_dead(key: &str, value: &[u8], unmoved_ns: u64) -> bool {
    if unmoved_ns < LEAST_NS {
        return false;
    }
    if key.starts_with(slots::PREFIX) {
        return SlotState::decode(value).is_ok_and(|state| slots_are_over(&state, unmoved_ns));
    }
    is_store_key(key) && codec::decode(value).is_ok_and(|state| is_over(&state, unmoved_ns))
}

/// Whether twice the slowest window has passed, and with it all blocks that were open, all charges
/// of rings, all debts of buckets and all that repeated corrections are known by.
pub fn is_over(state: &State, unmoved_ns: u64) -> bool {
    let width_ns = |usage: &Usage| usage.window.width_ns();
    let slowest_ns = state.limits.iter().map(width_ns).max().unwrap_or(0);
    let mut later = state.clone();
    // No wall clock takes part: a calendar window is over when twice its length has passed.
    later.pass(unmoved_ns, 0, Opener::NOBODY);
    let over = |usage: &Usage| match &usage.charges {
        Charges::Sliding(ring) => ring.used() == 0,
        Charges::Bucket(bucket) => bucket.is_full(),
        Charges::Fixed(_) => true,
    };
    unmoved_ns >= slowest_ns.saturating_mul(2)
        && later.open.is_empty()
        && later.folded.is_empty()
        && later.limits.iter().all(over)
}

/// Whether every holder's time is over twice.
fn slots_are_over(state: &SlotState, unmoved_ns: u64) -> bool {
    let ends = state.held.iter().map(|held| held.ends_in_ns);
    unmoved_ns / 2 >= ends.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proto::meter::{Algorithm, Limit, MeterSpec, Window};

    use super::*;
    use crate::limits::block::Block;
    use crate::limits::corrections::Folded;
    use crate::limits::state::Instant;

    const SECOND: u64 = 1_000_000_000;
    const MINUTE: u64 = 60 * SECOND;
    const DAY: u64 = 86_400 * SECOND;
    const NOON: i64 = 1_767_268_800;
    const A: Opener = Opener { node: 1, boot: 1 };
    const KEY: &str = "tokens/00112233445566778899aabbccddeeff";

    fn state(limits: Vec<Limit>) -> State {
        let mut state = State::empty(&MeterSpec::new("m", 1, limits).unwrap(), 0, NOON);
        let at = Instant {
            age_ns: 0,
            unix_s: NOON,
        };
        state.charge(5, at);
        state
    }

    fn per(window: Window) -> Limit {
        Limit::new(10, window).unwrap()
    }

    /// Asserts that a state dies between the two ages.
    fn check(state: &State, alive_ns: u64, dead_ns: u64) {
        let bytes = codec::encode(state).unwrap();
        assert!(!is_dead(KEY, &bytes, alive_ns), "{state:?} at {alive_ns}");
        assert!(is_dead(KEY, &bytes, dead_ns), "{state:?} at {dead_ns}");
    }

    #[test]
    fn a_state_dies_after_twice_its_slowest_window_and_not_while_anything_counts() {
        check(&state(vec![per(Window::Second)]), MINUTE - 1, MINUTE);
        check(
            &state(vec![per(Window::Minute)]),
            2 * MINUTE - 1,
            2 * MINUTE,
        );
        let two = state(vec![per(Window::Second), per(Window::Day)]);
        check(&two, 2 * DAY - 1, 2 * DAY);
        let month = state(vec![per(Window::Month)]);
        check(&month, 62 * DAY - 1, 62 * DAY);

        // Tokens that are open are charged at the end of their block.
        let mut open = state(vec![per(Window::Minute)]);
        open.open.push(Block {
            id: 1,
            opener: A,
            left: 1,
            ends_in_ns: (2 * MINUTE) as i64,
            unix_s: NOON,
        });
        check(&open, 3 * MINUTE, 3 * MINUTE + 2 * SECOND);

        // Five tokens of a bucket that fills by one an hour.
        let slow = Limit::with_algorithm(1, Window::Hour, Algorithm::TokenBucket).unwrap();
        let bucket = state(vec![slow.with_burst(5).unwrap()]);
        check(&bucket, 300 * MINUTE - 1, 300 * MINUTE);

        let mut corrected = state(vec![per(Window::Second)]);
        corrected.folded.push(Folded {
            opener: A,
            number: 1,
            age_ns: 0,
        });
        check(&corrected, 10 * MINUTE, 11 * MINUTE);
    }

    #[test]
    fn slots_die_when_their_holders_have_been_gone_for_as_long_again() {
        let key = "slots/00112233";
        let mut state = SlotState::default();
        assert!(state.set(A, 3, 40 * SECOND));
        let bytes = state.encode().unwrap();
        assert!(!is_dead(key, &bytes, 79 * SECOND));
        assert!(is_dead(key, &bytes, 80 * SECOND));
        assert!(!is_dead(
            key,
            &SlotState::default().encode().unwrap(),
            MINUTE - 1
        ));
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        assert!(!is_dead(KEY, b"of a newer release", u64::MAX));
        assert!(!is_dead("slots/00112233", b"of a newer release", u64::MAX));
        let bytes = codec::encode(&state(vec![per(Window::Second)])).unwrap();
        assert!(!is_dead("tokens/org_1/mtr_1/ff", &bytes, u64::MAX));
    }
}
