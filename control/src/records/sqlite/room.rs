//! The room that records take, and how it is given back to the disk.
//!
//! What counts against a limit are pages in use: what was deleted counts no more, whether or not
//! its pages are back already, so that nothing is dropped twice for them. Tallies lie in the file
//! of the heads and do not count: no record goes for their sake.

use std::collections::BTreeMap;

use rusqlite::{Connection, ErrorCode};

use super::segments::{GIVES_BACK, Segment};
use super::{RecordsError, Sqlite, locked};

/// What tells of records in the file of the heads; and blocks that releases before segments put
/// there.
const HEADS: &str = "SELECT coalesce(sum(pgsize), 0) FROM dbstat('main', 1)
    WHERE name IN ('heads', 'heads_by_id', 'heads_by_age', 'blocks', 'segments')";
/// Bytes of pages in use.
const IN_USE: &str = "SELECT (page_count - freelist_count) * page_size
    FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()";

impl Sqlite {
    /// Bytes on the disk, about, tallies and what waits to be given back included.
    pub(super) fn bytes_on_disk(&self) -> Result<u64, RecordsError> {
        let heads = in_use(&locked(&self.writer))?;
        let segments = self.segments.all();
        let segments = segments
            .iter()
            .map(|one| self.segments.bytes(one.first_block));
        Ok(heads + segments.sum::<u64>())
    }

    /// Bytes that records take. Sizes of segments that are written to no more are noted, and taken
    /// from there.
    pub(super) fn bytes_in_use(&self, sizes: &mut BTreeMap<i64, u64>) -> Result<u64, RecordsError> {
        let heads: i64 = locked(&self.scanner).query_row(HEADS, [], |row| row.get(0))?;
        let newest = self.segments.newest();
        let mut sum = heads.unsigned_abs();
        for segment in self.segments.all() {
            let number = segment.first_block;
            if let Some(bytes) = sizes.get(&number) {
                sum += bytes;
                continue;
            }
            let bytes = match self.segment_in_use(number) {
                // It goes with the last head that names it.
                Err(error) if is_damaged(&error) => self.segments.bytes(number),
                bytes => bytes?,
            };
            if Some(segment) != newest {
                sizes.insert(number, bytes);
            }
            sum += bytes;
        }
        Ok(sum)
    }

    fn segment_in_use(&self, first_block: i64) -> Result<u64, RecordsError> {
        let file = self.segments.existing(first_block)?;
        file.map_or(Ok(0), |file| in_use(&file))
    }

    /// Gives back what is free in segments that are written to no more. Those for which there is no
    /// room to do so are returned, the oldest first: what is deleted in them is no gain.
    pub(super) fn give_back_all(&self) -> Result<Vec<Segment>, RecordsError> {
        let newest = self.segments.newest();
        let mut without_room = Vec::new();
        for segment in self.segments.all() {
            if Some(segment) == newest {
                continue;
            }
            match self.give_back(segment.first_block) {
                Ok(true) => {}
                Ok(false) => without_room.push(segment),
                Err(error) if is_damaged(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(without_room)
    }

    /// Gives the free pages of a segment back to the disk. One that an earlier release began is
    /// packed for it once; false where there is no room for that.
    pub(super) fn give_back(&self, first_block: i64) -> Result<bool, RecordsError> {
        let Some(segment) = self.segments.existing(first_block)? else {
            return Ok(true);
        };
        let pragma = |name: &str| -> rusqlite::Result<i64> {
            segment.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
        };
        let is_packed = pragma("auto_vacuum")? != 0;
        if is_packed && pragma("freelist_count")? == 0 {
            return Ok(true);
        }
        for reader in [&self.reader, &self.scanner] {
            // Pages come back when nobody else has the file open.
            locked(reader).close(first_block);
        }
        let newest = self.segments.newest();
        let is_newest = newest.is_some_and(|newest| newest.first_block == first_block);
        // No other one is written to.
        let _appender = is_newest.then(|| locked(&self.appender));
        if !is_packed {
            return match (self.pack)(&segment) {
                Ok(()) => Ok(true),
                Err(error) if has_no_room(&error) => {
                    tracing::warn!(%error, "no room to pack a file of records: {error}");
                    Ok(false)
                }
                Err(error) => Err(error.into()),
            };
        }
        let mut freed = segment.prepare("PRAGMA incremental_vacuum")?;
        let mut rows = freed.query([])?;
        while rows.next()?.is_some() {}
        Ok(true)
    }
}

/// Makes a segment that an earlier release began one that gives pages back. Takes as much room
/// again while it lasts.
pub(super) fn pack(segment: &Connection) -> rusqlite::Result<()> {
    segment.execute_batch(GIVES_BACK)?;
    segment.execute_batch("VACUUM")
}

/// Whether a file cannot be read, today or later.
pub(super) fn is_damaged(error: &RecordsError) -> bool {
    let RecordsError::Sqlite(error) = error else {
        return false;
    };
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn has_no_room(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen)
    )
}

fn in_use(file: &Connection) -> Result<u64, RecordsError> {
    let bytes: i64 = file.query_row(IN_USE, [], |row| row.get(0))?;
    Ok(bytes.unsigned_abs())
}
