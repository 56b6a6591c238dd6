//! A key that the operator of a region revokes there while home is out of reach.

use serde_json::{Value, json};

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, binary};
use crate::harness::http::Message;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::regions::Two;

/// The operator's own token of region eu.
const LOCAL: &str = "eu-operator-token-of-at-least-32-characters";

/// `requestrocket regions revoke` on a control plane; the answer, where it is one.
fn revoke(control: &Gateway, token: &str, credential: &str) -> Result<Value, String> {
    let output = binary()
        .args(["regions", "revoke", credential, "--output", "json"])
        .args(["--control", &control.control])
        .env("REQUESTROCKET_TOKEN", token)
        .output()
        .expect("the binary runs");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn newest(control: &Gateway) -> u64 {
    let versions = control.get("/versions?limit=1");
    versions["items"][0]["n"].as_u64().expect("a number")
}

fn post(control: &Gateway, path: &str, body: Option<&Value>) -> Message {
    let answer = control.api("POST", path, body);
    assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
    answer
}

fn wait_state(control: &Gateway, credential: &str, state: &str) {
    wait_for(&format!("{state} on {}", control.control), || {
        let shown = control.get(&format!("/credentials/{credential}"));
        (shown["secret"]["state"] == state).then_some(())
    });
}

#[test]
fn what_a_region_revokes_while_home_is_away_is_over_everywhere_and_stays_so() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let nodes = [two.node(&two.us), two.node(&two.eu)];
    let upstream = Upstream::json("{}");
    let (proxy, other) = (us.proxy(&upstream.url()), us.proxy(&upstream.url()));
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
        wait_status(node, &other, "GET", 200);
    }
    let status = |at: usize, of: &crate::harness::gateway::Proxy| {
        of.request("GET", "/").send(&nodes[at].url).status()
    };
    let before = newest(&us);
    us.patch(&format!("/proxies/{}", other.id), json!({"name": "later"}));
    two.wait_equal();
    two.way.cut();
    two.back.cut();
    wait_for("the cut in eu", || {
        let connected = eu.metric("requestrocket_replication_connected{peer=\"us\"}");
        (connected == 0.0).then_some(())
    });

    let credential = &proxy.proxy_credential;
    wait_for("the records of eu", || {
        let found = eu.get(&format!("/credentials/{credential}/use"));
        (found["used_24h"].as_u64() >= Some(1)).then_some(())
    });
    let unknown = revoke(&eu, LOCAL, "crd_00000000000000000000000000");
    assert!(unknown.is_err(), "{unknown:?}");
    let foreign = revoke(&us, LOCAL, credential);
    assert!(
        foreign.is_err(),
        "eu's own token holds in eu alone: {foreign:?}"
    );
    let revoked = revoke(&eu, LOCAL, credential).expect("it is revoked");
    assert_eq!(
        (&revoked["region"], &revoked["slug"]),
        (&json!("eu"), &json!("default"))
    );
    // How it was used in this region is in the answer: by whoever waited for status 200 above.
    assert_eq!(revoked["use_unknown"], Value::Null, "{revoked}");
    assert_eq!(revoked["sources"], json!(["127.0.0.1"]), "{revoked}");
    assert!(revoked["used_24h"].as_u64() >= Some(1), "{revoked}");
    assert!(revoked["last_used_at"].is_string(), "{revoked}");
    wait_status(&nodes[1], &proxy, "GET", 401);
    assert_eq!(status(1, &other), 200, "another key");
    assert_eq!(status(0, &proxy), 200, "home cannot know it yet");
    wait_state(&eu, credential, "revoked");
    let path = "/api/v1/orgs/default/audit?limit=1";
    let audit = eu.control_call("GET", path, Some(&us.token), None).json();
    let item = &audit["items"][0];
    let told = (&item["kind"], &item["author"], &item["region"]);
    let expected = [
        json!("revocation_decided"),
        json!("local-operator"),
        json!("eu"),
    ];
    assert_eq!(told, (&expected[0], &expected[1], &expected[2]), "{audit}");
    assert_eq!(&item["details"]["credential_id"], credential);
    // Home goes on meanwhile.
    us.patch(
        &format!("/proxies/{}", other.id),
        json!({"name": "meanwhile"}),
    );

    two.way.heal();
    two.back.heal();
    wait_status(&nodes[0], &proxy, "GET", 401);
    wait_state(&us, credential, "revoked");
    two.wait_equal();
    // Nothing that home publishes brings it back.
    post(&us, &format!("/versions/{before}/rollback"), None);
    us.patch(&format!("/proxies/{}", proxy.id), json!({"name": "after"}));
    two.wait_equal();
    for at in [0, 1] {
        wait_for("the name in the node's region", || {
            (status(at, &other) == 200).then_some(())
        });
        assert_eq!(status(at, &proxy), 401);
    }
    // A key that is set later is another one.
    let rotated = post(
        &us,
        &format!("/credentials/{credential}/rotate"),
        Some(&json!({})),
    )
    .json();
    let key = rotated["secret"]["key"].as_str().expect("a key").to_owned();
    for node in &nodes {
        wait_for("the new key", || {
            let request = crate::harness::http::Request::new("GET", &format!("{}/", proxy.path));
            let request = request.field("authorization", &format!("Bearer {key}"));
            (request.send(&node.url).status() == 200).then_some(())
        });
        wait_status(node, &proxy, "GET", 401);
    }
    wait_state(&eu, credential, "active");
}
