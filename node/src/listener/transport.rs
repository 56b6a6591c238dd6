//! What is under the guard: plain TCP, or TLS that speaks HTTP/1.1 only.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection::TlsFacts;

/// A client's stream of bytes.
#[derive(Debug)]
pub enum Transport {
    /// As it comes.
    Plain(TcpStream),
    /// Decrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The server's configuration with nothing but HTTP/1.1 in ALPN: h2 here would be read by
/// actix-web's h2 0.3, which has an open advisory. A client that offers h2 alone is refused by
/// TLS itself (`no_application_protocol`, RFC 7301 3.2).
pub(super) fn http1_only(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Ends the TLS handshake of a fresh connection, within `timeout`.
///
/// # Errors
/// The handshake failed or took too long.
pub(super) async fn handshake(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    timeout: Duration,
) -> io::Result<(Transport, TlsFacts)> {
    let accept = TlsAcceptor::from(config).accept(tcp);
    let stream = tokio::time::timeout(timeout, accept)
        .await
        .map_err(io::Error::other)??;
    let (_, session) = stream.get_ref();
    let facts = TlsFacts {
        peer_certificates: session.peer_certificates().unwrap_or_default().to_vec(),
        server_name: session.server_name().map(str::to_owned),
    };
    Ok((Transport::Tls(Box::new(stream)), facts))
}

/// Prepares an accepted connection and tells who is at its other end.
pub(super) fn prepare(tcp: &TcpStream) -> Option<SocketAddr> {
    // Answers go out in few writes of their own; waiting for more would only delay their ends.
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    tcp.peer_addr().ok()
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
