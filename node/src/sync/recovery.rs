//! Writes this node's configuration back into a store that has lost it, when a person asks for it
//! (`requestrocket recover --from-node`).
//!
//! Which secrets are over is told at once, whatever is decided: facts only rise, and a control
//! plane that lost its disk does not know them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::retired::Retired;
use proto::store::follow::World;
use proto::store::recovery::{self, Ask, Offered, WriteBackError};
use proto::store::{Compare, KeyValue, Op, Store, StoreError, Txn};
use proto::tree::Hash;
use tokio::sync::watch;

/// The wait before what the store did not take is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Answers requests that name this node, until the worlds end.
pub async fn run(node: Arc<str>, store: Arc<dyn Store>, mut worlds: watch::Receiver<Arc<World>>) {
    let (mut answered, mut told) = (None, BTreeMap::new());
    loop {
        let world = worlds.borrow_and_update().clone();
        let facts = tell_facts(&*store, &world, &mut told).await;
        if let Err(error) = &facts {
            tracing::warn!(%error, "the store does not know yet which secrets are over: {error}");
        }
        let answer = answer(&node, &*store, &world, answered.as_deref()).await;
        let failed = facts.is_err() || answer.is_err();
        match answer {
            Ok(Some(id)) => answered = Some(id),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the configuration could not be written back: {error}");
            }
        }
        match failed {
            true => tokio::time::sleep(AGAIN).await,
            false if worlds.changed().await.is_err() => return,
            false => {}
        }
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
    let Some(asked) = &world.asked else {
        return Ok(None);
    };
    // One of another release that cannot be read asks for what this one cannot do.
    let Ok(ask) = serde_json::from_slice::<Ask>(&asked.value) else {
        return Ok(None);
    };
    if ask.node != node || answered == Some(ask.id.as_str()) {
        return Ok(None);
    }
    let mut orgs = recovery::recoverable(world);
    // Another version than the one that is asked for would take its place.
    let serves = |(org, hash): &(&OrgId, &Hash)| {
        let state = world.orgs.get(org);
        state.is_some_and(|state| state.config.head.hash == **hash)
    };
    orgs.extend(ask.orgs.iter().filter(serves).map(|(org, _)| *org));
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
        put(store, asked, keys::recovery_offer(&ask.id, org), &offer).await?;
        offered.orgs.push(org);
    }
    put(store, asked, keys::recovery_offered(&ask.id), &offered).await?;
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
