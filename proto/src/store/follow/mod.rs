//! Keeps the configuration of all organisations current, for node and control alike.
//!
//! Every round begins with a list at one revision and goes on with one watch from the revision
//! after it; there is no resume. One store revision becomes one new [`World`]: nobody ever sees
//! half of a publish. What cannot be read keeps its previous good form and is reported; a version
//! that does not descend from the one that is served is a regression and is not applied, whatever
//! its number.

mod ahead;
mod news;
mod pulse;
mod reader;
mod retries;
mod sealed;
#[cfg(test)]
mod tests;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt, TryStreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use self::ahead::Ahead;
use self::news::{Heard, News, Notices, collect, is_beat};
use self::pulse::Pulse;
use self::reader::{Outcome, Reader};
use self::retries::Retries;
use self::world::slugs;
pub use self::world::{OrgState, SealedValues, World};
use super::backoff::backoff;
use super::load::{self, Fault};
use super::nearby::{Nearby, Together};
use super::recovery;
use super::{Change, Event, KeyValue, Revision, Store, StoreError};
use crate::beat::Beat;
use crate::boot_instant::BootInstant;
use crate::health::Health;
use crate::id::OrgId;
use crate::keys::{self, Live};
use crate::restarts::Restarts;
use crate::tree::SYSTEM_ORG;

/// Organisations read at one time.
const ORGS_AT_ONCE: usize = 4;
/// Most faults that a [`World`] lists; the rest is counted by nobody, the first ones say enough.
const FAULTS_MAX: usize = 1_000;

/// Follows the store; see the module.
pub struct Follower {
    store: Arc<dyn Store>,
    near: Option<Arc<dyn Nearby>>,
    /// True when what is being read must not wait for its turn.
    hurry: watch::Sender<bool>,
    region: String,
    world: watch::Sender<Arc<World>>,
    health: Health,
    /// Faults by organisation, so that a new version replaces its own only.
    faults: BTreeMap<Option<OrgId>, Vec<Fault>>,
    notices: Notices,
    retries: Retries,
}

impl Follower {
    /// A follower for the nodes or the control of a region, and where its worlds appear. The
    /// first one is empty, with revision 0.
    pub fn new(
        store: Arc<dyn Store>,
        region: impl Into<String>,
    ) -> (Self, watch::Receiver<Arc<World>>) {
        let (world, receiver) = watch::channel(Arc::new(World::default()));
        let faults = BTreeMap::new();
        (
            Self {
                store,
                near: None,
                hurry: watch::Sender::new(false),
                region: region.into(),
                world,
                health: Health::default(),
                faults,
                notices: Notices::default(),
                retries: Retries::default(),
            },
            receiver,
        )
    }

    /// From now on leaves are asked for there before the store is read.
    pub fn ask_first(&mut self, near: Arc<dyn Nearby>) {
        self.near = Some(near);
    }

    /// Tells whether the store is reached, as long as the follower runs.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Takes the world that a kept copy of an age shows, before [`Follower::run`]. What the real
    /// store then shows must descend from it, like from everything that was ever served.
    ///
    /// # Errors
    /// The copy lacks something.
    pub async fn begin_with(
        &mut self,
        kept: Arc<dyn Store>,
        age: Duration,
    ) -> Result<(), StoreError> {
        let (real, near) = (std::mem::replace(&mut self.store, kept), self.near.take());
        let listed = self.list().await;
        (self.store, self.near) = (real, near);
        listed.map(|_| self.health.facts_were_whole(age))
    }

    /// Lists the store once, before [`Follower::run`], trying again until `deadline`.
    ///
    /// # Errors
    /// The last error.
    pub async fn catch_up(&mut self, deadline: Instant) -> Result<(), StoreError> {
        let mut failures = 0u32;
        while let Err(error) = self.list_current().await {
            let next = Instant::now() + backoff(failures);
            if matches!(error, StoreError::Unusable(_)) || next >= deadline {
                return Err(error);
            }
            tracing::warn!("the store could not be read and is asked again: {error}");
            tokio::time::sleep_until(next).await;
            failures = failures.saturating_add(1);
        }
        Ok(())
    }

