//! Facts of more secrets than fit the transaction of a head.
//!
//! Which secrets are over is a fact for each credential, and must hold as soon as the version that
//! ends them does. A version that ends many names them all in one value, `retiring/{org}`, in its
//! head's transaction; the facts rise afterwards, part by part, and the value goes. Until then
//! nothing else is published in the organisation (every head compares that there is no such value),
//! so that no rollback finds a secret that is over and has no fact yet. Whoever meets the value
//! finishes it: the publisher itself, the next one, or the janitor, after a crash.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bytes::Bytes;
use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::retired::Retired;
use proto::store::facts::raising;
use proto::store::load;
use proto::store::{Compare, KeyValue, Op, StoreError, Txn, TxnOutcome};
use proto::tree::{ApplyError, Draft, Retirement};

use super::retiring_value::{self, Group};
use super::writes::{Writes, json};
use super::{PublishError, Publisher};

/// Facts that go into the head's transaction itself.
pub(super) const WITH_HEAD_MAX: usize = 40;
/// Facts that rise in one transaction.
const AT_ONCE: usize = 100;
/// Tries at facts that others raise too.
const TRIES: usize = 100;

/// Leaves the facts for afterwards.
///
/// # Errors
/// [`ApplyError::TooLarge`]: they are too many for one version.
pub(super) fn leave<'r>(
    org: OrgId,
    retirements: impl Iterator<Item = (CredentialId, &'r Retirement)>,
    now: jiff::Timestamp,
    writes: &mut Writes,
) -> Result<(), ApplyError> {
    let value = value(retirements.map(|(id, one)| (id, one.raise(None, now))))?;
    writes.with_head.push(Op::put(keys::retiring(org), value));
    Ok(())
}

/// Refuses what a version cannot end at once.
///
/// # Errors
/// As for [`leave`].
pub(super) fn check(draft: &Draft, now: jiff::Timestamp) -> Result<(), ApplyError> {
    let retirements = &draft.retirements;
    match retirements.len() > WITH_HEAD_MAX {
        true => {
            let facts = retirements.iter();
            value(facts.map(|(id, one)| (*id, one.raise(None, now)))).map(drop)
        }
        false => Ok(()),
    }
}

/// The facts as they are left.
///
/// # Errors
/// As for [`leave`].
pub(crate) fn value(
    facts: impl Iterator<Item = (CredentialId, Retired)>,
) -> Result<Vec<u8>, ApplyError> {
    // Of a rotation all are one; of many versions at once each may be another.
    let mut groups: BTreeMap<Bytes, Group> = BTreeMap::new();
    for (credential, fact) in facts {
        match groups.entry(json(&fact)) {
            Entry::Occupied(mut group) => group.get_mut().credentials.push(credential),
            Entry::Vacant(group) => {
                group.insert(Group::of(fact, credential));
            }
        }
    }
    retiring_value::encode(groups.into_values().collect())
}

impl Publisher {
    /// Raises the facts that a version left for afterwards; nothing to do is the usual case.
    ///
    /// # Errors
    /// The store did not answer, or holds what cannot be read; what was raised stays.
    pub(crate) async fn finish_retiring(&self, org: OrgId) -> Result<(), PublishError> {
        let key = keys::retiring(org);
        let Some(left) = self.store.get(&key).await?.value else {
            return Ok(());
        };
        let groups = retiring_value::decode(&left.value);
        let groups = groups.map_err(|why| PublishError::Unreadable(format!("{key}: {why}")))?;
        for _ in 0..TRIES {
            if self.raise_all(org, &groups, &left).await? {
                return Ok(());
            }
        }
        Err(PublishError::Contended)
    }

    /// The same after a version that stands, whatever comes of it.
    pub(super) async fn retire_now(&self, org: OrgId) {
        if let Err(error) = self.finish_retiring(org).await {
            tracing::warn!(%org, %error, "facts of {org}'s secrets wait for the next publish");
        }
    }

    /// The same for all organisations that have something left.
    ///
    /// # Errors
    /// The store did not answer. What concerns one organisation is logged and left for later.
    pub(crate) async fn finish_all_retiring(&self) -> Result<(), StoreError> {
        let mut orgs = Vec::new();
        load::list(&*self.store, keys::RETIRING, None, |pair| {
            let org = pair.key.strip_prefix(keys::RETIRING);
            orgs.extend(org.and_then(|org| org.parse::<OrgId>().ok()));
        })
        .await?;
        for org in orgs {
            match self.finish_retiring(org).await {
                Ok(()) => {}
                Err(PublishError::Store(error @ StoreError::Unavailable(_))) => return Err(error),
                Err(error) => {
                    tracing::error!(%org, %error, "retired secrets of {org} wait: {error}");
                }
            }
        }
        Ok(())
    }

    /// Raises all facts once, then takes the value away. False if somebody else raised some.
    async fn raise_all(
        &self,
        org: OrgId,
        groups: &[Group],
        left: &KeyValue,
    ) -> Result<bool, PublishError> {
        let mut known: BTreeMap<String, KeyValue> = BTreeMap::new();
        load::list(&*self.store, &keys::retired_of(org), None, |pair| {
            known.insert(pair.key.clone(), pair);
        })
        .await?;
        let now = (self.clock)();
        let (mut txns, mut txn) = (Vec::new(), Txn::default());
        for group in groups {
            for credential in &group.credentials {
                let key = keys::retired(org, *credential);
                let raise = |before: Option<Retired>| {
                    let settled = before.map(|before| before.settled(now));
                    group.fact.clone().joined(settled)
                };
                let Some((compare, put)) = raising(&key, known.get(&key), raise)? else {
                    continue;
                };
                txn.compares.push(compare);
                txn.ops.push(put);
                if txn.ops.len() == AT_ONCE {
                    txns.push(std::mem::take(&mut txn));
                }
            }
        }
        txns.push(txn);
        for txn in txns.into_iter().filter(|txn| !txn.ops.is_empty()) {
            if let TxnOutcome::Conflict(_) = self.store.txn(txn).await? {
                return Ok(false);
            }
        }
        let done = Txn {
            compares: vec![Compare::ModRevision(left.key.clone(), left.mod_revision)],
            ops: vec![Op::Delete(left.key.clone())],
            or_read: Vec::new(),
        };
        // Gone already, or another version's: whoever took it away had raised all of these.
        self.store.txn(done).await?;
        Ok(true)
    }
}
