//! Where leaves are read: from whoever has them nearer than the store, and otherwise from the
//! store, many at a time of this process's own.
//!
//! What a large publish changes is read by every process of a region. A leaf is named by the hash
//! of its content, so it does not matter who gives it; and what nobody near has is read from the
//! store at a random time, so that whoever comes later finds it with those who came before.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{StreamExt, TryStreamExt};
use tokio::sync::{OnceCell, watch};

use super::lines::{Asked, Leaf, parsed};
use super::load::LoadError;
use super::{KeyValue, Store};
use crate::id::OrgId;
use crate::keys;
use crate::tree::{self, Hash};

/// Reads under way at one time.
const READS_MAX: usize = 8;
/// Leaves that one read asks the store for: 800 of an organisation of 100,000 objects came from
/// etcd in a third to a half of the time that reads of one took.
const LEAVES_A_READ: usize = 32;
/// What a leaf of many is reckoned to have in the store, in bytes: it is split at 64 KiB.
const LEAF_BYTES: u64 = 32 * 1_024;
/// The same of a root, or of the only leaf that a set lacks. Most have less: with less, a read
/// costs the store more than its bytes do.
const SMALL_BYTES: u64 = 2 * 1_024;
/// An organisation of which nothing is known yet: mostly one root and one leaf.
const ORG_BYTES: u64 = 2 * SMALL_BYTES;
/// Up to so much is read from the store at once, in bytes.
const AT_ONCE_BYTES: u64 = 1_024 * 1_024;
/// What all nodes of a region together read from the store, in bytes a second.
const BYTES_PER_S: u64 = 50_000_000;
/// The latest start of a large read.
const LATEST: Duration = Duration::from_secs(10);

/// The answer of [`Nearby`].
pub type NearFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who may have leaves nearer than the store.
pub trait Nearby: Send + Sync {
    /// The content of a leaf or root, which has this hash; `None` where nobody has it.
    fn leaf(&self, org: OrgId, hash: Hash) -> NearFuture<'_, Option<Vec<u8>>>;

    /// The store has given a leaf or root; `packed` is what it holds.
    fn stored(&self, org: OrgId, hash: Hash, packed: &Bytes);

    /// Ready when this process may read so many bytes of leaves from the store.
    fn turn(&self, bytes: u64) -> NearFuture<'_, ()>;
}

/// When a process begins to read so many bytes from the store, of `nodes` that may all do so: at
/// once where it is little or nobody else reads. `draw` lies between 0 and 1.
pub fn start(bytes: u64, nodes: u64, draw: f64) -> Duration {
    if bytes <= AT_ONCE_BYTES || nodes <= 1 {
        return Duration::ZERO;
    }
    let all_us = bytes.saturating_mul(nodes) / (BYTES_PER_S / 1_000_000);
    let whole = Duration::from_micros(all_us).min(LATEST);
    whole.mul_f64(draw.clamp(0.0, 1.0))
}

/// Where a version is read from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Where everything is.
    pub store: &'a dyn Store,
    /// Who is asked first.
    pub near: Option<&'a dyn Nearby>,
    /// What else is read by the same list or change.
    pub together: Option<&'a Together<'a>>,
}

impl<'a> Source<'a> {
    /// The store alone.
    pub fn of(store: &'a dyn Store) -> Self {
        Self {
            store,
            near: None,
            together: None,
        }
    }

    /// Reads one leaf or root.
    pub(super) async fn leaf(self, org: OrgId, hash: Hash) -> Result<Vec<u8>, LoadError> {
        if let Some(content) = self.near(org, hash).await {
            return Ok(content);
        }
        if self.turn(SMALL_BYTES).await
            && let Some(content) = self.near(org, hash).await
        {
            return Ok(content);
        }
        self.stored(org, hash).await
    }

