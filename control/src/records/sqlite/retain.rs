//! How records are forgotten: whole blocks, the oldest first, and their files with them.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Row, Transaction, params};

use super::room::is_damaged;
use super::segments::{Place, Segment};
use super::{RecordsError, Sqlite, locked};
use crate::records::Retention;

/// How many records a block has.
const COUNT: &str = "count";
/// How many bytes, about: releases before layout 6 did not note it.
const BYTES: &str = "iif(bytes = 0, 128 * count, bytes)";
/// Fewest bytes that are to come back before it is looked again whether there are too many.
const STEP_BYTES_MIN: u64 = 16 * 1024;
/// The largest part of the limit that goes at once: what goes with blocks is only known then.
const STEPS: u64 = 16;
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
        self.drop_blocks(&mut work, Blocks::GoWithFile, |txn| {
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

    /// Drops the oldest blocks of those with most bytes until records take no more than so many.
    /// What is in the newest segment stays: that is written to.
    fn keep_within_bytes(&self, work: &mut Work, bytes_max: u64) -> Result<(), RecordsError> {
        if self.bytes_on_disk()? <= bytes_max {
            return Ok(());
        }
        for oldest in self.give_back_all()? {
            if self.bytes_in_use(&mut work.sizes)? <= bytes_max {
                return Ok(());
            }
            self.drop_whole(work, oldest)?;
        }
        let step_max = (bytes_max / STEPS).max(STEP_BYTES_MIN);
        let mut times = 1;
        loop {
            let bytes = self.bytes_in_use(&mut work.sizes)?;
            if bytes <= bytes_max || work.blocks >= DELETE_CALL_MAX {
                return Ok(());
            }
            let kept = self.kept(BYTES)?;
            let all: u64 = kept.iter().map(|(_, bytes)| *bytes).sum();
            let step = (bytes - bytes_max).clamp(STEP_BYTES_MIN, step_max);
            let step = in_blocks(step, all, bytes).saturating_mul(times);
            let left = all.saturating_sub(step);
            let newest = self.segments.newest();
            let behind = newest.map_or(i64::MAX, |newest| newest.first_block);
            let before = work.blocks;
            self.keep_shares(work, BYTES, (kept, left), behind)?;
            // Those with most may have it all in the newest segment: others are next, then.
            times = match work.blocks > before {
                true => 1,
                false if left == 0 => return Ok(()),
                false => times.saturating_mul(2),
            };
        }
    }

    /// Drops all of a segment, whosever it is.
    fn drop_whole(&self, work: &mut Work, segment: Segment) -> Result<(), RecordsError> {
        let behind = self.behind(segment);
        self.drop_blocks(work, Blocks::GoWithFile, |txn| {
            let mut all = txn.prepare_cached(
                "SELECT org_id, last_us, block, count FROM heads INDEXED BY heads_by_age
                 WHERE last_us <= ?1 AND block >= ?2 AND block < ?3 ORDER BY last_us LIMIT ?4",
            )?;
            let Segment {
                first_block,
                last_us,
                ..
            } = segment;
            all.query_map([last_us, first_block, behind, DELETE_BATCH as i64], doomed)?
                .collect()
        })?;
        self.drop_segments(|one| *one == segment).map(drop)
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
            self.drop_blocks(work, Blocks::GoNow, |txn| {
                let mut oldest = txn.prepare_cached(&sql)?;
                let mut rows = oldest.query(params![org, behind, DELETE_BATCH as i64])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()?.filter(|_| excess > 0) {
                    excess -= row.get::<_, i64>(4)?;
                    found.push(doomed(row)?);
                }
                Ok(found)
            })?;
        }
        for first_block in std::mem::take(&mut work.touched) {
            work.sizes.remove(&first_block);
            let newest = self.segments.newest();
            let is_it =
                |segment: &Segment| segment.first_block == first_block && Some(*segment) != newest;
            if self.drop_segments(is_it)? {
                continue;
            }
            match self.give_back(first_block) {
                Err(error) if !is_damaged(&error) => return Err(error),
                _ => {}
            }
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

    /// The number behind the last block of a segment.
    fn behind(&self, segment: Segment) -> i64 {
        let all = self.segments.all();
        let next = all
            .iter()
            .find(|next| next.first_block > segment.first_block);
        next.map_or(i64::MAX, |next| next.first_block)
    }

    fn has_heads(&self, segment: Segment) -> Result<bool, RecordsError> {
        let behind = self.behind(segment);
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
    /// the locks are let go in between so that inserts get their turn.
    fn drop_blocks(
        &self,
        work: &mut Work,
        blocks: Blocks,
        mut find: impl FnMut(&Transaction<'_>) -> rusqlite::Result<Vec<Doomed>>,
    ) -> Result<(), RecordsError> {
        while work.blocks < DELETE_CALL_MAX {
            // In the order of the locks: nothing else writes to a segment meanwhile.
            let appender = (blocks == Blocks::GoNow).then(|| locked(&self.appender));
            let mut writer = locked(&self.writer);
            let txn = writer.transaction()?;
            let found = find(&txn)?;
            if blocks == Blocks::GoNow {
                self.delete_in_segments(work, &found)?;
            }
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
            drop((writer, appender));
            work.blocks += found.len();
            work.records += found.iter().map(|one| one.count).sum::<i64>();
            if found.len() < DELETE_BATCH {
                break;
            }
        }
        Ok(())
    }

    /// Deletes blocks from their segments, whose heads are deleted next.
    fn delete_in_segments(&self, work: &mut Work, found: &[Doomed]) -> Result<(), RecordsError> {
        let mut of_segments: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for one in found {
            if let Place::Segment(first_block) = self.segments.place(one.block) {
                of_segments.entry(first_block).or_default().push(one.block);
            }
        }
        for (first_block, blocks) in of_segments {
            match self.delete_in_segment(first_block, &blocks) {
                // A file that is damaged goes with the last head that names it.
                Err(error) if is_damaged(&error) => {
                    tracing::warn!(%error, "a file of records is damaged: {error}");
                }
                deleted => deleted?,
            }
            work.touched.insert(first_block);
        }
        Ok(())
    }

    fn delete_in_segment(&self, first_block: i64, blocks: &[i64]) -> Result<(), RecordsError> {
        let Some(mut segment) = self.segments.existing(first_block)? else {
            return Ok(());
        };
        let txn = segment.transaction()?;
        for block in blocks {
            txn.prepare_cached("DELETE FROM blocks WHERE id = ?1")?
                .execute([block])?;
        }
        Ok(txn.commit()?)
    }
}

/// What becomes of blocks whose heads are dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocks {
    /// They go with their file, soon.
    GoWithFile,
    /// They are deleted: others in their file stay.
    GoNow,
}

/// As many bytes of blocks as go with so many of all that records take.
fn in_blocks(step: u64, blocks: u64, all: u64) -> u64 {
    let part = u128::from(step) * u128::from(blocks) / u128::from(all.max(1));
    let part = u64::try_from(part).unwrap_or(u64::MAX);
    // Fewer would take very many steps, where a few small blocks lie in a file each.
    part.max(STEP_BYTES_MIN.min(blocks.div_ceil(STEPS)))
        .min(blocks)
}

/// What one call has dropped.
#[derive(Default)]
struct Work {
    blocks: usize,
    records: i64,
    /// Segments in which blocks were deleted, until their pages are given back.
    touched: BTreeSet<i64>,
    /// See [`Sqlite::bytes_in_use`].
    sizes: BTreeMap<i64, u64>,
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
