//! What a key gives while neither a token nor the store is at hand: `local_share`.
//!
//! From `store_grace` after the last token a node may give, per window, its share of what was
//! unused when it last saw the state: ⌊(limit − used as last seen) / nodes last known⌋. These
//! tokens are given *on credit*: they are kept in a state of their own with the same windows, and
//! entered into the store's state, once, before anything else is taken from it. With one node
//! that keeps the limit. With several, in the window of the loss, up to limit × (2 − 1/nodes) may
//! pass in all, since views differ in age; from the next window on the limit holds. What a crash
//! forgets of it comes on top. Who needs the limit always, says `fail_closed`.

use super::block::Opener;
use super::cell::Cell;
use super::part::{Candidate, Part};
use super::state::{OPEN_MAX, State};
use super::without::Alone;

/// Credits that the store may or may not have yet; one more gives nothing.
pub const CREDITS_MAX: usize = 4;

/// Whether the store is missed, and what was given on credit since.
#[derive(Debug, Default)]
pub struct Loss {
    dry_since_ns: Option<u64>,
    /// A further grace begins no later: a write has failed for which somebody waited.
    begins_by_ns: Option<u64>,
    lost: bool,
    /// It was lost when it was asked again, and has not answered that yet: there is no new grace.
    resumes: bool,
    /// Until when the time without the store was counted.
    counted_ns: u64,
    /// Oldest first. A store that goes again before it told whether a credit was entered leaves
    /// that one as it is, and another begins; only the last one may still be added to.
    credits: Vec<Credit>,
    /// While it is known that this key goes without the store.
    pub(super) told: Option<Alone>,
}

/// Most of the time between two looks that counts as one without the store.
const COUNTED_NS_MAX: u64 = 1_000_000_000;

/// Tokens given without the store.
#[derive(Debug)]
struct Credit {
    /// Block id that marks a state which this credit has been entered into.
    id: u64,
    /// Charges and open parts of the credit alone, as of `at_ns`.
    state: State,
    at_ns: u64,
    parts: Vec<Part>,
    entry: Entry,
}

/// Whether a write that enters a credit may have been carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// None was: more may be added under its id.
    None,
    /// One is on its way.
    Sent,
    /// One has failed, and the store may have it or not: nothing more may be added.
    Unknown,
}

impl Loss {
    /// Notes whether tokens are missed: `hungry` when somebody asks and none is at hand. Gives the
    /// time for which the store was silent since the last look, in nanoseconds.
    pub fn note(&mut self, now_ns: u64, hungry: bool, in_hand: u64, grace_ns: u64) -> u64 {
        let since_ns = now_ns.saturating_sub(self.counted_ns);
        self.counted_ns = now_ns;
        // Nobody looks at a key for long that nobody asks for.
        let lost_ns = if self.lost {
            since_ns.min(COUNTED_NS_MAX)
        } else {
            0
        };
        if hungry {
            let since_ns = *self.dry_since_ns.get_or_insert(now_ns);
            self.lost |= now_ns.saturating_sub(since_ns) >= grace_ns;
        } else if in_hand > 0 {
            self.dry_since_ns = None;
        }
        lost_ns
    }

    /// Since when tokens are missed.
    pub fn dry_since_ns(&self) -> Option<u64> {
        self.dry_since_ns
    }

    /// Whether the grace is over and the store still silent.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The store answered for this key.
    pub fn answered(&mut self) {
        self.dry_since_ns = None;
        self.begins_by_ns = None;
        self.lost = false;
        self.resumes = false;
    }

    /// A write failed, of which nobody knows whether it was carried out. Where the meter `shares`
    /// without the store, callers do not wait longer than one grace and a half, however often the
    /// store seems to be back meanwhile.
    pub fn failed(&mut self, shares: bool, grace_ns: u64) {
        for credit in &mut self.credits {
            if credit.entry == Entry::Sent {
                credit.entry = Entry::Unknown;
            }
        }
        if shares {
            let by_ns = |since_ns: u64| since_ns.saturating_add(grace_ns / 2);
            self.begins_by_ns = self.begins_by_ns.or(self.dry_since_ns.map(by_ns));
        }
    }

