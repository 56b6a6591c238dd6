//! A token bucket: what is owed to it, and how it fills.
//!
//! Pure integer arithmetic. The bucket holds `burst` tokens and fills by `rate` per window. What is
//! kept is the debt, in token · nanoseconds of the window, so that nothing is rounded: a token
//! costs one window's length, and every nanosecond pays `rate` of it back. A charge is entered when
//! it is known and not at its age: late, so that it is paid back late, never early.
//!
//! What is owed and what is open never exceed the burst together, so over any time T no more is
//! sent than burst + rate · T; a state that only proves a part of the time that has passed pays
//! back less, never more. A credit that is given without the store is a bucket that does not fill.

use serde::{Deserialize, Serialize};

/// What is owed to a bucket. Its burst is the limit of its usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Token · nanoseconds of the window.
    owed: u128,
    /// Tokens per window that are paid back; 0 where nothing is.
    pub rate: u64,
}

impl Bucket {
    /// A full bucket.
    pub fn full(rate: u64) -> Self {
        Self { owed: 0, rate }
    }

    /// The same debt, paid back at another rate.
    pub fn at_rate(self, rate: u64) -> Self {
        Self { rate, ..self }
    }

    /// Lets time pass.
    pub fn age(&mut self, elapsed_ns: u64) {
        let paid = u128::from(elapsed_ns).saturating_mul(u128::from(self.rate));
        self.owed = self.owed.saturating_sub(paid);
    }

    /// Enters `n` charges.
    pub fn charge(&mut self, n: u64, window_ns: u64) {
        let cost = u128::from(n).saturating_mul(u128::from(window_ns));
        self.owed = self.owed.saturating_add(cost);
    }

    /// Takes `n` of `reserved` charges of that age out, as far as they are surely still owed: what
    /// has been paid back by itself is not paid twice.
    pub fn give_back(&mut self, n: u64, reserved: u64, age_ns: u64, window_ns: u64) {
        let cost = |tokens: u64| u128::from(tokens).saturating_mul(u128::from(window_ns));
        let paid = u128::from(age_ns).saturating_mul(u128::from(self.rate));
        let owed = cost(reserved).saturating_sub(paid).min(cost(n));
        self.owed = self.owed.saturating_sub(owed);
    }

    /// Owes no less than another bucket.
    pub fn owe_at_least(&mut self, other: &Self) {
        self.owed = self.owed.max(other.owed);
    }

    /// Adds what is owed to another bucket.
    pub fn merge(&mut self, other: &Self) {
        self.owed = self.owed.saturating_add(other.owed);
    }

    /// Tokens that are owed, rounded up.
    pub fn used(&self, window_ns: u64) -> u64 {
        let tokens = self.owed.div_ceil(u128::from(window_ns.max(1)));
        u64::try_from(tokens).unwrap_or(u64::MAX)
    }

    /// Nanoseconds until so many tokens less are owed, if nothing is charged meanwhile; `None`
    /// when that never comes.
    pub fn paid_in(&self, tokens: u64, window_ns: u64) -> Option<u64> {
        let cost = u128::from(window_ns.max(1));
        // What is owed beyond the tokens that may stay owed.
        let stay = u128::from(self.used(window_ns).saturating_sub(tokens)).saturating_mul(cost);
        let due = self.owed.saturating_sub(stay);
        if self.rate == 0 {
            return (due == 0).then_some(0);
        }
        u64::try_from(due.div_ceil(u128::from(self.rate))).ok()
    }

    /// Whether nothing is owed.
    pub fn is_full(&self) -> bool {
        self.owed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// A small generator of its own: a failure names the seed that replays it.
    struct Chance(u64);

    impl Chance {
        fn within(&mut self, from: u64, to: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            from + self.0 % (to - from).max(1)
        }
    }

    #[test]
    fn over_any_time_no_more_is_charged_than_burst_and_rate_allow() {
        for seed in 1..=200 {
            let mut chance = Chance(seed * 0x9e37_79b9);
            let (rate, burst) = (chance.within(1, 500), chance.within(1, 2_000));
            let window_ns = [SECOND_NS, 60 * SECOND_NS, 3_600 * SECOND_NS]
                [usize::try_from(chance.within(0, 3)).unwrap()];
            let mut bucket = Bucket::full(rate);
            let mut now_ns = 0_u64;
            let mut charges: Vec<(u64, u64)> = Vec::new();
            for _ in 0..200 {
                let step_ns = chance.within(0, window_ns / 5);
                now_ns += step_ns;
                // Sometimes less time is proven than has passed.
                let proven_ns = match chance.within(0, 4) {
                    0 => step_ns / 2,
                    _ => step_ns,
                };
                bucket.age(proven_ns);
                let free = burst.saturating_sub(bucket.used(window_ns));
                let n = free.min(chance.within(0, burst + 1));
                bucket.charge(n, window_ns);
                charges.push((now_ns, n));
            }
            for (from, (first_ns, _)) in charges.iter().enumerate() {
                let mut sum = 0_u128;
                for (at_ns, n) in charges.iter().skip(from) {
                    sum += u128::from(*n);
                    let time_ns = u128::from(at_ns - first_ns);
                    let most = u128::from(burst)
                        + (u128::from(rate) * time_ns).div_ceil(u128::from(window_ns));
                    assert!(
                        sum <= most,
                        "seed {seed}: {sum} in {time_ns} ns, {most} may"
                    );
                }
            }
        }
    }

    #[test]
    fn a_bucket_that_is_asked_for_more_gives_all_that_it_fills_with() {
        let mut bucket = Bucket::full(7);
        let mut given = 0;
        for _ in 0..60_000 {
            let n = 3_u64.saturating_sub(bucket.used(SECOND_NS));
            bucket.charge(n, SECOND_NS);
            given += n;
            bucket.age(1_000_000);
        }
        // One token may be unpaid in part at the end.
        assert!((3 + 7 * 60 - 1..=3 + 7 * 60).contains(&given), "{given}");
    }

    #[test]
    fn it_says_when_tokens_come_back() {
        let mut bucket = Bucket::full(10);
        bucket.charge(5, SECOND_NS);
        assert_eq!(bucket.used(SECOND_NS), 5);
        assert_eq!(bucket.paid_in(1, SECOND_NS), Some(SECOND_NS / 10));
        assert_eq!(bucket.paid_in(5, SECOND_NS), Some(SECOND_NS / 2));
        bucket.age(SECOND_NS / 20);
        assert_eq!(bucket.used(SECOND_NS), 5, "rounded up");
        assert_eq!(bucket.paid_in(1, SECOND_NS), Some(SECOND_NS / 20));
        assert_eq!(bucket.at_rate(0).paid_in(1, SECOND_NS), None);
        bucket.age(u64::MAX);
        assert!(bucket.is_full());
    }
}
