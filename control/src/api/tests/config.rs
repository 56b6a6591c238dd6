//! The configuration as one document, many changes as one version, and the audit of both.

use proto::id::CredentialId;
use serde_json::{Value, json};

use super::{Reply, Who, api};

const CONFIG: &str = "/orgs/acme/config";
const DRY_RUN: &str = "/orgs/acme/config?dry_run=true";

/// A document with one of everything.
fn document() -> Value {
    json!({
        "format": "requestrocket/1",
        "targets": [{
            "name": "stripe", "base_url": "https://api.stripe.com",
            "rules": [{"effect": "deny", "methods": ["DELETE"], "message": "no deletes"}],
        }],
        "credentials": [
            {"name": "team", "kind": "proxy", "auth_type": "api_key"},
            {"name": "stripe key", "kind": "target", "auth_type": "bearer",
             "hosts": ["api.stripe.com"], "secret": {"token": "sk_live_0123456789abcdef"}},
        ],
        "proxies": [{
            "alias": "billing", "target": "stripe", "target_credential": "stripe key",
            "proxy_credentials": ["team"], "limits": {"per_minute": 60},
            "filters": [{"op": "destroy", "paths": ["$.secret"]}],
        }],
    })
}

#[actix_web::test]
async fn a_document_becomes_one_version_and_applied_again_changes_nothing() {
    let api = api().await;
    let before = api.acme_version();
    let done = api.put(Who::Admin, CONFIG, document()).await.is(200);
    assert_eq!(done.body["from"], before);
    assert_eq!(done.body["to"], before + 1);
    let changes = done.body["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 6, "{}", done.text);
    let generated = done.body["generated"].as_array().unwrap();
    assert_eq!(generated.len(), 1);
    assert!(
        generated[0]["secret"]["key"]
            .as_str()
            .unwrap()
            .starts_with("rr_")
    );
    assert!(!done.text.contains("sk_live_0123456789abcdef"));

    let again = api.put(Who::Admin, CONFIG, document()).await.is(200);
    assert_eq!(again.body["changes"], json!([]));
    assert_eq!(again.body["to"], before + 1);
    assert_eq!(api.acme_version(), before + 1);
}

#[actix_web::test]
async fn what_is_exported_can_be_applied_here_and_elsewhere() {
    let api = api().await;
    api.put(Who::Admin, CONFIG, document()).await.is(200);
    let exported = api.get(Who::Member, CONFIG).await.is(200);
    assert!(!exported.text.contains("sk_live"), "{}", exported.text);
    assert!(
        !exported.text.contains("prx_"),
        "names, not ids: {}",
        exported.text
    );
    let n = api.acme_version();
    let same = api
        .put(Who::Admin, CONFIG, exported.body.clone())
        .await
        .is(200);
    assert_eq!(same.body["changes"], json!([]), "{}", same.text);
    assert_eq!(api.acme_version(), n);
    // Elsewhere the target credential needs its secret; the caller's key is generated.
    let mut other = exported.body.clone();
    let missing = api
        .put(Who::Operator, "/orgs/other/config", other.clone())
        .await
        .is(422);
    assert_eq!(
        missing.faults(),
        [("/credentials/1/secret".into(), "required".into())]
    );
    other["credentials"][1]["secret"] = json!({"token": "sk_live_0123456789abcdef"});
    api.put(Who::Operator, "/orgs/other/config", other)
        .await
        .is(200);
    let there = api.get(Who::Operator, "/orgs/other/config").await.is(200);
    assert_eq!(there.body, exported.body);
    api.get(Who::Viewer, CONFIG).await.is(403);
}

#[actix_web::test]
async fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let api = api().await;
    let n = api.acme_version();
    let dry = format!("{CONFIG}?dry_run=true");
    let would = api.put(Who::Admin, &dry, document()).await.is(200);
    assert_eq!(would.body["changes"].as_array().unwrap().len(), 6);
    assert_eq!(would.body["generated"], Value::Null);
    assert_eq!(api.acme_version(), n);
    assert_eq!(api.get(Who::Admin, CONFIG).await.body["targets"], json!([]));
}

