//! A follower and home in one process, over a stream that is cut after any number of bytes.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use jiff::Timestamp;
use proto::credential::{Credential, SecretInput};
use proto::id::CredentialId;
use proto::object::{Body, StoredCredential};
use proto::org::Role;
use proto::policy::Policy;
use proto::seal::{Binding, Keyring, Sealed, open};
use proto::store::embedded::Embedded;
use proto::store::follow::Follower as WorldFollower;
use proto::tree::{Change, Operation, SecretChange};
use proto::version::Epoch;
use proto::wire::link::{GREETING_BYTES_MAX, read_frame};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::super::source::{ANSWER_BYTES, Source};
use super::*;
use crate::publish::{Author, DEADLINE, Publish, PublisherOptions};
use crate::regions::Peer;

/// A stream that breaks after so many bytes were read from it.
struct Breaking {
    inner: DuplexStream,
    left: Arc<AtomicUsize>,
}

impl AsyncRead for Breaking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        let mut bytes = vec![0; buf.remaining().min(left)];
        let mut part = ReadBuf::new(&mut bytes);
        let polled = Pin::new(&mut self.inner).poll_read(cx, &mut part);
        let read = part.filled();
        self.left.store(left - read.len(), Ordering::SeqCst);
        buf.put_slice(read);
        polled
    }
}

impl AsyncWrite for Breaking {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// One region.
struct Region {
    ring: Keyring,
    store: Arc<Embedded>,
    publisher: Arc<Publisher>,
    worlds: watch::Receiver<Arc<World>>,
    _dir: tempfile::TempDir,
}

fn region(ring: Keyring, others: Vec<&Keyring>) -> Region {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store")).unwrap();
    let others = others.iter().map(|ring| ring.public().unwrap()).collect();
    let publisher = Publisher::new(PublisherOptions {
        store: store.clone(),
        public: ring.public().unwrap(),
        digest_key: ring.digest_key.clone(),
        policy: Policy::default(),
        epoch: Epoch {
            counter: 1,
            region: ring.region.clone(),
        },
        clock: Arc::new(Timestamp::now),
    });
    let (follower, worlds) = WorldFollower::new(store.clone(), ring.region.clone());
    tokio::spawn(follower.run());
    Region {
        publisher: Arc::new(publisher.with_regions(others)),
        ring,
        store,
        worlds,
        _dir: dir,
    }
}

/// Home `us`, which has begun, and `eu`, which has nothing.
async fn two() -> (Region, Region) {
    let us = Keyring::generate("us");
    let eu = Keyring::generate_with("eu", us.digest_key.clone());
    let home = region(us.clone(), vec![&eu]);
    let begun = home
        .publisher
        .bootstrap(tokio::time::Instant::now() + DEADLINE);
    assert!(begun.await.unwrap());
    (home, region(eu, vec![&us]))
}

impl Region {
    async fn publish(&self, org: OrgId, operations: Vec<Operation>) -> u64 {
        let publish = Publish {
            org,
            operations,
            author: Author {
                name: "tok".into(),
                role: Role::Owner,
                source: None,
            },
            deadline: tokio::time::Instant::now() + DEADLINE,
            idempotency: None,
        };
        self.publisher.publish(publish).await.unwrap().n
    }

    /// Waits until this process has seen what its store holds.
    async fn seen(&self, org: OrgId) {
        let newest = self.publisher.load(org).await.unwrap().head.hash;
        let mut worlds = self.worlds.clone();
        let seen = worlds.wait_for(|world| {
            let state = world.orgs.get(&org);
            state.is_some_and(|state| state.config.head.hash == newest)
        });
        seen.await.unwrap();
    }

    async fn dump(&self, prefixes: &[&str]) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for prefix in prefixes {
            let listed = load::list(&*self.store, prefix, None, |pair| {
                found.insert(pair.key, pair.value.to_vec());
            });
            listed.await.unwrap();
        }
        found
    }

