//! The records store keeps, finds and forgets as it says.

mod room;
mod segments;
mod together;

use std::time::Duration;

use proto::id::{CredentialId, ProxyId, RequestId};

use super::block::{Mark, Wanted};
use super::*;
use crate::records::query::RecordFilter;
use crate::records::{RecordCursor, Retention};

fn record(n: u128, org: u128) -> Record {
    let even = n.is_multiple_of(2);
    let json = serde_json::json!({
        "request_id": RequestId::from_bits(n),
        "org_id": OrgId::from_bits(org),
        "proxy_id": ProxyId::from_bits(n % 3),
        "proxy_credential_id": CredentialId::from_bits(n % 5),
        "config_version": 1, "node": "n", "region": "local", "method": "GET", "path": "/",
        "query": [],
        "status": if even { 200 } else { 429 },
        "code": if even { "proxy-access-granted" } else { "rate-limited" },
        "started_at_us": 1_000 * (n as i64 / 2), "total_us": 5, "stages": [],
        "request_bytes": 0, "response_bytes": 0, "upstream_request_bytes": 0,
        "upstream_response_bytes": 0, "attempts": 1, "denials": [], "shadow_rule_ids": [],
        "filter_ids": [], "upstream_ids": [], "client_aborted": false, "scrubbed": 0
    });
    serde_json::from_value(json).unwrap()
}

fn open() -> (tempfile::TempDir, Sqlite) {
    let dir = tempfile::tempdir().unwrap();
    let records = Sqlite::open(&dir.path().join("records.db")).unwrap();
    (dir, records)
}

fn numbers(records: &[Record]) -> Vec<u128> {
    records.iter().map(|r| r.request_id.bits()).collect()
}

impl Sqlite {
    /// Stores a batch that nobody follows.
    fn put<R: Borrow<Record>>(&self, batch: &[R]) -> Result<usize, RecordsError> {
        self.insert(batch, &Tails::default())
    }

    /// Bytes that count against a limit.
    fn bytes(&self) -> Result<u64, RecordsError> {
        self.bytes_in_use(&mut super::room::Sizes::default())
    }
}

const ORG: OrgId = OrgId::from_bits(1);

#[test]
fn a_batch_may_come_twice() {
    let (dir, records) = open();
    let batch: Vec<_> = (1..=4).map(|n| record(n, 1)).collect();
    assert_eq!(records.put(&batch).unwrap(), 4);
    assert_eq!(records.put(&batch).unwrap(), 0);
    assert_eq!(records.put(&batch[2..]).unwrap(), 2, "not the same batch");
    let (found, _) = records.list(ORG, &RecordFilter::default(), 10).unwrap();
    assert_eq!(numbers(&found), [4, 3, 2, 1], "each is shown once");
    assert_eq!(records.put(&[] as &[Record]).unwrap(), 0);
    assert_eq!(
        records.get(ORG, RequestId::from_bits(3)).unwrap(),
        Some(batch[2].clone())
    );
    drop(records);
    let again = Sqlite::open(&dir.path().join("records.db")).unwrap();
    assert_eq!(
        again.get(ORG, RequestId::from_bits(3)).unwrap(),
        Some(batch[2].clone())
    );
}

/// Blocks of earlier releases have no marks of pairs; they are read all the same, and those that
/// have them are read only where both are of one record.
#[test]
fn a_proxy_with_an_outcome_is_found_in_blocks_of_every_release() {
    let (_dir, records) = open();
    records
        .put(&(0..6).map(|n| record(n, 1)).collect::<Vec<_>>())
        .unwrap();
    let limited = |proxy| {
        let filter = by(|filter| {
            filter.proxy = Some(ProxyId::from_bits(proxy));
            filter.status = "4xx".parse().ok();
            filter.code = Some("rate-limited".into());
        });
        let marks: Vec<u8> = locked(&records.reader)
            .query_row("SELECT marks FROM heads", [], |row| row.get(0))
            .unwrap();
        let found = records.list(ORG, &filter, 10).unwrap().0;
        (numbers(&found), filter.sought().may_be_in(&marks))
    };
    assert_eq!(limited(1), (vec![1], true));
    assert_eq!(limited(0), (vec![3], true));
    assert_eq!(limited(7), (vec![], false));
    let plain = [record(0, 1), record(3, 1), record(4, 1)];
    let marks = |records: &[&Record]| {
        let mut packed = Vec::new();
        Packer::new().unwrap().pack(records, &mut packed).unwrap();
        packed.remove(0).marks
    };
    let sought = |proxy| {
        by(|filter| {
            filter.proxy = Some(ProxyId::from_bits(proxy));
            filter.status = "429".parse().ok();
        })
        .sought()
    };
    let block = marks(&plain.iter().collect::<Vec<_>>());
    assert!(sought(0).may_be_in(&block), "the fourth has both");
    assert!(
        !sought(1).may_be_in(&block),
        "both are there, in two records"
    );
    // As an earlier release wrote them.
    let pairs: Vec<Wanted> = [0, 1]
        .iter()
        .flat_map(|proxy| sought(*proxy).pairs)
        .chain([Wanted::from(Mark::HasPairs)])
        .collect();
    let (known, _) = block.as_chunks::<4>();
    let earlier: Vec<u8> = known
        .iter()
        .filter(|mark| !pairs.iter().any(|pair| block::has_all(&mark[..], &[*pair])))
        .flatten()
        .copied()
        .collect();
    assert!(earlier.len() < block.len());
    assert!(sought(1).may_be_in(&earlier), "it has to be read");
}

