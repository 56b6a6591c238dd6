//! Versions are taken with the signature of the region that made them: real processes, and an etcd
//! of home that somebody writes to.

use proto::id::OrgId;
use proto::keys;
use proto::store::Op;
use serde_json::{Value, json};

use crate::cluster::{refused, wait_status};
use crate::harness::gateway::{Gateway, binary};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::raw_store::RawStore;
use crate::regions::{Two, keyring};

/// The own region as a control plane lists it.
fn own(control: &Gateway) -> Value {
    let listed = control.operator("/regions").json();
    let items = listed["items"].as_array().expect("a list");
    let own = items.iter().find(|region| region["own"] == true);
    own.expect("the own region").clone()
}

fn newest(two: &Two, org: OrgId) -> (u64, Vec<u8>) {
    let dump = two.us.dump();
    let head: Value = serde_json::from_slice(&dump[&keys::head(org)]).expect("a head");
    let n = head["n"].as_u64().expect("a number");
    (n, dump[&keys::version(org, n)].clone())
}

#[test]
fn a_version_that_home_did_not_sign_is_not_taken_and_said() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let node = two.node(&two.eu);
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    two.wait_equal();
    for region in us.operator("/regions").json()["items"]
        .as_array()
        .expect("a list")
    {
        assert_eq!(region["verified"], true, "{region}");
    }
    let all = two.us.dump();
    let org: OrgId = all
        .keys()
        .filter_map(|key| keys::parse_version(key))
        .map(|(org, _)| org)
        .find(|org| *org != proto::tree::SYSTEM_ORG)
        .expect("an organisation");

    // Somebody who can write home's etcd changes who made a version before eu has it.
    two.way.cut();
    us.patch(&format!("/proxies/{}", proxy.id), json!({"active": false}));
    let (n, record) = newest(&two, org);
    let mut forged: Value = serde_json::from_slice(&record).expect("a record");
    forged["author"] = json!("somebody else");
    let store = RawStore::new(two.us.etcd());
    let key = keys::version(org, n);
    store.put(vec![Op::put(key.clone(), forged.to_string())]);
    two.way.heal();
    let refused = wait_for("the refusal", || {
        let own = own(&eu);
        own["unverified"].get(0).cloned()
    });
    assert_eq!(refused["org"], org.to_string());
    assert_eq!(refused["version"], n);
    let why = refused["why"].as_str().expect("a reason");
    assert!(why.contains("it was altered"), "{why}");
    // Home itself finds it.
    let found = us.get("/audit/verify");
    assert_eq!(found["holds"], false, "{found}");
    assert_eq!(found["breaks"][0]["version"], n, "{found}");
    assert_eq!(found["breaks"][0]["problem"], "changed", "{found}");
    assert_eq!(found["signed_versions"], n - 1, "{found}");
    assert_eq!(eu.get("/audit/verify")["holds"], true);
    let metrics = eu.operator("/metrics").text();
    let line = "requestrocket_replication_unverified 1";
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
    let listed = eu.command(&["regions"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        listed.contains(&format!("version {n} of {org} is not taken")),
        "{listed}"
    );
    // What eu has it goes on serving; other organisations go on arriving.
    assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
    let created = us.control_call(
        "POST",
        "/api/v1/orgs",
        Some(&us.token),
        Some(&json!({"slug": "other"})),
    );
    assert_eq!(created.status(), 201, "{}", created.text());
    wait_for("another organisation in eu", || {
        let found = eu.control_call("GET", "/api/v1/orgs/other", Some(&us.token), None);
        (found.status() == 200).then_some(())
    });

    // Put right, it is taken without a restart.
    store.put(vec![Op::put(key, record)]);
    wait_status(&node, &proxy, "GET", 403);
    wait_for("no refusal", || {
        own(&eu).get("unverified").is_none().then_some(())
    });
    two.wait_equal();
}

#[test]
fn a_key_that_others_could_not_verify_is_refused_at_the_start() {
    let two = Two::new();
    keyring(two.folder(), "us", "again", None);
    let signer = |signing: &str| {
        let output = binary()
            .args(["keyring", "signer", "--output", "json", "--control"])
            .arg(two.file("again.public.json"))
            .arg("--signing")
            .arg(two.file(signing))
            .output();
        output.expect("the binary runs")
    };
    let foreign = signer("eu.signing.json");
    let said = String::from_utf8_lossy(&foreign.stderr).into_owned();
    assert!(said.contains("it is of region eu, not us"), "{said}");
    let made = signer("again.signing.json");
    let told: Value = serde_json::from_slice(&made.stdout).expect("an answer");
    let config = two
        .us_start()
        .config
        .replace("us.signing.json", "again.signing.json");
    let (code, said) = refused("control", &config, two.folder());
    assert_eq!(code, Some(2), "{said}");
    let key = told["key"].as_str().expect("its name");
    let expected = format!("`keys.public_file` does not list its key {key}");
    assert!(said.contains(&expected), "{said}");
}
