//! Segments: they follow each other, go whole, and a crash between two files is mended.

use futures_util::FutureExt;

use super::*;

pub(super) const DAY_US: i64 = 86_400_000_000;
pub(super) const AGES: Duration = Duration::from_secs(100_000 * 86_400);

/// A record of an organisation that began at this instant.
pub(super) fn at(n: u128, org: u128, started_at_us: i64) -> Record {
    Record {
        started_at_us,
        ..record(n, org)
    }
}

pub(super) fn path(dir: &tempfile::TempDir) -> std::path::PathBuf {
    dir.path().join("records.db")
}

/// Files of segments, with what SQLite keeps beside them.
pub(super) fn files(dir: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path()).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter_map(|name| name.strip_prefix("records.db.").map(str::to_owned))
        .filter(|name| name.parse::<u32>().is_ok())
        .collect();
    names.sort_by_key(|name| name.parse::<u32>().unwrap());
    names
}

pub(super) fn all(records: &Sqlite) -> Vec<u128> {
    numbers(
        &records
            .list(ORG, &RecordFilter::default(), 10_000)
            .unwrap()
            .0,
    )
}

/// A store with a record of each of so many days: 0 is the first's number.
pub(super) fn of_days(days: u128) -> (tempfile::TempDir, Sqlite) {
    let (dir, records) = open();
    for n in 0..days {
        let day = i64::try_from(n).unwrap();
        records.put(&[at(n, 1, day * DAY_US)]).unwrap();
    }
    (dir, records)
}

pub(super) fn keeping(age_max: Duration, bytes_max: u64) -> Retention {
    Retention {
        age_max,
        count_max: u64::MAX,
        bytes_max,
    }
}

#[test]
fn a_day_has_a_file_and_what_comes_late_lies_in_the_newest() {
    let (dir, records) = open();
    for n in 0..6 {
        let day = i64::try_from(n).unwrap() / 2;
        records.put(&[at(n, 1, day * DAY_US + 1)]).unwrap();
    }
    assert_eq!(files(&dir), ["1", "3", "5"]);
    records.put(&[at(6, 1, DAY_US)]).unwrap();
    assert_eq!(files(&dir), ["1", "3", "5"], "no old file is written to");
    assert_eq!(all(&records), [5, 4, 3, 2, 6, 1, 0]);
    drop(records);
    let records = Sqlite::open(&path(&dir)).unwrap();
    assert_eq!(all(&records), [5, 4, 3, 2, 6, 1, 0]);
    records.put(&[at(7, 1, 2 * DAY_US + 2)]).unwrap();
    assert_eq!(files(&dir), ["1", "3", "5"], "it goes on where it was");
    assert_eq!(
        records
            .get(ORG, RequestId::from_bits(7))
            .unwrap()
            .unwrap()
            .started_at_us,
        2 * DAY_US + 2
    );
}

#[test]
fn a_full_segment_is_followed_by_another() {
    let (dir, mut records) = open();
    records.segment_bytes_max = 1;
    for n in 0..4 {
        records.put(&[record(n, 1)]).unwrap();
    }
    assert_eq!(files(&dir), ["1", "2", "3", "4"]);
    assert_eq!(all(&records), [3, 2, 1, 0]);
    // More files than a reader keeps open.
    for n in 4..60 {
        records.put(&[record(n, 1)]).unwrap();
    }
    assert_eq!(all(&records).len(), 60);
    assert_eq!(
        records.get(ORG, RequestId::from_bits(1)).unwrap(),
        Some(record(1, 1))
    );
}

#[test]
fn a_segment_that_is_begun_is_told_to_who_keeps_the_bound() {
    let (_dir, records) = open();
    let told = || records.grown().now_or_never().is_some();
    assert!(!told());
    records.put(&[at(1, 1, 0)]).unwrap();
    assert!(told() && !told());
    records.put(&[at(2, 1, 0)]).unwrap();
    assert!(!told(), "the same day");
    records.put(&[at(3, 1, DAY_US)]).unwrap();
    assert!(told());
}

