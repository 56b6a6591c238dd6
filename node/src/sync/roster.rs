//! Which nodes a region has, by the list in the store.

use std::collections::BTreeSet;

use proto::id::NodeId;
use proto::keys;
use proto::member::Member;
use proto::store::{Store, StoreError, load};

use crate::peers::Known;
use crate::stages::record::Origin;

/// The nodes of a region, as one of them sees the list.
#[derive(Debug, Default)]
pub struct Roster {
    names: BTreeSet<String>,
    known: BTreeSet<Known>,
    namesake: Option<String>,
}

impl Roster {
    /// Reads the list. `id` is the entry of the node that reads it, where it has one.
    ///
    /// # Errors
    /// The store did not answer.
    pub async fn read(
        store: &dyn Store,
        origin: &Origin,
        id: Option<NodeId>,
    ) -> Result<Self, StoreError> {
        let mut roster = Self::default();
        load::list(store, keys::NODES, None, |pair| {
            // One of another release that cannot be read is a node all the same.
            let Ok(member) = serde_json::from_slice::<Member>(&pair.value) else {
                roster.names.insert(pair.key.clone());
                return;
            };
            if member.region == *origin.region {
                roster.add(member, origin, id);
            }
        })
        .await?;
        Ok(roster)
    }

    fn add(&mut self, member: Member, origin: &Origin, id: Option<NodeId>) {
        let named_as_this = member.name == *origin.node;
        if named_as_this && id.is_some_and(|id| id != member.id) {
            self.namesake = Some(member.place().to_owned());
        }
        if let Some(address) = member.peers.filter(|_| !named_as_this) {
            let node = member.name.clone();
            self.known.insert(Known { node, address });
        }
        self.names.insert(member.name);
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> u64 {
        self.names.len() as u64
    }

    /// Where there is another node of the same name.
    pub fn namesake(&self) -> Option<&str> {
        self.namesake.as_deref()
    }

    /// The other nodes that can be dialled.
    pub fn into_known(self) -> Vec<Known> {
        self.known.into_iter().collect()
    }
}
