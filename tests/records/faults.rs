//! ClickHouse is gone, forgets its answers, is killed, has an older table: nothing is lost and
//! nothing counts twice.

use super::*;

/// Counts of all requests, by way of sums.
fn counted(records: &Records) -> u64 {
    let found = records.aggregate(&question(Dimension::All)).unwrap();
    found.groups.iter().map(|group| group.total.count).sum()
}

fn batch(range: std::ops::Range<u128>) -> Vec<Record> {
    range.map(|n| record(n, 1)).collect()
}

/// Sends a batch as a node does: again and again until it is acknowledged.
fn deliver(records: &Records, batch: &[Record]) -> u32 {
    let mut failures = 0;
    while let Err(error) = records.insert(batch) {
        failures += 1;
        assert!(failures < 100, "{error}");
    }
    failures
}

pub fn whatever_happens() {
    let mut server = ClickHouse::start();
    let settings = settings(&server);
    let open = || Records::in_clickhouse(settings.clone(), RUNTIME.handle().clone());
    let records = open();
    deliver(&records, &batch(0..10));

    // It has them and its answer is lost: they are sent again.
    server.lose_answers(1);
    assert!(deliver(&records, &batch(10..20)) >= 1);
    assert_eq!((all(&records).len(), counted(&records)), (20, 20));
    let raw = server.query(&format!(
        "SELECT count() FROM {}.requests",
        settings.database
    ));
    assert_eq!(raw, "30", "it took both");

    // Gone: refused in time, with the reason; back: taken, and what was there is there.
    server.kill();
    let refused = records.insert(&batch(20..30)).unwrap_err().to_string();
    assert!(refused.contains("refused"), "{refused}");
    let asked = records.get(ORG, RequestId::from_bits(1)).unwrap_err();
    assert!(
        asked.to_string().starts_with("ClickHouse does not serve"),
        "{asked}"
    );
    server.restart();
    deliver(&records, &batch(20..30));
    // Its table was taken from under us.
    server.query(&format!("DROP TABLE {}.requests SYNC", settings.database));
    deliver(&records, &batch(0..40));
    assert_eq!((all(&records).len(), counted(&records)), (40, 40));

    // Another control plane, that knows nothing of what this one has sent.
    let other = Arc::new(open());
    deliver(&other, &batch(35..50));
    assert_eq!((all(&records).len(), counted(&records)), (50, 50));
    // Many nodes at one time are one insert or few.
    let parts = |server: &ClickHouse| {
        let text = "SELECT count() FROM system.parts WHERE database = ";
        let count = server.query(&format!("{text}'{}'", settings.database));
        count.parse::<u32>().unwrap()
    };
    let before = parts(&server);
    let gathering = ClickHouseSettings {
        gather: Duration::from_secs(2),
        ..settings.clone()
    };
    let gathering = Records::in_clickhouse(gathering, RUNTIME.handle().clone());
    let gathering = Arc::new(gathering);
    RUNTIME.block_on(async {
        let batches = (0..40u128).map(|n| batch(50 + n..51 + n));
        let sent = batches.map(|batch| {
            let records = gathering.clone();
            tokio::spawn(async move { records.store(Arc::new(batch)).await })
        });
        for one in sent.collect::<Vec<_>>() {
            assert_eq!(one.await.unwrap().unwrap(), 1);
        }
    });
    let after = parts(&server);
    assert!(after <= before + 10, "{before} {after}");
    assert_eq!((all(&records).len(), counted(&records)), (90, 90));
}

/// A table as an earlier release made it: without some columns, and with another TTL.
pub fn a_table_of_an_earlier_release_gets_its_columns(server: &ClickHouse) {
    let mut settings = settings(server);
    let open = |settings: &ClickHouseSettings| {
        Records::in_clickhouse(settings.clone(), RUNTIME.handle().clone())
    };
    open(&settings).insert(&batch(0..2)).unwrap();
    let table = format!("{}.requests", settings.database);
    server.query(&format!("ALTER TABLE {table} DROP COLUMN limited_by"));
    settings.days = 99_999;
    let records = open(&settings);
    records.insert(&batch(2..4)).unwrap();
    assert_eq!(all(&records), [3, 2, 1, 0]);
    let made = server.query(&format!("SHOW CREATE TABLE {table} FORMAT TSVRaw"));
    assert!(made.contains("toIntervalDay(99999)"), "{made}");
    assert!(made.contains("`limited_by`"), "{made}");
}

pub fn what_is_too_old_or_too_large_goes(server: &ClickHouse) {
    let settings = ClickHouseSettings {
        days: 30,
        ..settings(server)
    };
    let records = Records::in_clickhouse(settings.clone(), RUNTIME.handle().clone());
    let day_us = 86_400_000_000;
    let now = jiff::Timestamp::now().as_microsecond();
    let at = |n: u128, days: i64| Record {
        started_at_us: now - days * day_us,
        ..record(n, 1)
    };
    let kept: Vec<_> = (0..4).map(|n| at(n, n as i64)).collect();
    records.insert(&kept).unwrap();
    records.insert(&[at(9, 40)]).unwrap();
    let table = format!("{}.requests", settings.database);
    server.query(&format!("OPTIMIZE TABLE {table} FINAL"));
    assert_eq!(
        all(&records),
        [0, 1, 2, 3],
        "what is too old went by itself"
    );
    let retention = |bytes_max| Retention {
        bytes_max,
        ..Retention::default()
    };
    assert_eq!(records.retain(retention(u64::MAX), now).unwrap(), 0);
    assert_eq!(all(&records).len(), 4);
    assert_eq!(records.retain(retention(1), now).unwrap(), 3);
    assert_eq!(all(&records), [0], "the newest day stays");
}

pub fn a_wrong_password_is_said(server: &ClickHouse) {
    let settings = ClickHouseSettings {
        password: "another-password-9d2e".to_owned().into(),
        ..settings(server)
    };
    let records = Records::in_clickhouse(settings, RUNTIME.handle().clone());
    let refused = records.insert(&batch(0..1)).unwrap_err().to_string();
    assert!(refused.contains("Authentication failed"), "{refused}");
    assert!(!refused.contains("9d2e"), "{refused}");
}
