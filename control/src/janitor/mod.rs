//! Keeps the configuration store small: old versions go to the archive, and what no version
//! reaches any more is deleted.
//!
//! Every control plane archives for itself (`archiving`). One of them, the leader, then drops from
//! the store what all that are there have archived (`dropping`), and sweeps what is left behind
//! (`sweep`, `orphans`). What only other regions keep goes from both (`keeping`), and what is
//! remembered of requests has a bound (`forgetting`). Leadership saves
//! work and nothing else: every deletion compares what it was decided on, so that two leaders, or
//! one that slept, delete nothing that is reached.

mod archiving;
mod dropping;
mod forgetting;
mod keeping;
mod orphans;
mod progress;
mod seat;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::health::Health;
use proto::id::OrgId;
use proto::keys;
use proto::listening::Listening;
use proto::restarts::{self, Restarts};
use proto::store::load;
use proto::store::{Revision, StoreError};
use proto::tree::{Hash, Head};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::keeping::Keeps;
pub use self::seat::leads;
use self::seat::{Failures, Seat};
use crate::archive::{Archive, ArchiveError};
use crate::publish::{PublishError, Publisher};

/// Rounds look at what changed; after so long one looks at everything, for what a publisher that
/// died has left without a change.
const WHOLE_EVERY: Duration = Duration::from_secs(6 * 3_600);
/// How often it is looked for what the store has lost of newest versions, and how soon again where
/// that could not be seen to.
const MEND_EVERY: Duration = Duration::from_secs(3_600);
const MEND_AGAIN: Duration = Duration::from_secs(600);
/// How often archived versions that are too old are looked for in every organisation, and outcomes
/// of requests that are too many.
const RETAIN_EVERY: Duration = Duration::from_secs(3_600);
/// A store that does not compact itself keeps changes for so long.
const CHANGES_KEPT: Duration = Duration::from_secs(600);

/// What is kept where, and how often that is seen to.
#[derive(Clone, Copy, Debug)]
pub struct JanitorOptions {
    /// Newest versions of an organisation that stay in the store.
    pub store_versions: u64,
    /// Most versions of an organisation in the archive.
    pub archive_versions: u64,
    /// Versions published longer ago than this leave the archive.
    pub archive_age: Duration,
    /// Time between two rounds.
    pub every: Duration,
    /// Whether the store's history of changes is to be compacted: the embedded store's is, etcd
    /// compacts itself. Such a store has one process.
    pub compacts: bool,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Versions that were copied to the archive.
    pub archived: u64,
    /// Versions that left the store.
    pub dropped: u64,
    /// Leaves, roots, sealed values and left-over keys that were deleted.
    pub swept: u64,
}

/// Why an organisation was left as it is, until the next round.
#[derive(Debug, thiserror::Error)]
enum JanitorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// What an unreadable version reaches is not known, so nothing is deleted.
    #[error("{0} cannot be read, so that nothing of its organisation is deleted")]
    Unreadable(String),
    #[error("somebody published meanwhile")]
    Moved,
    #[error("a task broke off: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// See the module.
pub struct Janitor {
    publisher: Arc<Publisher>,
    archive: Arc<Archive>,
    options: JanitorOptions,
    seat: Arc<Seat>,
    /// The heads of organisations in which nothing is left to do.
    settled: HashMap<OrgId, Hash>,
    /// What the archive was purged for.
    purged: HashMap<OrgId, Keeps>,
    /// When everything was looked at.
    whole_at: Option<Instant>,
    /// When it is to be looked for what the store has lost; none: now.
    mend_at: Option<Instant>,
    /// When archived versions that are too old were last looked for.
    retained_at: Option<Instant>,
    /// Revisions of the store, and when they were the newest.
    revisions: VecDeque<(Instant, Revision)>,
}

/// The same error, of a store that answers: what else there is to do is done.
///
/// # Errors
/// It does not answer.
fn while_there(error: StoreError) -> Result<StoreError, StoreError> {
    match error {
        StoreError::Unavailable(_) => Err(error),
        error => Ok(error),
    }
}

impl Janitor {
    /// The janitor of a control plane with this archive.
    pub fn new(publisher: Arc<Publisher>, archive: Arc<Archive>, options: JanitorOptions) -> Self {
        let name = archive.name().to_owned();
        let seat = Arc::new(Seat::new(name, Listening::default()));
        Self {
            publisher,
            archive,
            options,
            seat,
            settled: HashMap::new(),
            purged: HashMap::new(),
            whole_at: None,
            mend_at: None,
            retained_at: None,
            revisions: VecDeque::new(),
        }
    }

    /// The same, of a control plane that listens there: nodes dial none of it for a target.
    pub fn listening_at(mut self, listens: Vec<SocketAddr>) -> Self {
        let name = self.archive.name().to_owned();
        self.seat = Arc::new(Seat::new(name, Listening { listens }));
        self
    }

    /// Keeps this control plane's place among the others, and does a round now and then, until
    /// `stop` is sent or dropped; then gives the place up.
    pub async fn run(mut self, health: Health, stop: oneshot::Receiver<()>) {
        let (seat, publisher) = (self.seat.clone(), self.publisher.clone());
        let keep = || seat.keep(publisher.store());
        let keeping = restarts::again("janitor-seat", health.clone(), keep);
        let mut restarts = Restarts::of("janitor", health);
        let mut failures = Failures::default();
        let rounds = async {
            loop {
                tokio::time::sleep(self.options.every).await;
                let Some(ended) = restarts.run(self.round()).await else {
                    continue;
                };
                failures.note("no sweep of the store", ended.as_ref().err());
                if let Ok(round) = ended
                    && round != Round::default()
                {
                    tracing::info!(
                        archived = round.archived,
                        dropped = round.dropped,
                        swept = round.swept,
                        "configuration history: {} versions archived, {} dropped from the store, \
                         {} keys swept",
                        round.archived,
                        round.dropped,
                        round.swept
                    );
                }
            }
        };
        tokio::select! {
            () = keeping => {}
            () = rounds => {}
            _ = stop => seat.leave(publisher.store()).await,
        }
    }

