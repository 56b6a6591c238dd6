//! Changes made inside one SQLite transaction, each store transaction with a revision of its own.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};

use super::fault::Fault;
use super::history::{self, Head};
use super::leases::LeaseChange;
use super::room::Room;
use crate::store::{At, Compare, Lease, LeaseId, Op, Revision, StoreError, Txn, TxnOutcome};

/// Leases that may live at a time; more point to an owner that does not know it has one.
const LEASES_MAX: i64 = 100_000;

/// Rows that a compaction looks at next, and whether each is forgotten. `id` grows with `revision`:
/// without the last one the rest of the table would be read for rows that it does not have.
pub(super) const SWEPT: &str = "
SELECT id, deleted OR EXISTS (SELECT 1 FROM kv AS later WHERE later.key = kv.key
    AND later.revision > kv.revision AND later.revision <= ?2)
FROM kv WHERE id > ?1 AND revision < ?2 AND id <= (
    SELECT id FROM kv WHERE revision < ?2 ORDER BY revision DESC, id DESC LIMIT 1)
ORDER BY id LIMIT ?3";

/// Changes that are not yet committed.
pub(super) struct Batch<'c> {
    db: &'c Connection,
    revision: Revision,
    /// What happened to leases, to be noted when the batch is committed.
    pub(super) leases: Vec<LeaseChange>,
    /// A compaction that was asked for.
    pub(super) compacted: Option<Revision>,
    /// Whether writes are taken.
    room: Option<&'c mut Room>,
}

/// How far a compaction has got with removing rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    /// Rows below this revision go unless they hold a key's value at it.
    pub(super) until: Revision,
    /// The last row that was looked at.
    pub(super) row: i64,
}

impl<'c> Batch<'c> {
    /// A batch that begins at the store's revision.
    pub(super) fn new(db: &'c Connection, revision: Revision) -> Self {
        Self {
            db,
            revision,
            leases: Vec::new(),
            compacted: None,
            room: None,
        }
    }

    /// The same, of a store that may not take writes.
    pub(super) fn within(self, room: &'c mut Room) -> Self {
        Self {
            room: Some(room),
            ..self
        }
    }

    /// The revision reached so far.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Runs a transaction that has passed [`crate::store::limits::check_txn`].
    pub(super) fn txn(&mut self, txn: &Txn) -> Result<TxnOutcome, Fault> {
        for compare in &txn.compares {
            if !self.holds(compare)? {
                // What could write is refused although it would not: as etcd does.
                if let Some(room) = self.room.as_mut().filter(|_| !txn.ops.is_empty())
                    && let Some(why) = room.refuses(self.db, Instant::now())
                {
                    return Err(why.clone().into());
                }
                return Ok(TxnOutcome::Conflict(self.read(&txn.or_read)?));
            }
        }
        // All refusals come before the first change, so that a refused one leaves nothing behind.
        for op in &txn.ops {
            if let Op::Put {
                lease: Some(lease), ..
            } = op
            {
                self.require(*lease)?;
            }
        }
        let revision = self.revision.next();
        let mut changed = false;
        for op in &txn.ops {
            changed |= match op {
                Op::Put { key, value, lease } => self.put(key, value, *lease, revision)?,
                Op::Delete(key) => self.delete(key.as_bytes(), revision)?,
            };
        }
        if changed {
            self.revision = revision;
        }
        Ok(TxnOutcome::Committed(self.revision))
    }

    /// Grants a lease.
    pub(super) fn grant(&mut self, ttl: Duration) -> Result<Lease, Fault> {
        let count: i64 = self
            .db
            .query_row("SELECT count(*) FROM lease", [], |row| row.get(0))?;
        if count >= LEASES_MAX {
            return Err(StoreError::Full(format!("{count} leases live")).into());
        }
        // Rounded up: a lease lives no shorter than asked for.
        let ttl_ms = ttl.as_nanos().div_ceil(1_000_000);
        let ttl_ms = i64::try_from(ttl_ms).unwrap_or(i64::MAX);
        self.db
            .execute("INSERT INTO lease (ttl_ms) VALUES (?1)", [ttl_ms])?;
        let id = LeaseId(self.db.last_insert_rowid());
        let ttl = Duration::from_millis(ttl_ms.unsigned_abs());
        self.leases.push(LeaseChange::Granted(id, ttl));
        Ok(Lease { id, ttl })
    }

    /// Renews a lease. Nothing is written: after a restart every lease gets its full time again.
    pub(super) fn keep_alive(&mut self, lease: LeaseId) -> Result<(), Fault> {
        self.require(lease)?;
        self.leases.push(LeaseChange::Renewed(lease));
        Ok(())
    }

