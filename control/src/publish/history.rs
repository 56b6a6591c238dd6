//! Earlier versions: listed, read, and returned to.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use proto::home::Lies;
use proto::id::OrgId;
use proto::keys;
use proto::store::load::{self, LoadError, Loaded};
use proto::store::{Range, StoreError, ancestry};
use proto::tree::{self, Ancestry, Draft, Operation, OrgConfig, VersionRecord, regions_of};
use proto::wire::replication::Position;
use tokio::time::Instant;

use super::homes;
use super::idempotency::{self, Idempotency, Recalled};
use super::{Author, Publish, PublishError, Published, Publisher};
use crate::archive::{Archive, ArchiveError};

/// Records read from the store in one page.
const PAGE: usize = 200;

/// A version's record, and where its content is.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The record.
    pub record: VersionRecord,
    /// Where it is.
    pub place: Place,
}

/// Where a version can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The store: every control plane has it.
    Store,
    /// The archive of this control plane.
    Archive,
}

impl Place {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Archive => "archive",
        }
    }
}

/// A request to publish what depends on the newest version.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose configuration.
    pub org: OrgId,
    /// Who asks.
    pub author: Author,
    /// When to give up trying.
    pub deadline: Instant,
    /// The request's `Idempotency-Key`.
    pub idempotency: Option<Idempotency>,
}

/// A return to the content of an earlier version.
pub struct Rollback {
    /// The number of the earlier version.
    pub to: u64,
    /// Who asks for it, and where.
    pub request: Request,
}

impl Publisher {
    /// The records of at most `limit` versions before `before`, the newest first: those that the
    /// store holds, then those of the archive.
    ///
    /// # Errors
    /// The store or the archive failed, or holds a record that cannot be read.
    pub async fn versions(
        &self,
        org: OrgId,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Kept>, PublishError> {
        // Numbers rarely have gaps, so that the page is nearly always where its first number is.
        let first = before.saturating_sub(limit as u64);
        let mut records = self.stored(org, first, before).await?;
        if records.len() < limit && first > 1 {
            records = self.stored(org, 0, before).await?;
        }
        let excess = records.len().saturating_sub(limit);
        records.drain(..excess);
        let kept = |place| move |record| Kept { record, place };
        let missing = limit - records.len();
        let oldest = records.first().map_or(before, |oldest| oldest.head.n);
        let mut found: Vec<Kept> = records.into_iter().rev().map(kept(Place::Store)).collect();
        if missing > 0 {
            let archived = self
                .archived(move |archive| archive.versions(org, oldest, missing))
                .await?;
            found.extend(archived.into_iter().flatten().map(kept(Place::Archive)));
        }
        Ok(found)
    }

    /// The records in the store with numbers from `first` and below `before`, in order.
    async fn stored(
        &self,
        org: OrgId,
        first: u64,
        before: u64,
    ) -> Result<Vec<VersionRecord>, PublishError> {
        let mut records = Vec::new();
        let mut range = Range {
            prefix: keys::versions(org),
            after: first.checked_sub(1).map(|n| keys::version(org, n)),
            limit: PAGE,
            at: None,
        };
        loop {
            let page = self.store.range(range.clone()).await?;
            range.after = page.items.last().map(|pair| pair.key.clone());
            for pair in &page.items {
                let record: VersionRecord = read(&pair.key, &pair.value)?;
                if record.head.n >= before {
                    return Ok(records);
                }
                records.push(record);
            }
            if !page.more || range.after.is_none() {
                return Ok(records);
            }
        }
    }

    /// Asks the archive, on a thread that may block; `None` where there is none.
    async fn archived<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Archive) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<Option<T>, PublishError> {
        let Some(archive) = self.archive.clone() else {
            return Ok(None);
        };
        let asked = tokio::task::spawn_blocking(move || ask(&archive)).await;
        let asked = asked.map_err(|error| PublishError::Unreadable(error.to_string()))?;
        asked.map(Some).map_err(|error| match error.is_of_disk() {
            // It may do better later.
            true => PublishError::Store(StoreError::Unavailable(error.to_string())),
            false => PublishError::Unreadable(error.to_string()),
        })
    }

