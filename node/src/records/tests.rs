//! Records leave their worker in batches, bounded in number and bytes.

use super::*;
use proto::id::{OrgId, ProxyId, RequestId};
use proto::record::{Captured, Payload};

pub fn record(n: u128) -> Record {
    let json = serde_json::json!({
        "request_id": RequestId::from_bits(n), "org_id": OrgId::from_bits(1),
        "proxy_id": ProxyId::from_bits(1), "config_version": 1, "node": "n",
        "region": "local", "method": "GET", "path": "/", "query": [], "code": "x",
        "started_at_us": 0, "total_us": 5, "stages": [], "request_bytes": 0,
        "response_bytes": 0, "upstream_request_bytes": 0, "upstream_response_bytes": 0,
        "attempts": 1, "denials": [], "shadow_rule_ids": [], "filter_ids": [],
        "upstream_ids": [], "client_aborted": false, "scrubbed": 0
    });
    serde_json::from_value(json).unwrap()
}

fn numbers(batch: &[Arc<Record>]) -> Vec<u128> {
    batch.iter().map(|r| r.request_id.bits()).collect()
}

#[actix_rt::test]
async fn records_leave_when_their_batch_is_full_old_or_its_worker_ends() {
    let (sender, mut batches) = queue();
    let buffer = RecordBuffer::new(sender, Metrics::default());
    for n in 0..BATCH_MAX as u128 + 1 {
        buffer.push(Arc::new(record(n)));
    }
    let full = batches.next().await.unwrap().0;
    assert_eq!(numbers(&full), (0..BATCH_MAX as u128).collect::<Vec<_>>());
    let old = batches.next().await.unwrap().0;
    assert_eq!(numbers(&old), [BATCH_MAX as u128]);
    buffer.push(Arc::new(record(7)));
    drop(buffer);
    assert_eq!(numbers(&batches.next().await.unwrap().0), [7]);
    assert!(batches.next().await.is_none());
}

#[actix_rt::test]
async fn who_wants_no_records_has_none_and_nothing_counts_as_lost() {
    let (sender, mut batches) = queue();
    let metrics = Metrics::default();
    let buffer = RecordBuffer::new(sender.keeping(false), metrics.clone());
    for n in 0..BATCH_MAX as u128 * 2 {
        buffer.push(Arc::new(record(n)));
    }
    drop(buffer);
    assert!(batches.next().await.is_none());
    assert_eq!(metrics.records_dropped_so_far(), 0);
}

#[actix_rt::test]
async fn large_records_travel_in_small_batches_and_the_queue_is_bounded_in_bytes_too() {
    let (sender, mut batches) = queue();
    let large = |n: u128| {
        let mut record = record(n);
        record.path = "x".repeat(200_000);
        Arc::new(record)
    };
    let count = 4 * BATCH_BYTES_MAX / 200_000;
    assert!(sender.send((0..count as u128).map(large).collect()));
    let mut seen = Vec::new();
    while seen.len() < count {
        let batch = batches.next().await.unwrap().0;
        assert!(weight_of(&batch) <= BATCH_BYTES_MAX);
        seen.extend(numbers(&batch));
    }
    assert_eq!(seen, (0..count as u128).collect::<Vec<_>>());
    let mut sent = 0;
    while sender.send(vec![large(0)]) {
        sent += 1;
    }
    assert!(sent * 200_000 <= QUEUE_BYTES_MAX && batches.is_half_full());
}

#[actix_rt::test]
async fn of_records_with_large_bodies_all_are_queued_and_most_with_their_bodies() {
    let (sender, mut batches) = queue();
    let metrics = Metrics::default();
    let buffer = RecordBuffer::new(sender, metrics.clone());
    let body = |kind: &str| Captured {
        content_type: Some(kind.into()),
        content: "x".repeat(87_000),
        ..Captured::default()
    };
    for n in 0..BATCH_MAX as u128 {
        let mut record = record(n);
        record.payload = Some(Box::new(Payload {
            request: Some(body("a/b")),
            response: Some(body("c/d")),
        }));
        buffer.push(Arc::new(record));
    }
    drop(buffer);
    let (mut seen, mut with, mut without) = (Vec::new(), 0, 0);
    while let Some((batch, _)) = batches.next().await {
        seen.extend(numbers(&batch));
        for record in &batch {
            let payload = record.payload.as_ref().unwrap();
            let request = payload.request.as_ref().unwrap();
            assert_eq!(request.content_type.as_deref(), Some("a/b"));
            match request.withheld.as_deref() {
                None => with += 1,
                Some(why) => {
                    assert_eq!((why, request.content.as_str()), ("memory", ""));
                    without += 1;
                }
            }
        }
    }
    assert_eq!(seen, (0..BATCH_MAX as u128).collect::<Vec<_>>());
    assert!(with > 300 && without > 0, "{with} {without}");
    assert_eq!(metrics.records_dropped_so_far(), 0);
}

#[actix_rt::test]
async fn a_full_queue_drops_and_counts_and_has_room_again() {
    let (sender, mut batches) = queue();
    let metrics = Metrics::default();
    let buffer = RecordBuffer::new(sender, metrics.clone());
    let dropped = || {
        let text = metrics
            .families(&Default::default())
            .text(proto::exposition::text::Form::Prometheus);
        let line = text
            .lines()
            .find(|l| l.starts_with("requestrocket_records_dropped_total"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
    };
    for n in 0..QUEUE_MAX + BATCH_MAX {
        buffer.push(Arc::new(record(n as u128)));
    }
    assert_eq!(dropped(), Some(BATCH_MAX));
    // A batch that was given out takes its room until it is stored, on disk or lost.
    let (batch, room) = batches.next().await.unwrap();
    assert_eq!(batch.len(), BATCH_MAX);
    for n in 0..BATCH_MAX {
        buffer.push(Arc::new(record(n as u128)));
    }
    assert_eq!(dropped(), Some(BATCH_MAX * 2));
    drop(room);
    for n in 0..BATCH_MAX {
        buffer.push(Arc::new(record(n as u128)));
    }
    assert_eq!(dropped(), Some(BATCH_MAX * 2));
}