#[actix_web::test]
async fn an_entry_is_whole_lists_are_whole_and_the_rest_stays() {
    let api = api().await;
    api.put(Who::Admin, CONFIG, document()).await.is(200);
    let partial = json!({"format": "requestrocket/1", "targets": [{
        "name": "stripe", "base_url": "https://api.stripe.com", "labels": {"a": "b"},
        "rules": [{"effect": "deny", "methods": ["DELETE"], "message": "no deletes"},
                  {"effect": "deny", "methods": ["PUT"]}],
    }]});
    let done = api.put(Who::Admin, CONFIG, partial).await.is(200);
    let kinds: Vec<&str> = done.body["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["change"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["updated", "created"], "{}", done.text);
    // Without the list the rules stay; with an empty one they go.
    let mut target = json!({"name": "stripe", "base_url": "https://api.stripe.com"});
    let of = |target: &Value| json!({"format": "requestrocket/1", "targets": [target]});
    let done = api.put(Who::Admin, CONFIG, of(&target)).await.is(200);
    assert_eq!(done.body["changes"].as_array().unwrap().len(), 1);
    target["rules"] = json!([]);
    let done = api.put(Who::Admin, CONFIG, of(&target)).await.is(200);
    assert_eq!(done.body["changes"].as_array().unwrap().len(), 2);
    let whole = api.get(Who::Admin, CONFIG).await;
    assert_eq!(whole.body["proxies"].as_array().unwrap().len(), 1);
}

#[actix_web::test]
async fn only_with_prune_is_deleted_what_the_document_does_not_name() {
    let api = api().await;
    api.put(Who::Admin, CONFIG, document()).await.is(200);
    let mut less = document();
    less["proxies"] = json!([]);
    less["credentials"].as_array_mut().unwrap().truncate(1);
    let kept = api.put(Who::Admin, CONFIG, less.clone()).await.is(200);
    assert_eq!(kept.body["changes"], json!([]));
    let prune = format!("{CONFIG}?prune=true");
    let pruned = api.put(Who::Admin, &prune, less.clone()).await.is(200);
    let gone = pruned.body["changes"].as_array().unwrap();
    assert!(gone.iter().all(|change| change["change"] == "deleted"));
    assert_eq!(
        gone.len(),
        3,
        "proxy, its filter, target credential: {}",
        pruned.text
    );
    // What is still used cannot go.
    api.put(Who::Admin, CONFIG, document()).await.is(200);
    let mut broken = document();
    broken["targets"] = json!([]);
    let refused = api.put(Who::Admin, &prune, broken).await.is(422);
    assert_eq!(
        refused.faults()[0].0,
        "/proxies/0/target",
        "{}",
        refused.text
    );
    assert_eq!(refused.faults()[0].1, "unknown-reference");
}

#[actix_web::test]
async fn a_policy_that_is_edited_stays_the_same_object() {
    let api = api().await;
    let per_day = |limit: u64| json!([{"limit": limit, "window": "day"}]);
    let meter = |name: &str, limit: u64| json!({"name": name, "limits": per_day(limit)});
    let rule = |method: &str| json!({"effect": "deny", "methods": [method]});
    let with = |meters: Value, rules: Value| {
        let mut document = document();
        document["proxies"][0]["meters"] = meters;
        document["proxies"][0]["rules"] = rules;
        document
    };
    let kinds = |reply: &Reply| -> Vec<(String, String)> {
        let changes = reply.body["changes"].as_array().unwrap().iter();
        let word = |change: &Value, key: &str| change[key].as_str().unwrap()[..3].to_owned();
        let mut found: Vec<_> = changes
            .map(|change| (word(change, "id"), word(change, "change")))
            .collect();
        found.sort();
        found
    };
    let put = |document: Value| {
        let api = &api;
        async move { api.put(Who::Admin, CONFIG, document).await.is(200) }
    };
    let is = |found: Vec<(String, String)>, expected: &[(&str, &str)]| {
        let found: Vec<_> = found
            .iter()
            .map(|(id, what)| (id.as_str(), what.as_str()))
            .collect();
        assert_eq!(found, expected);
    };
    put(with(
        json!([meter("a", 1), meter("b", 2)]),
        json!([rule("PUT")]),
    ))
    .await;
    // By its name, wherever it stands.
    let edited = put(with(
        json!([meter("b", 3), meter("a", 1)]),
        json!([rule("PUT")]),
    ))
    .await;
    is(kinds(&edited), &[("mtr", "upd")]);
    // Without a name: the only one that differs.
    let edited = put(with(
        json!([meter("a", 1), meter("b", 3)]),
        json!([rule("POST")]),
    ))
    .await;
    is(kinds(&edited), &[("rul", "upd")]);
    // One that counts something else is another one, whatever its name.
    let values = json!({"name": "b", "kind": "response_value", "limits": per_day(3),
                        "value": {"template": "openai_chat"}});
    let other = put(with(json!([meter("a", 1), values]), json!([rule("POST")]))).await;
    is(kinds(&other), &[("mtr", "cre"), ("mtr", "del")]);
    put(with(
        json!([meter("a", 1), meter("b", 3)]),
        json!([rule("POST")]),
    ))
    .await;
    // Another name is another meter, and of two edits without names nobody knows which is which.
    let other = put(with(
        json!([meter("a", 1), meter("c", 3)]),
        json!([rule("POST")]),
    ))
    .await;
    is(kinds(&other), &[("mtr", "cre"), ("mtr", "del")]);
    let two = json!([rule("POST"), rule("PUT")]);
    put(with(json!([meter("a", 1), meter("c", 3)]), two)).await;
    let both = json!([rule("PATCH"), rule("DELETE")]);
    let edited = put(with(json!([meter("a", 1), meter("c", 3)]), both)).await;
    is(
        kinds(&edited),
        &[
            ("rul", "cre"),
            ("rul", "cre"),
            ("rul", "del"),
            ("rul", "del"),
        ],
    );
}

#[actix_web::test]
async fn secrets_are_set_once_and_again_only_when_they_differ() {
    let api = api().await;
    api.put(Who::Admin, CONFIG, document()).await.is(200);
    let mut changed = document();
    changed["credentials"][1]["secret"] = json!({"token": "sk_live_fedcba9876543210"});
    let done = api.put(Who::Admin, CONFIG, changed.clone()).await.is(200);
    assert_eq!(done.body["changes"].as_array().unwrap().len(), 1);
    let again = api.put(Who::Admin, CONFIG, changed.clone()).await.is(200);
    assert_eq!(again.body["changes"], json!([]));
    // New hosts are no part of the old seal.
    changed["credentials"][1]["hosts"] = json!(["api.stripe.com", "files.stripe.com"]);
    let without = {
        let mut document = changed.clone();
        document["credentials"][1]
            .as_object_mut()
            .unwrap()
            .remove("secret");
        document
    };
    let refused = api.put(Who::Admin, CONFIG, without).await.is(422);
    assert_eq!(
        refused.faults()[0].0,
        "/credentials/1/hosts",
        "{}",
        refused.text
    );
    api.put(Who::Admin, CONFIG, changed).await.is(200);
}

#[actix_web::test]
async fn a_secret_that_is_revoked_stays_so_and_one_for_other_regions_is_set_again() {
    let api = api().await;
    let mut applied = document();
    applied["credentials"][0]["secret"] = json!({"key": "Caller-Key-of-24-chars-01"});
    let done = api.put(Who::Admin, CONFIG, applied.clone()).await.is(200);
    let id = |kind: &str| -> CredentialId {
        let mut changes = done.body["changes"].as_array().unwrap().iter();
        let is_it = |change: &&Value| change["after"]["kind"] == kind;
        let change = changes.find(is_it).unwrap();
        change["id"].as_str().unwrap().parse().unwrap()
    };
    for (at, kind) in ["proxy", "target"].into_iter().enumerate() {
        let id = id(kind);
        let lowest = api.control.publisher.revoke_here(api.acme, id).await;
        lowest.unwrap();
        let mut world = api.control.watched();
        let is_told = |world: &std::sync::Arc<proto::store::follow::World>| {
            world.orgs[&api.acme].retired.contains_key(&id)
        };
        world.wait_for(is_told).await.unwrap();
        let path = format!("/orgs/acme/credentials/{id}");
        let known = api.get(Who::Viewer, &path).await.is(200);
        assert_eq!(known.body["secret"]["state"], "revoked");
        // Whoever revoked it meant it; the document may be older.
        for path in [CONFIG, DRY_RUN] {
            let again = api.put(Who::Admin, path, applied.clone()).await.is(200);
            assert_eq!(again.body["changes"], json!([]));
            let [warning] = &again.body["warnings"].as_array().unwrap()[..] else {
                panic!("{}", again.text);
            };
            assert_eq!(warning["pointer"], format!("/credentials/{at}/secret"));
            assert_eq!(warning["code"], "secret-revoked");
        }
        let known = api.get(Who::Viewer, &path).await.is(200);
        assert_eq!(known.body["secret"]["state"], "revoked");
        applied["credentials"][at]["secret"] = match kind {
            "proxy" => json!({"key": "Caller-Key-of-24-chars-02"}),
            _ => json!({"token": "sk_live_fedcba9876543210"}),
        };
        let other = api.put(Who::Admin, CONFIG, applied.clone()).await.is(200);
        assert_eq!(other.body["changes"].as_array().unwrap().len(), 1);
        assert!(other.body.get("warnings").is_none(), "{}", other.text);
        let known = api.get(Who::Viewer, &path).await.is(200);
        assert_eq!(known.body["secret"]["state"], "active");
    }
    // Revoked for some hosts, it is not sealed for others.
    let id_of_target = id("target");
    api.control
        .publisher
        .revoke_here(api.acme, id_of_target)
        .await
        .unwrap();
    let mut world = api.control.watched();
    let is_over = |world: &std::sync::Arc<proto::store::follow::World>| {
        let state = &world.orgs[&api.acme];
        let stored = state.config.credential(id_of_target).unwrap();
        let generation = &stored.secret.as_ref().unwrap().generation;
        let fact = state.retired.get(&id_of_target);
        fact.is_some_and(|fact| fact.covers(generation, jiff::Timestamp::now()))
    };
    world.wait_for(is_over).await.unwrap();
    let mut elsewhere = applied.clone();
    elsewhere["credentials"][1]["hosts"] = json!(["api.stripe.com", "files.stripe.com"]);
    let refused = api.put(Who::Admin, CONFIG, elsewhere).await.is(422);
    assert_eq!(
        refused.faults(),
        [("/credentials/1/secret".into(), "secret-revoked".to_owned())]
    );
    applied["credentials"][1]["secret"] = json!({"token": "sk_live_0011223344556677"});
    api.put(Who::Admin, CONFIG, applied.clone()).await.is(200);
    // Nobody can open a secret for a region that it was not sealed for.
    let path = format!("/orgs/acme/credentials/{}", id("target"));
    let generation = async || {
        let known = api.get(Who::Viewer, &path).await.is(200);
        known.body["secret"]["generation"].clone()
    };
    let before = generation().await;
    applied["credentials"][1]["regions"] = json!(["local"]);
    applied["proxies"][0]["regions"] = json!(["local"]);
    api.put(Who::Admin, CONFIG, applied.clone()).await.is(200);
    let after = generation().await;
    assert_ne!(before, after);
    api.put(Who::Admin, CONFIG, applied).await.is(200);
    assert_eq!(generation().await, after);
}

#[actix_web::test]
async fn everything_that_is_wrong_is_told_with_its_place() {
    let api = api().await;
    let n = api.acme_version();
    let mut wrong = document();
    wrong["targets"][0]["base_ulr"] = json!("x");
    wrong["proxies"][0]["limits"]["per_minute"] = json!("many");
    let faults = api.put(Who::Admin, CONFIG, wrong).await.is(422).faults();
    assert_eq!(
        faults,
        [
            ("/targets/0/base_ulr".into(), "unknown-field".into()),
            ("/proxies/0/limits/per_minute".into(), "type".to_owned()),
        ]
    );
    for (at, to, pointer, code) in [
        ("/format", json!("other/2"), "/format", "format"),
        (
            "/proxies/0/target",
            json!("strip"),
            "/proxies/0/target",
            "unknown-reference",
        ),
        (
            "/proxies/0/proxy_credentials/0",
            json!("x"),
            "/proxies/0/proxy_credentials/0",
            "unknown-reference",
        ),
        (
            "/targets/0/base_url",
            json!("ftp://x"),
            "/targets/0/base_url",
            "base-url",
        ),
        (
            "/targets/0/rules/0/path",
            json!({"pattern": "("}),
            "/targets/0/rules/0/path/pattern",
            "pattern-invalid",
        ),
        ("/credentials/1/name", json!("team"), "", ""),
        (
            "/credentials/1/secret",
            json!({"token": ""}),
            "/credentials/1/secret/token",
            "length",
        ),
        (
            "/credentials/0/kind",
            json!("target"),
            "/credentials/0/secret",
            "required",
        ),
    ] {
        let mut wrong = document();
        *wrong.pointer_mut(at).unwrap_or(&mut Value::Null) = to.clone();
        if at.ends_with("/path") {
            wrong["targets"][0]["rules"][0]["path"] = to;
        }
        let answer = api.put(Who::Admin, CONFIG, wrong).await.is(422);
        let found = answer.faults().contains(&(pointer.into(), code.into()));
        assert!(pointer.is_empty() || found, "{at}: {}", answer.text);
    }
    for (query, status) in [("?prune=maybe", 400), ("?prun=true", 400)] {
        let path = format!("{CONFIG}{query}");
        api.put(Who::Admin, &path, document()).await.is(status);
    }
    api.put(Who::Member, CONFIG, document()).await.is(403);
    assert_eq!(api.acme_version(), n);
}

#[actix_web::test]
async fn an_ambiguous_name_needs_an_id() {
    let api = api().await;
    let target = json!({"name": "twin", "base_url": "https://a.example"});
    let one = api
        .make(Who::Admin, "targets", target.clone())
        .await
        .is(201)
        .id();
    api.make(Who::Admin, "targets", target.clone())
        .await
        .is(201);
    let of = |target: &Value| json!({"format": "requestrocket/1", "targets": [target]});
    let refused = api.put(Who::Admin, CONFIG, of(&target)).await.is(422);
    assert_eq!(
        refused.faults(),
        [("/targets/0/name".into(), "ambiguous".into())]
    );
    let mut named = target.clone();
    named["id"] = json!(one);
    named["base_url"] = json!("https://b.example");
    let done = api.put(Who::Admin, CONFIG, of(&named)).await.is(200);
    assert_eq!(done.body["changes"][0]["id"], json!(one));
    // The export of both can be applied as it is.
    let exported = api.get(Who::Admin, CONFIG).await.is(200).body;
    let same = api.put(Who::Admin, CONFIG, exported).await.is(200);
    assert_eq!(same.body["changes"], json!([]));
    let twice = json!({"format": "requestrocket/1", "targets": [named, named]});
    let refused = api.put(Who::Admin, CONFIG, twice).await.is(422);
    assert_eq!(refused.faults()[0].1, "duplicate");
}

/// Ids of another installation are issued anew: the answer tells which, references follow, and the
/// same document means the same objects the next time.
#[actix_web::test]
async fn an_export_with_ids_is_applied_elsewhere() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let (target, proxy) = (made.target.clone(), made.proxy.clone());
    let document = json!({
        "format": "requestrocket/1",
        "targets": [
            {"id": "tgt_01h00000000000000000000001", "name": "twin", "base_url": "https://a.example"},
            {"id": "tgt_01h00000000000000000000002", "name": "twin", "base_url": "https://b.example"},
        ],
        "credentials": [
            {"id": "crd_01h00000000000000000000003", "name": "c", "kind": "proxy",
             "auth_type": "api_key"},
            {"name": "c", "id": "crd_01h00000000000000000000004", "kind": "proxy",
             "auth_type": "api_key"},
        ],
        "proxies": [
            {"alias": "second", "target": "tgt_01h00000000000000000000002",
             "proxy_credentials": ["crd_01h00000000000000000000004"]},
        ],
    });
    // Not unless it is said: an id that nothing has here may be mistyped.
    let n = api.acme_version();
    for path in [CONFIG, DRY_RUN] {
        let refused = api.put(Who::Admin, path, document.clone()).await.is(422);
        let faults = refused.faults();
        assert_eq!(faults.len(), 4, "{}", refused.text);
        assert_eq!(faults[0], ("/targets/0/id".into(), "not-found".into()));
        assert!(refused.text.contains("`import`"), "{}", refused.text);
    }
    assert_eq!(api.acme_version(), n);
    let import = format!("{CONFIG}?import=true");
    let dry = format!("{CONFIG}?import=true&dry_run=true");
    let would = api
        .put(Who::Admin, &dry, document.clone())
        .await
        .is(200)
        .body;
    let done = api
        .put(Who::Admin, &import, document.clone())
        .await
        .is(200)
        .body;
    let reissued = &done["reissued"];
    assert_eq!(reissued.as_object().unwrap().len(), 4, "{done}");
    assert_eq!(&would["reissued"], reissued);
    assert_eq!(done["generated"].as_array().unwrap().len(), 2);
    let changes = done["changes"].as_array().unwrap();
    let second = changes
        .iter()
        .find(|one| one["after"]["alias"] == "second")
        .unwrap();
    let named = &reissued["tgt_01h00000000000000000000002"];
    assert_eq!(&second["after"]["target_id"], named);
    let callers = &second["after"]["proxy_credential_ids"];
    assert_eq!(
        callers,
        &json!([reissued["crd_01h00000000000000000000004"]])
    );
    let b = changes.iter().find(|one| one["id"] == *named).unwrap();
    assert_eq!(b["after"]["base_url"], "https://b.example");

    // The second time what was issued for them is there.
    let again = api
        .put(Who::Admin, CONFIG, document.clone())
        .await
        .is(200)
        .body;
    assert_eq!(
        (&again["changes"], &again["reissued"]),
        (&json!([]), reissued)
    );
    // Also the export of what came of it, with and without what is not named.
    let exported = api.get(Who::Admin, CONFIG).await.is(200).body;
    let same = api.put(Who::Admin, CONFIG, exported).await.is(200).body;
    assert_eq!((&same["changes"], same.get("reissued")), (&json!([]), None));
    let prune = format!("{CONFIG}?prune=true");
    let pruned = api
        .put(Who::Admin, &prune, document.clone())
        .await
        .is(200)
        .body;
    let gone: Vec<&Value> = pruned["changes"].as_array().unwrap().iter().collect();
    assert!(
        gone.iter().all(|one| one["change"] == "deleted"),
        "{pruned}"
    );
    for id in [target, proxy] {
        assert!(gone.iter().any(|one| one["id"] == id), "{pruned}");
    }

    let twice = json!([document["targets"][0], document["targets"][0]]);
    let wrong = json!([{"id": "crd_01h00000000000000000000003", "name": "x",
                        "base_url": "https://a.example"}]);
    for (targets, code) in [(twice, "duplicate"), (wrong, "not-found")] {
        let document = json!({"format": "requestrocket/1", "targets": targets});
        let refused = api.put(Who::Admin, &import, document).await.is(422);
        assert_eq!(refused.faults()[0].1, code);
    }
}

