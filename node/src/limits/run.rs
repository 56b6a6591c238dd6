//! The shell around the broker: the only file here that has the store, the links and a timer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::store::{Store, StoreError, Txn, TxnOutcome};
use tokio::sync::mpsc;

use super::block::Opener;
use super::broker::Broker;
use super::clock::Moment;
use super::exchange::TokenBatch;
use super::slots::relayed::SlotPeers;
use super::wall_clocks::ClockSample;

/// How long a leaving process tries to settle.
const LEAVE: Duration = Duration::from_secs(1);
/// Longest sleep; a timer further away is looked at again then.
const SLEEP_MAX: Duration = Duration::from_secs(3_600);
/// Sayings of peers that are taken before the next turn.
const EVENTS_PER_TURN: usize = 64;

/// What happens on the links to peers.
#[derive(Debug)]
pub enum PeerEvent {
    /// A peer can be reached from now on.
    Up(Opener),
    /// A peer cannot be reached any more; what it was sent may be lost.
    Down(Opener),
    /// A peer says something.
    Said(Opener, TokenBatch),
    /// A peer has told what its wall clock shows.
    Clock(Opener, ClockSample),
}

/// The way to peers and from them.
pub struct Links {
    /// Sends a batch; what cannot be sent at once is lost.
    pub send: Box<dyn Fn(Opener, TokenBatch) + Send + Sync>,
    /// What happens.
    pub events: mpsc::Receiver<PeerEvent>,
    /// Peers that write slots for a node that does not reach the store.
    pub slots: Arc<dyn SlotPeers>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

/// Serves the meters until they are stopped.
pub async fn run(
    mut broker: Broker,
    store: Arc<dyn Store>,
    timeout: Duration,
    mut links: Option<Links>,
) {
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
        let batches = broker.take_batches();
        if let Some(links) = &links {
            batches
                .into_iter()
                .for_each(|(to, batch)| (links.send)(to, batch));
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
            Some(event) = next(&mut links) => {
                take(&mut broker, event, clock.boot_ns());
                // All that has come already is one turn's work.
                let events = links.iter_mut().flat_map(|links| {
                    std::iter::from_fn(move || links.events.try_recv().ok()).take(EVENTS_PER_TURN)
                });
                events.for_each(|event| take(&mut broker, event, clock.boot_ns()));
            }
            () = shared.woken() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}

async fn next(links: &mut Option<Links>) -> Option<PeerEvent> {
    match links {
        Some(links) => links.events.recv().await,
        None => None,
    }
}

fn take(broker: &mut Broker, event: PeerEvent, now_ns: u64) {
    match event {
        PeerEvent::Up(peer) => broker.peer_up(peer, now_ns),
        PeerEvent::Down(peer) => broker.peer_down(peer, now_ns),
        PeerEvent::Said(peer, batch) => broker.peer_said(peer, batch, now_ns),
        PeerEvent::Clock(peer, sample) => broker.peer_clock(peer, sample),
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
