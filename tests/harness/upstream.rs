//! Upstreams of tests: real servers on the loopback interface that answer as a test says, down to
//! the byte, and keep what they were sent.

use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use rustix::net;

use super::http::{Connection, Message, SILENCE_MAX};

/// A running upstream; it stops when dropped.
pub struct Upstream {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Message>>,
    /// Connections that ended, by the peer or by the answer's wish.
    closed: Mutex<usize>,
    changed: Condvar,
    connections: AtomicUsize,
    stopped: AtomicBool,
}

/// Whether a connection stays open after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// For the next request.
    Keep,
    /// No: it is closed.
    Close,
}

impl Upstream {
    /// Answers each request, body read, with what `answer` writes.
    pub fn start(
        answer: impl Fn(&Message, &mut Connection) -> After + Send + Sync + 'static,
    ) -> Self {
        Self::raw(move |connection, keep| {
            while let Some(request) = connection.read() {
                keep(&request);
                if !request.complete || answer(&request, connection) == After::Close {
                    break;
                }
            }
        })
    }

    /// Answers every request with these bytes, and keeps the connection.
    pub fn fixed(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |_, connection| {
            connection.send(&answer);
            After::Keep
        })
    }

    /// Answers `200` with a JSON body.
    pub fn json(body: &str) -> Self {
        Self::fixed(json_answer("200 OK", body))
    }

    /// Hands each connection to `serve`, with a way to keep a request as seen.
    pub fn raw(serve: impl Fn(&mut Connection, &dyn Fn(&Message)) + Send + Sync + 'static) -> Self {
        Self::raw_at(Ipv4Addr::LOCALHOST, serve)
    }

    /// The same, on an address of the machine or of the namespace that the caller is in.
    pub fn raw_at(
        address: impl Into<IpAddr>,
        serve: impl Fn(&mut Connection, &dyn Fn(&Message)) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address.into(), 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let (shared, serve) = (state.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let (state, serve) = (shared.clone(), serve.clone());
                thread::spawn(move || {
                    let mut connection = Connection::of(stream);
                    let keep = |request: &Message| state.keep(request.clone());
                    serve(&mut connection, &keep);
                    let _ = connection.stream().shutdown(Shutdown::Both);
                    state.end();
                });
            }
        });
        Self { address, state }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What it was sent so far.
    pub fn seen(&self) -> Vec<Message> {
        lock(&self.state.seen).clone()
    }

    /// The last request.
    pub fn last(&self) -> Message {
        self.seen().pop().expect("the upstream was sent a request")
    }

    /// How many connections were opened to it.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Waits until so many requests came.
    pub fn wait_seen(&self, count: usize) {
        self.wait("requests", || lock(&self.state.seen).len() >= count);
    }

    /// Waits until so many connections ended.
    pub fn wait_closed(&self, count: usize) {
        self.wait("closed connections", || *lock(&self.state.closed) >= count);
    }

    fn wait(&self, what: &str, met: impl Fn() -> bool) {
        super::wait_for(what, || met().then_some(()));
    }
}

impl State {
    fn keep(&self, request: Message) {
        lock(&self.seen).push(request);
        self.changed.notify_all();
    }

    fn end(&self) {
        *lock(&self.closed) += 1;
        self.changed.notify_all();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect_timeout(&self.address, SILENCE_MAX);
    }
}

/// A port on which nothing listens, and that nobody else gets while this is there.
pub struct ClosedPort {
    _socket: OwnedFd,
    url: String,
}

impl ClosedPort {
    /// Whoever connects is refused.
    pub fn new() -> Self {
        let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None);
        let socket = socket.expect("a socket");
        net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = net::getsockname(&socket).expect("its address");
        let address = SocketAddr::try_from(address).expect("an address of IPv4");
        Self {
            _socket: socket,
            url: format!("http://{address}"),
        }
    }

    /// Where it would be.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// A gate that upstreams wait at until a test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Lets all through, now and later.
    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        let (open, changed) = &*self.0;
        let waited = changed.wait_timeout_while(lock(open), SILENCE_MAX, |open| !*open);
        let (open, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(*open, "the gate was never opened");
    }
}

/// A whole answer with a JSON body.
pub fn json_answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn lock<T>(guarded: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}
