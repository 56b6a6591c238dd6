//! Reading the table of changes: a key now, a page at a revision, the changes since a revision.
//!
//! Every function reads inside a transaction that its caller holds, so that all it sees belongs to
//! one moment. A current value is found by two index steps (the next key, then its newest row), so
//! the cost does not grow with the number of changes that a busy key has gone through.

use std::time::Instant;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::fault::Fault;
use crate::store::limits::PAGE_KEYS_MAX;
use crate::store::span::Span;
use crate::store::{At, Change, Event, KeyValue, LeaseId, Page, Range, Revision, StoreError};

/// The revision of a store that nothing was ever written to, as in etcd.
const FIRST_REVISION: i64 = 1;

/// A page ends after this many bytes of values, as an etcd message would have to.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// One reading of changes ends with the revision that reaches this number of them.
const CHANGES_READ_MAX: usize = 256;

/// Revisions that are read before the time is looked at: most may be of keys outside the span.
const REVISIONS_READ_MAX: i64 = 10_000;

/// What is known of a key's newest row without reading its value.
pub(super) struct Head {
    pub(super) create_revision: Revision,
    pub(super) mod_revision: Revision,
    pub(super) version: i64,
    pub(super) deleted: bool,
}

/// Changes in revision order, and where to read on.
pub(super) struct Changes {
    pub(super) changes: Vec<Change>,
    pub(super) next: Revision,
}

/// The revision of the newest change.
pub(super) fn revision(db: &Connection) -> rusqlite::Result<Revision> {
    let newest: Option<i64> = db
        .prepare_cached("SELECT max(revision) FROM kv")?
        .query_row([], |row| row.get(0))?;
    Ok(Revision(newest.unwrap_or(FIRST_REVISION)))
}

/// The oldest revision that can be read; zero when nothing was ever compacted.
pub(super) fn compacted(db: &Connection) -> rusqlite::Result<Revision> {
    db.prepare_cached("SELECT revision FROM compaction")?
        .query_row([], |row| row.get(0).map(Revision))
}

/// The newest row of a key at a revision, a deletion included.
pub(super) fn head(db: &Connection, key: &[u8]) -> rusqlite::Result<Option<Head>> {
    db.prepare_cached(
        "SELECT create_revision, revision, version, deleted FROM kv WHERE key = ?1
         ORDER BY revision DESC LIMIT 1",
    )?
    .query_row([key], |row| {
        Ok(Head {
            create_revision: Revision(row.get(0)?),
            mod_revision: Revision(row.get(1)?),
            version: row.get(2)?,
            deleted: row.get(3)?,
        })
    })
    .optional()
}

/// What a key holds at a revision.
pub(super) fn value(db: &Connection, key: &[u8], at: Revision) -> Result<Option<KeyValue>, Fault> {
    let mut statement = db.prepare_cached(
        "SELECT key, revision, create_revision, version, deleted, lease, value FROM kv
         WHERE key = ?1 AND revision <= ?2 ORDER BY revision DESC LIMIT 1",
    )?;
    let mut rows = statement.query(params![key, at.0])?;
    match rows.next()? {
        Some(row) => match event(row)? {
            Event::Put(found) => Ok(Some(found)),
            Event::Delete { .. } => Ok(None),
        },
        None => Ok(None),
    }
}

/// One key now.
pub(super) fn get(db: &Connection, key: &str) -> Result<At<Option<KeyValue>>, Fault> {
    let revision = revision(db)?;
    Ok(At {
        revision,
        value: value(db, key.as_bytes(), revision)?,
    })
}

/// A page of keys; ends early at `deadline`, when nobody waits for it any more.
pub(super) fn page(db: &Connection, range: &Range, deadline: Instant) -> Result<Page, Fault> {
    let revision = readable(db, range.at)?;
    let span = Span::new("", &range.prefix, range.after.as_deref());
    let limit = range.limit.min(PAGE_KEYS_MAX);
    let mut statement = db.prepare_cached(
        "SELECT key FROM kv WHERE key >= ?1 AND key < ?2 ORDER BY key, revision LIMIT 1",
    )?;
    let mut page = Page {
        revision,
        items: Vec::new(),
        more: false,
    };
    let (mut start, mut value_bytes) = (span.start, 0_usize);
    loop {
        let next: Option<Vec<u8>> = statement
            .query_row(params![start, span.end], |row| row.get(0))
            .optional()?;
        let Some(key) = next else { return Ok(page) };
        if let Some(found) = value(db, &key, revision)? {
            value_bytes = value_bytes.saturating_add(found.value.len());
            let full = page.items.len() == limit || value_bytes > PAGE_BYTES_MAX;
            if full && !page.items.is_empty() {
                page.more = true;
                return Ok(page);
            }
            page.items.push(found);
        }
        if Instant::now() > deadline {
            return Err(StoreError::Unavailable("the page was not read in time".into()).into());
        }
        start = key;
        start.push(0);
    }
}

