//! The side that is asked: versions of this region's store, for the control planes of others.
//!
//! Everything is read from the store as it is asked for; a connection remembers only what it has
//! told. An answer is bounded: what does not fit is left out, and asked for by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt, TryStreamExt};
use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::retired::Retired;
use proto::store::chunks::chunks;
use proto::store::follow::World;
use proto::store::load::LoadError;
use proto::store::{Op, Store, StoreError, Txn};
use proto::tree::TreeError;
use proto::wire::replication::{Answer, Ask, LEAVES_MAX, Moved, Position, RegionHello, SEALED_MAX};
use tokio::sync::watch;

use super::facts_hash;
use super::pages::Steps;
use crate::publish::writes::json;
use crate::regions::{Regions, Status};

/// Content of one answer after which no more is added, in bytes; a frame takes twice as much.
pub const ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// Reads under way at one time.
pub(super) const READS_MAX: usize = 8;
/// Longest wait for news, whatever is asked.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What answers; see the module.
pub struct Source {
    /// Where versions are kept.
    pub store: Arc<dyn Store>,
    /// The configuration as this process has seen it.
    pub worlds: watch::Receiver<Arc<World>>,
    /// Who may ask.
    pub regions: Arc<Regions>,
    /// What followers tell.
    pub status: Arc<Status>,
    /// Content of one answer after which no more is added; [`ANSWER_BYTES`] is usual.
    pub answer_bytes: usize,
}

/// Why an ask has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it holds cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The same.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The same.
    #[error("{0} cannot be read: {1}")]
    Record(String, serde_json::Error),
    /// Nothing can be said of a store that was never seen.
    #[error("this control plane has not seen its store yet")]
    Blind,
    /// The ask breaks a bound.
    #[error("more is asked for at once than may be")]
    TooMuch,
}

/// One connection's memory.
pub(super) struct Session<'s> {
    pub(super) source: &'s Source,
    pub(super) region: String,
    /// The state of the last news.
    reported: Option<Arc<World>>,
    /// Facts that were told, by organisation.
    told: BTreeMap<OrgId, Arc<BTreeMap<CredentialId, Retired>>>,
}

impl Source {
    /// Why a region may not ask; `named` tells whether its certificate names a host.
    pub(super) fn refuses(
        &self,
        hello: &RegionHello,
        named: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let Some(peer) = self.regions.peer(&hello.region) else {
            return Some(format!(
                "region `{}` is not in `regions.peers`",
                hello.region
            ));
        };
        if hello.protocol == 0 {
            return Some("protocol 0 is not known".into());
        }
        match peer.hosts().any(named) {
            true => None,
            false => Some(format!(
                "the certificate names no host of `replication` of region {}",
                peer.name
            )),
        }
    }

    pub(super) fn session(&self, region: String) -> Session<'_> {
        Session {
            source: self,
            region,
            reported: None,
            told: BTreeMap::new(),
        }
    }
}

