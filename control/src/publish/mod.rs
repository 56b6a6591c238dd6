//! Publishing: operations on an organisation's configuration become its next version.
//!
//! One queue per organisation, so that only controls race; the store's compare on the head decides
//! between them. Who loses applies the same operations to the new head and validates everything
//! again, until the deadline: publishers of different objects all succeed, of two that change one
//! object one is refused. What is committed is exactly what was validated.
//!
//! `trying` tries until the deadline; `attempt` makes one version of one parent and writes it;
//! `recognising` finds out whether the store took it where that did not say; `organisations` adds
//! what creating and deleting an organisation means; `writes` cuts it into transactions;
//! `idempotency` remembers answers; `cache` reads parents; `retiring` raises facts that are too
//! many for one transaction, `revoking` those of an operator in an emergency; `signing` signs what
//! was made before; `mending` writes again what the store has lost; `turn` lets no control plane
//! lose every race.

mod asking;
mod attempt;
mod bootstrap;
mod cache;
mod error;
mod history;
pub(crate) mod homes;
pub(crate) mod idempotency;
mod judging;
mod mending;
mod organisations;
mod recognising;
pub(crate) mod recovery;
mod regression;
pub(crate) mod retiring;
mod retiring_value;
mod revoking;
mod room;
mod signing;
pub(crate) mod sweep_counter;
#[cfg(test)]
mod tests;
mod trying;
mod turn;
pub(crate) mod writes;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use proto::credential::{Credential, SecretInput};
use proto::id::OrgId;
use proto::object::ObjectId;
use proto::org::Role;
use proto::policy::Policy;
use proto::seal::{DigestKey, NewSecret, Purpose, RegionPublicKey};
use proto::signature::Signer;
use proto::store::{Compare, LeaseId, Store, StoreError};
use proto::tree::{Hash, Operation, OrgConfig};
use proto::version::Epoch;
use tokio::time::Instant;

use self::cache::{Parent, Slots};
pub use self::error::PublishError;
pub use self::history::{Kept, Place, Request, Rollback, returning};
pub use self::idempotency::Idempotency;
use self::idempotency::{Memory, Recalled};
use self::judging::Judging;
use self::mending::Mending;
pub use self::mending::NO_TIME;
pub use self::recovery::{Missing, RecoverError, Recovered, Recovery, Regressed, Source};
use self::regression::Regressions;
pub use self::revoking::RevokeError;
use self::room::Room;
use self::turn::Turn;
use crate::archive::Archive;
use crate::audit::stream;

/// How long a publish tries when the request names no deadline of its own.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// First and longest wait before the next try.
const WAIT_MIN: Duration = Duration::from_millis(5);
const WAIT_MAX: Duration = Duration::from_millis(250);

/// The time, for people: versions and secrets are stamped with it, nothing is decided by it but
/// the end of an overlap.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What a [`Publisher`] is made of.
pub struct PublisherOptions {
    /// Where configurations are kept.
    pub store: Arc<dyn Store>,
    /// What new secrets are sealed to.
    pub public: RegionPublicKey,
    /// The key of digests.
    pub digest_key: DigestKey,
    /// What the operator allows.
    pub policy: Policy,
    /// The history that new organisations begin in.
    pub epoch: Epoch,
    /// The time.
    pub clock: Clock,
}

/// Makes versions. One per control process; cheap to share.
pub struct Publisher {
    store: Arc<dyn Store>,
    public: RegionPublicKey,
    digest_key: DigestKey,
    policy: Arc<Policy>,
    judging: Judging,
    epoch: Epoch,
    first_home: String,
    clock: Clock,
    archive: Option<Arc<Archive>>,
    regressions: Regressions,
    room: Room,
    mending: Mending,
    others: Vec<RegionPublicKey>,
    signer: Option<Arc<Signer>>,
    slots: Slots,
    memory: Memory,
}

/// One request to publish.
pub struct Publish {
    /// Whose configuration.
    pub org: OrgId,
    /// What to do, all or nothing.
    pub operations: Vec<Operation>,
    /// Who asks.
    pub author: Author,
    /// When to give up trying; [`DEADLINE`] from now is usual.
    pub deadline: Instant,
    /// The request's `Idempotency-Key`.
    pub idempotency: Option<Idempotency>,
}

/// Who publishes.
#[derive(Clone, Debug)]
pub struct Author {
    /// Stands in the version's record: the id of the API token.
    pub name: String,
    /// Some settings of a proxy are for admins only.
    pub role: Role,
    /// The address that the request came from.
    pub source: Option<IpAddr>,
}

/// What a publish led to.
#[derive(Clone, Debug)]
pub struct Published {
    /// The version's number; the parent's when nothing changed.
    pub n: u64,
    /// The version's hash.
    pub hash: Hash,
    /// The version; of a replayed answer, the newest one.
    pub config: Arc<OrgConfig>,
    /// Objects created, changed or deleted.
    pub changed: Vec<ObjectId>,
    /// Whether this is the remembered outcome of an earlier request with the same key.
    pub replayed: bool,
}