/// An id with a wrong letter is an error that says which one was probably meant, and no second
/// object.
#[actix_web::test]
async fn a_mistyped_id_makes_no_object() {
    let api = api().await;
    api.put(Who::Admin, CONFIG, document()).await.is(200);
    let targets = api
        .get(Who::Member, "/orgs/acme/targets")
        .await
        .is(200)
        .body;
    let id = targets["items"][0]["id"].as_str().unwrap().to_owned();
    let last = if id.ends_with('0') { "1" } else { "0" };
    let mistyped = format!("{}{last}", &id[..id.len() - 1]);
    let mut wrong = document();
    wrong["targets"][0]["id"] = json!(mistyped);
    let refused = api.put(Who::Admin, CONFIG, wrong.clone()).await.is(422);
    assert_eq!(
        refused.faults(),
        [("/targets/0/id".into(), "not-found".to_owned())]
    );
    let meant = format!("`stripe` is {id}");
    assert!(refused.text.contains(&meant), "{}", refused.text);
    wrong["targets"][0]["id"] = json!(id);
    let right = api.put(Who::Admin, CONFIG, wrong).await.is(200);
    assert_eq!(right.body["changes"], json!([]), "{}", right.text);
}

#[actix_web::test]
async fn many_operations_are_one_version() {
    let api = api().await;
    let n = api.acme_version();
    let operations = json!({"operations": [
        {"create": "proxies", "object": {"target_id": "@t", "proxy_credential_ids": ["@c"]}},
        {"create": "credentials", "as": "c", "object": {"kind": "proxy", "auth_type": "api_key"}},
        {"create": "rules", "parent": "@t", "object": {"effect": "deny", "methods": ["PUT"]}},
        {"create": "targets", "as": "t", "object": {"base_url": "https://a.example"}},
    ]});
    let changes = "/orgs/acme/changes";
    let dry = format!("{changes}?dry_run=true");
    let would = api.post(Who::Admin, &dry, operations.clone()).await.is(200);
    assert_eq!(would.body["changes"].as_array().unwrap().len(), 4);
    assert_eq!(api.acme_version(), n);
    let done = api.post(Who::Admin, changes, operations).await.is(200);
    assert_eq!(done.body["to"], n + 1);
    assert_eq!(done.body["generated"].as_array().unwrap().len(), 1);
    let id_of = |prefix: &str| {
        let changes = done.body["changes"].as_array().unwrap().iter();
        let mut ids = changes.map(|change| change["id"].as_str().unwrap());
        ids.find(|id| id.starts_with(prefix)).unwrap().to_owned()
    };
    let (target, proxy) = (id_of("tgt_"), id_of("prx_"));
    let version = api
        .get(Who::Admin, &format!("/orgs/acme/targets/{target}"))
        .await
        .body;
    // A new target and its proxy change together, or not at all.
    let moved = json!({"operations": [
        {"create": "targets", "as": "new", "object": {"base_url": "https://b.example"}},
        {"update": proxy, "patch": {"target_id": "@new"}},
        {"delete": target, "if_match": 1},
    ]});
    api.post(Who::Admin, changes, moved.clone()).await.is(412);
    let mut moved = moved;
    moved["operations"][2]["if_match"] = version["version"].clone();
    let done = api.post(Who::Admin, changes, moved).await.is(200);
    assert_eq!(done.body["to"], n + 2);
    assert_eq!(
        done.body["changes"].as_array().unwrap().len(),
        4,
        "the rule went too"
    );
}

