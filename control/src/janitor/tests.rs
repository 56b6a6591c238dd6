//! The janitor beside publishers, readers and other janitors, on the embedded store: the schedules
//! that would delete what is reached, and a publisher that dies at every step.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

use jiff::Timestamp;
use proto::credential::SecretInput;
use proto::home::Home;
use proto::id::{CredentialId, TargetId};
use proto::object::{Body, ObjectId, StoredCredential};
use proto::org::{Org, Role};
use proto::policy::Policy;
use proto::seal::Keyring;
use proto::store::ancestry::ancestry;
use proto::store::embedded::{Embedded, EmbeddedOptions};
use proto::store::follow::Follower;
use proto::store::{
    At, KeyValue, Lease, LeaseId, Op, Page, Range, Store, StoreFuture, Txn, TxnOutcome, Watch,
};
use proto::tree::{Ancestry, Change, Operation, SYSTEM_ORG, SecretChange};
use proto::version::Epoch;
use proto::wire::replication::Position;
use serde_json::json;
use tokio::sync::Notify;

use super::*;
use crate::publish::{Author, Place, Publish, PublisherOptions, Request, Rollback, recovery};

type Hook = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What a hook waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// A transaction that moves a head.
    Head,
    /// A transaction that deletes leaves.
    Deletion,
    /// A read of a leaf.
    LeafRead,
}

/// The embedded store as one process sees it: something happens just before a step, or the process
/// dies after so many calls.
struct Gate {
    inner: Arc<Embedded>,
    hook: Mutex<Option<(Step, Hook)>>,
    /// Transactions until death; negative for ever. Reads change nothing, so a death at one is a
    /// death after the transaction before it.
    left: AtomicIsize,
    /// Whether the transaction at which it dies is carried out.
    carried_out: bool,
    /// Whether no leaf is taken any more.
    full: AtomicBool,
}

impl Gate {
    fn new(inner: &Arc<Embedded>) -> Arc<Self> {
        Self::dying(inner, -1, false)
    }

    fn dying(inner: &Arc<Embedded>, left: isize, carried_out: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: inner.clone(),
            hook: Mutex::default(),
            left: AtomicIsize::new(left),
            carried_out,
            full: AtomicBool::new(false),
        })
    }

    fn before<F: Future<Output = ()> + Send + 'static>(
        &self,
        step: Step,
        hook: impl FnOnce() -> F + Send + 'static,
    ) {
        let hook: Hook = Box::new(move || Box::pin(hook()));
        *self.hook.lock().unwrap() = Some((step, hook));
    }

    async fn passes(&self, step: Step) {
        let mut waiting = self.hook.lock().unwrap().take();
        if waiting.as_ref().is_some_and(|(wanted, _)| *wanted != step) {
            *self.hook.lock().unwrap() = waiting.take();
        }
        if let Some((_, hook)) = waiting {
            hook().await;
        }
    }

    fn lives(&self) -> Result<(), StoreError> {
        match self.left.load(Ordering::SeqCst) {
            0 => Err(StoreError::Unavailable("dead".into())),
            _ => Ok(()),
        }
    }

    /// Whether it dies at this transaction, or an error when it is dead.
    fn dies(&self) -> Result<bool, StoreError> {
        self.lives()?;
        match self.left.load(Ordering::SeqCst) {
            ..0 => Ok(false),
            _ => Ok(self.left.fetch_sub(1, Ordering::SeqCst) == 1),
        }
    }
}

fn step_of(txn: &Txn) -> Option<Step> {
    txn.ops.iter().find_map(|op| match op {
        Op::Put { key, .. } if key.starts_with(keys::HEADS) => Some(Step::Head),
        Op::Delete(key) if key.starts_with("leaf/") => Some(Step::Deletion),
        _ => None,
    })
}

impl Store for Gate {
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        let key = key.to_owned();
        Box::pin(async move {
            self.lives()?;
            if key.starts_with("leaf/") {
                self.passes(Step::LeafRead).await;
            }
            self.inner.get(&key).await
        })
    }
    fn range(&self, range: Range) -> StoreFuture<'_, Page> {
        Box::pin(async move {
            self.lives()?;
            self.inner.range(range).await
        })
    }
    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        Box::pin(async move {
            let dies = self.dies()?;
            let is_leaf = |op: &Op| matches!(op, Op::Put { key, .. } if key.starts_with("leaf/"));
            if self.full.load(Ordering::SeqCst) && txn.ops.iter().any(is_leaf) {
                return Err(StoreError::Full("of its quota".into()));
            }
            if let Some(step) = step_of(&txn) {
                self.passes(step).await;
            }
            if dies && !self.carried_out {
                return Err(StoreError::OutcomeUnknown("dies before".into()));
            }
            let outcome = self.inner.txn(txn).await;
            match dies {
                true => Err(StoreError::OutcomeUnknown("dies after".into())),
                false => outcome,
            }
        })
    }
    fn watch(&self, prefix: &str, from: Revision) -> StoreFuture<'_, Box<dyn Watch>> {
        self.inner.watch(prefix, from)
    }
    fn grant_lease(&self, ttl: Duration) -> StoreFuture<'_, Lease> {
        self.inner.grant_lease(ttl)
    }
    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.inner.keep_alive(lease)
    }
    fn revoke_lease(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.inner.revoke_lease(lease)
    }
    fn compact(&self, revision: Revision) -> StoreFuture<'_, ()> {
        self.inner.compact(revision)
    }
}

