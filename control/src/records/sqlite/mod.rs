//! The records store of one machine: what is kept of each request, in a SQLite file of its own.
//!
//! Not the file of the configuration: records come in batches, may lose the last moments in a
//! power cut (`synchronous=NORMAL`), and are dropped by age and number. Calls block; run them on
//! a thread that may.
//!
//! A row is a *block*: the records of one organisation in one batch, compressed ([`block`]). The
//! small table `heads` says of each block when its records began, between which request ids they
//! lie, and by marks which proxies, credentials, statuses and codes they have, and which proxies
//! had which unusual outcomes. A search walks the heads, newest first, and reads only blocks with
//! an answer. Blocks lie beside the heads in files of a day each ([`segments`]).

mod aggregate;
mod append;
mod block;
mod dropping;
mod migrate;
mod read;
mod retain;
mod room;
mod search;
mod segments;
mod sought;
mod sums;
mod tallies;
mod tally_room;

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::id::OrgId;
use proto::record::Record;
use rusqlite::{Connection, OpenFlags, Transaction, params};
use tokio::sync::Notify;

use super::RecordsError;
use super::follow::Tails;
use crate::private_sqlite;
use append::{Appender, put_segment};
use block::{Packed, Packer};
use read::Reader;
use search::Longest;
use segments::Segments;
use tallies::Counting;

/// The layout of the file, in `PRAGMA user_version`. Layout 1 had a row for each record.
/// Layout 2 had no tallies, layout 3 no segments: its blocks stay in the file until they go.
/// Tallies of layout 4 say nothing of meters; heads of layout 5 say nothing of bytes.
const LAYOUT: i64 = 6;
/// Most blocks that one search reads: a second's work, so that others get their turn.
const SEARCH_BLOCKS_MAX: usize = 4_000;
/// Bytes of a segment, about; the step in which a limit of bytes is kept.
const SEGMENT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Longest wait for a lock that another connection holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Heads lie in the order in which searches walk them; blocks lie beside them so that the walk
/// passes by no data.
const CREATE: &str = "
    CREATE TABLE blocks (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE heads (
        org_id BLOB NOT NULL,
        last_us INTEGER NOT NULL,
        block INTEGER NOT NULL,
        first_us INTEGER NOT NULL,
        first_id BLOB NOT NULL,
        last_id BLOB NOT NULL,
        key BLOB NOT NULL,
        count INTEGER NOT NULL,
        marks BLOB NOT NULL,
        bytes INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (org_id, last_us, block)
    ) WITHOUT ROWID;
    CREATE INDEX heads_by_id ON heads (org_id, last_id, first_id);
    CREATE INDEX heads_by_age ON heads (last_us, count);
";

/// The open files.
///
/// A std mutex and not an async one: SQLite blocks anyway, so callers are on blocking threads.
#[derive(Debug)]
pub(super) struct Sqlite {
    packer: Mutex<Packer>,
    /// Where more than one is taken: `reader` or `summer`, then `counting`, then `appender`, then
    /// `writer`.
    counting: Mutex<Counting>,
    appender: Mutex<Appender>,
    writer: Mutex<Connection>,
    reader: Mutex<Reader>,
    /// For what reads so much that others should not wait for it.
    scanner: Mutex<Reader>,
    /// The same for tallies.
    summer: Mutex<Connection>,
    segments: Arc<Segments>,
    longest: Longest,
    /// Tallies by the minute are kept from this second on.
    minutes_from_s: AtomicI64,
    /// Told when a segment is begun.
    grown: Notify,
    search_blocks_max: usize,
    segment_bytes_max: u64,
    /// See [`room::pack`].
    pack: fn(&Connection) -> rusqlite::Result<()>,
}

impl Sqlite {
    /// Whether the file, if there is one, is of a layout that is known. Another process may have it
    /// open.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn check(path: &Path) -> Result<(), RecordsError> {
        if !segments::is_at(path)? {
            return Ok(());
        }
        let file = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        file.busy_timeout(BUSY_TIMEOUT)?;
        known(&file).map(drop)
    }

    /// Opens or creates the file. A file of layout 1 is converted, which takes about a minute for
    /// a million records; a conversion that breaks off leaves the file as it was.
    ///
    /// # Errors
    /// The file cannot be opened, is no SQLite file, or has a layout that is not known.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        let mut packer = Packer::new()?;
        let mut writer = connect(path)?;
        let found = known(&writer)?;
        if found < LAYOUT {
            let txn = writer.transaction()?;
            if found < 2 {
                txn.execute_batch(CREATE)?;
            }
            if (2..6).contains(&found) {
                txn.execute_batch(migrate::ADD_BYTES)?;
            }
            if found == 1 {
                migrate::from_layout_1(&txn, &mut packer)?;
            }
            if found < 3 {
                txn.execute_batch(tallies::CREATE)?;
            }
            if found < 4 {
                txn.execute_batch(segments::CREATE)?;
            }
            txn.pragma_update(None, "user_version", LAYOUT)?;
            txn.commit()?;
        }
        // Layout 6 of earlier releases is without it, and these do not mind it.
        writer.execute_batch(tally_room::CREATE)?;
        let segments = Arc::new(Segments::open(path, &writer)?);
        let reader = || Reader::open(path, Arc::clone(&segments));
        let (reader, scanner) = (reader()?, reader()?);
        let counting = Counting::resume(&writer, &reader)?;
        Ok(Self {
            packer: Mutex::new(packer),
            counting: Mutex::new(counting),
            appender: Mutex::default(),
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            scanner: Mutex::new(scanner),
            summer: Mutex::new(connect(path)?),
            segments,
            longest: Longest::default(),
            minutes_from_s: AtomicI64::new(i64::MIN),
            grown: Notify::new(),
            search_blocks_max: SEARCH_BLOCKS_MAX,
            segment_bytes_max: SEGMENT_BYTES_MAX,
            pack: room::pack,
        })
    }

    /// Stores a batch, as one block for each organisation in it. A block that is there already
    /// stays as it is, so a batch may be sent again. Returns how many records were in blocks that
    /// were new.
    ///
    /// A record that comes again in another batch is stored again and shown once.
    ///
    /// # Errors
    /// Nothing of the batch was stored.
    pub fn insert<R: Borrow<Record>>(
        &self,
        batch: &[R],
        tails: &Tails,
    ) -> Result<usize, RecordsError> {
        let mut of_orgs: BTreeMap<OrgId, Vec<&Record>> = BTreeMap::new();
        for record in batch.iter().map(Borrow::borrow) {
            of_orgs.entry(record.org_id).or_default().push(record);
        }
        let mut packed = Vec::with_capacity(of_orgs.len());
        {
            let mut packer = locked(&self.packer);
            for (org, records) in of_orgs {
                let mut blocks = Vec::with_capacity(1);
                packer.pack(&records, &mut blocks)?;
                packed.push((org, records, blocks));
            }
        }
        let mut counting = locked(&self.counting);
        let mut appender = locked(&self.appender);
        let writer = locked(&self.writer);
        let mut new = Vec::new();
        for (org, records, blocks) in &packed {
            let mut rest = records.as_slice();
            for block in blocks {
                let (of_block, after) = rest.split_at(block.count.min(rest.len()));
                rest = after;
                if !is_known(&writer, *org, block)? {
                    new.push((*org, block, of_block));
                }
            }
        }
        if new.is_empty() {
            return Ok(0);
        }
        drop(writer);
        let first = counting.next_block();
        let blocks: Vec<&Packed> = new.iter().map(|(_, block, _)| *block).collect();
        let bytes_max = self.segment_bytes_max;
        // Blocks first: a head without its block would be a record that is promised and not there.
        let segment = appender.append(&self.segments, bytes_max, first, &blocks)?;
        let mut writer = locked(&self.writer);
        let txn = writer.transaction()?;
        for (id, (org, block, _)) in (first..).zip(&new) {
            put_head(&txn, *org, id, block)?;
        }
        put_segment(&txn, &segment)?;
        self.segments.note(segment);
        txn.commit()?;
        if segment.first_block == first {
            self.grown.notify_one();
        }
        for (id, (org, block, records)) in (first..).zip(&new) {
            self.longest.note(*org, block.first_us, block.last_us);
            counting.count(*org, id, records);
            tails.offer(*org, records);
        }
        counting.write_if_due(&writer);
        let count = new.iter().map(|(.., records)| records.len()).sum();
        drop((writer, appender, counting));
        let stored = packed.into_iter().flat_map(|(.., blocks)| blocks);
        locked(&self.packer).recycle(stored);
        Ok(count)
    }
}

