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

/// What is counted is neither missed nor counted twice while it is written to the file.
#[test]
fn sums_are_whole_while_records_come_and_are_written() {
    let (_dir, records) = open();
    let counted = || {
        let found = records.aggregate(&question(Dimension::All)).unwrap();
        counts(&found).0.first().map_or(0, |(_, count)| *count)
    };
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for n in 0..150 {
                insert(&records, n * 7..n * 7 + 7);
                if n % 3 == 0 {
                    records.settle_tallies(0, 0).unwrap();
                }
            }
        });
        let mut last = 0;
        while !writing.is_finished() {
            let count = counted();
            assert!(count >= last && count % 7 == 0, "{last} {count}");
            last = count;
        }
    });
    assert_eq!(counted(), 1_050);
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
         DROP TABLE tallies; DROP TABLE tallied; ALTER TABLE heads DROP COLUMN bytes;
         PRAGMA user_version = 2",
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

/// Hours answer where minutes are gone, and minutes at the edges where they are there.
#[test]
fn whole_hours_and_minutes_at_the_edges_are_summed() {
    let (_dir, records) = open();
    let minute_us = 60_000_000;
    let batch = (0..600).map(|n: u128| Record {
        started_at_us: n as i64 * minute_us,
        ..record(n, 1)
    });
    records.put(&batch.collect::<Vec<_>>()).unwrap();
    let asked = |from_s, to_s, bucket_s| {
        let question = Question {
            from_s,
            to_s,
            bucket_s,
            ..question(Dimension::All)
        };
        let found = records.aggregate(&question).unwrap();
        let counted: u64 = counts(&found).0.iter().map(|(_, count)| count).sum();
        (counted, found.complete_from_s)
    };
    let all = |settled: &str| {
        for (from_s, to_s) in [(0, 36_000), (60, 35_940), (7_140, 7_260), (600, 1_200)] {
            let minutes = ((to_s - from_s) / 60) as u64;
            assert_eq!(asked(from_s, to_s, None), (minutes, from_s), "{settled}");
            assert_eq!(
                asked(from_s, to_s, Some(600)),
                (minutes, from_s),
                "{settled}"
            );
        }
    };
    all("in memory");
    records.settle_tallies(0, 0).unwrap();
    all("written");
    // Minutes of the first two and a half hours are dropped.
    records.settle_tallies(0, 7 * 86_400 + 9_000).unwrap();
    assert_eq!(asked(0, 36_000, None), (600, 0), "hours alone");
    assert_eq!(asked(0, 35_940, None), (599, 0), "minutes at the end");
    assert_eq!(
        asked(60, 36_000, None),
        (540, 3_600),
        "of the first hour nothing is left"
    );
    assert_eq!(asked(0, 36_000, Some(600)), (450, 9_000), "minutes alone");
    assert_eq!(asked(0, 36_000, Some(7_200)), (600, 0));
}

