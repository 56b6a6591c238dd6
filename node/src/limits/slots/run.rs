//! The shell around the takers: their map, the store, and a timer.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use proto::store::{Compare, Op, StoreError, Txn, TxnOutcome};
use proto::wire::WireError;
use tracing::{error, warn};

use super::SlotShared;
use super::relayed::Writing;
use super::state::SlotState;
use super::taker::{SlotWrite, Taker};
use crate::limits::block::Opener;
use crate::limits::ramp::Ramp;
use crate::limits::revision_clock::RevisionClock;

/// Calls to the store at a time.
const CALLS_MAX: usize = 16;
/// Slots are renewed every few seconds, each key by itself: in this time all are that have waited.
const EVEN_S: u64 = 5;
/// How long a leaving process tries to give back.
const LEAVE: Duration = Duration::from_secs(1);
/// Longest sleep; a timer further away is looked at again then.
const SLEEP_MAX: Duration = Duration::from_secs(3_600);
const WENT_BACK: &str = "etcd went back: calls in flight on other nodes are not known for 10 s";

/// Serves the slots until they are stopped.
pub async fn run(shared: Arc<SlotShared>, writing: Writing, me: Opener) {
    let clock = Arc::clone(&shared.clock);
    let mut takers: HashMap<String, Taker> = HashMap::new();
    let mut due: BTreeSet<(u64, String)> = BTreeSet::new();
    let mut proofs = RevisionClock::default();
    let mut ramp = Ramp::new(EVEN_S);
    let mut calls = FuturesUnordered::new();
    let mut leave_by_ns = None;
    loop {
        let now_ns = clock.boot_ns();
        let leaving = shared.is_stopping();
        hear_of_return(&shared, &mut proofs);
        for slots in shared.take_asks() {
            let key = slots.store_key.clone();
            let taker = takers
                .entry(key.clone())
                .or_insert_with(|| Taker::new(slots, me, now_ns));
            due.remove(&(taker.look_ns(), key.clone()));
            due.insert((now_ns, key));
        }
        if leaving && leave_by_ns.is_none() {
            leave_by_ns = Some(now_ns.saturating_add(crate::limits::nanos(LEAVE)));
            due = takers.keys().map(|key| (now_ns, key.clone())).collect();
        }
        let room = CALLS_MAX.saturating_sub(calls.len());
        let instant = Instant { now_ns, leaving };
        for (key, write) in looked(&mut takers, &mut due, (&proofs, &mut ramp), instant, room) {
            let (writing, asking) = (&writing, proofs.asking());
            calls.push(async move {
                let outcome = send(writing, &key, write).await;
                (key, asking, outcome)
            });
        }
        if let Some(by_ns) = leave_by_ns
            && (calls.is_empty() || now_ns >= by_ns)
        {
            return;
        }
        let due_ns = due.first().map_or(u64::MAX, |(at_ns, _)| *at_ns);
        let due_ns = due_ns.min(leave_by_ns.unwrap_or(u64::MAX));
        let sleep = Duration::from_nanos(due_ns.saturating_sub(clock.boot_ns())).min(SLEEP_MAX);
        tokio::select! {
            Some((key, asking, outcome)) = calls.next(), if !calls.is_empty() => {
                let now_ns = clock.boot_ns();
                match &outcome {
                    Ok(_) => ramp.answered(now_ns),
                    Err(_) => ramp.lost(now_ns),
                }
                if let Some(revision) = outcome.as_ref().ok().map(TxnOutcome::revision)
                    && proofs.answered(asking, now_ns, revision)
                {
                    warn!("{WENT_BACK}");
                }
                if let Some(taker) = takers.get_mut(&key) {
                    due.remove(&(taker.look_ns(), key.clone()));
                    answer(taker, outcome, now_ns);
                    reschedule(&mut takers, &mut due, key);
                }
            }
            () = shared.woken.notified() => {}
            () = tokio::time::sleep(sleep), if calls.len() < CALLS_MAX => {}
        }
    }
}

/// What it is when keys are looked at.
#[derive(Clone, Copy)]
struct Instant {
    now_ns: u64,
    leaving: bool,
}

/// Looks at the keys that are due until so many are to be written.
fn looked(
    takers: &mut HashMap<String, Taker>,
    due: &mut BTreeSet<(u64, String)>,
    (proofs, ramp): (&RevisionClock, &mut Ramp),
    Instant { now_ns, leaving }: Instant,
    room: usize,
) -> Vec<(String, SlotWrite)> {
    let mut writes = Vec::new();
    while writes.len() < room {
        let Some((at_ns, key)) = due.first().cloned().filter(|(at_ns, _)| *at_ns <= now_ns) else {
            break;
        };
        due.remove(&(at_ns, key.clone()));
        let Some(taker) = takers.get_mut(&key) else {
            continue;
        };
        let ready_ns = match leaving {
            true => now_ns,
            false => ramp.ready_ns(now_ns),
        };
        if let Some(write) = taker.look(proofs, (now_ns, ready_ns), leaving) {
            ramp.called(now_ns);
            writes.push((key.clone(), write));
        } else if ready_ns > now_ns && taker.look_ns() == ready_ns {
            ramp.hold_back(now_ns);
        }
        reschedule(takers, due, key);
    }
    writes
}

/// Takes what others have found.
fn hear_of_return(shared: &SlotShared, proofs: &mut RevisionClock) {
    let returned_ns = shared.returned_ns.load(Ordering::Relaxed);
    if returned_ns > 0 && proofs.told_of_return(returned_ns) {
        warn!("{WENT_BACK}");
    }
}

fn reschedule(takers: &mut HashMap<String, Taker>, due: &mut BTreeSet<(u64, String)>, key: String) {
    let Some(taker) = takers.get(&key) else {
        return;
    };
    if taker.is_done() {
        takers.remove(&key);
    } else if taker.look_ns() != u64::MAX {
        due.insert((taker.look_ns(), key));
    }
}

pub(super) fn answer(taker: &mut Taker, outcome: Result<TxnOutcome, StoreError>, now_ns: u64) {
    match outcome {
        Ok(TxnOutcome::Committed(revision)) => {
            taker.committed(revision, now_ns);
        }
        Ok(TxnOutcome::Conflict(seen)) => {
            let found = seen.value.into_iter().next().flatten();
            let state = found.map(|kv| SlotState::decode(&kv.value).map(|s| (s, kv.mod_revision)));
            match state.transpose() {
                Ok(state) => taker.conflicted(state, now_ns),
                Err(error) => {
                    let key = taker.key();
                    error!(%key, "slot state {key} is not touched, its meter is closed: {error}");
                    taker.failed(now_ns);
                }
            }
        }
        Err(error) => {
            let key = taker.key();
            warn!(%key, "a write of slots failed: {error}");
            taker.failed(now_ns);
        }
    }
}

async fn send(writing: &Writing, key: &str, write: SlotWrite) -> Result<TxnOutcome, StoreError> {
    match txn(key, write) {
        Ok(txn) => writing.write(txn).await,
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
    }
}

/// The compare-and-swap that makes a write so.
pub(super) fn txn(key: &str, write: SlotWrite) -> Result<Txn, WireError> {
    let compare = match write.expected {
        Some(revision) => Compare::ModRevision(key.to_owned(), revision),
        None => Compare::Absent(key.to_owned()),
    };
    let op = match write.next {
        None => Op::Delete(key.to_owned()),
        Some(state) => Op::put(key.to_owned(), state.encode()?),
    };
    Ok(Txn {
        compares: vec![compare],
        ops: vec![op],
        or_read: vec![key.to_owned()],
    })
}
