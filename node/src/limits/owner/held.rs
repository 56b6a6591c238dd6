//! Who is held on which node: the owner of a key serves all nodes in the order in which their
//! callers came, and tells each how many wait on the others.

use std::collections::HashMap;

use super::{Around, Owner};
use crate::limits::block::Opener;
use crate::limits::exchange::Word;

/// How long what a node has told of its callers counts.
const TOLD_NS: u64 = 2_000_000_000;
/// Starts of nodes that are known; beyond it all are forgotten.
const NODES_MAX: usize = 1_024;

/// What the other nodes have told an owner, and what it was told.
#[derive(Debug, Default)]
pub(super) struct HeldBy {
    nodes: HashMap<Opener, Held>,
    /// What this node has told an owner last.
    told: u64,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    tokens: u64,
    since_ns: u64,
    told_ns: u64,
    /// What it was told of the others last.
    told: u64,
}

impl HeldBy {
    /// Since when the caller of a node waits that comes next there.
    pub(super) fn since_ns(&self, node: Opener) -> Option<u64> {
        let held = self.nodes.get(&node).filter(|held| held.tokens > 0);
        held.map(|held| held.since_ns)
    }

    /// Tokens that are waited for on all nodes but this one.
    fn without(&self, node: Opener, now_ns: u64) -> u64 {
        let others = self
            .nodes
            .iter()
            .filter(|(of, held)| **of != node && now_ns < held.told_ns.saturating_add(TOLD_NS));
        others.fold(0, |sum, (_, held)| sum.saturating_add(held.tokens))
    }
}

impl Owner {
    /// A peer tells who is held there.
    pub fn holding(&mut self, from: Opener, tokens: u64, since_ns: u64, now_ns: u64) {
        if self.held.nodes.len() >= NODES_MAX {
            self.held.nodes.clear();
        }
        let held = Held {
            tokens,
            since_ns: now_ns.saturating_sub(since_ns),
            told_ns: now_ns,
            told: self.held.nodes.get(&from).map_or(0, |held| held.told),
        };
        self.held.nodes.insert(from, held);
        let elsewhere = self.held.without(self.place.me, now_ns);
        let until_ns = now_ns.saturating_add(TOLD_NS);
        self.meter.held.told_elsewhere(elsewhere, until_ns);
    }

    /// By when an owner must say something again that has said that tokens come later.
    pub(super) fn later_by_ns(&mut self, sent_ns: u64, now_ns: u64) -> u64 {
        let from_ns = match self.spec.hold() {
            Some(_) => {
                // It is there, and our callers are in its queue.
                self.loss.answered();
                now_ns
            }
            None => sent_ns,
        };
        from_ns.saturating_add(self.place.grace_ns)
    }

    /// The owner tells how many are held on the other nodes.
    pub fn held_elsewhere(&mut self, tokens: u64, now_ns: u64) {
        let until_ns = now_ns.saturating_add(TOLD_NS);
        self.meter.held.told_elsewhere(tokens, until_ns);
    }

    /// Tells the owner who is held here, where callers are held.
    pub(super) fn tell_holding(&mut self, owner: Opener, around: &mut Around<'_>, tokens: u64) {
        if self.spec.hold().is_none() {
            return;
        }
        let now_ns = around.now.boot_ns;
        let head_ns = self.meter.held.head_since_ns().unwrap_or(now_ns);
        let since_ns = now_ns.saturating_sub(head_ns);
        let word = Word::Holding { tokens, since_ns };
        around.out.words.push((owner, word));
        self.held.told = tokens;
    }

    /// Tells the owner again while it owes an answer, where it was told of far fewer or far more.
    pub(super) fn tell_holding_again(&mut self, around: &mut Around<'_>, tokens: u64) {
        if let (Some(owner), true) = (self.borrowing.asked(), is_news(tokens, self.held.told)) {
            self.tell_holding(owner, around, tokens);
        }
    }

    /// The same for peers that wait for an answer of ours.
    pub(super) fn tell_elsewhere_again(&mut self, around: &mut Around<'_>, own: u64) {
        let now_ns = around.now.boot_ns;
        for peer in self.lending.waiting() {
            let others = self.held.without(peer, now_ns).saturating_add(own);
            let told = self.held.nodes.get(&peer).map(|held| held.told);
            if told.is_some_and(|told| is_news(others, told)) {
                self.tell_elsewhere(peer, around, own);
            }
        }
    }

    /// Tells a peer that has been answered how many are held on the other nodes.
    pub(super) fn tell_elsewhere(&mut self, peer: Opener, around: &mut Around<'_>, own: u64) {
        if self.spec.hold().is_none() {
            return;
        }
        let others = self.held.without(peer, around.now.boot_ns);
        let tokens = others.saturating_add(own);
        if let Some(held) = self.held.nodes.get_mut(&peer) {
            held.told = tokens;
        }
        around
            .out
            .words
            .push((peer, Word::HeldElsewhere { tokens }));
    }
}

/// Whether a number is by a quarter more or less than what was told: a queue that grows or shrinks
/// is told of a few times, not once for each caller.
fn is_news(tokens: u64, told: u64) -> bool {
    tokens.abs_diff(told) > told / 4
}
