//! Blocks lie in files of their own beside that of the heads, one file after another: a segment.
//!
//! A segment takes blocks until it is full or the day is over; then the next one begins. What is
//! old goes with its whole file, so that the disk gets its space back at once and nobody waits for
//! a file to be packed. Segments follow each other in the order in which records came, not by the
//! clock of the records: one that comes late lies in the segment of the day on which it came, and
//! no old file is opened again for writing.
//!
//! Two files cannot be changed as one, so their order is what holds: blocks are written before the
//! heads that name them. What a crash leaves is blocks that no head names, which
//! [`Segments::open`] deletes. A power cut may take the last blocks of the newest segment from
//! under their heads (`synchronous=NORMAL`); such heads go too. Blocks that go alone go before
//! their heads: a head without its block finds nothing, and is the first to go the next time,
//! while a block without its head would take room that nobody gives back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use rusqlite::Connection;

use super::{RecordsError, connect_after, locked};

/// The table of segments, beside the heads.
pub(super) const CREATE: &str = "
    CREATE TABLE segments (
        first_block INTEGER PRIMARY KEY,
        day INTEGER NOT NULL,
        last_us INTEGER NOT NULL
    );
";
/// Freed pages of a file can be given back piece by piece. Without effect once anything is in it,
/// the mode of its journal included.
pub(super) const GIVES_BACK: &str = "PRAGMA auto_vacuum = INCREMENTAL;";
/// What a segment's file holds.
const CREATE_FILE: &str = "
    CREATE TABLE IF NOT EXISTS blocks (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
";
/// What SQLite adds to the name of a file that is open.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// One of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its blocks have this number or a larger one, and less than the next segment's. Its file's
    /// name ends with it: numbers of blocks are never used again.
    pub first_block: i64,
    /// The day on which it was begun, by the clock of its first block.
    pub day: i64,
    /// Start of the newest record in it.
    pub last_us: i64,
}

/// The files that there are.
#[derive(Debug)]
pub(super) struct Segments {
    /// The file of the heads, whose name those of the segments begin with.
    path: PathBuf,
    /// The oldest first.
    list: RwLock<Vec<Segment>>,
    /// Those of which is told that they cannot be read or changed.
    faulty: Mutex<BTreeSet<i64>>,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file of the heads, where releases before segments put it.
    Heads,
    /// In the segment that begins with this block.
    Segment(i64),
}

