//! The tokens of one request between their draw and each attempt's first write.
//!
//! `limit` draws where nothing else is to be waited for, `forward` where something was, and the
//! upstream's gate spends: in the same poll as the first write, once for each attempt that counts.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::outcome::EarlyEnd;
use proto::record::{MeterSpend, SpanEvents};

use crate::actor::StageKind;
use crate::events::Noting;
use crate::limits::{
    Clock, DrawAll, MeterSet, OnHold, Reserved, Sent, SlotToken, SystemClock, Tokens,
};
use crate::metering::Applied;
use crate::refused::{in_flight, late, refused};
use crate::upstream::{Hold, Leave};

/// Draws everything that a request spends, waiting where it has to: tokens of its meters, then a
/// place among the calls in flight. What it waits for is noted.
///
/// # Errors
/// 429 or 503 of the meter that refuses; what was drawn goes back.
pub async fn draw(
    applied: &Applied,
    mut noting: Noting<'_>,
) -> Result<(Option<Tokens>, Vec<SlotToken>), EarlyEnd> {
    let tokens = match applied.first.is_empty() {
        true => None,
        false => {
            let drawn = match applied.first.draw(SystemClock.boot_ns()) {
                DrawAll::Drawn(tokens) => Ok(tokens),
                DrawAll::Refused(refusal) => Err(refusal),
                DrawAll::Wait(waiting) => {
                    let on_hold = |what, meter| noting.hold(what, meter);
                    waiting.granted(applied.priority, on_hold).await
                }
            };
            Some(drawn.map_err(|refusal| refused(&refusal))?)
        }
    };
    Ok((tokens, take_slots(applied, noting).await?))
}

/// Takes a slot of each limit of calls in flight. What it waits for is noted.
///
/// # Errors
/// 429 or 503 of the one that refuses; the others are free again.
pub async fn take_slots(
    applied: &Applied,
    mut noting: Noting<'_>,
) -> Result<Vec<SlotToken>, EarlyEnd> {
    let mut taken = Vec::with_capacity(applied.slots.len());
    for slots in &*applied.slots {
        let token = slots
            .take(&mut |what, meter| noting.hold(what, meter))
            .await;
        taken.push(token.map_err(|refusal| in_flight(&refusal))?);
    }
    Ok(taken)
}

/// Ready when a slot is lost.
type Lost = Pin<Box<dyn Future<Output = ()>>>;

/// Ready when one of these slots is lost whose call ends with it; none where no call does.
fn lost(slots: &[SlotToken]) -> Option<Lost> {
    let mut cancelling = slots.iter().filter_map(SlotToken::cancelling).peekable();
    cancelling.peek()?;
    let lost = cancelling.map(|slots| async move { slots.lost().await });
    let mut lost: FuturesUnordered<_> = lost.collect();
    Some(Box::pin(async move {
        lost.next().await;
    }))
}

/// Ready when one of these slots is lost whose call ends with it.
pub async fn any_lost(slots: &[SlotToken]) {
    match lost(slots) {
        Some(lost) => lost.await,
        None => std::future::pending().await,
    }
}

/// The places of a call among those in flight, to the last byte of its answer.
pub struct Places {
    lost: Option<Lost>,
    is_lost: bool,
    _slots: Vec<SlotToken>,
}

impl Places {
    /// Those of these slots.
    pub fn of(slots: Vec<SlotToken>) -> Self {
        Self {
            lost: lost(&slots),
            is_lost: false,
            _slots: slots,
        }
    }

    /// Whether the call has lost one that it ends with; wakes whoever asked when it does.
    pub fn is_lost(&mut self, cx: &mut Context<'_>) -> bool {
        let lost = self.lost.as_mut();
        if lost.is_some_and(|lost| lost.as_mut().poll(cx).is_ready()) {
            (self.lost, self.is_lost) = (None, true);
        }
        self.is_lost
    }

