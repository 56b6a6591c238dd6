//! Deleting what is to be forgotten: blocks with their heads in short transactions, and files.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Row, Transaction, params};

use super::room::{Sizes, cannot_be_written, is_damaged};
use super::segments::{Place, Segment};
use super::{RecordsError, Sqlite, locked};

/// Blocks deleted in one transaction, so that inserts never wait long.
pub(super) const DELETE_BATCH: usize = 128;
/// Blocks deleted by one call of [`Sqlite::retain`]; the next call goes on.
pub(super) const DELETE_CALL_MAX: usize = 200_000;

/// What becomes of blocks whose heads are dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocks {
    /// They go with their file, soon.
    GoWithFile,
    /// They are deleted: others in their file stay.
    GoNow,
}

/// What one call has dropped.
#[derive(Default)]
pub(super) struct Work {
    pub blocks: usize,
    pub records: i64,
    /// Segments in which blocks were deleted, until their pages are given back.
    pub touched: BTreeSet<i64>,
    pub sizes: Sizes,
    /// The segment that could not be written.
    pub unwritten: Option<i64>,
    /// How many segments went whole because they could not be written.
    pub whole: usize,
}

/// A block that goes.
pub(super) struct Doomed {
    org: Vec<u8>,
    last_us: i64,
    block: i64,
    count: i64,
}

pub(super) fn doomed(row: &Row<'_>) -> rusqlite::Result<Doomed> {
    Ok(Doomed {
        org: row.get(0)?,
        last_us: row.get(1)?,
        block: row.get(2)?,
        count: row.get(3)?,
    })
}

impl Sqlite {
    /// Segments that are written to no more.
    pub(super) fn closed(&self) -> Vec<Segment> {
        let mut all = self.segments.all();
        all.pop();
        all
    }

    /// Drops all of a segment, whosever it is. The file goes first: there may be no room for
    /// anything else until it has.
    pub(super) fn drop_whole(&self, work: &mut Work, segment: Segment) -> Result<(), RecordsError> {
        self.delete_file(segment.first_block);
        work.sizes.segments.remove(&segment.first_block);
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

    /// Deletes segments that have no heads any more; tells whether there was one.
    pub(super) fn drop_segments(
        &self,
        goes: impl Fn(&Segment) -> bool,
    ) -> Result<bool, RecordsError> {
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
            self.delete_file(segment.first_block);
            dropped = true;
        }
        Ok(dropped)
    }

    /// Deletes the file of a segment that is written to no more.
    fn delete_file(&self, first_block: i64) {
        self.segments.delete(first_block);
        for reader in [&self.reader, &self.scanner] {
            locked(reader).close(first_block);
        }
    }

    /// Drops the blocks that `find` names, in short transactions, until it names less than a batch:
    /// the locks are let go in between so that inserts get their turn.
    pub(super) fn drop_blocks(
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
                Err(error) if is_damaged(&error) => self.segments.tell(first_block, Some(&error)),
                Err(error) => {
                    work.unwritten = cannot_be_written(&error).then_some(first_block);
                    return Err(error);
                }
                Ok(()) => {}
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

    /// The number behind the last block of a segment.
    fn behind(&self, segment: Segment) -> i64 {
        let all = self.segments.all();
        let next = all
            .iter()
            .find(|next| next.first_block > segment.first_block);
        next.map_or(i64::MAX, |next| next.first_block)
    }

    pub(super) fn has_heads(&self, segment: Segment) -> Result<bool, RecordsError> {
        let behind = self.behind(segment);
        let writer = locked(&self.writer);
        let mut heads = writer.prepare_cached(
            "SELECT 1 FROM heads INDEXED BY heads_by_age
             WHERE last_us <= ?1 AND block >= ?2 AND block < ?3 LIMIT 1",
        )?;
        Ok(heads.exists([segment.last_us, segment.first_block, behind])?)
    }
}
