//! Home moves: planned, forced, twice at one time, and what becomes of branches.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::tree::{SYSTEM_ORG, VersionRecord};
use tokio::task::JoinHandle;

use super::super::apply::ApplyError;
use super::super::completing::Whole;
use super::super::{Broken, Follower, HandOverError, PromoteError};
use super::departed::create_org;
use super::net::{Net, Region, create_credential, create_target, installation, rename, set_secret};
use crate::publish::{PublishError, homes};

/// Longest wait for what is to come; nothing is told by the time that it takes.
const COMES: Duration = Duration::from_secs(60);

/// A region's replication, until it is dropped.
pub struct Following(JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub fn following(region: &Region) -> Following {
    let follower = Follower::new(region.replication.clone());
    Following(tokio::spawn(follower.run()))
}

/// Waits until something is so.
pub async fn comes<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let came = tokio::time::timeout(COMES, waiting).await;
    assert!(came.is_ok(), "it does not come: {what}");
}

/// Waits until regions hold the same versions, heads and homes.
pub async fn equal(regions: &[&Region]) {
    const EQUAL: &[&str] = &["live/head/", "home/"];
    let differs = std::cell::RefCell::new(Vec::new());
    let is_equal = async {
        loop {
            *differs.borrow_mut() = differences(regions, EQUAL).await;
            if differs.borrow().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let came = tokio::time::timeout(COMES, is_equal).await;
    assert!(
        came.is_ok(),
        "heads stay different: {:#?}",
        differs.borrow()
    );
    // Of what several regions keep of one number all is one version.
    let mut known: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for region in regions {
        for (key, value) in region.dump(&["versions/"]).await {
            let before = known.entry(key.clone()).or_insert_with(|| value.clone());
            assert_eq!(*before, value, "{key} in {}", region.name());
        }
        let heads = region.dump(&["live/head/"]).await;
        for (key, record) in &known {
            let (org, n) = proto::keys::parse_version(key).unwrap();
            // Without a head it is of an organisation that is being set aside.
            let Some(head) = heads.get(&keys::head(org)) else {
                continue;
            };
            let head = proto::tree::Head::parse(head).unwrap();
            assert!(n <= head.n, "{key} lies beyond the head: {record:?}");
        }
    }
}

/// What regions do not all hold: by region and key.
async fn differences(regions: &[&Region], prefixes: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    for region in regions {
        let dump = region.dump(prefixes).await;
        all.extend(dump.into_iter().map(|pair| (region.name(), pair)));
    }
    let holders = |pair| all.iter().filter(|(_, other)| other == pair).count();
    let apart = all.iter().filter(|(_, pair)| holders(pair) < regions.len());
    apart
        .map(|(region, (key, value))| format!("{region} {key} {}", value.escape_ascii()))
        .collect()
}

pub async fn home(region: &Region, org: OrgId) -> Home {
    homes::stored(&*region.store, org).await.unwrap().unwrap().0
}

/// The versions that a region has set aside, by epoch and number.
pub async fn aside(region: &Region) -> Vec<(OrgId, VersionRecord)> {
    let dump = region.dump(&[keys::ASIDE]).await;
    let parsed = dump.iter().map(|(key, value)| {
        let org = keys::parse_aside(key).unwrap();
        (org, serde_json::from_slice(value).unwrap())
    });
    parsed.collect()
}

pub fn numbers(aside: &[(OrgId, VersionRecord)], org: OrgId) -> Vec<u64> {
    let of = aside.iter().filter(|(of, _)| *of == org);
    of.map(|(_, record)| record.head.n).collect()
}

/// Three regions that follow each other; `us` is home.
async fn three() -> (Arc<Net>, [Region; 3], [Following; 3]) {
    let (net, regions) = installation(&["us", "eu", "ap"]).await;
    let regions: [Region; 3] = regions.try_into().ok().unwrap();
    let following = [0, 1, 2].map(|at| following(&regions[at]));
    equal(&[&regions[0], &regions[1], &regions[2]]).await;
    (net, regions, following)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_loses_nothing_and_is_learnt_from_the_facts() {
    let (_net, [us, eu, ap], _following) = three().await;
    let org = us.org();
    us.publish(org, vec![create_target(1, "of us")]).await;
    let token = create_credential(&us.publisher, 1, "one");
    us.publish(org, vec![token]).await;
    // Somebody publishes all the time; every version that was answered must be in the line.
    let publisher = us.publisher.clone();
    let writing = {
        let us = us.restarted();
        tokio::spawn(async move {
            let mut made = Vec::new();
            for at in 0..10_000 {
                match us
                    .try_publish(org, vec![rename(1, &format!("n{at}"))])
                    .await
                {
                    Ok(published) => made.push((published.n, published.hash)),
                    Err(PublishError::NotHome { home, .. }) => {
                        assert_eq!(home, "eu");
                        return made;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            panic!("home never moves")
        })
    };
    comes("some versions", || async {
        us.head(org).await.unwrap().n > 20
    })
    .await;
    let moved = us.replication.hand_over("eu").await.unwrap();
    assert_eq!(moved.len(), 2, "system and default");
    let made = writing.await.unwrap();
    drop(publisher);
    let last = made.last().unwrap();
    equal(&[&us, &eu, &ap]).await;
    let opened = eu.head(org).await.unwrap();
    assert_eq!((opened.n, opened.parent), (last.0 + 1, Some(last.1)));
    assert_eq!(
        (opened.epoch.counter, opened.epoch.region.as_str()),
        (2, "eu")
    );
    for (n, hash) in made {
        let record = &eu.dump(&[&keys::version(org, n)]).await;
        let record: VersionRecord =
            serde_json::from_slice(record.values().next().unwrap()).unwrap();
        assert_eq!(record.head.hash, hash, "{n}");
    }
    // The new home makes versions, with secrets that every region can open; the others follow.
    eu.publish(org, vec![rename(1, "of eu")]).await;
    eu.publish(org, vec![set_secret(&eu.publisher, 1, "two")])
        .await;
    equal(&[&us, &eu, &ap]).await;
    assert!(us.try_publish(org, vec![rename(1, "x")]).await.is_err());
    assert!(ap.try_publish(org, vec![rename(1, "x")]).await.is_err());
    for region in [&us, &eu, &ap] {
        assert!(aside(region).await.is_empty());
        assert_eq!(region.homes.region_of(org), "eu");
        assert_eq!(region.dump(&["secrets/"]).await.len(), 3);
    }
    // And back.
    eu.replication.hand_over("us").await.unwrap();
    us.publish(org, vec![rename(1, "of us again")]).await;
    equal(&[&us, &eu, &ap]).await;
    assert_eq!(home(&ap, org).await.openings.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_opens_with_exactly_the_version_that_was_sealed() {
    let (_net, [us, eu, _], following) = three().await;
    let org = us.org();
    drop(following);
    us.publish(org, vec![create_target(1, "not in eu")]).await;
    let sealed = us.publisher.seal_home(org, "eu").await.unwrap();
    let last = sealed.sealed.unwrap().last;
    let line = home(&eu, org).await;
    let opened = eu
        .replication
        .open(&None, org, &line, (&last, &[], &Whole::default()), "x")
        .await;
    let lacks = matches!(opened, Err(Broken::Apply(ApplyError::Moved(_))));
    assert!(lacks, "{opened:?}");
    assert_eq!(home(&eu, org).await, line);
    // Followed, it takes what it lacks and opens.
    let again = eu.restarted();
    let _following = super::moves::following(&again);
    comes("the opening", || async {
        home(&again, org).await.region == "eu"
    })
    .await;
    assert_eq!(again.head(org).await.unwrap().parent, Some(last.hash));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_take_over_is_handed_nothing() {
    let (net, [us, eu, ap], _following) = three().await;
    let unfit = |error| matches!(error, Err(HandOverError::Unfit { .. }));
    net.cut("us", "eu");
    assert!(unfit(us.replication.hand_over("eu").await));
    let unknown = us.replication.hand_over("nowhere").await;
    assert!(matches!(unknown, Err(HandOverError::Unknown(_))));
    let nothing = ap.replication.hand_over("us").await;
    assert!(matches!(nothing, Err(HandOverError::Nothing)));
    let already = us.replication.hand_over("us").await.unwrap();
    assert_eq!(already, [], "us is home already");
    assert!(home(&us, SYSTEM_ORG).await.is_open_in("us"), "it goes on");
    // While home answers nobody takes it, forced or not; alone nobody takes it unforced.
    let homed = ap.replication.promote(true).await;
    assert!(matches!(homed, Err(PromoteError::Homed(home)) if home == ["us"]));
    net.cut("eu", "ap");
    let alone = eu.replication.promote(false).await;
    let Err(PromoteError::NoMajority {
        asked,
        all,
        not_asked,
    }) = alone
    else {
        panic!("{alone:?}");
    };
    assert_eq!(
        (asked, all, not_asked),
        (1, 3, vec!["us".to_owned(), "ap".to_owned()])
    );
    assert!(home(&eu, SYSTEM_ORG).await.is_open_in("us"));
}

/// schedules.md, part one, 3, schedule A: a home that is only cut off commits too, in its own
/// region alone. Healed, one branch is in force everywhere, and the other is listed.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_home_that_went_on_sets_its_branch_aside() {
    let (net, [us, eu, ap], _following) = three().await;
    let org = us.org();
    us.publish(org, vec![create_target(1, "before")]).await;
    equal(&[&us, &eu, &ap]).await;
    let common = us.head(org).await.unwrap();
    net.cut("us", "eu");
    net.cut("us", "ap");
    let token = create_credential(&us.publisher, 7, "of the branch");
    us.publish(org, vec![rename(1, "in us alone"), token]).await;
    us.publish(org, vec![create_target(2, "in us alone")]).await;
    let branch = us.head(org).await.unwrap();
    // A majority is there: two of three.
    let promotion = eu.replication.promote(false).await.unwrap();
    assert_eq!(promotion.not_asked, ["us"]);
    let orgs: Vec<OrgId> = promotion.promoted.iter().map(|one| one.org).collect();
    assert_eq!(orgs, [SYSTEM_ORG, org]);
    let first = &promotion.promoted[1].first;
    assert_eq!((first.n, first.epoch.counter), (common.n + 1, 2));
    eu.publish(org, vec![rename(1, "in force")]).await;
    equal(&[&eu, &ap]).await;
    assert_eq!(
        us.head(org).await.unwrap(),
        branch,
        "it has heard of nothing"
    );
    assert!(aside(&ap).await.is_empty());
    net.heal();
    equal(&[&us, &eu, &ap]).await;
    assert_eq!(
        numbers(&aside(&us).await, org),
        [common.n + 1, common.n + 2]
    );
    assert_eq!(aside(&us).await[1].1.head, branch, "as it was made");
    assert!(aside(&eu).await.is_empty() && aside(&ap).await.is_empty());
    // Its content and its secret are still there, for a person.
    let content = proto::store::load::version(&*us.store, org, branch, None)
        .await
        .unwrap();
    assert_eq!(content.config.objects.len(), 3);
    let kept = us.dump(&["secrets/"]).await;
    assert_eq!(kept.len(), 3, "sealed for every region");
    let refused = us.try_publish(org, vec![rename(1, "late")]).await;
    assert!(matches!(refused, Err(PublishError::NotHome { home, .. }) if home == "eu"));
}

/// Schedule B: a version that only one follower has. If that follower is asked it survives; if it
/// is not, it is set aside there, and nobody builds on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_of_one_follower_survives_if_that_one_is_asked() {
    for asked in [true, false] {
        let (net, [us, eu, ap], _following) = three().await;
        let org = us.org();
        net.cut("us", "eu");
        us.publish(org, vec![create_target(1, "in us and ap")])
            .await;
        equal(&[&us, &ap]).await;
        net.cut("us", "ap");
        let ten = ap.head(org).await.unwrap();
        if !asked {
            net.cut("eu", "ap");
        }
        let promotion = eu.replication.promote(!asked).await.unwrap();
        let from = &promotion.promoted[1].from;
        assert_eq!(from, if asked { "ap" } else { "eu" });
        eu.publish(org, vec![create_target(2, "of eu")]).await;
        net.heal();
        equal(&[&us, &eu, &ap]).await;
        let record = eu.dump(&[&keys::version(org, ten.n)]).await;
        let record: VersionRecord =
            serde_json::from_slice(record.values().next().unwrap()).unwrap();
        assert_eq!(record.head == ten, asked);
        for region in [&us, &ap] {
            let expected: Vec<u64> = if asked { vec![] } else { vec![ten.n] };
            assert_eq!(
                numbers(&aside(region).await, org),
                expected,
                "{}",
                region.name()
            );
        }
    }
}

/// Schedule C: two operators promote two regions during a cut. Both open the same counter; one of
/// them is in force in the end.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_promotions_at_one_time_one_is_in_force() {
    let (net, [us, eu, ap], _following) = three().await;
    let org = us.org();
    for (one, other) in [("us", "eu"), ("us", "ap"), ("eu", "ap")] {
        net.cut(one, other);
    }
    for region in [&eu, &ap] {
        let promotion = region.replication.promote(true).await.unwrap();
        assert_eq!(promotion.promoted[1].first.epoch.counter, 2);
        region
            .publish(org, vec![create_target(1, region.name())])
            .await;
        region.publish(org, vec![rename(1, "again")]).await;
    }
    net.heal();
    equal(&[&us, &eu, &ap]).await;
    // By counter, then by name.
    let home = home(&us, org).await;
    assert_eq!((home.epoch.counter, home.region.as_str()), (2, "eu"));
    let made = eu.head(org).await.unwrap();
    assert_eq!(
        numbers(&aside(&ap).await, org),
        [made.n - 2, made.n - 1, made.n]
    );
    assert!(aside(&eu).await.is_empty());
    let own = aside(&ap).await;
    // us may have followed ap for a moment.
    let of_us = aside(&us).await;
    assert!(of_us.iter().all(|version| own.contains(version)));
    assert!(
        own.iter()
            .all(|(_, record)| record.head.epoch.region == "ap")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_that_was_created_on_a_branch_is_set_aside_whole() {
    let (net, [us, eu, ap], _following) = three().await;
    net.cut("us", "eu");
    net.cut("us", "ap");
    let acme = OrgId::new();
    us.publish(SYSTEM_ORG, vec![create_org(acme, "acme")]).await;
    us.publish(acme, vec![create_target(1, "of acme")]).await;
    us.seen(acme).await;
    eu.replication.promote(false).await.unwrap();
    net.heal();
    equal(&[&us, &eu, &ap]).await;
    comes("the end of what no name leads to", || async {
        us.head(acme).await.is_none()
    })
    .await;
    assert_eq!(numbers(&aside(&us).await, acme), [1, 2]);
    assert_eq!(numbers(&aside(&us).await, SYSTEM_ORG).len(), 1);
    assert!(
        !us.dump(&[&keys::leaves(acme)]).await.is_empty(),
        "its content stays"
    );
}

/// A hand-over to a region that is gone ends with a promotion; the region that was to be home
/// comes back as a follower.
#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_was_sealed_for_a_region_that_is_gone_is_promoted_again() {
    let (net, [us, eu, ap], following) = three().await;
    let org = us.org();
    let [us_follows, eu_follows, ap_follows] = following;
    drop(eu_follows);
    for org in [SYSTEM_ORG, org] {
        us.publisher.seal_home(org, "eu").await.unwrap();
    }
    comes("the seal", || async {
        us.homes.of(org).unwrap().sealed.is_some()
    })
    .await;
    // While eu answers it is waited for, unless a person says that it cannot open.
    let waited = us.replication.promote(false).await;
    assert!(matches!(waited, Err(PromoteError::Homed(home)) if home == ["eu"]));
    net.cut("us", "eu");
    net.cut("ap", "eu");
    us.replication.promote(false).await.unwrap();
    us.publish(org, vec![create_target(1, "goes on")]).await;
    net.heal();
    let _following = (us_follows, super::moves::following(&eu), ap_follows);
    equal(&[&us, &eu, &ap]).await;
    assert_eq!(home(&eu, org).await.region, "us");
}
