//! A way to an etcd that a test stands on: it counts writes, stops at one of them, and holds back
//! what etcd says while everything stays open.
//!
//! It ends HTTP/2 on both sides, so that calls on one connection can be told from each other.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::etcd::EtcdServer;

/// The call by which all keys are written.
const WRITE: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

type Error = Box<dyn std::error::Error + Send + Sync>;
type Carried = UnsyncBoxBody<Bytes, Error>;

/// Runs as long as the test program.
pub struct EtcdRelay {
    address: SocketAddr,
    state: Arc<State>,
}

/// Where at a write something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// etcd never gets it.
    Before,
    /// etcd has carried it out, and nobody hears of it.
    After,
}

/// What is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// What etcd says on watches.
    Watches,
    /// Every byte to those who connect to etcd.
    Connections,
}

struct State {
    to: SocketAddr,
    trap: Mutex<Option<Trap>>,
    holding: Mutex<Holding>,
    watches: AtomicUsize,
}

#[derive(Default)]
struct Holding {
    /// Counts the calls of [`EtcdRelay::hold`].
    moment: u64,
    /// What stands still, of what was opened before a moment.
    held: Vec<(Held, u64)>,
}

struct Trap {
    /// Only writes with these bytes count.
    part: Vec<u8>,
    left: u64,
    moment: Moment,
    spring: Box<dyn FnOnce() + Send>,
}

impl EtcdRelay {
    /// A way to a server without TLS.
    pub fn to(server: &EtcdServer) -> Self {
        let to = server.endpoint();
        let to = to
            .trim_start_matches("http://")
            .parse()
            .expect("an address");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a socket");
        let state = Arc::new(State {
            to,
            trap: Mutex::default(),
            holding: Mutex::default(),
            watches: AtomicUsize::new(0),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    // One that breaks off is nobody's failure.
                    tokio::spawn(carry(stream, shared.clone()));
                }
            });
        });
        Self { address, state }
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does something at the `nth` write from now on that has `part` in a key or a value, counted
    /// from 1; the call is never answered.
    pub fn at_write(
        &self,
        (nth, moment): (u64, Moment),
        part: &str,
        spring: impl FnOnce() + Send + 'static,
    ) {
        *lock(&self.state.trap) = Some(Trap {
            part: part.as_bytes().to_vec(),
            left: nth,
            moment,
            spring: Box::new(spring),
        });
    }

    /// Whether the write came to which [`EtcdRelay::at_write`] set something; from now on nothing
    /// happens at it.
    pub fn has_sprung(&self) -> bool {
        lock(&self.state.trap).take().is_none()
    }

    /// How many writes are left to the one to which [`EtcdRelay::at_write`] set something.
    pub fn left(&self) -> Option<u64> {
        lock(&self.state.trap).as_ref().map(|trap| trap.left)
    }

    /// Holds back what etcd says on what is open now, for good. What is opened later works.
    pub fn hold(&self, what: Held) {
        let mut holding = lock(&self.state.holding);
        holding.moment += 1;
        let moment = holding.moment;
        holding.held.push((what, moment));
    }

    /// How many watches were opened so far.
    pub fn watches(&self) -> usize {
        self.state.watches.load(Ordering::Relaxed)
    }
}

impl State {
    /// Notes what was opened.
    fn opened(&self, is_watch: bool) -> u64 {
        if is_watch {
            self.watches.fetch_add(1, Ordering::Relaxed);
        }
        self.moment()
    }

    /// The trap, if this is the write that it waits for.
    fn trapped(&self, body: &[u8]) -> Option<Trap> {
        let mut trap = lock(&self.trap);
        let waiting = trap.as_mut()?;
        if !body
            .windows(waiting.part.len())
            .any(|at| at == waiting.part)
        {
            return None;
        }
        waiting.left -= 1;
        (waiting.left == 0).then(|| trap.take()).flatten()
    }

    fn moment(&self) -> u64 {
        lock(&self.holding).moment
    }

    fn holds(&self, what: Held, opened: u64) -> bool {
        let holding = lock(&self.holding);
        let before = |(held, moment): &(Held, u64)| *held == what && opened < *moment;
        holding.held.iter().any(before)
    }
}

/// Carries one connection.
async fn carry(client: TcpStream, state: Arc<State>) -> Result<(), Error> {
    let server = TcpStream::connect(state.to).await?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(server));
    let (sender, connection) = handshake.await?;
    tokio::spawn(connection);
    let opened = state.moment();
    let client = Still {
        stream: client,
        opened,
        state: state.clone(),
    };
    let service = service_fn(move |request| answered(request, sender.clone(), state.clone()));
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(client), service);
    Ok(served.await?)
}

async fn answered(
    request: Request<Incoming>,
    mut sender: SendRequest<Carried>,
    state: Arc<State>,
) -> Result<Response<Carried>, Error> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let mut after = None;
    let body = match path == WRITE {
        false => body.map_err(Error::from).boxed_unsync(),
        true => {
            let whole = body.collect().await?.to_bytes();
            match state.trapped(&whole) {
                Some(trap) if trap.moment == Moment::Before => {
                    (trap.spring)();
                    return std::future::pending().await;
                }
                found => after = found,
            }
            let never = |never: Infallible| match never {};
            Full::new(whole).map_err(never).boxed_unsync()
        }
    };
    let answer = sender.send_request(Request::from_parts(head, body)).await?;
    if let Some(trap) = after {
        answer.into_body().collect().await?;
        (trap.spring)();
        return std::future::pending().await;
    }
    let is_watch = path == WATCH;
    let opened = state.opened(is_watch);
    Ok(answer.map(|body| {
        let body = Stuck {
            body,
            opened: is_watch.then_some(opened),
            state,
        };
        body.map_err(Error::from).boxed_unsync()
    }))
}

/// What etcd says in a call; of a watch it can be held back.
struct Stuck {
    body: Incoming,
    opened: Option<u64>,
    state: Arc<State>,
}

impl Body for Stuck {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match self.opened {
            // Asked after it came, since nothing wakes this when the moment comes; lost with that.
            Some(opened) if self.state.holds(Held::Watches, opened) => Poll::Pending,
            _ => Poll::Ready(frame),
        }
    }
}

/// A client's connection; what is written to it can be held back.
struct Still {
    stream: TcpStream,
    opened: u64,
    state: Arc<State>,
}

impl AsyncRead for Still {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Still {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.state.holds(Held::Connections, self.opened) {
            // As on a way that loses every packet, the bytes are taken and come nowhere.
            true => Poll::Ready(Ok(bytes.len())),
            false => Pin::new(&mut self.stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
