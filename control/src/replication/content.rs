//! The content of versions: what an answer holds of it, what has to be asked for, and the version
//! that it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::keys;
use proto::store::frozen::Frozen;
use proto::store::load;
use proto::store::{Compare, Op, Revision, Store};
use proto::tree::{self, Hash, Head, OrgConfig, Root, VersionRecord, is_kept_in};
use proto::wire::replication::{Answer, Ask, LEAVES_MAX, VersionParts};

use super::apply::{ApplyError, Local, Plan, write};
use super::connection::Connection;
use super::sync::not_there;
use crate::publish::sweep_counter;

/// The roots of what a region that is not home keeps of a version.
pub(super) fn kept<'a>(head: &'a Head, region: &'a str) -> impl Iterator<Item = Hash> + 'a {
    let roots = head.roots.iter();
    roots
        .filter(|(set, _)| is_kept_in(set, region))
        .map(|(_, root)| *root)
}

impl Local {
    /// Every leaf and root that the versions add, by hash; planned to be written, or written when
    /// they had to be asked for.
    pub(super) async fn content(
        &self,
        store: &Arc<dyn Store>,
        (connection, region): (&Connection, &str),
        parts: &[VersionParts],
        records: &[VersionRecord],
        plan: &mut Plan,
    ) -> Result<BTreeMap<Hash, Bytes>, ApplyError> {
        let held: BTreeSet<Hash> = match &self.config {
            Some(config) => config.reaches().collect(),
            None => BTreeSet::new(),
        };
        let mut content = BTreeMap::new();
        for (hash, packed) in parts.iter().flat_map(|parts| &parts.leaves) {
            tree::unpack(*hash, packed)?;
            let packed = Bytes::from(packed.clone());
            if content.insert(*hash, packed.clone()).is_none() {
                let key = keys::leaf(self.org, hash);
                plan.writes.before.push(Op::put(key, packed));
            }
        }
        for record in records {
            let missing = |hash: &Hash, content: &BTreeMap<Hash, Bytes>| {
                !held.contains(hash) && !content.contains_key(hash)
            };
            let roots: Vec<Hash> = kept(&record.head, region).collect();
            let lacking = roots.iter().filter(|hash| missing(hash, &content));
            let lacking = lacking.copied().collect();
            let fetched = self.fetch(store, connection, lacking, &mut content, plan);
            fetched.await.map_err(|error| match error {
                // A home that was made one by force may not have it.
                ApplyError::Refused { org, .. } => not_there(org, connection.peer()),
                error => error,
            })?;
            for hash in roots {
                let Some(packed) = content.get(&hash) else {
                    continue; // It is the root of the version here, whose leaves are held.
                };
                let root = Root::parse(&tree::unpack(hash, packed)?)?;
                let leaves: BTreeSet<Hash> = root.leaves.into_values().collect();
                let lacking = leaves.into_iter().filter(|hash| missing(hash, &content));
                let lacking = lacking.collect();
                self.fetch(store, connection, lacking, &mut content, plan)
                    .await?;
            }
        }
        Ok(content)
    }

    /// Asks for content that an answer had no room for, and stores it as it comes: after a cut it
    /// is not asked for again.
    pub(super) async fn fetch(
        &self,
        store: &Arc<dyn Store>,
        connection: &Connection,
        mut lacking: Vec<Hash>,
        content: &mut BTreeMap<Hash, Bytes>,
        plan: &mut Plan,
    ) -> Result<(), ApplyError> {
        if !lacking.is_empty() && plan.sweep.is_none() {
            plan.sweep = Some(self.sweep(&**store).await?);
        }
        while !lacking.is_empty() {
            let hash = lacking[0];
            if let Some(pair) = store.get(&keys::leaf(self.org, &hash)).await?.value {
                tree::unpack(hash, &pair.value)?;
                content.insert(hash, pair.value);
                lacking.remove(0);
                continue;
            }
            let hashes = &lacking[..lacking.len().min(LEAVES_MAX)];
            let found = self.ask(connection, hashes).await?;
            let put = |(hash, packed): &(Hash, Bytes)| {
                Op::put(keys::leaf(self.org, hash), packed.clone())
            };
            let ops: Vec<Op> = found.iter().map(put).collect();
            content.extend(found);
            lacking.drain(..ops.len());
            write(&**store, ops).await?;
        }
        Ok(())
    }

    /// Leaves and roots as the other region has them, the first ones of these at least.
    pub(super) async fn ask(
        &self,
        connection: &Connection,
        hashes: &[Hash],
    ) -> Result<Vec<(Hash, Bytes)>, ApplyError> {
        let ask = Ask::Leaves {
            org: self.org,
            hashes: hashes.to_vec(),
        };
        let Answer::Leaves(leaves) = connection.ask(&ask, Duration::ZERO).await? else {
            return Err(self.refused("home answered what was not asked".into()));
        };
        let mut found = Vec::new();
        for (hash, packed) in hashes.iter().zip(leaves) {
            if packed.is_empty() {
                // Swept since: a newer version is there.
                return Err(self.refused(format!("leaf {hash} is gone at home")));
            }
            tree::unpack(*hash, &packed)?;
            found.push((*hash, Bytes::from(packed)));
        }
        match found.is_empty() {
            true => Err(self.refused("home answered nothing".into())),
            false => Ok(found),
        }
    }

    /// The version that the content makes, with these of its roots.
    pub(super) async fn assemble(
        &self,
        store: &dyn Store,
        (head, roots): (&Head, impl Iterator<Item = Hash>),
        content: &BTreeMap<Hash, Bytes>,
    ) -> Result<OrgConfig, ApplyError> {
        let mut pairs: BTreeMap<String, Bytes> = BTreeMap::new();
        for root in roots {
            let packed = self.packed(store, &root, content).await?;
            let parsed = Root::parse(&tree::unpack(root, &packed)?)?;
            pairs.insert(keys::leaf(self.org, &root), packed);
            let held = self.config.as_deref().map(OrgConfig::held_leaves);
            let held = held.unwrap_or_default();
            // What this release could not read is read again.
            let read = parsed
                .leaves
                .values()
                .filter(|hash| !held.contains_key(hash));
            for hash in read {
                let packed = self.packed(store, hash, content).await?;
                pairs.insert(keys::leaf(self.org, hash), packed);
            }
        }
        let shown = Frozen::new(Revision(1), pairs);
        let loaded = load::version(&shown, self.org, head.clone(), self.config.as_deref()).await;
        let loaded = loaded.map_err(|error| self.refused(error.to_string()))?;
        for fault in &loaded.faults {
            // A newer program made it. It is stored as it is, for programs that can.
            tracing::warn!(org = %self.org, "{}: {}", fault.code, fault.detail);
        }
        Ok(loaded.config)
    }

    /// A leaf or root, new or of the version here.
    async fn packed(
        &self,
        store: &dyn Store,
        hash: &Hash,
        content: &BTreeMap<Hash, Bytes>,
    ) -> Result<Bytes, ApplyError> {
        if let Some(packed) = content.get(hash) {
            return Ok(packed.clone());
        }
        let pair = store.get(&keys::leaf(self.org, hash)).await?.value;
        let pair = pair.ok_or_else(|| self.refused(format!("leaf {hash} is gone here")))?;
        Ok(pair.value)
    }

    /// The compare that holds while no sweep of leaves has begun.
    pub(super) async fn sweep(&self, store: &dyn Store) -> Result<Compare, ApplyError> {
        let (_, unswept) = sweep_counter::read(store, self.org).await?;
        Ok(unswept)
    }
}
