//! What regions have of the limits that they share, and how a part of it moves from one to another.
//!
//! A share is a fact of the region that has it, kept in its own store, and no configuration. It
//! moves by *transfer*: the giver lowers its share and writes a numbered grant in one transaction;
//! the receiver raises its own by that grant, once, after a wait. A grant that nobody takes lowers
//! what all have together; nothing ever raises it.
//!
//! **The wait.** What the giver's nodes send by the share that they had counts until it is out of
//! every window, so that long the receiver waits, from when it heard of the grant:
//!
//! | part | why |
//! |---|---|
//! | [`known_for`] | a node that does not reach its store goes by what it last heard for so long |
//! | [`block_life`] | a block that was opened last may be sent from for so long |
//! | window and sub-window, or the time that a bucket fills in | what was sent counts for so long |
//! | a hundredth and half a second | clocks that run differently |
//!
//! A node that has not heard from its store for longer gives no more than [`floor`], which no
//! region ever gives away. Nobody compares wall clocks: each part is measured on one clock, and the
//! receiver begins later than the giver.
//!
//! **A store that went back** has a share that was given away since, and says a lower number of its
//! last grant than the receiver has taken: its share counts as nothing from then on
//! ([`Held::lose`]), until a person lets the regions begin anew (`resets` of the meter).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::meter::share::{WHOLE, part};
use crate::meter::{Algorithm, Limit, Share};
use crate::wire::replication::Need;

/// A region never has less than this part of its even share.
const FLOOR_PART: u64 = 20;
/// No less than this is given at once.
const LEAST: u64 = WHOLE / 100;
/// Grants of one meter that a region has not taken yet; another one waits for these.
const OPEN_MAX: usize = 8;
/// Divisions whose shares a region remembers; beyond it shares do not move.
const DIVISIONS_MAX: usize = 64;

/// What a region has of the limits of one meter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// In millionths, by division; none: its share is what it was at the start.
    #[serde(default)]
    fractions: BTreeMap<String, u64>,
    /// The number of the last grant to each region.
    #[serde(default)]
    given: BTreeMap<String, u64>,
    /// The number of the last grant of each region that was taken.
    #[serde(default)]
    taken: BTreeMap<String, u64>,
}

/// A part of a share on its way to another region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Rises with every grant of one region to another, of one meter.
    pub seq: u64,
    /// Among whom.
    pub division: u64,
    /// How much, in millionths of the limits.
    pub fraction: u64,
    /// So long after it was heard of it may be taken.
    pub wait_ms: u64,
}

impl Held {
    /// What the region has, in millionths.
    pub fn fraction(&self, share: &Share) -> u64 {
        let held = self.fractions.get(&name(share)).copied();
        held.unwrap_or(share.initial).min(WHOLE)
    }

    /// The number of the last grant to a region.
    pub fn given(&self, region: &str) -> u64 {
        self.given.get(region).copied().unwrap_or(0)
    }

    /// The number of the last grant of a region that was taken.
    pub fn taken(&self, region: &str) -> u64 {
        self.taken.get(region).copied().unwrap_or(0)
    }

    /// Gives a part away; none where it has not so much.
    pub fn give(
        &mut self,
        (share, limits): (&Share, &[Limit]),
        to: &str,
        fraction: u64,
    ) -> Option<Grant> {
        let left = self.fraction(share).checked_sub(fraction)?;
        let known = self.fractions.contains_key(&name(share));
        if fraction == 0 || (!known && self.fractions.len() >= DIVISIONS_MAX) {
            return None;
        }
        let seq = self.given(to).checked_add(1)?;
        self.fractions.insert(name(share), left);
        self.given.insert(to.to_owned(), seq);
        let wait = wait(limits).as_millis();
        Some(Grant {
            seq,
            division: share.division,
            fraction,
            wait_ms: u64::try_from(wait).unwrap_or(u64::MAX),
        })
    }

    /// Takes a grant, whose wait is over; false for one that was taken before. One of another
    /// division is worth nothing.
    pub fn take(&mut self, share: &Share, from: &str, grant: &Grant) -> bool {
        if grant.seq <= self.taken(from) {
            return false;
        }
        self.taken.insert(from.to_owned(), grant.seq);
        if grant.division == share.division {
            let sum = self.fraction(share).saturating_add(grant.fraction);
            self.fractions.insert(name(share), sum.min(WHOLE));
        }
        true
    }

