//! How records are forgotten: whole blocks, the oldest first, and their files with them.

use rusqlite::params;

use super::dropping::{Blocks, DELETE_BATCH, DELETE_CALL_MAX, Work, doomed};
use super::room::cannot_be_written;
use super::segments::Segment;
use super::{RecordsError, Sqlite, locked, tally_room};
use crate::records::Retention;

/// How many records a block has.
const COUNT: &str = "count";
/// How many bytes, about: releases before layout 6 did not note it.
const BYTES: &str = "iif(bytes = 0, 128 * count, bytes)";
/// Fewest bytes that are to come back before it is looked again whether there are too many.
const STEP_BYTES_MIN: u64 = 16 * 1024;
/// The largest part of the limit that goes at once: what goes with blocks is only known then.
const STEPS: u64 = 16;

impl Sqlite {
    /// Drops blocks that are too old, too many or too large, the oldest of an organisation first;
    /// returns how many records went. Bounded work: call it again and again.
    ///
    /// Where there are too many records or bytes, those with most lose theirs: nobody who has less
    /// than an equal share loses a record because others call much. But where a file cannot be
    /// written, as on a full disk, it goes whole: only that makes room then.
    ///
    /// # Errors
    /// The store failed in one of the limits; the others were seen to.
    pub fn retain(&self, retention: Retention, now_us: i64) -> Result<i64, RecordsError> {
        let age_us = i64::try_from(retention.age_max.as_micros()).unwrap_or(i64::MAX);
        let oldest_us = now_us.saturating_sub(age_us);
        let mut work = Work::default();
        let limits = [
            // First: what is counted of blocks that go is not counted again after a crash.
            self.settle_tallies(
                oldest_us.div_euclid(1_000_000),
                now_us.div_euclid(1_000_000),
            ),
            self.keep_tallies_within(tally_room::bytes_max(retention.bytes_max)),
            self.keep_within_age(&mut work, oldest_us),
            self.keep_within_bytes(&mut work, retention.bytes_max),
            self.keep_within_count(&mut work, retention.count_max),
            self.drop_what_is_left(&mut work),
        ];
        let mut errors = limits.into_iter().filter_map(Result::err);
        let first = errors.next();
        for error in errors {
            tracing::error!(%error, "old records could not be dropped: {error}");
        }
        first.map_or(Ok(work.records), Err)
    }

    fn keep_within_age(&self, work: &mut Work, oldest_us: i64) -> Result<(), RecordsError> {
        let is_old = |segment: &Segment| segment.last_us < oldest_us;
        loop {
            let dropped = self.drop_blocks(work, Blocks::GoWithFile, |txn| {
                let mut old = txn.prepare_cached(
                    "SELECT org_id, last_us, block, count FROM heads INDEXED BY heads_by_age
                     WHERE last_us < ?1 ORDER BY last_us LIMIT ?2",
                )?;
                old.query_map(params![oldest_us, DELETE_BATCH as i64], doomed)?
                    .collect()
            });
            match (dropped, self.closed().into_iter().find(is_old)) {
                // Its file goes first, which makes room for all else.
                (Err(error), Some(segment)) if cannot_be_written(&error) => {
                    self.drop_whole(work, segment)?;
                }
                (dropped, _) => {
                    dropped?;
                    return self.drop_segments(is_old).map(drop);
                }
            }
        }
    }

    /// Drops what a deletion that broke off has left. Where it cannot be told what that is, as
    /// while a disk is not mounted, nothing goes.
    fn drop_what_is_left(&self, work: &mut Work) -> Result<(), RecordsError> {
        for segment in self.closed() {
            // Heads without their file name nothing.
            if !self.segments.is_there(segment.first_block)? {
                self.drop_whole(work, segment)?;
            }
        }
        // Others than the oldest go when it is their turn.
        while let Some(oldest) = self.segments.all().first().copied()
            && !self.has_heads(oldest)?
            && self.drop_segments(|segment| *segment == oldest)?
        {}
        Ok(())
    }

