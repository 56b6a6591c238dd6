//! How much a request sets aside before its answer says what it has cost.
//!
//! What the meter's configuration says, or what nine of ten of the last hundred answers did not
//! exceed; before the first, a twentieth of the smallest limit. Never more than the smallest limit
//! in force: it could never be had.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use proto::meter::{Estimate, MeterSpec, share};

/// Answers that are remembered.
const REMEMBERED: usize = 100;
/// The first request sets aside this part of the smallest limit.
const FIRST: u64 = 20;

/// What requests of one key set aside.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    /// 0: each request spends one token.
    amount: AtomicU64,
    /// The smallest limit.
    most: AtomicU64,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    /// Whether they count: no estimate is given.
    count: bool,
    last: Vec<u64>,
    next: usize,
}

impl Estimates {
    pub fn of(spec: &MeterSpec) -> Self {
        let estimates = Self::default();
        estimates.respec(spec);
        estimates
    }

    /// Takes another configuration; what was learned stays.
    pub fn respec(&self, spec: &MeterSpec) {
        let most = spec.limits().iter().map(|limit| limit.capacity()).min();
        // What a request sets aside has to fit into the share of this region.
        let share = spec.share().map(|share| share.initial);
        let most = most.map(|most| share.map_or(most, |share| share::part(most, share)));
        let most = most.unwrap_or(u64::MAX);
        let mut answers = self.lock();
        answers.count = spec.estimate() == Some(Estimate::Learned);
        let amount = match spec.estimate() {
            None => 0,
            Some(Estimate::Given(amount)) => amount.max(1),
            Some(Estimate::Learned) => answers.p90().unwrap_or(most.div_ceil(FIRST)).max(1),
        };
        self.most.store(most, Ordering::Relaxed);
        self.amount.store(amount, Ordering::Relaxed);
    }

    /// Fits them into the limits in force, which may be less than those configured: what is slowed
    /// down, or has a small share, still lets requests pass one by one.
    pub fn fit(&self, in_force: &MeterSpec) {
        let most = in_force.limits().iter().map(|limit| limit.capacity()).min();
        let most = most.unwrap_or(u64::MAX).max(1);
        self.most.store(most, Ordering::Relaxed);
    }

    /// Whether there are any.
    pub fn are_made(&self) -> bool {
        self.amount.load(Ordering::Relaxed) > 0
    }

    /// What a request spends that sets aside no less than `least`.
    pub fn amount(&self, least: u64) -> u64 {
        match self.amount.load(Ordering::Relaxed) {
            0 => 1,
            amount => amount.max(least).min(self.most.load(Ordering::Relaxed)),
        }
    }

    /// An answer has cost so much.
    pub fn learn(&self, actual: u64) {
        let mut answers = self.lock();
        if !answers.count {
            return;
        }
        answers.note(actual);
        if let Some(p90) = answers.p90() {
            self.amount.store(p90.max(1), Ordering::Relaxed);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers {
    fn note(&mut self, actual: u64) {
        match self.last.get_mut(self.next) {
            Some(oldest) => *oldest = actual,
            None => self.last.push(actual),
        }
        self.next = (self.next + 1) % REMEMBERED;
    }

    fn p90(&self) -> Option<u64> {
        let mut ordered = self.last.clone();
        ordered.sort_unstable();
        let at = (ordered.len() * 9).div_ceil(10).checked_sub(1)?;
        ordered.get(at).copied()
    }
}

#[cfg(test)]
mod tests {
    use proto::meter::{Limit, Window};

    use super::*;

    fn spec(estimate: Option<Estimate>) -> MeterSpec {
        let limit = |n, window| Limit::new(n, window).unwrap();
        let limits = vec![limit(1_000, Window::Minute), limit(10_000, Window::Day)];
        MeterSpec::new("", 1, limits).unwrap().estimating(estimate)
    }

    #[test]
    fn an_estimate_is_given_or_learned_and_never_more_than_the_limit() {
        let counts = Estimates::of(&spec(None));
        assert_eq!((counts.amount(0), counts.amount(500)), (1, 1));
        let given = Estimates::of(&spec(Some(Estimate::Given(70))));
        given.learn(900);
        assert_eq!((given.amount(0), given.amount(80)), (70, 80));
        assert_eq!(given.amount(u64::MAX), 1_000);
        // A limit that is slowed down to a tenth, or of which nothing is left here.
        given.fit(&spec(None).scaled(1, 20));
        assert_eq!((given.amount(0), given.amount(80)), (50, 50));
        given.fit(&spec(None).scaled(1, 1_000_000));
        assert_eq!(given.amount(80), 1);
        given.fit(&spec(None));
        assert_eq!(given.amount(80), 80);
        let learned = Estimates::of(&spec(Some(Estimate::Learned)));
        assert_eq!(learned.amount(0), 50);
        learned.learn(7);
        assert_eq!(learned.amount(0), 7);
        for answer in 1..=1_000 {
            learned.learn(answer % 100);
        }
        assert_eq!(learned.amount(0), 89);
        learned.learn(u64::MAX);
        learned.respec(&spec(Some(Estimate::Learned)));
        assert_eq!(learned.amount(0), 90);
    }

    #[test]
    fn answers_that_cost_nothing_still_set_something_aside() {
        let learned = Estimates::of(&spec(Some(Estimate::Learned)));
        learned.learn(0);
        assert_eq!(learned.amount(0), 1);
        assert!(learned.are_made());
    }
}
