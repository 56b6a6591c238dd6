//! Which region is home to which organisation, as this process has last seen it.
//!
//! The facts stand in the region's own store and are followed here. What is decided by them may be
//! late by a moment: a version is made only under the fact itself, which its transaction compares.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Event, KeyValue, Store, StoreError, load};
use tokio::sync::watch;

/// Facts by organisation.
pub type Facts = Arc<BTreeMap<OrgId, Home>>;

/// How often the facts are listed anew, whatever the watch says.
const LIST_EVERY: Duration = Duration::from_secs(30);
/// Wait after a failure of the store.
const RETRY: Duration = Duration::from_millis(500);

/// See the module; cheap to share.
#[derive(Clone, Debug)]
pub struct Homes {
    /// The region that the settings name: home while the store says nothing.
    first: String,
    facts: watch::Receiver<Facts>,
}

impl Homes {
    /// The facts of a store, and what keeps them current until it is dropped.
    pub fn follow(
        store: Arc<dyn Store>,
        first: &str,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, facts) = watch::channel(Facts::default());
        let homes = Self {
            first: first.to_owned(),
            facts,
        };
        (homes, run(store, sender))
    }

    /// The fact of an organisation, if the store has one.
    pub fn of(&self, org: OrgId) -> Option<Home> {
        self.facts.borrow().get(&org).cloned()
    }

    /// The home region of an organisation.
    pub fn region_of(&self, org: OrgId) -> String {
        let facts = self.facts.borrow();
        facts
            .get(&org)
            .map_or(&self.first, |home| &home.region)
            .clone()
    }

    /// All facts, and news of them.
    pub fn facts(&self) -> watch::Receiver<Facts> {
        self.facts.clone()
    }

    /// Waits until the fact of an organisation is another one; gives what it then is.
    pub async fn changed(&self, org: OrgId, from: Option<&Home>, wait: Duration) -> Option<Home> {
        let mut facts = self.facts.clone();
        let changed = facts.wait_for(|facts| facts.get(&org) != from);
        // In time or not: what counts is what it is then.
        let _ = tokio::time::timeout(wait, changed).await;
        self.of(org)
    }
}

async fn run(store: Arc<dyn Store>, sender: watch::Sender<Facts>) {
    loop {
        if let Err(error) = round(&*store, &sender).await {
            tracing::debug!(%error, "the facts of home cannot be followed: {error}");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// One list and the watch after it, until an error or the next list is due.
async fn round(store: &dyn Store, sender: &watch::Sender<Facts>) -> Result<(), StoreError> {
    let mut facts = BTreeMap::new();
    let at = load::list(store, keys::HOMES, None, |pair| keep(&mut facts, &pair)).await?;
    tell(sender, &facts);
    let mut watch = store.watch(keys::HOMES, at.next()).await?;
    let until = tokio::time::Instant::now() + LIST_EVERY;
    while let Ok(change) = tokio::time::timeout_at(until, watch.next()).await {
        for event in change?.events {
            match event {
                Event::Put(pair) => keep(&mut facts, &pair),
                Event::Delete { key, .. } => {
                    if let Some(org) = keys::parse_home(&key) {
                        facts.remove(&org);
                    }
                }
            }
        }
        tell(sender, &facts);
    }
    Ok(())
}

fn keep(facts: &mut BTreeMap<OrgId, Home>, pair: &KeyValue) {
    let Some(org) = keys::parse_home(&pair.key) else {
        return;
    };
    match serde_json::from_slice(&pair.value) {
        Ok(home) => drop(facts.insert(org, home)),
        Err(error) => tracing::error!(%org, "the fact of {org}'s home cannot be read: {error}"),
    }
}

fn tell(sender: &watch::Sender<Facts>, facts: &BTreeMap<OrgId, Home>) {
    sender.send_if_modified(|told| {
        let is_new = **told != *facts;
        if is_new {
            *told = Arc::new(facts.clone());
        }
        is_new
    });
}
