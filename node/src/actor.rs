//! The actor runtime of the pipeline: the `Stage` trait and the one actor shell around it.
//!
//! Only this file names actix's actor types (its maintainer calls the crate passively maintained).
//! Each worker thread has its own chain of stage actors and a request never leaves its thread.
//! A stage decides, then the shell hands the exchange on: hand on, never ask. Mailboxes are of one
//! thread (`mailbox.rs`), bounded, and only ever filled by `try_send`: full means `overloaded`.
//!
//! The actors of a chain are not tasks of the runtime: whoever has put a message into one of their
//! mailboxes runs the chain until no mailbox holds one (`runner.rs`).

use std::cell::Cell;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::{Rc, Weak};

use actix::{Actor, AsyncContext, Context, StreamHandler};
use futures_util::FutureExt;
use proto::outcome::{Code, EarlyEnd};
use tracing::error;

use crate::flow::Exchange;
use crate::mailbox::{self, Refused};
use crate::metrics::Metrics;
use crate::reply::ReplySender;
use crate::runner::Runner;

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

/// How a stage is reached: the only message of the pipeline is the exchange.
type Address = mailbox::Address<Box<Exchange>>;

/// Where a stage sends exchanges.
struct Exits {
    /// The next stage; none behind the last one.
    next: Option<Address>,
    /// The first stage that an early end still passes; none for that stage and later ones.
    end: Option<Address>,
    metrics: Metrics,
    /// Set when a mailbox was found closed: the worker then builds a new chain.
    broken: Rc<Cell<bool>>,
    runner: Weak<Runner>,
}

/// The shell around a stage.
struct StageActor<S> {
    stage: S,
    exits: Rc<Exits>,
}

impl<S: Stage> Actor for StageActor<S> {
    type Context = Context<Self>;
}

