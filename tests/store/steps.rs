//! The steps that cases are made of.

use std::time::Duration;

use bytes::Bytes;
use proto::store::{
    At, Change, Compare, Event, KeyValue, Op, Page, Range, Revision, Store, StoreError, Txn,
    TxnOutcome, Watch,
};

/// Longest wait for a change; far above what a busy machine needs.
const CHANGE_WITHIN: Duration = Duration::from_secs(30);

/// Runs a transaction that must be answered.
pub async fn run(store: &dyn Store, txn: Txn) -> TxnOutcome {
    store.txn(txn).await.expect("the transaction is answered")
}

/// Makes changes on no condition.
pub async fn apply(store: &dyn Store, ops: Vec<Op>) -> Revision {
    committed(
        run(
            store,
            Txn {
                ops,
                ..Txn::default()
            },
        )
        .await,
    )
}

pub async fn put(store: &dyn Store, key: &str, value: impl Into<Bytes>) -> Revision {
    apply(store, vec![Op::put(key, value)]).await
}

pub async fn delete(store: &dyn Store, key: &str) -> Revision {
    apply(store, vec![Op::Delete(key.into())]).await
}

/// A put of `k` = `value` on a condition.
pub fn put_if(compare: Compare, value: &'static str) -> Txn {
    Txn {
        compares: vec![compare],
        ops: vec![Op::put("k", value)],
        or_read: vec!["k".into()],
    }
}

pub fn committed(outcome: TxnOutcome) -> Revision {
    match outcome {
        TxnOutcome::Committed(revision) => revision,
        TxnOutcome::Conflict(_) => panic!("a conflict: {outcome:?}"),
    }
}

pub fn conflict(outcome: TxnOutcome) -> At<Vec<Option<KeyValue>>> {
    match outcome {
        TxnOutcome::Conflict(read) => read,
        TxnOutcome::Committed(_) => panic!("no conflict: {outcome:?}"),
    }
}

/// The key as it is now; it must exist.
pub async fn get(store: &dyn Store, key: &str) -> KeyValue {
    let found = store.get(key).await.expect("the key is read").value;
    found.unwrap_or_else(|| panic!("{key} exists"))
}

pub async fn is_absent(store: &dyn Store, key: &str) -> bool {
    store
        .get(key)
        .await
        .expect("the key is read")
        .value
        .is_none()
}

/// The store's revision.
pub async fn revision(store: &dyn Store) -> Revision {
    store
        .get("no such key")
        .await
        .expect("the store is read")
        .revision
}

/// All keys with a prefix.
pub fn all(prefix: &str) -> Range {
    Range {
        prefix: prefix.into(),
        after: None,
        limit: 1000,
        at: None,
    }
}

pub async fn page(store: &dyn Store, range: Range) -> Page {
    store.range(range).await.expect("the page is read")
}

pub fn keys(page: &Page) -> Vec<&str> {
    page.items.iter().map(|item| item.key.as_str()).collect()
}

pub async fn watch(store: &dyn Store, prefix: &str, from: Revision) -> Box<dyn Watch> {
    store.watch(prefix, from).await.expect("the watch opens")
}

/// The next change of a watch.
pub async fn next(watch: &mut Box<dyn Watch>) -> Change {
    answer(watch).await.expect("the watch goes on")
}

/// The error that a watch ends with; it must be the next thing heard of it, and stay.
pub async fn end(watch: &mut Box<dyn Watch>) -> StoreError {
    let error = answer(watch).await.expect_err("the watch ends");
    assert_eq!(
        answer(watch).await,
        Err(error.clone()),
        "an ended watch stays so"
    );
    error
}

async fn answer(watch: &mut Box<dyn Watch>) -> Result<Change, StoreError> {
    let change = tokio::time::timeout(CHANGE_WITHIN, watch.next());
    change.await.expect("the watch says something in time")
}

/// A change as `revision`, then `key=value` or `-key` for each event.
pub fn told(change: &Change) -> (Revision, Vec<String>) {
    let event = |event: &Event| match event {
        Event::Put(found) => {
            assert_eq!(found.mod_revision, change.revision);
            format!("{}={}", found.key, String::from_utf8_lossy(&found.value))
        }
        Event::Delete { key, mod_revision } => {
            assert_eq!(*mod_revision, change.revision);
            format!("-{key}")
        }
    };
    (change.revision, change.events.iter().map(event).collect())
}

/// Asserts that a watch tells of a revision with these events next.
pub async fn expect(watch: &mut Box<dyn Watch>, revision: Revision, events: &[&str]) {
    let (found, told) = told(&next(watch).await);
    assert_eq!(
        (found, told),
        (revision, events.iter().map(ToString::to_string).collect())
    );
}

/// Asserts the kind of an error by the beginning of its debug form.
pub fn check_refused<T: std::fmt::Debug>(what: &str, kind: &str, result: Result<T, StoreError>) {
    let error = result.expect_err(what);
    assert!(
        format!("{error:?}").starts_with(kind),
        "{what}: {error:?} is not {kind}"
    );
}
