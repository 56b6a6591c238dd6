//! Rows of what operations do to a configuration, and of how versions are packed and read.

use serde_json::{Value, json};

use super::*;
use crate::credential::{Credential, SecretInput};
use crate::id::{FilterId, RuleId};
use crate::object::Attached;
use crate::org::{Org, Role};
use crate::policy::Policy;
use crate::problem::Problem;
use crate::rule::CHANGE_COMPILED_BYTES_MAX;
use crate::seal::{DigestKey, NewSecret};
use crate::version::Epoch;

const TARGET: u128 = 1;
const CALLER: u128 = 2;
const SECRET: u128 = 3;
const PROXY: u128 = 4;
const OPEN: u128 = 5;

pub(super) fn target(bits: u128) -> ObjectId {
    ObjectId::Target(TargetId::from_bits(bits))
}
pub(super) fn credential(bits: u128) -> ObjectId {
    ObjectId::Credential(CredentialId::from_bits(bits))
}
pub(super) fn proxy(bits: u128) -> ObjectId {
    ObjectId::Proxy(ProxyId::from_bits(bits))
}
fn filter(bits: u128) -> ObjectId {
    ObjectId::Filter(FilterId::from_bits(bits))
}
pub(super) fn rule(bits: u128) -> ObjectId {
    ObjectId::Rule(RuleId::from_bits(bits))
}

/// The body of an object from the JSON of its writable fields.
fn body(id: ObjectId, fields: Value) -> Body {
    let parse = |fields| serde_json::from_value(fields).unwrap();
    match id {
        ObjectId::Org(_) => Body::Org(serde_json::from_value::<Org>(fields).unwrap()),
        ObjectId::Target(_) => Body::Target(serde_json::from_value(fields).unwrap()),
        ObjectId::Credential(_) => Body::Credential(StoredCredential {
            credential: parse(fields),
            secret: None,
            previous: vec![],
        }),
        ObjectId::Proxy(_) => Body::Proxy(serde_json::from_value(fields).unwrap()),
        ObjectId::Rule(_) => Body::Rule(attached(&fields)),
        ObjectId::Filter(_) => Body::Filter(attached(&fields)),
        ObjectId::Meter(_) => Body::Meter(attached(&fields)),
        ObjectId::Token(_) => panic!("no token here"),
    }
}

fn attached<T: serde::de::DeserializeOwned>(fields: &Value) -> Attached<T> {
    let parent = serde_json::from_value(fields["parent"].clone()).unwrap();
    let spec = serde_json::from_value(fields["spec"].clone()).unwrap();
    Attached { parent, spec }
}

pub(super) fn given(fields: &Value) -> Option<Arc<NewSecret>> {
    let credential: Credential = serde_json::from_value(fields.clone()).ok()?;
    let secret = Some("sk_live_0123456789abcdef".to_owned());
    let mut input = SecretInput::default();
    match fields["auth_type"].as_str()? {
        "none" => return None,
        "api_key" => input.key = secret,
        _ => input.token = secret,
    }
    let key = DigestKey::from_bytes([7; 32]);
    Some(Arc::new(NewSecret::prepare(&key, &credential, input)))
}

pub(super) fn create(id: ObjectId, fields: Value) -> Operation {
    let secret = given(&fields).filter(|_| matches!(id, ObjectId::Credential(_)));
    Operation::Create {
        id,
        body: body(id, fields),
        secret,
    }
}

/// A merge of top-level fields into an object.
pub(super) fn patch(id: ObjectId, fields: Value) -> Operation {
    patch_if(id, None, fields, SecretChange::Keep)
}

pub(super) fn patch_if(
    id: ObjectId,
    precondition: Option<u64>,
    fields: Value,
    secret: SecretChange,
) -> Operation {
    let change: Change = Arc::new(move |old: &Body| {
        let mut value = match old {
            Body::Org(org) => serde_json::to_value(org),
            Body::Target(target) => serde_json::to_value(target),
            Body::Credential(stored) => serde_json::to_value(&stored.credential),
            Body::Proxy(proxy) => serde_json::to_value(proxy),
            Body::Rule(rule) => serde_json::to_value(rule),
            Body::Filter(filter) => serde_json::to_value(filter),
            Body::Meter(meter) => serde_json::to_value(meter),
            Body::Token(_) => panic!("no token here"),
        }
        .unwrap();
        for (key, new) in fields.as_object().unwrap() {
            value[key] = new.clone();
        }
        Ok(body(id, value))
    });
    Operation::Update {
        id,
        precondition,
        change,
        secret,
    }
}

pub(super) fn delete(id: ObjectId) -> Operation {
    Operation::Delete {
        id,
        precondition: None,
    }
}

fn epoch() -> Epoch {
    Epoch {
        counter: 1,
        region: "eu".into(),
    }
}

pub(super) fn at(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(second).unwrap()
}

fn try_apply(
    parent: &OrgConfig,
    operations: &[Operation],
    role: Role,
) -> Result<Draft, ApplyError> {
    let policy = Policy {
        tls_exceptions: vec!["api.example.com".parse().unwrap()],
        ..Policy::default()
    };
    let now = at(1_000 + parent.head.n.cast_signed());
    apply(
        parent,
        operations,
        &Context {
            now,
            policy: &policy,
            role,
        },
    )
}

