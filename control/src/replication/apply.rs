//! Stores what home answered: verified by hash, in order, on a compare with the local head.
//!
//! One transaction holds everything where it fits. Else content goes first, and the head's
//! transaction compares the sweep counter, as for a large publish. Several versions of one answer
//! are stored with one move of the head: nodes then never see a version whose secret home has
//! destroyed since, and their way from the one to the other is known by the records between.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proto::home::{Home, Lies};
use proto::id::OrgId;
use proto::keys;
use proto::store::chunks::chunks;
use proto::store::load;
use proto::store::{Compare, LeaseId, Op, Revision, Store, StoreError, Txn, TxnOutcome};
use proto::tree::{Delta, Hash, Head, OrgConfig, VersionRecord};
use proto::wire::replication::{Position, VersionParts, Versions};

pub(super) use super::apply_error::ApplyError;
use super::aside::Branch;
use super::connection::Connection;
use super::content::kept;
use super::verify::Given;
use crate::publish::homes;
use crate::publish::writes::{ONE_TXN_OPS, Writes, json};
use crate::regions::Regions;

/// What must hold besides head and home: the place of the control plane that replicates.
pub(super) type Guard = Option<Compare>;

/// An organisation as it is stored here.
pub(super) struct Local {
    pub(super) org: OrgId,
    /// The head's last change.
    at: Option<Revision>,
    /// The fact which region is home, and its last change.
    home: Option<(Home, Revision)>,
    /// What is left behind with the next versions.
    pub(super) branch: Branch,
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
    /// What raises facts that are too many for the head's transaction.
    pub facts: Vec<Txn>,
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
        let home = homes::stored(store, org).await?;
        let branch = Branch::default();
        let Some((head, at)) = load::head(store, org).await? else {
            return Ok(Self {
                org,
                at: None,
                home,
                branch,
                config: None,
            });
        };
        let config = match seen {
            Some(seen) if seen.head == head => seen,
            seen => {
                let loaded = load::version(store, org, head, seen.as_deref()).await?;
                Arc::new(loaded.config)
            }
        };
        Ok(Self {
            org,
            at: Some(at),
            home,
            branch,
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

    /// The fact which region is home.
    pub fn home(&self) -> Option<&Home> {
        self.home.as_ref().map(|(home, _)| home)
    }

    /// Refuses what a fact other than a higher one would write.
    pub fn refuse_higher(&self, line: &Home) -> Result<(), ApplyError> {
        match self.home().is_some_and(|home| home.epoch > line.epoch) {
            true => Err(ApplyError::Moved(self.org)),
            false => Ok(()),
        }
    }

    /// What holds while head and home are those that were read, and the guard does.
    pub fn compares(&self, guard: &Guard) -> Vec<Compare> {
        let key = keys::head(self.org);
        let head = match self.at {
            Some(at) => Compare::ModRevision(key, at),
            None => Compare::Absent(key),
        };
        let home = self.home.as_ref().map(|(_, at)| *at);
        let home = homes::unchanged(self.org, home);
        [head, home].into_iter().chain(guard.clone()).collect()
    }

    /// Nothing yet, under what must hold.
    fn plan(&self, guard: &Guard) -> Plan {
        Plan {
            writes: Writes {
                compares: self.compares(guard),
                ..Writes::default()
            },
            facts: Vec::new(),
            sweep: self.branch.sweep.clone(),
        }
    }

    /// Stores an answer of home, whose line is in force.
    pub async fn store(
        self,
        (store, lease): (&Arc<dyn Store>, Option<LeaseId>),
        (connection, regions): (&Connection, &Regions),
        (guard, line): (&Guard, &Home),
        Given {
            versions,
            signatures,
            remembered,
        }: Given,
    ) -> Result<Stored, ApplyError> {
        let records = self.chain(line, &versions)?;
        let verifying = (regions, connection.protocol());
        let signed = self.verify(verifying, line, (&versions, &records), signatures);
        if signed.is_err() {
            let given = (&versions, &*records);
            self.raise_without_versions(&**store, given).await?;
        }
        let signed = signed?;
        let mut plan = self.plan(guard);
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
        let given = (&versions, &*records, &last);
        let built = self.built(store, (connection, regions), given, &mut plan);
        let (content, config) = match built.await {
            Err(error) if error.is_of_one() => {
                let given = (&versions, &*records);
                self.raise_without_versions(&**store, given).await?;
                return Err(error);
            }
            built => built?,
        };
        for (parts, record) in versions.versions.iter().zip(&records) {
            let key = keys::version(self.org, record.head.n);
            plan.writes.before.push(Op::put(key, parts.record.clone()));
        }
        plan.writes.before.extend(signed);
        let told = self.remembered(&**store, &records, (&remembered, lease));
        plan.writes.before.extend(told.await?);
        let replaced = |n: &u64| records.iter().any(|record| record.head.n == *n);
        let left = self.branch.numbers.iter().filter(|n| !replaced(n));
        let left = left.flat_map(|n| [keys::version(self.org, *n), keys::signature(self.org, *n)]);
        plan.writes.before.extend(left.map(Op::Delete));
        plan.writes.with_head.extend(self.branch.with_head.clone());
        let delta = self.delta(&config, versions.delta);
        let head = Op::put(keys::head(self.org), last.to_json());
        plan.writes.with_head.extend([delta, head]);
        let step = (&**store, regions.own.as_str());
        let narrowing = self.narrowing(step, &records, &config, &content).await?;
        plan.writes.with_head.extend(narrowing);
        self.commit(&**store, plan).await?;
        Ok(Stored {
            count: records.len() as u64,
            position: Some(Position::from(&last)),
            config: Some(Arc::new(config)),
        })
    }

    /// What the newest version of an answer holds, with all that is stored for it.
    async fn built(
        &self,
        store: &Arc<dyn Store>,
        (connection, regions): (&Connection, &Regions),
        (versions, records, last): (&Versions, &[VersionRecord], &Head),
        plan: &mut Plan,
    ) -> Result<(BTreeMap<Hash, Bytes>, OrgConfig), ApplyError> {
        let content = self
            .content(
                store,
                (connection, &regions.own),
                &versions.versions,
                records,
                plan,
            )
            .await?;
        let roots = kept(last, &regions.own);
        let config = self.assemble(&**store, (last, roots), &content).await?;
        self.add_sealed((connection, regions), &config, versions, plan)
            .await?;
        Ok((content, config))
    }

    /// The records of an answer, each the child of the one before it.
    fn chain(&self, line: &Home, versions: &Versions) -> Result<Vec<VersionRecord>, ApplyError> {
        let mut before = self.config.as_ref().map(|config| config.head.clone());
        let mut records = Vec::new();
        for VersionParts { record, .. } in &versions.versions {
            let record: VersionRecord = serde_json::from_slice(record)
                .map_err(|error| self.refused(format!("a record cannot be read: {error}")))?;
            let head = &record.head;
            if !head.is_genuine() {
                return Err(self.refused(format!("version {} has another hash", head.n)));
            }
            if line.lies(&Position::from(head)) == Lies::Aside {
                let why = format!(
                    "version {} ({}) is not of the line in force",
                    head.n, head.hash
                );
                return Err(self.refused(why));
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
    fn delta(&self, new: &OrgConfig, given: Option<Vec<u8>>) -> Op {
        let last = &new.head;
        // What is kept here changed otherwise than at home.
        if let Some(old) = self.config.as_deref()
            && (old.head.is_cut() || last.is_cut())
        {
            return Op::put(keys::delta(self.org), json(&Delta::between(old, new)));
        }
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
        let Plan {
            mut writes,
            sweep,
            facts,
        } = plan;
        if writes.with_head.is_empty() {
            return self.commit_each(store, facts).await;
        }
        writes.compares.extend(sweep.clone());
        if !writes.fit_one_txn(0) {
            if sweep.is_none() {
                writes.compares.push(self.sweep(store).await?);
            }
            for ops in chunks(std::mem::take(&mut writes.before)) {
                let txn = Txn {
                    compares: writes.compares.clone(),
                    ops,
                    or_read: vec![],
                };
                if let TxnOutcome::Conflict(_) = store.txn(txn).await? {
                    return Err(ApplyError::Moved(self.org));
                }
            }
        }
        // Last before the head: what a version ends counts as long as it is not here.
        self.commit_each(store, facts).await?;
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
        commit(store, self.org, txn).await?;
        Ok(write(store, rest).await?)
    }

    /// Deletes the organisation's head; what it reached is then swept.
    pub async fn delete(self, store: &dyn Store, guard: &Guard) -> Result<(), ApplyError> {
        let txn = Txn {
            compares: self.compares(guard),
            ops: vec![
                Op::Delete(keys::head(self.org)),
                Op::Delete(keys::delta(self.org)),
                Op::Delete(keys::home(self.org)),
            ],
            or_read: vec![],
        };
        self.commit_each(store, vec![txn]).await
    }

    pub(super) fn refused(&self, why: String) -> ApplyError {
        let org = self.org;
        ApplyError::Refused { org, why }
    }
}

/// Carries a transaction out, or finds that its organisation has moved.
pub(super) async fn commit(store: &dyn Store, org: OrgId, txn: Txn) -> Result<(), ApplyError> {
    match store.txn(txn).await? {
        TxnOutcome::Committed(_) => Ok(()),
        TxnOutcome::Conflict(_) => Err(ApplyError::Moved(org)),
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
