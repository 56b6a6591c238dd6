//! Where the handler of a request waits for its reply.
//!
//! A stage that has to wait leaves its work here, which becomes a task of its own. That makes the
//! writes of a busy worker come together: the runtime serves what is ready in turn, so all requests
//! that have come are decided before the first of them is sent, and all answers that have come are
//! made before the first of them is written. A write to a peer on the same machine wakes it, and
//! where it sleeps that takes longer than the write itself (an interrupt to its processor; on a
//! virtual machine a way out of the guest); so a peer is woken once for many. The task of a
//! caller's connection is the wrong place for the work: each look at it costs a look at all that
//! actix-web does for a connection.
//!
//! When the handler is dropped because its caller left, the work goes on, so that it can end as its
//! stage wants to: it learns of it by [`ReplySender::closed`]. Its request is in flight until then,
//! and a listener that drains waits for it. A worker that ends with some in hand drops its tasks:
//! each is run a last time then, so that its request is recorded.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::answer::Reply;

/// A stage's work that waits for something. It hands its exchange on by itself.
pub type Work = Pin<Box<dyn Future<Output = ()>>>;

/// The task of [`Work`].
struct Working<R> {
    work: Option<Work>,
    seat: Rc<Seat<R>>,
}

impl<R> Future for Working<R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Work that panics is dropped with it: to be run a last time would end the process.
        let Some(mut work) = self.work.take() else {
            return Poll::Ready(());
        };
        let ended = work.as_mut().poll(cx);
        if ended.is_pending() {
            self.work = Some(work);
        }
        ended
    }
}

