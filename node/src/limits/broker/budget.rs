//! How many keys a node may write in a second, over all keys together.
//!
//! Each key has a pace of its own; a hundred of them at that pace would be more than a store bears
//! for long. Above the budget keys wait for their write, and blocks grow in size and life until
//! there are fewer of them.

/// Writes that may follow each other at once: as many as fit into a transaction.
const BURST: u64 = 60;
/// The least part of a node: two keys at their own pace. More would wait where one node of many
/// owns the only hot key.
const PART_MIN: u64 = 60;
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
        }
    }

    /// Takes this node's part, and sees whether blocks are to grow or may shrink again.
    pub fn turn(&mut self, now_ns: u64, nodes: u64) {
        let part = (self.per_second / nodes.max(1)).max(PART_MIN.min(self.per_second));
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
}
