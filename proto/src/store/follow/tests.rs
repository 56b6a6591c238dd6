//! Following the embedded store: what a revision does to the world, and what it must not do.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::credential::SecretInput;
use crate::id::{CredentialId, TargetId};
use crate::object::{Body, ObjectId, StoredCredential};
use crate::org::{Org, Role};
use crate::policy::Policy;
use crate::retired::Retired;
use crate::seal::{self, Binding, DigestKey, Keyring, NewSecret};
use crate::store::embedded::Embedded;
use crate::store::kept;
use crate::store::nearby::{NearFuture, Nearby, Together};
use crate::store::{At, Lease, LeaseId, Op, Page, Range, StoreFuture, Txn, TxnOutcome, Watch};
use crate::tree::{
    Context, Draft, Hash, Head, Lineage, Operation, OrgConfig, Packed, SecretChange, VersionRecord,
    apply,
};
use crate::version::{Epoch, Generation};

const ORG: OrgId = OrgId::from_bits(50);

/// The embedded store; counts watches, and ends them on demand.
struct Watched {
    inner: Arc<Embedded>,
    watches: AtomicUsize,
    end: tokio::sync::watch::Sender<usize>,
    leaf_reads: AtomicUsize,
    writer: Mutex<BTreeMap<OrgId, OrgConfig>>,
}

struct Ended {
    inner: Box<dyn Watch>,
    end: tokio::sync::watch::Receiver<usize>,
}

impl Watch for Ended {
    fn next(&mut self) -> StoreFuture<'_, Change> {
        Box::pin(async {
            tokio::select! {
                change = self.inner.next() => change,
                _ = self.end.changed() => Err(StoreError::Unavailable("cut".into())),
            }
        })
    }
}

impl Store for Watched {
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        if key.starts_with("leaf/") {
            self.leaf_reads.fetch_add(1, Ordering::SeqCst);
        }
        self.inner.get(key)
    }
    fn range(&self, range: Range) -> StoreFuture<'_, Page> {
        self.inner.range(range)
    }
    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        self.inner.txn(txn)
    }
    fn watch(&self, prefix: &str, from: Revision) -> StoreFuture<'_, Box<dyn Watch>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let end = self.end.subscribe();
            let inner = self.inner.watch(&prefix, from).await?;
            self.watches.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(Ended { inner, end }) as Box<dyn Watch>)
        })
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

/// A store with `system` and one organisation, followed.
struct Scene {
    store: Arc<Watched>,
    worlds: watch::Receiver<Arc<World>>,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn scene() -> Scene {
    let scene = empty_scene();
    found(&scene).await;
    scene
}

fn empty_scene() -> Scene {
    scene_near(None)
}

/// Leaves are asked of `near` first.
fn scene_near(near: Option<Arc<dyn Nearby>>) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Watched {
        inner: Embedded::open(&dir.path().join("store")).unwrap(),
        watches: AtomicUsize::new(0),
        end: watch::channel(0).0,
        leaf_reads: AtomicUsize::new(0),
        writer: Mutex::default(),
    });
    let (mut follower, worlds) = Follower::new(store.clone(), "eu");
    near.into_iter().for_each(|near| follower.ask_first(near));
    let task = tokio::spawn(follower.run());
    Scene {
        store,
        worlds,
        task,
        _dir: dir,
    }
}

/// Writes the first versions.
async fn found(scene: &Scene) {
    let store = &scene.store;
    let create = |id: OrgId, slug: &str| Operation::Create {
        id: ObjectId::Org(id),
        body: Body::Org(Org {
            slug: slug.into(),
            name: String::new(),
            default_limits: None,
        }),
        secret: None,
    };
    let system = made(
        store,
        SYSTEM_ORG,
        &[create(SYSTEM_ORG, "system"), create(ORG, "acme")],
    );
    let org = Draft::default()
        .commit(&genesis(ORG), 0, seal::random_name())
        .unwrap();
    store.writer.lock().unwrap().insert(ORG, org.config.clone());
    let mut ops = ops_of(&system);
    ops.extend(ops_of(&org));
    store
        .txn(Txn {
            ops,
            ..Txn::default()
        })
        .await
        .unwrap();
}

fn genesis(org: OrgId) -> OrgConfig {
    OrgConfig::genesis(
        org,
        Epoch {
            counter: 1,
            region: "eu".into(),
        },
    )
}

