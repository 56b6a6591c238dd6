//! Copies versions that are to leave the store to the archive of this control plane.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use proto::home::{Home, Lies};
use proto::id::OrgId;
use proto::keys;
use proto::store::{Op, Store, StoreError, Txn, TxnOutcome, ancestry};
use proto::tree::{self, Ancestry, Hash, Head, Lineage, Root, VersionRecord};
use proto::version::Epoch;
use proto::wire::replication::Position;

use super::dropping::records_until;
use super::keeping::Keeps;
use super::progress::{self, Progress};
use super::{Janitor, JanitorError};
use crate::archive::{Archive, Keep};

impl Janitor {
    /// Drops from the archive what is kept here no more.
    pub(super) async fn purge_archive(&self, org: OrgId, keeps: Keeps) -> Result<(), JanitorError> {
        let archive = self.archive.clone();
        blocking(archive, move |archive| {
            archive.purge(org, keeps.from(), |set| keeps.keeps(set))
        })
        .await
    }

    /// Archives what lies before the newest versions, and says so in the store. Answers how many
    /// versions were new here.
    pub(super) async fn archive_old(
        &self,
        org: OrgId,
        head: &Head,
        keeps: &Keeps,
    ) -> Result<u64, JanitorError> {
        let until = head.n.saturating_sub(self.options.store_versions);
        if until == 0 {
            return Ok(0);
        }
        let store = self.publisher.store();
        let (mut progress, unchanged) = Progress::read(store, org).await?;
        let name = self.archive.name();
        if progress.0.get(name) == Some(&until) {
            return Ok(0);
        }
        // Until which version nothing is left to archive, and how many were new here.
        let (mut reached, mut archived) = (until, 0);
        let keeps = keeps.of_earlier();
        for record in records_until(store, org, until).await? {
            let n = record.head.n;
            if keeps.drops(n) {
                continue;
            }
            match self.copied(org, record, &keeps).await? {
                Copied::New => archived += 1,
                Copied::Known | Copied::Gone => {}
                Copied::Damaged => reached = reached.min(n.saturating_sub(1)),
            }
        }
        self.retain(org).await?;
        let live = progress::live(store).await?;
        progress.0.retain(|archive, _| live.contains(archive));
        if progress.0.insert(name.to_owned(), reached) == Some(reached) {
            return Ok(archived);
        }
        let tell = Txn {
            compares: vec![unchanged],
            ops: vec![Op::put(keys::archived(org), progress.to_json())],
            or_read: Vec::new(),
        };
        match store.txn(tell).await? {
            TxnOutcome::Committed(_) => Ok(archived),
            // Another control plane was first: said in the next round.
            TxnOutcome::Conflict(_) => Err(JanitorError::Moved),
        }
    }

    /// Drops archived versions that are too old or too many.
    pub(super) async fn retain(&self, org: OrgId) -> Result<(), JanitorError> {
        let age_s = i64::try_from(self.options.archive_age.as_secs()).unwrap_or(i64::MAX);
        let keep = Keep {
            versions_max: self.options.archive_versions,
            published_from_s: Timestamp::now().as_second().saturating_sub(age_s),
        };
        let archive = self.archive.clone();
        blocking(archive, move |archive| archive.retain(org, keep)).await?;
        Ok(())
    }

    /// Moves what was archived of a branch aside. What is archived is one line of numbers, so that
    /// its newest version tells whether there is a branch. Of an epoch that names two branches it
    /// is told where the one that was here has left the line (`keys::parted`).
    pub(super) async fn leave_branch(&self, org: OrgId, home: &Home) -> Result<(), JanitorError> {
        let newest = self.archive.versions(org, u64::MAX, 1)?;
        let Some(newest) = newest.first() else {
            return Ok(());
        };
        let parted = parted(self.publisher.store(), org, &newest.head).await?;
        let home = home.clone();
        let is_aside = move |record: &VersionRecord| {
            let is_after = parted
                .as_ref()
                .is_some_and(|parted| parted.leaves(&record.head));
            is_after || home.lies(&Position::from(&record.head)) == Lies::Aside
        };
        if is_aside(newest) {
            let archive = self.archive.clone();
            blocking(archive, move |archive| archive.leave_branch(org, is_aside)).await?;
        }
        Ok(())
    }

