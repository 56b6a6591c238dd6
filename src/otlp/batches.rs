//! The exports that are made of a queue: what waits is gathered into batches, and each is sent a
//! few times before it is given up.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Outage, Signal, Transport};

/// How often a batch is sent before it is given up, and the pause after the first failure.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is looked what has come for a batch.
const LOOK: Duration = Duration::from_millis(10);

/// Makes exports of batches, and counts what became of them.
pub trait Batches {
    /// What a batch is of.
    type Item;

    /// The export of a batch, encoded; it may take the items out of it.
    fn export(&mut self, batch: &mut Vec<Self::Item>) -> Bytes;

    /// The collector took so many items; `batch` is what [`Batches::export`] left of them, and
    /// empty where it took a part and did not say which.
    fn taken(&self, count: u64, batch: &[Self::Item]);

    /// The collector did not take it, this time.
    fn failed(&self);

    /// So many items are lost.
    fn dropped(&self, count: u64);
}

/// How batches are made.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    /// Most items in one.
    pub most: usize,
    /// How long they are waited for.
    pub longest: Duration,
}

/// Sends what comes out of a queue, until it ends or `stopping` says to stop and what is left is
/// sent.
pub async fn send<B: Batches>(
    signal: Signal,
    transport: Transport,
    mut batches: B,
    gather: Gather,
    mut queue: Receiver<B::Item>,
    mut stopping: oneshot::Receiver<()>,
) {
    let mut outage = Outage::none(signal);
    let mut waiting = Vec::with_capacity(gather.most);
    let mut stopped = false;
    loop {
        let received = tokio::select! {
            count = queue.recv_many(&mut waiting, gather.most) => count,
            _ = &mut stopping, if !stopped => {
                // What is in the queue still comes out of it, then it ends.
                stopped = true;
                queue.close();
                continue;
            }
        };
        if received == 0 {
            return;
        }
        if !stopped {
            // A little later there are more, and one batch is sent for them.
            tokio::select! {
                () = filled(&mut queue, &mut waiting, gather) => {}
                _ = &mut stopping => {
                    stopped = true;
                    queue.close();
                }
            }
        }
        let tries = if stopped { 1 } else { TRIES };
        let count = waiting.len() as u64;
        let export = batches.export(&mut waiting);
        let refused = offer(&transport, export, tries, &mut outage, || batches.failed()).await;
        // A request has several spans: of no more requests than that a span was refused.
        match refused.min(count) {
            0 => batches.taken(count, &waiting),
            lost => {
                batches.dropped(lost);
                batches.taken(count - lost, &[]);
            }
        }
        waiting.clear();
    }
}

/// Sends an export until it is taken, for so many times; how much of it was not in the end.
async fn offer(
    transport: &Transport,
    export: Bytes,
    tries: u32,
    outage: &mut Outage,
    failed: impl Fn(),
) -> u64 {
    let mut pause = PAUSE;
    for left in (0..tries).rev() {
        match transport.export(export.clone()).await {
            Ok(()) => {
                outage.over();
                return 0;
            }
            Err(missed) => {
                failed();
                outage.met(&missed);
                if !missed.again {
                    return missed.part.unwrap_or(u64::MAX);
                }
                if left > 0 {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
    }
    u64::MAX
}

/// Takes what comes until a batch is full, the longest time has passed or the queue ends.
///
/// It looks now and then instead of waiting for the queue: who waits there is woken by each
/// request, and a switch of threads cost a request more than the writing of its spans.
async fn filled<T>(queue: &mut Receiver<T>, waiting: &mut Vec<T>, gather: Gather) {
    let until = Instant::now() + gather.longest;
    loop {
        while waiting.len() < gather.most {
            match queue.try_recv() {
                Ok(one) => waiting.push(one),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if waiting.len() >= gather.most || left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_is_sent_when_it_is_full_old_or_the_last() {
        let gather = |longest| Gather { most: 3, longest };
        let (sender, mut queue) = tokio::sync::mpsc::channel(9);
        let mut waiting = vec![0];
        for n in 1..4 {
            sender.try_send(n).unwrap();
        }
        // Would last for ever if it waited for what is not needed.
        filled(
            &mut queue,
            &mut waiting,
            gather(Duration::from_secs(86_400)),
        )
        .await;
        assert_eq!(waiting, [0, 1, 2]);
        waiting.clear();
        filled(&mut queue, &mut waiting, gather(Duration::from_millis(1))).await;
        assert_eq!(waiting, [3]);
        drop(sender);
        filled(
            &mut queue,
            &mut waiting,
            gather(Duration::from_secs(86_400)),
        )
        .await;
        assert_eq!(waiting, [3]);
    }
}