#[actix_web::test]
async fn a_list_of_changes_is_refused_as_a_whole_with_every_place() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let n = api.acme_version();
    let refused = |operations: Value| {
        let (api, body) = (&api, json!({"operations": operations}));
        async move {
            api.post(Who::Admin, "/orgs/acme/changes", body)
                .await
                .is(422)
                .faults()
        }
    };
    let pairs = |faults: Vec<(String, String)>| -> Vec<String> {
        faults
            .into_iter()
            .map(|(p, c)| format!("{p} {c}"))
            .collect()
    };
    let found = refused(json!([
        {"create": "targets", "object": {"base_url": "ftp://x"}},
        {"update": made.proxy, "patch": {"target_id": "@nobody"}},
        {"create": "rules", "object": {"effect": "deny"}},
        {"delete": "tgt_00000000000000000000000000"},
        {"update": made.proxy, "delete": made.proxy},
        {"delete": made.proxy, "patch": {}},
    ]))
    .await;
    assert_eq!(
        pairs(found),
        [
            "/operations/1/patch/target_id unknown-reference",
            "/operations/2/parent required",
            "/operations/3/delete not-found",
            "/operations/4 operation",
            "/operations/5/patch not-applicable",
        ]
    );
    let found = refused(json!([
        {"create": "targets", "object": {"base_url": "ftp://x"}},
        {"update": made.proxy, "patch": {"limits": {"per_minute": 0}}},
    ]))
    .await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].0.starts_with("/operations/0/object/base_url"),
        "{found:?}"
    );
    assert!(
        found[1]
            .0
            .starts_with("/operations/1/patch/limits/per_minute"),
        "{found:?}"
    );
    let alone = refused(json!([{"create": "targets", "object": {"base_url": "ftp://x"}}])).await;
    assert_eq!(alone[0].0, "/operations/0/object/base_url");
    assert_eq!(pairs(refused(json!([])).await), ["/operations length"]);
    let tokens = refused(json!([{"create": "tokens", "object": {}}])).await;
    assert_eq!(tokens[0].1, "enum");
    assert_eq!(api.acme_version(), n);
}

