//! Tallies in the file: by minute for some days, by hour for as long as records are kept.
//!
//! They are counted in memory as records come and written now and then, with the number of the
//! last block that they contain: after a crash the blocks behind it are read and counted again, so
//! that each block counts exactly once. Tallies outlive the records that they were made of. How
//! much room they take is bounded (`tally_room`).

use std::sync::atomic::Ordering::Relaxed;

use proto::id::OrgId;
use proto::record::Record;
use proto::wire::Block;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::read::Reader;
use super::sums::Sums;
use super::{RecordsError, Sqlite, blob, bytes, locked, tally_room};
use crate::records::aggregate::Question;
use crate::records::counted::Counted;
use crate::records::pending::{Cell, Groups, Pending};
use crate::records::tally::{Dimension, HOUR_S, MINUTE_S, MINUTES_KEPT_S, Tally};

/// Sqlite after which tallies are written.
const WRITE_RECORDS: usize = 16_384;

/// Their tables.
pub(super) const CREATE: &str = "
    CREATE TABLE tallies (
        org_id BLOB NOT NULL,
        width_s INTEGER NOT NULL,
        dimension INTEGER NOT NULL,
        start_s INTEGER NOT NULL,
        value TEXT NOT NULL,
        tally BLOB NOT NULL,
        PRIMARY KEY (org_id, width_s, dimension, start_s, value)
    ) WITHOUT ROWID;
    CREATE INDEX tallies_by_age ON tallies (width_s, start_s);
    CREATE TABLE tallied (one INTEGER PRIMARY KEY CHECK (one = 1), block INTEGER NOT NULL);
    INSERT INTO tallied VALUES (1, 0);
";

/// Tallies on their way to the file.
#[derive(Debug, Default)]
pub(super) struct Counting {
    pending: Pending,
    /// The last block that is counted, here or in the file.
    block: i64,
}

impl Counting {
    /// Counts blocks that came after those whose tallies are in the file.
    ///
    /// # Errors
    /// The store failed. A block that is damaged is left out.
    pub(super) fn resume(connection: &Connection, reader: &Reader) -> Result<Self, RecordsError> {
        let block: i64 = connection.query_row("SELECT block FROM tallied", [], |row| row.get(0))?;
        let mut counting = Self {
            pending: Pending::default(),
            block,
        };
        let mut statement =
            connection.prepare("SELECT block FROM heads WHERE block > ?1 ORDER BY block")?;
        // Read to its end first: tallies are written in between.
        let blocks = statement.query_map([block], |row| row.get(0))?;
        let mut writes = true;
        for block in blocks.collect::<Result<Vec<i64>, _>>()? {
            counting.block = block;
            let Some(Ok(frame)) = reader.frame(block)? else {
                continue;
            };
            let Ok(records) = Block::open(&frame) else {
                continue;
            };
            let org = records.org();
            let records = records.map_while(Result::ok);
            let mut groups = Groups::default();
            records.for_each(|record| groups.add(&Counted::from(&record)));
            counting.pending.add(org, &groups);
            // What failed once at a start would fail for every block.
            writes = writes && counting.write_if_due(connection);
        }
        Ok(counting)
    }

    /// The number for the next block: larger than any before, also than those that went.
    pub(super) fn next_block(&self) -> i64 {
        self.block + 1
    }

    /// Counts a block that was stored.
    pub(super) fn count(&mut self, org: OrgId, id: i64, records: &[&Record]) {
        let mut groups = Groups::default();
        for record in records {
            groups.add(&Counted::from(*record));
        }
        self.pending.add(org, &groups);
        self.block = self.block.max(id);
    }

    /// Writes what is counted where that is enough. What cannot be written stays in memory until it
    /// can: the records that it tells of are kept. Whether nothing failed.
    pub(super) fn write_if_due(&mut self, connection: &Connection) -> bool {
        if self.pending.records() >= WRITE_RECORDS
            && let Err(error) = self.write(connection)
        {
            tracing::warn!(%error, "tallies of records could not be written: {error}");
            return false;
        }
        true
    }

    /// Writes what is counted.
    pub(super) fn write(&mut self, connection: &Connection) -> Result<(), RecordsError> {
        if self.pending.records() == 0 {
            return Ok(());
        }
        let txn = connection.unchecked_transaction()?;
        let (minute, hour) = (MINUTE_S, HOUR_S);
        for (cell, tally) in self.pending.minutes() {
            merge(&txn, cell, minute, tally)?;
        }
        for (cell, tally) in &self.pending.hours() {
            merge(&txn, cell, hour, tally)?;
        }
        txn.execute("UPDATE tallied SET block = ?1", [self.block])?;
        txn.commit()?;
        self.pending = Pending::default();
        Ok(())
    }

    /// What is not in the file yet, by value and minute.
    fn pending(&self, asked: &Asked) -> Vec<(String, i64, Tally)> {
        let (from_s, to_s) = asked.range();
        let wanted = |cell: &Cell| {
            cell.org == asked.org
                && cell.dimension == asked.dimension
                && (from_s..to_s).contains(&cell.start_s)
                && asked.only.as_ref().is_none_or(|only| cell.value == *only)
        };
        let cells = self.pending.minutes().filter(|(cell, _)| wanted(cell));
        cells
            .map(|(cell, tally)| (cell.value.clone(), cell.start_s, tally.clone()))
            .collect()
    }
}