    /// Follows until it is dropped. After an error it lists again, later each time, with full
    /// jitter, so that many nodes do not come back at once.
    pub async fn run(mut self) {
        let mut failures = 0u32;
        let mut restarts = Restarts::of("follow", self.health.clone());
        loop {
            let before = self.world.borrow().revision;
            // A world is swapped in whole: what is left of a panic is the one before.
            let Some(ended) = restarts.run(self.round()).await else {
                continue;
            };
            if self.world.borrow().revision > before {
                failures = 0;
            }
            if let Err(error) = ended {
                self.health.store_reached(false);
                tracing::warn!(%error, failures, "following the store ended; listing again");
                tokio::time::sleep(backoff(failures)).await;
                failures = failures.saturating_add(1);
            }
        }
    }

    /// One list and the watch after it, until an error, or until unreadable content is due.
    async fn round(&mut self) -> Result<(), StoreError> {
        let revision = self.list_current().await?;
        let watch = self.store.watch(keys::LIVE, revision.next()).await?;
        let place = self.store.place();
        let mut watch = Ahead::of(watch, self.hurry.clone());
        self.health.store_reached(true);
        let (mut shown, mut pulse) = (
            revision,
            Pulse::new(self.store.clone(), self.health.clone()),
        );
        self.retries.heard(self.faults.values().flatten());
        let mut retry = self.retries.due();
        loop {
            let change = tokio::select! {
                // What the watch has shown counts before what it has not.
                biased;
                next = next_or(&mut watch, retry) => match next {
                    Some(change) => change?,
                    None => {
                        self.retries.tried();
                        return Ok(());
                    }
                },
                lost = pulse.lost(shown) => {
                    // Unless calls that failed there have moved on already.
                    self.store.leave(place);
                    return Err(lost);
                }
            };
            shown = change.revision;
            let urgent = ahead::revokes(&change);
            watch.during(urgent, self.change(change)).await?;
            if self.retries.heard(self.faults.values().flatten()) || retry.is_none() {
                retry = [retry, self.retries.due()].into_iter().flatten().min();
            }
        }
    }

    /// Lists the store itself, which proves that everything it held is known.
    async fn list_current(&mut self) -> Result<Revision, StoreError> {
        let asked = BootInstant::now();
        let revision = self.list().await?;
        self.health.facts_were_whole(asked.elapsed());
        Ok(revision)
    }

    async fn list(&mut self) -> Result<Revision, StoreError> {
        let mut news: BTreeMap<OrgId, News> = BTreeMap::new();
        let mut stray = Vec::new();
        let store = Arc::clone(&self.store);
        let mut notices = Notices::default();
        // What a list revokes stands beside what is large in it: who serves already waits for
        // nothing.
        let serves = !self.world.borrow().orgs.is_empty();
        self.hurry.send_replace(serves);
        // One listing, so that many processes that list at one time ask little. Deltas are left
        // out: 10,000 of them would be 320 MB.
        let beyond = Some(keys::BEYOND_DELTAS);
        let at = load::list_after(&*store, keys::LIVE, beyond, None, |pair| {
            notices.put(&pair);
            collect(&mut news, &mut stray, pair);
        })
        .await?;
        self.notices = notices;
        self.faults.insert(None, stray);
        let world = Arc::clone(&self.world.borrow());
        for org in world.orgs.keys() {
            let news = news.entry(*org).or_default();
            news.head.get_or_insert(Heard::Gone);
        }
        self.apply(at, news).await?;
        Ok(at)
    }

    async fn change(&mut self, mut change: Change) -> Result<(), StoreError> {
        let beats = change.events.extract_if(.., is_beat);
        if let Some(Event::Put(beat)) = beats.last() {
            self.beat(&beat);
            if change.events.is_empty() {
                return Ok(());
            }
        }
        let mut news: BTreeMap<OrgId, News> = BTreeMap::new();
        let mut stray = Vec::new();
        for event in change.events {
            match event {
                Event::Put(pair) => {
                    self.notices.put(&pair);
                    if pair.key == keys::RESEALED {
                        // Who has nothing that is older reads nothing.
                        for org in self.world.borrow().orgs.keys() {
                            news.entry(*org).or_default();
                        }
                    }
                    collect(&mut news, &mut stray, pair);
                }
                Event::Delete { key, .. } => match Live::parse(&key) {
                    Some(Live::Head(org)) => {
                        news.entry(org).or_default().head = Some(Heard::Gone);
                    }
                    Some(Live::Retired(org, credential)) => {
                        news.entry(org)
                            .or_default()
                            .retired
                            .insert(credential, None);
                    }
                    Some(other) => self.notices.delete(other),
                    None => {}
                },
            }
        }
        if !stray.is_empty() {
            let known = self.faults.entry(None).or_default();
            known.extend(stray);
            known.truncate(FAULTS_MAX);
        }
        self.apply(change.revision, news).await
    }

