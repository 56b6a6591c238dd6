//! The judge of a simulation: true instants of all sends, against the limits.

use std::collections::{HashMap, VecDeque};

use proto::meter::{Algorithm, Limit, Window};

use super::simulation::SECOND;
use crate::limits::window::calendar_window;

/// Knows every send of every node on one clock.
#[derive(Debug)]
pub struct Judge {
    /// (instant, amount), newest last; as old as the longest sliding window.
    sent: VecDeque<(u64, u64)>,
    /// Number of the first of them.
    first: u64,
    sliding: Vec<Sliding>,
    edge_ns: u64,
    calendar: Vec<Days>,
    buckets: Vec<Bucket>,
}

/// What is owed to a bucket.
#[derive(Debug)]
struct Bucket {
    limit: Limit,
    /// Tokens that the time since has not given back, times the window's nanoseconds.
    owed: u128,
    at_ns: u64,
}

/// What was sent in calendar windows.
#[derive(Debug)]
struct Days {
    limit: u64,
    window: Window,
    /// By window, without what was sent near its edges.
    within: HashMap<i64, u64>,
    /// By window, what was sent near its beginning: of this one or the one before.
    at_edge: HashMap<i64, u64>,
}

/// What stands in one sliding window.
#[derive(Debug)]
struct Sliding {
    limit: u64,
    window: Window,
    /// Number of the first send in it.
    from: u64,
    sum: u64,
}

impl Judge {
    /// `edge_ns`: so near to the edge of a calendar window a send may count for either.
    pub fn new(limits: &[Limit], edge_ns: u64) -> Self {
        let of = |algorithm| limits.iter().filter(move |l| l.algorithm() == algorithm);
        let sliding = |limit: &Limit| Sliding {
            limit: limit.limit(),
            window: limit.window(),
            from: 0,
            sum: 0,
        };
        let days = |limit: &Limit| Days {
            limit: limit.limit(),
            window: limit.window(),
            within: HashMap::new(),
            at_edge: HashMap::new(),
        };
        Self {
            sent: VecDeque::new(),
            first: 0,
            sliding: of(Algorithm::SlidingWindow).map(sliding).collect(),
            calendar: of(Algorithm::FixedWindow).map(days).collect(),
            buckets: of(Algorithm::TokenBucket).map(Bucket::new).collect(),
            edge_ns,
        }
    }

    /// A send at a true instant: `unix_ns` is the true wall clock. Its number.
    pub fn sent(&mut self, now_ns: u64, unix_ns: u64, amount: u64) -> Result<u64, String> {
        let number = self.first + self.sent.len() as u64;
        self.sent.push_back((now_ns, amount));
        self.sliding
            .iter_mut()
            .for_each(|sliding| sliding.sum += amount);
        for days in &mut self.calendar {
            days.sent(unix_ns, self.edge_ns, amount)?;
        }
        for bucket in &mut self.buckets {
            bucket.sent(now_ns, amount)?;
        }
        self.check(now_ns, unix_ns, 0)?;
        Ok(number)
    }

    /// A send has cost less than was set aside for it: from now on only that counts.
    pub fn cost(&mut self, number: u64, actual: u64) {
        let at = number.checked_sub(self.first).map(|at| at as usize);
        let Some((_, amount)) = at.and_then(|at| self.sent.get_mut(at)) else {
            return;
        };
        let less = amount.saturating_sub(actual);
        *amount -= less;
        for sliding in &mut self.sliding {
            if sliding.from <= number {
                sliding.sum -= less;
            }
        }
    }

