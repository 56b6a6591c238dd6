//! What the meters of a process share with their broker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use proto::meter::StoreLoss;
use tokio::sync::Notify;

use super::clock::{Clock, Moment};
use super::meter::Meter;
use super::raises::Raises;
use super::shares::Shares;
use super::wall_clocks::{Agreed, ClockSample, WallClocks, Witness};
use super::without::Without;

/// The way from the workers to the broker.
pub struct Shared {
    /// The own clock.
    pub clock: Arc<dyn Clock>,
    /// How long a request waits for a store that does not answer.
    pub store_grace: Duration,
    /// Requests that may wait for one meter.
    pub waiting_max: u64,
    /// Counters.
    pub stats: Stats,
    /// Meters that go without owner and store now.
    pub(super) without: Without,
    /// Meters that want to be looked at, each at most once (its `asked` flag), so that the list
    /// is bounded by the number of meters. A plain mutex: held for a push or a swap only.
    asks: Mutex<Vec<Arc<Meter>>>,
    /// The one meter of each key in the store, whether a request or a peer asked first.
    meters: Mutex<Registry>,
    /// Told of meters that got their name.
    raises: OnceLock<Weak<Raises>>,
    /// What this region has of limits that regions share.
    pub(super) shares: Shares,
    /// When the store was found to have gone back, on the own clock; 0 for never. The taker of
    /// slots looks at it too.
    pub(super) returned_ns: Arc<AtomicU64>,
    woken: Notify,
    stopping: AtomicBool,
    nodes: AtomicU64,
    /// Whether somebody has counted them.
    counted: AtomicBool,
    nodes_min: u64,
    pub(super) max_skew_ns: u64,
    /// Of the other nodes. A plain mutex: nobody waits with it, and requests do not touch it.
    wall_clocks: Mutex<WallClocks>,
}

/// Meters by their key in the store. Those that nobody holds any more go from time to time.
#[derive(Default)]
struct Registry {
    meters: HashMap<String, Weak<Meter>>,
    prune_at: usize,
}

/// So few meters are never looked through.
const PRUNE_MIN: usize = 1_024;

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub struct Stats {
    /// Store transactions that were sent.
    pub store_calls: AtomicU64,
    /// Key writes within them.
    pub key_writes: AtomicU64,
    /// Transactions that found another value.
    pub conflicts: AtomicU64,
    /// Calls that failed or whose outcome is unknown.
    pub failures: AtomicU64,
    /// States in the store that could not be read.
    pub unreadable: AtomicU64,
    /// Keys in the store that this node has deleted, since nobody used them any more.
    pub swept: AtomicU64,
    /// Requests that waited for their turn.
    pub held: AtomicU64,
    /// Requests that wait for their turn now.
    pub holding: AtomicU64,
    /// Refused draws, and refused calls in flight: their slots count here too.
    pub refused: Arc<AtomicU64>,
    /// Asks to owners on other nodes.
    pub peer_asks: AtomicU64,
    /// Parts lent to other nodes.
    pub peer_grants: AtomicU64,
    /// Owners that did not answer in time.
    pub peer_silences: AtomicU64,
    /// Tokens of blocks that workers of this node could draw.
    pub granted: AtomicU64,
    /// Those of them that were sent.
    pub spent: AtomicU64,
    /// Those that were never drawn, and went back.
    pub returned: AtomicU64,
    /// Those that were drawn and never sent before their block ended.
    pub expired: AtomicU64,
    /// Times that another node, or none, became the owner of a key.
    pub owner_changes: AtomicU64,
    /// Answers that said what they have cost.
    pub values: AtomicU64,
    /// Answers that did not.
    pub values_missed: AtomicU64,
    /// How far the own wall clock is ahead of that of the nodes together, in nanoseconds.
    pub clock_ahead_ns: AtomicI64,
    /// Times that it was found too far from it for calendar windows.
    pub clock_wrong: AtomicU64,
    /// Times that the store was found to have gone back to an earlier state of itself.
    pub store_returns: AtomicU64,
    /// Times that a new key was put on the shared overflow key.
    pub overflowed: AtomicU64,
    /// Meters of which neither owner nor store gives tokens now.
    pub alone: AtomicU64,
    /// Time in nanoseconds, over all keys, in which neither owner nor store gave tokens that were
    /// asked for; by what the meter does then, in the order of [`DEGRADED`].
    degraded_ns: [AtomicU64; DEGRADED.len()],
}

/// What meters do without owner and store, as in `on_store_loss`.
pub const DEGRADED: [(StoreLoss, &str); 3] = [
    (StoreLoss::LocalShare, "local_share"),
    (StoreLoss::FailClosed, "fail_closed"),
    (StoreLoss::FailOpen, "fail_open"),
];

