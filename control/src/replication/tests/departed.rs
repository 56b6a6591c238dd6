//! Organisations that are no more: what is left of them where they were taken, or heard of.

use std::sync::Arc;

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::object::{Body, ObjectId};
use proto::store::{Op, Store, Txn};
use proto::tree::{Operation, SYSTEM_ORG};

use super::super::connection::Connection;
use super::super::{Dialer, Replication};
use super::moves::{comes, home};
use super::net::{Net, Region, create_target, installation};
use crate::publish::PublishError;
use crate::regions::Homes;

/// Three regions, of which none follows by itself; `us` is home.
async fn three() -> (Arc<Net>, [Region; 3]) {
    let (net, regions) = installation(&["us", "eu", "ap"]).await;
    (net, regions.try_into().ok().unwrap())
}

pub fn create_org(id: OrgId, slug: &str) -> Operation {
    Operation::Create {
        id: ObjectId::Org(id),
        body: Body::Org(proto::org::Org {
            slug: slug.into(),
            name: String::new(),
            default_limits: None,
        }),
        secret: None,
    }
}

/// Home `us` with so many organisations, which `eu` has all of and does not follow.
pub async fn many(count: usize) -> (Region, Region, Vec<OrgId>) {
    let (_, regions) = installation(&["us", "eu"]).await;
    let [us, eu]: [Region; 2] = regions.try_into().ok().unwrap();
    let orgs: Vec<OrgId> = (0..count).map(|_| OrgId::new()).collect();
    for (at, org) in orgs.iter().enumerate() {
        let create = create_org(*org, &format!("org-{at}"));
        us.publish(SYSTEM_ORG, vec![create]).await;
        us.publish(*org, vec![create_target(1, "first")]).await;
        us.seen(*org).await;
    }
    us.seen(SYSTEM_ORG).await;
    take(&eu, "us").await;
    eu.seen(SYSTEM_ORG).await;
    for org in &orgs {
        eu.seen(*org).await;
    }
    (us, eu, orgs)
}

async fn connect(replication: &Replication, to: &str) -> Connection {
    let peer = replication.regions.peer(to).unwrap();
    replication.connect(peer, 0).await.unwrap()
}

async fn round(replication: &Replication, connection: &Connection) {
    let applied = replication.round(connection, &None).await;
    applied.unwrap();
}

/// Takes what another region has, all at once.
async fn take(region: &Region, from: &str) {
    let connection = connect(&region.replication, from).await;
    round(&region.replication, &connection).await;
}

/// An organisation that `us` creates; `eu` has what was there before, and is cut off from it.
async fn created_on_a_branch(net: &Net, us: &Region, eu: &Region) -> OrgId {
    take(eu, "us").await;
    eu.seen(SYSTEM_ORG).await;
    net.cut("us", "eu");
    let acme = OrgId::new();
    us.publish(SYSTEM_ORG, vec![create_org(acme, "acme")]).await;
    us.publish(acme, vec![create_target(1, "of acme")]).await;
    us.seen(acme).await;
    us.seen(SYSTEM_ORG).await;
    acme
}

/// Makes `eu` home of all that it has, and heals every way.
async fn promote(net: &Net, eu: &Region) {
    net.cut("eu", "ap");
    eu.replication.promote(true).await.unwrap();
    comes("eu as home", || async {
        eu.homes.region_of(SYSTEM_ORG) == "eu"
    })
    .await;
    eu.seen(SYSTEM_ORG).await;
    net.heal();
}

/// Who has nothing of an organisation would never hear from its home that it is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn of_an_organisation_that_is_not_here_home_alone_is_believed() {
    let (net, [us, eu, ap]) = three().await;
    take(&eu, "us").await;
    eu.seen(SYSTEM_ORG).await;
    take(&ap, "eu").await;
    assert!(ap.dump(&["home/", "live/head/"]).await.is_empty());
    // What is here has its home from whoever tells of a higher one.
    take(&ap, "us").await;
    ap.seen(SYSTEM_ORG).await;
    assert_eq!(home(&ap, SYSTEM_ORG).await.region, "us");
    net.cut("us", "eu");
    promote(&net, &eu).await;
    take(&us, "eu").await;
    comes("eu as home in us", || async {
        us.homes.region_of(SYSTEM_ORG) == "eu"
    })
    .await;
    take(&ap, "us").await;
    assert_eq!(home(&ap, SYSTEM_ORG).await.region, "eu");
}

