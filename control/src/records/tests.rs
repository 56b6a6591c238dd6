//! The records store keeps, finds and forgets as it says.

use proto::id::{CredentialId, ProxyId};

use super::*;

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

fn open() -> (tempfile::TempDir, Records) {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(&dir.path().join("records.db")).unwrap();
    (dir, records)
}

fn numbers(records: &[Record]) -> Vec<u128> {
    records.iter().map(|r| r.request_id.bits()).collect()
}

const ORG: OrgId = OrgId::from_bits(1);

#[test]
fn a_batch_may_come_twice() {
    let (dir, records) = open();
    let batch: Vec<_> = (1..=4).map(|n| record(n, 1)).collect();
    assert_eq!(records.insert(&batch).unwrap(), 4);
    assert_eq!(records.insert(&batch[2..]).unwrap(), 0);
    assert_eq!(
        records.get(ORG, RequestId::from_bits(3)).unwrap(),
        Some(batch[2].clone())
    );
    drop(records);
    let again = Records::open(&dir.path().join("records.db")).unwrap();
    assert_eq!(
        again.get(ORG, RequestId::from_bits(3)).unwrap(),
        Some(batch[2].clone())
    );
}

#[test]
fn another_organisation_sees_nothing() {
    let (_dir, records) = open();
    records.insert(&[record(1, 1)]).unwrap();
    let other = OrgId::from_bits(2);
    assert_eq!(records.get(other, RequestId::from_bits(1)).unwrap(), None);
    assert!(
        records
            .list(other, &RecordFilter::default(), 10)
            .unwrap()
            .0
            .is_empty()
    );
}

#[test]
fn filters_select() {
    let (_dir, records) = open();
    let batch: Vec<_> = (0..12).map(|n| record(n, 1)).collect();
    records.insert(&batch).unwrap();
    let check = |filter: RecordFilter, expected: &[u128]| {
        let (found, next) = records.list(ORG, &filter, 100).unwrap();
        assert_eq!(numbers(&found), expected, "{filter:?}");
        assert_eq!(next, None);
    };
    check(
        RecordFilter::default(),
        &[11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
    );
    check(
        by(|filter| filter.proxy = Some(ProxyId::from_bits(0))),
        &[9, 6, 3, 0],
    );
    check(
        by(|filter| filter.credential = Some(CredentialId::from_bits(4))),
        &[9, 4],
    );
    check(
        by(|filter| filter.status = "4xx".parse().ok()),
        &[11, 9, 7, 5, 3, 1],
    );
    check(
        by(|filter| filter.status = "200".parse().ok()),
        &[10, 8, 6, 4, 2, 0],
    );
    check(by(|filter| filter.status = "500".parse().ok()), &[]);
    let limited = by(|filter| {
        filter.code = Some("rate-limited".into());
        filter.from_us = Some(3_000);
    });
    check(limited, &[11, 9, 7]);
    check(
        by(|filter| (filter.from_us, filter.to_us) = (Some(1_000), Some(2_000))),
        &[3, 2],
    );
    let early = by(|filter| {
        filter.proxy = Some(ProxyId::from_bits(0));
        filter.status = "2xx".parse().ok();
        filter.to_us = Some(4_000);
    });
    check(early, &[6, 0]);
}

fn by(set: impl FnOnce(&mut RecordFilter)) -> RecordFilter {
    let mut filter = RecordFilter::default();
    set(&mut filter);
    filter
}

#[test]
fn pages_join_to_the_whole() {
    let (_dir, records) = open();
    let batch: Vec<_> = (0..11).map(|n| record(n, 1)).collect();
    records.insert(&batch).unwrap();
    for limit in [1, 2, 3, 10, 11, 12] {
        let (mut seen, mut filter) = (Vec::new(), RecordFilter::default());
        loop {
            let (page, next) = records.list(ORG, &filter, limit).unwrap();
            seen.extend(numbers(&page));
            match next {
                // A cursor survives its trip through the API.
                Some(cursor) => filter.after = cursor.to_string().parse().ok(),
                None => break,
            }
        }
        assert_eq!(seen, (0..11).rev().collect::<Vec<_>>(), "limit {limit}");
    }
}

#[test]
fn old_and_surplus_records_go() {
    let (_dir, records) = open();
    let batch: Vec<_> = (0..10).map(|n| record(n, 1)).collect();
    records.insert(&batch).unwrap();
    let retention = |age_us, count_max| Retention {
        age_max: Duration::from_micros(age_us),
        count_max,
    };
    let left = || numbers(&records.list(ORG, &RecordFilter::default(), 100).unwrap().0);
    assert_eq!(records.retain(retention(4_000, 100), 4_000).unwrap(), 0);
    assert_eq!(records.retain(retention(3_000, 100), 4_000).unwrap(), 2);
    assert_eq!(left(), [9, 8, 7, 6, 5, 4, 3, 2]);
    assert_eq!(records.retain(retention(10_000, 3), 4_000).unwrap(), 5);
    assert_eq!(left(), [9, 8, 7]);
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
        Records::open(&path),
        Err(RecordsError::Layout { found: 9 })
    ));
}
