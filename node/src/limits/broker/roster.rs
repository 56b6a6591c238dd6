//! Which node owns which key: rendezvous order over the peers that can be reached.
//!
//! Every node gives each key an order of owners by a hash of node and key. The first that answers
//! is asked; one that was silent, or has no store, is passed over for a while, longer each time.
//! Nodes may disagree for a moment: then two own a key, and the store keeps the bound.

use std::collections::BTreeMap;

use crate::limits::block::Opener;

/// How long a silent peer is passed over at first; doubles up to [`SUSPECT_MAX_NS`].
const SUSPECT_MIN_NS: u64 = 250_000_000;
const SUSPECT_MAX_NS: u64 = 5_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Peer {
    incarnation: Opener,
    suspect_until_ns: u64,
    suspicion_ns: u64,
}

/// The peers that are linked now.
#[derive(Debug, Default)]
pub struct Roster {
    peers: BTreeMap<u64, Peer>,
}

impl Roster {
    /// A peer is linked.
    pub fn up(&mut self, peer: Opener) {
        let fresh = Peer {
            incarnation: peer,
            suspect_until_ns: 0,
            suspicion_ns: SUSPECT_MIN_NS,
        };
        self.peers.insert(peer.node, fresh);
    }

    /// A peer's link ended.
    pub fn down(&mut self, peer: Opener) {
        if self.is_linked(peer) {
            self.peers.remove(&peer.node);
        }
    }

    /// Whether this start of a node is linked.
    pub fn is_linked(&self, peer: Opener) -> bool {
        let linked = self.peers.get(&peer.node);
        linked.is_some_and(|linked| linked.incarnation == peer)
    }

    /// A peer did not answer, or cannot serve: others are asked for a while.
    pub fn pass_over(&mut self, peer: Opener, now_ns: u64) {
        let known = self.peers.get_mut(&peer.node);
        if let Some(known) = known.filter(|known| known.incarnation == peer) {
            // Several asks that end together are one silence.
            if now_ns >= known.suspect_until_ns {
                known.suspect_until_ns = now_ns.saturating_add(known.suspicion_ns);
                known.suspicion_ns = known.suspicion_ns.saturating_mul(2).min(SUSPECT_MAX_NS);
            }
        }
    }

    /// A peer gave or refused tokens.
    pub fn served(&mut self, peer: Opener) {
        if let Some(known) = self.peers.get_mut(&peer.node) {
            known.suspicion_ns = SUSPECT_MIN_NS;
        }
    }

    /// Whom to ask for a key; `None` when this node is to take from the store itself: because it
    /// comes first of those that can be reached, or reaches nobody. A node without a store
    /// (`able` is false) asks whoever is there.
    pub fn supplier(&self, me: u64, able: bool, key: u64, now_ns: u64) -> Option<Opener> {
        let usable = self
            .peers
            .values()
            .filter(|peer| now_ns >= peer.suspect_until_ns);
        let best = usable.max_by_key(|peer| score(peer.incarnation.node, key))?;
        let ours = able && score(me, key) > score(best.incarnation.node, key);
        (!ours).then_some(best.incarnation)
    }
}

/// What a key is ordered by.
pub fn key_hash(key: &str) -> u64 {
    let hash = blake3::hash(key.as_bytes());
    let (first, _) = hash
        .as_bytes()
        .split_first_chunk::<8>()
        .unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*first)
}

/// Weight of a node for a key (SplitMix64's finisher); the node's number breaks ties.
fn score(node: u64, key: u64) -> (u64, u64) {
    let mut z = node ^ key.rotate_left(32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31), node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn roster(nodes: &[u64]) -> Roster {
        let mut roster = Roster::default();
        nodes.iter().for_each(|node| roster.up(opener(*node)));
        roster
    }

    fn opener(node: u64) -> Opener {
        Opener { node, boot: 1 }
    }

    /// The owner of a key as `me` sees it among these.
    fn owner(me: u64, others: &[u64], key: u64) -> u64 {
        let supplier = roster(others).supplier(me, true, key, 0);
        supplier.map_or(me, |peer| peer.node)
    }

    #[test]
    fn all_nodes_agree_and_each_owns_its_part() {
        let mut owned = [0; 4];
        for key in (0..400).map(|n| key_hash(&n.to_string())) {
            let seen = [
                owner(1, &[2, 3], key),
                owner(2, &[1, 3], key),
                owner(3, &[1, 2], key),
            ];
            assert_eq!(seen, [seen[0]; 3]);
            owned[seen[0] as usize] += 1;
            // Without the owner the others' keys stay where they are.
            let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|n| *n != seen[0]).collect();
            assert_ne!(owner(rest[0], &rest[1..], key), seen[0]);
        }
        assert!(owned[1..].iter().all(|n| *n > 80), "{owned:?}");
    }

    #[test]
    fn who_is_silent_is_passed_over_for_longer_each_time() {
        let mut roster = roster(&[2]);
        let key = (0..).find(|key| score(2, *key) > score(1, *key)).unwrap();
        let asked = |roster: &Roster, ms: u64| roster.supplier(1, true, key, ms * MS).is_some();
        assert!(asked(&roster, 0));
        roster.pass_over(opener(2), 0);
        roster.pass_over(opener(2), MS);
        assert!(!asked(&roster, 249) && asked(&roster, 250));
        roster.pass_over(opener(2), 250 * MS);
        assert!(!asked(&roster, 749) && asked(&roster, 750));
        roster.served(opener(2));
        roster.pass_over(opener(2), 750 * MS);
        assert!(asked(&roster, 1_000));
        roster.down(Opener { node: 2, boot: 9 });
        assert!(asked(&roster, 1_000), "the end of an earlier start");
        roster.down(opener(2));
        assert!(!asked(&roster, 1_000));
    }

    #[test]
    fn who_has_no_store_asks_another() {
        let key = (0..).find(|key| score(1, *key) > score(2, *key)).unwrap();
        let roster = roster(&[2]);
        assert_eq!(roster.supplier(1, true, key, 0), None);
        assert_eq!(roster.supplier(1, false, key, 0), Some(opener(2)));
    }
}
