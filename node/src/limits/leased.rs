//! Following keys that live under leases, raises and pauses: a list, then the changes.

use std::sync::Arc;

use proto::keys;
use proto::store::backoff::backoff;
use proto::store::load;
use proto::store::{Change, Event, KeyValue, Store, StoreError};

use super::pauses::{self, Pauses};
use super::raises::Raises;

/// What is told of each key and its value; no value: it is gone.
pub(super) struct Leased {
    pub raises: Arc<Raises>,
    pub pauses: Arc<Pauses>,
}

impl Leased {
    /// Follows both. After an error it lists again, later each time; never ends by itself.
    pub(super) async fn follow(self, store: Arc<dyn Store>) {
        let mut failures = 0u32;
        loop {
            let mut listed = false;
            if let Err(error) = self.round(&*store, &mut listed).await {
                tracing::debug!("raises and pauses are followed again: {error}");
            }
            failures = if listed {
                0
            } else {
                failures.saturating_add(1)
            };
            tokio::time::sleep(backoff(failures)).await;
        }
    }

    /// One list of each and the watches after them, until an error; says whether it got so far.
    async fn round(&self, store: &dyn Store, listed: &mut bool) -> Result<(), StoreError> {
        let raise = |key: &str, item: Option<&KeyValue>| {
            self.raises.heard(key, item.map(|item| &item.value[..]));
        };
        let pause = |key: &str, item: Option<&KeyValue>| self.pauses.heard(key, item);
        let at = load::list(store, keys::RAISES, None, |item| {
            raise(&item.key, Some(&item));
        })
        .await?;
        let mut raises = store.watch(keys::RAISES, at.next()).await?;
        let at = load::list(store, pauses::PREFIX, None, |item| {
            pause(&item.key, Some(&item));
        })
        .await?;
        let mut pauses = store.watch(pauses::PREFIX, at.next()).await?;
        *listed = true;
        loop {
            tokio::select! {
                change = raises.next() => tell(change?, raise),
                change = pauses.next() => tell(change?, pause),
            }
        }
    }
}

fn tell(change: Change, each: impl Fn(&str, Option<&KeyValue>)) {
    for event in change.events {
        match event {
            Event::Put(item) => each(&item.key, Some(&item)),
            Event::Delete { key, .. } => each(&key, None),
        }
    }
}