    /// In the closed interval of the window's length that ends now, in the calendar window that it
    /// is, and since any instant of a bucket: what was sent, and what could be sent at this very
    /// instant, stays within the limit.
    pub fn check(&mut self, now_ns: u64, unix_ns: u64, sendable: u64) -> Result<(), String> {
        for days in &self.calendar {
            days.check(unix_ns, self.edge_ns, sendable)?;
        }
        for bucket in &self.buckets {
            bucket.check(now_ns, sendable)?;
        }
        let mut needed = self.first + self.sent.len() as u64;
        for sliding in &mut self.sliding {
            let from_ns = now_ns.saturating_sub(sliding.window.width_ns());
            while let Some((at_ns, amount)) = self.sent.get((sliding.from - self.first) as usize)
                && *at_ns < from_ns
            {
                sliding.sum -= amount;
                sliding.from += 1;
            }
            needed = needed.min(sliding.from);
            if sliding.sum + sendable > sliding.limit {
                return Err(format!(
                    "{} sent and {sendable} at hand within one {} of {} at {now_ns} ns",
                    sliding.sum, sliding.window, sliding.limit
                ));
            }
        }
        while self.first < needed {
            self.sent.pop_front();
            self.first += 1;
        }
        Ok(())
    }
}

impl Bucket {
    fn new(limit: &Limit) -> Self {
        Self {
            limit: *limit,
            owed: 0,
            at_ns: 0,
        }
    }

    fn sent(&mut self, now_ns: u64, amount: u64) -> Result<(), String> {
        let cost = u128::from(amount) * u128::from(self.limit.window().width_ns());
        self.owed = self.owed_at(now_ns) + cost;
        self.at_ns = now_ns;
        self.check(now_ns, 0)
    }

    fn owed_at(&self, now_ns: u64) -> u128 {
        let filled = u128::from(now_ns - self.at_ns) * u128::from(self.limit.limit());
        self.owed.saturating_sub(filled)
    }

    /// Over any time no more than the burst and what fills meanwhile.
    fn check(&self, now_ns: u64, sendable: u64) -> Result<(), String> {
        let width_ns = u128::from(self.limit.window().width_ns());
        let burst = self.limit.capacity();
        let taken = self.owed_at(now_ns) + u128::from(sendable) * width_ns;
        match taken <= u128::from(burst) * width_ns {
            true => Ok(()),
            false => Err(format!(
                "more than a burst of {burst} at {now_ns} ns, {sendable} at hand"
            )),
        }
    }
}

impl Days {
    fn sent(&mut self, unix_ns: u64, edge_ns: u64, amount: u64) -> Result<(), String> {
        let (earliest, latest) = self.days(unix_ns, edge_ns);
        match earliest == latest {
            true => *self.within.entry(latest).or_default() += amount,
            false => *self.at_edge.entry(latest).or_default() += amount,
        }
        self.check(unix_ns, edge_ns, 0)
    }

    /// The windows of which something may be that happens at this instant.
    fn days(&self, unix_ns: u64, edge_ns: u64) -> (i64, i64) {
        let window = |unix_ns: u64| calendar_window(self.window, (unix_ns / SECOND) as i64);
        (window(unix_ns - edge_ns), window(unix_ns + edge_ns))
    }

    /// In no window more than the limit, and in two that follow each other no more than twice as
    /// much, which is all that can be said of what is sent near the edge.
    fn check(&self, unix_ns: u64, edge_ns: u64, sendable: u64) -> Result<(), String> {
        let (earliest, latest) = self.days(unix_ns, edge_ns);
        let of = |windows: &HashMap<i64, u64>, at: i64| windows.get(&at).copied().unwrap_or(0);
        for day in [earliest, latest] {
            // What is at hand near the edge may be of either.
            let at_hand = if earliest == latest { sendable } else { 0 };
            let (before, within) = (of(&self.within, day - 1), of(&self.within, day));
            let both = before + of(&self.at_edge, day) + within + sendable;
            if within + at_hand > self.limit || both > 2 * self.limit {
                return Err(format!(
                    "{within} sends and {sendable} at hand in one {} of {}, {both} with the one \
                     before",
                    self.window, self.limit
                ));
            }
        }
        Ok(())
    }
}
