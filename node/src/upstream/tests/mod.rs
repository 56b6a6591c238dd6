//! Conformance over raw sockets: what targets send, what we make of it, and that no byte of one
//! exchange ever reaches the next. Peers are scripts on loopback; see [`Peer`].

mod address;
mod answers;
mod breaker;
mod exchange;
mod http2;
mod replay;
mod retry;
mod sharing;
mod tls;

use std::cell::Cell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, Method};
use proto::hosts::Scheme;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::address::{GuardPolicy, PermitEntry};
use super::tls::{Roots, TlsSettings, TlsSpec};
use super::*;
use crate::body::RequestBody;

/// Runs a test as a worker runs: one thread, local tasks.
fn on_worker(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limit = Duration::from_secs(60);
    let outcome = tokio::task::LocalSet::new()
        .block_on(&runtime, async { tokio::time::timeout(limit, test).await });
    outcome.expect("the test hangs");
}

/// A target: a listener that runs a script for each connection.
struct Peer {
    port: u16,
    connections: Rc<Cell<usize>>,
}

impl Peer {
    /// `script` gets the number of the connection, from 0, and the stream.
    async fn start<F: Future<Output = ()> + 'static>(
        script: impl Fn(usize, TcpStream) -> F + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Rc::new(Cell::new(0));
        let counter = connections.clone();
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = counter.get();
                counter.set(number + 1);
                tokio::task::spawn_local(script(number, stream));
            }
        });
        Self { port, connections }
    }

    fn destination(&self) -> Arc<Destination> {
        self.destination_with(|_| {})
    }

    fn destination_with(&self, change: impl FnOnce(&mut DestinationParts)) -> Arc<Destination> {
        destination("127.0.0.1", self.port, change)
    }
}

/// A destination on loopback, which the guard permits.
fn destination(
    host: &str,
    port: u16,
    change: impl FnOnce(&mut DestinationParts),
) -> Arc<Destination> {
    let loopback = || vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    let permit = |network| PermitEntry {
        network,
        ports: vec![1024..=u16::MAX],
    };
    let guard = GuardPolicy {
        permit: loopback().into_iter().map(permit).collect(),
        allow_networks: loopback(),
        ..GuardPolicy::default()
    };
    let spec = TlsSpec {
        roots: Roots::Unchecked,
        ..TlsSpec::default()
    };
    let mut parts = DestinationParts {
        tenant: 0,
        scheme: Scheme::Http,
        host: Host::parse(host).unwrap(),
        port,
        tls: Arc::new(TlsSettings::new(&spec).unwrap()),
        http2: false,
        guard: Arc::new(guard),
        timeouts: Timeouts::default(),
        connections_max: 8,
    };
    change(&mut parts);
    Arc::new(Destination::new(parts).unwrap())
}

fn upstream() -> Upstream {
    let pool = PoolSettings {
        reap_interval: Duration::from_millis(20),
        ..Default::default()
    };
    Upstream::new(UpstreamSettings {
        pool,
        ..Default::default()
    })
}

fn head(method: Method, target: &str) -> RequestHead {
    RequestHead {
        method,
        target: target.parse().unwrap(),
        headers: HeaderMap::new(),
        terms: Terms::now(),
    }
}

fn open_gate(_attempt: u32, _head: &mut RequestHead) -> Result<Leave, Hold<Infallible>> {
    Ok(None)
}

/// Sends without a gate.
async fn send(
    upstream: &Upstream,
    destination: &Arc<Destination>,
    mut head: RequestHead,
    mut body: RequestBody,
) -> Result<Box<Answer>, Failure> {
    let mut gate = open_gate;
    let sent = upstream.send(destination, &mut head, &mut body, &mut gate);
    match sent.await {
        Ok(answer) => Ok(answer),
        Err(SendError::Failed(failure)) => Err(failure),
        Err(SendError::Gate(stopped)) => match stopped.why {},
    }
}

/// Sends a GET without a gate.
async fn get(upstream: &Upstream, destination: &Arc<Destination>) -> Result<Box<Answer>, Failure> {
    send(
        upstream,
        destination,
        head(Method::GET, "/"),
        RequestBody::Empty,
    )
    .await
}

/// All of a body, and the error that ended it.
async fn read(body: &mut AnswerBody) -> (String, Option<AnswerError>) {
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return (String::from_utf8_lossy(&bytes).into_owned(), Some(error)),
        }
    }
    (String::from_utf8_lossy(&bytes).into_owned(), None)
}

/// Gets `/` and expects a whole body.
async fn get_text(upstream: &Upstream, destination: &Arc<Destination>) -> (String, Box<Answer>) {
    let mut answer = get(upstream, destination).await.unwrap();
    let (text, error) = read(&mut answer.body).await;
    assert_eq!(error, None);
    (text, answer)
}

/// Reads a request's head; `None` at the end of the connection.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

async fn write(stream: &mut TcpStream, text: &str) {
    // The other side may be gone, which is the point of many scripts.
    let _ = stream.write_all(text.as_bytes()).await;
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Waits until a condition holds.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A body that is fed by hand through a channel.
fn fed_body(length: Option<u64>) -> (tokio::sync::mpsc::Sender<Bytes>, RequestBody) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|p| p.map(Ok)));
    (
        sender,
        RequestBody::Stream {
            stream: Box::pin(stream),
            length,
        },
    )
}

/// A short name for a failure, with what may have happened.
fn name(failure: &Failure) -> String {
    let kind = match &failure.kind {
        FailureKind::Refused { .. } => "refused",
        FailureKind::Resolve(_) => "resolve",
        FailureKind::Connect(_) => "connect",
        FailureKind::ConnectTimeout => "connect-timeout",
        FailureKind::Tls(_) => "tls",
        FailureKind::PoolExhausted => "pool-exhausted",
        FailureKind::Held => "held",
        FailureKind::FirstByteTimeout => "first-byte-timeout",
        FailureKind::TotalTimeout => "total-timeout",
        FailureKind::CallerStalled => "caller-stalled",
        FailureKind::Reset(_) => "reset",
        FailureKind::BadHttp(_) => "bad-http",
        FailureKind::BodyFromCaller(_) => "body-from-caller",
        FailureKind::BadTarget => "bad-target",
    };
    let maybe = if failure.maybe_carried_out {
        "maybe"
    } else {
        "never"
    };
    format!("{kind}, {maybe} carried out")
}