impl Segments {
    /// The segments of a store that is opened, after what a crash left is cleared away.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn open(path: &Path, heads: &Connection) -> Result<Self, RecordsError> {
        let mut statement =
            heads.prepare("SELECT first_block, day, last_us FROM segments ORDER BY first_block")?;
        let rows = statement.query_map([], |row| {
            Ok(Segment {
                first_block: row.get(0)?,
                day: row.get(1)?,
                last_us: row.get(2)?,
            })
        })?;
        let segments = Self {
            path: path.to_owned(),
            list: RwLock::new(rows.collect::<Result<_, _>>()?),
            faulty: Mutex::default(),
        };
        segments.delete_strangers();
        if let Some(newest) = segments.newest() {
            segments.mend(heads, newest)?;
        }
        Ok(segments)
    }

    /// Deletes files that no segment has: one was begun or deleted when the process died.
    fn delete_strangers(&self) {
        let folder = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        let Ok(entries) = std::fs::read_dir(folder.unwrap_or(Path::new("."))) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| self.number_of(name));
            if number.is_some_and(|number| !self.has(number)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// The number in a name such as `records.sqlite.7` or `records.sqlite.7-wal`.
    fn number_of(&self, name: &str) -> Option<i64> {
        let rest = name.strip_prefix(self.path.file_name()?.to_str()?)?;
        let number = rest.strip_prefix('.')?;
        let number = BESIDE
            .iter()
            .find_map(|end| number.strip_suffix(end))
            .unwrap_or(number);
        number.parse().ok()
    }

    /// Makes heads and blocks of the newest segment agree.
    fn mend(&self, heads: &Connection, newest: Segment) -> Result<(), RecordsError> {
        let blocks = self.connect(newest.first_block)?;
        let last = |connection: &Connection, sql: &str| -> Result<i64, RecordsError> {
            let last: Option<i64> = connection.query_row(sql, [], |row| row.get(0))?;
            Ok(last.unwrap_or(newest.first_block - 1))
        };
        let last_block = last(&blocks, "SELECT max(id) FROM blocks")?;
        heads.execute(
            "DELETE FROM heads WHERE block > ?1 AND block >= ?2",
            [last_block, newest.first_block],
        )?;
        let last_head = last(heads, "SELECT max(block) FROM heads")?;
        blocks.execute("DELETE FROM blocks WHERE id > ?1", [last_head])?;
        Ok(())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Segment>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Vec<Segment> {
        self.read().clone()
    }

    /// The one that blocks are written to, if there is one.
    pub(super) fn newest(&self) -> Option<Segment> {
        self.read().last().copied()
    }

    /// Whether a segment begins with this block.
    fn has(&self, first_block: i64) -> bool {
        self.read()
            .iter()
            .any(|segment| segment.first_block == first_block)
    }

    /// Where a block lies.
    pub(super) fn place(&self, block: i64) -> Place {
        let list = self.read();
        let upto = list.partition_point(|segment| segment.first_block <= block);
        match list.get(..upto).and_then(<[Segment]>::last) {
            Some(segment) => Place::Segment(segment.first_block),
            None => Place::Heads,
        }
    }

    /// A connection to a segment's file, which is made where it is not there. Nothing is written to
    /// one that is: whoever reads on a full disk finds no room for it.
    pub(super) fn connect(&self, first_block: i64) -> Result<Connection, RecordsError> {
        let file = self.file(first_block);
        let is_begun = std::fs::metadata(&file).is_ok_and(|meta| meta.len() > 0);
        // SQLite writes the mode even where the file is in it.
        let connection = connect_after(&file, if is_begun { "" } else { GIVES_BACK })?;
        connection.execute_batch(CREATE_FILE)?;
        Ok(connection)
    }

    /// The same for a file that is there; somebody may have deleted it.
    ///
    /// # Errors
    /// The store failed, or as for [`Self::is_there`].
    pub(super) fn existing(&self, first_block: i64) -> Result<Option<Connection>, RecordsError> {
        let there = self.is_there(first_block)?;
        there.then(|| self.connect(first_block)).transpose()
    }

    pub(super) fn file(&self, first_block: i64) -> PathBuf {
        beside(&self.path, &format!(".{first_block}"))
    }

    /// Tells once of a segment that it cannot be read or changed, until that is over.
    pub(super) fn tell(&self, first_block: i64, fault: Option<&RecordsError>) {
        let mut faulty = locked(&self.faulty);
        let Some(error) = fault else {
            faulty.remove(&first_block);
            return;
        };
        if faulty.insert(first_block) {
            let file = self.file(first_block);
            tracing::warn!(
                file = %file.display(), %error,
                "{} holds records that cannot be read or deleted one by one: {error}; it counts \
                 with its whole length and goes when the last of its records has to",
                file.display()
            );
        }
    }

    /// Whether the file of a segment is there. What is not is forgotten for good, so a look that
    /// fails is no answer, and nor is an empty folder in the place of this one: a disk that is not
    /// mounted for a moment takes the file of the heads with it.
    ///
    /// # Errors
    /// It cannot be told.
    pub(super) fn is_there(&self, first_block: i64) -> Result<bool, RecordsError> {
        let file = self.file(first_block);
        if is_at(&file)? {
            return Ok(true);
        }
        if !is_at(&self.path)? {
            return Err(RecordsError::Away(self.path.display().to_string()));
        }
        // Again: the folder may have come back in between.
        is_at(&file)
    }

    /// Bytes of a segment on the disk.
    pub(super) fn bytes(&self, first_block: i64) -> u64 {
        let file = self.file(first_block);
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
        length(&file) + length(&beside(&file, BESIDE[0]))
    }

    /// Puts a segment that was begun or written to into its place.
    pub(super) fn note(&self, segment: Segment) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        match list
            .last_mut()
            .filter(|last| last.first_block == segment.first_block)
        {
            Some(last) => *last = segment,
            None => list.push(segment),
        }
    }

    /// Forgets a segment whose heads are deleted.
    pub(super) fn forget(&self, heads: &Connection, first_block: i64) -> Result<(), RecordsError> {
        heads.execute("DELETE FROM segments WHERE first_block = ?1", [first_block])?;
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        list.retain(|segment| segment.first_block != first_block);
        locked(&self.faulty).remove(&first_block);
        Ok(())
    }

    /// Deletes the file of a segment that is forgotten.
    pub(super) fn delete(&self, first_block: i64) {
        let file = self.file(first_block);
        for end in ["", BESIDE[0], BESIDE[1]] {
            // What stays is deleted at the next opening.
            let _ = std::fs::remove_file(beside(&file, end));
        }
    }
}

/// Whether there is a file; not known where the look fails.
pub(super) fn is_at(path: &Path) -> Result<bool, RecordsError> {
    let found = path.try_exists();
    found.map_err(|error| RecordsError::Away(format!("{}: {error}", path.display())))
}

fn beside(file: &Path, end: &str) -> PathBuf {
    let mut name = file.to_owned().into_os_string();
    name.push(end);
    name.into()
}
