//! Records as they come, for whoever follows them.
//!
//! A follower has a bounded queue: one that does not keep up misses records and is told how many,
//! and storing never waits for it. Where nobody follows, it costs a look at an empty list.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use proto::id::OrgId;
use proto::record::Record;
use proto::wire::StoredRecord;
use tokio::sync::mpsc;

use super::RecordFilter;

/// Most followers at one time.
const FOLLOWERS_MAX: usize = 128;
/// Most of one organisation, so that others have theirs.
const FOLLOWERS_OF_ONE_MAX: usize = 32;
/// Records that wait for one follower.
const QUEUE_MAX: usize = 1_024;

/// All followers.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<Vec<Follower>>);

#[derive(Debug)]
struct Follower {
    org: OrgId,
    filter: RecordFilter,
    queue: mpsc::Sender<Box<Record>>,
    missed: Arc<AtomicU64>,
}

/// What a follower gets.
#[derive(Debug, PartialEq)]
pub enum Tail {
    /// A record.
    Record(Box<Record>),
    /// So many that it was too slow for.
    Missed(u64),
}

/// The end at which a follower takes records.
#[derive(Debug)]
pub struct Following {
    queue: mpsc::Receiver<Box<Record>>,
    missed: Arc<AtomicU64>,
}

impl Following {
    /// The next record, or how many were missed before it; `None` when the store is gone.
    pub async fn next(&mut self) -> Option<Tail> {
        match self.missed.swap(0, Relaxed) {
            0 => self.queue.recv().await.map(Tail::Record),
            missed => Some(Tail::Missed(missed)),
        }
    }
}

impl Tails {
    /// Gives stored records to those who follow them.
    pub(super) fn offer(&self, org: OrgId, records: &[&Record]) {
        let mut followers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if followers.is_empty() {
            return;
        }
        followers.retain(|follower| !follower.queue.is_closed());
        for follower in followers.iter().filter(|follower| follower.org == org) {
            for record in records {
                if !follower.filter.wants(&StoredRecord::of(record)) {
                    continue;
                }
                let copy = Box::new(record.without_payload());
                if follower.queue.try_send(copy).is_err() {
                    follower.missed.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

impl Tails {
    /// Follows records of an organisation from now on; `None` while too many do.
    pub(super) fn follow(&self, org: OrgId, filter: RecordFilter) -> Option<Following> {
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let missed = Arc::<AtomicU64>::default();
        let follower = Follower {
            org,
            filter,
            queue: sender,
            missed: missed.clone(),
        };
        let mut followers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain(|follower| !follower.queue.is_closed());
        let own = followers.iter().filter(|follower| follower.org == org);
        if followers.len() >= FOLLOWERS_MAX || own.count() >= FOLLOWERS_OF_ONE_MAX {
            return None;
        }
        followers.push(follower);
        Some(Following { queue, missed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_organisation_takes_its_share_of_the_followers() {
        let tails = Tails::default();
        let follow = |org| tails.follow(OrgId::from_bits(org), RecordFilter::default());
        let of_one: Vec<_> = std::iter::from_fn(|| follow(1)).collect();
        assert_eq!(of_one.len(), FOLLOWERS_OF_ONE_MAX);
        let other = follow(2);
        assert!(other.is_some());
        drop(of_one);
        assert!(follow(1).is_some());
    }
}
