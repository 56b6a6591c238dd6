//! Creating and deleting organisations: versions of `system` that have an effect outside its tree.
//!
//! A new organisation gets its first, empty version in the same transaction. One that still has
//! targets, credentials or proxies cannot be deleted: nobody should lose a gateway to one request,
//! and whoever means it can delete them first. Its API tokens go with it.

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::seal;
use proto::store::chunks::chunks;
use proto::store::{Compare, Op, Range, StoreError, Txn};
use proto::tree::{ApplyError, Draft, Head, OrgConfig, SYSTEM_ORG};
use proto::version::Epoch;

use super::writes::{Writes, leaf_ops, version_ops};
use super::{Author, PublishError, Publisher, homes};

/// Who makes the first version of an organisation.
pub(super) const AUTHOR: &str = "system";
/// Most users that a refusal names.
const USERS_NAMED_MAX: usize = 100;
/// Keys deleted at one time.
const SWEEP_KEYS: usize = 100;

/// What a version of `system` does to other organisations.
#[derive(Default)]
pub(super) struct Organisations {
    created: Vec<OrgId>,
    deleted: Vec<(OrgId, Vec<Compare>)>,
}

impl Publisher {
    /// Which organisations a draft creates and deletes, and whether it may.
    pub(super) async fn organisations(
        &self,
        parent: &OrgConfig,
        draft: &Draft,
    ) -> Result<Organisations, PublishError> {
        let mut organisations = Organisations::default();
        for id in &draft.changed {
            let ObjectId::Org(org) = *id else { continue };
            if parent.org != SYSTEM_ORG {
                return Err(ApplyError::NotFound(*id).into());
            }
            match (parent.object(*id), draft.object(*id)) {
                (None, Some(_)) if org != SYSTEM_ORG => organisations.created.push(org),
                (Some(_), None) => {
                    let unchanged = self.deletable(parent, org).await?;
                    organisations.deleted.push((org, unchanged));
                }
                _ => {}
            }
        }
        Ok(organisations)
    }

    /// The compares that hold while an organisation may be deleted.
    async fn deletable(
        &self,
        system: &OrgConfig,
        org: OrgId,
    ) -> Result<Vec<Compare>, PublishError> {
        let id = ObjectId::Org(org);
        let in_use = |users: Vec<ObjectId>| ApplyError::InUse { id, users };
        if org == SYSTEM_ORG {
            let others = system.objects.keys().filter(|other| **other != id).copied();
            return Err(in_use(others.take(USERS_NAMED_MAX).collect()).into());
        }
        let newest = match self.parent(org).await {
            Ok(newest) => newest,
            // Nothing is left of it but its name.
            Err(PublishError::OrgUnknown(_)) => return Ok(vec![Compare::Absent(keys::head(org))]),
            Err(error) => return Err(error),
        };
        let objects = newest.config.objects.iter();
        let users = objects
            .filter(|(_, object)| !matches!(object.body, Body::Token(_)))
            .map(|(id, _)| *id)
            .take(USERS_NAMED_MAX);
        let users: Vec<ObjectId> = users.collect();
        if !users.is_empty() {
            return Err(in_use(users).into());
        }
        let epoch = &newest.config.head.epoch;
        let home = self.home(org, epoch).await?.region;
        if home != self.region() {
            let system = self.region().to_owned();
            return Err(PublishError::HomeElsewhere { org, home, system });
        }
        let mut writes = Writes::default();
        let homed = self.homed(org, epoch).await?;
        homed.guard(org, &mut writes);
        writes.compares.push(newest.unchanged);
        Ok(writes.compares)
    }

    /// The first version of new organisations, which are given, and the end of deleted ones.
    pub(super) fn add_organisations(
        &self,
        organisations: &Organisations,
        epoch: &Epoch,
        now: jiff::Timestamp,
        writes: &mut Writes,
    ) -> Result<Vec<(OrgId, Head)>, PublishError> {
        let author = Author {
            name: AUTHOR.into(),
            role: Role::Owner,
            source: None,
        };
        let mut firsts = Vec::new();
        for org in &organisations.created {
            let genesis = OrgConfig::genesis(*org, epoch.clone());
            let packed = Draft::default().commit(&genesis, 0, seal::random_name())?;
            let home = Home::first(epoch.clone(), self.region());
            writes.compares.push(Compare::Absent(keys::head(*org)));
            writes.with_head.push(homes::put(*org, &home));
            writes
                .with_head
                .extend(version_ops(&packed, &[], (&author, now), self.signer()));
            writes.with_head.extend(leaf_ops(*org, &packed.leaves));
            firsts.push((*org, packed.config.head));
        }
        for (org, unchanged) in &organisations.deleted {
            writes.compares.extend(unchanged.iter().cloned());
            writes.with_head.push(Op::Delete(keys::head(*org)));
            writes.with_head.push(Op::Delete(keys::home(*org)));
            writes.with_head.push(Op::Delete(keys::delta(*org)));
        }
        Ok(firsts)
    }

    /// Deletes what is left of deleted organisations. Ids are never used again, so what stays
    /// after a failure is waste, not danger; the janitor's sweep finds it.
    pub(super) async fn sweep(&self, organisations: &Organisations) {
        for (org, _) in &organisations.deleted {
            self.sweep_one(*org).await;
        }
    }

    /// The same for one whose head is gone.
    pub(crate) async fn sweep_one(&self, org: OrgId) {
        self.slots.of(org).forget();
        for prefix in [
            keys::leaves(org),
            keys::versions(org),
            keys::signatures(org),
            keys::secrets(org),
            keys::retired_of(org),
            keys::idempotency_of(org),
            keys::tokens(org),
            keys::shares_of(org),
            keys::grants_of(org),
        ] {
            if let Err(error) = self.delete_all(&prefix).await {
                tracing::warn!(%org, %error, prefix, "a deleted organisation leaves keys");
            }
        }
    }

    async fn delete_all(&self, prefix: &str) -> Result<(), StoreError> {
        loop {
            let range = Range {
                prefix: prefix.to_owned(),
                after: None,
                limit: SWEEP_KEYS,
                at: None,
            };
            let page = self.store.range(range).await?;
            if page.items.is_empty() {
                return Ok(());
            }
            for ops in chunks(
                page.items
                    .into_iter()
                    .map(|pair| Op::Delete(pair.key))
                    .collect(),
            ) {
                self.store
                    .txn(Txn {
                        ops,
                        ..Txn::default()
                    })
                    .await?;
            }
        }
    }
}