/// One control plane.
struct Plane {
    publisher: Arc<Publisher>,
    janitor: Janitor,
}

impl Plane {
    /// The leader does a round.
    async fn round(&mut self) -> Round {
        self.janitor
            .seat
            .renew(self.publisher.store())
            .await
            .unwrap();
        self.janitor.round().await.unwrap()
    }
}

struct Scene {
    inner: Arc<Embedded>,
    ring: Keyring,
    org: OrgId,
    dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        Self::with(&EmbeddedOptions::default()).await
    }

    async fn with(options: &EmbeddedOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = Embedded::open_with(&dir.path().join("store"), options).unwrap();
        let mut scene = Self {
            inner,
            ring: Keyring::generate("eu"),
            org: SYSTEM_ORG,
            dir,
        };
        let publisher = scene.plane("setup").publisher;
        assert!(publisher.bootstrap(in_time()).await.unwrap());
        let system = publisher.load(SYSTEM_ORG).await.unwrap();
        scene.org = named(&system, "default");
        scene
    }

    /// A control plane with an archive of this name.
    fn plane(&self, archive: &str) -> Plane {
        self.plane_on(Gate::new(&self.inner), archive)
    }

    fn plane_on(&self, store: Arc<Gate>, archive: &str) -> Plane {
        let archive = Arc::new(Archive::open(&self.dir.path().join(archive)).unwrap());
        let publisher = Publisher::new(PublisherOptions {
            store,
            public: self.ring.public().unwrap(),
            digest_key: self.ring.digest_key.clone(),
            policy: Policy::default(),
            epoch: Epoch {
                counter: 1,
                region: "eu".into(),
            },
            // Standing still, so that the same operations make the same leaves.
            clock: Arc::new(|| Timestamp::from_second(2_000_000_000).unwrap()),
        });
        let publisher = Arc::new(publisher.with_archive(archive.clone()));
        let options = JanitorOptions {
            store_versions: 3,
            archive_versions: 1_000,
            archive_age: Duration::from_secs(90 * 86_400),
            every: Duration::from_secs(1),
            compacts: true,
        };
        let janitor = Janitor::new(publisher.clone(), archive, options);
        Plane { publisher, janitor }
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        load::list(&*self.inner, prefix, None, |pair| found.push(pair.key))
            .await
            .unwrap();
        found
    }

    /// Everything that is reached is there, and nothing else: of the head and of every version
    /// that the store keeps.
    async fn is_clean(&self) {
        self.is_whole().await;
        let plane = self.plane("check");
        let marked = plane.janitor.mark(self.org).await.unwrap();
        let leaves: HashSet<Hash> = self
            .keys(&keys::leaves(self.org))
            .await
            .iter()
            .map(|key| keys::parse_leaf(key).unwrap().1)
            .collect();
        assert_eq!(leaves, marked.leaves);
        let sealed = self.keys(&keys::secrets(self.org)).await;
        assert_eq!(sealed.len(), marked.sealed.len(), "{sealed:?}");
    }

    async fn is_whole(&self) {
        let records = dropping::records_until(&*self.inner, self.org, u64::MAX).await;
        for record in records.unwrap() {
            let read = load::version(&*self.inner, self.org, record.head.clone(), None).await;
            let loaded = read.unwrap_or_else(|error| panic!("version {}: {error}", record.head.n));
            assert!(loaded.faults.is_empty(), "{:?}", loaded.faults);
        }
        // A process that knows nothing finds the newest version whole.
        self.plane("check").publisher.load(self.org).await.unwrap();
    }
}

fn in_time() -> Instant {
    Instant::now() + crate::publish::DEADLINE
}

fn named(system: &proto::tree::OrgConfig, slug: &str) -> OrgId {
    let of = |(id, object): (&ObjectId, &Arc<proto::object::Object>)| match (id, &object.body) {
        (ObjectId::Org(id), Body::Org(org)) if org.slug == slug => Some(*id),
        _ => None,
    };
    system.objects.iter().find_map(of).unwrap()
}

fn author() -> Author {
    Author {
        name: "tok".into(),
        role: Role::Owner,
        source: None,
    }
}

async fn publish(publisher: &Publisher, org: OrgId, operations: Vec<Operation>) -> u64 {
    let published = publisher.publish(request(org, operations)).await;
    published.unwrap().n
}

fn request(org: OrgId, operations: Vec<Operation>) -> Publish {
    Publish {
        org,
        operations,
        author: author(),
        deadline: in_time(),
        idempotency: None,
    }
}

fn id(bits: u128) -> ObjectId {
    ObjectId::Target(TargetId::from_bits(bits))
}

fn target(bits: u128, label: &str) -> Operation {
    let body = json!({"base_url": format!("https://h{bits}.example"), "name": "t",
                      "labels": {"a": label}});
    Operation::Create {
        id: id(bits),
        body: Body::Target(serde_json::from_value(body).unwrap()),
        secret: None,
    }
}

