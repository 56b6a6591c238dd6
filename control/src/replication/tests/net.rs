//! Regions in one process, and the ways between them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use jiff::Timestamp;
use proto::credential::{Credential, SecretInput};
use proto::id::{CredentialId, OrgId};
use proto::object::{Body, ObjectId, StoredCredential};
use proto::org::Role;
use proto::policy::Policy;
use proto::seal::Keyring;
use proto::signature::{Signer, SigningRing, VerifyingKey};
use proto::store::embedded::{Embedded, EmbeddedOptions};
use proto::store::follow::Follower as WorldFollower;
use proto::store::follow::World;
use proto::store::load;
use proto::tree::{Change, Head, Operation, SYSTEM_ORG, SecretChange};
use proto::version::Epoch;
use proto::wire::link::{GREETING_BYTES_MAX, read_frame};
use proto::wire::replication::Position;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::watch;

use super::super::apply::Guard;
use super::super::connection::Connection;
use super::super::not_given::NotGiven;
use super::super::source::{ANSWER_BYTES, Source};
use super::super::taking::Taking;
use super::super::{Broken, Dialer, Replication};
use crate::archive::Archive;
use crate::publish::PublisherOptions;
use crate::publish::{Author, Idempotency, Publish, PublishError, Published, Publisher};
use crate::regions::{Homes, Peer, Regions};

/// How long a store, or a publish, may take where no test is about that.
const PATIENCE: Duration = Duration::from_secs(60);

/// What regions are sent by others, byte for byte, from when a test listens.
#[derive(Clone, Default)]
pub struct Heard {
    listens: Arc<AtomicBool>,
    by: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl Heard {
    fn note(&self, region: &str, bytes: &[u8]) {
        if self.listens.load(Ordering::SeqCst) {
            let mut by = self.by.lock().unwrap();
            by.entry(region.to_owned()).or_default().extend(bytes);
        }
    }
}

/// A stream that breaks after so many bytes were read from it.
struct Breaking {
    inner: DuplexStream,
    left: Arc<AtomicUsize>,
    heard: Heard,
    near: String,
    far: String,
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
        self.heard.note(&self.near, read);
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
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.heard.note(&self.far, &bytes[..count]);
        }
        written
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The ways between regions.
#[derive(Default)]
pub struct Net {
    sources: Mutex<BTreeMap<String, Arc<Source>>>,
    /// From whom to whom nothing goes.
    cut: Mutex<BTreeSet<(String, String)>>,
    /// How often each way was tried.
    tried: Mutex<BTreeMap<(String, String), usize>>,
    /// Bytes that may still be read on each open way.
    open: Mutex<Vec<(String, String, Arc<AtomicUsize>)>>,
    heard: Heard,
    /// The organisation that home has made at its first start.
    org: OnceLock<OrgId>,
}

impl Net {
    /// Connects two regions.
    pub(in crate::replication) async fn dial(
        &self,
        (own, peer): (&str, &str),
    ) -> io::Result<Connection> {
        let way = (own.to_owned(), peer.to_owned());
        *self.tried.lock().unwrap().entry(way.clone()).or_default() += 1;
        if self.cut.lock().unwrap().contains(&way) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let source = self.sources.lock().unwrap()[peer].clone();
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        self.open.lock().unwrap().push((way.0, way.1, left.clone()));
        connect_heard(source, (own, peer), left, self.heard.clone()).await
    }

    /// Keeps what regions are sent from now on.
    pub fn listen(&self) {
        self.heard.listens.store(true, Ordering::SeqCst);
    }

    /// What a region was sent by all others since.
    pub fn heard_by(&self, region: &str) -> Vec<u8> {
        let by = self.heard.by.lock().unwrap();
        by.get(region).cloned().unwrap_or_default()
    }

    /// How often one region has dialled another.
    pub fn tried(&self, from: &str, to: &str) -> usize {
        let tried = self.tried.lock().unwrap();
        let way = (from.to_owned(), to.to_owned());
        tried.get(&way).copied().unwrap_or_default()
    }

    /// Cuts two regions off from each other, both ways.
    pub fn cut(&self, one: &str, other: &str) {
        for (from, to) in [(one, other), (other, one)] {
            let way = (from.to_owned(), to.to_owned());
            self.cut.lock().unwrap().insert(way);
            for (near, far, left) in &*self.open.lock().unwrap() {
                if near == from && far == to {
                    left.store(0, Ordering::SeqCst);
                }
            }
        }
    }