fn next(parent: &OrgConfig, operations: &[Operation]) -> Packed {
    let draft = try_apply(parent, operations, Role::Admin).unwrap();
    draft.commit(parent, 0, "salt".into()).unwrap()
}

fn genesis() -> OrgConfig {
    OrgConfig::genesis(OrgId::from_bits(9), epoch())
}

fn caller_fields() -> Value {
    json!({"kind": "proxy", "auth_type": "api_key"})
}

fn secret_fields() -> Value {
    json!({"kind": "target", "auth_type": "bearer", "hosts": ["api.example.com"]})
}

fn proxy_fields() -> Value {
    json!({
        "alias": "billing",
        "proxy_credential_ids": [CredentialId::from_bits(CALLER)],
        "target_id": TargetId::from_bits(TARGET),
        "target_credential_id": CredentialId::from_bits(SECRET),
    })
}

/// The quick path: target, both credentials, proxy.
fn quick() -> Vec<Operation> {
    vec![
        create(proxy(PROXY), proxy_fields()),
        create(
            target(TARGET),
            json!({"base_url": "https://api.example.com/v1"}),
        ),
        create(credential(CALLER), caller_fields()),
        create(credential(SECRET), secret_fields()),
        create(
            credential(OPEN),
            json!({"kind": "proxy", "auth_type": "none"}),
        ),
    ]
}

fn base() -> OrgConfig {
    next(&genesis(), &quick()).config
}