    /// Archives; as leader also drops and sweeps.
    ///
    /// # Errors
    /// The store did not answer; or it refused something, as one that is full does, and all else
    /// was done. What concerns one organisation is logged and left for later.
    async fn round(&mut self) -> Result<Round, StoreError> {
        let mut heads: BTreeMap<OrgId, Head> = BTreeMap::new();
        let store = self.publisher.store();
        let revision = load::list(store, keys::HEADS, None, |pair| {
            // One that cannot be read is reported by everybody who follows it.
            if let (Some(keys::Live::Head(org)), Ok(head)) =
                (keys::Live::parse(&pair.key), Head::parse(&pair.value))
            {
                heads.insert(org, head);
            }
        })
        .await?;
        let now = Instant::now();
        if self.options.compacts {
            // Before anything that writes, and though nobody leads: a full store refuses both.
            if let Err(error) = self.compact(now, revision).await {
                tracing::warn!(%error, "old changes stay in the store: {error}");
            }
        }
        let leads = self.seat.leads();
        // A full store may take what is deleted, though it takes nothing that is written.
        let mut refused = None;
        if leads && let Err(error) = self.publisher.finish_all_retiring().await {
            refused = Some(while_there(error)?);
        }
        if leads && self.mend_at.is_none_or(|at| now >= at) {
            // First: nothing is swept where something cannot be read.
            self.mend(now).await?;
        }
        let due = |at: Instant| now.duration_since(at) >= WHOLE_EVERY;
        let whole = leads && self.whole_at.is_none_or(due);
        let mut round = Round::default();
        for (org, head) in &heads {
            if !whole && self.settled.get(org) == Some(&head.hash) {
                continue;
            }
            match self.org(*org, head, leads, &mut round).await {
                Ok(true) => {
                    self.settled.insert(*org, head.hash);
                }
                Ok(false) => {}
                Err(JanitorError::Store(error)) => refused = Some(while_there(error)?),
                Err(JanitorError::Moved) => {}
                Err(error) => tracing::warn!(%org, %error, "{org} is not swept: {error}"),
            }
        }
        // What nobody changes grows old as well.
        let due = |at: Instant| now.duration_since(at) >= RETAIN_EVERY;
        if self.retained_at.is_none_or(due) {
            for org in heads.keys() {
                if let Err(error) = self.retain(*org).await {
                    tracing::warn!(%org, %error, "old versions of {org} stay archived: {error}");
                }
            }
            if leads && let Err(error) = self.forget_outcomes(forgetting::KEPT_MAX).await {
                tracing::warn!(%error, "old outcomes of requests stay remembered: {error}");
            }
            self.retained_at = Some(now);
        }
        self.settled.retain(|org, _| heads.contains_key(org));
        self.purged.retain(|org, _| heads.contains_key(org));
        if whole {
            match self.orphans(&heads, &mut round).await {
                Ok(()) => self.whole_at = Some(now),
                Err(JanitorError::Store(error)) => return Err(error),
                Err(error) => tracing::warn!(%error, "left-over keys are not swept: {error}"),
            }
        }
        refused.map_or(Ok(round), Err)
    }

    /// Writes again what the store has lost of newest versions.
    async fn mend(&mut self, now: Instant) -> Result<(), StoreError> {
        let unfinished = match self.publisher.mend().await {
            Ok(mended) => mended.unfinished,
            Err(error) => Some(while_there(error)?),
        };
        let again = match unfinished {
            None => MEND_EVERY,
            Some(error) => {
                tracing::warn!(
                    %error,
                    "what the store has lost of newest versions is not all written again: {error}"
                );
                MEND_AGAIN
            }
        };
        self.mend_at = Some(now + again);
        Ok(())
    }

    /// One organisation. Answers whether nothing is left to do until its next version.
    async fn org(
        &mut self,
        org: OrgId,
        head: &Head,
        leads: bool,
        round: &mut Round,
    ) -> Result<bool, JanitorError> {
        // What was seen may be written back: nothing goes before a person has decided.
        if self.publisher.is_regressed(org) {
            return Ok(false);
        }
        let home = self.publisher.home(org, &head.epoch).await?;
        self.leave_branch(org, &home).await?;
        let keeps = Keeps::of(&self.publisher, (org, &home), head).await?;
        if keeps.purges() && self.purged.get(&org) != Some(&keeps) {
            self.purge_archive(org, keeps.clone()).await?;
            self.purged.insert(org, keeps.clone());
        }
        round.archived += self.archive_old(org, head, &keeps).await?;
        if !leads {
            return Ok(false);
        }
        let dropping = self.drop_archived(org, head, &keeps).await?;
        round.dropped += dropping.dropped;
        round.swept += self.sweep(org).await?;
        Ok(dropping.all && !keeps.waits())
    }

    /// Lets the store forget changes that nobody asks for any more.
    async fn compact(&mut self, now: Instant, revision: Revision) -> Result<(), StoreError> {
        self.revisions.push_back((now, revision));
        let mut until = None;
        while let Some((at, revision)) = self.revisions.front().copied() {
            if now.duration_since(at) < CHANGES_KEPT {
                break;
            }
            until = Some(revision);
            self.revisions.pop_front();
        }
        match until {
            Some(revision) => self.publisher.store().compact(revision).await,
            None => Ok(()),
        }
    }
}
