//! Properties that hold for every history of an organisation's configuration: however it came
//! about, equal content is the same tree, and what was packed reads back.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::id::TargetId;
use crate::org::Role;
use crate::policy::Policy;
use crate::retired::{NextRetired, Retired};

/// Objects in play: few, so that steps meet.
const OBJECTS: u128 = 90;

/// One change: an object gets a form of this size, or goes.
#[derive(Clone, Debug)]
struct Step {
    object: u128,
    /// So many labels of 250 characters; none deletes it.
    labels: Option<usize>,
    salt: u8,
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    // Large ones are as likely as small ones, so that leaves are split and joined.
    let labels = prop_oneof![
        1 => Just(None),
        1 => Just(Some(0)),
        3 => (1usize..=16).prop_map(Some),
    ];
    let step = (1..=OBJECTS, labels, any::<u8>()).prop_map(|(object, labels, salt)| Step {
        object,
        labels,
        salt,
    });
    prop::collection::vec(prop::collection::vec(step, 1..40), 1..8)
}

fn id(bits: u128) -> ObjectId {
    ObjectId::Target(TargetId::from_bits(bits))
}

fn body(step: &Step, labels: usize) -> Body {
    let texts: BTreeMap<String, String> = (0..labels)
        .map(|at| {
            (
                format!("l{at}"),
                format!("{:0250}", usize::from(step.salt) + at),
            )
        })
        .collect();
    let fields = json!({"base_url": format!("https://h{}.example", step.object), "name": "t",
                        "labels": texts});
    Body::Target(serde_json::from_value(fields).unwrap())
}

/// The operations of one version. An object is named once.
fn operations(parent: &OrgConfig, steps: &[Step]) -> Vec<Operation> {
    let mut named = BTreeSet::new();
    let once = steps.iter().filter(|step| named.insert(step.object));
    let operation = |step: &Step| {
        let (id, known) = (
            id(step.object),
            parent.objects.contains_key(&id(step.object)),
        );
        match (step.labels, known) {
            (None, false) => None,
            (None, true) => Some(Operation::Delete {
                id,
                precondition: None,
            }),
            (Some(labels), false) => Some(Operation::Create {
                id,
                body: body(step, labels),
                secret: None,
            }),
            (Some(labels), true) => {
                let new = body(step, labels);
                let change: Change = Arc::new(move |_| Ok(new.clone()));
                Some(Operation::Update {
                    id,
                    precondition: None,
                    change,
                    secret: SecretChange::Keep,
                })
            }
        }
    };
    once.filter_map(operation).collect()
}

fn next(parent: &OrgConfig, operations: &[Operation]) -> Packed {
    let context = Context {
        now: jiff::Timestamp::from_second(1_000).unwrap(),
        policy: &Policy::default(),
        role: Role::Owner,
    };
    let draft = apply(parent, operations, &context).unwrap();
    draft.commit(parent, 0, "salt".into()).unwrap()
}

fn genesis() -> OrgConfig {
    let epoch = Epoch {
        counter: 1,
        region: "eu".into(),
    };
    OrgConfig::genesis(OrgId::from_bits(1), epoch)
}

/// Every leaf of a version, from all that was ever packed.
fn read_back(config: &OrgConfig, packed: &BTreeMap<Hash, Vec<u8>>) -> Objects {
    let root = config.head.roots[EVERYWHERE];
    let root = Root::parse(&unpack(root, &packed[&root]).unwrap()).unwrap();
    let mut objects = Objects::new();
    for hash in root.leaves.values() {
        let content = unpack(*hash, &packed[hash]).unwrap();
        assert!(content.len() <= LEAF_BYTES_MAX);
        for line in content
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
        {
            let object = parse_line(line).unwrap();
            let twice = objects.insert(object.id, Arc::new(object));
            assert!(twice.is_none(), "an object stands in one leaf only");
        }
    }
    objects
}

fn bodies(objects: &Objects) -> Vec<(&ObjectId, &Body)> {
    objects
        .iter()
        .map(|(id, object)| (id, &object.body))
        .collect()
}

fn generation() -> impl Strategy<Value = Generation> {
    (1u64..3, prop::sample::select(vec!["eu", "us"]), 1u64..6).prop_map(|(counter, region, n)| {
        let epoch = Epoch {
            counter,
            region: region.into(),
        };
        Generation { epoch, n }
    })
}