/// More than fits one transaction: texts that do not compress, the same for the same seed.
fn large(seed: u64, create: bool) -> Vec<Operation> {
    let noise = |bits: u128, part: u64| -> String {
        let texts = (0..4).map(|at| Hash::of(format!("{seed} {bits} {part} {at}").as_bytes()));
        texts.map(|hash| hash.to_string()).collect::<String>()[..250].to_owned()
    };
    let labels = move |bits| {
        let part = |part| (format!("l{part}"), noise(bits, part));
        (0..8)
            .map(part)
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let one = |bits: u128| {
        let body = json!({"base_url": format!("https://h{bits}.example"), "name": "t",
                          "labels": labels(bits)});
        let body = Body::Target(serde_json::from_value(body).unwrap());
        match create {
            true => Operation::Create {
                id: id(bits),
                body,
                secret: None,
            },
            false => {
                let change: Change = Arc::new(move |_| Ok(body.clone()));
                Operation::Update {
                    id: id(bits),
                    precondition: None,
                    change,
                    secret: SecretChange::Keep,
                }
            }
        }
    };
    (1_000..2_000).map(one).collect()
}

fn sealed(publisher: &Publisher, bits: u128) -> Operation {
    sealed_in(publisher, bits, "*")
}

fn sealed_in(publisher: &Publisher, bits: u128, region: &str) -> Operation {
    let credential = json!({"kind": "target", "auth_type": "bearer", "name": "c",
                            "hosts": ["h1.example"], "regions": [region]});
    let credential = serde_json::from_value(credential).unwrap();
    let mut input = SecretInput::default();
    input.token = Some("canary".into());
    let secret = Some(publisher.prepare(&credential, input));
    let body = Body::Credential(StoredCredential {
        credential,
        secret: None,
        previous: vec![],
    });
    Operation::Create {
        id: ObjectId::Credential(CredentialId::from_bits(bits)),
        body,
        secret,
    }
}

/// A process may die between the version that leaves a region out and the end of its values.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_for_a_region_that_is_left_out_goes() {
    let scene = Scene::new().await;
    let plane = scene.plane("a");
    let publisher = plane.publisher.clone();
    let own = publisher.region().to_owned();
    publish(&publisher, scene.org, vec![sealed_in(&publisher, 1, &own)]).await;
    let [kept] = &scene.keys(&keys::secrets(scene.org)).await[..] else {
        panic!("one value");
    };
    let stray = format!("{}mars", kept.strip_suffix(&own).unwrap());
    let put = Txn {
        ops: vec![Op::put(stray, "sealed")],
        ..Txn::default()
    };
    scene.inner.txn(put).await.unwrap();
    assert_eq!(plane.janitor.sweep(scene.org).await.unwrap(), 1);
    let left = scene.keys(&keys::secrets(scene.org)).await;
    assert_eq!(left, std::slice::from_ref(kept));
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_go_to_the_archive_and_are_read_from_there_as_if_nothing_had_happened() {
    let scene = Scene::new().await;
    let mut plane = scene.plane("a");
    let publisher = plane.publisher.clone();
    for bits in 1..=9 {
        publish(&publisher, scene.org, vec![target(bits, "x")]).await;
    }
    let old = publisher.version(scene.org, 4).await.unwrap().unwrap();
    let before = publisher.at(scene.org, &old.record).await.unwrap();
    // Ten versions; the newest three stay.
    let round = plane.round().await;
    assert_eq!((round.archived, round.dropped), (7, 7));
    assert!(round.swept >= 7, "a root each at least: {round:?}");
    scene.is_clean().await;
    assert_eq!(
        plane.round().await,
        Round::default(),
        "nothing is left to do"
    );
    assert_eq!(scene.keys(&keys::versions(scene.org)).await.len(), 3);

    let listed = publisher.versions(scene.org, 11, 100).await.unwrap();
    let numbers: Vec<u64> = listed.iter().map(|kept| kept.record.head.n).collect();
    assert_eq!(numbers, (1..=10).rev().collect::<Vec<_>>());
    let places: Vec<Place> = listed.iter().map(|kept| kept.place).collect();
    assert_eq!(places[..3], [Place::Store; 3]);
    assert_eq!(places[3..], [Place::Archive; 7]);
    for (before, limit, expected) in [(11, 4, vec![10, 9, 8, 7]), (5, 2, vec![4, 3])] {
        let page = publisher.versions(scene.org, before, limit).await.unwrap();
        let page: Vec<u64> = page.iter().map(|kept| kept.record.head.n).collect();
        assert_eq!(page, expected);
    }
    let kept = publisher.version(scene.org, 4).await.unwrap().unwrap();
    assert_eq!(
        (kept.record.clone(), kept.place),
        (old.record, Place::Archive)
    );
    let after = publisher.at(scene.org, &kept.record).await.unwrap();
    assert_eq!(after.objects, before.objects);
    let rollback = Rollback {
        to: 4,
        request: Request {
            org: scene.org,
            author: author(),
            deadline: in_time(),
            idempotency: None,
        },
    };
    let back = publisher.rollback(rollback).await.unwrap().unwrap();
    assert_eq!((back.n, back.config.objects.len()), (11, 3));
    scene.is_whole().await;
    // Somebody who was away for long still finds out that what he has is an ancestor.
    let newest = &back.config.head;
    for (n, hash, expected) in [
        (4, kept.record.head.hash, Ancestry::Descends),
        (4, newest.hash, Ancestry::Broken),
        (10, listed[0].record.head.hash, Ancestry::Descends),
    ] {
        let seen = Head {
            n,
            hash,
            ..newest.clone()
        };
        let found = ancestry(&*scene.inner, scene.org, &seen, newest).await;
        assert_eq!(found.unwrap(), expected, "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_archived_grows_old_where_nothing_is_changed_too() {
    let scene = Scene::new().await;
    let mut plane = scene.plane("a");
    let publisher = plane.publisher.clone();
    for bits in 1..=9 {
        publish(&publisher, scene.org, vec![target(bits, "x")]).await;
    }
    assert_eq!(plane.round().await.archived, 7);
    let count = |plane: &Plane| {
        let archived = plane.janitor.archive.versions(scene.org, u64::MAX, 100);
        archived.unwrap().len()
    };
    assert_eq!(count(&plane), 7);
    // By the next time that it is due some are too many.
    plane.janitor.options.archive_versions = 2;
    plane.round().await;
    assert_eq!(count(&plane), 7, "not looked at again already");
    plane.janitor.retained_at = None;
    plane.round().await;
    assert_eq!(count(&plane), 2);
}

/// Part two, 16: what was archived of a branch that had the numbers of the line in force, of which
/// this region has taken the newest version alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_archived_of_another_history_of_the_same_epoch_is_moved_aside() {
    let scene = Scene::new().await;
    let mut plane = scene.plane("a");
    let publisher = plane.publisher.clone();
    for bits in 1..=11 {
        publish(&publisher, scene.org, vec![target(bits, "x")]).await;
    }
    // Twelve versions, nine of them in the archive.
    plane.round().await;
    let here = publisher.load(scene.org).await.unwrap().head.clone();
    let mut ops: Vec<Op> = (10..=12)
        .map(|n| Op::Delete(keys::version(scene.org, n)))
        .collect();
    let base = Position {
        n: 29,
        ..Position::from(&here)
    };
    let line = Home::first(here.epoch.clone(), "us").reopen("us", base, std::iter::empty());
    let head = here.reopened(line.epoch.clone(), 30, String::new());
    let made = (&author(), Timestamp::UNIX_EPOCH);
    ops.extend(recovery::reopening(scene.org, &head, 0, made, None));
    ops.push(Op::put(keys::home(scene.org), json_of(&line)));
    let mut lineage = proto::store::ancestry::lineage(&*scene.inner, scene.org)
        .await
        .unwrap();
    assert!(lineage.truncate(5));
    ops.push(Op::put(keys::lineage(scene.org), json_of(&lineage)));
    let txn = |ops| Txn {
        ops,
        ..Txn::default()
    };
    scene.inner.txn(txn(ops)).await.unwrap();
    // A gap by itself is none: a node may have written back what it served.
    plane.round().await;
    let archive = plane.janitor.archive.clone();
    assert_eq!(archive.aside().unwrap(), []);
    let parted = keys::parted(scene.org, &here.epoch);
    let again = head.reopened(line.epoch.clone(), 31, String::new());
    let mut ops = recovery::reopening(scene.org, &again, 0, made, None);
    ops.push(Op::put(parted, "5"));
    scene.inner.txn(txn(ops)).await.unwrap();
    plane.round().await;
    let numbers = |records: Vec<proto::tree::VersionRecord>| -> Vec<u64> {
        records.iter().map(|record| record.head.n).collect()
    };
    let aside = archive.aside().unwrap().into_iter();
    let mut aside = numbers(aside.map(|(_, record)| record).collect());
    aside.sort_unstable();
    assert_eq!(aside, [6, 7, 8, 9]);
    let kept = archive.versions(scene.org, u64::MAX, 100).unwrap();
    assert_eq!(numbers(kept), [5, 4, 3, 2, 1]);
    let listed = publisher.aside().await.unwrap().into_iter();
    let listed = numbers(listed.map(|(_, record)| record).collect());
    assert_eq!(listed, [6, 7, 8, 9]);
}

fn json_of(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// Part two, 23: a version leaves the store only when every control plane that is there has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_stays_until_every_control_plane_has_archived_it() {
    let scene = Scene::new().await;
    let (mut one, mut two) = (scene.plane("a"), scene.plane("b"));
    for bits in 1..=9 {
        publish(&one.publisher, scene.org, vec![target(bits, "x")]).await;
    }
    two.janitor.seat.renew(two.publisher.store()).await.unwrap();
    assert!(two.janitor.seat.leads());
    let round = one.round().await;
    assert_eq!((round.archived, round.dropped), (7, 0), "it does not lead");
    one.janitor.seat.renew(one.publisher.store()).await.unwrap();
    assert!(!one.janitor.seat.leads());
    // The leader has archived all as well: now they go, and both can give them.
    assert_eq!(two.janitor.round().await.unwrap().dropped, 7);
    for plane in [&one, &two] {
        let kept = plane
            .publisher
            .version(scene.org, 2)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(kept.place, Place::Archive);
        plane.publisher.at(scene.org, &kept.record).await.unwrap();
    }
    // One that has not archived yet stops it, one that is gone does not.
    let slow = scene.plane("slow");
    slow.janitor
        .seat
        .renew(slow.publisher.store())
        .await
        .unwrap();
    publish(&one.publisher, scene.org, vec![target(10, "x")]).await;
    one.round().await;
    assert_eq!(two.round().await.dropped, 0);
    slow.janitor.seat.leave(slow.publisher.store()).await;
    assert_eq!(two.round().await.dropped, 1);
    two.janitor.seat.leave(two.publisher.store()).await;
    one.janitor.seat.renew(one.publisher.store()).await.unwrap();
    assert!(one.janitor.seat.leads(), "leadership passes on");
    scene.is_clean().await;
}

/// Schedules, 6, 1: what was garbage when it was marked is reached when it is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_publish_between_mark_and_deletion_keeps_what_it_reaches() {
    let scene = Scene::new().await;
    let other = scene.plane("other").publisher;
    // The leaf of version 2 holds one target, and is reached by no version that is kept.
    for bits in 1..=5 {
        publish(&other, scene.org, vec![target(bits, "x")]).await;
    }
    let gate = Gate::new(&scene.inner);
    let mut plane = scene.plane_on(gate.clone(), "a");
    let org = scene.org;
    // Without the others it is the very same leaf again.
    gate.before(Step::Deletion, move || async move {
        let delete = |bits| Operation::Delete {
            id: id(bits),
            precondition: None,
        };
        publish(&other, org, (2..=5).map(delete).collect()).await;
    });
    assert_eq!(plane.round().await.swept, 0, "the head has moved");
    plane.round().await;
    scene.is_whole().await;
    plane.round().await;
    scene.is_clean().await;
}

/// Schedules, 6, 2: a publisher sleeps between its content and its head.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_publisher_that_slept_through_a_sweep_starts_over() {
    let scene = Scene::new().await;
    let gate = Gate::new(&scene.inner);
    let publisher = scene.plane_on(gate.clone(), "p").publisher;
    let mut sweeper = scene.plane("a");
    let (swept, seen) = tokio::sync::oneshot::channel();
    gate.before(Step::Head, move || async move {
        swept.send(sweeper.round().await.swept).unwrap();
    });
    let n = publish(&publisher, scene.org, large(1, true)).await;
    assert!(seen.await.unwrap() > 10, "its content was garbage then");
    assert_eq!(n, 2);
    scene.is_clean().await;
}