    /// Does something until it is done or a place is lost that the call ends with.
    pub async fn while_held(&mut self, doing: impl Future) {
        tokio::select! {
            biased;
            () = poll_fn(|cx| match self.is_lost(cx) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }) => {}
            _ = doing => {}
        }
    }
}

/// Tokens between their draw and the request's first write.
#[derive(Default)]
pub enum Spending {
    /// There is nothing to spend, or it is spent.
    #[default]
    Nothing,
    /// To be drawn.
    Due,
    /// Drawn.
    Drawn(Tokens),
    /// Asked for again; they will be here.
    Awaited(Rc<Cell<Option<Tokens>>>),
}

/// The tokens of all attempts of one request.
pub struct Attempts {
    /// None where nothing counts the request.
    applied: Option<Arc<Applied>>,
    spending: Spending,
    attempt: u32,
    /// The last one that was let go.
    passed: u32,
    /// What its answer will be held against.
    reserved: Vec<Reserved>,
    spends: Spends,
    waits: Waits,
}

/// What happens to the attempts of a request that wait for tokens; noted by what waits, which they
/// do not have at hand.
struct Waits {
    /// When the request began.
    started: Instant,
    /// Made by the first that waits.
    events: Option<Rc<RefCell<SpanEvents>>>,
}

/// What a request has spent of each meter so far; shared with what corrects it.
#[derive(Clone, Debug, Default)]
pub struct Spends(Rc<RefCell<Spent>>);

#[derive(Debug, Default)]
struct Spent {
    meters: Vec<MeterSpend>,
    /// Those that were told no value.
    missing: Vec<Arc<str>>,
}

impl Spends {
    /// So much was spent.
    pub fn add(&self, spent: MeterSpend) {
        let known = &mut self.0.borrow_mut().meters;
        match known.iter_mut().find(|known| known.meter == spent.meter) {
            Some(known) => known.tokens = known.tokens.saturating_add(spent.tokens),
            None => known.push(spent),
        }
    }

    /// What was set aside turned out to be this.
    pub fn correct(&self, reserved: &Reserved, actual: u64) {
        let Some(meter) = reserved.meter().shared_id() else {
            return;
        };
        let spent = &mut *self.0.borrow_mut();
        // What an earlier attempt was not told of.
        spent.missing.retain(|missing| *missing != meter);
        let known = &mut spent.meters;
        match known.iter_mut().find(|known| known.meter == meter) {
            Some(known) => {
                let others = known.tokens.saturating_sub(reserved.amount());
                known.tokens = others.saturating_add(actual);
            }
            None => known.push(MeterSpend {
                meter,
                tokens: actual,
            }),
        }
    }

    /// Nobody has said what it has cost: what was set aside stays spent.
    pub fn missed(&self, reserved: Reserved) {
        if let Some(meter) = reserved.meter().shared_id() {
            let missing = &mut self.0.borrow_mut().missing;
            if !missing.contains(&meter) {
                missing.push(meter);
            }
        }
        reserved.missed();
    }

    /// What was spent of each meter until now.
    pub fn by_now(&self) -> Vec<MeterSpend> {
        self.0.borrow().meters.clone()
    }

    /// What was spent of each meter, and those that were told no value.
    pub fn take(&self) -> (Vec<MeterSpend>, Vec<Arc<str>>) {
        let spent = self.0.take();
        (spent.meters, spent.missing)
    }
}

impl Waits {
    /// Notes that an attempt waits for its turn at a meter, or no more.
    fn noting(&mut self) -> impl FnMut(OnHold, Option<Arc<str>>) + use<> {
        let events = Rc::clone(self.events.get_or_insert_default());
        let started = self.started;
        move |what, meter| {
            let mut events = events.borrow_mut();
            Noting::new(&mut events, StageKind::Forward, started).hold(what, meter);
        }
    }
}

