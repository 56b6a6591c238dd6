//! Many records together, whoever follows them, and every field by which they are found.

use proto::record::{Attempt, AttemptFailure, QueryField};

use super::*;
use crate::records::aggregate::{Aggregates, Order, Question};
use crate::records::condition::FIELDS;
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

fn insert(records: &Records, range: std::ops::Range<u128>) {
    let batch: Vec<_> = range.map(|n| record(n, 1)).collect();
    for batch in batch.chunks(7) {
        records.insert(batch).unwrap();
    }
}

#[test]
fn kept_tallies_say_what_the_records_say() {
    let (_dir, records) = open();
    insert(&records, 0..100);
    for (by, expected) in [
        (Dimension::All, vec![("".to_owned(), 100)]),
        (
            Dimension::Status,
            vec![("200".to_owned(), 50), ("429".to_owned(), 50)],
        ),
        (
            Dimension::Code,
            vec![
                ("proxy-access-granted".to_owned(), 50),
                ("rate-limited".to_owned(), 50),
            ],
        ),
    ] {
        let found = records.aggregate(&question(by)).unwrap();
        assert_eq!(counts(&found), (expected.clone(), 0), "{by:?}");
        // A condition that all fulfil makes the same question one for the records themselves.
        let mut slow = question(by);
        slow.filter.conditions = vec![field("method", "GET")];
        let read = records.aggregate(&slow).unwrap();
        assert_eq!(read.groups, found.groups, "{by:?}");
    }
    let status = records.aggregate(&question(Dimension::Status)).unwrap();
    assert_eq!(status.groups[0].total.refused, 0);
    assert_eq!(status.groups[1].total.refused, 50);
    assert_eq!(status.groups[0].total.durations.quantile(0.99), Some(5));
}

#[test]
fn each_block_counts_once_whatever_happens() {
    let (dir, records) = open();
    let path = dir.path().join("records.db");
    let batch: Vec<_> = (0..10).map(|n| record(n, 1)).collect();
    records.insert(&batch).unwrap();
    records.insert(&batch).unwrap();
    let all = |records: &Records| records.aggregate(&question(Dimension::All)).unwrap();
    assert_eq!(
        counts(&all(&records)).0[0].1,
        10,
        "a batch that comes again"
    );
    drop(records);
    let records = Records::open(&path).unwrap();
    assert_eq!(
        counts(&all(&records)).0[0].1,
        10,
        "not written before the end"
    );
    records.settle_tallies(0, 0).unwrap();
    assert_eq!(counts(&all(&records)).0[0].1, 10, "written");
    insert(&records, 10..15);
    drop(records);
    let records = Records::open(&path).unwrap();
    assert_eq!(counts(&all(&records)).0[0].1, 15, "partly written");
    // Numbers of blocks are never used again, though all of them go.
    let nothing = Retention {
        count_max: 0,
        ..Retention::default()
    };
    records.retain(nothing, 1).unwrap();
    insert(&records, 15..20);
    drop(records);
    let records = Records::open(&path).unwrap();
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
    let records = Records::open(&path).unwrap();
    let found = records.aggregate(&question(Dimension::All)).unwrap();
    assert_eq!(counts(&found).0[0].1, 50);
}

#[test]
fn the_largest_groups_come_first_and_the_others_together() {
    let (_dir, records) = open();
    insert(&records, 0..30);
    insert(&records, 30..31);
    let mut asked = question(Dimension::Proxy);
    asked.limit = 1;
    let found = records.aggregate(&asked).unwrap();
    assert_eq!(
        counts(&found),
        (vec![(ProxyId::from_bits(0).to_string(), 11)], 20)
    );
    asked.order = Order::Refused;
    asked.filter.status = "4xx".parse().ok();
    let found = records.aggregate(&asked).unwrap();
    assert_eq!(
        counts(&found).1,
        10,
        "a class of statuses is read from records"
    );
    asked.filter.status = None;
    asked.filter.proxy = Some(ProxyId::from_bits(1));
    let found = records.aggregate(&asked).unwrap();
    assert_eq!(counts(&found).0, [(ProxyId::from_bits(1).to_string(), 10)]);
    let other = Question {
        org: OrgId::from_bits(2),
        ..question(Dimension::All)
    };
    assert!(records.aggregate(&other).unwrap().groups.is_empty());
}

