//! Cases of leases. They end when the store says so; the cases wait for that with a watch.

use std::time::Duration;

use proto::store::{Event, Lease, LeaseId, Op};

use crate::AnyStore;
use crate::steps::{
    apply, check_refused, delete, get, is_absent, next, put, revision, told, watch,
};

/// The shortest time to live that etcd grants with its default timing.
const TTL: Duration = Duration::from_secs(2);

async fn grant(store: &AnyStore, ttl: Duration) -> Lease {
    let lease = store.grant_lease(ttl).await.expect("the lease is granted");
    assert!(lease.ttl >= ttl, "{lease:?} is shorter than {ttl:?}");
    lease
}

fn under(lease: Lease, key: &str) -> Op {
    Op::Put {
        key: key.into(),
        value: "1".into(),
        lease: Some(lease.id),
    }
}

pub async fn ends(store: AnyStore) {
    let lease = grant(&store, TTL).await;
    let at = apply(
        &*store,
        vec![
            under(lease, "l/b"),
            under(lease, "l/a"),
            Op::put("l/c", "1"),
        ],
    );
    let at = at.await;
    assert_eq!(get(&*store, "l/a").await.lease, Some(lease.id));
    assert_eq!(get(&*store, "l/c").await.lease, None);
    let mut watch = watch(&*store, "l/", at.next()).await;
    let (revision, events) = told(&next(&mut watch).await);
    assert_eq!(events, ["-l/a", "-l/b"], "in one change, in key order");
    assert_eq!(revision, at.next());
    assert!(is_absent(&*store, "l/a").await);
    get(&*store, "l/c").await;
    let renewed = store.keep_alive(lease.id).await;
    check_refused("a renewal of an ended lease", "LeaseNotFound", renewed);
}

pub async fn kept_alive(store: AnyStore) {
    let ttl = Duration::from_secs(3);
    let (kept, left) = (grant(&store, ttl).await, grant(&store, ttl).await);
    let at = apply(&*store, vec![under(kept, "l/kept"), under(left, "l/left")]).await;
    let mut watch = watch(&*store, "l/", at.next()).await;
    let change = loop {
        tokio::select! {
            change = watch.next() => break change.expect("the watch goes on"),
            () = tokio::time::sleep(ttl / 10) => {
                store.keep_alive(kept.id).await.expect("the lease is renewed");
            }
        }
    };
    assert_eq!(
        told(&change).1,
        ["-l/left"],
        "only the one that was not renewed ends"
    );
    get(&*store, "l/kept").await;
    store
        .revoke_lease(kept.id)
        .await
        .expect("the lease is revoked");
}

pub async fn unknown(store: AnyStore) {
    let lease = LeaseId(987_654_321);
    let kind = "LeaseNotFound(LeaseId(987654321))";
    check_refused("its renewal", kind, store.keep_alive(lease).await);
    check_refused("its revocation", kind, store.revoke_lease(lease).await);
    check_refused(
        "a lease of no time",
        "Invalid",
        store.grant_lease(Duration::ZERO).await,
    );
}

pub async fn revoked(store: AnyStore) {
    let lease = grant(&store, Duration::from_secs(600)).await;
    let at = apply(&*store, vec![under(lease, "l/a"), under(lease, "l/b")]).await;
    let mut watch = watch(&*store, "l/", at.next()).await;
    store
        .revoke_lease(lease.id)
        .await
        .expect("the lease is revoked");
    assert!(is_absent(&*store, "l/a").await && is_absent(&*store, "l/b").await);
    let change = next(&mut watch).await;
    assert!(matches!(
        change.events[..],
        [Event::Delete { .. }, Event::Delete { .. }]
    ));
    let refused = store.keep_alive(lease.id).await;
    check_refused("a renewal of a revoked lease", "LeaseNotFound", refused);
    let other = grant(&store, Duration::from_secs(600)).await;
    assert_ne!(other.id, lease.id, "no lease has the name of an ended one");
    store
        .revoke_lease(other.id)
        .await
        .expect("a lease without keys is revoked");
    assert_eq!(
        revision(&*store).await,
        change.revision,
        "which is no change"
    );
}

pub async fn left(store: AnyStore) {
    let (first, second) = (
        grant(&store, TTL * 300).await,
        grant(&store, TTL * 300).await,
    );
    apply(
        &*store,
        vec![under(first, "l/freed"), under(first, "l/moved")],
    )
    .await;
    apply(&*store, vec![under(first, "l/gone")]).await;
    put(&*store, "l/freed", "2").await;
    apply(&*store, vec![under(second, "l/moved")]).await;
    let before = delete(&*store, "l/gone").await;
    store
        .revoke_lease(first.id)
        .await
        .expect("the lease is revoked");
    assert_eq!(revision(&*store).await, before, "no key was left under it");
    assert_eq!(get(&*store, "l/freed").await.lease, None);
    assert_eq!(get(&*store, "l/moved").await.lease, Some(second.id));
    store
        .revoke_lease(second.id)
        .await
        .expect("the lease is revoked");
    assert!(is_absent(&*store, "l/moved").await);
}
