//! Where leaves are read: from whoever has them nearer than the store, and otherwise from the
//! store, many at a time of this process's own.
//!
//! What a large publish changes is read by every process of a region. A leaf is named by the hash
//! of its content, so it does not matter who gives it; and what nobody near has is read from the
//! store at a random time, so that whoever comes later finds it with those who came before.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{StreamExt, TryStreamExt};
use tokio::sync::watch;

use super::Store;
use super::load::LoadError;
use crate::id::OrgId;
use crate::keys;
use crate::tree::{self, Hash};

/// Reads under way at one time.
const READS_MAX: usize = 8;
/// What a leaf of many is reckoned to have in the store, in bytes: it is split at 64 KiB.
const LEAF_BYTES: u64 = 32 * 1_024;
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
    /// True when something else must not wait for the turn.
    pub hurry: Option<&'a watch::Sender<bool>>,
}

/// A leaf that was asked for: its place, its name, and what there is of it.
pub(super) type ReadLeaf = (String, Hash, Result<Vec<u8>, LoadError>);

impl<'a> Source<'a> {
    /// The store alone.
    pub fn of(store: &'a dyn Store) -> Self {
        Self {
            store,
            near: None,
            hurry: None,
        }
    }

    /// Reads one leaf or root.
    pub(super) async fn leaf(self, org: OrgId, hash: Hash) -> Result<Vec<u8>, LoadError> {
        match self.near(org, hash).await {
            Some(content) => Ok(content),
            None => self.stored(org, hash).await,
        }
    }

    /// Reads leaves; one that is missing or damaged is told in its place.
    pub(super) async fn leaves(
        self,
        org: OrgId,
        wanted: Vec<(String, Hash)>,
    ) -> Result<Vec<ReadLeaf>, LoadError> {
        let (mut read, mut lacking) = (Vec::with_capacity(wanted.len()), Vec::new());
        let asked = futures_util::stream::iter(wanted)
            .map(async |(place, hash)| (place, hash, self.near(org, hash).await));
        let mut asked = std::pin::pin!(asked.buffer_unordered(READS_MAX));
        while let Some((place, hash, content)) = asked.next().await {
            match content {
                Some(content) => read.push((place, hash, Ok(content))),
                None => lacking.push((place, hash)),
            }
        }
        // Who waited may find with others what nobody had before.
        let again = self.turn(lacking.len()).await;
        let rest: Vec<ReadLeaf> = futures_util::stream::iter(lacking)
            .map(|(place, hash)| async move {
                let content = match again {
                    true => self.leaf(org, hash).await,
                    false => self.stored(org, hash).await,
                };
                match content {
                    Err(LoadError::Store(error)) => Err(LoadError::Store(error)),
                    content => Ok((place, hash, content)),
                }
            })
            .buffer_unordered(READS_MAX)
            .try_collect()
            .await?;
        read.extend(rest);
        Ok(read)
    }

    async fn near(self, org: OrgId, hash: Hash) -> Option<Vec<u8>> {
        self.near?.leaf(org, hash).await
    }

    async fn stored(self, org: OrgId, hash: Hash) -> Result<Vec<u8>, LoadError> {
        let pair = self.store.get(&keys::leaf(org, &hash)).await?.value;
        let pair = pair.ok_or(LoadError::Missing(hash))?;
        let content = tree::unpack(hash, &pair.value)?;
        if let Some(near) = self.near {
            near.stored(org, hash, &pair.value);
        }
        Ok(content)
    }

    /// Waits for the turn where much is lacking, and no longer than nothing else is urgent; true
    /// if it did.
    async fn turn(self, lacking: usize) -> bool {
        let bytes = u64::try_from(lacking).unwrap_or(u64::MAX);
        let bytes = bytes.saturating_mul(LEAF_BYTES);
        let Some(near) = self.near.filter(|_| bytes > AT_ONCE_BYTES) else {
            return false;
        };
        tokio::select! {
            () = near.turn(bytes) => {}
            () = hurried(self.hurry) => {}
        }
        // One turn for all that is applied together, however many organisations it is of.
        if let Some(hurry) = self.hurry {
            hurry.send_replace(true);
        }
        true
    }
}

/// Ready when something is urgent.
async fn hurried(hurry: Option<&watch::Sender<bool>>) {
    if let Some(hurry) = hurry {
        let mut told = hurry.subscribe();
        if told.wait_for(|urgent| *urgent).await.is_ok() {
            return;
        }
    }
    std::future::pending().await
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
}
