//! Stores what home answered: verified by hash, in order, on a compare with the local head.
//!
//! One transaction holds everything where it fits. Else content goes first, and the head's
//! transaction compares the sweep counter, as for a large publish. Several versions of one answer
//! are stored with one move of the head: nodes then never see a version whose secret home has
//! destroyed since, and their way from the one to the other is known by the records between.

use std::io;
use std::sync::Arc;

use proto::id::OrgId;
use proto::keys;
use proto::store::chunks::chunks;
use proto::store::load::{self, LoadError};
use proto::store::{Compare, Op, Revision, Store, StoreError, Txn, TxnOutcome};
use proto::tree::{Delta, Head, OrgConfig, TreeError, VersionRecord};
use proto::wire::replication::{Position, VersionParts, Versions};

use super::connection::Connection;
use super::leader::Place;
use crate::publish::writes::{ONE_TXN_OPS, Writes, json};

/// Why versions were not stored. The local head has not moved, or has to a version of home.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    #[error("home: {0}")]
    Link(#[from] io::Error),
    #[error("{org}: {why}")]
    Refused { org: OrgId, why: String },
    #[error("what is stored here cannot be read: {0}")]
    Local(LoadError),
    #[error("{0} moved meanwhile, or another control plane replicates")]
    Moved(OrgId),
}

impl From<TreeError> for ApplyError {
    fn from(error: TreeError) -> Self {
        let why = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        Self::Link(why)
    }
}

/// An organisation as it is stored here.
pub(super) struct Local {
    pub(super) org: OrgId,
    /// The head's last change.
    at: Option<Revision>,
    pub(super) config: Option<Arc<OrgConfig>>,
}

/// What storing led to.
pub(super) struct Stored {
    /// Versions.
    pub count: u64,
    /// The newest.
    pub position: Option<Position>,
    /// The same.
    pub config: Option<Arc<OrgConfig>>,
}

/// What is stored at once.
pub(super) struct Plan {
    pub writes: Writes,
    /// Content was written already, under this sweep counter.
    pub sweep: Option<Compare>,
}

impl Local {
    /// Reads an organisation; `seen` spares reading what it holds.
    pub async fn read(
        store: &dyn Store,
        org: OrgId,
        seen: Option<Arc<OrgConfig>>,
    ) -> Result<Self, ApplyError> {
        let found = load::head(store, org).await.map_err(local)?;
        let Some((head, at)) = found else {
            return Ok(Self {
                org,
                at: None,
                config: None,
            });
        };
        let config = match seen {
            Some(seen) if seen.head == head => seen,
            seen => {
                let loaded = load::version(store, org, head, seen.as_deref()).await;
                Arc::new(loaded.map_err(local)?.config)
            }
        };
        Ok(Self {
            org,
            at: Some(at),
            config: Some(config),
        })
    }

    pub fn config(&self) -> Option<&Arc<OrgConfig>> {
        self.config.as_ref()
    }

    pub fn position(&self) -> Option<Position> {
        self.config
            .as_ref()
            .map(|config| Position::from(&config.head))
    }

    fn unchanged(&self) -> Compare {
        let key = keys::head(self.org);
        match self.at {
            Some(at) => Compare::ModRevision(key, at),
            None => Compare::Absent(key),
        }
    }

    /// Stores an answer of home.
    pub async fn store(
        self,
        store: &Arc<dyn Store>,
        connection: &mut Connection,
        place: &Place,
        versions: Versions,
    ) -> Result<Stored, ApplyError> {
        let records = self.chain(&versions)?;
        let mut plan = Plan {
            writes: Writes {
                compares: vec![self.unchanged(), place.held()],
                ..Writes::default()
            },
            sweep: None,
        };
        self.add_facts(&**store, &versions, &mut plan).await?;
        let Some(last) = records.last().map(|record| record.head.clone()) else {
            let (position, config) = (self.position(), self.config.clone());
            self.commit(&**store, plan).await?;
            return Ok(Stored {
                count: 0,
                position,
                config,
            });
        };
        let content = self
            .content(store, connection, &versions.versions, &records, &mut plan)
            .await?;
        let config = self.assemble(&**store, &last, &content).await?;
        self.add_sealed(connection, &config, &versions, &mut plan)
            .await?;
        for (parts, record) in versions.versions.iter().zip(&records) {
            let key = keys::version(self.org, record.head.n);
            plan.writes.before.push(Op::put(key, parts.record.clone()));
        }
        let delta = self.delta(&last, versions.delta);
        let head = Op::put(keys::head(self.org), last.to_json());
        plan.writes.with_head.extend([delta, head]);
        self.commit(&**store, plan).await?;
        Ok(Stored {
            count: records.len() as u64,
            position: Some(Position::from(&last)),
            config: Some(Arc::new(config)),
        })
    }