/// The next version of an organisation, not written.
fn made(store: &Watched, org: OrgId, operations: &[Operation]) -> Packed {
    let mut writer = store.writer.lock().unwrap();
    let parent = writer.remove(&org).unwrap_or_else(|| genesis(org));
    let policy = Policy::default();
    let now = jiff::Timestamp::from_second(1_000).unwrap();
    let context = Context {
        now,
        policy: &policy,
        role: Role::Owner,
    };
    let draft = apply(&parent, operations, &context).unwrap();
    let packed = draft.commit(&parent, 0, seal::random_name()).unwrap();
    writer.insert(org, packed.config.clone());
    packed
}

fn ops_of(packed: &Packed) -> Vec<Op> {
    let (org, head) = (packed.config.org, &packed.config.head);
    let record = VersionRecord {
        head: head.clone(),
        at: jiff::Timestamp::UNIX_EPOCH,
        author: "test".into(),
        source: None,
        changes: 0,
        changed: vec![],
    };
    let leaves = packed.leaves.iter();
    let mut ops: Vec<Op> = leaves
        .map(|leaf| Op::put(keys::leaf(org, &leaf.hash), leaf.packed.clone()))
        .collect();
    ops.push(Op::put(keys::head(org), head.to_json()));
    ops.push(Op::put(
        keys::delta(org),
        serde_json::to_vec(&packed.delta).unwrap(),
    ));
    ops.push(Op::put(
        keys::version(org, head.n),
        serde_json::to_vec(&record).unwrap(),
    ));
    ops
}

fn target(bits: u128, fields: Value) -> Operation {
    let id = ObjectId::Target(TargetId::from_bits(bits));
    let body = Body::Target(serde_json::from_value(fields).unwrap());
    Operation::Create {
        id,
        body,
        secret: None,
    }
}

fn plain(bits: u128) -> Operation {
    target(
        bits,
        json!({"base_url": format!("https://h{bits}.example")}),
    )
}

impl Scene {
    /// The last hundred at once, what comes before them before.
    async fn write(&self, mut ops: Vec<Op>) -> Revision {
        while ops.len() > 100 {
            let rest = ops.split_off(ops.len().min(200) - 100);
            let first = Txn {
                ops: std::mem::replace(&mut ops, rest),
                ..Txn::default()
            };
            self.store.txn(first).await.unwrap();
        }
        match self
            .store
            .txn(Txn {
                ops,
                ..Txn::default()
            })
            .await
            .unwrap()
        {
            TxnOutcome::Committed(revision) => revision,
            TxnOutcome::Conflict(_) => panic!("no compares"),
        }
    }

    async fn publish(&self, operations: &[Operation]) -> Revision {
        self.write(ops_of(&made(&self.store, ORG, operations)))
            .await
    }

    /// The first world of this revision or a later one.
    async fn at(&mut self, revision: Revision) -> Arc<World> {
        self.until(|world| world.revision >= revision).await
    }

    async fn until(&mut self, wanted: impl Fn(&World) -> bool) -> Arc<World> {
        let wait = self.worlds.wait_for(|world| wanted(world));
        let found = tokio::time::timeout(Duration::from_secs(20), wait).await;
        found.expect("the world comes").unwrap().clone()
    }

    fn codes(world: &World) -> Vec<&'static str> {
        world.faults.iter().map(|fault| fault.code).collect()
    }
}

