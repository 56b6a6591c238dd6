//! The mailbox of a stage's actor: a bounded queue within one thread.
//!
//! It stands in the place of actix's own, which is made for actors of several threads: there a
//! message takes two allocations and about ten atomic operations, more than most stages take to
//! decide, and it must be `Send`, which an exchange is not.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

struct Queue<M> {
    messages: RefCell<VecDeque<M>>,
    capacity: usize,
    /// Nobody takes messages out any more.
    closed: Cell<bool>,
    /// Wakes the actor.
    actor: RefCell<Option<Waker>>,
}

/// The actor's end: gives the messages in the order in which they came, and never ends.
pub struct Mailbox<M>(Rc<Queue<M>>);

/// The senders' end.
pub struct Address<M>(Rc<Queue<M>>);

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are as many as there may be.
    Full,
    /// The actor is gone.
    Closed,
}

/// A mailbox for at most so many messages.
pub fn bounded<M>(capacity: usize) -> (Address<M>, Mailbox<M>) {
    let queue = Rc::new(Queue {
        messages: RefCell::default(),
        capacity,
        closed: Cell::new(false),
        actor: RefCell::new(None),
    });
    (Address(queue.clone()), Mailbox(queue))
}

impl<M> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> Address<M> {
    /// Puts a message in.
    ///
    /// # Errors
    /// The message, and why it was not taken.
    pub fn try_send(&self, message: M) -> Result<(), (M, Refused)> {
        let queue = &self.0;
        if queue.closed.get() {
            return Err((message, Refused::Closed));
        }
        let mut messages = queue.messages.borrow_mut();
        if messages.len() >= queue.capacity {
            return Err((message, Refused::Full));
        }
        messages.push_back(message);
        drop(messages);
        if let Some(actor) = &*queue.actor.borrow() {
            actor.wake_by_ref();
        }
        Ok(())
    }
}

impl<M> Stream for Mailbox<M> {
    type Item = M;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<M>> {
        let queue = &self.0;
        if let Some(message) = queue.messages.borrow_mut().pop_front() {
            return Poll::Ready(Some(message));
        }
        let mut actor = queue.actor.borrow_mut();
        let is_known = |known: &Waker| known.will_wake(cx.waker());
        if !actor.as_ref().is_some_and(is_known) {
            *actor = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl<M> Drop for Mailbox<M> {
    fn drop(&mut self) {
        self.0.closed.set(true);
        // Not within the borrow: what they drop may send to this mailbox.
        let lost = self.0.messages.take();
        drop(lost);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn taken<M>(mailbox: &mut Mailbox<M>, woken: &Arc<Woken>) -> Option<M> {
        let waker = Waker::from(woken.clone());
        match Pin::new(mailbox).poll_next(&mut Context::from_waker(&waker)) {
            Poll::Ready(message) => Some(message.expect("a mailbox never ends")),
            Poll::Pending => None,
        }
    }

    #[test]
    fn messages_come_in_their_order_and_wake_who_waits_for_them() {
        let woken = Arc::<Woken>::default();
        let (address, mut mailbox) = bounded(2);
        assert_eq!(address.try_send(1), Ok(()));
        assert_eq!(taken(&mut mailbox, &woken), Some(1));
        assert_eq!(taken(&mut mailbox, &woken), None);
        assert_eq!(woken.0.load(Relaxed), 0, "nobody waited");
        assert_eq!(address.clone().try_send(2), Ok(()));
        assert_eq!(address.try_send(3), Ok(()));
        assert!(woken.0.load(Relaxed) > 0);
        assert_eq!(taken(&mut mailbox, &woken), Some(2));
        assert_eq!(taken(&mut mailbox, &woken), Some(3));
    }

    #[test]
    fn it_holds_no_more_than_it_may_and_nothing_once_its_actor_is_gone() {
        let woken = Arc::<Woken>::default();
        let (address, mut mailbox) = bounded(2);
        let message = || Rc::new(());
        for _ in 0..2 {
            assert!(address.try_send(message()).is_ok());
        }
        let kept = message();
        let (back, why) = address.try_send(kept.clone()).unwrap_err();
        assert!(Rc::ptr_eq(&back, &kept) && why == Refused::Full);
        assert!(taken(&mut mailbox, &woken).is_some());
        assert!(address.try_send(back).is_ok());
        drop(mailbox);
        assert_eq!(Rc::strong_count(&kept), 1, "what it held is gone with it");
        let (_, why) = address.try_send(kept).unwrap_err();
        assert_eq!(why, Refused::Closed);
    }
}
