//! Which node owns which key: rendezvous order over the peers that can be reached.
//!
//! Every node gives each key an order of owners by a hash of node and key. The first that answers
//! is asked; one that was silent, or has no store, is passed over for a while, longer each time;
//! one that may not go by its clock only for what goes by the calendar.
//! Nodes may disagree for a moment: then two own a key, and the store keeps the bound.

use std::collections::BTreeMap;

use crate::limits::block::Opener;
use crate::splitmix;

/// How long a silent peer is passed over at first; doubles up to [`SUSPECT_MAX_NS`].
const SUSPECT_MIN_NS: u64 = 250_000_000;
const SUSPECT_MAX_NS: u64 = 5_000_000_000;

/// Keys that a node may be passed over for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// All.
    All,
    /// Those with a limit by day or month.
    Calendar,
}

impl Keys {
    /// Those like one that has such a limit, or has none.
    pub fn like(has_calendar: bool) -> Self {
        match has_calendar {
            true => Self::Calendar,
            false => Self::All,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    incarnation: Opener,
    for_all: Suspicion,
    for_calendar: Suspicion,
}

/// Until when a peer is passed over, and for how long the next time.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    until_ns: u64,
    next_ns: u64,
    /// It said itself that it has no store.
    no_store: bool,
}

impl Suspicion {
    const NONE: Self = Self {
        until_ns: 0,
        next_ns: SUSPECT_MIN_NS,
        no_store: false,
    };

