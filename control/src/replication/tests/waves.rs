//! A hand-over of many organisations: few of them are sealed at one time, and one that ends early
//! leaves the rest at home.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proto::id::OrgId;
use proto::store::{
    At, KeyValue, Lease, LeaseId, Page, Range, Revision, Store, StoreError, StoreFuture, Txn,
    TxnOutcome, Watch,
};
use proto::tree::SYSTEM_ORG;

use super::super::handover::WAVE;
use super::super::{Dialer, HandOverError, Replication};
use super::departed::many;
use super::moves::{comes, equal, following, home};
use super::net::rename;
use crate::regions::Facts;

const ORGS: usize = 3 * WAVE;

/// The organisations that a region has sealed and that no other has opened.
fn sealed(facts: &Facts) -> Vec<OrgId> {
    let sealed = facts.iter();
    let sealed = sealed.filter(|(_, home)| home.region == "us" && home.sealed.is_some());
    sealed.map(|(org, _)| *org).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_are_sealed_at_one_time_than_a_wave_has() {
    let (us, eu, orgs) = many(ORGS).await;
    let mut facts = us.homes.facts();
    let watching = tokio::spawn(async move {
        let mut most = 0;
        loop {
            let now = sealed(&facts.borrow_and_update());
            let is_system = now.contains(&SYSTEM_ORG);
            assert!(!is_system || now.len() == 1, "system moves last");
            most = most.max(now.len());
            let moved = |(_, home): (_, &proto::home::Home)| home.region == "eu";
            if facts.borrow().iter().all(moved) {
                return most;
            }
            facts.changed().await.unwrap();
        }
    });
    let _following = [following(&us), following(&eu)];
    let moved = us.replication.hand_over("eu").await.unwrap();
    assert_eq!(moved.len(), orgs.len() + 2, "system and default too");
    assert_eq!(moved.last(), Some(&SYSTEM_ORG));
    let most = watching.await.unwrap();
    assert!((1..=WAVE).contains(&most), "{most}");
    for org in orgs {
        assert_eq!(home(&eu, org).await.region, "eu");
        eu.publish(org, vec![rename(1, "of eu")]).await;
    }
    equal(&[&us, &eu]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_ends_early_leaves_the_rest_at_home() {
    let (us, eu, orgs) = many(ORGS).await;
    let _following = following(&us);
    // eu answers, and opens nothing.
    let ended = us.replication.hand_over("eu").await;
    let Err(HandOverError::Waiting { so_far, .. }) = &ended else {
        panic!("{ended:?}");
    };
    let all = orgs.len() + 2;
    assert!(so_far.moved.is_empty());
    assert_eq!((so_far.sealed.len(), so_far.left), (WAVE, Some(all - WAVE)));
    let words = ended.as_ref().unwrap_err().to_string();
    assert!(words.contains("0 were handed over"), "{words}");
    for org in &so_far.sealed {
        assert!(words.contains(&org.to_string()), "{words}");
    }
    assert_eq!(sealed(&us.homes.facts().borrow()).len(), WAVE);
    let rest: Vec<&OrgId> = orgs
        .iter()
        .filter(|org| !so_far.sealed.contains(org))
        .collect();
    for org in &rest {
        us.publish(**org, vec![rename(1, "at home still")]).await;
    }
    let _following = [following(&us), following(&eu)];
    comes("what was sealed is opened", || async {
        sealed(&us.homes.facts().borrow()).is_empty()
    })
    .await;
    for org in &rest {
        assert!(home(&us, **org).await.is_open_in("us"));
    }
    let moved = us.replication.hand_over("eu").await.unwrap();
    assert_eq!(moved.len(), all - WAVE);
    equal(&[&us, &eu]).await;
    for org in &orgs {
        assert!(home(&eu, *org).await.is_open_in("eu"));
    }
}

/// What the command does that a hand-over names which came half way.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_sealed_for_a_region_that_cannot_open_it_is_taken_back() {
    let (us, _eu, orgs) = many(2).await;
    us.publisher.seal_home(orgs[0], "eu").await.unwrap();
    comes("the seal", || async {
        sealed(&us.homes.facts().borrow()) == [orgs[0]]
    })
    .await;
    let own = us.replication.hand_over("us").await.unwrap_err();
    assert!(own.to_string().ends_with(&orgs[0].to_string()), "{own}");
    us.replication.promote(true).await.unwrap();
    assert!(home(&us, orgs[0]).await.is_open_in("us"));
    us.publish(orgs[0], vec![rename(1, "at home again")]).await;
}

/// A store that lists keys a few times, and then does not.
struct Unlisted {
    of: Arc<dyn Store>,
    lists_left: AtomicUsize,
}

impl Store for Unlisted {
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        self.of.get(key)
    }

    fn range(&self, range: Range) -> StoreFuture<'_, Page> {
        let less = |left: usize| left.checked_sub(1);
        let left = &self.lists_left;
        match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => self.of.range(range),
            Err(_) => Box::pin(async { Err(StoreError::Unavailable("cut".into())) }),
        }
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        self.of.txn(txn)
    }

    fn watch(&self, prefix: &str, from: Revision) -> StoreFuture<'_, Box<dyn Watch>> {
        self.of.watch(prefix, from)
    }

    fn grant_lease(&self, ttl: Duration) -> StoreFuture<'_, Lease> {
        self.of.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.of.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.of.revoke_lease(lease)
    }

    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()> {
        self.of.compact(revision)
    }
}

/// Its store answers until the first organisation is sealed, and tells then of no list any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_between_waves_does_not_hide_what_moved() {
    let (us, eu, _) = many(1).await;
    let _following = [following(&us), following(&eu)];
    let store = Arc::new(Unlisted {
        of: us.store.clone(),
        lists_left: AtomicUsize::new(1),
    });
    let of = &us.replication;
    let Dialer::Within(net) = &of.dialer else {
        unreachable!("a test")
    };
    let us = Replication {
        publisher: of.publisher.clone(),
        store,
        worlds: of.worlds.clone(),
        regions: of.regions.clone(),
        homes: of.homes.clone(),
        status: Arc::default(),
        shared: Arc::default(),
        dialer: Dialer::Within(net.clone()),
    };
    let ended = us.hand_over("eu").await.unwrap_err();
    let words = ended.to_string();
    assert!(words.contains("3 were handed over"), "{words}");
    assert!(!words.contains("nothing was done"), "{words}");
}
