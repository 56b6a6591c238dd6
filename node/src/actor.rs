//! The actor runtime of the pipeline: the `Stage` trait and the one actor shell around it.
//!
//! Only this file names actix's actor types (its maintainer calls the crate passively maintained).
//! Each worker thread has its own chain of stage actors and a request never leaves its thread.
//! A stage decides, then the shell hands the exchange on: hand on, never ask. What travels between
//! mailboxes is the index of the exchange in a per-thread slab, because the exchange itself is not
//! `Send`. Mailboxes are bounded and only ever filled by `try_send`: full means `overloaded`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;

use actix::{Actor, Context, Handler, Message, Recipient};
use futures_util::FutureExt;
use proto::outcome::{Code, EarlyEnd};
use tracing::error;

use crate::flow::Exchange;
use crate::metrics::Metrics;

/// One stage of the pipeline. Its decision is a plain function; it does not know it is in an actor.
pub trait Stage: Sized + Unpin + 'static {
    /// Which stage it is; gives its name and its place in timings and metrics.
    const KIND: StageKind;

    /// Looks at the exchange and says what happens next.
    fn decide(&mut self, exchange: &mut Exchange) -> Next;
}

pub use proto::record::Stage as StageKind;

/// Number of stages.
pub const STAGES: usize = StageKind::ALL.len();

/// What follows a stage's decision.
pub enum Next {
    /// The exchange goes to the next stage.
    Continue,
    /// The request ends here; record and respond still see it.
    End(Box<EarlyEnd>),
    /// The stage has to wait: this task takes the exchange and hands it on when it is done.
    Wait(Task),
}

impl From<EarlyEnd> for Next {
    fn from(end: EarlyEnd) -> Self {
        Self::End(Box::new(end))
    }
}

/// Work that waits, outside of any actor's context: n futures inside one context are all polled at
/// every wake-up, which makes n² polls.
pub type Task = Box<dyn FnOnce(Box<Exchange>) -> Waiting>;

/// The future of a [`Task`]: gives the exchange back, and the early end if there is one.
pub type Waiting = Pin<Box<dyn Future<Output = (Box<Exchange>, Option<Box<EarlyEnd>>)>>>;

/// The only message of the pipeline: an exchange's place in this thread's slab.
struct Handoff(usize);

impl Message for Handoff {
    type Result = ();
}

thread_local! {
    /// Exchanges between two stages of this worker.
    static SLAB: RefCell<Slab> = const { RefCell::new(Slab::new()) };
}

struct Slab {
    slots: Vec<Option<Box<Exchange>>>,
    free: Vec<usize>,
}

impl Slab {
    const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

fn park(exchange: Box<Exchange>) -> Handoff {
    SLAB.with_borrow_mut(|slab| match slab.free.pop() {
        Some(at) => {
            slab.slots[at] = Some(exchange);
            Handoff(at)
        }
        None => {
            slab.slots.push(Some(exchange));
            Handoff(slab.slots.len() - 1)
        }
    })
}

fn unpark(handoff: &Handoff) -> Option<Box<Exchange>> {
    SLAB.with_borrow_mut(|slab| {
        let exchange = slab.slots.get_mut(handoff.0)?.take();
        if exchange.is_some() {
            slab.free.push(handoff.0);
        }
        exchange
    })
}

/// Where a stage sends exchanges.
#[derive(Clone)]
struct Exits {
    /// The next stage; none behind the last one.
    next: Option<Recipient<Handoff>>,
    /// The first stage that an early end still passes; none for that stage and later ones.
    end: Option<Recipient<Handoff>>,
    metrics: Metrics,
    /// Set when a mailbox was found closed: the worker then builds a new chain.
    broken: Rc<Cell<bool>>,
}

/// The shell around a stage.
struct StageActor<S> {
    stage: S,
    exits: Exits,
}

impl<S: Stage> Actor for StageActor<S> {
    type Context = Context<Self>;
}

impl<S: Stage> Handler<Handoff> for StageActor<S> {
    type Result = ();