impl<S: Stage> StreamHandler<Box<Exchange>> for StageActor<S> {
    fn handle(&mut self, mut exchange: Box<Exchange>, _: &mut Self::Context) {
        let decide = || {
            assert!(
                exchange.fault != Some(S::KIND),
                "fault injected at {} on {}",
                S::KIND.name(),
                String::from_utf8_lossy(&exchange.request.rest())
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
    let (name, (trace_id, span_id)) = (stage.name(), exchange.trace_ids());
    error!(stage = name, %request, trace_id, span_id, "stage {name} panicked on {request}");
    EarlyEnd::new(
        Code::InternalError,
        "the gateway failed on this request; it has been counted",
    )
    .into()
}

fn wait<S: Stage>(task: Task, exchange: Box<Exchange>, exits: Rc<Exits>) {
    let desk = exchange.reply.as_ref().map(ReplySender::desk);
    // Keeps the chain alive for this request, even if it is replaced meanwhile.
    let runner = exits.runner.upgrade();
    let waiting = AssertUnwindSafe(task(exchange));
    let work = Box::pin(async move {
        match waiting.catch_unwind().await {
            Ok((exchange, None)) => exits.go_on::<S>(exchange),
            Ok((exchange, Some(end))) => exits.end::<S>(exchange, end),
            // The exchange went down with its task: its caller sees a closed reply channel, which
            // the listener's handler answers with 500.
            Err(_) => exits.metrics.stage_panicked(S::KIND),
        }
        if let Some(runner) = runner {
            runner.run();
        }
    });
    match desk {
        Some(desk) => desk.leave(work),
        None => drop(actix_rt::spawn(work)),
    }
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
        to: &Address,
        exchange: Box<Exchange>,
        from: StageKind,
    ) -> Option<(Box<Exchange>, Box<EarlyEnd>)> {
        let (exchange, why) = to.try_send(exchange).err()?;
        let end = match why {
            Refused::Full => {
                self.metrics.mailbox_full(from);
                overloaded()
            }
            Refused::Closed => {
                self.broken.set(true);
                let detail = "a part of the gateway is being restarted; try again";
                EarlyEnd::new(Code::Overloaded, detail)
            }
        };
        Some((exchange, Box::new(end)))
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
    entry: Exits,
    runner: Rc<Runner>,
}

impl Chain {
    /// Whether an actor of this chain is gone, so that it must be replaced.
    pub fn is_broken(&self) -> bool {
        self.entry.broken.get()
    }

    /// Gives an exchange to the first stage, and runs the stages as far as they go without
    /// waiting.
    ///
    /// # Errors
    /// The exchange and `overloaded` when the first mailbox is full or closed.
    pub fn submit(&self, exchange: Box<Exchange>) -> Result<(), (Box<Exchange>, Box<EarlyEnd>)> {
        let Some(first) = &self.entry.next else {
            return Err((exchange, Box::new(overloaded())));
        };
        match self.entry.send(first, exchange, StageKind::Receive) {
            None => {
                self.runner.run();
                Ok(())
            }
            Some(back) => Err(back),
        }
    }
}

/// Builds a chain from its last stage to its first: each call puts one stage before what stands.
pub struct ChainBuilder {
    capacity: usize,
    exits: Exits,
    runner: Rc<Runner>,
}

impl ChainBuilder {
    /// An empty chain whose mailboxes hold `capacity` exchanges each.
    pub fn new(capacity: usize, metrics: Metrics) -> Self {
        let runner = Rc::<Runner>::default();
        let exits = Exits {
            next: None,
            end: None,
            metrics,
            broken: Rc::new(Cell::new(false)),
            runner: Rc::downgrade(&runner),
        };
        Self {
            capacity,
            exits,
            runner,
        }
    }

    /// Makes the actor of `stage`, which hands on to the stage put before this call.
    pub fn before<S: Stage>(mut self, stage: S) -> Self {
        let (address, mailbox) = mailbox::bounded(self.capacity);
        let mut context = Context::<StageActor<S>>::new();
        context.add_stream(mailbox);
        let exits = Rc::new(Exits {
            next: self.exits.next.take(),
            end: self.exits.end.clone(),
            metrics: self.exits.metrics.clone(),
            broken: self.exits.broken.clone(),
            runner: self.exits.runner.clone(),
        });
        let actor = StageActor { stage, exits };
        self.runner.put_first(context.into_future(actor));
        if S::KIND == StageKind::Record {
            self.exits.end = Some(address.clone());
        }
        self.exits.next = Some(address);
        self
    }

    /// The chain, once every stage is in it; none if none is.
    pub fn build(self) -> Option<Chain> {
        self.exits.next.as_ref()?;
        self.runner.run();
        Some(Chain {
            entry: self.exits,
            runner: self.runner,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::task::Poll;

    use bytes::Bytes;
    use http::{HeaderMap, Method};
    use proto::id::RequestId;
    use proto::seal::DigestKey;
    use tokio::sync::oneshot;

    use super::*;
    use crate::reply::{ReplyReceiver, seat};
    use crate::request::Request;
    use crate::snapshot::Snapshot;

    /// A stage whose decision is a closure; `AT` is its place among [`StageKind::ALL`].
    struct Does<const AT: usize, F>(F);

    impl<const AT: usize, F: FnMut(&mut Exchange) -> Next + Unpin + 'static> Stage for Does<AT, F> {
        const KIND: StageKind = StageKind::ALL[AT];

        fn decide(&mut self, exchange: &mut Exchange) -> Next {
            self.0(exchange)
        }
    }

    fn exchange() -> (Box<Exchange>, ReplyReceiver) {
        let (sender, receiver) = seat();
        let peer = ([127, 0, 0, 1], 1).into();
        let target = Bytes::from_static(b"/api/demo/");
        let request = Request::new(Method::GET, target, HeaderMap::new(), peer);
        let digest_key = DigestKey::from_bytes([7; 32]);
        let snapshot = Snapshot::new(Default::default(), Default::default(), digest_key);
        let exchange = Exchange {
            reply: Some(sender),
            ..Exchange::arrived(RequestId::new(), None, snapshot.into(), request)
        };
        (Box::new(exchange), receiver)
    }

    fn refuses(_: &mut Exchange) -> Next {
        EarlyEnd::new(Code::RateLimited, "test").into()
    }

    /// The status of the reply, if it is there.
    fn status(receiver: ReplyReceiver) -> Option<u16> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match pin!(receiver).poll(&mut cx) {
            Poll::Ready(reply) => Some(reply.expect("a reply").into_response().status().as_u16()),
            Poll::Pending => None,
        }
    }

    fn chain_of<const AT: usize>(
        capacity: usize,
        metrics: Metrics,
        first: impl FnMut(&mut Exchange) -> Next + Unpin + 'static,
    ) -> Rc<Chain> {
        let builder = ChainBuilder::new(capacity, metrics)
            .before(Does::<9, _>(|_: &mut Exchange| Next::Continue))
            .before(Does::<{ StageKind::Record as usize }, _>(
                |_: &mut Exchange| Next::Continue,
            ));
        Rc::new(builder.before(Does::<AT, _>(first)).build().unwrap())
    }

    #[test]
    fn a_request_passes_its_stages_at_once() {
        let chain = chain_of::<0>(16, Metrics::default(), refuses);
        let (exchange, receiver) = exchange();
        assert!(chain.submit(exchange).is_ok());
        assert_eq!(status(receiver), Some(429));
    }

    #[test]
    fn a_panic_costs_one_request_and_breaks_the_chain() {
        let chain = chain_of::<0>(16, Metrics::default(), |_| panic!("as the test wants"));
        let (exchange, receiver) = exchange();
        assert!(chain.submit(exchange).is_ok());
        assert_eq!(status(receiver), Some(500));
        assert!(chain.is_broken());
    }

    #[test]
    fn a_full_mailbox_is_overloaded_and_what_it_holds_is_served() {
        // While a stage runs its own mailbox is not emptied.
        let chain = Rc::new(RefCell::new(None::<Rc<Chain>>));
        let waiting = Rc::new(RefCell::new(Vec::new()));
        let (own, served) = (chain.clone(), waiting.clone());
        let mut full = 0;
        let (tell, told) = std::sync::mpsc::channel();
        let metrics = Metrics::default();
        let first = move |exchange: &mut Exchange| {
            let chain = own.borrow_mut().take();
            for _ in 0..4 {
                let Some(chain) = &chain else { break };
                let (more, receiver) = super::tests::exchange();
                match chain.submit(more) {
                    Ok(()) => served.borrow_mut().push(receiver),
                    Err((_, end)) => {
                        assert_eq!(end.code, Code::Overloaded);
                        full += 1;
                        tell.send(full).unwrap();
                    }
                }
            }
            refuses(exchange)
        };
        let built = chain_of::<0>(2, metrics.clone(), first);
        chain.replace(Some(built.clone()));
        let (exchange, receiver) = exchange();
        assert!(built.submit(exchange).is_ok());
        let refused = told.try_iter().last().unwrap_or(0);
        assert!(refused > 0 && !waiting.borrow().is_empty());
        for receiver in waiting.take().into_iter().chain([receiver]) {
            assert_eq!(status(receiver), Some(429));
        }
        let text = metrics
            .families(&Default::default())
            .text(proto::exposition::text::Form::Prometheus);
        let none = "requestrocket_mailbox_full_total{stage=\"receive\"} 0";
        assert!(!text.contains(none), "{text}");
    }

    #[actix_rt::test]
    async fn a_stage_that_waits_holds_up_nobody() {
        let (go, gone) = oneshot::channel::<()>();
        let mut gone = Some(gone);
        let chain = chain_of::<0>(16, Metrics::default(), move |exchange| {
            let Some(gone) = gone.take() else {
                return refuses(exchange);
            };
            Next::Wait(Box::new(move |exchange| {
                Box::pin(async move {
                    let _ = gone.await;
                    (
                        exchange,
                        Some(Box::new(EarlyEnd::new(Code::UpstreamTimeout, "test"))),
                    )
                })
            }))
        });
        let (first, waits) = exchange();
        assert!(chain.submit(first).is_ok());
        let (second, passes) = exchange();
        assert!(chain.submit(second).is_ok());
        assert_eq!(status(passes), Some(429));
        // A chain that is replaced meanwhile still serves who waits.
        drop(chain);
        go.send(()).unwrap();
        let reply = waits.await.expect("a reply").into_response();
        assert_eq!(reply.status().as_u16(), 504);
    }
}