#[actix_web::test]
async fn a_list_of_changes_lets_nobody_do_more_than_one_change_would() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let n = api.acme_version();
    let path = "/orgs/acme/changes";
    for operation in [
        json!({"create": "targets", "object": {"base_url": "https://evil.example"}}),
        json!({"update": made.target, "patch": {"base_url": "https://evil.example"}}),
        json!({"delete": made.target}),
        json!({"update": made.injected, "patch": {"name": "mine"}}),
        json!({"create": "rules", "parent": made.target, "object": {"effect": "allow"}}),
        json!({"update": made.proxy, "patch": {"rewrite_urls": "off"}}),
        json!({"update": made.proxy, "patch": {"cookies": "pass"}}),
        json!({"update": made.proxy, "patch": {"acknowledge_open": true}}),
    ] {
        let harmless = json!({"update": made.proxy, "patch": {"name": "renamed"}});
        let body = json!({"operations": [harmless, operation]});
        api.post(Who::Member, path, body).await.is(403);
    }
    let harmless = json!({"update": made.proxy, "patch": {"name": "renamed"}});
    let body = json!({"operations": [harmless]});
    api.post(Who::Viewer, path, body.clone()).await.is(403);
    assert_eq!(api.acme_version(), n);
    api.post(Who::Member, path, body).await.is(200);
    let tokens = api.get(Who::Owner, "/orgs/acme/tokens").await.is(200);
    let token = json!({"operations": [{"delete": tokens.body["items"][0]["id"]}]});
    api.post(Who::Admin, path, token).await.is(422);
}

