//! Versions that home did not make, or that nobody can show it did.

use std::sync::Arc;

use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::signature::Signature;
use proto::store::{Op, Store, Txn};
use proto::tree::{Operation, SYSTEM_ORG, VersionRecord};
use proto::wire::replication::PROTOCOL_SIGNED;
use serde_json::json;

use super::super::Dialer;
use super::super::connection::Connection;
use super::moves::{comes, following};
use super::net::{
    Net, Region, Signing, create_credential, create_target, installation, installation_of, rename,
    set_secret,
};

/// Everything that a version is stored as.
const STORED: &[&str] = &["live/", "versions/", "signatures/", "leaf/", "secrets/"];

async fn dial(from: &Region, to: &str) -> Connection {
    let Dialer::Within(net) = &from.replication.dialer else {
        unreachable!("a test")
    };
    net.dial((from.name(), to)).await.unwrap()
}

/// One round of what a region takes from another.
async fn round(from: &Region, connection: Connection) {
    let taken = from.replication.round(&connection, &None);
    taken.await.unwrap();
}

/// Why an organisation's newest version is not taken.
fn refused(region: &Region, peer: &str, org: OrgId) -> Option<(u64, String)> {
    let unverified = region.replication.status.following(peer).unverified;
    let unverified = unverified.get(&org)?;
    Some((unverified.at.n, unverified.why.clone()))
}

async fn write(region: &Region, ops: Vec<Op>) {
    let txn = Txn {
        ops,
        ..Txn::default()
    };
    region.store.txn(txn).await.unwrap();
}

async fn value(region: &Region, key: &str) -> Vec<u8> {
    let found = region.store.get(key).await.unwrap().value;
    found.unwrap().value.to_vec()
}

async fn two_signing(signing: Signing) -> (Arc<Net>, Region, Region) {
    let (net, regions) = installation_of(&["us", "eu"], signing).await;
    let mut regions = regions.into_iter();
    (net, regions.next().unwrap(), regions.next().unwrap())
}

