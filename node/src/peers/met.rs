//! Which other nodes are linked and which cannot be: as long as more are to be had, a node that
//! starts waits for them.

use std::collections::HashSet;

use super::{Known, Peers};

/// What became of the other nodes.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// How many links there are.
    pub linked: usize,
    /// Nodes that could not be dialled the last time.
    unreachable: HashSet<String>,
}

impl Met {
    /// Whether so many are linked, or nothing more is to be expected of these.
    fn enough(&self, others: &[Known], count: usize) -> bool {
        let lost = others
            .iter()
            .filter(|at| self.unreachable.contains(&at.node));
        self.linked >= count.min(others.len() - lost.count())
    }
}

impl Peers {
    /// Ready when so many peers are linked, or else all of these that can be reached.
    pub async fn linked(&self, others: &[Known], count: usize) {
        let mut met = self.shared.met.subscribe();
        // The sender lives as long as this does.
        let _ = met.wait_for(|met| met.enough(others, count)).await;
    }

    /// Whether a node cannot be reached, as the last attempt has shown.
    pub(super) fn unreachable(&self, node: &str, is_so: bool) {
        self.shared.met.send_if_modified(|met| match is_so {
            true => met.unreachable.insert(node.to_owned()),
            false => met.unreachable.remove(node),
        });
    }
}
