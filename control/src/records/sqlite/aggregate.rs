//! Answers about many records from SQLite.
//!
//! What tallies are kept of is answered from them in a moment; what they cannot tell (another
//! dimension, a further filter) is read from the records themselves, newest first, as far as one
//! call may read; the answer says how far that was.

use proto::wire::StoredRecord;
use rusqlite::params;

use super::tallies::Asked;
use super::{RecordsError, Sqlite, blob, bytes, locked};
use crate::records::aggregate::{Aggregates, Groups, Question};
use crate::records::counted::Counted;
use crate::records::query::RecordFilter;
use crate::records::tally::{Dimension, HOUR_S, MINUTE_S};

/// Most groups that are told apart while records are read; the others are counted together.
const GROUPS_MAX: usize = 10_000;
/// Most blocks that one call reads.
const BLOCKS_MAX: usize = 4_000;

impl Sqlite {
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
        Ok(question.arrange(groups, Groups::new(), complete_from_s))
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
        groups.entry(key).or_default().add(&Counted::from(record));
    }
}