    /// Another region has heard of a grant of this number: none gets it again. Where none so high
    /// was given, the store went back, and what it gives now is another grant with its own wait.
    fn pass(&mut self, to: &str, heard: u64) {
        if heard > self.given(to) {
            self.given.insert(to.to_owned(), heard);
        }
    }

    /// Another region has taken a grant of this number: where none so high was given, this is
    /// what the region had earlier, and counts as nothing. True where it was so.
    pub fn lose(&mut self, share: &Share, to: &str, taken: u64) -> bool {
        if taken <= self.given(to) {
            return false;
        }
        self.given.insert(to.to_owned(), taken);
        self.fractions.insert(name(share), 0);
        true
    }
}

fn name(share: &Share) -> String {
    format!("{:016x}", share.division)
}

/// What a region always has, in millionths: callers that come first are served by it, and nodes
/// that do not know how much it has.
pub fn floor(share: &Share, limits: &[Limit]) -> u64 {
    let one = |limit: &Limit| WHOLE.div_ceil(limit.limit().min(limit.capacity()).max(1));
    let one = limits.iter().map(one).max().unwrap_or(0);
    (share.initial / FLOOR_PART).max(one).min(share.initial)
}

/// How long a node goes by a share after the store was last heard of.
pub fn known_for(limits: &[Limit]) -> Duration {
    let width_ns = limits.iter().map(|limit| limit.window().width_ns()).min();
    Duration::from_nanos(width_ns.unwrap_or(0)).clamp(Duration::from_secs(3), MINUTE / 2)
}

const MINUTE: Duration = Duration::from_secs(60);

/// Longest life of a block of tokens of limits that are shared.
pub fn block_life(limits: &[Limit]) -> Duration {
    let width_ns = limits.iter().map(|limit| limit.window().width_ns()).min();
    Duration::from_nanos(width_ns.unwrap_or(0) / 100).clamp(Duration::from_secs(1), MINUTE / 2)
}

/// How long after a share was lowered nothing that was sent by it counts any more.
pub fn wait(limits: &[Limit]) -> Duration {
    let counted = |limit: &Limit| {
        let width = Duration::from_nanos(limit.window().width_ns());
        match limit.algorithm() {
            Algorithm::TokenBucket => {
                let fill = u128::from(limit.capacity()) * width.as_nanos();
                let fill = fill.div_ceil(u128::from(limit.limit().max(1)));
                Duration::from_nanos(u64::try_from(fill).unwrap_or(u64::MAX))
            }
            // One sub-window more than a window is counted.
            Algorithm::SlidingWindow | Algorithm::FixedWindow => width + width / 60,
        }
    };
    let counted = limits.iter().map(counted).max().unwrap_or_default();
    let sum = counted
        .saturating_add(known_for(limits))
        .saturating_add(block_life(limits));
    sum.saturating_add(sum / 100)
        .saturating_add(Duration::from_millis(500))
}

/// How much is asked for in a region, whether it is given or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// How much of the limits is used and waited for here, in millionths of the whole of them.
    pub used: u64,
    /// How much more is refused in one window, in millionths of the whole.
    #[serde(default)]
    pub refused: u64,
}

impl Demand {
    /// The same of two nodes: each knows what all of them use, and what it refuses itself.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            used: self.used.max(other.used),
            refused: self.refused.saturating_add(other.refused),
        }
    }

    /// All of it; nobody wants more than the whole.
    pub fn wanted(&self) -> u64 {
        self.used.saturating_add(self.refused).min(WHOLE)
    }
}

/// What a node says of the meters whose limits are shared, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDemand {
    /// The meters that are in use.
    pub meters: BTreeMap<String, Demand>,
}

/// What a region has of a limit, and what it wants, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// What it has, and is to get.
    pub fraction: u64,
    /// What its callers ask for.
    pub wanted: u64,
}

