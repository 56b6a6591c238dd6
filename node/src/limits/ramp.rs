//! How many calls go to the store while it is away, and after it has come back. Pure.
//!
//! All that could not be written meanwhile is due at that moment, on every node at once, and a
//! store that has only just come back would go down under it. So a node begins with what it asked
//! in a second before, asks at most twice that while something waits, and only where that is not
//! enough doubles it every second. In any second it is no more than twice the steady calls and ten.

use crate::splitmix;

const SECOND_NS: u64 = 1_000_000_000;
/// A store that was away no longer than this has left little behind.
const SHORT_NS: u64 = SECOND_NS;
/// Calls that may follow each other at once.
const BURST: u64 = 3;
/// Calls a second beyond the steady ones, in the first second.
const FIRST: u64 = 2;
/// The same from the second one on.
const LATER: u64 = 5;
/// From here on it is no bound.
const FREE: u64 = 1_000;
/// While the store is away a call is made so often, to find out when it is back.
const AWAY_NS: u64 = 200_000_000;

/// The calls of a process to its store.
#[derive(Debug)]
pub struct Ramp {
    course: Course,
    /// So many seconds no more than twice the steady calls are made.
    even_s: u64,
    /// Calls in a second while all was well, of late.
    steady: u64,
    /// Calls since `second_ns`.
    count: u64,
    second_ns: u64,
    /// When the next one is due, all before it evenly spread.
    next_ns: u64,
}

#[derive(Clone, Copy, Debug)]
enum Course {
    /// All is well.
    Steady,
    /// The store does not answer.
    Away {
        since_ns: u64,
        /// When it was last seen not to: who asks nothing does not know how long it is away.
        last_ns: u64,
    },
    /// It answers again.
    Back {
        lost_ns: u64,
        since_ns: u64,
        /// When something last waited for its call.
        waited_ns: u64,
    },
}

impl Ramp {
    /// Of a process that makes no more than twice its steady calls in the first `even_s` seconds:
    /// as long as what has been left behind takes at that rate.
    pub fn new(even_s: u64) -> Self {
        Self {
            course: Course::Steady,
            even_s,
            steady: 0,
            count: 0,
            second_ns: 0,
            next_ns: 0,
        }
    }

    /// A call was sent.
    pub fn called(&mut self, now_ns: u64) {
        if matches!(self.course, Course::Steady) {
            self.count_steady(now_ns);
        } else {
            self.next_ns = self
                .next_ns
                .max(now_ns)
                .saturating_add(self.interval_ns(now_ns));
        }
    }

    /// A call has failed: the store is away.
    pub fn lost(&mut self, now_ns: u64) {
        let since_ns = match self.course {
            Course::Steady => now_ns,
            Course::Away { since_ns, .. } => since_ns,
            // What it left behind has not been written yet.
            Course::Back { lost_ns, .. } => lost_ns,
        };
        self.steady = self.steady.max(self.count);
        self.course = Course::Away {
            since_ns,
            last_ns: now_ns,
        };
    }

    /// The store has answered.
    pub fn answered(&mut self, now_ns: u64) {
        let Course::Away {
            since_ns: lost_ns,
            last_ns,
        } = self.course
        else {
            return;
        };
        let is_short = last_ns.saturating_sub(lost_ns) < SHORT_NS;
        (self.count, self.second_ns, self.next_ns) = (0, now_ns, now_ns);
        self.course = match is_short {
            true => Course::Steady,
            false => Course::Back {
                lost_ns,
                since_ns: now_ns,
                waited_ns: now_ns,
            },
        };
    }

    /// Something waits for its call.
    pub fn hold_back(&mut self, now_ns: u64) {
        if let Course::Back { waited_ns, .. } = &mut self.course {
            *waited_ns = now_ns;
        }
    }

    /// Whether fewer calls are made than are due.
    pub fn is_steep(&self) -> bool {
        !matches!(self.course, Course::Steady)
    }

