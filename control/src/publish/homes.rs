//! Home: no head moves but under the fact that this region is home to the organisation.
//!
//! A store that was written before there were facts gets them from the region that the settings
//! name: at the first start, or with the next version.

use std::collections::BTreeMap;

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::seal::RegionPublicKey;
use proto::store::{Compare, Op, Revision, Store, StoreError, Txn, TxnOutcome, load};
use proto::tree::{Head, OrgConfig, is_kept_in, regions_of};
use proto::version::Epoch;
use proto::wire::replication::Position;

use super::writes::{Writes, json};
use super::{PublishError, Publisher};

/// The fact that an organisation's versions are made here.
pub(super) struct Homed {
    pub home: Home,
    unchanged: Compare,
    /// Whether the store holds it.
    stored: bool,
}

impl Homed {
    /// Lets writes hold only while the fact does.
    pub fn guard(&self, org: OrgId, writes: &mut Writes) {
        writes.compares.push(self.unchanged.clone());
        if !self.stored {
            writes.with_head.push(put(org, &self.home));
        }
    }

    /// Lets writes hold only while the fact does, and changes it with them.
    pub fn replace(self, org: OrgId, with: &Home) -> (Compare, Op) {
        (self.unchanged, put(org, with))
    }
}

/// The fact of an organisation as the store has it, and the revision of its last change.
///
/// # Errors
/// The store did not answer, or it cannot be read.
pub(crate) async fn stored(
    store: &dyn Store,
    org: OrgId,
) -> Result<Option<(Home, Revision)>, PublishError> {
    let key = keys::home(org);
    let Some(pair) = store.get(&key).await?.value else {
        return Ok(None);
    };
    let home = serde_json::from_slice(&pair.value);
    let home = home.map_err(|error| PublishError::Unreadable(format!("{key}: {error}")))?;
    Ok(Some((home, pair.mod_revision)))
}

/// The compare that holds while a fact is the one that was read.
pub(crate) fn unchanged(org: OrgId, found: Option<Revision>) -> Compare {
    let key = keys::home(org);
    match found {
        Some(revision) => Compare::ModRevision(key, revision),
        None => Compare::Absent(key),
    }
}

/// Writes the fact.
pub(crate) fn put(org: OrgId, home: &Home) -> Op {
    Op::put(keys::home(org), json(home))
}

impl Publisher {
    /// The same publisher, in an installation whose first home is this region.
    pub fn with_first_home(self, region: &str) -> Self {
        let first_home = region.to_owned();
        Self { first_home, ..self }
    }

    /// The same publisher, which seals secrets to these other regions too.
    pub fn with_regions(self, others: Vec<RegionPublicKey>) -> Self {
        Self { others, ..self }
    }

    /// What secrets are sealed to: the own region first.
    pub fn seals_to(&self) -> impl Iterator<Item = &RegionPublicKey> {
        std::iter::once(&self.public).chain(&self.others)
    }

    /// The name of this region.
    pub fn region(&self) -> &str {
        &self.epoch.region
    }

    /// The fact of an organisation; what the settings say where the store has none.
    ///
    /// # Errors
    /// The store did not answer, or the fact cannot be read.
    pub async fn home(&self, org: OrgId, epoch: &Epoch) -> Result<Home, PublishError> {
        let found = stored(&*self.store, org).await?;
        let first = || Home::first(epoch.clone(), &self.first_home);
        Ok(found.map_or_else(first, |(home, _)| home))
    }

    /// The fact that versions of an organisation are made here.
    pub(super) async fn homed(&self, org: OrgId, epoch: &Epoch) -> Result<Homed, PublishError> {
        let found = stored(&*self.store, org).await?;
        let revision = found.as_ref().map(|(_, revision)| *revision);
        let first = || Home::first(epoch.clone(), &self.first_home);
        let home = found.map_or_else(first, |(home, _)| home);
        if !home.is_open_in(self.region()) {
            let to = home.sealed.map_or(home.region, |seal| seal.to);
            return Err(PublishError::NotHome { org, home: to });
        }
        Ok(Homed {
            home,
            unchanged: unchanged(org, revision),
            stored: revision.is_some(),
        })
    }

