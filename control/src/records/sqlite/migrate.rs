//! Files of earlier layouts become files of this one.

use std::collections::BTreeMap;

use proto::id::OrgId;
use proto::record::Record;
use rusqlite::{Transaction, params};

use super::block::{Packed, Packer};
use super::{RecordsError, is_known, put_head};

/// What layout 6 adds: of blocks that are there nobody knows how large they are.
pub(super) const ADD_BYTES: &str = "ALTER TABLE heads ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0";
/// Sqlite of one organisation that make a block.
const BLOCK_RECORDS: usize = 512;
/// Sqlite of all organisations that are held in memory.
const WAITING_MAX: usize = 8_192;

/// Packs the rows of layout 1, which held one record as JSON each, and drops its table.
///
/// # Errors
/// A record that does not parse: the transaction must not be committed then.
pub(super) fn from_layout_1(
    txn: &Transaction<'_>,
    packer: &mut Packer,
) -> Result<(), RecordsError> {
    {
        let mut waiting: BTreeMap<OrgId, Vec<Record>> = BTreeMap::new();
        let mut count = 0;
        let mut statement = txn.prepare("SELECT record FROM records ORDER BY started_at_us")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let text: String = row.get(0)?;
            let record: Record = serde_json::from_str(&text)
                .map_err(|error| RecordsError::Damaged(format!("a record: {error}")))?;
            let of_org = waiting.entry(record.org_id).or_default();
            of_org.push(record);
            count += 1;
            if of_org.len() >= BLOCK_RECORDS {
                count -= of_org.len();
                write(txn, packer, &std::mem::take(of_org))?;
            } else if count >= WAITING_MAX {
                count = 0;
                for records in std::mem::take(&mut waiting).into_values() {
                    write(txn, packer, &records)?;
                }
            }
        }
        for records in waiting.into_values() {
            write(txn, packer, &records)?;
        }
    }
    txn.execute_batch("DROP TABLE records")?;
    Ok(())
}

fn write(
    txn: &Transaction<'_>,
    packer: &mut Packer,
    records: &[Record],
) -> Result<(), RecordsError> {
    let Some(first) = records.first() else {
        return Ok(());
    };
    let mut blocks: Vec<Packed> = Vec::new();
    packer.pack(&records.iter().collect::<Vec<_>>(), &mut blocks)?;
    let last: i64 = txn.query_row("SELECT coalesce(max(id), 0) FROM blocks", [], |row| {
        row.get(0)
    })?;
    for (id, block) in (last + 1..).zip(&blocks) {
        if !is_known(txn, first.org_id, block)? {
            txn.prepare_cached("INSERT INTO blocks (id, data) VALUES (?1, ?2)")?
                .execute(params![id, block.data])?;
            put_head(txn, first.org_id, id, block)?;
        }
    }
    Ok(())
}