/// The same, and the publisher has read the counter *after* it was raised: what it writes again is
/// what the sweep has on its list.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_is_written_again_during_a_sweep_stays() {
    let scene = Scene::new().await;
    // A publisher that died before its head leaves the very leaves that the next one needs.
    let dead = Gate::new(&scene.inner);
    let dying = scene.plane_on(dead.clone(), "p").publisher;
    let never = Arc::new(Notify::new());
    let (reached, died) = tokio::sync::oneshot::channel();
    dead.before(Step::Head, move || async move {
        reached.send(()).unwrap();
        never.notified().await;
    });
    let org = scene.org;
    let task = tokio::spawn(async move { publish(&dying, org, large(1, true)).await });
    died.await.unwrap();
    task.abort();
    assert!(scene.keys(&keys::leaves(org)).await.len() > 10);

    let publishing = Gate::new(&scene.inner);
    let publisher = scene.plane_on(publishing.clone(), "q").publisher;
    let (written, content) = tokio::sync::oneshot::channel();
    let (go_on, waiting) = tokio::sync::oneshot::channel::<()>();
    publishing.before(Step::Head, move || async move {
        written.send(()).unwrap();
        waiting.await.unwrap();
    });
    let gate = Gate::new(&scene.inner);
    let mut sweeper = scene.plane_on(gate.clone(), "a");
    let (started, task) = tokio::sync::oneshot::channel();
    gate.before(Step::Deletion, move || async move {
        let publish = async move { publish(&publisher, org, large(1, true)).await };
        started.send(tokio::spawn(publish)).unwrap();
        content.await.unwrap();
    });
    sweeper.round().await;
    go_on.send(()).unwrap();
    assert_eq!(task.await.unwrap().await.unwrap(), 2);
    scene.is_clean().await;
}

