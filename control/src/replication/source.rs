//! The side that is asked: versions of this region's store, for the control planes of others.
//!
//! Everything is read from the store as it is asked for; a connection remembers only what it has
//! told. An answer is bounded: what does not fit is left out, and asked for by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use proto::id::OrgId;
use proto::keys;
use proto::store::chunks::chunks;
use proto::store::follow::{OrgState, World};
use proto::store::load::LoadError;
use proto::store::{Op, Store, StoreError, Txn};
use proto::tree::{Hash, TreeError};
use proto::wire::replication::{
    Answer, Ask, HomeAt, LEAVES_MAX, Moved, PROTOCOL_CUT, PROTOCOL_MIN, Position, RegionHello,
    SEALED_MAX,
};
use tokio::sync::watch;

use super::SharedIndex;
use super::facts::Telling;
use super::facts_hash;
use super::pages::Steps;
use super::told::Told;
use crate::publish::writes::json;
use crate::regions::{Facts, Homes, Regions, Status};

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
    /// Which region is home to what.
    pub homes: Homes,
    /// Who may ask.
    pub regions: Arc<Regions>,
    /// Meters whose limits regions share.
    pub shared: Arc<SharedIndex>,
    /// What followers tell.
    pub status: Arc<Status>,
    /// Content of one answer after which no more is added; [`ANSWER_BYTES`] is usual.
    pub answer_bytes: usize,
}

/// Why an ask has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("it asks for what `residency: strict` keeps out of its region in {0}")]
    Strict(OrgId),
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
    /// The protocol that the follower speaks.
    protocol: u16,
    /// The state of the last news.
    reported: Option<Seen>,
    /// Facts that were told, by organisation.
    told: BTreeMap<OrgId, Told>,
    /// The same to home.
    facts: Telling,
}