impl Attempts {
    /// Of a request that began then and whose first attempt has these tokens.
    pub fn new(
        applied: Option<Arc<Applied>>,
        tokens: Option<Tokens>,
        (spends, started): (Spends, Instant),
    ) -> Self {
        Self {
            applied,
            spending: tokens.into(),
            attempt: 1,
            passed: 0,
            reserved: Vec::new(),
            spends,
            waits: Waits {
                started,
                events: None,
            },
        }
    }

    /// What is set aside until the answer says what it has cost: of each meter that of its last
    /// attempt. What earlier ones have cost nobody knows.
    pub fn into_reserved(mut self) -> Vec<Reserved> {
        std::mem::take(&mut self.reserved)
    }

    /// What happened while they waited, since it was asked for last.
    pub fn take_events(&mut self) -> SpanEvents {
        let events = self.waits.events.take();
        events.map(|events| events.take()).unwrap_or_default()
    }

    /// How many attempts were let go.
    pub fn passed(&self) -> u32 {
        self.passed
    }

    /// Spends those of an attempt at this instant. What a caller asks for once counts once, what
    /// a target is asked counts each time.
    ///
    /// # Errors
    /// As [`Spending::spend`].
    pub fn spend(&mut self, attempt: u32) -> Result<Leave, Hold<EarlyEnd>> {
        let Some(applied) = &self.applied else {
            self.passed = attempt;
            return Ok(None);
        };
        let again = (attempt > 1).then(|| applied.first.repeated());
        let meters = again.as_ref().unwrap_or(&applied.first);
        if attempt > self.attempt {
            self.attempt = attempt;
            self.spending = Spending::due(meters);
        }
        let priority = applied.priority;
        let (sent, leave) = self.spending.spend(meters, priority, &mut self.waits)?;
        self.passed = attempt;
        for spent in sent.spent {
            self.spends.add(spent);
        }
        for reserved in sent.reserved {
            let same = |known: &mut Reserved| Arc::ptr_eq(known.meter(), reserved.meter());
            let earlier = self.reserved.extract_if(.., same);
            earlier.for_each(|earlier| self.spends.missed(earlier));
            self.reserved.push(reserved);
        }
        Ok(leave)
    }
}

impl Drop for Attempts {
    /// No answer came that could say what it has cost.
    fn drop(&mut self) {
        let reserved = self.reserved.drain(..);
        reserved.for_each(|reserved| self.spends.missed(reserved));
    }
}

impl From<Option<Tokens>> for Spending {
    fn from(tokens: Option<Tokens>) -> Self {
        tokens.map_or(Self::Nothing, Self::Drawn)
    }
}

impl Spending {
    fn due(meters: &MeterSet) -> Self {
        match meters.is_empty() {
            true => Self::Nothing,
            false => Self::Due,
        }
    }