    /// Refuses further connections from one region to another; those that are open stay.
    pub fn refuse(&self, from: &str, to: &str) {
        let way = (from.to_owned(), to.to_owned());
        self.cut.lock().unwrap().insert(way);
    }

    /// Heals every way.
    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }
}

/// A connection that breaks after so many bytes of answers.
pub(in crate::replication) async fn connect(
    source: Arc<Source>,
    between: (&str, &str),
    left: Arc<AtomicUsize>,
) -> io::Result<Connection> {
    connect_heard(source, between, left, Heard::default()).await
}

async fn connect_heard(
    source: Arc<Source>,
    between: (&str, &str),
    left: Arc<AtomicUsize>,
    heard: Heard,
) -> io::Result<Connection> {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        if let Ok(Some(greeting)) = read_frame(&mut far, GREETING_BYTES_MAX).await {
            let peer = "127.0.0.1:1".parse().unwrap();
            let _ = source.attend(far, peer, &greeting, |_| true).await;
        }
    });
    let near = Breaking {
        inner: near,
        left,
        heard,
        near: between.0.to_owned(),
        far: between.1.to_owned(),
    };
    Connection::over(Box::new(near), between).await
}

/// Who signs, and which keys every region knows of each.
#[derive(Clone, Default)]
pub struct Signing {
    pub signers: BTreeMap<String, Arc<Signer>>,
    pub listed: BTreeMap<String, Vec<VerifyingKey>>,
}

impl Signing {
    /// Gives a region a fresh key, which is known to all.
    pub fn rotate(&mut self, region: &str) {
        let mut ring = SigningRing::empty(region);
        let public = ring.rotate();
        self.listed.entry(region.into()).or_default().push(public);
        let signer = Arc::new(ring.signer().unwrap());
        self.signers.insert(region.into(), signer);
    }

    fn listed(&self, region: &str) -> Vec<VerifyingKey> {
        self.listed.get(region).cloned().unwrap_or_default()
    }
}

impl Replication {
    /// Hears once what has moved, and stores it.
    pub(in crate::replication) async fn round(
        &self,
        connection: &Connection,
        guard: &Guard,
    ) -> Result<Vec<(OrgId, Position)>, Broken> {
        Taking::new(self, connection, guard).round().await
    }
}

/// One region.
pub struct Region {
    pub ring: Keyring,
    pub store: Arc<Embedded>,
    pub publisher: Arc<Publisher>,
    pub archive: Arc<Archive>,
    pub worlds: watch::Receiver<Arc<World>>,
    pub homes: Homes,
    pub replication: Arc<Replication>,
    pub source: Arc<Source>,
    pub signing: Signing,
    policy: Policy,
    net: Arc<Net>,
    all: Arc<Vec<Keyring>>,
    dir: Arc<tempfile::TempDir>,
}

/// Regions of one installation that sign; the first is home and has begun.
pub async fn installation(names: &[&str]) -> (Arc<Net>, Vec<Region>) {
    let mut signing = Signing::default();
    names.iter().for_each(|name| signing.rotate(name));
    installation_of(names, signing).await
}

/// The same, with these keys.
pub async fn installation_of(names: &[&str], signing: Signing) -> (Arc<Net>, Vec<Region>) {
    installation_with(names, signing, Policy::default()).await
}

/// The same, of which every region keeps what is pinned to it alone.
pub async fn installation_by_region(names: &[&str]) -> (Arc<Net>, Vec<Region>) {
    let mut signing = Signing::default();
    names.iter().for_each(|name| signing.rotate(name));
    let policy = Policy {
        content_by_region: true,
        ..Policy::default()
    };
    installation_with(names, signing, policy).await
}

/// A store that may be slow: a machine on which many tests run is.
fn unhurried() -> EmbeddedOptions {
    EmbeddedOptions {
        timeout: PATIENCE,
        ..EmbeddedOptions::default()
    }
}

