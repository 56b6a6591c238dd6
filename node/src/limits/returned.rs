//! What a state counts for once the store went back to an earlier state of itself: restored from a
//! backup, or wiped.
//!
//! What was given out since that backup is forgotten there, and nobody else knows all of it. So a
//! window that was begun before counts as full: whatever was sent, it is within the limit. Of a
//! calendar window, which would stay full for a month, the larger of what the state says and of
//! what this node remembers counts.

use super::bucket::Bucket;
use super::state::{Charges, State};
use super::window::{Calendar, calendar_window, sub_window_ns};
use proto::meter::Window;

/// What a node knew to be used of calendar windows when the store went back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered(Vec<(Window, Calendar)>);

impl Remembered {
    /// What a state says, with all that was open in it.
    pub fn of(state: &State) -> Self {
        let open = state.open_left();
        let calendar = |usage: &super::state::Usage| match &usage.charges {
            Charges::Fixed(calendar) => {
                let used = calendar.used.saturating_add(open);
                let calendar = Calendar {
                    used,
                    ..calendar.clone()
                };
                let any = calendar.used > 0 || calendar.previous > 0;
                any.then_some((usage.window, calendar))
            }
            Charges::Sliding(_) | Charges::Bucket(_) => None,
        };
        Self(state.limits.iter().filter_map(calendar).collect())
    }

    /// Whether none of it counts any more, nor would if the wall clock was set back by a window.
    pub fn is_over(&self, unix_s: i64) -> bool {
        let over = |(window, known): &(Window, Calendar)| {
            known.window.saturating_add(1) < calendar_window(*window, unix_s)
        };
        self.0.iter().all(over)
    }

    /// Keeps the larger numbers of the latest windows.
    pub fn keep(&mut self, other: &Self) {
        for (window, theirs) in &other.0 {
            match self.0.iter_mut().find(|(of, _)| of == window) {
                None => self.0.push((*window, theirs.clone())),
                Some((_, ours)) if ours.window < theirs.window => {
                    ours.clone_from(theirs);
                }
                Some((_, ours)) if ours.window == theirs.window => {
                    ours.used = ours.used.max(theirs.used);
                    ours.previous = ours.previous.max(theirs.previous);
                }
                Some(_) => {}
            }
        }
    }
}

impl State {
    /// Counts as full what was begun before the last token of the store's later state was sent, so
    /// long ago.
    pub fn fill(&mut self, ago_ns: u64) {
        let open = self.open_left();
        for usage in &mut self.limits {
            let (window, limit) = (usage.window, usage.limit);
            let free = limit.saturating_sub(usage.used().saturating_add(open));
            match &mut usage.charges {
                Charges::Sliding(ring) => ring.charge(ago_ns, free, sub_window_ns(window)),
                Charges::Bucket(bucket) => {
                    let mut empty = Bucket::full(bucket.rate);
                    empty.charge(limit.saturating_sub(open), window.width_ns());
                    empty.age(ago_ns);
                    bucket.owe_at_least(&empty);
                }
                Charges::Fixed(_) => {}
            }
        }
    }

    /// Takes what a node remembers to be used of the same calendar windows, where it is more.
    pub fn recall(&mut self, remembered: &Remembered) {
        let open = self.open_left();
        for usage in &mut self.limits {
            let Charges::Fixed(calendar) = &mut usage.charges else {
                continue;
            };
            let same = |(window, known): &&(Window, Calendar)| {
                *window == usage.window && known.window == calendar.window
            };
            if let Some((_, known)) = remembered.0.iter().find(same) {
                calendar.used = calendar.used.max(known.used.saturating_sub(open));
                calendar.previous = calendar.previous.max(known.previous);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::meter::{Algorithm, Limit, MeterSpec};

    use super::*;
    use crate::limits::block::Opener;

    const SECOND: u64 = 1_000_000_000;
    const NOON: i64 = 1_767_268_800;

    fn state(limits: Vec<Limit>) -> State {
        State::empty(&MeterSpec::new("m", 1, limits).unwrap(), 0, NOON)
    }

    #[test]
    fn a_sliding_window_is_full_until_it_is_over_and_no_longer() {
        let mut state = state(vec![Limit::new(10, Window::Minute).unwrap()]);
        for second in 0..=61 {
            state.fill(second * SECOND);
            state.fill(second * SECOND);
            assert_eq!(state.free(), if second < 61 { 0 } else { 10 }, "{second} s");
            state.pass(SECOND, NOON, Opener::NOBODY);
        }
    }

    #[test]
    fn a_bucket_fills_again_from_nothing() {
        let bucket = Limit::with_algorithm(60, Window::Minute, Algorithm::TokenBucket);
        let mut state = state(vec![bucket.unwrap().with_burst(5).unwrap()]);
        for (second, free) in [(0, 0), (1, 1), (2, 2), (3, 3), (9, 5)] {
            let mut now = state.clone();
            now.fill(second * SECOND);
            now.fill(second * SECOND);
            assert_eq!(now.free(), free, "{second} s");
        }
        state.fill(4 * SECOND);
        state.charge(4, state_instant());
        state.fill(5 * SECOND);
        assert_eq!(state.free(), 0, "what was charged since stays");
    }

    #[test]
    fn of_a_day_the_larger_number_counts() {
        let day = || state(vec![Limit::new(10, Window::Day).unwrap()]);
        let mut known = day();
        known.charge(8, state_instant());
        let remembered = Remembered::of(&known);
        let mut restored = day();
        restored.charge(3, state_instant());
        restored.fill(SECOND);
        restored.recall(&remembered);
        restored.recall(&remembered);
        assert_eq!(restored.free(), 2);
        restored.pass(0, NOON + 86_400, Opener::NOBODY);
        restored.recall(&remembered);
        assert_eq!(restored.free(), 10, "another day");
        assert!(!remembered.is_over(NOON + 86_400), "the clock may go back");
        assert!(remembered.is_over(NOON + 2 * 86_400));
        assert!(Remembered::of(&day()).is_over(NOON), "nothing was used");
    }

    fn state_instant() -> crate::limits::state::Instant {
        crate::limits::state::Instant {
            age_ns: 0,
            unix_s: NOON,
        }
    }
}
