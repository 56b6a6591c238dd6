//! Cases of transactions.

use proto::store::{Compare, LeaseId, Op, Revision, TXN_BYTES_MAX, TXN_OPS_MAX, Txn};

use crate::AnyStore;
use crate::steps::{
    apply, check_refused, committed, conflict, delete, get, is_absent, put, put_if, revision, run,
};

pub async fn created_only_when_absent(store: AnyStore) {
    let txn = put_if(Compare::Absent("k".into()), "first");
    let created = committed(run(&*store, txn.clone()).await);
    let found = get(&*store, "k").await;
    assert_eq!(
        (found.create_revision, found.mod_revision),
        (created, created)
    );
    assert_eq!(
        (found.version, &found.value[..], found.lease),
        (1, &b"first"[..], None)
    );
    conflict(run(&*store, txn.clone()).await);
    assert_eq!(get(&*store, "k").await, found, "a conflict changes nothing");
    delete(&*store, "k").await;
    committed(run(&*store, txn).await);
}

pub async fn changed_only_at_revision(store: AnyStore) {
    let first = put(&*store, "k", "1").await;
    let second = put(&*store, "k", "2").await;
    let at = |revision| put_if(Compare::ModRevision("k".into(), revision), "new");
    conflict(run(&*store, at(first)).await);
    conflict(run(&*store, at(second.next())).await);
    assert_eq!(get(&*store, "k").await.mod_revision, second);
    let third = committed(run(&*store, at(second)).await);
    assert_eq!(get(&*store, "k").await.mod_revision, third);
    let gone = delete(&*store, "k").await;
    conflict(run(&*store, at(third)).await);
    conflict(run(&*store, at(gone)).await);
}

pub async fn changed_only_with_value(store: AnyStore) {
    let with = |value: &'static str| put_if(Compare::Value("k".into(), value.into()), "new");
    conflict(run(&*store, with("")).await);
    assert!(
        is_absent(&*store, "k").await,
        "an absent key does not equal an empty value"
    );
    put(&*store, "k", "old").await;
    conflict(run(&*store, with("ol")).await);
    conflict(run(&*store, with("olden")).await);
    committed(run(&*store, with("old")).await);
    conflict(run(&*store, with("old")).await);
    put(&*store, "k", "").await;
    committed(run(&*store, with("")).await);
}

pub async fn changed_only_when_present(store: AnyStore) {
    let txn = put_if(Compare::Present("k".into()), "new");
    conflict(run(&*store, txn.clone()).await);
    put(&*store, "k", "old").await;
    committed(run(&*store, txn.clone()).await);
    delete(&*store, "k").await;
    conflict(run(&*store, txn).await);
}

pub async fn conflict_reads(store: AnyStore) {
    put(&*store, "a", "1").await;
    put(&*store, "b", "2").await;
    let gone = delete(&*store, "b").await;
    let txn = Txn {
        compares: vec![Compare::Present("a".into()), Compare::Present("b".into())],
        ops: vec![Op::put("a", "never")],
        or_read: vec!["b".into(), "a".into(), "c".into(), "a".into()],
    };
    let read = conflict(run(&*store, txn.clone()).await);
    assert_eq!(read.revision, gone, "with the store's revision");
    let a = get(&*store, "a").await;
    assert_eq!(
        read.value,
        [None, Some(a.clone()), None, Some(a)],
        "in the order asked for"
    );
    let nothing = conflict(
        run(
            &*store,
            Txn {
                or_read: vec![],
                ..txn
            },
        )
        .await,
    );
    assert_eq!(nothing.value, []);
}

pub async fn is_one_revision(store: AnyStore) {
    let before = put(&*store, "old", "1").await;
    let ops = vec![
        Op::put("new", "1"),
        Op::Delete("old".into()),
        Op::put("other", "1"),
    ];
    let at = apply(&*store, ops).await;
    assert_eq!(at, before.next(), "the revision grows by one");
    assert_eq!(get(&*store, "new").await.mod_revision, at);
    assert_eq!(get(&*store, "other").await.mod_revision, at);
    assert!(is_absent(&*store, "old").await);
    assert_eq!(revision(&*store).await, at);
}

pub async fn without_change(store: AnyStore) {
    let at = put(&*store, "a", "1").await;
    assert_eq!(apply(&*store, vec![]).await, at, "no op");
    assert_eq!(
        apply(&*store, vec![Op::Delete("b".into())]).await,
        at,
        "an absent key deleted"
    );
    let check = Txn {
        compares: vec![Compare::Present("a".into())],
        ..Txn::default()
    };
    assert_eq!(committed(run(&*store, check).await), at, "only a compare");
    assert_eq!(revision(&*store).await, at);
    assert_eq!(
        put(&*store, "a", "1").await,
        at.next(),
        "the same value again is a change"
    );
}

