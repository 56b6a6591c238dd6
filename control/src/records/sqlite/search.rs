//! Searches: one record by its id, and pages of records, newest first.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use proto::id::{OrgId, RequestId};
use proto::record::Record;
use rusqlite::{Connection, params};

use super::block::{self, Mark, Wanted};
use super::{RecordsError, Sqlite, blob, bytes, locked};
use crate::records::query::{Page, RecordCursor, RecordFilter};

/// The longest time between the oldest and the newest record of a block, of each organisation that
/// was searched: a page need not walk the heads of what is newer than it by more than that.
#[derive(Debug, Default)]
pub(super) struct Longest(Mutex<HashMap<OrgId, i64>>);

impl Longest {
    /// A block was stored, or its transaction is about to end.
    pub(super) fn note(&self, org: OrgId, first_us: i64, last_us: i64) {
        let mut longest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = longest.get_mut(&org) {
            *known = (*known).max(last_us.saturating_sub(first_us));
        }
    }

    /// That of an organisation, which is looked up once.
    fn of(&self, heads: &Connection, org: OrgId) -> Result<i64, RecordsError> {
        // Held meanwhile, and blocks are noted when they are stored: none is missed.
        let mut longest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = longest.get(&org) {
            return Ok(*known);
        }
        let found: Option<i64> = heads.query_row(
            "SELECT max(last_us - first_us) FROM heads WHERE org_id = ?1",
            [blob(org.bits())],
            |row| row.get(0),
        )?;
        let found = found.unwrap_or(0);
        longest.insert(org, found);
        Ok(found)
    }
}

impl Sqlite {
    /// One record of an organisation.
    ///
    /// # Errors
    /// The store failed or a block is damaged; an unknown id is `None`.
    pub fn get(&self, org: OrgId, id: RequestId) -> Result<Option<Record>, RecordsError> {
        let reader = locked(&self.reader);
        // Blocks overlap a little. The first whose largest id is not below the one that is asked
        // for most often holds it; an unknown id runs through the index and reads no block.
        let mut heads = reader.prepare_cached(
            "SELECT last_us, block FROM heads INDEXED BY heads_by_id
             WHERE org_id = ?1 AND last_id >= ?2 AND first_id <= ?2 ORDER BY last_id",
        )?;
        let mut marks = reader.prepare_cached(
            "SELECT marks FROM heads WHERE org_id = ?1 AND last_us = ?2 AND block = ?3",
        )?;
        let wanted = [Wanted::from(Mark::moment(id.bits()))];
        let org_id = blob(org.bits());
        let mut rows = heads.query(params![org_id, blob(id.bits())])?;
        while let Some(row) = rows.next()? {
            let (last_us, block): (i64, i64) = (row.get(0)?, row.get(1)?);
            let may_hold = marks.query_row(params![org_id, last_us, block], |row| {
                Ok(block::has_all(bytes(row, 0)?, &wanted))
            })?;
            let mut found = None;
            if may_hold {
                reader.read(org, block, |record| {
                    if record.request_id() == id {
                        found = Some(record.to_record(org));
                    }
                    found.is_none()
                })?;
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Sqlite of an organisation, newest first, at most `limit`; and where the next page begins,
    /// when more follow. Memory is bounded by `limit` and one block, not by what is searched; a
    /// search that reads many blocks in vain ends early, with what it has and the place to go on.
    ///
    /// # Errors
    /// The store failed or a block is damaged.
    pub fn list(
        &self,
        org: OrgId,
        filter: &RecordFilter,
        limit: usize,
    ) -> Result<(Vec<Record>, Option<RecordCursor>), RecordsError> {
        let (sought, mut page) = (filter.sought(), Page::new(limit));
        let reader = locked(&self.reader);
        let newest_us = self.newest_of_page(&reader, org, filter)?;
        let mut heads = reader.prepare_cached(
            "SELECT last_us, block, first_us, marks FROM heads
             WHERE org_id = ?1 AND last_us >= ?2 AND last_us <= ?3
             ORDER BY last_us DESC, block DESC",
        )?;
        let from_us = filter.from_us.unwrap_or(i64::MIN);
        let mut rows = heads.query(params![blob(org.bits()), from_us, newest_us])?;
        let mut blocks = 0;
        while let Some(row) = rows.next()? {
            let last_us = row.get(0)?;
            if page.is_settled(last_us) {
                break;
            }
            // Not before it is beyond where this page began: long requests make blocks overlap.
            let gets_on = filter
                .after
                .is_none_or(|after| last_us < after.started_at_us());
            if blocks >= self.search_blocks_max && gets_on {
                return Ok(page.finish_at(RecordCursor::before_all_of(last_us)));
            }
            if filter.overlaps(row.get(2)?, last_us) && sought.may_be_in(bytes(row, 3)?) {
                blocks += 1;
                reader.read(org, row.get(1)?, |record| {
                    if filter.wants(record) {
                        page.offer(org, record);
                    }
                    true
                })?;
            }
        }
        Ok(page.finish())
    }

    /// The newest that a block may end which has records of a page.
    pub(super) fn newest_of_page(
        &self,
        heads: &Connection,
        org: OrgId,
        filter: &RecordFilter,
    ) -> Result<i64, RecordsError> {
        let after = filter.after.map(|after| after.started_at_us());
        match after.into_iter().chain(filter.to_us).min() {
            None => Ok(i64::MAX),
            Some(newest_us) => Ok(newest_us.saturating_add(self.longest.of(heads, org)?)),
        }
    }
}
