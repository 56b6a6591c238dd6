//! Configuration that is written straight into the store, past the API and its checks: the node
//! has the last word on where a secret goes.

use std::sync::Arc;

use jiff::Timestamp;
use proto::id::{OrgId, TargetId};
use proto::keys;
use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::policy::Policy;
use proto::store::embedded::Embedded;
use proto::store::{Op, Store, Txn, TxnOutcome, load};
use proto::target::Target;
use proto::tree::{Context, Operation, apply};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::gateway::{Gateway, Proxy, Start, TARGET_SECRET};
use crate::harness::http::Message;
use crate::harness::upstream::Upstream;

/// Changes stored objects of an organisation as no publisher would, in the data folder of a
/// gateway that is stopped.
async fn forge(folder: &TempDir, org: OrgId, change: impl Fn(ObjectId, &mut Body)) {
    let store = Embedded::open(&folder.path().join("data/store.sqlite")).expect("the store");
    let read = load::head(&*store, org).await.expect("the store");
    let (head, _) = read.expect("a version");
    let loaded = load::version(&*store, org, head, None).await;
    let mut config = loaded.expect("a version").config;
    let forged = config.objects.iter().map(|(id, object)| {
        let mut forged = (**object).clone();
        change(*id, &mut forged.body);
        (*id, Arc::new(forged))
    });
    config.objects = forged.collect();
    // A valid change beside it, so that leaf and head are made anew.
    let beside: Target =
        serde_json::from_value(json!({"name": "x", "base_url": "https://x.example"}))
            .expect("a target");
    let create = Operation::Create {
        id: ObjectId::Target(TargetId::new()),
        body: Body::Target(beside),
        secret: None,
    };
    let context = Context {
        now: Timestamp::now(),
        policy: &Policy::default(),
        role: Role::Owner,
    };
    let draft = apply(&config, &[create], &context).expect("a draft");
    let packed = draft.commit(&config, config.head.gc, "forged".into());
    let packed = packed.expect("a version");
    let leaves = packed.leaves.iter();
    let mut ops: Vec<Op> = leaves
        .map(|leaf| Op::put(keys::leaf(org, &leaf.hash), leaf.packed.clone()))
        .collect();
    ops.push(Op::put(keys::head(org), packed.config.head.to_json()));
    let txn = Txn {
        ops,
        ..Txn::default()
    };
    let outcome = store.txn(txn).await.expect("the store");
    assert!(matches!(outcome, TxnOutcome::Committed(_)));
}

/// The gateway after its store was changed while it was down, and what a call through the proxy
/// gets then.
fn forged(
    gateway: Gateway,
    start: &Start,
    proxy: &Proxy,
    change: impl Fn(ObjectId, &mut Body),
) -> (Gateway, Message) {
    let answer = gateway.control_call("GET", "/api/v1/orgs/default", Some(&gateway.token), None);
    let org = answer.json()["id"].as_str().expect("an id").parse();
    let (_, folder) = gateway.stop();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(forge(&folder, org.expect("an id"), change));
    let gateway = Gateway::inside(folder, start);
    let answer = proxy.request("GET", "/").send(&gateway.url);
    (gateway, answer)
}

#[test]
fn a_target_that_is_pointed_elsewhere_in_the_store_gets_nothing() {
    let start = Start::default();
    let gateway = Gateway::with(start.clone());
    let (own, foreign) = (Upstream::json("{}"), Upstream::json("{}"));
    let proxy = gateway.proxy(&own.url());
    assert_eq!(proxy.get("/").status(), 200);
    let injected = format!("Bearer {TARGET_SECRET}");
    assert_eq!(own.last().field("authorization"), Some(&*injected));
    let elsewhere = foreign.url();
    let (gateway, answer) = forged(gateway, &start, &proxy, |id, body| {
        if let Body::Target(target) = body
            && id.to_string() == proxy.target
        {
            target.base_url.clone_from(&elsewhere);
        }
    });
    assert_eq!(answer.outcome(), (502, "credential-unavailable"));
    assert_eq!(foreign.connections(), 0, "not one byte");
    let refused = gateway.metric("requestrocket_secrets_refused_total");
    assert!(refused >= 1.0, "it is counted");
    let request = answer.field("requestrocket-request-id").expect("an id");
    let record = gateway.record(request);
    let event = &record["events"][0];
    assert_eq!(
        (&event["kind"], &event["stage"], &event["subject"]),
        (
            &"credential-host-mismatch".into(),
            &"inject".into(),
            &proxy.target_credential.clone().into()
        ),
        "{record}"
    );
}

#[test]
fn a_secret_is_not_bound_to_another_host_in_the_store() {
    let start = Start::default();
    let gateway = Gateway::with(start.clone());
    let (own, foreign) = (Upstream::json("{}"), Upstream::json("{}"));
    let proxy = gateway.proxy(&own.url());
    let elsewhere = foreign.url();
    let (_gateway, answer) = forged(gateway, &start, &proxy, |id, body| match body {
        Body::Target(target) if id.to_string() == proxy.target => {
            target.base_url.clone_from(&elsewhere);
        }
        // The list is bound into the sealed value: with another one it does not open.
        Body::Credential(stored) if id.to_string() == proxy.target_credential => {
            stored.credential.hosts = vec![elsewhere.parse().expect("a host")];
        }
        _ => {}
    });
    assert_eq!(answer.outcome(), (502, "credential-unavailable"));
    assert_eq!(foreign.connections(), 0, "not one byte");
}

/// A node sends nothing to endpoints of other regions than its proxy's, whoever listed them.
#[test]
fn an_endpoint_that_leaves_the_proxys_regions_in_the_store_gets_nothing() {
    let start = Start::default();
    let gateway = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let endpoints = json!({"endpoints": [{"region": "local", "base_url": upstream.url()}]});
    let pinned = json!({"regions": ["local"]});
    let proxy = gateway.proxy_with(&upstream.url(), endpoints, pinned);
    assert_eq!(proxy.get("/").status(), 200);
    let before = upstream.connections();
    let (gateway, answer) = forged(gateway, &start, &proxy, |id, body| {
        if let Body::Target(target) = body
            && id.to_string() == proxy.target
        {
            target.endpoints[0].region = Some("us".into());
        }
    });
    assert_eq!(answer.outcome(), (502, "upstream-blocked"));
    assert_eq!(upstream.connections(), before, "nothing was dialled");
    let log = gateway.log();
    assert!(
        log.contains("no endpoint of") && log.contains("is in local"),
        "it is told"
    );
}

#[test]
fn a_stored_target_does_not_choose_who_vouches_for_it() {
    let start = Start {
        config: "[policy]\nallow_insecure_tls = true\n[egress]\ntls_exceptions = []".into(),
        ..Start::default()
    };
    let gateway = Gateway::with(start.clone());
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let before = upstream.connections();
    let (gateway, answer) = forged(gateway, &start, &proxy, |id, body| {
        if let Body::Target(target) = body
            && id.to_string() == proxy.target
        {
            target.tls.insecure = true;
        }
    });
    assert_eq!(answer.outcome(), (502, "upstream-blocked"));
    assert_eq!(upstream.connections(), before, "nothing was dialled");
    assert!(
        gateway.log().contains("egress.tls_exceptions"),
        "it is told"
    );
}