fn objects(world: &World) -> usize {
    world.orgs[&ORG].config.objects.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_becomes_one_world_and_what_did_not_change_stays() {
    let mut scene = scene().await;
    let revision = scene.publish(&[plain(1)]).await;
    let first = scene.at(revision).await;
    assert_eq!(first.org("acme").unwrap().config.objects.len(), 1);
    let reads = scene.store.leaf_reads.load(Ordering::SeqCst);
    let revision = scene.publish(&[plain(2)]).await;
    let second = scene.at(revision).await;
    assert_eq!(objects(&second), 2);
    let leaves = &mut Default::default();
    let kept = kept::pairs(&*scene.store, &second, leaves).await.unwrap();
    let config = &second.orgs[&ORG].config;
    let of = |hash| (keys::leaf(ORG, &hash), hash);
    for (key, hash) in config.reaches().map(of) {
        assert!(crate::tree::unpack(hash, &kept[&key]).is_ok(), "{key}");
    }
    assert_eq!(
        scene.store.leaf_reads.load(Ordering::SeqCst),
        reads,
        "neither a delta nor its copy on disk needs a read"
    );
    let one = ObjectId::Target(TargetId::from_bits(1));
    let same = |a: &World, b: &World| {
        Arc::ptr_eq(
            &a.orgs[&ORG].config.objects[&one],
            &b.orgs[&ORG].config.objects[&one],
        )
    };
    assert!(same(&first, &second));
    assert!(Arc::ptr_eq(
        &first.orgs[&SYSTEM_ORG],
        &second.orgs[&SYSTEM_ORG]
    ));
    let other = scene.write(vec![Op::put("live/other", "1")]).await;
    let third = scene.at(other).await;
    assert!(
        Arc::ptr_eq(&second.orgs[&ORG], &third.orgs[&ORG]),
        "a key of a later release changes nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_is_followed_from_the_start() {
    let mut scene = empty_scene();
    let world = scene.until(|world| world.revision > Revision(0)).await;
    assert!(world.orgs.is_empty() && world.faults.is_empty());
    found(&scene).await;
    let world = scene.until(|world| world.orgs.len() == 2).await;
    assert!(world.org("acme").is_some() && world.org("system").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_seen_whole_or_not_at_all() {
    let mut scene = scene().await;
    let watching = scene.worlds.clone();
    let seen = tokio::spawn(async move {
        let mut watching = watching;
        loop {
            let world = watching.borrow_and_update().clone();
            if let Some(state) = world.orgs.get(&ORG) {
                let count = state.config.objects.len();
                assert!(
                    count % 10 == 0,
                    "{count} objects: a version is seen in part"
                );
                assert_eq!(world.slugs.len(), 2);
                if count == 200 {
                    return;
                }
            }
            watching.changed().await.unwrap();
        }
    });
    let mut last = Revision(0);
    for batch in 0..20u128 {
        let operations: Vec<_> = (0..10).map(|at| plain(batch * 10 + at)).collect();
        last = scene.publish(&operations).await;
    }
    scene.at(last).await;
    tokio::time::timeout(Duration::from_secs(20), seen)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_watch_and_a_compacted_history_lose_nothing() {
    let mut scene = scene().await;
    let revision = scene.publish(&[plain(1)]).await;
    scene.at(revision).await;
    for round in 2..5u128 {
        scene.store.end.send_modify(|cuts| *cuts += 1);
        let revision = scene.publish(&[plain(round)]).await;
        let revision = scene.publish(&[plain(round + 100)]).await.max(revision);
        scene.store.compact(revision).await.unwrap();
        let world = scene.at(revision).await;
        assert_eq!(objects(&world), 1 + 2 * usize::try_from(round - 1).unwrap());
        assert!(world.faults.is_empty(), "{:?}", world.faults);
    }
    assert!(scene.store.watches.load(Ordering::SeqCst) >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_leaf_is_refused_and_the_good_version_stays() {
    let mut scene = scene().await;
    let revision = scene.publish(&[plain(1)]).await;
    let good = scene.at(revision).await;
    let packed = made(&scene.store, ORG, &[plain(2)]);
    let mut ops = ops_of(&packed);
    for op in &mut ops {
        if let Op::Put { key, value, .. } = op {
            if key.starts_with("leaf/") {
                *value = zstd::bulk::compress(b"{}\n", 3).unwrap().into();
            }
            if key.starts_with(keys::DELTAS) {
                *value = b"{}".to_vec().into();
            }
        }
    }
    let revision = scene.write(ops).await;
    let world = scene.at(revision).await;
    assert_eq!(Scene::codes(&world), ["version-unreadable"]);
    assert!(Arc::ptr_eq(
        &world.orgs[&ORG].config,
        &good.orgs[&ORG].config
    ));
    // A head that lies about itself is none.
    let mut lie: Value = serde_json::from_slice(&packed.config.head.to_json()).unwrap();
    lie["n"] = json!(99);
    let lie = Op::put(keys::head(ORG), serde_json::to_vec(&lie).unwrap());
    let revision = scene.write(vec![lie]).await;
    let world = scene.at(revision).await;
    assert_eq!(Scene::codes(&world), ["version-unreadable"]);
    // Mended, it is applied, and the fault is over.
    let revision = scene.write(ops_of(&packed)).await;
    let world = scene.at(revision).await;
    assert_eq!(objects(&world), 2);
    assert!(world.faults.is_empty(), "{:?}", world.faults);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_a_newer_release_keeps_its_previous_form() {
    let mut scene = scene().await;
    let revision = scene.publish(&[plain(1)]).await;
    let good = scene.at(revision).await;
    let packed = made(&scene.store, ORG, &[plain(2)]);
    // The same leaf with a field that this release does not know, under its true hash.
    let leaf = packed.leaves.iter().find_map(|leaf| {
        let content = String::from_utf8(crate::tree::unpack(leaf.hash, &leaf.packed).unwrap());
        content.ok().filter(|content| content.contains("base_url"))
    });
    let content = leaf.unwrap().replacen(
        "\"base_url\":\"https://h1",
        "\"new\":1,\"base_url\":\"https://h1",
        1,
    );
    let hash = Hash::of(content.as_bytes());
    let root = json!({"leaves": {"": hash}}).to_string();
    let root_hash = Hash::of(root.as_bytes());
    let mut head = packed.config.head.clone();
    head.roots.insert("*".into(), root_hash);
    let head = renamed(head);
    let put = |hash: Hash, content: &str| {
        Op::put(
            keys::leaf(ORG, &hash),
            zstd::bulk::compress(content.as_bytes(), 3).unwrap(),
        )
    };
    let ops = vec![
        put(hash, &content),
        put(root_hash, &root),
        Op::put(keys::head(ORG), head),
    ];
    let revision = scene.write(ops).await;
    let world = scene.at(revision).await;
    assert_eq!(Scene::codes(&world), ["object-unreadable"]);
    assert_eq!(objects(&world), 2, "the other object is applied");
    let one = ObjectId::Target(TargetId::from_bits(1));
    let old = &good.orgs[&ORG].config.objects[&one];
    assert!(Arc::ptr_eq(old, &world.orgs[&ORG].config.objects[&one]));
    // The fault stays while the object does, through a new list too.
    scene.store.end.send_modify(|cuts| *cuts += 1);
    let other = scene.write(vec![Op::put("live/other", "1")]).await;
    let world = scene.at(other).await;
    assert_eq!(Scene::codes(&world), ["object-unreadable"]);
}

/// A head with its fields' true hash, as JSON.
fn renamed(head: Head) -> Vec<u8> {
    // The error tells the expected name only indirectly, so the version is made again.
    let mut packed = made_of(&head);
    packed.config.head = head;
    packed.with_gc(0).config.head.to_json()
}

fn made_of(head: &Head) -> Packed {
    let genesis = OrgConfig::genesis(ORG, head.epoch.clone());
    Draft::default().commit(&genesis, 0, String::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_is_a_regression_whatever_its_numbers() {
    let mut scene = scene().await;
    let early = scene.store.writer.lock().unwrap()[&ORG].clone();
    scene.publish(&[plain(1)]).await;
    let revision = scene.publish(&[plain(2)]).await;
    let good = scene.at(revision).await;
    // Somebody restores version 1 and publishes three times on it: n overtakes.
    scene.store.writer.lock().unwrap().insert(ORG, early);
    let mut last = Revision(0);
    for bits in 11..15 {
        last = scene.publish(&[plain(bits)]).await;
    }
    let world = scene.at(last).await;
    assert_eq!(Scene::codes(&world), ["store-regressed"]);
    assert!(Arc::ptr_eq(
        &world.orgs[&ORG].config,
        &good.orgs[&ORG].config
    ));
    // A wiped store is one too.
    let wipe = vec![
        Op::Delete(keys::head(ORG)),
        Op::Delete(keys::head(SYSTEM_ORG)),
    ];
    let revision = scene.write(wipe).await;
    let world = scene.at(revision).await;
    assert_eq!(Scene::codes(&world), ["store-regressed", "store-regressed"]);
    assert_eq!(objects(&world), 2, "it serves what was");
    assert_eq!(world.slugs.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_longer_than_the_store_remembers_follows() {
    let mut scene = scene().await;
    let revision = scene.publish(&[plain(1)]).await;
    let seen = scene.at(revision).await.orgs[&ORG].config.head.clone();
    // Of the versions between only names are left, and not even that of the one that is served.
    let (mut lineage, mut ops) = (Lineage::default(), vec![]);
    for bits in 2..5 {
        let between = made(&scene.store, ORG, &[plain(bits)]);
        lineage.extend(std::iter::once(&between.config.head));
        let leaves = ops_of(&between).into_iter();
        ops.extend(
            leaves.filter(|op| matches!(op, Op::Put { key, .. } if key.starts_with("leaf/"))),
        );
    }
    ops.push(Op::Delete(keys::version(ORG, seen.n)));
    let lineage = serde_json::to_vec(&lineage).unwrap();
    ops.push(Op::put(keys::lineage(ORG), lineage));
    scene.write(ops).await;
    let revision = scene.publish(&[plain(5)]).await;
    let world = scene.at(revision).await;
    assert_eq!(world.faults, []);
    assert_eq!(world.orgs[&ORG].config.head.n, seen.n + 4);
    assert_eq!(objects(&world), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_organisation_goes_with_its_name() {
    let mut scene = scene().await;
    let gone = Operation::Delete {
        id: ObjectId::Org(ORG),
        precondition: None,
    };
    let mut ops = ops_of(&made(&scene.store, SYSTEM_ORG, &[gone]));
    ops.push(Op::Delete(keys::head(ORG)));
    let revision = scene.write(ops).await;
    let world = scene.at(revision).await;
    assert!(!world.orgs.contains_key(&ORG) && world.org("acme").is_none());
    assert!(world.faults.is_empty(), "{:?}", world.faults);
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_values_come_with_their_version_and_facts_only_rise() {
    let mut scene = scene().await;
    let ring = Keyring::generate("eu");
    let id = CredentialId::from_bits(3);
    let stored: StoredCredential = serde_json::from_value(json!({"credential":
        {"kind": "target", "auth_type": "bearer", "hosts": ["a.example"]}}))
    .unwrap();
    let mut input = SecretInput::default();
    input.token = Some("canary".into());
    let secret = NewSecret::prepare(&DigestKey::generate(), &stored.credential, input);
    let seal_id = secret.seal_id.clone().unwrap();
    let hosts = &stored.credential.hosts;
    let binding = Binding {
        org: ORG,
        credential: id,
        hosts,
        seal_id: &seal_id,
    };
    let sealed = secret.sealed_to(&ring.public().unwrap(), &binding);
    let sealed = Op::put(
        keys::secret(ORG, id, &seal_id, "eu"),
        serde_json::to_vec(&sealed.unwrap().unwrap()).unwrap(),
    );
    let body = Body::Credential(stored.clone());
    let create = Operation::Create {
        id: ObjectId::Credential(id),
        body,
        secret: Some(Arc::new(secret)),
    };
    let packed = made(&scene.store, ORG, &[create]);
    let generation = packed.config.head.generation();
    let fact = |lowest: u64| {
        let lowest = crate::version::Generation {
            n: lowest,
            ..generation.clone()
        };
        let fact = Retired { lowest, next: None };
        Op::put(keys::retired(ORG, id), serde_json::to_vec(&fact).unwrap())
    };
    let mut ops = ops_of(&packed);
    ops.extend([sealed.clone(), fact(2)]);
    let revision = scene.write(ops).await;
    let world = scene.at(revision).await;
    let state = &world.orgs[&ORG];
    let value = &state.sealed[&(id, seal_id.clone())];
    let opened = seal::open(&ring, &binding, value).unwrap();
    assert_eq!(opened.token.as_deref(), Some("canary"));
    assert_eq!(state.retired[&id].lowest.n, 2);

    // It is sealed anew, to a newer key: who has it reads it again when that is told.
    let mut rotated = ring.clone();
    let newest = rotated.rotate().unwrap().id().to_owned();
    let anew = seal::reseal(&ring, &rotated.public().unwrap(), &binding, value).unwrap();
    let key = keys::secret(ORG, id, &seal_id, "eu");
    let put = |sealed: &seal::Sealed| Op::put(key.clone(), serde_json::to_vec(sealed).unwrap());
    let name = (id, seal_id.clone());
    scene.write(vec![put(&anew)]).await;
    let revision = scene.write(vec![fact(3)]).await;
    let world = scene.at(revision).await;
    assert_eq!(world.orgs[&ORG].sealed[&name], state.sealed[&name]);
    let notice = || Op::put(keys::RESEALED.to_owned(), newest.clone());
    let revision = scene.write(vec![notice()]).await;
    let world = scene.at(revision).await;
    assert_eq!(*world.orgs[&ORG].sealed[&name], anew);
    assert!(world.orgs[&ORG].sealed_whole && world.faults.is_empty());
    // What is known serves where the store lost the other.
    let revision = scene.write(vec![put(value), notice()]).await;
    assert_eq!(
        *scene.at(revision).await.orgs[&ORG].sealed[&name],
        anew,
        "it is the newest"
    );
    let told = Op::put(keys::RESEALED.to_owned(), "another");
    let revision = scene.write(vec![Op::Delete(key.clone()), told]).await;
    let world = scene.at(revision).await;
    assert_eq!(*world.orgs[&ORG].sealed[&name], anew);
    assert!(world.faults.is_empty());
    scene.write(vec![put(&anew), notice()]).await;

    let revision = scene.write(vec![fact(9)]).await;
    assert_eq!(scene.at(revision).await.orgs[&ORG].retired[&id].lowest.n, 9);
    let revision = scene.write(vec![fact(1)]).await;
    assert_eq!(
        scene.at(revision).await.orgs[&ORG].retired[&id].lowest.n,
        9,
        "never lower"
    );
    let revision = scene.write(vec![Op::Delete(keys::retired(ORG, id))]).await;
    let world = scene.at(revision).await;
    assert_eq!(
        world.orgs[&ORG].retired[&id].lowest.n, 9,
        "nor gone while its credential is"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_reported_and_the_rest_is_served() {
    let mut scene = scene().await;
    let stored: StoredCredential = serde_json::from_value(json!({"credential":
        {"kind": "target", "auth_type": "bearer", "hosts": ["a.example"]}}))
    .unwrap();
    let mut input = SecretInput::default();
    input.token = Some("canary".into());
    let secret = NewSecret::prepare(&DigestKey::generate(), &stored.credential, input);
    let create = Operation::Create {
        id: ObjectId::Credential(CredentialId::from_bits(3)),
        body: Body::Credential(stored),
        secret: Some(Arc::new(secret)),
    };
    let revision = scene.publish(&[create, plain(1)]).await;
    let world = scene.at(revision).await;
    assert_eq!(Scene::codes(&world), ["secret-missing"]);
    assert_eq!(objects(&world), 2);
    let bad = Op::put(keys::retired(ORG, CredentialId::from_bits(3)), "nonsense");
    let revision = scene.write(vec![bad]).await;
    let world = scene.at(revision).await;
    assert!(Scene::codes(&world).contains(&"fact-unreadable"));
}

/// Who publishes a version takes away the sealed values that it replaces. A process that comes late
/// to the version before must not serve it without them.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_whose_secret_is_replaced_already_gives_way_to_the_newest() {
    let scene = scene().await;
    let ring = Keyring::generate("eu");
    let id = CredentialId::from_bits(3);
    let stored: StoredCredential = serde_json::from_value(json!({"credential":
        {"kind": "target", "auth_type": "bearer", "hosts": ["a.example"]}}))
    .unwrap();
    let secret = |token: &str| {
        let mut input = SecretInput::default();
        input.token = Some(token.into());
        let key = DigestKey::generate();
        let secret = NewSecret::prepare(&key, &stored.credential, input);
        let seal_id = secret.seal_id.clone().unwrap();
        let binding = Binding {
            org: ORG,
            credential: id,
            hosts: &stored.credential.hosts,
            seal_id: &seal_id,
        };
        let sealed = secret.sealed_to(&ring.public().unwrap(), &binding);
        let sealed = serde_json::to_vec(&sealed.unwrap().unwrap()).unwrap();
        let put = Op::put(keys::secret(ORG, id, &seal_id, "eu"), sealed);
        (Arc::new(secret), seal_id, put)
    };
    let versions: Vec<_> = (0..3)
        .map(|at: u32| {
            let (secret, seal_id, put) = secret(&format!("canary-{at}"));
            let operation = match at {
                0 => Operation::Create {
                    id: ObjectId::Credential(id),
                    body: Body::Credential(stored.clone()),
                    secret: Some(secret),
                },
                _ => Operation::Update {
                    id: ObjectId::Credential(id),
                    precondition: None,
                    change: Arc::new(|body| Ok(body.clone())),
                    secret: SecretChange::Set {
                        secret,
                        old_until: None,
                    },
                },
            };
            let packed = made(&scene.store, ORG, &[operation]);
            (packed, seal_id, put)
        })
        .collect();
    let hurry = watch::Sender::new(false);
    let together = Together::new(&hurry, 0);
    let reader = Reader {
        store: &*scene.store,
        near: None,
        together: &together,
        region: "eu",
        resealed: None,
    };
    let heard = |at: usize| News {
        head: Some(Heard::Head(versions[at].0.config.head.clone())),
        ..News::default()
    };
    for (packed, _, put) in &versions {
        scene.write(ops_of(packed)).await;
        scene.write(vec![put.clone()]).await;
    }
    for (at, (_, seal_id, _)) in versions.iter().enumerate().take(2) {
        let key = keys::secret(ORG, id, seal_id, "eu");
        scene.write(vec![Op::Delete(key)]).await;
        let outcome = reader.org(ORG, None, heard(at)).await.unwrap();
        assert!(outcome.faults.is_empty(), "{:?}", outcome.faults);
        let state = outcome.state.unwrap();
        assert_eq!(state.config.head, versions[2].0.config.head, "{at}");
        assert!(state.sealed.contains_key(&(id, versions[2].1.clone())));
    }
    // Of the newest it is a fault.
    let key = keys::secret(ORG, id, &versions[2].1, "eu");
    scene.write(vec![Op::Delete(key)]).await;
    let outcome = reader.org(ORG, None, heard(2)).await.unwrap();
    let codes: Vec<_> = outcome.faults.iter().map(|fault| fault.code).collect();
    assert_eq!(codes, ["secret-missing"]);
}

#[tokio::test]
async fn many_secrets_are_listed_and_few_are_read_with_the_same_result() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store")).unwrap();
    let name = |n: u128| (CredentialId::from_bits(n), format!("seal-{n}"));
    let names: Vec<_> = (1..=700).map(name).collect();
    let mut ops = Vec::new();
    for (credential, seal_id) in names.iter().skip(1) {
        for region in ["eu", "us"] {
            let key = keys::secret(ORG, *credential, seal_id, region);
            ops.push(Op::put(key, format!("{seal_id} of {region}")));
        }
        // One that an earlier version named.
        let key = keys::secret(ORG, *credential, "earlier", "eu");
        ops.push(Op::put(key, "old"));
    }
    for ops in ops.chunks(100) {
        let ops = ops.to_vec();
        store
            .txn(Txn {
                ops,
                ..Txn::default()
            })
            .await
            .unwrap();
    }
    let hurry = watch::Sender::new(false);
    let reader = Reader {
        store: &*store,
        near: None,
        together: &Together::new(&hurry, 0),
        region: "eu",
        resealed: None,
    };
    let mut read = reader.each(ORG, names.clone()).await.unwrap();
    read.sort();
    let mut listed = reader.listed(ORG, names.clone()).await.unwrap();
    listed.sort();
    assert_eq!(read, listed);
    let (credential, seal_id) = name(1);
    assert_eq!(listed[0], (credential, seal_id, None), "it is missing");
    assert_eq!(listed[1].2.as_deref(), Some(&b"seal-2 of eu"[..]));
    assert_eq!(listed.len(), 700);
}

#[test]
fn what_is_wrong_with_a_whole_organisation_is_listed_before_objects() {
    let fault = |org: u128, object: Option<u128>| Fault {
        org: Some(OrgId::from_bits(org)),
        object: object.map(|bits| ObjectId::Target(TargetId::from_bits(bits))),
        code: "version-unreadable",
        detail: String::new(),
    };
    let of_object = |bits: u128| fault(1, Some(bits));
    let mut all: Vec<Fault> = (0..FAULTS_MAX as u128).map(of_object).collect();
    all.extend([fault(2, None), fault(3, None)]);
    let listed = first_faults(all.iter());
    assert_eq!(listed.len(), FAULTS_MAX);
    assert_eq!(listed[..3], [fault(2, None), fault(3, None), of_object(0)]);
}

/// Gives the leaves that it has, and lets large reads begin when it is told to.
struct Near {
    has: Mutex<BTreeMap<Hash, Vec<u8>>>,
    stored: AtomicUsize,
    turns: watch::Sender<usize>,
    begins: watch::Sender<bool>,
}

impl Nearby for Near {
    fn leaf(&self, _: OrgId, hash: Hash) -> NearFuture<'_, Option<Vec<u8>>> {
        let found = self.has.lock().unwrap().get(&hash).cloned();
        Box::pin(async move { found })
    }

    fn stored(&self, _: OrgId, hash: Hash, packed: &bytes::Bytes) {
        assert!(crate::tree::unpack(hash, packed).is_ok());
        self.stored.fetch_add(1, Ordering::SeqCst);
    }

    fn turn(&self, bytes: u64) -> NearFuture<'_, ()> {
        assert!(bytes > 1_024 * 1_024, "{bytes} are few");
        self.turns.send_modify(|turns| *turns += 1);
        let mut begins = self.begins.subscribe();
        Box::pin(async move {
            begins.wait_for(|begins| *begins).await.expect("a sender");
        })
    }
}

impl Near {
    fn nobody() -> Arc<Self> {
        Arc::new(Self {
            has: Mutex::default(),
            stored: AtomicUsize::new(0),
            turns: watch::Sender::new(0),
            begins: watch::Sender::new(false),
        })
    }
}

/// More than 1 MiB, in new leaves.
fn much(from: u128) -> Vec<Operation> {
    let long = "p".repeat(2_000);
    let url = |bits: u128| format!("https://h{bits}.example/{bits}/{long}");
    let create = |bits| target(bits, json!({"base_url": url(bits)}));
    (from..from + 1_500).map(create).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_read_waits_for_its_turn_and_a_revocation_for_nobody() {
    let near = Near::nobody();
    let mut scene = scene_near(Some(near.clone()));
    found(&scene).await;
    let small = scene.publish(&[plain(1)]).await;
    scene.at(small).await;
    assert_eq!(*near.turns.borrow(), 0, "little is read at once");

    let reads = || scene.store.leaf_reads.load(Ordering::SeqCst);
    let (before, mut turns) = (reads(), near.turns.subscribe());
    let large = scene.publish(&much(1_000)).await;
    turns.wait_for(|turns| *turns == 1).await.unwrap();
    // The root was read, which says what is lacking.
    assert_eq!(reads(), before + 1);
    assert!(scene.worlds.borrow().revision < large);
    let revoke = |credential| {
        let fact = Retired {
            lowest: Generation {
                epoch: genesis(ORG).head.epoch,
                n: 2,
            },
            next: None,
        };
        let key = keys::retired(ORG, CredentialId::from_bits(credential));
        Op::put(key, serde_json::to_vec(&fact).unwrap())
    };
    let revoked = scene.write(vec![revoke(9)]).await;
    let world = scene.at(revoked).await;
    assert_eq!(
        (objects(&world), world.orgs[&ORG].retired.len()),
        (1_501, 1)
    );
    let reads = || scene.store.leaf_reads.load(Ordering::SeqCst);
    assert_eq!(
        near.stored.load(Ordering::SeqCst),
        reads(),
        "it can be given"
    );

    // One that comes with what is large, in one transaction.
    let packed = made(&scene.store, ORG, &much(5_000));
    let mut both = ops_of(&packed);
    both.push(revoke(10));
    let both = scene.write(both).await;
    let world = scene.at(both).await;
    assert_eq!(
        (objects(&world), world.orgs[&ORG].retired.len()),
        (3_001, 2)
    );

    let larger = scene.publish(&much(10_000)).await;
    turns.wait_for(|turns| *turns == 3).await.unwrap();
    assert!(scene.worlds.borrow().revision < larger);
    near.begins.send_replace(true);
    let world = scene.at(larger).await;
    assert_eq!(objects(&world), 4_501);

    // What somebody near has is not read at all.
    let packed = made(&scene.store, ORG, &much(20_000));
    let content = |hash, packed| crate::tree::unpack(hash, packed).unwrap();
    let given = packed.leaves.iter();
    let given = given.map(|leaf| (leaf.hash, content(leaf.hash, &leaf.packed)));
    near.has.lock().unwrap().extend(given);
    let before = scene.store.leaf_reads.load(Ordering::SeqCst);
    let given = scene.write(ops_of(&packed)).await;
    let world = scene.at(given).await;
    assert_eq!(objects(&world), 6_001);
    assert_eq!(scene.store.leaf_reads.load(Ordering::SeqCst), before);
    assert_eq!(*near.turns.borrow(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_organisations_wait_for_one_turn_at_a_start() {
    let scene = empty_scene();
    scene.task.abort();
    const ORGS: u128 = 400;
    let mut ops = Vec::new();
    for bits in 1_000..1_000 + ORGS {
        let packed = made(&scene.store, OrgId::from_bits(bits), &[plain(1)]);
        ops.extend(ops_of(&packed));
    }
    scene.write(ops).await;
    let near = Near::nobody();
    let (mut follower, mut worlds) = Follower::new(scene.store.clone(), "eu");
    follower.ask_first(near.clone());
    let following = tokio::spawn(follower.run());
    let mut turns = near.turns.subscribe();
    let waits = tokio::time::timeout(Duration::from_secs(20), turns.wait_for(|turns| *turns == 1));
    waits.await.expect("a turn is waited for").unwrap();
    // Of 1 MiB each has a root and a leaf; some more are on their way when that is found out.
    let reads = scene.store.leaf_reads.load(Ordering::SeqCst);
    assert!(reads <= 512 + ORGS_AT_ONCE, "{reads} leaves were read");
    assert!(worlds.borrow().orgs.is_empty());
    near.begins.send_replace(true);
    let whole = worlds.wait_for(|world| world.orgs.len() as u128 == ORGS);
    let whole = tokio::time::timeout(Duration::from_secs(20), whole).await;
    drop(whole.expect("all organisations").unwrap());
    assert_eq!(*near.turns.borrow(), 1);
    following.abort();
}
