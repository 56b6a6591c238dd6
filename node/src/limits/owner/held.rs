//! Who is held on which node: the owner of a key serves all nodes by rank, and within one in the
//! order in which their callers came, and tells each who waits on the others.

use std::collections::{BTreeMap, HashMap};

use super::divide::Party;
use super::{Around, Owner};
use crate::limits::block::Opener;
use crate::limits::exchange::Word;
use crate::limits::hold::{LAST, Level};

/// How long what a node has told of its callers counts.
const TOLD_NS: u64 = 2_000_000_000;
/// Starts of nodes that are known; beyond it all are forgotten.
const NODES_MAX: usize = 1_024;
/// Ranks that a peer may tell of.
const LEVELS_MAX: usize = 256;

/// What the other nodes have told an owner, and what it was told.
#[derive(Debug, Default)]
pub(super) struct HeldBy {
    nodes: HashMap<Opener, Held>,
    /// What this node has told an owner last.
    told: Vec<Level>,
}

#[derive(Clone, Debug)]
struct Held {
    levels: Vec<Level>,
    told_ns: u64,
    /// What it was told of the others last.
    told: Vec<Level>,
}

impl HeldBy {
    /// A peer that wants so many tokens, by the ranks of its callers that wait for them; the rest
    /// counts as wanted since an instant by nobody of rank.
    pub(super) fn party(&self, node: Opener, wanted: u64, since_ns: u64, now_ns: u64) -> Party {
        Party::held(self.levels(node, now_ns), wanted, since_ns)
    }

    /// The rank of the first who waits on a node, and since when; of one that holds nobody, of no
    /// rank and since an instant.
    pub(super) fn first(&self, node: Opener, since_ns: u64, now_ns: u64) -> (u8, u64) {
        let first = self.levels(node, now_ns).first();
        first.map_or((LAST, since_ns), |first| (first.behind, first.since_ns))
    }

    /// Who waits on a node, as it has told of late.
    fn levels(&self, node: Opener, now_ns: u64) -> &[Level] {
        let held = self.nodes.get(&node);
        let held = held.filter(|held| now_ns < held.told_ns.saturating_add(TOLD_NS));
        held.map_or(&[], |held| &held.levels)
    }

    /// Who waits on all nodes but this one.
    fn without(&self, node: Opener, own: &[Level], now_ns: u64) -> Vec<Level> {
        self.together(own, now_ns, |of| of != node)
    }

    /// Who waits here and on some of the other nodes.
    fn together(&self, own: &[Level], now_ns: u64, is_of: impl Fn(Opener) -> bool) -> Vec<Level> {
        let others = self
            .nodes
            .iter()
            .filter(|(of, held)| is_of(**of) && now_ns < held.told_ns.saturating_add(TOLD_NS));
        let others = others.flat_map(|(_, held)| &held.levels);
        let mut together: BTreeMap<u8, Level> = BTreeMap::new();
        for level in others.chain(own) {
            together
                .entry(level.behind)
                .and_modify(|known| {
                    known.tokens = known.tokens.saturating_add(level.tokens);
                    known.since_ns = known.since_ns.min(level.since_ns);
                    known.newest_ns = known.newest_ns.max(level.newest_ns);
                })
                .or_insert(*level);
        }
        together.into_values().collect()
    }
}

/// The same with instants in place of the time that has passed since, or the reverse.
fn turned(mut levels: Vec<Level>, now_ns: u64) -> Vec<Level> {
    levels.truncate(LEVELS_MAX);
    for level in &mut levels {
        level.since_ns = now_ns.saturating_sub(level.since_ns);
        level.newest_ns = now_ns.saturating_sub(level.newest_ns);
    }
    levels
}