async fn installation_with(
    names: &[&str],
    signing: Signing,
    mut policy: Policy,
) -> (Arc<Net>, Vec<Region>) {
    policy.regions = names.iter().map(|name| (*name).to_owned()).collect();
    let net = Arc::new(Net::default());
    let first = Keyring::generate(names[0]);
    let digest_key = first.digest_key.clone();
    let others = names[1..]
        .iter()
        .map(|name| Keyring::generate_with(*name, digest_key.clone()));
    let rings: Vec<Keyring> = std::iter::once(first.clone()).chain(others).collect();
    let rings = Arc::new(rings);
    let regions: Vec<Region> = rings
        .iter()
        .map(|ring| {
            let dir = tempfile::tempdir().unwrap();
            let store = Embedded::open_with(&dir.path().join("store"), &unhurried()).unwrap();
            region(
                (&net, ring, &rings),
                (&signing, &policy),
                store,
                Arc::new(dir),
            )
        })
        .collect();
    let until = tokio::time::Instant::now() + PATIENCE;
    assert!(regions[0].publisher.bootstrap(until).await.unwrap());
    regions[0].seen(SYSTEM_ORG).await;
    let mut worlds = regions[0].worlds.clone();
    let named = worlds.wait_for(|world| world.slugs.contains_key("default"));
    let org = named.await.unwrap().slugs["default"];
    net.org.set(org).unwrap();
    (net, regions)
}

/// A region on a store, its processes just started.
fn region(
    (net, ring, all): (&Arc<Net>, &Keyring, &Arc<Vec<Keyring>>),
    (signing, policy): (&Signing, &Policy),
    store: Arc<Embedded>,
    dir: Arc<tempfile::TempDir>,
) -> Region {
    let home = all[0].region.as_str();
    let others = || all.iter().filter(|other| other.region != ring.region);
    let publisher = Publisher::new(PublisherOptions {
        store: store.clone(),
        public: ring.public().unwrap(),
        digest_key: ring.digest_key.clone(),
        policy: policy.clone(),
        epoch: Epoch {
            counter: 1,
            region: ring.region.clone(),
        },
        clock: Arc::new(Timestamp::now),
    });
    let sealed_to = others().map(|ring| ring.public().unwrap()).collect();
    let publisher = publisher.with_first_home(home).with_regions(sealed_to);
    let publisher = publisher.with_signer(signing.signers.get(&ring.region).cloned());
    let archive = Arc::new(Archive::open(&dir.path().join("archive")).unwrap());
    let publisher = publisher.with_archive(archive.clone());
    let (follower, worlds) = WorldFollower::new(store.clone(), ring.region.clone());
    tokio::spawn(follower.run());
    let (homes, following) = Homes::follow(store.clone(), home);
    tokio::spawn(following);
    let regions = Arc::new(Regions {
        own: ring.region.clone(),
        home: home.into(),
        signers: signing.listed(&ring.region),
        peers: others()
            .map(|ring| peer(ring, signing.listed(&ring.region)))
            .collect(),
    });
    let publisher = Arc::new(publisher);
    let source = Source {
        store: store.clone(),
        worlds: worlds.clone(),
        homes: homes.clone(),
        regions: regions.clone(),
        shared: Arc::default(),
        status: Arc::default(),
        not_given: NotGiven::default(),
        answer_bytes: ANSWER_BYTES,
    };
    let replication = Replication {
        publisher: publisher.clone(),
        store: store.clone(),
        worlds: worlds.clone(),
        regions,
        homes: homes.clone(),
        shared: Arc::default(),
        status: Arc::default(),
        dialer: Dialer::Within(net.clone()),
    };
    let source = Arc::new(source);
    let name = ring.region.clone();
    net.sources.lock().unwrap().insert(name, source.clone());
    Region {
        ring: ring.clone(),
        store,
        publisher,
        archive,
        worlds,
        homes,
        replication: Arc::new(replication),
        source,
        signing: signing.clone(),
        policy: policy.clone(),
        net: net.clone(),
        all: all.clone(),
        dir,
    }
}

pub fn peer(ring: &Keyring, signers: Vec<VerifyingKey>) -> Peer {
    Peer {
        name: ring.region.clone(),
        control: "http://127.0.0.1:1".into(),
        gateway: None,
        replication: vec!["127.0.0.1:1".into()],
        public: ring.public().unwrap(),
        signers,
    }
}

impl Region {
    /// The region after a restart: nothing is known but what its store holds.
    pub fn restarted(&self) -> Self {
        self.restarted_with(&self.signing)
    }

    /// The same, with other keys.
    pub fn restarted_with(&self, signing: &Signing) -> Self {
        let of = (&self.net, &self.ring, &self.all);
        region(
            of,
            (signing, &self.policy),
            self.store.clone(),
            self.dir.clone(),
        )
    }

