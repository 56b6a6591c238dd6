//! A write with an `Idempotency-Key` is carried out once, wherever home moved in between.

use proto::id::OrgId;
use proto::keys;
use proto::tree::{Hash, Operation};

use super::moves::{comes, equal, following};
use super::net::{Region, create_target, installation, rename};
use crate::publish::{Idempotency, PublishError, Published};

/// Publishes as a caller with this key does.
async fn keyed(
    of: &Region,
    (key, body): (&str, &str),
    operation: Operation,
) -> Result<Published, PublishError> {
    let idempotency = Idempotency {
        key: key.into(),
        fingerprint: Hash::of(body.as_bytes()),
    };
    of.try_keyed(of.org(), vec![operation], Some(idempotency))
        .await
}

async fn targets(of: &Region, org: OrgId) -> usize {
    of.publisher.load(org).await.unwrap().objects.len()
}

async fn three() -> [Region; 3] {
    let (_net, all) = installation(&["us", "eu", "ap"]).await;
    all.try_into().ok().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_repeated_at_the_next_home_is_not_carried_out_twice() {
    let [us, eu, ap] = three().await;
    let _following = [&us, &eu, &ap].map(following);
    let org = us.org();
    // Who has nothing yet takes the newest version alone.
    equal(&[&us, &eu, &ap]).await;
    let first = keyed(&us, ("k", "x"), create_target(1, "t")).await.unwrap();
    us.publish(org, vec![rename(1, "later")]).await;
    us.replication.hand_over("eu").await.unwrap();
    equal(&[&us, &eu, &ap]).await;
    let again = keyed(&eu, ("k", "x"), create_target(2, "t")).await.unwrap();
    assert!(again.replayed && !first.replayed);
    assert_eq!((again.n, &again.changed), (first.n, &first.changed));
    let other = keyed(&eu, ("k", "y"), create_target(3, "t")).await;
    assert!(matches!(other, Err(PublishError::KeyReused)));
    // What was made there is known at the home after that, which never saw the first one.
    let next = keyed(&eu, ("l", "x"), create_target(4, "t")).await.unwrap();
    eu.replication.hand_over("ap").await.unwrap();
    equal(&[&us, &eu, &ap]).await;
    for (key, n) in [("k", first.n), ("l", next.n)] {
        let again = keyed(&ap, (key, "x"), create_target(5, "t")).await.unwrap();
        assert!(again.replayed);
        assert_eq!(again.n, n, "{key}");
    }
    assert_eq!(targets(&ap, org).await, 2);
    // It is forgotten some day there too.
    for region in [&us, &eu, &ap] {
        let all = region.dump(&[&keys::idempotency_of(org)]).await;
        assert_eq!(all.len(), 4, "two, by key and by version");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_set_aside_was_not_carried_out() {
    let (net, all) = installation(&["us", "eu", "ap"]).await;
    let [us, eu, ap]: [Region; 3] = all.try_into().ok().unwrap();
    let _following = [&us, &eu, &ap].map(following);
    let org = us.org();
    equal(&[&us, &eu, &ap]).await;
    net.cut("us", "eu");
    net.cut("us", "ap");
    let lost = keyed(&us, ("k", "x"), create_target(1, "t")).await.unwrap();
    let alone = keyed(&us, ("l", "x"), create_target(2, "t")).await.unwrap();
    eu.replication.promote(false).await.unwrap();
    eu.publish(org, vec![create_target(9, "of eu")]).await;
    let again = keyed(&eu, ("k", "x"), create_target(3, "t")).await.unwrap();
    assert!(!again.replayed, "nobody here knows of it");
    net.heal();
    equal(&[&us, &eu, &ap]).await;
    assert_eq!(targets(&us, org).await, 2);
    // The old home has forgotten its own, and knows what stands instead.
    eu.replication.hand_over("us").await.unwrap();
    comes("us as home", || async { us.homes.region_of(org) == "us" }).await;
    let there = keyed(&us, ("k", "x"), create_target(4, "t")).await.unwrap();
    assert!(there.replayed);
    assert_eq!(there.hash, again.hash);
    assert_ne!(there.hash, lost.hash);
    let anew = keyed(&us, ("l", "x"), create_target(5, "t")).await.unwrap();
    assert!(!anew.replayed);
    assert_ne!(anew.hash, alone.hash);
    equal(&[&us, &eu, &ap]).await;
    assert_eq!(targets(&ap, org).await, 3);
}
