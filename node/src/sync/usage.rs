//! Tells how much of each meter is used: under a lease, while there is anything to tell.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proto::id::NodeId;
use proto::keys;
use proto::store::{LeaseId, Op, Store, StoreError, Txn};
use proto::usage::{KeyUsage, NodeUsage};
use tokio::sync::oneshot;

use crate::limits::Limits;
use crate::stages::record::Origin;

/// How long an entry outlives its node.
const LEASE: Duration = Duration::from_secs(15);
/// How often it is written.
const PERIOD: Duration = Duration::from_secs(4);

/// Tells until `stop` is sent or dropped, then takes the entry away.
pub async fn run(
    limits: Arc<Limits>,
    origin: Arc<Origin>,
    store: Arc<dyn Store>,
    stop: oneshot::Receiver<()>,
) {
    let mut teller = Teller {
        key: keys::usage(NodeId::new()),
        limits,
        origin,
        store,
        lease: None,
        told: Vec::new(),
    };
    tokio::select! {
        () = teller.keep() => {}
        _ = stop => teller.leave().await,
    }
}

struct Teller {
    key: String,
    limits: Arc<Limits>,
    origin: Arc<Origin>,
    store: Arc<dyn Store>,
    lease: Option<LeaseId>,
    told: Vec<KeyUsage>,
}

impl Teller {
    async fn keep(&mut self) {
        loop {
            if let Err(error) = self.tell().await {
                tracing::debug!(%error, "nobody is told of the meters: {error}");
                self.lease = None;
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn tell(&mut self) -> Result<(), StoreError> {
        let (items, left_out) = self.limits.usage();
        if items.is_empty() && self.told.is_empty() {
            return Ok(());
        }
        let lease = match self.lease {
            Some(lease) => {
                self.store.keep_alive(lease).await?;
                lease
            }
            None => {
                let lease = self.store.grant_lease(LEASE).await?.id;
                (self.lease, self.told) = (Some(lease), Vec::new());
                lease
            }
        };
        if items == self.told {
            return Ok(());
        }
        let usage = NodeUsage {
            node: self.origin.node.to_string(),
            at: Timestamp::now(),
            left_out,
            items,
        };
        let put = Op::Put {
            key: self.key.clone(),
            // Texts and numbers only: serialising into memory cannot fail.
            value: serde_json::to_vec(&usage).unwrap_or_default().into(),
            lease: Some(lease),
        };
        let txn = Txn {
            ops: vec![put],
            ..Txn::default()
        };
        self.store.txn(txn).await?;
        self.told = usage.items;
        Ok(())
    }

    async fn leave(&self) {
        if let Some(lease) = self.lease {
            // Without an answer the lease ends by itself.
            let _ = self.store.revoke_lease(lease).await;
        }
    }
}
