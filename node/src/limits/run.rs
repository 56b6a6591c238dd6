//! The shell around the broker: the only file here that has the store and a timer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::store::{Store, StoreError, Txn, TxnOutcome};

use super::broker::Broker;
use super::clock::Moment;

/// How long a leaving process tries to settle.
const LEAVE: Duration = Duration::from_secs(1);
/// Longest sleep; a timer further away is looked at again then.
const SLEEP_MAX: Duration = Duration::from_secs(3_600);

/// Serves the meters until they are stopped.
pub async fn run(mut broker: Broker, store: Arc<dyn Store>, timeout: Duration) {
    let shared = Arc::clone(broker.shared());
    let clock = Arc::clone(&shared.clock);
    let mut calls = FuturesUnordered::new();
    let mut leave_by_ns = None;
    loop {
        let now: Moment = clock.moment();
        for call in broker.turn(now) {
            let store = Arc::clone(&store);
            calls.push(async move { (call.id, send(&*store, call.txn, timeout).await) });
        }
        if shared.is_stopping() {
            let by_ns = *leave_by_ns.get_or_insert(now.boot_ns.saturating_add(super::nanos(LEAVE)));
            if broker.is_settled() || now.boot_ns >= by_ns {
                return;
            }
        }
        let due_ns = leave_by_ns.unwrap_or(u64::MAX).min(broker.due_ns());
        let sleep = Duration::from_nanos(due_ns.saturating_sub(clock.boot_ns())).min(SLEEP_MAX);
        tokio::select! {
            Some((id, outcome)) = calls.next(), if !calls.is_empty() => {
                broker.answer(id, outcome, clock.boot_ns());
            }
            () = shared.woken() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

async fn send(store: &dyn Store, txn: Txn, timeout: Duration) -> Result<TxnOutcome, StoreError> {
    match tokio::time::timeout(timeout, store.txn(txn)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(StoreError::OutcomeUnknown(format!(
            "no answer within {timeout:?}"
        ))),
    }
}
