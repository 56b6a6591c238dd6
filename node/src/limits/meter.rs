//! A meter as the pipeline holds it: draw, send, wait, refuse, without blocking and without a lock
//! on the way of a request that finds a token.
//!
//! The broker alone opens and closes the cells and publishes the [`View`] that refusals and
//! headers are made of; workers only change words in the cells and raise a flag when they need
//! more.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use proto::meter::{MeterSpec, Window};
use tokio::sync::Notify;

use super::cell::{CELLS, Cells, Charge};
use super::configured::Taken;
use super::corrections::Corrections;
use super::estimate::Estimates;
use super::hold::HoldQueue;
use super::key::MeterKey;
use super::refusal::{Cause, LimitStatus, MeterStatus, Mode, Refusal};
use super::registry::Brought;
use super::restraint::Restraint;
use super::shared::Shared;
use super::token::Place;
use super::view::{Verdict, View};

pub use super::token::Token;
pub use super::waiting::Waiting;

/// One meter key of this process, shared by all workers.
#[derive(Debug)]
pub struct Meter {
    /// Unknown while only peers have asked for it.
    pub(super) key: OnceLock<MeterKey>,
    /// Its place among those that requests have brought.
    pub(super) brought: OnceLock<Brought>,
    /// Whose it is, by the word of a peer.
    pub(super) told_id: OnceLock<String>,
    pub(super) store_key: String,
    pub(super) spec: ArcSwap<MeterSpec>,
    pub(super) taken: Taken,
    /// No limits: everything passes, nothing is counted in the store.
    pub(super) observes: AtomicBool,
    /// Callers wait instead of being refused.
    pub(super) holds: AtomicBool,
    /// What a request spends before its answer is known; none: one token each.
    pub(super) estimates: Estimates,
    /// What answers have said.
    pub(super) corrections: Corrections,
    /// Those who do.
    pub(super) held: HoldQueue,
    pub(super) cells: Cells,
    /// The cell that draws look at first.
    pub(super) hint: AtomicUsize,
    /// A draw that leaves so many in its cell wakes the broker; `u64::MAX` for never.
    pub(super) low_water: AtomicU64,
    /// Draws that found no token.
    pub(super) unmet: AtomicU64,
    /// Callers refused since the last refill.
    pub(super) refused: AtomicU64,
    /// Tokens that requests wait for now.
    pub(super) waiting: AtomicU64,
    /// These requests.
    pub(super) callers: AtomicU64,
    pub(super) view: ArcSwap<View>,
    /// Place of the limit that is nearly used up, plus one; 0 for none.
    pub(super) near: AtomicUsize,
    /// Whether requests pass without its owner and the store.
    pub(super) alone: AtomicBool,
    /// Answers that have not said what they have cost.
    pub(super) missed: AtomicU64,
    /// What the target has asked for.
    pub(super) restraint: Restraint,
    /// Whether the broker has been told already.
    pub(super) asked: AtomicBool,
    /// Rung after every grant and every refusal.
    pub(super) answered: Notify,
    pub(super) shared: Arc<Shared>,
}

/// What a draw gives.
#[derive(Debug)]
pub enum Draw {
    /// A token.
    Drawn(Token),
    /// No token at hand yet, but the broker has been asked.
    Wait(Waiting),
    /// None before `retry_after`.
    Refused(Box<Refusal>),
}

impl Meter {
    pub(super) fn new(store_key: String, spec: Arc<MeterSpec>, shared: Arc<Shared>) -> Self {
        let (estimates, restraint) = (Estimates::of(&spec), Restraint::none(Arc::clone(&spec)));
        let spec = restraint.at_first(&spec);
        Self {
            key: OnceLock::new(),
            brought: OnceLock::new(),
            told_id: OnceLock::new(),
            taken: Taken::default(),
            store_key,
            view: ArcSwap::from_pointee(View::unknown(Arc::clone(&spec))),
            observes: AtomicBool::new(spec.limits().is_empty()),
            holds: AtomicBool::new(spec.hold().is_some()),
            estimates,
            corrections: Corrections::default(),
            held: HoldQueue::default(),
            spec: ArcSwap::new(Arc::clone(&spec)),
            cells: Cells::default(),
            hint: AtomicUsize::new(0),
            low_water: AtomicU64::new(u64::MAX),
            near: AtomicUsize::new(0),
            alone: AtomicBool::new(false),
            missed: AtomicU64::new(0),
            restraint,
            unmet: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            callers: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            answered: Notify::new(),
            shared,
        }
    }

    /// What this meter counts by; `None` while only other nodes have asked for it.
    pub fn key(&self) -> Option<&MeterKey> {
        self.key.get()
    }

