//! Counts, sums and quantiles of an organisation's requests, by group and span of time.
//!
//! What tallies are kept of is answered from them in a moment; what they cannot tell (another
//! dimension, a further filter) is read from the records themselves, newest first, as far as one
//! call may read; the answer says how far that was.

use std::collections::BTreeMap;

use proto::id::OrgId;
use proto::wire::StoredRecord;
use rusqlite::params;

use super::tallies::Asked;
pub use super::tallies::{Groups, MINUTES_KEPT_S};
use super::tally::{Dimension, HOUR_S, MINUTE_S, Tally};
use super::{RecordFilter, Records, RecordsError, blob, bytes, locked};

/// Most groups that are told apart while records are read; the others are counted together.
const GROUPS_MAX: usize = 10_000;
/// Most blocks that one call reads.
const BLOCKS_MAX: usize = 4_000;

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

    fn key(self, tally: &Tally) -> u64 {
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

impl Records {
    /// Answers a question.
    ///
    /// # Errors
    /// The store failed, or what it holds is damaged.
    pub fn aggregate(&self, question: &Question) -> Result<Aggregates, RecordsError> {
        let (groups, complete_from_s) = match question.kept() {
            Some((asked, only)) => {
                let mut groups = self.tallies(&asked)?;
                if let Some(only) = only {
                    groups.retain(|(value, _), _| *value == only);
                }
                (groups, question.from_s)
            }
            None => self.count_records(question)?,
        };
        Ok(question.arrange(groups, complete_from_s))
    }

    fn count_records(&self, question: &Question) -> Result<(Groups, i64), RecordsError> {
        let filter = RecordFilter {
            from_us: Some(question.from_s.saturating_mul(1_000_000)),
            to_us: Some(question.to_s.saturating_mul(1_000_000)),
            ..question.filter.clone()
        };
        let sought = filter.sought();
        let reader = locked(&self.scanner);
        let mut heads = reader.prepare_cached(
            "SELECT last_us, block, first_us, marks FROM heads
             WHERE org_id = ?1 AND last_us >= ?2 ORDER BY last_us DESC, block DESC",
        )?;
        let mut rows = heads.query(params![blob(question.org.bits()), filter.from_us])?;
        let (mut groups, mut blocks) = (Groups::new(), 0);
        while let Some(row) = rows.next()? {
            let last_us: i64 = row.get(0)?;
            if !filter.overlaps(row.get(2)?, last_us) || !sought.may_be_in(bytes(row, 3)?) {
                continue;
            }
            if blocks >= BLOCKS_MAX {
                // Blocks overlap a little: what began in the last second read is not whole.
                return Ok((groups, last_us.div_euclid(1_000_000) + 1));
            }
            blocks += 1;
            reader.read(question.org, row.get(1)?, |record| {
                if filter.wants(record) {
                    question.count(record, &mut groups);
                }
                true
            })?;
        }
        Ok((groups, question.from_s))
    }
}

impl Question {
    /// The tallies that answer it, and the only value that is wanted of them; `None` where none do.
    fn kept(&self) -> Option<(Asked, Option<String>)> {
        let filter = &self.filter;
        // A filter by exactly what is grouped, or without groups, is a choice among kept tallies.
        let mut by: Vec<(Dimension, String)> = Vec::new();
        by.extend(filter.proxy.map(|id| (Dimension::Proxy, id.to_string())));
        by.extend(filter.code.clone().map(|code| (Dimension::Code, code)));
        if let Some(status) = filter.status {
            by.push((Dimension::Status, status.exact()?.to_string()));
        }
        let (dimension, only) = match by.as_slice() {
            [] => (self.by, None),
            [(by, value)] if self.by == Dimension::All || self.by == *by => {
                (*by, Some(value.clone()))
            }
            _ => return None,
        };
        let further = !filter.conditions.is_empty() || filter.credential.is_some();
        let width_s = [HOUR_S, MINUTE_S].into_iter().find(|width_s| {
            let aligned = |n: i64| n % width_s == 0;
            aligned(self.from_s) && aligned(self.to_s) && self.bucket_s.is_none_or(aligned)
        })?;
        (dimension.is_kept() && !further).then_some((
            Asked {
                org: self.org,
                dimension,
                from_s: self.from_s,
                to_s: self.to_s,
                width_s,
            },
            only,
        ))
    }

    fn count(&self, record: &StoredRecord<'_>, groups: &mut Groups) {
        let start_s = self.bucket(record.started_at_us.div_euclid(1_000_000));
        let mut key = (self.by.value(record), start_s);
        if groups.len() >= GROUPS_MAX && !groups.contains_key(&key) {
            key.0 = String::new();
        }
        groups.entry(key).or_default().add(record);
    }

    /// The start of the span in which a second lies.
    fn bucket(&self, at_s: i64) -> i64 {
        match self.bucket_s {
            None => self.from_s,
            Some(width_s) => at_s.div_euclid(width_s) * width_s,
        }
    }

    fn arrange(&self, cells: Groups, complete_from_s: i64) -> Aggregates {
        let mut groups: BTreeMap<String, (Tally, BTreeMap<i64, Tally>)> = BTreeMap::new();
        for ((value, start_s), tally) in cells {
            let value = if self.by == Dimension::All {
                String::new()
            } else {
                value
            };
            let (total, buckets) = groups.entry(value).or_default();
            total.merge(&tally);
            if self.bucket_s.is_some() {
                buckets
                    .entry(self.bucket(start_s))
                    .or_default()
                    .merge(&tally);
            }
        }
        let mut sorted: Vec<_> = groups.into_iter().collect();
        sorted.sort_by_cached_key(|(value, (total, _))| {
            (std::cmp::Reverse(self.order.key(total)), value.clone())
        });
        let others = sorted.split_off(self.limit.min(sorted.len()));
        let group = |(value, (total, buckets)): (String, (Tally, BTreeMap<i64, Tally>))| Group {
            value,
            total,
            buckets: buckets.into_iter().collect(),
        };
        let rest = others.into_iter().map(group).reduce(|mut sum, other| {
            sum.total.merge(&other.total);
            let mut buckets: BTreeMap<i64, Tally> =
                std::mem::take(&mut sum.buckets).into_iter().collect();
            for (start_s, tally) in &other.buckets {
                buckets.entry(*start_s).or_default().merge(tally);
            }
            sum.value.clear();
            sum.buckets = buckets.into_iter().collect();
            sum
        });
        Aggregates {
            groups: sorted.into_iter().map(group).collect(),
            rest,
            complete_from_s,
        }
    }
}
