//! Properties of the cut of a version by region.

use proptest::prelude::*;
use serde_json::json;

use super::sets::{Sets, cut, roots, union};
use super::*;
use crate::id::RuleId;

const REGIONS: [&str; 3] = ["ap", "eu", "us"];

/// One change: an object gets a form, or goes.
#[derive(Clone, Debug)]
struct Step {
    object: u128,
    kind: u8,
    /// Which regions it is pinned to, as bits; without any it is everywhere.
    regions: u8,
    /// Whether a proxy of some regions is unknown to others.
    strict: bool,
    /// None deletes it.
    text: Option<u8>,
}

fn history() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let text = prop_oneof![1 => Just(None), 4 => any::<u8>().prop_map(Some)];
    let step = (1u128..12, 0u8..3, 0u8..8, any::<bool>(), text);
    let step = step.prop_map(|(object, kind, regions, strict, text)| Step {
        object,
        kind,
        regions,
        strict,
        text,
    });
    prop::collection::vec(prop::collection::vec(step, 1..10), 1..8)
}

fn listed(bits: u8) -> Vec<&'static str> {
    let listed = REGIONS.iter().enumerate();
    let listed = listed.filter(|(at, _)| bits & (1 << at) != 0);
    match bits {
        0 => vec!["*"],
        _ => listed.map(|(_, region)| *region).collect(),
    }
}

/// Large enough that some sets have several leaves.
fn text(salt: u8) -> String {
    format!("{salt:0250}").repeat(30)
}

fn object(step: &Step) -> (ObjectId, Option<Object>) {
    let proxy = ProxyId::from_bits(step.object);
    let id = match step.kind {
        0 => ObjectId::Proxy(proxy),
        1 => ObjectId::Credential(CredentialId::from_bits(step.object)),
        // One more hangs on each proxy.
        _ => ObjectId::Rule(RuleId::from_bits(step.object)),
    };
    let regions = listed(step.regions);
    let residency = match step.strict && step.regions != 0 {
        true => "strict",
        false => "standard",
    };
    let body = |salt| match step.kind {
        0 => json!({"proxy": {"name": format!("n{salt}"), "target_id": TargetId::from_bits(1),
                "proxy_credential_ids": [CredentialId::from_bits(99)],
                "regions": regions, "residency": residency, "labels": {"l": text(salt)}}}),
        1 => json!({"credential": {"credential": {"name": text(salt), "kind": "target",
                "auth_type": "bearer", "regions": regions}}}),
        _ => json!({"rule": {"parent": proxy, "spec": {"effect": "deny", "message": text(salt)}}}),
    };
    let object = step.text.map(|salt| Object {
        id,
        version: 1,
        created_at: jiff::Timestamp::UNIX_EPOCH,
        updated_at: jiff::Timestamp::UNIX_EPOCH,
        body: serde_json::from_value(body(salt)).unwrap(),
    });
    (id, object)
}

fn genesis() -> OrgConfig {
    let epoch = Epoch {
        counter: 1,
        region: "eu".into(),
    };
    OrgConfig::genesis(OrgId::from_bits(1), epoch)
}

fn next(parent: &OrgConfig, steps: &[Step], by_region: bool) -> Packed {
    let draft = draft(parent, steps, by_region);
    draft.commit(parent, 0, "salt".into()).unwrap()
}

fn draft(parent: &OrgConfig, steps: &[Step], by_region: bool) -> Draft {
    let mut draft = Draft {
        objects: parent.objects.clone(),
        by_region,
        ..Draft::default()
    };
    for step in steps {
        let (id, object) = object(step);
        match object {
            Some(object) => drop(draft.objects.insert(id, Arc::new(object))),
            None => drop(draft.objects.remove(&id)),
        }
        draft.changed.push(id);
    }
    draft
}

/// What a region that is not home keeps of a version.
fn part(config: &OrgConfig, region: &str) -> OrgConfig {
    let mut sets: Sets = config.sets.clone();
    sets.retain(|name, _| is_kept_in(name, region));
    OrgConfig {
        objects: union(&sets),
        sets,
        ..config.clone()
    }
}

/// Whether a form is all there is of an object.
fn is_stub(object: &Object) -> bool {
    matches!(&object.body, Body::Proxy(proxy) if proxy.name.is_empty())
}

