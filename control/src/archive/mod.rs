//! Versions that have left the configuration store: kept in a SQLite file of this control plane.
//!
//! The store keeps the newest versions of an organisation; older ones are copied here first, each
//! with the leaves that it reaches, and are read from here by `versions`, `diff` and `rollback` as
//! if nothing had happened. Leaves are named by their content, so versions share what did not
//! change between them. Calls block; run them on a thread that may.

mod dropping;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use proto::id::OrgId;
use proto::keys;
use proto::seal;
use proto::store::Revision;
use proto::store::frozen::Frozen;
use proto::tree::{self, Hash, Root, TreeError, VersionRecord};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::private_sqlite;

/// The layout of the file, in `PRAGMA user_version`.
const LAYOUT: i64 = 2;
/// Longest wait for a lock that another connection holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// `n` is the number of a version, `published_s` its time in seconds of Unix time.
const CREATE: &str = "
    CREATE TABLE name (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL) STRICT;
    CREATE TABLE versions (
        org BLOB NOT NULL,
        n INTEGER NOT NULL,
        published_s INTEGER NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (org, n)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leaves (
        org BLOB NOT NULL,
        hash TEXT NOT NULL,
        packed BLOB NOT NULL,
        PRIMARY KEY (org, hash)
    ) STRICT;
";
/// What layout 2 adds: versions of branches that are not in force.
const CREATE_ASIDE: &str = "
    CREATE TABLE aside (
        org BLOB NOT NULL,
        hash TEXT NOT NULL,
        published_s INTEGER NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (org, hash)
    ) STRICT, WITHOUT ROWID;
";

/// Why the archive did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// SQLite failed: the disk is full, the file is damaged or locked.
    #[error("the archive of versions failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file was written by another release.
    #[error("the archive of versions has layout {0}, this program knows {LAYOUT}")]
    Layout(i64),
    /// An archived version cannot be read by this release.
    #[error("an archived version cannot be read: {0}")]
    Unreadable(String),
}

impl ArchiveError {
    /// Whether the disk is full or fails: it may do better later.
    pub fn is_of_disk(&self) -> bool {
        matches!(self, Self::Sqlite(error) if private_sqlite::is_of_disk(error))
    }
}

impl From<TreeError> for ArchiveError {
    fn from(error: TreeError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// What is kept of an organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Most versions.
    pub versions_max: u64,
    /// Those published before this, in seconds of Unix time, go.
    pub published_from_s: i64,
}

/// The layout of a file, which this release knows; 0 of an empty one.
fn known(db: &Connection) -> Result<i64, ArchiveError> {
    let found = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match (0..=LAYOUT).contains(&found) {
        true => Ok(found),
        false => Err(ArchiveError::Layout(found)),
    }
}

/// The open archive.
///
/// A std mutex and not an async one: SQLite blocks anyway, so callers are on blocking threads.
#[derive(Debug)]
pub struct Archive {
    name: String,
    db: Mutex<Connection>,
}

impl Archive {
    /// Whether the file, if there is one, is of a layout that is known. Another process may have it
    /// open.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn check(path: &Path) -> Result<(), ArchiveError> {
        if !path.exists() {
            return Ok(());
        }
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        known(&db).map(drop)
    }

