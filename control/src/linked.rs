//! Nodes that are connected to this control plane now, by the connection over which they leave
//! their records. It does not need etcd: a node that is cut from it is known here still.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

/// The nodes that are connected; clones share them. There are as many as connections may be.
#[derive(Clone, Debug, Default)]
pub struct Linked(Arc<Mutex<Places>>);

#[derive(Debug, Default)]
struct Places {
    next: u64,
    nodes: BTreeMap<u64, LinkedNode>,
}

/// A node that is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedNode {
    /// Its name, which its certificate proves.
    pub name: String,
    /// The region that it says it is of.
    pub region: String,
    /// Since when it is connected.
    pub since: Timestamp,
    /// When it last said something.
    pub heard_at: Timestamp,
}

impl Linked {
    /// A node is connected until what is returned is dropped.
    pub fn enter(&self, name: &str, region: &str, now: Timestamp) -> Place {
        let mut places = self.places();
        let number = places.next;
        places.next = number.wrapping_add(1);
        let node = LinkedNode {
            name: name.to_owned(),
            region: region.to_owned(),
            since: now,
            heard_at: now,
        };
        places.nodes.insert(number, node);
        Place {
            of: self.clone(),
            number,
        }
    }

    /// Those that are connected, by region and name. Of one that has two connections (an earlier
    /// one may not be known to have ended) the one that was heard last.
    pub fn nodes(&self) -> Vec<LinkedNode> {
        let mut nodes: Vec<_> = self.places().nodes.values().cloned().collect();
        nodes.sort_by(|a, b| {
            let place = (&a.region, &a.name).cmp(&(&b.region, &b.name));
            place.then(b.heard_at.cmp(&a.heard_at))
        });
        nodes.dedup_by(|later, kept| (&later.region, &later.name) == (&kept.region, &kept.name));
        nodes
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a node among those that are connected.
#[derive(Debug)]
pub struct Place {
    of: Linked,
    number: u64,
}

impl Place {
    /// It has said something.
    pub fn heard(&self, now: Timestamp) {
        if let Some(node) = self.of.places().nodes.get_mut(&self.number) {
            node.heard_at = now;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.places().nodes.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_while_it_is_connected_and_once() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let linked = Linked::default();
        let other = linked.enter("gw-2", "eu", at(0));
        let earlier = linked.enter("gw-1", "eu", at(1));
        let later = linked.enter("gw-1", "eu", at(5));
        earlier.heard(at(4));
        let seen = || {
            let nodes = linked.nodes().into_iter();
            nodes
                .map(|node| (node.name, node.since, node.heard_at))
                .collect::<Vec<_>>()
        };
        let gw_2 = || ("gw-2".to_owned(), at(0), at(0));
        assert_eq!(seen(), [("gw-1".into(), at(5), at(5)), gw_2()]);
        drop(later);
        assert_eq!(seen(), [("gw-1".into(), at(1), at(4)), gw_2()]);
        drop((earlier, other));
        assert_eq!(seen(), []);
    }
}
