//! Publishing against the embedded store, with a store between that can lose answers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use proto::id::{CredentialId, ProxyId, TargetId};
use proto::keys;
use proto::object::{Body, StoredCredential};
use proto::retired::Retired;
use proto::seal::{Binding, Keyring, Sealed, open};
use proto::store::embedded::Embedded;
use proto::store::follow::Follower;
use proto::store::{
    At, KeyValue, Lease, LeaseId, Page, Range, Revision, StoreError, StoreFuture, Txn, TxnOutcome,
    Watch,
};
use proto::tree::{ApplyError, Change, SYSTEM_ORG, SecretChange};
use serde_json::{Value, json};

use super::*;
use crate::audit::heard::Heard;

/// What the store does to the next transactions that move a head.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Carries it out and loses the answer.
    LoseAnswer,
    /// Loses the request and says so no clearer.
    LoseRequest,
    /// Says that it is away.
    Away,
    /// The sweep of old leaves begins just before.
    Sweep(OrgId),
    /// The publisher is stopped just before, until the test lets it go on.
    Pause,
    /// The same, just after.
    PauseAfter,
}

/// The embedded store with faults.
struct Faulty {
    inner: Arc<Embedded>,
    faults: Mutex<Vec<Fault>>,
    head_txns: AtomicUsize,
    largest_txn: AtomicUsize,
    paused: tokio::sync::Notify,
    resumed: tokio::sync::Notify,
}

