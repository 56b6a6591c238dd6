//! What other regions keep alone and this one has, as the home before has it, goes from here once
//! home is known to have it: one that was made home by force may lack it, and this region may be
//! the only one that can give it.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Op, Txn};
use proto::tree::{Hash, OrgConfig, is_kept_in};
use proto::version::Epoch;
use proto::wire::replication::{Answer, Ask};

use super::apply::Guard;
use super::connection::Connection;
use super::{Broken, Replication};
use crate::publish::writes::json;

/// Of which organisations home is known to have everything, and as of which epoch.
#[derive(Default)]
pub(super) struct Noted(BTreeMap<OrgId, Epoch>);

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
            let home = self.homes.of(*org).filter(|home| {
                let is_this = home.region == connection.peer() && home.epoch == head.epoch;
                is_this && head.is_cut()
            });
            let Some(Home { epoch, .. }) = home else {
                continue;
            };
            if noted.0.get(org) == Some(&epoch) {
                continue;
            }
            if self.is_left_to(connection, &state.config, &epoch).await? {
                self.note_left(guard, *org, &epoch).await?;
                noted.0.insert(*org, epoch);
            }
        }
        Ok(())
    }

    /// Whether home has every set that is here and is to go.
    async fn is_left_to(
        &self,
        connection: &Connection,
        config: &OrgConfig,
        epoch: &Epoch,
    ) -> Result<bool, Broken> {
        let (org, own) = (config.org, &self.regions.own);
        let key = keys::home_has(org);
        let known = self.store.get(&key).await?.value;
        if known.is_some_and(|pair| pair.value == json(epoch)) {
            return Ok(true);
        }
        let roots = config.head.roots.iter();
        for (_, root) in roots.filter(|(set, _)| !is_kept_in(set, own)) {
            let here = self.store.get(&keys::leaf(org, root)).await?.value;
            if here.is_some() && !has(connection, org, *root).await? {
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