    /// Opens or creates the file.
    ///
    /// # Errors
    /// The file cannot be opened, is no SQLite file, or has a layout that is not known.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let mut db = private_sqlite::open(path)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        // What is said to be here may be deleted from the store: it has to survive a power cut.
        db.pragma_update(None, "synchronous", "FULL")?;
        // What must not be kept here must not be found in the file either.
        db.pragma_update(None, "secure_delete", "ON")?;
        let txn = db.transaction()?;
        let layout = known(&txn)?;
        if layout == 0 {
            txn.execute_batch(CREATE)?;
            let name = seal::random_name();
            txn.execute("INSERT INTO name VALUES (1, ?1)", [name])?;
        }
        if layout < LAYOUT {
            txn.execute_batch(CREATE_ASIDE)?;
            txn.pragma_update(None, "user_version", LAYOUT)?;
        }
        let name = txn.query_row("SELECT name FROM name", [], |row| row.get(0))?;
        txn.commit()?;
        let db = Mutex::new(db);
        Ok(Self { name, db })
    }

    /// The archive's own name, made with the file: what a control plane says about what it has
    /// archived must not outlive the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes a version in, with those of its leaves and roots that are not here. A version of the
    /// same number goes: it was part of a history that ended when the store was restored.
    ///
    /// # Errors
    /// Nothing was stored.
    pub fn insert(
        &self,
        org: OrgId,
        record: &VersionRecord,
        leaves: &[(Hash, Bytes)],
    ) -> Result<(), ArchiveError> {
        let org = blob(org);
        let json = serde_json::to_string(record).map_err(unreadable)?;
        let (mut db, n) = (self.locked(), number(record.head.n));
        let txn = db.transaction()?;
        for (hash, packed) in leaves {
            txn.execute(
                "INSERT OR REPLACE INTO leaves VALUES (?1, ?2, ?3)",
                params![org, hash.to_string(), &packed[..]],
            )?;
        }
        txn.execute(
            "INSERT OR REPLACE INTO versions VALUES (?1, ?2, ?3, ?4)",
            params![org, n, record.at.as_second(), json],
        )?;
        txn.commit()?;
        Ok(())
    }

    /// Whether a leaf or root is here.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn has_leaf(&self, org: OrgId, hash: &Hash) -> Result<bool, ArchiveError> {
        let db = self.locked();
        let mut found = db.prepare_cached("SELECT 1 FROM leaves WHERE org = ?1 AND hash = ?2")?;
        Ok(found.exists(params![blob(org), hash.to_string()])?)
    }

    /// The record of one version.
    ///
    /// # Errors
    /// The file cannot be read, or the record not by this release.
    pub fn version(&self, org: OrgId, n: u64) -> Result<Option<VersionRecord>, ArchiveError> {
        let db = self.locked();
        let mut found =
            db.prepare_cached("SELECT record FROM versions WHERE org = ?1 AND n = ?2")?;
        let json: Option<String> = found
            .query_row(params![blob(org), number(n)], |row| row.get(0))
            .optional()?;
        json.map(|json| serde_json::from_str(&json).map_err(unreadable))
            .transpose()
    }

    /// The records of at most `limit` versions before `before`, the newest first.
    ///
    /// # Errors
    /// The file cannot be read, or a record not by this release.
    pub fn versions(
        &self,
        org: OrgId,
        before: u64,
        limit: usize,
    ) -> Result<Vec<VersionRecord>, ArchiveError> {
        let db = self.locked();
        let mut found = db.prepare_cached(
            "SELECT record FROM versions WHERE org = ?1 AND n < ?2 ORDER BY n DESC LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = found.query_map(params![blob(org), number(before), limit], |row| {
            row.get::<_, String>(0)
        })?;
        rows.map(|json| serde_json::from_str(&json?).map_err(unreadable))
            .collect()
    }

    /// Moves versions aside that were made on a branch; they are read as versions no more. Answers
    /// how many.
    ///
    /// # Errors
    /// Nothing was moved.
    pub fn leave_branch(
        &self,
        org: OrgId,
        is_aside: impl Fn(&VersionRecord) -> bool,
    ) -> Result<usize, ArchiveError> {
        let branch = self.versions(org, u64::MAX, usize::MAX)?;
        let (mut db, id) = (self.locked(), blob(org));
        let txn = db.transaction()?;
        let mut moved = 0;
        for record in branch.into_iter().filter(is_aside) {
            let json = serde_json::to_string(&record).map_err(unreadable)?;
            let hash = record.head.hash.to_string();
            txn.execute(
                "INSERT OR REPLACE INTO aside VALUES (?1, ?2, ?3, ?4)",
                params![id, hash, record.at.as_second(), json],
            )?;
            txn.execute(
                "DELETE FROM versions WHERE org = ?1 AND n = ?2",
                params![id, number(record.head.n)],
            )?;
            moved += 1;
        }
        txn.commit()?;
        Ok(moved)
    }

    /// The records of all versions that were moved aside.
    ///
    /// # Errors
    /// The file cannot be read, or a record not by this release.
    pub fn aside(&self) -> Result<Vec<(OrgId, VersionRecord)>, ArchiveError> {
        let db = self.locked();
        let mut found = db.prepare_cached("SELECT org, record FROM aside")?;
        let rows = found.query_map([], |row| {
            Ok((row.get::<_, [u8; 16]>(0)?, row.get::<_, String>(1)?))
        })?;
        rows.map(|row| {
            let (org, json) = row?;
            let org = OrgId::from_bits(u128::from_be_bytes(org));
            Ok((org, serde_json::from_str(&json).map_err(unreadable)?))
        })
        .collect()
    }

    /// Leaves and roots of a version, to be read like a store. What is not here is missing there.
    ///
    /// # Errors
    /// The file cannot be read, or a root makes no sense.
    pub fn content(&self, org: OrgId, record: &VersionRecord) -> Result<Frozen, ArchiveError> {
        let db = self.locked();
        let mut pairs = BTreeMap::new();
        for hash in reached(&db, org, record, |_| true)? {
            if let Some(packed) = leaf(&db, org, &hash)? {
                pairs.insert(keys::leaf(org, &hash), packed.into());
            }
        }
        Ok(Frozen::new(Revision(1), pairs))
    }

    /// Organisations with a version or a leaf here.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn orgs(&self) -> Result<Vec<OrgId>, ArchiveError> {
        let db = self.locked();
        let mut found =
            db.prepare_cached("SELECT org FROM versions UNION SELECT org FROM leaves")?;
        let rows = found.query_map([], |row| row.get::<_, [u8; 16]>(0))?;
        rows.map(|org| Ok(OrgId::from_bits(u128::from_be_bytes(org?))))
            .collect()
    }

    /// A panic while the lock was held leaves the file whole: SQLite's transaction rolled back.
    fn locked(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The roots of some sets of a version and the leaves that they list. A root that is not here lists
/// nothing.
fn reached(
    db: &Connection,
    org: OrgId,
    record: &VersionRecord,
    keeps: impl Fn(&str) -> bool,
) -> Result<HashSet<Hash>, ArchiveError> {
    let mut hashes = HashSet::new();
    for (_, root) in record.head.roots.iter().filter(|(set, _)| keeps(set)) {
        hashes.insert(*root);
        if let Some(packed) = leaf(db, org, root)? {
            let root = Root::parse(&tree::unpack(*root, &packed)?)?;
            hashes.extend(root.leaves.into_values());
        }
    }
    Ok(hashes)
}

fn leaf(db: &Connection, org: OrgId, hash: &Hash) -> rusqlite::Result<Option<Vec<u8>>> {
    db.prepare_cached("SELECT packed FROM leaves WHERE org = ?1 AND hash = ?2")?
        .query_row(params![blob(org), hash.to_string()], |row| row.get(0))
        .optional()
}

/// An id as SQLite stores it: 16 bytes that sort like the id.
fn blob(org: OrgId) -> [u8; 16] {
    org.bits().to_be_bytes()
}

/// A number as SQLite can hold it.
fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unreadable(error: serde_json::Error) -> ArchiveError {
    ArchiveError::Unreadable(error.to_string())
}
