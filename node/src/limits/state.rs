//! The value in the store of one meter key: what is used, and which blocks are open.
//!
//! It is moved only by compare-and-swap. Ages and ends are relative to the moment that the writer
//! composed it; whoever reads it lets pass only the time that it can prove ([`State::pass`]). What
//! is free is, for each limit, the limit − charges that are counted − everything still open, and
//! for the meter the smallest of these.

use proto::meter::{Algorithm, Limit, MeterSpec, Window};
use serde::{Deserialize, Serialize};

use super::block::{Block, Opener};
use super::bucket::Bucket;
use super::corrections::Folded;
use super::window::{Calendar, Ring, calendar_end_s, calendar_window, sub_window_ns};

/// Most blocks open on one key; a state with as many opens no further one.
pub const OPEN_MAX: usize = 32;

/// How far one node's wall clock may be ahead of another's without either being wrong, in seconds,
/// rounded up.
const LEAD_S: i64 = 5;

/// State of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of the configuration whose limits these are.
    pub version: u64,
    /// One entry per limit.
    pub limits: Vec<Usage>,
    /// Blocks whose tokens may still be sent.
    pub open: Vec<Block>,
    /// Which corrections are in it; in the store only, in a form of its own.
    #[serde(skip)]
    pub folded: Vec<Folded>,
}

/// What is used of one limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Its window; at most one entry has it.
    pub window: Window,
    /// How many may pass per window; of a bucket, its burst.
    pub limit: u64,
    /// The charges.
    pub charges: Charges,
}

/// Charges by the limit's algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Charges {
    /// By age.
    Sliding(Ring),
    /// By calendar window.
    Fixed(Calendar),
    /// As a debt.
    Bucket(Bucket),
}

/// When something was sent or given up, as the windows need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    /// Age relative to the state's moment.
    pub age_ns: u64,
    /// A wall-clock second inside the same calendar windows.
    pub unix_s: i64,
}

impl State {
    /// The state of a key that nobody has used.
    pub fn empty(spec: &MeterSpec, now_ns: u64, unix_s: i64) -> Self {
        let mut state = Self::default();
        state.adopt(spec, now_ns, unix_s);
        state
    }

    /// Takes the limits of `spec` unless the state has those of a newer configuration. A limit
    /// whose window was there before keeps its charges: a changed one works at once.
    pub fn adopt(&mut self, spec: &MeterSpec, now_ns: u64, unix_s: i64) {
        if self.version > spec.version() {
            return;
        }
        self.version = spec.version();
        let before = std::mem::take(&mut self.limits);
        for limit in spec.limits() {
            let window = limit.window();
            let kept = before.iter().find(|usage| {
                usage.window == window && usage.charges.algorithm() == limit.algorithm()
            });
            let charges = match kept.map(|usage| usage.charges.clone()) {
                Some(Charges::Bucket(bucket)) => Charges::Bucket(bucket.at_rate(limit.limit())),
                Some(charges) => charges,
                None => Charges::none(limit, now_ns, unix_s),
            };
            self.limits.push(Usage {
                window,
                limit: limit.capacity(),
                charges,
            });
        }
    }

