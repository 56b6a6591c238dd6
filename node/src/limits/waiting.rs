//! A request that waits: for the store's answer, or, where its meter says so, for its turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::meter::Hold;

use super::clock::Clock;
use super::hold::Rank;
use super::meter::Meter;
use super::refusal::{Cause, Mode, Refusal};
use super::token::Token;
use super::view::Verdict;

/// Longest wait for a store that answers but gives no token (the pace of writes is the reason): the
/// whole of a limit passes at this pace in less.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Who is held asks again after this time, should nobody ring.
const ASK_AGAIN_NS: u64 = 100_000_000;
/// And not sooner than this.
const ASK_MIN_NS: u64 = 5_000_000;
/// From this time on what is known of the limit is no passing state.
const SETTLED_NS: u64 = 30_000_000;

/// What becomes of a request that a meter makes wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHold {
    /// It waits for its turn.
    Began,
    /// No more: it had it, was refused, or has gone.
    Ended,
}

/// Tells of a request that waits at a meter, and, when it is dropped, that it does no more.
pub(super) struct Told<'h, F: FnMut(OnHold, Option<Arc<str>>)> {
    meter: Option<Arc<str>>,
    on_hold: &'h mut F,
}

impl<'h, F: FnMut(OnHold, Option<Arc<str>>)> Told<'h, F> {
    pub(super) fn begins(meter: Option<Arc<str>>, on_hold: &'h mut F) -> Self {
        on_hold(OnHold::Began, meter.clone());
        Self { meter, on_hold }
    }
}

impl<F: FnMut(OnHold, Option<Arc<str>>)> Drop for Told<'_, F> {
    fn drop(&mut self) {
        (self.on_hold)(OnHold::Ended, self.meter.take());
    }
}

/// Counts a request that is held, until it is dropped.
struct Held<'h>(&'h Meter);

