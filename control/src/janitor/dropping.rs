//! Drops the records of archived versions from the store. Their names stay in `lineage/{org}`.

use proto::id::OrgId;
use proto::keys;
use proto::store::{Compare, Op, Range, Store, Txn, TxnOutcome};
use proto::tree::{Head, Lineage, VersionRecord};

use super::keeping::Keeps;
use super::progress::{self, Progress};
use super::{Janitor, JanitorError};

/// Records dropped in one transaction, each with its signature.
const AT_ONCE: usize = 45;
/// Records read in one page.
const PAGE: usize = 200;

/// What came of it.
pub(super) struct Dropping {
    pub dropped: u64,
    /// Whether everything went that is to go.
    pub all: bool,
}

impl Janitor {
    /// Drops what lies before the newest versions, as far as every control plane that is there has
    /// archived it, and what is not to be kept here.
    pub(super) async fn drop_archived(
        &self,
        org: OrgId,
        head: &Head,
        keeps: &Keeps,
    ) -> Result<Dropping, JanitorError> {
        let until = head.n.saturating_sub(self.options.store_versions);
        let mut dropping = Dropping {
            dropped: 0,
            all: true,
        };
        let purged = keeps.from().saturating_sub(1);
        if until.max(purged) == 0 {
            return Ok(dropping);
        }
        let store = self.publisher.store();
        let (progress, archived) = Progress::read(store, org).await?;
        let floor = progress.floor(&progress::live(store).await?);
        dropping.all = floor >= until;
        let records = records_until(store, org, until.min(floor).max(purged)).await?;
        for part in records.chunks(AT_ONCE) {
            let (lineage, unchanged) = lineage(store, org, part).await?;
            let numbers = part.iter().map(|record| record.head.n);
            let gone = numbers.flat_map(|n| [keys::version(org, n), keys::signature(org, n)]);
            let mut ops: Vec<Op> = gone.map(Op::Delete).collect();
            ops.push(Op::put(keys::lineage(org), lineage));
            let txn = Txn {
                compares: vec![archived.clone(), unchanged],
                ops,
                or_read: Vec::new(),
            };
            match store.txn(txn).await? {
                TxnOutcome::Committed(_) => dropping.dropped += part.len() as u64,
                TxnOutcome::Conflict(_) => return Err(JanitorError::Moved),
            }
        }
        Ok(dropping)
    }
}

/// The list of names with these versions, and the compare that holds while the stored one is the
/// one that it was made of.
async fn lineage(
    store: &dyn Store,
    org: OrgId,
    records: &[VersionRecord],
) -> Result<(Vec<u8>, Compare), JanitorError> {
    let key = keys::lineage(org);
    let (mut lineage, unchanged) = match store.get(&key).await?.value {
        None => (Lineage::default(), Compare::Absent(key)),
        Some(pair) => {
            let lineage = serde_json::from_slice(&pair.value)
                .map_err(|_| JanitorError::Unreadable(key.clone()))?;
            (lineage, Compare::ModRevision(key, pair.mod_revision))
        }
    };
    lineage.extend(records.iter().map(|record| &record.head));
    // Numbers and texts only: serialising into memory cannot fail.
    let value = serde_json::to_vec(&lineage).unwrap_or_default();
    Ok((value, unchanged))
}

/// The records in the store of versions up to a number, in order.
pub(super) async fn records_until(
    store: &dyn Store,
    org: OrgId,
    until: u64,
) -> Result<Vec<VersionRecord>, JanitorError> {
    let mut range = Range {
        prefix: keys::versions(org),
        after: None,
        limit: PAGE,
        at: None,
    };
    let mut records = Vec::new();
    loop {
        let page = store.range(range.clone()).await?;
        range.after = page.items.last().map(|pair| pair.key.clone());
        for pair in page.items {
            let record: VersionRecord = serde_json::from_slice(&pair.value)
                .map_err(|_| JanitorError::Unreadable(pair.key))?;
            if record.head.n > until {
                return Ok(records);
            }
            records.push(record);
        }
        if !page.more || range.after.is_none() {
            return Ok(records);
        }
    }
}
