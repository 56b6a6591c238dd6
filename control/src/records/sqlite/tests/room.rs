//! How many bytes records take, who loses some where they are too many, and what comes back.

use rusqlite::OpenFlags;

use super::segments::{AGES, DAY_US, all, at, files, keeping, of_days, path};
use super::*;
use crate::records::aggregate::{Order, Question};
use crate::records::tally::Dimension;

/// Splitmix.
struct Random(u128);

impl Random {
    fn next(&self) -> u128 {
        let mix = |seed: u64| {
            let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        let seed = (self.0 as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (u128::from(mix(seed)) << 64) | u128::from(mix(seed.wrapping_add(7)))
    }
}

/// A record with so many bytes that do not compress.
fn large(n: u128, org: u128, bytes: u128) -> Record {
    let words = bytes.div_ceil(32);
    Record {
        path: (0..words)
            .map(|m| format!("{:032x}", Random(n * words + m).next()))
            .collect(),
        ..record(n, org)
    }
}

/// What is left of an organisation.
fn left(records: &Sqlite, org: u128) -> Vec<u128> {
    let filter = RecordFilter::default();
    let found = records.list(OrgId::from_bits(org), &filter, 9_999).unwrap();
    numbers(&found.0)
}

/// Five segments of a busy organisation, and in the oldest 20 records of a quiet one.
fn busy_and_quiet() -> (tempfile::TempDir, Sqlite) {
    let (dir, records) = open();
    for n in 0..400 {
        let started_at_us = i64::try_from(n / 80).unwrap() * DAY_US;
        let org = if n < 20 { 2 } else { 1 };
        let one = Record {
            started_at_us,
            ..large(n, org, 6_400)
        };
        records.put(&[one]).unwrap();
    }
    assert_eq!(files(&dir).len(), 5);
    (dir, records)
}

/// Makes all segments such as an earlier release began: they give nothing back.
fn as_earlier(records: &Sqlite) {
    for segment in records.segments.all() {
        let file = records.segments.connect(segment.first_block).unwrap();
        file.execute_batch("PRAGMA auto_vacuum = NONE; VACUUM")
            .unwrap();
        let mode: i64 = file
            .query_row("PRAGMA auto_vacuum", [], |row| row.get(0))
            .unwrap();
        assert_eq!(mode, 0);
    }
}

fn blocks_and_heads(records: &Sqlite) -> (i64, i64) {
    let count = |file: &Connection, table: &str| -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        file.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    let segments = records.segments.all().into_iter();
    let blocks = segments.map(|segment| {
        let file = records.segments.file(segment.first_block);
        let file = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        count(&file, "blocks")
    });
    (blocks.sum(), count(&locked(&records.reader), "heads"))
}

#[test]
fn the_oldest_segments_go_while_there_are_too_many_bytes() {
    let (dir, mut records) = open();
    records.segment_bytes_max = 50_000;
    for n in 0..400 {
        records.put(&[large(n, 1 + n % 2, 1_280)]).unwrap();
    }
    let before = records.bytes().unwrap();
    let count = files(&dir).len();
    assert!(count > 4, "{count}");
    assert_eq!(records.retain(keeping(AGES, before), 0).unwrap(), 0);
    let dropped = records.retain(keeping(AGES, before / 2), 0).unwrap();
    assert!(records.bytes().unwrap() <= before / 2);
    let rest = files(&dir);
    assert!(rest.len() < count && rest.len() > 1, "{rest:?}");
    let (one, other) = (left(&records, 1), left(&records, 2));
    assert_eq!(*one.first().unwrap(), 398);
    assert_eq!(
        one.len() + other.len(),
        400 - usize::try_from(dropped).unwrap()
    );
    // The newest stays, however little is allowed.
    records.retain(keeping(AGES, 0), 0).unwrap();
    assert_eq!(files(&dir).len(), 1);
    assert!(all(&records).contains(&398));
}

#[test]
fn an_organisation_within_its_share_of_the_bytes_loses_nothing() {
    let (dir, mut records) = open();
    records.segment_bytes_max = 200_000;
    let put = |n: u128, org| {
        records.put(&[large(n, org, 12_800)]).unwrap();
    };
    // The oldest are those of one that is called little.
    (0..20).for_each(|n| put(n, 2));
    (20..400).for_each(|n| put(n, 1 + 2 * u128::from(n % 100 == 0)));
    let before = records.bytes().unwrap();
    let count = files(&dir).len();
    let left = |org| left(&records, org);
    assert!(records.retain(keeping(AGES, before / 2), 0).unwrap() > 0);
    assert!(records.bytes().unwrap() <= before / 2);
    let oldest = records.segments.all()[0].first_block;
    let file = records.segments.connect(oldest).unwrap();
    let free = |name: &str| -> i64 {
        let sql = format!("PRAGMA {name}");
        file.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((free("auto_vacuum"), free("freelist_count")), (2, 0));
    assert_eq!((left(2).len(), left(3).len()), (20, 3));
    assert_eq!(left(1).first(), Some(&399), "its newest stay");
    assert!(files(&dir).len() < count, "what is empty goes");
    assert_eq!(records.retain(keeping(AGES, before / 2), 0).unwrap(), 0);
}

#[test]
fn surplus_records_give_their_bytes_back_while_others_stay_in_the_file() {
    let (dir, records) = open();
    for n in 0..300 {
        let org = 1 + u128::from(n == 299);
        records.put(&[large(n, org, 6_400)]).unwrap();
    }
    let before = records.bytes().unwrap();
    let few = Retention {
        age_max: AGES,
        count_max: 20,
        bytes_max: u64::MAX,
    };
    assert_eq!(records.retain(few, 0).unwrap(), 280);
    drop(records);
    let records = Sqlite::open(&path(&dir)).unwrap();
    let after = records.bytes().unwrap();
    assert!(after * 3 < before, "{before} {after}");
    assert_eq!(all(&records).len(), 19);
}

/// It is stopped when some of it is done, as by a full disk or a kill.
#[test]
fn what_is_interrupted_takes_no_room_and_costs_no_more_records() {
    let (dir, records) = busy_and_quiet();
    let few = records.bytes().unwrap() / 2;
    let stop = "CREATE TRIGGER stop BEFORE DELETE ON heads
        WHEN (SELECT count(*) FROM heads) <= 230
        BEGIN SELECT RAISE(ABORT, 'stop'); END";
    locked(&records.writer).execute_batch(stop).unwrap();
    assert!(records.retain(keeping(AGES, few), 0).is_err());
    // A second try fares no better, and does no harm.
    assert!(records.retain(keeping(AGES, few), 0).is_err());
    locked(&records.writer)
        .execute_batch("DROP TRIGGER stop")
        .unwrap();
    drop(records);
    let records = Sqlite::open(&path(&dir)).unwrap();
    let (blocks, heads) = blocks_and_heads(&records);
    assert!(blocks <= heads && heads >= 230, "{blocks} {heads}");
    records.retain(keeping(AGES, few), 0).unwrap();
    let bytes = records.bytes().unwrap();
    assert!(bytes <= few && bytes * 10 > few * 8, "{bytes} {few}");
    assert_eq!(left(&records, 2).len(), 20);
    let (blocks, heads) = blocks_and_heads(&records);
    assert_eq!(blocks, heads);
    assert_eq!(records.retain(keeping(AGES, few), 0).unwrap(), 0);
}

#[test]
fn files_of_earlier_releases_are_packed_before_anything_in_them_goes() {
    let (_dir, records) = busy_and_quiet();
    as_earlier(&records);
    let few = records.bytes().unwrap() / 2;
    assert!(records.retain(keeping(AGES, few), 0).unwrap() > 0);
    let bytes = records.bytes().unwrap();
    assert!(bytes <= few && bytes * 10 > few * 8, "{bytes} {few}");
    assert_eq!(left(&records, 2).len(), 20);
}

#[test]
fn where_there_is_no_room_to_pack_whole_files_go_and_no_more_than_are_too_many() {
    let (dir, mut records) = busy_and_quiet();
    as_earlier(&records);
    records.pack = |_| {
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        Err(rusqlite::Error::SqliteFailure(full, None))
    };
    let few = records.bytes().unwrap() / 2;
    let before = files(&dir);
    assert!(records.retain(keeping(AGES, few), 0).unwrap() > 0);
    let (bytes, after) = (records.bytes().unwrap(), files(&dir));
    assert!(bytes <= few && bytes * 10 > few * 6, "{bytes} {few}");
    assert!(before.ends_with(&after), "the oldest go: {after:?}");
    let (blocks, heads) = blocks_and_heads(&records);
    assert_eq!(blocks, heads);
    assert_eq!(records.retain(keeping(AGES, few), 0).unwrap(), 0);
}

#[test]
fn a_damaged_file_does_not_keep_others_from_being_forgotten() {
    let (dir, records) = busy_and_quiet();
    let few = records.bytes().unwrap() / 2;
    let damaged = files(&dir).remove(0);
    std::fs::write(dir.path().join(format!("records.db.{damaged}")), [7; 9_000]).unwrap();
    assert!(records.retain(keeping(AGES, few), 0).unwrap() > 0);
    let bytes = records.bytes().unwrap();
    assert!(bytes <= few && bytes * 10 > few * 5, "{bytes} {few}");
    assert!(files(&dir).contains(&damaged), "heads of one name it");
    assert!(records.retain(keeping(AGES, 0), 0).unwrap() > 0);
    assert_eq!(files(&dir).len(), 1);
}

/// Nobody can open the file any more, though it is there.
fn close_off(dir: &tempfile::TempDir, number: &str) {
    let log = dir.path().join(format!("records.db.{number}-wal"));
    let _ = std::fs::remove_file(&log);
    std::fs::create_dir(log).unwrap();
}

#[test]
fn a_file_that_cannot_be_opened_does_not_keep_others_from_being_forgotten() {
    let (dir, records) = busy_and_quiet();
    let (all, few) = (files(&dir), records.bytes().unwrap() / 2);
    close_off(&dir, &all[1]);
    // Nothing has to go of it yet: it counts with its length and stays.
    let more = records.bytes().unwrap() - 100_000;
    assert!(records.retain(keeping(AGES, more), 0).unwrap() > 0);
    let bytes = records.bytes().unwrap();
    assert!(bytes <= more && files(&dir).contains(&all[1]), "{bytes}");
    assert_eq!(left(&records, 2).len(), 20);
    assert!(records.retain(keeping(AGES, few), 0).unwrap() > 0);
    let bytes = records.bytes().unwrap();
    assert!(bytes <= few && bytes * 10 > few * 5, "{bytes} {few}");
    assert!(!files(&dir).contains(&all[1]), "it goes whole");
    assert_eq!(left(&records, 2).len(), 20);
    // The same by count.
    close_off(&dir, &files(&dir)[1]);
    let few = Retention {
        age_max: AGES,
        count_max: 60,
        bytes_max: u64::MAX,
    };
    assert!(records.retain(few, 0).unwrap() > 0);
    let (_, heads) = blocks_and_heads(&records);
    assert!(heads <= 60, "{heads}");
}

/// As on a full disk: what is there can be read and not changed.
fn write_protect(dir: &tempfile::TempDir, number: &str) {
    let path = dir.path().join(format!("records.db.{number}"));
    let file = Connection::open(&path).unwrap();
    file.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    drop(file);
    // The version that a program has to know that writes to it.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[18] = 3;
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn where_nothing_can_be_deleted_in_files_the_oldest_go_whole() {
    let (dir, records) = busy_and_quiet();
    let before = files(&dir);
    before
        .iter()
        .take(4)
        .for_each(|number| write_protect(&dir, number));
    let few = records.bytes().unwrap() / 2;
    assert!(records.retain(keeping(AGES, few), 0).unwrap() > 0);
    let (bytes, after) = (records.bytes().unwrap(), files(&dir));
    assert!(bytes <= few && bytes * 10 > few * 6, "{bytes} {few}");
    assert!(before.ends_with(&after), "the oldest go: {after:?}");
    let (blocks, heads) = blocks_and_heads(&records);
    assert_eq!(blocks, heads);
    assert_eq!(records.retain(keeping(AGES, few), 0).unwrap(), 0);
}

#[test]
fn room_is_made_before_anything_is_written_that_needs_some() {
    let (dir, records) = busy_and_quiet();
    let can_write = |can: bool| {
        let writer = locked(&records.writer);
        writer.pragma_update(None, "query_only", !can).unwrap();
    };
    let few = records.bytes().unwrap() / 2;
    for (retention, now_us) in [
        (keeping(AGES, few), 0),
        (keeping(Duration::from_secs(1), u64::MAX), 4 * DAY_US),
    ] {
        let before = files(&dir);
        can_write(false);
        assert!(records.retain(retention, now_us).is_err());
        assert_eq!(files(&dir), before[1..], "room was made");
        can_write(true);
        records.retain(retention, now_us).unwrap();
        let (blocks, heads) = blocks_and_heads(&records);
        assert_eq!(blocks, heads);
    }
    assert!(records.bytes().unwrap() <= few);
    assert_eq!(left(&records, 1).first(), Some(&399));
}

/// Heads weigh more than blocks where these are small.
#[test]
fn of_many_small_blocks_those_with_most_lose_theirs() {
    let (_dir, records) = open();
    for n in 0..1_500 {
        let started_at_us = i64::try_from(n / 300).unwrap() * DAY_US;
        let org = if n < 20 { 2 } else { 1 };
        records.put(&[at(n, org, started_at_us)]).unwrap();
    }
    let few = records.bytes().unwrap() / 3;
    assert!(records.retain(keeping(AGES, few), 0).unwrap() > 0);
    let bytes = records.bytes().unwrap();
    assert!(bytes <= few && bytes * 10 > few * 7, "{bytes} {few}");
    assert_eq!(left(&records, 2).len(), 20);
    assert_eq!(left(&records, 1).first(), Some(&1_499));
}

#[test]
fn no_record_goes_because_sums_take_much() {
    let (_dir, records) = open();
    for n in 0..400u128 {
        let minute = i64::try_from(n).unwrap();
        let started_at_us = minute * 60_000_000 + minute / 100 * DAY_US;
        records.put(&[at(n, 1, started_at_us)]).unwrap();
    }
    let enough = records.bytes().unwrap();
    records.settle_tallies(0, 0).unwrap();
    assert!(records.bytes_on_disk().unwrap() > enough * 11 / 10);
    assert_eq!(records.retain(keeping(AGES, enough), 0).unwrap(), 0);
    assert_eq!(left(&records, 1).len(), 400);
}

/// What the files hold, but for what SQLite notes of its readers.
fn contents(dir: &tempfile::TempDir) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|one| one.unwrap().path());
    let kept = paths.filter(|path| !path.to_str().unwrap().ends_with("-shm"));
    kept.map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// On a full disk there would be no room for it.
#[test]
fn who_opens_the_store_and_reads_writes_nothing() {
    let (dir, records) = of_days(5);
    drop(records);
    let before = contents(&dir);
    assert!(before.len() > 6, "{:?}", before.keys());
    let records = Sqlite::open(&path(&dir)).unwrap();
    assert_eq!(all(&records), [4, 3, 2, 1, 0]);
    let found = records.get(ORG, RequestId::from_bits(1)).unwrap();
    assert_eq!(found.unwrap(), at(1, 1, DAY_US));
    assert!(records.bytes().unwrap() > 0);
    for by in [Dimension::Proxy, Dimension::Path] {
        let question = Question {
            org: ORG,
            by,
            from_s: 0,
            to_s: 5 * DAY_US / 1_000_000,
            bucket_s: None,
            filter: RecordFilter::default(),
            order: Order::Count,
            limit: 10,
        };
        assert!(!records.aggregate(&question).unwrap().groups.is_empty());
    }
    let after = contents(&dir);
    let changed = before
        .iter()
        .filter(|(path, bytes)| after.get(*path) != Some(*bytes));
    let changed: Vec<_> = changed.map(|(path, _)| path).collect();
    assert!(
        changed.is_empty() && after.len() == before.len(),
        "{changed:?}"
    );
}
