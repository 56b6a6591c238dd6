//! A part of a block in the hands of the workers: one atomic cell that all of them share.
//!
//! A token is in the cell, *drawn*, or *sent*. Every word that a worker changes carries the part's
//! generation, and the broker closes a part by moving all of them to the next generation *before*
//! it reports: from then on no draw, no return and no send of the old part succeeds, so what was
//! read at closing is final. The order of writes at opening (end and grid first, the token word
//! last) makes a worker that still sees the old generation fail in its compare-exchange.

use std::ops::Deref;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sub-windows that one part can count spends in: a life of 200 ms spans 13 of a second's, longer
/// lives span one or two of their own.
pub const SPEND_SLOTS: usize = 16;

const COUNT_BITS: u32 = 40;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const GENERATION_MASK: u64 = (1 << 24) - 1;

/// Number of a part's use of its cell, 24 bits; it wraps after 16 million blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation(u64);

impl Generation {
    fn of(word: u64) -> Self {
        Self(word >> COUNT_BITS)
    }

    fn next(self) -> Self {
        Self((self.0 + 1) & GENERATION_MASK)
    }

    fn word(self, count: u64) -> u64 {
        (self.0 << COUNT_BITS) | count.min(COUNT_MASK)
    }
}

/// {generation: 24, count: 40} in one word.
#[derive(Debug, Default)]
struct Word(AtomicU64);

impl Word {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire) & COUNT_MASK
    }

    /// Changes the count while the generation stands; `None` when it does not, or when `change`
    /// has nothing to give.
    fn change(&self, generation: Generation, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if Generation::of(word) != generation {
                return None;
            }
            let count = change(word & COUNT_MASK)?;
            let next = generation.word(count);
            let swapped =
                self.0
                    .compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire);
            match swapped {
                Ok(_) => return Some(count),
                Err(seen) => word = seen,
            }
        }
    }

    /// Moves to another generation with a count of its own; what was there.
    fn replace(&self, generation: Generation, count: u64) -> u64 {
        self.0.swap(generation.word(count), Ordering::AcqRel) & COUNT_MASK
    }
}

/// Where and until when a part's spends are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// End of the part on the own clock; a send at or after it fails.
    pub end_ns: u64,
    /// Beginning of the first sub-window.
    pub origin_ns: u64,
    /// Length of a sub-window.
    pub sub_ns: u64,
}

impl Span {
    /// A span on the multiples of `sub_ns` from `phase_ns`, for a part from `now_ns` to `end_ns`.
    pub fn new(now_ns: u64, end_ns: u64, sub_ns: u64, phase_ns: u64) -> Self {
        let sub_ns = sub_ns.max(1);
        // Never let the last slot be passed: a coarser grid only charges a little later.
        let slots = end_ns.saturating_sub(now_ns) / sub_ns + 2;
        let factor = slots.div_ceil(SPEND_SLOTS as u64).max(1);
        let origin_ns = now_ns.saturating_sub(phase_ns % sub_ns);
        Self {
            end_ns,
            origin_ns,
            sub_ns: sub_ns.saturating_mul(factor),
        }
    }

    /// The slot of an instant of the part's life.
    pub fn slot(&self, now_ns: u64) -> usize {
        let slot = now_ns.saturating_sub(self.origin_ns) / self.sub_ns.max(1);
        usize::try_from(slot)
            .unwrap_or(SPEND_SLOTS - 1)
            .min(SPEND_SLOTS - 1)
    }

    /// Last instant of a slot: where what was sent in it is charged, never early.
    pub fn slot_end_ns(&self, slot: usize) -> u64 {
        let slots = slot as u64 + 1;
        self.origin_ns
            .saturating_add(self.sub_ns.saturating_mul(slots))
            .saturating_sub(1)
    }
}

/// Tokens that were sent, and where they are charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// How many.
    pub amount: u64,
    /// The instant of the charge.
    pub at_ns: u64,
    /// When their part ends: the charge may not be in the store before.
    pub part_end_ns: u64,
}

/// Spends of one part by sub-window, oldest first.
pub type Spends = [u64; SPEND_SLOTS];

/// What a part held when it was closed; final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Tokens that nobody had drawn.
    pub rest: u64,
    /// Spends by sub-window.
    pub spends: Spends,
}

/// The place of one part. The workers draw, return and send; the broker opens and closes.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Cell {
    tokens: Word,
    end_ns: AtomicU64,
    origin_ns: AtomicU64,
    sub_ns: AtomicU64,
    spends: [Word; SPEND_SLOTS],
}

/// Parts that one meter can have in the hands of the workers at a time.
pub const CELLS: usize = 8;

/// The places of a meter's parts. They are made with the first part and are none before: most
/// meters of a process rest, and these are the largest part of one.
#[derive(Debug, Default)]
pub struct Cells(OnceLock<Box<[Cell; CELLS]>>);