/// Schedules, 6, 3: a reader holds a head whose content goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_overtaken_by_a_sweep_finds_the_newest_version() {
    let scene = Scene::new().await;
    let publisher = scene.plane("p").publisher;
    publish(&publisher, scene.org, vec![target(1, "x")]).await;
    let gate = Gate::new(&scene.inner);
    let (follower, mut worlds) = Follower::new(gate.clone(), "eu");
    let mut sweeper = scene.plane("a");
    let org = scene.org;
    // The first leaves read are those of `system`; the publishes come before them.
    gate.before(Step::LeafRead, move || async move {
        for bits in 2..=8 {
            publish(&publisher, org, vec![target(bits, "x")]).await;
        }
        assert!(sweeper.round().await.swept > 0);
    });
    let following = tokio::spawn(follower.run());
    let newest = |world: &Arc<proto::store::follow::World>| {
        let state = world.orgs.get(&org);
        state.is_some_and(|state| state.config.objects.len() == 8) && world.faults.is_empty()
    };
    let seen = tokio::time::timeout(Duration::from_secs(60), worlds.wait_for(newest)).await;
    seen.unwrap().unwrap();
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_janitors_at_once_delete_nothing_that_is_reached() {
    let scene = Scene::new().await;
    let publisher = scene.plane("p").publisher;
    let planes = ["a", "b"].map(|name| scene.plane(name));
    let org = scene.org;
    let sweeping = planes.map(|plane| {
        tokio::spawn(async move {
            for _ in 0..30 {
                // Neither asks who leads.
                let _ = plane.janitor.sweep(org).await;
                tokio::task::yield_now().await;
            }
        })
    });
    for bits in 1..=25 {
        publish(&publisher, org, vec![target(bits, "x")]).await;
    }
    for task in sweeping {
        task.await.unwrap();
    }
    scene.is_whole().await;
}

