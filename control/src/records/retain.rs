//! How records are forgotten: whole blocks, the oldest first.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Row, Transaction, params};

use super::{Records, RecordsError, locked};

/// Blocks deleted in one transaction, so that inserts never wait long.
const DELETE_BATCH: usize = 64;
/// Blocks deleted by one call of [`Records::retain`]; the next call goes on.
const DELETE_CALL_MAX: usize = 200_000;
/// How often old records are looked for.
const RETAIN_EVERY: Duration = Duration::from_secs(600);

/// How long records are kept; whichever limit is met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Blocks whose records all started longer ago are dropped. A record waits for the others of
    /// its block, which ended at about the same time.
    pub age_max: Duration,
    /// At most so many are kept, over all organisations; see [`Records::retain`] for whose go. The
    /// oldest blocks go first and whole, so that what an organisation keeps is less than one block
    /// below its share.
    pub count_max: u64,
}

impl Default for Retention {
    /// 90 days, ten million.
    fn default() -> Self {
        Self {
            age_max: Duration::from_secs(90 * 86_400),
            count_max: 10_000_000,
        }
    }
}

impl Records {
    /// Drops blocks that are too old or too many, the oldest of an organisation first; returns how
    /// many records went. Bounded work: call it again and again.
    ///
    /// Where there are too many, those with most records lose theirs: nobody who has less than an
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
        self.drop_blocks(&mut work, |txn| {
            txn.prepare_cached(
                "SELECT org_id, last_us, block, count FROM heads INDEXED BY heads_by_age
                 WHERE last_us < ?1 ORDER BY last_us LIMIT ?2",
            )?
            .query_map(params![oldest_us, DELETE_BATCH as i64], doomed)?
            .collect()
        })?;
        let kept = self.kept()?;
        let Some(share) = fair_share(kept.iter().map(|(_, count)| *count), retention.count_max)
        else {
            return Ok(work.records);
        };
        for (org, count) in kept {
            let mut excess = i64::try_from(count.saturating_sub(share)).unwrap_or(i64::MAX);
            self.drop_blocks(&mut work, |txn| {
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
        Ok(work.records)
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

    /// Drops the blocks that `find` names, in short transactions, until it names less than a batch:
    /// the lock is let go in between so that inserts get their turn.
    fn drop_blocks(
        &self,
        work: &mut Work,
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
                txn.prepare_cached("DELETE FROM blocks WHERE id = ?1")?
                    .execute([one.block])?;
            }
            txn.commit()?;
            work.blocks += found.len();
            work.records += found.iter().map(|one| one.count).sum::<i64>();
            if found.len() < DELETE_BATCH {
                break;
            }
        }
        Ok(())
    }
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

/// Keeps the store within its retention until it is dropped.
pub async fn keep(records: Arc<Records>, retention: Retention) {
    let mut tick = tokio::time::interval(RETAIN_EVERY);
    loop {
        tick.tick().await;
        let records = records.clone();
        let now_us = jiff::Timestamp::now().as_microsecond();
        let task = tokio::task::spawn_blocking(move || records.retain(retention, now_us));
        match task.await {
            Ok(Ok(dropped)) if dropped > 0 => {
                tracing::info!(dropped, "dropped {dropped} old records");
                // It may have stopped at its bound, with more to drop than comes until the next.
                if dropped >= DELETE_CALL_MAX as i64 {
                    tick.reset_immediately();
                }
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(%error, "old records could not be dropped: {error}"),
            Err(error) => tracing::error!(%error, "dropping old records broke off: {error}"),
        }
    }
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
