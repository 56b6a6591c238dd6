//! Where the handler of a request waits for its reply, and works for it meanwhile.
//!
//! A stage that has to wait leaves its work here, and the handler polls it: what a request waits
//! for wakes the task of its caller's connection and no other, which reads, sends and answers by
//! itself. A task of its own for each wait would be two more hand-overs per request, and a burst
//! would be served breadth first, all of it late.
//!
//! When the handler is dropped because its caller left, the work goes on as a task of its own, so
//! that it can end as its stage wants to: it learns of it by [`ReplySender::closed`]. Its request
//! is in flight until then, and a listener that drains waits for it. A worker that ends with some
//! in hand drops its tasks: each is run a last time then, so that its request is recorded.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::answer::Reply;

/// A stage's work that waits for something. It hands its exchange on by itself.
pub type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Work without a handler.
struct Orphan(Option<Work>);

impl Future for Orphan {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(work) = &mut self.0 else {
            return Poll::Ready(());
        };
        let ended = work.as_mut().poll(cx);
        if ended.is_ready() {
            self.0 = None;
        }
        ended
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        if let Some(mut work) = self.0.take() {
            // What still waits then is lost.
            let _ = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

struct Seat<R> {
    reply: Cell<Option<R>>,
    work: Cell<Option<Work>>,
    /// The handler is gone.
    left: Cell<bool>,
    /// The exchange is gone.
    lost: Cell<bool>,
    /// Wakes the handler, where it waits for somebody else's doing.
    waker: RefCell<Option<Waker>>,
}

impl<R> Seat<R> {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
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
        work: Cell::new(None),
        left: Cell::new(false),
        lost: Cell::new(false),
        waker: RefCell::new(None),
    });
    (ReplySender(seat.clone()), ReplyReceiver(seat))
}

impl<R> ReplySender<R> {
    /// Gives the reply; drops it when nobody waits any more.
    pub fn send(self, reply: R) {
        if !self.0.left.get() {
            self.0.reply.set(Some(reply));
        }
    }

    /// Ends when nobody waits any more.
    ///
    /// No waker is kept: whoever polls this is [`Work`], which is polled anew when its handler has
    /// left.
    pub fn closed(&mut self) -> impl Future<Output = ()> {
        std::future::poll_fn(|_| match self.0.left.get() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
    }

    /// A way to leave work to the handler.
    pub fn desk(&self) -> Desk<R> {
        Desk(self.0.clone())
    }
}

impl<R> Drop for ReplySender<R> {
    fn drop(&mut self) {
        self.0.lost.set(true);
        self.0.wake();
    }
}

/// Takes work for the handler.
pub struct Desk<R = Reply>(Rc<Seat<R>>);

impl<R> Desk<R> {
    /// Leaves work to the handler, or to a task of its own when the handler has left.
    pub fn leave(self, work: Work) {
        if self.0.left.get() {
            actix_rt::spawn(Orphan(Some(work)));
        } else {
            self.0.work.set(Some(work));
            self.0.wake();
        }
    }
}

impl<R> Future for ReplyReceiver<R> {
    /// The reply; none when the exchange was lost.
    type Output = Option<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let seat = &self.0;
        loop {
            if let Some(reply) = seat.reply.take() {
                return Poll::Ready(Some(reply));
            }
            let Some(mut work) = seat.work.take() else {
                if seat.lost.get() {
                    return Poll::Ready(None);
                }
                seat.waker.replace(Some(cx.waker().clone()));
                return Poll::Pending;
            };
            if work.as_mut().poll(cx).is_pending() {
                seat.work.set(Some(work));
                return Poll::Pending;
            }
        }
    }
}

impl<R> Drop for ReplyReceiver<R> {
    fn drop(&mut self) {
        self.0.left.set(true);
        drop(self.0.reply.take());
        if let Some(work) = self.0.work.take() {
            actix_rt::spawn(Orphan(Some(work)));
        }
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
    async fn the_handler_works_for_its_own_reply() {
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
