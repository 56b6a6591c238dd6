//! Runs the actors of a worker's chain without tasks of the runtime.
//!
//! Whoever has put a message into a mailbox of the chain runs the chain until no mailbox holds one.
//! So a request passes its stages within one poll of its caller's connection, with what it needs
//! still in the processor's cache, and is on its way to the target before the next request of a
//! burst is looked at. With a task for each actor the runtime goes through a burst stage by stage:
//! all of it is late, and each stage finds its exchanges gone from the cache.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Wake, Waker};

/// The actors of one chain.
#[derive(Default)]
pub struct Runner {
    /// In the order in which a request meets them.
    actors: RefCell<Vec<Running>>,
    running: Cell<bool>,
}

struct Running {
    /// The actor with its mailbox; none when it has ended.
    context: Option<Pin<Box<dyn Future<Output = ()>>>>,
    called: Arc<Called>,
    waker: Waker,
}

/// Whether a message has come since the actor was last run.
struct Called(AtomicBool);

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

impl Running {
    fn new(context: impl Future<Output = ()> + 'static) -> Self {
        let called = Arc::new(Called(AtomicBool::new(true)));
        Self {
            context: Some(Box::pin(context)),
            waker: called.clone().into(),
            called,
        }
    }

    /// Lets the actor empty its mailbox; whether there may have been something in it.
    fn run(&mut self) -> bool {
        // Everything is one thread's: no read-modify-write is needed.
        if !self.called.0.load(Relaxed) {
            return false;
        }
        self.called.0.store(false, Relaxed);
        let Some(context) = &mut self.context else {
            return false;
        };
        let mut cx = Context::from_waker(&self.waker);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            context.as_mut().poll(&mut cx).is_ready()
        }));
        if ended.unwrap_or(true) {
            // Its mailbox closes: who sends to it next finds the chain broken.
            self.context = None;
        }
        true
    }
}

impl Runner {
    /// Takes an actor in, which hands on to those that are there.
    pub fn put_first(&self, context: impl Future<Output = ()> + 'static) {
        self.actors.borrow_mut().insert(0, Running::new(context));
    }

    /// Runs every actor that has messages until none has. Does nothing when called by one of the
    /// actors: what they hand on is run already.
    pub fn run(&self) {
        if self.running.replace(true) {
            return;
        }
        let mut actors = self.actors.borrow_mut();
        // One pass is as far as a request can go, for it only goes forward; another finds nothing.
        while actors
            .iter_mut()
            .fold(false, |any, actor| actor.run() | any)
        {}
        drop(actors);
        self.running.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;

    use super::*;

    /// An actor that counts its runs and calls the next; the last may panic.
    fn actor(runs: &Rc<RefCell<Vec<usize>>>, at: usize, next: Option<Waker>) -> Running {
        let runs = runs.clone();
        Running::new(poll_fn(move |_| {
            runs.borrow_mut().push(at);
            assert!(at != 9, "this one fails");
            if let Some(next) = &next {
                next.wake_by_ref();
            }
            Poll::<()>::Pending
        }))
    }

    #[test]
    fn a_message_goes_through_the_chain_in_one_run() {
        let runs = Rc::default();
        let last = actor(&runs, 2, None);
        let middle = actor(&runs, 1, Some(last.waker.clone()));
        let first = actor(&runs, 0, Some(middle.waker.clone()));
        let call = first.waker.clone();
        let runner = Runner::default();
        *runner.actors.borrow_mut() = vec![first, middle, last];
        runner.run();
        assert_eq!(*runs.borrow(), [0, 1, 2]);
        runner.run();
        assert_eq!(runs.borrow().len(), 3, "nobody is run without a message");
        call.wake_by_ref();
        runner.run();
        assert_eq!(*runs.borrow(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn an_actor_that_panics_ends_alone() {
        let runs = Rc::default();
        let (failing, other) = (actor(&runs, 9, None), actor(&runs, 1, None));
        let calls = [failing.waker.clone(), other.waker.clone()];
        let runner = Runner::default();
        *runner.actors.borrow_mut() = vec![failing, other];
        runner.run();
        calls.iter().for_each(Waker::wake_by_ref);
        runner.run();
        assert_eq!(*runs.borrow(), [9, 1, 1]);
    }
}