/// Pointers and codes of what is wrong.
fn refused(parent: &OrgConfig, operations: &[Operation]) -> Vec<String> {
    let told = |problems: Vec<Problem>| -> Vec<String> {
        problems
            .iter()
            .map(|p| format!("{} {}", p.pointer, p.code))
            .collect()
    };
    match try_apply(parent, operations, Role::Admin) {
        Err(ApplyError::Invalid(problems)) => told(problems),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_broken_reference_is_refused_with_its_pointer() {
    let other = TargetId::from_bits(77);
    let nobody = CredentialId::from_bits(88);
    let (caller, secret) = (
        CredentialId::from_bits(CALLER),
        CredentialId::from_bits(SECRET),
    );
    let open = CredentialId::from_bits(OPEN);
    for (fields, expected) in [
        (
            json!({"target_id": other}),
            vec!["/target_id unknown-target"],
        ),
        (
            json!({"proxy_credential_ids": [caller, nobody]}),
            vec!["/proxy_credential_ids/1 unknown-credential"],
        ),
        (
            json!({"proxy_credential_ids": [secret]}),
            vec!["/proxy_credential_ids/0 credential-kind"],
        ),
        (
            json!({"target_credential_id": nobody}),
            vec!["/target_credential_id unknown-credential"],
        ),
        (
            json!({"target_credential_id": caller}),
            vec!["/target_credential_id credential-kind"],
        ),
        (
            json!({"proxy_credential_ids": [open]}),
            vec!["/acknowledge_open open-proxy"],
        ),
        (
            json!({"forward_caller_headers": ["X-A", "Authorization"]}),
            vec!["/forward_caller_headers/1 header-injected"],
        ),
        (
            json!({"target_id": other, "proxy_credential_ids": [nobody]}),
            vec![
                "/proxy_credential_ids/0 unknown-credential",
                "/target_id unknown-target",
            ],
        ),
    ] {
        assert_eq!(refused(&base(), &[patch(proxy(PROXY), fields)]), expected);
    }
    let acknowledged = json!({"proxy_credential_ids": [open], "acknowledge_open": true});
    next(&base(), &[patch(proxy(PROXY), acknowledged)]);
}

#[test]
fn a_secret_stays_within_its_hosts() {
    let elsewhere = json!({"base_url": "https://m.example"});
    for (operations, expected) in [
        (
            vec![patch(target(TARGET), elsewhere.clone())],
            vec!["/base_url credential-host"],
        ),
        (
            vec![patch(
                target(TARGET),
                json!({"base_url": "https://api.example.com:8443"}),
            )],
            vec!["/base_url credential-host"],
        ),
        (
            vec![
                create(target(77), elsewhere.clone()),
                patch(proxy(PROXY), json!({"target_id": TargetId::from_bits(77)})),
            ],
            vec![
                "/1/target_id credential-host",
                "/1/target_credential_id credential-host",
            ],
        ),
        (
            vec![patch(credential(SECRET), json!({"hosts": ["m.example"]}))],
            vec!["/hosts secret-required", "/hosts credential-host"],
        ),
        (
            vec![patch(
                credential(SECRET),
                json!({"hosts": ["api.example.com", "m.example"]}),
            )],
            vec!["/hosts secret-required"],
        ),
    ] {
        assert_eq!(refused(&base(), &operations), expected);
    }
    let error = try_apply(&base(), &[patch(target(TARGET), elsewhere)], Role::Admin).unwrap_err();
    let ApplyError::Invalid(problems) = error else {
        panic!("{error}")
    };
    for name in [proxy(PROXY), credential(SECRET)] {
        assert!(
            problems[0].detail.contains(&name.to_string()),
            "{problems:?}"
        );
    }
}

#[test]
fn a_pinned_proxy_has_an_endpoint_in_its_regions() {
    let proxy_in = |regions: Value| patch(proxy(PROXY), json!({ "regions": regions }));
    let endpoint_in = |region: Value| {
        let endpoint = json!({"region": region, "base_url": "https://api.example.com/v1"});
        patch(target(TARGET), json!({"endpoints": [endpoint]}))
    };
    let refuses = |base: &OrgConfig, operation, expected: &[&str]| {
        assert_eq!(refused(base, &[operation]), expected);
    };
    let of_us = next(&base(), &[endpoint_in(json!("us"))]).config;
    let at_proxy = ["/regions endpoint-region", "/target_id endpoint-region"];
    refuses(&of_us, proxy_in(json!(["eu", "ap"])), &at_proxy);
    next(&of_us, &[proxy_in(json!(["eu", "us"]))]);
    let pinned = next(&base(), &[proxy_in(json!(["eu"]))]).config;
    let at_target = ["/endpoints endpoint-region"];
    refuses(&pinned, endpoint_in(json!("us")), &at_target);
    for near in [json!("eu"), Value::Null] {
        next(&pinned, &[endpoint_in(near)]);
    }
    // One that is stored so already hinders no other writes.
    let mut stored = pinned;
    let lost = of_us.objects.get(&target(TARGET)).unwrap();
    stored.objects.insert(target(TARGET), lost.clone());
    let named = json!({"name": "another"});
    refuses(&stored, patch(proxy(PROXY), named.clone()), &at_proxy);
    refuses(&stored, patch(target(TARGET), named.clone()), &at_target);
    for other in [CALLER, SECRET] {
        next(&stored, &[patch(credential(other), named.clone())]);
    }
    next(&stored, &[proxy_in(json!(["us"]))]);
}

#[test]
fn a_secret_leaves_regions_and_stays_where_one_of_them_is_left() {
    let in_regions = |regions: Value| patch(credential(SECRET), json!({ "regions": regions }));
    let proxy_in = |regions: Value| patch(proxy(PROXY), json!({ "regions": regions }));
    let both = json!(["eu", "us"]);
    assert_eq!(
        refused(&base(), &[in_regions(both.clone())]),
        ["/regions credential-region"]
    );
    let kept = next(
        &base(),
        &[proxy_in(json!(["eu"])), in_regions(both.clone())],
    )
    .config;
    let outside = refused(&kept, &[proxy_in(json!(["eu", "ap"]))]);
    assert_eq!(
        outside,
        [
            "/regions credential-region",
            "/target_credential_id credential-region"
        ]
    );
    // Nodes that hold it seal it for regions that are added; none could, where none is left.
    for (wider, narrowed) in [
        (json!(["*"]), 0),
        (json!(["eu", "us", "ap"]), 0),
        (json!(["eu", "ap"]), 1),
    ] {
        let draft = try_apply(&kept, &[in_regions(wider.clone())], Role::Owner).unwrap();
        assert_eq!(draft.narrowed.len(), narrowed, "{wider}");
        assert!(draft.secrets.is_empty() && draft.unsealed.is_empty());
    }
    let elsewhere = [proxy_in(json!(["ap"])), in_regions(json!(["ap"]))];
    assert_eq!(refused(&kept, &elsewhere), ["/1/regions secret-required"]);
    let draft = try_apply(&kept, &[in_regions(json!(["eu"]))], Role::Owner).unwrap();
    assert_eq!(
        draft.narrowed.len(),
        1,
        "what is sealed for us is to be destroyed"
    );
    assert!(draft.secrets.is_empty() && draft.unsealed.is_empty());
    let same = try_apply(&kept, &[in_regions(both)], Role::Owner).unwrap();
    assert!(same.narrowed.is_empty());

    // What is restored goes back to fewer regions or more, and to others only without its secret.
    let restore = |from: &OrgConfig, id: ObjectId| Operation::Restore {
        id,
        body: from.objects[&id].body.clone(),
    };
    let id = CredentialId::from_bits(SECRET);
    let fewer = [
        restore(&kept, proxy(PROXY)),
        restore(&kept, credential(SECRET)),
    ];
    let draft = try_apply(&base(), &fewer, Role::Owner).unwrap();
    assert_eq!(draft.narrowed.len(), 1);
    let base = base();
    let alone = try_apply(&kept, &[restore(&base, credential(SECRET))], Role::Owner).unwrap();
    let stored = alone.credential(id).unwrap();
    assert!(stored.secret.is_some() && stored.credential.regions == ["*"]);
    let set = SecretChange::Set {
        secret: given(&secret_fields()).unwrap(),
        old_until: None,
    };
    let in_ap = patch_if(credential(SECRET), None, json!({"regions": ["ap"]}), set);
    let far = next(&kept, &[proxy_in(json!(["ap"])), in_ap]).config;
    let other = [
        restore(&kept, proxy(PROXY)),
        restore(&kept, credential(SECRET)),
    ];
    let draft = try_apply(&far, &other, Role::Owner).unwrap();
    let stored = draft.credential(id).unwrap();
    assert!(stored.secret.is_none() && stored.credential.regions == ["eu", "us"]);
}

#[test]
fn hosts_change_only_together_with_the_secret() {
    let set = || SecretChange::Set {
        secret: given(&secret_fields()).unwrap(),
        old_until: None,
    };
    let more = json!({"hosts": ["m.example", "api.example.com"]});
    let draft = try_apply(
        &base(),
        &[patch_if(credential(SECRET), None, more, set())],
        Role::Admin,
    )
    .unwrap();
    let id = CredentialId::from_bits(SECRET);
    assert!(
        draft.secrets.contains_key(&id),
        "the new secret is to be sealed"
    );
    assert_eq!(draft.unsealed.len(), 1, "the old seal is to be destroyed");
    assert!(draft.retirements.contains_key(&id));
    // The same hosts in another spelling are the same hosts.
    let same = json!({"hosts": ["https://API.example.com:443"]});
    next(&base(), &[patch(credential(SECRET), same)]);
    let without = Operation::Create {
        id: credential(50),
        body: body(credential(50), secret_fields()),
        secret: None,
    };
    assert_eq!(refused(&base(), &[without]), ["/secret required"]);
}

#[test]
fn some_fields_never_change() {
    let org = ObjectId::Org(OrgId::from_bits(60));
    let parent = next(&base(), &[create(org, json!({"slug": "acme"}))]).config;
    let wrong_kind: Change = Arc::new(|_| Ok(body(target(1), json!({"base_url": "https://a.b"}))));
    for (operation, expected) in [
        (
            patch(credential(CALLER), json!({"auth_type": "bearer"})),
            "/auth_type immutable",
        ),
        (
            patch(credential(SECRET), json!({"kind": "proxy"})),
            "/kind immutable",
        ),
        (patch(org, json!({"slug": "other"})), "/slug immutable"),
        (
            Operation::Update {
                id: proxy(PROXY),
                precondition: None,
                change: wrong_kind,
                secret: SecretChange::Keep,
            },
            " immutable",
        ),
    ] {
        assert!(
            refused(&parent, &[operation]).contains(&expected.to_owned()),
            "{expected}"
        );
    }
}

#[test]
fn the_operators_policy_and_the_objects_own_rules_count() {
    let plain = json!({"base_url": "http://api.example.com", "allow_http": true});
    assert_eq!(
        refused(&genesis(), &[create(target(1), plain)]),
        ["/base_url policy"]
    );
    let insecure = json!({"base_url": "https://a.example", "tls": {"insecure": true}});
    assert_eq!(
        refused(&genesis(), &[create(target(1), insecure)]),
        ["/tls/insecure policy"]
    );
    let both = [
        create(target(1), json!({"base_url": "nonsense", "name": "n"})),
        create(target(2), json!({"base_url": "https://u:p@a.example"})),
    ];
    assert_eq!(
        refused(&genesis(), &both),
        ["/0/base_url base-url", "/1/base_url base-url"],
        "all problems at once, each with its operation, none twice"
    );
}

/// Nobody wrote the operations of a rollback: what stands against it is told by the objects.
#[test]
fn what_stands_against_a_rollback_names_the_objects() {
    let lenient = Policy {
        allow_http: true,
        ..Policy::default()
    };
    let plain = |bits: u128| {
        let name = format!("old {bits}");
        let body = json!({"base_url": "http://a.example", "allow_http": true, "name": name});
        create(target(bits), body)
    };
    let context = Context {
        now: at(1_000),
        policy: &lenient,
        role: Role::Admin,
    };
    let start = genesis();
    for count in [1, 2] {
        let made: Vec<Operation> = (1..=count).map(plain).collect();
        let draft = apply(&start, &made, &context).unwrap();
        let back = restore(&start.objects, draft.objects());
        let ApplyError::Invalid(problems) = try_apply(&start, &back, Role::Admin).unwrap_err()
        else {
            panic!("not invalid");
        };
        let told = problems
            .iter()
            .map(|one| (one.pointer.clone(), &*one.detail));
        let told: Vec<_> = told.collect();
        assert_eq!(told.len(), made.len());
        for (bits, (pointer, detail)) in (1..).zip(told) {
            assert_eq!(pointer, format!("/targets/{}/base_url", target(bits)));
            assert!(
                detail.starts_with(&format!("target `old {bits}`: ")),
                "{detail}"
            );
        }
    }
}

#[test]
fn conflicts_are_told_by_kind() {
    let parent = base();
    let twice = create(proxy(50), proxy_fields());
    let taken = |what: &str| ApplyError::Taken {
        what: what.into(),
        by: proxy(PROXY),
    };
    let stale = patch_if(
        target(TARGET),
        Some(7),
        json!({"name": "x"}),
        SecretChange::Keep,
    );
    for (operation, expected) in [
        (delete(target(99)), ApplyError::NotFound(target(99))),
        (
            stale,
            ApplyError::PreconditionFailed {
                id: target(TARGET),
                current: 1,
            },
        ),
        (twice, taken("alias `billing`")),
        (
            delete(target(TARGET)),
            ApplyError::InUse {
                id: target(TARGET),
                users: vec![proxy(PROXY)],
            },
        ),
        (
            delete(credential(CALLER)),
            ApplyError::InUse {
                id: credential(CALLER),
                users: vec![proxy(PROXY)],
            },
        ),
        (
            delete(credential(SECRET)),
            ApplyError::InUse {
                id: credential(SECRET),
                users: vec![proxy(PROXY)],
            },
        ),
    ] {
        assert_eq!(
            try_apply(&parent, &[operation], Role::Admin).unwrap_err(),
            expected
        );
    }
    let slugs = [60, 61].map(|bits| {
        create(
            ObjectId::Org(OrgId::from_bits(bits)),
            json!({"slug": "acme"}),
        )
    });
    let error = try_apply(&parent, &slugs, Role::Admin).unwrap_err();
    assert!(matches!(error, ApplyError::Taken { .. }), "{error}");
    let all = [
        delete(target(TARGET)),
        delete(credential(SECRET)),
        delete(proxy(PROXY)),
    ];
    assert!(
        try_apply(&parent, &all, Role::Admin).is_ok(),
        "their order does not matter"
    );
}

#[test]
fn what_does_not_change_keeps_its_version_and_its_arc() {
    let parent = base();
    let same = patch_if(target(TARGET), Some(1), json!({}), SecretChange::Keep);
    let draft = try_apply(&parent, &[same], Role::Admin).unwrap();
    assert!(draft.changed.is_empty());
    let renamed = next(&parent, &[patch(target(TARGET), json!({"name": "new"}))]).config;
    assert_eq!(renamed.objects[&target(TARGET)].version, 2);
    assert_eq!(renamed.objects[&target(TARGET)].created_at, at(1_000));
    assert_eq!(renamed.objects[&target(TARGET)].updated_at, at(1_001));
    assert!(Arc::ptr_eq(
        &renamed.objects[&proxy(PROXY)],
        &parent.objects[&proxy(PROXY)]
    ));
    assert_eq!(
        renamed.proxy(ProxyId::from_bits(PROXY)).unwrap().name,
        "billing"
    );
    // A second operation on one object counts from the parent's version.
    let twice = [
        patch_if(
            target(TARGET),
            Some(1),
            json!({"name": "a"}),
            SecretChange::Keep,
        ),
        patch_if(
            target(TARGET),
            Some(1),
            json!({"name": "b"}),
            SecretChange::Keep,
        ),
    ];
    assert!(try_apply(&parent, &twice, Role::Admin).is_ok());
}

#[test]
fn rotation_keeps_one_old_secret_for_a_while_and_revocation_none() {
    let id = CredentialId::from_bits(CALLER);
    let rotate = |until: Option<i64>| {
        let secret = given(&caller_fields()).unwrap();
        let old_until = until.map(at);
        patch_if(
            credential(CALLER),
            None,
            json!({}),
            SecretChange::Set { secret, old_until },
        )
    };
    let step = |parent: &OrgConfig, operation: Operation, fact: Option<crate::retired::Retired>| {
        let draft = try_apply(parent, &[operation], Role::Admin).unwrap();
        let now = at(1_000 + parent.head.n.cast_signed());
        let fact = draft.retirements[&id].raise(fact, now);
        (draft.commit(parent, 0, String::new()).unwrap().config, fact)
    };
    let covered = |config: &OrgConfig, fact: &crate::retired::Retired, now: i64| -> Vec<bool> {
        let stored = config.credential(id).unwrap();
        let states = stored.secret.iter().chain(&stored.previous);
        states
            .map(|state| fact.covers(&state.generation, at(now)))
            .collect()
    };
    let first = base();
    let g1 = first
        .credential(id)
        .unwrap()
        .secret
        .clone()
        .unwrap()
        .generation;
    let (second, fact) = step(&first, rotate(Some(5_000)), None);
    assert_eq!(
        covered(&second, &fact, 4_999),
        [false, false],
        "both are valid"
    );
    assert_eq!(
        covered(&second, &fact, 5_000),
        [false, true],
        "the overlap ends"
    );
    let (third, fact) = step(&second, rotate(Some(6_000)), Some(fact));
    assert_eq!(covered(&third, &fact, 4_000), [false, false]);
    assert!(fact.covers(&g1, at(4_000)), "at most two at one time");
    let (fourth, fact) = step(&third, rotate(None), Some(fact));
    assert_eq!(
        covered(&fourth, &fact, 4_000),
        [false],
        "no overlap, no old secret"
    );
    let revoke = patch_if(credential(CALLER), None, json!({}), SecretChange::Revoke);
    let before = fourth
        .credential(id)
        .unwrap()
        .secret
        .clone()
        .unwrap()
        .generation;
    let (fifth, fact) = step(&fourth, revoke, Some(fact));
    assert!(fact.covers(&before, at(4_000)));
    assert!(fifth.credential(id).unwrap().secret.is_none());
}

#[test]
fn deletion_retires_and_names_what_is_to_be_destroyed() {
    let draft = try_apply(
        &base(),
        &[delete(proxy(PROXY)), delete(credential(SECRET))],
        Role::Admin,
    )
    .unwrap();
    let id = CredentialId::from_bits(SECRET);
    let fact = draft.retirements[&id].raise(None, at(0));
    let was = base().credential(id).unwrap().secret.clone().unwrap();
    assert!(fact.covers(&was.generation, at(0)));
    assert_eq!(draft.unsealed, [(id, draft.unsealed[0].1.clone())]);
}

#[test]
fn a_member_lifts_no_guardrail() {
    let allow = json!({"parent": proxy(PROXY), "spec": {"effect": "deny"}});
    let guard = json!({"parent": credential(SECRET), "spec": {"effect": "deny"}});
    let parent = next(&base(), &[create(rule(1), guard.clone())]).config;
    let unbound = json!({"proxy_credential_ids": [CredentialId::from_bits(CALLER)],
        "target_id": TargetId::from_bits(TARGET)});
    let mut bound = unbound.clone();
    bound["target_credential_id"] = json!(CredentialId::from_bits(SECRET));
    for (operation, allowed) in [
        (patch(proxy(PROXY), json!({"active": false})), true),
        (create(proxy(50), unbound), true),
        (create(proxy(50), bound), false),
        (create(credential(50), caller_fields()), true),
        (create(credential(50), secret_fields()), false),
        (create(rule(2), allow), true),
        (create(rule(2), guard), false),
        (delete(rule(1)), false),
        (
            patch(
                rule(1),
                json!({"spec": {"effect": "deny", "mode": "shadow"}}),
            ),
            false,
        ),
        (
            patch(target(TARGET), json!({"default_rule_effect": "deny"})),
            false,
        ),
        (
            patch(credential(SECRET), json!({"use_by": "member"})),
            false,
        ),
        (patch(proxy(PROXY), json!({"cookies": "pass"})), false),
        (patch(proxy(PROXY), json!({"error_bodies": "pass"})), false),
        (
            patch(proxy(PROXY), json!({"forward_caller_headers": ["x-a"]})),
            false,
        ),
        (delete(proxy(PROXY)), true),
    ] {
        let outcome = try_apply(&parent, std::slice::from_ref(&operation), Role::Member);
        match (allowed, outcome) {
            (true, Ok(_)) | (false, Err(ApplyError::Forbidden(_))) => {}
            (_, outcome) => panic!("allowed: {allowed}, but {outcome:?}"),
        }
        assert!(!matches!(
            try_apply(&parent, &[operation], Role::Admin),
            Err(ApplyError::Forbidden(_))
        ));
    }
    let viewer = [patch(proxy(PROXY), json!({"active": false}))];
    let refused = try_apply(&parent, &viewer, Role::Viewer).unwrap_err();
    assert!(matches!(refused, ApplyError::Forbidden(_)));
    let by_member = next(
        &parent,
        &[patch(credential(SECRET), json!({"use_by": "member"}))],
    );
    let mut fields = proxy_fields();
    fields["alias"] = Value::Null;
    assert!(
        try_apply(
            &by_member.config,
            &[create(proxy(50), fields)],
            Role::Member
        )
        .is_ok()
    );
}

#[test]
fn rules_hang_on_a_scope_and_go_with_it() {
    let on = |parent: ObjectId| json!({"parent": parent, "spec": {"effect": "deny"}});
    assert_eq!(
        refused(&base(), &[create(rule(1), on(target(99)))]),
        ["/parent unknown-parent"]
    );
    assert_eq!(
        refused(&base(), &[create(rule(1), on(rule(2)))]),
        ["/parent unknown-parent"]
    );
    let with = next(&base(), &[create(rule(1), on(proxy(PROXY)))]).config;
    let Body::Rule(stored) = &with.objects[&rule(1)].body else {
        panic!("a rule")
    };
    assert_eq!(
        stored.spec.id,
        rule(1).to_string(),
        "a stored rule knows its id"
    );
    let moved = patch(rule(1), json!({"parent": target(TARGET)}));
    assert!(refused(&with, &[moved]).contains(&"/parent immutable".to_owned()));
    let gone = next(&with, &[delete(proxy(PROXY))]);
    assert!(!gone.config.objects.contains_key(&rule(1)));
    assert_eq!(gone.delta.deleted.len(), 2);
    let destroy = json!({"parent": proxy(PROXY), "spec": {"op": "destroy", "paths": ["$.a"]}});
    let many = |count: u128| -> Vec<Operation> {
        (0..count)
            .map(|bits| create(filter(bits), destroy.clone()))
            .collect()
    };
    let filters = next(&with, &many(100)).config;
    let Body::Filter(stored) = &filters.objects[&filter(1)].body else {
        panic!("a filter")
    };
    assert_eq!(stored.spec.id, filter(1).to_string());
    assert_eq!(refused(&with, &many(101)), ["/100 too-many-filters"]);
    let rules: Vec<_> = (2..1_002)
        .map(|bits| create(rule(bits), on(proxy(PROXY))))
        .collect();
    assert_eq!(refused(&with, &rules), ["/999 rules-too-many"]);
    assert_eq!(
        next(&filters, &[delete(proxy(PROXY))]).delta.deleted.len(),
        102
    );
    let bad = json!({"parent": proxy(PROXY), "spec": {"effect": "deny", "path": {"pattern": "("}}});
    let found = refused(&with, &[create(rule(2), bad)]);
    assert!(found[0].starts_with("/path/pattern"), "{found:?}");
}

/// Everything of a version as a store would hold it.
fn read_back(packed: &[&Packed]) -> OrgConfig {
    let leaves: BTreeMap<Hash, Vec<u8>> = packed
        .iter()
        .flat_map(|packed| &packed.leaves)
        .map(|leaf| (leaf.hash, unpack(leaf.hash, &leaf.packed).unwrap()))
        .collect();
    let config = &packed.last().unwrap().config;
    let root = Root::parse(&leaves[&config.head.roots[EVERYWHERE]]).unwrap();
    let (mut objects, mut read) = (Objects::new(), Vec::new());
    for hash in root.leaves.values() {
        let content = &leaves[hash];
        let mut ids = Vec::new();
        for line in content
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let object = parse_line(line).unwrap();
            ids.push(object.id);
            objects.insert(object.id, Arc::new(object));
        }
        read.push(ReadLeaf {
            hash: *hash,
            bytes: content.len(),
            ids,
            damaged: false,
        });
    }
    let set = ReadSet {
        root,
        objects,
        read,
    };
    let sets = BTreeMap::from([(EVERYWHERE.to_owned(), set)]);
    assemble(config.org, config.head.clone(), sets, None)
}

#[test]
fn a_version_reads_back_as_it_was_packed_whatever_its_history() {
    let many = |range: std::ops::Range<u128>| -> Vec<Operation> {
        let fields = |bits| json!({"base_url": format!("https://h{bits}.example"), "name": "n"});
        range
            .map(|bits| create(target(bits << 70), fields(bits)))
            .collect()
    };
    let one = next(&genesis(), &many(1..1_500));
    assert_eq!(read_back(&[&one]).objects, one.config.objects);
    assert!(one.config.reaches().count() > 4, "several leaves");
    for leaf in &one.leaves {
        assert!(unpack(leaf.hash, &leaf.packed).unwrap().len() <= 64 * 1024);
    }
    // One object more is one leaf and one root more.
    let two = next(&one.config, &many(1_500..1_501));
    assert_eq!(two.leaves.len(), 2);
    assert_eq!(read_back(&[&one, &two]).objects, two.config.objects);
    // Back to few objects: the leaves join again, and equal content has equal roots.
    let gone: Vec<Operation> = (10..1_501)
        .map(|bits: u128| delete(target(bits << 70)))
        .collect();
    let three = next(&two.config, &gone);
    assert_eq!(three.config.reaches().count(), 2, "one leaf and the root");
    let direct = next(&genesis(), &many(1..10));
    assert_eq!(direct.config.head.roots, three.config.head.roots);
    assert_ne!(
        direct.config.head.hash, three.config.head.hash,
        "but is another version"
    );
}

#[test]
fn a_delta_leads_from_one_version_to_the_next_and_nowhere_else() {
    let one = base();
    let rename = [
        patch(target(TARGET), json!({"name": "new"})),
        delete(credential(OPEN)),
    ];
    let two = next(&one, &rename);
    let applied = apply_delta(&one, &two.config.head, &two.delta).unwrap();
    assert_eq!(applied.objects, two.config.objects);
    assert!(Arc::ptr_eq(
        &applied.objects[&proxy(PROXY)],
        &one.objects[&proxy(PROXY)]
    ));
    assert!(
        apply_delta(&genesis(), &two.config.head, &two.delta).is_none(),
        "another parent"
    );
    let mut tampered = two.delta.clone();
    tampered.changed.as_mut().unwrap()[0]["body"]["target"]["name"] = json!("evil");
    assert!(apply_delta(&one, &two.config.head, &tampered).is_none());
    let ca = format!("-----BEGIN CERTIFICATE-----{}", "x".repeat(40_000));
    let large = next(&one, &[patch(target(TARGET), json!({"tls": {"ca": ca}}))]);
    assert!(large.delta.changed.is_none(), "too large for a delta");
    assert!(apply_delta(&one, &large.config.head, &large.delta).is_none());
}

#[test]
fn heads_and_leaves_are_what_their_names_say() {
    let packed = next(&base(), &[delete(credential(OPEN))]);
    let head = packed.config.head.clone();
    let json = head.to_json();
    assert!(json.len() < 700, "{}", json.len());
    assert_eq!(Head::parse(&json).unwrap(), head);
    assert_eq!((head.n, head.parent), (2, Some(base_hash(&packed))));
    for change in [
        |head: &mut Head| head.n += 1,
        |head: &mut Head| head.gc += 1,
        |head: &mut Head| head.parent = None,
        |head: &mut Head| head.salt.push('x'),
        |head: &mut Head| head.epoch.counter += 1,
        |head: &mut Head| {
            head.roots.insert("us".into(), Hash::of(b"x"));
        },
    ] {
        let mut altered = head.clone();
        change(&mut altered);
        assert!(Head::parse(&altered.to_json()).is_err());
    }
    let swept = packed.clone().with_gc(4);
    assert!(swept.config.head.is_genuine() && swept.delta.to == swept.config.head.hash);
    let leaf = &packed.leaves[0];
    assert!(matches!(
        unpack(Hash::of(b"x"), &leaf.packed),
        Err(TreeError::WrongHash(..))
    ));
    assert!(matches!(
        unpack(leaf.hash, b"nonsense"),
        Err(TreeError::Malformed(..))
    ));
    let bomb = zstd::bulk::compress(&vec![0; 4 * LEAF_BYTES_MAX], 3).unwrap();
    assert!(unpack(Hash::of(b"x"), &bomb).is_err(), "bounded");
    let upper = leaf.hash.to_string().to_uppercase();
    assert!(upper.parse::<Hash>().is_err() && "".parse::<Hash>().is_err());
}

#[test]
fn a_head_stays_small_whatever_it_is_the_head_of() {
    let many = (0..3_000).map(|at| {
        let fields = json!({"base_url": "https://a.example", "name": format!("target {at}")});
        create(target(at + 1), fields)
    });
    let packed = next(&genesis(), &many.collect::<Vec<_>>());
    assert!(packed.leaves.len() > 10, "{}", packed.leaves.len());
    let mut head = packed.config.head.clone();
    // Of one that has come a long way.
    (head.n, head.gc, head.epoch.counter) = (u64::MAX, u64::MAX, u64::MAX);
    head.parent = Some(head.hash);
    let json = head.to_json();
    assert!(json.len() < 1024, "{}", json.len());
}

#[test]
fn an_object_has_as_many_bytes_as_it_may_and_not_one_more() {
    assert_eq!(OBJECT_BYTES_MAX, 256 * 1024);
    let of_name = |bytes: usize| {
        let spec = json!({"effect": "deny", "query": [{"name": "n".repeat(bytes)}]});
        let fields = json!({"parent": proxy(PROXY), "spec": spec});
        let mut operations = quick();
        operations.push(create(rule(1), fields));
        operations
    };
    let bytes = |packed: &Packed| {
        let object = packed.config.objects.get(&rule(1)).unwrap();
        pack::line(object).len()
    };
    let least = bytes(&next(&genesis(), &of_name(1)));
    let most = 1 + OBJECT_BYTES_MAX - least;
    let packed = next(&genesis(), &of_name(most));
    assert_eq!(bytes(&packed), OBJECT_BYTES_MAX);
    let read = read_back(&[&packed]);
    assert_eq!(
        read.objects.get(&rule(1)),
        packed.config.objects.get(&rule(1))
    );
    let refused = try_apply(&genesis(), &of_name(most + 1), Role::Admin);
    match refused.err() {
        Some(ApplyError::TooLarge(detail)) => {
            let expected = format!("{} has {} bytes", rule(1), OBJECT_BYTES_MAX + 1);
            assert!(detail.contains(&expected), "{detail}");
        }
        other => panic!("{other:?}"),
    }
}

fn base_hash(packed: &Packed) -> Hash {
    packed.delta.from.unwrap()
}

#[test]
fn a_lost_race_is_judged_again_on_the_new_head() {
    let parent = base();
    // One publisher deletes the target of another one's new proxy.
    let free = next(
        &parent,
        &[create(target(70), json!({"base_url": "https://t.example"}))],
    );
    let names = json!({"proxy_credential_ids": [CredentialId::from_bits(CALLER)],
        "target_id": TargetId::from_bits(70)});
    let dangling = [create(proxy(50), names)];
    assert!(try_apply(&free.config, &dangling, Role::Admin).is_ok());
    let deleted = next(&free.config, &[delete(target(70))]);
    assert_eq!(
        refused(&deleted.config, &dangling),
        ["/target_id unknown-target"]
    );
}

/// Every node compiles all of them, so that one organisation must not take the memory of all.
#[test]
fn the_patterns_of_an_organisation_have_a_bound_of_their_own() {
    let mut parent = genesis();
    let mut refusal = Vec::new();
    for scope in 0..20_u128 {
        let on = target(scope + 1);
        let fields = json!({"base_url": "https://a.example", "name": format!("t{scope}")});
        let mut operations = vec![create(on, fields)];
        for n in 0..14 {
            let pattern = format!(r"^/{scope}/{n}/\w{{18}}");
            let spec = json!({"effect": "deny", "path": {"pattern": pattern}});
            let fields = json!({"parent": on, "spec": spec});
            operations.push(create(rule(scope * 100 + n + 1), fields));
        }
        if try_apply(&parent, &operations, Role::Admin).is_ok() {
            parent = next(&parent, &operations).config;
        } else {
            refusal = refused(&parent, &operations);
            break;
        }
    }
    assert_eq!(refusal.len(), 1, "{refusal:?}");
    assert!(refusal[0].ends_with("patterns-too-large"), "{refusal:?}");
}

#[test]
fn leaves_made_of_memory_are_those_that_were_published() {
    // Enough for more than one leaf.
    let targets = (100..400).map(|bits| {
        let url = format!("https://{bits}.{}.example", "a".repeat(60));
        create(target(bits), json!({"base_url": url}))
    });
    let packed = next(&base(), &targets.collect::<Vec<_>>());
    assert!(packed.leaves.len() > 2, "{}", packed.leaves.len());
    for leaf in &packed.leaves {
        assert_eq!(packed.config.leaf(leaf.hash).as_ref(), Some(leaf));
    }
    assert_eq!(packed.config.reaches().count(), packed.leaves.len());
    assert!(packed.config.leaf(Hash::of(b"another")).is_none());
}

#[test]
fn nobody_has_patterns_compiled_for_what_they_may_not_do() {
    let parent = base();
    let spec = json!({"effect": "deny", "path": {"pattern": r"\w{5}"}});
    let create = create(rule(1), json!({"parent": proxy(PROXY), "spec": spec}));
    let made = |role| {
        let before = crate::pattern_size::made_bytes();
        let outcome = try_apply(&parent, std::slice::from_ref(&create), role);
        let forbidden = matches!(outcome, Err(ApplyError::Forbidden(_)));
        (forbidden, crate::pattern_size::made_bytes() - before)
    };
    assert_eq!(made(Role::Viewer), (true, 0));
    let (forbidden, compiled) = made(Role::Member);
    assert!(!forbidden && compiled > 0);
}

#[test]
fn what_one_change_compiles_is_bounded_whether_it_is_valid_or_not() {
    let parent = base();
    // Larger than one pattern may be.
    let spec = json!({"effect": "deny", "path": {"pattern": "[ab]{90000}"}});
    let fields = json!({"parent": proxy(PROXY), "spec": spec});
    let operations = (1..=400).map(|n| create(rule(n), fields.clone()));
    let operations: Vec<_> = operations.collect();
    let before = crate::pattern_size::made_bytes();
    let refused = refused(&parent, &operations);
    let made = crate::pattern_size::made_bytes() - before;
    assert!(
        refused
            .iter()
            .any(|told| told.ends_with(" patterns-too-large"))
    );
    assert!(made < CHANGE_COMPILED_BYTES_MAX + 8 * 1024 * 1024, "{made}");
}