#[actix_web::test]
async fn the_audit_says_who_and_what_with_both_forms_and_no_secret() {
    let api = api().await;
    api.put(Who::Admin, CONFIG, document()).await.is(200);
    let mut renamed = document();
    renamed["proxies"][0]["active"] = json!(false);
    api.put(Who::Admin, CONFIG, renamed).await.is(200);
    let audit = api
        .get(Who::Admin, "/orgs/acme/audit?limit=2")
        .await
        .is(200);
    let items = audit.body["items"].as_array().unwrap();
    assert_eq!(items.len(), 2);
    assert!(items[0]["author"].as_str().unwrap().starts_with("tok_"));
    assert!(items[0]["author_name"].is_string());
    assert_eq!(items[0]["source"], "192.0.2.9");
    let objects = items[0]["objects"].as_array().unwrap();
    assert_eq!(objects.len(), 1);
    assert_eq!(objects[0]["before"]["active"], true);
    assert_eq!(objects[0]["after"]["active"], false);
    assert_eq!(items[1]["objects"].as_array().unwrap().len(), 6);
    // So does what the operator did, whose token is of another organisation.
    let target = json!({"base_url": "https://operator.example"});
    api.make(Who::Operator, "targets", target).await.is(201);
    let by_operator = api
        .get(Who::Admin, "/orgs/acme/audit?limit=1")
        .await
        .is(200);
    let name = &by_operator.body["items"][0]["author_name"];
    assert!(name.is_string(), "{}", by_operator.text);
    assert!(!audit.text.contains("sk_live"));
    let cursor = audit.body["next_cursor"].as_str().unwrap();
    let rest = format!("/orgs/acme/audit?limit=50&cursor={cursor}");
    let rest = api.get(Who::Admin, &rest).await.is(200);
    assert_eq!(rest.body["next_cursor"], Value::Null);
    let last = rest.body["items"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(last["n"], 1);
    assert!(last["objects"].is_array());
    api.get(Who::Member, "/orgs/acme/audit").await.is(403);
}

/// Names mean one thing, or are refused: never the wrong one.
#[actix_web::test]
async fn proxies_are_told_apart_by_alias_and_credentials_by_kind() {
    let api = api().await;
    let mut two = document();
    two["proxies"] = json!([
        {"name": "one name", "alias": "dev", "target": "stripe", "proxy_credentials": ["both"]},
        {"name": "one name", "alias": "prod", "target": "stripe", "proxy_credentials": ["both"],
         "target_credential": "both"},
        // A name is no alias, whatever it looks like.
        {"name": "alias dev", "target": "stripe", "proxy_credentials": ["both"]},
    ]);
    two["credentials"][0]["name"] = json!("both");
    two["credentials"][1]["name"] = json!("both");
    api.put(Who::Admin, CONFIG, two.clone()).await.is(200);
    let again = api.put(Who::Admin, CONFIG, two.clone()).await.is(200);
    assert_eq!(again.body["changes"], json!([]));
    let exported = api.get(Who::Admin, CONFIG).await.is(200).body;
    let same = api.put(Who::Admin, CONFIG, exported).await.is(200);
    assert_eq!(same.body["changes"], json!([]));
    // One with an alias of its own is another proxy, not the renamed first.
    two["proxies"] = json!([{"name": "one name", "alias": "third", "target": "stripe",
                             "proxy_credentials": ["both"]}]);
    let third = api.put(Who::Admin, CONFIG, two.clone()).await.is(200);
    assert_eq!(third.body["changes"].as_array().unwrap().len(), 1);
    assert_eq!(third.body["changes"][0]["change"], "created");
    // A name that two entries have says nothing.
    let mut twins = document();
    let twin = json!({"name": "stripe", "base_url": "https://b.example"});
    let id = api
        .make(Who::Admin, "targets", twin.clone())
        .await
        .is(201)
        .id();
    let first = api.get(Who::Admin, "/orgs/acme/targets").await.body["items"][0]["id"].clone();
    twins["targets"] = json!([
        {"id": first, "name": "stripe", "base_url": "https://api.stripe.com"},
        {"id": id, "name": "stripe", "base_url": "https://b.example"},
    ]);
    let refused = api.put(Who::Admin, CONFIG, twins).await.is(422);
    let place = (
        "/proxies/0/target".to_owned(),
        "unknown-reference".to_owned(),
    );
    assert!(refused.faults().contains(&place), "{}", refused.text);
}

/// A key answers a repeated write as the first time, also where it would not be possible any more.
#[actix_web::test]
async fn a_repeated_list_of_changes_is_carried_out_once() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let send = |path: &str, key: &str, body: &Value| {
        let request = api.request(Who::Admin, actix_web::http::Method::POST, path);
        let request = request
            .insert_header(("idempotency-key", key))
            .set_json(body);
        api.send(request)
    };
    let delete = json!({"operations": [{"delete": made.proxy}]});
    let path = "/orgs/acme/changes";
    let first = send(path, "k1", &delete).await.is(200);
    // As another control, or this one after a restart, that only the store tells of it.
    api.control.idempotency().forget_all();
    let again = send(path, "k1", &delete).await.is(200);
    assert_eq!(again.body["changes"], first.body["changes"]);
    assert_eq!(again.body["to"], first.body["to"]);
    // A dry run is no write: it is told anew.
    let rename = json!({"operations": [{"update": made.target, "patch": {"name": "x"}}]});
    let dry = format!("{path}?dry_run=true");
    let would = send(&dry, "k2", &rename).await.is(200);
    assert_eq!(would.body["changes"].as_array().unwrap().len(), 1);
    send(path, "k3", &rename).await.is(200);
    let now = send(&dry, "k2", &rename).await.is(200);
    assert_eq!(now.body["changes"], json!([]));
}

