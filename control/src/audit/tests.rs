//! Chains in a store: several who write at once, what is dropped, and what hands have changed.

use std::sync::Arc;
use std::time::Duration;

use proto::audit::Failure;
use proto::audit::verify::{Verified, verify};
use proto::store::embedded::Embedded;
use proto::store::{At, Lease, LeaseId, Page, Revision, StoreFuture, Watch};

use super::heard::Heard;
use super::*;

const ORG: OrgId = OrgId::from_bits(7);

fn store() -> (tempfile::TempDir, Arc<Embedded>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store.db")).unwrap();
    (dir, store)
}

fn said(times: u64) -> Said {
    let at = "2026-11-28T10:00:00Z".parse().unwrap();
    Said {
        at,
        actor: "unknown".into(),
        source: None,
        act: Act::LoginFailed {
            why: Failure::Unknown,
            times,
            sources: None,
            until: at,
        },
    }
}

async fn verified(store: &dyn Store) -> Verified {
    verify(ORG, "eu", &chain(store, ORG).await.unwrap(), &[])
}

async fn put(store: &dyn Store, ops: Vec<Op>) {
    let txn = Txn {
        ops,
        ..Txn::default()
    };
    store.txn(txn).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_write_at_once_write_one_chain() {
    let (_dir, store) = store();
    let writers = (0..4).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for times in 0..10 {
                let with = [Op::put(format!("x/{writer}/{times}"), "y")];
                append(&*store, ORG, said(times), &with).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let found = verified(&*store).await;
    assert_eq!((found.entries, found.breaks.len()), (Some((1, 40)), 0));
    let mut acts = 0;
    load::list(&*store, "x/", None, |_| acts += 1)
        .await
        .unwrap();
    assert_eq!(acts, 40, "what an entry tells of is done with it");
}

#[tokio::test]
async fn pages_go_back_to_the_first_entry() {
    let (_dir, store) = store();
    for times in 1..=7 {
        append(&*store, ORG, said(times), &[]).await.unwrap();
    }
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = entries(&*store, ORG, before, 3).await.unwrap();
        seen.extend(page.items.iter().map(|(seq, _)| *seq));
        // What comes meanwhile moves nothing.
        append(&*store, ORG, said(9), &[]).await.unwrap();
        match page.before {
            Some(next) => before = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, [7, 6, 5, 4, 3, 2, 1]);
    let none = entries(&*store, OrgId::from_bits(8), None, 3)
        .await
        .unwrap();
    assert!(none.items.is_empty() && none.before.is_none());
}

#[tokio::test]
async fn the_oldest_leave_and_the_chain_holds() {
    let (_dir, store) = store();
    for times in 1..=300 {
        append(&*store, ORG, said(times), &[]).await.unwrap();
    }
    let now = said(1).at;
    let (heard, _guard) = Heard::begin();
    let dropped = drop_oldest(&*store, ORG, 100, now).await.unwrap();
    assert_eq!(dropped, 180);
    let told = heard.lines(&["kind", "seq", "actor", "outcome"]);
    let each = |seq: u64| format!("entries_dropped {seq} janitor -");
    assert_eq!(told, [each(301), each(302)]);
    let found = verified(&*store).await;
    assert_eq!(
        (found.entries, found.breaks),
        (Some((181, 302)), Vec::new())
    );
    assert_eq!(drop_oldest(&*store, ORG, 100, now).await.unwrap(), 0);
    let page = entries(&*store, ORG, Some(183), 5).await.unwrap();
    assert_eq!((page.items.len(), page.before), (2, None));
    put(&*store, vec![Op::Delete(keys::audit_entry(ORG, 181))]).await;
    let found = verified(&*store).await;
    assert_eq!(found.breaks[0].entry, Some(181));
}

/// Whoever has broken a chain by hand must not keep others from writing.
#[tokio::test]
async fn a_broken_head_stops_nobody() {
    for broken in [
        vec![Op::put(keys::audit_head(ORG), "nonsense")],
        vec![Op::Delete(keys::audit_head(ORG))],
        vec![Op::put(
            keys::audit_head(ORG),
            json(&Last {
                seq: 2,
                hash: proto::tree::Hash::of(b"x"),
            }),
        )],
    ] {
        let (_dir, store) = store();
        for times in 1..=5 {
            append(&*store, ORG, said(times), &[]).await.unwrap();
        }
        put(&*store, broken.clone()).await;
        assert_eq!(verified(&*store).await.breaks.len(), 1, "{broken:?}");
        assert_eq!(
            append(&*store, ORG, said(6), &[]).await.unwrap(),
            6,
            "{broken:?}"
        );
        assert_eq!(verified(&*store).await.breaks, [], "{broken:?}");
    }
}

/// The embedded store, whose answers to transactions are lost.
struct Lossy(Arc<Embedded>);

impl Store for Lossy {
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        self.0.get(key)
    }
    fn range(&self, range: Range) -> StoreFuture<'_, Page> {
        self.0.range(range)
    }
    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        Box::pin(async move {
            self.0.txn(txn).await?;
            Err(StoreError::OutcomeUnknown("lost".into()))
        })
    }
    fn watch(&self, prefix: &str, from: Revision) -> StoreFuture<'_, Box<dyn Watch>> {
        self.0.watch(prefix, from)
    }
    fn grant_lease(&self, ttl: Duration) -> StoreFuture<'_, Lease> {
        self.0.grant_lease(ttl)
    }
    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.0.keep_alive(lease)
    }
    fn revoke_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.0.revoke_lease(lease)
    }
    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()> {
        self.0.compact(revision)
    }
}

#[tokio::test]
async fn an_entry_that_may_be_there_is_told_as_one() {
    let (_dir, store) = store();
    let (heard, _guard) = Heard::begin();
    append(&*store, ORG, said(1), &[]).await.unwrap();
    let failed = append(&Lossy(store.clone()), ORG, said(2), &[]).await;
    assert!(
        matches!(failed, Err(StoreError::OutcomeUnknown(_))),
        "{failed:?}"
    );
    let head = store.get(&keys::audit_head(ORG)).await.unwrap().value;
    let last: Last = serde_json::from_slice(&head.unwrap().value).unwrap();
    let told = heard.lines(&["kind", "seq", "hash", "outcome"]);
    assert_eq!(told.len(), 2);
    assert!(told[0].starts_with("login_failed 1 "), "{told:?}");
    assert_eq!(told[1], format!("login_failed 2 {} unknown", last.hash));
}