    /// Drops the oldest blocks of those with most bytes until records take no more than so many.
    /// What is in the newest segment stays: that is written to.
    fn keep_within_bytes(&self, work: &mut Work, bytes_max: u64) -> Result<(), RecordsError> {
        if self.bytes_on_disk()? <= bytes_max {
            return Ok(());
        }
        for oldest in self.give_back_all() {
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

    /// Waits until a segment is begun: the limit of bytes may be passed then.
    pub async fn grown(&self) {
        self.grown.notified().await;
    }

    fn keep_within_count(&self, work: &mut Work, count_max: u64) -> Result<(), RecordsError> {
        loop {
            let whole = work.whole;
            let kept = self.kept(COUNT)?;
            self.keep_shares(work, COUNT, (kept, count_max), i64::MAX)?;
            if work.whole == whole {
                return Ok(());
            }
        }
    }

    /// Drops the oldest blocks with numbers below `behind` of those that have more than an equal
    /// share of `max`. Where they cannot be deleted from their file, that goes whole, and it has to
    /// be looked again who has too much.
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
            let dropped = self.drop_blocks(work, Blocks::GoNow, |txn| {
                let mut oldest = txn.prepare_cached(&sql)?;
                let mut rows = oldest.query(params![org, behind, DELETE_BATCH as i64])?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()?.filter(|_| excess > 0) {
                    excess -= row.get::<_, i64>(4)?;
                    found.push(doomed(row)?);
                }
                Ok(found)
            });
            if let Err(error) = dropped {
                self.drop_unwritten(work, error)?;
                break;
            }
        }
        for first_block in std::mem::take(&mut work.touched) {
            work.sizes.segments.remove(&first_block);
            let newest = self.segments.newest();
            let is_it =
                |segment: &Segment| segment.first_block == first_block && Some(*segment) != newest;
            if self.drop_segments(is_it)? {
                continue;
            }
            // What does not come back now does so later, or goes with the file.
            let given = self.give_back(first_block);
            self.segments.tell(first_block, given.as_ref().err());
        }
        Ok(())
    }

    /// Drops the segment whole that could not be written; the oldest where it was the heads.
    fn drop_unwritten(&self, work: &mut Work, error: RecordsError) -> Result<(), RecordsError> {
        let unwritten = work.unwritten.take();
        let is_it = |segment: &Segment| unwritten.is_none_or(|it| segment.first_block == it);
        let mut closed = self.closed().into_iter();
        let segment = closed.find(is_it).filter(|_| cannot_be_written(&error));
        let Some(segment) = segment else {
            return Err(error);
        };
        tracing::warn!(
            %error,
            "records have to go and cannot be deleted one by one, so that a whole file of them \
             goes: {error}"
        );
        work.whole += 1;
        self.drop_whole(work, segment)
    }

    /// How much each organisation has.
    fn kept(&self, measure: &str) -> Result<Vec<(Vec<u8>, u64)>, RecordsError> {
        // Some 0.3 s for two million heads, in which inserts go on.
        let scanner = locked(&self.scanner);
        let sql = format!("SELECT org_id, sum({measure}) FROM heads GROUP BY org_id");
        let mut sums = scanner.prepare_cached(&sql)?;
        let rows = sums.query_map([], |row| {
            let sum: i64 = row.get(1)?;
            Ok((row.get(0)?, sum.unsigned_abs()))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// As many bytes of blocks as go with so many of all that records take.
fn in_blocks(step: u64, blocks: u64, all: u64) -> u64 {
    let part = u128::from(step) * u128::from(blocks) / u128::from(all.max(1));
    let part = u64::try_from(part).unwrap_or(u64::MAX);
    // Fewer would take very many steps, where a few small blocks lie in a file each.
    part.max(STEP_BYTES_MIN.min(blocks.div_ceil(STEPS)))
        .min(blocks)
}

/// The most that each may keep so that all together keep no more than `max`, and none loses what
/// others could not use; `None` where all may stay.
pub(super) fn fair_share(counts: impl Iterator<Item = u64>, max: u64) -> Option<u64> {
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
