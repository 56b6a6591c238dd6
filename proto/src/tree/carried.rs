//! Rows of what can be changed of a version of which a set is not here, and what not.

use serde_json::{Value, json};

use super::tests::{at, create, credential, delete, given, patch, patch_if, proxy, rule, target};
use super::*;
use crate::id::MeterId;
use crate::org::Role;
use crate::policy::Policy;
use crate::version::Epoch;

fn meter(bits: u128) -> ObjectId {
    ObjectId::Meter(MeterId::from_bits(bits))
}

fn org() -> ObjectId {
    ObjectId::Org(OrgId::from_bits(1))
}

fn applied(parent: &OrgConfig, operations: &[Operation]) -> Result<OrgConfig, ApplyError> {
    let policy = Policy {
        content_by_region: true,
        ..Policy::default()
    };
    let context = Context {
        now: at(1_000),
        policy: &policy,
        role: Role::Owner,
    };
    let draft = apply(parent, operations, &context)?;
    Ok(draft.commit(parent, 0, "salt".into()).unwrap().config)
}

fn sends(hosts: Value, regions: Value) -> Value {
    json!({"kind": "target", "auth_type": "bearer", "name": "c", "hosts": hosts,
           "regions": regions})
}

fn caller() -> Value {
    json!({"kind": "proxy", "auth_type": "api_key", "name": "k"})
}

fn served(target: u128, caller: u128, regions: Value) -> Value {
    json!({"name": "p", "target_id": super::tests::target(target),
           "proxy_credential_ids": [credential(caller)], "regions": regions})
}

fn denies(on: ObjectId) -> Value {
    json!({"parent": on, "spec": {"effect": "deny"}})
}

fn counts(on: ObjectId) -> Value {
    json!({"parent": on, "spec": {"name": "m", "limits": [
        {"limit": 5, "window": "minute"}]}})
}

/// Two targets, three credentials and a proxy for all, one credential of ap; and a proxy of eu, or
/// of eu and us strictly, with its credential and a rule.
fn whole(strict: bool) -> OrgConfig {
    let epoch = Epoch {
        counter: 1,
        region: "us".into(),
    };
    let genesis = OrgConfig::genesis(OrgId::from_bits(1), epoch);
    let regions = match strict {
        true => json!(["eu", "us"]),
        false => json!(["eu"]),
    };
    let mut pinned = served(1, 2, regions.clone());
    pinned["target_credential_id"] = json!(credential(3));
    if strict {
        pinned["residency"] = json!("strict");
    }
    let url = |host: &str| json!({"base_url": format!("https://{host}"), "name": host});
    let both = json!(["h1.example", "h2.example"]);
    let operations = [
        create(target(1), url("h1.example")),
        create(target(7), url("h7.example")),
        create(credential(2), caller()),
        create(credential(8), caller()),
        create(credential(3), sends(json!(["h1.example"]), regions)),
        create(credential(9), sends(both.clone(), json!(["*"]))),
        create(credential(11), sends(both, json!(["ap"]))),
        create(proxy(4), pinned),
        create(rule(20), denies(proxy(4))),
        create(proxy(5), served(1, 2, json!(["*"]))),
    ];
    applied(&genesis, &operations).unwrap()
}

/// The same versions at ap, which has just become home: with everything, and without.
fn at_ap(strict: bool) -> [OrgConfig; 2] {
    let whole = whole(strict);
    let epoch = Epoch {
        counter: 2,
        region: "ap".into(),
    };
    let head = whole.head.reopened(epoch, 2, "salt".into());
    [whole.clone(), whole.kept_in("ap")].map(|config| OrgConfig {
        head: head.clone(),
        ..config
    })
}

/// Checks what becomes of operations where something is not here: refused for it, or done as it
/// would be where everything is here.
fn check(strict: bool, what: &str, operations: Vec<Operation>, refused: bool) {
    let [whole, part] = at_ap(strict);
    let carried = part.carried();
    assert!(!carried.is_empty());
    match applied(&part, &operations) {
        Err(ApplyError::Withheld { regions, why }) => {
            assert!(refused, "{what}: {regions:?}: {why}");
            assert!(
                regions.iter().any(|of| of.contains("eu")),
                "{what}: {regions:?}"
            );
        }
        Err(error) => panic!("{what}: {error}"),
        Ok(made) => {
            assert!(!refused, "{what}");
            assert_eq!(made.carried(), carried, "{what}");
            let same = applied(&whole, &operations).unwrap();
            assert_eq!(made.head.roots, same.head.roots, "{what}");
        }
    }
}