/// What a meter does without owner and store, as in `on_store_loss`.
pub(super) fn name_of(does: StoreLoss) -> &'static str {
    let named = DEGRADED.iter().find(|(loss, _)| *loss == does);
    named.map_or("", |(_, name)| name)
}

impl Stats {
    /// The time of meters that do this without owner and store.
    pub(super) fn degraded_ns(&self, loss: StoreLoss) -> &AtomicU64 {
        let [local, closed, open] = &self.degraded_ns;
        match loss {
            StoreLoss::LocalShare => local,
            StoreLoss::FailClosed => closed,
            StoreLoss::FailOpen => open,
        }
    }

    /// The same of all, in seconds, by name.
    pub fn degraded_s(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let seconds = |loss| self.degraded_ns(loss).load(Ordering::Relaxed) as f64 / 1e9;
        DEGRADED
            .into_iter()
            .map(move |(loss, name)| (name, seconds(loss)))
    }
}

impl Shared {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        store_grace: Duration,
        waiting_max: u64,
        nodes_min: u64,
        max_skew_ns: u64,
    ) -> Self {
        Self {
            clock,
            store_grace,
            waiting_max,
            stats: Stats::default(),
            without: Without::default(),
            asks: Mutex::new(Vec::new()),
            meters: Mutex::default(),
            raises: OnceLock::new(),
            shares: Shares::default(),
            returned_ns: Arc::default(),
            woken: Notify::new(),
            stopping: AtomicBool::new(false),
            nodes: AtomicU64::new(nodes_min),
            counted: AtomicBool::new(false),
            nodes_min,
            max_skew_ns,
            wall_clocks: Mutex::default(),
        }
    }

    pub(super) fn ask(&self, meter: Arc<Meter>) {
        self.asks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(meter);
        self.woken.notify_one();
    }

    pub(super) fn take_asks(&self) -> Vec<Arc<Meter>> {
        std::mem::take(&mut *self.asks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The meter of a key in the store; `make` makes it where there is none.
    pub(super) fn meter(&self, store_key: &str, make: impl FnOnce() -> Meter) -> Arc<Meter> {
        let mut registry = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = registry.meters.get(store_key).and_then(Weak::upgrade) {
            return meter;
        }
        if registry.meters.len() >= registry.prune_at {
            registry.meters.retain(|_, meter| meter.strong_count() > 0);
            registry.prune_at = registry.meters.len().saturating_mul(2).max(PRUNE_MIN);
        }
        let meter = Arc::new(make());
        let known = Arc::downgrade(&meter);
        registry.meters.insert(store_key.to_owned(), known);
        meter
    }

    /// Who puts raises on meters.
    pub(super) fn raised_by(&self, raises: Weak<Raises>) {
        // There is one in a process.
        let _ = self.raises.set(raises);
    }

    /// A meter is known by its name from now on.
    pub(super) fn named(&self, meter: &Arc<Meter>) {
        if let Some(raises) = self.raises.get().and_then(Weak::upgrade) {
            raises.tell(meter);
        }
        meter.renew_share(self.clock.boot_ns());
    }

    /// Every meter.
    pub(super) fn all(&self) -> Vec<Arc<Meter>> {
        let registry = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        registry.meters.values().filter_map(Weak::upgrade).collect()
    }

    /// The meter of a key in the store, if there is one.
    pub(super) fn find(&self, store_key: &str) -> Option<Arc<Meter>> {
        let registry = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        registry.meters.get(store_key).and_then(Weak::upgrade)
    }

    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }

    /// Nodes last known, this one included.
    pub(super) fn nodes(&self) -> u64 {
        self.nodes.load(Ordering::Relaxed)
    }

    pub(super) fn set_nodes(&self, nodes: u64) {
        self.nodes
            .store(nodes.max(self.nodes_min), Ordering::Relaxed);
        self.counted.store(true, Ordering::Relaxed);
    }

    /// Takes a sample of another's wall clock.
    pub(super) fn heard_clock(&self, of: Witness, sample: ClockSample) {
        let clocks = self.wall_clocks.lock();
        let mut clocks = clocks.unwrap_or_else(PoisonError::into_inner);
        clocks.heard(of, sample);
    }

    /// The time as the nodes agree on it.
    pub(super) fn agreed(&self, own: Moment) -> Agreed {
        let clocks = self.wall_clocks.lock();
        let clocks = clocks.unwrap_or_else(PoisonError::into_inner);
        let counted = self.counted.load(Ordering::Relaxed);
        clocks.agreed(own, counted.then(|| self.nodes()), self.max_skew_ns)
    }

    /// Now, with the wall clock that the nodes agree on.
    pub(super) fn moment(&self) -> Moment {
        let own = self.clock.moment();
        Moment {
            unix_ns: self.agreed(own).unix_ns,
            ..own
        }
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.woken.notify_one();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
