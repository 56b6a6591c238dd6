//! How records are forgotten: whole blocks, the oldest first, and their files with them.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, Transaction, params};

use super::segments::{GIVES_BACK, Place, Segment};
use super::{RecordsError, Sqlite, locked};
use crate::records::Retention;

/// How many records a block has.
const COUNT: &str = "count";
/// How many bytes, about: releases before layout 6 did not note it.
const BYTES: &str = "iif(bytes = 0, 128 * count, bytes)";
/// Fewest bytes of blocks that go at once where there are too many: less may free no page.
const STEP_BYTES_MIN: u64 = 16 * 1024;
/// Blocks deleted in one transaction, so that inserts never wait long.
const DELETE_BATCH: usize = 128;
/// Blocks deleted by one call of [`Sqlite::retain`]; the next call goes on.
const DELETE_CALL_MAX: usize = 200_000;

impl Sqlite {
    /// Drops blocks that are too old, too many or too large, the oldest of an organisation first;
    /// returns how many records went. Bounded work: call it again and again.
    ///
    /// Where there are too many records or bytes, those with most lose theirs: nobody who has less
    /// than an equal share loses a record because others call much.
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
        self.drop_blocks(&mut work, |txn| {
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

    /// Drops the oldest blocks of those with most bytes until the files take no more than so many.
    /// What is in the newest segment stays: that is written to.
    fn keep_within_bytes(&self, work: &mut Work, bytes_max: u64) -> Result<(), RecordsError> {
        let (mut last, mut blocks) = (u64::MAX, None);
        loop {
            let bytes = self.bytes()?;
            // Where nothing comes back to the disk, others have the files open: later, then.
            let is_done = bytes <= bytes_max || bytes >= last || blocks == Some(work.blocks);
            if is_done || work.blocks >= DELETE_CALL_MAX {
                return Ok(());
            }
            (last, blocks) = (bytes, Some(work.blocks));
            let kept = self.kept(BYTES)?;
            let all: u64 = kept.iter().map(|(_, bytes)| *bytes).sum();
            // Some pages, and not more than a segment before it is looked again: files take more
            // than blocks do.
            let excess = bytes.saturating_sub(bytes_max).max(STEP_BYTES_MIN);
            let left = all.saturating_sub(excess.min(self.segment_bytes_max));
            let newest = self.segments.newest();
            let behind = newest.map_or(i64::MAX, |newest| newest.first_block);
            self.keep_shares(work, BYTES, (kept, left), behind)?;
        }
    }

    /// Waits until a segment is begun: the limit of bytes may be passed then.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }

    fn keep_within_count(&self, work: &mut Work, count_max: u64) -> Result<(), RecordsError> {
        let kept = self.kept(COUNT)?;
        self.keep_shares(work, COUNT, (kept, count_max), i64::MAX)
    }

    /// Drops the oldest blocks with numbers below `behind` of those that have more than an equal
    /// share of `max`.
    fn keep_shares(
        &self,
        work: &mut Work,
        measure: &str,
        (kept, max): (Vec<(Vec<u8>, u64)>, u64),
        behind: i64,
    ) -> Result<(), RecordsError> {
        let Some(share) = fair_share(kept.iter().map(|(_, measured)| *measured), max) else {
            return Ok(());
        };
        let sql = format!(
            "SELECT org_id, last_us, block, count, {measure} FROM heads
             WHERE org_id = ?1 AND block < ?2 ORDER BY last_us, block LIMIT ?3"
        );
        for (org, measured) in kept {
            let mut excess = i64::try_from(measured.saturating_sub(share)).unwrap_or(i64::MAX);
            if excess == 0 {
                continue;
            }
            let dropped = self.drop_blocks(work, |txn| {
                let mut oldest = txn.prepare_cached(&sql)?;
                let mut rows = oldest.query(params![org, behind, DELETE_BATCH as i64])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()?.filter(|_| excess > 0) {
                    excess -= row.get::<_, i64>(4)?;
                    found.push(doomed(row)?);
                }
                Ok(found)
            })?;
            self.delete_in_segments(dropped)?;
        }
        Ok(())
    }

    /// How much each organisation has.
    fn kept(&self, measure: &str) -> Result<Vec<(Vec<u8>, u64)>, RecordsError> {
        let writer = locked(&self.writer);
        let sql = format!("SELECT org_id, sum({measure}) FROM heads GROUP BY org_id");
        let mut sums = writer.prepare_cached(&sql)?;
        let rows = sums.query_map([], |row| {
            let sum: i64 = row.get(1)?;
            Ok((row.get(0)?, sum.unsigned_abs()))
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

    /// Drops the heads of the blocks that `find` names, in short transactions, until it names less
    /// than a batch: the lock is let go in between so that inserts get their turn. Gives the
    /// numbers of the blocks, which go with the file that they are in or are deleted next.
    fn drop_blocks(
        &self,
        work: &mut Work,
        mut find: impl FnMut(&Transaction<'_>) -> rusqlite::Result<Vec<Doomed>>,
    ) -> Result<Vec<i64>, RecordsError> {
        let mut dropped = Vec::new();
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
            dropped.extend(found.iter().map(|one| one.block));
            work.blocks += found.len();
            work.records += found.iter().map(|one| one.count).sum::<i64>();
            if found.len() < DELETE_BATCH {
                break;
            }
        }
        Ok(dropped)
    }

    /// Deletes blocks whose heads are gone, and gives their pages back to the disk: with its file
    /// where nothing else is in it. What a crash leaves of them goes with the file.
    fn delete_in_segments(&self, dropped: Vec<i64>) -> Result<(), RecordsError> {
        let mut of_segments: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for block in dropped {
            if let Place::Segment(first_block) = self.segments.place(block) {
                of_segments.entry(first_block).or_default().push(block);
            }
        }
        let newest = self.segments.newest();
        for (first_block, blocks) in of_segments {
            let is_it =
                |segment: &Segment| segment.first_block == first_block && Some(*segment) != newest;
            if self.drop_segments(is_it)? {
                continue;
            }
            for reader in [&self.reader, &self.scanner] {
                // Pages come back when nobody else has the file open.
                locked(reader).close(first_block);
            }
            for blocks in blocks.chunks(DELETE_BATCH) {
                // Nothing else writes to a segment meanwhile.
                let _appender = locked(&self.appender);
                let Some(mut segment) = self.segments.existing(first_block)? else {
                    break;
                };
                let txn = segment.transaction()?;
                for block in blocks {
                    txn.prepare_cached("DELETE FROM blocks WHERE id = ?1")?
                        .execute([block])?;
                }
                txn.commit()?;
                give_back(&segment)?;
            }
        }
        Ok(())
    }
}

/// Gives the free pages of a segment back to the disk.
fn give_back(segment: &Connection) -> Result<(), RecordsError> {
    let mode: i64 = segment.query_row("PRAGMA auto_vacuum", [], |row| row.get(0))?;
    if mode == 0 {
        // One that an earlier release began gives nothing back until it is packed once.
        segment.execute_batch(GIVES_BACK)?;
        return Ok(segment.execute_batch("VACUUM")?);
    }
    let mut freed = segment.prepare("PRAGMA incremental_vacuum")?;
    let mut rows = freed.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
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
