//! What goes with a version: sealed secrets, and the facts of retired ones.
//!
//! A region keeps the values of all regions, so that it can be home: it opens only its own.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use proto::id::CredentialId;
use proto::keys;
use proto::retired::Retired;
use proto::seal::is_region_name;
use proto::store::{Op, Store, Txn, TxnOutcome, facts};
use proto::tree::OrgConfig;
use proto::wire::replication::{Answer, Ask, SEALED_MAX, Versions};

use super::apply::{ApplyError, Local, Plan};
use super::connection::Connection;
use super::{SealName, sealed_names};
use crate::regions::Regions;

/// Facts that go into the head's transaction; more of them go before it.
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
        (connection, regions): (&mut Connection, &Regions),
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
            let narrowed = self.config.as_deref().map(|old| narrowed(old, config));
            for (credential, seal) in narrowed.unwrap_or_default() {
                let stored = config.credential(credential);
                let stays = |region: &&str| {
                    stored.is_some_and(|stored| stored.credential.is_for_region(region))
                };
                let key = |region: &str| keys::secret(self.org, credential, &seal, region);
                let over = regions.names().filter(|region| !stays(region));
                plan.writes.after.extend(over.map(key).map(Op::Delete));
            }
            for (credential, seal) in before.difference(&after) {
                let key = |region: &str| keys::secret(self.org, *credential, seal, region);
                let over = regions.names().map(key).map(Op::Delete);
                plan.writes.after.extend(over);
            }
        }
        Ok(())
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

    /// Raises the facts of retired secrets to those of home; nothing lowers them.
    pub(super) async fn add_facts(
        &self,
        store: &dyn Store,
        versions: &Versions,
        plan: &mut Plan,
    ) -> Result<(), ApplyError> {
        let early = versions.retired.len() > FACTS_WITH_HEAD;
        for facts in versions.retired.chunks(FACTS_WITH_HEAD) {
            let mut raising = Txn::default();
            for (credential, fact) in facts {
                self.raise(store, *credential, fact, &mut raising).await?;
            }
            if !early {
                plan.writes.compares.append(&mut raising.compares);
                plan.writes.with_head.append(&mut raising.ops);
            } else if !raising.ops.is_empty()
                && let TxnOutcome::Conflict(_) = store.txn(raising).await?
            {
                return Err(ApplyError::Moved(self.org));
            }
        }
        Ok(())
    }

    async fn raise(
        &self,
        store: &dyn Store,
        credential: CredentialId,
        fact: &[u8],
        raising: &mut Txn,
    ) -> Result<(), ApplyError> {
        let unreadable = |error: &dyn Display| self.refused(format!("a fact: {error}"));
        let told: Retired = serde_json::from_slice(fact).map_err(|error| unreadable(&error))?;
        let key = keys::retired(self.org, credential);
        let known = store.get(&key).await?.value;
        let raised = facts::raising(&key, known.as_ref(), |here| told.joined(here));
        if let Some((compare, put)) = raised.map_err(|error| unreadable(&error))? {
            raising.compares.push(compare);
            raising.ops.push(put);
        }
        Ok(())
    }
}
