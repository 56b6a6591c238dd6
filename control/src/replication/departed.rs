//! Organisations that are here and are no more: deleted at home, or created on a branch that is not
//! in force, in this region or in one that it followed.

use std::collections::BTreeSet;

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::object::ObjectId;
use proto::store::load;
use proto::tree::{SYSTEM_ORG, VersionRecord};
use proto::wire::replication::Moved;
use tracing::{info, warn};

use super::apply::{ApplyError, Guard, Local};
use super::{Broken, Replication};
use crate::publish::homes;

impl Replication {
    /// Organisations that their home has no more: those that it tells now, and those that it told
    /// before and that stayed because `system` named them here, which it does no longer.
    pub(super) async fn departed(
        &self,
        peer: &str,
        (whole, moved, gone): (bool, &[Moved], Vec<OrgId>),
    ) -> Result<Vec<OrgId>, Broken> {
        let known: BTreeSet<OrgId> = moved.iter().map(|moved| moved.org).collect();
        if whole {
            self.status.follow(peer, |of| of.named_still.clear());
            self.status.keep_only(peer, &known);
            return self.strangers(peer, &known).await;
        }
        let mut waiting = BTreeSet::new();
        self.status.follow(peer, |of| {
            of.named_still.retain(|org| !known.contains(org));
            waiting.clone_from(&of.named_still);
        });
        let world = self.worlds.borrow().clone();
        let system = world.orgs.get(&SYSTEM_ORG).map(|state| &state.config);
        let is_named = |org: &OrgId| {
            system.is_none_or(|system| system.objects.contains_key(&ObjectId::Org(*org)))
        };
        waiting.retain(|org| !is_named(org));
        waiting.extend(gone);
        Ok(waiting.into_iter().collect())
    }

