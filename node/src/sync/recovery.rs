//! Writes this node's configuration back into a store that has lost it, when a person asks for it
//! (`requestrocket recover --from-node`).
//!
//! The store is asked only while it is behind what this node serves, or damaged. Which secrets are
//! over it is told at once, whatever is decided: facts only rise, and a control plane that lost its
//! disk does not know them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::retired::Retired;
use proto::store::follow::World;
use proto::store::recovery::{self, Ask, Offered, WriteBackError};
use proto::store::{Compare, KeyValue, Op, Store, StoreError, Txn};
use tokio::sync::watch;

/// How often the store is asked while it is behind.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Answers requests that name this node, until the worlds end.
pub async fn run(node: Arc<str>, store: Arc<dyn Store>, mut worlds: watch::Receiver<Arc<World>>) {
    let (mut answered, mut told) = (None, BTreeMap::new());
    loop {
        let behind = worlds.wait_for(|world| !recovery::recoverable(world).is_empty());
        let world = match behind.await {
            Ok(world) => world.clone(),
            Err(_) => return,
        };
        if let Err(error) = tell_facts(&*store, &world, &mut told).await {
            tracing::warn!(%error, "the store does not know yet which secrets are over: {error}");
        }
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

/// Facts of an organisation that the store has been told.
type Told = BTreeMap<OrgId, Arc<BTreeMap<CredentialId, Retired>>>;

/// Raises the facts of organisations that the store holds an earlier version of.
async fn tell_facts(
    store: &dyn Store,
    world: &World,
    told: &mut Told,
) -> Result<(), WriteBackError> {
    for org in recovery::recoverable(world) {
        let Some(state) = world.orgs.get(&org) else {
            continue;
        };
        let known = told.get(&org);
        if known.is_some_and(|known| Arc::ptr_eq(known, &state.retired)) {
            continue;
        }
        // In a store that was wiped nothing is there that they could be about.
        if store.get(&keys::head(org)).await?.value.is_some() {
            match recovery::raise_facts(store, org, state).await {
                Err(error @ WriteBackError::Store(_)) => return Err(error),
                Err(error) => tracing::warn!(
                    %org, %error,
                    "the store does not know which secrets of {org} are over: {error}"
                ),
                Ok(()) => {}
            }
        }
        told.insert(org, Arc::clone(&state.retired));
    }
    Ok(())
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
        let offer = match recovery::write_content(store, org, state).await {
            Ok(offer) => offer,
            Err(error @ WriteBackError::Store(_)) => return Err(error),
            // The others are no worse for it.
            Err(error) => {
                tracing::error!(%org, %error, "{org} could not be written back: {error}");
                continue;
            }
        };
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
