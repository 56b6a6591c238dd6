//! The table, made where it is missing and given the columns that this release knows.
//!
//! An operator may make the table beforehand, with another engine of the `ReplacingMergeTree`
//! family, other codecs or other storage: what counts is that the columns are there and that the
//! sorting key is ours.

use std::collections::BTreeSet;

use ::clickhouse::{Client, Row};
use serde::Deserialize;
use tokio::sync::Mutex;
use tracing::info;

use super::failed;
use super::sql::{Sql, Value};
use crate::records::RecordsError;

/// The table's name.
pub(super) const TABLE: &str = "requests";

/// Its columns. A column never changes its meaning; one that a later release adds goes to the end
/// and has a `DEFAULT`, so that this release can write without it.
const COLUMNS: &[(&str, &str)] = &[
    ("org_id", "LowCardinality(String)"),
    ("started_at", "DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1))"),
    ("request_id", "String CODEC(ZSTD(1))"),
    ("proxy_id", "LowCardinality(String)"),
    ("proxy_credential_id", "LowCardinality(String)"),
    ("proxy_credential_generation", "LowCardinality(String)"),
    ("target_credential_id", "LowCardinality(String)"),
    ("target_credential_generation", "LowCardinality(String)"),
    ("config_version", "UInt64"),
    ("node", "LowCardinality(String)"),
    ("region", "LowCardinality(String)"),
    ("method", "LowCardinality(String)"),
    ("path", "String CODEC(ZSTD(1))"),
    ("query_names", "Array(String)"),
    ("status", "UInt16"),
    ("upstream_status", "UInt16"),
    ("code", "LowCardinality(String)"),
    ("auth_failure", "LowCardinality(String)"),
    ("total_us", "UInt64"),
    ("duration_bucket", "UInt16"),
    ("request_bytes", "UInt64"),
    ("response_bytes", "UInt64"),
    ("attempts", "UInt32"),
    ("failures", "Array(LowCardinality(String))"),
    ("limited_by", "Array(LowCardinality(String))"),
    ("rule_ids", "Array(String)"),
    ("filter_ids", "Array(String)"),
    ("source", "String CODEC(ZSTD(1))"),
    ("source_family", "UInt8"),
    ("source_first", "UInt128 CODEC(ZSTD(1))"),
    ("source_last", "UInt128 CODEC(ZSTD(1))"),
    ("user_agent", "String CODEC(ZSTD(1))"),
    ("user_agent_lower", "String CODEC(ZSTD(1))"),
    ("upstream_ids", "Array(String)"),
    ("trace_id", "String CODEC(ZSTD(1))"),
    ("left_gateway", "LowCardinality(String)"),
    ("client_aborted", "Bool"),
    ("scrubbed", "UInt32"),
    ("scrub", "LowCardinality(String)"),
    ("ended_by", "LowCardinality(String)"),
    ("record", "String CODEC(ZSTD(3))"),
    ("payload", "String CODEC(ZSTD(3))"),
    ("meter_ids", "Array(String) DEFAULT []"),
    ("meter_tokens", "Array(UInt64) DEFAULT []"),
    ("key_place", "LowCardinality(String) DEFAULT ''"),
    ("key_hint", "LowCardinality(String) DEFAULT ''"),
    ("refusing_meters", "Array(String) DEFAULT []"),
    ("refusal_causes", "Array(LowCardinality(String)) DEFAULT []"),
    ("denying_scopes", "Array(LowCardinality(String)) DEFAULT []"),
    ("endpoints", "Array(LowCardinality(String)) DEFAULT []"),
    ("forwarded_to", "LowCardinality(String) DEFAULT ''"),
    ("forwarded_from", "LowCardinality(String) DEFAULT ''"),
    ("upstream_request_bytes", "UInt64 DEFAULT 0"),
    ("upstream_response_bytes", "UInt64 DEFAULT 0"),
    ("method_overridden", "LowCardinality(String) DEFAULT ''"),
    ("events", "Array(LowCardinality(String)) DEFAULT []"),
    ("value_missing", "Array(String) DEFAULT []"),
];

