//! `--output json` of the commands on the history of the configuration and on changes of it: one
//! JSON text on standard output and nothing else, whatever a person would be told beside it.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::gateway::Gateway;

/// What a command says with `--output json`.
fn told(gateway: &Gateway, arguments: &[&str]) -> Value {
    let output = gateway.command(&[arguments, &["--output", "json"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    assert_eq!(said, "", "{arguments:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON text")
}

/// The items of a list with their ids, and what became of each.
fn changes(found: &Value) -> Vec<(String, String)> {
    let items = found.as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let change = |item: &Value| (text(&item["id"]), text(&item["change"]));
    items.map(change).collect()
}

fn written(folder: &Path, name: &str, document: &Value) -> String {
    let file = folder.join(name);
    std::fs::write(&file, document.to_string()).expect("a file");
    file.display().to_string()
}

#[test]
fn changes_and_the_past_are_told_as_json() {
    let gateway = Gateway::start();
    let folder = tempfile::tempdir().expect("a folder");
    let newest = || told(&gateway, &["versions", "--limit", "1"])["items"][0].clone();
    let before = newest()["n"].as_u64().expect("a number");
    let target = json!({"name": "one", "base_url": "https://one.example"});
    let caller = json!({"name": "team", "kind": "proxy", "auth_type": "api_key"});
    let operations = json!({"operations": [
        {"create": "targets", "object": target}, {"create": "credentials", "object": caller},
    ]});
    let file = written(folder.path(), "changes.json", &operations);

    let tried = told(&gateway, &["changes", &file, "--dry-run"]);
    assert_eq!(
        (&tried["from"], &tried["to"]),
        (&json!(before), &json!(before))
    );
    assert_eq!(
        tried["changes"].as_array().map(Vec::len),
        Some(2),
        "{tried}"
    );
    assert_eq!(tried["generated"], Value::Null, "no key is made: {tried}");
    assert_eq!(newest()["n"], before, "nothing was done");

    let done = told(&gateway, &["changes", &file]);
    assert_eq!(
        (&done["from"], &done["to"]),
        (&json!(before), &json!(before + 1))
    );
    let made = changes(&done["changes"]);
    assert!(
        made[0].0.starts_with("tgt_") && made[1].0.starts_with("crd_"),
        "{done}"
    );
    assert!(made.iter().all(|(_, change)| change == "created"), "{done}");
    assert_eq!(done["changes"][0]["before"], Value::Null);
    assert_eq!(
        done["changes"][0]["after"]["base_url"],
        "https://one.example"
    );
    assert_eq!(done["generated"][0]["id"], made[1].0.as_str());
    let key = done["generated"][0]["secret"]["key"]
        .as_str()
        .expect("a key");

    let version = newest();
    assert_eq!(
        (&version["n"], &version["changes"]),
        (&done["to"], &json!(2))
    );
    assert_eq!(version["changed"], json!([made[0].0, made[1].0]));
    assert!(
        version["hash"].is_string() && version["parent"].is_string(),
        "{version}"
    );
    assert_eq!(
        (&version["kept_in"], &version["source"]),
        (&json!("store"), &json!("127.0.0.1"))
    );
    let page = told(&gateway, &["versions", "--limit", "1"]);
    let cursor = page["next_cursor"].as_str().expect("more follow");
    let next = told(&gateway, &["versions", "--limit", "1", "--cursor", cursor]);
    assert_eq!(next["items"][0]["n"], before);
    assert_eq!(next["items"][0]["hash"], version["parent"]);

    let number = (before + 1).to_string();
    let shown = told(&gateway, &["diff", &number]);
    assert_eq!((&shown["from"], &shown["to"]), (&done["from"], &done["to"]));
    assert_eq!(changes(&shown["changes"]), made);
    let none = told(&gateway, &["diff", &number, "--from", &number]);
    assert_eq!(none["changes"], json!([]));

    let audit = told(&gateway, &["audit", "--limit", "1"])["items"][0].clone();
    assert_eq!(
        (&audit["kind"], &audit["n"]),
        (&json!("version"), &done["to"])
    );
    let author = (&audit["author_name"], &audit["source"]);
    assert_eq!(author, (&json!("bootstrap"), &json!("127.0.0.1")));
    assert!(
        audit["author"].is_string() && audit["at"].is_string(),
        "{audit}"
    );
    assert_eq!(changes(&audit["objects"]), made);
    for shown in [&shown, &audit] {
        assert!(
            !shown.to_string().contains(key),
            "a secret is shown only once: {shown}"
        );
    }
    applied(&gateway, folder.path(), before + 1);
    rolled_back(&gateway, before + 2, &made);
}

/// A file that makes another name of the target, after this version.
fn applied(gateway: &Gateway, folder: &Path, before: u64) {
    let other = json!({"name": "two", "base_url": "https://two.example"});
    let same = json!({"name": "one", "base_url": "https://changed.example"});
    let document = json!({"format": "requestrocket/1", "targets": [same, other]});
    let file = written(folder, "gateway.json", &document);
    let tried = told(gateway, &["apply", &file, "--dry-run"]);
    assert_eq!(
        (&tried["from"], &tried["to"]),
        (&json!(before), &json!(before))
    );
    let mut kinds: Vec<_> = changes(&tried["changes"])
        .into_iter()
        .map(|(_, kind)| kind)
        .collect();
    kinds.sort();
    assert_eq!(kinds, ["created", "updated"], "{tried}");
    let done = told(gateway, &["apply", &file]);
    assert_eq!(
        (&done["from"], &done["to"]),
        (&json!(before), &json!(before + 1))
    );
    let items = done["changes"].as_array().expect("a list");
    let updated = items.iter().find(|item| item["change"] == "updated");
    let updated = updated.expect("what was changed");
    assert_eq!(updated["before"]["base_url"], "https://one.example");
    assert_eq!(updated["after"]["base_url"], "https://changed.example");
    for again in [&["apply", &file][..], &["apply", &file, "--dry-run"]] {
        let again = told(gateway, again);
        assert_eq!((&again["from"], &again["to"]), (&done["to"], &done["to"]));
        assert_eq!(again["changes"], json!([]));
    }
}

/// Back to before all of it, from this version; these were made in the one before.
fn rolled_back(gateway: &Gateway, before: u64, made: &[(String, String)]) {
    let back = (before - 2).to_string();
    let tried = told(gateway, &["rollback", &back, "--dry-run"]);
    assert_eq!(
        (&tried["from"], &tried["to"]),
        (&json!(before), &json!(before))
    );
    let done = told(gateway, &["rollback", &back]);
    assert_eq!(
        (&done["from"], &done["to"]),
        (&json!(before), &json!(before + 1))
    );
    assert_eq!(changes(&tried["changes"]), changes(&done["changes"]));
    for (id, _) in made {
        let gone = (id.clone(), "deleted".to_owned());
        assert!(changes(&done["changes"]).contains(&gone), "{done}");
    }
    let refused = gateway.command(&["rollback", "4711", "--output", "json"]);
    assert!(!refused.status.success());
    assert_eq!(refused.stdout, b"", "nothing was done");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("4711"));
}
