//! How records are forgotten: whole blocks, the oldest first.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::params;

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
    /// At most so many are kept, over all organisations; the oldest blocks go first and whole, so
    /// that what is kept is less than one block below this.
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
    /// Drops blocks that are too old or too many, the oldest first; returns how many records
    /// went. Bounded work: call it again and again.
    ///
    /// # Errors
    /// The store failed; what was dropped before stays dropped.
    pub fn retain(&self, retention: Retention, now_us: i64) -> Result<i64, RecordsError> {
        let age_us = i64::try_from(retention.age_max.as_micros()).unwrap_or(i64::MAX);
        let oldest_us = now_us.saturating_sub(age_us);
        let kept: i64 = locked(&self.writer).query_row(
            "SELECT coalesce(sum(count), 0) FROM heads INDEXED BY heads_by_age",
            [],
            |row| row.get(0),
        )?;
        let count_max = i64::try_from(retention.count_max).unwrap_or(i64::MAX);
        let (mut dropped, mut blocks) = (0, 0);
        while blocks < DELETE_CALL_MAX {
            // The lock is let go between two batches so that inserts get their turn.
            let excess = kept.saturating_sub(dropped).saturating_sub(count_max);
            let went = self.drop_oldest(oldest_us, excess)?;
            dropped += went.iter().sum::<i64>();
            blocks += went.len();
            if went.len() < DELETE_BATCH {
                break;
            }
        }
        Ok(dropped)
    }

    /// Drops at most [`DELETE_BATCH`] blocks, the oldest first, as long as a block's records all
    /// started before `before_us` or more than `excess` records would not have gone without it.
    /// Returns how many records were in each.
    fn drop_oldest(&self, before_us: i64, mut excess: i64) -> Result<Vec<i64>, RecordsError> {
        let mut writer = locked(&self.writer);
        let txn = writer.transaction()?;
        let mut went = Vec::new();
        {
            let mut oldest = txn.prepare_cached(
                "SELECT org_id, last_us, block, count FROM heads INDEXED BY heads_by_age
                 ORDER BY last_us LIMIT ?1",
            )?;
            let mut drop_head = txn.prepare_cached(
                "DELETE FROM heads WHERE org_id = ?1 AND last_us = ?2 AND block = ?3",
            )?;
            let mut drop_block = txn.prepare_cached("DELETE FROM blocks WHERE id = ?1")?;
            let found = oldest
                .query_map([DELETE_BATCH as i64], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })?
                .collect::<Result<Vec<(Vec<u8>, i64, i64, i64)>, _>>()?;
            for (org, last_us, block, count) in found {
                if last_us >= before_us && excess <= 0 {
                    break;
                }
                drop_head.execute(params![org, last_us, block])?;
                drop_block.execute([block])?;
                excess -= count;
                went.push(count);
            }
        }
        txn.commit()?;
        Ok(went)
    }
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
