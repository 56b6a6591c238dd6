//! How many keys a node may write in a second, over all keys together.
//!
//! Each key has a pace of its own; a hundred of them at that pace would be more than a store bears
//! for long. Above the budget keys wait for their write, and blocks grow in size and life until
//! there are fewer of them.
//!
//! The bound is for all nodes together. One that writes more than a little tells the others once a
//! second how much; each may write what they leave, and an equal part in any case.

use std::collections::HashMap;

use super::Broker;
use crate::limits::block::Opener;
use crate::limits::exchange::{Item, Word};

/// Writes that may follow each other at once: as many as fit into a transaction.
const BURST: u64 = 60;
/// The least part of a node, whatever the others write.
const PART_MIN: u64 = 10;
/// This part of what all may write is left for those that write too little to tell it: less than
/// the same part of an equal share each.
const UNTOLD: u64 = 4;
/// So often a node tells what it writes.
const TELL_NS: u64 = 1_000_000_000;
/// What another node has told counts for so long.
const TOLD_NS: u64 = 3_000_000_000;
/// How often it is looked at whether blocks are to grow.
const ROUND_NS: u64 = 500_000_000;
/// Blocks grow by no more than this.
const GROWTH_MAX: u64 = 8;

/// A leaky bucket over all key writes of a node.
#[derive(Debug)]
pub(super) struct Budget {
    per_second: u64,
    interval_ns: u64,
    next_ns: u64,
    round_ns: u64,
    held_back: bool,
    growth: u64,
    /// What an equal part is.
    equal: u64,
    /// Writes since `told_ns`.
    written: u64,
    told_ns: u64,
    /// What other nodes write in a second, and when they told it.
    others: HashMap<Opener, (u64, u64)>,
}

impl Broker {
    /// Tells the others how many keys this node writes, where it is much.
    pub(super) fn tell_writing(&mut self, now_ns: u64) {
        let Some(per_second) = self.budget.told(now_ns) else {
            return;
        };
        for peer in self.roster.linked() {
            let (key, word) = (String::new(), Word::Writing { per_second });
            self.outgoing.push((peer, Item { key, word }));
        }
    }
}

impl Budget {
    /// So many writes a second, of all nodes together.
    pub fn new(per_second: u64) -> Self {
        Self {
            per_second: per_second.max(1),
            interval_ns: 0,
            next_ns: 0,
            round_ns: 0,
            held_back: false,
            growth: 1,
            equal: per_second.max(1),
            written: 0,
            told_ns: 0,
            others: HashMap::new(),
        }
    }

    /// Another node tells what it writes.
    pub fn heard(&mut self, from: Opener, per_second: u64, now_ns: u64) {
        self.others
            .retain(|_, (_, at_ns)| now_ns < at_ns.saturating_add(TOLD_NS));
        self.others.insert(from, (per_second, now_ns));
    }

    /// What is to be told to others now.
    fn told(&mut self, now_ns: u64) -> Option<u64> {
        let passed_ns = now_ns.saturating_sub(self.told_ns);
        if passed_ns < TELL_NS {
            return None;
        }
        let written = u128::from(std::mem::take(&mut self.written)) * u128::from(TELL_NS);
        let per_second = written.div_ceil(u128::from(passed_ns.max(1)));
        self.told_ns = now_ns;
        let per_second = u64::try_from(per_second).unwrap_or(u64::MAX);
        (per_second >= self.equal.div_ceil(UNTOLD)).then_some(per_second)
    }

