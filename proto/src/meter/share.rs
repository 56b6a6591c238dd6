//! A limit that several regions have together: each gives its share of it.
//!
//! `shared_by` says which regions. A share is a fraction in millionths, even at the start: every
//! region knows what is its own without asking another, and all of them together are never more
//! than the whole. A region that is not listed has none.

use sha2::{Digest, Sha256};

use super::{Algorithm, Limit};
use crate::object::Body;
use crate::problem::Problem;
use crate::seal::is_region_name;

/// All of a limit, in millionths.
pub const WHOLE: u64 = 1_000_000;

/// Most regions that share a limit.
pub const REGIONS_MAX: usize = 32;

/// What one region has of the limits of a meter at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Share {
    /// Names the regions that share: what was agreed among others does not count among these.
    pub division: u64,
    /// How much it has, in millionths.
    pub initial: u64,
}

impl Share {
    /// What `region` has of limits that the listed regions share, and which were reset so often;
    /// none where nothing is shared.
    pub fn of(listed: &[String], resets: u32, region: &str) -> Option<Self> {
        if listed.is_empty() {
            return None;
        }
        let mut names: Vec<&str> = listed.iter().map(String::as_str).collect();
        names.sort_unstable();
        // No name of a region holds a comma.
        let digest = Sha256::digest(format!("{resets}:{}", names.join(",")));
        let first = digest.first_chunk::<8>().copied().unwrap_or_default();
        let is_listed = names.contains(&region);
        Some(Self {
            division: u64::from_be_bytes(first),
            initial: match is_listed {
                true => WHOLE / names.len() as u64,
                false => 0,
            },
        })
    }
}

impl Share {
    /// Whether it can move to another region. What was used of a calendar window, or is in flight,
    /// does not get less with time, so that who takes a share over could not tell when it is free.
    pub fn can_move(&self, limits: &[Limit]) -> bool {
        let counts = |limit: &Limit| limit.algorithm() != Algorithm::FixedWindow;
        self.initial > 0 && !limits.is_empty() && limits.iter().all(counts)
    }
}

/// The limits of an object that regions share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedLimits<'o> {
    /// The regions.
    pub regions: &'o [String],
    /// How often it was reset.
    pub resets: u32,
    /// The whole of each limit, by its window or `concurrency`.
    pub whole: Vec<(&'static str, u64)>,
    /// Its limits per window.
    pub limits: Vec<Limit>,
}

impl<'o> SharedLimits<'o> {
    /// Those of an object; none where it has none that are shared, or that can be read.
    pub fn of(body: &'o Body) -> Option<Self> {
        let (regions, resets, limits, slots) = match body {
            Body::Meter(meter) if !meter.spec.shared_by.is_empty() => {
                let meter = &meter.spec;
                let limits = meter
                    .limits
                    .iter()
                    .filter_map(|limit| limit.compile().ok()?);
                let slots = meter.concurrency();
                (&meter.shared_by, meter.resets, limits.collect(), slots)
            }
            Body::Proxy(proxy) if !proxy.limits.shared_by.is_empty() => {
                let limits: Vec<Limit> = proxy.limits.compile().ok()?;
                (&proxy.limits.shared_by, 0, limits, None)
            }
            _ => return None,
        };
        let named = limits
            .iter()
            .map(|limit| (limit.window().name(), limit.limit()));
        let slots = slots.map(|limit| ("concurrency", limit));
        let whole = named.chain(slots).collect();
        Some(Self {
            regions,
            resets,
            whole,
            limits,
        })
    }

    /// What a region has of them at the start.
    pub fn share(&self, region: &str) -> Option<Share> {
        Share::of(self.regions, self.resets, region)
    }

    /// The kind of its limits that keeps shares where they are; none where they move.
    pub fn stays(&self) -> Option<&'static str> {
        if self.whole.len() > self.limits.len() {
            return Some("concurrency");
        }
        let counts = |limit: &Limit| limit.algorithm() == Algorithm::FixedWindow;
        self.limits.iter().any(counts).then_some("fixed_window")
    }

    /// The share of a region, where it can move.
    pub fn moving_share(&self, region: &str) -> Option<Share> {
        let alone = self.whole.len() == self.limits.len();
        let share = self.share(region).filter(|_| alone)?;
        share.can_move(&self.limits).then_some(share)
    }
}