    /// The records of an answer, each the child of the one before it.
    fn chain(&self, versions: &Versions) -> Result<Vec<VersionRecord>, ApplyError> {
        let mut before = self.config.as_ref().map(|config| config.head.clone());
        let mut records = Vec::new();
        for VersionParts { record, .. } in &versions.versions {
            let record: VersionRecord = serde_json::from_slice(record)
                .map_err(|error| self.refused(format!("a record cannot be read: {error}")))?;
            let head = &record.head;
            if !head.is_genuine() {
                return Err(self.refused(format!("version {} has another hash", head.n)));
            }
            let follows = match &before {
                // Home no longer keeps what lies between: only forwards, in the same history or a
                // later one.
                Some(before) if versions.snapshot && records.is_empty() => {
                    (&head.epoch, head.n) > (&before.epoch, before.n)
                }
                None => versions.snapshot || head.parent.is_none(),
                Some(before) => {
                    head.parent == Some(before.hash)
                        && head.n == before.n + 1
                        && head.epoch >= before.epoch
                }
            };
            if !follows {
                let why = format!(
                    "version {} ({}) does not follow what is here",
                    head.n, head.hash
                );
                return Err(self.refused(why));
            }
            before = Some(head.clone());
            records.push(record);
        }
        Ok(records)
    }

    /// The delta from the version here to the last one.
    fn delta(&self, last: &Head, given: Option<Vec<u8>>) -> Op {
        let from = self.config.as_ref().map(|config| config.head.hash);
        let leads = |delta: &Delta| delta.from == from && delta.to == last.hash;
        let given = given.and_then(|json| serde_json::from_slice::<Delta>(&json).ok());
        // Without objects it sends nodes to the leaves.
        let delta = given.filter(leads).unwrap_or(Delta {
            from,
            to: last.hash,
            changed: None,
            deleted: Vec::new(),
        });
        Op::put(keys::delta(self.org), json(&delta))
    }

    async fn commit(&self, store: &dyn Store, plan: Plan) -> Result<(), ApplyError> {
        let Plan { mut writes, sweep } = plan;
        if writes.with_head.is_empty() {
            return Ok(());
        }
        writes.compares.extend(sweep.clone());
        if !writes.fit_one_txn(0) {
            if sweep.is_none() {
                writes.compares.push(self.sweep(store).await?);
            }
            write(store, std::mem::take(&mut writes.before)).await?;
        }
        let mut ops = writes.with_head;
        ops.append(&mut writes.before);
        let room = ONE_TXN_OPS.saturating_sub(ops.len());
        let rest = writes.after.split_off(room.min(writes.after.len()));
        ops.append(&mut writes.after);
        let txn = Txn {
            compares: writes.compares,
            ops,
            or_read: vec![],
        };
        match store.txn(txn).await? {
            TxnOutcome::Committed(_) => Ok(write(store, rest).await?),
            TxnOutcome::Conflict(_) => Err(ApplyError::Moved(self.org)),
        }
    }

    /// Deletes the organisation's head; what it reached is then swept.
    pub async fn delete(self, store: &dyn Store, place: &Place) -> Result<(), ApplyError> {
        let txn = Txn {
            compares: vec![self.unchanged(), place.held()],
            ops: vec![
                Op::Delete(keys::head(self.org)),
                Op::Delete(keys::delta(self.org)),
            ],
            or_read: vec![],
        };
        match store.txn(txn).await? {
            TxnOutcome::Committed(_) => Ok(()),
            TxnOutcome::Conflict(_) => Err(ApplyError::Moved(self.org)),
        }
    }

    pub(super) fn refused(&self, why: String) -> ApplyError {
        let org = self.org;
        ApplyError::Refused { org, why }
    }
}

/// Writes what nothing names yet, or nothing names any more.
pub(super) async fn write(store: &dyn Store, ops: Vec<Op>) -> Result<(), StoreError> {
    for ops in chunks(ops) {
        let txn = Txn {
            ops,
            ..Txn::default()
        };
        store.txn(txn).await?;
    }
    Ok(())
}

fn local(error: LoadError) -> ApplyError {
    match error {
        LoadError::Store(error) => ApplyError::Store(error),
        error => ApplyError::Local(error),
    }
}