#[test]
fn old_segments_go_with_their_files_and_nothing_else() {
    let (dir, records) = open();
    for n in 0..5 {
        let day = i64::try_from(n).unwrap();
        records
            .put(&[at(n, 1, day * DAY_US), at(n + 100, 2, day * DAY_US)])
            .unwrap();
    }
    // Readers have the files open: they let go of them.
    assert_eq!(all(&records), [4, 3, 2, 1, 0]);
    let age = Duration::from_micros(DAY_US as u64 * 2);
    assert_eq!(
        records.retain(keeping(age, u64::MAX), 4 * DAY_US).unwrap(),
        4
    );
    assert_eq!(files(&dir), ["5", "7", "9"]);
    assert_eq!(all(&records), [4, 3, 2]);
    // Within a segment that stays, what is older than allowed is not found any more.
    records.put(&[at(9, 1, 4 * DAY_US + 7)]).unwrap();
    let age = Duration::from_micros(5);
    assert_eq!(
        records
            .retain(keeping(age, u64::MAX), 4 * DAY_US + 10)
            .unwrap(),
        6
    );
    assert_eq!(
        (files(&dir), all(&records)),
        (vec!["9".to_owned()], vec![9])
    );
    // All of them, the newest too; numbers are not used again.
    assert_eq!(
        records.retain(keeping(age, u64::MAX), 9 * DAY_US).unwrap(),
        1
    );
    assert_eq!(files(&dir), [""; 0]);
    records.put(&[at(10, 1, 9 * DAY_US)]).unwrap();
    assert_eq!(
        (files(&dir), all(&records)),
        (vec!["12".to_owned()], vec![10])
    );
}

/// What a crash between the two files leaves: blocks that no head names.
#[test]
fn blocks_without_heads_are_written_over() {
    let (dir, records) = open();
    records.put(&[record(1, 1)]).unwrap();
    let segment = records.segments.newest().unwrap();
    let mut packed = Vec::new();
    locked(&records.packer)
        .pack(&[&record(2, 1)], &mut packed)
        .unwrap();
    let blocks: Vec<&Packed> = packed.iter().collect();
    let written = locked(&records.appender).append(&records.segments, 1 << 30, 2, &blocks);
    assert_eq!(written.unwrap().first_block, segment.first_block);
    // It failed before the heads; the process goes on.
    records.put(&[record(3, 1)]).unwrap();
    assert_eq!(all(&records), [3, 1]);
    // Or dies.
    let written = locked(&records.appender).append(&records.segments, 1 << 30, 3, &blocks);
    written.unwrap();
    drop(records);
    let records = Sqlite::open(&path(&dir)).unwrap();
    let reader = locked(&records.reader);
    assert!(reader.frame(2).unwrap().is_some() && reader.frame(3).unwrap().is_none());
    drop(reader);
    assert_eq!(records.put(&[record(2, 1)]).unwrap(), 1);
    assert_eq!(all(&records), [3, 2, 1]);
}

/// A crash between two segments, before the heads say that there is a new one, and one after they
/// have forgotten an old one.
#[test]
fn files_that_no_head_names_are_deleted() {
    let (dir, records) = open();
    records.put(&[at(1, 1, 0)]).unwrap();
    let mut packed = Vec::new();
    let next_day = at(2, 1, DAY_US);
    locked(&records.packer)
        .pack(&[&next_day], &mut packed)
        .unwrap();
    let blocks: Vec<&Packed> = packed.iter().collect();
    locked(&records.appender)
        .append(&records.segments, 1 << 30, 2, &blocks)
        .unwrap();
    assert_eq!(files(&dir), ["1", "2"]);
    drop(records);
    let records = Sqlite::open(&path(&dir)).unwrap();
    assert_eq!(
        (files(&dir), all(&records)),
        (vec!["1".to_owned()], vec![1])
    );
    records.put(&[at(2, 1, DAY_US)]).unwrap();
    records
        .segments
        .forget(&locked(&records.writer), 1)
        .unwrap();
    drop(records);
    std::fs::write(dir.path().join("records.db.other"), "not ours").unwrap();
    let records = Sqlite::open(&path(&dir)).unwrap();
    assert_eq!(files(&dir), ["2"]);
    assert!(dir.path().join("records.db.other").exists());
    assert_eq!(
        all(&records),
        [2],
        "a head whose file is gone finds nothing and breaks nothing"
    );
}

/// A power cut that took the last blocks from under their heads, and a file that somebody deleted.
#[test]
fn heads_without_blocks_break_no_search() {
    let (dir, records) = open();
    for n in 1..=3 {
        records.put(&[at(n, 1, i64::try_from(n).unwrap())]).unwrap();
    }
    records.put(&[at(4, 1, DAY_US)]).unwrap();
    records.put(&[at(5, 1, DAY_US + 1)]).unwrap();
    let newest = records.segments.newest().unwrap();
    let file = records.segments.connect(newest.first_block).unwrap();
    file.execute("DELETE FROM blocks WHERE id = 5", []).unwrap();
    drop(file);
    drop(records);
    let records = Sqlite::open(&path(&dir)).unwrap();
    assert_eq!(all(&records), [4, 3, 2, 1]);
    records.put(&[at(6, 1, DAY_US + 2)]).unwrap();
    assert_eq!(all(&records), [6, 4, 3, 2, 1]);
    drop(records);
    std::fs::remove_file(dir.path().join("records.db.1")).unwrap();
    let records = Sqlite::open(&path(&dir)).unwrap();
    assert_eq!(all(&records), [6, 4]);
    assert_eq!(records.get(ORG, RequestId::from_bits(1)).unwrap(), None);
    let age = Duration::from_micros(10);
    assert_eq!(records.retain(keeping(age, u64::MAX), DAY_US).unwrap(), 3);
}

