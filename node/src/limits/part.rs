//! The broker's record of a part: a block of ours and the cell that its tokens are in.

use super::block::{Block, Opener};
use super::cell::{Cell, Closed, Span, Spends};
use super::state::{Instant, State};

/// A block that a write asked for and that is in the store only if the write was carried out.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The block's id.
    pub id: u64,
    /// Its tokens.
    pub amount: u64,
    /// Its life on the own clock, counted from before the write was composed.
    pub span: Span,
    /// A wall-clock second inside its calendar windows.
    pub unix_s: i64,
}

impl Candidate {
    /// The block as it enters a state of the moment `now_ns`.
    pub fn block(&self, opener: Opener, now_ns: u64) -> Block {
        let ends_in_ns = self.span.end_ns.saturating_sub(now_ns);
        Block {
            id: self.id,
            left: self.amount,
            ends_in_ns: i64::try_from(ends_in_ns).unwrap_or(i64::MAX),
            unix_s: self.unix_s,
            opener,
        }
    }
}

/// A block that is known to be open, and where its tokens are.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The block.
    pub block: Candidate,
    /// Index of the cell.
    pub cell: usize,
    /// What the cell held when it was closed; `None` while workers may draw.
    pub closed: Option<Closed>,
}

impl Part {
    /// Spends by sub-window, so far or final.
    pub fn spends(&self, cells: &[Cell]) -> Spends {
        match (&self.closed, cells.get(self.cell)) {
            (Some(closed), _) => closed.spends,
            (None, Some(cell)) => cell.spends(),
            (None, None) => Spends::default(),
        }
    }

    /// Tokens that were drawn: sent, lost, or still in a request.
    pub fn drawn(&self, cells: &[Cell], now_ns: u64) -> u64 {
        let rest = match (&self.closed, cells.get(self.cell)) {
            (Some(closed), _) => closed.rest,
            (None, Some(cell)) => cell.count(now_ns),
            (None, None) => 0,
        };
        self.block.amount.saturating_sub(rest)
    }

    /// Ends it, once: from here nothing of it can be drawn, put back or sent.
    pub fn close(&mut self, cells: &[Cell]) {
        if self.closed.is_none()
            && let Some(cell) = cells.get(self.cell)
        {
            self.closed = Some(cell.close());
        }
    }

    /// Enters its spends into a state of the moment `now_ns`, each at the instant of its send;
    /// and when it is closed takes its block out, charging there what was drawn and never sent.
    pub fn settle(&self, state: &mut State, opener: Opener, cells: &[Cell], now_ns: u64) {
        let Candidate {
            id,
            amount,
            span,
            unix_s,
        } = self.block;
        let at = |instant_ns: u64| Instant {
            age_ns: now_ns.saturating_sub(instant_ns.min(now_ns)),
            unix_s,
        };
        let spends = self.spends(cells);
        let charges = spends
            .iter()
            .enumerate()
            .map(|(slot, n)| (at(span.slot_end_ns(slot)), *n));
        state.settle(opener, id, amount, charges);
        if let Some(closed) = &self.closed {
            let sent: u64 = closed.spends.iter().sum();
            let drawn = amount.saturating_sub(closed.rest).saturating_sub(sent);
            state.close(opener, id, drawn, at(span.end_ns));
        }
    }
}