/// Home tells once that an organisation is no more; the version of `system` that does not name it
/// may come from another region, and later.
#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_that_is_gone_goes_when_system_names_it_no_more() {
    let (net, [us, eu, ap]) = three().await;
    let acme = created_on_a_branch(&net, &us, &eu).await;
    let of_us = connect(&ap.replication, "us").await;
    round(&ap.replication, &of_us).await;
    ap.seen(SYSTEM_ORG).await;
    ap.seen(acme).await;
    promote(&net, &eu).await;
    take(&us, "eu").await;
    assert_eq!(us.head(acme).await, None);
    comes("the end in us", || async {
        !us.worlds.borrow().orgs.contains_key(&acme)
    })
    .await;
    round(&ap.replication, &of_us).await;
    assert!(ap.head(acme).await.is_some(), "`system` names it here");
    take(&ap, "eu").await;
    comes("the version in ap that does not name it", || async {
        let world = ap.worlds.borrow().clone();
        let system = &world.orgs[&SYSTEM_ORG].config;
        !system.objects.contains_key(&ObjectId::Org(acme))
    })
    .await;
    round(&ap.replication, &of_us).await;
    assert_eq!(ap.head(acme).await, None);
    assert!(ap.dump(&[&keys::home(acme)]).await.is_empty());
}

/// The same region, before it has seen any fact of its store.
fn blind(region: &Region, first: &str, net: &Arc<Net>) -> Replication {
    let of = &region.replication;
    let (homes, _) = Homes::follow(region.store.clone(), first);
    Replication {
        publisher: of.publisher.clone(),
        store: of.store.clone(),
        worlds: of.worlds.clone(),
        regions: of.regions.clone(),
        homes,
        status: Arc::default(),
        shared: Arc::default(),
        dialer: Dialer::Within(net.clone()),
    }
}

/// What was seen last of the facts may be late; by that nothing is left here for good.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_told_by_the_facts_of_the_store() {
    let (net, [us, eu, ap]) = three().await;
    let acme = created_on_a_branch(&net, &us, &eu).await;
    take(&ap, "us").await;
    ap.seen(SYSTEM_ORG).await;
    ap.seen(acme).await;
    promote(&net, &eu).await;
    // us sets it aside.
    let late = blind(&us, "us", &net);
    let of_eu = connect(&late, "eu").await;
    round(&late, &of_eu).await;
    assert_eq!(us.head(acme).await, None);
    comes("the end in us", || async {
        !us.worlds.borrow().orgs.contains_key(&acme)
    })
    .await;
    // ap, which was away, finds that us has it no more.
    take(&ap, "eu").await;
    ap.seen(SYSTEM_ORG).await;
    let late = blind(&ap, "eu", &net);
    let of_us = connect(&late, "us").await;
    round(&late, &of_us).await;
    assert_eq!(ap.head(acme).await, None);
}

/// One that stayed in its home when that of `system` moved.
#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_whose_home_is_elsewhere_is_not_deleted() {
    let (_net, [us, ..]) = three().await;
    let org = OrgId::from_bits(77);
    us.publish(SYSTEM_ORG, vec![create_org(org, "apart")]).await;
    let epoch = us.head(org).await.unwrap().epoch;
    let fact = serde_json::to_vec(&Home::first(epoch, "eu")).unwrap();
    let txn = Txn {
        ops: vec![Op::put(keys::home(org), fact)],
        ..Txn::default()
    };
    us.store.txn(txn).await.unwrap();
    let delete = Operation::Delete {
        id: ObjectId::Org(org),
        precondition: None,
    };
    match us.try_publish(SYSTEM_ORG, vec![delete]).await {
        Err(PublishError::HomeElsewhere { home, system, .. }) => {
            assert_eq!((home.as_str(), system.as_str()), ("eu", "us"));
        }
        other => panic!("{other:?}"),
    }
}