/// What is changed, how, and whether that is refused.
type Row = (&'static str, Vec<Operation>, bool);

fn labels() -> Value {
    json!({"labels": {"l": "new"}})
}

/// By where it is, or would be.
fn placed() -> Vec<Row> {
    let in_eu = |regions| create(proxy(40), served(1, 2, regions));
    let mut named = served(1, 2, json!(["*"]));
    named["target_credential_id"] = json!(credential(3));
    vec![
        ("a target", vec![patch(target(1), labels())], false),
        (
            "a new target",
            vec![create(target(30), json!({"base_url": "https://h"}))],
            false,
        ),
        ("a proxy of all", vec![patch(proxy(5), labels())], false),
        ("a deleted proxy of all", vec![delete(proxy(5))], false),
        (
            "a rule of it",
            vec![create(rule(41), denies(proxy(5)))],
            false,
        ),
        ("a proxy of ap", vec![in_eu(json!(["ap"]))], false),
        ("a pinned proxy", vec![in_eu(json!(["eu"]))], true),
        ("one of two", vec![in_eu(json!(["eu", "ap"]))], true),
        (
            "one that moves",
            vec![patch(proxy(5), json!({"regions": ["eu"]}))],
            true,
        ),
        (
            "a pinned credential",
            vec![create(
                credential(42),
                sends(json!(["h1.example"]), json!(["eu"])),
            )],
            true,
        ),
        ("what is not here", vec![patch(proxy(4), labels())], true),
        ("what is deleted", vec![delete(proxy(4))], true),
        (
            "a credential that is not here",
            vec![delete(credential(3))],
            true,
        ),
        ("a rule that is not here", vec![delete(rule(20))], true),
        (
            "a new rule of it",
            vec![create(rule(43), denies(proxy(4)))],
            true,
        ),
        (
            "one of its credential",
            vec![create(rule(43), denies(credential(3)))],
            true,
        ),
        (
            "who names its credential",
            vec![create(proxy(44), named)],
            true,
        ),
        (
            "what is right beside it",
            vec![patch(target(7), labels()), patch(proxy(4), labels())],
            true,
        ),
    ]
}

/// By what may name it.
fn depended_on() -> Vec<Row> {
    let secret = || SecretChange::Set {
        secret: given(&sends(json!(["h1.example"]), json!(["*"]))).unwrap(),
        old_until: None,
    };
    // Its hosts change with its secret alone.
    let bound = |id, fields| vec![patch_if(id, None, fields, secret())];
    let kept = json!({"hosts": ["h1.example", "h2.example", "h3.example"]});
    let meter = |on| vec![create(meter(45), counts(on))];
    vec![
        (
            "where it goes",
            vec![patch(target(1), json!({"base_url": "https://h2.example"}))],
            true,
        ),
        ("a secret", bound(credential(9), json!({})), false),
        ("more hosts", bound(credential(9), kept), false),
        (
            "fewer hosts",
            bound(credential(9), json!({"hosts": ["h1.example"]})),
            true,
        ),
        (
            "fewer regions",
            vec![patch(credential(9), json!({"regions": ["ap"]}))],
            true,
        ),
        ("what it may send", vec![delete(credential(9))], true),
        (
            "fewer hosts of ap",
            bound(credential(11), json!({"hosts": ["h1.example"]})),
            false,
        ),
        ("what it may not send", vec![delete(credential(11))], false),
        ("a meter of all", meter(org()), true),
        ("a meter of its target", meter(target(1)), true),
        ("a meter of its callers", meter(credential(2)), true),
        ("a meter of what it may send", meter(credential(9)), true),
        ("a meter of ap", meter(credential(11)), false),
        ("a meter of another proxy", meter(proxy(5)), false),
    ]
}

#[test]
fn what_would_be_in_a_set_that_is_not_here_or_might_be_wrong_by_it_is_refused() {
    for (what, operations, refused) in placed().into_iter().chain(depended_on()) {
        check(false, what, operations, refused);
    }
    for (what, operations) in [
        ("another target", vec![delete(target(7))]),
        (
            "where that goes",
            vec![patch(target(7), json!({"base_url": "https://h8.example"}))],
        ),
        ("another caller", vec![delete(credential(8))]),
        (
            "a meter of another target",
            vec![create(meter(45), counts(target(7)))],
        ),
        (
            "a meter of other callers",
            vec![create(meter(45), counts(credential(8)))],
        ),
        ("an alias", vec![patch(proxy(5), json!({"alias": "new"}))]),
    ] {
        // Its stub tells what a proxy of eu has; of one that has none it may be anything.
        check(false, what, operations.clone(), false);
        check(true, what, operations, true);
    }
    for (what, operations, refused) in placed().into_iter().chain(depended_on()) {
        check(true, what, operations, refused);
    }
}

#[test]
fn what_a_stub_names_is_in_use_and_what_is_wrong_stays_wrong() {
    let [_, part] = at_ap(false);
    for id in [target(1), credential(2)] {
        let in_use = applied(&part, &[delete(proxy(5)), delete(id)]).unwrap_err();
        assert!(matches!(&in_use, ApplyError::InUse { users, .. } if *users == [proxy(4)]));
    }
    for id in [target(99), proxy(99)] {
        assert_eq!(
            applied(&part, &[delete(id)]).unwrap_err(),
            ApplyError::NotFound(id)
        );
    }
    let faulty = create(proxy(40), served(99, 2, json!(["eu"])));
    let faulty = applied(&part, &[faulty]).unwrap_err();
    assert!(matches!(faulty, ApplyError::Invalid(_)), "{faulty}");
    let [whole, part] = at_ap(true);
    assert!(whole.away(proxy(4)).is_empty());
    assert_eq!(part.away(proxy(4)), ["eu,us"]);
    assert!(part.away(target(99)).is_empty());
}
