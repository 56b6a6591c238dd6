//! How long records are kept, in whichever store.

use std::sync::Arc;
use std::time::Duration;

use super::Records;

/// How often old records are looked for, at least.
const RETAIN_EVERY: Duration = Duration::from_secs(600);
/// Where one call drops so many, it may have stopped at its bound, with more to drop than comes
/// until the next.
const DROPPED_MANY: u64 = 200_000;

/// How long records are kept; whichever limit is met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Those that started longer ago are dropped. A record may wait for others of about its time.
    pub age_max: Duration,
    /// In SQLite at most so many are kept, over all organisations: those with most lose theirs. The
    /// oldest blocks go first and whole, so that what an organisation keeps is less than one block
    /// below its share.
    pub count_max: u64,
    /// At most so many bytes, over all organisations. In SQLite those with most lose theirs, the
    /// oldest first, but for what is in the newest file, of a quarter of a gibibyte or a day; it is
    /// looked each time that a file is begun. A file that cannot be written goes whole, the oldest
    /// first. Tallies do not count: they may take a quarter of it more, and 64 MiB at least; those
    /// with most lose their oldest. In ClickHouse the oldest days go, whosever records they hold;
    /// the newest stays.
    pub bytes_max: u64,
}

impl Default for Retention {
    /// 90 days, ten million, 10 GiB.
    fn default() -> Self {
        Self {
            age_max: Duration::from_secs(90 * 86_400),
            count_max: 10_000_000,
            bytes_max: 10 * 1024 * 1024 * 1024,
        }
    }
}

/// Keeps the store within its retention until it is dropped.
pub async fn keep(records: Arc<Records>, retention: Retention) {
    let mut tick = tokio::time::interval(RETAIN_EVERY);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = records.grown() => {}
        }
        let records = records.clone();
        let now_us = jiff::Timestamp::now().as_microsecond();
        let task = tokio::task::spawn_blocking(move || records.retain(retention, now_us));
        match task.await {
            Ok(Ok(dropped)) if dropped > 0 => {
                tracing::info!(dropped, "dropped {dropped} old records");
                if dropped >= DROPPED_MANY {
                    tick.reset_immediately();
                }
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(%error, "old records could not be dropped: {error}"),
            Err(error) => tracing::error!(%error, "dropping old records broke off: {error}"),
        }
    }
}
