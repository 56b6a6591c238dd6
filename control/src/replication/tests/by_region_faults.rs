//! Content by region where connections break, regions lag, and homes move without being asked.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use proto::id::CredentialId;
use proto::keys;
use proto::object::ObjectId;
use proto::store::{Op, Store, Txn, load};
use proto::tree::Hash;
use proto::wire::replication::Ask;
use serde_json::json;

use super::super::completing::Unhad;
use super::super::source::ANSWER_BYTES;
use super::by_region::{
    Swept, change, credential, found, newest, pinned, proxy, relabelled, sealed_for, strict, three,
    whole,
};
use super::moves::{aside, comes, equal, following, home};
use super::net::{Region, connect, installation_by_region, rename};

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_breaks_off_at_any_byte_is_done_again() {
    let (net, [us, eu, ap], [_us, _eu, ap_follows]) = three(json!(["eu"])).await;
    let org = us.org();
    drop(ap_follows);
    net.cut("us", "ap");
    net.cut("eu", "ap");
    let mut broke_off = 0;
    for bytes in (100..).step_by(150) {
        let left = Arc::new(AtomicUsize::new(bytes));
        let Ok(connection) = connect(us.source_of(ANSWER_BYTES), ("ap", "us"), left).await else {
            continue;
        };
        let done = ap
            .replication
            .complete(&[&connection], org, Unhad::Refuses)
            .await;
        // Half of it is none of it.
        let known = ap.restarted().publisher.load(org).await.unwrap();
        if done.is_ok() {
            break;
        }
        assert_eq!(known.withheld().collect::<Vec<_>>(), ["eu"], "{bytes}");
        broke_off += 1;
    }
    assert!(broke_off > 5, "{broke_off}");
    let whole = ap.restarted().publisher.load(org).await.unwrap();
    assert_eq!(whole.withheld().next(), None);
    assert_eq!(sealed_for(&ap).await, ["eu"]);
    drop(eu);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_have_what_is_lacking_is_not_asked_at_each_try() {
    let (net, [us, eu, ap], follow) = three(json!(["eu"])).await;
    let org = us.org();
    drop(follow);
    net.cut("eu", "ap");
    let head = us.head(org).await.unwrap();
    let root = keys::leaf(org, &head.roots["eu"]);
    let content = eu.store.get(&root).await.unwrap().value.unwrap();
    let write = async |region: &Region, op| {
        let txn = Txn {
            ops: vec![op],
            ..Txn::default()
        };
        region.store.txn(txn).await.unwrap();
    };
    write(&us, Op::Delete(root.clone())).await;
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let way = connect(us.source.clone(), ("ap", "us"), left);
    let way = way.await.unwrap();
    let stuck = async || {
        let tried = ap.replication.complete(&[&way], org, Unhad::Refuses).await;
        assert!(tried.unwrap_err().to_string().contains("eu alone keeps"));
    };
    let status = &ap.replication.status;
    status.broke_off("eu", "cut".to_owned());
    let before = net.tried("ap", "eu");
    for _ in 0..4 {
        stuck().await;
    }
    assert_eq!(net.tried("ap", "eu") - before, 1, "it is gone");
    // It comes back without what it kept.
    net.heal();
    status.follow("eu", |of| of.connected = Some(Instant::now()));
    write(&eu, Op::Delete(root.clone())).await;
    for _ in 0..4 {
        stuck().await;
    }
    assert_eq!(net.tried("ap", "eu") - before, 2, "it has nothing");
    // And again, with it.
    write(&eu, Op::put(root, content.value)).await;
    status.follow("eu", |of| of.connected = Some(Instant::now()));
    ap.replication
        .complete(&[&way], org, Unhad::Refuses)
        .await
        .unwrap();
    assert_eq!(net.tried("ap", "eu") - before, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_lagged_when_home_was_lost_goes_on_from_what_it_has() {
    let (net, [us, eu, ap], [us_follows, ..]) = three(json!(["eu"])).await;
    let org = us.org();
    drop(us_follows);
    net.cut("us", "eu");
    us.publish(org, vec![relabelled("late")]).await;
    let last = us.head(org).await.unwrap();
    let come = following(&ap);
    comes("the last version in ap", || async {
        ap.head(org).await.as_ref() == Some(&last)
    })
    .await;
    net.cut("us", "ap");
    drop(come);
    // ap has the newest, and not all of it; eu has all of an earlier one.
    for force in [false, true] {
        match ap.replication.promote(force).await {
            Ok(promotion) => assert_eq!(promotion.left[0].0, org),
            Err(error) => assert!(error.to_string().contains("--force"), "{error}"),
        }
    }
    let unforced = eu.replication.promote(false).await.unwrap_err().to_string();
    assert!(unforced.contains("--force"), "{unforced}");
    let promotion = eu.replication.promote(true).await.unwrap();
    assert_eq!(promotion.promoted[0].org, org);
    let _following = [following(&eu), following(&ap)];
    eu.publish(org, vec![relabelled("of eu")]).await;
    equal(&[&eu, &ap]).await;
    assert!(whole(&eu).await);
    let left: Vec<u64> = aside(&ap).await.iter().map(|(_, of)| of.head.n).collect();
    assert!(left.contains(&last.n), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_is_set_aside_with_what_nobody_else_has_of_it() {
    let (net, [us, eu, ap], _following) = three(json!(["eu"])).await;
    let org = us.org();
    net.cut("us", "eu");
    net.cut("us", "ap");
    for step in 0..4 {
        us.publish(org, vec![relabelled(step)]).await;
    }
    ap.replication.promote(false).await.unwrap();
    // us learns of it, and cannot yet follow.
    net.heal();
    net.cut("us", "ap");
    comes("the new home in us", || async {
        home(&us, org).await.region == "ap"
    })
    .await;
    let garbage = keys::leaf(org, &Hash::of(b"garbage"));
    let put = Txn {
        ops: vec![Op::put(garbage.clone(), "x")],
        ..Txn::default()
    };
    us.store.txn(put).await.unwrap();
    let _swept = Swept::of(&us, 1_000);
    comes("a sweep", || async {
        us.store.get(&garbage).await.unwrap().value.is_none()
    })
    .await;
    net.heal();
    equal(&[&us, &eu, &ap]).await;
    let branch = aside(&us).await;
    assert!(branch.len() >= 4, "{branch:?}");
    for (of, record) in branch.into_iter().filter(|(of, _)| *of == org) {
        let loaded = load::version(&*us.store, of, record.head, None)
            .await
            .unwrap();
        assert_eq!(loaded.config.withheld().next(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_narrowed_within_one_answer_goes_too() {
    let (net, regions) = installation_by_region(&["us", "eu", "ap"]).await;
    let [us, eu, ap]: [Region; 3] = regions.try_into().ok().unwrap();
    let _following = [&us, &eu, &ap].map(following);
    let org = us.org();
    let of_eu = json!({"name": "c", "hosts": ["h1.example"], "regions": ["eu"]});
    us.publish(org, vec![credential(&us, ("target", 77), of_eu)])
        .await;
    equal(&[&us, &eu, &ap]).await;
    net.cut("us", "ap");
    net.cut("eu", "ap");
    us.publish(org, pinned(&us, &json!(["*"]))).await;
    let its = ObjectId::Credential(CredentialId::from_bits(1));
    let narrowed = vec![
        change(proxy(), |fields| fields["regions"] = json!(["eu"])),
        change(its, |fields| {
            fields["credential"]["regions"] = json!(["eu"])
        }),
    ];
    us.publish(org, narrowed).await;
    net.heal();
    equal(&[&us, &eu, &ap]).await;
    assert!(!found(&ap).await.is_empty(), "it came with the answer");
    let swept = Swept::of(&ap, 3);
    for step in 0..5 {
        us.publish(org, vec![rename(1, &format!("s{step}"))]).await;
        equal(&[&us, &eu, &ap]).await;
    }
    comes("nothing of it in ap", || async {
        found(&ap).await.is_empty() && swept.found(&ap).await.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_a_home_before_forget_what_they_do_not_keep() {
    let (_net, [us, eu, ap], _following) = three(json!(["eu"])).await;
    let org = us.org();
    us.replication.hand_over("ap").await.unwrap();
    equal(&[&us, &eu, &ap]).await;
    comes("the part in us", || async {
        let world = us.worlds.borrow().clone();
        let config = &world.orgs[&org].config;
        config.withheld().eq(["eu"]) && !config.objects.contains_key(&its_credential())
    })
    .await;
    ap.seen(org).await;
    let world = ap.worlds.borrow().clone();
    assert_eq!(world.orgs[&org].config.withheld().next(), None);
}

fn its_credential() -> ObjectId {
    ObjectId::Credential(CredentialId::from_bits(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_not_given_what_is_strictly_of_others_whoever_asks_there() {
    let (_net, [us, eu, ap], _following) = three(json!(["us", "eu"])).await;
    let org = us.org();
    us.publish(org, vec![strict(json!(["eu", "us"]))]).await;
    equal(&[&us, &eu, &ap]).await;
    us.seen(org).await;
    let config = newest(&us).await;
    let hashes: Vec<Hash> = config.reaches_beyond("ap").collect();
    assert!(hashes.len() >= 2, "a root and its leaves");
    for hash in hashes {
        for (region, given) in [("eu", true), ("ap", false)] {
            let left = Arc::new(AtomicUsize::new(usize::MAX));
            let way = (region, "us");
            let connection = connect(us.source.clone(), way, left).await.unwrap();
            let ask = Ask::Leaves {
                org,
                hashes: vec![hash],
            };
            let answer = connection.ask(&ask, Duration::from_secs(1)).await;
            assert_eq!(answer.is_ok(), given, "{region}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_regions_as_an_object_may_list_have_a_set_each() {
    let names: Vec<String> = (0..32)
        .map(|at| format!("region-{at:02}-of-many"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (_net, regions) = installation_by_region(&names).await;
    let home = &regions[0];
    let org = home.org();
    home.publish(org, pinned(home, &json!(["*"]))).await;
    let all = json!(names);
    home.publish(
        org,
        vec![change(proxy(), move |fields| {
            fields["regions"] = all.clone()
        })],
    )
    .await;
    let head = home.head(org).await.unwrap();
    assert_eq!(head.roots.len(), 33);
}
