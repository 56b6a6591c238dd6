//! Two histories under one name (`schedules.md` part two, 16): the store of home was restored,
//! nobody noticed, and home went on in its epoch while other regions have what it lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::id::OrgId;
use proto::keys;
use proto::store::{Op, Store, Txn};
use proto::tree::{SYSTEM_ORG, VersionRecord};

use super::super::{HandOverError, PromoteError};
use super::by_region::Swept;
use super::departed::create_org;
use super::moves::{Following, aside, comes, equal, following, home, numbers};
use super::net::{Net, Region, create_credential, create_target, installation, rename};
use crate::publish::PublishError;

/// What a store has of the configuration, facts included, as a backup has it.
const BACKED_UP: &[&str] = &[
    "live/",
    "versions/",
    "signatures/",
    "home/",
    "lineage/",
    "replication/",
];

/// Puts a store back to a backup.
async fn restore(region: &Region, backup: BTreeMap<String, Vec<u8>>) {
    let now = region.dump(BACKED_UP).await;
    let later = now.into_keys().filter(|key| !backup.contains_key(key));
    let ops: Vec<Op> = later.map(Op::Delete).collect();
    let back = backup.into_iter().map(|(key, value)| Op::put(key, value));
    for op in ops.into_iter().chain(back) {
        let txn = Txn {
            ops: vec![op],
            ..Txn::default()
        };
        region.store.txn(txn).await.unwrap();
    }
}

/// Three regions of which `us` is home and has gone back. `eu` has so many versions that `us` lost,
/// and `us` has made so many others under the same numbers, which `ap` has.
struct Diverged {
    net: Arc<Net>,
    us: Region,
    eu: Region,
    ap: Region,
    org: OrgId,
    /// The last version that all have.
    common: u64,
    lost: Vec<u64>,
    made: Vec<u64>,
    _following: [Following; 3],
}

async fn diverged(lost: u64, made: u64) -> Diverged {
    let (net, regions) = installation(&["us", "eu", "ap"]).await;
    let [us, eu, ap]: [Region; 3] = regions.try_into().ok().unwrap();
    let (of_us, of_eu, of_ap) = (following(&us), following(&eu), following(&ap));
    let org = us.org();
    us.publish(org, vec![create_target(1, "before")]).await;
    let secret = create_credential(&us.publisher, 1, "of all");
    us.publish(org, vec![secret]).await;
    equal(&[&us, &eu, &ap]).await;
    let common = us.head(org).await.unwrap().n;
    let backup = us.dump(BACKED_UP).await;
    net.cut("us", "ap");
    net.cut("eu", "ap");
    for at in 0..lost {
        us.publish(org, vec![rename(1, &format!("lost {at}"))])
            .await;
    }
    equal(&[&us, &eu]).await;
    // All of the region is put back, so that nobody in it has seen more.
    net.cut("us", "eu");
    drop(of_us);
    restore(&us, backup).await;
    let us = us.restarted();
    for at in 0..made {
        us.publish(org, vec![rename(1, &format!("made {at}"))])
            .await;
    }
    us.seen(org).await;
    net.heal();
    let of_us = following(&us);
    equal(&[&us, &ap]).await;
    comes("the fork", || async {
        eu.replication
            .status
            .following("us")
            .diverged
            .contains_key(&org)
    })
    .await;
    Diverged {
        net,
        us,
        eu,
        ap,
        org,
        common,
        lost: (common + 1..=common + lost).collect(),
        made: (common + 1..=common + made).collect(),
        _following: [of_us, of_eu, of_ap],
    }
}

/// The names of versions that a region keeps in its line, or has set aside.
async fn hashes(region: &Region, org: OrgId) -> BTreeSet<String> {
    let records = region.dump(&[&keys::versions(org)]).await;
    let records = records.values();
    records
        .map(|json| serde_json::from_slice::<VersionRecord>(json).unwrap())
        .map(|record| record.head.hash.to_string())
        .collect()
}

