//! How records are forgotten: whole blocks, the oldest first, and their files with them.

use std::collections::BTreeMap;

use rusqlite::{Row, Transaction, params};

use super::segments::{Place, Segment};
use super::{RecordsError, Sqlite, locked};
use crate::records::Retention;

/// Blocks deleted in one transaction, so that inserts never wait long.
const DELETE_BATCH: usize = 128;
/// Blocks deleted by one call of [`Sqlite::retain`]; the next call goes on.
const DELETE_CALL_MAX: usize = 200_000;

impl Sqlite {
    /// Drops blocks that are too old or too many, the oldest of an organisation first, and the
    /// oldest of all while there are too many bytes; returns how many records went. Bounded work:
    /// call it again and again.
    ///
    /// Where there are too many records, those with most lose theirs: nobody who has less than an
    /// equal share loses a record because others call much.
    ///
    /// # Errors
    /// The store failed; what was dropped before stays dropped.
    pub fn retain(&self, retention: Retention, now_us: i64) -> Result<i64, RecordsError> {
        let age_us = i64::try_from(retention.age_max.as_micros()).unwrap_or(i64::MAX);
        let oldest_us = now_us.saturating_sub(age_us);
        self.settle_tallies(
            oldest_us.div_euclid(1_000_000),
            now_us.div_euclid(1_000_000),
        )?;
        let mut work = Work::default();
        self.drop_blocks(&mut work, Blocks::GoWithTheirFile, |txn| {
            let mut old = txn.prepare_cached(
                "SELECT org_id, last_us, block, count FROM heads INDEXED BY heads_by_age
                 WHERE last_us < ?1 ORDER BY last_us LIMIT ?2",
            )?;
            old.query_map(params![oldest_us, DELETE_BATCH as i64], doomed)?
                .collect()
        })?;
        self.drop_segments(|segment| segment.last_us < oldest_us)?;
        self.keep_within_bytes(&mut work, retention.bytes_max)?;
        self.keep_within_count(&mut work, retention.count_max)?;
        // What is left without a head: others than the oldest go when it is their turn.
        while let Some(oldest) = self.segments.all().first().copied()
            && !self.has_heads(oldest)?
            && self.drop_segments(|segment| *segment == oldest)?
        {}
        Ok(work.records)
    }

    /// Drops whole segments, the oldest first, until the files take no more than so many bytes.
    fn keep_within_bytes(&self, work: &mut Work, bytes_max: u64) -> Result<(), RecordsError> {
        while self.bytes()? > bytes_max && work.blocks < DELETE_CALL_MAX {
            let all = self.segments.all();
            let behind = match (self.has_blocks_beside_heads()?, all.as_slice()) {
                (true, _) => all.first().map_or(i64::MAX, |first| first.first_block),
                (false, [_, second, ..]) => second.first_block,
                // The newest is written to: it is as small as a segment is.
                (false, _) => break,
            };
            let before = work.blocks;
            self.drop_blocks(work, Blocks::GoWithTheirFile, |txn| {
                let mut oldest = txn.prepare_cached(
                    "SELECT org_id, last_us, block, count FROM heads INDEXED BY heads_by_age
                     WHERE block < ?1 ORDER BY last_us LIMIT ?2",
                )?;
                oldest
                    .query_map(params![behind, DELETE_BATCH as i64], doomed)?
                    .collect()
            })?;
            let gone = |segment: &Segment| segment.first_block < behind;
            let unfinished = work.blocks >= DELETE_CALL_MAX;
            if unfinished || (!self.drop_segments(gone)? && work.blocks == before) {
                break;
            }
        }
        Ok(())
    }

    fn keep_within_count(&self, work: &mut Work, count_max: u64) -> Result<(), RecordsError> {
        let kept = self.kept()?;
        let Some(share) = fair_share(kept.iter().map(|(_, count)| *count), count_max) else {
            return Ok(());
        };
        for (org, count) in kept {
            let mut excess = i64::try_from(count.saturating_sub(share)).unwrap_or(i64::MAX);
            self.drop_blocks(work, Blocks::GoNow, |txn| {
                let mut oldest = txn.prepare_cached(
                    "SELECT org_id, last_us, block, count FROM heads
                     WHERE org_id = ?1 ORDER BY last_us, block LIMIT ?2",
                )?;
                let mut found = Vec::new();
                for one in oldest.query_map(params![org, DELETE_BATCH as i64], doomed)? {
                    if excess <= 0 {
                        break;
                    }
                    let one = one?;
                    excess -= one.count;
                    found.push(one);
                }
                Ok(found)
            })?;
        }
        Ok(())
    }

