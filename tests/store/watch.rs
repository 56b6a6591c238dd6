//! Cases of watches.

use std::time::Duration;

use proto::store::{Event, LeaseId, Op, Revision};

use crate::AnyStore;
use crate::steps::{apply, check_refused, delete, expect, get, next, put, revision, told, watch};

pub async fn from_the_past(store: AnyStore) {
    put(&*store, "w/a", "1").await;
    let second = put(&*store, "w/a", "2").await;
    let third = delete(&*store, "w/a").await;
    let mut watch = watch(&*store, "w/", second).await;
    expect(&mut watch, second, &["w/a=2"]).await;
    expect(&mut watch, third, &["-w/a"]).await;
    let fourth = put(&*store, "w/a", "4").await;
    expect(&mut watch, fourth, &["w/a=4"]).await;
}

pub async fn from_now(store: AnyStore) {
    let before = put(&*store, "w/a", "1").await;
    let mut watch = watch(&*store, "w/", before.next()).await;
    let at = put(&*store, "w/a", "2").await;
    let change = next(&mut watch).await;
    assert_eq!(change.revision, at);
    let found = get(&*store, "w/a").await;
    assert_eq!(
        change.events,
        [Event::Put(found.clone())],
        "a change tells all of a key"
    );
    assert_eq!((found.create_revision, found.version), (before, 2));
}

pub async fn from_the_future(store: AnyStore) {
    let before = put(&*store, "w/a", "1").await;
    let mut watch = watch(&*store, "w/", before.next().next()).await;
    put(&*store, "w/a", "2").await;
    let at = put(&*store, "w/a", "3").await;
    expect(&mut watch, at, &["w/a=3"]).await;
}

pub async fn one_change_per_revision(store: AnyStore) {
    let before = put(&*store, "w/old", "1").await;
    let mut live = watch(&*store, "w/", before.next()).await;
    let ops = vec![
        Op::put("w/z", "1"),
        Op::Delete("w/old".into()),
        Op::put("elsewhere", "1"),
        Op::put("w/a", "1"),
        Op::Delete("w/never".into()),
    ];
    let first = apply(&*store, ops).await;
    let second = apply(&*store, vec![Op::put("w/z", "2"), Op::put("w/a", "2")]).await;
    let mut late = watch(&*store, "w/", first).await;
    for watch in [&mut live, &mut late] {
        expect(watch, first, &["w/z=1", "-w/old", "w/a=1"]).await;
        expect(watch, second, &["w/z=2", "w/a=2"]).await;
    }
}

pub async fn prefix_only(store: AnyStore) {
    let from = revision(&*store).await.next();
    let mut some = watch(&*store, "w/", from).await;
    let mut every = watch(&*store, "", from).await;
    let first = put(&*store, "v/a", "1").await;
    let second = put(&*store, "w", "1").await;
    let third = put(&*store, "w/", "1").await;
    let fourth = put(&*store, "w0", "1").await;
    let fifth = put(&*store, "w/\u{10ffff}", "1").await;
    expect(&mut some, third, &["w/=1"]).await;
    expect(&mut some, fifth, &["w/\u{10ffff}=1"]).await;
    for revision in [first, second, third, fourth, fifth] {
        assert_eq!(next(&mut every).await.revision, revision);
    }
}

pub async fn catches_up(store: AnyStore) {
    // Enough for several readings, and still going on when the watch reaches the present.
    const COUNT: usize = 600;
    let from = revision(&*store).await.next();
    for n in 0..COUNT / 2 {
        put(&*store, &format!("w/{}", n % 7), n.to_string()).await;
    }
    let mut watch = watch(&*store, "w/", from).await;
    let writes = async {
        for n in COUNT / 2..COUNT {
            put(&*store, &format!("w/{}", n % 7), n.to_string()).await;
        }
    };
    let reads = async {
        let mut revision = from;
        for n in 0..COUNT {
            let (found, events) = told(&next(&mut watch).await);
            assert_eq!(
                (found, events),
                (revision, vec![format!("w/{}={n}", n % 7)])
            );
            revision = revision.next();
        }
    };
    tokio::join!(writes, reads);
}

pub async fn large_changes(store: AnyStore) {
    let from = revision(&*store).await.next();
    let mut live = watch(&*store, "w/", from).await;
    for n in 0..6 {
        put(&*store, &format!("w/{n}"), vec![7; 1_000_000]).await;
    }
    let mut late = watch(&*store, "w/", from).await;
    for watch in [&mut live, &mut late] {
        for n in 0..6 {
            let change = next(watch).await;
            let [Event::Put(found)] = &change.events[..] else {
                panic!("one put")
            };
            assert_eq!(
                (found.key.as_str(), found.value.len()),
                (&*format!("w/{n}"), 1_000_000)
            );
        }
    }
}

pub async fn given_up(store: AnyStore) {
    let from = revision(&*store).await.next();
    let mut watch = watch(&*store, "w/", from).await;
    let mut seen = Vec::new();
    let mut last = from;
    for n in 0..50 {
        last = put(&*store, "w/a", n.to_string()).await;
        // Given up at whatever point it has reached.
        let patience = Duration::from_micros(n * 20);
        if let Ok(change) = tokio::time::timeout(patience, watch.next()).await {
            seen.push(change.expect("the watch goes on").revision);
        }
    }
    while seen.last() != Some(&last) {
        seen.push(next(&mut watch).await.revision);
    }
    let expected: Vec<Revision> = (from.0..=last.0).map(Revision).collect();
    assert_eq!(seen, expected);
}

pub async fn refused(store: AnyStore) {
    let refused = store.watch("w/", Revision(0)).await.map(|_| ());
    check_refused("a watch from revision zero", "Invalid", refused);
    let refused = store
        .watch(&"w".repeat(2000), Revision(1))
        .await
        .map(|_| ());
    check_refused("a watch of an overlong prefix", "TooLarge", refused);
    check_refused(
        "a renewal of no lease",
        "LeaseNotFound",
        store.keep_alive(LeaseId(0)).await,
    );
}
