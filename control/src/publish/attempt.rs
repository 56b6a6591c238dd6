//! One version of one parent: made and written.
//!
//! When everything fits, leaves, root, delta, record, secrets, facts and head go in one
//! transaction, and nothing unreferenced is ever written. A larger publish writes content first;
//! its head's transaction also compares the sweep counter `gc/{org}`, so that no sweep can have
//! deleted what it just wrote.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::object::{ObjectId, StoredCredential};
use proto::problem::Problem;
use proto::seal::{self, Binding};
use proto::store::chunks::chunks;
use proto::store::facts::raising;
use proto::store::lacking;
use proto::store::{Compare, LeaseId, Op, StoreError, Txn, TxnOutcome};
use proto::tree::{ApplyError, Draft, OrgConfig, Packed, Retirement, VERSION_CHANGED_MAX};

use super::cache::Parent;
use super::idempotency::{self, Remembered};
use super::recognising::Attempt;
use super::retiring;
use super::sweep_counter;
use super::turn::Turn;
use super::writes::{ONE_TXN_OPS, Writes, json, leaf_ops, narrowing, version_ops};
use super::{Publish, PublishError, Published, Publisher};
use crate::audit;

/// What came of a try.
pub(super) enum Outcome {
    /// The version stands.
    Done(Published),
    /// Somebody else was first.
    Lost,
}

impl Publisher {
    /// Makes the version that follows `parent`, of what was judged at a time, and writes it.
    pub(super) async fn attempt(
        &self,
        parent: &Parent,
        (draft, now): (Draft, Timestamp),
        (publish, free, turn): (&Publish, Option<Compare>, &Turn),
        unsure: &mut Vec<Attempt>,
    ) -> Result<Outcome, PublishError> {
        if draft.changed.is_empty() {
            return self.unchanged(parent, (publish, free)).await;
        }
        let parent_head = &parent.config.head;
        let org = parent.config.org;
        let homed = self.homed(org, &parent_head.epoch).await?;
        let organisations = self.organisations(&parent.config, &draft).await?;
        let facts = Facts::of(&draft);
        let salt = audit::salt(&*self.store, org, self.region()).await?;
        let mut packed = draft.commit(&parent.config, parent_head.gc, salt)?;
        let mut writes = self.facts(&packed.config, &facts, now).await?;
        writes.compares.push(parent.unchanged.clone());
        homed.guard(parent.config.org, &mut writes);
        let epoch = &homed.home.epoch;
        let firsts = self.add_organisations(&organisations, epoch, now, &mut writes)?;
        writes.before.extend(leaf_ops(org, &packed.leaves));
        let narrowing = narrowing(&parent.config, &packed.config, self.region());
        writes.with_head.extend(narrowing);
        let remember = match free {
            Some(free) => Some((self.memory.lease(&*self.store).await?, free)),
            None => None,
        };
        let remembers = if remember.is_some() { 2 } else { 0 };
        // Head, delta, record and its signature, and the turn.
        if !writes.fit_one_txn(remembers + 4 + usize::from(turn.is_held())) {
            let gc = self.write_content(packed.config.org, &mut writes).await?;
            packed = packed.with_gc(gc);
        }
        let leaves_facts = facts.retirements.len() > retiring::WITH_HEAD_MAX;
        let changed = facts.changed;
        self.add_head(&packed, &changed, (publish, now), remember, &mut writes);
        let attempt = Attempt {
            config: Arc::new(packed.config),
            changed,
            firsts,
        };
        turn.guard(&*self.store, org, &mut writes).await;
        let outcome = self.write_head(writes, attempt, unsure).await?;
        if matches!(outcome, Outcome::Done(_)) {
            self.sweep(&organisations).await;
            if leaves_facts {
                self.retire_now(org).await;
            }
        }
        Ok(outcome)
    }

