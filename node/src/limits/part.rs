//! The broker's record of a part: a block of ours, or what a peer lent us, the cell that its tokens
//! are in, and who has been lent some of them.

use std::sync::atomic::Ordering;

use super::block::{Block, Opener};
use super::cell::{Cell, Closed, Span, Spends};
use super::exchange::Report;
use super::shared::Stats;
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

/// Where a part comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A block of ours in the store.
    Store,
    /// A peer lent it; it is known by our ask.
    Peer(Opener),
}

/// Tokens of a part that a peer holds.
#[derive(Clone, Debug)]
pub struct Lent {
    /// Who.
    pub to: Opener,
    /// The ask that they answered.
    pub id: u64,
    /// How many.
    pub amount: u64,
    /// Its sub-windows, from our receipt of the ask: never before the peer's own.
    pub span: Span,
    /// What became of them; `None` while the peer has not said.
    pub report: Option<Report>,
}

/// A block that is known to be open, and where its tokens are.
#[derive(Clone, Debug)]
pub struct Part {
    /// The block.
    pub block: Candidate,
    /// Whose block it is.
    pub source: Source,
    /// Index of the cell.
    pub cell: usize,
    /// What the cell held when it was closed; `None` while workers may draw.
    pub closed: Option<Closed>,
    /// What peers have of it.
    pub lent: Vec<Lent>,
}

/// How long after its end a block waits for the reports of those who had some of it.
const REPORTS_NS: u64 = 60_000_000;
/// The same for a part that was borrowed: its own report has to be in time.
const RELAYED_NS: u64 = 30_000_000;

impl Part {
    /// A part whose tokens are all in one cell.
    pub fn new(block: Candidate, source: Source, cell: usize) -> Self {
        Self {
            block,
            source,
            cell,
            closed: None,
            lent: Vec::new(),
        }
    }

    /// Tokens that were not lent.
    pub fn own_amount(&self) -> u64 {
        let lent: u64 = self.lent.iter().map(|lent| lent.amount).sum();
        self.block.amount.saturating_sub(lent)
    }

    /// Spends by sub-window in our own cell, so far or final.
    pub fn spends(&self, cells: &[Cell]) -> Spends {
        match (&self.closed, cells.get(self.cell)) {
            (Some(closed), _) => closed.spends,
            (None, Some(cell)) => cell.spends(),
            (None, None) => Spends::default(),
        }
    }

    /// All known spends of the part with the instants that they are charged at, oldest first.
    pub fn sends(&self, cells: &[Cell]) -> Vec<(u64, u64)> {
        let end_ns = self.block.span.end_ns;
        let at = |span: Span, spends: Spends| {
            let by_slot = spends.into_iter().enumerate();
            by_slot.map(move |(slot, n)| (span.slot_end_ns(slot), n))
        };
        let reported = self.lent.iter().filter_map(|lent| {
            let report = lent.report?;
            // The end of its last sub-window may lie behind the end of its life; no send does.
            let by_end = move |(at_ns, n): (u64, u64)| (at_ns.min(end_ns), n);
            Some(at(lent.span, report.spends).map(by_end))
        });
        let mut sends: Vec<(u64, u64)> = at(self.block.span, self.spends(cells))
            .chain(reported.flatten())
            .filter(|(_, n)| *n > 0)
            .collect();
        sends.sort_unstable();
        sends
    }

    /// Tokens that were drawn or lent: sent, lost, or still in a request.
    pub fn drawn(&self, cells: &[Cell], now_ns: u64) -> u64 {
        let rest = match (&self.closed, cells.get(self.cell)) {
            (Some(closed), _) => closed.rest,
            (None, Some(cell)) => cell.count(now_ns),
            (None, None) => 0,
        };
        self.block.amount.saturating_sub(rest)
    }

    /// Ends it, once: from here nothing of it can be drawn, put back or sent by our workers.
    pub fn close(&mut self, cells: &[Cell]) {
        if self.closed.is_none()
            && let Some(cell) = cells.get(self.cell)
        {
            self.closed = Some(cell.close());
        }
    }

    /// Counts what became of its own tokens, once it is closed.
    pub fn account(&self, stats: &Stats) {
        let Some(closed) = &self.closed else { return };
        let spent = closed
            .spends
            .iter()
            .fold(0, |sum: u64, n| sum.saturating_add(*n));
        let expired = self
            .own_amount()
            .saturating_sub(spent)
            .saturating_sub(closed.rest);
        stats.spent.fetch_add(spent, Ordering::Relaxed);
        stats.returned.fetch_add(closed.rest, Ordering::Relaxed);
        stats.expired.fetch_add(expired, Ordering::Relaxed);
    }

    /// Whether nothing of it can change any more: it is closed, and those who had some of it have
    /// said what became of it, or had their time to.
    pub fn is_final(&self, now_ns: u64) -> bool {
        let waited = now_ns >= self.block.span.end_ns.saturating_add(self.wait_ns());
        let reported = self.lent.iter().all(|lent| lent.report.is_some());
        self.closed.is_some() && (reported || waited)
    }

    /// When [`Part::is_final`] holds at the latest, once it is closed.
    pub fn final_by_ns(&self) -> u64 {
        let reported = self.lent.iter().all(|lent| lent.report.is_some());
        let wait_ns = if reported { 0 } else { self.wait_ns() };
        self.block.span.end_ns.saturating_add(wait_ns)
    }

    fn wait_ns(&self) -> u64 {
        match self.source {
            Source::Store => REPORTS_NS,
            Source::Peer(_) => RELAYED_NS,
        }
    }

    /// Tokens that are known not to have been drawn.
    fn rest(&self) -> u64 {
        let reported = self.lent.iter().filter_map(|lent| lent.report);
        let own = self.closed.as_ref().map_or(0, |closed| closed.rest);
        reported.fold(own, |rest, report| rest.saturating_add(report.rest))
    }

    /// Enters its spends into a state of the moment `now_ns`, each at the instant of its send;
    /// and when it is final takes its block out, charging there what was drawn and never sent, or
    /// lent and never reported.
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
        let sends = self.sends(cells);
        let charges = sends.iter().map(|(at_ns, n)| (at(*at_ns), *n));
        state.settle(opener, id, amount, charges);
        if self.is_final(now_ns) {
            let sent: u64 = sends.iter().map(|(_, n)| n).sum();
            let drawn = amount.saturating_sub(self.rest()).saturating_sub(sent);
            state.close(opener, id, drawn, at(span.end_ns));
        }
    }

    /// What is told of a borrowed part that is final.
    pub fn report(&self, cells: &[Cell]) -> Report {
        let mut spends = Spends::default();
        for (at_ns, n) in self.sends(cells) {
            if let Some(spend) = spends.get_mut(self.block.span.slot(at_ns)) {
                *spend = spend.saturating_add(n);
            }
        }
        Report {
            part: self.block.id,
            spends,
            rest: self.rest(),
        }
    }

    /// Takes the report of a peer; false when it says more than was lent, and is not believed.
    pub fn take_report(&mut self, from: Opener, report: Report) -> bool {
        let mut lent = self.lent.iter_mut();
        let Some(lent) = lent.find(|lent| lent.to == from && lent.id == report.part) else {
            return false;
        };
        let told = report
            .spends
            .iter()
            .fold(report.rest, |sum, n| sum.saturating_add(*n));
        let believed = told <= lent.amount;
        if believed && lent.report.is_none() {
            lent.report = Some(report);
        }
        believed
    }
}
