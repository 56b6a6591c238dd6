//! TLS in front of a server that speaks none: what a reverse proxy would be to it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Runs as long as the test program.
pub struct TlsRelay {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl TlsRelay {
    /// Shows this certificate, for `localhost`, to whoever wants to reach the server at this port.
    pub fn before(port: u16, certificate: &str, key: &str) -> Self {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
        let chain = chain.collect::<Result<_, _>>().expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate with its key");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let own = listener.local_addr().expect("an address").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(serve(listener, acceptor, to, counted));
        });
        Self {
            port: own,
            connections,
        }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// How many handshakes came to an end.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn serve(
    listener: std::net::TcpListener,
    acceptor: TlsAcceptor,
    to: SocketAddr,
    counted: Arc<AtomicUsize>,
) {
    let listener = TcpListener::from_std(listener).expect("a socket");
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, counted) = (acceptor.clone(), Arc::clone(&counted));
        tokio::spawn(async move {
            // Who does not trust the certificate ends the handshake.
            let Ok(mut outer) = acceptor.accept(stream).await else {
                return;
            };
            counted.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut inner) = TcpStream::connect(to).await {
                // Either side may end it at any time.
                let _ = copy_bidirectional(&mut outer, &mut inner).await;
            }
        });
    }
}
