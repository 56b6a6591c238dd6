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
//! blocks from the store and lends parts of them to brokers that ask. One that is silent is passed
//! over; a node that reaches no peer takes from the store itself. Two owners cost conflicts only.
//!
//! | file | what |
//! |---|---|
//! | `window`, `bucket` | pure: sliding ring, calendar window; token bucket |
//! | `block` | pure: open, settle, close a block in a state |
//! | `state`, `codec` | the value in the store, and its bytes |
//! | `revision_clock`, `returned` | pure: how old a value in the store is at least; if restored |
//! | `wall_clocks` | pure: what time it is, by the clocks of all nodes |
//! | `cell`, `part` | tokens in the hands of workers, and the broker's record of them |
//! | `demand`, `credit` | how much is wanted, how often written; what is given without a store |
//! | `owner` | one key: what is known of it, the write that is due, what is lent and borrowed |
//! | `exchange` | what nodes say to each other about tokens |
//! | `broker`, `run` | all keys: who owns each, transactions, timers; the shell with the store |
//! | `ramp` | pure: how many calls go to a store that was away |
//! | `meter`, `token`, `tokens` | what the pipeline holds |
//! | `waiting`, `hold` | who waits, and in which order |
//! | `key`, `memo`, `registry` | which meters there are, and how many at most |
//! | `view`, `published`, `refusal`, `without` | what callers and operators are told |
//! | `estimate`, `corrections` | what is set aside for an answer, and what it has cost |
//! | `slots` | concurrency: calls in flight |
//! | `restraint`, `learned`, `pauses`, `raises`, `leased` | what targets and people ask for |
//! | `shares`, `usage` | what the region has of limits that regions share; how much is used now |
//! | `remembered` | what the store knows of keys that no request has used since the start |
//! | `sweep` | deletes keys in the store that nobody uses any more |
//!
//! **Invariants.** In any interval of a sliding window's length, and in every calendar window,
//! sent ≤ limit; of a bucket over any time T, sent ≤ burst + rate · T; whatever crashes, pauses, is
//! cut or is answered late. What is sent is charged at the instant of [`Token::send`] or later,
//! never earlier. No file here but `run`, `waiting`, `slots`, `pauses` and `sweep` waits; only
//! `run`, `slots::run`, `pauses` and `sweep` have the store; only [`SystemClock`] reads a clock.

pub mod block;
pub mod broker;
pub mod bucket;
pub mod cell;
pub mod clock;
pub mod codec;
mod configured;
pub mod corrections;
mod credit;
mod demand;
mod estimate;
pub mod exchange;
mod hold;
mod key;
mod learned;
mod leased;
mod memo;
mod meter;
mod owner;
mod part;
mod pauses;
mod published;
mod raises;
mod ramp;
mod refusal;
mod registry;
pub mod remembered;
mod restraint;
mod returned;
pub mod revision_clock;
mod run;
mod settings;
mod shared;
mod shares;
pub mod slots;
pub mod state;
mod sweep;
mod token;
mod tokens;
mod usage;
mod view;
mod waiting;
pub mod wall_clocks;
pub mod window;
mod without;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::meter::MeterSpec;
use proto::store::Store;
use proto::usage::KeyUsage;

pub use block::Opener;
pub use clock::{Clock, Moment, ShiftedClock, SystemClock};
pub use key::{MeterKey, PREFIX, VALUE_BYTES_MAX};
pub use meter::{Draw, Meter};
pub use refusal::{
    Cause, LimitStatus, MeterStatus, Mode, Refusal, rate_limit, rate_limit_policy, retry_after,
};
pub use registry::Newcomers;
pub use restraint::{TENTHS, tenths_of};
pub use run::{Links, PeerEvent};
pub use settings::Settings;
pub use shared::Stats;
pub use shares::Use;
pub use slots::{SlotRefusal, SlotSpec, SlotToken, Slots};
pub use token::{Expired, Reserved, Sent, Token};
pub use tokens::{DrawAll, METERS_MAX, MeterSet, Tokens, TooManyMeters, WaitingAll};
pub use waiting::{OnHold, Waiting};
pub use wall_clocks::ClockSample;

