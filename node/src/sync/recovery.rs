//! Writes this node's configuration back into a store that has lost it, when a person asks for it
//! (`requestrocket recover --from-node`).
//!
//! The store is asked only while it is behind what this node serves, or damaged.

use std::sync::Arc;
use std::time::Duration;

use proto::keys;
use proto::store::follow::World;
use proto::store::recovery::{self, Ask, Offered, WriteBackError};
use proto::store::{Compare, KeyValue, Op, Store, StoreError, Txn};
use tokio::sync::watch;

/// How often the store is asked while it is behind.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Answers requests that name this node, until the worlds end.
pub async fn run(node: Arc<str>, store: Arc<dyn Store>, mut worlds: watch::Receiver<Arc<World>>) {
    let mut answered = None;
    loop {
        let behind = worlds.wait_for(|world| !recovery::recoverable(world).is_empty());
        let world = match behind.await {
            Ok(world) => world.clone(),
            Err(_) => return,
        };
        match answer(&node, &*store, &world, answered.as_deref()).await {
            Ok(Some(id)) => answered = Some(id),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the configuration could not be written back: {error}");
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Answers a request that was not answered yet; says which.
async fn answer(
    node: &str,
    store: &dyn Store,
    world: &World,
    answered: Option<&str>,
) -> Result<Option<String>, WriteBackError> {
    let Some(asked) = store.get(keys::RECOVERY_ASK).await?.value else {
        return Ok(None);
    };
    // One of another release that cannot be read asks for what this one cannot do.
    let Ok(ask) = serde_json::from_slice::<Ask>(&asked.value) else {
        return Ok(None);
    };
    if ask.node != node || answered == Some(ask.id.as_str()) {
        return Ok(None);
    }
    let orgs = recovery::recoverable(world);
    let count = orgs.len();
    tracing::warn!(
        count,
        "writing the configuration of {count} organisations back"
    );
    let mut offered = Offered { orgs: Vec::new() };
    for org in orgs {
        let Some(state) = world.orgs.get(&org) else {
            continue;
        };
        let offer = recovery::write_content(store, org, state).await?;
        put(store, &asked, keys::recovery_offer(&ask.id, org), &offer).await?;
        offered.orgs.push(org);
    }
    put(store, &asked, keys::recovery_offered(&ask.id), &offered).await?;
    Ok(Some(ask.id))
}

/// Puts an answer, which goes with the request.
async fn put(
    store: &dyn Store,
    asked: &KeyValue,
    key: String,
    value: &impl serde::Serialize,
) -> Result<(), StoreError> {
    let put = Op::Put {
        key,
        // Structs of texts, numbers and lists: serialising into memory cannot fail.
        value: serde_json::to_vec(value).unwrap_or_default().into(),
        lease: asked.lease,
    };
    let txn = Txn {
        compares: vec![Compare::ModRevision(asked.key.clone(), asked.mod_revision)],
        ops: vec![put],
        or_read: Vec::new(),
    };
    store.txn(txn).await.map(|_| ())
}
