//! A hand-over of many organisations: few of them are sealed at one time, and one that ends early
//! leaves the rest at home.

use proto::id::OrgId;
use proto::tree::SYSTEM_ORG;

use super::super::HandOverError;
use super::super::handover::WAVE;
use super::departed::create_org;
use super::moves::{comes, equal, following, home};
use super::net::{Region, create_target, installation, rename};
use crate::regions::Facts;

const ORGS: usize = 3 * WAVE;

/// Home `us` with many organisations, and `eu`, which has all of them and does not follow.
async fn many() -> (Region, Region, Vec<OrgId>) {
    let (_, regions) = installation(&["us", "eu"]).await;
    let [us, eu]: [Region; 2] = regions.try_into().ok().unwrap();
    let orgs: Vec<OrgId> = (0..ORGS).map(|_| OrgId::new()).collect();
    for (at, org) in orgs.iter().enumerate() {
        let create = create_org(*org, &format!("org-{at}"));
        us.publish(SYSTEM_ORG, vec![create]).await;
        us.publish(*org, vec![create_target(1, "first")]).await;
        us.seen(*org).await;
    }
    us.seen(SYSTEM_ORG).await;
    let once = following(&eu);
    equal(&[&us, &eu]).await;
    drop(once);
    let eu = eu.restarted();
    eu.seen(SYSTEM_ORG).await;
    for org in &orgs {
        eu.seen(*org).await;
    }
    (us, eu, orgs)
}

/// The organisations that a region has sealed and that no other has opened.
fn sealed(facts: &Facts) -> Vec<OrgId> {
    let sealed = facts.iter();
    let sealed = sealed.filter(|(_, home)| home.region == "us" && home.sealed.is_some());
    sealed.map(|(org, _)| *org).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_are_sealed_at_one_time_than_a_wave_has() {
    let (us, eu, orgs) = many().await;
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
    let (us, eu, orgs) = many().await;
    let _following = following(&us);
    // eu answers, and opens nothing.
    let ended = us.replication.hand_over("eu").await;
    let Err(HandOverError::Waiting { so_far, .. }) = &ended else {
        panic!("{ended:?}");
    };
    let all = orgs.len() + 2;
    assert!(so_far.moved.is_empty());
    assert_eq!((so_far.sealed.len(), so_far.left), (WAVE, all - WAVE));
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
