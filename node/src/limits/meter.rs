//! A meter as the pipeline holds it: draw, send, wait, refuse, without blocking and without a lock
//! on the way of a request that finds a token.
//!
//! The broker alone opens and closes the cells and publishes the [`View`] that refusals and
//! headers are made of; workers only change words in the cells and raise a flag when they need
//! more.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use proto::meter::{MeterSpec, Window};
use tokio::sync::Notify;

use super::cell::{Cell, Generation};
use super::clock::Clock;
use super::key::MeterKey;
use super::refusal::{Cause, LimitStatus, MeterStatus, Refusal};
use super::shared::Shared;
use super::view::{Verdict, View};

/// Parts that one meter can have in the hands of the workers at a time.
pub const CELLS: usize = 8;

/// Longest wait for a store that answers but gives no token (the pace of writes is the reason): the
/// whole of a limit passes at this pace in less.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// One meter key of this process, shared by all workers.
#[derive(Debug)]
pub struct Meter {
    /// Unknown while only peers have asked for it.
    pub(super) key: OnceLock<MeterKey>,
    pub(super) store_key: String,
    pub(super) spec: ArcSwap<MeterSpec>,
    /// No limits: everything passes, nothing is counted in the store.
    observes: AtomicBool,
    pub(super) cells: [Cell; CELLS],
    /// The cell that draws look at first.
    pub(super) hint: AtomicUsize,
    /// A draw that leaves so many in its cell wakes the broker; `u64::MAX` for never.
    pub(super) low_water: AtomicU64,
    /// Draws that found no token.
    pub(super) unmet: AtomicU64,
    /// Callers refused since the last refill.
    pub(super) refused: AtomicU64,
    /// Requests that wait now.
    pub(super) waiting: AtomicU64,
    pub(super) view: ArcSwap<View>,
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
        Self {
            key: OnceLock::new(),
            store_key,
            view: ArcSwap::from_pointee(View::unknown(Arc::clone(&spec))),
            observes: AtomicBool::new(spec.limits().is_empty()),
            spec: ArcSwap::new(spec),
            cells: std::array::from_fn(|_| Cell::default()),
            hint: AtomicUsize::new(0),
            low_water: AtomicU64::new(u64::MAX),
            unmet: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            answered: Notify::new(),
            shared,
        }
    }

    /// What this meter counts by; `None` while only other nodes have asked for it.
    pub fn key(&self) -> Option<&MeterKey> {
        self.key.get()
    }

    /// Draws a token. Never blocks; at most an `Arc` is cloned.
    pub fn draw(self: &Arc<Self>, now_ns: u64) -> Draw {
        if let Some(token) = self.try_draw(now_ns) {
            return Draw::Drawn(token);
        }
        self.unmet.fetch_add(1, Ordering::Relaxed);
        if let Some(refusal) = self.refuses(now_ns) {
            return Draw::Refused(Box::new(refusal));
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.shared.waiting_max {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let k = self
                .refused
                .fetch_add(1, Ordering::Relaxed)
                .saturating_add(1);
            return Draw::Refused(Box::new(self.refusal(Cause::Crowded, k, now_ns)));
        }
        self.ask();
        Draw::Wait(Waiting {
            meter: Arc::clone(self),
        })
    }

    /// Whether the meter is known to be empty, without drawing: for requests that still have a
    /// body to buffer or a credential to fetch, whose token is drawn right before the send.
    pub fn check(&self, now_ns: u64) -> Option<Refusal> {
        if self.observes() || self.in_hand(now_ns) > 0 {
            None
        } else {
            self.refuses(now_ns)
        }
    }

    /// What is left of each limit, for headers, metrics and the node list.
    pub fn status(&self, now_ns: u64) -> MeterStatus {
        let view = self.view.load();
        let in_hand = self.in_hand(now_ns);
        let limits = view.limits(in_hand, now_ns);
        MeterStatus {
            name: view.spec.name().to_owned(),
            mode: view.mode,
            limits,
        }
    }

    /// Its slowest window; `None` when it only observes.
    pub(super) fn slowest(&self) -> Option<Window> {
        self.spec.load().slowest()
    }

    pub(super) fn try_draw(self: &Arc<Self>, now_ns: u64) -> Option<Token> {
        if self.observes() {
            return Some(Token {
                meter: Arc::clone(self),
                place: None,
            });
        }
        let first = self.hint.load(Ordering::Relaxed);
        for step in 0..CELLS {
            let at = (first + step) % CELLS;
            let Some((generation, left)) = self.cells.get(at).and_then(|cell| cell.draw(now_ns))
            else {
                continue;
            };
            if left == self.low_water.load(Ordering::Relaxed) {
                self.ask();
            }
            let place = Some(Place {
                cell: at as u8,
                generation,
            });
            return Some(Token {
                meter: Arc::clone(self),
                place,
            });
        }
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

    /// Takes the limits of a newer configuration; the broker is told and drops the old tokens.
    pub(super) fn respec(self: &Arc<Self>, spec: Arc<MeterSpec>) {
        if spec.version() > self.spec.load().version() {
            self.observes
                .store(spec.limits().is_empty(), Ordering::Release);
            self.spec.store(spec);
            // Told, but not asked for a token: a new version of the configuration is no demand.
            self.shared.ask(Arc::clone(self));
        }
    }

    fn observes(&self) -> bool {
        self.observes.load(Ordering::Relaxed)
    }

    /// The refusal of a meter that is known to have nothing now, numbered among its refusals.
    fn refuses(&self, now_ns: u64) -> Option<Refusal> {
        let cause = match self.view.load().verdict {
            Verdict::Refuse { until_ns, cause } if now_ns < until_ns => cause,
            _ => return None,
        };
        let k = self
            .refused
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        Some(self.refusal(cause, k, now_ns))
    }

    fn refusal(&self, cause: Cause, k: u64, now_ns: u64) -> Refusal {
        self.shared.stats.refused.fetch_add(1, Ordering::Relaxed);
        let view = self.view.load();
        let (retry_after, window) = view.retry_after(cause, k, now_ns);
        let limits = view.limits(0, now_ns);
        let limit = window
            .and_then(|window| limits.iter().find(|limit| limit.window == window))
            .or(limits.first())
            .copied();
        let reset = limit.map_or(retry_after, |limit| limit.reset);
        let status = MeterStatus {
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
            limit: limit.map(refused),
            retry_after,
            reset,
            status,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    cell: u8,
    generation: Generation,
}

/// A drawn token. Dropping it puts it back, if its part still stands.
#[derive(Debug)]
pub struct Token {
    meter: Arc<Meter>,
    /// `None` for a meter that only observes.
    place: Option<Place>,
}

/// Proof that a token was spent.
#[derive(Debug, PartialEq, Eq)]
pub struct Sent(());

impl Sent {
    /// For a request without meters.
    pub(super) fn nothing() -> Self {
        Self(())
    }
}

/// The token's part is over: draw anew, or answer 429.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token's part is over; draw anew")]
pub struct Expired;

impl Token {
    /// Spends the token at this instant: call it in the same poll as the first write, with the
    /// clock read right before.
    ///
    /// # Errors
    /// [`Expired`] when its part has ended; nothing may be sent on it.
    pub fn send(mut self, now_ns: u64) -> Result<Sent, Expired> {
        let Some(place) = self.place.take() else {
            return Ok(Sent(()));
        };
        let cell = self
            .meter
            .cells
            .get(usize::from(place.cell))
            .ok_or(Expired)?;
        if cell.send(place.generation, now_ns) {
            Ok(Sent(()))
        } else {
            Err(Expired)
        }
    }

    /// Whether [`Token::send`] would succeed now.
    pub fn is_live(&self, now_ns: u64) -> bool {
        let Some(place) = self.place else { return true };
        let cell = self.meter.cells.get(usize::from(place.cell));
        cell.is_some_and(|cell| cell.is_open(place.generation, now_ns))
    }

    /// The meter that it was drawn from.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if let Some(place) = self.place.take()
            && let Some(cell) = self.meter.cells.get(usize::from(place.cell))
        {
            cell.put_back(place.generation);
        }
    }
}

/// A request that waits for the broker's answer.
#[derive(Debug)]
pub struct Waiting {
    meter: Arc<Meter>,
}

impl Waiting {
    /// Waits for a token or a refusal: as long as the store needs to answer, at most
    /// `store_grace`, then what the meter does without a store.
    ///
    /// # Errors
    /// The refusal.
    pub async fn granted(self) -> Result<Token, Box<Refusal>> {
        let clock = Arc::clone(&self.meter.shared.clock);
        let since_ns = clock.boot_ns();
        // The broker itself answers at the end of the grace; this is for a broker that is gone.
        let grace = self.meter.shared.store_grace.saturating_mul(2);
        let grace_over = tokio::time::sleep(grace);
        let wait_over = tokio::time::sleep(WAIT_MAX.max(grace));
        tokio::pin!(grace_over, wait_over);
        loop {
            let answered = self.meter.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if let Some(result) = self.poll_now(clock.boot_ns()) {
                return result;
            }
            let heard = self.meter.view.load().answered_ns >= since_ns;
            tokio::select! {
                () = &mut answered => {}
                () = &mut grace_over, if !heard => break,
                () = &mut wait_over => break,
            }
        }
        let k = self
            .meter
            .refused
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        Err(Box::new(self.meter.refusal(
            Cause::StoreLost,
            k,
            clock.boot_ns(),
        )))
    }

    /// The answer if it is there already.
    pub(super) fn poll_now(&self, now_ns: u64) -> Option<Result<Token, Box<Refusal>>> {
        if let Some(token) = self.meter.try_draw(now_ns) {
            return Some(Ok(token));
        }
        if let Some(refusal) = self.meter.refuses(now_ns) {
            return Some(Err(Box::new(refusal)));
        }
        self.meter.ask();
        None
    }

    /// The meter that it waits for.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.meter.shared.clock)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.meter.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