impl Publisher {
    /// A publisher; see [`PublisherOptions`].
    pub fn new(options: PublisherOptions) -> Self {
        let PublisherOptions {
            store,
            public,
            digest_key,
            policy,
            epoch,
            clock,
        } = options;
        let (slots, memory) = (Slots::default(), Memory::default());
        let first_home = epoch.region.clone();
        Self {
            store,
            public,
            digest_key,
            policy: Arc::new(policy),
            judging: Judging::default(),
            epoch,
            first_home,
            clock,
            archive: None,
            regressions: Regressions::default(),
            room: Room::default(),
            mending: Mending::default(),
            others: Vec::new(),
            signer: None,
            slots,
            memory,
        }
    }

    /// The same publisher, with the archive that versions go to when they leave the store.
    pub fn with_archive(self, archive: Arc<Archive>) -> Self {
        Self {
            archive: Some(archive),
            ..self
        }
    }

    /// Prepares a validated secret for an operation.
    pub fn prepare(&self, credential: &Credential, secret: SecretInput) -> Arc<NewSecret> {
        Arc::new(NewSecret::prepare(&self.digest_key, credential, secret))
    }

    /// Whether what is pinned to regions is kept by them and home alone.
    pub fn cuts_by_region(&self) -> bool {
        self.policy.content_by_region
    }

    /// Where configurations are kept.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// The same, for what outlives a call.
    pub fn shared_store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// The key of digests.
    pub fn digest_key(&self) -> &DigestKey {
        &self.digest_key
    }

    /// The keyed digest of a secret.
    pub fn digest(&self, purpose: Purpose, secret: &[u8]) -> [u8; 32] {
        self.digest_key.digest(purpose, secret)
    }

    /// The newest version of an organisation, read from the store unless it is known.
    ///
    /// # Errors
    /// The organisation does not exist, or its configuration cannot be read.
    pub async fn load(&self, org: OrgId) -> Result<Arc<OrgConfig>, PublishError> {
        Ok(self.parent(org).await?.config)
    }

    /// The newest version to build on.
    async fn parent(&self, org: OrgId) -> Result<Parent, PublishError> {
        let slot = self.slots.of(org);
        slot.newest(&*self.store, org, &self.regressions).await
    }

    /// The same, with the compare that holds while it is the newest.
    pub(crate) async fn newest(
        &self,
        org: OrgId,
    ) -> Result<(Arc<OrgConfig>, Compare), PublishError> {
        let Parent { config, unchanged } = self.parent(org).await?;
        Ok((config, unchanged))
    }

    /// A lease under which the outcomes of requests are remembered.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn remembering(&self) -> Result<LeaseId, StoreError> {
        self.memory.lease(&*self.store).await
    }

    /// Forgets that lease: the store has it no more.
    pub(crate) async fn remembering_is_gone(&self) {
        self.memory.lease_is_gone().await;
    }

    /// Publishes; see the module.
    ///
    /// # Errors
    /// [`PublishError`]; only [`PublishError::OutcomeUnknown`] leaves open what happened.
    pub async fn publish(&self, publish: Publish) -> Result<Published, PublishError> {
        self.publish_onto(publish, None).await
    }

    /// The same, and only as the successor of the version with this hash.
    async fn publish_onto(
        &self,
        mut publish: Publish,
        onto: Option<Hash>,
    ) -> Result<Published, PublishError> {
        let slot = self.slots.of(publish.org);
        let _place = slot
            .waiting
            .try_acquire()
            .map_err(|_| PublishError::Overloaded)?;
        let _turn = tokio::time::timeout_at(publish.deadline, slot.queue.lock())
            .await
            .map_err(|_| PublishError::Contended)?;
        let operations = Arc::from(std::mem::take(&mut publish.operations));
        let mut turn = Turn::after(slot.races.load(Ordering::Relaxed));
        let outcome = self
            .until_done((&publish, &operations), onto, &mut turn)
            .await;
        slot.races.store(turn.is_held(), Ordering::Relaxed);
        let Ok(published) = &outcome else {
            turn.leave(&*self.store).await;
            return outcome;
        };
        slot.keep(&published.config);
        match published.replayed || published.changed.is_empty() {
            true => turn.leave(&*self.store).await,
            // Which has ended the turn.
            false => stream::version(publish.org, &publish.author, published),
        }
        outcome
    }

    /// What a request with this key has published within a day; `None`: nothing.
    ///
    /// # Errors
    /// The store did not answer; the organisation is not there; the key is another request's.
    pub async fn made_with(
        &self,
        org: OrgId,
        idempotency: &Idempotency,
    ) -> Result<Option<Published>, PublishError> {
        let newest = self.parent(org).await?.config;
        match idempotency::recall(&*self.store, idempotency, &newest).await? {
            Recalled::Done(published) => Ok(Some(published)),
            Recalled::Free(_) => Ok(None),
        }
    }
}

/// Longer each time, up to a bound, and random, so that controls that race get out of step.
pub(crate) fn wait(tries: u32) -> Duration {
    let ceiling = WAIT_MIN.saturating_mul(1 << tries.min(10)).min(WAIT_MAX);
    let mut byte = [0u8; 1];
    // Without randomness the wait is only less well spread.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    ceiling.mul_f64(0.5 + f64::from(byte[0]) / 510.0)
}