fn fact() -> impl Strategy<Value = Retired> {
    let from = (0i64..5).prop_map(|second| jiff::Timestamp::from_second(second).unwrap());
    let next = prop::option::of((generation(), from));
    (generation(), next).prop_map(|(lowest, next)| {
        let next = next.filter(|(n, _)| *n > lowest);
        let next = next.map(|(lowest, from)| NextRetired { lowest, from });
        Retired { lowest, next }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equal_content_is_one_tree_whatever_its_history(history in steps()) {
        let mut config = genesis();
        let mut written: BTreeMap<Hash, Vec<u8>> = BTreeMap::new();
        let mut versions = vec![];
        for steps in &history {
            let operations = operations(&config, steps);
            let packed = next(&config, &operations);
            for leaf in &packed.leaves {
                written.insert(leaf.hash, leaf.packed.clone());
            }
            // Built of the objects alone it is the same tree.
            let (root, leaves) = packed.config.leaves().unwrap();
            prop_assert_eq!(&root, &packed.config.head.roots);
            let made: BTreeSet<Hash> = leaves.iter().map(|leaf| leaf.hash).collect();
            let reached: BTreeSet<Hash> = packed.config.reaches().collect();
            prop_assert_eq!(made, reached);
            // What was written reads back.
            let objects = read_back(&packed.config, &written);
            prop_assert_eq!(&objects, &packed.config.objects);
            // Whoever has the version before gets here by the delta, or needs leaves.
            let by_delta = apply_delta(&config, &packed.config.head, &packed.delta);
            // Before the first there is none that anybody could have.
            if !versions.is_empty() {
                prop_assert_eq!(by_delta.is_some(), packed.delta.changed.is_some());
            }
            if let Some(by_delta) = by_delta {
                prop_assert_eq!(&by_delta.objects, &packed.config.objects);
            }
            versions.push(config);
            config = packed.config;
        }
        // Between any two versions the difference leads there and back.
        for old in &versions {
            let back = restore(&config.objects, &old.objects);
            let restored = next(&config, &back).config;
            prop_assert_eq!(bodies(&restored.objects), bodies(&old.objects));
            prop_assert!(diff(&restored.objects, &old.objects).is_empty());
            let differences = diff(&config.objects, &old.objects);
            prop_assert_eq!(differences.is_empty(), back.is_empty());
        }
    }

    #[test]
    fn the_objects_below_the_places_of_all_leaves_are_all_objects(history in steps()) {
        let mut config = genesis();
        let mut root = Root::default();
        for steps in &history {
            let packed = next(&config, &operations(&config, steps));
            let name = packed.config.head.roots[EVERYWHERE];
            if let Some(leaf) = packed.leaves.iter().find(|leaf| leaf.hash == name) {
                root = Root::parse(&unpack(name, &leaf.packed).unwrap()).unwrap();
            }
            config = packed.config;
        }
        let below = root.leaves.keys().flat_map(|place| config.below(EVERYWHERE, place));
        let mut below: Vec<ObjectId> = below.map(|object| object.id).collect();
        below.sort_unstable();
        let all: Vec<ObjectId> = config.objects.keys().copied().collect();
        prop_assert_eq!(below, all);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_content_or_refused(bytes: Vec<u8>, hash: Vec<u8>) {
        let name = Hash::of(&[b"x", &hash[..]].concat());
        prop_assert!(unpack(name, &bytes).is_err());
        let _ = Root::parse(&bytes);
        let _ = parse_line(&bytes);
        let _ = serde_json::from_slice::<Delta>(&bytes);
        prop_assert!(Head::parse(&bytes).is_err());
    }

    #[test]
    fn a_head_with_a_changed_byte_is_refused(at: prop::sample::Index, byte: u8) {
        let head = next(&genesis(), &[]).config.head;
        let mut json = head.to_json();
        let at = at.index(json.len());
        json[at] = byte;
        // Such as a space for a space.
        if let Ok(read) = Head::parse(&json) {
            prop_assert_eq!(read, head);
        }
    }
}

proptest! {
    // Cheap, and what goes wrong takes a certain three of them.
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn facts_only_rise_in_any_order(a in fact(), b in fact(), c in fact()) {
        let merged = a.clone().merge(b.clone());
        prop_assert_eq!(&merged, &b.clone().merge(a.clone()));
        prop_assert_eq!(&merged.clone().merge(a.clone()), &merged);
        prop_assert_eq!(&a.clone().merge(a.clone()), &a);
        let all = merged.merge(c.clone());
        prop_assert_eq!(&all, &a.clone().merge(b.clone().merge(c.clone())));
        for (generation, second) in probes() {
            let now = jiff::Timestamp::from_second(second).unwrap();
            for fact in [&a, &b, &c] {
                prop_assert!(
                    !fact.covers(&generation, now) || all.covers(&generation, now),
                    "{:?} at {} came back: {:?} in {:?}", generation, second, fact, all
                );
            }
        }
    }
}

/// Every generation that [`generation`] makes and one past each end, at every instant of [`fact`]
/// and beyond.
fn probes() -> impl Iterator<Item = (Generation, i64)> {
    let epochs = (1u64..3).flat_map(|counter| ["eu", "us"].map(|region| (counter, region)));
    let generations = epochs.flat_map(|(counter, region)| {
        (0u64..7).map(move |n| {
            let region = region.into();
            let epoch = Epoch { counter, region };
            Generation { epoch, n }
        })
    });
    generations.flat_map(|generation| (-1i64..6).map(move |second| (generation.clone(), second)))
}
