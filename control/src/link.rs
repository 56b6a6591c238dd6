//! Records from nodes: a listener of its own, for nodes with a certificate.
//!
//! What a node says about itself counts only as far as its certificate names it. A frame's size is
//! checked before a byte of it is read, its schema before it is decoded. A batch is acknowledged
//! when it is stored; the same batch may come again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::wire::link::{
    Ack, GREETING_BYTES_MAX, Hello, PROTOCOL, Welcome, read_frame, write_frame,
};
use proto::wire::{self, HEAD_BYTES, PAYLOAD_BYTES_MAX, RecordBatch};
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::records::Records;

/// Longest time for a handshake and a greeting.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Longest silence of a node; it sends an empty batch more often.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// Most nodes at one time.
const NODES_MAX: usize = 4_096;

/// Takes connections of nodes until it is dropped.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    records: Arc<Records>,
    metrics: Metrics,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(tokio::sync::Semaphore::new(NODES_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: others must close first.
                warn!(%error, "no connection of a node can be taken: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, records, metrics) = (acceptor.clone(), records.clone(), metrics.clone());
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = attend(stream, peer, &acceptor, &records, &metrics).await {
                warn!(%peer, "the connection of a node at {peer} ended: {error}");
            }
        });
    }
}

async fn attend(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: &TlsAcceptor,
    records: &Arc<Records>,
    metrics: &Metrics,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let greeting = async {
        let mut stream = acceptor.accept(stream).await?;
        let hello = greet(&mut stream).await?;
        Ok::<_, std::io::Error>((stream, hello))
    };
    let (mut stream, hello) = tokio::time::timeout(GREETING_MAX, greeting).await??;
    let node = hello.node;
    info!(%peer, node, "node {node} of region {} is connected", hello.region);
    let _connected = metrics.node();
    let bytes_max = HEAD_BYTES + PAYLOAD_BYTES_MAX;
    while let Some(frame) =
        tokio::time::timeout(SILENCE_MAX, read_frame(&mut stream, bytes_max)).await??
    {
        let batch: RecordBatch = wire::decode(&frame).map_err(invalid)?;
        if batch.node != node {
            return Err(invalid(format!("{node} sent records of {}", batch.node)));
        }
        let (sequence, count, lost) = (batch.sequence, batch.records.len(), batch.dropped);
        if !batch.records.is_empty() {
            let records = records.clone();
            let stored = tokio::task::spawn_blocking(move || records.insert(&batch.records)).await;
            // The node keeps the batch and sends it again, here or elsewhere.
            stored
                .map_err(std::io::Error::other)?
                .map_err(std::io::Error::other)?;
        }
        metrics.stored(count as u64, lost);
        write_frame(&mut stream, &Ack { sequence }).await?;
    }
    info!(%peer, node, "node {node} has left");
    Ok(())
}

/// Reads who calls and says whether it may go on.
async fn greet(stream: &mut TlsStream<TcpStream>) -> std::io::Result<Hello> {
    let frame = read_frame(stream, GREETING_BYTES_MAX).await?;
    let frame = frame.ok_or_else(|| invalid("it said nothing"))?;
    let hello: Hello = wire::decode(&frame).map_err(invalid)?;
    let refused = match is_named(stream, &hello.node) {
        true if hello.protocol == 0 => Some("protocol 0 is not known".to_owned()),
        true => None,
        false => Some(format!("the certificate does not name `{}`", hello.node)),
    };
    let welcome = Welcome {
        protocol: PROTOCOL,
        refused: refused.clone(),
    };
    write_frame(stream, &welcome).await?;
    match refused {
        None => Ok(hello),
        Some(why) => Err(invalid(why)),
    }
}

/// Whether the certificate that the node proved names it (a DNS name in `subjectAltName`).
fn is_named(stream: &TlsStream<TcpStream>, node: &str) -> bool {
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let parsed = certificate.and_then(|first| ParsedCertificate::try_from(first).ok());
    let name = ServerName::try_from(node.to_owned());
    match (parsed, name) {
        (Some(certificate), Ok(name)) => verify_server_name(&certificate, &name).is_ok(),
        _ => false,
    }
}

fn invalid(error: impl ToString) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string())
}
