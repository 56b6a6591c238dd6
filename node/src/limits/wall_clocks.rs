//! What time it is, for calendar windows: this node's wall clock, judged by those of its peers and
//! of the control planes.
//!
//! Nothing else here goes by a wall clock, and one alone may be off by any amount: a node that
//! believed its own would open a day early, with a whole limit of tokens, or keep it closed. So the
//! time is the *lower median* of all clocks that are known: among three one wrong clock changes
//! nothing, and of two the later begins a window when both say that it has begun. A node whose own
//! clock is further from that than `max_skew` takes nothing for calendar windows; it asks others.
//! A control plane tells its clock with each acknowledgement of records: so two nodes are three.
//!
//! Clocks of peers are compared over their links as NTP does (RFC 5905): a clock read between an
//! ask and its answer was ahead of ours by no more than it is of the ask, and no less than of the
//! answer. They are kept as ahead of CLOCK_BOOTTIME, which is never set: so a wall clock that is
//! set shows at once, here as well as there, and a peer that has gone is still a witness.

use std::collections::{BTreeMap, VecDeque};

use super::clock::Moment;

/// Samples of one clock that are kept.
const SAMPLES: usize = 8;
/// Clocks heard of since then are asked first.
const FRESH_NS: u64 = 60_000_000_000;
/// Without any such, those that were heard of since then still count: CLOCK_BOOTTIME drifts by some
/// seconds in this time, which is little against a clock that is wrong.
const KEPT_NS: u64 = 86_400_000_000_000;
/// Clocks that are kept; the one heard of longest ago goes.
const CLOCKS_MAX: usize = 1_024;

/// Whose clock it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Witness {
    /// A node's, by its number.
    Node(u64),
    /// A control plane's, by its name.
    Control(String),
}

/// Another's wall clock as one answer told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSample {
    /// When it was asked for, on the own CLOCK_BOOTTIME.
    pub asked_ns: u64,
    /// When the answer was heard.
    pub heard_ns: u64,
    /// What it showed in between, in nanoseconds since 1970-01-01 in UTC.
    pub unix_ns: u64,
}

/// The wall clocks of others.
#[derive(Clone, Debug, Default)]
pub struct WallClocks {
    others: BTreeMap<Witness, VecDeque<ClockSample>>,
}

/// The time as the nodes agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Nanoseconds since 1970-01-01 in UTC.
    pub unix_ns: u64,
    /// How far the own clock is ahead of it; negative when it is behind.
    pub own_ahead_ns: i64,
    /// Whether another clock says the same to within `max_skew`, or there is no other node.
    pub confirmed: bool,
    /// Whether the clocks of all nodes are known. Of some of them most may be wrong although most
    /// of all are right.
    pub compared: bool,
    /// There is no other node: nobody takes by another time than this one.
    pub alone: bool,
}

impl Agreed {
    /// How far the own clock is from it.
    pub fn own_off_ns(&self) -> u64 {
        self.own_ahead_ns.unsigned_abs()
    }
}