    fn org(&self) -> OrgId {
        let world = self.worlds.borrow().clone();
        world.slugs["default"]
    }
}

/// What must be equal everywhere.
const EQUAL: &[&str] = &["live/head/", "live/retired/", "versions/", "leaf/"];

fn peer(ring: &Keyring) -> Peer {
    Peer {
        name: ring.region.clone(),
        control: "http://127.0.0.1:1".into(),
        gateway: None,
        replication: vec!["127.0.0.1:1".into()],
        public: ring.public().unwrap(),
    }
}

fn regions(own: &Region, other: &Region) -> Arc<Regions> {
    Arc::new(Regions {
        own: own.ring.region.clone(),
        home: "us".into(),
        peers: vec![peer(&other.ring)],
    })
}

fn follower(home: &Region, eu: &Region) -> Follower {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Follower::new(FollowerOptions {
        publisher: eu.publisher.clone(),
        store: eu.store.clone(),
        worlds: eu.worlds.clone(),
        regions: regions(eu, home),
        status: Arc::default(),
        tls: Arc::new(tls),
    })
}

/// A connection to home that breaks after so many bytes of answers.
async fn connect(
    home: &Region,
    eu: &Region,
    answer_bytes: usize,
    bytes: usize,
) -> Result<Connection, std::io::Error> {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let source = Source {
        store: home.store.clone(),
        worlds: home.worlds.clone(),
        regions: regions(home, eu),
        status: Arc::default(),
        answer_bytes,
    };
    tokio::spawn(async move {
        let greeting = read_frame(&mut far, GREETING_BYTES_MAX).await.unwrap();
        let peer = "127.0.0.1:1".parse().unwrap();
        let _ = source.attend(far, peer, &greeting.unwrap(), |_| true).await;
    });
    let near = Breaking {
        inner: near,
        left: Arc::new(AtomicUsize::new(bytes)),
    };
    Connection::over(Box::new(near), "eu").await
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
    let follower = follower(home, eu);
    let store: Arc<dyn Store> = eu.store.clone();
    let place = Place::take(&store).await.unwrap();
    for at in 0..10_000 {
        let Ok(mut connection) = connect(home, eu, answer_bytes, bytes(at)).await else {
            continue;
        };
        match follower.round(&mut connection, &place, Vec::new()).await {
            Ok(_) => return at,
            Err(Broken::Link(_) | Broken::Apply(ApplyError::Link(_))) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it does not get on");
}

fn target(bits: u128) -> ObjectId {
    ObjectId::Target(proto::id::Id::from_bits(bits))
}

fn create_target(bits: u128, name: &str) -> Operation {
    let fields = json!({"base_url": format!("https://h{bits}.example"), "name": name});
    Operation::Create {
        id: target(bits),
        body: Body::Target(serde_json::from_value(fields).unwrap()),
        secret: None,
    }
}

fn rename(bits: u128, name: &str) -> Operation {
    let name = name.to_owned();
    let change: Change = Arc::new(move |body| match body {
        Body::Target(target) => {
            let mut target = target.clone();
            target.name.clone_from(&name);
            Ok(Body::Target(target))
        }
        _ => panic!("a target"),
    });
    Operation::Update {
        id: target(bits),
        precondition: None,
        change,
        secret: SecretChange::Keep,
    }
}

fn credential() -> Credential {
    let fields = json!({"kind": "target", "auth_type": "bearer", "name": "c",
                        "hosts": ["h1.example"]});
    serde_json::from_value(fields).unwrap()
}

fn bearer(token: &str) -> SecretInput {
    let mut input = SecretInput::default();
    input.token = Some(token.to_owned());
    input
}

fn create_credential(publisher: &Publisher, bits: u128, token: &str) -> Operation {
    let credential = credential();
    let secret = Some(publisher.prepare(&credential, bearer(token)));
    Operation::Create {
        id: ObjectId::Credential(CredentialId::from_bits(bits)),
        body: Body::Credential(StoredCredential {
            credential,
            secret: None,
            previous: vec![],
        }),
        secret,
    }
}

fn set_secret(publisher: &Publisher, bits: u128, token: &str) -> Operation {
    let secret = publisher.prepare(&credential(), bearer(token));
    Operation::Update {
        id: ObjectId::Credential(CredentialId::from_bits(bits)),
        precondition: None,
        change: Arc::new(|body| Ok(body.clone())),
        secret: SecretChange::Set {
            secret,
            old_until: None,
        },
    }
}

/// The secrets that the region can open: the token of each.
async fn opened(region: &Region) -> Vec<String> {
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
async fn another_history_is_not_taken() {
    let (home, eu) = two().await;
    home.seen(SYSTEM_ORG).await;
    let org = home.org();
    follow(&home, &eu, |_| usize::MAX).await;
    // eu goes on by itself, as after a promotion that nobody told.
    eu.publish(org, vec![create_target(1, "of eu")]).await;
    home.publish(org, vec![create_target(2, "of us")]).await;
    home.publish(org, vec![rename(2, "again")]).await;
    home.seen(org).await;
    eu.seen(org).await;
    let before = eu.dump(&["live/head/"]).await;
    let follower = follower(&home, &eu);
    let store: Arc<dyn Store> = eu.store.clone();
    let place = Place::take(&store).await.unwrap();
    let mut connection = connect(&home, &eu, ANSWER_BYTES, usize::MAX).await.unwrap();
    follower
        .round(&mut connection, &place, Vec::new())
        .await
        .unwrap();
    assert_eq!(eu.dump(&["live/head/"]).await, before);
    let diverged = follower.options.status.following().diverged;
    assert_eq!(diverged.keys().copied().collect::<Vec<_>>(), [org]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_control_plane_of_a_region_stores() {
    let (home, eu) = two().await;
    home.seen(SYSTEM_ORG).await;
    let org = home.org();
    let follower = follower(&home, &eu);
    let store: Arc<dyn Store> = eu.store.clone();
    let place = Place::take(&store).await.unwrap();
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
    let mut connection = connect(&home, &eu, ANSWER_BYTES, usize::MAX).await.unwrap();
    let deposed = follower.round(&mut connection, &place, Vec::new()).await;
    let moved = matches!(deposed, Err(Broken::Apply(ApplyError::Moved(_))));
    assert!(moved, "{deposed:?}");
    assert!(eu.dump(&[&keys::head(org)]).await.is_empty());
}

#[test]
fn who_may_ask_is_named_by_its_certificate() {
    let (us, eu) = (Keyring::generate("us"), Keyring::generate("eu"));
    let (sender, worlds) = watch::channel(Arc::default());
    drop(sender);
    let dir = tempfile::tempdir().unwrap();
    let source = Source {
        store: Embedded::open(&dir.path().join("store")).unwrap(),
        worlds,
        regions: Arc::new(Regions {
            own: us.region,
            home: "us".into(),
            peers: vec![peer(&eu)],
        }),
        status: Arc::default(),
        answer_bytes: ANSWER_BYTES,
    };
    let hello = |protocol, region: &str| proto::wire::replication::RegionHello {
        protocol,
        region: region.into(),
    };
    for (hello, names, refused) in [
        (hello(1, "eu"), "127.0.0.1", None),
        (hello(7, "eu"), "127.0.0.1", None),
        (hello(1, "eu"), "gw-1", Some("names no host")),
        (hello(1, "ap"), "127.0.0.1", Some("not in `regions.peers`")),
        (hello(0, "eu"), "127.0.0.1", Some("protocol 0")),
    ] {
        let why = source.refuses(&hello, |host| host == names);
        match refused {
            None => assert_eq!(why, None),
            Some(text) => assert!(why.unwrap().contains(text), "{text}"),
        }
    }
}
