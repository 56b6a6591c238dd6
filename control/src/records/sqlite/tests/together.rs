//! Many records together, whoever follows them, and every field by which they are found.

use super::*;
use crate::records::aggregate::{Aggregates, Order, Question};
use crate::records::tally::Dimension;

fn question(by: Dimension) -> Question {
    Question {
        org: ORG,
        by,
        from_s: 0,
        to_s: 3_600,
        bucket_s: None,
        filter: RecordFilter::default(),
        order: Order::Count,
        limit: 10,
    }
}

/// Values and counts of groups, and the count of all others.
fn counts(found: &Aggregates) -> (Vec<(String, u64)>, u64) {
    let groups = found.groups.iter();
    let groups = groups
        .map(|group| (group.value.clone(), group.total.count))
        .collect();
    (
        groups,
        found.rest.as_ref().map_or(0, |rest| rest.total.count),
    )
}

fn insert(records: &Sqlite, range: std::ops::Range<u128>) {
    let batch: Vec<_> = range.map(|n| record(n, 1)).collect();
    for batch in batch.chunks(7) {
        records.put(batch).unwrap();
    }
}

#[test]
fn each_block_counts_once_whatever_happens() {
    let (dir, records) = open();
    let path = dir.path().join("records.db");
    let batch: Vec<_> = (0..10).map(|n| record(n, 1)).collect();
    records.put(&batch).unwrap();
    records.put(&batch).unwrap();
    let all = |records: &Sqlite| records.aggregate(&question(Dimension::All)).unwrap();
    assert_eq!(
        counts(&all(&records)).0[0].1,
        10,
        "a batch that comes again"
    );
    drop(records);
    let records = Sqlite::open(&path).unwrap();
    assert_eq!(
        counts(&all(&records)).0[0].1,
        10,
        "not written before the end"
    );
    records.settle_tallies(0, 0).unwrap();
    assert_eq!(counts(&all(&records)).0[0].1, 10, "written");
    insert(&records, 10..15);
    drop(records);
    let records = Sqlite::open(&path).unwrap();
    assert_eq!(counts(&all(&records)).0[0].1, 15, "partly written");
    // Numbers of blocks are never used again, though all of them go.
    let nothing = Retention {
        count_max: 0,
        ..Retention::default()
    };
    records.retain(nothing, 1).unwrap();
    insert(&records, 15..20);
    drop(records);
    let records = Sqlite::open(&path).unwrap();
    assert_eq!(counts(&all(&records)).0[0].1, 20, "tallies outlive records");
}

#[test]
fn a_file_without_tallies_is_counted_at_its_opening() {
    let (dir, records) = open();
    insert(&records, 0..50);
    drop(records);
    let path = dir.path().join("records.db");
    let file = Connection::open(&path).unwrap();
    let segment = dir.path().join("records.db.1");
    file.execute("ATTACH ?1 AS segment", [segment.to_str().unwrap()])
        .unwrap();
    file.execute_batch(
        "INSERT INTO main.blocks SELECT * FROM segment.blocks; DROP TABLE segments;
         DROP TABLE tallies; DROP TABLE tallied; PRAGMA user_version = 2",
    )
    .unwrap();
    drop(file);
    let records = Sqlite::open(&path).unwrap();
    let found = records.aggregate(&question(Dimension::All)).unwrap();
    assert_eq!(counts(&found).0[0].1, 50);
}

#[test]
fn old_minutes_go_and_hours_stay() {
    let (_dir, records) = open();
    insert(&records, 0..10);
    records.settle_tallies(0, 30 * 86_400).unwrap();
    let mut asked = question(Dimension::All);
    asked.bucket_s = Some(3_600);
    assert_eq!(counts(&records.aggregate(&asked).unwrap()).0[0].1, 10);
    records.settle_tallies(3_600, 30 * 86_400).unwrap();
    assert!(records.aggregate(&asked).unwrap().groups.is_empty());
}

/// One that is called much does not push out the records of one that is called little.
#[test]
fn a_busy_organisation_loses_its_own_records() {
    let (_dir, records) = open();
    for n in 0..100u128 {
        records.put(&[record(n, 1)]).unwrap();
    }
    for n in 100..105u128 {
        records.put(&[record(n, 2)]).unwrap();
    }
    for n in 200..300u128 {
        records.put(&[record(n, 3)]).unwrap();
    }
    let retention = Retention {
        count_max: 25,
        ..Retention::default()
    };
    assert_eq!(records.retain(retention, 1).unwrap(), 180);
    let left = |org| {
        let found = records
            .list(OrgId::from_bits(org), &RecordFilter::default(), 500)
            .unwrap();
        numbers(&found.0)
    };
    assert_eq!(left(1), (90..100).rev().collect::<Vec<_>>(), "its newest");
    assert_eq!(left(2).len(), 5);
    assert_eq!(left(3).len(), 10);
    assert_eq!(records.retain(retention, 1).unwrap(), 0);
}
