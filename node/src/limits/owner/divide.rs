//! The tokens of a block among those who wait for them.

use crate::limits::hold::Level;

/// Who waits for tokens on one node, by rank; `u64::MAX` is since when who only may need them.
#[derive(Clone, Debug)]
pub(super) struct Party(pub Vec<Level>);

/// Those of one rank on one node.
#[derive(Clone, Copy, Debug)]
struct Claim {
    wanted: u64,
    since_ns: u64,
}

/// How many tokens of `amount` each party gets, together no more than that. Whoever is first by
/// rank has all that it wants before others have anything; within a rank each has its share.
pub(super) fn divide(amount: u64, unit: u64, parties: &[Party]) -> Vec<u64> {
    let mut shares = vec![0; parties.len()];
    let levels = parties.iter().flat_map(|Party(levels)| levels);
    let mut ranks: Vec<u8> = levels.map(|level| level.behind).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let mut left = amount;
    for rank in ranks {
        let claim = |Party(levels): &Party| {
            let level = levels.iter().find(|level| level.behind == rank);
            level.map_or(NOTHING, |level| Claim {
                wanted: level.tokens,
                since_ns: level.since_ns,
            })
        };
        let claims: Vec<Claim> = parties.iter().map(claim).collect();
        for (share, more) in shares.iter_mut().zip(divide_rank(left, unit, &claims)) {
            *share += more;
            left -= more;
        }
    }
    shares
}

const NOTHING: Claim = Claim {
    wanted: 0,
    since_ns: u64::MAX,
};

/// All that each wants, or its share. A request takes `unit` tokens at once, so that less than that
/// is of no use to anybody: shares are whole requests, and what does not divide goes to the oldest,
/// a request each.
fn divide_rank(amount: u64, unit: u64, claims: &[Claim]) -> Vec<u64> {
    let total: u128 = claims.iter().map(|claim| u128::from(claim.wanted)).sum();
    let step = |left: u64| unit.max(1).min(left);
    let share = |claim: &Claim| {
        let part = u128::from(amount) * u128::from(claim.wanted) / total.max(1);
        let part = u64::try_from(part).unwrap_or(u64::MAX);
        match part >= claim.wanted {
            true => claim.wanted,
            false => part - part % step(claim.wanted),
        }
    };
    let mut shares: Vec<u64> = claims.iter().map(share).collect();
    let mut rest = amount.saturating_sub(shares.iter().sum());
    let mut oldest: Vec<(&Claim, &mut u64)> = claims.iter().zip(&mut shares).collect();
    oldest.sort_by_key(|(claim, _)| claim.since_ns);
    for (claim, share) in oldest {
        let more = step(claim.wanted.saturating_sub(*share));
        if more <= rest {
            *share += more;
            rest -= more;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::hold::LAST;

    /// Parties by (rank, tokens, since).
    fn shares(amount: u64, unit: u64, parties: &[&[(u8, u64, u64)]]) -> Vec<u64> {
        let level = |(behind, tokens, since_ns): &(u8, u64, u64)| Level {
            behind: *behind,
            tokens: *tokens,
            since_ns: *since_ns,
        };
        let party = |levels: &&[(u8, u64, u64)]| Party(levels.iter().map(level).collect());
        divide(amount, unit, &parties.iter().map(party).collect::<Vec<_>>())
    }

    /// The same where all are of one rank.
    fn even(amount: u64, unit: u64, parties: &[(u64, u64)]) -> Vec<u64> {
        let parties: Vec<[(u8, u64, u64); 1]> = parties
            .iter()
            .map(|(wanted, since_ns)| [(LAST, *wanted, *since_ns)])
            .collect();
        let parties: Vec<&[(u8, u64, u64)]> = parties.iter().map(|party| &party[..]).collect();
        shares(amount, unit, &parties)
    }

    #[test]
    fn each_gets_its_share_and_the_oldest_what_does_not_divide() {
        assert_eq!(even(10, 1, &[(3, 1), (4, 2)]), [3, 4], "there is enough");
        assert_eq!(even(9, 1, &[(6, 1), (12, 2)]), [3, 6]);
        assert_eq!(even(2, 1, &[(5, 3), (5, 1), (5, 2)]), [0, 1, 1]);
        assert!(even(5, 1, &[]).is_empty());
        // A share of each would do for no request of any of them.
        assert_eq!(
            even(500, 215, &[(430, 3), (430, 1), (430, 2)]),
            [0, 215, 215]
        );
        assert_eq!(even(900, 215, &[(860, 1), (430, 2)]), [645, 215]);
        // Whoever wants less than others take at once gets that.
        assert_eq!(even(100, 215, &[(60, 1), (430, 0)]), [60, 0]);
        assert_eq!(even(u64::MAX, 1, &[(u64::MAX, 1), (u64::MAX, 2)]).len(), 2);
    }

    #[test]
    fn a_rank_has_all_that_it_wants_before_the_next_has_anything() {
        let (old, urgent) = (&[(255, 10, 1)][..], &[(246, 3, 9), (255, 4, 2)][..]);
        assert_eq!(shares(2, 1, &[old, urgent]), [0, 2]);
        assert_eq!(shares(3, 1, &[old, urgent]), [0, 3]);
        assert_eq!(shares(10, 1, &[old, urgent]), [5, 5]);
        assert_eq!(shares(20, 1, &[old, urgent]), [10, 7]);
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_there_is_or_than_it_wants(
            amount: u64, unit in 0u64..1_000,
            parties in proptest::collection::vec(
                proptest::collection::btree_map(250u8.., (0u64..u64::MAX / 64, any::<u64>()), 0..4),
                0..8,
            ),
        ) {
            let parties: Vec<Vec<(u8, u64, u64)>> = parties
                .into_iter()
                .map(|party| party.into_iter().map(|(b, (n, s))| (b, n, s)).collect())
                .collect();
            let parties: Vec<&[(u8, u64, u64)]> = parties.iter().map(|party| &party[..]).collect();
            let shares = shares(amount, unit, &parties);
            let sum: u128 = shares.iter().map(|share| u128::from(*share)).sum();
            prop_assert!(sum <= u128::from(amount));
            let wanted = |party: &&[(u8, u64, u64)]| {
                party.iter().map(|(_, wanted, _)| u128::from(*wanted)).sum::<u128>()
            };
            for (share, party) in shares.iter().zip(&parties) {
                prop_assert!(u128::from(*share) <= wanted(party));
            }
            let total: u128 = parties.iter().map(wanted).sum();
            prop_assert!(total > u128::from(amount) || sum == total);
        }
    }
}