    /// Ends a lease and deletes its keys in one revision, in key order.
    pub(super) fn end_lease(&mut self, lease: LeaseId) -> Result<(), Fault> {
        self.require(lease)?;
        let mut statement = self.db.prepare_cached(
            "SELECT key, max(revision) FROM kv WHERE lease = ?1 GROUP BY key ORDER BY key",
        )?;
        let rows = statement.query_map([lease.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let keys: Vec<(Vec<u8>, i64)> = rows.collect::<Result<_, _>>()?;
        let revision = self.revision.next();
        for (key, under_lease) in keys {
            let newest = history::head(self.db, &key)?.map(|head| head.mod_revision);
            // A key that was changed since is under another lease, or none, or deleted.
            if newest == Some(Revision(under_lease)) && self.delete(&key, revision)? {
                self.revision = revision;
            }
        }
        self.db
            .prepare_cached("DELETE FROM lease WHERE id = ?1")?
            .execute([lease.0])?;
        self.leases.push(LeaseChange::Ended(lease));
        Ok(())
    }

    /// Marks history below a revision as forgotten; the rows are removed by [`Batch::sweep`].
    pub(super) fn compact(&mut self, revision: Revision) -> Result<(), Fault> {
        if revision > self.revision {
            return Err(history::not_reached(revision, self.revision).into());
        }
        if revision > history::compacted(self.db)? {
            self.db
                .execute("UPDATE compaction SET revision = ?1", [revision.0])?;
            self.compacted = Some(revision);
        }
        Ok(())
    }

    /// Marks all history as forgotten; gives what removes its rows.
    pub(super) fn forget(&mut self) -> Result<Sweep, Fault> {
        let until = self.revision;
        self.compact(until)?;
        Ok(Sweep { until, row: 0 })
    }

    /// Fails where writes are not taken, as it is now.
    pub(super) fn takes_writes(&mut self) -> Result<(), Fault> {
        let room = self.room.as_mut();
        let why = room.and_then(|room| room.refuses_still(self.db, Instant::now()));
        why.map_or(Ok(()), |why| Err(why.clone().into()))
    }

    /// Removes forgotten rows among the next `rows_max`; `None` when none are left to look at.
    ///
    /// Rows at the compacted revision stay, deletions too, as a watch may begin there. Rows go in
    /// ascending order: a deletion never goes before the values that it hides.
    pub(super) fn sweep(&mut self, sweep: Sweep, rows_max: usize) -> Result<Option<Sweep>, Fault> {
        let mut statement = self.db.prepare_cached(SWEPT)?;
        let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
        let found = statement.query_map(params![sweep.row, sweep.until.0, limit], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        let rows: Vec<(i64, bool)> = found.collect::<Result<_, _>>()?;
        let mut delete = self.db.prepare_cached("DELETE FROM kv WHERE id = ?1")?;
        for (id, _) in rows.iter().filter(|(_, forgotten)| *forgotten) {
            delete.execute([id])?;
        }
        let last = rows.last().map_or(sweep.row, |(id, _)| *id);
        Ok((rows.len() == rows_max).then_some(Sweep { row: last, ..sweep }))
    }

    fn holds(&self, compare: &Compare) -> Result<bool, Fault> {
        let live = |key: &str| -> rusqlite::Result<Option<Head>> {
            Ok(history::head(self.db, key.as_bytes())?.filter(|head| !head.deleted))
        };
        Ok(match compare {
            Compare::Absent(key) => live(key)?.is_none(),
            Compare::Present(key) => live(key)?.is_some(),
            Compare::ModRevision(key, revision) => {
                live(key)?.is_some_and(|head| head.mod_revision == *revision)
            }
            Compare::Value(key, expected) => {
                history::value(self.db, key.as_bytes(), self.revision)?
                    .is_some_and(|found| found.value == *expected)
            }
        })
    }

    fn read(&self, keys: &[String]) -> Result<At<Vec<Option<crate::store::KeyValue>>>, Fault> {
        let read = |key: &String| history::value(self.db, key.as_bytes(), self.revision);
        let value = keys.iter().map(read).collect::<Result<_, _>>()?;
        Ok(At {
            revision: self.revision,
            value,
        })
    }

    fn require(&self, lease: LeaseId) -> Result<(), Fault> {
        let mut statement = self
            .db
            .prepare_cached("SELECT 1 FROM lease WHERE id = ?1")?;
        let found: Option<i64> = statement
            .query_row([lease.0], |row| row.get(0))
            .optional()?;
        found
            .map(|_| ())
            .ok_or_else(|| StoreError::LeaseNotFound(lease).into())
    }

    fn put(
        &self,
        key: &str,
        value: &[u8],
        lease: Option<LeaseId>,
        revision: Revision,
    ) -> rusqlite::Result<bool> {
        let before = history::head(self.db, key.as_bytes())?.filter(|head| !head.deleted);
        let (create_revision, version) = before.map_or((revision, 1), |head| {
            (head.create_revision, head.version + 1)
        });
        self.db
            .prepare_cached(
                "INSERT INTO kv (revision, key, create_revision, version, deleted, lease, value)
                 VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6)",
            )?
            .execute(params![
                revision.0,
                key.as_bytes(),
                create_revision.0,
                version,
                lease.map(|lease| lease.0),
                value
            ])?;
        Ok(true)
    }

    fn delete(&self, key: &[u8], revision: Revision) -> rusqlite::Result<bool> {
        if history::head(self.db, key)?.is_none_or(|head| head.deleted) {
            return Ok(false);
        }
        self.db
            .prepare_cached(
                "INSERT INTO kv (revision, key, create_revision, version, deleted, lease, value)
                 VALUES (?1, ?2, 0, 0, 1, NULL, x'')",
            )?
            .execute(params![revision.0, key])?;
        Ok(true)
    }
}
