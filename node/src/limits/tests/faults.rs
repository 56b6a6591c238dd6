//! Seeded chance, and the faults and mutants of a simulation.

/// SplitMix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` up to and without `high`.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low).max(1)
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// Exponential with this mean.
    pub fn pause(&mut self, mean_ns: u64) -> u64 {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        (-(1.0 - unit).ln() * mean_ns as f64) as u64
    }
}

/// Longest pause of a node where a plan does not say.
pub const PAUSE_NS: u64 = 700_000_000;

/// How often things go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Outages, and calls that go wrong, begin here.
    pub from_ns: u64,
    /// Percent of calls that never reach the store.
    pub lost: u64,
    /// Percent of calls that are carried out and whose answer is lost.
    pub unanswered: u64,
    /// Percent of calls that are carried out after the caller gave up.
    pub late: u64,
    /// Mean time between crashes of a node; 0 for none.
    pub crash_ns: u64,
    /// Mean time between pauses of a node; 0 for none.
    pub pause_ns: u64,
    /// Longest pause; 0 for [`PAUSE_NS`].
    pub pause_max_ns: u64,
    /// Mean time between losses of the whole store; 0 for none.
    pub outage_ns: u64,
    /// Percent of messages between nodes that are lost.
    pub peer_lost: u64,
    /// Percent of them that come twice.
    pub peer_doubled: u64,
    /// Percent of them that come so late that others overtake them.
    pub peer_late: u64,
    /// Mean time between cuts of a pair of nodes, or of a node and the store; 0 for none.
    pub cut_ns: u64,
}

/// A wrong protocol, acted out at the seams of the right one; the judge must see each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The spend that is reported is the draw, not the send (part two, 1).
    ChargeAtDraw,
    /// `left` falls by what the last confirmed write says, not to an absolute value (schedules
    /// 7, part two 2).
    SettleByDelta,
    /// An unknown outcome counts as done (7).
    BlindOutcome,
    /// A write whose outcome is unknown is made again, over whatever stands there by then (7).
    RetriedBlindly,
    /// The rest of a part is reported while workers may still draw it (7 C).
    ReportBeforeClose,
    /// Ages are taken from a clock that is set now and then (8, part two 4).
    WallClock,
    /// A holder counts a part's life from the grant instead of from the ask (part two, 24).
    LifeFromGrant,
    /// An owner takes what a holder has not used for free before the holder has closed its part:
    /// acted out by reports that say that nothing was spent (7 B).
    SpendsForgotten,
    /// A correction that comes twice counts twice (part two, 13).
    CorrectionTwice,
    /// What is given back is taken from what was charged last, whatever its age (11).
    CorrectionYoung,
    /// A node takes its own wall clock for the time (8, part two 4).
    OwnClock,
    /// A restarted node settles the blocks of its earlier self (part two, 2).
    OtherIncarnationSettles,
    /// A key is deleted while what it holds still counts.
    SweptEarly,
}