use leased::Leased;
use owner::Place;
use pauses::Pauses;
use raises::Raises;
use registry::Registry;
use shared::Shared;
use slots::SlotShared;

/// The meters of a process.
#[derive(Debug)]
pub struct Limits {
    shared: Arc<Shared>,
    registry: Arc<Registry<Meter>>,
    pauses: Arc<Pauses>,
    raises: Arc<Raises>,
    slots: Registry<Slots>,
    slot_shared: Arc<SlotShared>,
    /// By organisation; taken at configuration load only.
    newcomers: Mutex<HashMap<u128, Arc<Newcomers>>>,
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
        let (me, timeout) = (settings.incarnation, settings.store_timeout);
        let peers = links.as_ref().map(|links| Arc::clone(&links.slots));
        let writing = slots::relayed::Writing::new(Arc::clone(&store), timeout, peers);
        let slots = slots::run(Arc::clone(&limits.slot_shared), writing, me);
        let leased = Leased {
            raises: Arc::clone(&limits.raises),
            pauses: Arc::clone(&limits.pauses),
        };
        let (pauses, wished) = (Arc::clone(&limits.pauses), Arc::clone(&store));
        let leased = leased.follow(Arc::clone(&store));
        let shares = shares::follow(Arc::clone(&limits.shared), Arc::clone(&store));
        let sweeping = sweep::run(Arc::clone(&store), Arc::clone(&limits.shared));
        let pauses = async move {
            // Writing ends when the process does.
            tokio::select! {
                () = pauses::write_all(&pauses, &*wished) => {}
                () = leased => {}
                () = shares => {}
                () = sweeping => {}
            }
        };
        let windows = run::run(broker, store, timeout, links);
        (limits, async move {
            futures_util::join!(windows, slots, pauses);
        })
    }

    /// The meters and their broker, to be driven by the caller.
    fn unserved(settings: &Settings, clock: Arc<dyn Clock>) -> (Arc<Self>, broker::Broker) {
        let waiting_max = u64::from(settings.waiting_max);
        let shared = Arc::new(Shared::new(
            clock,
            settings.store_grace,
            waiting_max,
            u64::from(settings.nodes),
            nanos(settings.max_skew),
        ));
        let registry = Arc::new(Registry::new(settings.keys_max));
        let pauses = Arc::new(Pauses::new(Arc::clone(&shared)));
        let raises = Arc::new(Raises::new(Arc::clone(&shared)));
        shared.raised_by(Arc::downgrade(&raises));
        let slot_shared = Arc::new(SlotShared::new(
            Arc::clone(&shared.clock),
            settings.store_grace,
            Arc::clone(&shared.returned_ns),
            Arc::clone(&shared.stats.refused),
        ));
        let place = Place {
            me: settings.incarnation,
            max_skew_ns: nanos(settings.max_skew),
            clocks_compared: settings.clocks_compared,
            grace_ns: nanos(settings.store_grace),
        };
        let broker = broker::Broker::new(Arc::clone(&shared), place, settings.key_writes_max);
        (
            Arc::new(Self {
                shared,
                registry,
                pauses,
                raises,
                slots: Registry::new(settings.keys_max),
                slot_shared,
                newcomers: Mutex::default(),
            }),
            broker,
        )
    }

    /// The meter of a key; the same one for the same key. A `spec` of a higher version replaces
    /// the limits at once. There are as many as the configuration names: they are given beyond
    /// `keys_max` keys too, for nodes that counted one meter under two keys would let twice its
    /// limit pass.
    pub fn meter(&self, key: MeterKey, spec: Arc<MeterSpec>) -> Arc<Meter> {
        if let Some(meter) = self.registry.find(&key.digest()) {
            meter.respec(&spec);
            return meter;
        }
        self.made(key, &spec)
    }

    /// The meter that counts a value which came with a request. One that is too long, one beyond
    /// `keys_max`, and one of too many new ones in a second counts under the overflow key.
    pub fn keyed(
        &self,
        meter: &str,
        value: &[u8],
        spec: &Arc<MeterSpec>,
        newcomers: &Arc<Newcomers>,
    ) -> Arc<Meter> {
        if value.len() > VALUE_BYTES_MAX {
            let key = self.overflowed(meter);
            return self.made(key, spec);
        }
        let digest = MeterKey::digest_of(meter, value);
        if let Some(meter) = self.registry.find(&digest) {
            meter.respec(spec);
            return meter;
        }
        let (now_ns, nodes) = (self.shared.clock.boot_ns(), self.shared.nodes());
        let Some(brought) = self.registry.bring(newcomers, now_ns, nodes) else {
            let key = self.overflowed(meter);
            return self.made(key, spec);
        };
        let meter = self.made(MeterKey::of(meter, value), spec);
        // An error means that another request was faster: it has the place.
        let _ = meter.brought.set(brought);
        meter
    }

    /// The slots of a key; the same ones for the same key.
    pub fn slots(&self, key: MeterKey, spec: &SlotSpec) -> Arc<Slots> {
        let slots = self.slots.find_or_make(key, |key| {
            let shared = Arc::clone(&self.slot_shared);
            Arc::new(Slots::new(key, spec.clone(), shared))
        });
        slots.respec(spec);
        slots
    }

    /// The slots of a value which came with a request, bounded as in [`Limits::keyed`].
    pub fn keyed_slots(
        &self,
        meter: &str,
        value: &[u8],
        spec: &SlotSpec,
        newcomers: &Arc<Newcomers>,
    ) -> Arc<Slots> {
        if value.len() <= VALUE_BYTES_MAX {
            let digest = MeterKey::digest_of(meter, value);
            if let Some(slots) = self.slots.find(&digest) {
                slots.respec(spec);
                return slots;
            }
            let (now_ns, nodes) = (self.shared.clock.boot_ns(), self.shared.nodes());
            if let Some(brought) = self.slots.bring(newcomers, now_ns, nodes) {
                let slots = self.slots(MeterKey::of(meter, value), spec);
                // As above.
                let _ = slots.brought.set(brought);
                return slots;
            }
        }
        self.slots(self.overflowed(meter), spec)
    }

    /// Counts the new keys of an organisation; the same for all of its meters.
    pub fn newcomers(&self, org: u128) -> Arc<Newcomers> {
        let mut all = self
            .newcomers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(org).or_default())
    }

    /// The keys of this process of which most is used, and how many were left out.
    pub fn usage(
        &self,
        remembered: &remembered::Remembered,
    ) -> (Vec<KeyUsage>, BTreeMap<String, u64>) {
        let now = self.shared.moment();
        usage::of(&self.registry.all(), &self.slots.all(), (now, remembered))
    }

    fn overflowed(&self, meter: &str) -> MeterKey {
        self.shared.stats.overflowed.fetch_add(1, Ordering::Relaxed);
        MeterKey::overflow_of(meter)
    }

    fn made(&self, key: MeterKey, spec: &Arc<MeterSpec>) -> Arc<Meter> {
        let meter = self.registry.find_or_make(key, |key| {
            let digest = key.digest();
            let store_key = key.store_key();
            // A peer may have asked for it before any request did.
            let meter = self.shared.meter(&store_key, || {
                Meter::new(
                    store_key.clone(),
                    Arc::clone(spec),
                    Arc::clone(&self.shared),
                )
            });
            // An error means that it is set already, to the same key.
            let _ = meter.key.set(key);
            self.raises.tell(&meter);
            meter.renew_share(self.shared.clock.boot_ns());
            if !self.pauses.are_none() {
                self.pauses.tell(&digest, &meter);
            }
            meter
        });
        meter.respec(spec);
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
        self.slot_shared.stop();
        self.pauses.stop();
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
