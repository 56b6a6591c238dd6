//! Organisations that cannot be taken: the others go on, each of them is told and as old as it is,
//! and it is tried again. And what is not to wait behind others.

use std::collections::BTreeMap;
use std::time::Instant;

use proto::exposition::text::Form;
use proto::id::OrgId;
use proto::keys;
use proto::store::{Op, Store, Txn};
use proto::tree::SYSTEM_ORG;
use serde_json::Value;

use super::super::taking::Taking;
use super::super::turns::ORGS_AT_ONCE;
use super::at_one_time::{Gate, same_head};
use super::departed::many;
use super::moves::{comes, home};
use super::net::{Region, rename};

async fn write(region: &Region, ops: Vec<Op>) {
    let txn = Txn {
        ops,
        ..Txn::default()
    };
    region.store.txn(txn).await.unwrap();
}

/// Takes what is told until a test is over.
async fn while_taking(mut taking: Taking<'_>, test: impl Future<Output = ()>) {
    let taking = async {
        loop {
            taking.go_on().await.unwrap();
        }
    };
    tokio::select! {
        () = taking => unreachable!("it goes on for ever"),
        () = test => {}
    }
}

/// Deletes the content of an organisation; gives what puts it back.
async fn lose_content(region: &Region, org: OrgId) -> Vec<Op> {
    let leaves = region.dump(&[&keys::leaves(org)]).await;
    assert!(!leaves.is_empty());
    write(region, leaves.keys().cloned().map(Op::Delete).collect()).await;
    let puts = leaves.into_iter();
    puts.map(|(key, value)| Op::put(key, value)).collect()
}