/// So many millionths of a limit, rounded down, so that the parts of all regions are never more
/// than it.
pub fn part(limit: u64, millionths: u64) -> u64 {
    let part = u128::from(limit) * u128::from(millionths.min(WHOLE)) / u128::from(WHOLE);
    // No more than the limit.
    u64::try_from(part).unwrap_or(limit)
}

/// Every problem of a list of regions that share limits of these sizes.
pub fn check(listed: &[String], limits: impl Iterator<Item = (String, u64)>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if listed.len() > REGIONS_MAX {
        let detail = format!("must be 1 to {REGIONS_MAX} regions");
        problems.push(Problem::new("/shared_by", "regions", detail));
        return problems;
    }
    for (at, region) in listed.iter().enumerate() {
        let pointer = format!("/shared_by/{at}");
        if listed.iter().take(at).any(|other| other == region) {
            let detail = format!("{region} is listed twice");
            problems.push(Problem::new(pointer, "duplicate", detail));
        } else if !is_region_name(region) {
            let detail = "is no name of a region: 1 to 40 characters of a-z, 0-9 and `-`";
            problems.push(Problem::new(pointer, "region", detail));
        }
    }
    for (pointer, limit) in limits {
        if limit < listed.len() as u64 {
            let detail = format!(
                "{limit} cannot be shared by {} regions: each needs at least one",
                listed.len()
            );
            problems.push(Problem::new(pointer, "share-empty", detail));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::OrgId;
    use crate::object::{Attached, ObjectId};

    fn list(regions: &[&str]) -> Vec<String> {
        regions.iter().map(|region| (*region).to_owned()).collect()
    }

    #[test]
    fn shares_are_even_at_the_start_and_never_more_than_the_whole() {
        assert_eq!(Share::of(&[], 0, "eu"), None);
        let three = list(&["us", "eu", "ap"]);
        let eu = Share::of(&three, 0, "eu").unwrap();
        assert_eq!(eu.initial, 333_333);
        assert_eq!(Some(eu), Share::of(&list(&["ap", "eu", "us"]), 0, "eu"));
        let other = Share::of(&list(&["eu", "us"]), 0, "eu").unwrap();
        assert_ne!(other.division, eu.division);
        assert_ne!(Share::of(&three, 1, "eu").unwrap().division, eu.division);
        assert_eq!(Share::of(&three, 0, "sa").unwrap().initial, 0);
        for count in 1..=REGIONS_MAX {
            let names: Vec<String> = (0..count).map(|n| format!("r{n}")).collect();
            let shares = names.iter().map(|name| Share::of(&names, 0, name).unwrap());
            let shares: Vec<u64> = shares.map(|share| share.initial).collect();
            assert!(shares.iter().sum::<u64>() <= WHOLE);
            for limit in [count as u64, 1_000, 999_999_999_999] {
                let parts = shares.iter().map(|share| part(limit, *share));
                let sum: u64 = parts.sum();
                assert!(
                    sum <= limit && sum + 2 * (count as u64) + limit / 30_000 >= limit,
                    "{count} {limit} {sum}"
                );
            }
        }
    }

    #[test]
    fn what_is_counted_by_the_calendar_or_in_flight_stays() {
        for (limits, stays) in [
            (r#"[{"limit": 9, "window": "minute"}]"#, None),
            (
                r#"[{"limit": 9, "window": "second", "algorithm": "token_bucket"}]"#,
                None,
            ),
            (
                r#"[{"limit": 9, "window": "minute"}, {"limit": 90, "window": "day"}]"#,
                Some("fixed_window"),
            ),
            (r#"[{"limit": 9, "window": "month"}]"#, Some("fixed_window")),
            (
                r#"[{"limit": 9, "window": "hour"}, {"limit": 4, "algorithm": "concurrency"}]"#,
                Some("concurrency"),
            ),
        ] {
            let text = format!(r#"{{"limits": {limits}, "shared_by": ["eu", "us"]}}"#);
            let body = Body::Meter(Attached {
                parent: ObjectId::Org(OrgId::from_bits(1)),
                spec: serde_json::from_str(&text).unwrap(),
            });
            let shared = SharedLimits::of(&body).unwrap();
            assert_eq!(shared.stays(), stays, "{limits}");
            assert_eq!(shared.moving_share("eu").is_none(), stays.is_some());
        }
    }

    proptest::proptest! {
        /// While a list of regions is on its way each region goes by the one that it has, and gives
        /// no more than its share by that: all together at most what the two lists give.
        #[test]
        fn while_a_list_changes_each_region_gives_its_share_by_the_one_that_it_has(
            old in proptest::collection::btree_set(0..REGIONS_MAX, 1..REGIONS_MAX),
            new in proptest::collection::btree_set(0..REGIONS_MAX, 1..REGIONS_MAX),
            has_new in proptest::collection::vec(proptest::bool::ANY, REGIONS_MAX),
            limit in REGIONS_MAX as u64..=u64::MAX / 2,
        ) {
            let names = |of: &std::collections::BTreeSet<usize>| {
                of.iter().map(|n| format!("r{n}")).collect::<Vec<_>>()
            };
            let lists = [names(&old), names(&new)];
            let gives = |list: &[String], n: usize| {
                let share = Share::of(list, 0, &format!("r{n}")).unwrap();
                part(limit, share.initial)
            };
            let given = |n: usize| gives(&lists[usize::from(has_new[n])], n);
            let sum: u64 = (0..REGIONS_MAX).map(given).sum();
            let one = |n: usize| match has_new[n] {
                true => new.contains(&n),
                false => old.contains(&n),
            };
            // Who is in neither list gives nothing, whichever list it has.
            proptest::prop_assert!((0..REGIONS_MAX).all(|n| one(n) || given(n) == 0));
            proptest::prop_assert!(sum <= limit.saturating_mul(2));
            let all_have = |list: usize| has_new.iter().all(|has| usize::from(*has) == list);
            proptest::prop_assert!(!(all_have(0) || all_have(1)) || sum <= limit);
        }

        /// schedules.md, part two, 22: shares are fractions, so that while a changed limit is on
        /// its way, and each region goes by the one that it has, all of them together give no more
        /// than the larger of both.
        #[test]
        fn while_a_limit_changes_the_parts_are_never_more_than_the_larger_one(
            cuts in proptest::collection::vec(0..=WHOLE, 0..REGIONS_MAX),
            has_new in proptest::collection::vec(proptest::bool::ANY, REGIONS_MAX),
            old in 0..=u64::MAX / 2,
            new in 0..=u64::MAX / 2,
        ) {
            // Fractions as transfers may leave them: any that are no more than the whole.
            let mut cuts = cuts;
            cuts.extend([0, WHOLE]);
            cuts.sort_unstable();
            let fractions = cuts.windows(2).map(|pair| pair[1] - pair[0]);
            let parts = fractions.zip(has_new).map(|(fraction, has_new)| {
                part(if has_new { new } else { old }, fraction)
            });
            proptest::prop_assert!(parts.sum::<u64>() <= old.max(new));
        }
    }

    #[test]
    fn a_list_is_told_everything_that_is_wrong() {
        let limits = || [("/limits/0/limit".to_owned(), 2)].into_iter();
        let found = |regions: &[&str]| {
            let problems = check(&list(regions), limits()).into_iter();
            let told = problems.map(|problem| (problem.pointer, problem.code));
            told.collect::<Vec<_>>()
        };
        assert_eq!(found(&[]), []);
        assert_eq!(found(&["eu", "us"]), []);
        assert_eq!(
            found(&["eu", "eu", "*"]),
            [
                ("/shared_by/1".to_owned(), "duplicate"),
                ("/shared_by/2".to_owned(), "region"),
                ("/limits/0/limit".to_owned(), "share-empty"),
            ]
        );
    }
}