#[actix_web::test]
async fn the_order_of_a_list_does_not_matter() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let rules = format!("/orgs/acme/proxies/{}/rules", made.proxy);
    let rule = json!({"effect": "deny"});
    let rule = api.post(Who::Admin, &rules, rule).await.is(201).id();
    let path = "/orgs/acme/changes";
    let new = json!({"create": "rules", "parent": made.proxy, "object": {"effect": "deny"}});
    let gone = json!({"delete": made.proxy});
    for operations in [json!([new, gone]), json!([gone, new])] {
        let body = json!({"operations": operations});
        let refused = api.post(Who::Admin, path, body).await.is(422);
        assert_eq!(refused.faults()[0].1, "unknown-parent", "{}", refused.text);
    }
    let stranger = json!({"operations": [{"create": "rules", "object": {"effect": "deny"},
                                          "parent": "tgt_00000000000000000000000000"}]});
    let refused = api.post(Who::Admin, path, stranger).await.is(422);
    assert_eq!(
        refused.faults(),
        [("/operations/0/parent".into(), "not-found".into())]
    );
    let both = json!({"operations": [gone, {"delete": rule}]});
    let done = api.post(Who::Admin, path, both).await.is(200);
    assert_eq!(done.body["changes"].as_array().unwrap().len(), 2);
}

