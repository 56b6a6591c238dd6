//! A branch that is not in force: what this region holds of it is moved to `aside/`, for a person.
//!
//! First every version of the branch is copied, its record as it is; its content stays where it is
//! and the janitor keeps it. Then the head moves to the line in force, in one transaction. After a
//! cut in between the same is done again.

use std::sync::Arc;

use proto::home::{Home, Lies};
use proto::id::OrgId;
use proto::keys;
use proto::store::ancestry;
use proto::store::chunks::chunks;
use proto::store::load::{self, LoadError};
use proto::store::{Compare, Op, Store, StoreError, Txn, TxnOutcome};
use proto::tree::{Head, OrgConfig, VersionRecord};
use proto::wire::replication::Position;

use super::apply::{ApplyError, Guard, Local, write};
use crate::publish::writes::json;

/// What is left behind when the head moves to another line.
#[derive(Default)]
pub(super) struct Branch {
    /// Numbers of the versions that are copied.
    pub numbers: Vec<u64>,
    /// What goes with the head: the names of older versions, without those of the branch, and
    /// where it parted.
    pub with_head: Vec<Op>,
    /// Holds while no sweep of leaves has begun.
    pub sweep: Option<Compare>,
}

impl Branch {
    /// Whether one is left.
    pub fn is_left(&self) -> bool {
        self.sweep.is_some()
    }
}

/// Where what is here leaves a line.
pub(super) enum Parting {
    /// Where the openings of the line tell.
    Opening,
    /// After this version, as the region in which the line is in force has said; before all that
    /// is kept here, where it knows none of it. Of an epoch that names two branches the openings
    /// tell nothing.
    After(Option<Position>),
}

impl Local {
    /// Copies what does not lie on the line, and goes back to the newest version that does; to
    /// none where that is not kept any more. The store's head is not moved by this.
    pub(super) async fn leave_branch(
        mut self,
        store: &dyn Store,
        (line, parting): (&Home, &Parting),
        guard: &Guard,
    ) -> Result<Self, ApplyError> {
        let sweep = self.sweep(store).await?;
        let records = self.records(store).await?;
        let last = match parting {
            Parting::Opening => None,
            Parting::After(last) => Some(last.as_ref().map_or(0, |last| last.n)),
        };
        let is_aside = |record: &&VersionRecord| {
            let is_after = last.is_some_and(|last| record.head.n > last);
            is_after || lies(line, &record.head) == Lies::Aside
        };
        let branch: Vec<&VersionRecord> = records.iter().filter(is_aside).collect();
        self.copy(store, &branch, guard).await?;
        let base = self.config.as_ref().and_then(|config| {
            let base = match parting {
                Parting::Opening => newest_on(line, &config.head, &records),
                Parting::After(last) => {
                    let is_last = |record: &&VersionRecord| {
                        last.as_ref() == Some(&Position::from(&record.head))
                    };
                    records.iter().find(is_last)
                }
            };
            base.map(|base| (base.head.clone(), config.clone()))
        });
        tracing::warn!(
            org = %self.org, versions = branch.len(),
            "{} versions of {} that were made on another branch are set aside; in force is what \
             region {} made", branch.len(), self.org, line.region
        );
        let from = base.as_ref().map_or(last.unwrap_or(0), |(base, _)| base.n);
        let parted = self.config.as_ref().zip(last).map(|(config, last)| {
            let key = keys::parted(self.org, &config.head.epoch);
            Op::put(key, last.to_string())
        });
        let lineage = lineage_until(store, self.org, from).await?;
        self.branch = Branch {
            numbers: branch.iter().map(|record| record.head.n).collect(),
            with_head: lineage.into_iter().chain(parted).collect(),
            sweep: Some(sweep),
        };
        self.config = match base {
            None => None,
            Some((base, current)) => self.content_of(store, base, &current).await?,
        };
        Ok(self)
    }

    /// Sets all of an organisation aside that the line of `system` in force does not name: it was
    /// created on a branch.
    pub(super) async fn leave(self, store: &dyn Store, guard: &Guard) -> Result<(), ApplyError> {
        let records = self.records(store).await?;
        let all: Vec<&VersionRecord> = records.iter().collect();
        self.copy(store, &all, guard).await?;
        let gone = all.iter().map(|record| record.head.n);
        let gone = gone.flat_map(|n| [keys::version(self.org, n), keys::signature(self.org, n)]);
        let gone: Vec<Op> = gone.map(Op::Delete).collect();
        self.delete(store, guard).await?;
        Ok(write(store, gone).await?)
    }

