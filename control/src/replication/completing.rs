//! What other regions keep alone, for a region that is to be home: home has everything. Where a
//! person forces it, what cannot be had is carried on by hash, unchanged, until it comes
//! (`in_part`).
//!
//! The root of a set is written last, after its leaves and the secrets that it names: a set whose
//! root is here is here whole, and one that was cut off on the way is fetched again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Compare, Op, Store, StoreError, Txn};
use proto::tree::{self, Hash, Root, is_kept_in, regions_of};
use proto::wire::replication::Versions;
use tracing::{info, warn};

use super::apply::{ApplyError, Local, Plan, commit, write};
use super::connection::Connection;
use super::{Broken, Replication};
use crate::publish::sweep_counter;
use crate::publish::writes::Writes;
use crate::regions::asked_in_vain::AskedInVain;
use crate::regions::{Peer, Regions};

/// What becomes of a set that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unhad {
    /// The region does not become home without it.
    Refuses,
    /// It is carried on by hash, unless the region that keeps it has lost it: a person forces it.
    Freezes,
}

impl Unhad {
    /// What a person's `force` means.
    pub fn of(force: bool) -> Self {
        match force {
            true => Self::Freezes,
            false => Self::Refuses,
        }
    }
}

/// What a region has that is to be home.
#[derive(Debug, Default)]
pub(super) struct Whole {
    /// What holds while nothing is swept of what was fetched; none where a version is the same
    /// everywhere.
    pub unswept: Option<Compare>,
    /// Sets that it does not have, by name.
    pub frozen: BTreeSet<String>,
}

/// A set by name, and its root.
pub(super) type Wanted<'a> = (&'a str, Hash);

/// What a region answers that is asked for a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gave {
    /// It is here.
    All,
    /// It does not have it.
    Lacks,
    /// Nothing, or not all of it.
    BrokeOff,
}

/// What came of asking for a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Had {
    Added,
    /// A region that keeps it has it no more.
    Lost,
    /// No region that answers has it.
    Nowhere,
}

impl Replication {
    /// Fetches what the newest version here names and this region does not have, from the first of
    /// `connections` that has it, else from any other region; verified by hash.
    pub(super) async fn complete(
        &self,
        connections: &[&Connection],
        org: OrgId,
        unhad: Unhad,
    ) -> Result<Whole, Broken> {
        let own = &self.regions.own;
        let mut local = Local::read(&*self.store, org, None).await?;
        let head = local.config().map(|config| &config.head);
        let Some(head) = head.filter(|head| head.is_cut()) else {
            return Ok(Whole::default());
        };
        if let Some(regions) = head.stays_in(own).filter(|_| unhad == Unhad::Refuses) {
            let why = format!(
                "it has objects with `residency: strict` that may be in {regions} alone: one of \
                 these is to be home, or they are to be changed first; with `--force` region {own} \
                 becomes home without them, and they can be changed no more until one of {regions} \
                 is home"
            );
            return Err(ApplyError::Refused { org, why }.into());
        }
        // A sweep that was decided on while this region was to have none of it ends here.
        let unswept = self.unswept(org).await?;
        let mut frozen = BTreeSet::new();
        loop {
            local = Local::read(&*self.store, org, None).await?;
            let config = local.config().ok_or(ApplyError::Moved(org))?;
            let lacking = config.withheld().find(|set| !frozen.contains(*set));
            let Some(set) = lacking.map(str::to_owned) else {
                let unswept = Some(unswept);
                return Ok(Whole { unswept, frozen });
            };
            let n = config.head.n;
            let wanted = (set.as_str(), config.head.roots[&set]);
            if !may_have(&set, own) {
                frozen.insert(set);
                continue;
            }
            let had = self.add_set(&local, connections, wanted, &unswept).await?;
            match (had, unhad) {
                (Had::Added, _) => {}
                (Had::Nowhere, Unhad::Freezes) if !is_kept_in(&set, own) => {
                    let region = regions_of(&set);
                    warn!(%org, region, "what region {region} alone keeps is carried on by hash");
                    self.drop_root(org, wanted.1, &unswept).await?;
                    frozen.insert(set);
                }
                (had, _) => {
                    let why = not_had((&set, own), had, n);
                    return Err(ApplyError::Refused { org, why }.into());
                }
            }
        }
    }

    /// Takes away the root of a set that is not here whole, as a sweep that broke off leaves it:
    /// whoever asks for it would take the set to be here.
    async fn drop_root(&self, org: OrgId, root: Hash, unswept: &Compare) -> Result<(), ApplyError> {
        let txn = Txn {
            compares: vec![unswept.clone()],
            ops: vec![Op::Delete(keys::leaf(org, &root))],
            or_read: Vec::new(),
        };
        commit(&*self.store, org, txn).await
    }

    /// Ends every sweep that was decided on; gives what holds while there is no other one.
    pub(super) async fn unswept(&self, org: OrgId) -> Result<Compare, ApplyError> {
        let raised = sweep_counter::raise(&*self.store, org).await?;
        let (_, unswept) = raised.ok_or(ApplyError::Moved(org))?;
        Ok(unswept)
    }

