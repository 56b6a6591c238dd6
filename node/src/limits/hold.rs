//! Waiting for a token instead of being refused: in order, within a deadline, and only as many as
//! may.
//!
//! The head of the queue alone looks for a token; when it has one, or leaves, the next is woken. So
//! nobody overtakes: not who came later, and not who comes while others wait. Higher priorities go
//! first, and within one the first come. Who cannot be served before its deadline, by what is known
//! of the limit and of those before it, is refused at once and told when to come again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// Place in the queue: what is smallest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// 255 less the priority.
    behind: u8,
    number: u64,
}

/// How urgent one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// It has not had its turn: by its priority.
    First(u8),
    /// It had its turn, and what it got ended before all else that it needs was there.
    Again,
}

impl Rank {
    /// What is smallest goes first.
    fn behind(self) -> u8 {
        match self {
            Self::Again => 0,
            Self::First(priority) => LAST - priority.min(LAST - 1),
        }
    }
}

/// The rank of those who have no priority.
pub const LAST: u8 = u8::MAX;

/// Callers of one rank that wait on a node, or on several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// The rank: what is smallest goes first.
    pub behind: u8,
    /// For how many tokens they wait.
    pub tokens: u64,
    /// When the first of them came; between nodes, how long ago that was.
    pub since_ns: u64,
    /// The same of the last.
    pub newest_ns: u64,
}

/// Those who wait for one meter.
#[derive(Debug, Default)]
pub struct HoldQueue {
    /// How many; read by whoever draws, without the lock.
    len: AtomicUsize,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next_number: u64,
    waiting: BTreeMap<Place, Waiter>,
    /// For how many tokens each rank waits.
    tokens: BTreeMap<u8, u64>,
    /// Who waits on other nodes, and until when that counts.
    elsewhere: Vec<Level>,
    elsewhere_until_ns: u64,
}

#[derive(Debug)]
struct Waiter {
    /// Rung when it is the head.
    turn: Arc<Notify>,
    amount: u64,
    since_ns: u64,
}

/// Who is served before one who enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// Callers on this node.
    pub here: usize,
    /// Tokens that callers on other nodes wait for, as last known.
    pub elsewhere: u64,
}

/// One who waits; leaves the queue when it is dropped.
#[derive(Debug)]
pub struct Ticket<'q> {
    queue: &'q HoldQueue,
    place: Place,
    /// Rung when this is the head.
    turn: Arc<Notify>,
}

impl HoldQueue {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Enters for so many tokens with a priority; the ticket, and who is before it. `None` when
    /// `most` wait already. Who had its turn and lost what it got goes before all who had none.
    pub fn enter(
        &self,
        rank: Rank,
        amount: u64,
        most: usize,
        now_ns: u64,
    ) -> Option<(Ticket<'_>, Before)> {
        let mut queue = self.lock();
        if queue.waiting.len() >= most && rank != Rank::Again {
            return None;
        }
        let place = Place {
            behind: rank.behind(),
            number: queue.next_number,
        };
        queue.next_number += 1;
        let turn = Arc::new(Notify::new());
        let before = Before {
            here: queue.waiting.range(..place).count(),
            elsewhere: queue.elsewhere(place.behind, now_ns),
        };
        let waiter = Waiter {
            turn: Arc::clone(&turn),
            amount,
            since_ns: now_ns,
        };
        queue.waiting.insert(place, waiter);
        let tokens = queue.tokens.entry(place.behind).or_default();
        *tokens = tokens.saturating_add(amount);
        self.len.store(queue.waiting.len(), Ordering::Release);
        drop(queue);
        let ticket = Ticket {
            queue: self,
            place,
            turn,
        };
        Some((ticket, before))
    }

    /// Who waits here, by rank: who comes first is first.
    pub fn levels(&self) -> Vec<Level> {
        let queue = self.lock();
        let place = |behind: u8, number: u64| Place { behind, number };
        let level = |(behind, tokens): (&u8, &u64)| {
            let mut all = queue
                .waiting
                .range(place(*behind, 0)..=place(*behind, u64::MAX));
            let first_ns = all.next().map_or(0, |(_, waiter)| waiter.since_ns);
            let last_ns = all.next_back().map(|(_, waiter)| waiter.since_ns);
            Level {
                behind: *behind,
                tokens: *tokens,
                since_ns: first_ns,
                newest_ns: last_ns.unwrap_or(first_ns),
            }
        };
        queue.tokens.iter().map(level).collect()
    }