pub async fn refused(store: AnyStore) {
    let before = put(&*store, "before", "1").await;
    let check = async |what: &str, kind: &str, ops: Vec<Op>| {
        let txn = Txn {
            ops,
            ..Txn::default()
        };
        check_refused(what, kind, store.txn(txn).await);
    };
    let twice = vec![Op::put("a", "1"), Op::put("a", "2")];
    check("one key in two puts", "Invalid", twice).await;
    let put_deleted = vec![Op::put("a", "1"), Op::Delete("a".into())];
    check("one key put and deleted", "Invalid", put_deleted).await;
    check(
        "an empty key",
        "Invalid",
        vec![Op::put("a", "1"), Op::put("", "1")],
    )
    .await;
    let many = (0..=TXN_OPS_MAX)
        .map(|n| Op::put(format!("a{n}"), "1"))
        .collect();
    check("too many ops", "TooLarge", many).await;
    let large = vec![Op::put("a", vec![0; TXN_BYTES_MAX + 1])];
    check("too large a value", "TooLarge", large).await;
    let lease = Some(LeaseId(987_654_321));
    let leased = Op::Put {
        key: "a".into(),
        value: "1".into(),
        lease,
    };
    let unknown = vec![Op::put("b", "1"), leased];
    check(
        "an unknown lease",
        "LeaseNotFound(LeaseId(987654321))",
        unknown,
    )
    .await;
    check_refused("a read of an empty key", "Invalid", store.get("").await);
    assert_eq!(
        revision(&*store).await,
        before,
        "a refused transaction leaves nothing behind"
    );
    assert!(is_absent(&*store, "a").await && is_absent(&*store, "b").await);
}

pub async fn largest(store: AnyStore) {
    put(&*store, "large", vec![7; TXN_BYTES_MAX]).await;
    assert_eq!(get(&*store, "large").await.value.len(), TXN_BYTES_MAX);
    let key = |list: &str, n: usize| format!("{list}{:0>width$}", n, width = 300);
    let share = TXN_BYTES_MAX / TXN_OPS_MAX;
    let txn = Txn {
        compares: (0..TXN_OPS_MAX)
            .map(|n| Compare::Absent(key("c", n)))
            .collect(),
        ops: (0..TXN_OPS_MAX)
            .map(|n| Op::put(key("o", n), vec![7; share]))
            .collect(),
        or_read: (0..TXN_OPS_MAX).map(|n| key("o", n)).collect(),
    };
    let at = committed(run(&*store, txn.clone()).await);
    assert_eq!(
        get(&*store, &key("o", TXN_OPS_MAX - 1)).await.mod_revision,
        at
    );
    let compares = vec![Compare::Absent(key("o", 0))];
    let read = conflict(run(&*store, Txn { compares, ..txn }).await).value;
    assert_eq!(read.len(), TXN_OPS_MAX);
    assert!(
        read.iter()
            .flatten()
            .all(|found| found.value.len() == share)
    );
}

pub async fn reincarnation(store: AnyStore) {
    let first = put(&*store, "k", "1").await;
    put(&*store, "k", "2").await;
    let third = put(&*store, "k", "3").await;
    let found = get(&*store, "k").await;
    assert_eq!((found.create_revision, found.mod_revision), (first, third));
    assert_eq!(found.version, 3);
    delete(&*store, "k").await;
    let again = put(&*store, "k", "4").await;
    let found = get(&*store, "k").await;
    assert_eq!((found.create_revision, found.mod_revision), (again, again));
    assert_eq!(found.version, 1);
}

pub async fn every_byte(store: AnyStore) {
    let value: Vec<u8> = (0..=u8::MAX).collect();
    put(&*store, "bytes", value.clone()).await;
    assert_eq!(get(&*store, "bytes").await.value, value);
    let key = "a\0b \"'%_*?\u{1}ä\u{10ffff}";
    put(&*store, key, "").await;
    let found = get(&*store, key).await;
    assert_eq!((found.key.as_str(), found.value.len()), (key, 0));
}

pub async fn absent(store: AnyStore) {
    let before = revision(&*store).await;
    assert!(before >= Revision(1), "an empty store has a revision");
    let at = put(&*store, "a", "1").await;
    assert_eq!(at, before.next());
    let found = store.get("b").await.expect("the key is read");
    assert_eq!((found.revision, found.value), (at, None));
}
