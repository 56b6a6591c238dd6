//! What a person decides when the store went back: its state counts, or what a node serves.
//!
//! Either becomes a new version under a higher epoch, which everybody follows. Revoked secrets
//! stay revoked in both: what this process and the node know of them is written back first.

use std::collections::BTreeSet;

use jiff::Timestamp;
use proto::id::OrgId;
use proto::keys;
use proto::seal;
use proto::signature::Signer;
use proto::store::recovery::{self, Offer, WriteBackError};
use proto::store::{Compare, Op, Revision, StoreError, Txn, TxnOutcome, load};
use proto::tree::{Delta, EVERYWHERE, Head, SYSTEM_ORG, VersionRecord};
use proto::version::Epoch;
use proto::wire::replication::Position;
use tokio::time::Instant;

use super::mending::Lost;
use super::writes::{json, record_ops};
use super::{Author, PublishError, Publisher};

/// The witness that is this process.
const HERE: &str = "this control plane";
/// Whose state counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// What this node serves is written back.
    Node(String),
    /// What the store holds stands; what came after it is gone.
    Store,
}

/// An organisation of which the store lacks what is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regressed {
    /// The organisation.
    pub org: OrgId,
    /// The version that this process has seen.
    pub seen: Option<u64>,
    /// The version that the store holds.
    pub stored: Option<u64>,
    /// Leaves of the stored version that the store has lost.
    pub leaves: u64,
    /// Who saw more than the store holds.
    pub witness: String,
}

/// What the store lacks, as far as it was looked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Of which it lacks something.
    pub found: Vec<Regressed>,
    /// Of which the leaves were not compared, and why; none: which ones there are is not known.
    pub unchecked: Vec<(Option<OrgId>, String)>,
}

/// An organisation that was recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The organisation.
    pub org: OrgId,
    /// The version whose content counts.
    pub from: u64,
    /// The new version.
    pub n: u64,
    /// The history that it opens.
    pub epoch: Epoch,
}

/// What a recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Organisations that have a new version.
    pub recovered: Vec<Recovered>,
    /// Leaves that the store had lost and that were written again as they were.
    pub leaves_written: u64,
}

/// Why nothing, or not everything, was recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The store has all that was seen.
    #[error(
        "the store has not gone back behind what this region has seen; nothing is to be recovered. \
         Where another region has a different history (`requestrocket regions` says `diverged`), \
         `requestrocket regions promote REGION --diverged` says whose counts"
    )]
    Nothing,
    /// No node of this name has more than the store.
    #[error(
        "node {0} did not answer: is it there, and does `requestrocket nodes` list it with \
         store-regressed? One of an earlier release writes back only what it misses itself"
    )]
    Silent(String),
    /// The store has no version that could stand.
    #[error("the store holds no version of {0}; write one back with --from-node")]
    Absent(OrgId),
    /// The store failed, or what it holds cannot be read.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Facts could not be written.
    #[error(transparent)]
    WriteBack(#[from] WriteBackError),
}

impl From<StoreError> for RecoverError {
    fn from(error: StoreError) -> Self {
        Self::Publish(error.into())
    }
}

/// The newest version in the store, and the compare that holds while it is.
pub(super) struct Stored {
    pub head: Option<Head>,
    unchanged: Compare,
}