    /// The record of one version, where it is kept.
    ///
    /// # Errors
    /// The store or the archive failed, or the record cannot be read.
    pub async fn version(&self, org: OrgId, n: u64) -> Result<Option<Kept>, PublishError> {
        let key = keys::version(org, n);
        if let Some(pair) = self.store.get(&key).await?.value {
            let (record, place) = (read(&key, &pair.value)?, Place::Store);
            return Ok(Some(Kept { record, place }));
        }
        let archived = self
            .archived(move |archive| archive.version(org, n))
            .await?;
        let kept = |record| Kept {
            record,
            place: Place::Archive,
        };
        Ok(archived.flatten().map(kept))
    }

    /// Every version that was made on a branch which is not in force and is kept here: in the
    /// store, and in this control plane's archive.
    ///
    /// # Errors
    /// The store or the archive failed, or a record cannot be read.
    pub async fn aside(&self) -> Result<Vec<(OrgId, VersionRecord)>, PublishError> {
        let mut found = BTreeMap::new();
        let name = |org: OrgId, record: &VersionRecord| {
            let head = &record.head;
            (org, head.epoch.clone(), head.n, head.hash)
        };
        let archived = self.archived(|archive| archive.aside()).await?;
        for (org, record) in archived.unwrap_or_default() {
            found.insert(name(org, &record), record);
        }
        let mut unreadable = None;
        load::list(&*self.store, keys::ASIDE, None, |pair| {
            match (keys::parse_aside(&pair.key), read(&pair.key, &pair.value)) {
                (Some(org), Ok(record)) => drop(found.insert(name(org, &record), record)),
                (_, Err(error)) => unreadable = Some(error),
                (None, Ok(_)) => {}
            }
        })
        .await?;
        if let Some(error) = unreadable {
            return Err(error);
        }
        // A branch that lost may have won later, at a promotion that did not ask who won first.
        let mut homes = BTreeMap::new();
        let mut aside = Vec::new();
        for ((org, ..), record) in found {
            let home = match homes.entry(org) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(free) => free.insert(homes::stored(&*self.store, org).await?),
            };
            let home = home.as_ref();
            let lies = home.map(|(home, _)| home.lies(&Position::from(&record.head)));
            // The number alone does not tell where two branches have it.
            let version = (record.head.n, &record.head.hash);
            if lies != Some(Lies::On)
                || ancestry::holds(&*self.store, org, version).await? != Ancestry::Descends
            {
                aside.push((org, record));
            }
        }
        Ok(aside)
    }

    /// The configuration that a record tells of, from the store or the archive.
    ///
    /// # Errors
    /// The store or the archive failed, or content is missing or damaged.
    pub async fn at(
        &self,
        org: OrgId,
        record: &VersionRecord,
    ) -> Result<Arc<OrgConfig>, PublishError> {
        let current = self.load(org).await?;
        if current.head == record.head {
            return Ok(current);
        }
        let head = record.head.clone();
        let mut loaded = load::version(&*self.store, org, head.clone(), Some(&current)).await;
        let lacks = |loaded: &Result<Loaded, LoadError>| match loaded {
            Ok(loaded) => !beyond(&loaded.config, &current).is_empty(),
            Err(error) => matches!(error, LoadError::Missing(_)),
        };
        if lacks(&loaded) {
            let record = record.clone();
            let content = self
                .archived(move |archive| archive.content(org, &record))
                .await?;
            if let Some(content) = content {
                loaded = load::version(&content, org, head, Some(&current)).await;
            }
        }
        let loaded = loaded.map_err(|error| match error {
            LoadError::Store(error) => PublishError::Store(error),
            error => PublishError::Unreadable(error.to_string()),
        })?;
        // Next to what is whole it would look as if that had been deleted.
        let regions = beyond(&loaded.config, &current);
        if !regions.is_empty() {
            return Err(PublishError::Withheld { org, regions });
        }
        match loaded.faults.first() {
            None => Ok(Arc::new(loaded.config)),
            Some(fault) => Err(PublishError::Unreadable(format!(
                "{}: {}",
                fault.code, fault.detail
            ))),
        }
    }

    /// Publishes a version with the content of an earlier one, validated like every other. It is
    /// made of the newest version, again when somebody publishes in between.
    ///
    /// # Errors
    /// As for [`Publisher::publish`]; `None` where the earlier version is not kept.
    pub async fn rollback(&self, rollback: Rollback) -> Result<Option<Published>, PublishError> {
        let Some(kept) = self.version(rollback.request.org, rollback.to).await? else {
            return Ok(None);
        };
        let old = self.at(rollback.request.org, &kept.record).await?;
        let org = rollback.request.org;
        let make = |current: &Arc<OrgConfig>| returning(org, (current, &old));
        self.publish_made(rollback.request, make).await.map(Some)
    }

    /// Publishes what `make` makes of the newest version; it is asked again when somebody
    /// publishes in between.
    ///
    /// # Errors
    /// As for [`Publisher::publish`], and those of `make`.
    pub async fn publish_made<E: From<PublishError>>(
        &self,
        request: Request,
        mut make: impl FnMut(&Arc<OrgConfig>) -> Result<Vec<Operation>, E>,
    ) -> Result<Published, E> {
        if let Some(idempotency) = &request.idempotency {
            // What was carried out already need not be possible any more.
            let current = self.load(request.org).await?;
            let recalled = idempotency::recall(&*self.store, idempotency, &current).await?;
            if let Recalled::Done(published) = recalled {
                return Ok(published);
            }
        }
        loop {
            let current = self.load(request.org).await?;
            let publish = Publish {
                org: request.org,
                operations: make(&current)?,
                author: request.author.clone(),
                deadline: request.deadline,
                idempotency: request.idempotency.clone(),
            };
            match self.publish_onto(publish, Some(current.head.hash)).await {
                Err(PublishError::Moved) if Instant::now() < request.deadline => {}
                Err(PublishError::Moved) => return Err(PublishError::Contended.into()),
                published => return Ok(published?),
            }
        }
    }

    /// What `make` would make of the newest version: that version, and the draft of the next.
    /// Nothing is published.
    ///
    /// # Errors
    /// What stands against it.
    pub async fn draft<E: From<PublishError>>(
        &self,
        request: &Request,
        make: impl FnOnce(&Arc<OrgConfig>) -> Result<Vec<Operation>, E>,
    ) -> Result<(Arc<OrgConfig>, Draft), E> {
        let current = self.load(request.org).await?;
        let operations = Arc::from(make(&current)?);
        let by = (&request.author, request.deadline);
        let draft = self.tried((&current, operations), by).await?;
        Ok((current, draft))
    }
}

fn read(key: &str, value: &[u8]) -> Result<VersionRecord, PublishError> {
    serde_json::from_slice(value)
        .map_err(|error| PublishError::Unreadable(format!("{key}: {error}")))
}

/// What returns to the content of an earlier version.
///
/// # Errors
/// Something of the newest one is not here: it would stay as it is, beside what it was not made
/// with.
pub fn returning(
    org: OrgId,
    (current, old): (&OrgConfig, &OrgConfig),
) -> Result<Vec<Operation>, PublishError> {
    let regions = current.withheld_regions();
    match regions.is_empty() {
        true => Ok(tree::restore(&current.objects, &old.objects)),
        false => Err(PublishError::Withheld { org, regions }),
    }
}

/// The regions of which an earlier version lacks what the newest one here does not lack.
fn beyond(old: &OrgConfig, current: &OrgConfig) -> Vec<String> {
    let known: Vec<&str> = current.withheld().collect();
    let lacking = old.withheld().filter(|region| !known.contains(region));
    lacking.map(|set| regions_of(set).to_owned()).collect()
}
