//! Counts, sums and quantiles of an organisation's requests, by group and span of time: what can be
//! asked, and the form of the answer. Pure.

use std::collections::BTreeMap;

use proto::id::OrgId;

use super::RecordFilter;
use super::tally::{Dimension, Tally};

/// Tallies by a group's value and the start of a span in seconds.
pub(super) type Groups = BTreeMap<(String, i64), Tally>;

/// Most groups times spans that one answer tells apart.
pub(super) const CELLS_MAX: usize = 100_000;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The organisation.
    pub org: OrgId,
    /// The groups.
    pub by: Dimension,
    /// The first second.
    pub from_s: i64,
    /// The second after the last.
    pub to_s: i64,
    /// Length of a span in seconds; `None` for one span.
    pub bucket_s: Option<i64>,
    /// Which records; without instants.
    pub filter: RecordFilter,
    /// What the largest groups have most of.
    pub order: Order,
    /// Most groups.
    pub limit: usize,
}

/// What groups are sorted by, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Requests.
    #[default]
    Count,
    /// Requests that ended with a 5xx.
    Errors,
    /// Their share.
    ErrorRate,
    /// Requests that were refused.
    Refused,
    /// The duration that 1 % exceed.
    P99,
    /// Body bytes sent to callers.
    ResponseBytes,
    /// Body bytes received from callers.
    RequestBytes,
}

impl Order {
    /// Every order by its name in the API.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("count", Self::Count),
        ("errors", Self::Errors),
        ("error_rate", Self::ErrorRate),
        ("refused", Self::Refused),
        ("p99", Self::P99),
        ("response_bytes", Self::ResponseBytes),
        ("request_bytes", Self::RequestBytes),
    ];

    /// What is larger of a larger group.
    pub(super) fn key(self, tally: &Tally) -> u64 {
        match self {
            Self::Count => tally.count,
            Self::Errors => tally.errors,
            Self::ErrorRate => tally.errors.saturating_mul(1_000_000) / tally.count.max(1),
            Self::Refused => tally.refused,
            Self::P99 => tally.durations.quantile(0.99).unwrap_or_default(),
            Self::ResponseBytes => tally.response_bytes,
            Self::RequestBytes => tally.request_bytes,
        }
    }
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Its value; empty for requests without one.
    pub value: String,
    /// All of its requests.
    pub total: Tally,
    /// The same by span, with the start of each in seconds.
    pub buckets: Vec<(i64, Tally)>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Aggregates {
    /// The largest groups.
    pub groups: Vec<Group>,
    /// All other requests, where there are any.
    pub rest: Option<Group>,
    /// The instant in seconds from which on all is counted.
    pub complete_from_s: i64,
}

impl Question {
    /// How many spans of time an answer has, at least one.
    pub(super) fn spans(&self) -> usize {
        let whole_s = self.to_s.saturating_sub(self.from_s);
        let spans = self.bucket_s.map_or(1, |width_s| whole_s / width_s + 1);
        usize::try_from(spans).unwrap_or(1).max(1)
    }

    /// How many groups an answer tells apart, at least one.
    pub(super) fn shown(&self) -> usize {
        self.limit.min(CELLS_MAX / self.spans()).max(1)
    }

    /// The start of the span in which a second lies.
    pub(super) fn bucket(&self, at_s: i64) -> i64 {
        self.start_of(at_s).unwrap_or(at_s)
    }

    /// The same; `None` where no span begins so early.
    pub(super) fn start_of(&self, at_s: i64) -> Option<i64> {
        match self.bucket_s {
            None => Some(self.from_s),
            Some(width_s) => at_s.div_euclid(width_s).checked_mul(width_s),
        }
    }

    /// The answer: from the cells of groups, and those of all other requests.
    pub(super) fn arrange(&self, cells: Groups, rest: Groups, complete_from_s: i64) -> Aggregates {
        let mut groups: BTreeMap<String, Summed> = BTreeMap::new();
        for ((value, start_s), tally) in cells {
            let value = match self.by {
                Dimension::All => String::new(),
                _ => value,
            };
            let start_s = self.bucket_s.map(|_| self.bucket(start_s));
            groups.entry(value).or_default().add(start_s, &tally);
        }
        let mut sorted: Vec<_> = groups.into_iter().collect();
        sorted.sort_by_cached_key(|(value, sums)| {
            (
                std::cmp::Reverse(self.order.key(&sums.total)),
                value.clone(),
            )
        });
        let others = sorted.split_off(self.limit.min(sorted.len()));
        let has_rest = !others.is_empty() || !rest.is_empty();
        let mut together = Summed::default();
        for (_, sums) in others {
            together.merge(&sums);
        }
        for ((_, start_s), tally) in rest {
            let start_s = self.bucket_s.map(|_| self.bucket(start_s));
            together.add(start_s, &tally);
        }
        Aggregates {
            groups: sorted
                .into_iter()
                .map(|(value, sums)| sums.group(value))
                .collect(),
            rest: has_rest.then(|| together.group(String::new())),
            complete_from_s,
        }
    }
}

/// A group that is being summed.
#[derive(Default)]
struct Summed {
    total: Tally,
    buckets: BTreeMap<i64, Tally>,
}

impl Summed {
    fn add(&mut self, start_s: Option<i64>, tally: &Tally) {
        self.total.merge(tally);
        if let Some(start_s) = start_s {
            self.buckets.entry(start_s).or_default().merge(tally);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.total.merge(&other.total);
        for (start_s, tally) in &other.buckets {
            self.buckets.entry(*start_s).or_default().merge(tally);
        }
    }

    fn group(self, value: String) -> Group {
        Group {
            value,
            total: self.total,
            buckets: self.buckets.into_iter().collect(),
        }
    }
}