    fn handle(&mut self, handoff: Handoff, _: &mut Self::Context) {
        let Some(mut exchange) = unpark(&handoff) else {
            return;
        };
        let decide = || {
            assert!(
                exchange.fault != Some(S::KIND),
                "fault injected at {}",
                S::KIND.name()
            );
            self.stage.decide(&mut exchange)
        };
        let next = match std::panic::catch_unwind(AssertUnwindSafe(decide)) {
            Ok(next) => next,
            Err(_) => {
                // The stage's own state may be half changed; the caller of `start` made it cheap
                // to make anew, so the whole chain is replaced before the next request.
                self.exits.broken.set(true);
                self.exits.metrics.stage_panicked(S::KIND);
                panicked(S::KIND, &exchange)
            }
        };
        match next {
            Next::Continue => self.exits.go_on::<S>(exchange),
            Next::End(end) => self.exits.end::<S>(exchange, end),
            Next::Wait(task) => wait::<S>(task, exchange, self.exits.clone()),
        }
    }
}

fn panicked(stage: StageKind, exchange: &Exchange) -> Next {
    let request = exchange.id;
    error!(stage = stage.name(), %request, "stage {} panicked on {request}", stage.name());
    EarlyEnd::new(
        Code::InternalError,
        "the gateway failed on this request; it has been counted",
    )
    .into()
}

fn wait<S: Stage>(task: Task, exchange: Box<Exchange>, exits: Exits) {
    let waiting = AssertUnwindSafe(task(exchange));
    actix_rt::spawn(async move {
        match waiting.catch_unwind().await {
            Ok((exchange, None)) => exits.go_on::<S>(exchange),
            Ok((exchange, Some(end))) => exits.end::<S>(exchange, end),
            // The exchange went down with its task: its caller sees a closed reply channel, which
            // the listener's handler answers with 500.
            Err(_) => exits.metrics.stage_panicked(S::KIND),
        }
    });
}

impl Exits {
    fn go_on<S: Stage>(&self, mut exchange: Box<Exchange>) {
        exchange.mark(S::KIND);
        let Some(next) = &self.next else {
            // Behind the last stage there is only whoever waits for the reply.
            crate::answer::reply(exchange);
            return;
        };
        if let Some((exchange, end)) = self.send(next, exchange, S::KIND) {
            self.end::<S>(exchange, end);
        }
    }

    fn end<S: Stage>(&self, mut exchange: Box<Exchange>, end: Box<EarlyEnd>) {
        exchange.mark(S::KIND);
        // The first reason stands: a full mailbox behind it must not hide it.
        exchange.end.get_or_insert(end);
        let Some(record) = &self.end else {
            crate::answer::reply(exchange);
            return;
        };
        if let Some((exchange, _)) = self.send(record, exchange, S::KIND) {
            crate::answer::reply(exchange);
        }
    }

    /// Hands on; gives the exchange back with the reason when the mailbox is full or closed.
    fn send(
        &self,
        to: &Recipient<Handoff>,
        exchange: Box<Exchange>,
        from: StageKind,
    ) -> Option<(Box<Exchange>, Box<EarlyEnd>)> {
        let error = to.try_send(park(exchange)).err()?;
        let (handoff, end) = match error {
            actix::dev::SendError::Full(handoff) => {
                self.metrics.mailbox_full(from);
                (handoff, overloaded())
            }
            actix::dev::SendError::Closed(handoff) => {
                self.broken.set(true);
                let detail = "a part of the gateway is being restarted; try again";
                (handoff, EarlyEnd::new(Code::Overloaded, detail))
            }
        };
        unpark(&handoff).map(|exchange| (exchange, Box::new(end)))
    }
}

/// The end of a request for which a mailbox has no room.
pub fn overloaded() -> EarlyEnd {
    EarlyEnd::new(
        Code::Overloaded,
        "the gateway has more requests than it can hold; try again shortly, or add nodes",
    )
    .header("retry-after", "1")
}

/// One worker's chain of stage actors.
pub struct Chain {
    entry: Recipient<Handoff>,
    broken: Rc<Cell<bool>>,
    metrics: Metrics,
}

impl Chain {
    /// Whether an actor of this chain is gone, so that it must be replaced.
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Gives an exchange to the first stage.
    ///
    /// # Errors
    /// The exchange and `overloaded` when the first mailbox is full or closed.
    pub fn submit(&self, exchange: Box<Exchange>) -> Result<(), (Box<Exchange>, Box<EarlyEnd>)> {
        let exits = Exits {
            next: None,
            end: None,
            metrics: self.metrics.clone(),
            broken: self.broken.clone(),
        };
        match exits.send(&self.entry, exchange, StageKind::Receive) {
            None => Ok(()),
            Some(back) => Err(back),
        }
    }
}

/// Builds a chain from its last stage to its first: each call puts one stage before what stands.
pub struct ChainBuilder {
    capacity: usize,
    next: Option<Recipient<Handoff>>,
    end: Option<Recipient<Handoff>>,
    metrics: Metrics,
    broken: Rc<Cell<bool>>,
}

impl ChainBuilder {
    /// An empty chain whose mailboxes hold `capacity` exchanges each.
    pub fn new(capacity: usize, metrics: Metrics) -> Self {
        Self {
            capacity,
            next: None,
            end: None,
            metrics,
            broken: Rc::new(Cell::new(false)),
        }
    }

    /// Starts the actor of `stage`, which hands on to the stage put before this call.
    pub fn before<S: Stage>(mut self, stage: S) -> Self {
        let exits = Exits {
            next: self.next.take(),
            end: self.end.clone(),
            metrics: self.metrics.clone(),
            broken: self.broken.clone(),
        };
        let capacity = self.capacity;
        let actor = StageActor { stage, exits };
        let recipient = StageActor::create(|ctx| {
            ctx.set_mailbox_capacity(capacity);
            actor
        })
        .recipient();
        if S::KIND == StageKind::Record {
            self.end = Some(recipient.clone());
        }
        self.next = Some(recipient);
        self
    }

    /// The chain, once every stage is in it; none if none is.
    pub fn build(self) -> Option<Chain> {
        let entry = self.next?;
        Some(Chain {
            entry,
            broken: self.broken,
            metrics: self.metrics,
        })
    }
}
