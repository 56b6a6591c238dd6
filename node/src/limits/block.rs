//! A block: tokens taken ahead of demand by one incarnation of a node.
//!
//! It counts in full while it is open. **Only the incarnation that opened it settles it**, by
//! writing an absolute, only falling `left` together with the spends since the `left` that it
//! replaces; anybody else may only close it after its end, charging `left` in full there. So
//! `amount − left` is exactly what has been charged, a settle can be written again after an
//! unknown outcome without counting twice, and a crash, a pause or a cut can leave tokens unused
//! but never use them twice.

use proto::meter::{Algorithm, Limit, MeterSpec, Window};
use serde::{Deserialize, Serialize};

use super::clock::Moment;
use super::credit::CREDITS_MAX;
use super::state::{Charges, Instant, OPEN_MAX, State};
use super::window::{calendar_end_s, calendar_window, sub_window_ns};

/// Shortest planned life of a block.
const LIFE_MIN_NS: u64 = 200_000_000;
/// Longest planned life of a block.
const LIFE_MAX_NS: u64 = 30_000_000_000;
/// A block holds at most this part of a limit, rounded up: rounded down, a limit of 39 a second
/// would need 39 blocks, and writes, a second.
const SHARE: u64 = 20;

/// One incarnation of a node: a restart makes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Opener {
    /// The node.
    pub node: u64,
    /// Drawn at random by each start of its process.
    pub boot: u64,
}

impl Opener {
    /// No incarnation: to it, whatever has ended is charged, as to every node but its opener.
    pub const NOBODY: Self = Self { node: 0, boot: 0 };
}

/// An open block in a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Unique among the blocks of its opener.
    pub id: u64,
    /// Tokens that count as used because they may still be sent.
    pub left: u64,
    /// End, relative to the moment that the state speaks about; negative when it is over.
    pub ends_in_ns: i64,
    /// A wall-clock second inside the calendar windows that it belongs to (it outlives none).
    pub unix_s: i64,
    /// Who may settle it.
    pub opener: Opener,
}

impl Block {
    /// Whether it is this block of this opener.
    pub fn is(&self, opener: Opener, id: u64) -> bool {
        self.id == id && self.opener == opener
    }

    /// Where what is left is charged once its end is over.
    pub fn end(&self) -> Instant {
        let age_ns = u64::try_from(self.ends_in_ns.saturating_neg()).unwrap_or(0);
        Instant {
            age_ns,
            unix_s: self.unix_s,
        }
    }
}

/// Planned life of a block: min over the limits of min(max(200 ms, W/100), 30 s).
pub fn life_ns(spec: &MeterSpec) -> u64 {
    let lives = spec
        .limits()
        .iter()
        .map(|limit| window_life_ns(limit.window()));
    lives.min().unwrap_or(LIFE_MAX_NS)
}

/// Largest block: 1/20 of the smallest limit, rounded up; of a bucket as much as fills it in one
/// life, at most half of its burst, since a small burst may be filled many times a second.
pub fn amount_max(limits: impl Iterator<Item = u64>) -> u64 {
    limits.min().unwrap_or(u64::MAX)
}

/// Largest block of one limit.
pub fn share_of(limit: &Limit) -> u64 {
    let rate = (limit.algorithm() == Algorithm::TokenBucket).then_some(limit.limit());
    share(limit.capacity(), rate, limit.window())
}

fn share(capacity: u64, rate: Option<u64>, window: Window) -> u64 {
    let part = capacity.div_ceil(SHARE).max(1);
    let Some(rate) = rate else { return part };
    let filled = u128::from(rate) * u128::from(window_life_ns(window));
    let filled = filled.div_ceil(u128::from(window.width_ns()));
    let filled = u64::try_from(filled).unwrap_or(u64::MAX);
    part.max(filled.min(capacity.div_ceil(2)))
}

fn window_life_ns(window: Window) -> u64 {
    (window.width_ns() / 100).clamp(LIFE_MIN_NS, LIFE_MAX_NS)
}

