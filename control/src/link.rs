//! Records from nodes: a listener of its own, for nodes with a certificate. Control planes of other
//! regions call here too, and are handed on to `replication`.
//!
//! What a node says about itself counts only as far as its certificate names it. A frame's size is
//! checked before a byte of it is read, its schema before it is decoded. A batch is acknowledged
//! when it is stored; the same batch may come again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::health::Health;
use proto::wire::link::{
    Ack, CLOCK_PROTOCOL, GREETING_BYTES_MAX, Hello, PROTOCOL, TimedAck, Welcome, read_frame,
    write_frame,
};
use proto::wire::replication::RegionHello;
use proto::wire::{self, HEAD_BYTES, PAYLOAD_BYTES_MAX, RecordBatch};
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use crate::linked::Linked;
use crate::metrics::Metrics;
use crate::records::Records;
use crate::replication::Source;

/// Longest time for a handshake and a greeting.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Longest silence of a node; it sends an empty batch more often.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// Most nodes at one time.
const NODES_MAX: u32 = 4_096;

/// How long connections may take to end when the process does: a batch is stored, an answer
/// written.
const END_MAX: Duration = Duration::from_secs(2);

/// What connections of nodes are served with.
pub struct LinkDeps {
    /// This side's certificate, and whom it trusts.
    pub tls: Arc<ServerConfig>,
    /// Where records go.
    pub records: Arc<Records>,
    /// What is counted.
    pub metrics: Metrics,
    /// Who is connected.
    pub linked: Linked,
    /// What answers control planes of other regions.
    pub source: Option<Arc<Source>>,
    /// Tells when the process ends.
    pub health: Health,
    /// Who this control plane is.
    pub name: String,
    /// How far its wall clock is taken to be ahead where nodes are told the time; 0 but for tests.
    pub clock_ahead_ns: i64,
}

/// Takes connections of nodes until the process ends. Then it takes none any more, and ends those
/// that there are between two batches: what was not acknowledged comes again, here or elsewhere.
pub async fn serve(listener: TcpListener, deps: LinkDeps) {
    let deps = Arc::new(deps);
    let places = Arc::new(tokio::sync::Semaphore::new(NODES_MAX as usize));
    tokio::select! {
        () = accept(&listener, &deps, &places) => {}
        () = deps.health.draining() => {}
    }
    drop(listener);
    let ended = tokio::time::timeout(END_MAX, places.acquire_many(NODES_MAX)).await;
    if ended.is_err() {
        warn!("connections of nodes are cut: they did not end in time");
    }
}

async fn accept(
    listener: &TcpListener,
    deps: &Arc<LinkDeps>,
    places: &Arc<tokio::sync::Semaphore>,
) {
    let acceptor = TlsAcceptor::from(deps.tls.clone());
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
        let (acceptor, deps) = (acceptor.clone(), deps.clone());
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = attend(stream, peer, &acceptor, &deps).await {
                warn!(%peer, "the connection of {peer} ended: {error}");
            }
        });
    }
}

async fn attend(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: &TlsAcceptor,
    deps: &LinkDeps,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let greeting = async {
        let mut stream = acceptor.accept(stream).await?;
        let frame = read_frame(&mut stream, GREETING_BYTES_MAX).await?;
        let frame = frame.ok_or_else(|| invalid("it said nothing"))?;
        Ok::<_, std::io::Error>((stream, frame))
    };
    let (mut stream, frame) = tokio::time::timeout(GREETING_MAX, greeting).await??;
    let mut ending = std::pin::pin!(deps.health.draining());
    if let (Some(source), true) = (&deps.source, wire::holds::<RegionHello>(&frame)) {
        let names = names_of(&stream);
        return tokio::select! {
            attended = source.attend(stream, peer, &frame, names) => attended,
            () = ending => Ok(()),
        };
    }
    let greeted = greet(&mut stream, &frame);
    let hello = tokio::time::timeout(GREETING_MAX, greeted).await??;
    let node = hello.node;
    info!(%peer, node, "node {node} of region {} is connected", hello.region);
    let _connected = deps.metrics.node();
    let place = deps
        .linked
        .enter(&node, &hello.region, jiff::Timestamp::now());
    let bytes_max = HEAD_BYTES + PAYLOAD_BYTES_MAX;
    loop {
        let frame = tokio::time::timeout(SILENCE_MAX, read_frame(&mut stream, bytes_max));
        let frame = tokio::select! {
            frame = frame => frame??,
            () = &mut ending => {
                stream.shutdown().await?;
                info!(%peer, node, "node {node} is sent elsewhere: this process ends");
                return Ok(());
            }
        };
        let Some(frame) = frame else {
            break;
        };
        place.heard(jiff::Timestamp::now());
        let batch: RecordBatch = wire::decode(&frame).map_err(invalid)?;
        if batch.node != node {
            return Err(invalid(format!("{node} sent records of {}", batch.node)));
        }
        let ack = keep(batch, deps).await?;
        match hello.protocol < CLOCK_PROTOCOL {
            true => write_frame(&mut stream, &ack).await?,
            false => write_frame(&mut stream, &timed(&ack, deps)).await?,
        }
    }
    info!(%peer, node, "node {node} has left");
    Ok(())
}

/// Stores a batch. Where that fails the node keeps it and sends it again, here or elsewhere.
async fn keep(batch: RecordBatch, deps: &LinkDeps) -> std::io::Result<Ack> {
    let (sequence, count, lost) = (batch.sequence, batch.records.len(), batch.dropped);
    if !batch.records.is_empty() {
        let stored = deps.records.store(Arc::new(batch.records)).await;
        stored.map_err(|error| {
            deps.metrics.refused(count as u64);
            std::io::Error::other(error)
        })?;
    }
    deps.metrics.stored(count as u64, lost);
    Ok(Ack { sequence })
}

fn timed(ack: &Ack, deps: &LinkDeps) -> TimedAck {
    let unix_ns = jiff::Timestamp::now().as_nanosecond() + i128::from(deps.clock_ahead_ns);
    TimedAck {
        sequence: ack.sequence,
        by: deps.name.clone(),
        unix_ns: u64::try_from(unix_ns).unwrap_or(0),
    }
}

/// Reads who calls and says whether it may go on.
async fn greet(stream: &mut TlsStream<TcpStream>, frame: &[u8]) -> std::io::Result<Hello> {
    let hello: Hello = wire::decode(frame).map_err(invalid)?;
    let refused = match names_of(stream)(&hello.node) {
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

/// Whether the certificate that the other side proved names it (a DNS name or an address in
/// `subjectAltName`).
fn names_of(stream: &TlsStream<TcpStream>) -> impl Fn(&str) -> bool + use<> {
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.map(|first| first.clone().into_owned());
    move |name| {
        let parsed = certificate.as_ref();
        let parsed = parsed.and_then(|first| ParsedCertificate::try_from(first).ok());
        match (parsed, ServerName::try_from(name.to_owned())) {
            (Some(certificate), Ok(name)) => verify_server_name(&certificate, &name).is_ok(),
            _ => false,
        }
    }
}

fn invalid(error: impl ToString) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string())
}
