//! Secrets that nodes sealed for a region later come to that region, wherever they were written.

use proto::id::CredentialId;
use proto::keys;
use proto::object::ObjectId;
use proto::seal::{self, Binding, Sealed};
use proto::store::{Op, Store, Txn};
use proto::tree::Operation;
use serde_json::json;

use super::by_region::{change, credential, three};
use super::moves::{comes, equal, following};
use super::net::{Region, create_credential, create_target, installation, set_secret};

const CREDENTIAL: CredentialId = CredentialId::from_bits(1);

async fn value(of: &Region, region: &str) -> Option<Vec<u8>> {
    let found = of.dump(&["secrets/"]).await;
    let mut found = found.into_iter().filter(|(key, _)| {
        let parsed = keys::parse_secret(key);
        parsed.is_some_and(|(id, _, to)| id == CREDENTIAL && to == region)
    });
    found.next().map(|(_, value)| value)
}

async fn seal_id(of: &Region) -> String {
    let config = of.publisher.load(of.org()).await.unwrap();
    let stored = config.credential(CREDENTIAL).unwrap();
    stored.secret.as_ref().unwrap().seal_id.clone().unwrap()
}

/// What a node of a region writes to its store: its value, sealed for another one.
async fn reseal(by: &Region, to: &Region) {
    let hosts = ["h1.example".parse().unwrap()];
    let seal_id = seal_id(by).await;
    let binding = Binding {
        org: by.org(),
        credential: CREDENTIAL,
        hosts: &hosts,
        seal_id: &seal_id,
    };
    let own: Sealed = serde_json::from_slice(&value(by, by.name()).await.unwrap()).unwrap();
    let sealed = seal::reseal(&by.ring, &to.ring.public().unwrap(), &binding, &own).unwrap();
    let key = keys::secret(by.org(), CREDENTIAL, &seal_id, to.name());
    let txn = Txn {
        ops: vec![Op::put(key, serde_json::to_vec(&sealed).unwrap())],
        ..Txn::default()
    };
    by.store.txn(txn).await.unwrap();
}

