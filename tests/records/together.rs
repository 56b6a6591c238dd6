//! What every records store answers about many records.

use control::records::credential_use::{CredentialUse, SOURCES_MAX};
use proto::record::MeterSpend;

use super::*;

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

pub fn kept_tallies_say_what_the_records_say(records: &Records) {
    insert(records, 0..100);
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

/// Both what tallies keep and what is read from records count as errors what broke off too.
pub fn what_broke_off_is_an_error_and_a_used_up_budget_a_refusal(records: &Records) {
    let ends = [
        ("upstream-unreachable", Some(200), (1, 0)),
        ("upstream-timeout", Some(404), (1, 0)),
        ("filter-not-json", Some(200), (1, 0)),
        ("filter-not-json", Some(422), (0, 0)),
        ("gateway-stopped", None, (1, 0)),
        ("client-aborted", Some(200), (0, 0)),
        ("client-aborted", None, (0, 0)),
        ("proxy-access-granted", Some(503), (1, 0)),
        ("proxy-access-granted", Some(404), (0, 0)),
        ("budget-exhausted", Some(402), (0, 1)),
        ("rate-limited", Some(429), (0, 1)),
    ];
    let batch = (1u128..).zip(ends).map(|(n, (code, status, _))| {
        let mut record = record(n, 1);
        (record.code, record.status) = (code.into(), status);
        // Each is a group of its own.
        record.config_version = n as u64;
        record
    });
    let batch = batch.collect::<Vec<_>>();
    records.insert(&batch).unwrap();
    for condition in [None, Some(field("method", "GET"))] {
        let mut asked = question(Dimension::Version);
        asked.limit = 20;
        asked.filter.conditions = condition.into_iter().collect();
        let found = records.aggregate(&asked).unwrap();
        assert_eq!(found.groups.len(), ends.len());
        for (n, (code, status, expected)) in (1..).zip(ends) {
            let mut groups = found.groups.iter();
            let group = groups.find(|group| group.value == n.to_string()).unwrap();
            let total = &group.total;
            assert_eq!((total.errors, total.refused), expected, "{code} {status:?}");
        }
    }
    let mut asked = question(Dimension::Version);
    (asked.order, asked.limit) = (Order::Errors, 5);
    let found = records.aggregate(&asked).unwrap();
    assert!(found.groups.iter().all(|group| group.total.errors == 1));
}

pub fn the_largest_groups_come_first(records: &Records) {
    insert(records, 0..30);
    insert(records, 30..31);
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

pub fn spans_of_time_sum_to_the_whole(records: &Records) {
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

pub fn the_use_of_a_credential_is_told(records: &Records) {
    const NOW_US: i64 = 1_795_000_000_000_000;
    let used = |n: u128, ago_s: i64, source: Option<&str>| {
        let mut record = record(n, 1);
        record.started_at_us = NOW_US - ago_s * 1_000_000;
        record.proxy_credential_id = Some(CredentialId::from_bits(70));
        record.target_credential_id = Some(CredentialId::from_bits(71));
        record.source_address = source.map(str::to_owned);
        record
    };
    let mut foreign = used(1, 5, Some("192.0.2.66"));
    foreign.proxy_credential_id = Some(CredentialId::from_bits(69));
    foreign.target_credential_id = None;
    records
        .insert(&[
            foreign,
            used(2, 10, Some("192.0.2.1")),
            used(3, 20, Some("192.0.2.2")),
            used(4, 30, Some("192.0.2.2")),
            used(5, 40, None),
            used(6, 86_300, Some("192.0.2.0/24")),
            used(7, 86_500, Some("192.0.2.9")),
        ])
        .unwrap();
    let of = |credential: u128, now_us: i64| {
        let credential = CredentialId::from_bits(credential);
        records.credential_use(ORG, credential, now_us).unwrap()
    };
    let expected = CredentialUse {
        last_used_us: Some(NOW_US - 10_000_000),
        used_24h: 5,
        sources: ["192.0.2.2", "192.0.2.0/24", "192.0.2.1"]
            .map(str::to_owned)
            .to_vec(),
        sources_cut: false,
        complete: true,
    };
    assert_eq!(of(70, NOW_US), expected);
    assert_eq!(of(71, NOW_US), expected, "on either side");
    let late = of(70, NOW_US + 2 * 86_400_000_000);
    assert_eq!(late.last_used_us, expected.last_used_us);
    assert_eq!((late.used_24h, late.sources.len()), (0, 0));
    let never = of(72, NOW_US);
    let complete = CredentialUse {
        complete: true,
        ..CredentialUse::default()
    };
    assert_eq!(never, complete);
    // Addresses are bounded, requests are counted whole.
    let many: Vec<_> = (0..SOURCES_MAX as u128 + 20)
        .map(|n| used(100 + n, 50, Some(&format!("198.51.100.{n}"))))
        .collect();
    records.insert(&many).unwrap();
    let found = of(70, NOW_US);
    assert_eq!(found.used_24h, 5 + many.len() as u64);
    assert!(
        found.sources_cut && found.sources.len() == SOURCES_MAX - 1,
        "{found:?}"
    );
    assert_eq!(found.sources[0], "192.0.2.2");
}

/// A record of the comparison: values, times and durations in no common order.
fn mixed(n: u128) -> Record {
    let mut record = record(n, 1);
    let pick = |of: u128, salt: u128| (n * 7_919 + salt) % of;
    record.started_at_us = 1_795_000_000_000_000 + pick(7_200, 3) as i64 * 1_000_000 + n as i64;
    record.total_us = [3, 900, 15_000, 77_000, 1_200_000][pick(5, 1) as usize] + n as u64 * 13;
    record.status = [Some(200), Some(204), Some(404), Some(502), None][pick(5, 2) as usize];
    record.upstream_status = record.status.filter(|status| *status != 404);
    record.code = match pick(3, 9) {
        0 => "proxy-access-granted".into(),
        1 => "rate-limited".into(),
        _ => "proxy-inactive".into(),
    };
    record.path = format!("/v1/{}", pick(17, 4));
    record.node = format!("gw-{}", pick(2, 5)).into();
    record.config_version = 1 + n as u64 / 100;
    record.method = if pick(2, 6) == 0 { "GET" } else { "POST" }.into();
    record.source_address = (pick(4, 7) > 0).then(|| format!("192.0.2.{}", pick(5, 8)));
    record.user_agent = Some(format!("agent/{}", pick(3, 1)));
    record.request_bytes = n as u64;
    record.response_bytes = 1_000 - n as u64;
    record.attempts = pick(3, 2) as u32;
    record.client_aborted = pick(9, 1) == 0;
    let spends = (0..pick(3, 4)).map(|meter| MeterSpend {
        meter: format!("mtr_{meter}").into(),
        tokens: (meter as u64 + 1) * n as u64,
    });
    record.meters = spends.collect();
    record
}

/// The same records give the same answers in every store, whatever is asked.
pub fn both_stores_answer_the_same(one: &Records, other: &Records) {
    let batch: Vec<_> = (0..500).map(mixed).collect();
    for records in [one, other] {
        for part in batch.chunks(70) {
            records.insert(part).unwrap();
        }
    }
    let dimensions = Dimension::NAMES.iter().map(|(_, by)| *by);
    for by in dimensions.chain([Dimension::All]) {
        for (at, (name, order)) in Order::NAMES.into_iter().enumerate() {
            let mut asked = question(by);
            asked.from_s = 1_795_000_000 / 60 * 60;
            asked.to_s = asked.from_s + 7_200;
            asked.order = order;
            asked.limit = [1, 3, 100][at % 3];
            asked.bucket_s = [None, Some(60), Some(1_000)][at / 2 % 3];
            if at % 2 == 1 {
                asked.filter.conditions = vec![field("duration_ms_min", "1")];
            }
            let (one, other) = (
                one.aggregate(&asked).unwrap(),
                other.aggregate(&asked).unwrap(),
            );
            assert!(!one.groups.is_empty());
            assert_eq!(one, other, "{by:?} {name}");
        }
    }
}
