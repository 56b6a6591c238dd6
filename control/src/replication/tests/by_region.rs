//! What is pinned to regions is kept by them and home alone: what a region that is left out has of
//! it, and where it comes from when home moves.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use proto::health::Health;
use proto::id::{CredentialId, OrgId, ProxyId, RuleId, TargetId};
use proto::keys;
use proto::object::{Body, ObjectId};
use proto::store::{Store, load};
use proto::tree::{ApplyError, Change, Operation, OrgConfig, SYSTEM_ORG, SecretChange, unpack};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::super::{HandOverError, PromoteError};
use super::moves::{Following, comes, equal, following, home};
use super::net::{
    Net, Region, bearer, create_target, create_with_secret, installation_by_region, rename,
};
use crate::archive::Archive;
use crate::janitor::{Janitor, JanitorOptions};
use crate::publish::{PublishError, Published};

/// Stands in every text of what is pinned.
const CANARY: &str = "canary-of-eu";

pub fn proxy() -> ObjectId {
    ObjectId::Proxy(ProxyId::from_bits(10))
}

/// A credential with its secret.
pub fn credential(region: &Region, (kind, bits): (&str, u128), fields: Value) -> Operation {
    let mut all = json!({"kind": kind, "auth_type": "bearer"});
    let fields = fields.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(fields);
    let credential = serde_json::from_value(all).unwrap();
    create_with_secret(&region.publisher, bits, credential, CANARY)
}

/// A target and a way in for all, and a proxy with its policy and its target credential for
/// `regions`.
pub fn pinned(region: &Region, regions: &Value) -> Vec<Operation> {
    let fields = json!({"name": CANARY, "target_id": TargetId::from_bits(1), "regions": regions,
        "proxy_credential_ids": [CredentialId::from_bits(2)],
        "target_credential_id": CredentialId::from_bits(1), "labels": {"l": CANARY}});
    let rule = json!({"parent": proxy(), "spec": {"effect": "deny", "message": CANARY}});
    let of_target = json!({"name": CANARY, "hosts": ["h1.example"], "regions": regions});
    vec![
        create_target(1, "for all"),
        credential(region, ("target", 1), of_target),
        credential(region, ("proxy", 2), json!({"name": "of callers"})),
        Operation::Create {
            id: proxy(),
            body: Body::Proxy(serde_json::from_value(fields).unwrap()),
            secret: None,
        },
        Operation::Create {
            id: ObjectId::Rule(RuleId::from_bits(20)),
            body: Body::Rule(serde_json::from_value(rule).unwrap()),
            secret: None,
        },
    ]
}

pub fn change(id: ObjectId, change: impl Fn(&mut Value) + Send + Sync + 'static) -> Operation {
    let change: Change = Arc::new(move |body| {
        let mut value = serde_json::to_value(body).unwrap();
        let (_, fields) = value.as_object_mut().unwrap().iter_mut().next().unwrap();
        change(fields);
        Ok(serde_json::from_value(value).unwrap())
    });
    Operation::Update {
        id,
        precondition: None,
        change,
        secret: SecretChange::Keep,
    }
}

pub fn relabelled(text: impl std::fmt::Display) -> Operation {
    let text = format!("{CANARY} {text}");
    change(proxy(), move |fields| {
        fields["labels"]["l"] = text.clone().into();
    })
}

fn delete(id: ObjectId) -> Operation {
    Operation::Delete {
        id,
        precondition: None,
    }
}

fn has_canary(bytes: &[u8]) -> bool {
    let mut windows = bytes.windows(CANARY.len());
    windows.any(|window| window == CANARY.as_bytes())
}

/// The keys of everything in a region's store in which the canary stands, leaves unpacked.
pub async fn found(region: &Region) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in region.dump(&[""]).await {
        let unpacked = match key.strip_prefix(&keys::leaves(region.org())) {
            Some(hash) => unpack(hash.parse().unwrap(), &value).unwrap(),
            None => value,
        };
        if has_canary(&unpacked) || has_canary(key.as_bytes()) {
            found.push(key);
        }
    }
    found
}

