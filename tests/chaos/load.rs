//! A steady load, as a load balancer sends it: a request goes to the next node when one takes no
//! connection. It is sent a second time only where it is idempotent, as here, and a connection that
//! was kept open closed without a byte of an answer (RFC 9112 9.3.1).

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::harness::http::{Connection, Request};
use crate::harness::wait_for;

/// Connections to each node, and so the most requests that it has in flight.
const CONNECTIONS: usize = 10;

/// What became of requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answered by the upstream.
    pub granted: u64,
    /// What was answered instead, and how often.
    pub failed: BTreeMap<String, u64>,
    /// Requests that were sent to a node, by its place, and have no answer.
    pub cut: BTreeMap<usize, u64>,
    /// Those that met the end of a connection to a node and were sent again.
    pub resent: BTreeMap<usize, u64>,
    /// Longest time that a request took.
    pub slowest: Duration,
}

impl Tally {
    fn requests(&self) -> u64 {
        self.granted + self.failed.values().sum::<u64>() + self.cut.values().sum::<u64>()
    }

    /// Asserts that every request was answered by the upstream, at the first try.
    pub fn is_clean(&self, when: &str) {
        self.is_answered(when);
        assert!(self.resent.is_empty(), "{when}: {self:?}");
    }

    /// Asserts that every request was answered by the upstream.
    pub fn is_answered(&self, when: &str) {
        eprintln!("{when}: {self:?}");
        assert!(
            self.failed.is_empty() && self.cut.is_empty(),
            "{when}: {self:?}"
        );
    }
}

impl Tally {
    /// Asserts that only requests that a node had in flight, one a connection, met its end.
    pub fn is_answered_but_by(&self, node: usize, when: &str) {
        eprintln!("{when}: {self:?}");
        let met = || self.cut.iter().chain(&self.resent);
        let in_flight: u64 = met().map(|(_, count)| *count).sum();
        let elsewhere = met().any(|(at, _)| *at != node);
        assert!(
            self.failed.is_empty() && !elsewhere && in_flight <= CONNECTIONS as u64,
            "{when}: {self:?}"
        );
    }
}

/// A running load; it stops when dropped.
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    nodes: Vec<String>,
    request: Request,
    begun: Instant,
    /// Between two requests of one worker.
    period: Duration,
    tally: Mutex<Tally>,
    stop: AtomicBool,
}

impl Load {
    /// Sends this request so often a second, spread over the nodes.
    pub fn start(nodes: Vec<String>, request: Request, per_second: u32) -> Self {
        let workers = nodes.len() * CONNECTIONS;
        let count = u32::try_from(workers).expect("few workers");
        let shared = Arc::new(Shared {
            nodes,
            request,
            begun: Instant::now(),
            period: Duration::from_secs(1) * count / per_second,
            tally: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let workers = (0..count).map(|at| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.work(at, count))
        });
        let workers = workers.collect();
        Self { shared, workers }
    }

    /// Waits until so many requests more are done, and gives what became of all since the last
    /// time.
    pub fn after(&self, requests: u64) -> Tally {
        let wanted = self.requests() + requests;
        wait_for("requests", || (self.requests() >= wanted).then_some(()));
        std::mem::take(&mut *self.tally())
    }

    /// Stops, and gives what became of all since the last time.
    pub fn stop(mut self) -> Tally {
        self.end();
        std::mem::take(&mut *self.tally())
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let ended = worker.join();
            assert!(ended.is_ok() || thread::panicking(), "a caller panicked");
        }
    }

    fn requests(&self) -> u64 {
        self.tally().requests()
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.shared.tally()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, at: u32, count: u32) {
        let home = at as usize % self.nodes.len();
        let mut due = self.begun + self.period * at / count;
        let mut kept = None;
        while !self.stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due += self.period;
            self.send(home, &mut kept);
        }
    }

    /// Sends one request to the first node from `home` on that takes a connection.
    fn send(&self, home: usize, kept: &mut Option<Connection>) {
        let begun = Instant::now();
        for turn in 0..self.nodes.len() {
            let place = (home + turn) % self.nodes.len();
            let open = kept.take().filter(|_| turn == 0).and_then(still_open);
            let reused = open.is_some();
            let Some(mut connection) = open.or_else(|| connect(&self.nodes[place])) else {
                continue;
            };
            let bytes = self.request.bytes(&self.nodes[place]);
            let sent = connection.stream().write_all(&bytes);
            let answer = sent.ok().and_then(|()| connection.read_to("GET"));
            let mut tally = self.tally();
            tally.slowest = tally.slowest.max(begun.elapsed());
            if answer.is_none() && reused {
                *tally.resent.entry(place).or_default() += 1;
                continue;
            }
            match answer.filter(|answer| answer.complete) {
                None => *tally.cut.entry(place).or_default() += 1,
                Some(answer) if answer.status() == 200 => {
                    tally.granted += 1;
                    let closes = answer.field("connection") == Some("close");
                    *kept = Some(connection).filter(|_| turn == 0 && !closes);
                }
                Some(answer) => {
                    let what = format!("{} {} {}", self.nodes[place], answer.start, answer.text());
                    *tally.failed.entry(what).or_default() += 1;
                }
            }
            return;
        }
        let mut tally = self.tally();
        *tally
            .failed
            .entry("no node takes connections".into())
            .or_default() += 1;
    }
}

/// A connection to a node, by its URL.
pub fn connect(node: &str) -> Option<Connection> {
    let address = node.trim_start_matches("http://");
    TcpStream::connect(address).ok().map(Connection::of)
}

/// The connection, if its other end has not said that it closes it.
fn still_open(mut connection: Connection) -> Option<Connection> {
    let stream = connection.stream();
    stream.set_nonblocking(true).expect("a socket");
    let seen = stream.peek(&mut [0]);
    stream.set_nonblocking(false).expect("a socket");
    matches!(seen, Err(error) if error.kind() == ErrorKind::WouldBlock).then_some(connection)
}
