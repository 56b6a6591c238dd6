//! How many tokens of a key are wanted, and when they are worth a write.

use proto::meter::Algorithm;

use super::{Base, Charges, Owner, Part, SCARCE, State, grid_ns, life_ns};
use crate::limits::demand::WRITE_INTERVAL_NS;

impl Owner {
    /// Whether one of its limits goes by the calendar.
    pub fn has_calendar(&self) -> bool {
        let mut limits = self.spec.limits().iter();
        limits.any(|limit| limit.algorithm() == Algorithm::FixedWindow)
    }

    /// How many tokens to open a block for: none while nobody asks; enough for one life of the
    /// demand when little is left of what is at hand and a second or more is expected; for a slow
    /// key only on demand, so that a block that came back unused is not taken again.
    pub(super) fn wanted(&self, hungry: bool, waiting: u64, growth: u64, now_ns: u64) -> u64 {
        let most = self.amount_max().max(self.larger(growth, waiting));
        let scarce = self.is_scarce(now_ns);
        let expected = match scarce {
            true => self.demand.expected() / SCARCE,
            false => self.demand.expected().saturating_mul(growth),
        };
        let asked = self.lending.wanted();
        let late_ns = now_ns.saturating_add(life_ns(&self.spec) / 4);
        let lasting: u64 = self
            .parts
            .iter()
            .filter(|part| part.closed.is_none() && part.block.span.end_ns > late_ns)
            .filter_map(|part| self.meter.cells.get(part.cell))
            .map(|cell| cell.count(now_ns))
            .sum();
        let ahead = self.is_steady(expected) && lasting <= expected.min(most) / 2;
        if !hungry && !ahead && asked == 0 {
            return 0;
        }
        // A cold key gets a hundredth of its limit, so that a burst does not cost a trip each.
        let cushion = if scarce { 0 } else { most / 5 };
        expected
            .saturating_add(expected / 4)
            .max(waiting.saturating_add(asked))
            .max(cushion)
            .max(1)
            .min(most)
    }

    /// Whether so many tokens are those of two requests at least.
    pub(super) fn is_steady(&self, expected: u64) -> bool {
        expected >= self.meter.estimate().saturating_mul(2)
    }

    /// What requests set aside that wait now, here and on peers: a block may have to be as large.
    pub(super) fn at_once(&self, waiting: u64) -> u64 {
        match self.spec.estimate() {
            Some(_) => waiting.saturating_add(self.lending.wanted()),
            None => 0,
        }
    }

    /// What a block may hold beyond its usual size: it has grown, or many set aside at once.
    pub(super) fn larger(&self, growth: u64, waiting: u64) -> u64 {
        let at_once = self.at_once(waiting);
        match growth {
            1 => at_once,
            growth => self.amount_max().saturating_mul(growth).max(at_once),
        }
    }

    /// Takes the tokens of its blocks out of the workers' hands, where answers are corrected;
    /// whether there were any.
    pub(super) fn take_back(&mut self) -> bool {
        let cells = &self.meter.cells;
        let live = self.parts.iter_mut().filter(|part| part.closed.is_none());
        let live = live.filter(|_| self.spec.estimate().is_some());
        live.map(|part| part.close(cells)).count() > 0
    }

    /// Tokens that are on their way, or may be. An owner that gave all that it had, and that was
    /// less than was wanted, is taken to have about as much again.
    pub(super) fn coming(&self) -> u64 {
        if self.borrowing.is_asking() {
            return self.borrowing.short.unwrap_or(u64::MAX);
        }
        let amounts = self.candidates.iter().map(|candidate| candidate.amount);
        amounts.fold(0, u64::saturating_add)
    }

    /// Whether something was sent that a bucket has not been told of: it does not fill before.
    pub(super) fn owes_bucket(&self) -> bool {
        let mut limits = self.spec.limits().iter();
        let Base::Held { state, .. } = &self.base else {
            return false;
        };
        let untold = |part: &Part| {
            let block = state
                .open
                .iter()
                .find(|b| b.is(self.place.me, part.block.id));
            let told = block.map_or(0, |block| part.block.amount.saturating_sub(block.left));
            let sent = part.sends(&self.meter.cells);
            block.is_some() && sent.iter().map(|(_, n)| n).sum::<u64>() > told
        };
        limits.any(|limit| limit.algorithm() == Algorithm::TokenBucket) && self.stored().any(untold)
    }

    /// At the limit of a second, the next border of a sub-window when it is worth waiting for:
    /// the tokens that come then need no write of their own, and those between two borders wait
    /// for one half as long on the mean.
    pub(super) fn border_ns(&self, next: &State, wanted: u64, now_ns: u64) -> Option<u64> {
        let sub_ns = grid_ns(&self.spec);
        if sub_ns > WRITE_INTERVAL_NS || next.free() == 0 || next.free() >= wanted {
            return None;
        }
        let rings = next.limits.iter().filter_map(|usage| match &usage.charges {
            Charges::Sliding(ring) => Some((usage.window, ring)),
            Charges::Fixed(_) | Charges::Bucket(_) => None,
        });
        let (_, ring) = rings.min_by_key(|(window, _)| *window)?;
        let to_border_ns = sub_ns.saturating_sub(ring.phase_ns);
        let leaves_ns = ring.leaving(sub_ns).next().map(|(in_ns, _)| in_ns);
        let worth = ring.phase_ns >= sub_ns / 4 && leaves_ns == Some(to_border_ns);
        worth.then(|| now_ns.saturating_add(to_border_ns))
    }
}
