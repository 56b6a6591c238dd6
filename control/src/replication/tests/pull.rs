//! A follower and home, over streams that are cut after any number of bytes.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use proto::keys;
use proto::seal::{Binding, Sealed, open};
use proto::store::Store;
use proto::store::embedded::Embedded;
use proto::tree::{Operation, SYSTEM_ORG};
use tokio::sync::watch;

use super::super::Broken;
use super::super::apply::ApplyError;
use super::super::connection::Connection;
use super::super::not_given::NotGiven;
use super::super::source::{ANSWER_BYTES, Source};
use super::net::{
    Region, connect as open_way, create_credential, create_target, credential, installation, peer,
    rename, set_secret,
};
use crate::regions::{Homes, Regions};
use proto::store::place::Place;

/// Home `us`, which has begun, and `eu`, which has nothing.
async fn two() -> (Region, Region) {
    let (_, regions) = installation(&["us", "eu"]).await;
    let mut regions = regions.into_iter();
    (regions.next().unwrap(), regions.next().unwrap())
}

/// What must be equal everywhere.
pub const EQUAL: &[&str] = &["live/head/", "live/retired/", "versions/", "leaf/"];

/// A connection to home that breaks after so many bytes of answers.
async fn connect(
    home: &Region,
    answer_bytes: usize,
    bytes: usize,
) -> Result<Connection, std::io::Error> {
    let left = Arc::new(AtomicUsize::new(bytes));
    open_way(home.source_of(answer_bytes), ("eu", "us"), left).await
}

/// Follows until everything that home has was stored, over connections that break.
async fn follow(home: &Region, eu: &Region, bytes: impl Fn(usize) -> usize) -> usize {
    follow_in(home, eu, ANSWER_BYTES, bytes).await
}