#[test]
fn spans_of_time_sum_to_the_whole() {
    let (_dir, records) = open();
    let at = |n: u128, minute: i64| {
        let mut record = record(n, 1);
        record.started_at_us = minute * 60_000_000 + 1;
        record
    };
    records
        .insert(&[at(1, 0), at(2, 1), at(3, 1), at(4, 59), at(5, 60)])
        .unwrap();
    for (bucket_s, expected) in [
        (60, vec![(0, 1), (60, 2), (3_540, 1)]),
        (1_800, vec![(0, 3), (1_800, 1)]),
        (3_600, vec![(0, 4)]),
        (7, vec![(0, 1), (56, 2), (3_535, 1)]),
    ] {
        let mut asked = question(Dimension::All);
        asked.bucket_s = Some(bucket_s);
        let found = records.aggregate(&asked).unwrap();
        let group = &found.groups[0];
        let buckets: Vec<_> = group
            .buckets
            .iter()
            .map(|(at, tally)| (*at, tally.count))
            .collect();
        assert_eq!(buckets, expected, "{bucket_s}");
        assert_eq!(group.total.count, 4);
    }
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

fn field(name: &str, value: &str) -> crate::records::condition::Condition {
    let field = FIELDS.iter().find(|field| field.name == name).unwrap();
    field.condition(value).unwrap()
}

/// Every field finds the record that has the value and not the one that has another.
#[test]
fn every_field_selects() {
    let (_dir, records) = open();
    let plain = record(1, 1);
    let mut rich = record(2, 1);
    rich.proxy_credential_id = Some(CredentialId::from_bits(77));
    rich.target_credential_id = Some(CredentialId::from_bits(78));
    rich.target_credential_generation = Some("1.local.9".into());
    (rich.config_version, rich.node, rich.region) = (9, "gw-2".into(), "eu".into());
    (rich.method, rich.path) = ("POST".into(), "/v1/charges".into());
    rich.query = vec![QueryField {
        name: "expand".into(),
        value: "REDACTED".into(),
    }];
    (rich.status, rich.upstream_status) = (Some(504), Some(503));
    rich.auth_failure = Some(proto::record::AuthFailure::Expired);
    (rich.total_us, rich.request_bytes, rich.response_bytes) = (2_000_000, 100, 200);
    rich.attempts = 2;
    rich.sends = vec![Attempt {
        started_us: 1,
        connect_us: 1,
        wait_us: 1,
        reused: false,
        status: None,
        failure: Some(AttemptFailure::Reset),
    }];
    rich.limited_by = vec!["minute".into()];
    rich.shadow_rule_ids = vec![proto::id::RuleId::from_bits(5)];
    rich.filter_ids = vec![proto::id::FilterId::from_bits(6)];
    rich.source_address = Some("192.0.2.7".into());
    rich.user_agent = Some("OpenAI/Python".into());
    rich.upstream_ids = vec![proto::record::UpstreamId {
        header: "x-request-id".into(),
        value: "up-1".into(),
    }];
    rich.trace_id = Some("0af7651916cd43dd8448eb211c80319c".into());
    rich.left_gateway = Some("files.example".into());
    (rich.client_aborted, rich.scrubbed) = (true, 1);
    rich.scrub = proto::record::ScrubState::Skipped;
    let mut ended = record(3, 1);
    ended.stages = vec![proto::record::StageTime {
        stage: proto::record::Stage::Limit,
        us: 1,
    }];
    records.insert(&[plain, rich, ended]).unwrap();
    let rows = [
        ("proxy_credential", CredentialId::from_bits(77).to_string()),
        ("target_credential", CredentialId::from_bits(78).to_string()),
        ("generation", "1.local.9".into()),
        ("version", "9".into()),
        ("node", "gw-2".into()),
        ("region", "eu".into()),
        ("method", "post".into()),
        ("path", "/v1/*".into()),
        ("query", "expand".into()),
        ("upstream_status", "5xx".into()),
        ("auth_failure", "expired".into()),
        ("duration_ms_min", "2000".into()),
        ("request_bytes_min", "100".into()),
        ("response_bytes_min", "200".into()),
        ("attempts_min", "2".into()),
        ("failure", "reset".into()),
        ("limited_by", "minute".into()),
        ("rule", proto::id::RuleId::from_bits(5).to_string()),
        ("filter", proto::id::FilterId::from_bits(6).to_string()),
        ("source", "192.0.2.0/24".into()),
        ("user_agent", "openai".into()),
        ("upstream_id", "up-1".into()),
        ("trace_id", "0AF7651916CD43DD8448EB211C80319C".into()),
        ("left_gateway", "files.example".into()),
        ("client_aborted", "true".into()),
        ("scrubbed", "true".into()),
        ("scrub", "skipped".into()),
    ];
    let find = |name: &str, value: &str| {
        let filter = by(|filter| filter.conditions = vec![field(name, value)]);
        numbers(&records.list(ORG, &filter, 10).unwrap().0)
    };
    for (name, value) in &rows {
        assert_eq!(find(name, value), [2], "{name}={value}");
    }
    assert_eq!(find("duration_ms_max", "1999"), [3, 1]);
    assert_eq!(find("ended_by", "limit"), [3]);
    let tried: Vec<&str> = rows.iter().map(|(name, _)| *name).collect();
    for field in FIELDS {
        let known = tried.contains(&field.name);
        assert!(
            known || ["duration_ms_max", "ended_by"].contains(&field.name),
            "{}",
            field.name
        );
    }
}

#[actix_rt::test]
async fn followers_get_what_they_asked_for_and_hear_of_what_they_missed() {
    let (_dir, records) = open();
    let filter = by(|filter| filter.status = "429".parse().ok());
    let mut following = records.follow(ORG, filter).unwrap();
    let mut stranger = records
        .follow(OrgId::from_bits(2), RecordFilter::default())
        .unwrap();
    records.insert(&[record(0, 1), record(1, 1)]).unwrap();
    records.insert(&[record(0, 1), record(1, 1)]).unwrap();
    let Some(Tail::Record(found)) = following.next().await else {
        panic!("a record");
    };
    assert_eq!(found.request_id, RequestId::from_bits(1));
    // Nobody waits for one who does not read.
    let many: Vec<_> = (0..4_000).map(|n| record(2 * n + 11, 1)).collect();
    records.insert(&many).unwrap();
    assert_eq!(following.next().await, Some(Tail::Missed(4_000 - 1_024)));
    let mut came = 0;
    while came < 1_024 && matches!(following.next().await, Some(Tail::Record(_))) {
        came += 1;
    }
    assert_eq!(came, 1_024);
    drop(records);
    assert_eq!(following.next().await, None);
    assert_eq!(stranger.next().await, None);
}

#[test]
fn followers_are_bounded_and_leave_their_place() {
    let (_dir, records) = open();
    let follow = || records.follow(ORG, RecordFilter::default());
    let mut all: Vec<_> = std::iter::from_fn(follow).take(1_000).collect();
    assert!(all.len() < 1_000 && follow().is_none());
    all.pop();
    assert!(follow().is_some());
}

/// One that is called much does not push out the records of one that is called little.
#[test]
fn a_busy_organisation_loses_its_own_records() {
    let (_dir, records) = open();
    for n in 0..100u128 {
        records.insert(&[record(n, 1)]).unwrap();
    }
    for n in 100..105u128 {
        records.insert(&[record(n, 2)]).unwrap();
    }
    for n in 200..300u128 {
        records.insert(&[record(n, 3)]).unwrap();
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
