//! What makes no version stands in the audit, and who edits it below the API is found out.

use std::path::Path;

use proto::id::OrgId;
use proto::keys;
use proto::store::embedded::Embedded;
use proto::store::{Op, Store, Txn};
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Start};
use crate::harness::http::Request;
use crate::versions::run;

/// Changes an audit entry in the store of a gateway that is stopped.
async fn edit(folder: &Path, org: OrgId, seq: u64, change: impl Fn(String) -> Op) {
    let store = Embedded::open(&folder.join("data/store.sqlite")).expect("the store");
    let found = store.get(&keys::audit_entry(org, seq)).await;
    let entry = found.expect("the store").value.expect("an entry").value;
    let op = change(String::from_utf8(entry.to_vec()).expect("a text"));
    let txn = Txn {
        ops: vec![op],
        ..Txn::default()
    };
    store.txn(txn).await.expect("the store");
}

#[test]
fn what_makes_no_version_is_told_and_an_edit_of_it_is_found() {
    let start = Start::default();
    let gateway = Gateway::with(start.clone());
    let org = gateway.control_call("GET", "/api/v1/orgs/default", Some(&gateway.token), None);
    let org: OrgId = org.json()["id"]
        .as_str()
        .expect("an id")
        .parse()
        .expect("an id");
    let limits = json!([{"limit": 10, "window": "second"}]);
    let meter = gateway.create("/meters", json!({"name": "all", "limits": limits}));
    let meter = meter["id"].as_str().expect("an id");
    for percent in ["200", "300"] {
        let raise = ["raise", meter, "--percent", percent, "--seconds", "60"];
        let (done, said) = run(&gateway, &raise);
        assert!(done, "{said}");
    }
    for _ in 0..3 {
        let wrong = Request::new("GET", "/api/v1/me").field("authorization", "Bearer rr_api_x");
        assert_eq!(wrong.send(&gateway.control).status(), 401);
    }

    let (done, said) = run(&gateway, &["audit"]);
    let raised = format!("from 127.0.0.1: meter_raised meter_id={meter} percent=200 seconds=60");
    assert!(done && said.contains(&raised), "{said}");
    let (done, said) = run(&gateway, &["audit", "--org", "system"]);
    assert!(
        done && said.contains("unknown from 127.0.0.1: login_failed"),
        "{said}"
    );
    assert!(said.contains("times=3"), "{said}");
    for org in ["default", "system"] {
        let (done, said) = run(&gateway, &["audit", "verify", "--org", org]);
        assert!(
            done && said.contains("nothing in it contradicts itself"),
            "{said}"
        );
    }

    // A version after them proves them.
    gateway.create("/meters", json!({"name": "another"}));
    let (_, said) = run(&gateway, &["audit", "verify"]);
    assert!(
        said.contains("1 to 2; versions prove them up to 2"),
        "{said}"
    );

    let (_, folder) = gateway.stop();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(edit(folder.path(), org, 1, |entry| {
        assert!(entry.contains("\"percent\":200"), "{entry}");
        let entry = entry.replace("\"percent\":200", "\"percent\":110");
        Op::put(keys::audit_entry(org, 1), entry)
    }));
    let gateway = Gateway::inside(folder, &start);
    let (done, said) = run(&gateway, &["audit", "verify"]);
    assert!(!done && said.contains("entry 1 changed"), "{said}");
    let (done, said) = run(&gateway, &["audit", "verify", "--output", "json"]);
    let first = said.lines().next().expect("a line");
    let found: Value = serde_json::from_str(first).expect("a document");
    assert!(!done && found["breaks"][0]["entry"] == 1, "{said}");

    let (_, folder) = gateway.stop();
    runtime.block_on(edit(folder.path(), org, 2, |_| {
        Op::Delete(keys::audit_entry(org, 2))
    }));
    let gateway = Gateway::inside(folder, &start);
    let (done, said) = run(&gateway, &["audit", "verify"]);
    assert!(!done && said.contains("entry 2 missing"), "{said}");
}
