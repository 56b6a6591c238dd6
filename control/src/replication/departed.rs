//! Organisations that are here and are no more: deleted at home, or created on a branch that is not
//! in force.

use std::collections::BTreeSet;

use proto::id::OrgId;
use proto::object::ObjectId;
use proto::tree::SYSTEM_ORG;
use proto::wire::replication::Moved;
use tracing::{info, warn};

use super::apply::{Guard, Local};
use super::{Broken, Replication};

impl Replication {
    /// Organisations that are here, and not in the region that is their home.
    pub(super) async fn strangers(&self, peer: &str, all: &[Moved]) -> Result<Vec<OrgId>, Broken> {
        let known: BTreeSet<OrgId> = all.iter().map(|moved| moved.org).collect();
        let mut strangers = self.orgs().await?;
        strangers.retain(|org| !known.contains(org) && self.homes.region_of(*org) == peer);
        Ok(strangers)
    }

    /// Deletes an organisation that its home has no more, once `system` does not name it here
    /// either.
    pub(super) async fn remove(&self, peer: &str, guard: &Guard, org: OrgId) -> Result<(), Broken> {
        if self.homes.region_of(org) != peer {
            return Ok(());
        }
        if org == SYSTEM_ORG || self.named().await?.is_none_or(|named| named.contains(&org)) {
            warn!(%org, "its home has no {org}, but `system` names it here; it stays");
            return Ok(());
        }
        let local = Local::read(&*self.store, org, None).await?;
        local.delete(&*self.store, guard).await?;
        self.publisher.sweep_one(org).await;
        info!(%org, "{org} was deleted at home, and here");
        Ok(())
    }

    /// Sets aside organisations that were created here on a branch of `system` that is not in
    /// force.
    pub(super) async fn leave_unnamed(
        &self,
        guard: &Guard,
        line: &proto::home::Home,
    ) -> Result<(), Broken> {
        if line.region == self.regions.own {
            return Ok(());
        }
        let facts = self.homes.facts().borrow().clone();
        let own = facts
            .iter()
            .filter(|(_, home)| home.region == self.regions.own);
        let mut own: Vec<OrgId> = own.map(|(org, _)| *org).collect();
        if own.is_empty() {
            return Ok(());
        }
        let named = self.named().await?.unwrap_or_default();
        own.retain(|org| *org != SYSTEM_ORG && !named.contains(org));
        for org in own {
            let local = Local::read(&*self.store, org, None).await?;
            local.leave(&*self.store, guard).await?;
            warn!(%org, "{org} was created on another branch and is set aside");
        }
        Ok(())
    }

    /// The organisations that `system` names here.
    async fn named(&self) -> Result<Option<BTreeSet<OrgId>>, Broken> {
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