async fn forget(in_all: &[&Region], region: &str) {
    for of in in_all {
        let key = keys::secret(of.org(), CREDENTIAL, &seal_id(of).await, region);
        let txn = Txn {
            ops: vec![Op::Delete(key)],
            ..Txn::default()
        };
        of.store.txn(txn).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_comes_from_whichever_region_made_it_and_to_all_that_keep_it() {
    let (_net, all) = installation(&["us", "eu", "ap"]).await;
    let [us, eu, ap]: [Region; 3] = all.try_into().ok().unwrap();
    let before = [&us, &eu, &ap].map(following);
    let org = us.org();
    // ap comes to it later, and home is not for it at all: eu alone can open it.
    let fields = json!({"name": "c", "hosts": ["h1.example"], "regions": ["eu", "ap"]});
    let made = [
        create_target(1, "t"),
        credential(&us, ("target", 1), fields),
    ];
    us.publish(org, made.into()).await;
    equal(&[&us, &eu, &ap]).await;
    drop(before);
    forget(&[&us, &eu, &ap], "ap").await;
    let restarted = [&us, &eu, &ap].map(Region::restarted);
    let [us, eu, ap] = &restarted;
    for region in [us, eu, ap] {
        region.seen(org).await;
    }
    let _following = [us, eu, ap].map(following);
    reseal(eu, ap).await;
    let made = value(eu, "ap").await;
    comes("the value in ap and at home", || async {
        value(ap, "ap").await == made && value(us, "ap").await == made
    })
    .await;
    assert_eq!(value(ap, "us").await, None, "it is not for us");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_keeps_its_own_only_asks_for_no_other() {
    let (_net, [us, eu, ap], before) = three(json!(["eu", "ap"])).await;
    let org = us.org();
    drop(before);
    forget(&[&us, &eu, &ap], "ap").await;
    forget(&[&us, &eu, &ap], "eu").await;
    let restarted = [&us, &eu, &ap].map(Region::restarted);
    let [us, eu, ap] = &restarted;
    for region in [us, eu, ap] {
        region.seen(org).await;
    }
    let _following = [us, eu, ap].map(following);
    // A person gives the secret of eu again, so to speak: us has a value of each.
    let seal_id = seal_id(us).await;
    let hosts = ["h1.example".parse().unwrap()];
    let binding = Binding {
        org,
        credential: CREDENTIAL,
        hosts: &hosts,
        seal_id: &seal_id,
    };
    let secret = super::net::bearer("canary");
    let ops = [eu, ap].map(|to| {
        let sealed = seal::seal(&to.ring.public().unwrap(), &binding, &secret).unwrap();
        let key = keys::secret(org, CREDENTIAL, &seal_id, to.name());
        Op::put(key, serde_json::to_vec(&sealed).unwrap())
    });
    let txn = Txn {
        ops: ops.into(),
        ..Txn::default()
    };
    us.store.txn(txn).await.unwrap();
    comes("each region's own value", || async {
        value(eu, "eu").await.is_some() && value(ap, "ap").await.is_some()
    })
    .await;
    assert_eq!(value(eu, "ap").await, None);
    assert_eq!(value(ap, "eu").await, None);
    // What a version leaves out is not asked for any more.
    let narrowed = change(ObjectId::Credential(CREDENTIAL), |fields| {
        fields["credential"]["regions"] = json!(["eu"]);
    });
    let proxy = change(super::by_region::proxy(), |fields| {
        fields["regions"] = json!(["eu"]);
    });
    us.publish(org, vec![proxy, narrowed]).await;
    comes("its end in ap", || async {
        value(ap, "ap").await.is_none()
    })
    .await;
    equal(&[us, eu, ap]).await;
    assert_eq!(value(us, "ap").await, None);
}

/// One list of operations may narrow a credential and change its secret besides.
#[tokio::test(flavor = "multi_thread")]
async fn copies_follow_a_region_that_seals_its_secrets_anew() {
    let (_net, all) = installation(&["us", "eu", "ap"]).await;
    let [us, eu, ap]: [Region; 3] = all.try_into().ok().unwrap();
    let before = [&us, &eu, &ap].map(following);
    let org = us.org();
    let fields = json!({"name": "c", "hosts": ["h1.example"], "regions": ["us", "eu", "ap"]});
    let made = [
        create_target(1, "t"),
        credential(&us, ("target", 1), fields),
    ];
    us.publish(org, made.into()).await;
    equal(&[&us, &eu, &ap]).await;
    drop(before);
    let mut rotated = eu.ring.clone();
    rotated.rotate().unwrap();
    let rings = [us.ring.clone(), rotated, ap.ring.clone()];
    let restarted = [&us, &eu, &ap].map(|region| region.restarted_by(&rings));
    let [us, eu, ap] = &restarted;
    for region in [us, eu, ap] {
        region.seen(org).await;
    }
    let links = [us, eu, ap].map(following);
    let others = |of: &Region, peer| of.replication.status.following(peer).sealed_to_other_keys;
    comes("what eu has to seal anew is counted", || async {
        let of_eu = (others(us, "eu"), others(ap, "eu"));
        of_eu == (Some(1), Some(1)) && others(us, "ap") == Some(0)
    })
    .await;
    let copy = value(us, "ap").await;
    reseal(eu, eu).await;
    let restarted = [us, eu, ap].map(|region| region.restarted_by(&rings));
    drop(links);
    let [us, eu, ap] = &restarted;
    for region in [us, eu, ap] {
        region.seen(org).await;
    }
    let _following = [us, eu, ap].map(following);
    let made = value(eu, "eu").await;
    comes("what eu has sealed anew", || async {
        value(us, "eu").await == made && value(ap, "eu").await == made
    })
    .await;
    comes("nothing is left", || async {
        others(us, "eu") == Some(0) && others(ap, "eu") == Some(0)
    })
    .await;
    assert_eq!(value(us, "ap").await, copy, "what nobody sealed anew stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_narrowed_and_changed_at_once() {
    let (_net, all) = installation(&["us", "eu"]).await;
    let us = &all[0];
    let org = us.org();
    let id = ObjectId::Credential(CREDENTIAL);
    let narrow =
        |to: &'static [&'static str]| change(id, move |of| of["credential"]["regions"] = json!(to));
    let set = || set_secret(&us.publisher, 1, "anew");
    let delete = Operation::Delete {
        id,
        precondition: None,
    };
    let in_eu = async || value(us, "eu").await.is_some();
    us.publish(org, vec![create_credential(&us.publisher, 1, "first")])
        .await;
    assert!(in_eu().await);
    for (operations, keeps_us, keeps_eu) in [
        (vec![narrow(&["us"]), set()], true, false),
        (vec![narrow(&["us", "eu"]), set()], true, true),
        (vec![set(), narrow(&["us"])], true, false),
        (vec![narrow(&["us", "eu"]), set()], true, true),
        (vec![narrow(&["us"]), narrow(&["us"])], true, false),
        (vec![narrow(&["us", "eu"]), set()], true, true),
        (vec![narrow(&["us"]), delete], false, false),
    ] {
        us.publish(org, operations).await;
        let kept = (value(us, "us").await.is_some(), in_eu().await);
        assert_eq!(kept, (keeps_us, keeps_eu));
    }
}
