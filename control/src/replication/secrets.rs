//! What goes with a version: sealed secrets, and the facts of retired ones.
//!
//! A region keeps the values of all regions, so that it can be home: it opens only its own.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::time::Duration;

use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::object::ObjectId;
use proto::retired::Retired;
use proto::seal::is_region_name;
use proto::store::{Compare, Op, Store, Txn, TxnOutcome, facts, load};
use proto::tree::{OrgConfig, VersionRecord};
use proto::version::Generation;
use proto::wire::replication::{Answer, Ask, SEALED_MAX, Versions};

use super::apply::{ApplyError, Local, Plan};
use super::connection::Connection;
use super::{Replication, SealName, sealed_names};
use crate::publish::retiring;
use crate::regions::Regions;

/// Facts that go into the head's transaction itself.
const FACTS_WITH_HEAD: usize = 30;

/// The secrets that both versions name and that the new one leaves out of a region.
fn narrowed(old: &OrgConfig, new: &OrgConfig) -> Vec<SealName> {
    let mut names = sealed_names(new);
    names.retain(|(id, seal)| {
        let of = |config: &OrgConfig| {
            let stored = config.credential(*id)?;
            let same = stored.seal_id() == Some(seal);
            same.then(|| stored.credential.regions.clone())
        };
        of(old).is_some_and(|before| Some(before) != of(new))
    });
    names.into_iter().collect()
}

impl Local {
    /// The secrets that the version names beyond those of the one here, and the end of those that
    /// it does not name any more.
    pub(super) async fn add_sealed(
        &self,
        (connection, regions): (&Connection, &Regions),
        config: &OrgConfig,
        versions: &Versions,
        plan: &mut Plan,
    ) -> Result<(), ApplyError> {
        let before = self.config.as_deref().map(sealed_names).unwrap_or_default();
        let after = sealed_names(config);
        // Values of the line may have been destroyed on the branch that is left.
        let mut lacking: Vec<SealName> = match self.branch.is_left() {
            true => after.iter().cloned().collect(),
            false => after.difference(&before).cloned().collect(),
        };
        let mut given = BTreeSet::new();
        for part in &versions.sealed {
            let name = (part.credential, part.seal_id.clone());
            if lacking.binary_search(&name).is_ok() {
                let put = self.sealed_put(&name, &part.region, &part.value)?;
                plan.writes.before.push(put);
                given.insert(name);
            }
        }
        lacking.retain(|name| !given.contains(name));
        while !lacking.is_empty() {
            let names = lacking[..lacking.len().min(SEALED_MAX)].to_vec();
            let ask = Ask::Sealed {
                org: self.org,
                names: names.clone(),
            };
            let Answer::Sealed(found) = connection.ask(&ask, Duration::ZERO).await? else {
                return Err(self.refused("home answered what was not asked".into()));
            };
            if found.is_empty() {
                return Err(self.refused("home answered nothing".into()));
            }
            lacking.drain(..found.len().min(names.len()));
            // Where this region has none nodes report it as missing.
            for (name, values) in names.iter().zip(found) {
                for (region, value) in values {
                    let put = self.sealed_put(name, &region, &value)?;
                    plan.writes.before.push(put);
                }
            }
        }
        // What the branch named stays with it.
        if !self.branch.is_left() {
            let over = self.ended(regions, config, before.difference(&after));
            plan.writes.after.extend(over);
        }
        Ok(())
    }

