//! The tokens of a block among those who wait for them.

/// Who waits for tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Party {
    /// How many.
    pub wanted: u64,
    /// Since when; `u64::MAX` for who only may need them.
    pub since_ns: u64,
}

/// How many tokens of `amount` each party gets, together no more than that: all that it wants, or
/// its share. A request takes `unit` tokens at once, so that less than that is of no use to
/// anybody: shares are whole requests, and what does not divide goes to the oldest, a request each.
pub(super) fn divide(amount: u64, unit: u64, parties: &[Party]) -> Vec<u64> {
    let total: u128 = parties.iter().map(|party| u128::from(party.wanted)).sum();
    let step = |left: u64| unit.max(1).min(left);
    let share = |party: &Party| {
        let part = u128::from(amount) * u128::from(party.wanted) / total.max(1);
        let part = u64::try_from(part).unwrap_or(u64::MAX);
        match part >= party.wanted {
            true => party.wanted,
            false => part - part % step(party.wanted),
        }
    };
    let mut shares: Vec<u64> = parties.iter().map(share).collect();
    let mut rest = amount.saturating_sub(shares.iter().sum());
    let mut oldest: Vec<(&Party, &mut u64)> = parties.iter().zip(&mut shares).collect();
    oldest.sort_by_key(|(party, _)| party.since_ns);
    for (party, share) in oldest {
        let more = step(party.wanted.saturating_sub(*share));
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

    fn shares(amount: u64, unit: u64, parties: &[(u64, u64)]) -> Vec<u64> {
        let party = |(wanted, since_ns): &(u64, u64)| Party {
            wanted: *wanted,
            since_ns: *since_ns,
        };
        divide(amount, unit, &parties.iter().map(party).collect::<Vec<_>>())
    }

    #[test]
    fn each_gets_its_share_and_the_oldest_what_does_not_divide() {
        assert_eq!(shares(10, 1, &[(3, 1), (4, 2)]), [3, 4], "there is enough");
        assert_eq!(shares(9, 1, &[(6, 1), (12, 2)]), [3, 6]);
        assert_eq!(shares(2, 1, &[(5, 3), (5, 1), (5, 2)]), [0, 1, 1]);
        assert!(shares(5, 1, &[]).is_empty());
        // A share of each would do for no request of any of them.
        assert_eq!(
            shares(500, 215, &[(430, 3), (430, 1), (430, 2)]),
            [0, 215, 215]
        );
        assert_eq!(shares(900, 215, &[(860, 1), (430, 2)]), [645, 215]);
        // Whoever wants less than others take at once gets that.
        assert_eq!(shares(100, 215, &[(60, 1), (430, 0)]), [60, 0]);
        assert_eq!(
            shares(u64::MAX, 1, &[(u64::MAX, 1), (u64::MAX, 2)]).len(),
            2
        );
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_there_is_or_than_it_wants(
            amount: u64, unit in 0u64..1_000,
            parties in proptest::collection::vec((0u64..u64::MAX / 8, any::<u64>()), 0..8),
        ) {
            let shares = shares(amount, unit, &parties);
            let sum: u128 = shares.iter().map(|share| u128::from(*share)).sum();
            prop_assert!(sum <= u128::from(amount));
            for (share, (wanted, _)) in shares.iter().zip(&parties) {
                prop_assert!(share <= wanted);
            }
            let total: u128 = parties.iter().map(|(wanted, _)| u128::from(*wanted)).sum();
            prop_assert!(total > u128::from(amount) || sum == total);
        }
    }
}
