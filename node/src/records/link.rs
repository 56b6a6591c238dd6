//! The connection to a control plane that takes records: mutual TLS, one batch at a time.

use std::sync::Arc;
use std::time::Duration;

use proto::wire::link::{
    Ack, CLOCK_PROTOCOL, GREETING_BYTES_MAX, Hello, PROTOCOL, TimedAck, Welcome, read_frame,
    write_frame,
};
use proto::wire::{self, RecordBatch};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::info;

use crate::limits::Limits;
use crate::stages::record::Origin;

/// Longest time for a connection, a handshake and a greeting.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for an acknowledgement.
const ACK_MAX: Duration = Duration::from_secs(30);

/// Where records go.
pub struct Destination {
    /// Control planes, `host:port` each; any one of them will do.
    pub endpoints: Vec<String>,
    /// Our certificate, and whom we trust.
    pub tls: Arc<ClientConfig>,
}

struct Stream {
    stream: TlsStream<TcpStream>,
    /// The lower of what both sides speak.
    protocol: u16,
}

/// A connection that is made when it is needed.
pub struct Link {
    destination: Destination,
    origin: Arc<Origin>,
    /// Who hears what the clocks of control planes show, where clocks are compared.
    clocks: Option<Arc<Limits>>,
    stream: Option<Stream>,
    /// Which endpoint is tried next.
    at: usize,
}

impl Link {
    /// No connection yet.
    pub fn new(destination: Destination, origin: Arc<Origin>, clocks: Option<Arc<Limits>>) -> Self {
        Self {
            destination,
            origin,
            clocks,
            stream: None,
            at: 0,
        }
    }

    /// Sends a batch once and waits until it is stored. After an error the next attempt goes to
    /// the next endpoint.
    ///
    /// # Errors
    /// It is not known to be stored; the same batch may be sent again.
    pub async fn send(&mut self, batch: &RecordBatch) -> std::io::Result<()> {
        let sent = self.attempt(batch).await;
        if sent.is_err() {
            self.stream = None;
            self.at = self.at.wrapping_add(1);
        }
        sent.map_err(|error| {
            let endpoint = self.endpoint(self.at.wrapping_sub(1)).to_owned();
            std::io::Error::new(error.kind(), format!("{endpoint}: {error}"))
        })
    }

    async fn attempt(&mut self, batch: &RecordBatch) -> std::io::Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => tokio::time::timeout(CONNECT_MAX, self.connect()).await??,
        };
        let exchanged = self.exchange(&mut stream, batch);
        let sequence = tokio::time::timeout(ACK_MAX, exchanged).await??;
        if sequence != batch.sequence {
            return Err(invalid(format!(
                "batch {sequence} was acknowledged instead"
            )));
        }
        self.stream = Some(stream);
        Ok(())
    }

    fn endpoint(&self, at: usize) -> &str {
        let endpoints = &self.destination.endpoints;
        let at = at.checked_rem(endpoints.len()).unwrap_or(0);
        endpoints.get(at).map_or("nowhere", String::as_str)
    }

    async fn connect(&self) -> std::io::Result<Stream> {
        let endpoint = self.endpoint(self.at);
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
        let protocol = welcome.protocol.min(PROTOCOL);
        Ok(Stream { stream, protocol })
    }

    /// The batch that is acknowledged to be stored.
    async fn exchange(&self, on: &mut Stream, batch: &RecordBatch) -> std::io::Result<u64> {
        let asked_ns = self.clocks.as_ref().map(|limits| limits.asked_ns());
        write_frame(&mut on.stream, batch).await?;
        if on.protocol < CLOCK_PROTOCOL {
            return Ok(answer::<Ack>(&mut on.stream).await?.sequence);
        }
        let ack: TimedAck = answer(&mut on.stream).await?;
        if let Some((limits, asked_ns)) = self.clocks.as_ref().zip(asked_ns) {
            limits.control_clock(ack.by, asked_ns, ack.unix_ns);
        }
        Ok(ack.sequence)
    }
}

async fn answer<M: wire::Message>(stream: &mut TlsStream<TcpStream>) -> std::io::Result<M> {
    let frame = read_frame(stream, GREETING_BYTES_MAX).await?;
    let frame = frame.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    wire::decode(&frame).map_err(invalid)
}

fn invalid(error: impl ToString) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string())
}