impl<'h> Held<'h> {
    fn begins(meter: &'h Meter) -> Self {
        let stats = &meter.shared.stats;
        stats.held.fetch_add(1, Ordering::Relaxed);
        stats.holding.fetch_add(1, Ordering::Relaxed);
        Self(meter)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let stats = &self.0.shared.stats;
        stats.holding.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that waits for the broker's answer.
#[derive(Debug)]
pub struct Waiting {
    meter: Arc<Meter>,
    amount: u64,
    /// It had its turn before.
    again: bool,
}

impl Waiting {
    /// Counted already among those who wait for the meter.
    pub(super) fn new(meter: Arc<Meter>, amount: u64) -> Self {
        Self {
            meter,
            amount,
            again: false,
        }
    }

    /// The same for a request that had its turn, and lost what it got.
    pub(super) fn again(self) -> Self {
        let mut waiting = self;
        waiting.again = true;
        waiting
    }

    /// Waits for a token or a refusal: as long as the store needs to answer, at most
    /// `store_grace`, then what the meter does without a store. Where the meter holds its callers,
    /// waits for a token as long as that says; `priority` (0 to 9) goes before a lower one, and
    /// `on_hold` is told.
    ///
    /// # Errors
    /// The refusal.
    pub async fn granted(
        self,
        priority: u8,
        on_hold: &mut impl FnMut(OnHold, Option<Arc<str>>),
    ) -> Result<Token, Box<Refusal>> {
        let hold = self.meter.spec.load().hold();
        match hold {
            Some(hold) => self.held(hold, priority, on_hold).await,
            None => self.answered().await,
        }
    }

    fn rank(&self, priority: u8) -> Rank {
        match self.again {
            true => Rank::Again,
            false => Rank::First(priority),
        }
    }

    async fn held(
        self,
        hold: Hold,
        priority: u8,
        on_hold: &mut impl FnMut(OnHold, Option<Arc<str>>),
    ) -> Result<Token, Box<Refusal>> {
        let meter = &self.meter;
        let clock = Arc::clone(&meter.shared.clock);
        let refused = |cause: Cause, before: u64| {
            let k = meter.refused_next(self.amount);
            let k = k.saturating_add(before.saturating_mul(self.amount));
            let now_ns = clock.boot_ns();
            let refusal = meter.refusal(cause, k, now_ns);
            Err(Box::new(refusal.short(meter, self.amount, now_ns)))
        };
        let most = usize::try_from(hold.max_waiting).unwrap_or(usize::MAX);
        let now_ns = clock.boot_ns();
        let rank = self.rank(priority);
        let Some((ticket, before)) = meter.held.enter(rank, self.amount, most, now_ns) else {
            return refused(Cause::Crowded, u64::from(hold.max_waiting));
        };
        let max_wait = Duration::from_millis(hold.max_wait_ms);
        let deadline_ns = now_ns.saturating_add(super::nanos(max_wait));
        let (before, elsewhere) = (before.here as u64, before.elsewhere);
        if self.wait(before, elsewhere, now_ns) > max_wait {
            let before = before.saturating_add(elsewhere / self.amount.max(1));
            return refused(Cause::Empty, before);
        }
        let _held = Held::begins(meter);
        let _told = Told::begins(meter.shared_id(), on_hold);
        let over = tokio::time::sleep(max_wait);
        tokio::pin!(over);
        let mut asked_ns = u64::MAX;
        loop {
            let answered = meter.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if !ticket.is_head() {
                tokio::select! {
                    () = ticket.turn() => continue,
                    () = &mut over => return refused(Cause::Empty, 0),
                }
            }
            let now_ns = clock.boot_ns();
            if let Some(token) = meter.try_draw(self.amount, now_ns) {
                return Ok(token);
            }
            asked_ns = asked_ns.min(now_ns);
            let (until_ns, cause) = match meter.view.load().verdict {
                _ if now_ns < meter.paused_until_ns() => (meter.paused_until_ns(), Cause::Paused),
                Verdict::Refuse { until_ns, cause } if now_ns < until_ns => (until_ns, cause),
                _ => (0, Cause::Empty),
            };
            // What was drawn and not sent yet makes it look later than it is.
            let settled = now_ns >= asked_ns.saturating_add(SETTLED_NS);
            if until_ns > deadline_ns && settled || cause == Cause::StoreLost {
                return refused(cause, 0);
            }
            meter.ask();
            let wait_ns = until_ns
                .saturating_sub(now_ns)
                .clamp(ASK_MIN_NS, ASK_AGAIN_NS);
            let again = tokio::time::sleep(Duration::from_nanos(wait_ns));
            tokio::select! {
                () = &mut answered => {}
                () = again => {}
                () = &mut over => return refused(Cause::Empty, 0),
            }
        }
    }

    /// How long it takes until the turn of who comes after so many here, and after callers who wait
    /// for so many tokens on other nodes.
    fn wait(&self, before: u64, elsewhere: u64, now_ns: u64) -> Duration {
        // Of those before it here, it is taken that they spend as much.
        let turn = before.saturating_add(1).saturating_mul(self.amount);
        let turn = turn.saturating_add(elsewhere);
        let view = self.meter.view.load_full();
        if view.mode == Mode::Open {
            return Duration::ZERO;
        }
        // An owner that was asked may give anything, but to those who wait already.
        let coming = match view.coming {
            u64::MAX if before > 0 || elsewhere > 0 => 0,
            coming => coming,
        };
        let at_hand = self.meter.in_hand(now_ns).saturating_add(coming);
        match turn.saturating_sub(at_hand) {
            0 => Duration::ZERO,
            turn => view.retry_after(Cause::Empty, turn, now_ns).0,
        }
    }

    async fn answered(self) -> Result<Token, Box<Refusal>> {
        let clock = Arc::clone(&self.meter.shared.clock);
        let since_ns = clock.boot_ns();
        // The broker itself answers at the end of the grace; this is for a broker that is gone.
        let grace = self.meter.shared.store_grace.saturating_mul(2);
        let grace_over = tokio::time::sleep(grace);
        let wait_over = tokio::time::sleep(WAIT_MAX.max(grace));
        tokio::pin!(grace_over, wait_over);
        let mut is_over = false;
        loop {
            let answered = self.meter.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if let Some(result) = self.poll_now(clock.boot_ns()) {
                return result;
            }
            // What was heard meanwhile may have been for others who wait.
            if is_over && self.meter.view.load().answered_ns < since_ns {
                break;
            }
            tokio::select! {
                () = &mut answered => {}
                () = &mut grace_over, if !is_over => is_over = true,
                () = &mut wait_over => break,
            }
        }
        let heard = self.meter.view.load().answered_ns >= since_ns;
        // Others were faster, again and again, where much is to be set aside.
        let cause = match heard && self.amount > 1 {
            true => Cause::Empty,
            false => Cause::StoreLost,
        };
        let k = self.meter.refused_next(self.amount);
        let now_ns = clock.boot_ns();
        let refusal = self.meter.refusal(cause, k, now_ns);
        Err(Box::new(refusal.short(&self.meter, self.amount, now_ns)))
    }

    /// The answer if it is there already.
    pub(super) fn poll_now(&self, now_ns: u64) -> Option<Result<Token, Box<Refusal>>> {
        if let Some(token) = self.meter.try_draw(self.amount, now_ns) {
            return Some(Ok(token));
        }
        if let Some(refusal) = self.meter.refuses(self.amount, 0, now_ns) {
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
        self.meter.waiting.fetch_sub(self.amount, Ordering::Relaxed);
        self.meter.callers.fetch_sub(1, Ordering::Relaxed);
    }
}
