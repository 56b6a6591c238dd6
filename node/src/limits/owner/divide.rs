//! The tokens of a block among those who wait for them.

use crate::limits::hold::Level;

/// Who waits for tokens on one node, by rank; `u64::MAX` is since when who only may need them.
#[derive(Clone, Debug)]
pub(super) struct Party {
    /// Each for itself; there may be several of a rank.
    pub(super) levels: Vec<Level>,
    /// Whether some of them are held callers, who are served in the order in which they came.
    pub(super) holds: bool,
}

impl Level {
    /// What those want of them who came by an instant. Between the first and the last they are
    /// taken to have come evenly.
    fn by(&self, at_ns: u64) -> u64 {
        let Some(after_ns) = at_ns.checked_sub(self.since_ns) else {
            return 0;
        };
        match self.span_ns() {
            span_ns if after_ns < span_ns => part_of(self.tokens, after_ns, span_ns.into()),
            _ => self.tokens,
        }
    }

    /// When the first of them came who is not served by so much.
    fn next_ns(&self, served: u64) -> u64 {
        let after_ns = part_of(self.span_ns(), served, self.tokens.max(1).into());
        self.since_ns.saturating_add(after_ns)
    }

    /// The first of them, for so many of their tokens.
    pub(super) fn first(self, tokens: u64) -> Self {
        Self {
            tokens,
            newest_ns: self.next_ns(tokens),
            ..self
        }
    }

    fn span_ns(&self) -> u64 {
        self.newest_ns.saturating_sub(self.since_ns)
    }
}