    /// Makes no version: what was asked for is so already. That alone is remembered where the
    /// request has a key, else its repeat might undo what somebody else changes after it.
    async fn unchanged(
        &self,
        parent: &Parent,
        (publish, free): (&Publish, Option<Compare>),
    ) -> Result<Outcome, PublishError> {
        let head = &parent.config.head;
        let done = Published {
            n: head.n,
            hash: head.hash,
            config: Arc::clone(&parent.config),
            changed: Vec::new(),
            replayed: false,
        };
        let (Some(idempotency), Some(free)) = (&publish.idempotency, free) else {
            return Ok(Outcome::Done(done));
        };
        let remembered = Remembered {
            fingerprint: idempotency.fingerprint,
            n: head.n,
            hash: head.hash,
            changed: Vec::new(),
        };
        let lease = self.memory.lease(&*self.store).await?;
        let put = idempotency::put_here(parent.config.org, &idempotency.key, &remembered, lease);
        let txn = Txn {
            compares: vec![parent.unchanged.clone(), free],
            ops: vec![put],
            or_read: vec![],
        };
        match self.store.txn(txn).await {
            Ok(TxnOutcome::Committed(_)) => Ok(Outcome::Done(done)),
            Ok(TxnOutcome::Conflict(_)) => Ok(Outcome::Lost),
            Err(StoreError::LeaseNotFound(_)) => {
                self.memory.lease_is_gone().await;
                Ok(Outcome::Lost)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Seals new secrets, raises the facts of old ones.
    async fn facts(
        &self,
        config: &OrgConfig,
        facts: &Facts,
        now: Timestamp,
    ) -> Result<Writes, PublishError> {
        let mut writes = Writes::default();
        let org = config.org;
        for (credential, secret) in &facts.secrets {
            if let Some(stored) = config.credential(*credential) {
                self.seal(org, (*credential, stored), secret, &mut writes)?;
            }
        }
        for (credential, seal_id) in &facts.unsealed {
            for public in self.seals_to() {
                let key = keys::secret(org, *credential, seal_id, &public.region);
                writes.after.push(Op::Delete(key));
            }
        }
        for (credential, seal_id) in &facts.narrowed {
            let stored = config.credential(*credential);
            let stays =
                |region: &str| stored.is_some_and(|stored| stored.credential.is_for_region(region));
            self.refuse_last(org, (*credential, seal_id), stays).await?;
            for public in self.seals_to().filter(|to| !stays(&to.region)) {
                let key = keys::secret(org, *credential, seal_id, &public.region);
                writes.after.push(Op::Delete(key));
            }
        }
        writes.compares.push(Compare::Absent(keys::retiring(org)));
        if facts.retirements.len() > retiring::WITH_HEAD_MAX {
            let retirements = facts.retirements.iter().map(|(id, one)| (*id, one));
            retiring::leave(org, retirements, now, &mut writes)?;
            return Ok(writes);
        }
        for (credential, retirement) in &facts.retirements {
            let key = keys::retired(org, *credential);
            let stored = self.store.get(&key).await?.value;
            let raise = |before| retirement.raise(before, now);
            if let Some((compare, put)) = raising(&key, stored.as_ref(), raise)? {
                writes.compares.push(compare);
                writes.with_head.push(put);
            }
        }
        Ok(writes)
    }

    /// Adds what a secret is sealed in, for each region that may have it.
    fn seal(
        &self,
        org: OrgId,
        (credential, stored): (CredentialId, &StoredCredential),
        secret: &seal::NewSecret,
        writes: &mut Writes,
    ) -> Result<(), PublishError> {
        let Some(seal_id) = &secret.seal_id else {
            return Ok(());
        };
        let binding = Binding {
            org,
            credential,
            hosts: &stored.credential.hosts,
            seal_id,
        };
        let before = writes.before.len();
        let to = self.seals_to();
        for public in to.filter(|to| stored.credential.is_for_region(&to.region)) {
            // Not sealed to a region by whoever sealed it ahead: nodes that have it do that.
            if let Some(sealed) = secret.sealed_to(public, &binding)? {
                let key = keys::secret(org, credential, seal_id, &public.region);
                writes.before.push(Op::put(key, json(&sealed)));
            }
        }
        if writes.before.len() == before && secret.sealed_ahead_for().is_some() {
            let detail = "another region sealed the secret, and for none of the regions of this \
                          credential: its regions changed meanwhile; try again";
            let problem = Problem::new("/secret", "sealed-otherwise", detail);
            return Err(ApplyError::Invalid(vec![problem]).into());
        }
        Ok(())
    }

    /// Refuses to destroy what a secret is sealed in, unless a region that stays has its own: one
    /// that was added may not have it yet.
    async fn refuse_last(
        &self,
        org: OrgId,
        (credential, seal_id): (CredentialId, &str),
        stays: impl Fn(&str) -> bool,
    ) -> Result<(), PublishError> {
        let regions = lacking::regions_with(&*self.store, org, credential, seal_id).await?;
        if regions.is_empty() || regions.iter().any(|region| stays(region)) {
            return Ok(());
        }
        let detail = format!(
            "the secret of {credential} is sealed for none of these regions yet: keep one that \
             has it until then, or give `secret` again"
        );
        let problem = Problem::new("/regions", "secret-required", detail);
        Err(ApplyError::Invalid(vec![problem]).into())
    }

    /// Head, delta, record, and the remembered outcome.
    fn add_head(
        &self,
        packed: &Packed,
        changed: &[ObjectId],
        (publish, now): (&Publish, Timestamp),
        remember: Option<(LeaseId, Compare)>,
        writes: &mut Writes,
    ) {
        let ops = version_ops(packed, changed, (&publish.author, now), self.signer());
        writes.with_head.extend(ops);
        if let (Some(idempotency), Some((lease, free))) = (&publish.idempotency, remember) {
            let head = &packed.config.head;
            let remembered = Remembered {
                fingerprint: idempotency.fingerprint,
                n: head.n,
                hash: head.hash,
                changed: changed.iter().take(VERSION_CHANGED_MAX).copied().collect(),
            };
            writes.compares.push(free);
            let puts = idempotency::puts(packed.config.org, &idempotency.key, remembered, lease);
            writes.with_head.extend(puts);
        }
    }

    /// The larger publish: content goes first. Returns the sweep counter that the head must name,
    /// and leaves a compare on it.
    async fn write_content(&self, org: OrgId, writes: &mut Writes) -> Result<u64, PublishError> {
        let (gc, unswept) = sweep_counter::read(&*self.store, org).await?;
        writes.compares.push(unswept);
        // Content is named by its hash or a random id: written twice, it is the same.
        for ops in chunks(std::mem::take(&mut writes.before)) {
            self.store
                .txn(Txn {
                    ops,
                    ..Txn::default()
                })
                .await?;
        }
        Ok(gc)
    }

    /// The transaction that makes the version the newest one.
    async fn write_head(
        &self,
        mut writes: Writes,
        attempt: Attempt,
        unsure: &mut Vec<Attempt>,
    ) -> Result<Outcome, PublishError> {
        let mut ops = writes.with_head;
        ops.append(&mut writes.before);
        // What nobody names any more goes in the same transaction when there is room.
        let room = ONE_TXN_OPS
            .saturating_sub(ops.len())
            .min(writes.after.len());
        ops.extend(writes.after.drain(..room));
        let org = attempt.config.org;
        let outcome = self
            .store
            .txn(Txn {
                compares: writes.compares,
                ops,
                or_read: vec![],
            })
            .await;
        match outcome {
            Ok(TxnOutcome::Committed(_)) => {
                for ops in chunks(writes.after) {
                    // Left over, it is unreachable: the sweep finds it.
                    if let Err(error) = self
                        .store
                        .txn(Txn {
                            ops,
                            ..Txn::default()
                        })
                        .await
                    {
                        tracing::warn!(%org, %error, "old sealed values stay until the sweep");
                    }
                }
                Ok(Outcome::Done(attempt.stands()))
            }
            Ok(TxnOutcome::Conflict(_)) => Ok(Outcome::Lost),
            Err(error @ StoreError::OutcomeUnknown(_)) => {
                unsure.push(attempt);
                Err(error.into())
            }
            Err(StoreError::LeaseNotFound(_)) => {
                self.memory.lease_is_gone().await;
                Ok(Outcome::Lost)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What a draft means beside the tree.
struct Facts {
    changed: Vec<ObjectId>,
    secrets: Vec<(CredentialId, Arc<seal::NewSecret>)>,
    retirements: Vec<(CredentialId, Retirement)>,
    unsealed: BTreeSet<(CredentialId, String)>,
    /// Of sealed secrets that are in the store and stay.
    narrowed: BTreeSet<(CredentialId, String)>,
}

impl Facts {
    fn of(draft: &Draft) -> Self {
        let unsealed: BTreeSet<_> = draft.unsealed.iter().cloned().collect();
        // One list may change a credential several times: what goes altogether is not destroyed
        // for some regions besides, and what is new is sealed for those that there are at last.
        let is_new = |(id, seal_id): &(CredentialId, String)| {
            let secret = draft.secrets.get(id);
            secret.is_some_and(|secret| secret.seal_id.as_ref() == Some(seal_id))
        };
        let stays = |name: &&_| !unsealed.contains(*name) && !is_new(name);
        let narrowed = draft.narrowed.iter().filter(stays).cloned().collect();
        Self {
            changed: draft.changed.clone(),
            secrets: draft
                .secrets
                .iter()
                .map(|(id, secret)| (*id, Arc::clone(secret)))
                .collect(),
            retirements: draft
                .retirements
                .iter()
                .map(|(id, r)| (*id, r.clone()))
                .collect(),
            unsealed,
            narrowed,
        }
    }
}