    /// Takes this node's part, and sees whether blocks are to grow or may shrink again.
    pub fn turn(&mut self, now_ns: u64, nodes: u64) {
        self.equal = (self.per_second / nodes.max(1)).max(PART_MIN.min(self.per_second));
        let told = self.others.values();
        let told = told.filter(|(_, at_ns)| now_ns < at_ns.saturating_add(TOLD_NS));
        let others = told.fold(0, |sum: u64, (n, _)| sum.saturating_add(*n));
        let untold = match nodes {
            0 | 1 => 0,
            _ => self.per_second / UNTOLD,
        };
        let left = self
            .per_second
            .saturating_sub(untold)
            .saturating_sub(others);
        let part = left.max(self.equal);
        self.interval_ns = 1_000_000_000 / part;
        if now_ns >= self.round_ns {
            self.growth = match std::mem::take(&mut self.held_back) {
                true => (self.growth * 2).min(GROWTH_MAX),
                false => (self.growth / 2).max(1),
            };
            self.round_ns = now_ns.saturating_add(ROUND_NS);
        }
    }

    /// When the next key may be written.
    pub fn ready_ns(&self) -> u64 {
        self.next_ns.saturating_sub((BURST - 1) * self.interval_ns)
    }

    /// Counts a write.
    pub fn spend(&mut self, now_ns: u64) {
        self.next_ns = self.next_ns.max(now_ns).saturating_add(self.interval_ns);
        self.written = self.written.saturating_add(1);
    }

    /// A key has to wait for its write.
    pub fn hold_back(&mut self) {
        self.held_back = true;
    }

    /// How many times its usual size and life a block has.
    pub fn growth(&self) -> u64 {
        self.growth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_writes_than_this_nodes_part_and_blocks_grow_while_keys_wait() {
        let mut budget = Budget::new(300);
        let mut writes = Vec::new();
        for now_ms in 0..4_000_u64 {
            let now_ns = now_ms * 1_000_000;
            for other in [2, 3] {
                let other = Opener {
                    node: other,
                    boot: 1,
                };
                budget.heard(other, 100, now_ns);
            }
            budget.turn(now_ns, 3);
            while now_ns >= budget.ready_ns() {
                budget.spend(now_ns);
                writes.push(now_ms);
            }
            budget.hold_back();
        }
        for (at, first) in writes.iter().enumerate() {
            let within = writes[at..]
                .iter()
                .take_while(|ms| **ms < first + 1_000)
                .count();
            assert!(within as u64 <= 100 + BURST, "{within} from {first} ms");
        }
        assert!(writes.len() >= 400, "{}", writes.len());
        assert_eq!(budget.growth(), GROWTH_MAX);
        for round in 0..5 {
            budget.turn(10_000_000_000 * (round + 1), 3);
        }
        assert_eq!(budget.growth(), 1);
    }

    #[test]
    fn a_node_may_write_what_the_others_leave_and_an_equal_part_in_any_case() {
        let mut budget = Budget::new(1_000);
        let part = |budget: &mut Budget, now_ns: u64, nodes: u64| {
            budget.turn(now_ns, nodes);
            1_000_000_000 / budget.interval_ns
        };
        assert_eq!(part(&mut budget, 0, 1), 1_000);
        assert_eq!(part(&mut budget, 0, 100), 750, "nobody else writes much");
        budget.heard(Opener { node: 2, boot: 1 }, 600, 1);
        assert_eq!(part(&mut budget, 1, 100), 150);
        budget.heard(Opener { node: 3, boot: 1 }, 600, 2);
        assert_eq!(part(&mut budget, 2, 100), 10);
        assert_eq!(part(&mut budget, 2, 4), 250);
        assert_eq!(part(&mut budget, TOLD_NS + 9, 100), 750, "they are silent");
    }

    #[test]
    fn what_is_written_is_told_once_a_second_where_it_is_much() {
        let mut budget = Budget::new(1_000);
        budget.turn(0, 10);
        assert_eq!(budget.told(TELL_NS), None);
        (0..24).for_each(|_| budget.spend(TELL_NS));
        assert_eq!(budget.told(2 * TELL_NS), None, "less than a quarter of 100");
        (0..60).for_each(|_| budget.spend(2 * TELL_NS));
        assert_eq!(budget.told(2 * TELL_NS + 9), None);
        assert_eq!(budget.told(4 * TELL_NS), Some(30));
    }
}
