//! What other regions keep alone, for a region that is to be home: home has everything.
//!
//! The root of a set is written last, after its leaves and the secrets that it names: a set whose
//! root is here is here whole, and one that was cut off on the way is fetched again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Compare, Op, Store};
use proto::tree::{self, Hash, Root, regions_of};
use proto::wire::replication::Versions;
use tracing::{info, warn};

use super::apply::{ApplyError, Local, Plan, write};
use super::connection::Connection;
use super::{Broken, Replication};
use crate::publish::sweep_counter;
use crate::publish::writes::Writes;
use crate::regions::asked_in_vain::AskedInVain;
use crate::regions::{Peer, Regions};

impl Replication {
    /// Fetches what the newest version here names and this region does not have, from the first of
    /// `connections` that has it, else from any other region; verified by hash. Gives what holds
    /// while nothing of it is swept; `None` where a version is the same everywhere.
    pub(super) async fn complete(
        &self,
        connections: &[&Connection],
        org: OrgId,
    ) -> Result<Option<Compare>, Broken> {
        let mut local = Local::read(&*self.store, org, None).await?;
        let head = local.config().map(|config| &config.head);
        let Some(head) = head.filter(|head| head.is_cut()) else {
            return Ok(None);
        };
        if let Some(regions) = head.stays_in(&self.regions.own) {
            let why = format!(
                "it has objects with `residency: strict` that may be in {regions} alone: one of \
                 these is to be home, or they are to be changed first"
            );
            return Err(ApplyError::Refused { org, why }.into());
        }
        // A sweep that was decided on while this region was to have none of it ends here.
        let raised = sweep_counter::raise(&*self.store, org).await;
        let raised = raised.map_err(ApplyError::from)?;
        let (_, unswept) = raised.ok_or(ApplyError::Moved(org))?;
        loop {
            local = Local::read(&*self.store, org, None).await?;
            let config = local.config().ok_or(ApplyError::Moved(org))?;
            let Some(set) = config.withheld().next() else {
                return Ok(Some(unswept));
            };
            let region = regions_of(set);
            let set = (region, config.head.roots[set]);
            if !self.add_set(&local, connections, set, &unswept).await? {
                let why = format!(
                    "what region {region} alone keeps of version {} can be had from no region \
                     that answers; unless {region}, or the home before, answers it is lost, and \
                     region {region} goes on from the newest that it has with `regions promote \
                     {region} --force` there",
                    config.head.n
                );
                return Err(ApplyError::Refused { org, why }.into());
            }
        }
    }

    /// Fetches a set; answers whether some region gave it. A region that did not have it, or did
    /// not answer, is left out for a while: who is stuck tries again every few seconds.
    async fn add_set(
        &self,
        local: &Local,
        connections: &[&Connection],
        (region, root): (&str, Hash),
        unswept: &Compare,
    ) -> Result<bool, Broken> {
        let mut asked = BTreeSet::new();
        for connection in connections.iter().copied() {
            asked.insert(connection.peer().to_owned());
            let using = (connection, &*self.regions);
            let added = local.add_set(&self.store, using, root, unswept).await;
            if was_added(added, connection.peer(), region)? {
                return Ok(true);
            }
        }
        // The region itself first: it has it for sure, if it is there.
        let mut others: Vec<&Peer> = self.regions.peers.iter().collect();
        others.sort_by_key(|peer| peer.name != region);
        for peer in others
            .into_iter()
            .filter(|peer| !asked.contains(&peer.name))
            .filter(|peer| !self.status.is_pointless(&peer.name, local.org, root))
        {
            if self
                .ask_for_set(local, peer, (region, root), unswept)
                .await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Asks a region for a set, over a connection of its own.
    async fn ask_for_set(
        &self,
        local: &Local,
        peer: &Peer,
        (region, root): (&str, Hash),
        unswept: &Compare,
    ) -> Result<bool, Broken> {
        let in_vain = |note: &dyn Fn(&mut AskedInVain)| {
            self.status
                .follow(&peer.name, |of| note(&mut of.asked_in_vain));
        };
        let connection = match self.reach(peer).await {
            Ok(connection) => connection,
            Err(error) => {
                warn!(region, "region {} cannot be asked: {error}", peer.name);
                in_vain(&|vain| vain.not_reached(Instant::now()));
                return Ok(false);
            }
        };
        let using = (&connection, &*self.regions);
        let added = local.add_set(&self.store, using, root, unswept).await;
        // What a broken connection did not bring may be there: it is asked for again at once.
        let lacks = matches!(added, Err(ApplyError::Refused { .. }));
        let was_added = was_added(added, &peer.name, region)?;
        if lacks {
            in_vain(&|vain| vain.lacks((local.org, root), Instant::now()));
        }
        Ok(was_added)
    }
}

/// Whether a region gave a set; an error is of this one.
fn was_added(added: Result<(), ApplyError>, peer: &str, region: &str) -> Result<bool, ApplyError> {
    match added {
        Ok(()) => Ok(true),
        Err(ApplyError::Refused { why, .. }) => {
            info!(region, "region {peer} does not have it: {why}");
            Ok(false)
        }
        Err(error @ (ApplyError::Link(_) | ApplyError::Content(_))) => {
            warn!(region, "region {peer} does not give it: {error}");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

impl Local {
    /// Writes the content of a set, and the secrets that it names.
    async fn add_set(
        &self,
        store: &Arc<dyn Store>,
        (connection, regions): (&Connection, &Regions),
        root: Hash,
        sweep: &Compare,
    ) -> Result<(), ApplyError> {
        let mut plan = Plan {
            writes: Writes::default(),
            facts: Vec::new(),
            sweep: Some(sweep.clone()),
        };
        let old = self.config().ok_or(ApplyError::Moved(self.org))?;
        let mut content: BTreeMap<Hash, Bytes> = BTreeMap::new();
        content.extend(self.ask(connection, &[root]).await?);
        let packed = content.get(&root).ok_or(ApplyError::Moved(self.org))?;
        let put_root = Op::put(keys::leaf(self.org, &root), packed.clone());
        let listed = Root::parse(&tree::unpack(root, packed)?)?;
        let leaves = listed.leaves.into_values().collect();
        self.fetch(store, connection, leaves, &mut content, &mut plan)
            .await?;
        let named = old.head.roots.iter();
        let held = named.filter(|(set, _)| old.holds(set));
        let roots = held.map(|(_, root)| *root).chain([root]);
        let whole = self
            .assemble(&**store, (&old.head, roots), &content)
            .await?;
        let secrets = (connection, regions);
        self.add_sealed(secrets, &whole, &Versions::default(), &mut plan)
            .await?;
        write(&**store, plan.writes.before).await?;
        Ok(write(&**store, vec![put_root]).await?)
    }
}