    /// Organisations that are here, and not among those that are known in the region that is their
    /// home.
    async fn strangers(&self, peer: &str, known: &BTreeSet<OrgId>) -> Result<Vec<OrgId>, Broken> {
        let mut strangers = Vec::new();
        for org in self.orgs().await? {
            if known.contains(&org) {
                continue;
            }
            match self.home_now(org).await {
                Ok(home) if home == peer => strangers.push(org),
                Ok(_) => {}
                // Whose it is cannot be told, and so neither that it is no more: it stays.
                Err(Broken::Apply(error)) if error.is_of_one() => warn!(%org, "{error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(strangers)
    }

    /// The home region of an organisation by the fact in the store: what was last seen of it may
    /// be late, and what is left undone by that nobody takes up again.
    async fn home_now(&self, org: OrgId) -> Result<String, Broken> {
        let stored = homes::stored(&*self.store, org).await;
        let stored = stored.map_err(ApplyError::from)?;
        Ok(stored.map_or_else(|| self.homes.region_of(org), |(home, _)| home.region))
    }

    /// Deletes an organisation that its home has no more, once `system` does not name it here
    /// either.
    pub(super) async fn remove(&self, peer: &str, guard: &Guard, org: OrgId) -> Result<(), Broken> {
        let keep_waiting = |waits: bool| {
            self.status.follow(peer, |of| {
                match waits {
                    true => of.named_still.insert(org),
                    false => of.named_still.remove(&org),
                };
            });
        };
        if self.home_now(org).await? != peer {
            keep_waiting(false);
            return Ok(());
        }
        if org == SYSTEM_ORG || self.named().await?.is_none_or(|named| named.contains(&org)) {
            warn!(%org, "its home has no {org}, but `system` names it here; it stays");
            keep_waiting(org != SYSTEM_ORG);
            return Ok(());
        }
        let local = Local::read(&*self.store, org, None).await?;
        if self.was_created_aside(org).await? {
            local.leave(&*self.store, guard).await?;
            warn!(%org, "{org} was created on another branch and is set aside");
        } else {
            local.delete(&*self.store, guard).await?;
            self.publisher.sweep_one(org).await;
            info!(%org, "{org} was deleted at home, and here");
        }
        keep_waiting(false);
        Ok(())
    }

    /// Whether an organisation was created by a version of `system` that is set aside here: home
    /// has not deleted it, it never had it.
    async fn was_created_aside(&self, org: OrgId) -> Result<bool, Broken> {
        let aside = self.publisher.aside().await.map_err(ApplyError::from)?;
        let aside = aside.into_iter().filter(|(of, _)| *of == SYSTEM_ORG);
        let aside: Vec<VersionRecord> = aside.map(|(_, record)| record).collect();
        let org = ObjectId::Org(org);
        let changes =
            |record: &&VersionRecord| record.changed.contains(&org) || !record.names_all_changed();
        for record in aside.iter().filter(changes) {
            let parent = record.head.parent;
            let parent = aside.iter().find(|other| Some(other.head.hash) == parent);
            let parent = match parent {
                Some(parent) => Some(parent.clone()),
                None => {
                    let n = record.head.n.saturating_sub(1);
                    let kept = self.publisher.version(SYSTEM_ORG, n).await;
                    let kept = kept.map_err(ApplyError::from)?.map(|kept| kept.record);
                    kept.filter(|kept| Some(kept.head.hash) == record.head.parent)
                }
            };
            let was_there = match parent {
                Some(parent) => self.names(&parent, &org).await?,
                None => false,
            };
            if !was_there && self.names(record, &org).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a version of `system` names an organisation, as far as it can be read still.
    async fn names(&self, record: &VersionRecord, org: &ObjectId) -> Result<bool, Broken> {
        let version = self.publisher.at(SYSTEM_ORG, record).await;
        let version = version.map_err(ApplyError::from)?;
        Ok(version.objects.contains_key(org))
    }

    /// Organisations whose home is this region, where `system` has another one.
    pub(super) async fn homed_here(&self, line: &Home) -> Result<Vec<OrgId>, Broken> {
        let mut own = Vec::new();
        if line.region == self.regions.own {
            return Ok(own);
        }
        load::list(&*self.store, keys::HOMES, None, |pair| {
            let home = serde_json::from_slice::<Home>(&pair.value);
            if home.is_ok_and(|home| home.region == self.regions.own) {
                own.extend(keys::parse_home(&pair.key));
            }
        })
        .await?;
        own.retain(|org| *org != SYSTEM_ORG);
        Ok(own)
    }

    /// Sets aside those of `homed` that were created here on a branch of `system` that is not in
    /// force.
    pub(super) async fn leave_unnamed(
        &self,
        guard: &Guard,
        mut homed: Vec<OrgId>,
    ) -> Result<(), Broken> {
        if homed.is_empty() {
            return Ok(());
        }
        let named = self.named().await?.unwrap_or_default();
        homed.retain(|org| !named.contains(org));
        for org in homed {
            match self.leave_one(guard, org).await {
                // Its fault is not that of `system`, which was taken.
                Err(Broken::Apply(error)) if error.is_of_one() => {
                    warn!(%org, "{org} of another branch cannot be set aside: {error}");
                }
                left => left?,
            }
        }
        Ok(())
    }

    async fn leave_one(&self, guard: &Guard, org: OrgId) -> Result<(), Broken> {
        let local = Local::read(&*self.store, org, None).await?;
        let home = local.home().map(|home| home.region.as_str());
        if home == Some(&*self.regions.own) {
            local.leave(&*self.store, guard).await?;
            warn!(%org, "{org} was created on another branch and is set aside");
        }
        Ok(())
    }

    /// The organisations that `system` names here.
    pub(super) async fn named(&self) -> Result<Option<BTreeSet<OrgId>>, Broken> {
        let system = Local::read(&*self.store, SYSTEM_ORG, None).await?;
        let named = |id: &ObjectId| match id {
            ObjectId::Org(org) => Some(*org),
            _ => None,
        };
        Ok(system
            .config()
            .map(|system| system.objects.keys().filter_map(named).collect()))
    }
}
