//! What other regions keep alone and this one has, as the home before has it, goes from here once
//! home is known to have it: one that was made home by force may lack it, and this region may be
//! the only one that can give it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Op, Txn, load};
use proto::tree::{Hash, OrgConfig, is_kept_in};
use proto::version::Epoch;
use proto::wire::replication::{Answer, Ask};

use super::apply::{ApplyError, Guard};
use super::connection::Connection;
use super::in_part::AskedFor;
use super::{Broken, Replication};
use crate::publish::writes::json;

/// What is known of the home that is connected.
#[derive(Default)]
pub(super) struct Noted {
    /// Of which organisations it has everything, and as of which epoch; read once.
    has: Option<BTreeMap<OrgId, Epoch>>,
    /// For which it was asked, and did not have it.
    asked: AskedFor<OrgId>,
}

impl Replication {
    /// Asks the home that is connected whether it has what is here of other regions' own.
    pub(super) async fn leave_to_home(
        &self,
        connection: &Connection,
        guard: &Guard,
        noted: &mut Noted,
    ) -> Result<(), Broken> {
        let world = self.worlds.borrow().clone();
        for (org, state) in &world.orgs {
            let head = &state.config.head;
            let home = head.is_cut().then(|| self.homes.of(*org)).flatten();
            let home =
                home.filter(|home| home.region == connection.peer() && home.epoch == head.epoch);
            let Some(Home { epoch, .. }) = home else {
                continue;
            };
            let has = match &mut noted.has {
                Some(has) => has,
                unread => unread.insert(self.left().await?),
            };
            if has.get(org) == Some(&epoch) || !noted.asked.is_due(*org, Instant::now()) {
                continue;
            }
            if self.is_left_to(connection, &state.config).await? {
                self.note_left(guard, *org, &epoch).await?;
                has.insert(*org, epoch);
            }
        }
        Ok(())
    }

    /// What is noted of all organisations.
    async fn left(&self) -> Result<BTreeMap<OrgId, Epoch>, Broken> {
        let mut left = BTreeMap::new();
        let listed = load::list(&*self.store, keys::HOME_HAS, None, |pair| {
            let org = pair.key.strip_prefix(keys::HOME_HAS);
            let org = org.and_then(|org| org.parse::<OrgId>().ok());
            // What cannot be read is noted anew.
            if let (Some(org), Ok(epoch)) = (org, serde_json::from_slice(&pair.value)) {
                left.insert(org, epoch);
            }
        });
        listed.await.map_err(ApplyError::from)?;
        Ok(left)
    }

    /// Whether home has every set that is here and is to go.
    async fn is_left_to(
        &self,
        connection: &Connection,
        config: &OrgConfig,
    ) -> Result<bool, Broken> {
        let (org, own) = (config.org, &self.regions.own);
        let roots = config.head.roots.iter();
        for (_, root) in roots.filter(|(set, _)| !is_kept_in(set, own)) {
            if self.has_root(org, *root).await? && !has(connection, org, *root).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn note_left(&self, guard: &Guard, org: OrgId, epoch: &Epoch) -> Result<(), Broken> {
        let txn = Txn {
            compares: guard.iter().cloned().collect(),
            ops: vec![Op::put(keys::home_has(org), json(epoch))],
            or_read: Vec::new(),
        };
        // Where another control plane replicates now, that one notes it.
        self.store.txn(txn).await?;
        Ok(())
    }
}

/// Whether a region has the root of a set.
pub(super) async fn has(connection: &Connection, org: OrgId, root: Hash) -> Result<bool, Broken> {
    let ask = Ask::Leaves {
        org,
        hashes: vec![root],
    };
    match connection.ask(&ask, Duration::ZERO).await? {
        Answer::Leaves(leaves) => Ok(leaves.iter().any(|leaf| !leaf.is_empty())),
        _ => Err(Broken::Protocol),
    }
}