fn deciding<'a>(config: &'a OrgConfig, object: &'a Object) -> &'a Body {
    let scope = object.body.parent().and_then(|id| config.objects.get(&id));
    scope.map_or(&object.body, |scope| &scope.body)
}

fn is_strict(config: &OrgConfig, object: &Object) -> bool {
    matches!(deciding(config, object), Body::Proxy(proxy) if !proxy.residency.is_standard())
}

fn regions_of<'a>(config: &'a OrgConfig, object: &'a Object) -> &'a [String] {
    match deciding(config, object) {
        Body::Proxy(proxy) => &proxy.regions,
        Body::Credential(stored) => &stored.credential.regions,
        _ => &[],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_pinned_is_in_the_sets_of_its_regions_alone(history in history()) {
        let mut config = genesis();
        for steps in &history {
            config = next(&config, steps, true).config;
            prop_assert_eq!(&union(&config.sets), &config.objects);
            for (id, object) in &config.objects {
                let regions = regions_of(&config, object);
                let everywhere = regions.iter().all(|region| region == EVERYWHERE);
                let strict = is_strict(&config, object);
                for region in REGIONS {
                    let kept: Vec<&Arc<Object>> = config.sets.iter()
                        .filter(|(set, _)| *set != EVERYWHERE && is_kept_in(set, region))
                        .filter_map(|(_, set)| set.objects.get(id))
                        .collect();
                    let is_for = regions.iter().any(|listed| listed == region);
                    prop_assert_eq!(kept.len(), usize::from(!everywhere && is_for));
                    prop_assert!(kept.iter().all(|form| *form == object));
                }
                match config.sets[EVERYWHERE].objects.get(id) {
                    Some(form) if everywhere => prop_assert_eq!(form, object),
                    Some(form) => prop_assert!(is_stub(form) && !strict),
                    None => prop_assert!(
                        !everywhere && (strict || !matches!(object.body, Body::Proxy(_)))
                    ),
                }
                // Home may be in its regions alone.
                for region in REGIONS.iter().filter(|_| strict) {
                    let is_for = regions.iter().any(|listed| listed == region);
                    prop_assert!(is_for || config.head.stays_in(region).is_some());
                }
            }
        }
    }

    #[test]
    fn the_cut_is_a_function_of_the_content(history in history()) {
        let mut config = genesis();
        for steps in &history {
            config = next(&config, steps, true).config;
        }
        let all: Vec<ObjectId> = config.objects.keys().copied().collect();
        let (sets, _) = cut(&genesis(), &config.objects, &all, true).unwrap();
        prop_assert_eq!(roots(&sets), config.head.roots.clone());
        let (made, leaves) = config.leaves().unwrap();
        prop_assert_eq!(&made, &config.head.roots);
        let made: std::collections::BTreeSet<Hash> = leaves.iter().map(|leaf| leaf.hash).collect();
        prop_assert_eq!(made, config.reaches().collect());
    }

    #[test]
    fn a_region_gets_on_by_what_changed_for_it_and_hears_of_nothing_else(history in history()) {
        let mut config = genesis();
        for steps in &history {
            let new = next(&config, steps, true).config;
            for region in REGIONS.into_iter().filter(|_| config.head.n > 0) {
                let (old, new) = (part(&config, region), part(&new, region));
                let delta = Delta::between(&old, &new);
                for value in delta.changed.iter().flatten() {
                    let object: Object = serde_json::from_value(value.clone()).unwrap();
                    let regions = regions_of(&new, &object);
                    let ours = regions.iter().any(|of| of == EVERYWHERE || of == region);
                    prop_assert!(ours || regions.is_empty() || is_stub(&object));
                }
                let by_delta = apply_delta(&old, &new.head, &delta);
                // A set that is pinned to for the first time is read.
                let is_known = |name| old.head.roots.contains_key(name) || is_kept_in(name, region);
                let known = new.head.roots.keys().map(String::as_str).all(is_known);
                let stays = old.head.roots.len() < 2 || new.head.roots.len() > 1;
                if known && stays && delta.changed.is_some() {
                    prop_assert!(by_delta.is_some());
                }
                if let Some(by_delta) = by_delta {
                    prop_assert_eq!(&by_delta.objects, &new.objects);
                    // A set that is the same as one of its own it has as well.
                    let made = roots(&by_delta.sets);
                    prop_assert!(roots(&new.sets).iter().all(|(name, root)| made[name] == *root));
                }
            }
            config = new;
        }
    }

    #[test]
    fn an_organisation_without_pinned_objects_is_the_same_tree_cut_or_not(history in history()) {
        let (mut cut, mut whole) = (genesis(), genesis());
        for steps in &history {
            let steps: Vec<Step> =
                steps.iter().map(|step| Step { regions: 0, ..step.clone() }).collect();
            let (one, other) = (next(&cut, &steps, true), next(&whole, &steps, false));
            prop_assert_eq!(&one.config.head, &other.config.head);
            prop_assert_eq!(&one.leaves, &other.leaves);
            prop_assert_eq!(&one.delta, &other.delta);
            (cut, whole) = (one.config, other.config);
        }
    }

    #[test]
    fn a_version_that_was_whole_is_cut_by_the_next_one(history in history(), last in history()) {
        let mut config = genesis();
        for steps in &history {
            config = next(&config, steps, false).config;
        }
        prop_assert_eq!(config.head.roots.len(), 1);
        let config = next(&config, &last[0], true).config;
        let all: Vec<ObjectId> = config.objects.keys().copied().collect();
        let (sets, _) = cut(&genesis(), &config.objects, &all, true).unwrap();
        prop_assert_eq!(roots(&sets), config.head.roots);
    }

    #[test]
    fn what_is_not_here_is_carried_on_as_it_is(history in history(), last in history()) {
        let mut config = genesis();
        for steps in &history {
            config = next(&config, steps, true).config;
        }
        let part = part(&config, "us");
        // Of what is unknown here nothing can be said; who applies operations refuses it.
        let known = |id: ObjectId| part.object(id).is_some() || config.object(id).is_none();
        let steps = last[0].iter().filter(|step| {
            let on = ObjectId::Proxy(ProxyId::from_bits(step.object));
            known(object(step).0) && known(on)
        });
        let steps: Vec<Step> = steps.cloned().collect();
        let whole = next(&config, &steps, true).config.head;
        match draft(&part, &steps, true).commit(&part, 0, "salt".into()) {
            Ok(made) => prop_assert_eq!(made.config.head.roots, whole.roots),
            Err(error) => prop_assert!(
                matches!(&error, TreeError::Withheld(sets) if !sets.is_empty()), "{}", error
            ),
        }
    }
}

#[test]
fn what_is_left_out_of_a_region_is_told_from_what_is_deleted_where_it_can_be() {
    let step = |object, kind, regions, text| Step {
        object,
        kind,
        regions,
        strict: false,
        text,
    };
    // Bits: ap, eu, us. A proxy in all, one and a credential in eu and us.
    let first = [
        step(1, 0, 0, Some(1)),
        step(2, 0, 6, Some(1)),
        step(3, 1, 6, Some(1)),
    ];
    let before = next(&genesis(), &first, true).config;
    let hidden = Step {
        strict: true,
        ..step(2, 0, 4, Some(1))
    };
    for (what, steps, expected) in [
        ("changed", vec![step(2, 0, 6, Some(2))], [false; 3]),
        (
            "narrowed",
            vec![step(2, 0, 4, Some(1))],
            [false, true, false],
        ),
        ("moved", vec![step(3, 1, 1, Some(1))], [false, true, true]),
        ("pinned", vec![step(1, 0, 2, Some(1))], [true, false, true]),
        ("widened", vec![step(2, 0, 0, Some(1))], [false; 3]),
        ("new elsewhere", vec![step(9, 0, 1, Some(1))], [false; 3]),
        ("deleted proxy", vec![step(2, 0, 0, None)], [false; 3]),
        ("proxy that is hidden", vec![hidden], [false, true, false]),
    ] {
        let after = next(&before, &steps, true).config;
        for (region, expected) in REGIONS.into_iter().zip(expected) {
            let whole = narrows(&before, &after, region);
            assert_eq!(whole, expected, "{what} for {region}");
            let parts = (part(&before, region), part(&after, region));
            assert_eq!(
                narrows(&parts.0, &parts.1, region),
                expected,
                "{what} in {region}"
            );
        }
    }
    // Versions that were whole have everything.
    let whole = next(&genesis(), &first, false).config;
    let cut = next(&whole, &[step(9, 0, 0, Some(1))], true).config;
    let narrowed = REGIONS.map(|region| narrows(&whole, &cut, region));
    assert_eq!(narrowed, [true, false, false]);
}
