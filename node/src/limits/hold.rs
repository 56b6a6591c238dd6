//! Waiting for a token instead of being refused: in order, within a deadline, and only as many as
//! may.
//!
//! The head of the queue alone looks for a token; when it has one, or leaves, the next is woken. So
//! nobody overtakes: not who came later, and not who comes while others wait. Higher priorities go
//! first, and within one the first come. Who cannot be served before its deadline, by what is known
//! of the limit and of those before it, is refused at once and told when to come again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Those who wait for one meter.
#[derive(Debug, Default)]
pub struct HoldQueue {
    /// How many; read by whoever draws, without the lock.
    len: AtomicUsize,
    queue: Mutex<Queue>,
    /// Tokens that callers of other nodes wait for, and until when that counts.
    elsewhere: AtomicU64,
    elsewhere_until_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    next_number: u64,
    /// Who is rung, and since when it waits.
    waiting: BTreeMap<Place, (Arc<Notify>, u64)>,
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
        self.len.load(Ordering::Acquire) == 0
    }

    /// Enters with a priority; the ticket, and how many are before it. `None` when so many wait
    /// already. Who had its turn and lost what it got goes before all who had none.
    pub fn enter(&self, rank: Rank, most: usize, now_ns: u64) -> Option<(Ticket<'_>, usize)> {
        let mut queue = self.lock();
        if queue.waiting.len() >= most && rank != Rank::Again {
            return None;
        }
        let place = Place {
            behind: match rank {
                Rank::Again => 0,
                Rank::First(priority) => u8::MAX - priority.min(u8::MAX - 1),
            },
            number: queue.next_number,
        };
        queue.next_number += 1;
        let turn = Arc::new(Notify::new());
        let before = queue.waiting.range(..place).count();
        queue.waiting.insert(place, (Arc::clone(&turn), now_ns));
        self.len.store(queue.waiting.len(), Ordering::Release);
        drop(queue);
        let ticket = Ticket {
            queue: self,
            place,
            turn,
        };
        Some((ticket, before))
    }

    /// Since when the one waits that comes next.
    pub fn head_since_ns(&self) -> Option<u64> {
        let queue = self.lock();
        let head = queue.waiting.first_key_value();
        head.map(|(_, (_, since_ns))| *since_ns)
    }

    /// So many tokens are waited for on other nodes, as known until an instant.
    pub fn told_elsewhere(&self, tokens: u64, until_ns: u64) {
        self.elsewhere.store(tokens, Ordering::Relaxed);
        self.elsewhere_until_ns.store(until_ns, Ordering::Relaxed);
    }

    /// Tokens that are waited for on other nodes, as last known.
    pub fn elsewhere(&self, now_ns: u64) -> u64 {
        match now_ns < self.elsewhere_until_ns.load(Ordering::Relaxed) {
            true => self.elsewhere.load(Ordering::Relaxed),
            false => 0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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
        queue.waiting.remove(&self.place);
        self.queue.len.store(queue.waiting.len(), Ordering::Release);
        if let Some((_, (head, _))) = queue.waiting.first_key_value() {
            head.notify_one();
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
        let (first, before) = queue.enter(Rank::First(0), 10, 0).unwrap();
        assert_eq!((before, first.is_head()), (0, true));
        let (second, before) = queue.enter(Rank::First(0), 10, 0).unwrap();
        assert_eq!((before, second.is_head()), (1, false));
        let (urgent, before) = queue.enter(Rank::First(5), 10, 0).unwrap();
        assert_eq!(before, 0);
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
        let (first, _) = queue.enter(Rank::First(0), 2, 0).unwrap();
        let (_second, _) = queue.enter(Rank::First(0), 2, 0).unwrap();
        assert!(queue.enter(Rank::First(9), 2, 0).is_none());
        drop(first);
        assert!(queue.enter(Rank::First(0), 2, 0).is_some());
    }

    #[actix_rt::test]
    async fn whoever_becomes_the_head_is_woken() {
        let queue = HoldQueue::default();
        let (first, _) = queue.enter(Rank::First(0), 10, 0).unwrap();
        let (second, _) = queue.enter(Rank::First(0), 10, 0).unwrap();
        let (third, _) = queue.enter(Rank::First(0), 10, 0).unwrap();
        drop(second);
        drop(first);
        third.turn().await;
        assert!(third.is_head());
    }

    #[test]
    fn who_had_its_turn_goes_first_and_always_finds_a_place() {
        let queue = HoldQueue::default();
        let (first, _) = queue.enter(Rank::First(9), 1, 0).unwrap();
        let (again, before) = queue.enter(Rank::Again, 1, 0).unwrap();
        assert_eq!(before, 0);
        assert!(again.is_head() && !first.is_head());
        let (later, before) = queue.enter(Rank::Again, 1, 0).unwrap();
        assert!(before == 1 && !later.is_head());
    }
}
