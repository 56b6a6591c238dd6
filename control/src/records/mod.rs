//! The records store of one machine: what is kept of each request, in a SQLite file of its own.
//!
//! Not the file of the configuration: records come in batches, may lose the last moments in a
//! power cut (`synchronous=NORMAL`), and are dropped by age and number. Calls block; run them on
//! a thread that may.

mod query;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::id::{OrgId, RequestId};
use proto::record::Record;
use rusqlite::{Connection, OptionalExtension, params};

pub use query::{RecordCursor, RecordFilter, StatusFilter};

/// The layout of the file, in `PRAGMA user_version`.
const LAYOUT: i64 = 1;
/// Longest wait for a lock that another connection holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Records deleted in one transaction, so that inserts never wait long.
const DELETE_BATCH: i64 = 2_000;
/// Records deleted by one call of [`Records::retain`]; the next call goes on.
const DELETE_CALL_MAX: i64 = 200_000;

/// How often old records are looked for.
const RETAIN_EVERY: Duration = Duration::from_secs(600);

/// Columns that are searched, and the record as JSON.
const CREATE: &str = "
    CREATE TABLE records (
        request_id BLOB PRIMARY KEY,
        started_at_us INTEGER NOT NULL,
        org_id BLOB NOT NULL,
        proxy_id BLOB NOT NULL,
        proxy_credential_id BLOB,
        target_credential_id BLOB,
        status INTEGER,
        code TEXT NOT NULL,
        record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX records_by_org ON records (org_id, started_at_us, request_id);
    CREATE INDEX records_by_proxy ON records (org_id, proxy_id, started_at_us, request_id);
    CREATE INDEX records_by_status ON records (org_id, status, started_at_us, request_id);
    CREATE INDEX records_by_code ON records (org_id, code, started_at_us, request_id);
    CREATE INDEX records_by_age ON records (started_at_us);
";

/// Why the records store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// SQLite failed: the disk is full, the file is damaged or locked.
    #[error("the records store failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file was written by another release.
    #[error("the records file has layout {found}, this program knows {LAYOUT}")]
    Layout {
        /// What the file says.
        found: i64,
    },
    /// A stored record does not parse.
    #[error("a stored record does not parse: {0}")]
    Damaged(#[from] serde_json::Error),
}

/// How long records are kept; whichever limit is met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Records that started longer ago are dropped.
    pub age_max: Duration,
    /// At most so many are kept, over all organisations; the oldest go first.
    pub count_max: u64,
}

impl Default for Retention {
    /// 90 days, ten million.
    fn default() -> Self {
        Self {
            age_max: Duration::from_secs(90 * 86_400),
            count_max: 10_000_000,
        }
    }
}

/// The open store. Clones of an `Arc` of it serve every thread.
///
/// A std mutex and not an async one: SQLite blocks anyway, so callers are on blocking threads.
#[derive(Debug)]
pub struct Records {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
}