/// Whether a block is stored already.
fn is_known(heads: &Connection, org: OrgId, block: &Packed) -> Result<bool, RecordsError> {
    let count = i64::try_from(block.count).unwrap_or(i64::MAX);
    Ok(heads
        .prepare_cached(
            "SELECT 1 FROM heads WHERE org_id = ?1 AND last_us = ?2 AND key = ?3 AND count = ?4",
        )?
        .exists(params![
            blob(org.bits()),
            block.last_us,
            blob(block.key),
            count
        ])?)
}

/// Says what is in the block of this number.
fn put_head(txn: &Transaction<'_>, org: OrgId, id: i64, block: &Packed) -> rusqlite::Result<()> {
    let count = i64::try_from(block.count).unwrap_or(i64::MAX);
    txn.prepare_cached("INSERT INTO heads VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
        .execute(params![
            blob(org.bits()),
            block.last_us,
            id,
            block.first_us,
            blob(block.first_id),
            blob(block.last_id),
            blob(block.key),
            count,
            block.marks,
            block.bytes()
        ])?;
    Ok(())
}

/// A column of bytes, without a copy.
fn bytes<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    Ok(row.get_ref(column)?.as_blob()?)
}

/// The layout of a file, which this release knows; 0 of an empty one.
fn known(file: &Connection) -> Result<i64, RecordsError> {
    let found = file.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match (0..=LAYOUT).contains(&found) {
        true => Ok(found),
        false => Err(RecordsError::Layout {
            found,
            known: LAYOUT,
        }),
    }
}

fn connect(path: &Path) -> Result<Connection, RecordsError> {
    connect_after(path, "")
}

/// The same; `first` is done before anything is written to a new file.
fn connect_after(path: &Path, first: &str) -> Result<Connection, RecordsError> {
    let connection = private_sqlite::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(first)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(connection)
}

/// A panic while the lock was held leaves what it guards whole: SQLite's transaction rolled back,
/// and zstd begins each block anew.
fn locked<T>(guarded: &Mutex<T>) -> MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An id as SQLite stores it: 16 bytes that sort like the id.
fn blob(bits: u128) -> [u8; 16] {
    bits.to_be_bytes()
}

#[cfg(test)]
mod tests;