impl Session<'_> {
    /// The answer to an ask.
    pub(super) async fn answer(&mut self, ask: Ask) -> Result<Answer, SourceError> {
        match ask {
            Ask::News { wait_ms, applied } => {
                self.keep(&applied).await?;
                self.source.status.asked(&self.region);
                let wait = Duration::from_millis(wait_ms.into()).min(WAIT_MAX);
                self.news(wait).await
            }
            Ask::Versions { org, after } => self.versions(org, after).await,
            Ask::Leaves { org, hashes } if hashes.len() <= LEAVES_MAX => {
                let keys = hashes.iter().map(|hash| keys::leaf(org, hash)).collect();
                Ok(Answer::Leaves(self.values(keys).await?))
            }
            Ask::Sealed { org, names } if names.len() <= SEALED_MAX => {
                let key = |(credential, seal): &(CredentialId, String)| {
                    keys::secret(org, *credential, seal, &self.region)
                };
                let keys = names.iter().filter(|(_, seal)| is_seal_id(seal)).map(key);
                let keys = keys.collect::<Vec<_>>();
                if keys.len() < names.len() {
                    return Err(SourceError::TooMuch);
                }
                Ok(Answer::Sealed(self.values(keys).await?))
            }
            Ask::Leaves { .. } | Ask::Sealed { .. } => Err(SourceError::TooMuch),
        }
    }

    /// Keeps what the follower has stored where every control plane of this region reads it.
    async fn keep(&self, applied: &[(OrgId, Position)]) -> Result<(), SourceError> {
        let key = |org: &OrgId| keys::replicated(&self.region, *org);
        let puts = applied
            .iter()
            .map(|(org, position)| Op::put(key(org), json(position)));
        self.write(puts.collect()).await
    }

    async fn write(&self, ops: Vec<Op>) -> Result<(), SourceError> {
        for ops in chunks(ops) {
            let txn = Txn {
                ops,
                ..Txn::default()
            };
            self.source.store.txn(txn).await?;
        }
        Ok(())
    }

    /// What has moved since the last time; waits for something to.
    async fn news(&mut self, wait: Duration) -> Result<Answer, SourceError> {
        let mut worlds = self.source.worlds.clone();
        let reported = self.reported.clone();
        let is_news = |world: &Arc<World>| {
            let seen = world.revision.0 > 0;
            seen && reported.as_ref().is_none_or(|old| {
                moved(old, world).next().is_some() || gone(old, world).next().is_some()
            })
        };
        let world = match tokio::time::timeout(wait, worlds.wait_for(is_news)).await {
            Ok(Ok(world)) => world.clone(),
            _ if self.reported.is_none() => return Err(SourceError::Blind),
            _ => {
                return Ok(Answer::News {
                    whole: false,
                    moved: Vec::new(),
                    gone: Vec::new(),
                });
            }
        };
        let none = World::default();
        let old = self.reported.as_deref().unwrap_or(&none);
        let answer = Answer::News {
            whole: self.reported.is_none(),
            moved: moved(old, &world).collect(),
            gone: gone(old, &world).collect(),
        };
        let forgotten = gone(old, &world).map(|org| keys::replicated(&self.region, org));
        self.write(forgotten.map(Op::Delete).collect()).await?;
        self.reported = Some(world);
        Ok(answer)
    }

    async fn versions(
        &mut self,
        org: OrgId,
        after: Option<Position>,
    ) -> Result<Answer, SourceError> {
        let world = self.source.worlds.borrow().clone();
        let Some(state) = world.orgs.get(&org) else {
            return Ok(Answer::Unknown);
        };
        let newest = &state.config;
        let steps = match &after {
            Some(after) => self.steps(after, newest).await?,
            None => Steps::Gap,
        };
        let mut versions = match steps {
            Steps::Versions(versions) => versions,
            Steps::Gap => self.snapshot(newest).await?,
            Steps::Fork => {
                let newest = Position::from(&newest.head);
                return Ok(Answer::Fork { newest });
            }
        };
        if !versions.more {
            let told = self.told.insert(org, state.retired.clone());
            let is_new = |(id, fact): &(&CredentialId, &Retired)| {
                told.as_ref().and_then(|told| told.get(*id)) != Some(*fact)
            };
            let facts = state.retired.iter().filter(is_new);
            // A struct of texts and numbers always serialises.
            let json = |fact: &Retired| serde_json::to_vec(fact).unwrap_or_default();
            versions.retired = facts.map(|(id, fact)| (*id, json(fact))).collect();
        }
        Ok(Answer::Versions(versions))
    }

    /// The first values of these keys that fit one answer; empty where there is none.
    pub(super) async fn values(&self, keys: Vec<String>) -> Result<Vec<Vec<u8>>, SourceError> {
        let mut found = self.all_values(keys).await?;
        let mut bytes = 0;
        let fitting = found.iter().take_while(|value| {
            bytes += value.len();
            bytes <= self.source.answer_bytes
        });
        // At least one, so that whoever asks again gets on.
        let fitting = fitting.count().max(1);
        found.truncate(fitting);
        Ok(found)
    }

    pub(super) async fn all_values(&self, keys: Vec<String>) -> Result<Vec<Vec<u8>>, SourceError> {
        let store = &self.source.store;
        let reads = futures_util::stream::iter(keys).map(async |key| {
            let pair = store.get(&key).await?.value;
            Ok::<_, StoreError>(pair.map(|pair| pair.value.to_vec()).unwrap_or_default())
        });
        Ok(reads.buffered(READS_MAX).try_collect().await?)
    }
}

/// Seal ids are parts of keys.
fn is_seal_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Organisations whose version or facts are not those of `old`.
fn moved<'w>(old: &'w World, new: &'w World) -> impl Iterator<Item = Moved> + 'w {
    let changed = new.orgs.iter().filter(|(id, state)| {
        old.orgs.get(*id).is_none_or(|old| {
            !Arc::ptr_eq(old, state)
                && (old.config.head != state.config.head || old.retired != state.retired)
        })
    });
    changed.map(|(id, state)| Moved {
        org: *id,
        position: Position::from(&state.config.head),
        facts: facts_hash(&state.retired),
    })
}

/// Organisations of `old` that are no more.
fn gone<'w>(old: &'w World, new: &'w World) -> impl Iterator<Item = OrgId> + 'w {
    let ids = old.orgs.keys().copied();
    ids.filter(|id| !new.orgs.contains_key(id))
}