    /// Its turn is over and has brought nothing: a meter that `shares` goes on as before it, and
    /// where it was lost then, nobody waits for a grace again.
    pub fn goes_on(&mut self, shares: bool) {
        self.not_entered();
        if shares {
            self.lost |= std::mem::take(&mut self.resumes);
        }
    }

    /// Another node was faster: the write was not carried out. Where many write at once because the
    /// store has come back, who waits has waited since then, also when it is asked again; and who
    /// went without it goes on so until its next turn.
    pub fn beaten(&mut self, returning: bool) {
        let since_ns = self.dry_since_ns;
        self.goes_on(returning);
        let lost = self.lost;
        self.answered();
        if returning {
            self.lost = lost;
            (self.dry_since_ns, self.begins_by_ns) = (since_ns, since_ns);
        }
    }

    /// The store can be asked again: nothing more is given on credit, and who is without a token
    /// now has a new grace.
    pub fn over(&mut self, cells: &[Cell], me: Opener, now_ns: u64, hungry: bool) {
        self.resumes |= std::mem::take(&mut self.lost);
        let begins_ns = now_ns.min(self.begins_by_ns.unwrap_or(now_ns));
        self.dry_since_ns = hungry.then_some(begins_ns);
        self.begins_by_ns = self.begins_by_ns.filter(|_| hungry);
        for credit in &mut self.credits {
            credit.parts.iter_mut().for_each(|part| part.close(cells));
            credit.settle(cells, me, now_ns);
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.credits.iter().flat_map(|credit| &credit.parts)
    }

    /// Whether one of its parts is in this cell.
    pub fn uses(&self, cell: usize) -> bool {
        self.parts()
            .any(|part| part.closed.is_none() && part.cell == cell)
    }

    /// When its next part ends.
    pub fn ends_ns(&self) -> Option<u64> {
        self.parts().map(|part| part.block.span.end_ns).min()
    }

    /// Closes parts that are over and charges what they sent to the credit.
    pub fn close_finished(&mut self, cells: &[Cell], me: Opener, now_ns: u64) {
        for credit in &mut self.credits {
            for part in &mut credit.parts {
                let sent: u64 = part.spends(cells).iter().sum();
                if now_ns >= part.block.span.end_ns || sent >= part.block.amount {
                    part.close(cells);
                }
            }
            credit.settle(cells, me, now_ns);
        }
    }

    /// This node's share, with what it has given of it: `seen` is the state as last seen, moved to
    /// `now_ns`, with our spends entered and `uncertain` more tokens that may be open in the store.
    /// What a new credit begins with gets `id`. `None`: it may owe no more.
    pub fn share(
        &mut self,
        seen: &State,
        uncertain: u64,
        nodes: u64,
        id: u64,
        now_ns: u64,
    ) -> Option<State> {
        if self.credits.last().is_none_or(Credit::is_sealed) {
            if self.credits.len() >= CREDITS_MAX {
                return None;
            }
            self.credits.push(Credit::new(seen, id, now_ns));
        }
        let mut share = Credit::new(seen, id, now_ns).state;
        for credit in &self.credits {
            // A limit that came with a newer configuration has no credit state yet.
            if credit.state.limits.len() < seen.limits.len() {
                return None;
            }
            share.merge_charges(&credit.state);
            share.open.extend(credit.state.open.iter().cloned());
        }
        let open = seen.open_left().saturating_add(uncertain);
        for (usage, seen) in share.limits.iter_mut().zip(&seen.limits) {
            let used = seen.used().saturating_add(open);
            usage.limit = seen.limit.saturating_sub(used) / nodes.max(1);
        }
        Some(share)
    }

    /// Lets go of the credits of which nothing counts in any window any more. One whose write was
    /// tried stays until the store tells of it.
    pub fn forget_passed(&mut self, now_ns: u64, unix_s: i64, me: Opener) {
        if self.credits.is_empty() {
            return;
        }
        self.pass(now_ns, unix_s, me);
        let counts = |credit: &Credit| {
            credit.is_sealed() || !credit.parts.is_empty() || !credit.state.is_idle()
        };
        self.credits.retain(counts);
    }

    /// Moves the credits' own windows on.
    pub fn pass(&mut self, now_ns: u64, unix_s: i64, me: Opener) {
        for credit in &mut self.credits {
            let elapsed_ns = now_ns.saturating_sub(credit.at_ns);
            credit.state.pass(elapsed_ns, unix_s, me);
            credit.at_ns = now_ns;
        }
    }

    /// Adds a part whose tokens are in a cell already.
    pub fn add(&mut self, part: Part, me: Opener, now_ns: u64) {
        if let Some(credit) = self.credits.last_mut() {
            credit.state.open.push(part.block.block(me, now_ns));
            credit.parts.push(part);
        }
    }

    /// Enters the credits into a state that is about to be written, each with the mark that tells
    /// whether it has been; true when there was one to enter.
    pub fn enter(&mut self, state: &mut State, me: Opener, now_ns: u64, mark_ns: u64) -> bool {
        let mut entered = false;
        for credit in &mut self.credits {
            // Without a place for its mark it waits: no block is opened in such a state either.
            if state.open.len() >= OPEN_MAX {
                break;
            }
            entered = true;
            if credit.entry == Entry::None {
                credit.entry = Entry::Sent;
            }
            state.merge_charges(&credit.state);
            let end_ns = now_ns.saturating_add(mark_ns);
            let mark = Candidate {
                id: credit.id,
                amount: 0,
                span: super::cell::Span::new(now_ns, end_ns, mark_ns, 0),
                unix_s: 0,
            };
            state.open.push(mark.block(me, now_ns));
        }
        entered
    }

    /// What was entered last into a state is not in the store.
    pub fn not_entered(&mut self) {
        for credit in &mut self.credits {
            if credit.entry == Entry::Sent {
                credit.entry = Entry::None;
            }
        }
    }

    /// Lets go of the credits that a state from the store has in it.
    pub fn forget_entered(&mut self, state: &State, me: Opener) {
        self.credits.retain(|credit| !state.has(me, credit.id));
    }

    /// Whether there is a credit that the store does not know.
    pub fn has_credit(&self) -> bool {
        !self.credits.is_empty()
    }
}

impl Credit {
    fn new(seen: &State, id: u64, now_ns: u64) -> Self {
        Self {
            id,
            state: State {
                version: seen.version,
                limits: seen.limits.iter().map(|usage| usage.unused()).collect(),
                open: Vec::new(),
                folded: Vec::new(),
            },
            at_ns: now_ns,
            parts: Vec::new(),
            entry: Entry::None,
        }
    }

    /// Whether nothing more may be added to it: the store may have it.
    fn is_sealed(&self) -> bool {
        self.entry != Entry::None
    }

    /// Charges closed parts and lets them go.
    fn settle(&mut self, cells: &[Cell], me: Opener, now_ns: u64) {
        if self.parts.iter().all(|part| part.closed.is_none()) {
            return;
        }
        let elapsed_ns = now_ns.saturating_sub(self.at_ns);
        self.state.pass(
            elapsed_ns,
            self.parts.first().map_or(0, |p| p.block.unix_s),
            me,
        );
        self.at_ns = now_ns;
        for part in self.parts.iter().filter(|part| part.closed.is_some()) {
            part.settle(&mut self.state, me, cells, now_ns);
        }
        self.parts.retain(|part| part.closed.is_none());
    }
}