/// What news are told of.
#[derive(Clone, Default)]
struct Seen {
    world: Arc<World>,
    homes: Facts,
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
        if hello.protocol < PROTOCOL_MIN {
            return Some(format!(
                "protocol {} is not spoken any more: region {} runs an older program",
                hello.protocol, hello.region
            ));
        }
        match peer.hosts().any(named) {
            true => None,
            false => Some(format!(
                "the certificate names no host of `replication` of region {}",
                peer.name
            )),
        }
    }

    pub(super) fn session(&self, region: String, protocol: u16) -> Session<'_> {
        Session {
            source: self,
            region,
            protocol,
            reported: None,
            told: BTreeMap::new(),
            facts: Telling::default(),
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
            Ask::SignedVersions { org, after } => {
                let answer = self.versions(org, after).await?;
                self.signed(org, answer).await
            }
            Ask::RememberedVersions { org, after } => {
                let answer = self.versions(org, after).await?;
                let signed = self.signed(org, answer).await?;
                self.with_remembered(org, signed).await
            }
            Ask::Leaves { org, hashes } if hashes.len() <= LEAVES_MAX => {
                self.refuse_strict(org, &hashes)?;
                let keys = hashes.iter().map(|hash| keys::leaf(org, hash)).collect();
                Ok(Answer::Leaves(self.values(keys).await?))
            }
            Ask::Sealed { org, names } if names.len() <= SEALED_MAX => {
                if !names.iter().all(|(_, seal)| is_seal_id(seal)) {
                    return Err(SourceError::TooMuch);
                }
                let room = self.source.answer_bytes;
                Ok(Answer::Sealed(self.sealed_values(org, &names, room).await?))
            }
            Ask::SealedFor { org, names } if names.len() <= SEALED_MAX => {
                self.sealed_for(org, names).await
            }
            Ask::Home { org } => {
                let found = self.source.store.get(&keys::home(org)).await?.value;
                Ok(Answer::Home(found.map(|pair| pair.value.to_vec())))
            }
            Ask::Shares(needs) => self.give(needs).await,
            Ask::Clock => Ok(Answer::Clock {
                unix_us: Timestamp::now().as_microsecond(),
            }),
            Ask::Facts { org, after } => {
                let state = self.source.worlds.borrow().orgs.get(&org).cloned();
                let page = |state: Arc<OrgState>| {
                    let room = self.source.answer_bytes;
                    self.facts.page((org, after), &state.retired, room)
                };
                Ok(state.map_or(Answer::Unknown, page))
            }
            Ask::Leaves { .. } | Ask::Sealed { .. } | Ask::SealedFor { .. } => {
                Err(SourceError::TooMuch)
            }
        }
    }

    /// Refuses what may not be in the region of the follower, whoever it is there that asks.
    fn refuse_strict(&self, org: OrgId, hashes: &[Hash]) -> Result<(), SourceError> {
        let world = self.source.worlds.borrow().clone();
        let Some(config) = world.orgs.get(&org).map(|state| &state.config) else {
            return Ok(());
        };
        if config.head.stays_in(&self.region).is_none() {
            return Ok(());
        }
        let strict: BTreeSet<Hash> = config.reaches_beyond(&self.region).collect();
        match hashes.iter().any(|hash| strict.contains(hash)) {
            true => Err(SourceError::Strict(org)),
            false => Ok(()),
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
        let found = tokio::time::timeout(wait, self.unreported()).await;
        let seen = match found {
            Ok(seen) => seen,
            Err(_) if self.reported.is_none() => return Err(SourceError::Blind),
            Err(_) => {
                return Ok(Answer::News {
                    whole: false,
                    moved: Vec::new(),
                    gone: Vec::new(),
                });
            }
        };
        let none = Seen::default();
        let old = self.reported.as_ref().unwrap_or(&none);
        let answer = Answer::News {
            whole: self.reported.is_none(),
            moved: moved(old, &seen).collect(),
            gone: gone(old, &seen).collect(),
        };
        let forgotten = gone(old, &seen).map(|org| keys::replicated(&self.region, org));
        self.write(forgotten.map(Op::Delete).collect()).await?;
        self.reported = Some(seen);
        Ok(answer)
    }

    /// Waits for a state that holds news; without any before, for one that was seen at all.
    async fn unreported(&self) -> Seen {
        let (mut worlds, mut homes) = (self.source.worlds.clone(), self.source.homes.facts());
        loop {
            let seen = Seen {
                world: worlds.borrow_and_update().clone(),
                homes: homes.borrow_and_update().clone(),
            };
            let is_news = match &self.reported {
                None => seen.world.revision.0 > 0,
                Some(old) => {
                    moved(old, &seen).next().is_some() || gone(old, &seen).next().is_some()
                }
            };
            if is_news {
                return seen;
            }
            tokio::select! {
                () = change(&mut worlds) => {}
                () = change(&mut homes) => {}
            }
        }
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
        if newest.head.is_cut() && self.protocol < PROTOCOL_CUT {
            tracing::error!(
                %org, region = self.region,
                "version {} of {org} is not given to region {}, whose control plane is of an \
                 earlier release and would lose what is pinned to regions: upgrade it, see \
                 `regions.content_by_region`", newest.head.n, self.region
            );
            return Ok(Answer::Unknown);
        }
        let steps = match &after {
            Some(after) => self.steps(after, newest).await?,
            None => Steps::Gap,
        };
        let mut versions = match steps {
            Steps::Versions(versions) => versions,
            Steps::Gap => match self.snapshot(newest).await {
                // What only others keep is theirs to give.
                Err(SourceError::Load(LoadError::Missing(_))) if newest.head.is_cut() => {
                    return Ok(Answer::NotHere);
                }
                snapshot => snapshot?,
            },
            Steps::Fork => {
                let newest = Position::from(&newest.head);
                return Ok(Answer::Fork { newest });
            }
        };
        if !versions.more {
            let with_versions = !versions.versions.is_empty();
            let told = self.told.remove(&org);
            let (told, new) = Told::of(told, &state.retired, (after, with_versions));
            self.told.insert(org, told);
            versions.retired = new;
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
pub(super) fn is_seal_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Waits for a change; for ever where nobody is left to make one.
async fn change<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Organisations whose version, home or facts are not those of `old`.
fn moved<'w>(old: &'w Seen, new: &'w Seen) -> impl Iterator<Item = Moved> + 'w {
    let changed = new.world.orgs.iter().filter(|(id, state)| {
        let before = old.world.orgs.get(*id);
        let same = before.is_some_and(|before| {
            Arc::ptr_eq(before, state)
                || (before.config.head == state.config.head && before.retired == state.retired)
        });
        !same || old.homes.get(*id) != new.homes.get(*id)
    });
    changed.map(|(id, state)| Moved {
        org: *id,
        position: Position::from(&state.config.head),
        facts: facts_hash(&state.retired),
        home: new.homes.get(id).map(HomeAt::from),
    })
}

/// Organisations of `old` that are no more.
fn gone<'w>(old: &'w Seen, new: &'w Seen) -> impl Iterator<Item = OrgId> + 'w {
    let ids = old.world.orgs.keys().copied();
    ids.filter(|id| !new.world.orgs.contains_key(id))
}
