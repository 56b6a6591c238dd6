//! Cases of many callers at a time.

use std::sync::Arc;

use proto::store::{Compare, Op, Store, Txn, TxnOutcome};

use crate::AnyStore;
use crate::steps::{get, put};

const WRITERS: usize = 10;
const INCREMENTS: usize = 10;

pub async fn increments(store: AnyStore) {
    put(&*store, "counter", "0").await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for _ in 0..INCREMENTS {
                    increment(&*store).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("the writer ends");
    }
    let found = get(&*store, "counter").await;
    assert_eq!(
        &found.value[..],
        (WRITERS * INCREMENTS).to_string().as_bytes()
    );
    assert_eq!(
        found.version,
        1 + i64::try_from(WRITERS * INCREMENTS).expect("a small number")
    );
}

async fn increment(store: &dyn Store) {
    let mut found = get(store, "counter").await;
    loop {
        let count: usize = String::from_utf8_lossy(&found.value)
            .parse()
            .expect("a number");
        let txn = Txn {
            compares: vec![Compare::ModRevision("counter".into(), found.mod_revision)],
            ops: vec![Op::put("counter", (count + 1).to_string())],
            or_read: vec!["counter".into()],
        };
        match store.txn(txn).await.expect("the transaction is answered") {
            TxnOutcome::Committed(_) => return,
            TxnOutcome::Conflict(mut read) => {
                found = read.value.remove(0).expect("the counter exists");
            }
        }
    }
}

pub async fn read_your_writes(store: AnyStore) {
    let callers: Vec<_> = (0..WRITERS)
        .map(|caller| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let key = format!("own/{caller}");
                for n in 0..20 {
                    let at = put(&*store, &key, n.to_string()).await;
                    let read = store.get(&key).await.expect("the key is read");
                    assert!(read.revision >= at, "{:?} is before {at:?}", read.revision);
                    let found = read.value.expect("the key exists");
                    assert_eq!(
                        (found.mod_revision, &found.value[..]),
                        (at, n.to_string().as_bytes())
                    );
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("the caller ends");
    }
}

pub async fn any_runtime(store: AnyStore) {
    // Each thread has a runtime that is gone when its call is answered.
    let threads: Vec<_> = (0..4)
        .map(|n| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let runtime = match n % 2 {
                    0 => tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build(),
                    _ => tokio::runtime::Builder::new_multi_thread()
                        .enable_all()
                        .build(),
                };
                let runtime = runtime.expect("a runtime can be made");
                runtime.block_on(put(&*store, &format!("from/{n}"), "1"));
            })
        })
        .collect();
    let joined = tokio::task::spawn_blocking(|| threads.into_iter().try_for_each(|t| t.join()));
    joined
        .await
        .expect("the threads are joined")
        .expect("no thread fails");
    for n in 0..4 {
        get(&*store, &format!("from/{n}")).await;
    }
}
