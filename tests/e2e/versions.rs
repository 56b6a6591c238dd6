//! The way back: versions, diff and rollback on the command line, and what they do to callers.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Start, binary};
use crate::harness::upstream::Upstream;

/// Runs a client command; gives what it said, and whether it succeeded.
fn run(gateway: &Gateway, arguments: &[&str]) -> (bool, String) {
    let output = binary()
        .args(arguments)
        .args(["--control", &gateway.control])
        .env("REQUESTROCKET_TOKEN", &gateway.token)
        .output()
        .expect("the binary runs");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

#[test]
fn a_bad_change_is_found_and_taken_back() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let versions = |limit: &str| -> Value {
        let (good, said) = run(
            &gateway,
            &["versions", "--limit", limit, "--output", "json"],
        );
        assert!(good, "{said}");
        serde_json::from_str(&said).expect("JSON")
    };
    let good = versions("1")["items"][0]["n"].as_u64().expect("a number");
    let rule = json!({"effect": "deny", "message": "oops"});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), rule);
    let bad = (good + 1).to_string();
    assert_eq!(proxy.get("/").status(), 400);

    let (_, listed) = run(&gateway, &["versions"]);
    assert!(listed.trim_start().starts_with(&bad), "{listed}");
    let (_, diff) = run(&gateway, &["diff", &bad]);
    assert!(diff.starts_with("+ rul_"), "{diff}");
    let good = good.to_string();
    let (done, said) = run(&gateway, &["rollback", &good, "--dry-run"]);
    assert!(
        done && said.starts_with("- rul_") && said.contains("dry-run"),
        "{said}"
    );
    assert_eq!(proxy.get("/").status(), 400);
    let (done, said) = run(&gateway, &["rollback", &good]);
    assert!(done, "{said}");
    assert_eq!(
        proxy.get("/").status(),
        200,
        "in effect when the command ends"
    );
    let (done, said) = run(&gateway, &["rollback", "4711"]);
    assert!(!done && said.contains("4711"), "{said}");
}

#[test]
fn a_rollback_past_a_rotation_revives_no_key() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let newest = gateway.get("/versions?limit=1")["items"][0]["n"].clone();
    let rotate = format!("/credentials/{}/rotate", proxy.proxy_credential);
    let rotated = gateway.api("POST", &rotate, Some(&json!({}))).json();
    let key = rotated["secret"]["key"].as_str().expect("a key").to_owned();
    let rollback = gateway.api("POST", &format!("/versions/{newest}/rollback"), None);
    assert_eq!(rollback.status(), 200, "{}", rollback.text());
    let renewed = proxy
        .request("GET", "/")
        .without("authorization")
        .field("x-api-key", &key);
    assert_eq!(proxy.get("/").status(), 401, "the old key is over");
    assert_eq!(proxy.send(&renewed).status(), 200);
    let (_, folder) = gateway.stop();
    let gateway = Gateway::inside(folder, &Start::default());
    assert_eq!(proxy.request("GET", "/").send(&gateway.url).status(), 401);
    assert_eq!(renewed.send(&gateway.url).status(), 200);
}