fn both() -> Signing {
    let mut signing = Signing::default();
    signing.rotate("us");
    signing.rotate("eu");
    signing
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_altered_is_refused_and_nothing_of_it_is_stored() {
    let (_net, us, eu) = two_signing(both()).await;
    let org = us.org();
    us.publish(org, vec![create_target(1, "t")]).await;
    us.seen(org).await;
    round(&eu, dial(&eu, "us").await).await;
    let n = us.publish(org, vec![rename(1, "two")]).await;
    us.seen(org).await;
    let (key, signed_at) = (keys::version(org, n), keys::signature(org, n));
    let (record, signature) = (value(&us, &key).await, value(&us, &signed_at).await);
    let signed: Signature = serde_json::from_slice(&signature).unwrap();
    let altered = |change: &dyn Fn(&mut Signature)| {
        let mut signature = signed.clone();
        change(&mut signature);
        serde_json::to_vec(&signature).unwrap()
    };
    let mut parsed: VersionRecord = serde_json::from_slice(&record).unwrap();
    parsed.author = "somebody else".into();
    let other_author = serde_json::to_vec(&parsed).unwrap();
    let of_eu = eu.signing.signers["eu"].sign(org, &record);
    let before = value(&us, &keys::signature(org, n - 1)).await;
    for (record, signature, why) in [
        (&other_author, signature.clone(), "it was altered"),
        (&record, Vec::new(), "it has no signature"),
        (&record, b"{}".to_vec(), "cannot be read"),
        (&record, before, "it was altered"),
        (
            &record,
            serde_json::to_vec(&of_eu).unwrap(),
            "not among the keys of region eu",
        ),
        (&record, altered(&|s| s.signature[0] ^= 1), "it was altered"),
        (
            &record,
            altered(&|s| s.key_id = "x".into()),
            "not among the keys of region us",
        ),
        (&record, altered(&|s| s.signature.clear()), "it was altered"),
    ] {
        let put = match signature.is_empty() {
            true => Op::Delete(signed_at.clone()),
            false => Op::put(signed_at.clone(), signature),
        };
        write(&us, vec![Op::put(key.clone(), record.clone()), put]).await;
        let held = eu.dump(STORED).await;
        round(&eu, dial(&eu, "us").await).await;
        let (at, told) = refused(&eu, "us", org).expect(why);
        assert_eq!(at, n);
        assert!(told.contains(why), "{why}: {told}");
        assert!(eu.dump(STORED).await == held, "{why}: something was stored");
        let metrics = eu.replication.status.families(&["us".to_owned()]);
        let metrics = metrics.text(proto::exposition::text::Form::Prometheus);
        assert!(metrics.contains("requestrocket_replication_unverified 1\n"));
    }
    // Others are not kept waiting.
    let role = Operation::Create {
        id: proto::object::ObjectId::Org(OrgId::from_bits(77)),
        body: proto::object::Body::Org(
            serde_json::from_value(json!({"slug": "other", "name": ""})).unwrap(),
        ),
        secret: None,
    };
    us.publish(SYSTEM_ORG, vec![role]).await;
    us.seen(SYSTEM_ORG).await;
    round(&eu, dial(&eu, "us").await).await;
    assert_eq!(eu.head(SYSTEM_ORG).await, us.head(SYSTEM_ORG).await);
    assert!(refused(&eu, "us", org).is_some());
    // Put right, it is taken.
    let right = vec![Op::put(key, record), Op::put(signed_at, signature)];
    write(&us, right).await;
    round(&eu, dial(&eu, "us").await).await;
    assert_eq!(refused(&eu, "us", org), None);
    assert_eq!(eu.head(org).await, us.head(org).await);
    let kept = &["signatures/"];
    let (there, here) = (us.dump(kept).await, eu.dump(kept).await);
    assert!(here.iter().all(|(key, value)| there[key] == *value));
    assert!(here.contains_key(&keys::signature(org, n)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_version_is_tried_again_without_news() {
    let (_net, us, eu) = two_signing(both()).await;
    let org = us.org();
    us.seen(org).await;
    let _following = following(&eu);
    comes("the first versions", || async {
        eu.head(org).await == us.head(org).await
    })
    .await;
    let without = keyless(&us);
    without.publish(org, vec![create_target(1, "t")]).await;
    comes("the refusal", || async {
        refused(&eu, "us", org).is_some_and(|(_, why)| why.contains("`keys.signing_file`"))
    })
    .await;
    assert_eq!(
        us.publisher.sign_kept().await.unwrap(),
        2,
        "both of its versions"
    );
    assert_eq!(us.publisher.sign_kept().await.unwrap(), 0);
    comes("what is signed now", || async {
        eu.head(org).await == us.head(org).await && refused(&eu, "us", org).is_none()
    })
    .await;
}

/// A control plane of a region that has no key.
fn keyless(of: &Region) -> Region {
    let mut none = of.signing.clone();
    none.signers.clear();
    of.restarted_with(&none)
}

/// A credential is revoked at home: that is over in the other region, and nothing else.
async fn revoked_comes_alone(home: &Region, other: &Region) {
    let (org, revoked) = (home.org(), CredentialId::from_bits(1));
    home.publisher.revoke_here(org, revoked).await.unwrap();
    comes("what was revoked", || async {
        !other.dump(&["live/retired/"]).await.is_empty()
    })
    .await;
    let facts = other.dump(&["live/retired/"]).await;
    let expected = [keys::retired(org, revoked)];
    assert!(facts.keys().eq(&expected), "{:?}", facts.keys());
}

/// Home signs what it has made: the other region takes it, with what it ends.
async fn comes_with_its_version(home: &Region, other: &Region) {
    home.publisher.sign_kept().await.unwrap();
    let all = &["live/head/", "live/retired/"];
    comes("what is signed now, with what it ends", || async {
        other.dump(all).await == home.dump(all).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_revoked_comes_although_a_version_is_not_taken_and_what_that_ends_with_it() {
    let (_net, us, eu) = two_signing(both()).await;
    let org = us.org();
    let create = |bits, token| create_credential(&us.publisher, bits, token);
    us.publish(org, vec![create(1, "one"), create(2, "two")])
        .await;
    us.seen(org).await;
    let _following = following(&eu);
    comes("the first versions", || async {
        eu.head(org).await == us.head(org).await
    })
    .await;
    let without = keyless(&us);
    without
        .publish(org, vec![set_secret(&us.publisher, 2, "three")])
        .await;
    us.seen(org).await;
    comes("the refusal", || async {
        refused(&eu, "us", org).is_some()
    })
    .await;
    revoked_comes_alone(&us, &eu).await;
    assert_ne!(eu.head(org).await, us.head(org).await);
    comes_with_its_version(&us, &eu).await;
}

/// Home keeps too few versions to lead there: the one that ended a secret is not in the answer.
#[tokio::test(flavor = "multi_thread")]
async fn what_ended_with_a_version_that_is_passed_over_comes_with_the_newest() {
    let (_net, us, eu) = two_signing(both()).await;
    let org = us.org();
    let create = |bits, token| create_credential(&us.publisher, bits, token);
    us.publish(org, vec![create(1, "one"), create(2, "two")])
        .await;
    us.publish(org, vec![create_target(1, "t")]).await;
    us.seen(org).await;
    let _following = following(&eu);
    comes("the first versions", || async {
        eu.head(org).await == us.head(org).await
    })
    .await;
    let without = keyless(&us);
    let n = without
        .publish(org, vec![set_secret(&us.publisher, 2, "three")])
        .await;
    without.publish(org, vec![rename(1, "later")]).await;
    write(&us, vec![Op::Delete(keys::version(org, n))]).await;
    us.seen(org).await;
    comes("the refusal of the newest", || async {
        refused(&eu, "us", org).is_some_and(|(at, _)| at == n + 1)
    })
    .await;
    revoked_comes_alone(&us, &eu).await;
    comes_with_its_version(&us, &eu).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_in_the_middle_cannot_pass_off_what_home_did_not_make() {
    let (net, regions) = installation(&["us", "eu", "ap"]).await;
    let [us, eu, ap]: [Region; 3] = regions.try_into().ok().unwrap();
    let org = us.org();
    us.seen(org).await;
    round(&ap, dial(&ap, "us").await).await;
    round(&eu, dial(&eu, "us").await).await;
    let n = us.publish(org, vec![create_target(1, "of us")]).await;
    us.seen(org).await;
    let _following = [following(&us), following(&eu)];
    comes("what us made", || async {
        eu.head(org).await == us.head(org).await
    })
    .await;
    us.replication.hand_over("eu").await.unwrap();
    comes("eu as home", || async { eu.homes.region_of(org) == "eu" }).await;
    eu.seen(org).await;
    net.cut("us", "ap");
    // Of the version that us made, eu now says that another did, and signs that.
    let key = keys::version(org, n);
    let record = value(&eu, &key).await;
    let mut forged: VersionRecord = serde_json::from_slice(&record).unwrap();
    forged.author = "forged".into();
    let forged = serde_json::to_vec(&forged).unwrap();
    let signature = value(&eu, &keys::signature(org, n)).await;
    let of_eu = eu.signing.signers["eu"].sign(org, &forged);
    let of_eu = serde_json::to_vec(&of_eu).unwrap();
    let put = |record: &[u8], signature: &[u8]| {
        let record = Op::put(key.clone(), record.to_vec());
        vec![record, Op::put(keys::signature(org, n), signature.to_vec())]
    };
    for (signature, why) in [
        (&of_eu, "not among the keys of region eu"),
        (&signature, "altered"),
    ] {
        write(&eu, put(&forged, signature)).await;
        let held = ap.dump(STORED).await;
        round(&ap, dial(&ap, "eu").await).await;
        let (at, told) = refused(&ap, "eu", org).expect(why);
        assert_eq!(at, n);
        assert!(told.contains(why), "{told}");
        let now = ap.dump(STORED).await;
        let of_org = |key: &&String| key.contains(&org.to_string());
        assert!(now.keys().filter(of_org).eq(held.keys().filter(of_org)));
    }
    // As us made it, it is taken from eu, and so is what eu has made since.
    write(&eu, put(&record, &signature)).await;
    round(&ap, dial(&ap, "eu").await).await;
    assert_eq!(ap.head(org).await, eu.head(org).await);
    assert_eq!(value(&ap, &keys::signature(org, n)).await, signature);
    let opened: Signature =
        serde_json::from_slice(&value(&ap, &keys::signature(org, n + 1)).await).unwrap();
    assert_eq!(opened.region, "eu");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_while_regions_follow() {
    let (_net, us, eu) = two_signing(both()).await;
    let org = us.org();
    us.seen(org).await;
    round(&eu, dial(&eu, "us").await).await;
    let mut rotated = us.signing.clone();
    rotated.rotate("us");
    // Home signs with the new key before eu knows of it.
    let us = us.restarted_with(&rotated);
    us.publish(org, vec![create_target(1, "t")]).await;
    us.seen(org).await;
    round(&eu, dial(&eu, "us").await).await;
    let (_, why) = refused(&eu, "us", org).unwrap();
    assert!(why.contains("copy the `keys.public_file`"), "{why}");
    let eu = eu.restarted_with(&rotated);
    round(&eu, dial(&eu, "us").await).await;
    assert_eq!(eu.head(org).await, us.head(org).await);
    // The old key is gone: what it signed is signed anew, and a new region takes that.
    rotated.listed.get_mut("us").unwrap().remove(0);
    let us = us.restarted_with(&rotated);
    assert!(us.publisher.sign_kept().await.unwrap() > 0);
    us.seen(SYSTEM_ORG).await;
    us.seen(org).await;
    let (store, _) = (eu.store.clone(), eu.restarted_with(&rotated));
    for key in eu
        .dump(&["live/", "versions/", "signatures/", "home/"])
        .await
        .into_keys()
    {
        let ops = vec![Op::Delete(key)];
        store
            .txn(Txn {
                ops,
                ..Txn::default()
            })
            .await
            .unwrap();
    }
    let empty = eu.restarted_with(&rotated);
    round(&empty, dial(&empty, "us").await).await;
    assert_eq!(empty.head(org).await, us.head(org).await);
    assert_eq!(empty.head(SYSTEM_ORG).await, us.head(SYSTEM_ORG).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_planes_of_before_signatures_are_followed_while_no_key_is_listed() {
    let older = PROTOCOL_SIGNED - 1;
    let mut unlisted = both();
    unlisted.listed.clear();
    let (_net, us, eu) = two_signing(unlisted).await;
    let org = us.org();
    us.publish(org, vec![create_target(1, "t")]).await;
    us.seen(org).await;
    // Either side is the older one: the other then is asked as before.
    round(&eu, dial(&eu, "us").await.speaking(older)).await;
    assert_eq!(eu.head(org).await, us.head(org).await);
    assert!(eu.dump(&["signatures/"]).await.is_empty());
    // Of a newer one signatures are kept, although nothing is judged by them.
    let n = us.publish(org, vec![rename(1, "two")]).await;
    us.seen(org).await;
    round(&eu, dial(&eu, "us").await).await;
    assert_eq!(eu.head(org).await, us.head(org).await);
    let kept = eu.dump(&["signatures/"]).await;
    assert_eq!(
        kept.into_keys().collect::<Vec<_>>(),
        [keys::signature(org, n)]
    );
    // With keys an older home is refused, and says why.
    let mut listed = us.signing.clone();
    listed.listed = both().listed;
    us.publish(org, vec![rename(1, "three")]).await;
    us.seen(org).await;
    let eu = eu.restarted_with(&listed);
    round(&eu, dial(&eu, "us").await.speaking(older)).await;
    let (_, why) = refused(&eu, "us", org).unwrap();
    assert!(why.contains("a release without signatures"), "{why}");
}
