//! The side that asks: follows the home region for as long as the process runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::id::OrgId;
use proto::keys;
use proto::object::ObjectId;
use proto::store::follow::World;
use proto::store::load;
use proto::store::{Store, StoreError};
use proto::tree::{Head, SYSTEM_ORG};
use proto::wire::replication::{Answer, Ask, Moved, Position};
use rustls::ClientConfig;
use tokio::sync::watch;
use tracing::{info, warn};

use super::apply::{ApplyError, Local, Stored};
use super::connection::Connection;
use super::facts_hash;
use super::leader::Place;
use crate::publish::Publisher;
use crate::regions::{Regions, Status};

/// How long home may wait until it says that there is nothing new.
const NEWS_WAIT: Duration = Duration::from_secs(1);
/// First and longest wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What a [`Follower`] is made of.
pub struct FollowerOptions {
    /// Where versions are stored, and what deletes an organisation there.
    pub publisher: Arc<Publisher>,
    /// The same store.
    pub store: Arc<dyn Store>,
    /// The configuration as this process has seen it.
    pub worlds: watch::Receiver<Arc<World>>,
    /// The directory.
    pub regions: Arc<Regions>,
    /// Where it is told how far this region has come.
    pub status: Arc<Status>,
    /// Our certificate, and whom we trust.
    pub tls: Arc<ClientConfig>,
}

/// See the module.
pub struct Follower {
    options: FollowerOptions,
    /// Which endpoint of home is tried next.
    at: usize,
}