impl WallClocks {
    /// Takes a sample of a clock. Earlier ones that it contradicts are dropped: that clock
    /// has been set since. One that says that it was heard before it was asked for is no sample.
    pub fn heard(&mut self, of: Witness, sample: ClockSample) {
        if sample.heard_ns < sample.asked_ns {
            return;
        }
        if self.others.len() >= CLOCKS_MAX && !self.others.contains_key(&of) {
            let last = |samples: &VecDeque<ClockSample>| samples.back().map(|s| s.heard_ns);
            let oldest = self.others.iter().min_by_key(|(_, samples)| last(samples));
            if let Some(oldest) = oldest.map(|(of, _)| of.clone()) {
                self.others.remove(&oldest);
            }
        }
        let samples = self.others.entry(of).or_default();
        samples
            .retain(|earlier| sample.least() <= earlier.most() && earlier.least() <= sample.most());
        if samples.len() >= SAMPLES {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// The time at a moment of the own clocks. `nodes` are all there are, this one included; `None`
    /// while nobody has counted them.
    pub fn agreed(&self, own: Moment, nodes: Option<u64>, max_skew_ns: u64) -> Agreed {
        let own_ahead = ahead(own.unix_ns, own.boot_ns);
        let known = |since_ns: u64| {
            let is_known = |samples: &VecDeque<ClockSample>| {
                let last = samples.back().map_or(0, |sample| sample.heard_ns);
                own.boot_ns.saturating_sub(last) <= since_ns
            };
            let known = self.others.iter().filter(|(_, s)| is_known(s));
            let is_node = |of: &Witness| matches!(of, Witness::Node(_));
            let mut all: Vec<(i64, bool)> =
                known.map(|(of, s)| (between(s), is_node(of))).collect();
            all.sort_unstable();
            all
        };
        let mut clocks = known(FRESH_NS);
        if clocks.is_empty() {
            clocks = known(KEPT_NS);
        }
        let of_nodes = 1 + clocks.iter().filter(|(_, is_node)| *is_node).count() as u64;
        let at = clocks.partition_point(|(clock, _)| *clock < own_ahead);
        clocks.insert(at, (own_ahead, true));
        let median = clocks.get((clocks.len() - 1) / 2);
        let median = median.map_or(own_ahead, |(clock, _)| *clock);
        let near = |(clock, _): &&(i64, bool)| clock.abs_diff(median) <= max_skew_ns;
        let agreeing = clocks.iter().filter(near).count();
        let alone = nodes == Some(1);
        Agreed {
            unix_ns: own.boot_ns.saturating_add_signed(median),
            own_ahead_ns: own_ahead.saturating_sub(median),
            confirmed: agreeing > 1 || alone,
            compared: nodes.is_some_and(|nodes| of_nodes >= nodes),
            alone,
        }
    }
}

impl ClockSample {
    /// How far the clock was ahead of our CLOCK_BOOTTIME at least.
    fn least(&self) -> i64 {
        ahead(self.unix_ns, self.heard_ns)
    }

    /// And at most.
    fn most(&self) -> i64 {
        ahead(self.unix_ns, self.asked_ns)
    }
}

/// The middle of what all samples of a clock allow.
fn between(samples: &VecDeque<ClockSample>) -> i64 {
    let least = samples.iter().map(ClockSample::least).max().unwrap_or(0);
    let most = samples.iter().map(ClockSample::most).min().unwrap_or(0);
    least.midpoint(most)
}

fn ahead(unix_ns: u64, boot_ns: u64) -> i64 {
    let of = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
    of(unix_ns).saturating_sub(of(boot_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1_000 * MS;
    const HOUR: u64 = 3_600 * SECOND;
    const YEAR: u64 = 8_766 * HOUR;
    const SKEW: u64 = 250 * MS;
    /// 2026-01-01.
    const NEW_YEAR: u64 = 1_767_225_600 * SECOND;

    /// Own clocks: so long since the machine started, and how far the wall clock is off.
    fn own(boot_ns: u64, off_ns: i64) -> Moment {
        Moment {
            boot_ns,
            unix_ns: (NEW_YEAR + boot_ns).saturating_add_signed(off_ns),
        }
    }

    /// Takes one sample of each clock that is off by so much.
    fn clocks(at_ns: u64, offs: &[i64]) -> WallClocks {
        let mut clocks = WallClocks::default();
        for (node, off_ns) in offs.iter().enumerate() {
            clocks.heard(
                Witness::Node(node as u64),
                sample(at_ns, 10 * MS, 5 * MS, *off_ns),
            );
        }
        clocks
    }

    /// Asked at an instant, answered after `trip_ns`, of which `there_ns` were the way there.
    fn sample(at_ns: u64, trip_ns: u64, there_ns: u64, off_ns: i64) -> ClockSample {
        ClockSample {
            asked_ns: at_ns,
            heard_ns: at_ns + trip_ns,
            unix_ns: own(at_ns + there_ns, off_ns).unix_ns,
        }
    }

    /// Where the agreed time is from the true one, and how far the own clock is from that, in ms.
    fn judged(own_off_ns: i64, offs: &[i64]) -> (i64, i64, bool) {
        let now = own(101 * SECOND, own_off_ns);
        let agreed = clocks(100 * SECOND, offs).agreed(now, Some(9), SKEW);
        let off = ahead(agreed.unix_ns, NEW_YEAR + now.boot_ns);
        let ms = |ns: i64| ns / MS as i64;
        (ms(off), ms(agreed.own_ahead_ns), agreed.confirmed)
    }

    #[test]
    fn the_time_is_the_lower_median_of_all_clocks() {
        let (hour, year) = (HOUR as i64, YEAR as i64);
        let ms = MS as i64;
        let hour_ms = hour / ms;
        assert_eq!(judged(70 * ms, &[]), (70, 0, false), "nobody else is known");
        // Of three one may be wrong, whoever it is.
        assert_eq!(judged(20 * ms, &[0, hour]), (20, 0, true));
        assert_eq!(judged(20 * ms, &[0, -year]), (0, 20, true));
        let (off, ahead, sure) = judged(hour, &[0, 50 * ms]);
        assert_eq!((off, ahead, sure), (50, hour_ms - 50, true));
        let (off, ahead, sure) = judged(-year, &[0, 50 * ms]);
        assert_eq!((off, ahead, sure), (0, -8_766 * hour_ms, true));
        // Of two both must say that it is so late.
        assert_eq!(judged(0, &[hour]), (0, 0, false));
        assert_eq!(judged(0, &[-hour]), (-hour_ms, hour_ms, false));
        assert_eq!(judged(0, &[100 * ms]), (0, 0, true));
    }

    #[test]
    fn a_control_plane_is_a_witness_and_no_node() {
        let at = |off_ns: i64, others: &[(Witness, i64)], nodes: u64| {
            let mut clocks = WallClocks::default();
            for (of, off_ns) in others {
                clocks.heard(of.clone(), sample(SECOND, 2 * MS, MS, *off_ns));
            }
            clocks.agreed(own(2 * SECOND, off_ns), Some(nodes), SKEW)
        };
        let (hour, control) = (HOUR as i64, Witness::Control("c-1".into()));
        // Of two nodes one is an hour behind: alone they would go by it.
        let two = [(Witness::Node(2), -hour), (control.clone(), 0)];
        let agreed = at(0, &two, 2);
        assert!(agreed.confirmed && agreed.compared, "{agreed:?}");
        assert_eq!(agreed.own_off_ns() / SECOND, 0);
        let wrong = at(-hour, &[(Witness::Node(2), 0), (control.clone(), 0)], 2);
        assert_eq!(wrong.own_off_ns(), HOUR);
        // The control plane alone does not stand for a node that nobody has heard.
        let unheard = at(0, &[(control.clone(), 0)], 2);
        assert!(!unheard.compared && unheard.confirmed && !unheard.alone);
        // A node by itself goes by the earlier clock, and is not wrong by it.
        let alone = at(hour, &[(control, 0)], 1);
        assert!(alone.alone && alone.confirmed && alone.compared);
        assert_eq!(alone.unix_ns, NEW_YEAR + 2 * SECOND);
    }

    #[test]
    fn a_slow_answer_tells_no_more_than_it_can_and_quick_ones_mend_it() {
        let mut clocks = WallClocks::default();
        // The way there took nothing, the way back 400 ms: taken for half each.
        clocks.heard(Witness::Node(1), sample(SECOND, 400 * MS, 0, 0));
        let off = |clocks: &WallClocks| {
            let now = own(20 * SECOND, -(SECOND as i64));
            let agreed = clocks.agreed(now, Some(2), SKEW);
            // The own clock is the lower one, a second behind the truth.
            assert_eq!(agreed.own_ahead_ns, 0);
            let later = own(20 * SECOND, SECOND as i64);
            ahead(
                clocks.agreed(later, Some(2), SKEW).unix_ns,
                NEW_YEAR + 20 * SECOND,
            )
        };
        assert_eq!(off(&clocks), -200 * MS as i64);
        clocks.heard(Witness::Node(1), sample(2 * SECOND, 4 * MS, 2 * MS, 0));
        assert_eq!(off(&clocks), -(MS as i64), "what both allow");
        for second in 3..12 {
            clocks.heard(
                Witness::Node(1),
                sample(second * SECOND, 300 * MS, 300 * MS, 0),
            );
        }
        assert!(off(&clocks).unsigned_abs() <= 150 * MS);
        // What was heard before it was asked for is nothing.
        clocks.heard(
            Witness::Node(1),
            ClockSample {
                asked_ns: 9,
                heard_ns: 8,
                unix_ns: 0,
            },
        );
        assert!(off(&clocks).unsigned_abs() <= 150 * MS);
    }

    #[test]
    fn a_clock_that_was_set_shows_with_the_next_sample_and_the_own_one_at_once() {
        let mut clocks = clocks(SECOND, &[0, 0]);
        let at = |clocks: &WallClocks, off_ns: i64| {
            let agreed = clocks.agreed(own(10 * SECOND, off_ns), Some(3), SKEW);
            (agreed.own_off_ns() / MS, agreed.confirmed)
        };
        assert_eq!(at(&clocks, 0), (0, true));
        assert_eq!(at(&clocks, HOUR as i64).0, HOUR / MS);
        for node in [0, 1] {
            let (trip_ns, off_ns) = (4 * MS, -(HOUR as i64));
            clocks.heard(
                Witness::Node(node),
                sample(5 * SECOND, trip_ns, trip_ns / 2, off_ns),
            );
        }
        assert_eq!(at(&clocks, 0).0, HOUR / MS);
    }

    #[test]
    fn who_has_gone_is_a_witness_while_nobody_else_is() {
        let mut clocks = clocks(SECOND, &[0, 0]);
        let off = |clocks: &WallClocks, boot_ns: u64| {
            let agreed = clocks.agreed(own(boot_ns, HOUR as i64), Some(3), SKEW);
            agreed.own_off_ns() / SECOND
        };
        assert_eq!(off(&clocks, 2 * HOUR), HOUR / SECOND);
        assert_eq!(off(&clocks, 30 * HOUR), 0, "forgotten");
        // One that is heard of counts more than two that were.
        let now_ns = 2 * HOUR;
        clocks.heard(Witness::Node(7), sample(now_ns, 2 * MS, MS, HOUR as i64));
        assert_eq!(off(&clocks, now_ns + SECOND), 0);
        for node in 0..2 * CLOCKS_MAX as u64 {
            clocks.heard(Witness::Node(node), sample(now_ns + node, 2 * MS, MS, 0));
        }
        assert_eq!(clocks.others.len(), CLOCKS_MAX);
    }
}
