//! Which of the tokens to come refused callers have been told of.
//!
//! The k-th of those who are refused is told when the k-th token comes. Who was told and has not
//! come again is counted on when tokens have come meanwhile: these came for the first of them, and
//! who is refused now is told of one after those of the rest. Many do not do as they are told, and
//! each of them is told again and again; so it is carried over a refill for no more than a limit's
//! worth of tokens, and no longer than until the last of them has come.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proto::meter::Limit;

/// Nobody is told to wait for more than two windows beyond this time, however many were refused:
/// most of them did not wait.
const WAIT_MAX_NS: u64 = 600_000_000_000;

/// How many tokens a window of these limits has.
pub(super) fn per_window(limits: &[Limit]) -> u64 {
    let each = limits.iter().map(Limit::limit);
    each.min().unwrap_or(u64::MAX)
}

/// The number of the last token that anybody is told of.
pub(super) fn last(limits: &[Limit]) -> u64 {
    let each = limits.iter().map(|limit| {
        let windows = WAIT_MAX_NS / limit.window().width_ns().max(1);
        limit.limit().saturating_mul(windows.max(2))
    });
    each.min().unwrap_or(u64::MAX)
}

/// Tokens that callers of one meter have been told of.
#[derive(Debug, Default)]
pub(super) struct Told {
    tokens: AtomicU64,
    /// When the last of them comes; 0 where nobody has been told.
    last_ns: AtomicU64,
}

impl Told {
    /// The number, from the next token that comes, of the last of so many that nobody has been
    /// told of.
    pub(super) fn next(&self, amount: u64, now_ns: u64) -> u64 {
        let last_ns = self.last_ns.load(Relaxed);
        let over = last_ns > 0 && last_ns <= now_ns;
        // One alone sees that all have come.
        if over && (self.last_ns.compare_exchange(last_ns, 0, Relaxed, Relaxed)).is_ok() {
            self.tokens.store(0, Relaxed);
        }
        let before = self.tokens.fetch_add(amount, Relaxed);
        before.saturating_add(amount)
    }

    /// A caller has been told to come then.
    pub(super) fn until(&self, at_ns: u64) {
        self.last_ns.fetch_max(at_ns, Relaxed);
    }

    /// Tokens have come; a window has no more than `most`.
    pub(super) fn came(&self, tokens: u64, most: u64) {
        let rest = |told: u64| Some(told.saturating_sub(tokens).min(most));
        // An error means that it gave `None`.
        let _ = self.tokens.fetch_update(Relaxed, Relaxed, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_more_in_a_window_than_it_holds() {
        use proto::meter::{Algorithm, Window};
        let bucket = Limit::with_algorithm(3_600, Window::Hour, Algorithm::TokenBucket);
        let bucket = bucket.and_then(|limit| limit.with_burst(10)).unwrap();
        assert_eq!((per_window(&[bucket]), last(&[bucket])), (3_600, 7_200));
    }

    #[test]
    fn who_was_told_before_is_counted_until_its_token_has_come() {
        let told = Told::default();
        assert_eq!([1, 1, 3].map(|amount| told.next(amount, 10)), [1, 2, 5]);
        told.until(90);
        told.until(70);
        told.came(2, 100);
        assert_eq!(told.next(1, 80), 4, "three are still told of others");
        assert_eq!(told.next(1, 90), 1, "all have come");
    }

    #[test]
    fn who_does_not_do_as_told_is_counted_for_one_window() {
        let told = Told::default();
        for round in 1..100 {
            for _ in 0..20 {
                told.next(1, round);
            }
            told.until(round + 1_000);
            told.came(10, 30);
        }
        assert_eq!(told.next(1, 100), 31);
    }
}