impl Store for Faulty {
    fn get(&self, key: &str) -> StoreFuture<'_, At<Option<KeyValue>>> {
        self.inner.get(key)
    }
    fn range(&self, range: Range) -> StoreFuture<'_, Page> {
        self.inner.range(range)
    }
    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnOutcome> {
        let moves_head = txn.compares.iter().any(|compare| match compare {
            proto::store::Compare::ModRevision(key, _) | proto::store::Compare::Absent(key) => {
                key.starts_with(keys::HEADS)
            }
            _ => false,
        });
        self.largest_txn.fetch_max(txn.ops.len(), Ordering::SeqCst);
        if !moves_head {
            return self.inner.txn(txn);
        }
        self.head_txns.fetch_add(1, Ordering::SeqCst);
        let fault = self.faults.lock().unwrap().pop();
        Box::pin(async move {
            match fault {
                None => self.inner.txn(txn).await,
                Some(Fault::LoseAnswer) => {
                    self.inner.txn(txn).await?;
                    Err(StoreError::OutcomeUnknown("lost".into()))
                }
                Some(Fault::LoseRequest) => Err(StoreError::OutcomeUnknown("lost".into())),
                Some(Fault::Away) => Err(StoreError::Unavailable("away".into())),
                Some(Fault::Pause) => {
                    self.paused.notify_one();
                    self.resumed.notified().await;
                    self.inner.txn(txn).await
                }
                Some(Fault::PauseAfter) => {
                    let outcome = self.inner.txn(txn).await;
                    self.paused.notify_one();
                    self.resumed.notified().await;
                    outcome
                }
                Some(Fault::Sweep(org)) => {
                    let ops = vec![proto::store::Op::put(keys::gc(org), "5")];
                    let sweep = Txn {
                        ops,
                        ..Txn::default()
                    };
                    self.inner.txn(sweep).await?;
                    self.inner.txn(txn).await
                }
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

struct World {
    store: Arc<Faulty>,
    ring: Keyring,
    publisher: Arc<Publisher>,
    org: OrgId,
    _dir: tempfile::TempDir,
}

/// A fresh installation.
async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let inner = Embedded::open(&dir.path().join("store")).unwrap();
    let store = Arc::new(Faulty {
        inner,
        faults: Mutex::default(),
        head_txns: AtomicUsize::new(0),
        largest_txn: AtomicUsize::new(0),
        paused: tokio::sync::Notify::new(),
        resumed: tokio::sync::Notify::new(),
    });
    let ring = Keyring::generate("eu");
    let publisher = another(&store, &ring);
    assert!(publisher.bootstrap(in_time()).await.unwrap());
    let org = org_named(&publisher, "default").await;
    World {
        store,
        ring,
        publisher,
        org,
        _dir: dir,
    }
}

/// Another control on the same store.
fn another(store: &Arc<Faulty>, ring: &Keyring) -> Arc<Publisher> {
    allowing(store, ring, Policy::default())
}

/// The same, with what its operator allows.
fn allowing(store: &Arc<Faulty>, ring: &Keyring, policy: Policy) -> Arc<Publisher> {
    Arc::new(Publisher::new(PublisherOptions {
        store: store.clone(),
        public: ring.public().unwrap(),
        digest_key: ring.digest_key.clone(),
        policy,
        epoch: Epoch {
            counter: 1,
            region: "eu".into(),
        },
        clock: Arc::new(Timestamp::now),
    }))
}

fn in_time() -> Instant {
    Instant::now() + DEADLINE
}

async fn org_named(publisher: &Publisher, slug: &str) -> OrgId {
    let system = publisher.load(SYSTEM_ORG).await.unwrap();
    let found = system
        .objects
        .iter()
        .find_map(|(id, object)| match (id, &object.body) {
            (ObjectId::Org(id), Body::Org(org)) if org.slug == slug => Some(*id),
            _ => None,
        });
    found.unwrap()
}

fn request(org: OrgId, operations: Vec<Operation>) -> Publish {
    let author = Author {
        name: "tok".into(),
        role: Role::Owner,
        source: None,
    };
    Publish {
        org,
        operations,
        author,
        deadline: in_time(),
        idempotency: None,
    }
}

fn create_target(bits: u128) -> Operation {
    let fields = json!({"base_url": format!("https://h{bits}.example"), "name": "t"});
    Operation::Create {
        id: target(bits),
        body: target_body(fields),
        secret: None,
    }
}

fn target(bits: u128) -> ObjectId {
    ObjectId::Target(TargetId::from_bits(bits))
}

fn target_body(fields: Value) -> Body {
    Body::Target(serde_json::from_value(fields).unwrap())
}

fn rename(bits: u128, name: &str, precondition: Option<u64>) -> Operation {
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
        precondition,
        change,
        secret: SecretChange::Keep,
    }
}

fn credential_fields(kind: &str) -> Credential {
    let mut fields = json!({"kind": kind, "auth_type": "bearer", "name": "c"});
    if kind == "target" {
        fields["hosts"] = json!(["h1.example"]);
    }
    serde_json::from_value(fields).unwrap()
}

fn bearer(token: &str) -> SecretInput {
    let mut input = SecretInput::default();
    input.token = Some(token.to_owned());
    input
}

fn create_credential(publisher: &Publisher, bits: u128, kind: &str, token: &str) -> Operation {
    let credential = credential_fields(kind);
    let secret = Some(publisher.prepare(&credential, bearer(token)));
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

fn set_secret(
    publisher: &Publisher,
    bits: u128,
    kind: &str,
    until: Option<Timestamp>,
) -> Operation {
    let secret = publisher.prepare(&credential_fields(kind), bearer("the-next-canary"));
    Operation::Update {
        id: ObjectId::Credential(CredentialId::from_bits(bits)),
        precondition: None,
        change: Arc::new(|body| Ok(body.clone())),
        secret: SecretChange::Set {
            secret,
            old_until: until,
        },
    }
}

fn delete(id: ObjectId) -> Operation {
    Operation::Delete {
        id,
        precondition: None,
    }
}

async fn value(world: &World, key: &str) -> Option<Vec<u8>> {
    world
        .store
        .get(key)
        .await
        .unwrap()
        .value
        .map(|pair| pair.value.to_vec())
}

async fn count(world: &World, prefix: &str) -> usize {
    let mut count = 0;
    proto::store::load::list(&*world.store, prefix, None, |_| count += 1)
        .await
        .unwrap();
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_store_gets_its_organisations_once() {
    let world = world().await;
    let other = another(&world.store, &world.ring);
    assert!(
        !other.bootstrap(in_time()).await.unwrap(),
        "nothing to do the second time"
    );
    let system = world.publisher.load(SYSTEM_ORG).await.unwrap();
    assert_eq!(system.objects.len(), 2);
    assert_eq!(org_named(&other, "system").await, SYSTEM_ORG);
    assert_eq!(world.publisher.load(world.org).await.unwrap().head.n, 1);
    let unknown = OrgId::from_bits(5);
    let error = world.publisher.load(unknown).await.unwrap_err();
    assert!(matches!(error, PublishError::OrgUnknown(id) if id == unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_at_bootstrap_is_recognised() {
    let world = world().await;
    world
        .store
        .inner
        .txn(Txn {
            ops: vec![
                proto::store::Op::Delete(keys::head(SYSTEM_ORG)),
                proto::store::Op::Delete(keys::head(world.org)),
            ],
            ..Txn::default()
        })
        .await
        .unwrap();
    world.store.faults.lock().unwrap().push(Fault::LoseAnswer);
    let fresh = another(&world.store, &world.ring);
    assert!(fresh.bootstrap(in_time()).await.unwrap());
    assert_eq!(fresh.load(SYSTEM_ORG).await.unwrap().head.n, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_publishers_of_different_objects_all_succeed() {
    let world = world().await;
    let mut tasks = Vec::new();
    for bits in 1..=20 {
        // Every second one through a control of its own, so that controls race too.
        let publisher = match bits % 2 {
            0 => another(&world.store, &world.ring),
            _ => world.publisher.clone(),
        };
        let publish = request(world.org, vec![create_target(bits)]);
        tasks.push(tokio::spawn(
            async move { publisher.publish(publish).await },
        ));
    }
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.push(task.await.unwrap().unwrap().n);
    }
    numbers.sort_unstable();
    assert_eq!(
        numbers,
        (2..=21).collect::<Vec<u64>>(),
        "each its own version"
    );
    let config = world.publisher.load(world.org).await.unwrap();
    assert_eq!(config.objects.len(), 20);
    assert_eq!(count(&world, &keys::versions(world.org)).await, 21);
}

/// schedules.md, part two, 14: only controls race; publishers of one wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn publishers_of_one_control_lose_no_race() {
    let world = world().await;
    world.store.head_txns.store(0, Ordering::SeqCst);
    let publish = |bits| {
        let (publisher, org) = (world.publisher.clone(), world.org);
        tokio::spawn(async move {
            let publish = request(org, vec![create_target(bits)]);
            publisher.publish(publish).await
        })
    };
    for task in (1..=20).map(publish).collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
    assert_eq!(world.store.head_txns.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn who_would_wait_too_long_or_behind_too_many_is_refused() {
    let world = world().await;
    let mut waiting = Vec::new();
    let outcome = stopped(&world, async || {
        let mut late = request(world.org, vec![create_target(1)]);
        late.deadline = Instant::now() + Duration::from_millis(20);
        let error = world.publisher.publish(late).await.unwrap_err();
        assert!(matches!(error, PublishError::Contended), "{error}");
        let slot = world.publisher.slots.of(world.org);
        // The one that is stopped has a place too.
        for bits in 2..=slot.waiting.available_permits() as u128 + 1 {
            let (publisher, org) = (world.publisher.clone(), world.org);
            waiting.push(tokio::spawn(async move {
                let publish = request(org, vec![create_target(bits)]);
                publisher.publish(publish).await
            }));
        }
        while slot.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let behind = request(world.org, vec![create_target(1)]);
        let error = world.publisher.publish(behind).await.unwrap_err();
        assert!(matches!(error, PublishError::Overloaded), "{error}");
    })
    .await;
    outcome.unwrap();
    let others = waiting.len();
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
    let config = world.publisher.load(world.org).await.unwrap();
    assert_eq!(config.objects.len(), others + 1);
    assert!(!config.objects.contains_key(&target(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_change_one_object_one_is_refused() {
    let world = world().await;
    let made = world
        .publisher
        .publish(request(world.org, vec![create_target(1)]))
        .await
        .unwrap();
    let tasks = ["a", "b"].map(|name| {
        let publisher = another(&world.store, &world.ring);
        let publish = request(world.org, vec![rename(1, name, Some(made.n))]);
        tokio::spawn(async move { publisher.publish(publish).await })
    });
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    let refused = outcomes.iter().filter(|outcome| {
        matches!(
            outcome,
            Err(PublishError::Refused(ApplyError::PreconditionFailed {
                current: 3,
                ..
            }))
        )
    });
    assert_eq!(refused.count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_dangling_reference_survives_a_race() {
    let world = world().await;
    let publisher = &world.publisher;
    let caller = create_credential(publisher, 2, "proxy", "a-secret-of-24-characters-1");
    publisher
        .publish(request(world.org, vec![create_target(1), caller]))
        .await
        .unwrap();
    let fields = json!({"target_id": TargetId::from_bits(1),
        "proxy_credential_ids": [CredentialId::from_bits(2)]});
    let name_it = Operation::Create {
        id: ObjectId::Proxy(ProxyId::from_bits(3)),
        body: Body::Proxy(serde_json::from_value(fields).unwrap()),
        secret: None,
    };
    let other = another(&world.store, &world.ring);
    let (named, deleted) = tokio::join!(
        publisher.publish(request(world.org, vec![name_it])),
        other.publish(request(world.org, vec![delete(target(1))])),
    );
    assert!(named.is_ok() != deleted.is_ok(), "{named:?} {deleted:?}");
    let refusal = named.err().or(deleted.err()).unwrap();
    assert!(
        matches!(
            refusal,
            PublishError::Refused(ApplyError::Invalid(_) | ApplyError::InUse { .. })
        ),
        "{refusal}"
    );
}

/// schedules.md, part one, 16: the loser's version is judged again on what the winner made.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_take_one_alias_one_is_refused() {
    let world = world().await;
    let publisher = &world.publisher;
    let caller = create_credential(publisher, 2, "proxy", "a-secret-of-24-characters-1");
    publisher
        .publish(request(world.org, vec![create_target(1), caller]))
        .await
        .unwrap();
    let take = |bits: u128| {
        let fields = json!({"target_id": TargetId::from_bits(1), "alias": "billing",
            "proxy_credential_ids": [CredentialId::from_bits(2)]});
        let create = Operation::Create {
            id: ObjectId::Proxy(ProxyId::from_bits(bits)),
            body: Body::Proxy(serde_json::from_value(fields).unwrap()),
            secret: None,
        };
        request(world.org, vec![create])
    };
    let other = another(&world.store, &world.ring);
    let (one, two) = tokio::join!(publisher.publish(take(3)), other.publish(take(4)));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    let refusal = one.err().or(two.err()).unwrap();
    let PublishError::Refused(ApplyError::Taken { .. }) = &refusal else {
        panic!("{refusal}");
    };
    assert!(refusal.to_string().contains("billing"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_read_back_and_never_done_twice() {
    for (faults, head_txns) in [
        (vec![Fault::LoseAnswer], 1),
        (vec![Fault::LoseRequest], 2),
        (vec![Fault::Away], 2),
        (vec![Fault::LoseAnswer, Fault::LoseRequest, Fault::Away], 3),
    ] {
        let world = world().await;
        *world.store.faults.lock().unwrap() = faults.clone();
        world.store.head_txns.store(0, Ordering::SeqCst);
        let publish = request(world.org, vec![create_target(1)]);
        let published = world.publisher.publish(publish).await.unwrap();
        assert_eq!(published.n, 2, "{faults:?}");
        assert_eq!(
            world.store.head_txns.load(Ordering::SeqCst),
            head_txns,
            "{faults:?}"
        );
        let config = world.publisher.load(world.org).await.unwrap();
        assert_eq!(config.head.hash, published.hash);
        assert_eq!(
            count(&world, &keys::versions(world.org)).await,
            2,
            "{faults:?}"
        );
    }
}

/// Who keeps what the audit tells misses no version, not even one that may be there.
#[tokio::test(flavor = "multi_thread")]
async fn every_version_is_told_and_so_is_one_that_may_be_there() {
    let (heard, _guard) = Heard::begin();
    let told = || heard.lines(&["org", "kind", "n", "actor", "outcome"]);
    let world = world().await;
    let (system, default) = (SYSTEM_ORG, world.org);
    let first = format!("{default} version 1 system -");
    assert_eq!(told(), [first, format!("{system} version 1 bootstrap -")]);
    // The answer is lost; the version is found to be there.
    *world.store.faults.lock().unwrap() = vec![Fault::LoseAnswer];
    let acme = OrgId::new();
    let create = Operation::Create {
        id: ObjectId::Org(acme),
        body: Body::Org(serde_json::from_value(json!({"slug": "acme"})).unwrap()),
        secret: None,
    };
    let publish = request(SYSTEM_ORG, vec![create]);
    world.publisher.publish(publish).await.unwrap();
    let first = format!("{acme} version 1 system -");
    assert_eq!(told(), [first, format!("{system} version 2 tok -")]);
    *world.store.faults.lock().unwrap() = vec![Fault::LoseRequest; 1_000];
    let mut publish = request(acme, vec![create_target(1)]);
    publish.deadline = Instant::now() + Duration::from_millis(100);
    world.publisher.publish(publish).await.unwrap_err();
    let told = told();
    let expected = format!("{acme} version 2 tok unknown");
    assert!(!told.is_empty(), "nothing was told");
    assert!(told.iter().all(|line| *line == expected), "{told:?}");
}

/// Once another version has the number of one whose fate was open, that one is known not to be.
#[tokio::test]
async fn an_attempt_that_was_overtaken_is_not_said_to_be_open() {
    let world = world().await;
    let made = request(world.org, vec![create_target(1)]);
    let made = world.publisher.publish(made).await.unwrap();
    // The first try is lost on the way, the second one is stopped before it is sent.
    *world.store.faults.lock().unwrap() = vec![Fault::Pause, Fault::LoseRequest];
    let publisher = world.publisher.clone();
    let publish = request(world.org, vec![rename(1, "mine", Some(made.n))]);
    let publishing = tokio::spawn(async move { publisher.publish(publish).await });
    world.store.paused.notified().await;
    let other = another(&world.store, &world.ring);
    let theirs = request(world.org, vec![rename(1, "theirs", Some(made.n))]);
    other.publish(theirs).await.unwrap();
    world.store.resumed.notify_one();
    let error = publishing.await.unwrap().unwrap_err();
    let PublishError::Refused(ApplyError::PreconditionFailed { current, .. }) = error else {
        panic!("{error}");
    };
    assert_eq!(current, made.n + 1);
}

/// Of several control planes one that has published little knows of newer versions by following:
/// a restored store is noticed by it too, before anybody has listed it.
#[tokio::test]
async fn what_others_published_is_known_of_a_store_that_went_back() {
    let world = world().await;
    let other = another(&world.store, &world.ring);
    let first = request(world.org, vec![create_target(1)]);
    world.publisher.publish(first).await.unwrap();
    let old = value(&world, &keys::head(world.org)).await.unwrap();
    for bits in 2..=4 {
        let publish = request(world.org, vec![create_target(bits)]);
        other.publish(publish).await.unwrap();
    }
    let (mut follower, worlds) = Follower::new(world.store.clone(), "eu");
    follower.catch_up(in_time()).await.unwrap();
    world.publisher.remember(worlds);
    let back = Txn {
        ops: vec![proto::store::Op::put(keys::head(world.org), old)],
        ..Txn::default()
    };
    world.store.inner.txn(back).await.unwrap();
    let publish = request(world.org, vec![create_target(9)]);
    let error = world.publisher.publish(publish).await.unwrap_err();
    let PublishError::Regressed { seen, found, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((seen, found), (5, 2));
}

/// What is followed was read whole: that the store has lost a part of it since keeps nobody from
/// publishing.
#[tokio::test]
async fn a_version_that_was_seen_whole_is_built_on_without_the_store() {
    let world = world().await;
    let first = request(world.org, vec![create_target(1)]);
    let made = world.publisher.publish(first).await.unwrap();
    let fresh = another(&world.store, &world.ring);
    let (mut follower, worlds) = Follower::new(world.store.clone(), "eu");
    follower.catch_up(in_time()).await.unwrap();
    let lost = Txn {
        ops: made
            .config
            .reaches()
            .map(|hash| proto::store::Op::Delete(keys::leaf(world.org, &hash)))
            .collect(),
        ..Txn::default()
    };
    world.store.inner.txn(lost).await.unwrap();
    let second = || request(world.org, vec![create_target(2)]);
    let error = fresh.publish(second()).await.unwrap_err();
    assert!(matches!(error, PublishError::Unreadable(_)), "{error}");
    fresh.remember(worlds);
    fresh.publish(second()).await.unwrap();
    // All of it was in the one leaf that is written anew.
    let other = another(&world.store, &world.ring);
    other.load(world.org).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_stays_unknown_is_said_to_be_unknown() {
    let world = world().await;
    *world.store.faults.lock().unwrap() = vec![Fault::LoseRequest; 1_000];
    let mut publish = request(world.org, vec![create_target(1)]);
    publish.deadline = Instant::now() + Duration::from_millis(100);
    let error = world.publisher.publish(publish).await.unwrap_err();
    assert!(
        matches!(error, PublishError::OutcomeUnknown { n: 2, .. }),
        "{error}"
    );
    *world.store.faults.lock().unwrap() = vec![Fault::Away; 1_000];
    let mut publish = request(world.org, vec![create_target(1)]);
    publish.deadline = Instant::now() + Duration::from_millis(100);
    let error = world.publisher.publish(publish).await.unwrap_err();
    assert!(
        matches!(error, PublishError::Store(StoreError::Unavailable(_))),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_publish_writes_its_content_first() {
    let world = world().await;
    // Texts that do not compress, so that leaves exceed what fits one transaction.
    let operations: Vec<Operation> = (1..=3_000u128)
        .map(|bits| {
            let noise = || {
                (0..7)
                    .map(|_| proto::seal::random_name())
                    .collect::<String>()
            };
            let fields = json!({
                "base_url": format!("https://h{bits}.example"),
                "name": "t",
                "labels": {"a": noise(), "b": noise(), "c": noise(), "d": noise()},
            });
            Operation::Create {
                id: target(bits),
                body: target_body(fields),
                secret: None,
            }
        })
        .collect();
    // The sweep's counter is compared, so a sweep between content and head makes it start over.
    world
        .store
        .faults
        .lock()
        .unwrap()
        .push(Fault::Sweep(world.org));
    world.store.head_txns.store(0, Ordering::SeqCst);
    let published = world
        .publisher
        .publish(request(world.org, operations))
        .await
        .unwrap();
    assert_eq!(published.changed.len(), 3_000);
    assert_eq!(published.config.head.gc, 5);
    assert_eq!(world.store.head_txns.load(Ordering::SeqCst), 2);
    assert!(world.store.largest_txn.load(Ordering::SeqCst) <= 100);
    let other = another(&world.store, &world.ring);
    let config = other.load(world.org).await.unwrap();
    assert_eq!(config.objects, published.config.objects);
    let deletes = (1..=2_990).map(|bits| delete(target(bits))).collect();
    let small = world
        .publisher
        .publish(request(world.org, deletes))
        .await
        .unwrap();
    assert_eq!(small.config.objects.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_sealed_and_old_ones_destroyed() {
    let world = world().await;
    let publisher = &world.publisher;
    let id = CredentialId::from_bits(1);
    let create = create_credential(publisher, 1, "target", "the-first-canary");
    let first = publisher
        .publish(request(world.org, vec![create]))
        .await
        .unwrap();
    let sealed_at = |published: &Published| {
        let state = published
            .config
            .credential(id)
            .unwrap()
            .secret
            .clone()
            .unwrap();
        let seal_id = state.seal_id.unwrap();
        (keys::secret(world.org, id, &seal_id, "eu"), seal_id)
    };
    let (key, seal_id) = sealed_at(&first);
    let stored = value(&world, &key).await.unwrap();
    let sealed: Sealed = serde_json::from_slice(&stored).unwrap();
    let hosts = ["h1.example".parse().unwrap()];
    let binding = Binding {
        org: world.org,
        credential: id,
        hosts: &hosts,
        seal_id: &seal_id,
    };
    let opened = open(&world.ring, &binding, &sealed).unwrap();
    assert_eq!(opened.token.as_deref(), Some("the-first-canary"));

    let rotate = set_secret(publisher, 1, "target", None);
    let second = publisher
        .publish(request(world.org, vec![rotate]))
        .await
        .unwrap();
    assert!(
        value(&world, &key).await.is_none(),
        "the old secret is destroyed"
    );
    let (key, _) = sealed_at(&second);
    assert!(value(&world, &key).await.is_some());
    let fact = value(&world, &keys::retired(world.org, id)).await.unwrap();
    let fact: Retired = serde_json::from_slice(&fact).unwrap();
    assert_eq!(fact.lowest, second.config.head.generation());

    let gone = delete(ObjectId::Credential(id));
    let third = publisher
        .publish(request(world.org, vec![gone]))
        .await
        .unwrap();
    assert_eq!(count(&world, &keys::secrets(world.org)).await, 0);
    let fact = value(&world, &keys::retired(world.org, id)).await.unwrap();
    let fact: Retired = serde_json::from_slice(&fact).unwrap();
    assert_eq!(fact.lowest, third.config.head.generation());
}

/// Creates so many credentials of callers.
async fn with_credentials(world: &World, count: u128) {
    let all = (1..=count).map(|bits| {
        let token = format!("the-canary-number-{bits:05}");
        create_credential(&world.publisher, bits, "proxy", &token)
    });
    let created = world.publisher.publish(request(world.org, all.collect()));
    created.await.unwrap();
}

fn delete_credentials(world: &World, count: u128) -> Publish {
    let all = (1..=count).map(|bits| delete(ObjectId::Credential(CredentialId::from_bits(bits))));
    request(world.org, all.collect())
}

async fn lowest(world: &World, bits: u128) -> Option<proto::version::Generation> {
    let key = keys::retired(world.org, CredentialId::from_bits(bits));
    let fact: Retired = serde_json::from_slice(&value(world, &key).await?).unwrap();
    Some(fact.lowest)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_version_ends_any_number_of_secrets() {
    let world = world().await;
    for many in [40, 41, 250] {
        with_credentials(&world, many).await;
        let ending = world.publisher.publish(delete_credentials(&world, many));
        let ended = ending.await.unwrap();
        for bits in 1..=many {
            let generation = ended.config.head.generation();
            assert_eq!(
                lowest(&world, bits).await,
                Some(generation),
                "{bits} of {many}"
            );
        }
        assert_eq!(count(&world, keys::RETIRING).await, 0, "nothing is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_that_a_dead_publisher_left_rise_before_anything_else_is_published() {
    let world = world().await;
    with_credentials(&world, 50).await;
    // It dies between the head and the facts.
    world.store.faults.lock().unwrap().push(Fault::PauseAfter);
    tokio::select! {
        () = world.store.paused.notified() => {}
        _ = world.publisher.publish(delete_credentials(&world, 50)) => panic!("it was to die"),
    }
    assert_eq!(lowest(&world, 7).await, None, "no fact yet");
    let other = another(&world.store, &world.ring);
    let next = create_credential(&other, 99, "proxy", "the-canary-afterwards");
    let after = other.publish(request(world.org, vec![next])).await.unwrap();
    for bits in 1..=50 {
        let ended = lowest(&world, bits).await.expect("a fact");
        assert!(ended < after.config.head.generation(), "{bits}");
    }
    assert_eq!(count(&world, keys::RETIRING).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_the_store_shows_a_secret() {
    let world = world().await;
    let publisher = &world.publisher;
    let canaries = ["a-target-canary", "a-caller-canary-of-24-chars"];
    let operations = vec![
        create_credential(publisher, 1, "target", canaries[0]),
        create_credential(publisher, 2, "proxy", canaries[1]),
    ];
    publisher
        .publish(request(world.org, operations))
        .await
        .unwrap();
    let rotate = set_secret(
        publisher,
        2,
        "proxy",
        Some(Timestamp::now() + Duration::from_secs(9)),
    );
    publisher
        .publish(request(world.org, vec![rotate]))
        .await
        .unwrap();
    let mut pairs = Vec::new();
    for prefix in ["l", "v", "s", "i"] {
        let keep = |pair: KeyValue| pairs.push(pair);
        proto::store::load::list(&*world.store, prefix, None, keep)
            .await
            .unwrap();
    }
    assert!(pairs.len() > 8);
    for pair in pairs {
        let mut texts = vec![String::from_utf8_lossy(&pair.value).into_owned()];
        if let Some((_, hash)) = keys::parse_leaf(&pair.key) {
            let content = proto::tree::unpack(hash, &pair.value).unwrap();
            texts.push(String::from_utf8(content).unwrap());
        }
        for text in texts {
            assert!(!text.contains("canary"), "{}", pair.key);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlap_is_a_fact_beside_the_tree() {
    let world = world().await;
    let publisher = &world.publisher;
    let create = create_credential(publisher, 1, "proxy", "a-secret-of-24-characters-1");
    let first = publisher
        .publish(request(world.org, vec![create]))
        .await
        .unwrap();
    let until = Timestamp::now() + Duration::from_secs(3_600);
    let rotate = set_secret(publisher, 1, "proxy", Some(until));
    let second = publisher
        .publish(request(world.org, vec![rotate]))
        .await
        .unwrap();
    let id = CredentialId::from_bits(1);
    let fact = value(&world, &keys::retired(world.org, id)).await.unwrap();
    let fact: Retired = serde_json::from_slice(&fact).unwrap();
    let old = first.config.head.generation();
    assert!(!fact.covers(&old, Timestamp::now()) && fact.covers(&old, until));
    assert!(!fact.covers(&second.config.head.generation(), until));
    assert_eq!(second.config.credential(id).unwrap().previous.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_done_once() {
    let world = world().await;
    let keyed = |bits: u128, body: &[u8]| {
        let idempotency = Idempotency {
            key: "k/1".into(),
            fingerprint: Hash::of(body),
        };
        let publish = request(world.org, vec![create_target(bits)]);
        Publish {
            idempotency: Some(idempotency),
            ..publish
        }
    };
    let first = world.publisher.publish(keyed(1, b"x")).await.unwrap();
    let again = another(&world.store, &world.ring)
        .publish(keyed(2, b"x"))
        .await
        .unwrap();
    assert!(again.replayed && !first.replayed);
    assert_eq!((again.n, &again.changed), (first.n, &first.changed));
    let error = world.publisher.publish(keyed(3, b"y")).await.unwrap_err();
    assert!(matches!(error, PublishError::KeyReused));
    assert_eq!(
        world.publisher.load(world.org).await.unwrap().objects.len(),
        1
    );
    let stored = world
        .store
        .get(&keys::idempotency(world.org, "k/1"))
        .await
        .unwrap();
    assert!(
        stored.value.unwrap().lease.is_some(),
        "it is forgotten some day"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn organisations_come_with_a_head_and_go_only_when_empty() {
    let world = world().await;
    let publisher = &world.publisher;
    let acme = OrgId::new();
    let create = |id: OrgId| Operation::Create {
        id: ObjectId::Org(id),
        body: Body::Org(serde_json::from_value(json!({"slug": "acme"})).unwrap()),
        secret: None,
    };
    publisher
        .publish(request(SYSTEM_ORG, vec![create(acme)]))
        .await
        .unwrap();
    let error = publisher
        .publish(request(SYSTEM_ORG, vec![create(OrgId::new())]))
        .await;
    assert!(matches!(
        error,
        Err(PublishError::Refused(ApplyError::Taken { .. }))
    ));
    publisher
        .publish(request(acme, vec![create_target(1)]))
        .await
        .unwrap();
    let gone = || request(SYSTEM_ORG, vec![delete(ObjectId::Org(acme))]);
    let error = publisher.publish(gone()).await.unwrap_err();
    assert!(
        matches!(&error, PublishError::Refused(ApplyError::InUse { users, .. })
            if *users == [target(1)]),
        "{error}"
    );
    publisher
        .publish(request(acme, vec![delete(target(1))]))
        .await
        .unwrap();
    publisher.publish(gone()).await.unwrap();
    let error = publisher
        .publish(request(acme, vec![create_target(1)]))
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::OrgUnknown(_)), "{error}");
    for prefix in [keys::leaves(acme), keys::versions(acme), keys::head(acme)] {
        assert_eq!(count(&world, &prefix).await, 0, "{prefix}");
    }
    let system = request(SYSTEM_ORG, vec![delete(ObjectId::Org(SYSTEM_ORG))]);
    let error = publisher.publish(system).await.unwrap_err();
    assert!(matches!(
        error,
        PublishError::Refused(ApplyError::InUse { .. })
    ));
    let stray = publisher
        .publish(request(world.org, vec![create(OrgId::new())]))
        .await;
    assert!(stray.is_err(), "organisations are objects of `system` only");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_built_on_a_store_that_went_back_or_was_tampered_with() {
    let world = world().await;
    let publisher = &world.publisher;
    publisher
        .publish(request(world.org, vec![create_target(1)]))
        .await
        .unwrap();
    let old = value(&world, &keys::head(world.org)).await.unwrap();
    let made = publisher
        .publish(request(world.org, vec![create_target(2)]))
        .await
        .unwrap();
    let put = |key: String, value: Vec<u8>| Txn {
        ops: vec![proto::store::Op::put(key, value)],
        ..Txn::default()
    };
    let head = value(&world, &keys::head(world.org)).await.unwrap();
    world
        .store
        .inner
        .txn(put(keys::head(world.org), old))
        .await
        .unwrap();
    let error = publisher
        .publish(request(world.org, vec![create_target(3)]))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PublishError::Regressed {
                seen: 3,
                found: 2,
                ..
            }
        ),
        "{error}"
    );
    world
        .store
        .inner
        .txn(put(keys::head(world.org), head))
        .await
        .unwrap();
    let root = made.config.head.roots["*"];
    let leaf = keys::leaf(world.org, &root);
    world
        .store
        .inner
        .txn(put(leaf, b"nonsense".to_vec()))
        .await
        .unwrap();
    let fresh = another(&world.store, &world.ring);
    let error = fresh.load(world.org).await.unwrap_err();
    assert!(matches!(error, PublishError::Unreadable(_)), "{error}");
    assert!(
        publisher
            .publish(request(world.org, vec![create_target(3)]))
            .await
            .is_ok()
    );
}

/// A version that cannot be packed is refused by its dry run as well, in the same words.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_to_be_published_is_too_large_for_a_dry_run() {
    let world = world().await;
    let policy = Policy {
        content_by_region: true,
        ..Policy::default()
    };
    let publisher = allowing(&world.store, &world.ring, policy);
    let caller = create_credential(&publisher, 1_001, "proxy", "a-secret-of-24-characters-1");
    publisher
        .publish(request(world.org, vec![create_target(1_000), caller]))
        .await
        .unwrap();
    // Each region has a set of its own, and the head names every set.
    let pinned = |bits: u128| {
        let fields = json!({
            "name": format!("p{bits}"), "target_id": TargetId::from_bits(1_000),
            "regions": [format!("region-{bits}")],
            "proxy_credential_ids": [CredentialId::from_bits(1_001)],
        });
        Operation::Create {
            id: ObjectId::Proxy(ProxyId::from_bits(bits)),
            body: Body::Proxy(serde_json::from_value(fields).unwrap()),
            secret: None,
        }
    };
    let dry = async |count: u128| {
        let of = request(world.org, Vec::new());
        let of = Request {
            org: of.org,
            author: of.author,
            deadline: of.deadline,
            idempotency: None,
        };
        let operations: Vec<Operation> = (1..=count).map(pinned).collect();
        let made = |_: &Arc<OrgConfig>| Ok::<_, PublishError>(operations);
        publisher.draft(&of, made).await.map(|(_, draft)| draft)
    };
    let publish = async |count: u128| {
        let operations = (1..=count).map(pinned).collect();
        publisher.publish(request(world.org, operations)).await
    };
    let would = dry(200).await.unwrap_err().to_string();
    let refused = publish(200).await.unwrap_err().to_string();
    assert_eq!(would, refused);
    assert!(would.contains("too large"), "{would}");
    assert_eq!(dry(3).await.unwrap().changed.len(), 3);
    assert_eq!(publish(3).await.unwrap().changed.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_changed_is_no_version() {
    let world = world().await;
    let made = world
        .publisher
        .publish(request(world.org, vec![create_target(1)]))
        .await
        .unwrap();
    let same = rename(1, "t", Some(made.n));
    let published = world
        .publisher
        .publish(request(world.org, vec![same]))
        .await
        .unwrap();
    assert_eq!((published.n, published.changed.len()), (made.n, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_that_changed_nothing_undoes_nothing() {
    let world = world().await;
    let made = request(world.org, vec![create_target(1)]);
    let made = world.publisher.publish(made).await.unwrap();
    let keyed = || Publish {
        idempotency: Some(Idempotency {
            key: "k/1".into(),
            fingerprint: Hash::of(b"x"),
        }),
        ..request(world.org, vec![rename(1, "t", None)])
    };
    // The answer is lost; that it was carried out is not.
    world.store.faults.lock().unwrap().push(Fault::LoseAnswer);
    let first = world.publisher.publish(keyed()).await.unwrap();
    assert_eq!((first.n, first.changed.len()), (made.n, 0));
    let other = request(world.org, vec![rename(1, "theirs", None)]);
    let theirs = world.publisher.publish(other).await.unwrap();
    assert_eq!(theirs.n, made.n + 1);
    let again = another(&world.store, &world.ring).publish(keyed()).await;
    let again = again.unwrap();
    assert!(again.replayed);
    assert_eq!((again.n, again.changed.len()), (made.n, 0));
    let newest = world.publisher.load(world.org).await.unwrap();
    assert_eq!(newest.head.n, theirs.n, "nothing was published");
    // What a version's own request led to is told to other regions as before.
    let beside = keys::remembered(world.org, made.n);
    assert!(value(&world, &beside).await.is_none());
}

/// A publish that is stopped before it reaches the store, until `meanwhile` is done.
async fn stopped(world: &World, meanwhile: impl AsyncFnOnce()) -> Result<Published, PublishError> {
    world.store.faults.lock().unwrap().push(Fault::Pause);
    let publisher = world.publisher.clone();
    let publish = request(world.org, vec![create_target(900)]);
    let publishing = tokio::spawn(async move { publisher.publish(publish).await });
    world.store.paused.notified().await;
    meanwhile().await;
    world.store.resumed.notify_one();
    publishing.await.unwrap()
}

/// Lets a publish of target 900 lose its first races, each to what `theirs` creates, and stops it
/// before its next try.
async fn beaten(
    world: &World,
    other: &Publisher,
    theirs: &[u128],
) -> tokio::task::JoinHandle<Result<Published, PublishError>> {
    let pause = || world.store.faults.lock().unwrap().push(Fault::Pause);
    pause();
    let publisher = world.publisher.clone();
    let publish = Publish {
        deadline: Instant::now() + DEADLINE * 6,
        ..request(world.org, vec![create_target(900)])
    };
    let publishing = tokio::spawn(async move { publisher.publish(publish).await });
    for bits in theirs {
        world.store.paused.notified().await;
        let publish = request(world.org, vec![create_target(*bits)]);
        other.publish(publish).await.unwrap();
        pause();
        world.store.resumed.notify_one();
    }
    publishing
}

/// A control plane with a queue is always ready before one that has to read what it lost to.
#[tokio::test]
async fn who_has_lost_some_races_has_the_next_turn() {
    let world = world().await;
    let other = another(&world.store, &world.ring);
    let publishing = beaten(&world, &other, &[1, 2, 3]).await;
    world.store.paused.notified().await;
    let before = world.publisher.load(world.org).await.unwrap().head.n;
    let tries = world.store.head_txns.load(Ordering::SeqCst);
    let theirs = {
        let (other, publish) = (other.clone(), request(world.org, vec![create_target(4)]));
        tokio::spawn(async move { other.publish(publish).await })
    };
    while world.store.head_txns.load(Ordering::SeqCst) < tries + 2 {
        tokio::task::yield_now().await;
    }
    world.store.resumed.notify_one();
    assert_eq!(publishing.await.unwrap().unwrap().n, before + 1);
    assert_eq!(theirs.await.unwrap().unwrap().n, before + 2);
    assert!(value(&world, &keys::turn(world.org)).await.is_none());
}

#[tokio::test]
async fn a_turn_that_leads_to_no_version_is_given_up() {
    let world = world().await;
    let other = another(&world.store, &world.ring);
    let publishing = beaten(&world, &other, &[1, 2, 900]).await;
    // It comes to no transaction any more.
    let refused = publishing.await.unwrap();
    assert!(
        matches!(refused, Err(PublishError::Refused(_))),
        "{refused:?}"
    );
    assert!(value(&world, &keys::turn(world.org)).await.is_none());
    world.store.faults.lock().unwrap().clear();
    let next = request(world.org, vec![create_target(5)]);
    other.publish(next).await.unwrap();
}

async fn put_under(world: &World, key: String, lease: LeaseId) {
    let put = proto::store::Op::Put {
        key,
        value: "".into(),
        lease: Some(lease),
    };
    let txn = Txn {
        ops: vec![put],
        ..Txn::default()
    };
    world.store.txn(txn).await.unwrap();
}

#[tokio::test]
async fn a_turn_ends_when_its_holder_dies() {
    let world = world().await;
    let second = Duration::from_secs(1);
    let lease = world.store.grant_lease(second).await.unwrap().id;
    put_under(&world, keys::turn(world.org), lease).await;
    let publish = request(world.org, vec![create_target(1)]);
    world.publisher.publish(publish).await.unwrap();
}

/// As a publish of thousands of objects may be.
#[tokio::test]
async fn a_turn_lasts_as_long_as_its_holder_takes() {
    let world = world().await;
    let other = another(&world.store, &world.ring);
    let publishing = beaten(&world, &other, &[1, 2, 3]).await;
    world.store.paused.notified().await;
    let before = world.publisher.load(world.org).await.unwrap().head.n;
    let turn = value(&world, &keys::turn(world.org)).await;
    assert!(turn.is_some());
    // What is put under a lease like the turn's, and later, and nobody renews.
    let lease = world.store.grant_lease(turn::LEASE).await.unwrap().id;
    put_under(&world, "later".into(), lease).await;
    while value(&world, "later").await.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(value(&world, &keys::turn(world.org)).await, turn);
    let tries = world.store.head_txns.load(Ordering::SeqCst);
    world.store.resumed.notify_one();
    assert_eq!(publishing.await.unwrap().unwrap().n, before + 1);
    assert_eq!(world.store.head_txns.load(Ordering::SeqCst), tries);
}

#[tokio::test]
async fn what_there_is_no_time_to_look_at_is_named() {
    let world = world().await;
    let first = request(world.org, vec![create_target(1)]);
    let made = world.publisher.publish(first).await.unwrap();
    let missing = world.publisher.regressed_or_lost(Instant::now()).await;
    let missing = missing.unwrap();
    let named = |missing: &Missing| -> Vec<_> {
        let named = missing.unchecked.iter();
        named
            .map(|(org, why)| (org.unwrap(), why.clone()))
            .collect()
    };
    let late = "there was no time left for it".to_owned();
    let mut both = vec![(SYSTEM_ORG, late.clone()), (world.org, late)];
    both.sort();
    assert_eq!((missing.found.len(), named(&missing)), (0, both));
    // One that cannot be looked at keeps nobody from seeing the others.
    fn lost(org: OrgId, config: &OrgConfig) -> Txn {
        let leaves = config.reaches();
        let ops = leaves.map(|hash| proto::store::Op::Delete(keys::leaf(org, &hash)));
        Txn {
            ops: ops.collect(),
            ..Txn::default()
        }
    }
    let system = world.publisher.load(SYSTEM_ORG).await.unwrap();
    for txn in [lost(world.org, &made.config), lost(SYSTEM_ORG, &system)] {
        world.store.inner.txn(txn).await.unwrap();
    }
    let other = another(&world.store, &world.ring);
    let missing = other.regressed_or_lost(in_time()).await.unwrap();
    assert_eq!((missing.found.len(), missing.unchecked.len()), (0, 2));
    let missing = world.publisher.regressed_or_lost(in_time()).await.unwrap();
    assert_eq!((missing.found.len(), missing.unchecked.len()), (2, 0));
}

/// A node of an earlier release looks for the request itself, and reads nothing it does not know.
#[tokio::test]
async fn a_node_of_an_earlier_release_writes_back_what_it_is_asked_for() {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Earlier {
        id: String,
        node: String,
    }
    let world = world().await;
    let member = json!({
        "id": proto::id::NodeId::from_bits(1), "name": "gw-1", "region": "eu", "address": "",
        "program": "", "started_at": "1970-01-01T00:00:00Z", "revision": 1, "serves": "",
        "in_flight": 0, "meters_degraded": 0,
        "faults": [{"org": world.org, "code": proto::store::recovery::REGRESSED, "detail": ""}],
    });
    let key = keys::node(proto::id::NodeId::from_bits(1));
    let put = |key: String, value: Vec<u8>| Txn {
        ops: vec![proto::store::Op::put(key, value)],
        ..Txn::default()
    };
    let member = put(key, serde_json::to_vec(&member).unwrap());
    world.store.txn(member).await.unwrap();
    let node = async {
        let ask = loop {
            if let Some(asked) = value(&world, "recovery/ask").await {
                break serde_json::from_slice::<Earlier>(&asked).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(ask.node, "gw-1");
        let offered = put(keys::recovery_offered(&ask.id), br#"{"orgs":[]}"#.to_vec());
        world.store.txn(offered).await.unwrap();
    };
    // What today's nodes are told names organisations.
    let orgs = std::collections::BTreeMap::from([(world.org, Hash::of(b"head"))]);
    let (offers, ()) = tokio::join!(world.publisher.ask("gw-1", orgs, in_time()), node);
    assert!(offers.unwrap().is_empty());
}

fn not_home(outcome: &Result<Published, PublishError>) -> Option<&str> {
    match outcome {
        Err(PublishError::NotHome { home, .. }) => Some(home),
        _ => None,
    }
}

/// schedules.md, part one, 3: within one store no publisher commits under a fact that is over.
#[tokio::test]
async fn a_publisher_paused_across_a_seal_cannot_commit() {
    let world = world().await;
    let before = world.publisher.load(world.org).await.unwrap().head.clone();
    let other = another(&world.store, &world.ring);
    let outcome = stopped(&world, async || {
        let sealed = other.seal_home(world.org, "us").await.unwrap();
        assert_eq!(sealed.sealed.unwrap().last, (&before).into());
    })
    .await;
    assert_eq!(not_home(&outcome), Some("us"), "{outcome:?}");
    assert_eq!(other.load(world.org).await.unwrap().head, before);
    // Sealed again for the same region it stays; for another it is refused.
    other.seal_home(world.org, "us").await.unwrap();
    let again = other.seal_home(world.org, "ap").await;
    assert!(matches!(again, Err(PublishError::NotHome { .. })));
    // Other organisations go on.
    let create = Operation::Create {
        id: ObjectId::Org(OrgId::new()),
        body: Body::Org(proto::org::Org {
            slug: "other".into(),
            name: String::new(),
            default_limits: None,
        }),
        secret: None,
    };
    let published = world
        .publisher
        .publish(request(SYSTEM_ORG, vec![create]))
        .await;
    published.unwrap();
}

/// The same, across an epoch that another region opened and that is known here.
#[tokio::test]
async fn a_publisher_paused_across_a_higher_epoch_cannot_commit() {
    let world = world().await;
    let before = world.publisher.load(world.org).await.unwrap().head.clone();
    let outcome = stopped(&world, async || {
        let home = world
            .publisher
            .home(world.org, &before.epoch)
            .await
            .unwrap();
        let next = home.reopen("us", (&before).into(), std::iter::empty());
        let txn = Txn {
            ops: vec![homes::put(world.org, &next)],
            ..Txn::default()
        };
        world.store.txn(txn).await.unwrap();
    })
    .await;
    assert_eq!(not_home(&outcome), Some("us"), "{outcome:?}");
    assert_eq!(world.publisher.load(world.org).await.unwrap().head, before);
}

#[tokio::test]
async fn a_store_without_facts_gets_them_once_from_the_first_home() {
    let world = world().await;
    let forget = || async {
        for org in [SYSTEM_ORG, world.org] {
            let ops = vec![proto::store::Op::Delete(keys::home(org))];
            let txn = Txn {
                ops,
                ..Txn::default()
            };
            world.store.txn(txn).await.unwrap();
        }
    };
    let fact = |org| homes::stored(&*world.store, org);
    forget().await;
    // A region that is not the first home makes none, and no version.
    let ring = Keyring::generate("us");
    let follows = Publisher::new(PublisherOptions {
        store: world.store.clone(),
        public: ring.public().unwrap(),
        digest_key: ring.digest_key.clone(),
        policy: Policy::default(),
        epoch: Epoch {
            counter: 1,
            region: "us".into(),
        },
        clock: Arc::new(Timestamp::now),
    })
    .with_first_home("eu");
    follows.settle_homes().await.unwrap();
    assert!(fact(world.org).await.unwrap().is_none());
    let publish = request(world.org, vec![create_target(1)]);
    assert_eq!(not_home(&follows.publish(publish).await), Some("eu"));
    // With the next version, or at the start; then it stays.
    let publish = request(world.org, vec![create_target(1)]);
    world.publisher.publish(publish).await.unwrap();
    let (home, at) = fact(world.org).await.unwrap().unwrap();
    assert!(home.is_open_in("eu") && home.epoch.counter == 1);
    world.publisher.settle_homes().await.unwrap();
    assert!(fact(SYSTEM_ORG).await.unwrap().is_some());
    let publish = request(world.org, vec![create_target(2)]);
    world.publisher.publish(publish).await.unwrap();
    world.publisher.settle_homes().await.unwrap();
    assert_eq!(fact(world.org).await.unwrap(), Some((home, at)));
}