/// The same, with answers of so many bytes.
async fn follow_in(
    home: &Region,
    eu: &Region,
    answer_bytes: usize,
    bytes: impl Fn(usize) -> usize,
) -> usize {
    let store: Arc<dyn Store> = eu.store.clone();
    let place = Place::take(&store, keys::REPLICATION).await.unwrap();
    let guard = Some(place.held());
    for at in 0..10_000 {
        let Ok(connection) = connect(home, answer_bytes, bytes(at)).await else {
            continue;
        };
        match eu.replication.round(&connection, &guard).await {
            Ok(_) => return at,
            Err(Broken::Link(_) | Broken::Apply(ApplyError::Link(_))) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it does not get on");
}

/// The secrets that the region can open: the token of each.
pub async fn opened(region: &Region) -> Vec<String> {
    let mut tokens = Vec::new();
    for (key, value) in region.dump(&["secrets/"]).await {
        let parts: Vec<&str> = key.split('/').collect();
        let sealed: Sealed = serde_json::from_slice(&value).unwrap();
        let hosts = credential().hosts;
        let binding = Binding {
            org: parts[1].parse().unwrap(),
            credential: parts[2].parse().unwrap(),
            hosts: &hosts,
            seal_id: parts[3],
        };
        if let Ok(secret) = open(&region.ring, &binding, &sealed) {
            tokens.push(secret.token.clone().unwrap());
        }
    }
    tokens
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_region_takes_the_newest_version_and_then_every_one() {
    let (home, eu) = two().await;
    home.seen(SYSTEM_ORG).await;
    let org = home.org();
    home.publish(org, vec![create_target(1, "t")]).await;
    home.publish(org, vec![create_credential(&home.publisher, 1, "one")])
        .await;
    home.seen(org).await;
    follow(&home, &eu, |_| usize::MAX).await;
    eu.seen(org).await;
    let heads = &["live/head/", "live/retired/"];
    assert_eq!(home.dump(heads).await, eu.dump(heads).await);
    assert_eq!(opened(&eu).await, ["one"]);
    assert_eq!(opened(&home).await, ["one"]);
    let sealed = &["secrets/"];
    assert_eq!(
        home.dump(sealed).await,
        eu.dump(sealed).await,
        "of both regions"
    );
    // More than one answer holds.
    for at in 0..150 {
        home.publish(org, vec![rename(1, &format!("name-{at}"))])
            .await;
    }
    let fact = set_secret(&home.publisher, 1, "two");
    let newest = home.publish(org, vec![fact]).await;
    home.seen(org).await;
    follow(&home, &eu, |_| usize::MAX).await;
    assert_eq!(home.dump(heads).await, eu.dump(heads).await);
    let versions = eu.dump(&["versions/"]).await;
    for n in newest - 151..=newest {
        let key = keys::version(org, n);
        assert_eq!(
            versions.get(&key),
            home.dump(&[&key]).await.get(&key),
            "{n}"
        );
    }
    assert_eq!(opened(&eu).await, ["two"], "the old value is destroyed");
    // Nothing to do: nothing is written.
    let before = eu.store.get("x").await.unwrap().revision;
    follow(&home, &eu, |_| usize::MAX).await;
    let kept = eu.dump(&["live/", "versions/", "leaf/", "secrets/"]).await;
    assert!(kept.len() > 150);
    let written = eu.store.get("x").await.unwrap().revision.0 - before.0;
    assert!(written <= 3, "only the place is left and taken: {written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_after_any_number_of_bytes_loses_and_doubles_nothing() {
    let (home, eu) = two().await;
    home.seen(SYSTEM_ORG).await;
    let org = home.org();
    follow(&home, &eu, |_| usize::MAX).await;
    let mut cuts = 0;
    for round in 0..6 {
        let bits = 100 + round;
        for at in 0..5 {
            let name = format!("name-{round}-{at}");
            home.publish(org, vec![create_target(bits * 10 + at, &name)])
                .await;
        }
        let token = format!("secret-{round}");
        home.publish(org, vec![create_credential(&home.publisher, bits, &token)])
            .await;
        home.seen(org).await;
        // Each attempt gets a little further, so that cuts fall into every message.
        let step = 37 + 60 * round as usize;
        cuts += follow(&home, &eu, |at| 40 + at * step).await;
        assert_eq!(
            home.dump(EQUAL).await,
            eu.dump(EQUAL).await,
            "round {round}"
        );
    }
    assert!(cuts > 100, "{cuts} cuts");
    assert_eq!(opened(&eu).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_answer_has_room_for_is_asked_for_by_name_and_once() {
    let (home, eu) = two().await;
    home.seen(SYSTEM_ORG).await;
    let org = home.org();
    follow(&home, &eu, |_| usize::MAX).await;
    let operations = (0..600u128).map(|bits| {
        let name = proto::seal::random_name();
        create_target(1_000 + bits, &name)
    });
    let operations: Vec<Operation> = operations.collect();
    home.publish(org, operations).await;
    for bits in 0..20 {
        let token = format!("secret-{bits}");
        home.publish(org, vec![create_credential(&home.publisher, bits, &token)])
            .await;
    }
    home.seen(org).await;
    // No leaf fits an answer of 1,000 bytes, and no three of them a connection of 30,000.
    let cuts = follow_in(&home, &eu, 1_000, |_| 30_000).await;
    assert!(cuts > 0, "it took more than one connection");
    assert_eq!(home.dump(EQUAL).await, eu.dump(EQUAL).await);
    assert_eq!(opened(&eu).await.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_history_of_the_same_epoch_is_not_taken() {
    let (home, eu) = two().await;
    home.seen(SYSTEM_ORG).await;
    let org = home.org();
    follow(&home, &eu, |_| usize::MAX).await;
    // Home's store goes back behind what eu has, and goes on under the same epoch.
    let backup = home.dump(&["live/", "versions/"]).await;
    home.publish(org, vec![create_target(1, "lost")]).await;
    home.seen(org).await;
    follow(&home, &eu, |_| usize::MAX).await;
    let ops = backup.into_iter();
    let ops = ops.map(|(key, value)| proto::store::Op::put(key, value));
    let restore = proto::store::Txn {
        ops: ops.collect(),
        ..Default::default()
    };
    home.store.txn(restore).await.unwrap();
    let again = home.restarted();
    again.publish(org, vec![create_target(2, "instead")]).await;
    again.seen(org).await;
    eu.seen(org).await;
    let before = eu.dump(&["live/head/"]).await;
    follow(&again, &eu, |_| usize::MAX).await;
    assert_eq!(eu.dump(&["live/head/"]).await, before);
    let diverged = eu.replication.status.following("us").diverged;
    assert_eq!(diverged.keys().copied().collect::<Vec<_>>(), [org]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_control_plane_of_a_region_stores() {
    let (home, eu) = two().await;
    home.seen(SYSTEM_ORG).await;
    let org = home.org();
    let store: Arc<dyn Store> = eu.store.clone();
    let place = Place::take(&store, keys::REPLICATION).await.unwrap();
    // Its lease ends, another takes over.
    store
        .txn(proto::store::Txn {
            ops: vec![proto::store::Op::put(
                keys::leader(keys::REPLICATION),
                "another",
            )],
            ..Default::default()
        })
        .await
        .unwrap();
    let connection = connect(&home, ANSWER_BYTES, usize::MAX).await.unwrap();
    let guard = Some(place.held());
    eu.replication.round(&connection, &guard).await.unwrap();
    let untaken = eu.replication.status.following("us").untaken;
    let why = untaken.get(&org).unwrap();
    assert!(why.contains("another control plane replicates"), "{why}");
    assert!(eu.dump(&[&keys::head(org)]).await.is_empty());
}

#[tokio::test]
async fn who_may_ask_is_named_by_its_certificate() {
    let ring = proto::seal::Keyring::generate;
    let (sender, worlds) = watch::channel(Arc::default());
    drop(sender);
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store")).unwrap();
    let source = Source {
        homes: Homes::follow(store.clone(), "us").0,
        store,
        worlds,
        regions: Arc::new(Regions {
            own: "us".into(),
            home: "us".into(),
            signers: Vec::new(),
            peers: vec![peer(&ring("eu"), Vec::new())],
        }),
        shared: Arc::default(),
        status: Arc::default(),
        not_given: NotGiven::default(),
        answer_bytes: ANSWER_BYTES,
    };
    let hello = |protocol, region: &str| proto::wire::replication::RegionHello {
        protocol,
        region: region.into(),
    };
    for (hello, names, refused) in [
        (hello(2, "eu"), "127.0.0.1", None),
        (hello(3, "eu"), "127.0.0.1", None),
        (hello(7, "eu"), "127.0.0.1", None),
        (hello(2, "eu"), "gw-1", Some("names no host")),
        (hello(2, "ap"), "127.0.0.1", Some("not in `regions.peers`")),
        (hello(1, "eu"), "127.0.0.1", Some("runs an older program")),
    ] {
        let why = source.refuses(&hello, |host| host == names);
        match refused {
            None => assert_eq!(why, None),
            Some(text) => assert!(why.unwrap().contains(text), "{text}"),
        }
    }
}