fn by(set: impl FnOnce(&mut RecordFilter)) -> RecordFilter {
    let mut filter = RecordFilter::default();
    set(&mut filter);
    filter
}

/// A search in vain ends for now instead of holding up others, and its pages still join.
#[test]
fn a_search_that_reads_much_goes_on_where_it_ended() {
    let (_dir, mut records) = open();
    records.search_blocks_max = 8;
    for n in 0..60 {
        records
            .put(&[record(2 * n, 1), record(2 * n + 1, 1)])
            .unwrap();
    }
    // Every block has a record of each status and of most proxies, few have both in one.
    let filter = by(|filter| {
        filter.proxy = Some(ProxyId::from_bits(1));
        filter.status = Some("429".parse().unwrap());
    });
    let expected: Vec<u128> = (0..120)
        .rev()
        .filter(|n| n % 3 == 1 && n % 2 == 1)
        .collect();
    let (mut found, mut filter, mut pages) = (Vec::new(), filter, 0);
    loop {
        let (page, next) = records.list(ORG, &filter, 100).unwrap();
        found.extend(numbers(&page));
        pages += 1;
        match next {
            Some(_) => filter.after = next,
            None => break,
        }
    }
    assert_eq!(found, expected);
    assert!(pages > 1, "{pages}");
}

#[test]
fn a_search_among_long_requests_gets_on_with_each_page() {
    let (_dir, mut records) = open();
    records.search_blocks_max = 8;
    // In each block one that began long before the other.
    for n in 0..40 {
        let both = [record(100 + n, 1), record(n, 1)];
        records.put(&both).unwrap();
    }
    let (mut found, mut filter) = (Vec::new(), RecordFilter::default());
    loop {
        let (page, next) = records.list(ORG, &filter, 5).unwrap();
        found.extend(numbers(&page));
        let Some(next) = next else { break };
        assert!(filter.after.is_none_or(|after| next < after), "{next:?}");
        filter.after = Some(next);
    }
    let all = (0..40).chain(100..140).rev();
    assert_eq!(found, all.collect::<Vec<u128>>());
}

/// Blocks that are newer than a page by more than any block is long cannot have records of it.
#[test]
fn a_page_begins_at_its_place_and_not_at_the_newest() {
    let (_dir, records) = open();
    let put = |from: u128, count: u128| {
        let batch: Vec<_> = (from..from + count).map(|n| record(n, 1)).collect();
        records.put(&batch).unwrap();
    };
    let newest = |filter: &RecordFilter| {
        let reader = locked(&records.reader);
        records.newest_of_page(&reader, ORG, filter).unwrap()
    };
    (0..50).for_each(|n| put(n * 10, 10));
    assert_eq!(newest(&RecordFilter::default()), i64::MAX);
    // A record begins each 500 µs, so a block is 4 ms long.
    let after = by(|filter| {
        filter.after = Some(RecordCursor::new(100_000, RequestId::from_bits(200)));
    });
    assert_eq!(newest(&after), 104_000);
    let before = by(|filter| filter.to_us = Some(90_000));
    assert_eq!(newest(&before), 94_000);
    // One that is longer counts as soon as it is there, of its organisation alone.
    records
        .put(&[record(500, 1), record(540, 1), record(500, 2)])
        .unwrap();
    assert_eq!(newest(&after), 120_000);
    records.put(&[record(600, 2), record(900, 2)]).unwrap();
    assert_eq!(newest(&after), 120_000);
    let found = records.list(ORG, &after, 5).unwrap().0;
    assert_eq!(numbers(&found), [199, 198, 197, 196, 195]);
}