    /// Lets a proven time pass, moves calendar windows on to the wall clock, and closes the blocks
    /// of others whose end is over, charging what they have left in full there.
    pub fn pass(&mut self, elapsed_ns: u64, unix_s: i64, me: Opener) {
        for usage in &mut self.limits {
            match &mut usage.charges {
                Charges::Sliding(ring) => ring.age(elapsed_ns, sub_window_ns(usage.window)),
                Charges::Fixed(calendar) => {
                    calendar.move_to(calendar_window(usage.window, unix_s));
                }
                Charges::Bucket(bucket) => bucket.age(elapsed_ns),
            }
        }
        self.pass_folded(elapsed_ns);
        let elapsed = i64::try_from(elapsed_ns).unwrap_or(i64::MAX);
        for block in &mut self.open {
            block.ends_in_ns = block.ends_in_ns.saturating_sub(elapsed);
        }
        let (ended, open) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|block: &Block| block.opener != me && block.ends_in_ns <= 0);
        self.open = open;
        let ended: Vec<Block> = ended;
        for block in ended {
            self.charge(block.left, block.end());
        }
    }

    /// Sets calendar windows back that begin more than [`LEAD_S`] after a wall clock that several
    /// nodes confirm: a wrong one has opened them. One that begins sooner was opened by a clock
    /// that leads a little, and stays: what is used of it would be forgotten when it begins again.
    pub fn set_back(&mut self, unix_s: i64) {
        for usage in &mut self.limits {
            if let Charges::Fixed(calendar) = &mut usage.charges {
                let led = calendar_window(usage.window, unix_s.saturating_add(LEAD_S));
                if calendar.window > led {
                    calendar.set_back(calendar_window(usage.window, unix_s));
                }
            }
        }
    }

    /// A second in those calendar windows of the state that the wall clock has not reached yet, or
    /// the clock's: what is opened now is charged there.
    pub fn charged_at(&self, unix_s: i64) -> i64 {
        let begin = |usage: &Usage| match &usage.charges {
            Charges::Fixed(calendar) => Some(calendar_end_s(
                usage.window,
                calendar.window.saturating_sub(1),
            )),
            Charges::Sliding(_) | Charges::Bucket(_) => None,
        };
        let latest = self.limits.iter().filter_map(begin).max();
        latest.map_or(unix_s, |begin_s| begin_s.max(unix_s))
    }

    /// The last second of its earliest calendar window that a wall clock has reached, or the
    /// clock's: with it no new window begins.
    pub fn ends_by(&self, unix_s: i64) -> i64 {
        let end = |usage: &Usage| match &usage.charges {
            Charges::Fixed(calendar) => Some(calendar_end_s(usage.window, calendar.window) - 1),
            Charges::Sliding(_) | Charges::Bucket(_) => None,
        };
        let earliest = self.limits.iter().filter_map(end).min();
        earliest.map_or(unix_s, |end_s| end_s.min(unix_s))
    }

    /// Enters `n` charges into every limit.
    pub fn charge(&mut self, n: u64, at: Instant) {
        for usage in &mut self.limits {
            match &mut usage.charges {
                Charges::Sliding(ring) => ring.charge(at.age_ns, n, sub_window_ns(usage.window)),
                Charges::Fixed(calendar) => {
                    calendar.charge(calendar_window(usage.window, at.unix_s), n);
                }
                Charges::Bucket(bucket) => bucket.charge(n, usage.window.width_ns()),
            }
        }
    }

    /// Enters the charges of another state of the same moment, limit by limit.
    pub fn merge_charges(&mut self, other: &Self) {
        for usage in &mut self.limits {
            let same = other
                .limits
                .iter()
                .find(|theirs| theirs.window == usage.window);
            match (&mut usage.charges, same.map(|theirs| &theirs.charges)) {
                (Charges::Sliding(ring), Some(Charges::Sliding(theirs))) => {
                    ring.merge(theirs, sub_window_ns(usage.window));
                }
                (Charges::Fixed(calendar), Some(Charges::Fixed(theirs))) => {
                    calendar.charge(theirs.window, theirs.used);
                    calendar.charge(theirs.window.saturating_sub(1), theirs.previous);
                }
                (Charges::Bucket(bucket), Some(Charges::Bucket(theirs))) => bucket.merge(theirs),
                _ => {}
            }
        }
    }

    /// Sum of what is left in open blocks.
    pub fn open_left(&self) -> u64 {
        self.open
            .iter()
            .fold(0, |sum, block| sum.saturating_add(block.left))
    }

    /// What may still be opened now: the smallest over all limits; without limits everything.
    pub fn free(&self) -> u64 {
        let open = self.open_left();
        let free = |usage: &Usage| {
            usage
                .limit
                .saturating_sub(usage.used().saturating_add(open))
        };
        self.limits.iter().map(free).min().unwrap_or(u64::MAX)
    }

    /// Whether more is used than a limit allows: answers have cost more than was set aside.
    pub fn is_overdrawn(&self) -> bool {
        let open = self.open_left();
        let over = |usage: &Usage| usage.used().saturating_add(open) > usage.limit;
        self.limits.iter().any(over)
    }

    /// Nanoseconds until the `k`-th further token is free (k ≥ 1), if all that is used stays used
    /// for as long as it can, and which limit it waits for last.
    pub fn free_in(&self, k: u64, unix_ns: u64) -> (u64, Option<Window>) {
        let open = self.open.iter();
        let mut open: Vec<(i64, u64)> = open.map(|it| (it.ends_in_ns, it.left)).collect();
        open.sort_unstable();
        self.limits
            .iter()
            .map(|usage| (usage.free_in(k.max(1), &open, unix_ns), Some(usage.window)))
            .max()
            .unwrap_or((0, None))
    }

    /// Whether it says nothing more than an absent key would.
    pub fn is_idle(&self) -> bool {
        let unused = |usage: &Usage| match &usage.charges {
            Charges::Sliding(ring) => ring.used() == 0,
            Charges::Fixed(calendar) => calendar.used == 0 && calendar.previous == 0,
            Charges::Bucket(bucket) => bucket.is_full(),
        };
        self.open.is_empty() && self.limits.iter().all(unused)
    }

    /// Whether this block of this opener is open.
    pub fn has(&self, me: Opener, id: u64) -> bool {
        self.open.iter().any(|block| block.is(me, id))
    }
}

impl Charges {
    /// Nothing used of a limit yet.
    fn none(limit: &Limit, now_ns: u64, unix_s: i64) -> Self {
        let window = limit.window();
        match limit.algorithm() {
            Algorithm::SlidingWindow => Self::Sliding(Ring::empty(now_ns, sub_window_ns(window))),
            Algorithm::FixedWindow => Self::Fixed(Calendar {
                window: calendar_window(window, unix_s),
                ..Calendar::default()
            }),
            Algorithm::TokenBucket => Self::Bucket(Bucket::full(limit.limit())),
        }
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sliding(_) => Algorithm::SlidingWindow,
            Self::Fixed(_) => Algorithm::FixedWindow,
            Self::Bucket(_) => Algorithm::TokenBucket,
        }
    }
}