/// `part` of `whole` parts of something, rounded down.
fn part_of(all: u64, part: u64, whole: u128) -> u64 {
    let share = u128::from(all) * u128::from(part) / whole;
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// How many tokens of `amount` each party gets, together no more than that. Whoever is first by
/// rank has all that it wants before others have anything; within a rank whoever came first, as far
/// as that is known, else each has its share.
pub(super) fn divide(amount: u64, unit: u64, parties: &[Party]) -> Vec<u64> {
    let mut shares = vec![0; parties.len()];
    let in_order = parties.iter().any(|party| party.holds);
    let mut levels: Vec<(usize, Level)> = Vec::new();
    for (at, party) in parties.iter().enumerate() {
        levels.extend(party.levels.iter().map(|level| (at, *level)));
    }
    levels.sort_by_key(|(_, level)| level.behind);
    let mut left = amount;
    for rank in levels.chunk_by(|(_, one), (_, other)| one.behind == other.behind) {
        let claims: Vec<Level> = rank.iter().map(|(_, level)| *level).collect();
        let more = divide_rank(left, unit, &claims, in_order);
        for ((at, _), more) in rank.iter().zip(more) {
            if let Some(share) = shares.get_mut(*at) {
                *share += more;
            }
            left -= more;
        }
    }
    shares
}

/// All that each wants, or its share: in order what those want who came first of all, else by what
/// each wants. A request takes `unit` tokens at once, so that less than that is of no use to
/// anybody: shares are whole requests, and what does not divide goes to the oldest, one each.
fn divide_rank(amount: u64, unit: u64, claims: &[Level], in_order: bool) -> Vec<u64> {
    let parts = match in_order {
        true => first_come(amount, claims),
        false => proportional(amount, claims.iter().map(|claim| claim.tokens)),
    };
    let step = |left: u64| unit.max(1).min(left);
    let share = |(claim, part): (&Level, u64)| match part >= claim.tokens {
        true => claim.tokens,
        false => part - part % step(claim.tokens),
    };
    let mut shares: Vec<u64> = claims.iter().zip(parts).map(share).collect();
    let mut rest = amount.saturating_sub(shares.iter().sum());
    let mut oldest: Vec<(&Level, &mut u64)> = claims.iter().zip(&mut shares).collect();
    oldest.sort_by_key(|(claim, share)| claim.next_ns(**share));
    for (claim, share) in oldest {
        let more = step(claim.tokens.saturating_sub(*share));
        if more <= rest {
            *share += more;
            rest -= more;
        }
    }
    shares
}

/// What each wants, or its part of `amount`, rounded down.
fn proportional(amount: u64, wanted: impl Iterator<Item = u64> + Clone) -> Vec<u64> {
    let total: u128 = wanted.clone().map(u128::from).sum();
    let part = |wanted: u64| wanted.min(part_of(amount, wanted, total.max(1)));
    wanted.map(part).collect()
}

/// What those want who came first of all: by the last instant by which no more is wanted than there
/// is, and their parts of the rest for who came at the next.
fn first_come(amount: u64, claims: &[Level]) -> Vec<u64> {
    let by = |at_ns: u64| claims.iter().map(move |claim| claim.by(at_ns));
    let is_enough = |at_ns: u64| by(at_ns).map(u128::from).sum::<u128>() <= u128::from(amount);
    if is_enough(u64::MAX) {
        return by(u64::MAX).collect();
    }
    let (mut served_ns, mut next_ns) = (0, u64::MAX);
    while next_ns - served_ns > 1 {
        let middle_ns = served_ns + (next_ns - served_ns) / 2;
        match is_enough(middle_ns) {
            true => served_ns = middle_ns,
            false => next_ns = middle_ns,
        }
    }
    // Nobody comes at 0, the start of the machine.
    let served = match served_ns {
        0 => vec![0; claims.len()],
        _ => by(served_ns).collect(),
    };
    let rest = amount.saturating_sub(served.iter().sum());
    let more = by(next_ns).zip(&served).map(|(next, served)| next - served);
    let more = proportional(rest, more);
    served
        .iter()
        .zip(more)
        .map(|(served, more)| served + more)
        .collect()
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
            newest_ns: *since_ns,
        };
        let party = |levels: &&[(u8, u64, u64)]| Party {
            levels: levels.iter().map(level).collect(),
            holds: false,
        };
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

    /// Callers of one rank that came evenly, by (tokens, first, last).
    fn over_time(amount: u64, unit: u64, parties: &[(u64, u64, u64)]) -> Vec<u64> {
        let party = |(tokens, since_ns, newest_ns): &(u64, u64, u64)| {
            let (tokens, since_ns, newest_ns) = (*tokens, *since_ns, *newest_ns);
            let level = Level {
                behind: LAST,
                tokens,
                since_ns,
                newest_ns,
            };
            Party {
                levels: vec![level],
                holds: true,
            }
        };
        divide(amount, unit, &parties.iter().map(party).collect::<Vec<_>>())
    }

    #[test]
    fn who_came_first_of_all_nodes_is_served_first() {
        // On one node 100 came while one came on another: what there is goes by that rate.
        let both = [(100, 1_000, 2_000), (25, 1_000, 2_000)];
        assert_eq!(over_time(10, 1, &both), [8, 2]);
        // One that wants all of its callers' tokens has no more for it than who asks for one.
        let asks = [(1, 1_000, 1_010), (25, 1_020, 2_000)];
        assert_eq!(over_time(1, 1, &asks), [1, 0]);
        assert_eq!(over_time(2, 1, &asks), [1, 1]);
        assert_eq!(
            over_time(3, 1, &[(25, 1_900, 2_000), asks[0], asks[1]]),
            [0, 1, 2]
        );
        // Whoever came later waits, and who came at one instant shares.
        assert_eq!(
            over_time(50, 1, &[(50, 1_000, 2_000), (50, 2_000, 3_000)]),
            [50, 0]
        );
        let at_once = [(30, 1_000, 1_000), (10, 1_000, 1_000), (10, 2_000, 3_000)];
        assert_eq!(over_time(20, 1, &at_once), [15, 5, 0]);
        assert_eq!(over_time(50, 5, &both), [40, 10]);
        // Who only may need them comes last.
        let may_need = [(10, u64::MAX, u64::MAX), (5, 1_000, 2_000)];
        assert_eq!(over_time(7, 1, &may_need), [2, 5]);
    }

    proptest! {
        #[test]
        fn in_order_too_nobody_gets_more_than_there_is_or_than_it_wants(
            amount: u64, unit in 0u64..1_000,
            parties in proptest::collection::vec(
                (0u64..u64::MAX / 64, any::<u64>(), any::<u64>()), 0..8,
            ),
        ) {
            let shares = over_time(amount, unit, &parties);
            let sum: u128 = shares.iter().map(|share| u128::from(*share)).sum();
            prop_assert!(sum <= u128::from(amount));
            for (share, (wanted, ..)) in shares.iter().zip(&parties) {
                prop_assert!(share <= wanted);
            }
            let total: u128 = parties.iter().map(|(wanted, ..)| u128::from(*wanted)).sum();
            prop_assert!(total > u128::from(amount) || sum == total);
        }

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