    /// Reads leaves; one that is missing or damaged is told in its place.
    pub(super) async fn leaves(
        self,
        org: OrgId,
        wanted: Vec<(String, Hash)>,
    ) -> Result<Vec<Asked<Leaf>>, LoadError> {
        let mut read = Vec::with_capacity(wanted.len());
        let mut lacking = self.ask_near(org, wanted, &mut read).await;
        // Who waited may find with others what nobody had before.
        let again = self.turn(reckoned(lacking.len())).await;
        if again {
            lacking = self.ask_near(org, lacking, &mut read).await;
        }
        let together = lacking.len();
        let parts: Vec<Vec<(String, Hash)>> = lacking
            .chunks(LEAVES_A_READ)
            .map(<[(String, Hash)]>::to_vec)
            .collect();
        let rest: Vec<Vec<Asked<Leaf>>> = futures_util::stream::iter(parts)
            .map(|part| self.stored_parsed(org, part, together))
            .buffer_unordered(READS_MAX)
            .try_collect()
            .await?;
        read.extend(rest.into_iter().flatten());
        Ok(read)
    }

    /// Asks those near for leaves; gives what none of them has.
    async fn ask_near(
        self,
        org: OrgId,
        wanted: Vec<(String, Hash)>,
        read: &mut Vec<Asked<Leaf>>,
    ) -> Vec<(String, Hash)> {
        let together = wanted.len();
        let asked = futures_util::stream::iter(wanted).map(async |(place, hash)| {
            match self.near(org, hash).await {
                Some(content) => Ok(parsed(vec![(place, hash, Ok(content))], together).await),
                None => Err((place, hash)),
            }
        });
        let mut asked = std::pin::pin!(asked.buffer_unordered(READS_MAX));
        let mut lacking = Vec::new();
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(leaves) => read.extend(leaves),
                Err(leaf) => lacking.push(leaf),
            }
        }
        lacking
    }

    async fn near(self, org: OrgId, hash: Hash) -> Option<Vec<u8>> {
        self.near?.leaf(org, hash).await
    }

    async fn stored(self, org: OrgId, hash: Hash) -> Result<Vec<u8>, LoadError> {
        let pair = self.store.get(&keys::leaf(org, &hash)).await?.value;
        self.opened(org, hash, pair)
    }

    /// The same of some, out of so many that are read together.
    async fn stored_parsed(
        self,
        org: OrgId,
        wanted: Vec<(String, Hash)>,
        together: usize,
    ) -> Result<Vec<Asked<Leaf>>, LoadError> {
        let read = self.stored_all(org, wanted).await?;
        Ok(parsed(read, together).await)
    }

    /// Reads some; one that is missing or damaged is told in its place.
    async fn stored_all(
        self,
        org: OrgId,
        wanted: Vec<(String, Hash)>,
    ) -> Result<Vec<Asked<Vec<u8>>>, LoadError> {
        let names = wanted.iter().map(|(_, hash)| keys::leaf(org, hash));
        let found = self.store.get_all(names.collect()).await?;
        let read = wanted.into_iter().zip(found);
        let read = read.map(|((place, hash), pair)| (place, hash, self.opened(org, hash, pair)));
        Ok(read.collect())
    }

    /// The content of what the store gave.
    fn opened(self, org: OrgId, hash: Hash, pair: Option<KeyValue>) -> Result<Vec<u8>, LoadError> {
        let pair = pair.ok_or(LoadError::Missing(hash))?;
        let content = tree::unpack(hash, &pair.value)?;
        if let Some(near) = self.near {
            near.stored(org, hash, &pair.value);
        }
        Ok(content)
    }

    /// Waits for the turn where much is lacking; true if it did.
    async fn turn(self, lacking: u64) -> bool {
        match (self.near, self.together) {
            (Some(near), Some(together)) if lacking > 0 => together.turn(near, lacking).await,
            _ => false,
        }
    }
}

/// All that one list or change makes a process read, however many organisations it is of: many
/// small ones are as much as a large one, and all of it has one turn.
pub struct Together<'a> {
    /// True when something else must not wait for the turn.
    hurry: &'a watch::Sender<bool>,
    /// What may have to be read, in bytes.
    expected: u64,
    /// What nobody near has, so far, in bytes.
    lacking: AtomicU64,
    turn: OnceCell<()>,
}