/// Ids are looked for all over the table: a filter of Bloom for each granule says where not.
const INDICES: &str = "
    INDEX by_request request_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_trace trace_id TYPE bloom_filter(0.01) GRANULARITY 1";

/// What makes and checks the table.
pub(super) struct Schema {
    /// Without a database, which may not be there yet.
    server: Client,
    database: String,
    days: u32,
    is_ready: Mutex<bool>,
}

#[derive(Row, Deserialize)]
struct Column {
    name: String,
}

#[derive(Row, Deserialize)]
struct Engine {
    engine_full: String,
}

impl Schema {
    /// For a database in which records are kept for so many days.
    pub(super) fn new(server: &Client, database: &str, days: u32) -> Self {
        Self {
            server: server.clone(),
            database: database.to_owned(),
            days,
            is_ready: Mutex::new(false),
        }
    }

    /// Sees to it once that the table is as this release needs it.
    pub(super) async fn ready(&self) -> Result<(), RecordsError> {
        let mut is_ready = self.is_ready.lock().await;
        if !*is_ready {
            self.prepare().await?;
            *is_ready = true;
        }
        Ok(())
    }

    /// Somebody may have changed the table: looks again before the next use.
    pub(super) async fn doubt(&self) {
        *self.is_ready.lock().await = false;
    }

    async fn prepare(&self) -> Result<(), RecordsError> {
        let client = self.server.clone().with_database("default");
        let named = [Value::from(self.database.as_str()), Value::from(TABLE)];
        let asked = "SELECT name FROM system.columns WHERE database = ? AND table = ?";
        let known = Sql::new(asked, named.clone()).query(&client);
        let known: Vec<Column> = known.fetch_all().await.map_err(failed)?;
        if known.is_empty() {
            return self.create().await;
        }
        let known: BTreeSet<String> = known.into_iter().map(|column| column.name).collect();
        let table = self.table();
        for (name, kind) in COLUMNS {
            if !known.contains(*name) {
                info!("adding the column {name} to {table} in ClickHouse");
                self.run(format!(
                    "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} {kind}"
                ))
                .await?;
            }
        }
        let asked = "SELECT engine_full FROM system.tables WHERE database = ? AND name = ?";
        let engine = Sql::new(asked, named).query(&client);
        let engine: Engine = engine.fetch_one().await.map_err(failed)?;
        if !engine.engine_full.contains(&self.ttl()) {
            info!("{table} in ClickHouse keeps records {} days now", self.days);
            self.run(format!("ALTER TABLE {table} MODIFY {}", self.ttl()))
                .await?;
        }
        Ok(())
    }

    async fn create(&self) -> Result<(), RecordsError> {
        let (table, ttl) = (self.table(), self.ttl());
        info!("making {table} in ClickHouse");
        // Where the database is there this may be forbidden; where it is not, the next one says so.
        let _ = self
            .run(format!("CREATE DATABASE IF NOT EXISTS {}", self.database))
            .await;
        let columns = COLUMNS.iter().map(|(name, kind)| format!("{name} {kind}"));
        let columns = columns.collect::<Vec<_>>().join(",\n");
        self.run(format!(
            "CREATE TABLE IF NOT EXISTS {table} ({columns},{INDICES})
             ENGINE = ReplacingMergeTree
             PARTITION BY toYYYYMMDD(started_at)
             ORDER BY (org_id, started_at, request_id)
             {ttl}
             SETTINGS ttl_only_drop_parts = 1"
        ))
        .await
    }

    /// As ClickHouse itself writes it.
    fn ttl(&self) -> String {
        format!("TTL started_at + toIntervalDay({})", self.days)
    }

    fn table(&self) -> String {
        format!("{}.{TABLE}", self.database)
    }

    async fn run(&self, statement: String) -> Result<(), RecordsError> {
        let client = self.server.clone().with_database("default");
        client.query_raw(&statement).execute().await.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_releases_write_without_what_later_ones_added() {
        let mut columns = COLUMNS.iter();
        columns.find(|(name, _)| *name == "payload").unwrap();
        for (name, kind) in columns {
            assert!(kind.contains(" DEFAULT "), "{name}");
        }
    }
}