/// What each region should have where so much is wanted, at most: what it wants and an eighth more,
/// so that it need not ask again for each caller; where that is more than all of them have
/// together, the same for all that want more than it (max-min fairness). More than is wanted stays
/// where it is.
fn level(regions: impl Iterator<Item = Region>) -> u64 {
    let mut there = 0_u64;
    let wanted = regions.map(|region| {
        there = there.saturating_add(region.fraction);
        with_room(region.wanted)
    });
    let mut all: Vec<u64> = wanted.collect();
    all.sort_unstable();
    // What a region that is away has is not divided.
    let (mut left, mut regions) = (there.min(WHOLE), all.len() as u64);
    for wanted in all {
        let even = left / regions.max(1);
        if wanted > even {
            return even;
        }
        (left, regions) = (left - wanted, regions - 1);
    }
    WHOLE
}

fn with_room(wanted: u64) -> u64 {
    wanted.saturating_add(wanted / 8)
}

/// Whether a region wants more than the whole tokens that it has.
pub fn lacks(of: Region, limits: &[Limit]) -> bool {
    let usable = |limit: &Limit| {
        let tokens = u128::from(part(limit.limit(), of.fraction));
        tokens * u128::from(WHOLE) / u128::from(limit.limit().max(1))
    };
    let usable = limits.iter().map(usable).min().unwrap_or(0);
    u128::from(of.wanted) > usable
}

/// How much a region gives to one that asks for more, where there are `others` that are heard of:
/// what it has beyond its part of what all want, as far as the other one has less than its part.
pub fn spare(
    own: Region,
    asking: Region,
    others: impl Iterator<Item = Region>,
    (share, limits): (&Share, &[Limit]),
) -> u64 {
    if !lacks(asking, limits) {
        return 0;
    }
    let level = level([own, asking].into_iter().chain(others));
    let least = floor(share, limits);
    let part_of = |wanted: u64| with_room(wanted).min(level).max(least);
    let (spare, missing) = (
        own.fraction.saturating_sub(part_of(own.wanted)),
        part_of(asking.wanted).saturating_sub(asking.fraction),
    );
    if missing == 0 {
        return 0;
    }
    // Less than the next token is worth nothing, and would be missed for good.
    let tokens = |limit: &Limit, more: u64| part(limit.limit(), asking.fraction + more);
    let next = limits.iter().map(|limit| {
        let whole = u128::from(WHOLE) * (u128::from(tokens(limit, 0)) + 1);
        let at = whole.div_ceil(u128::from(limit.limit().max(1)));
        u64::try_from(at)
            .unwrap_or(WHOLE)
            .saturating_sub(asking.fraction)
    });
    let missing = missing.max(next.max().unwrap_or(0)).max(LEAST);
    let spare = spare
        .min(missing)
        .min(WHOLE.saturating_sub(asking.fraction));
    let worth = limits
        .iter()
        .all(|limit| tokens(limit, spare) > tokens(limit, 0));
    if spare >= LEAST && worth { spare } else { 0 }
}

/// What came of an ask for more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Grants that were taken, by number: nobody needs them any more.
    pub over: Vec<u64>,
    /// What was given, if anything: it is among the open grants too.
    pub given: Option<Grant>,
    /// The store is an earlier one; see [`Held::lose`].
    pub lost: bool,
}