impl Owner {
    /// A peer tells who is held there.
    pub fn holding(&mut self, from: Opener, levels: Vec<Level>, now_ns: u64) {
        if self.held.nodes.len() >= NODES_MAX {
            self.held.nodes.clear();
        }
        let known = self.held.nodes.remove(&from);
        let held = Held {
            levels: turned(levels, now_ns),
            told_ns: now_ns,
            told: known.map(|held| held.told).unwrap_or_default(),
        };
        self.held.nodes.insert(from, held);
        let elsewhere = self.held.without(self.place.me, &[], now_ns);
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

    /// The owner tells who is held on the other nodes; nobody else does.
    pub fn held_elsewhere(&mut self, from: Opener, mut levels: Vec<Level>, now_ns: u64) {
        let is_asked = self.borrowing.asked() == Some(from);
        if !is_asked && self.borrowing.told(from, now_ns).is_none() {
            return;
        }
        levels.truncate(LEVELS_MAX);
        let until_ns = now_ns.saturating_add(TOLD_NS);
        self.meter.held.told_elsewhere(levels, until_ns);
    }

    /// Who is held here; nobody where callers are not held.
    pub(super) fn held_here(&self) -> Vec<Level> {
        match self.spec.hold() {
            Some(_) => self.meter.held.levels(),
            None => Vec::new(),
        }
    }

    /// Who is held here and on the nodes that wait for our answer: for those the owner is asked
    /// as well.
    fn held_for(&self, now_ns: u64) -> Vec<Level> {
        let waiting = self.lending.waiting();
        let own = self.meter.held.levels();
        let is_of = |node| waiting.contains(&node);
        self.held.together(&own, now_ns, is_of)
    }

    /// Tells the owner who is held, where callers are held.
    pub(super) fn tell_holding(&mut self, owner: Opener, around: &mut Around<'_>) {
        if self.spec.hold().is_none() {
            return;
        }
        let levels = self.held_for(around.now.boot_ns);
        self.held.told.clone_from(&levels);
        let levels = turned(levels, around.now.boot_ns);
        around.out.words.push((owner, Word::Holding { levels }));
    }

    /// Tells the owner again while it owes an answer, where it was told of far fewer or far more.
    pub(super) fn tell_holding_again(&mut self, around: &mut Around<'_>) {
        let holds = self.spec.hold().is_some();
        if let (Some(owner), true) = (self.borrowing.asked(), holds)
            && is_news(&self.held_for(around.now.boot_ns), &self.held.told)
        {
            self.tell_holding(owner, around);
        }
    }

    /// The same for peers that wait for an answer of ours.
    pub(super) fn tell_elsewhere_again(&mut self, around: &mut Around<'_>, own: &[Level]) {
        let now_ns = around.now.boot_ns;
        for peer in self.lending.waiting() {
            let Some(held) = self.held.nodes.get(&peer) else {
                continue;
            };
            let others = self.held.without(peer, own, now_ns);
            if is_news(&others, &held.told) {
                self.tell_elsewhere(peer, around, own);
            }
        }
    }

    /// Tells a peer that has been answered who is held on the other nodes.
    pub(super) fn tell_elsewhere(&mut self, peer: Opener, around: &mut Around<'_>, own: &[Level]) {
        if self.spec.hold().is_none() {
            return;
        }
        let now_ns = around.now.boot_ns;
        let levels = self.held.without(peer, own, now_ns);
        if let Some(held) = self.held.nodes.get_mut(&peer) {
            held.told.clone_from(&levels);
        }
        let levels = turned(levels, now_ns);
        let word = Word::HeldElsewhere { levels };
        around.out.words.push((peer, word));
    }
}

/// Whether those of some rank want by a quarter more or less than was told: a queue that grows or
/// shrinks is told of a few times, not once for each caller.
fn is_news(levels: &[Level], told: &[Level]) -> bool {
    let of = |levels: &[Level], behind: u8| {
        let level = levels.iter().find(|level| level.behind == behind);
        level.map_or(0, |level| level.tokens)
    };
    levels.iter().chain(told).any(|level| {
        let (now, before) = (of(levels, level.behind), of(told, level.behind));
        now.abs_diff(before) > before / 4
    })
}

impl Party {
    /// Who waits by rank for so many tokens; what is wanted beyond is wanted since an instant, and
    /// not before any of those came, by nobody of rank.
    pub(super) fn held(levels: &[Level], wanted: u64, since_ns: u64) -> Self {
        let (mut left, mut since_ns) = (wanted, since_ns);
        let mut parts = Vec::with_capacity(levels.len() + 1);
        for level in levels {
            let tokens = level.tokens.min(left);
            left -= tokens;
            since_ns = since_ns.max(level.newest_ns);
            parts.push(level.first(tokens));
        }
        parts.push(Level {
            behind: LAST,
            tokens: left,
            since_ns,
            newest_ns: since_ns,
        });
        parts.retain(|level| level.tokens > 0);
        Self {
            levels: parts,
            holds: !levels.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::divide::divide;
    use super::*;

    fn level(tokens: u64, since_ns: u64, newest_ns: u64) -> Level {
        Level {
            behind: LAST,
            tokens,
            since_ns,
            newest_ns,
        }
    }

    #[test]
    fn what_nobody_waits_for_yet_comes_after_those_who_wait() {
        // One is held there since 1,000, and the node asks for 60 at 1,900.
        let asks = Party::held(&[level(1, 1_000, 1_000)], 60, 1_900);
        let ours = Party::held(&[level(100, 1_000, 2_000)], 100, u64::MAX);
        assert_eq!(divide(50, 1, &[asks.clone(), ours.clone()]), [1, 49]);
        assert_eq!(divide(160, 1, &[asks, ours]), [60, 100]);
        // Of those who wait an ask may be for the first ones.
        let few = Party::held(&[level(100, 1_000, 2_000)], 2, 1_900);
        let late = Party::held(&[level(10, 1_500, 2_000)], 10, u64::MAX);
        assert_eq!(divide(2, 1, &[few, late]), [2, 0]);
    }

    #[test]
    fn what_a_node_told_long_ago_counts_no_more() {
        let node = Opener { node: 2, boot: 1 };
        let mut held = HeldBy::default();
        let told = Held {
            levels: vec![level(3, 5, 9)],
            told_ns: 10,
            told: Vec::new(),
        };
        held.nodes.insert(node, told);
        assert_eq!(held.first(node, 7_000, 10 + TOLD_NS - 1), (LAST, 5));
        assert_eq!(held.first(node, 7_000, 10 + TOLD_NS), (LAST, 7_000));
    }
}