    /// Compares clocks; a beat that this release cannot read says nothing of them.
    fn beat(&self, pair: &KeyValue) {
        if let Ok(beat) = serde_json::from_slice::<Beat>(&pair.value) {
            let offset_ms = beat.offset_ms(jiff::Timestamp::now());
            self.health.clock_is_ahead(&beat.by, offset_ms);
        }
    }

    /// Applies what one revision says, as one new world.
    async fn apply(
        &mut self,
        revision: Revision,
        mut news: BTreeMap<OrgId, News>,
    ) -> Result<(), StoreError> {
        let world = Arc::clone(&self.world.borrow());
        let mut orgs = world.orgs.clone();
        let is_new = |org: &&OrgId| !world.orgs.contains_key(*org);
        let hurry = self.hurry.clone();
        let together = Together::new(&hurry, news.keys().filter(is_new).count());
        // `system` first: it says whether an organisation whose head is gone was deleted.
        if let Some(system) = news.remove(&SYSTEM_ORG) {
            let reader = self.reader(&together);
            let outcome = reader.org(SYSTEM_ORG, orgs.get(&SYSTEM_ORG), system);
            let outcome = outcome.await?;
            self.keep(&mut orgs, SYSTEM_ORG, outcome);
        }
        let slugs = slugs(&world, &orgs);
        let named: BTreeSet<OrgId> = slugs.values().copied().collect();
        let mut live = Vec::new();
        for (org, news) in news {
            match news.head {
                Some(Heard::Gone) if !named.contains(&org) => {
                    orgs.remove(&org);
                    self.faults.remove(&Some(org));
                }
                _ => live.push((org, news)),
            }
        }
        let reader = self.reader(&together);
        let read: Vec<_> = futures_util::stream::iter(live)
            .map(|(org, news)| {
                let old = world.orgs.get(&org);
                async move { Ok::<_, StoreError>((org, reader.org(org, old, news).await?)) }
            })
            .buffer_unordered(ORGS_AT_ONCE)
            .try_collect()
            .await?;
        for (org, outcome) in read {
            self.keep(&mut orgs, org, outcome);
        }
        let faults = first_faults(self.faults.values().flatten());
        let world = World {
            revision,
            orgs,
            slugs,
            tests: self.notices.tests.clone(),
            gateways: Arc::clone(&self.notices.gateways),
            asked: self.notices.asked.clone(),
            faults,
        };
        let regressed = recovery::regressed(&world).len();
        self.health.store_regressed(regressed as u64);
        self.world.send_replace(Arc::new(world));
        Ok(())
    }

    fn reader<'a>(&'a self, together: &'a Together<'a>) -> Reader<'a> {
        Reader {
            store: &*self.store,
            near: self.near.as_deref(),
            together,
            region: &self.region,
            resealed: self.notices.resealed.as_deref(),
        }
    }

    fn keep(&mut self, orgs: &mut BTreeMap<OrgId, Arc<OrgState>>, org: OrgId, outcome: Outcome) {
        if let Some(state) = outcome.state {
            orgs.insert(org, state);
        }
        let mut faults = self.faults.remove(&Some(org)).unwrap_or_default();
        faults.retain(|fault| outcome.standing.contains(&fault.code));
        for fault in outcome.faults {
            let Fault { code, detail, .. } = &fault;
            tracing::error!(org = %org, code, "{code}: {detail}");
            faults.push(fault);
        }
        if !faults.is_empty() {
            self.faults.insert(Some(org), faults);
        }
    }
}

/// The faults that a world lists. Those of whole organisations come first: they say which version
/// is served.
fn first_faults<'f>(all: impl Iterator<Item = &'f Fault> + Clone) -> Vec<Fault> {
    let is_whole = |fault: &&Fault| fault.org.is_some() && fault.object.is_none();
    let further = all.clone().filter(move |fault| !is_whole(fault));
    let first = all.filter(is_whole).chain(further);
    first.take(FAULTS_MAX).cloned().collect()
}

/// The next change, or `None` when `until` comes first.
async fn next_or(watch: &mut Ahead, until: Option<Instant>) -> Option<Result<Change, StoreError>> {
    match until {
        Some(until) => tokio::time::timeout_at(until, watch.next()).await.ok(),
        None => Some(watch.next().await),
    }
}