#[test]
fn old_and_surplus_records_go() {
    let (_dir, records) = open();
    let all: Vec<_> = (0..10).map(|n| record(n, 1)).collect();
    for batch in all.chunks(2) {
        records.put(batch).unwrap();
    }
    let retention = |age_us, count_max| Retention {
        age_max: Duration::from_micros(age_us),
        count_max,
        ..Retention::default()
    };
    let left = || numbers(&records.list(ORG, &RecordFilter::default(), 100).unwrap().0);
    assert_eq!(records.retain(retention(4_000, 100), 4_000).unwrap(), 0);
    assert_eq!(records.retain(retention(3_000, 100), 4_000).unwrap(), 2);
    assert_eq!(left(), [9, 8, 7, 6, 5, 4, 3, 2]);
    // Blocks go whole: of 2, 4 and 6 records only 2 are within 3.
    assert_eq!(records.retain(retention(10_000, 3), 4_000).unwrap(), 6);
    assert_eq!(left(), [9, 8]);
    assert_eq!(records.get(ORG, RequestId::from_bits(7)).unwrap(), None);
    let count = |connection: &Connection, table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(&locked(&records.reader), "heads"), 1);
    // The one that was too old goes with its file.
    assert_eq!(count(&segment(&records), "blocks"), 2);
}

#[test]
fn a_block_lives_as_long_as_its_newest_record() {
    let (_dir, records) = open();
    records.put(&[record(0, 1), record(9, 1)]).unwrap();
    let age_max = Duration::from_micros(1_000);
    let retention = Retention {
        age_max,
        ..Retention::default()
    };
    assert_eq!(records.retain(retention, 5_000).unwrap(), 0);
    assert_eq!(records.retain(retention, 5_001).unwrap(), 2);
}

#[test]
fn many_blocks_go_in_one_call() {
    let (_dir, records) = open();
    for n in 0..200 {
        records.put(&[record(n, 1 + n % 3)]).unwrap();
    }
    let retention = Retention {
        count_max: 9,
        ..Retention::default()
    };
    assert_eq!(records.retain(retention, 1).unwrap(), 191);
    assert_eq!(records.retain(retention, 1).unwrap(), 0);
}

#[test]
fn a_large_batch_becomes_several_blocks() {
    let (_dir, records) = open();
    let count = block::BLOCK_RECORDS_MAX as u128 * 2 + 5;
    let mut batch: Vec<_> = (0..count).map(|n| record(n, 1)).collect();
    // Three of these do not fit into one block.
    for record in &mut batch[..3] {
        record.path = "x".repeat(3 * 1024 * 1024);
    }
    assert_eq!(records.put(&batch).unwrap(), batch.len());
    assert_eq!(records.put(&batch).unwrap(), 0);
    let (found, next) = records.list(ORG, &RecordFilter::default(), 5_000).unwrap();
    assert_eq!((found.len(), next), (batch.len(), None));
    for record in [&batch[1], &batch[2_000]] {
        let found = records.get(ORG, record.request_id).unwrap();
        assert!(found.as_ref() == Some(record));
    }
    // Nothing of a batch is stored when one of its records can never be.
    batch[0].path = "x".repeat(9 * 1024 * 1024);
    batch[0].request_id = RequestId::from_bits(1 << 100);
    batch[4].request_id = RequestId::from_bits(1 << 101);
    assert!(matches!(records.put(&batch), Err(RecordsError::Pack(_))));
    assert_eq!(records.get(ORG, batch[4].request_id).unwrap(), None);
}

#[test]
fn the_files_are_their_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, records) = open();
    records.put(&[record(1, 1)]).unwrap();
    let mut names = Vec::new();
    for file in std::fs::read_dir(dir.path()).unwrap().flatten() {
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", file.file_name());
        names.push(file.file_name().into_string().unwrap());
    }
    for name in [
        "records.db",
        "records.db-wal",
        "records.db.1",
        "records.db.1-wal",
    ] {
        assert!(names.iter().any(|there| there == name), "{names:?}");
    }
}

#[test]
fn a_file_of_another_layout_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.db");
    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 9)
        .unwrap();
    assert!(matches!(
        Sqlite::open(&path),
        Err(RecordsError::Layout { found: 9, .. })
    ));
}

const LAYOUT_1: &str = "
    CREATE TABLE records (
        request_id BLOB PRIMARY KEY,
        started_at_us INTEGER NOT NULL,
        org_id BLOB NOT NULL,
        proxy_id BLOB NOT NULL,
        proxy_credential_id BLOB,
        target_credential_id BLOB,
        status INTEGER,
        code TEXT NOT NULL,
        record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX records_by_org ON records (org_id, started_at_us, request_id);
    CREATE INDEX records_by_proxy ON records (org_id, proxy_id, started_at_us, request_id);
    CREATE INDEX records_by_status ON records (org_id, status, started_at_us, request_id);
    CREATE INDEX records_by_code ON records (org_id, code, started_at_us, request_id);
    CREATE INDEX records_by_age ON records (started_at_us);
    PRAGMA user_version = 1;
";

fn put_layout_1(file: &Connection, record: &Record) {
    file.execute(
        "INSERT INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            blob(record.request_id.bits()),
            record.started_at_us,
            blob(record.org_id.bits()),
            blob(record.proxy_id.bits()),
            record.proxy_credential_id.map(|id| blob(id.bits())),
            record.target_credential_id.map(|id| blob(id.bits())),
            record.status,
            record.code,
            serde_json::to_string(record).unwrap(),
        ],
    )
    .unwrap();
}

