//! Tells how much of each meter is used: under a lease, while there is anything to tell.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proto::health::Health;
use proto::id::NodeId;
use proto::keys;
use proto::restarts::Restarts;
use proto::store::{Store, StoreError};
use proto::usage::{KeyUsage, METERS_LEFT_OUT_MAX, NodeUsage};
use tokio::sync::oneshot;

use super::entry::Entry;
use crate::limits::Limits;
use crate::limits::remembered::Remembered;
use crate::stages::record::Origin;

/// How often it is written.
const PERIOD: Duration = Duration::from_secs(4);

/// Tells until `stop` is sent or dropped, then takes the entry away.
pub async fn run(
    limits: Arc<Limits>,
    origin: Arc<Origin>,
    store: Arc<dyn Store>,
    health: Health,
    mut stop: oneshot::Receiver<()>,
) {
    let mut teller = Teller {
        entry: Entry::new(store.clone(), keys::usage(NodeId::new())),
        limits,
        origin,
        told: Vec::new(),
        remembered: Remembered::default(),
        store,
    };
    let mut restarts = Restarts::of("usage", health);
    loop {
        tokio::select! {
            _ = restarts.run(teller.keep()) => {}
            _ = &mut stop => return teller.entry.leave().await,
        }
    }
}

struct Teller {
    entry: Entry,
    limits: Arc<Limits>,
    origin: Arc<Origin>,
    told: Vec<KeyUsage>,
    remembered: Remembered,
    store: Arc<dyn Store>,
}

impl Teller {
    /// Reads some of what the store knows of keys that no request has used since the start.
    async fn read(&mut self) -> Result<(), StoreError> {
        for key in self.limits.unread(&self.remembered) {
            let found = self.store.get(&key.store_key).await?.value;
            let bytes = found.as_ref().map(|pair| &*pair.value);
            self.limits.remember(&mut self.remembered, key, bytes);
        }
        Ok(())
    }

    async fn keep(&mut self) {
        loop {
            if let Err(error) = self.tell().await {
                tracing::debug!(%error, "nobody is told of the meters: {error}");
                self.entry.forget();
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn tell(&mut self) -> Result<(), StoreError> {
        self.read().await?;
        let (items, left_out) = self.limits.usage(&self.remembered);
        if items.is_empty() && self.told.is_empty() {
            return Ok(());
        }
        if self.entry.renew().await? {
            self.told = Vec::new();
        }
        if items == self.told {
            return Ok(());
        }
        let usage = NodeUsage {
            node: self.origin.node.to_string(),
            at: Timestamp::now(),
            left_out: left_out.values().sum(),
            left_out_of: left_out.into_iter().take(METERS_LEFT_OUT_MAX).collect(),
            items,
        };
        self.entry.put(&usage).await?;
        self.told = usage.items;
        Ok(())
    }
}