fn untaken(region: &Region) -> BTreeMap<OrgId, String> {
    region.replication.status.following("us").untaken
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_that_cannot_be_read_here_keeps_no_other_waiting() {
    let (us, eu, orgs) = many(4).await;
    let [broken, slow, others @ ..] = &*orgs else {
        unreachable!("four")
    };
    let content = lose_content(&eu, *broken).await;
    let eu = eu.restarted();
    eu.seen(SYSTEM_ORG).await;
    for org in &orgs {
        us.publish(*org, vec![rename(1, "second")]).await;
        us.seen(*org).await;
    }
    let gate = Gate::new([*slow]);
    let way = gate.connect(us.source.clone()).await;
    let test = async {
        for name in ["third", "fourth"] {
            for org in others {
                us.publish(*org, vec![rename(1, name)]).await;
                comes("the others", || same_head(&us, &eu, *org)).await;
            }
        }
        comes("what is wrong", || async {
            untaken(&eu).contains_key(broken)
        })
        .await;
        assert_eq!(untaken(&eu).len(), 1);
        let metrics = eu.replication.status.families(&["us".to_owned()]);
        let metrics = metrics.text(Form::Prometheus);
        assert!(metrics.contains("requestrocket_replication_untaken 1\n"));
        // Put right it is taken, without news and while another one is under way.
        write(&eu, content).await;
        comes("the mended one", || same_head(&us, &eu, *broken)).await;
        comes("the end of it", || async { untaken(&eu).is_empty() }).await;
        assert!(!same_head(&us, &eu, *slow).await);
        gate.open();
        comes("the slow one", || same_head(&us, &eu, *slow)).await;
    };
    while_taking(Taking::new(&eu.replication, &way, &None), test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_that_is_damaged_at_home_keeps_no_other_waiting() {
    let (us, eu, orgs) = many(3).await;
    let (broken, others) = orgs.split_first().unwrap();
    for org in &orgs {
        us.publish(*org, vec![rename(1, "second")]).await;
        us.seen(*org).await;
    }
    let content = lose_content(&us, *broken).await;
    let gate = Gate::new([]);
    gate.open();
    let way = gate.connect(us.source.clone()).await;
    let test = async {
        for org in others {
            comes("the others", || same_head(&us, &eu, *org)).await;
        }
        comes("what is wrong", || async {
            untaken(&eu).contains_key(broken)
        })
        .await;
        us.publish(others[0], vec![rename(1, "third")]).await;
        comes("a later one", || same_head(&us, &eu, others[0])).await;
        // Put right there it is taken by itself.
        write(&us, content).await;
        comes("the mended one", || same_head(&us, &eu, *broken)).await;
        comes("the end of it", || async { untaken(&eu).is_empty() }).await;
    };
    while_taking(Taking::new(&eu.replication, &way, &None), test).await;
}

/// What a region has told of no more keeps nothing of it stuck.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_at_home_is_stuck_no_longer() {
    let (_, eu, orgs) = many(2).await;
    let status = &eu.replication.status;
    status.follow("us", |of| {
        for org in &orgs {
            of.untaken.insert(*org, "a fault".to_owned());
        }
    });
    status.keep_only("us", &orgs[..1].iter().copied().collect());
    assert_eq!(untaken(&eu).into_keys().collect::<Vec<_>>(), orgs[..1]);
    status.leave_to_others();
    assert!(untaken(&eu).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_over_does_not_wait_behind_others() {
    let (us, eu, orgs) = many(ORGS_AT_ONCE + 3).await;
    let (handed_over, slow) = orgs.split_first().unwrap();
    for org in slow {
        us.publish(*org, vec![rename(1, "second")]).await;
        us.seen(*org).await;
    }
    let gate = Gate::new(slow.iter().copied());
    let way = gate.connect(us.source.clone()).await;
    let test = async {
        gate.holds(ORGS_AT_ONCE).await;
        us.publisher.seal_home(*handed_over, "eu").await.unwrap();
        comes("the opening", || async {
            home(&eu, *handed_over).await.is_open_in("eu")
        })
        .await;
        gate.holds(ORGS_AT_ONCE).await;
        gate.open();
        for org in slow {
            comes("the slow ones", || same_head(&us, &eu, *org)).await;
        }
    };
    while_taking(Taking::new(&eu.replication, &way, &None), test).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_lacks_system_alone_is_not_current() {
    let (us, eu, orgs) = many(1).await;
    let gate = Gate::new([SYSTEM_ORG]);
    let way = gate.connect(us.source.clone()).await;
    let current_at = || eu.replication.status.following("us").current_at;
    let test = async {
        let begun = Instant::now();
        comes("what was there", || async {
            current_at().is_some_and(|at| at >= begun)
        })
        .await;
        let create = super::departed::create_org(OrgId::new(), "new");
        us.publish(SYSTEM_ORG, vec![create]).await;
        gate.holds(1).await;
        let told = Instant::now();
        for name in ["second", "third"] {
            us.publish(orgs[0], vec![rename(1, name)]).await;
            comes("the other", || same_head(&us, &eu, orgs[0])).await;
        }
        assert!(current_at().is_some_and(|at| at < told));
        gate.open();
        comes("system", || same_head(&us, &eu, SYSTEM_ORG)).await;
        comes("the end of the lag", || async {
            current_at().is_some_and(|at| at > told)
        })
        .await;
    };
    while_taking(Taking::new(&eu.replication, &way, &None), test).await;
}

/// As of when the copy of each organisation is that is not current, as it is written down.
async fn behind(region: &Region) -> (String, BTreeMap<OrgId, Option<String>>) {
    let noted = region.dump(&[&keys::followed("us")]).await;
    let noted: Value = serde_json::from_slice(noted.values().next().unwrap()).unwrap();
    let behind = match &noted["behind"] {
        Value::Null => BTreeMap::new(),
        behind => serde_json::from_value(behind.clone()).unwrap(),
    };
    (noted["at"].as_str().unwrap().to_owned(), behind)
}

/// One round of a control plane that has just started: it writes down what is current.
async fn round(us: &Region, eu: &Region) -> Region {
    let eu = eu.restarted();
    eu.seen(SYSTEM_ORG).await;
    let way = Gate::new([]);
    way.open();
    let way = way.connect(us.source.clone()).await;
    eu.replication.round(&way, &None).await.unwrap();
    eu
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_renewed_is_no_younger_for_what_is_told_of_it() {
    let (us, eu, orgs) = many(4).await;
    let [broken, unsigned, diverged, fine] = orgs[..] else {
        unreachable!("four")
    };
    let eu = round(&us, &eu).await;
    let (first, none) = behind(&eu).await;
    assert_eq!(none, BTreeMap::new());
    lose_content(&eu, broken).await;
    // What eu has was made by us, which then lost it and went on from the version before.
    let old = us
        .dump(&[&keys::head(diverged), &keys::delta(diverged)])
        .await;
    us.publish(diverged, vec![rename(1, "lost")]).await;
    us.seen(diverged).await;
    let lost = us.head(diverged).await.unwrap();
    let eu = round(&us, &eu).await;
    let (second, _) = behind(&eu).await;
    let stuck = [
        (broken, first),
        (unsigned, second.clone()),
        (diverged, second),
    ];
    let stuck: BTreeMap<_, _> = stuck.map(|(org, at)| (org, Some(at))).into();
    let version = Op::Delete(keys::version(diverged, lost.n));
    let back = old.into_iter().map(|(key, value)| Op::put(key, value));
    write(&us, back.chain([version]).collect()).await;
    let us = us.restarted();
    let mut none = us.signing.clone();
    none.signers.clear();
    for name in ["second", "third"] {
        us.publish(broken, vec![rename(1, name)]).await;
        us.publish(diverged, vec![rename(1, name)]).await;
        us.publish(fine, vec![rename(1, name)]).await;
        let without = us.restarted_with(&none);
        without.publish(unsigned, vec![rename(1, name)]).await;
        for org in &orgs {
            us.seen(*org).await;
        }
        let eu = round(&us, &eu).await;
        assert!(same_head(&us, &eu, fine).await);
        let following = eu.replication.status.following("us");
        assert!(following.untaken.contains_key(&broken), "{following:?}");
        assert!(
            following.unverified.contains_key(&unsigned),
            "{following:?}"
        );
        assert!(following.diverged.contains_key(&diverged), "{following:?}");
        let (_, behind) = behind(&eu).await;
        assert_eq!(behind, stuck);
    }
}