/// A folder that is away for a moment, as one of a network is, or with an empty one in its place.
#[test]
fn heads_stay_while_the_folder_is_away() {
    let (dir, records) = of_days(4);
    let keeps_all = || records.retain(keeping(AGES, u64::MAX), 0);
    assert_eq!(keeps_all().unwrap(), 0);
    assert_eq!(all(&records), [3, 2, 1, 0]);
    let elsewhere = tempfile::tempdir().unwrap();
    let kept = elsewhere.path().join("kept");
    std::fs::rename(dir.path(), &kept).unwrap();
    assert!(keeps_all().is_err(), "it cannot be told what is there");
    std::fs::create_dir(dir.path()).unwrap();
    assert!(keeps_all().is_err(), "an empty folder tells nothing");
    std::fs::remove_dir(dir.path()).unwrap();
    std::fs::rename(&kept, dir.path()).unwrap();
    assert_eq!(keeps_all().unwrap(), 0);
    assert_eq!(all(&records), [3, 2, 1, 0]);
    drop(records);
    let records = Sqlite::open(&path(&dir)).unwrap();
    assert_eq!(all(&records), [3, 2, 1, 0]);
    // A file that is gone while the others stay is gone.
    std::fs::remove_file(dir.path().join("records.db.1")).unwrap();
    let dropped = records.retain(keeping(AGES, u64::MAX), 0).unwrap();
    assert_eq!((dropped, all(&records)), (1, vec![3, 2, 1]));
}

#[test]
fn a_file_without_segments_keeps_its_blocks_until_they_go() {
    let (dir, records) = open();
    // Enough of them that pages become free.
    for n in 0..400 {
        records.put(&[record(n, 1)]).unwrap();
    }
    drop(records);
    // As layout 3 had it: the blocks beside the heads.
    let file = Connection::open(path(&dir)).unwrap();
    let segment = dir.path().join("records.db.1");
    file.execute("ATTACH ?1 AS segment", [segment.to_str().unwrap()])
        .unwrap();
    file.execute_batch(
        "INSERT INTO main.blocks SELECT * FROM segment.blocks; DROP TABLE segments;
         ALTER TABLE heads DROP COLUMN bytes; PRAGMA user_version = 3; DETACH segment",
    )
    .unwrap();
    drop(file);
    let records = Sqlite::open(&path(&dir)).unwrap();
    assert_eq!(files(&dir), [""; 0]);
    assert_eq!(all(&records).len(), 400);
    records.put(&[record(400, 1)]).unwrap();
    assert_eq!(files(&dir), ["401"]);
    assert_eq!(all(&records).len(), 401);
    // The oldest bytes are those.
    let few = records.bytes().unwrap() - 1;
    let dropped = records.retain(keeping(AGES, few), 0).unwrap();
    assert!(records.bytes().unwrap() <= few);
    assert!((1..400).contains(&dropped), "{dropped}");
    assert_eq!(all(&records).len(), 401 - dropped as usize);
    records.retain(keeping(AGES, 0), 0).unwrap();
    assert_eq!(all(&records), [400]);
}

#[test]
fn searches_and_inserts_go_on_while_segments_go() {
    let (_dir, mut records) = open();
    records.segment_bytes_max = 2_000;
    let records = std::sync::Arc::new(records);
    let (writing, reading) = (records.clone(), records.clone());
    let writer = std::thread::spawn(move || {
        for n in 0..600 {
            writing.put(&[record(n, 1)]).unwrap();
        }
    });
    let reader = std::thread::spawn(move || {
        for _ in 0..60 {
            let found = all(&reading);
            assert!(found.is_sorted_by(|one, other| one > other), "{found:?}");
        }
    });
    for _ in 0..40 {
        records.retain(keeping(AGES, 60_000), 0).unwrap();
    }
    writer.join().unwrap();
    reader.join().unwrap();
    records.retain(keeping(AGES, 60_000), 0).unwrap();
    assert_eq!(all(&records).first(), Some(&599));
}