    fn rise(&mut self, now_ns: u64) {
        // Several asks that end together are one silence.
        if now_ns >= self.until_ns {
            self.until_ns = now_ns.saturating_add(self.next_ns);
            self.next_ns = self.next_ns.saturating_mul(2).min(SUSPECT_MAX_NS);
            self.no_store = false;
        }
    }
}

impl Peer {
    fn is_usable(&self, keys: Keys, now_ns: u64) -> bool {
        let for_these = match keys {
            Keys::All => 0,
            Keys::Calendar => self.for_calendar.until_ns,
        };
        now_ns >= self.for_all.until_ns.max(for_these)
    }
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
            for_all: Suspicion::NONE,
            for_calendar: Suspicion::NONE,
        };
        self.peers.insert(peer.node, fresh);
    }

    /// A peer's link ended.
    pub fn down(&mut self, peer: Opener) {
        if self.is_linked(peer) {
            self.peers.remove(&peer.node);
        }
    }

    /// All that are linked.
    pub fn linked(&self) -> Vec<Opener> {
        self.peers.values().map(|peer| peer.incarnation).collect()
    }

    /// Whether this start of a node is linked.
    pub fn is_linked(&self, peer: Opener) -> bool {
        let linked = self.peers.get(&peer.node);
        linked.is_some_and(|linked| linked.incarnation == peer)
    }

    /// A peer did not answer, or cannot serve these keys: others are asked for a while.
    pub fn pass_over(&mut self, peer: Opener, keys: Keys, now_ns: u64) {
        if let Some(suspicion) = self.suspicion(peer, keys) {
            suspicion.rise(now_ns);
        }
    }

    /// A peer says that it has no store for these keys: others are asked for a while.
    pub fn has_no_store(&mut self, peer: Opener, keys: Keys, now_ns: u64) {
        if let Some(suspicion) = self.suspicion(peer, keys) {
            suspicion.rise(now_ns);
            suspicion.no_store = true;
        }
    }

    fn suspicion(&mut self, peer: Opener, keys: Keys) -> Option<&mut Suspicion> {
        let linked = self.peers.get_mut(&peer.node);
        let known = linked.filter(|linked| linked.incarnation == peer)?;
        Some(match keys {
            Keys::All => &mut known.for_all,
            Keys::Calendar => &mut known.for_calendar,
        })
    }

    /// The store answers this node again, and so those as well that had lost it: they are asked
    /// at once, that not each node writes every key in the owner's place.
    pub fn store_is_back(&mut self) {
        let all = self.peers.values_mut();
        let all = all.flat_map(|peer| [&mut peer.for_all, &mut peer.for_calendar]);
        all.filter(|known| known.no_store)
            .for_each(|known| *known = Suspicion::NONE);
    }

    /// A peer gave or refused tokens of one of these keys.
    pub fn served(&mut self, peer: Opener, keys: Keys) {
        if let Some(known) = self.peers.get_mut(&peer.node) {
            known.for_all.next_ns = SUSPECT_MIN_NS;
            if keys == Keys::Calendar {
                known.for_calendar.next_ns = SUSPECT_MIN_NS;
            }
        }
    }

    /// Whom to ask for a key; `None` when this node is to take from the store itself: because it
    /// comes first of those that can be reached, or reaches nobody. A node without a store
    /// (`able` is false) asks whoever is there.
    pub fn supplier(
        &self,
        (me, able): (u64, bool),
        (key, keys): (u64, Keys),
        now_ns: u64,
    ) -> Option<Opener> {
        let peers = self.peers.values();
        let usable = peers.filter(|peer| peer.is_usable(keys, now_ns));
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

/// Weight of a node for a key; the node's number breaks ties.
fn score(node: u64, key: u64) -> (u64, u64) {
    (splitmix::finish(node ^ key.rotate_left(32)), node)
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
        let supplier = roster(others).supplier((me, true), (key, Keys::All), 0);
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
        let asked = |roster: &Roster, ms: u64| {
            let supplier = roster.supplier((1, true), (key, Keys::All), ms * MS);
            supplier.is_some()
        };
        assert!(asked(&roster, 0));
        roster.pass_over(opener(2), Keys::All, 0);
        roster.pass_over(opener(2), Keys::All, MS);
        assert!(!asked(&roster, 249) && asked(&roster, 250));
        roster.pass_over(opener(2), Keys::All, 250 * MS);
        assert!(!asked(&roster, 749) && asked(&roster, 750));
        roster.served(opener(2), Keys::All);
        roster.pass_over(opener(2), Keys::All, 750 * MS);
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
        assert_eq!(roster.supplier((1, true), (key, Keys::All), 0), None);
        assert_eq!(
            roster.supplier((1, false), (key, Keys::All), 0),
            Some(opener(2))
        );
    }

    #[test]
    fn who_had_no_store_is_asked_at_once_when_it_is_back_and_who_is_silent_is_not() {
        let key = (0..).find(|key| score(2, *key) > score(1, *key)).unwrap();
        let mut roster = roster(&[2]);
        let asked = |roster: &Roster, ms: u64| {
            let supplier = roster.supplier((1, true), (key, Keys::Calendar), ms * MS);
            supplier.is_some()
        };
        for keys in [Keys::All, Keys::Calendar] {
            (0..8).for_each(|s| roster.has_no_store(opener(2), keys, s * 10_000 * MS));
            assert!(!asked(&roster, 70_001));
            roster.store_is_back();
            assert!(asked(&roster, 70_001));
            roster.has_no_store(opener(2), keys, 70_001 * MS);
            assert!(!asked(&roster, 70_250) && asked(&roster, 70_251));
        }
        roster.pass_over(opener(2), Keys::All, 80_000 * MS);
        roster.store_is_back();
        assert!(!asked(&roster, 80_001));
    }

    #[test]
    fn who_may_not_go_by_its_clock_serves_what_goes_by_no_calendar() {
        let key = (0..).find(|key| score(2, *key) > score(1, *key)).unwrap();
        let mut roster = roster(&[2]);
        roster.pass_over(opener(2), Keys::Calendar, 0);
        let asked = |roster: &Roster, keys: Keys, ms: u64| {
            roster.supplier((1, true), (key, keys), ms * MS).is_some()
        };
        assert!(asked(&roster, Keys::All, 1) && !asked(&roster, Keys::Calendar, 249));
        // Tokens of other keys say nothing of its clock.
        roster.served(opener(2), Keys::All);
        roster.pass_over(opener(2), Keys::Calendar, 250 * MS);
        assert!(!asked(&roster, Keys::Calendar, 749) && asked(&roster, Keys::Calendar, 750));
        roster.served(opener(2), Keys::Calendar);
        roster.pass_over(opener(2), Keys::Calendar, 750 * MS);
        assert!(asked(&roster, Keys::Calendar, 1_000));
        // Who says nothing at all serves nothing.
        roster.pass_over(opener(2), Keys::All, 1_000 * MS);
        assert!(!asked(&roster, Keys::All, 1_100) && !asked(&roster, Keys::Calendar, 1_100));
    }
}