    /// The id of what it belongs to; its key in the store while only other nodes have asked for it.
    pub fn id(&self) -> &str {
        self.key.get().map_or(&self.store_key, MeterKey::id)
    }

    /// Its id for the records of requests, which know their meters.
    pub fn shared_id(&self) -> Option<Arc<str>> {
        self.key.get().map(MeterKey::shared_id)
    }

    /// The id of what it belongs to, where that is known.
    pub(super) fn belongs_to(&self) -> Option<&str> {
        let own = self.key.get().map(MeterKey::id);
        own.or(self.told_id.get().map(String::as_str))
    }

    /// Draws what a request spends: one token, or of a meter of values what it sets aside, no less
    /// than `least`. Never blocks; at most an `Arc` is cloned where one token is drawn.
    pub fn draw(self: &Arc<Self>, least: u64, now_ns: u64) -> Draw {
        let amount = self.estimates.amount(least);
        // Nobody overtakes those who are held.
        if self.held.is_empty()
            && let Some(token) = self.try_draw(amount, now_ns)
        {
            return Draw::Drawn(token);
        }
        self.unmet.fetch_add(amount, Ordering::Relaxed);
        let before = self.waiting.load(Ordering::Relaxed);
        if !self.holds()
            && let Some(refusal) = self.refuses(amount, before, now_ns)
        {
            return Draw::Refused(Box::new(refusal));
        }
        if self.callers.fetch_add(1, Ordering::Relaxed) >= self.shared.waiting_max {
            self.callers.fetch_sub(1, Ordering::Relaxed);
            let k = self.refused_next(amount);
            return Draw::Refused(Box::new(self.refusal(Cause::Crowded, k, now_ns)));
        }
        self.waiting.fetch_add(amount, Ordering::Relaxed);
        self.ask();
        Draw::Wait(Waiting::new(Arc::clone(self), amount))
    }

    /// The same for a request that had its turn and lost what it got: it does not queue.
    pub fn draw_again(self: &Arc<Self>, least: u64, now_ns: u64) -> Draw {
        if let Some(token) = self.try_draw(self.estimates.amount(least), now_ns) {
            return Draw::Drawn(token);
        }
        match self.draw(least, now_ns) {
            Draw::Wait(waiting) => Draw::Wait(waiting.again()),
            other => other,
        }
    }

    /// Whether requests set aside an estimate.
    pub fn reserves(&self) -> bool {
        self.estimates.are_made()
    }

    /// What a request sets aside now, before its own numbers are looked at; 1 where it spends one.
    pub fn estimate(&self) -> u64 {
        self.estimates.amount(0)
    }

    /// An answer has not said what it has cost.
    pub(super) fn miss(&self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
        self.shared
            .stats
            .values_missed
            .fetch_add(1, Ordering::Relaxed);
    }

    /// An answer has cost so much.
    pub(super) fn learn(&self, actual: u64) {
        self.estimates.learn(actual);
        self.shared.stats.values.fetch_add(1, Ordering::Relaxed);
    }

    /// What was charged is corrected to what the answer has cost.
    pub(super) fn correct(self: &Arc<Self>, charges: &[Charge], actual: u64, now_ns: u64) {
        // What passed while the limit did not hold was not charged.
        let charged = !self.observes() && !charges.is_empty();
        if charged && self.corrections.add(charges, actual, now_ns) {
            // Told, but not asked for a token.
            self.shared.ask(Arc::clone(self));
        }
    }

    /// Whether the meter is known to be empty, without drawing: for requests that still have a
    /// body to buffer or a credential to fetch, whose token is drawn right before the send.
    pub fn check(&self, now_ns: u64) -> Option<Refusal> {
        if let Some(paused) = self.paused(now_ns) {
            return Some(paused);
        }
        if self.observes() || self.holds() || self.in_hand(now_ns) > 0 {
            None
        } else {
            self.refuses(1, 0, now_ns)
        }
    }

    /// Its slowest window; `None` when it only observes.
    pub(super) fn slowest(&self) -> Option<Window> {
        self.spec.load().slowest()
    }

    pub(super) fn try_draw(self: &Arc<Self>, amount: u64, now_ns: u64) -> Option<Token> {
        if now_ns < self.paused_until_ns() {
            return None;
        }
        if self.observes() {
            return Some(Token::free(Arc::clone(self)));
        }
        let (cells, first) = (&*self.cells, self.hint.load(Ordering::Relaxed));
        for step in 0..CELLS {
            let at = (first + step) % CELLS;
            let drawn = cells.get(at).and_then(|cell| cell.draw(amount, now_ns));
            let Some((generation, left)) = drawn else {
                continue;
            };
            let low = self.low_water.load(Ordering::Relaxed);
            if left <= low && left.saturating_add(amount) > low {
                self.ask();
            }
            let place = Place::new(at, generation, amount);
            return Some(Token::drawn(Arc::clone(self), place));
        }
        let gathered = (amount > 1).then(|| self.gather(amount, now_ns)).flatten();
        let open = || self.view.load().is_open(now_ns);
        gathered.or_else(|| open().then(|| Token::free(Arc::clone(self))))
    }