    /// What destroys sealed values that the version has for other regions only, or names no more.
    /// Those of what other regions keep alone, which a home before has, are left to the sweep: home
    /// may not have them yet.
    fn ended<'n>(
        &self,
        regions: &Regions,
        config: &OrgConfig,
        unnamed: impl Iterator<Item = &'n SealName>,
    ) -> Vec<Op> {
        let mut over = Vec::new();
        let narrowed = self.config.as_deref().map(|old| narrowed(old, config));
        for (credential, seal) in narrowed.unwrap_or_default() {
            let stored = config.credential(credential);
            let stays = |region: &&str| {
                stored.is_some_and(|stored| stored.credential.is_for_region(region))
            };
            let key = |region: &str| keys::secret(self.org, credential, &seal, region);
            let ended = regions.names().filter(|region| !stays(region));
            over.extend(ended.map(key).map(Op::Delete));
        }
        let is_part = config.withheld().next().is_some();
        let is_others = |id: CredentialId| {
            let old = self.config.as_deref().and_then(|old| old.credential(id));
            is_part && old.is_some_and(|old| !old.credential.is_for_region(&regions.own))
        };
        for (credential, seal) in unnamed.filter(|(id, _)| !is_others(*id)) {
            let key = |region: &str| keys::secret(self.org, *credential, seal, region);
            over.extend(regions.names().map(key).map(Op::Delete));
        }
        over
    }

    fn sealed_put(
        &self,
        (credential, seal): &SealName,
        region: &str,
        value: &[u8],
    ) -> Result<Op, ApplyError> {
        // It becomes a part of a key.
        if !is_region_name(region) {
            return Err(self.refused("a secret is sealed for what is no region".into()));
        }
        let key = keys::secret(self.org, *credential, seal, region);
        Ok(Op::put(key, value.to_vec()))
    }

    /// Raises the facts of retired secrets to those of home; nothing lowers them. Those of versions
    /// rise with the head: before it, nodes would refuse a secret whose successor they lack. Where
    /// they are too many, one value names them all in the head's transaction, and they rise right
    /// after it ([`Replication::retire`]).
    pub(super) async fn add_facts(
        &self,
        store: &dyn Store,
        versions: &Versions,
        plan: &mut Plan,
    ) -> Result<(), ApplyError> {
        let raising = self.raising(store, versions, |_, _| true).await?;
        if raising.len() <= FACTS_WITH_HEAD {
            for raise in raising {
                plan.writes.compares.push(raise.compare);
                plan.writes.with_head.push(raise.put);
            }
            return Ok(());
        }
        if !versions.versions.is_empty() {
            let facts = raising.iter();
            let facts = facts.map(|raise| (raise.credential, raise.fact.clone()));
            // More than one value holds end as long as the version is not here, as if revoked.
            if let Ok(left) = retiring::value(facts) {
                let key = keys::retiring(self.org);
                plan.writes.compares.push(Compare::Absent(key.clone()));
                plan.writes.with_head.push(Op::put(key, left));
                return Ok(());
            }
        }
        plan.facts.extend(in_parts(raising));
        Ok(())
    }

    /// Raises the facts that belong to none of the versions of an answer, of which none is stored:
    /// a secret that was revoked at home is over here, whatever is wrong with a version. The fact
    /// of a rotation comes with its version, or the credential would have no secret at all.
    pub(super) async fn raise_without_versions(
        &self,
        store: &dyn Store,
        (versions, records): (&Versions, &[VersionRecord]),
    ) -> Result<(), ApplyError> {
        let ends = |record: &VersionRecord, id: ObjectId, generation: &Generation| {
            let head = &record.head;
            let changes = || record.changed.contains(&id) || !record.names_all_changed();
            (&head.epoch, head.n) == (&generation.epoch, generation.n) && changes()
        };
        let here = self.config.as_ref().map(|config| Generation {
            epoch: config.head.epoch.clone(),
            n: config.head.n,
        });
        // Of a snapshot's answer the versions before it are not known.
        let is_known = |generation: &Generation| {
            !versions.snapshot || here.as_ref().is_some_and(|here| generation <= here)
        };
        let alone = |id: CredentialId, fact: &Retired| {
            let (id, next) = (ObjectId::Credential(id), fact.next.as_ref());
            let mut ended = std::iter::once(&fact.lowest).chain(next.map(|next| &next.lowest));
            ended.all(|generation| {
                let mut records = records.iter();
                is_known(generation) && !records.any(|record| ends(record, id, generation))
            })
        };
        let facts = self.raising(store, versions, alone).await?;
        self.commit_each(store, in_parts(facts)).await
    }

    /// Commits transactions, each while what it compares holds.
    pub(super) async fn commit_each(
        &self,
        store: &dyn Store,
        txns: Vec<Txn>,
    ) -> Result<(), ApplyError> {
        for txn in txns {
            if let TxnOutcome::Conflict(_) = store.txn(txn).await? {
                return Err(ApplyError::Moved(self.org));
            }
        }
        Ok(())
    }

    /// What raises those facts that are lower here.
    async fn raising(
        &self,
        store: &dyn Store,
        versions: &Versions,
        wanted: impl Fn(CredentialId, &Retired) -> bool,
    ) -> Result<Vec<Raise>, ApplyError> {
        let unreadable = |error: &dyn Display| self.refused(format!("a fact: {error}"));
        let mut raises = Vec::new();
        let mut listed = None;
        if are_many(versions) {
            let here = listed.insert(HashMap::new());
            load::list(store, &keys::retired_of(self.org), None, |pair| {
                here.insert(pair.key.clone(), pair);
            })
            .await?;
        }
        for (credential, fact) in &versions.retired {
            let told: Retired = serde_json::from_slice(fact).map_err(|error| unreadable(&error))?;
            if !wanted(*credential, &told) {
                continue;
            }
            let key = keys::retired(self.org, *credential);
            let known = match &mut listed {
                Some(here) => here.remove(&key),
                None => store.get(&key).await?.value,
            };
            let join = |here| told.clone().joined(here);
            let raised = facts::raising(&key, known.as_ref(), join);
            if let Some((compare, put)) = raised.map_err(|error| unreadable(&error))? {
                raises.push(Raise {
                    credential: *credential,
                    fact: told,
                    compare,
                    put,
                });
            }
        }
        Ok(raises)
    }
}

/// What raises one fact.
struct Raise {
    credential: CredentialId,
    fact: Retired,
    compare: Compare,
    put: Op,
}

/// Whether an answer may raise more facts than go into the head's transaction.
pub(super) fn are_many(versions: &Versions) -> bool {
    versions.retired.len() > FACTS_WITH_HEAD
}

/// The same in transactions of at most [`FACTS_WITH_HEAD`].
fn in_parts(mut raises: Vec<Raise>) -> Vec<Txn> {
    let mut txns = Vec::new();
    while !raises.is_empty() {
        let part = raises.drain(..raises.len().min(FACTS_WITH_HEAD));
        let (compares, ops) = part.map(|raise| (raise.compare, raise.put)).unzip();
        txns.push(Txn {
            compares,
            ops,
            or_read: Vec::new(),
        });
    }
    txns
}

impl Replication {
    /// Raises what an earlier version, or one that was just stored, has left to be raised.
    pub(super) async fn retire(&self, org: OrgId) -> Result<(), ApplyError> {
        Ok(self.publisher.finish_retiring(org).await?)
    }
}