    /// Copies a version to the archive: whole, or not at all.
    async fn copied(
        &self,
        org: OrgId,
        record: VersionRecord,
        keeps: &Keeps,
    ) -> Result<Copied, JanitorError> {
        let n = record.head.n;
        let known = self.archive.version(org, n)?;
        if known.is_some_and(|known| known.head == record.head) {
            return Ok(Copied::Known);
        }
        let Some(leaves) = self.content(org, &record, keeps).await? else {
            // The leader may have dropped and swept it since it was listed.
            let store = self.publisher.store();
            if store.get(&keys::version(org, n)).await?.value.is_none() {
                return Ok(Copied::Gone);
            }
            tracing::warn!(
                %org, n,
                "version {n} lacks some of its content: it is not archived and stays in the store"
            );
            return Ok(Copied::Damaged);
        };
        let archive = self.archive.clone();
        blocking(archive, move |archive| {
            archive.insert(org, &record, &leaves)
        })
        .await?;
        Ok(Copied::New)
    }

    /// Leaves and roots of a version that the archive lacks; `None` where the store lacks one.
    async fn content(
        &self,
        org: OrgId,
        record: &VersionRecord,
        keeps: &Keeps,
    ) -> Result<Option<Vec<(Hash, Bytes)>>, JanitorError> {
        let mut content = Vec::new();
        let roots = record.head.roots.iter();
        for (set, root) in roots.filter(|(set, _)| keeps.keeps(set)) {
            let Some(packed) = self.leaf(org, root).await? else {
                if !keeps.misses(set) {
                    continue;
                }
                return Ok(None);
            };
            let listed = tree::unpack(*root, &packed).and_then(|root| Root::parse(&root));
            let Ok(listed) = listed else {
                return Ok(None);
            };
            content.push((*root, packed));
            for hash in listed.leaves.into_values() {
                if self.archive.has_leaf(org, &hash)? {
                    continue;
                }
                let Some(packed) = self.leaf(org, &hash).await? else {
                    return Ok(None);
                };
                content.push((hash, packed));
            }
        }
        Ok(Some(content))
    }

    async fn leaf(&self, org: OrgId, hash: &Hash) -> Result<Option<Bytes>, StoreError> {
        let found = self.publisher.store().get(&keys::leaf(org, hash)).await?;
        Ok(found.value.map(|pair| pair.value))
    }
}

/// Where a branch that was here has left the line, which gives the same numbers to others.
struct Parted {
    epoch: Epoch,
    /// The last version in common.
    last: u64,
    /// What the line has here beyond that, by number.
    line: BTreeMap<u64, Hash>,
    /// The same of versions whose records have left the store.
    earlier: Lineage,
}

impl Parted {
    /// Whether a version is one of the branch.
    fn leaves(&self, head: &Head) -> bool {
        let is_held = match self.line.get(&head.n) {
            Some(hash) => *hash == head.hash,
            None => self.earlier.holds(head.n, &head.hash) == Ancestry::Descends,
        };
        head.epoch == self.epoch && head.n > self.last && !is_held
    }
}

/// The same of the epoch of a version, if one has left the line in it.
async fn parted(store: &dyn Store, org: OrgId, of: &Head) -> Result<Option<Parted>, JanitorError> {
    let key = keys::parted(org, &of.epoch);
    let Some(pair) = store.get(&key).await?.value else {
        return Ok(None);
    };
    let last = std::str::from_utf8(&pair.value).ok();
    let last = last.and_then(|last| last.parse().ok());
    let records = records_until(store, org, u64::MAX).await?;
    let names = records
        .iter()
        .map(|record| (record.head.n, record.head.hash));
    Ok(Some(Parted {
        epoch: of.epoch.clone(),
        last: last.ok_or(JanitorError::Unreadable(key))?,
        line: names.collect(),
        earlier: ancestry::lineage(store, org).await?,
    }))
}

/// What became of a version that is to be archived.
enum Copied {
    /// It is in the archive now.
    New,
    /// It was there.
    Known,
    /// It left the store meanwhile.
    Gone,
    /// The store has it without its content.
    Damaged,
}

/// Runs what blocks on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    archive: Arc<Archive>,
    work: impl FnOnce(&Archive) -> Result<T, crate::archive::ArchiveError> + Send + 'static,
) -> Result<T, JanitorError> {
    Ok(tokio::task::spawn_blocking(move || work(&archive)).await??)
}