/// A publisher killed at every step leaves its version whole or absent, and what it leaves behind
/// is collected.
#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_dies_at_any_step_leaves_its_version_whole_or_absent() {
    for (what, carried_out) in [
        ("small", false),
        ("small", true),
        ("large", false),
        ("large", true),
    ] {
        let scene = Scene::new().await;
        let setup = scene.plane("setup").publisher;
        if what == "large" {
            publish(&setup, scene.org, large(0, true)).await;
        }
        let mut sweeper = scene.plane("a");
        let (mut died, mut stood) = (0, 0);
        for steps in 1.. {
            let before = setup.load(scene.org).await.unwrap();
            let gate = Gate::dying(&scene.inner, steps, carried_out);
            let publisher = scene.plane_on(gate.clone(), "p").publisher;
            let operations = match what {
                "small" => vec![
                    target(steps as u128, "x"),
                    sealed(&publisher, steps as u128),
                ],
                _ => large(steps as u64, false),
            };
            let mut publish = request(scene.org, operations);
            publish.deadline = Instant::now();
            let published = publisher.publish(publish).await;
            let alive = gate.left.load(Ordering::SeqCst) > 0;
            scene.is_whole().await;
            let after = setup.load(scene.org).await.unwrap();
            let changed = after.head != before.head;
            assert!(!changed || after.head.parent == Some(before.head.hash));
            match &published {
                Ok(made) => assert_eq!(made.hash, after.head.hash, "{what} {steps}"),
                Err(error) => assert!(
                    !changed || matches!(error, PublishError::OutcomeUnknown { .. }),
                    "{what} {steps}: {error}"
                ),
            }
            if !changed {
                assert_eq!(after.objects, before.objects);
            }
            // What a dead publisher leaves waits for a round of everything.
            sweeper.janitor.whole_at = None;
            sweeper.round().await;
            scene.is_clean().await;
            (died, stood) = (died + u32::from(!alive), stood + u32::from(changed));
            if alive {
                assert!(published.is_ok());
                break;
            }
        }
        let least = if what == "small" { 1 } else { 3 };
        assert!(
            died >= least && stood >= 1,
            "{what}: {died} died, {stood} stood"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_organisation_leaves_goes_and_what_is_named_stays() {
    let scene = Scene::new().await;
    let mut plane = scene.plane("a");
    let publisher = plane.publisher.clone();
    let gone = OrgId::from_bits(99);
    let create = Operation::Create {
        id: ObjectId::Org(gone),
        body: Body::Org(Org {
            slug: "gone".into(),
            name: String::new(),
            default_limits: None,
        }),
        secret: None,
    };
    publish(&publisher, SYSTEM_ORG, vec![create]).await;
    for bits in 1..=6 {
        publish(&publisher, gone, vec![target(bits, "x")]).await;
    }
    plane.round().await;
    assert_eq!(plane.janitor.archive.orgs().unwrap(), [gone]);
    let left = scene.keys("").await;
    let deletes = (1..=6).map(|bits| Operation::Delete {
        id: id(bits),
        precondition: None,
    });
    publish(&publisher, gone, deletes.collect()).await;
    let delete = Operation::Delete {
        id: ObjectId::Org(gone),
        precondition: None,
    };
    publish(&publisher, SYSTEM_ORG, vec![delete]).await;
    // As if the control plane had died before it could delete what was left.
    let text = gone.to_string();
    let leaves = keys::leaf(gone, &Hash::of(b"left"));
    for key in left
        .into_iter()
        .filter(|key| key.contains(&text))
        .chain([leaves])
    {
        if !key.starts_with(keys::LIVE) {
            let ops = vec![Op::put(key, "left")];
            let txn = Txn {
                ops,
                ..Txn::default()
            };
            scene.inner.txn(txn).await.unwrap();
        }
    }
    plane.janitor.whole_at = None;
    assert!(plane.round().await.swept > 3);
    let left = scene.keys("").await;
    let left: Vec<_> = left.iter().filter(|key| key.contains(&text)).collect();
    assert_eq!(
        left,
        [&keys::gc(gone)],
        "who is just writing it starts over"
    );
    plane.janitor.whole_at = None;
    assert_eq!(plane.round().await.swept, 1);
    let left = scene.keys("").await;
    let left: Vec<_> = left.iter().filter(|key| key.contains(&text)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(plane.janitor.archive.orgs().unwrap(), []);
    scene.is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_where_something_cannot_be_read() {
    let scene = Scene::new().await;
    let mut plane = scene.plane("a");
    for bits in 1..=2 {
        publish(&plane.publisher, scene.org, vec![target(bits, "x")]).await;
    }
    let stray = keys::leaf(scene.org, &Hash::of(b"stray"));
    let put = |key: String, value: &'static str| Txn {
        ops: vec![Op::put(key, value)],
        ..Txn::default()
    };
    scene.inner.txn(put(stray.clone(), "x")).await.unwrap();
    let record = keys::version(scene.org, 2);
    let good = scene.inner.get(&record).await.unwrap().value.unwrap();
    scene
        .inner
        .txn(put(record.clone(), "nonsense"))
        .await
        .unwrap();
    assert_eq!(plane.round().await, Round::default());
    assert!(scene.keys(&stray).await.contains(&stray));
    let mend = Txn {
        ops: vec![Op::put(record, good.value)],
        ..Txn::default()
    };
    scene.inner.txn(mend).await.unwrap();
    assert_eq!(plane.round().await.swept, 1);
    scene.is_clean().await;
}

/// The leader has dropped and swept a version while it was being read: what is left of it is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_goes_while_it_is_read_is_not_archived_in_part() {
    let scene = Scene::new().await;
    let mut leader = scene.plane("a");
    for bits in 1..=9 {
        publish(&leader.publisher, scene.org, vec![target(bits, "x")]).await;
    }
    let seat = &leader.janitor.seat;
    seat.renew(leader.publisher.store()).await.unwrap();
    let gate = Gate::new(&scene.inner);
    let late = scene.plane_on(gate.clone(), "late");
    let head = late.publisher.load(scene.org).await.unwrap().head.clone();
    let home = late.publisher.home(scene.org, &head.epoch).await.unwrap();
    let keeps = keeping::Keeps::of(&late.publisher, (scene.org, &home), &head);
    let keeps = keeps.await.unwrap();
    // It holds no seat yet, so that nobody waits for its archive.
    gate.before(Step::LeafRead, move || async move {
        assert!(leader.janitor.round().await.unwrap().dropped > 0);
    });
    let archiving = late.janitor.archive_old(scene.org, &head, &keeps);
    // That somebody else was at it is no fault.
    let _ = archiving.await;
    for kept in late
        .janitor
        .archive
        .versions(scene.org, u64::MAX, 100)
        .unwrap()
    {
        let record = late.publisher.version(scene.org, kept.head.n).await;
        let record = record.unwrap().unwrap().record;
        let read = late.publisher.at(scene.org, &record).await;
        assert!(read.is_ok(), "version {} is damaged", kept.head.n);
    }
}

/// Nobody reads again what he serves: what the store has lost of it is looked for, and written
/// again by who holds it. Who does not leaves it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_has_lost_of_a_newest_version_is_written_again() {
    let scene = Scene::new().await;
    let mut plane = scene.plane("a");
    publish(&plane.publisher, scene.org, large(1, true)).await;
    let newest = plane.publisher.load(scene.org).await.unwrap();
    let held = newest.reaches().map(|hash| keys::leaf(scene.org, &hash));
    let held: Vec<String> = held.collect();
    let pair = scene.inner.get(&held[0]).await.unwrap().value.unwrap();
    let ops = vec![
        Op::Delete(held[0].clone()),
        Op::put(held[1].clone(), "nonsense"),
    ];
    let lose = Txn {
        ops,
        ..Txn::default()
    };
    scene.inner.txn(lose.clone()).await.unwrap();
    let fresh = scene.plane("b");
    assert_eq!(fresh.publisher.mend().await.unwrap().written, 0);
    assert!(scene.keys(&held[0]).await.is_empty());
    plane.round().await;
    let again = scene.inner.get(&held[0]).await.unwrap().value.unwrap();
    assert_eq!(again.value, pair.value);
    scene.is_clean().await;
    let form = proto::exposition::text::Form::Prometheus;
    let text = plane.publisher.mending_families().text(form);
    assert!(
        text.contains("leaves_lost 0") && text.contains("rewritten_total 2"),
        "{text}"
    );
    // It is the newest no more: what it alone reached may go.
    scene.inner.txn(lose).await.unwrap();
    publish(&plane.publisher, scene.org, large(2, false)).await;
    assert_eq!(plane.publisher.mend().await.unwrap().written, 0);
    fresh.janitor.publisher.load(scene.org).await.unwrap();
}

/// etcd beyond its quota takes deletions and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_full_is_swept_though_what_it_lost_cannot_be_written() {
    let scene = Scene::new().await;
    let gate = Gate::new(&scene.inner);
    let mut plane = scene.plane_on(gate.clone(), "a");
    for bits in 1..=9 {
        publish(&plane.publisher, scene.org, vec![target(bits, "x")]).await;
    }
    let system = plane.publisher.load(SYSTEM_ORG).await.unwrap();
    let held = system.reaches().next().unwrap();
    let held = keys::leaf(SYSTEM_ORG, &held);
    let lose = Txn {
        ops: vec![Op::Delete(held.clone())],
        ..Txn::default()
    };
    scene.inner.txn(lose).await.unwrap();
    gate.full.store(true, Ordering::SeqCst);
    let round = plane.round().await;
    assert!(round.dropped > 0 && round.swept > 0, "{round:?}");
    assert!(scene.keys(&held).await.is_empty());
    // It is tried again before an hour is over.
    gate.full.store(false, Ordering::SeqCst);
    let due = plane.janitor.mend_at.unwrap() - Instant::now();
    assert!(due <= MEND_AGAIN, "{due:?}");
    plane.janitor.mend_at = None;
    plane.round().await;
    assert!(!scene.keys(&held).await.is_empty());
}