impl Records {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// The file cannot be opened, is no SQLite file, or has another layout.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        let mut writer = connect(path)?;
        let found: i64 = writer.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        match found {
            0 => {
                let txn = writer.transaction()?;
                txn.execute_batch(CREATE)?;
                txn.pragma_update(None, "user_version", LAYOUT)?;
                txn.commit()?;
            }
            LAYOUT => {}
            found => return Err(RecordsError::Layout { found }),
        }
        Ok(Self {
            writer: Mutex::new(writer),
            reader: Mutex::new(connect(path)?),
        })
    }

    /// Stores a batch in one transaction. A record that is there already stays as it is, so a
    /// batch may be sent again. Returns how many were new.
    ///
    /// # Errors
    /// Nothing of the batch was stored.
    pub fn insert(&self, batch: &[Record]) -> Result<usize, RecordsError> {
        let mut writer = locked(&self.writer);
        let txn = writer.transaction()?;
        let mut new = 0;
        {
            let mut statement = txn.prepare_cached(
                "INSERT OR IGNORE INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?;
            for record in batch {
                new += statement.execute(params![
                    blob(record.request_id.bits()),
                    record.started_at_us,
                    blob(record.org_id.bits()),
                    blob(record.proxy_id.bits()),
                    record.proxy_credential_id.map(|id| blob(id.bits())),
                    record.target_credential_id.map(|id| blob(id.bits())),
                    record.status,
                    record.code,
                    serde_json::to_string(record)?,
                ])?;
            }
        }
        txn.commit()?;
        Ok(new)
    }

    /// One record of an organisation.
    ///
    /// # Errors
    /// The store failed; an unknown id is `None`.
    pub fn get(&self, org: OrgId, id: RequestId) -> Result<Option<Record>, RecordsError> {
        let reader = locked(&self.reader);
        let text: Option<String> = reader
            .prepare_cached("SELECT record FROM records WHERE request_id = ?1 AND org_id = ?2")?
            .query_row(params![blob(id.bits()), blob(org.bits())], |row| row.get(0))
            .optional()?;
        Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
    }

    /// Records of an organisation, newest first, at most `limit`; and where the next page begins,
    /// when more follow.
    ///
    /// # Errors
    /// The store failed.
    pub fn list(
        &self,
        org: OrgId,
        filter: &RecordFilter,
        limit: usize,
    ) -> Result<(Vec<Record>, Option<RecordCursor>), RecordsError> {
        let (sql, values) = query::select(org, filter, limit.saturating_add(1));
        let reader = locked(&self.reader);
        let mut statement = reader.prepare_cached(&sql)?;
        let texts = statement
            .query_map(rusqlite::params_from_iter(values), |row| {
                row.get::<_, String>(0)
            })?
            .collect::<Result<Vec<_>, _>>()?;
        let more = texts.len() > limit;
        let records = texts
            .iter()
            .take(limit)
            .map(|text| serde_json::from_str::<Record>(text))
            .collect::<Result<Vec<_>, _>>()?;
        let next = records.last().filter(|_| more).map(RecordCursor::of);
        Ok((records, next))
    }

    /// Drops what is too old or too many, the oldest first; returns how many went. Bounded work:
    /// call it again and again.
    ///
    /// # Errors
    /// The store failed; what was dropped before stays dropped.
    pub fn retain(&self, retention: Retention, now_us: i64) -> Result<i64, RecordsError> {
        let age_us = i64::try_from(retention.age_max.as_micros()).unwrap_or(i64::MAX);
        let oldest_us = now_us.saturating_sub(age_us);
        let mut dropped = 0;
        while dropped < DELETE_CALL_MAX {
            // The lock is let go between two batches so that inserts get their turn.
            let went = self.drop_oldest(oldest_us, DELETE_BATCH)?;
            dropped += went;
            if went < DELETE_BATCH {
                break;
            }
        }
        let count: i64 =
            locked(&self.writer).query_row("SELECT count(*) FROM records", [], |row| row.get(0))?;
        let count_max = i64::try_from(retention.count_max).unwrap_or(i64::MAX);
        let mut excess = count.saturating_sub(count_max);
        while excess > 0 && dropped < DELETE_CALL_MAX {
            let went = self.drop_oldest(i64::MAX, excess.min(DELETE_BATCH))?;
            if went == 0 {
                break;
            }
            dropped += went;
            excess -= went;
        }
        Ok(dropped)
    }

    /// Drops at most `limit` records that started before `before_us`, the oldest first.
    fn drop_oldest(&self, before_us: i64, limit: i64) -> Result<i64, RecordsError> {
        let went = locked(&self.writer).execute(
            "DELETE FROM records WHERE request_id IN (SELECT request_id FROM records
             WHERE started_at_us < ?1 ORDER BY started_at_us LIMIT ?2)",
            params![before_us, limit],
        )?;
        Ok(i64::try_from(went).unwrap_or(limit))
    }
}

/// Keeps the store within its retention until it is dropped.
pub async fn keep(records: Arc<Records>, retention: Retention) {
    let mut tick = tokio::time::interval(RETAIN_EVERY);
    loop {
        tick.tick().await;
        let records = records.clone();
        let now_us = jiff::Timestamp::now().as_microsecond();
        let task = tokio::task::spawn_blocking(move || records.retain(retention, now_us));
        match task.await {
            Ok(Ok(dropped)) if dropped > 0 => {
                tracing::info!(dropped, "dropped {dropped} old records");
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(%error, "old records could not be dropped: {error}"),
            Err(error) => tracing::error!(%error, "dropping old records broke off: {error}"),
        }
    }
}

fn connect(path: &Path) -> Result<Connection, RecordsError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

/// A panic while the lock was held leaves SQLite's own state whole: its transaction rolled back.
fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An id as SQLite stores it: 16 bytes that sort like the id.
fn blob(bits: u128) -> [u8; 16] {
    bits.to_be_bytes()
}

#[cfg(test)]
mod tests;
