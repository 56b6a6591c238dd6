//! Which secrets of a credential are over: a fact beside the tree, not configuration.
//!
//! It only ever rises, so no rollback, import, replication or old copy on a disk can bring a
//! revoked secret back: nodes check it where a secret is used. One key per credential
//! (`live/retired/{org}/{credential}`), written in the transaction of the head that caused it.
//!
//! The fact of a deleted credential stays for ever, some 230 bytes of etcd's file. There is no age
//! at which it can go: a backup of etcd of any age may be restored, and a node's configuration be
//! written back over it. The versions of the backup that name the credential are then kept ones
//! again, and what keeps a rollback to one of them from bringing the secret back is the fact that
//! the node wrote back. The same holds for the archive of a control plane that was away, and for a
//! region that catches up: neither can be asked how old it is before it comes. What could take the
//! place of many facts is one for the organisation that says "of credentials without a fact of
//! their own, every secret up to this generation is over", made together with facts for all
//! credentials that there are: it ends no less than what it replaces, wherever copies of it meet.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::version::Generation;

/// Which generations of a credential's secret are over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retired {
    /// The lowest generation that still counts.
    pub lowest: Generation,
    /// The end of a rotation's overlap, when one is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<NextRetired>,
}

/// What [`Retired::lowest`] becomes, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextRetired {
    /// The lowest generation that counts from then on.
    pub lowest: Generation,
    /// When, by the clock of whoever judges.
    pub from: Timestamp,
}

impl Retired {
    /// Whether a secret of this generation must be refused at `now`.
    pub fn covers(&self, generation: &Generation, now: Timestamp) -> bool {
        let ended = |next: &NextRetired| now >= next.from && *generation < next.lowest;
        *generation < self.lowest || self.next.as_ref().is_some_and(ended)
    }

    /// When a secret of this generation ends: already, at an overlap's end, or not that is known.
    pub fn end(&self, generation: &Generation) -> Option<Timestamp> {
        if *generation < self.lowest {
            return Some(Timestamp::MIN);
        }
        let next = self.next.as_ref()?;
        (*generation < next.lowest).then_some(next.from)
    }

    /// The same with what is known already, where something is.
    pub fn joined(self, known: Option<Self>) -> Self {
        match known {
            Some(known) => known.merge(self),
            None => self,
        }
    }

    /// Both facts at once: what is over in either at an instant is over in what comes out.
    ///
    /// Of two overlaps under way, as branches that did not know of each other begin them, the one
    /// that ends more secrets stays, of equal ones the shorter. What the other one would have ended
    /// later is over at once, as it is when a credential is rotated again during an overlap: the
    /// form has one end, and this is the stricter side that brings nothing back. To take the
    /// earlier end with the higher generation would be no less strict and depend on the order:
    /// once a third fact had raised `lowest` past an overlap, nobody would know its end any more.
    pub fn merge(self, other: Self) -> Self {
        let lowest = self.lowest.max(other.lowest);
        let (higher, lower) = match (self.next, other.next) {
            (Some(a), Some(b)) if a.lowest == b.lowest => {
                let from = a.from.min(b.from);
                (Some(NextRetired { from, ..a }), None)
            }
            (Some(a), Some(b)) if a.lowest > b.lowest => (Some(a), Some(b)),
            (Some(a), Some(b)) => (Some(b), Some(a)),
            (a, b) => (a.or(b), None),
        };
        let lowest = match lower {
            Some(next) => lowest.max(next.lowest),
            None => lowest,
        };
        let next = higher.filter(|next| next.lowest > lowest);
        Self { lowest, next }
    }

    /// This fact with an overlap that has ended by `now` made final.
    pub fn settled(self, now: Timestamp) -> Self {
        match self.next {
            Some(next) if now >= next.from => Self {
                lowest: self.lowest.max(next.lowest),
                next: None,
            },
            next => Self { next, ..self },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Epoch;

    fn generation(n: u64) -> Generation {
        let epoch = Epoch {
            counter: 1,
            region: "eu".into(),
        };
        Generation { epoch, n }
    }

    fn fact(lowest: u64, next: Option<(u64, i64)>) -> Retired {
        let next = next.map(|(lowest, second)| NextRetired {
            lowest: generation(lowest),
            from: Timestamp::from_second(second).unwrap(),
        });
        Retired {
            lowest: generation(lowest),
            next,
        }
    }

    #[test]
    fn a_secret_is_over_below_the_lowest_and_at_the_overlaps_end() {
        for (fact, n, second, covered) in [
            (fact(5, None), 4, 0, true),
            (fact(5, None), 5, 0, false),
            (fact(5, Some((9, 100))), 5, 99, false),
            (fact(5, Some((9, 100))), 5, 100, true),
            (fact(5, Some((9, 100))), 9, 100, false),
            (fact(5, Some((9, 100))), 4, 0, true),
        ] {
            let now = Timestamp::from_second(second).unwrap();
            assert_eq!(
                fact.covers(&generation(n), now),
                covered,
                "{fact:?} {n} {second}"
            );
        }
    }

    #[test]
    fn merging_only_rises_and_does_not_depend_on_the_order() {
        for (a, b, expected) in [
            (fact(5, None), fact(3, None), fact(5, None)),
            (
                fact(5, None),
                fact(3, Some((9, 100))),
                fact(5, Some((9, 100))),
            ),
            (fact(9, None), fact(3, Some((9, 100))), fact(9, None)),
            (
                fact(3, Some((7, 50))),
                fact(3, Some((9, 100))),
                fact(7, Some((9, 100))),
            ),
            (
                fact(3, Some((7, 100))),
                fact(3, Some((9, 50))),
                fact(7, Some((9, 50))),
            ),
            // A rotation during an overlap.
            (
                fact(3, Some((7, 50))),
                fact(7, Some((9, 100))),
                fact(7, Some((9, 100))),
            ),
            (
                fact(3, Some((9, 50))),
                fact(3, Some((9, 100))),
                fact(3, Some((9, 50))),
            ),
        ] {
            assert_eq!(a.clone().merge(b.clone()), expected);
            assert_eq!(b.merge(a), expected);
        }
    }

    #[test]
    fn an_ended_overlap_becomes_final() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(
            fact(3, Some((9, 100))).settled(at(99)),
            fact(3, Some((9, 100)))
        );
        assert_eq!(fact(3, Some((9, 100))).settled(at(100)), fact(9, None));
    }
}
