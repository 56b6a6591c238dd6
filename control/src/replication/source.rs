//! The side that is asked: versions of this region's store, for the control planes of others.
//!
//! Everything is read from the store as it is asked for; a connection remembers only what it has
//! told. An answer is bounded: what does not fit is left out, and asked for by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    Answer, Ask, LEAVES_MAX, PROTOCOL_CUT, PROTOCOL_MIN, Position, RegionHello, SEALED_MAX,
};
use tokio::sync::watch;

use super::SharedIndex;
use super::facts::Telling;
use super::news::Seen;
use super::not_given::NotGiven;
use super::pages::Steps;
use super::told::Told;
use crate::publish::writes::json;
use crate::regions::{Homes, Regions, Status};

/// Content of one answer after which no more is added, in bytes; a frame takes twice as much.
pub const ANSWER_BYTES: usize = 1024 * 1024;
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
    /// What cannot be given, so that it is logged once.
    pub not_given: NotGiven,
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

impl SourceError {
    /// Whether what is stored of the organisation that was asked for is wrong, and of no other.
    fn is_of_one(&self) -> bool {
        match self {
            Self::Strict(_)
            | Self::Load(LoadError::Missing(_) | LoadError::Tree(_))
            | Self::Tree(_)
            | Self::Record(..) => true,
            Self::Load(LoadError::Store(_)) | Self::Store(_) | Self::Blind | Self::TooMuch => false,
        }
    }
}

/// One connection's memory.
pub(super) struct Session<'s> {
    pub(super) source: &'s Source,
    pub(super) region: String,
    /// The protocol that the follower speaks.
    protocol: u16,
    /// The state of the last news.
    pub(super) reported: tokio::sync::Mutex<Option<Seen>>,
    /// Facts that were told, by organisation.
    told: Mutex<BTreeMap<OrgId, Told>>,
    /// The same to home.
    facts: Mutex<Telling>,
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
            reported: tokio::sync::Mutex::default(),
            told: Mutex::default(),
            facts: Mutex::default(),
        }
    }
}

impl Session<'_> {
    /// The answer to an ask.
    pub(super) async fn answer(&self, ask: Ask) -> Result<Answer, SourceError> {
        match ask {
            Ask::News { wait_ms, applied } => {
                self.keep(&applied).await?;
                self.source.status.asked(&self.region);
                let wait = Duration::from_millis(wait_ms.into()).min(WAIT_MAX);
                self.news(wait).await
            }
            Ask::Applied(applied) => {
                self.keep(&applied).await?;
                Ok(Answer::Noted)
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
                    locked(&self.facts).page((org, after), &state.retired, room)
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
        for (org, _) in applied {
            self.source.status.forks(&self.region, *org, false);
        }
        let key = |org: &OrgId| keys::replicated(&self.region, *org);
        // A key once in a transaction: of what is told twice the last.
        let applied: BTreeMap<OrgId, &Position> = applied
            .iter()
            .map(|(org, position)| (*org, position))
            .collect();
        let puts = applied
            .iter()
            .map(|(org, position)| Op::put(key(org), json(position)));
        self.write(puts.collect()).await
    }

    pub(super) async fn write(&self, ops: Vec<Op>) -> Result<(), SourceError> {
        for ops in chunks(ops) {
            let txn = Txn {
                ops,
                ..Txn::default()
            };
            self.source.store.txn(txn).await?;
        }
        Ok(())
    }

    /// What is wrong with one organisation here is no reason to leave the others without answers.
    async fn versions(&self, org: OrgId, after: Option<Position>) -> Result<Answer, SourceError> {
        let answer = self.versions_of(org, after).await;
        let (region, not_given) = (&self.region, &self.source.not_given);
        match answer {
            Err(error) if error.is_of_one() && self.protocol >= PROTOCOL_CUT => {
                if not_given.note(region, org, &error.to_string()) {
                    tracing::error!(%org, region, "{org} cannot be given to {region}: {error}");
                }
                Ok(Answer::NotHere)
            }
            Ok(answer @ Answer::Versions(_)) => {
                if not_given.given(region, org) {
                    tracing::info!(%org, region, "{org} is given to {region} again");
                }
                Ok(answer)
            }
            answer => answer,
        }
    }

    async fn versions_of(
        &self,
        org: OrgId,
        after: Option<Position>,
    ) -> Result<Answer, SourceError> {
        let world = self.source.worlds.borrow().clone();
        let Some(state) = world.orgs.get(&org) else {
            return Ok(Answer::Unknown);
        };
        let newest = &state.config;
        if newest.head.is_cut() && self.protocol < PROTOCOL_CUT {
            let why = "its control plane is of an earlier release";
            if self.source.not_given.note(&self.region, org, why) {
                tracing::error!(
                    %org, region = self.region,
                    "version {} of {org} is not given to region {}, whose control plane is of an \
                     earlier release and would lose what is pinned to regions: upgrade it, see \
                     `regions.content_by_region`", newest.head.n, self.region
                );
            }
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
                let waits = after.is_some_and(|after| newest.epoch <= after.epoch);
                self.source.status.forks(&self.region, org, waits);
                return Ok(Answer::Fork { newest });
            }
        };
        self.source.status.forks(&self.region, org, false);
        if !versions.more {
            let with_versions = !versions.versions.is_empty();
            let mut all = locked(&self.told);
            let told = all.remove(&org);
            let (told, new) = Told::of(told, &state.retired, (after, with_versions));
            all.insert(org, told);
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

// A poisoned value is whole: what was told is one entry each.
fn locked<T>(told: &Mutex<T>) -> MutexGuard<'_, T> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seal ids are parts of keys.
pub(super) fn is_seal_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