impl Diverged {
    /// Waits until one branch is in force everywhere; then each region has exactly these aside, and
    /// lists them.
    async fn ends(&self, expected: [&[u64]; 3]) {
        let regions = [&self.us, &self.eu, &self.ap];
        equal(&regions).await;
        comes("the end of it", || async {
            let diverged = |region: &Region| {
                let of = |peer| region.replication.status.following(peer).diverged;
                ["us", "eu", "ap"]
                    .into_iter()
                    .any(|peer| !of(peer).is_empty())
            };
            !regions.into_iter().any(diverged)
        })
        .await;
        for (region, expected) in regions.into_iter().zip(expected) {
            let name = region.name();
            assert_eq!(numbers(&aside(region).await, self.org), expected, "{name}");
            let listed = region.publisher.aside().await.unwrap();
            assert_eq!(numbers(&listed, self.org), expected, "listed in {name}");
            let line = hashes(region, self.org).await;
            for (_, record) in listed {
                assert!(!line.contains(&record.head.hash.to_string()), "{name}");
                // As it was made, with its content.
                let head = record.head.clone();
                let loaded = proto::store::load::version(&*region.store, self.org, head, None);
                assert_eq!(loaded.await.unwrap().config.objects.len(), 2, "{name}");
            }
        }
        // Everybody goes on.
        let home = home(&self.us, self.org).await.region;
        let at_home = regions.into_iter().find(|region| region.name() == home);
        at_home
            .unwrap()
            .publish(self.org, vec![rename(1, "after all")])
            .await;
        equal(&regions).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_decides_that_the_history_of_home_counts() {
    // Home may have made fewer versions than it lost, as many, more, or none at all.
    for (lost, made) in [(5, 7), (4, 4), (5, 2), (3, 0)] {
        let of = diverged(lost, made).await;
        assert_eq!(of.eu.head(of.org).await.unwrap().n, of.common + lost);
        let decided = of.us.replication.decide(false).await.unwrap();
        let orgs: Vec<OrgId> = decided.promoted.iter().map(|one| one.org).collect();
        assert_eq!(orgs, [of.org], "and nothing that does not differ");
        of.ends([&[], &of.lost, &[]]).await;
        assert_eq!(home(&of.eu, of.org).await.region, "us");
        let again = of.us.replication.decide(false).await;
        assert!(matches!(again, Err(PromoteError::Agreed)), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_decides_that_the_history_of_a_follower_counts() {
    for (lost, made) in [(5, 7), (4, 4), (5, 2), (3, 0)] {
        let of = diverged(lost, made).await;
        // Neither region that has the history of home has anything to decide for home.
        let nothing = of.ap.replication.decide(false).await;
        assert!(matches!(nothing, Err(PromoteError::Agreed)), "{nothing:?}");
        let decided = of.eu.replication.decide(false).await.unwrap();
        let [promoted] = &decided.promoted[..] else {
            panic!("{decided:?}");
        };
        assert_eq!((promoted.org, &*promoted.from), (of.org, "eu"));
        assert_eq!(promoted.first.n, of.common + lost + 1);
        of.ends([&of.made, &[], &of.made]).await;
        assert_eq!(home(&of.us, of.org).await.region, "eu");
        let refused = of.us.try_publish(of.org, vec![rename(1, "late")]).await;
        assert!(matches!(refused, Err(PublishError::NotHome { home, .. }) if home == "eu"));
    }
}

/// Home has moved since, or was made so by force: the higher epoch counts, by hash.
#[tokio::test(flavor = "multi_thread")]
async fn a_higher_epoch_ends_it_without_a_decision() {
    for (lost, made) in [(5, 7), (5, 2)] {
        let of = diverged(lost, made).await;
        of.us.replication.hand_over("ap").await.unwrap();
        of.ends([&[], &of.lost, &[]]).await;
        assert_eq!(home(&of.eu, of.org).await.region, "ap");
    }
    // The promoted region has the history that home lost; home and the other one are away.
    let of = diverged(5, 7).await;
    of.net.cut("us", "eu");
    of.net.cut("us", "ap");
    let promoted = of.eu.replication.promote(false).await.unwrap();
    let one = promoted.promoted.iter().find(|one| one.org == of.org);
    assert_eq!(one.unwrap().from, "eu");
    of.net.heal();
    of.ends([&of.made, &[], &of.made]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_handed_over_to_a_region_that_has_another_history() {
    let of = diverged(4, 4).await;
    let refused = of.us.replication.hand_over("eu").await;
    let Err(HandOverError::Unfit { region, why }) = refused else {
        panic!("{refused:?}");
    };
    assert!(region == "eu" && why.contains("--diverged"), "{why}");
    assert!(home(&of.us, of.org).await.is_open_in("us"));
    // Once it is decided it is.
    of.us.replication.decide(false).await.unwrap();
    of.ends([&[], &of.lost, &[]]).await;
    of.us.replication.hand_over("eu").await.unwrap();
    equal(&[&of.us, &of.eu, &of.ap]).await;
}

/// The records of what home made under the number have left its store; their names have not.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_whose_record_has_left_the_store_still_has_one_name() {
    let of = diverged(2, 30).await;
    let records = of.us.dump(&[&keys::versions(of.org)]).await;
    let mut lineage = proto::tree::Lineage::default();
    let mut ops = Vec::new();
    for (key, json) in records.iter().take(records.len() - 5) {
        let record: VersionRecord = serde_json::from_slice(json).unwrap();
        lineage.extend(std::iter::once(&record.head));
        ops.push(Op::Delete(key.clone()));
    }
    let lineage = serde_json::to_vec(&lineage).unwrap();
    ops.push(Op::put(keys::lineage(of.org), lineage));
    let txn = Txn {
        ops,
        ..Txn::default()
    };
    of.us.store.txn(txn).await.unwrap();
    let before = of.eu.head(of.org).await.unwrap();
    // Told anew, it is asked for anew: it is no gap.
    of.us.publish(of.org, vec![rename(1, "further")]).await;
    equal(&[&of.us, &of.ap]).await;
    of.us.replication.decide(false).await.unwrap();
    equal(&[&of.us, &of.eu, &of.ap]).await;
    assert_eq!(numbers(&aside(&of.eu).await, of.org), of.lost);
    assert_eq!(aside(&of.eu).await.last().unwrap().1.head, before);
}

/// Keeps three versions in the store of a region, and the older ones in its archive alone.
async fn archived(region: &Region, org: OrgId) -> Swept {
    let swept = Swept::of(region, 3);
    comes("older versions in the archive alone", || async {
        region.dump(&[&keys::versions(org)]).await.len() == 3
    })
    .await;
    swept
}

/// The store of the follower keeps fewer versions than home has lost, and home has made fewer: the
/// archive alone has those that lie where home's history has others.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_archived_of_the_branch_is_set_aside_too() {
    let of = diverged(12, 6).await;
    let (eu, org) = (&of.eu, of.org);
    let _swept = archived(eu, org).await;
    let before = eu.publisher.versions(org, u64::MAX, 100).await.unwrap();
    let hashes = before.iter().map(|kept| kept.record.head.clone());
    let lost: BTreeSet<_> = hashes
        .filter(|head| head.n > of.common)
        .map(|head| head.hash)
        .collect();
    assert_eq!(lost.len(), of.lost.len());
    of.us.replication.decide(false).await.unwrap();
    equal(&[&of.us, &of.eu, &of.ap]).await;
    comes("all of the branch aside", || async {
        numbers(&eu.publisher.aside().await.unwrap(), org) == of.lost
    })
    .await;
    comes("nothing of it in the history", || async {
        let kept = eu.publisher.versions(org, u64::MAX, 100).await.unwrap();
        let heads = || kept.iter().map(|kept| &kept.record.head);
        // What all have in common stays where it is.
        assert!(heads().any(|head| head.n == of.common));
        !heads().any(|head| lost.contains(&head.hash))
    })
    .await;
}

/// As where the other region takes as many connections as it may have.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_branch_is_left_though_no_second_connection_can_be_had() {
    let of = diverged(12, 6).await;
    let (eu, org) = (&of.eu, of.org);
    let _swept = archived(eu, org).await;
    of.net.refuse("eu", "us");
    let tried = of.net.tried("eu", "us");
    of.us.replication.decide(false).await.unwrap();
    equal(&[&of.us, &of.eu, &of.ap]).await;
    assert!(of.net.tried("eu", "us") > tried, "it was asked for");
}

/// An organisation whose creation was lost, and one that was created instead.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_created_on_either_history_goes_with_it() {
    for decides in ["us", "eu"] {
        let (net, regions) = installation(&["us", "eu", "ap"]).await;
        let [us, eu, ap]: [Region; 3] = regions.try_into().ok().unwrap();
        let of_us = following(&us);
        let _followers = [following(&eu), following(&ap)];
        equal(&[&us, &eu, &ap]).await;
        let backup = us.dump(BACKED_UP).await;
        net.cut("us", "ap");
        net.cut("eu", "ap");
        let (lost, made) = (OrgId::new(), OrgId::new());
        created(&us, lost, "lost").await;
        equal(&[&us, &eu]).await;
        net.cut("us", "eu");
        drop(of_us);
        restore(&us, backup).await;
        let us = us.restarted();
        created(&us, made, "made").await;
        us.seen(SYSTEM_ORG).await;
        net.heal();
        let _of_us = following(&us);
        equal(&[&us, &ap]).await;
        comes("the fork", || async {
            let diverged = eu.replication.status.following("us").diverged;
            diverged.contains_key(&SYSTEM_ORG)
        })
        .await;
        let region = if decides == "us" { &us } else { &eu };
        let decided = region.replication.decide(false).await.unwrap();
        let orgs = decided.promoted.iter().map(|one| one.org);
        let mut expected = vec![SYSTEM_ORG];
        expected.extend((decides == "eu").then_some(lost));
        assert_eq!(orgs.collect::<Vec<_>>(), expected);
        let (stays, goes) = match decides {
            "us" => (made, lost),
            _ => (lost, made),
        };
        let all = [&us, &eu, &ap];
        for region in all {
            comes("what counts, and no more", || async {
                region.head(stays).await.is_some() && region.head(goes).await.is_none()
            })
            .await;
            let had_it = (decides == "us") == (region.name() == "eu");
            let aside = numbers(&aside(region).await, goes);
            // Who heard of both versions at one time has taken the newest alone.
            let expected = had_it.then_some(&2);
            assert_eq!(aside.last(), expected, "{} in {decides}", region.name());
        }
        equal(&all).await;
        assert_eq!(home(&us, stays).await.region, decides);
        region.publish(stays, vec![rename(1, "after all")]).await;
        equal(&all).await;
    }
}

async fn created(us: &Region, org: OrgId, slug: &str) {
    us.publish(SYSTEM_ORG, vec![create_org(org, slug)]).await;
    us.publish(org, vec![create_target(1, slug)]).await;
    us.seen(org).await;
}
