//! The connection between the control planes of two regions, both ends of it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::wire::link::{GREETING_BYTES_MAX, Welcome, read_frame, write_frame};
use proto::wire::replication::{Answer, Ask, PROTOCOL, PROTOCOL_MIN, RegionHello};
use proto::wire::{self, HEAD_BYTES, PAYLOAD_BYTES_MAX};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::info;

use super::source::Source;
use crate::regions::host_of;

/// Longest time for a connection, a handshake and a greeting.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Longest silence of a follower.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// Longest wait for an answer, beyond what the ask itself may wait; also for a frame to be taken.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Largest frame, in bytes.
const FRAME_BYTES_MAX: usize = HEAD_BYTES + PAYLOAD_BYTES_MAX;

impl Source {
    /// Serves a region whose greeting came on `stream`; `named` tells whether the certificate that
    /// it proved names a host.
    ///
    /// # Errors
    /// The region may not ask, breaks the protocol, or has left.
    pub async fn attend(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        peer: SocketAddr,
        greeting: &[u8],
        named: impl Fn(&str) -> bool,
    ) -> io::Result<()> {
        let hello: RegionHello = wire::decode(greeting).map_err(invalid)?;
        let refused = self.refuses(&hello, named);
        let welcome = Welcome {
            protocol: PROTOCOL,
            refused: refused.clone(),
        };
        tokio::time::timeout(ANSWER_MAX, write_frame(&mut stream, &welcome)).await??;
        if let Some(why) = refused {
            return Err(invalid(why));
        }
        let region = hello.region;
        info!(%peer, region, "region {region} follows");
        let _connected = self.status.connected(&region);
        let mut session = self.session(region.clone(), hello.protocol);
        while let Some(frame) =
            tokio::time::timeout(SILENCE_MAX, read_frame(&mut stream, FRAME_BYTES_MAX)).await??
        {
            let ask: Ask = wire::decode(&frame).map_err(invalid)?;
            let answer = session.answer(ask).await.map_err(io::Error::other)?;
            tokio::time::timeout(ANSWER_MAX, write_frame(&mut stream, &answer)).await??;
        }
        info!(%peer, region, "region {region} has left");
        Ok(())
    }
}

/// How other regions are called.
pub enum Dialer {
    /// With our certificate, and whom we trust.
    Tls(Arc<ClientConfig>),
    /// In one process.
    #[cfg(test)]
    Within(Arc<super::tests::net::Net>),
}

impl Dialer {
    /// Connects one region to a link listener of another.
    ///
    /// # Errors
    /// It does not answer, is not who it should be, or refuses.
    pub(super) async fn dial(
        &self,
        endpoint: &str,
        between: (&str, &str),
    ) -> io::Result<Connection> {
        match self {
            Self::Tls(tls) => Connection::open(endpoint, tls.clone(), between).await,
            #[cfg(test)]
            Self::Within(net) => net.dial(between).await,
        }
    }
}

/// What a connection runs over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection to another region, which is asked.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    peer: String,
    protocol: u16,
}

impl Connection {
    /// Connects to one link listener.
    ///
    /// # Errors
    /// It does not answer, is not who it should be, or refuses.
    pub async fn open(
        endpoint: &str,
        tls: Arc<ClientConfig>,
        (own, peer): (&str, &str),
    ) -> io::Result<Self> {
        let opening = async {
            let name = ServerName::try_from(host_of(endpoint).to_owned()).map_err(invalid)?;
            let tcp = TcpStream::connect(endpoint).await?;
            tcp.set_nodelay(true)?;
            let stream = TlsConnector::from(tls).connect(name, tcp).await?;
            Self::over(Box::new(stream), (own, peer)).await
        };
        tokio::time::timeout(CONNECT_MAX, opening).await?
    }

    /// Greets over a stream, as one region to another.
    ///
    /// # Errors
    /// The other side is no control plane, or refuses.
    pub async fn over(mut stream: Box<dyn Stream>, (own, peer): (&str, &str)) -> io::Result<Self> {
        let hello = RegionHello {
            protocol: PROTOCOL,
            region: own.to_owned(),
        };
        write_frame(&mut stream, &hello).await?;
        let frame = read_frame(&mut stream, GREETING_BYTES_MAX).await?;
        let frame = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
        let welcome: Welcome = wire::decode(&frame).map_err(invalid)?;
        match welcome.refused {
            None if welcome.protocol < PROTOCOL_MIN => Err(invalid(format!(
                "it speaks protocol {}: region {peer} runs an older program",
                welcome.protocol
            ))),
            None => Ok(Self {
                stream,
                peer: peer.to_owned(),
                protocol: welcome.protocol.min(PROTOCOL),
            }),
            Some(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
        }
    }

    /// The region that is asked.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The same connection, as if the other side spoke no higher protocol.
    #[cfg(test)]
    pub fn speaking(self, protocol: u16) -> Self {
        Self { protocol, ..self }
    }

    /// The protocol that both sides speak.
    pub fn protocol(&self) -> u16 {
        self.protocol
    }

    /// Asks and waits for the answer, which itself may wait so long.
    ///
    /// # Errors
    /// The connection broke; it cannot be used again.
    pub async fn ask(&mut self, ask: &Ask, wait: Duration) -> io::Result<Answer> {
        let exchange = async {
            write_frame(&mut self.stream, ask).await?;
            let frame = read_frame(&mut self.stream, FRAME_BYTES_MAX).await?;
            wire::decode(&frame.ok_or(io::ErrorKind::UnexpectedEof)?).map_err(invalid)
        };
        tokio::time::timeout(wait + ANSWER_MAX, exchange).await?
    }
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
