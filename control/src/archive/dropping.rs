//! What leaves the archive: what is too old or too much, what may not be here, what was deleted.

use std::collections::HashSet;

use proto::id::OrgId;
use proto::tree::{Hash, VersionRecord};
use rusqlite::{Connection, params};

use super::{Archive, ArchiveError, Keep, blob, number, reached, unreadable};

impl Archive {
    /// Drops versions of an organisation that are not to be kept, and leaves that no other version
    /// reaches. Answers how many versions went.
    ///
    /// # Errors
    /// Nothing was dropped.
    pub fn retain(&self, org: OrgId, keep: Keep) -> Result<usize, ArchiveError> {
        let mut db = self.locked();
        let txn = db.transaction()?;
        let id = blob(org);
        let most = i64::try_from(keep.versions_max).unwrap_or(i64::MAX);
        let dropped = txn.execute(
            "DELETE FROM versions WHERE org = ?1 AND (published_s < ?2 OR n NOT IN
             (SELECT n FROM versions WHERE org = ?1 ORDER BY n DESC LIMIT ?3))",
            params![id, keep.published_from_s, most],
        )?;
        let left = txn.execute(
            "DELETE FROM aside WHERE org = ?1 AND published_s < ?2",
            params![id, keep.published_from_s],
        )?;
        if dropped + left > 0 {
            drop_unreached(&txn, org, |_| true)?;
        }
        txn.commit()?;
        Ok(dropped)
    }

    /// Drops versions before `from`, and of all others what only sets reach that are not kept.
    ///
    /// # Errors
    /// Nothing was dropped.
    pub fn purge(
        &self,
        org: OrgId,
        from: u64,
        keeps: impl Fn(&str) -> bool,
    ) -> Result<(), ArchiveError> {
        let mut db = self.locked();
        let txn = db.transaction()?;
        txn.execute(
            "DELETE FROM versions WHERE org = ?1 AND n < ?2",
            params![blob(org), number(from)],
        )?;
        drop_unreached(&txn, org, keeps)?;
        txn.commit()?;
        // The log of changes has a copy.
        db.pragma_update(None, "wal_checkpoint", "TRUNCATE")?;
        Ok(())
    }

    /// Forgets an organisation that was deleted.
    ///
    /// # Errors
    /// Nothing was dropped.
    pub fn forget(&self, org: OrgId) -> Result<(), ArchiveError> {
        let mut db = self.locked();
        let txn = db.transaction()?;
        txn.execute("DELETE FROM versions WHERE org = ?1", [blob(org)])?;
        txn.execute("DELETE FROM aside WHERE org = ?1", [blob(org)])?;
        txn.execute("DELETE FROM leaves WHERE org = ?1", [blob(org)])?;
        txn.commit()?;
        Ok(())
    }
}

/// Drops leaves that no version reaches through a set that is kept. A root that cannot be read
/// stands against it: what it reaches is not known.
fn drop_unreached(
    db: &Connection,
    org: OrgId,
    keeps: impl Fn(&str) -> bool,
) -> Result<(), ArchiveError> {
    let mut reached_all: HashSet<String> = HashSet::new();
    let mut records = db.prepare_cached(
        "SELECT record, 0 FROM versions WHERE org = ?1
         UNION ALL SELECT record, 1 FROM aside WHERE org = ?1",
    )?;
    let rows = records.query_map([blob(org)], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?))
    })?;
    for row in rows {
        let (json, is_aside) = row?;
        let record: VersionRecord = serde_json::from_str(&json).map_err(unreadable)?;
        // What is set aside stays as it is.
        let hashes = reached(db, org, &record, |set| is_aside || keeps(set))?;
        reached_all.extend(hashes.iter().map(Hash::to_string));
    }
    let mut leaves = db.prepare_cached("SELECT hash FROM leaves WHERE org = ?1")?;
    let rows = leaves.query_map([blob(org)], |row| row.get::<_, String>(0))?;
    let all: Vec<String> = rows.collect::<Result<_, _>>()?;
    let mut drop_leaf = db.prepare_cached("DELETE FROM leaves WHERE org = ?1 AND hash = ?2")?;
    for hash in all.iter().filter(|hash| !reached_all.contains(*hash)) {
        drop_leaf.execute(params![blob(org), hash])?;
    }
    Ok(())
}
