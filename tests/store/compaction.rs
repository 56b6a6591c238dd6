//! Cases of compaction.

use proto::store::{Range, Revision, StoreError};

use crate::AnyStore;
use crate::steps::{
    all, check_refused, delete, end, expect, get, is_absent, keys, page, put, revision, watch,
};

pub async fn history_is_gone(store: AnyStore) {
    let old = put(&*store, "a", "1").await;
    let kept = put(&*store, "a", "2").await;
    put(&*store, "a", "3").await;
    store.compact(kept).await.expect("history is compacted");
    let at = |revision| Range {
        at: Some(revision),
        ..all("a")
    };
    check_refused("a range below", "Compacted", store.range(at(old)).await);
    let found = page(&*store, at(kept)).await;
    assert_eq!(
        &found.items[0].value[..],
        b"2",
        "the compacted revision itself can be read"
    );
    let mut below = watch(&*store, "a", old).await;
    let error = end(&mut below).await;
    assert_eq!(error, StoreError::Compacted(Some(kept)), "a watch below");
}

pub async fn values_stay(store: AnyStore) {
    let first = put(&*store, "stays", "1").await;
    put(&*store, "changes", "1").await;
    put(&*store, "goes", "1").await;
    let changed = put(&*store, "changes", "2").await;
    let gone = delete(&*store, "goes").await;
    store.compact(gone).await.expect("history is compacted");
    let check = async || {
        let stays = get(&*store, "stays").await;
        assert_eq!((stays.create_revision, stays.version), (first, 1));
        let changes = get(&*store, "changes").await;
        assert_eq!((changes.mod_revision, changes.version), (changed, 2));
        assert!(is_absent(&*store, "goes").await);
        assert_eq!(keys(&page(&*store, all("")).await), ["changes", "stays"]);
    };
    check().await;
    let last = put(&*store, "changes", "3").await;
    store.compact(last).await.expect("history is compacted");
    assert_eq!(get(&*store, "changes").await.version, 3);
    assert_eq!(keys(&page(&*store, all("")).await), ["changes", "stays"]);
    assert_eq!(revision(&*store).await, last, "a compaction is no change");
}

pub async fn live_watch(store: AnyStore) {
    let from = revision(&*store).await.next();
    let mut watch = watch(&*store, "w/", from).await;
    let first = put(&*store, "w/a", "1").await;
    expect(&mut watch, first, &["w/a=1"]).await;
    let elsewhere = put(&*store, "elsewhere", "1").await;
    store
        .compact(elsewhere)
        .await
        .expect("history is compacted");
    let second = put(&*store, "w/a", "2").await;
    expect(&mut watch, second, &["w/a=2"]).await;
}

pub async fn watch_from_it(store: AnyStore) {
    put(&*store, "w/a", "1").await;
    let kept = put(&*store, "w/a", "2").await;
    let last = put(&*store, "w/a", "3").await;
    store.compact(kept).await.expect("history is compacted");
    let mut watch = watch(&*store, "w/", kept).await;
    expect(&mut watch, kept, &["w/a=2"]).await;
    expect(&mut watch, last, &["w/a=3"]).await;
}

pub async fn repeated(store: AnyStore) {
    let first = put(&*store, "a", "1").await;
    let last = put(&*store, "a", "2").await;
    check_refused(
        "a revision not reached",
        "Invalid",
        store.compact(last.next()).await,
    );
    check_refused("revision zero", "Invalid", store.compact(Revision(0)).await);
    for revision in [last, last, first] {
        store
            .compact(revision)
            .await
            .expect("what is done may be asked for again");
    }
    let at = Range {
        at: Some(first),
        ..all("a")
    };
    check_refused("a range below", "Compacted", store.range(at).await);
}