    async fn records(&self, store: &dyn Store) -> Result<Vec<VersionRecord>, ApplyError> {
        let (mut records, mut unreadable) = (Vec::new(), None);
        load::list(
            store,
            &keys::versions(self.org),
            None,
            |pair| match serde_json::from_slice::<VersionRecord>(&pair.value) {
                Ok(record) => records.push(record),
                Err(error) => unreadable = Some(format!("{}: {error}", pair.key)),
            },
        )
        .await?;
        match unreadable {
            // What cannot be read cannot be told from what is to stay.
            Some(why) => Err(self.refused(why)),
            None => Ok(records),
        }
    }

    async fn copy(
        &self,
        store: &dyn Store,
        branch: &[&VersionRecord],
        guard: &Guard,
    ) -> Result<(), ApplyError> {
        let put = |record: &&VersionRecord| {
            let Head { epoch, n, hash, .. } = &record.head;
            Op::put(keys::aside(self.org, epoch, (*n, hash)), json(*record))
        };
        for ops in chunks(branch.iter().map(put).collect()) {
            let txn = Txn {
                compares: self.compares(guard),
                ops,
                or_read: Vec::new(),
            };
            if let TxnOutcome::Conflict(_) = store.txn(txn).await? {
                return Err(ApplyError::Moved(self.org));
            }
        }
        Ok(())
    }

    /// An earlier version, if all of it is still there.
    async fn content_of(
        &self,
        store: &dyn Store,
        head: Head,
        current: &OrgConfig,
    ) -> Result<Option<Arc<OrgConfig>>, ApplyError> {
        match load::version(store, self.org, head, Some(current)).await {
            Ok(loaded) => Ok(Some(Arc::new(loaded.config))),
            Err(LoadError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn lies(line: &Home, head: &Head) -> Lies {
    line.lies(&Position::from(head))
}

/// The newest ancestor of a head that lies on a line, if the records lead there without a gap.
fn newest_on<'r>(
    line: &Home,
    head: &Head,
    records: &'r [VersionRecord],
) -> Option<&'r VersionRecord> {
    let mut child = head;
    let mut older = records
        .iter()
        .rev()
        .skip_while(|record| record.head.n >= head.n);
    loop {
        let record = older.next()?;
        if child.parent != Some(record.head.hash) {
            return None;
        }
        if lies(line, &record.head) != Lies::Aside {
            return Some(record);
        }
        child = &record.head;
    }
}

/// The names of older versions up to a number, if there are some beyond it.
async fn lineage_until(store: &dyn Store, org: OrgId, n: u64) -> Result<Option<Op>, StoreError> {
    let mut lineage = ancestry::lineage(store, org).await?;
    let shorter = lineage.truncate(n);
    Ok(shorter.then(|| Op::put(keys::lineage(org), json(&lineage))))
}

#[cfg(test)]
mod tests {
    use proto::tree::Hash;
    use proto::version::Epoch;

    use super::*;

    fn record(counter: u64, region: &str, n: u64, parent: Option<&VersionRecord>) -> VersionRecord {
        let head = Head {
            epoch: Epoch {
                counter,
                region: region.into(),
            },
            n,
            hash: Hash::of(format!("{counter} {region} {n}").as_bytes()),
            parent: parent.map(|parent| parent.head.hash),
            gc: 0,
            salt: String::new(),
            roots: Default::default(),
        };
        VersionRecord {
            head,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            author: "tok".into(),
            source: None,
            changes: 1,
            changed: Vec::new(),
        }
    }

    #[test]
    fn the_way_back_ends_on_the_line_and_never_jumps_a_gap() {
        let one = record(1, "us", 1, None);
        let two = record(1, "us", 2, Some(&one));
        let three = record(1, "us", 3, Some(&two));
        let four = record(2, "us", 4, Some(&three));
        let line = Home::first(one.head.epoch.clone(), "us");
        let base = Position::from(&two.head);
        let line = line.reopen("eu", base, std::iter::once(4));
        let all = [one.clone(), two.clone(), three.clone(), four.clone()];
        for (records, expected) in [
            (&all[..], Some(2)),
            (&all[1..], Some(2)),
            (&all[2..], None),
            (&[one.clone(), three.clone(), four.clone()][..], None),
            (&[one, two][..], None),
        ] {
            let found = newest_on(&line, &four.head, records);
            assert_eq!(found.map(|record| record.head.n), expected);
        }
        assert_eq!(newest_on(&line, &three.head, &all).unwrap().head.n, 2);
    }
}