/// The regions that a store has sealed values of the pinned credential for.
pub async fn sealed_for(region: &Region) -> Vec<String> {
    let id = CredentialId::from_bits(1);
    let values = region.dump(&[&keys::secrets_of(region.org(), id)]).await;
    let regions = values.keys().map(|key| keys::parse_secret(key).unwrap().2);
    regions.map(str::to_owned).collect()
}

pub async fn newest(region: &Region) -> Arc<OrgConfig> {
    region.publisher.load(region.org()).await.unwrap()
}

pub async fn whole(region: &Region) -> bool {
    newest(region).await.withheld().next().is_none()
}

/// Three regions that follow each other; `us` is home and has published what is pinned to eu.
pub async fn three(regions: Value) -> (Arc<Net>, [Region; 3], [Following; 3]) {
    let (net, all) = installation_by_region(&["us", "eu", "ap"]).await;
    let all: [Region; 3] = all.try_into().ok().unwrap();
    let following = [0, 1, 2].map(|at| following(&all[at]));
    all[0]
        .publish(all[0].org(), pinned(&all[0], &regions))
        .await;
    equal(&[&all[0], &all[1], &all[2]]).await;
    (net, all, following)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_left_out_has_the_stub_alone() {
    let (_net, [us, eu, ap], _following) = three(json!(["eu"])).await;
    let org = us.org();
    for step in ["one", "two"] {
        us.publish(org, vec![relabelled(step)]).await;
        us.publish(org, vec![rename(1, step)]).await;
    }
    equal(&[&us, &eu, &ap]).await;
    assert!(whole(&us).await);
    assert_eq!(newest(&eu).await.objects, newest(&us).await.objects);
    assert_eq!(newest(&ap).await.withheld().collect::<Vec<_>>(), ["eu"]);
    let stub = newest(&ap).await.objects.get(&proxy()).unwrap().clone();
    let Body::Proxy(known) = &stub.body else {
        panic!("{stub:?}");
    };
    assert_eq!((known.name.as_str(), known.labels.len()), ("", 0));
    assert_eq!(known.proxy_credential_ids, [CredentialId::from_bits(2)]);
    assert_eq!(found(&ap).await, Vec::<String>::new());
    assert_eq!(newest(&ap).await.objects.len(), 3);
    assert_eq!(sealed_for(&ap).await, Vec::<String>::new());
    assert_eq!(sealed_for(&eu).await, ["eu"]);
    // It follows on, also when the last of it goes.
    us.publish(org, vec![delete(proxy())]).await;
    let credential = ObjectId::Credential(CredentialId::from_bits(1));
    us.publish(org, vec![delete(credential)]).await;
    equal(&[&us, &eu, &ap]).await;
    assert!(whole(&ap).await);
    assert_eq!(newest(&ap).await.objects, newest(&us).await.objects);
}

/// Bytes, and the content of every zstd frame in them.
fn unpacked(bytes: &[u8]) -> Vec<Vec<u8>> {
    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    let starts = bytes.windows(MAGIC.len()).enumerate();
    let starts = starts.filter(|(_, start)| *start == MAGIC);
    let frames = starts.map(|(at, _)| {
        let mut content = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_buffer(&bytes[at..]).unwrap();
        // Where the bytes only look like a frame, as far as it goes.
        let _ = decoder.single_frame().read_to_end(&mut content);
        content
    });
    frames.chain([bytes.to_vec()]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_frame_brings_a_region_what_is_kept_from_it() {
    let (net, [us, eu, ap], _following) = three(json!(["eu"])).await;
    let org = us.org();
    net.listen();
    for step in 0..20 {
        us.publish(org, vec![relabelled(step)]).await;
        us.publish(org, vec![rename(1, &format!("{step}"))]).await;
    }
    equal(&[&us, &eu, &ap]).await;
    // And as home moves, of which all tell each other.
    us.replication.hand_over("eu").await.unwrap();
    comes("eu as home", || async { eu.homes.region_of(org) == "eu" }).await;
    eu.publish(org, vec![relabelled("at eu")]).await;
    equal(&[&us, &eu, &ap]).await;
    let brings = |region| {
        unpacked(&net.heard_by(region))
            .iter()
            .any(|all| has_canary(all))
    };
    assert!(brings("eu"), "it is found where it belongs");
    let heard = net.heard_by("ap").len();
    assert!(heard > 10_000, "{heard} bytes");
    assert!(!brings("ap"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_becomes_home_has_everything_first() {
    let (_net, [us, eu, ap], _following) = three(json!(["eu"])).await;
    let org = us.org();
    us.replication.hand_over("ap").await.unwrap();
    comes("ap as home", || async { ap.homes.region_of(org) == "ap" }).await;
    equal(&[&us, &eu, &ap]).await;
    assert!(whole(&ap).await);
    // Also the secret, which it cannot open, for it is to be kept.
    assert_eq!(sealed_for(&ap).await, ["eu"]);
    ap.publish(org, vec![relabelled("of ap")]).await;
    equal(&[&us, &eu, &ap]).await;
    assert_eq!(newest(&eu).await.objects, newest(&ap).await.objects);
    // The home before is one of the others now.
    assert_eq!(newest(&us).await.withheld().collect::<Vec<_>>(), ["eu"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_is_made_home_with_what_would_be_lost_without_it() {
    let (net, [us, eu, ap], following) = three(json!(["eu"])).await;
    let org = us.org();
    let [us_follows, ..] = following;
    drop(us_follows);
    // us is gone for good, and eu cannot be reached.
    net.cut("us", "eu");
    net.cut("us", "ap");
    net.cut("eu", "ap");
    let lost = ap.replication.promote(false).await.unwrap_err();
    assert!(lost.to_string().contains("--force"), "{lost}");
    assert_eq!(home(&ap, org).await.region, "us");
    net.heal();
    net.cut("us", "eu");
    net.cut("us", "ap");
    ap.replication.promote(false).await.unwrap();
    comes("ap as home", || async { ap.homes.region_of(org) == "ap" }).await;
    assert!(whole(&ap).await);
    assert_eq!(sealed_for(&ap).await, ["eu"]);
    ap.publish(org, vec![relabelled("of ap")]).await;
    equal(&[&eu, &ap]).await;
    assert_eq!(newest(&eu).await.objects, newest(&ap).await.objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_narrowed_and_widened_again_comes_and_goes() {
    let (_net, [us, eu, ap], _following) = three(json!(["*"])).await;
    let org = us.org();
    assert!(!found(&ap).await.is_empty());
    let credential = ObjectId::Credential(CredentialId::from_bits(1));
    for regions in [
        json!(["eu"]),
        json!(["eu", "ap"]),
        json!(["ap"]),
        json!(["*"]),
    ] {
        let set = |regions: Value| move |fields: &mut Value| fields["regions"] = regions.clone();
        let of_credential = set(regions.clone());
        let mut narrower = change(credential, move |fields| {
            of_credential(&mut fields["credential"]);
        });
        // It is sealed for its regions: to add one it is given again.
        if let Operation::Update { secret, .. } = &mut narrower {
            let config = newest(&us).await;
            let stored = config.credential(CredentialId::from_bits(1)).unwrap();
            *secret = SecretChange::Set {
                secret: us.publisher.prepare(&stored.credential, bearer(CANARY)),
                old_until: None,
            };
        }
        us.publish(org, vec![change(proxy(), set(regions.clone())), narrower])
            .await;
        equal(&[&us, &eu, &ap]).await;
        for region in [&eu, &ap] {
            let kept = proto::regions::include(
                &serde_json::from_value::<Vec<String>>(regions.clone()).unwrap(),
                region.name(),
            );
            let config = newest(region).await;
            let objects = &config.objects;
            assert_eq!(objects.contains_key(&credential), kept, "{regions}");
            if kept {
                assert_eq!(*objects, newest(&us).await.objects, "{regions}");
            }
        }
    }
}

/// The proxy so that only these regions know of it.
pub fn strict(regions: Value) -> Operation {
    change(proxy(), move |fields| {
        fields["regions"] = regions.clone();
        fields["residency"] = "strict".into();
    })
}

fn problems(refused: Result<Published, PublishError>) -> Vec<(String, String)> {
    let Err(PublishError::Refused(ApplyError::Invalid(problems))) = refused else {
        panic!("{refused:?}");
    };
    let problems = problems.into_iter();
    problems
        .map(|problem| (problem.pointer, problem.code.to_string()))
        .collect()
}

/// schedules.md, part one, 4: home holds everything, so that what is strict includes home.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_strict_is_unknown_elsewhere_and_home_stays_where_it_may_be() {
    let (net, [us, eu, ap], following) = three(json!(["us", "eu"])).await;
    let org = us.org();
    let at = |pointer: &str, code: &str| (pointer.to_owned(), code.to_owned());
    let without_home = us.try_publish(org, vec![strict(json!(["eu"]))]).await;
    assert_eq!(problems(without_home), [at("/regions", "home-region")]);
    let everywhere = us.try_publish(org, vec![strict(json!(["*"]))]).await;
    assert!(problems(everywhere).contains(&at("/residency", "regions")));

    us.publish(org, vec![strict(json!(["eu", "us"]))]).await;
    equal(&[&us, &eu, &ap]).await;
    assert_eq!(newest(&eu).await.objects, newest(&us).await.objects);
    let known = newest(&ap).await;
    assert!(known.objects.get(&proxy()).is_none());
    assert_eq!(
        known.withheld().collect::<Vec<_>>(),
        ["eu", "strict/eu,us", "us"]
    );
    assert_eq!(found(&ap).await, Vec::<String>::new());

    // ap cannot become home, asked or forced; eu can.
    let refused = us.replication.hand_over("ap").await;
    let stays = PublishError::Stays {
        org,
        regions: "eu,us".into(),
        to: "ap".into(),
    };
    let Err(HandOverError::Stopped { error, so_far }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(error.to_string(), stays.to_string());
    assert!(
        so_far.moved.is_empty() && so_far.sealed.is_empty(),
        "{so_far}"
    );
    assert!(
        home(&us, SYSTEM_ORG).await.is_open_in("us"),
        "nothing was done"
    );
    let sealed = us.publisher.seal_home(org, "ap").await;
    assert!(
        matches!(sealed, Err(PublishError::Stays { .. })),
        "{sealed:?}"
    );
    us.replication.hand_over("eu").await.unwrap();
    eu.publish(org, vec![relabelled("of eu")]).await;
    equal(&[&us, &eu, &ap]).await;
    assert_eq!(newest(&us).await.objects, newest(&eu).await.objects);
    let [_, eu_follows, _] = following;
    drop(eu_follows);
    net.cut("eu", "us");
    net.cut("eu", "ap");
    let promotion = ap.replication.promote(false).await.unwrap();
    assert_eq!(promotion.promoted[0].org, SYSTEM_ORG, "the rest goes on");
    let [(left, why)] = &promotion.left[..] else {
        panic!("{promotion:?}");
    };
    assert!(*left == org && why.contains("residency: strict"), "{why}");
    let nothing_else = ap.replication.promote(false).await;
    assert!(
        matches!(nothing_else, Err(PromoteError::Left(_))),
        "{nothing_else:?}"
    );
    assert_eq!(found(&ap).await, Vec::<String>::new());
    us.replication.promote(false).await.unwrap();
    us.publish(org, vec![relabelled("of us")]).await;
    equal(&[&us, &ap]).await;
    assert_eq!(found(&ap).await, Vec::<String>::new());
}

/// The janitor of a region, with its archive, until it is dropped.
pub struct Swept {
    archive: Arc<Archive>,
    _stop: oneshot::Sender<()>,
}

impl Swept {
    /// Keeps so many versions in the store.
    pub fn of(region: &Region, store_versions: u64) -> Self {
        let archive = region.archive.clone();
        let options = JanitorOptions {
            store_versions,
            archive_versions: 1_000,
            archive_age: Duration::from_secs(86_400),
            every: Duration::from_millis(20),
            compacts: false,
        };
        let janitor = Janitor::new(region.publisher.clone(), archive.clone(), options);
        let (stop, stopping) = oneshot::channel();
        tokio::spawn(janitor.run(Health::default(), stopping));
        Self {
            archive,
            _stop: stop,
        }
    }

    /// The numbers of the archived versions in which the canary stands.
    pub async fn found(&self, region: &Region) -> Vec<u64> {
        let org = region.org();
        let mut found = Vec::new();
        for record in self.archive.versions(org, u64::MAX, usize::MAX).unwrap() {
            let content = self.archive.content(org, &record).unwrap();
            if in_leaves(&content, org).await {
                found.push(record.head.n);
            }
        }
        found
    }
}

/// Whether the canary stands in a leaf.
async fn in_leaves(store: &dyn Store, org: OrgId) -> bool {
    let mut leaves = Vec::new();
    load::list(store, &keys::leaves(org), None, |pair| leaves.push(pair))
        .await
        .unwrap();
    leaves.iter().any(|leaf| {
        let (_, hash) = keys::parse_leaf(&leaf.key).unwrap();
        has_canary(&unpack(hash, &leaf.value).unwrap())
    })
}

/// schedules.md, part one, 4: narrowed to eu, what earlier versions hold goes from the others too.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_narrowed_goes_from_kept_versions_and_archives_of_regions_that_are_left_out() {
    let (_net, [us, eu, ap], _following) = three(json!(["*"])).await;
    let org = us.org();
    let swept = [&us, &eu, &ap].map(|region| Swept::of(region, 3));
    for step in 0..8 {
        us.publish(org, vec![relabelled(step)]).await;
    }
    for (region, swept) in [&us, &eu, &ap].into_iter().zip(&swept) {
        comes("archived versions", || async {
            swept.found(region).await.len() > 3
        })
        .await;
    }
    us.publish(
        org,
        vec![change(proxy(), |fields| fields["regions"] = json!(["eu"]))],
    )
    .await;
    let credential = ObjectId::Credential(CredentialId::from_bits(1));
    let of_eu = |fields: &mut Value| fields["credential"]["regions"] = json!(["eu"]);
    us.publish(org, vec![change(credential, of_eu)]).await;
    let gone = async |region: &Region, swept: &Swept| {
        found(region).await.is_empty() && swept.found(region).await.is_empty()
    };
    comes("nothing of it in ap", || gone(&ap, &swept[2])).await;
    let few = newest(&ap).await.objects.len();
    assert!(few >= 3, "the rest stays: {few}");
    // Where it is kept nothing went of earlier versions.
    for (region, swept) in [(&us, &swept[0]), (&eu, &swept[1])] {
        assert!(!found(region).await.is_empty());
        assert!(swept.found(region).await.len() > 3, "{}", region.name());
    }
    // A home that is so no more keeps nothing of it either, nor of before.
    us.replication.hand_over("ap").await.unwrap();
    comes("ap as home", || async { ap.homes.region_of(org) == "ap" }).await;
    comes("nothing of it in us", || gone(&us, &swept[0])).await;
    ap.publish(org, vec![relabelled("of ap")]).await;
    equal(&[&us, &eu, &ap]).await;
    assert_eq!(newest(&eu).await.objects, newest(&ap).await.objects);
    assert!(swept[1].found(&eu).await.len() > 3);
}
