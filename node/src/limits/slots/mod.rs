//! Slots of a concurrency limit as the pipeline holds them: one for each call in flight.
//!
//! ```text
//! draw ── compare-exchange on {granted, used} ── SlotToken, given back when it is dropped
//!   └── ask ──▶ run ─ look ─▶ Taker (one a key) ── compare-and-swap ──▶ Store: SlotState
//!                                                   └─ relayed, by a peer ──▶ the same
//! ```
//!
//! The truth is in the store: how many slots each incarnation of a node holds, for how long. A
//! node takes a few more than it needs, renews them while calls are in flight, and gives back what
//! it does not use. What it holds is lowered here *before* the lower number is written, and raised
//! only after the higher one is known to be there, so that all nodes together never have more
//! calls in flight than the limit. A node that reaches the store neither itself nor through a peer
//! until its slots end keeps its calls and admits no others (`fail_closed`), as many as it held
//! (`local_share`) or all (`fail_open`); others use its slots from `SLOT_TTL` after its last
//! renewal on, and for that time its calls come on top, unless the meter says that they are ended
//! then (`on_lost: cancel`).

mod refusal;
pub mod relayed;
mod run;
pub mod state;
mod taker;
mod waits;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use proto::meter::{LimitAnswer, StoreLoss};
use tokio::sync::Notify;

pub use refusal::SlotRefusal;
pub use run::run;

use super::clock::Clock;
use super::key::MeterKey;
use super::registry::Brought;
use super::waiting::{OnHold, Told};
use waits::Waits;

/// Where slot states live in the store.
pub const PREFIX: &str = "slots/";
/// How long slots are held after their last renewal.
pub const SLOT_TTL: Duration = Duration::from_secs(10);
/// How long a refusal is passed on to callers before the store is asked again.
const REFUSED_NS: u64 = 50_000_000;
/// How often a call looks whether its slot is lost.
const LOST_LOOK: Duration = Duration::from_millis(250);

const USED_BITS: u32 = 32;
const USED_MASK: u64 = (1 << USED_BITS) - 1;

/// What a concurrency limit says, of one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSpec {
    /// Name of the meter; may be empty.
    pub name: String,
    /// The version that last changed it.
    pub version: u64,
    /// Calls in flight, at most.
    pub limit: u64,
    /// What happens without the store.
    pub on_store_loss: StoreLoss,
    /// Whether a call ends whose slot could not be renewed in time.
    pub cancels_lost: bool,
    /// What refused callers are told.
    pub answer: LimitAnswer,
}

/// What the slots of a process share with their taker.
pub struct SlotShared {
    clock: Arc<dyn Clock>,
    grace: Duration,
    /// When others found that the store went back; 0 for never.
    returned_ns: Arc<AtomicU64>,
    /// How many were refused.
    refused: Arc<AtomicU64>,
    asks: Mutex<Vec<Arc<Slots>>>,
    woken: Notify,
    stopping: AtomicBool,
}

/// The slots of one key in this process, shared by all workers.
pub struct Slots {
    key: MeterKey,
    /// Its place among those that requests have brought.
    pub(super) brought: OnceLock<Brought>,
    store_key: String,
    spec: ArcSwap<SlotSpec>,
    /// {granted: 32, used: 32}.
    word: AtomicU64,
    /// How many may be in use while other nodes wait for some; `u64::MAX` while none does.
    most: AtomicU64,
    /// When the granted slots end on the own clock.
    ends_ns: AtomicU64,
    waiting: AtomicU64,
    /// Until when there is nothing to be had.
    refused_until_ns: AtomicU64,
    /// Whether what refuses is the silence of the store.
    lost: AtomicBool,
    /// When the store last answered.
    heard_ns: AtomicU64,
    asked: AtomicBool,
    answered: Notify,
    shared: Arc<SlotShared>,
}

/// A call in flight. Dropping it frees the slot.
#[derive(Debug)]
pub struct SlotToken {
    slots: Arc<Slots>,
}

impl SlotSpec {
    /// Whether nothing is admitted by slots that have ended.
    fn is_closed(&self) -> bool {
        self.cancels_lost || self.on_store_loss == StoreLoss::FailClosed
    }
}

impl SlotToken {
    /// What it is a slot of, where a call ends that loses it.
    pub fn cancelling(&self) -> Option<Arc<Slots>> {
        let cancels = self.slots.spec.load().cancels_lost;
        cancels.then(|| Arc::clone(&self.slots))
    }
}

