//! What a region revoked that follows: home takes it, and believes no more than can be.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::retired::Retired;
use proto::store::{Store, facts};
use proto::tree::SYSTEM_ORG;
use proto::version::Generation;

use super::net::{Net, Region, create_credential, installation, set_secret};
use proto::store::place::Place;

const CREDENTIAL: CredentialId = CredentialId::from_bits(1);
const RETIRED: &[&str] = &["live/retired/"];

/// One exchange in which a region asks another, at most by this protocol.
async fn asks(net: &Net, region: &Region, other: &Region, protocol: u16) {
    let store: Arc<dyn Store> = region.store.clone();
    let place = Place::take(&store, proto::keys::REPLICATION).await.unwrap();
    let guard = Some(place.held());
    let way = net.dial((region.name(), other.name())).await.unwrap();
    let way = way.speaking(protocol);
    let round = region.replication.round(&way, &guard);
    round.await.unwrap();
}

/// Waits until a region has seen the facts that its store holds.
async fn seen(region: &Region, org: OrgId) {
    let stored: BTreeMap<String, Vec<u8>> = region.dump(RETIRED).await;
    let stored: Vec<Retired> = stored
        .values()
        .map(|fact| serde_json::from_slice(fact).unwrap())
        .collect();
    let mut worlds = region.worlds.clone();
    let seen = worlds.wait_for(|world| {
        let state = world.orgs.get(&org);
        state.is_some_and(|state| state.retired.values().cloned().collect::<Vec<_>>() == stored)
    });
    seen.await.unwrap();
}

/// Home `us` with a credential, and `eu`, which has it.
async fn two() -> (Arc<Net>, Region, Region, OrgId) {
    let (net, regions) = installation(&["us", "eu"]).await;
    let mut regions = regions.into_iter();
    let (us, eu) = (regions.next().unwrap(), regions.next().unwrap());
    us.seen(SYSTEM_ORG).await;
    let org = us.org();
    us.publish(org, vec![create_credential(&us.publisher, 1, "one")])
        .await;
    us.seen(org).await;
    asks(&net, &eu, &us, 7).await;
    eu.seen(org).await;
    (net, us, eu, org)
}

#[tokio::test(flavor = "multi_thread")]
async fn home_takes_what_was_revoked_elsewhere_and_a_later_secret_counts() {
    let (net, us, eu, org) = two().await;
    let lowest = eu.publisher.revoke_here(org, CREDENTIAL).await.unwrap();
    seen(&eu, org).await;
    asks(&net, &us, &eu, 6).await;
    assert!(us.dump(RETIRED).await.is_empty(), "by an older protocol");
    asks(&net, &us, &eu, 7).await;
    assert_eq!(us.dump(RETIRED).await, eu.dump(RETIRED).await);
    seen(&us, org).await;
    // Again: nothing changes.
    asks(&net, &us, &eu, 7).await;
    asks(&net, &eu, &us, 7).await;
    assert_eq!(us.dump(RETIRED).await, eu.dump(RETIRED).await);
    us.publish(org, vec![set_secret(&us.publisher, 1, "two")])
        .await;
    let config = us.publisher.load(org).await.unwrap();
    let stored = config.credential(CREDENTIAL).unwrap();
    let generation = &stored.secret.as_ref().unwrap().generation;
    assert!(*generation >= lowest, "{generation} {lowest}");
    us.seen(org).await;
    seen(&us, org).await;
    asks(&net, &eu, &us, 7).await;
    assert_eq!(us.dump(RETIRED).await, eu.dump(RETIRED).await);
}

/// Of many secrets that are over, the newest comes with the version that ended it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_is_whole_however_many_there_were_before() {
    let (net, us, eu, org) = two().await;
    let create = (2..=40).map(|bits| create_credential(&us.publisher, bits, "of many"));
    us.publish(org, create.collect()).await;
    let set = (2..=40).map(|bits| set_secret(&us.publisher, bits, "of many anew"));
    us.publish(org, set.collect()).await;
    us.seen(org).await;
    seen(&us, org).await;
    asks(&net, &eu, &us, 7).await;
    assert_eq!(us.dump(RETIRED).await, eu.dump(RETIRED).await);
    // Too many for one transaction: none is over before its successor is there.
    let at = async |key: &str| eu.store.get(key).await.unwrap().value;
    let head = at(&keys::head(org)).await.unwrap().mod_revision;
    for bits in 2..=40 {
        let fact = at(&keys::retired(org, CredentialId::from_bits(bits))).await;
        assert!(fact.unwrap().mod_revision > head, "{bits}");
    }
    assert!(at(&keys::retiring(org)).await.is_none(), "nothing is left");
    us.publish(org, vec![set_secret(&us.publisher, 1, "two")])
        .await;
    us.seen(org).await;
    seen(&us, org).await;
    // On a new connection all are told.
    asks(&net, &eu, &us, 7).await;
    assert_eq!(us.dump(RETIRED).await, eu.dump(RETIRED).await);
    let mut written = Vec::new();
    for key in [keys::head(org), keys::retired(org, CREDENTIAL)] {
        let pair = eu.store.get(&key).await.unwrap().value.unwrap();
        written.push(pair.mod_revision);
    }
    assert_eq!(written[0], written[1], "in one transaction");
}

#[tokio::test(flavor = "multi_thread")]
async fn home_believes_nothing_of_secrets_to_come_or_unknown() {
    let (net, us, eu, org) = two().await;
    let head = us.head(org).await.unwrap();
    let at = |n: u64| Retired {
        lowest: Generation {
            epoch: head.epoch.clone(),
            n,
        },
        next: None,
    };
    let unknown = CredentialId::from_bits(2);
    let told = vec![(CREDENTIAL, at(head.n + 2)), (unknown, at(head.n))];
    facts::raise(&*eu.store, org, told).await.unwrap();
    seen(&eu, org).await;
    asks(&net, &us, &eu, 7).await;
    assert!(us.dump(RETIRED).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_follows_takes_nothing_from_another_one_that_does() {
    let (net, regions) = installation(&["us", "eu", "ap"]).await;
    let [us, eu, ap] = &regions[..] else {
        panic!("three regions");
    };
    let org = us.org();
    us.publish(org, vec![create_credential(&us.publisher, 1, "one")])
        .await;
    us.seen(org).await;
    for region in [eu, ap] {
        asks(&net, region, us, 7).await;
        region.seen(org).await;
    }
    eu.publisher.revoke_here(org, CREDENTIAL).await.unwrap();
    seen(eu, org).await;
    asks(&net, ap, eu, 7).await;
    assert!(ap.dump(RETIRED).await.is_empty());
    asks(&net, us, eu, 7).await;
    seen(us, org).await;
    asks(&net, ap, us, 7).await;
    assert_eq!(ap.dump(RETIRED).await, eu.dump(RETIRED).await);
}
