//! Writing together what becomes ready together, where a request has waited for nothing.
//!
//! Requests that are refused at once are answered within the poll that has read them; each would
//! wake its caller for itself ([`crate::reply`] says what that costs, and how it is with requests
//! that wait for a target). So many are decided first, and all are written then.

use std::future::poll_fn;
use std::task::Poll;

/// Lets every task of this worker that is ready go first. Costs one more poll of the task, and
/// nothing else where no other task is ready.
pub fn after_others() -> impl Future<Output = ()> {
    let mut has_waited = false;
    poll_fn(move |cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::after_others;

    #[actix_rt::test]
    async fn what_is_ready_is_decided_first_and_written_then() {
        let said = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..3)
            .map(|request| {
                let said = Rc::clone(&said);
                actix_rt::spawn(async move {
                    said.borrow_mut().push(("decided", request));
                    after_others().await;
                    said.borrow_mut().push(("written", request));
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let decided = (0..3).map(|request| ("decided", request));
        let written = (0..3).map(|request| ("written", request));
        assert_eq!(*said.borrow(), decided.chain(written).collect::<Vec<_>>());
    }

    #[actix_rt::test]
    async fn nobody_waits_where_nothing_else_is_ready() {
        let mut polled = 0;
        let mut waiting = std::pin::pin!(after_others());
        std::future::poll_fn(|cx| {
            polled += 1;
            waiting.as_mut().poll(cx)
        })
        .await;
        assert_eq!(polled, 2);
    }
}
