//! Whether writes are taken again after one was not: there is room, and the disk does its work.
//!
//! A compare that does not hold writes nothing, and so meets no full disk. Who asks that way
//! whether the store takes writes again would hear yes each time, and send writes that fail.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::store::StoreError;

/// Pages that a usual transaction takes, its log and indexes included, several times over.
const PAGES: usize = 16;
const PAGE_BYTES: usize = 4096;

/// Pages that the largest transaction takes, several times over.
const PAGES_MAX: usize = 2048;

/// Shortest time between two looks: each writes to a disk that may be busy being repaired.
const LOOK: Duration = Duration::from_secs(1);

/// Whether writes are taken, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Why the last write was not taken, or may not have been, while that lasts.
    lacking: Option<StoreError>,
    next_look: Option<Instant>,
}

impl Room {
    /// A write was not taken, or may not have been.
    pub(super) fn is_lacking(&mut self, why: StoreError) {
        self.lacking = Some(why);
    }

    /// A write was taken.
    pub(super) fn is_there(&mut self) {
        self.lacking = None;
    }

    /// Why a write would not be taken; none where it may be. To be asked for what could write and
    /// does not: what writes finds out by itself.
    pub(super) fn refuses(&mut self, db: &Connection, now: Instant) -> Option<&StoreError> {
        let due = self.next_look.is_none_or(|next| now >= next);
        if due && self.lacking.is_some() {
            self.next_look = Some(now + LOOK);
            self.lacking.take_if(|_| is_there(db));
        }
        self.lacking.as_ref()
    }

    /// The same after a look, whenever the last one was.
    pub(super) fn refuses_still(&mut self, db: &Connection, now: Instant) -> Option<&StoreError> {
        self.next_look = None;
        self.refuses(db, now)
    }
}

/// What a SQLite file has in use: pages that are free are not.
///
/// # Errors
/// The file cannot be read.
pub fn taken_bytes(db: &Connection) -> rusqlite::Result<u64> {
    let pages = taken_pages(db)?;
    let page_bytes = number(db, "page_size")?;
    Ok(pages.saturating_mul(page_bytes).max(0).unsigned_abs())
}

/// What is full, and what to do, after SQLite said that its file or its disk is.
pub(super) fn what_is_full(db: &Connection) -> &'static str {
    match has_pages(db, PAGES_MAX) {
        Ok(false) => {
            "the file has its largest size (`store.quota_bytes`); what old changes take comes free \
             by itself within minutes, and where that is not enough it has to be raised"
        }
        _ => "the disk is full; make room there, and writes are taken again by themselves",
    }
}

/// Whether there is: within the largest size of the database and on its disk.
fn is_there(db: &Connection) -> bool {
    let below_max = has_pages(db, PAGES).unwrap_or(false);
    below_max
        && db
            .path()
            .is_none_or(|path| path.is_empty() || on_disk(path))
}

fn number(db: &Connection, pragma: &str) -> rusqlite::Result<i64> {
    db.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))
}

fn taken_pages(db: &Connection) -> rusqlite::Result<i64> {
    Ok(number(db, "page_count")?.saturating_sub(number(db, "freelist_count")?))
}

/// Whether the file may take so many pages more.
fn has_pages(db: &Connection, pages: usize) -> rusqlite::Result<bool> {
    let room = number(db, "max_page_count")?.saturating_sub(taken_pages(db)?);
    Ok(usize::try_from(room).is_ok_and(|room| room >= pages))
}

/// Only a file that is written tells: what a disk says to be free may be others' or not to be had.
fn on_disk(path: &str) -> bool {
    let file = PathBuf::from(format!("{path}-room"));
    let written = File::create(&file).and_then(|mut room| {
        room.write_all(&vec![0; PAGES * PAGE_BYTES])?;
        room.sync_all()
    });
    let removed = fs::remove_file(&file);
    written.is_ok() && removed.is_ok()
}
