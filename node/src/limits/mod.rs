//! Rate-limit tokens: truth in the store, blocks ahead of demand, tokens in cells of this process.
//!
//! ```text
//! stage limit    Meter::draw ─┐ compare-exchange       Waiting ◀─ answered ─┐
//! stage forward  Token::send ─┤ in a Cell                                   │
//!                             └── ask ──▶ Broker ─ look ─▶ Owner (one a key) ┘
//!                                           │ one transaction for all keys of a turn
//!                                           ▼
//!                                         Store: State per key, moved by compare-and-swap
//! ```
//!
//! With peers each key has one owner among the nodes, by rendezvous hashing: its broker takes
//! blocks from the store and lends parts of them to the brokers that ask. One that does not answer
//! is passed over for the next; a node that reaches no peer takes from the store itself. Two
//! owners at once cost conflicts in the store and nothing else.
//!
//! | file | what |
//! |---|---|
//! | `window` | pure: sliding ring, calendar window |
//! | `block` | pure: open, settle, close a block in a state |
//! | `state`, `codec` | the value in the store, and its bytes |
//! | `revision_clock` | pure: how old a value in the store is at least |
//! | `cell`, `part` | tokens in the hands of workers, and the broker's record of them |
//! | `demand`, `credit` | how much is wanted, how often written; what is given without a store |
//! | `owner` | one key: what is known of it, the write that is due, what is lent and borrowed |
//! | `exchange` | what nodes say to each other about tokens |
//! | `broker`, `run` | all keys: who owns each, transactions, timers; the shell with the store |
//! | `meter`, `tokens` | what the pipeline holds |
//! | `view`, `refusal` | what callers are told |
//!
//! **Invariants.** In any interval of a sliding window's length, and in every calendar window,
//! sent ≤ limit, whatever crashes, pauses, is cut or is answered late. What is sent is charged at
//! the instant of [`Token::send`] or later, never earlier. No file here but `run` and `meter`
//! waits; only `run` has the store; only [`SystemClock`] reads a clock.

pub mod block;
pub mod broker;
pub mod cell;
pub mod clock;
pub mod codec;
mod credit;
mod demand;
pub mod exchange;
mod key;
mod meter;
mod owner;
mod part;
mod refusal;
pub mod revision_clock;
mod run;
mod shared;
pub mod state;
mod tokens;
mod view;
pub mod window;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::meter::MeterSpec;
use proto::store::Store;

pub use block::Opener;
pub use clock::{Clock, Moment, SystemClock};
pub use key::{MeterKey, PREFIX};
pub use meter::{Draw, Expired, Meter, Sent, Token, Waiting};
pub use refusal::{
    Cause, LimitStatus, MeterStatus, Mode, Refusal, rate_limit, rate_limit_policy, retry_after,
};
pub use run::{Links, PeerEvent};
pub use shared::Stats;
pub use tokens::{DrawAll, METERS_MAX, MeterSet, Tokens, TooManyMeters, WaitingAll};

use owner::Place;
use shared::Shared;

/// What the limits of a process need to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This incarnation; `boot` must be new at every start.
    pub incarnation: Opener,
    /// At least so many nodes, this one included, are taken to be there; see
    /// [`Limits::set_nodes`].
    pub nodes: u32,
    /// From when no token is at hand until a meter does without the store.
    pub store_grace: Duration,
    /// How far another node's wall clock may lead; zero when no other node uses the store.
    pub max_skew: Duration,
    /// After this time a store call counts as unknown.
    pub store_timeout: Duration,
    /// Keys of one process; a key beyond shares the overflow key of its meter.
    pub keys_max: usize,
    /// Requests that may wait for one meter; one beyond is refused.
    pub waiting_max: u32,
}

impl Settings {
    /// Settings of the only node on its store.
    pub fn single_node(incarnation: Opener) -> Self {
        Self {
            incarnation,
            nodes: 1,
            store_grace: Duration::from_millis(300),
            max_skew: Duration::ZERO,
            store_timeout: Duration::from_secs(2),
            keys_max: 10_000,
            waiting_max: 4_096,
        }
    }
}

/// The meters of a process.
#[derive(Debug)]
pub struct Limits {
    shared: Arc<Shared>,
    keys_max: usize,
    /// Taken at configuration load only, or when a key is met for the first time.
    meters: Mutex<HashMap<MeterKey, Arc<Meter>>>,
}

impl Limits {
    /// The meters, and the broker's future, which must be spawned once and ends after
    /// [`Limits::stop`].
    pub fn new(
        store: Arc<dyn Store>,
        settings: &Settings,
        clock: Arc<dyn Clock>,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        Self::linked(store, settings, clock, None)
    }

    /// The same for a node that has peers: each key is taken from the store by one of them.
    pub fn linked(
        store: Arc<dyn Store>,
        settings: &Settings,
        clock: Arc<dyn Clock>,
        links: Option<Links>,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let (limits, broker) = Self::unserved(settings, clock);
        let timeout = settings.store_timeout;
        (limits, run::run(broker, store, timeout, links))
    }

    /// The meters and their broker, to be driven by the caller.
    fn unserved(settings: &Settings, clock: Arc<dyn Clock>) -> (Arc<Self>, broker::Broker) {
        let waiting_max = u64::from(settings.waiting_max);
        let shared = Arc::new(Shared::new(
            clock,
            settings.store_grace,
            waiting_max,
            u64::from(settings.nodes),
        ));
        let place = Place {
            me: settings.incarnation,
            max_skew_ns: nanos(settings.max_skew),
            grace_ns: nanos(settings.store_grace),
        };
        let broker = broker::Broker::new(Arc::clone(&shared), place);
        let meters = Mutex::new(HashMap::new());
        (
            Arc::new(Self {
                shared,
                keys_max: settings.keys_max,
                meters,
            }),
            broker,
        )
    }

    /// The meter of a key; the same one for the same key. A `spec` of a higher version replaces
    /// the limits at once. Beyond `keys_max` keys the overflow key of the meter is given.
    pub fn meter(&self, key: MeterKey, spec: Arc<MeterSpec>) -> Arc<Meter> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = key;
        if !meters.contains_key(&key) && meters.len() >= self.keys_max {
            // Meters that no configuration and no broker holds any more are forgotten.
            meters.retain(|_, meter| Arc::strong_count(meter) > 1);
            if meters.len() >= self.keys_max {
                self.shared.stats.overflowed.fetch_add(1, Ordering::Relaxed);
                key = key.overflow();
            }
        }
        if let Some(meter) = meters.get(&key) {
            meter.respec(spec);
            return Arc::clone(meter);
        }
        let store_key = key.store_key();
        let new = || {
            Meter::new(
                store_key.clone(),
                Arc::clone(&spec),
                Arc::clone(&self.shared),
            )
        };
        let meter = self.shared.meter(&store_key, new);
        // An error means that it is set already, to the same key.
        let _ = meter.key.set(key.clone());
        meter.respec(spec);
        meters.insert(key, Arc::clone(&meter));
        meter
    }

    /// How many nodes there are, this one included: while the store cannot be reached each gives
    /// its part of a limit.
    pub fn set_nodes(&self, nodes: u64) {
        self.shared.set_nodes(nodes);
    }

    /// Counters for metrics.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Gives back all tokens: draws are refused from now on, open blocks are settled, and the
    /// broker's future ends, after a second at the latest if the store does not answer.
    pub fn stop(&self) {
        self.shared.stop();
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