    /// How many calls may be made at this instant, of `most`.
    pub fn room(&mut self, now_ns: u64, most: usize) -> usize {
        let ready_ns = self.ready_ns(now_ns);
        if now_ns < ready_ns {
            return 0;
        }
        if matches!(self.course, Course::Steady) {
            return most;
        }
        let more = (now_ns - ready_ns) / self.interval_ns(now_ns).max(1);
        let burst = self.burst().min(more.saturating_add(1));
        most.min(usize::try_from(burst).unwrap_or(usize::MAX))
    }

    /// When the next call may be made; what is past means at once.
    pub fn ready_ns(&mut self, now_ns: u64) -> u64 {
        self.end_when_over(now_ns);
        match self.course {
            Course::Steady => 0,
            _ => {
                let before = self.burst().saturating_sub(1);
                let before_ns = before.saturating_mul(self.interval_ns(now_ns));
                self.next_ns.saturating_sub(before_ns)
            }
        }
    }

    fn burst(&self) -> u64 {
        match self.course {
            Course::Away { .. } => 1,
            _ => BURST,
        }
    }

    fn interval_ns(&self, now_ns: u64) -> u64 {
        match self.course {
            Course::Steady => 0,
            Course::Away { .. } => AWAY_NS,
            Course::Back { since_ns, .. } => SECOND_NS / self.per_second(since_ns, now_ns).max(1),
        }
    }

    /// Calls in a second, by how long the store has been back.
    fn per_second(&self, since_ns: u64, now_ns: u64) -> u64 {
        let twice = self.steady.saturating_mul(2).saturating_add(LATER);
        match now_ns.saturating_sub(since_ns) / SECOND_NS {
            0 => self.steady.saturating_add(FIRST),
            second if second < self.even_s => twice,
            second => {
                let doubled = second.saturating_sub(self.even_s).saturating_add(1);
                let doubled = u32::try_from(doubled).unwrap_or(u32::MAX);
                twice.saturating_mul(1_u64.checked_shl(doubled).unwrap_or(u64::MAX))
            }
        }
    }

    fn end_when_over(&mut self, now_ns: u64) {
        let Course::Back {
            since_ns,
            waited_ns,
            ..
        } = self.course
        else {
            return;
        };
        let first_is_over = now_ns.saturating_sub(since_ns) >= SECOND_NS;
        let none_waits = now_ns.saturating_sub(waited_ns) >= SECOND_NS;
        if (first_is_over && none_waits) || self.per_second(since_ns, now_ns) >= FREE {
            self.course = Course::Steady;
            (self.count, self.second_ns) = (0, now_ns);
        }
    }

    /// The most of the last seconds, of which older ones count less and less.
    fn count_steady(&mut self, now_ns: u64) {
        let seconds = now_ns.saturating_sub(self.second_ns) / SECOND_NS;
        if seconds > 0 {
            for _ in 0..seconds.min(16) {
                self.steady -= self.steady.div_ceil(4);
            }
            self.steady = self.steady.max(self.count);
            (self.count, self.second_ns) = (0, now_ns);
        }
        self.count += 1;
    }
}