    /// Whether the root of a set is here.
    pub(super) async fn has_root(&self, org: OrgId, root: Hash) -> Result<bool, StoreError> {
        let found = self.store.get(&keys::leaf(org, &root)).await?;
        Ok(found.value.is_some())
    }

    /// Fetches a set from whoever has it. A region that did not have it, or did not answer, is left
    /// out for a while: who is stuck tries again every few seconds.
    async fn add_set(
        &self,
        local: &Local,
        connections: &[&Connection],
        (set, root): Wanted<'_>,
        unswept: &Compare,
    ) -> Result<Had, Broken> {
        let (mut asked, mut had) = (BTreeSet::new(), Had::Nowhere);
        for connection in connections.iter().copied() {
            asked.insert(connection.peer().to_owned());
            match self
                .take_set(local, connection, (set, root), unswept)
                .await?
            {
                Gave::All => return Ok(Had::Added),
                Gave::Lacks if is_kept_in(set, connection.peer()) => had = Had::Lost,
                Gave::Lacks | Gave::BrokeOff => {}
            }
        }
        // The region itself first: it has it for sure, if it is there.
        let mut others: Vec<&Peer> = self.regions.peers.iter().collect();
        others.sort_by_key(|peer| !is_kept_in(set, &peer.name));
        for peer in others
            .into_iter()
            .filter(|peer| !asked.contains(&peer.name))
            .filter(|peer| !self.status.is_pointless(&peer.name, local.org, root))
        {
            match self.ask_for_set(local, peer, (set, root), unswept).await? {
                Gave::All => return Ok(Had::Added),
                Gave::Lacks if is_kept_in(set, &peer.name) => had = Had::Lost,
                Gave::Lacks | Gave::BrokeOff => {}
            }
        }
        Ok(had)
    }

    /// Asks a region for a set, over a connection of its own.
    async fn ask_for_set(
        &self,
        local: &Local,
        peer: &Peer,
        (set, root): Wanted<'_>,
        unswept: &Compare,
    ) -> Result<Gave, Broken> {
        let in_vain = |note: &dyn Fn(&mut AskedInVain)| {
            self.status
                .follow(&peer.name, |of| note(&mut of.asked_in_vain));
        };
        let connection = match self.reach(peer).await {
            Ok(connection) => connection,
            Err(error) => {
                let region = regions_of(set);
                warn!(region, "region {} cannot be asked: {error}", peer.name);
                in_vain(&|vain| vain.not_reached(Instant::now()));
                return Ok(Gave::BrokeOff);
            }
        };
        let gave = self.take_set(local, &connection, (set, root), unswept);
        let gave = gave.await?;
        // What a broken connection did not bring may be there: it is asked for again at once.
        if gave == Gave::Lacks {
            in_vain(&|vain| vain.lacks((local.org, root), Instant::now()));
        }
        Ok(gave)
    }

    /// Takes a set over a connection; an error is of this region.
    async fn take_set(
        &self,
        local: &Local,
        connection: &Connection,
        (set, root): Wanted<'_>,
        unswept: &Compare,
    ) -> Result<Gave, ApplyError> {
        let (region, peer) = (regions_of(set), connection.peer());
        let using = (connection, &*self.regions);
        match local.add_set(&self.store, using, root, unswept).await {
            Ok(()) => Ok(Gave::All),
            Err(ApplyError::Refused { why, .. }) => {
                info!(region, "region {peer} does not have it: {why}");
                Ok(Gave::Lacks)
            }
            Err(error @ (ApplyError::Link(_) | ApplyError::Content(_))) => {
                warn!(region, "region {peer} does not give it: {error}");
                Ok(Gave::BrokeOff)
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether a set may be in a region that is home at all.
pub(super) fn may_have(set: &str, region: &str) -> bool {
    !tree::is_strict(set) || is_kept_in(set, region)
}

/// Why a region does not become home.
pub(super) fn not_had((set, own): (&str, &str), had: Had, n: u64) -> String {
    let region = regions_of(set);
    let what = format!("what region {region} alone keeps of version {n} can be had from no region");
    match had {
        Had::Nowhere if !is_kept_in(set, own) => format!(
            "{what} that answers; with `--force` region {own} becomes home without it, and what is \
             pinned to {region} stays as it is, and cannot be changed, until it can be reached"
        ),
        Had::Added | Had::Nowhere | Had::Lost => format!(
            "{what} that answers, {region} included; unless the home before answers it is lost, \
             and region {region} goes on from the newest that it has with `regions promote \
             {region} --force` there"
        ),
    }
}

impl Local {
    /// Writes the content of a set, and the secrets that it names; its root only while nothing was
    /// swept since.
    pub(super) async fn add_set(
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
        let txn = Txn {
            compares: vec![sweep.clone()],
            ops: vec![put_root],
            or_read: Vec::new(),
        };
        commit(&**store, self.org, txn).await
    }
}