#[actix_web::test]
async fn what_is_to_be_said_of_a_given_secret_is_said_of_many_writes_at_once_too() {
    let api = api().await;
    let credential = |name: &str, token: &str| {
        json!({"name": name, "kind": "target", "auth_type": "bearer", "hosts": ["a.example"],
               "secret": {"token": token}})
    };
    let operation = |operation: Value| json!({"operations": [operation]});
    let create =
        |token: &str| operation(json!({"create": "credentials", "object": credential("a", token)}));
    let changes = "/orgs/acme/changes";
    let warned = |reply: &Reply| reply.body["changes"][0]["after"]["warnings"].clone();
    let dry = format!("{changes}?dry_run=true");
    let mut made = Value::Null;
    for path in [dry.as_str(), changes] {
        let answer = api.post(Who::Admin, path, create("abc")).await.is(200);
        assert_eq!(warned(&answer)[0]["pointer"], "/secret/token", "{path}");
        made = answer.body["changes"][0]["id"].clone();
    }
    let update = operation(json!({"update": made, "patch": {"secret": {"token": "xyz"}}}));
    let answer = api.post(Who::Admin, changes, update).await.is(200);
    assert_eq!(warned(&answer)[0]["pointer"], "/secret/token");
    for (name, token) in [("a", "uvw"), ("b", "rst")] {
        let document =
            json!({"format": "requestrocket/1", "credentials": [credential(name, token)]});
        let answer = api.put(Who::Admin, CONFIG, document).await.is(200);
        assert_eq!(warned(&answer)[0]["pointer"], "/secret/token", "{name}");
    }
    let long = create("a-token-that-is-searched-for");
    let answer = api.post(Who::Admin, changes, long).await.is(200);
    assert_eq!(warned(&answer), Value::Null);
}