impl SlotShared {
    /// For a process. In `returned_ns` others say when they found that the store went back; in
    /// `refused` is counted who was refused.
    pub fn new(
        clock: Arc<dyn Clock>,
        grace: Duration,
        returned_ns: Arc<AtomicU64>,
        refused: Arc<AtomicU64>,
    ) -> Self {
        Self {
            clock,
            grace,
            returned_ns,
            refused,
            asks: Mutex::default(),
            woken: Notify::new(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Gives everything back and ends the taker.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.woken.notify_one();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn take_asks(&self) -> Vec<Arc<Slots>> {
        std::mem::take(&mut *self.asks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Slots {
    /// Slots of a key, none of them granted yet.
    pub fn new(key: MeterKey, spec: SlotSpec, shared: Arc<SlotShared>) -> Self {
        Self {
            store_key: format!("{PREFIX}{}", hex::encode(key.digest())),
            key,
            brought: OnceLock::new(),
            spec: ArcSwap::from_pointee(spec),
            word: AtomicU64::new(0),
            most: AtomicU64::new(u64::MAX),
            ends_ns: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            refused_until_ns: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            heard_ns: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            answered: Notify::new(),
            shared,
        }
    }

    /// Takes the limit of a newer configuration.
    pub fn respec(self: &Arc<Self>, spec: &SlotSpec) {
        if spec.version > self.spec.load().version {
            self.spec.store(Arc::new(spec.clone()));
            self.ask();
        }
    }

    /// What they are counted by.
    pub fn key(&self) -> &MeterKey {
        &self.key
    }

    /// The limit in force.
    pub fn spec(&self) -> Arc<SlotSpec> {
        self.spec.load_full()
    }

    /// Calls that wait.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Calls in flight.
    pub fn used(&self) -> u64 {
        self.word.load(Ordering::Acquire) & USED_MASK
    }

    fn granted(&self) -> u64 {
        self.word.load(Ordering::Acquire) >> USED_BITS
    }

    /// A slot: at once where one is at hand, else when the store has answered; `on_hold` is told
    /// of that wait.
    ///
    /// # Errors
    /// All are in use, or the store does not answer.
    pub async fn take(
        self: &Arc<Self>,
        on_hold: &mut impl FnMut(OnHold, Option<Arc<str>>),
    ) -> Result<SlotToken, Box<SlotRefusal>> {
        let clock = Arc::clone(&self.shared.clock);
        let at_once = self.try_take(clock.boot_ns());
        if let Some(token) = at_once.or_else(|| self.pass()) {
            return Ok(token);
        }
        let Some(waits) = Waits::new(self, clock.boot_ns()) else {
            return Err(Box::new(self.refusal()));
        };
        if let Some(outcome) = waits.look(clock.boot_ns()) {
            return outcome;
        }
        let _told = Told::begins(Some(self.key.shared_id()), on_hold);
        let over = tokio::time::sleep(self.shared.grace);
        tokio::pin!(over);
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if let Some(outcome) = waits.look(clock.boot_ns()) {
                return outcome;
            }
            tokio::select! {
                () = &mut answered => {}
                () = &mut over => return waits.over(),
            }
        }
    }

    fn try_take(self: &Arc<Self>, now_ns: u64) -> Option<SlotToken> {
        let ended = now_ns >= self.ends_ns.load(Ordering::Acquire);
        if ended && self.spec.load().is_closed() {
            return None;
        }
        let most = self.most.load(Ordering::Acquire);
        let taken = self
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                (word & USED_MASK < (word >> USED_BITS).min(most)).then(|| word + 1)
            });
        let word = taken.ok()?;
        if (word & USED_MASK) + 1 >= word >> USED_BITS {
            self.ask();
        }
        Some(SlotToken {
            slots: Arc::clone(self),
        })
    }

    /// Whether calls pass beyond what is granted, since the store is silent.
    pub fn passes_all(&self) -> bool {
        let spec = self.spec.load();
        let is_open = spec.on_store_loss == StoreLoss::FailOpen && !spec.cancels_lost;
        is_open && self.lost.load(Ordering::Acquire)
    }

    /// A slot beyond what is granted, while the store is silent and that lets everything pass.
    fn pass(self: &Arc<Self>) -> Option<SlotToken> {
        if !self.passes_all() {
            return None;
        }
        self.word.fetch_add(1, Ordering::AcqRel);
        self.ask();
        Some(SlotToken {
            slots: Arc::clone(self),
        })
    }

    /// Sets what is granted, but never below what is in use; what it is then.
    fn grant(&self, n: u64) -> u64 {
        let n = n.min(USED_MASK);
        let set = |word: u64| {
            let used = word & USED_MASK;
            Some((n.max(used) << USED_BITS) | used)
        };
        let before = self
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, set)
            .unwrap_or_else(|word| word);
        n.max(before & USED_MASK)
    }

    /// Ready when slots of this process have ended without having been renewed: from then on others
    /// may use them.
    pub async fn lost(&self) {
        loop {
            let ends_ns = self.ends_ns.load(Ordering::Acquire);
            let left_ns = ends_ns.saturating_sub(self.shared.clock.boot_ns());
            if left_ns == 0 {
                return;
            }
            // While a machine sleeps this timer stands still, and the own clock does not.
            tokio::time::sleep(Duration::from_nanos(left_ns).min(LOST_LOOK)).await;
        }
    }

    fn ask(self: &Arc<Self>) {
        if !self.asked.swap(true, Ordering::AcqRel) {
            let mut asks = self
                .shared
                .asks
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            asks.push(Arc::clone(self));
            drop(asks);
            self.shared.woken.notify_one();
        }
    }
}

impl Drop for SlotToken {
    fn drop(&mut self) {
        let word = self.slots.word.fetch_sub(1, Ordering::AcqRel);
        if word & USED_MASK >= word >> USED_BITS {
            // All were in use: others may be waiting for what is not any more.
            self.slots.ask();
        }
        if self.slots.waiting.load(Ordering::Acquire) > 0 {
            self.slots.answered.notify_waiters();
        }
        self.slots.refused_until_ns.store(0, Ordering::Release);
    }
}

impl std::fmt::Debug for SlotShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotShared").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots")
            .field("key", &self.key)
            .field("granted", &self.granted())
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}