fn merge(
    txn: &Transaction<'_>,
    cell: &Cell,
    width_s: i64,
    tally: &Tally,
) -> Result<(), RecordsError> {
    let org = blob(cell.org.bits());
    let dimension = cell.dimension.number();
    let place = params![org, width_s, dimension, cell.start_s, cell.value];
    let known = txn
        .prepare_cached(
            "SELECT tally FROM tallies WHERE org_id = ?1 AND width_s = ?2 AND dimension = ?3
             AND start_s = ?4 AND value = ?5",
        )?
        .query_row(place, |row| Ok(Tally::decode(bytes(row, 0)?)))
        .optional()?
        .flatten();
    let mut tally = tally.clone();
    if let Some(known) = known {
        tally.merge(&known);
    }
    txn.prepare_cached("INSERT OR REPLACE INTO tallies VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            org,
            width_s,
            dimension,
            cell.start_s,
            cell.value,
            tally.encode()
        ])?;
    Ok(())
}

/// Which tallies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The organisation.
    pub org: OrgId,
    /// The groups.
    pub dimension: Dimension,
    /// The only value that is wanted, where it is one.
    pub only: Option<String>,
    /// They follow each other.
    pub spans: Vec<Span>,
}

/// Tallies of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// [`MINUTE_S`] or [`HOUR_S`].
    pub width_s: i64,
    /// The first second; the start of a tally.
    pub from_s: i64,
    /// The second after the last.
    pub to_s: i64,
}

impl Asked {
    fn range(&self) -> (i64, i64) {
        let from_s = self.spans.first().map_or(0, |first| first.from_s);
        (from_s, self.spans.last().map_or(from_s, |last| last.to_s))
    }

    /// Counts all of them.
    fn count(
        &self,
        file: &Connection,
        pending: &[(String, i64, Tally)],
        sums: &mut Sums<'_>,
    ) -> Result<(), RecordsError> {
        for (value, start_s, tally) in pending {
            sums.tally(value.clone(), *start_s).merge(tally);
        }
        let mut statement = file.prepare_cached(
            "SELECT value, start_s, tally FROM tallies WHERE org_id = ?1 AND width_s = ?2
             AND dimension = ?3 AND start_s >= ?4 AND start_s < ?5
             AND (?6 IS NULL OR value = ?6)",
        )?;
        let (org, dimension) = (blob(self.org.bits()), self.dimension.number());
        for span in &self.spans {
            let Span {
                width_s,
                from_s,
                to_s,
            } = span;
            let asked = params![org, width_s, dimension, from_s, to_s, self.only];
            let mut rows = statement.query(asked)?;
            while let Some(row) = rows.next()? {
                let tally = Tally::decode(bytes(row, 2)?)
                    .ok_or_else(|| RecordsError::Damaged("a tally".into()))?;
                sums.tally(row.get(0)?, row.get(1)?).merge(&tally);
            }
        }
        Ok(())
    }
}

impl Sqlite {
    /// Sums kept tallies, those included that were counted a moment ago, and says from when on they
    /// are all there where some went for want of room. Records are stored meanwhile.
    ///
    /// # Errors
    /// The store failed or a tally is damaged.
    pub(super) fn tallies<'q>(
        &self,
        asked: &Asked,
        question: &'q Question,
    ) -> Result<(Sums<'q>, tally_room::KeptFrom), RecordsError> {
        // Waited for before the other lock is taken, which storing records needs.
        let reader = locked(&self.summer);
        let (file, pending) = {
            // What is written while this is held would be missed or counted twice.
            let counting = locked(&self.counting);
            let file = reader.unchecked_transaction()?;
            // From its first answer on a transaction shows the file as it is now.
            let _: i64 = file.query_row("SELECT block FROM tallied", [], |row| row.get(0))?;
            (file, counting.pending(asked))
        };
        let from = tally_room::kept_from(&file, asked.org)?;
        let mut sums = Sums::new(question, usize::MAX);
        asked.count(&file, &pending, &mut sums)?;
        if question.bucket_s.is_none() || !sums.is_narrowed() {
            return Ok((sums, from));
        }
        drop(sums);
        // Too many to be told apart at once: the largest first, and then their spans.
        let whole = Question {
            bucket_s: None,
            ..question.clone()
        };
        let mut totals = Sums::new(&whole, usize::MAX);
        asked.count(&file, &pending, &mut totals)?;
        let mut sums = Sums::of(question, totals.largest(question.shown()));
        asked.count(&file, &pending, &mut sums)?;
        Ok((sums, from))
    }

    /// Writes the tallies that are counted and drops old ones.
    ///
    /// # Errors
    /// The store failed.
    pub fn settle_tallies(&self, hours_from_s: i64, now_s: i64) -> Result<(), RecordsError> {
        let mut counting = locked(&self.counting);
        let writer = locked(&self.writer);
        counting.write(&writer)?;
        let minutes_from_s = now_s.saturating_sub(MINUTES_KEPT_S);
        self.minutes_from_s.fetch_max(minutes_from_s, Relaxed);
        for (width_s, from_s) in [(MINUTE_S, minutes_from_s), (HOUR_S, hours_from_s)] {
            for old in [
                "DELETE FROM tallies WHERE width_s = ?1 AND start_s < ?2",
                "DELETE FROM tallies_from WHERE width_s = ?1 AND from_s < ?2",
            ] {
                writer.prepare_cached(old)?.execute([width_s, from_s])?;
            }
        }
        Ok(())
    }
}
