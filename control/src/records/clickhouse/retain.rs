//! How records leave ClickHouse: by age through the table's TTL, by size a day at a time.

use ::clickhouse::Row;
use serde::Deserialize;

use super::schema::TABLE;
use super::sql::Sql;
use super::{ClickHouse, failed};
use crate::records::{RecordsError, Retention};

#[derive(Row, Deserialize)]
struct Day {
    partition: String,
    bytes: u64,
    rows: u64,
}

impl ClickHouse {
    /// Drops the oldest days while all together are larger than they may be; the newest stays.
    /// Gives how many rows went. What is too old goes by itself.
    pub(in crate::records) fn retain(&self, retention: Retention) -> Result<u64, RecordsError> {
        let database = self.client.database().unwrap_or_default().to_owned();
        let days: Vec<Day> = self.ask(Sql::new(
            "SELECT partition, sum(bytes_on_disk) AS bytes, sum(rows) AS rows FROM system.parts
             WHERE active AND database = ? AND table = ? GROUP BY partition ORDER BY partition",
            [database.into(), TABLE.into()],
        ))?;
        let mut bytes: u64 = days.iter().map(|day| day.bytes).sum();
        let mut dropped = 0;
        let but_newest = days.len().saturating_sub(1);
        for day in days.into_iter().take(but_newest) {
            if bytes <= retention.bytes_max {
                break;
            }
            let drop = Sql::new(
                "ALTER TABLE requests DROP PARTITION ?",
                [day.partition.into()],
            );
            let dropping = drop.query(&self.client).execute();
            self.runtime.block_on(dropping).map_err(failed)?;
            bytes -= day.bytes;
            dropped += day.rows;
        }
        Ok(dropped)
    }
}