impl Publisher {
    /// The organisations of which the store lacks what is served: it went back, or is damaged.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn regressed(&self) -> Result<Vec<Regressed>, PublishError> {
        let reported = self.regressions.ask_nodes(&*self.store).await?;
        let world = self.regressions.world();
        let mut orgs: BTreeSet<OrgId> = reported.keys().copied().collect();
        orgs.extend(
            world
                .as_deref()
                .map(recovery::recoverable)
                .unwrap_or_default(),
        );
        let mut found = Vec::new();
        for org in orgs {
            let seen = self.regressions.seen(org);
            let stored = self.stored_head(org).await?.head;
            found.push(Regressed {
                org,
                seen: seen.map(|state| state.config.head.n),
                stored: stored.map(|head| head.n),
                leaves: 0,
                witness: match reported.get(&org) {
                    Some(node) => format!("node {node}"),
                    None => HERE.to_owned(),
                },
            });
        }
        Ok(found)
    }

    /// The same, and the organisations whose newest version the store has lost leaves of, as far
    /// as that can be told until the deadline: all leaves of all organisations are read for it.
    ///
    /// # Errors
    /// As of [`Publisher::regressed`].
    pub async fn regressed_or_lost(&self, deadline: Instant) -> Result<Missing, PublishError> {
        let mut found = self.regressed().await?;
        let looked = self.lost(deadline).await;
        for Lost { org, n, leaves } in looked.lost {
            found.retain(|one| one.org != org);
            found.push(Regressed {
                org,
                seen: Some(n),
                stored: Some(n),
                leaves,
                witness: HERE.to_owned(),
            });
        }
        let mut unchecked = looked.unchecked;
        unchecked.retain(|(org, _)| found.iter().all(|one| Some(one.org) != *org));
        Ok(Missing { found, unchecked })
    }

    /// Writes again what the store has lost and this process holds, then ends the regression of
    /// every organisation that is in one.
    ///
    /// # Errors
    /// [`RecoverError`]; what was recovered before it stays so, and a second call does the rest.
    pub async fn recover(
        &self,
        source: &Source,
        author: &Author,
        deadline: Instant,
    ) -> Result<Recovery, RecoverError> {
        let mut recovered = Vec::new();
        let mended = self.mend().await?;
        if let Some(error) = mended.unfinished {
            return Err(error.into());
        }
        let leaves_written = mended.written;
        let regressed = self.regressed().await?;
        match source {
            _ if regressed.is_empty() && leaves_written == 0 => return Err(RecoverError::Nothing),
            _ if regressed.is_empty() => {}
            Source::Node(node) => {
                let lost = self.lost_here(&regressed).await?;
                for (org, offer) in self.ask(node, lost, deadline).await? {
                    recovered.push(self.write_back(org, offer, author).await?);
                }
            }
            Source::Store => {
                for found in regressed {
                    recovered.extend(self.accept(&found, author).await?);
                }
            }
        }
        Ok(Recovery {
            recovered,
            leaves_written,
        })
    }

    /// Makes what a node wrote the newest version.
    async fn write_back(
        &self,
        org: OrgId,
        offer: Offer,
        author: &Author,
    ) -> Result<Recovered, RecoverError> {
        let stored = self.stored_head(org).await?;
        let mut base = offer.head;
        base.roots = offer.pinned;
        base.roots.insert(EVERYWHERE.to_owned(), offer.root);
        let key = keys::gc(org);
        let unswept = match offer.gc {
            0 => Compare::Absent(key),
            revision => Compare::ModRevision(key, Revision(revision)),
        };
        self.reopen(org, &base, stored, Some(unswept), author).await
    }

    /// Lets the store's version stand; `None` for an organisation that it knows nothing of.
    async fn accept(
        &self,
        found: &Regressed,
        author: &Author,
    ) -> Result<Option<Recovered>, RecoverError> {
        let org = found.org;
        let stored = self.stored_head(org).await?;
        let Some(base) = stored.head.clone() else {
            // Without `system` nothing has a name and nobody a token.
            return match org {
                _ if org == SYSTEM_ORG => Err(RecoverError::Absent(org)),
                _ => Ok(None),
            };
        };
        if let Some(state) = self.regressions.seen(org) {
            recovery::raise_facts(&*self.store, org, &state).await?;
        }
        self.reopen(org, &base, stored, None, author)
            .await
            .map(Some)
    }

    /// Publishes the content of `base` as the first version of a new epoch.
    async fn reopen(
        &self,
        org: OrgId,
        base: &Head,
        stored: Stored,
        unswept: Option<Compare>,
        author: &Author,
    ) -> Result<Recovered, RecoverError> {
        let seen = self.regressions.seen(org);
        let seen = seen.as_ref().map(|state| &state.config.head);
        let known = || seen.into_iter().chain(&stored.head).chain([base]);
        let homed = self.homed(org, &base.epoch).await?;
        let counters = known().map(|head| head.epoch.counter);
        let home = homed
            .home
            .reopen(self.region(), Position::from(base), counters);
        let n = known().map(|head| head.n).max().unwrap_or(0);
        let epoch = home.epoch.clone();
        let head = base.reopened(epoch, n.saturating_add(1), seal::random_name());
        let (homed, put) = homed.replace(org, &home);
        let loaded = load::version(&*self.store, org, head.clone(), None).await;
        let loaded = loaded.map_err(|error| PublishError::Unreadable(error.to_string()))?;
        if let Some(fault) = loaded.faults.first() {
            return Err(PublishError::Unreadable(fault.detail.clone()).into());
        }
        let changes = loaded.config.objects.len() as u64;
        let made = (author, (self.clock)());
        let mut ops = reopening(org, &head, changes, made, self.signer());
        ops.push(put);
        let compares = [stored.unchanged, homed].into_iter().chain(unswept);
        let txn = Txn {
            compares: compares.collect(),
            ops,
            or_read: Vec::new(),
        };
        match self.store.txn(txn).await? {
            TxnOutcome::Committed(_) => {
                tracing::warn!(
                    %org, n = head.n, from = base.n,
                    "{org} was recovered: version {} has the content of version {}",
                    head.n, base.n
                );
                self.slots.of(org).keep(&std::sync::Arc::new(loaded.config));
                Ok(Recovered {
                    org,
                    from: base.n,
                    n: head.n,
                    epoch: head.epoch,
                })
            }
            TxnOutcome::Conflict(_) => Err(PublishError::Moved.into()),
        }
    }

    pub(super) async fn stored_head(&self, org: OrgId) -> Result<Stored, PublishError> {
        let key = keys::head(org);
        Ok(match self.store.get(&key).await?.value {
            None => Stored {
                head: None,
                unchanged: Compare::Absent(key),
            },
            Some(pair) => Stored {
                // One that makes no sense is overwritten like an older one.
                head: Head::parse(&pair.value).ok(),
                unchanged: Compare::ModRevision(key, pair.mod_revision),
            },
        })
    }
}

/// Head, delta and record of the first version of a new epoch.
pub(crate) fn reopening(
    org: OrgId,
    head: &Head,
    changes: u64,
    (author, now): (&Author, Timestamp),
    signer: Option<&Signer>,
) -> Vec<Op> {
    let delta = Delta {
        from: head.parent,
        to: head.hash,
        changed: None,
        deleted: Vec::new(),
    };
    let record = VersionRecord {
        head: head.clone(),
        at: now,
        author: author.name.clone(),
        source: author.source,
        changes,
        changed: Vec::new(),
    };
    let head = Op::put(keys::head(org), head.to_json());
    let delta = Op::put(keys::delta(org), json(&delta));
    let record = record_ops(org, &record, signer);
    [head, delta].into_iter().chain(record).collect()
}