impl Cells {
    /// All of them, to open one.
    pub fn made(&self) -> &[Cell] {
        &self.0.get_or_init(Box::default)[..]
    }
}

impl Deref for Cells {
    type Target = [Cell];

    fn deref(&self) -> &[Cell] {
        self.0.get().map_or(&[], |cells| &cells[..])
    }
}

impl Cell {
    /// Draws so many tokens: the generation that they belong to, and how many are left in the cell.
    pub fn draw(&self, amount: u64, now_ns: u64) -> Option<(Generation, u64)> {
        let generation = Generation::of(self.tokens.0.load(Ordering::Acquire));
        if now_ns >= self.end_ns.load(Ordering::Acquire) {
            return None;
        }
        let left = self
            .tokens
            .change(generation, |count| count.checked_sub(amount))?;
        Some((generation, left))
    }

    /// Draws up to so many: their generation, and how many they are.
    pub fn draw_some(&self, most: u64, now_ns: u64) -> Option<(Generation, u64)> {
        let generation = Generation::of(self.tokens.0.load(Ordering::Acquire));
        let drawn = self.take_of(generation, most, now_ns);
        (drawn > 0).then_some((generation, drawn))
    }

    /// Takes up to `wanted` tokens out, to be lent; the broker alone does this.
    pub fn take(&self, wanted: u64, now_ns: u64) -> u64 {
        let generation = Generation::of(self.tokens.0.load(Ordering::Acquire));
        self.take_of(generation, wanted, now_ns)
    }

    fn take_of(&self, generation: Generation, wanted: u64, now_ns: u64) -> u64 {
        if now_ns >= self.end_ns.load(Ordering::Acquire) {
            return 0;
        }
        let before = std::cell::Cell::new(0);
        let rest = self.tokens.change(generation, |count| {
            before.set(count);
            Some(count.saturating_sub(wanted))
        });
        rest.map_or(0, |rest| before.get() - rest)
    }

    /// Puts drawn tokens back; nothing happens when their part was closed.
    pub fn put_back(&self, generation: Generation, amount: u64) {
        self.tokens
            .change(generation, |count| count.checked_add(amount));
    }

    /// Whether a drawn token could be sent now.
    pub fn is_open(&self, generation: Generation, now_ns: u64) -> bool {
        now_ns < self.end_ns.load(Ordering::Acquire)
            && Generation::of(self.tokens.0.load(Ordering::Acquire)) == generation
    }

    /// Marks drawn tokens as sent at this instant: where they are charged. `None` when their part
    /// is over.
    pub fn send(&self, generation: Generation, amount: u64, now_ns: u64) -> Option<Charge> {
        // A span of a later part may be read here; then the spend word is of its generation too,
        // since it was moved before the span was written, and the exchange fails.
        let span = self.span();
        if now_ns >= span.end_ns {
            return None;
        }
        let slot = span.slot(now_ns);
        let spend = self.spends.get(slot)?;
        spend.change(generation, |count| count.checked_add(amount))?;
        Some(Charge {
            amount,
            at_ns: span.slot_end_ns(slot),
            part_end_ns: span.end_ns,
        })
    }

    /// Tokens in the cell that can still be drawn.
    pub fn count(&self, now_ns: u64) -> u64 {
        if now_ns >= self.end_ns.load(Ordering::Acquire) {
            0
        } else {
            self.tokens.count()
        }
    }

    /// Tokens in the cell, even of a part that is over and not closed yet.
    pub fn rest(&self) -> u64 {
        self.tokens.count()
    }

    /// Spends so far.
    pub fn spends(&self) -> Spends {
        std::array::from_fn(|slot| self.spends.get(slot).map_or(0, Word::count))
    }

    /// Puts a new part in; the broker alone does this, and only in a closed cell.
    pub fn open(&self, amount: u64, span: Span) {
        let generation = Generation::of(self.tokens.0.load(Ordering::Acquire));
        self.origin_ns.store(span.origin_ns, Ordering::Release);
        self.sub_ns.store(span.sub_ns, Ordering::Release);
        self.end_ns.store(span.end_ns, Ordering::Release);
        self.tokens.replace(generation, amount);
    }

    /// Ends the part: from here nothing of it can be drawn, put back or sent.
    pub fn close(&self) -> Closed {
        let next = Generation::of(self.tokens.0.load(Ordering::Acquire)).next();
        let rest = self.tokens.replace(next, 0);
        let spends = std::array::from_fn(|slot| {
            self.spends
                .get(slot)
                .map_or(0, |spend| spend.replace(next, 0))
        });
        self.end_ns.store(0, Ordering::Release);
        Closed { rest, spends }
    }

    fn span(&self) -> Span {
        Span {
            end_ns: self.end_ns.load(Ordering::Acquire),
            origin_ns: self.origin_ns.load(Ordering::Acquire),
            sub_ns: self.sub_ns.load(Ordering::Acquire),
        }
    }
}
