//! The room that records take, and how it is given back to the disk.
//!
//! What counts against a limit are pages in use: what was deleted counts no more, whether or not
//! its pages are back already, so that nothing is dropped twice for them. Tallies lie in the file
//! of the heads and do not count: no record goes for their sake. They have a bound of their own
//! (`tally_room`).

use std::collections::BTreeMap;

use proto::store::embedded::taken_bytes;
use rusqlite::{Connection, ErrorCode};

use super::segments::{GIVES_BACK, Segment};
use super::{RecordsError, Sqlite, locked};

/// What tells of records in the file of the heads; and blocks that releases before segments put
/// there. Reads all of their pages: some 0.3 s for two million heads.
const HEADS: &str = "SELECT coalesce(sum(pgsize), 0) FROM dbstat('main', 1)
    WHERE name IN ('heads', 'heads_by_id', 'heads_by_age', 'blocks', 'segments')";

/// What is known of bytes in use, so that it is not read at every step.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    /// Of segments that are written to no more.
    pub segments: BTreeMap<i64, u64>,
    /// Of what lies beside the heads in their file and does not count. What is written there while
    /// records are dropped counts with them until the next call.
    beside: Option<u64>,
}

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

    /// Bytes that records take.
    pub(super) fn bytes_in_use(&self, sizes: &mut Sizes) -> Result<u64, RecordsError> {
        let mut sum = self.heads_in_use(sizes)?;
        let newest = self.segments.newest();
        for segment in self.segments.all() {
            let number = segment.first_block;
            if let Some(bytes) = sizes.segments.get(&number) {
                sum += bytes;
                continue;
            }
            let bytes = self.segment_in_use(number);
            self.segments.tell(number, bytes.as_ref().err());
            // One that cannot be read takes what its file does, until that goes.
            let bytes = bytes.unwrap_or_else(|_| self.segments.bytes(number));
            if Some(segment) != newest {
                sizes.segments.insert(number, bytes);
            }
            sum += bytes;
        }
        Ok(sum)
    }

    fn heads_in_use(&self, sizes: &mut Sizes) -> Result<u64, RecordsError> {
        let scanner = locked(&self.scanner);
        let all = in_use(&scanner)?;
        let beside = match sizes.beside {
            Some(beside) => beside,
            None => {
                let heads: i64 = scanner.query_row(HEADS, [], |row| row.get(0))?;
                *sizes
                    .beside
                    .insert(all.saturating_sub(heads.unsigned_abs()))
            }
        };
        Ok(all.saturating_sub(beside))
    }

    fn segment_in_use(&self, first_block: i64) -> Result<u64, RecordsError> {
        let file = self.segments.existing(first_block)?;
        file.map_or(Ok(0), |file| in_use(&file))
    }

    /// Gives back what is free in segments that are written to no more. Those for which there is no
    /// room to do so are returned, the oldest first: what is deleted in them is no gain. One that
    /// cannot be opened is passed over.
    pub(super) fn give_back_all(&self) -> Vec<Segment> {
        let newest = self.segments.newest();
        let mut without_room = Vec::new();
        for segment in self.segments.all() {
            if Some(segment) == newest {
                continue;
            }
            let given = self.give_back(segment.first_block);
            self.segments
                .tell(segment.first_block, given.as_ref().err());
            if let Ok(false) = given {
                without_room.push(segment);
            }
        }
        without_room
    }

    /// Gives the free pages of a segment back to the disk. One that an earlier release began is
    /// packed for it once; false where there is no room to do so.
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
        let given = match is_packed {
            true => give_back_pages(&segment),
            false => (self.pack)(&segment),
        };
        match given.map_err(RecordsError::from) {
            Ok(()) => Ok(true),
            Err(error) if cannot_be_written(&error) => {
                tracing::warn!(%error, "no room to pack a file of records: {error}");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

fn give_back_pages(segment: &Connection) -> rusqlite::Result<()> {
    let mut freed = segment.prepare("PRAGMA incremental_vacuum")?;
    let mut rows = freed.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// Makes a segment that an earlier release began one that gives pages back. Takes as much room
/// again while it lasts.
pub(super) fn pack(segment: &Connection) -> rusqlite::Result<()> {
    segment.execute_batch(GIVES_BACK)?;
    segment.execute_batch("VACUUM")
}

/// Whether a file cannot be changed, now or ever: its disk is full or fails, or it may not be
/// written.
pub(super) fn cannot_be_written(error: &RecordsError) -> bool {
    let RecordsError::Sqlite(error) = error else {
        return false;
    };
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::ReadOnly
        )
    )
}

/// Whether a file is not what it was, or not ours.
pub(super) fn is_damaged(error: &RecordsError) -> bool {
    let RecordsError::Sqlite(error) = error else {
        return false;
    };
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
    )
}

/// Bytes of pages in use.
pub(super) fn in_use(file: &Connection) -> Result<u64, RecordsError> {
    Ok(taken_bytes(file)?)
}
