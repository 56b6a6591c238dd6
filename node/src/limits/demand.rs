//! How much a key is asked for, and how often it may write: what sizes and paces its blocks.

/// Shortest mean distance of writes of one key: 30 a second, two sub-windows of a second's ring, so
/// that at the limit every second border can be met exactly.
pub const WRITE_INTERVAL_NS: u64 = 33_333_334;

/// Writes that may follow each other at once: what one write was late, the next may make up for.
const WRITE_BURST: u64 = 2;

/// Requests per block life, counted or refused, from a running total.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand {
    since_ns: u64,
    total_before: u64,
    total: u64,
    last: u64,
}

impl Demand {
    /// Takes the running total at an instant.
    pub fn note(&mut self, now_ns: u64, total: u64, life_ns: u64) {
        self.total = self.total.max(total);
        let passed_ns = now_ns.saturating_sub(self.since_ns);
        if passed_ns >= life_ns {
            let seen = u128::from(self.total - self.total_before);
            let per_life = seen * u128::from(life_ns) / u128::from(passed_ns.max(1));
            self.last = u64::try_from(per_life).unwrap_or(u64::MAX);
            self.since_ns = now_ns;
            self.total_before = self.total;
        }
    }

    /// Requests to expect during one block life.
    pub fn expected(&self) -> u64 {
        self.last.max(self.total - self.total_before)
    }
}

/// A leaky bucket over the writes of one key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    next_ns: u64,
}

impl Pace {
    /// When the next write may be made.
    pub fn ready_ns(&self) -> u64 {
        self.next_ns
            .saturating_sub((WRITE_BURST - 1) * WRITE_INTERVAL_NS)
    }

    /// Counts a write.
    pub fn spend(&mut self, now_ns: u64) {
        self.next_ns = self.next_ns.max(now_ns).saturating_add(WRITE_INTERVAL_NS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn thirty_writes_fit_into_a_second_and_one_that_was_late() {
        let mut pace = Pace::default();
        let mut writes = Vec::new();
        for now_ms in 0..5_000 {
            if now_ms * MS >= pace.ready_ns() {
                pace.spend(now_ms * MS);
                writes.push(now_ms);
            }
        }
        for (at, first) in writes.iter().enumerate() {
            let within = writes
                .iter()
                .skip(at)
                .take_while(|ms| **ms < first + 1_000)
                .count();
            assert!(within <= 31, "{within} from {first} ms");
        }
        assert!((149..=151).contains(&writes.len()), "{}", writes.len());
    }

    #[test]
    fn demand_is_what_came_in_the_last_life_or_in_this_one() {
        let mut demand = Demand::default();
        demand.note(0, 0, 200 * MS);
        demand.note(100 * MS, 30, 200 * MS);
        assert_eq!(demand.expected(), 30);
        demand.note(400 * MS, 40, 200 * MS);
        assert_eq!(demand.expected(), 20);
        demand.note(10_400 * MS, 40, 200 * MS);
        assert_eq!(demand.expected(), 0);
        demand.note(10_500 * MS, 10, 200 * MS); // a token that came back
        assert_eq!(demand.expected(), 0);
    }
}