impl<R> Drop for Working<R> {
    fn drop(&mut self) {
        if let Some(mut work) = self.work.take() {
            // Its worker ends, and the handler with it. What still waits then is lost.
            self.seat.left.set(true);
            let _ = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

struct Seat<R> {
    reply: Cell<Option<R>>,
    /// The handler is gone.
    left: Cell<bool>,
    /// The exchange is gone.
    lost: Cell<bool>,
    /// Wakes the handler.
    handler: RefCell<Option<Waker>>,
    /// Wakes whoever waits for the handler to leave.
    work: RefCell<Option<Waker>>,
}

/// Has the task that polls now woken by it.
fn register(waker: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let mut waker = waker.borrow_mut();
    if !waker
        .as_ref()
        .is_some_and(|known| known.will_wake(cx.waker()))
    {
        *waker = Some(cx.waker().clone());
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// The exchange's end: gives the reply.
pub struct ReplySender<R = Reply>(Rc<Seat<R>>);

/// The handler's end: waits for the reply.
pub struct ReplyReceiver<R = Reply>(Rc<Seat<R>>);

/// A place for one reply.
pub fn seat<R>() -> (ReplySender<R>, ReplyReceiver<R>) {
    let seat = Rc::new(Seat {
        reply: Cell::new(None),
        left: Cell::new(false),
        lost: Cell::new(false),
        handler: RefCell::new(None),
        work: RefCell::new(None),
    });
    (ReplySender(seat.clone()), ReplyReceiver(seat))
}

impl<R: 'static> ReplySender<R> {
    /// Gives the reply; drops it when nobody waits any more.
    pub fn send(self, reply: R) {
        if !self.0.left.get() {
            self.0.reply.set(Some(reply));
        }
    }

    /// Ends when nobody waits any more. One at a time may wait for that.
    pub fn closed(&mut self) -> impl Future<Output = ()> {
        std::future::poll_fn(|cx| {
            if self.0.left.get() {
                return Poll::Ready(());
            }
            register(&self.0.work, cx);
            Poll::Pending
        })
    }

    /// A way to leave work.
    pub fn desk(&self) -> Desk<R> {
        Desk(self.0.clone())
    }
}

impl<R> Drop for ReplySender<R> {
    fn drop(&mut self) {
        self.0.lost.set(true);
        wake(&self.0.handler);
    }
}

/// Takes work for a reply.
pub struct Desk<R = Reply>(Rc<Seat<R>>);

impl<R: 'static> Desk<R> {
    /// Has the work done, whether its handler stays or leaves.
    pub fn leave(self, work: Work) {
        actix_rt::spawn(Working {
            work: Some(work),
            seat: self.0,
        });
    }
}

impl<R> Future for ReplyReceiver<R> {
    /// The reply; none when the exchange was lost.
    type Output = Option<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let seat = &self.0;
        let reply = seat.reply.take();
        if reply.is_some() || seat.lost.get() {
            return Poll::Ready(reply);
        }
        register(&seat.handler, cx);
        Poll::Pending
    }
}

impl<R> Drop for ReplyReceiver<R> {
    fn drop(&mut self) {
        self.0.left.set(true);
        drop(self.0.reply.take());
        wake(&self.0.work);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// Work that waits for `begin` or for its caller to leave, and says which it was.
    fn work(
        mut sender: ReplySender<&'static str>,
        begin: oneshot::Receiver<()>,
        ended: Rc<Cell<&'static str>>,
    ) -> Work {
        Box::pin(async move {
            let how = tokio::select! {
                biased;
                () = sender.closed() => "left",
                _ = begin => "answered",
            };
            ended.set(how);
            sender.send(how);
        })
    }

    #[actix_rt::test]
    async fn what_is_ready_is_decided_first_and_sent_then() {
        let said = Rc::new(RefCell::new(Vec::new()));
        let handlers: Vec<_> = (0..3)
            .map(|request| {
                let said = Rc::clone(&said);
                actix_rt::spawn(async move {
                    let (sender, receiver) = seat();
                    said.borrow_mut().push(("decided", request));
                    let sent = Rc::clone(&said);
                    sender.desk().leave(Box::pin(async move {
                        sent.borrow_mut().push(("sent", request));
                        sender.send(());
                    }));
                    receiver.await;
                    said.borrow_mut().push(("answered", request));
                })
            })
            .collect();
        for handler in handlers {
            handler.await.unwrap();
        }
        let all = ["decided", "sent", "answered"];
        let together = all
            .into_iter()
            .flat_map(|what| (0..3).map(move |request| (what, request)));
        assert_eq!(*said.borrow(), together.collect::<Vec<_>>());
    }

    #[actix_rt::test]
    async fn work_that_ends_wakes_the_handler() {
        let (sender, receiver) = seat();
        let (begin, begun) = oneshot::channel();
        let desk = sender.desk();
        desk.leave(work(sender, begun, Rc::default()));
        let mut receiver = std::pin::pin!(receiver);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(receiver.as_mut().poll(&mut cx).is_pending());
        begin.send(()).unwrap();
        assert_eq!(receiver.await, Some("answered"));
    }

    #[actix_rt::test]
    async fn work_that_comes_later_wakes_the_handler() {
        let (sender, receiver) = seat();
        let waiting = actix_rt::spawn(receiver);
        tokio::task::yield_now().await;
        let (begin, begun) = oneshot::channel();
        begin.send(()).unwrap();
        sender.desk().leave(work(sender, begun, Rc::default()));
        assert_eq!(waiting.await.unwrap(), Some("answered"));
    }

    #[actix_rt::test]
    async fn work_goes_on_when_its_handler_leaves_and_learns_of_it() {
        for polled in [false, true] {
            let (sender, receiver) = seat();
            let ended = Rc::<Cell<&str>>::default();
            let (_begin, begun) = oneshot::channel();
            let desk = sender.desk();
            desk.leave(work(sender, begun, ended.clone()));
            let mut receiver = Box::pin(receiver);
            let mut cx = Context::from_waker(Waker::noop());
            assert!(!polled || receiver.as_mut().poll(&mut cx).is_pending());
            drop(receiver);
            while ended.get().is_empty() {
                tokio::task::yield_now().await;
            }
            assert_eq!(ended.get(), "left");
        }
    }

    #[actix_rt::test]
    async fn work_left_after_the_handler_is_done_all_the_same() {
        let (sender, receiver) = seat();
        drop(receiver);
        let ended = Rc::<Cell<&str>>::default();
        let (_begin, begun) = oneshot::channel();
        sender.desk().leave(work(sender, begun, ended.clone()));
        while ended.get().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(ended.get(), "left");
    }

    #[test]
    fn a_worker_that_ends_runs_its_work_a_last_time() {
        let ended = Rc::<Cell<&str>>::default();
        let seen = ended.clone();
        let system = actix_rt::System::new();
        let (_begin, begun) = oneshot::channel();
        let arbiter = async move {
            let (sender, receiver) = seat();
            sender.desk().leave(work(sender, begun, seen));
            // The task of a connection, which nothing but the worker's end ends.
            actix_rt::spawn(receiver);
            tokio::task::yield_now().await;
        };
        system.block_on(arbiter);
        assert_eq!(ended.get(), "");
        drop(system);
        assert_eq!(ended.get(), "left");
    }

    #[actix_rt::test]
    async fn work_that_panics_loses_its_reply_and_nothing_else() {
        for waits in [false, true] {
            let (sender, receiver) = seat();
            let (begin, begun) = oneshot::channel::<()>();
            sender.desk().leave(Box::pin(async move {
                if waits {
                    tokio::task::yield_now().await;
                }
                begun.await.unwrap();
                sender.send(());
            }));
            drop(begin);
            assert_eq!(receiver.await, None);
        }
    }

    #[actix_rt::test]
    async fn a_lost_exchange_is_no_reply() {
        let (sender, receiver) = seat::<()>();
        drop(sender);
        assert_eq!(receiver.await, None);
        let (sender, receiver) = seat::<()>();
        let waiting = actix_rt::spawn(receiver);
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(waiting.await.unwrap(), None);
    }
}
