//! How much etcd is asked, as its own metrics count it, second by second: messages of its clients,
//! and their bytes, since a member without a leader does not count what it refuses.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::network::Host;
use crate::harness::http::{Connection, Request};

/// Where a member of etcd has its metrics, on its host.
const METRICS: &str = "127.0.0.1:2381";

/// What was asked in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Amount {
    /// Messages.
    pub messages: f64,
    /// Their bytes.
    pub bytes: f64,
}

impl Amount {
    /// Twice this, and so many messages of usual size.
    pub fn twice_and(self, messages: f64) -> Self {
        let size = self.bytes / self.messages.max(1.0);
        Self {
            messages: 2.0 * self.messages + messages,
            bytes: 2.0 * self.bytes + messages * size,
        }
    }

    /// Whether neither is more than another's.
    pub fn is_within(self, most: Self) -> bool {
        self.messages <= most.messages && self.bytes <= most.bytes
    }

    fn mean(of: &[Self]) -> Self {
        let count = of.len().max(1) as f64;
        Self {
            messages: of.iter().map(|each| each.messages).sum::<f64>() / count,
            bytes: of.iter().map(|each| each.bytes).sum::<f64>() / count,
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            messages: self.messages.max(other.messages),
            bytes: self.bytes.max(other.bytes),
        }
    }

    fn since(self, before: Self) -> Self {
        // Less than before: it was restarted and counts anew.
        let less = |now: f64, before: f64| if now < before { now } else { now - before };
        Self {
            messages: less(self.messages, before.messages),
            bytes: less(self.bytes, before.bytes),
        }
    }
}

/// Counts until it is dropped.
pub struct Asked {
    seconds: Arc<Seconds>,
    counting: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seconds {
    /// By second since the start, of all members.
    counts: Mutex<BTreeMap<u64, Amount>>,
    stop: AtomicBool,
}

impl Asked {
    /// Counts at these members.
    pub fn start(members: Vec<Host>) -> Self {
        let (seconds, begun) = (Arc::new(Seconds::default()), Instant::now());
        let counting = members.into_iter().map(|member| {
            let seconds = Arc::clone(&seconds);
            thread::spawn(move || member.inside(|| seconds.count(begun)))
        });
        let counting = counting.collect();
        Self { seconds, counting }
    }

    /// The most of a second so far; forgets them.
    pub fn most(&self) -> Amount {
        self.most_of(1)
    }

    /// The most of so many seconds one after another, as a mean of one; forgets them. A member that
    /// starts reads nothing before it has a quorum: what was sent to it in two seconds or more it
    /// counts in one.
    pub fn most_of(&self, seconds: usize) -> Amount {
        let counts = std::mem::take(&mut *self.seconds.counts());
        let messages = counts.values().map(|amount| amount.messages);
        eprintln!(
            "etcd was asked, second by second: {:?}",
            messages.collect::<Vec<_>>()
        );
        let counts: Vec<_> = counts.into_values().collect();
        let means = counts.windows(seconds).map(Amount::mean);
        means.fold(Amount::default(), Amount::most)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.seconds.stop.store(true, Ordering::Relaxed);
        for counting in self.counting.drain(..) {
            let ended = counting.join();
            assert!(ended.is_ok() || thread::panicking(), "counting panicked");
        }
    }
}

impl Seconds {
    fn counts(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Amount>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, begun: Instant) {
        let mut before = total();
        for second in 0.. {
            let due = begun + Duration::from_secs(second + 1);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let now = total();
            let asked = now.unwrap_or_default().since(before.unwrap_or_default());
            let mut counts = self.counts();
            let sum = counts.entry(second).or_default();
            sum.messages += asked.messages;
            sum.bytes += asked.bytes;
            drop(counts);
            before = now;
        }
    }
}

/// What this host's member was asked since its start, if it runs.
fn total() -> Option<Amount> {
    let stream = TcpStream::connect(METRICS).ok()?;
    let mut connection = Connection::of(stream);
    connection.send(Request::new("GET", "/metrics").bytes(METRICS));
    let text = connection.read_to("GET")?.text();
    let sum = |name: &str| -> f64 {
        let counters = text.lines().filter(|line| line.starts_with(name));
        let values = counters.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.sum()
    };
    Some(Amount {
        messages: sum("grpc_server_msg_received_total{"),
        bytes: sum("etcd_network_client_grpc_received_bytes_total "),
    })
}