/// An organisation that writes very much loses the memory of its oldest writes, and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn of_remembered_outcomes_the_newest_of_an_organisation_stay() {
    let scene = Scene::new().await;
    let plane = scene.plane("a");
    let keyed = async |org: OrgId, key: &str, operations: Vec<Operation>| {
        let idempotency = crate::publish::Idempotency {
            key: key.into(),
            fingerprint: Hash::of(key.as_bytes()),
        };
        let publish = Publish {
            idempotency: Some(idempotency),
            ..request(org, operations)
        };
        plane.publisher.publish(publish).await.unwrap()
    };
    let one =
        async |bits: u128| keyed(scene.org, &format!("k{bits}"), vec![target(bits, "x")]).await;
    keyed(SYSTEM_ORG, "other", vec![]).await;
    for bits in 1..=9 {
        one(bits).await;
    }
    keyed(scene.org, "nothing", vec![]).await;
    let of = keys::idempotency_of(scene.org);
    assert_eq!(scene.keys(&of).await.len(), 10 + 9);
    assert_eq!(plane.janitor.forget_outcomes(10).await.unwrap(), 0);
    // Six answers, and what is told to others of five.
    assert_eq!(plane.janitor.forget_outcomes(4).await.unwrap(), 6 + 5);
    assert_eq!(scene.keys(&of).await.len(), 4 + 4);
    assert!(keyed(scene.org, "nothing", vec![]).await.replayed);
    for (bits, replayed) in [(9, true), (7, true)] {
        assert_eq!(one(bits).await.replayed, replayed, "{bits}");
    }
    assert!(keyed(SYSTEM_ORG, "other", vec![]).await.replayed);
    // Carried out again, as any other write.
    let again = keyed(scene.org, "k1", vec![target(100, "x")]).await;
    assert!(!again.replayed);
}