#[test]
fn a_file_of_layout_1_is_converted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.db");
    let file = Connection::open(&path).unwrap();
    file.execute_batch(LAYOUT_1).unwrap();
    file.execute_batch("BEGIN").unwrap();
    // More than a block of one organisation, and more organisations than wait in memory.
    let batch: Vec<_> = (0..9_000)
        .map(|n| record(n, if n < 600 { 1 } else { 2 + n % 200 }))
        .collect();
    for record in batch.iter().rev() {
        put_layout_1(&file, record);
    }
    file.execute_batch("COMMIT").unwrap();
    drop(file);
    for _ in 0..2 {
        let records = Sqlite::open(&path).unwrap();
        let (found, _) = records.list(ORG, &RecordFilter::default(), 1_000).unwrap();
        assert_eq!(numbers(&found), (0..600).rev().collect::<Vec<_>>());
        let (mut count, mut biggest) = (0, 0);
        let heads = locked(&records.reader);
        let mut statement = heads.prepare("SELECT count FROM heads").unwrap();
        for rows in statement.query_map([], |row| row.get::<_, i64>(0)).unwrap() {
            let rows = rows.unwrap();
            (count, biggest) = (count + rows, biggest.max(rows));
        }
        assert_eq!((count, biggest), (9_000, 512));
        drop(statement);
        drop(heads);
        for record in batch.iter().step_by(91) {
            let found = records.get(record.org_id, record.request_id).unwrap();
            assert_eq!(found.as_ref(), Some(record));
        }
    }
}

#[test]
fn a_conversion_that_fails_leaves_the_file_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.db");
    let file = Connection::open(&path).unwrap();
    file.execute_batch(LAYOUT_1).unwrap();
    put_layout_1(&file, &record(1, 1));
    put_layout_1(&file, &record(2, 1));
    file.execute("UPDATE records SET record = '{' WHERE status = 429", [])
        .unwrap();
    assert!(matches!(Sqlite::open(&path), Err(RecordsError::Damaged(_))));
    let tables: Vec<String> = file
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(tables, ["records"]);
    let layout: i64 = file
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!(layout, 1);
}

/// The file that blocks are written to.
fn segment(records: &Sqlite) -> Connection {
    let newest = records.segments.newest().unwrap();
    records.segments.connect(newest.first_block).unwrap()
}

/// What a damaged block answers; never a panic, and never what is not in it.
fn damaged(records: &Sqlite, data: &[u8]) -> bool {
    segment(records)
        .execute("UPDATE blocks SET data = ?1", [data])
        .unwrap();
    let listed = records.list(ORG, &RecordFilter::default(), 10);
    let got = records.get(ORG, RequestId::from_bits(1));
    let is_damaged = |error: &RecordsError| matches!(error, RecordsError::Damaged(_));
    listed.as_ref().is_err_and(is_damaged) && got.as_ref().is_err_and(is_damaged)
}

#[test]
fn a_damaged_block_is_an_error() {
    let (_dir, records) = open();
    records.put(&[record(1, 1), record(2, 1)]).unwrap();
    let good: Vec<u8> = segment(&records)
        .query_row("SELECT data FROM blocks", [], |row| row.get(0))
        .unwrap();
    assert!(!damaged(&records, &good));
    assert!(damaged(&records, b""));
    assert!(damaged(&records, b"no block"));
    for at in 0..good.len() {
        assert!(damaged(&records, &good[..at]), "cut at {at}");
        let mut flipped = good.clone();
        flipped[at] ^= 0x10;
        // Bits of zstd's head that say nothing may be flipped; the checksum finds all others.
        assert!(damaged(&records, &flipped) || at < 8, "changed at {at}");
    }
    let huge = zstd::bulk::compress(&vec![0; 64 * 1024 * 1024], 1).unwrap();
    assert!(damaged(&records, &huge));
    let foreign = record(1, 2);
    let mut blocks = Vec::new();
    locked(&records.packer)
        .pack(&[&foreign], &mut blocks)
        .unwrap();
    assert!(damaged(&records, &blocks[0].data));
    // One that is not there went with its file, or is about to.
    segment(&records).execute("DELETE FROM blocks", []).unwrap();
    assert_eq!(records.get(ORG, RequestId::from_bits(1)).unwrap(), None);
}