    /// The same, with these key rings of all regions.
    pub fn restarted_by(&self, rings: &[Keyring]) -> Self {
        let own = rings.iter().find(|ring| ring.region == self.name());
        let (own, all) = (own.unwrap_or(&self.ring), Arc::new(rings.to_vec()));
        region(
            (&self.net, own, &all),
            (&self.signing, &self.policy),
            self.store.clone(),
            self.dir.clone(),
        )
    }

    /// The same region's answers, of so many bytes.
    pub fn source_of(&self, answer_bytes: usize) -> Arc<Source> {
        Arc::new(Source {
            store: self.store.clone(),
            worlds: self.worlds.clone(),
            homes: self.homes.clone(),
            regions: self.source.regions.clone(),
            shared: Arc::default(),
            status: Arc::default(),
            not_given: NotGiven::default(),
            answer_bytes,
        })
    }

    pub async fn try_publish(
        &self,
        org: OrgId,
        operations: Vec<Operation>,
    ) -> Result<Published, PublishError> {
        self.try_keyed(org, operations, None).await
    }

    /// The same, of a request with an idempotency key.
    pub async fn try_keyed(
        &self,
        org: OrgId,
        operations: Vec<Operation>,
        idempotency: Option<Idempotency>,
    ) -> Result<Published, PublishError> {
        let publish = Publish {
            org,
            operations,
            author: Author {
                name: "tok".into(),
                role: Role::Owner,
                source: None,
            },
            deadline: tokio::time::Instant::now() + PATIENCE,
            idempotency,
        };
        self.publisher.publish(publish).await
    }

    pub async fn publish(&self, org: OrgId, operations: Vec<Operation>) -> u64 {
        self.try_publish(org, operations).await.unwrap().n
    }

    /// Waits until this process has seen what its store holds.
    pub async fn seen(&self, org: OrgId) {
        let newest = self.publisher.load(org).await.unwrap().head.hash;
        let mut worlds = self.worlds.clone();
        let seen = worlds.wait_for(|world| {
            let state = world.orgs.get(&org);
            state.is_some_and(|state| state.config.head.hash == newest)
        });
        seen.await.unwrap();
        let mut facts = self.homes.facts();
        facts
            .wait_for(|facts| facts.contains_key(&org))
            .await
            .unwrap();
    }

    pub async fn dump(&self, prefixes: &[&str]) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for prefix in prefixes {
            let listed = load::list(&*self.store, prefix, None, |pair| {
                found.insert(pair.key, pair.value.to_vec());
            });
            listed.await.unwrap();
        }
        found
    }

    pub async fn head(&self, org: OrgId) -> Option<Head> {
        let found = load::head(&*self.store, org).await.unwrap();
        found.map(|(head, _)| head)
    }

    /// The organisation `default`, whether this region has seen it yet or not.
    pub fn org(&self) -> OrgId {
        *self.net.org.get().unwrap()
    }

    pub fn name(&self) -> &str {
        &self.ring.region
    }
}

pub fn target(bits: u128) -> ObjectId {
    ObjectId::Target(proto::id::Id::from_bits(bits))
}

pub fn create_target(bits: u128, name: &str) -> Operation {
    let fields = json!({"base_url": format!("https://h{bits}.example"), "name": name});
    Operation::Create {
        id: target(bits),
        body: Body::Target(serde_json::from_value(fields).unwrap()),
        secret: None,
    }
}

pub fn rename(bits: u128, name: &str) -> Operation {
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

pub fn credential() -> Credential {
    let fields = json!({"kind": "target", "auth_type": "bearer", "name": "c",
                        "hosts": ["h1.example"]});
    serde_json::from_value(fields).unwrap()
}

pub fn bearer(token: &str) -> SecretInput {
    let mut input = SecretInput::default();
    input.token = Some(token.to_owned());
    input
}

pub fn create_credential(publisher: &Publisher, bits: u128, token: &str) -> Operation {
    create_with_secret(publisher, bits, credential(), token)
}

pub fn create_with_secret(
    publisher: &Publisher,
    bits: u128,
    credential: Credential,
    token: &str,
) -> Operation {
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

pub fn set_secret(publisher: &Publisher, bits: u128, token: &str) -> Operation {
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
