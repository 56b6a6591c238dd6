//! The room that tallies take. It is bounded: where they take too much, organisations with more
//! than an equal share lose their oldest, those by the minute first. From when on an organisation
//! has all of them is noted beside them, for the answers to say.

use std::collections::BTreeMap;

use proto::id::OrgId;
use rusqlite::{Connection, params};

use super::retain::fair_share;
use super::room::in_use;
use super::{RecordsError, Sqlite, blob, locked};
use crate::records::tally::{HOUR_S, MINUTE_S};

/// Since when the tallies of a width are all there, where some went for want of room.
pub(super) const CREATE: &str = "
    CREATE TABLE IF NOT EXISTS tallies_from (
        org_id BLOB NOT NULL,
        width_s INTEGER NOT NULL,
        from_s INTEGER NOT NULL,
        PRIMARY KEY (org_id, width_s)
    ) WITHOUT ROWID;
";
/// Bytes that they take. Reads all of their pages.
pub(super) const BYTES: &str = "SELECT coalesce(sum(pgsize), 0) FROM dbstat('main', 1)
    WHERE name IN ('tallies', 'tallies_by_age')";
/// Tallies may take as many bytes more as this part of those that records may.
const PART: u64 = 4;
/// So many they may take at least.
const BYTES_MIN: u64 = 64 * 1024 * 1024;
/// How often they are looked at in a row: what is deleted frees its pages for the most part only.
const LOOKS: usize = 4;
/// The part that goes beyond what has to, so that it is not done all the time.
const SLACK: u64 = 16;
/// Tallies deleted in one transaction, about, so that inserts never wait long.
const DELETE_BATCH: u64 = 10_000;

/// What tallies may take where records may take so much.
pub(super) fn bytes_max(records_bytes_max: u64) -> u64 {
    (records_bytes_max / PART).max(BYTES_MIN)
}

/// From which second on all tallies are there, by their width.
pub(super) type KeptFrom = BTreeMap<i64, i64>;

/// The same of an organisation, where some went for want of room.
pub(super) fn kept_from(file: &Connection, org: OrgId) -> Result<KeptFrom, RecordsError> {
    let mut kept =
        file.prepare_cached("SELECT width_s, from_s FROM tallies_from WHERE org_id = ?1")?;
    let rows = kept.query_map([blob(org.bits())], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Sqlite {
    /// Drops the oldest tallies of those with most where all together take more than so many bytes.
    ///
    /// # Errors
    /// The store failed; what was dropped before stays dropped.
    pub(super) fn keep_tallies_within(&self, bytes_max: u64) -> Result<(), RecordsError> {
        for _ in 0..LOOKS {
            if !self.drop_too_many_tallies(bytes_max)? {
                break;
            }
        }
        Ok(())
    }

    /// The same once; tells whether there were too many.
    fn drop_too_many_tallies(&self, bytes_max: u64) -> Result<bool, RecordsError> {
        let (bytes, counts) = {
            let scanner = locked(&self.scanner);
            // All of the file, which is known without reading it.
            if in_use(&scanner)? <= bytes_max {
                return Ok(false);
            }
            let bytes: i64 = scanner.query_row(BYTES, [], |row| row.get(0))?;
            let bytes = bytes.unsigned_abs();
            if bytes <= bytes_max {
                return Ok(false);
            }
            (bytes, counts(&scanner)?)
        };
        let all: u64 = counts.iter().map(|(_, count)| *count).sum();
        let kept = u128::from(bytes_max - bytes_max / SLACK) * u128::from(all) / u128::from(bytes);
        let kept = u64::try_from(kept).unwrap_or(u64::MAX);
        let Some(share) = fair_share(counts.iter().map(|(_, count)| *count), kept) else {
            return Ok(false);
        };
        tracing::warn!(
            bytes,
            bytes_max,
            "sums of requests take {bytes} bytes, more than {bytes_max}: organisations with most \
             lose their oldest"
        );
        for (org, count) in counts {
            let mut excess = count.saturating_sub(share);
            for width_s in [MINUTE_S, HOUR_S] {
                excess = self.drop_oldest_tallies(&org, width_s, excess)?;
            }
        }
        Ok(true)
    }

    /// Drops so many tallies of one width, the oldest; gives how many it had too few for that.
    fn drop_oldest_tallies(
        &self,
        org: &[u8],
        width_s: i64,
        mut excess: u64,
    ) -> Result<u64, RecordsError> {
        while excess > 0 {
            let starts = {
                let scanner = locked(&self.scanner);
                starts(&scanner, org, width_s, excess.min(DELETE_BATCH))?
            };
            let Some((last_s, count)) = starts else {
                break;
            };
            let from_s = last_s.saturating_add(width_s);
            let mut writer = locked(&self.writer);
            let txn = writer.transaction()?;
            // Tallies may come that are older than those which went: what went stays gone.
            txn.prepare_cached(
                "INSERT INTO tallies_from VALUES (?1, ?2, ?3)
                 ON CONFLICT (org_id, width_s) DO UPDATE SET from_s = max(from_s, excluded.from_s)",
            )?
            .execute(params![org, width_s, from_s])?;
            txn.prepare_cached(
                "DELETE FROM tallies INDEXED BY tallies_by_age
                 WHERE width_s = ?1 AND start_s < ?2 AND org_id = ?3",
            )?
            .execute(params![width_s, from_s, org])?;
            txn.commit()?;
            excess = excess.saturating_sub(count);
        }
        Ok(excess)
    }
}

/// How many tallies each organisation has.
fn counts(file: &Connection) -> Result<Vec<(Vec<u8>, u64)>, RecordsError> {
    let mut counts = file.prepare("SELECT org_id, count(*) FROM tallies GROUP BY org_id")?;
    let rows = counts.query_map([], |row| {
        let count: i64 = row.get(1)?;
        Ok((row.get(0)?, count.unsigned_abs()))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The start of the last of the oldest spans that together have so many tallies, and how many they
/// have; none where there are none.
fn starts(
    file: &Connection,
    org: &[u8],
    width_s: i64,
    wanted: u64,
) -> Result<Option<(i64, u64)>, RecordsError> {
    let mut starts = file.prepare_cached(
        "SELECT start_s, count(*) FROM tallies INDEXED BY tallies_by_age
         WHERE width_s = ?1 AND org_id = ?2 GROUP BY start_s ORDER BY start_s",
    )?;
    let mut rows = starts.query(params![width_s, org])?;
    let mut found = None;
    let mut sum = 0u64;
    while sum < wanted
        && let Some(row) = rows.next()?
    {
        let count: i64 = row.get(1)?;
        sum = sum.saturating_add(count.unsigned_abs());
        found = Some((row.get(0)?, sum));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What came late is the oldest, and goes next.
    #[test]
    fn what_went_stays_gone_when_older_tallies_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let records = Sqlite::open(&dir.path().join("records.db")).unwrap();
        let org = OrgId::from_bits(1);
        let bits = blob(org.bits());
        for (start_s, from_s) in [(600, 660), (120, 660), (1_200, 1_260)] {
            let put = "INSERT INTO tallies VALUES (?1, ?2, 0, ?3, '', x'')";
            locked(&records.writer)
                .execute(put, params![bits, MINUTE_S, start_s])
                .unwrap();
            let left = records.drop_oldest_tallies(&bits, MINUTE_S, 1).unwrap();
            assert_eq!(left, 0);
            let kept = kept_from(&locked(&records.writer), org).unwrap();
            assert_eq!(kept.get(&MINUTE_S), Some(&from_s), "{start_s}");
        }
    }
}