    /// These wait on other nodes, as known until an instant.
    pub fn told_elsewhere(&self, levels: Vec<Level>, until_ns: u64) {
        let mut queue = self.lock();
        queue.elsewhere = levels;
        queue.elsewhere_until_ns = until_ns;
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Tokens that those on other nodes wait for who come before one who enters with a rank.
    fn elsewhere(&self, behind: u8, now_ns: u64) -> u64 {
        if now_ns >= self.elsewhere_until_ns {
            return 0;
        }
        let before = self.elsewhere.iter().filter(|it| it.behind <= behind);
        before.fold(0, |sum, level| sum.saturating_add(level.tokens))
    }

    fn remove(&mut self, place: Place) {
        let amount = self.waiting.remove(&place).map_or(0, |one| one.amount);
        if let Some(tokens) = self.tokens.get_mut(&place.behind) {
            *tokens = tokens.saturating_sub(amount);
            let rest = self.waiting.range(Place { number: 0, ..place }..);
            if rest.map(|(next, _)| next.behind).next() != Some(place.behind) {
                self.tokens.remove(&place.behind);
            }
        }
    }
}

impl Ticket<'_> {
    /// Whether nobody is before it.
    pub fn is_head(&self) -> bool {
        let queue = self.queue.lock();
        queue
            .waiting
            .first_key_value()
            .is_some_and(|(place, _)| *place == self.place)
    }

    /// Waits until this may be the head.
    pub async fn turn(&self) {
        self.turn.notified().await;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut queue = self.queue.lock();
        queue.remove(self.place);
        self.queue.len.store(queue.waiting.len(), Ordering::Release);
        if let Some((_, head)) = queue.waiting.first_key_value() {
            head.turn.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_come_of_the_highest_priority_is_the_head() {
        let queue = HoldQueue::default();
        assert!(queue.is_empty());
        let (first, before) = queue.enter(Rank::First(0), 1, 10, 0).unwrap();
        assert_eq!((before.here, first.is_head()), (0, true));
        let (second, before) = queue.enter(Rank::First(0), 1, 10, 0).unwrap();
        assert_eq!((before.here, second.is_head()), (1, false));
        let (urgent, before) = queue.enter(Rank::First(5), 1, 10, 0).unwrap();
        assert_eq!(before.here, 0);
        assert!(urgent.is_head() && !first.is_head());
        drop(urgent);
        assert!(first.is_head());
        drop(first);
        assert!(second.is_head());
        drop(second);
        assert!(queue.is_empty());
    }

    #[test]
    fn only_so_many_wait_and_who_leaves_makes_place() {
        let queue = HoldQueue::default();
        let (first, _) = queue.enter(Rank::First(0), 1, 2, 0).unwrap();
        let (_second, _) = queue.enter(Rank::First(0), 1, 2, 0).unwrap();
        assert!(queue.enter(Rank::First(9), 1, 2, 0).is_none());
        drop(first);
        assert!(queue.enter(Rank::First(0), 1, 2, 0).is_some());
    }

    #[actix_rt::test]
    async fn whoever_becomes_the_head_is_woken() {
        let queue = HoldQueue::default();
        let (first, _) = queue.enter(Rank::First(0), 1, 10, 0).unwrap();
        let (second, _) = queue.enter(Rank::First(0), 1, 10, 0).unwrap();
        let (third, _) = queue.enter(Rank::First(0), 1, 10, 0).unwrap();
        drop(second);
        drop(first);
        third.turn().await;
        assert!(third.is_head());
    }

    #[test]
    fn who_had_its_turn_goes_first_and_always_finds_a_place() {
        let queue = HoldQueue::default();
        let (first, _) = queue.enter(Rank::First(9), 1, 1, 0).unwrap();
        let (again, before) = queue.enter(Rank::Again, 1, 1, 0).unwrap();
        assert_eq!(before.here, 0);
        assert!(again.is_head() && !first.is_head());
        let (later, before) = queue.enter(Rank::Again, 1, 1, 0).unwrap();
        assert!(before.here == 1 && !later.is_head());
    }

    #[test]
    fn who_waits_is_known_by_rank() {
        let queue = HoldQueue::default();
        let level = |behind: u8, tokens: u64, (since_ns, newest_ns): (u64, u64)| Level {
            behind,
            tokens,
            since_ns,
            newest_ns,
        };
        let (low, _) = queue.enter(Rank::First(0), 3, 10, 5).unwrap();
        let (high, _) = queue.enter(Rank::First(9), 2, 10, 6).unwrap();
        let (_more, _) = queue.enter(Rank::First(0), 4, 10, 7).unwrap();
        assert_eq!(
            queue.levels(),
            [level(246, 2, (6, 6)), level(255, 7, (5, 7))]
        );
        drop(low);
        assert_eq!(
            queue.levels(),
            [level(246, 2, (6, 6)), level(255, 4, (7, 7))]
        );
        drop(high);
        assert_eq!(queue.levels(), [level(255, 4, (7, 7))]);
        // Of those on other nodes the ones of a lower rank do not come first.
        queue.told_elsewhere(vec![level(246, 30, (0, 0)), level(255, 100, (0, 0))], 50);
        let elsewhere = |priority: u8, now_ns: u64| {
            let entered = queue.enter(Rank::First(priority), 1, 10, now_ns);
            entered.map(|(_, before)| before.elsewhere)
        };
        assert_eq!(elsewhere(0, 49), Some(130));
        assert_eq!(elsewhere(9, 49), Some(30));
        assert_eq!(elsewhere(10, 49), Some(0));
        assert_eq!(elsewhere(0, 50), Some(0), "it is no longer known");
    }
}