/// Why following broke off; it begins anew.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("home: {0}")]
    Link(#[from] std::io::Error),
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Apply(#[from] ApplyError),
    #[error("another control plane replicates now")]
    Deposed,
    #[error("home answered what was not asked")]
    Protocol,
}

impl Follower {
    /// A follower that has not begun.
    pub fn new(options: FollowerOptions) -> Self {
        Self { options, at: 0 }
    }

    /// Follows until it is dropped.
    pub async fn run(mut self) {
        let status = self.options.status.clone();
        let mut failures = 0u32;
        loop {
            let begun = Instant::now();
            let Err(error) = self.follow().await;
            status.follow(|following| {
                following.leads = false;
                following.connected = None;
                following.error = Some(error.to_string());
            });
            warn!("replication broke off and begins anew: {error}");
            self.at = self.at.wrapping_add(1);
            failures = match begun.elapsed() > BACKOFF_MAX {
                true => 0,
                false => failures.saturating_add(1),
            };
            let wait = BACKOFF_MIN.saturating_mul(1 << failures.min(10));
            tokio::time::sleep(wait.min(BACKOFF_MAX)).await;
        }
    }

    async fn follow(&mut self) -> Result<std::convert::Infallible, Broken> {
        let place = Place::take(&self.options.store).await?;
        let status = self.options.status.clone();
        status.follow(|following| following.leads = true);
        let (mut connection, endpoint) = self.connect().await?;
        info!("versions are taken from home at {endpoint}");
        status.follow(|following| {
            following.connected = Some(endpoint);
            following.error = None;
        });
        let mut applied = Vec::new();
        loop {
            if place.is_lost() {
                return Err(Broken::Deposed);
            }
            applied = self.round(&mut connection, &place, applied).await?;
        }
    }

    /// Tells home what was stored, hears what has moved, and stores it.
    async fn round(
        &self,
        connection: &mut Connection,
        place: &Place,
        applied: Vec<(OrgId, Position)>,
    ) -> Result<Vec<(OrgId, Position)>, Broken> {
        let ask = Ask::News {
            wait_ms: NEWS_WAIT.as_millis() as u32,
            applied,
        };
        let news = connection.ask(&ask, NEWS_WAIT).await?;
        let Answer::News { whole, moved, gone } = news else {
            return Err(Broken::Protocol);
        };
        let gone = match whole {
            true => self.strangers(&moved).await?,
            false => gone,
        };
        let applied = self.take(connection, place, moved).await?;
        for org in gone {
            self.remove(place, org).await?;
        }
        self.options.status.follow(|following| {
            if following.diverged.is_empty() {
                following.current_at = Some(Instant::now());
            }
        });
        Ok(applied)
    }

    async fn connect(&self) -> Result<(Connection, String), Broken> {
        let regions = &self.options.regions;
        let home = regions.home_peer().ok_or(Broken::Protocol)?;
        let at = self.at.checked_rem(home.replication.len()).unwrap_or(0);
        let endpoint = home.replication.get(at).cloned().unwrap_or_default();
        let tls = self.options.tls.clone();
        let opened = Connection::open(&endpoint, tls, &regions.own).await;
        let connection = opened
            .map_err(|error| std::io::Error::new(error.kind(), format!("{endpoint}: {error}")))?;
        Ok((connection, endpoint))
    }

    /// Takes what has moved; gives where it then stands. What is refused of one organisation does
    /// not keep the others waiting.
    async fn take(
        &self,
        connection: &mut Connection,
        place: &Place,
        moved: Vec<Moved>,
    ) -> Result<Vec<(OrgId, Position)>, Broken> {
        let status = &self.options.status;
        self.measure(&moved).await?;
        let (mut applied, mut refused) = (Vec::new(), None);
        for moved in in_order(moved) {
            let org = moved.org;
            if self.has(&moved) {
                applied.push((org, moved.position));
            } else {
                match self.sync(connection, place, org).await {
                    Ok(stored) => applied.extend(stored),
                    Err(Broken::Apply(error @ ApplyError::Refused { .. })) => {
                        warn!(%org, "{error}");
                        refused = Some(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            status.follow(|following| {
                following.behind.remove(&org);
            });
        }
        match refused {
            None => Ok(applied),
            Some(error) => Err(error.into()),
        }
    }

    /// Whether all of it is known to be here.
    fn has(&self, moved: &Moved) -> bool {
        let world = self.options.worlds.borrow().clone();
        let state = world.orgs.get(&moved.org);
        state.is_some_and(|state| {
            Position::from(&state.config.head) == moved.position
                && facts_hash(&state.retired) == moved.facts
        })
    }

    /// Organisations that are here and not at home.
    async fn strangers(&self, all: &[Moved]) -> Result<Vec<OrgId>, Broken> {
        let known: BTreeSet<OrgId> = all.iter().map(|moved| moved.org).collect();
        let mut strangers = Vec::new();
        let listed = load::list(&*self.options.store, keys::HEADS, None, |pair| {
            if let Some(keys::Live::Head(org)) = keys::Live::parse(&pair.key)
                && !known.contains(&org)
            {
                strangers.push(org);
            }
        });
        listed.await?;
        Ok(strangers)
    }

    /// Notes how many versions are to come.
    async fn measure(&self, moved: &[Moved]) -> Result<(), Broken> {
        let mut behind = BTreeMap::new();
        for Moved { org, position, .. } in moved {
            let key = keys::head(*org);
            let local = self.options.store.get(&key).await?.value;
            let n = local.and_then(|pair| Head::parse(&pair.value).ok());
            let n = n.map_or(0, |head| head.n);
            behind.insert(*org, position.n.saturating_sub(n));
        }
        let status = &self.options.status;
        status.follow(|following| following.behind.extend(behind));
        Ok(())
    }

    /// Takes every version of an organisation; gives where it then stands.
    async fn sync(
        &self,
        connection: &mut Connection,
        place: &Place,
        org: OrgId,
    ) -> Result<Option<(OrgId, Position)>, Broken> {
        let (store, status) = (&self.options.store, &self.options.status);
        let mut newest = None;
        loop {
            let world = self.options.worlds.borrow().clone();
            let seen = newest.take().or_else(|| {
                let state = world.orgs.get(&org);
                state.map(|state| state.config.clone())
            });
            let local = Local::read(&**store, org, seen).await?;
            let after = local.position();
            let versions = Ask::Versions {
                org,
                after: after.clone(),
            };
            let versions = match connection.ask(&versions, Duration::ZERO).await? {
                Answer::Versions(versions) => versions,
                Answer::Fork { newest } => {
                    warn!(
                        %org,
                        "the history of {org} here is not that of home, whose newest version is \
                         {} ({}); nothing of it is taken", newest.n, newest.hash
                    );
                    let here = after.unwrap_or(newest);
                    status.follow(|following| drop(following.diverged.insert(org, here)));
                    return Ok(None);
                }
                // Deleted since; the next news says so.
                Answer::Unknown => return Ok(None),
                _ => return Err(Broken::Protocol),
            };
            let more = versions.more;
            let stored = local.store(store, connection, place, versions).await?;
            status.follow(|following| {
                following.diverged.remove(&org);
                following.applied += stored.count;
                let behind = following.behind.entry(org).or_default();
                *behind = behind.saturating_sub(stored.count);
            });
            let Stored {
                position, config, ..
            } = stored;
            if !more {
                return Ok(position.map(|position| (org, position)));
            }
            newest = config;
        }
    }

    /// Deletes an organisation that home has no more, once `system` does not name it here either.
    async fn remove(&self, place: &Place, org: OrgId) -> Result<(), Broken> {
        let system = Local::read(&*self.options.store, SYSTEM_ORG, None).await?;
        let named = system
            .config()
            .is_none_or(|system| system.object(ObjectId::Org(org)).is_some());
        if named || org == SYSTEM_ORG {
            warn!(%org, "home has no {org}, but `system` names it here; it stays");
            return Ok(());
        }
        let local = Local::read(&*self.options.store, org, None).await?;
        local.delete(&*self.options.store, place).await?;
        self.options.publisher.sweep_one(org).await;
        info!(%org, "{org} was deleted at home, and here");
        Ok(())
    }
}

/// `system` comes last: what it names is then there.
fn in_order(mut moved: Vec<Moved>) -> Vec<Moved> {
    moved.sort_by_key(|moved| moved.org == SYSTEM_ORG);
    moved
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