/// What is damaged is said not to be archived, so that it stays where it may be mended.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_without_its_content_is_tried_again() {
    let scene = Scene::new().await;
    let mut plane = scene.plane("a");
    for bits in 1..=9 {
        publish(&plane.publisher, scene.org, vec![target(bits, "x")]).await;
    }
    let record = plane
        .publisher
        .version(scene.org, 4)
        .await
        .unwrap()
        .unwrap();
    let root = *record.record.head.roots.values().next().unwrap();
    let key = keys::leaf(scene.org, &root);
    let lost = scene.inner.get(&key).await.unwrap().value.unwrap().value;
    let txn = |op: Op| Txn {
        ops: vec![op],
        ..Txn::default()
    };
    let without = txn(Op::Delete(key.clone()));
    scene.inner.txn(without).await.unwrap();
    plane.round().await;
    let archived = |plane: &Plane, n: u64| {
        let found = plane.janitor.archive.version(scene.org, n);
        found.unwrap().is_some()
    };
    assert!(!archived(&plane, 4), "it is not there in part");
    assert!(archived(&plane, 3) && archived(&plane, 7), "the others are");
    let store = plane.publisher.store();
    let kept = store.get(&keys::version(scene.org, 4)).await.unwrap();
    assert!(kept.value.is_some(), "it has not left the store");
    // Somebody has mended it.
    let mended = Op::Put {
        key,
        value: lost,
        lease: None,
    };
    scene.inner.txn(txn(mended)).await.unwrap();
    plane.round().await;
    assert!(archived(&plane, 4));
    let kept = plane.publisher.version(scene.org, 4).await.unwrap();
    let kept = kept.unwrap();
    assert_eq!(kept.place, Place::Archive);
    plane.publisher.at(scene.org, &kept.record).await.unwrap();
}

#[tokio::test]
async fn a_full_store_forgets_old_changes_though_it_takes_no_leader() {
    let options = EmbeddedOptions {
        size_bytes_max: 2 << 20,
        ..EmbeddedOptions::default()
    };
    let scene = Scene::with(&options).await;
    let ballast = |bytes: usize| Txn {
        ops: vec![Op::put("ballast", vec![7; bytes])],
        ..Txn::default()
    };
    for bytes in [100_000, 4_000] {
        while scene.inner.txn(ballast(bytes)).await.is_ok() {}
    }
    let newest = scene.inner.get("ballast").await.unwrap().revision;
    let mut plane = scene.plane("one");
    assert!(!plane.janitor.seat.leads());
    let old = Instant::now() - CHANGES_KEPT;
    plane.janitor.revisions.push_back((old, newest));
    // What else there is to do may find no room yet.
    let _ = plane.janitor.round().await;
    let earlier = Range {
        prefix: "ballast".into(),
        after: None,
        limit: 1,
        at: Some(Revision(newest.0 - 1)),
    };
    let forgotten = scene.inner.range(earlier).await;
    assert!(
        matches!(forgotten, Err(StoreError::Compacted(_))),
        "{forgotten:?}"
    );
    // Its rows go between two writes.
    while scene.inner.txn(ballast(100_000)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    plane.round().await;
}