impl Usage {
    /// Charges that count now.
    pub fn used(&self) -> u64 {
        match &self.charges {
            Charges::Sliding(ring) => ring.used(),
            Charges::Fixed(calendar) => calendar.used,
            Charges::Bucket(bucket) => bucket.used(self.window.width_ns()),
        }
    }

    /// How many may pass per window.
    pub fn per_window(&self) -> u64 {
        match &self.charges {
            Charges::Bucket(bucket) => bucket.rate,
            Charges::Sliding(_) | Charges::Fixed(_) => self.limit,
        }
    }

    /// The same limit with nothing charged, on the same sub-windows; a bucket does not fill.
    pub fn unused(&self) -> Self {
        let charges = match &self.charges {
            Charges::Sliding(ring) => Charges::Sliding(Ring {
                phase_ns: ring.phase_ns,
                counts: Vec::new(),
            }),
            Charges::Fixed(calendar) => Charges::Fixed(Calendar {
                window: calendar.window,
                ..Calendar::default()
            }),
            Charges::Bucket(_) => Charges::Bucket(Bucket::full(0)),
        };
        Self {
            charges,
            ..self.clone()
        }
    }

    fn free_in(&self, k: u64, open: &[(i64, u64)], unix_ns: u64) -> u64 {
        if self.limit == 0 {
            // This region has no share of it, and may get one.
            return self.window.width_ns();
        }
        if let Charges::Bucket(bucket) = &self.charges {
            return self.bucket_free_in(bucket, k, open);
        }
        let limit = self.limit;
        // Beyond one limit's worth, every further limit's worth takes a whole window more.
        let (rounds, k) = ((k - 1) / limit, (k - 1) % limit + 1);
        let beyond_ns = rounds.saturating_mul(self.round_ns());
        let held = open
            .iter()
            .fold(self.used(), |sum, (_, left)| sum.saturating_add(*left));
        let Some(mut missing) = held.saturating_add(k).checked_sub(limit).filter(|n| *n > 0) else {
            return beyond_ns;
        };
        match &self.charges {
            Charges::Fixed(calendar) => {
                let end_s = calendar_end_s(self.window, calendar.window);
                let end_ns = u64::try_from(end_s)
                    .unwrap_or(0)
                    .saturating_mul(1_000_000_000);
                end_ns.saturating_sub(unix_ns).saturating_add(beyond_ns)
            }
            Charges::Bucket(_) => 0,
            Charges::Sliding(ring) => {
                let sub_ns = sub_window_ns(self.window);
                let counted_ns = sub_ns.saturating_mul(super::window::COUNTED as u64);
                let later = open.iter().map(|(ends_in_ns, left)| {
                    let end_ns = u64::try_from(*ends_in_ns).unwrap_or(0);
                    (end_ns.saturating_add(counted_ns), *left)
                });
                for (in_ns, n) in ring.leaving(sub_ns).chain(later) {
                    missing = missing.saturating_sub(n);
                    if missing == 0 {
                        return in_ns.saturating_add(beyond_ns);
                    }
                }
                counted_ns.saturating_add(beyond_ns)
            }
        }
    }

    /// How long after it was used a token comes again at the latest.
    fn round_ns(&self) -> u64 {
        match &self.charges {
            // It is counted for a sub-window more than the window, from the end of its own.
            Charges::Sliding(_) => {
                let counted = super::window::COUNTED as u64 + 1;
                sub_window_ns(self.window).saturating_mul(counted)
            }
            Charges::Fixed(_) | Charges::Bucket(_) => self.window.width_ns(),
        }
    }

    /// Open tokens begin to be paid back when their block ends.
    fn bucket_free_in(&self, bucket: &Bucket, k: u64, open: &[(i64, u64)]) -> u64 {
        let window_ns = self.window.width_ns();
        let used = bucket.used(window_ns);
        let held = open
            .iter()
            .fold(used, |sum, (_, left)| sum.saturating_add(*left));
        let missing = held.saturating_add(k).saturating_sub(self.limit);
        if missing <= used {
            return bucket.paid_in(missing, window_ns).unwrap_or(u64::MAX);
        }
        let ends_ns = open.iter().map(|(ends_in_ns, _)| *ends_in_ns).max();
        let ends_ns = u64::try_from(ends_ns.unwrap_or(0)).unwrap_or(0);
        let cost = u128::from(missing).saturating_mul(u128::from(window_ns));
        let paid = cost.div_ceil(u128::from(bucket.rate.max(1)));
        ends_ns.saturating_add(u64::try_from(paid).unwrap_or(u64::MAX))
    }
}