/// A time below `whole_ns` that is another one for each `seed`, so that processes that failed
/// together do not come back together.
pub fn spread_ns(seed: u64, whole_ns: u64) -> u64 {
    splitmix::after(seed) % whole_ns.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Makes as many calls as it may of those that are due, each millisecond; when they were made.
    fn run(ramp: &mut Ramp, (from_ms, to_ms): (u64, u64), due: impl Fn(u64) -> usize) -> Vec<u64> {
        let (mut waiting, mut made) = (0, Vec::new());
        for ms in from_ms..to_ms {
            waiting += due(ms);
            let room = ramp.room(ms * MS, 8).min(waiting);
            waiting -= room;
            (0..room).for_each(|_| ramp.called(ms * MS));
            made.extend((0..room).map(|_| ms));
            if waiting > 0 {
                ramp.hold_back(ms * MS);
            }
        }
        made
    }

    /// The most in any second.
    fn fullest(made: &[u64]) -> usize {
        let within = |at: usize| {
            let end = made[at] + 1_000;
            made[at..].iter().take_while(|ms| **ms < end).count()
        };
        (0..made.len()).map(within).max().unwrap_or(0)
    }

    #[test]
    fn a_store_that_comes_back_is_asked_at_most_twice_as_much_and_ten_in_any_second() {
        for steady in [0_u64, 1, 25, 200] {
            let mut ramp = Ramp::new(3);
            let evenly =
                |ms: u64| usize::from(steady > 0 && ms.is_multiple_of(1_000 / steady.max(1)));
            run(&mut ramp, (0, 5_000), evenly);
            ramp.lost(5_000 * MS);
            ramp.lost(64_000 * MS);
            ramp.answered(65_000 * MS);
            // What a minute has left behind, and what goes on.
            let left = |ms: u64| {
                if ms == 65_000 {
                    2 * steady as usize + 12
                } else {
                    evenly(ms)
                }
            };
            let made = run(&mut ramp, (65_000, 75_000), left);
            let most = 2 * steady as usize + 10;
            assert!(fullest(&made) <= most, "{steady}: {}", fullest(&made));
            let all = (65_000..75_000).map(left).sum::<usize>();
            assert_eq!(made.len(), all, "{steady}: all of it is made");
            assert!(matches!(ramp.course, Course::Steady), "{steady}");
        }
    }

    #[test]
    fn where_more_is_due_for_long_it_becomes_more_every_second() {
        let mut ramp = Ramp::new(5);
        ramp.lost(0);
        ramp.lost(1_900 * MS);
        ramp.answered(2_000 * MS);
        let made = run(&mut ramp, (2_000, 20_000), |_| 1);
        let of_second = |second: u64| {
            let ms = second * 1_000..(second + 1) * 1_000;
            made.iter().filter(|at| ms.contains(at)).count()
        };
        assert!(of_second(2) <= 5 && of_second(3) <= 8, "{}", of_second(3));
        assert!(of_second(8) > of_second(7) && of_second(9) > of_second(8));
        assert_eq!(of_second(18), 1_000, "nothing waits for long");
    }

    #[test]
    fn a_short_loss_changes_nothing_and_one_that_goes_on_counts_as_a_whole() {
        let mut ramp = Ramp::new(5);
        ramp.lost(0);
        assert_eq!(ramp.room(MS, 8), 1);
        ramp.called(MS);
        assert_eq!(ramp.room(2 * MS, 8), 0, "one call finds out");
        assert_eq!(ramp.room(MS + AWAY_NS, 8), 1);
        ramp.answered(300 * MS);
        assert_eq!(ramp.room(300 * MS, 8), 8);
        ramp.lost(1_000 * MS);
        ramp.lost(2_400 * MS);
        ramp.answered(2_500 * MS);
        assert_eq!(ramp.room(2_500 * MS, 8), 3);
        ramp.lost(2_600 * MS);
        ramp.answered(2_700 * MS);
        assert_eq!(ramp.room(2_700 * MS, 8), 3, "it has been away for long");
    }

    #[test]
    fn one_failed_call_is_a_short_loss_however_late_the_next_one_is() {
        let mut ramp = Ramp::new(5);
        ramp.lost(0);
        ramp.answered(7_200_000 * MS);
        assert!(matches!(ramp.course, Course::Steady));
        assert_eq!(ramp.room(7_200_000 * MS, 8), 8);
    }

    #[test]
    fn times_are_spread_over_the_whole() {
        let whole = 1_000 * MS;
        let parts: Vec<u64> = (0..1_000)
            .map(|n| spread_ns(n, whole) / (100 * MS))
            .collect();
        for part in 0..10 {
            let n = parts.iter().filter(|at| **at == part).count();
            assert!((50..=150).contains(&n), "{n} of 1,000 in part {part}");
        }
        assert_eq!(spread_ns(7, 0), 0);
    }
}
