//! Ships batches to a control plane: one connection, one batch under way, sent again until it is
//! acknowledged.
//!
//! While no control plane can be reached batches wait in the queue, which is bounded; what finds no
//! room there is dropped and counted.

use std::sync::Arc;
use std::time::Duration;

use proto::record::Record;
use proto::wire::link::{
    Ack, GREETING_BYTES_MAX, Hello, PROTOCOL, Welcome, read_frame, write_frame,
};
use proto::wire::{self, RecordBatch};
use rand::RngExt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{info, warn};

use super::RecordBatches;
use crate::metrics::Metrics;
use crate::stages::record::Origin;

/// Longest time for a connection, a handshake and a greeting.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for an acknowledgement.
const ACK_MAX: Duration = Duration::from_secs(30);
/// How often an idle node shows that it is there.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// First and longest wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Where records go.
pub struct Destination {
    /// Control planes, `host:port` each; any one of them will do.
    pub endpoints: Vec<String>,
    /// Our certificate, and whom we trust.
    pub tls: Arc<ClientConfig>,
}

/// Ships until the queue has ended and its last batch is acknowledged.
pub async fn run(
    mut batches: RecordBatches,
    destination: Destination,
    origin: Arc<Origin>,
    metrics: Metrics,
) {
    let mut shipper = Shipper {
        destination,
        origin,
        metrics,
        dropped: 0,
        stream: None,
        at: 0,
        sequence: 0,
    };
    loop {
        let batch = match tokio::time::timeout(HEARTBEAT, batches.next()).await {
            Ok(Some(batch)) => batch.into_iter().map(|record| *record).collect(),
            Ok(None) => return,
            Err(_) => Vec::new(),
        };
        shipper.ship(batch).await;
    }
}

struct Shipper {
    destination: Destination,
    origin: Arc<Origin>,
    metrics: Metrics,
    /// Lost records that control knows of.
    dropped: u64,
    stream: Option<TlsStream<TcpStream>>,
    /// Which endpoint is tried next.
    at: usize,
    sequence: u64,
}

impl Shipper {
    /// Sends a batch until it is acknowledged; a heartbeat is sent once.
    async fn ship(&mut self, records: Vec<Record>) {
        self.sequence += 1;
        let dropped = self.metrics.records_dropped_so_far();
        let batch = RecordBatch {
            node: self.origin.node.to_string(),
            sequence: self.sequence,
            dropped: dropped.saturating_sub(self.dropped),
            records,
        };
        let mut backoff = BACKOFF_MIN;
        while let Err(error) = self.attempt(&batch).await {
            self.stream = None;
            warn!("records cannot be shipped to {}: {error}", self.endpoint());
            self.at = self.at.wrapping_add(1);
            if batch.records.is_empty() {
                return;
            }
            // Full jitter: many nodes lose one control plane at the same time.
            let wait = rand::rng().random_range(Duration::ZERO..=backoff);
            tokio::time::sleep(wait).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        self.dropped = dropped;
    }

    async fn attempt(&mut self, batch: &RecordBatch) -> std::io::Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => tokio::time::timeout(CONNECT_MAX, self.connect()).await??,
        };
        let sequence = tokio::time::timeout(ACK_MAX, exchange(&mut stream, batch)).await??;
        if sequence != batch.sequence {
            return Err(invalid(format!(
                "batch {sequence} was acknowledged instead"
            )));
        }
        self.stream = Some(stream);
        Ok(())
    }

    fn endpoint(&self) -> &str {
        let endpoints = &self.destination.endpoints;
        let at = self.at.checked_rem(endpoints.len()).unwrap_or(0);
        endpoints.get(at).map_or("nowhere", String::as_str)
    }

    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let endpoint = self.endpoint();
        let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let tcp = TcpStream::connect(endpoint).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(self.destination.tls.clone());
        let mut stream = connector.connect(name.map_err(invalid)?, tcp).await?;
        let hello = Hello {
            protocol: PROTOCOL,
            node: self.origin.node.to_string(),
            region: self.origin.region.to_string(),
        };
        write_frame(&mut stream, &hello).await?;
        let welcome: Welcome = answer(&mut stream).await?;
        if let Some(why) = welcome.refused {
            return Err(std::io::Error::new(
                std::io::ErrorKind::PermissionDenied,
                why,
            ));
        }
        info!("records are shipped to {endpoint}");
        Ok(stream)
    }
}

async fn exchange(stream: &mut TlsStream<TcpStream>, batch: &RecordBatch) -> std::io::Result<u64> {
    write_frame(stream, batch).await?;
    Ok(answer::<Ack>(stream).await?.sequence)
}

async fn answer<M: wire::Message>(stream: &mut TlsStream<TcpStream>) -> std::io::Result<M> {
    let frame = read_frame(stream, GREETING_BYTES_MAX).await?;
    let frame = frame.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    wire::decode(&frame).map_err(invalid)
}

fn invalid(error: impl ToString) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string())
}