#[test]
fn sums_take_a_bounded_room_and_who_has_few_keeps_all() {
    let (dir, records) = open();
    let of = |n: u128, org: u128, proxy: u128| Record {
        started_at_us: n as i64 * 60_000_000,
        proxy_id: ProxyId::from_bits(proxy),
        ..record(n * 20 + proxy, org)
    };
    let batch = (0..600).flat_map(|n| (0..20).map(move |proxy| of(n, 1, proxy)));
    let quiet = (0..600).map(|n| of(n, 2, 0));
    let batch: Vec<_> = batch.chain(quiet).collect();
    batch.chunks(1_000).for_each(|batch| {
        records.put(batch).unwrap();
    });
    records.settle_tallies(0, 0).unwrap();
    let bytes = |records: &Sqlite| -> u64 {
        let reader = locked(&records.reader);
        let bytes: i64 = reader
            .query_row(tally_room::BYTES, [], |row| row.get(0))
            .unwrap();
        bytes.unsigned_abs()
    };
    let asked = |records: &Sqlite, org, bucket_s| {
        let question = Question {
            org: OrgId::from_bits(org),
            to_s: 36_000,
            bucket_s,
            ..question(Dimension::All)
        };
        let found = records.aggregate(&question).unwrap();
        let groups = found.groups.iter().flat_map(|group| &group.buckets);
        let whole = groups.filter(|(start_s, _)| *start_s >= found.complete_from_s);
        let count: u64 = whole.map(|(_, one)| one.count).sum();
        (count, found.complete_from_s)
    };
    let before = bytes(&records);
    records.keep_tallies_within(before).unwrap();
    assert_eq!(asked(&records, 1, Some(60)), (12_000, 0));
    records.keep_tallies_within(before / 2).unwrap();
    let after = bytes(&records);
    assert!(
        after <= before / 2 && after * 3 > before,
        "{before} {after}"
    );
    let (count, from_s) = asked(&records, 1, Some(60));
    assert!((60..36_000).contains(&from_s), "{from_s}");
    assert_eq!(i64::try_from(count).unwrap(), (36_000 - from_s) / 60 * 20);
    assert_eq!(asked(&records, 1, Some(3_600)), (12_000, 0), "by the hour");
    assert_eq!(asked(&records, 2, Some(60)), (600, 0), "who has few");
    // It is known after a start.
    drop(records);
    let records = Sqlite::open(&dir.path().join("records.db")).unwrap();
    assert_eq!(asked(&records, 1, Some(60)), (count, from_s));
    records.keep_tallies_within(20_000).unwrap();
    assert!(asked(&records, 1, Some(3_600)).1 > 0, "hours go as well");
    assert!(bytes(&records) < 40_000);
}

/// A value that is counted is counted under its name in each span, and what is one too many among
/// the rest.
#[test]
fn more_values_than_are_told_apart_are_counted_among_the_rest() {
    let (_dir, records) = open();
    let of = |n: u128, path: u128| Record {
        path: format!("/{path}"),
        started_at_us: n as i64 * 60_000_000,
        ..record(n, 1)
    };
    // The newest are read first: as many values as are told apart, then those again and others.
    let first = (0..10_000u128).map(|n| Record {
        started_at_us: 3_599_000_000,
        ..of(n, n)
    });
    let first: Vec<_> = first.collect();
    first.chunks(1_000).for_each(|batch| {
        records.put(batch).unwrap();
    });
    let known: Vec<_> = (0..50).map(|n| of(20_000 + n % 50, 7)).collect();
    let known = known.into_iter().map(|one| Record {
        started_at_us: (one.request_id.bits() as i64 - 20_000) * 60_000_000,
        ..one
    });
    records.put(&known.collect::<Vec<_>>()).unwrap();
    let further = (0..30u128).map(|n| Record {
        started_at_us: n as i64 * 60_000_000,
        ..of(30_000 + n, 50_000 + n)
    });
    records.put(&further.collect::<Vec<_>>()).unwrap();
    let found = records.aggregate(&question(Dimension::Path)).unwrap();
    let (groups, rest) = counts(&found);
    assert_eq!(groups[0], ("/7".to_owned(), 51));
    assert!(
        groups.iter().all(|(value, _)| !value.is_empty()),
        "{groups:?}"
    );
    assert_eq!(
        groups.iter().map(|(_, count)| count).sum::<u64>() + rest,
        10_080
    );
    let by_minute = Question {
        bucket_s: Some(60),
        limit: 1,
        ..question(Dimension::Path)
    };
    let found = records.aggregate(&by_minute).unwrap();
    assert_eq!(found.groups[0].value, "/7");
    assert_eq!(found.groups[0].total.count, 51);
    assert_eq!(found.groups[0].buckets.len(), 51);
    let rest = found.rest.unwrap();
    assert_eq!(rest.total.count, 10_029);
    assert_eq!(
        rest.buckets.iter().map(|(_, one)| one.count).sum::<u64>(),
        10_029
    );
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
