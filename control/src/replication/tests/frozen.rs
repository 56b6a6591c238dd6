//! `schedules.md` part two, 5: what a region that was made home by force lacks is carried on by
//! hash, unchanged, until it comes.

use proto::store::{Op, Store, Txn};
use proto::tree::{ApplyError, Hash};
use serde_json::{Value, json};

use super::super::left_to_home::Noted;
use super::super::{HandOverError, PromoteError, Promotion};
use super::by_region::{
    Swept, change, found, newest, pinned, proxy, relabelled, sealed_for, strict, three, whole,
};
use super::moves::{comes, equal, following, home};
use super::net::{Region, connect, installation_by_region, rename};
use crate::publish::PublishError;

/// What a promotion did not have of the organisation.
fn frozen(promotion: &Promotion, region: &Region) -> Vec<String> {
    let mut promoted = promotion.promoted.iter();
    let of = promoted.find(|one| one.org == region.org());
    of.unwrap_or_else(|| panic!("{promotion:?}")).frozen.clone()
}

async fn root(region: &Region, set: &str) -> Hash {
    region.head(region.org()).await.unwrap().roots[set]
}

/// The regions that a change was refused for.
async fn refused(region: &Region, operation: proto::tree::Operation) -> Vec<String> {
    match region.try_publish(region.org(), vec![operation]).await {
        Err(PublishError::Refused(ApplyError::Withheld { regions, .. })) => regions,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_forced_home_lacks_is_carried_on_until_it_comes() {
    let (net, [us, eu, ap], following) = three(json!(["eu"])).await;
    let (org, was) = (us.org(), root(&us, "eu").await);
    let [us_follows, ..] = following;
    drop(us_follows);
    // us is gone for good, and eu is away.
    net.cut("us", "eu");
    net.cut("us", "ap");
    net.cut("eu", "ap");
    let unforced = ap.replication.promote(false).await;
    assert!(
        matches!(unforced, Err(PromoteError::NoMajority { .. })),
        "{unforced:?}"
    );
    let promotion = ap.replication.promote(true).await.unwrap();
    assert_eq!(frozen(&promotion, &ap), ["eu"]);
    comes("ap as home", || async { ap.homes.region_of(org) == "ap" }).await;
    // What is for all goes on, however much is swept and archived meanwhile.
    let swept = [Swept::of(&eu, 3), Swept::of(&ap, 3)];
    for step in 0..6 {
        ap.publish(org, vec![rename(1, &format!("of ap {step}"))])
            .await;
        assert_eq!(root(&ap, "eu").await, was);
    }
    assert_eq!(refused(&ap, relabelled("of ap")).await, ["eu"]);
    let pin = |fields: &mut Value| fields["base_url"] = json!("https://h2.example");
    let target = proto::object::ObjectId::Target(proto::id::TargetId::from_bits(1));
    assert_eq!(refused(&ap, change(target, pin)).await, ["eu"]);
    comes("an archive", || async {
        ap.archive
            .versions(org, u64::MAX, 9)
            .is_ok_and(|of| !of.is_empty())
    })
    .await;
    assert!(!whole(&ap).await);
    // eu is back: it follows with its set as it was, and ap fetches that by itself.
    net.heal();
    net.cut("us", "eu");
    net.cut("us", "ap");
    equal(&[&eu, &ap]).await;
    assert_eq!(root(&eu, "eu").await, was);
    assert!(newest(&eu).await.holds("eu") && !found(&eu).await.is_empty());
    comes("what ap lacked", || whole(&ap)).await;
    comes("all of it in every process of ap", || async {
        let world = ap.worlds.borrow().clone();
        world.orgs[&org].config.withheld().next().is_none()
    })
    .await;
    assert_eq!(sealed_for(&ap).await, ["eu"]);
    ap.publish(org, vec![relabelled("of ap")]).await;
    equal(&[&eu, &ap]).await;
    assert_ne!(root(&eu, "eu").await, was);
    assert_eq!(newest(&eu).await.objects, newest(&ap).await.objects);
    drop(swept);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_follows_is_given_what_is_carried_on_when_it_is_behind() {
    let (net, [us, eu, ap], follows) = three(json!(["eu"])).await;
    let org = us.org();
    let [us_follows, ..] = follows;
    drop(us_follows);
    // What eu has of its set is one version older than what it does not have of the rest.
    net.cut("us", "eu");
    net.cut("eu", "ap");
    us.publish(org, vec![rename(1, "late")]).await;
    equal(&[&us, &ap]).await;
    net.cut("us", "ap");
    let promotion = ap.replication.promote(true).await.unwrap();
    assert_eq!(frozen(&promotion, &ap), ["eu"]);
    let _swept = Swept::of(&ap, 1);
    for step in 0..4 {
        ap.publish(org, vec![rename(1, &format!("{step}"))]).await;
    }
    let first = us.head(org).await.unwrap().n - 1;
    comes("eu's version gone from ap", || async {
        let key = proto::keys::version(org, first);
        ap.dump(&[&key]).await.is_empty()
    })
    .await;
    net.heal();
    net.cut("us", "eu");
    net.cut("us", "ap");
    equal(&[&eu, &ap]).await;
    assert!(newest(&eu).await.holds("eu"));
    comes("what ap lacked", || whole(&ap)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_without_a_set_freezes_it_only_where_that_is_forced() {
    let names = ["us", "eu", "ap", "sa", "af"];
    let (net, regions) = installation_by_region(&names).await;
    let all: Vec<_> = regions.iter().map(following).collect();
    let (us, ap) = (&regions[0], &regions[2]);
    let org = us.org();
    us.publish(org, pinned(us, &json!(["eu"]))).await;
    equal(&regions.iter().collect::<Vec<_>>()).await;
    for gone in ["us", "eu"] {
        for other in names.iter().filter(|other| **other != gone) {
            net.cut(gone, other);
        }
    }
    // It is known beforehand, and nothing moves by that.
    let would = ap.replication.foresee(false).await.unwrap();
    assert!(
        would.left[0].0 == org && would.left[0].1.contains("--force"),
        "{would:?}"
    );
    let would = ap.replication.foresee(true).await.unwrap();
    let of_org = would.promoted.iter().find(|one| one.org == org).unwrap();
    assert_eq!(
        (of_org.frozen.clone(), would.left.len()),
        (vec!["eu".to_owned()], 0)
    );
    assert_eq!(home(ap, org).await.region, "us");
    let promotion = ap.replication.promote(false).await.unwrap();
    let [(left, why)] = &promotion.left[..] else {
        panic!("{promotion:?}");
    };
    assert_eq!(*left, org);
    assert!(why.contains("--force") && why.contains("eu"), "{why}");
    assert_eq!(home(ap, org).await.region, "us");
    let promotion = ap.replication.promote(true).await.unwrap();
    assert_eq!(frozen(&promotion, ap), ["eu"]);
    drop(all);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_strictly_of_others_stays_frozen_until_one_of_them_is_home() {
    let (net, [us, eu, ap], follows) = three(json!(["us", "eu"])).await;
    let org = us.org();
    us.publish(org, vec![strict(json!(["eu", "us"]))]).await;
    equal(&[&us, &eu, &ap]).await;
    let was = root(&us, "strict/eu,us").await;
    let [us_follows, ..] = follows;
    drop(us_follows);
    net.cut("us", "eu");
    net.cut("us", "ap");
    let unforced = ap.replication.promote(false).await.unwrap();
    assert!(unforced.left[0].1.contains("--force"), "{unforced:?}");
    let promotion = ap.replication.promote(true).await.unwrap();
    assert_eq!(frozen(&promotion, &ap), ["eu,us"]);
    comes("ap as home", || async { ap.homes.region_of(org) == "ap" }).await;
    ap.publish(org, vec![rename(1, "of ap")]).await;
    assert_eq!(refused(&ap, relabelled("of ap")).await, ["eu,us"]);
    equal(&[&eu, &ap]).await;
    assert_eq!(root(&eu, "strict/eu,us").await, was);
    assert_eq!(
        newest(&ap).await.withheld().collect::<Vec<_>>(),
        ["strict/eu,us"]
    );
    assert!(newest(&ap).await.object(proxy()).is_none());
    // Its region takes it on as planned.
    ap.replication.hand_over("eu").await.unwrap();
    comes("eu as home", || async { eu.homes.region_of(org) == "eu" }).await;
    assert!(whole(&eu).await);
    eu.publish(org, vec![relabelled("of eu")]).await;
    equal(&[&eu, &ap]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_hands_over_what_it_lacks_only_to_who_has_it() {
    let names = ["us", "eu", "ap", "sa"];
    let (net, regions) = installation_by_region(&names).await;
    let _all: Vec<_> = regions.iter().map(following).collect();
    let [us, eu, ap, sa]: [&Region; 4] = [0, 1, 2, 3].map(|at| &regions[at]);
    let org = us.org();
    us.publish(org, pinned(us, &json!(["eu"]))).await;
    equal(&[us, eu, ap, sa]).await;
    for other in ["ap", "sa", "eu"] {
        net.cut("us", other);
    }
    net.cut("eu", "ap");
    net.cut("eu", "sa");
    let promotion = ap.replication.promote(true).await.unwrap();
    assert_eq!(frozen(&promotion, ap), ["eu"]);
    comes("ap as home", || async { ap.homes.region_of(org) == "ap" }).await;
    equal(&[ap, sa]).await;
    let refused = ap.replication.hand_over("sa").await;
    let Err(HandOverError::Stopped { error, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(matches!(error, PublishError::Withheld { .. }), "{error}");
    assert!(home(ap, org).await.is_open_in("ap"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_before_keeps_what_home_lacks_until_home_has_it() {
    let (net, [us, eu, ap], follows) = three(json!(["eu"])).await;
    let org = us.org();
    let [us_follows, eu_follows, _ap_follows] = follows;
    drop((us_follows, eu_follows));
    // eu is gone for good; us is only cut off.
    for other in ["us", "ap"] {
        net.cut("eu", other);
    }
    net.cut("us", "ap");
    let promotion = ap.replication.promote(true).await.unwrap();
    assert_eq!(frozen(&promotion, &ap), ["eu"]);
    comes("ap as home", || async { ap.homes.region_of(org) == "ap" }).await;
    // us follows and ap asks it for nothing: what only us has must not go from there.
    let swept = Swept::of(&us, 3);
    let old = eu.head(org).await.unwrap();
    let left = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(usize::MAX));
    let way = connect(ap.source.clone(), ("us", "ap"), left)
        .await
        .unwrap();
    let head = ap.head(org).await;
    // One round may bring `system` alone.
    while us.head(org).await != head {
        us.replication.round(&way, &None).await.unwrap();
    }
    equal(&[&us, &ap]).await;
    comes("ap as home in us", || async {
        let world = us.worlds.borrow().clone();
        us.homes.region_of(org) == "ap" && Some(&world.orgs[&org].config.head) == head.as_ref()
    })
    .await;
    let mut noted = Noted::default();
    let left = us.replication.leave_to_home(&way, &None, &mut noted);
    left.await.unwrap();
    let key = proto::keys::home_has(org);
    assert!(us.store.get(&key).await.unwrap().value.is_none());
    let garbage = proto::keys::leaf(org, &Hash::of(b"garbage"));
    let put = Txn {
        ops: vec![Op::put(garbage.clone(), "x")],
        ..Txn::default()
    };
    us.store.txn(put).await.unwrap();
    comes("a sweep", || async {
        us.store.get(&garbage).await.unwrap().value.is_none()
    })
    .await;
    let root = proto::keys::leaf(org, &old.roots["eu"]);
    assert!(us.store.get(&root).await.unwrap().value.is_some());
    net.heal();
    for other in ["us", "ap"] {
        net.cut("eu", other);
    }
    comes("what ap lacked", || whole(&ap)).await;
    assert_eq!(sealed_for(&ap).await, ["eu"]);
    let _us_follows = following(&us);
    comes("nothing of it in us", || async {
        found(&us).await.is_empty() && swept.found(&us).await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_an_older_one_of_what_is_carried_on_goes_on_from_that_by_force() {
    let (net, [us, eu, ap], follows) = three(json!(["eu"])).await;
    let org = us.org();
    let [us_follows, ..] = follows;
    drop(us_follows);
    net.cut("us", "eu");
    net.cut("eu", "ap");
    us.publish(org, vec![relabelled("newer")]).await;
    equal(&[&us, &ap]).await;
    net.cut("us", "ap");
    let promotion = ap.replication.promote(true).await.unwrap();
    assert_eq!(frozen(&promotion, &ap), ["eu"]);
    comes("ap as home", || async { ap.homes.region_of(org) == "ap" }).await;
    net.heal();
    net.cut("us", "eu");
    net.cut("us", "ap");
    // It could not open what is sealed for it.
    let refused = ap.replication.hand_over("eu").await.unwrap_err();
    assert!(refused.to_string().contains("it has version"), "{refused}");
    assert!(home(&ap, org).await.is_open_in("ap"));
    let would = eu.replication.foresee(true).await.unwrap();
    assert!(would.promoted.iter().any(|one| one.org == org), "{would:?}");
    let promotion = eu.replication.promote(true).await.unwrap();
    assert_eq!(frozen(&promotion, &eu), [""; 0]);
    comes("eu as home", || async { eu.homes.region_of(org) == "eu" }).await;
    equal(&[&eu, &ap]).await;
    eu.publish(org, vec![relabelled("of eu")]).await;
    equal(&[&eu, &ap]).await;
}