    /// Draws from several parts what none of them has alone.
    fn gather(self: &Arc<Self>, amount: u64, now_ns: u64) -> Option<Token> {
        if self.in_hand(now_ns) < amount {
            return None;
        }
        let (mut places, mut missing) = (Vec::new(), amount);
        for (at, cell) in self.cells.iter().enumerate() {
            if let Some((generation, drawn)) = cell.draw_some(missing, now_ns) {
                places.push(Place::new(at, generation, drawn));
                missing -= drawn;
            }
        }
        if missing == 0 {
            self.ask();
            return Some(Token::gathered(Arc::clone(self), places));
        }
        places.into_iter().for_each(|place| place.put_back(self));
        None
    }

    /// Tokens that a draw could get now.
    pub(super) fn in_hand(&self, now_ns: u64) -> u64 {
        self.cells.iter().map(|cell| cell.count(now_ns)).sum()
    }

    /// Tells the broker, once until it looks.
    pub(super) fn ask(self: &Arc<Self>) {
        if !self.asked.swap(true, Ordering::AcqRel) {
            self.shared.ask(Arc::clone(self));
        }
    }

    fn holds(&self) -> bool {
        self.holds.load(Ordering::Relaxed)
    }

    pub(super) fn observes(&self) -> bool {
        self.observes.load(Ordering::Relaxed)
    }

    /// The refusal of a meter that is known to have nothing now, or nothing beyond the `before`
    /// tokens that others wait for; numbered among its refusals.
    pub(super) fn refuses(&self, amount: u64, before: u64, now_ns: u64) -> Option<Refusal> {
        if let Some(paused) = self.paused(now_ns) {
            return Some(paused);
        }
        let cause = match self.view.load().verdict {
            Verdict::Refuse { until_ns, cause } if now_ns < until_ns => cause,
            _ if self.has_too_few(amount, before, now_ns) => Cause::Empty,
            _ => return None,
        };
        let k = self.refused_next(amount);
        Some(self.refusal(cause, k, now_ns).short(self, amount, now_ns))
    }

    /// Whether less is known to be there, in hand and in the store, than is to be set aside by this
    /// request and those that wait before it. What answers give back keeps a meter of values from
    /// ever being quite empty: without counting who waits already, all would wait for what comes
    /// back, each longer than the one before.
    fn has_too_few(&self, amount: u64, before: u64, now_ns: u64) -> bool {
        let view = self.view.load();
        if amount <= 1 || view.answered_ns == 0 || view.mode == Mode::Open {
            return false;
        }
        let free = view.free(now_ns);
        let coming = free.saturating_add(view.coming);
        coming.saturating_add(self.in_hand(now_ns)) < amount.saturating_add(before)
    }

    /// The number of the last token of those that were refused since the last refill.
    pub(super) fn refused_next(&self, amount: u64) -> u64 {
        let before = self.refused.fetch_add(amount, Ordering::Relaxed);
        before.saturating_add(amount)
    }

    /// What is left of the limit of a window, and what a request that spends `amount` sets aside.
    pub(super) fn left(&self, window: Window, amount: u64, now_ns: u64) -> (u64, u64) {
        let limits = self.view.load().limits(self.in_hand(now_ns), now_ns);
        let limit = limits.iter().find(|limit| limit.window == window);
        let set_aside = self.estimates.amount(amount).max(amount);
        (limit.map_or(0, |limit| limit.remaining), set_aside)
    }

    pub(super) fn refusal(&self, cause: Cause, k: u64, now_ns: u64) -> Refusal {
        self.shared.stats.refused.fetch_add(1, Ordering::Relaxed);
        self.restraint.note_refusal(cause);
        let view = self.view.load();
        let (retry_after, window) = view.retry_after(cause, k, now_ns);
        let limits = view.limits(0, now_ns);
        let limit = window
            .and_then(|window| limits.iter().find(|limit| limit.window == window))
            .or(limits.first())
            .copied();
        let reset = limit.map_or(retry_after, |limit| limit.reset);
        let status = MeterStatus {
            id: self.id().to_owned(),
            name: view.spec.name().to_owned(),
            mode: view.mode,
            limits,
        };
        let refused = |limit: LimitStatus| LimitStatus {
            remaining: 0,
            ..limit
        };
        Refusal {
            cause,
            answer: view.spec.answer(),
            limit: limit.map(refused),
            set_aside: 1,
            retry_after,
            reset,
            status,
        }
    }
}