/// Answers a region that says what it has and wants: what it has taken is over, and if it wants
/// more it is given what it lacks and this one has beyond its part. `open` are the grants to it, in
/// their order; `others` is what further regions want.
pub fn serve(
    held: &mut Held,
    open: &mut Vec<Grant>,
    of: (&Share, &[Limit]),
    (to, need): (&str, &Need),
    (demand, others): (Demand, impl Iterator<Item = Region>),
) -> Served {
    let (share, _) = of;
    let (over, left) = std::mem::take(open)
        .into_iter()
        .partition(|grant| grant.seq <= need.taken);
    *open = left;
    let over: Vec<Grant> = over;
    let mut served = Served {
        over: over.into_iter().map(|grant| grant.seq).collect(),
        given: None,
        lost: held.lose(share, to, need.taken),
    };
    let among = open
        .iter()
        .filter(|grant| grant.seq > need.heard && grant.division == share.division);
    let unheard: u64 = among.map(|grant| grant.fraction).sum();
    let agreed = need.division == share.division;
    if agreed && !served.lost && open.len() < OPEN_MAX {
        let asking = Region {
            fraction: need.fraction.saturating_add(unheard),
            wanted: need.wanted,
        };
        let own = Region {
            fraction: held.fraction(share),
            wanted: demand.wanted(),
        };
        held.pass(to, need.heard);
        served.given = held.give(of, to, spare(own, asking, others, of));
        open.extend(served.given.clone());
    }
    served
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_want_is_divided_so_that_who_wants_less_gets_it() {
        let even = WHOLE / 3;
        for (wanted, expected) in [
            ([0, 0, 0], WHOLE),
            ([400_000, 400_000, 0], WHOLE),
            ([800_000, 800_000, 0], 499_999),
            ([WHOLE, WHOLE, WHOLE], 333_333),
            ([WHOLE, 80_000, 80_000], 819_999),
            ([WHOLE, 400_000, 80_000], 459_999),
            ([WHOLE, 640_000, 80_000], 454_999),
        ] {
            let regions = wanted.map(|wanted| Region {
                fraction: even,
                wanted,
            });
            assert_eq!(level(regions.into_iter()), expected, "{wanted:?}");
        }
    }

    fn given(limit: u64, own: (u64, u64), asking: (u64, u64), others: &[(u64, u64)]) -> u64 {
        let names = ["ap", "eu", "us"].map(String::from);
        let share = Share::of(&names, 0, "us").expect("a share");
        let limits = [Limit::new(limit, crate::meter::Window::Second).expect("a limit")];
        let region = |(fraction, wanted)| Region { fraction, wanted };
        let others = others.iter().copied().map(region);
        spare(region(own), region(asking), others, (&share, &limits))
    }

    #[test]
    fn of_a_small_limit_whole_tokens_move() {
        let even = WHOLE / 3;
        // Each has 3 a second; 3.8 and 3.2 are asked for in one region alone.
        assert_eq!(given(10, (even, 0), (even, 380_000), &[]), 94_167);
        assert_eq!(given(10, (even, 0), (even, 320_000), &[]), 66_667);
        assert_eq!(given(10, (even, 0), (even, 300_000), &[]), 0);
        // Of 5 each has one.
        assert_eq!(given(5, (even, 0), (even, 300_000), &[]), 66_667);
        // At the floor of a large limit, a little is missing.
        assert_eq!(
            given(1_000, (966_000, 500_000), (16_666, 18_000), &[]),
            10_000
        );
    }

    #[test]
    fn what_a_region_has_that_is_away_is_not_divided() {
        // Another has 80 % and is cut off; the two that are left want all.
        let given = given(1_000, (183_000, WHOLE), (17_000, WHOLE), &[]);
        assert_eq!(given, 83_000);
    }

    /// The receiver counts the wait of a grant from when it heard of it, and knows one by what it
    /// is: the same one given again would be taken while what it was of is used here still.
    #[test]
    fn a_store_that_went_back_gives_no_grant_that_was_heard_of() {
        let names = ["eu", "us"].map(String::from);
        let share = Share::of(&names, 0, "us").expect("a share");
        let limits = [Limit::new(1_000, crate::meter::Window::Second).expect("a limit")];
        let need = |fraction, heard, taken| Need {
            org: crate::id::OrgId::from_bits(1),
            meter: "mtr_1".into(),
            division: share.division,
            fraction,
            wanted: WHOLE,
            heard,
            taken,
        };
        let ask = |held: &mut Held, need: &Need| {
            let among = (Demand::default(), std::iter::empty());
            serve(
                held,
                &mut Vec::new(),
                (&share, &limits),
                ("eu", need),
                among,
            )
        };
        let (mut held, even) = (Held::default(), WHOLE / 2);
        let before = held.clone();
        let first = ask(&mut held, &need(even, 0, 0)).given.expect("a grant");
        held = before;
        let again = ask(&mut held, &need(even, first.seq, 0));
        let again = again.given.expect("another grant");
        assert!(again.seq > first.seq, "{again:?}");
        // What was taken of a later store is lost all the same.
        let mut held = Held::default();
        let lost = ask(&mut held, &need(even, 3, 2));
        assert!(lost.lost && lost.given.is_none());
        // No number is the last one.
        let mut held = Held::default();
        let none = ask(&mut held, &need(even, u64::MAX, 0));
        assert_eq!(none.given, None);
        assert_eq!(held.fraction(&share), share.initial);
    }
}