fn readable(db: &Connection, at: Option<Revision>) -> Result<Revision, Fault> {
    let newest = revision(db)?;
    let Some(at) = at else { return Ok(newest) };
    let oldest = compacted(db)?;
    if at < oldest {
        return Err(StoreError::Compacted(Some(oldest)).into());
    }
    if at > newest {
        return Err(not_reached(at, newest).into());
    }
    Ok(at)
}

/// The refusal of a revision that lies in the future.
pub(super) fn not_reached(asked: Revision, newest: Revision) -> StoreError {
    StoreError::Invalid(format!(
        "revision {asked} is not reached, the store is at {newest}"
    ))
}

/// The changes of a span's keys from a revision on, whole revisions only; ends early at `deadline`,
/// with what was read.
pub(super) fn changes(
    db: &Connection,
    span: &Span,
    from: Revision,
    deadline: Instant,
) -> Result<Changes, Fault> {
    let oldest = compacted(db)?;
    if from < oldest {
        return Err(StoreError::Compacted(Some(oldest)).into());
    }
    let end = revision(db)?.next();
    let mut found = Found::default();
    let mut next = from;
    while next < end {
        let until = Revision(next.0.saturating_add(REVISIONS_READ_MAX)).min(end);
        match found.read(db, span, next..until)? {
            Some(unread) => {
                next = unread;
                break;
            }
            None => next = until,
        }
        if Instant::now() > deadline {
            break;
        }
    }
    let changes = found.changes;
    Ok(Changes { changes, next })
}

/// Changes that are being read.
#[derive(Default)]
struct Found {
    changes: Vec<Change>,
    events: usize,
    value_bytes: usize,
}

impl Found {
    /// Reads those of some revisions; gives the one at which it was enough.
    fn read(
        &mut self,
        db: &Connection,
        span: &Span,
        revisions: std::ops::Range<Revision>,
    ) -> Result<Option<Revision>, Fault> {
        // Told which index to use: SQLite would rather sort all changes of the span's keys.
        let mut statement = db.prepare_cached(
            "SELECT key, revision, create_revision, version, deleted, lease, value
             FROM kv INDEXED BY kv_revision
             WHERE revision >= ?1 AND revision < ?2 AND key >= ?3 AND key < ?4
             ORDER BY revision, id",
        )?;
        let (from, until) = (revisions.start.0, revisions.end.0);
        let mut rows = statement.query(params![from, until, span.start, span.end])?;
        while let Some(row) = rows.next()? {
            let revision = Revision(row.get(1)?);
            let full = self.events >= CHANGES_READ_MAX || self.value_bytes >= PAGE_BYTES_MAX;
            let last = self.changes.last_mut();
            match last.filter(|last| last.revision == revision) {
                Some(last) => last.events.push(event(row)?),
                None if full => return Ok(Some(revision)),
                None => self.changes.push(Change {
                    revision,
                    events: vec![event(row)?],
                }),
            }
            self.events += 1;
            let value_bytes = row.get_ref(6)?.as_blob().map_or(0, <[u8]>::len);
            self.value_bytes = self.value_bytes.saturating_add(value_bytes);
        }
        Ok(None)
    }
}

/// Reads the columns key, revision, create_revision, version, deleted, lease, value.
fn event(row: &Row<'_>) -> Result<Event, Fault> {
    let key = String::from_utf8(row.get(0)?)
        .map_err(|_| StoreError::Corrupt("a key is not UTF-8".into()))?;
    let mod_revision = Revision(row.get(1)?);
    if row.get(4)? {
        return Ok(Event::Delete { key, mod_revision });
    }
    Ok(Event::Put(KeyValue {
        key,
        value: Bytes::from(row.get::<_, Vec<u8>>(6)?),
        create_revision: Revision(row.get(2)?),
        mod_revision,
        version: row.get(3)?,
        lease: row.get::<_, Option<i64>>(5)?.map(LeaseId),
    }))
}