    /// Spends them at this instant. Tokens whose block has ended meanwhile (a connection had to be
    /// made, or the block was about to end) are drawn anew, which may take a moment.
    ///
    /// # Errors
    /// 429 or 503 of the meter that refuses, or what to wait for.
    fn spend(
        &mut self,
        meters: &MeterSet,
        priority: u8,
        waits: &mut Waits,
    ) -> Result<(Sent, Leave), Hold<EarlyEnd>> {
        let tokens = match std::mem::take(self) {
            Self::Nothing => return Ok((Sent::default(), None)),
            Self::Due => None,
            Self::Drawn(tokens) => Some(tokens),
            Self::Awaited(tokens) => tokens.take(),
        };
        let now_ns = SystemClock.boot_ns();
        let drawn = match tokens.map(|tokens| tokens.send(now_ns)) {
            Some(Ok(sent)) => return Ok((sent, Some(now_ns))),
            Some(Err(_)) => meters.draw_again(now_ns),
            None => meters.draw(now_ns),
        };
        match drawn {
            DrawAll::Drawn(tokens) => match tokens.send(now_ns) {
                Ok(sent) => Ok((sent, Some(now_ns))),
                Err(_) => Err(Hold::Refused(late())),
            },
            DrawAll::Refused(refusal) => Err(Hold::Refused(refused(&refusal))),
            DrawAll::Wait(waiting) => {
                let place = Rc::new(Cell::new(None));
                *self = Self::Awaited(place.clone());
                let on_hold = waits.noting();
                Err(Hold::Until(Box::pin(async move {
                    let granted = waiting.granted(priority, on_hold).await;
                    place.set(Some(granted.map_err(|refusal| refused(&refusal))?));
                    Ok(())
                })))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::meter::{Estimate, Limit, MeterSpec, Window};
    use proto::store::embedded::Embedded;

    use super::*;
    use crate::limits::{Limits, MeterKey, Opener, Settings};

    /// Of a node alone, and the folder of its store.
    fn limits() -> (tempfile::TempDir, Arc<Limits>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
        let settings = Settings::single_node(Opener { node: 1, boot: 1 });
        let (limits, broker) = Limits::new(store, &settings, Arc::new(SystemClock));
        actix_rt::spawn(broker);
        (dir, limits)
    }

    fn hundred_a_minute() -> MeterSpec {
        let limit = Limit::new(100, Window::Minute).unwrap();
        MeterSpec::new("", 1, vec![limit]).unwrap()
    }

    /// A block that ends between draw and send costs a moment, not the request.
    #[actix_rt::test]
    async fn tokens_that_ended_before_they_were_sent_are_drawn_again() {
        let (_dir, limits) = limits();
        let spec = hundred_a_minute();
        let meter = limits.meter(MeterKey::whole("m"), Arc::new(spec));
        let meters = MeterSet::new(&[meter]).unwrap();
        let applied = Applied {
            first: meters.clone(),
            ..Applied::default()
        };
        for _ in 0..3 {
            let mut events = SpanEvents::default();
            let noting = Noting::new(&mut events, StageKind::Forward, Instant::now());
            let tokens = draw(&applied, noting).await.unwrap().0.unwrap();
            while tokens.are_live(SystemClock.boot_ns()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut spending = Spending::from(Some(tokens));
            let mut waits = Waits {
                started: Instant::now(),
                events: None,
            };
            while let Err(hold) = spending.spend(&meters, 0, &mut waits) {
                match hold {
                    Hold::Until(ready) => ready.await.unwrap(),
                    Hold::Refused(end) => panic!("{end:?}"),
                }
            }
            assert!(
                spending.spend(&meters, 0, &mut waits).is_ok(),
                "spent once, whoever asks"
            );
        }
    }

    /// Two attempts, of which the last one is answered.
    #[actix_rt::test]
    async fn a_value_that_is_told_at_last_is_not_missing() {
        let (_dir, limits) = limits();
        let spec = hundred_a_minute();
        let spec = spec.estimating(Some(Estimate::Given(2)));
        let meter = limits.meter(MeterKey::whole("m"), Arc::new(spec));
        let applied = Applied {
            first: MeterSet::new(&[meter]).unwrap(),
            ..Applied::default()
        };
        let (spends, mut set_aside) = (Spends::default(), Vec::new());
        while set_aside.len() < 2 {
            let mut events = SpanEvents::default();
            let noting = Noting::new(&mut events, StageKind::Forward, Instant::now());
            let tokens = draw(&applied, noting).await.unwrap().0.unwrap();
            if let Ok(sent) = tokens.send(SystemClock.boot_ns()) {
                set_aside.extend(sent.reserved);
            }
        }
        let last = set_aside.pop().unwrap();
        set_aside
            .into_iter()
            .for_each(|reserved| spends.missed(reserved));
        assert_eq!(spends.0.borrow().missing.len(), 1);
        spends.correct(&last, 7);
        last.settle(7, SystemClock.boot_ns());
        assert!(spends.take().1.is_empty());
    }
}
