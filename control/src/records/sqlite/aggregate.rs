//! Answers about many records from SQLite.
//!
//! What tallies are kept of is answered from them in a moment: whole hours from those by the hour,
//! and the edges, or shorter spans, from those by the minute. What they cannot tell (another
//! dimension, a further filter) is read from the records themselves, newest first, as far as one
//! call may read; the answer says how far that was.

use std::sync::atomic::Ordering::Relaxed;

use rusqlite::params;

use super::sums::Sums;
use super::tallies::{Asked, Span};
use super::{RecordsError, Sqlite, blob, bytes, locked, tally_room};
use crate::records::aggregate::{Aggregates, Question};
use crate::records::counted::Counted;
use crate::records::query::RecordFilter;
use crate::records::tally::{Dimension, HOUR_S, MINUTE_S};

/// Most values that are told apart while records are read; the others are counted together.
const VALUES_MAX: usize = 10_000;
/// Most blocks that one call reads.
const BLOCKS_MAX: usize = 4_000;

impl Sqlite {
    /// Answers a question.
    ///
    /// # Errors
    /// The store failed, or what it holds is damaged.
    pub fn aggregate(&self, question: &Question) -> Result<Aggregates, RecordsError> {
        let Some(asked) = question.kept() else {
            return self.count_records(question);
        };
        let (sums, mut from) = self.tallies(&asked, question)?;
        let minutes_from_s = up(self.minutes_from_s.load(Relaxed), MINUTE_S);
        let of_minutes = from.entry(MINUTE_S).or_insert(minutes_from_s);
        *of_minutes = minutes_from_s.max(*of_minutes);
        Ok(sums.answer(asked.complete_from(&from)))
    }

    fn count_records(&self, question: &Question) -> Result<Aggregates, RecordsError> {
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
        let (mut sums, mut blocks) = (Sums::new(question, VALUES_MAX), 0);
        while let Some(row) = rows.next()? {
            let last_us: i64 = row.get(0)?;
            if !filter.overlaps(row.get(2)?, last_us) || !sought.may_be_in(bytes(row, 3)?) {
                continue;
            }
            if blocks >= BLOCKS_MAX {
                // Blocks overlap a little: what began in the last second read is not whole.
                return Ok(sums.answer(last_us.div_euclid(1_000_000) + 1));
            }
            blocks += 1;
            reader.read(question.org, row.get(1)?, |record| {
                if filter.wants(record) {
                    let at_s = record.started_at_us.div_euclid(1_000_000);
                    let tally = sums.tally(question.by.value(record), at_s);
                    tally.add(&Counted::from(record));
                }
                true
            })?;
        }
        Ok(sums.answer(question.from_s))
    }
}

impl Question {
    /// The tallies that answer it; `None` where none do.
    fn kept(&self) -> Option<Asked> {
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
        let spans = self.kept_spans()?;
        (dimension.is_kept() && !further).then_some(Asked {
            org: self.org,
            dimension,
            only,
            spans,
        })
    }

    /// Whole hours, and minutes at the edges; or minutes alone.
    fn kept_spans(&self) -> Option<Vec<Span>> {
        let whole = |width_s: i64| move |n: i64| n % width_s == 0;
        let minutes = whole(MINUTE_S);
        if !minutes(self.from_s) || !minutes(self.to_s) || !self.bucket_s.is_none_or(minutes) {
            return None;
        }
        let (first_s, last_s) = (up(self.from_s, HOUR_S), down(self.to_s, HOUR_S));
        let hours = self.bucket_s.is_none_or(whole(HOUR_S)) && first_s < last_s;
        let span = |width_s, from_s, to_s| Span {
            width_s,
            from_s,
            to_s,
        };
        let spans = match hours {
            true => vec![
                span(MINUTE_S, self.from_s, first_s),
                span(HOUR_S, first_s, last_s),
                span(MINUTE_S, last_s, self.to_s),
            ],
            false => vec![span(MINUTE_S, self.from_s, self.to_s)],
        };
        let spans = spans.into_iter().filter(|span| span.from_s < span.to_s);
        Some(spans.collect())
    }
}

impl Asked {
    /// The second from which on all is counted, where tallies of a width are kept from one on.
    fn complete_from(&self, kept_from: &tally_room::KeptFrom) -> i64 {
        let begin = self.spans.first().map_or(0, |first| first.from_s);
        let gone = self.spans.iter().filter_map(|span| {
            let from_s = *kept_from.get(&span.width_s)?;
            (span.from_s < from_s).then(|| span.to_s.min(from_s))
        });
        gone.max().unwrap_or(begin)
    }
}

fn down(n: i64, step: i64) -> i64 {
    n.div_euclid(step).saturating_mul(step)
}

fn up(n: i64, step: i64) -> i64 {
    down(n.saturating_add(step - 1), step)
}