/// Grid on which spends are counted: the shortest sub-window of the sliding limits; without any,
/// the whole life is one.
pub fn grid_ns(spec: &MeterSpec) -> u64 {
    let sliding = spec
        .limits()
        .iter()
        .filter(|l| l.algorithm() == Algorithm::SlidingWindow);
    sliding
        .map(|limit| sub_window_ns(limit.window()))
        .min()
        .unwrap_or(LIFE_MAX_NS)
}

/// Life that a block opened now may have: the planned one, cut where a calendar window ends
/// (less `max_skew_ns`, by which another node's clock may lead); 0 when none may be opened. Blocks
/// that have grown live `growth` times as long.
pub fn life_now_ns(spec: &MeterSpec, now: Moment, max_skew_ns: u64, growth: u64) -> u64 {
    let fixed = spec
        .limits()
        .iter()
        .filter(|l| l.algorithm() == Algorithm::FixedWindow);
    let until_end = fixed.map(|limit| {
        let number = calendar_window(limit.window(), now.unix_s());
        let end_s = u64::try_from(calendar_end_s(limit.window(), number)).unwrap_or(0);
        end_s
            .saturating_mul(1_000_000_000)
            .saturating_sub(max_skew_ns)
            .saturating_sub(now.unix_ns)
    });
    let mut planned_ns = life_ns(spec).saturating_mul(growth).min(LIFE_MAX_NS);
    if spec.share().is_some() {
        // A share that is given away waits for the last block of it.
        let most = proto::shares::block_life(spec.limits());
        planned_ns = planned_ns.min(super::nanos(most));
    }
    until_end.min().unwrap_or(u64::MAX).min(planned_ns)
}

impl State {
    /// Opens a block of at most `wanted` tokens; what it holds, 0 when nothing is free. It is no
    /// larger than a block may be, except for what requests at once set aside: `at_once`.
    pub fn open(&mut self, wanted: u64, at_once: u64, block: Block) -> u64 {
        let most = amount_max(self.limits.iter().map(|usage| {
            let rate = match &usage.charges {
                Charges::Bucket(bucket) => Some(bucket.rate),
                Charges::Sliding(_) | Charges::Fixed(_) => None,
            };
            share(usage.limit, rate, usage.window)
        }));
        let amount = wanted.min(most.max(at_once)).min(self.free());
        // Places are kept for the marks of credits.
        if amount == 0 || self.open.len() + CREDITS_MAX >= OPEN_MAX || block.ends_in_ns <= 0 {
            return 0;
        }
        self.open.push(Block {
            left: amount,
            ..block
        });
        amount
    }

    /// Settles a block of ours: `left` falls to `left`, and what it fell by is charged where it
    /// was spent. `spends` are all spends of the block since it was opened, oldest first, and
    /// `amount` what it was opened with; those charged before are skipped by their number.
    ///
    /// Nothing happens when the block is absent: somebody closed it after its end.
    pub fn settle(
        &mut self,
        opener: Opener,
        id: u64,
        amount: u64,
        spends: impl Iterator<Item = (Instant, u64)>,
    ) {
        let Some(block) = self.open.iter().find(|block| block.is(opener, id)) else {
            return;
        };
        let mut skip = amount.saturating_sub(block.left);
        let mut left = block.left;
        for (at, n) in spends {
            let known = n.min(skip);
            skip -= known;
            let new = (n - known).min(left);
            left -= new;
            self.charge(new, at);
        }
        if let Some(block) = self.open.iter_mut().find(|block| block.is(opener, id)) {
            block.left = left;
        }
    }

    /// Removes a block of ours that is settled: `drawn` tokens never came back and are charged at
    /// `at`, the rest was never drawn and is free again.
    pub fn close(&mut self, opener: Opener, id: u64, drawn: u64, at: Instant) {
        let Some(index) = self.open.iter().position(|block| block.is(opener, id)) else {
            return;
        };
        let block = self.open.swap_remove(index);
        self.charge(block.left.min(drawn), at);
    }
}