    /// How many records each organisation has.
    fn kept(&self) -> Result<Vec<(Vec<u8>, u64)>, RecordsError> {
        let writer = locked(&self.writer);
        let mut counts =
            writer.prepare_cached("SELECT org_id, sum(count) FROM heads GROUP BY org_id")?;
        let rows = counts.query_map([], |row| {
            let count: i64 = row.get(1)?;
            Ok((row.get(0)?, count.unsigned_abs()))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Bytes that the store takes. Of the file of the heads, which may have been larger, those that
    /// are in use.
    ///
    /// # Errors
    /// The store failed.
    pub fn bytes(&self) -> Result<u64, RecordsError> {
        let heads: i64 = locked(&self.writer).query_row(
            "SELECT (page_count - freelist_count) * page_size
             FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()",
            [],
            |row| row.get(0),
        )?;
        let segments = self.segments.all();
        let segments = segments
            .iter()
            .map(|one| self.segments.bytes(one.first_block));
        Ok(heads.unsigned_abs() + segments.sum::<u64>())
    }

    /// Whether a release before segments left blocks in the file of the heads.
    fn has_blocks_beside_heads(&self) -> Result<bool, RecordsError> {
        let writer = locked(&self.writer);
        let sql = "SELECT EXISTS (SELECT 1 FROM blocks)";
        Ok(writer.query_row(sql, [], |row| row.get(0))?)
    }

    fn has_heads(&self, segment: Segment) -> Result<bool, RecordsError> {
        let all = self.segments.all();
        let next = all
            .iter()
            .find(|next| next.first_block > segment.first_block);
        let behind = next.map_or(i64::MAX, |next| next.first_block);
        let writer = locked(&self.writer);
        let mut heads = writer.prepare_cached(
            "SELECT 1 FROM heads INDEXED BY heads_by_age
             WHERE last_us <= ?1 AND block >= ?2 AND block < ?3 LIMIT 1",
        )?;
        Ok(heads.exists([segment.last_us, segment.first_block, behind])?)
    }

    /// Deletes segments that have no heads any more; tells whether there was one.
    fn drop_segments(&self, goes: impl Fn(&Segment) -> bool) -> Result<bool, RecordsError> {
        let all = self.segments.all();
        let mut dropped = false;
        for segment in all.into_iter().filter(goes) {
            // In the order of the locks: nothing is written to it while it goes.
            let mut appender = locked(&self.appender);
            let now = self.segments.all().into_iter();
            if now.filter(|now| *now == segment).count() == 0 || self.has_heads(segment)? {
                continue;
            }
            appender.close();
            self.segments
                .forget(&locked(&self.writer), segment.first_block)?;
            drop(appender);
            for reader in [&self.reader, &self.scanner] {
                locked(reader).close(segment.first_block);
            }
            self.segments.delete(segment.first_block);
            dropped = true;
        }
        Ok(dropped)
    }

    /// Drops the blocks that `find` names, in short transactions, until it names less than a batch:
    /// the lock is let go in between so that inserts get their turn.
    fn drop_blocks(
        &self,
        work: &mut Work,
        blocks: Blocks,
        mut find: impl FnMut(&Transaction<'_>) -> rusqlite::Result<Vec<Doomed>>,
    ) -> Result<(), RecordsError> {
        while work.blocks < DELETE_CALL_MAX {
            let mut writer = locked(&self.writer);
            let txn = writer.transaction()?;
            let found = find(&txn)?;
            for one in &found {
                txn.prepare_cached(
                    "DELETE FROM heads WHERE org_id = ?1 AND last_us = ?2 AND block = ?3",
                )?
                .execute(params![one.org, one.last_us, one.block])?;
                if self.segments.place(one.block) == Place::Heads {
                    txn.prepare_cached("DELETE FROM blocks WHERE id = ?1")?
                        .execute([one.block])?;
                }
            }
            txn.commit()?;
            drop(writer);
            if blocks == Blocks::GoNow {
                self.delete_in_segments(&found)?;
            }
            work.blocks += found.len();
            work.records += found.iter().map(|one| one.count).sum::<i64>();
            if found.len() < DELETE_BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Deletes blocks whose heads are gone, and gives their pages back to the disk.
    fn delete_in_segments(&self, doomed: &[Doomed]) -> Result<(), RecordsError> {
        let mut of_segments: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for one in doomed {
            if let Place::Segment(first_block) = self.segments.place(one.block) {
                of_segments.entry(first_block).or_default().push(one.block);
            }
        }
        for (first_block, blocks) in of_segments {
            // Nothing else writes to a segment meanwhile.
            let _appender = locked(&self.appender);
            let Some(mut segment) = self.segments.existing(first_block)? else {
                continue;
            };
            let txn = segment.transaction()?;
            for block in blocks {
                txn.prepare_cached("DELETE FROM blocks WHERE id = ?1")?
                    .execute([block])?;
            }
            txn.commit()?;
            let mut freed = segment.prepare("PRAGMA incremental_vacuum")?;
            let mut rows = freed.query([])?;
            while rows.next()?.is_some() {}
        }
        Ok(())
    }
}

/// When blocks leave the disk whose heads go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocks {
    /// With the file that they are in, which goes next.
    GoWithTheirFile,
    /// At once: others stay in the file.
    GoNow,
}

/// What one call has dropped.
#[derive(Default)]
struct Work {
    blocks: usize,
    records: i64,
}

/// A block that goes.
struct Doomed {
    org: Vec<u8>,
    last_us: i64,
    block: i64,
    count: i64,
}

fn doomed(row: &Row<'_>) -> rusqlite::Result<Doomed> {
    Ok(Doomed {
        org: row.get(0)?,
        last_us: row.get(1)?,
        block: row.get(2)?,
        count: row.get(3)?,
    })
}

/// The most that each may keep so that all together keep no more than `max`, and none loses what
/// others could not use; `None` where all may stay.
fn fair_share(counts: impl Iterator<Item = u64>, max: u64) -> Option<u64> {
    let mut sorted: Vec<u64> = counts.collect();
    sorted.sort_unstable();
    let (mut left, mut others) = (max, sorted.len() as u64);
    for count in sorted {
        let share = left / others;
        if count > share {
            return Some(share);
        }
        left -= count;
        others -= 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_among_those_who_need_more() {
        for (counts, max, share) in [
            (&[][..], 0, None),
            (&[5, 5], 10, None),
            (&[5, 6], 10, Some(5)),
            (&[1, 100], 10, Some(9)),
            (&[1, 100, 200], 10, Some(4)),
            (&[100, 2, 3], 10, Some(5)),
            (&[7, 7, 7], 0, Some(0)),
            (&[u64::MAX, 1], u64::MAX, Some(u64::MAX - 1)),
        ] {
            let found = fair_share(counts.iter().copied(), max);
            assert_eq!(found, share, "{counts:?} {max}");
        }
    }
}