impl<'a> Together<'a> {
    /// Of so many organisations nothing is known yet.
    pub fn new(hurry: &'a watch::Sender<bool>, new_orgs: usize) -> Self {
        let orgs = u64::try_from(new_orgs).unwrap_or(u64::MAX);
        Self {
            hurry,
            expected: orgs.saturating_mul(ORG_BYTES),
            lacking: AtomicU64::new(0),
            turn: OnceCell::new(),
        }
    }

    /// Waits for the turn as soon as much is lacking, and no longer than nothing else is urgent;
    /// true if it did.
    async fn turn(&self, near: &dyn Nearby, lacking: u64) -> bool {
        let before = self.lacking.fetch_add(lacking, Ordering::Relaxed);
        let lacking = before.saturating_add(lacking);
        if lacking <= AT_ONCE_BYTES || self.turn.initialized() {
            return false;
        }
        let turn = async || {
            tokio::select! {
                () = near.turn(lacking.max(self.expected)) => {}
                () = hurried(self.hurry) => {}
            }
        };
        self.turn.get_or_init(turn).await;
        true
    }
}

/// What so many leaves of one set are reckoned to have, in bytes.
fn reckoned(leaves: usize) -> u64 {
    match u64::try_from(leaves).unwrap_or(u64::MAX) {
        1 => SMALL_BYTES,
        leaves => leaves.saturating_mul(LEAF_BYTES),
    }
}

/// Ready when something is urgent.
async fn hurried(hurry: &watch::Sender<bool>) {
    let mut told = hurry.subscribe();
    // The sender is borrowed: it cannot be gone.
    let _ = told.wait_for(|urgent| *urgent).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1_024 * 1_024;

    #[test]
    fn large_reads_start_at_a_random_time_and_small_ones_at_once() {
        let ms = |bytes, nodes, draw| start(bytes, nodes, draw).as_millis();
        assert_eq!(ms(MIB, 1_000, 1.0), 0, "little is read at once");
        assert_eq!(ms(1_000 * MIB, 1, 1.0), 0, "nobody else reads");
        // 25 MB for each of 10 nodes take 5 s at 50 MB/s.
        assert_eq!(ms(25_000_000, 10, 1.0), 5_000);
        assert_eq!(ms(25_000_000, 10, 0.5), 2_500);
        assert_eq!(ms(25_000_000, 10, 0.0), 0);
        assert_eq!(ms(25_000_000, 100, 1.0), 10_000, "no later than that");
        assert_eq!(ms(u64::MAX, u64::MAX, 0.5), 5_000);
    }

    /// Nobody has anything; remembers for how many bytes a turn was waited for.
    #[derive(Default)]
    struct Nobody(std::sync::Mutex<Vec<u64>>);

    impl Nearby for Nobody {
        fn leaf(&self, _: OrgId, _: Hash) -> NearFuture<'_, Option<Vec<u8>>> {
            Box::pin(std::future::ready(None))
        }

        fn stored(&self, _: OrgId, _: Hash, _: &Bytes) {}

        fn turn(&self, bytes: u64) -> NearFuture<'_, ()> {
            self.0.lock().unwrap().push(bytes);
            Box::pin(std::future::ready(()))
        }
    }

    /// How often a turn was waited for, of so many reads of so much each.
    async fn waits(together: &Together<'_>, near: &Nobody, reads: usize, bytes: u64) -> usize {
        let mut waited = 0;
        for _ in 0..reads {
            waited += usize::from(together.turn(near, bytes).await);
        }
        waited
    }

    #[tokio::test]
    async fn much_that_is_read_together_has_one_turn() {
        let (near, hurry) = (Nobody::default(), watch::Sender::new(false));
        let together = Together::new(&hurry, 10_000);
        assert_eq!(waits(&together, &near, 512, SMALL_BYTES).await, 0);
        assert_eq!(waits(&together, &near, 1_000, SMALL_BYTES).await, 1);
        // As late as all of it may need.
        assert_eq!(*near.0.lock().unwrap(), [10_000 * ORG_BYTES]);
        // Sets of an organisation that is known, each below the bound.
        let together = Together::new(&hurry, 0);
        assert_eq!(waits(&together, &near, 3, reckoned(20)).await, 1);
        assert_eq!(near.0.lock().unwrap()[1], 2 * 20 * LEAF_BYTES);
    }
}
