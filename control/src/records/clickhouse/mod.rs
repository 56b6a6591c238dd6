//! Records in ClickHouse: one table for all control planes of an installation.
//!
//! A row is a record: the columns by which records are searched and counted, and the whole record
//! as JSON ([`row`]). A record may come twice, after a broken connection or from two control
//! planes; the table keeps one row for each (`ReplacingMergeTree`), and every query reads it as if
//! that had been done already. So a batch may be written again at any time.
//!
//! What is written is gathered for a moment, over all nodes, and acknowledged when ClickHouse has
//! it ([`writer`]): until then it waits on the nodes' disks.

mod aggregate;
mod retain;
mod row;
mod schema;
mod search;
mod sql;
mod writer;

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ::clickhouse::{Client, Compression};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use proto::id::OrgId;
use proto::record::Record;
use tokio::runtime::Handle;
use url::Url;
use zeroize::Zeroizing;

use super::RecordsError;
use super::follow::Tails;
use schema::Schema;
use writer::Writer;

/// Longest time for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is not used again: ClickHouse closes idle ones early.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// Longest time that ClickHouse works on a question.
const QUESTION_MAX: Duration = Duration::from_secs(30);
/// What its answer may take beyond that.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Where ClickHouse is, and what is kept there.
#[derive(Clone, Debug)]
pub struct ClickHouseSettings {
    /// Its HTTP interface, without user and password.
    pub url: Url,
    /// The user.
    pub user: String,
    /// The user's password.
    pub password: Zeroizing<String>,
    /// The database, which is made where it is missing and may be made.
    pub database: String,
    /// Whom we trust, where the URL is `https`.
    pub tls: Arc<rustls::ClientConfig>,
    /// How long records are gathered before they are written.
    pub gather: Duration,
    /// How long records are kept, in days.
    pub days: u32,
}

/// The open store.
pub(super) struct ClickHouse {
    client: Client,
    schema: Arc<Schema>,
    writer: Writer,
    runtime: Handle,
}

impl std::fmt::Debug for ClickHouse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClickHouse")
    }
}

impl ClickHouse {
    /// Connects when it is needed.
    pub(super) fn new(settings: ClickHouseSettings, runtime: Handle) -> Self {
        let mut url = settings.url.clone();
        // What the crate would take for the database is the settings' to say.
        url.set_query(None);
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector(settings.tls.as_ref().clone()));
        let client = Client::with_http_client(http)
            .with_url(url)
            .with_user(&settings.user)
            .with_password(settings.password.as_str())
            .with_compression(Compression::Lz4)
            .with_product_info("requestrocket", env!("CARGO_PKG_VERSION"));
        let schema = Arc::new(Schema::new(&client, &settings.database, settings.days));
        let client = client
            .with_database(&settings.database)
            .with_setting("max_execution_time", QUESTION_MAX.as_secs().to_string())
            // Rows of one record have one instant, so that they are of one day.
            .with_setting("do_not_merge_across_partitions_select_final", "1");
        let writer = Writer::start(client.clone(), schema.clone(), settings.gather, &runtime);
        Self {
            client,
            schema,
            writer,
            runtime,
        }
    }

    /// Stores a batch.
    pub(super) fn insert<R: Borrow<Record>>(
        &self,
        batch: &[R],
        tails: &Tails,
    ) -> Result<usize, RecordsError> {
        self.runtime.block_on(self.store(batch, tails))
    }

    /// The same without holding up the caller's thread.
    pub(super) async fn store<R: Borrow<Record>>(
        &self,
        batch: &[R],
        tails: &Tails,
    ) -> Result<usize, RecordsError> {
        let rows = batch.iter().map(|record| row::Row::of(record.borrow()));
        self.writer.write(rows.collect()).await?;
        let mut of_orgs: BTreeMap<OrgId, Vec<&Record>> = BTreeMap::new();
        for record in batch.iter().map(Borrow::borrow) {
            of_orgs.entry(record.org_id).or_default().push(record);
        }
        for (org, records) in of_orgs {
            tails.offer(org, &records);
        }
        Ok(batch.len())
    }

    /// Asks for rows, on the store's own runtime; at most [`QUESTION_MAX`] and a little.
    fn ask<T>(&self, question: sql::Sql) -> Result<Vec<T>, RecordsError>
    where
        T: ::clickhouse::RowOwned + ::clickhouse::RowRead,
    {
        self.runtime.block_on(async {
            let asked = async {
                self.schema.ready().await?;
                let rows = question.query(&self.client).fetch_all::<T>().await;
                rows.map_err(failed)
            };
            let answered = tokio::time::timeout(QUESTION_MAX + ANSWER_MAX, asked).await;
            answered.unwrap_or_else(|_| Err(late()))
        })
    }
}

fn connector(tls: rustls::ClientConfig) -> HttpsConnector<HttpConnector> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_MAX));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector)
}

fn failed(error: ::clickhouse::error::Error) -> RecordsError {
    // Its causes say what happened; `network error` alone does not.
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    RecordsError::Unavailable(text)
}

fn late() -> RecordsError {
    RecordsError::Unavailable("it did not answer in time".into())
}