    /// Gives every organisation without a fact its first one: this region is home by the settings.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn settle_homes(&self) -> Result<(), StoreError> {
        if self.first_home != self.epoch.region {
            return Ok(());
        }
        let mut lacking: BTreeMap<OrgId, Epoch> = BTreeMap::new();
        load::list(&*self.store, keys::HEADS, None, |pair| {
            if let (Some(keys::Live::Head(org)), Ok(head)) =
                (keys::Live::parse(&pair.key), Head::parse(&pair.value))
            {
                lacking.insert(org, head.epoch);
            }
        })
        .await?;
        load::list(&*self.store, keys::HOMES, None, |pair| {
            if let Some(org) = keys::parse_home(&pair.key) {
                lacking.remove(&org);
            }
        })
        .await?;
        for (org, epoch) in lacking {
            let first = Home::first(epoch, &self.first_home);
            let txn = Txn {
                compares: vec![unchanged(org, None), Compare::Present(keys::head(org))],
                ops: vec![put(org, &first)],
                or_read: Vec::new(),
            };
            // A conflict: another control plane was first.
            self.store.txn(txn).await?;
        }
        Ok(())
    }

    /// Ends this region's time as home: from here on no version is made until the other region
    /// opens on the last one. Gives the fact; sealed for that region already, it stays.
    ///
    /// # Errors
    /// This region is not home, or somebody published until the deadline.
    pub async fn seal_home(&self, org: OrgId, to: &str) -> Result<Home, PublishError> {
        for _ in 0..SEAL_TRIES {
            let parent = self.parent(org).await?;
            let head = &parent.config.head;
            let home = self.home(org, &head.epoch).await?;
            let is_sealed = |seal: &proto::home::Seal| seal.to == to;
            if home.region == self.region() && home.sealed.as_ref().is_some_and(is_sealed) {
                return Ok(home);
            }
            self.refuse_regressed(org, head.n)?;
            if let Some(error) = refuses_to_move(&parent.config, to) {
                return Err(error);
            }
            let homed = self.homed(org, &head.epoch).await?;
            let sealed = homed.home.seal(to, Position::from(head));
            let (unchanged, put) = homed.replace(org, &sealed);
            // Facts that are still to rise would not come to the other region.
            self.finish_retiring(org).await?;
            let nothing_left = Compare::Absent(keys::retiring(org));
            let txn = Txn {
                compares: vec![unchanged, parent.unchanged, nothing_left],
                ops: vec![put],
                or_read: Vec::new(),
            };
            // After an unknown outcome the fact itself tells, in the next turn.
            match self.store.txn(txn).await {
                Ok(TxnOutcome::Committed(_)) => {
                    tracing::warn!(%org, to, n = head.n, "{org} is sealed at version {} for region \
                        {to}, which opens it", head.n);
                    return Ok(sealed);
                }
                Ok(TxnOutcome::Conflict(_)) | Err(StoreError::OutcomeUnknown(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PublishError::Contended)
    }
}

/// Why a region cannot be handed an organisation: something may not be there, or what it is to have
/// besides its own is not here to be given.
pub(crate) fn refuses_to_move(config: &OrgConfig, to: &str) -> Option<PublishError> {
    let org = config.org;
    if let Some(regions) = config.head.stays_in(to) {
        let (regions, to) = (regions.to_owned(), to.to_owned());
        return Some(PublishError::Stays { org, regions, to });
    }
    let lacking = config.withheld().filter(|set| !is_kept_in(set, to));
    let regions: Vec<String> = lacking.map(|set| regions_of(set).to_owned()).collect();
    (!regions.is_empty()).then_some(PublishError::Withheld { org, regions })
}

/// Tries at a head that others move.
const SEAL_TRIES: usize = 100;
