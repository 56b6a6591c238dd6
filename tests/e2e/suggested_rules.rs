//! `requestrocket suggest-rules`: an allow-list of what was used, in shadow mode, then in force.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy, binary};
use crate::harness::http::Message;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// A command's standard output.
pub fn told(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = binary()
        .args(arguments)
        .args(["--control", &gateway.control])
        .env("REQUESTROCKET_TOKEN", &gateway.token)
        .output()
        .expect("the binary runs");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {told}{error}");
    told
}

fn shadow_rules(gateway: &Gateway, answer: &Message) -> Value {
    let id = answer.field("requestrocket-request-id").expect("an id");
    gateway.record(id)["shadow_rule_ids"].clone()
}

/// What the proxy is used for: method, path.
const USED: [(&str, &str); 7] = [
    ("GET", "/v1/charges/ch_000000000001"),
    ("GET", "/v1/charges/ch_000000000002"),
    ("GET", "/v1/charges/ch_000000000003"),
    ("POST", "/v1/charges"),
    ("GET", "/v1/a%20b"),
    ("HEAD", "/v1/charges"),
    ("GET", "/v1/charges/search"),
];

fn call(proxy: &Proxy, (method, path): (&str, &str)) -> Message {
    proxy.send(&proxy.request(method, path))
}

/// Suggestions once so many requests are recorded as sent.
fn suggested(gateway: &Gateway, proxy: &Proxy, sent: usize) -> Value {
    wait_for("records", || {
        let path = format!("/proxies/{}/suggested-rules", proxy.id);
        let found = gateway.get(&path);
        (found["records"] == sent).then_some(found)
    })
}

#[test]
fn what_was_used_becomes_an_allow_list_that_denies_nothing_of_it() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let rules = format!("/proxies/{}/rules", proxy.id);
    gateway.create(
        &rules,
        json!({"effect": "deny", "path": {"pattern": "^/admin"}}),
    );
    // What is refused is not asked for into an allow-list.
    assert_eq!(call(&proxy, ("GET", "/admin/users")).status(), 400);
    for used in USED {
        assert_eq!(call(&proxy, used).status(), 200, "{used:?}");
    }
    let version = gateway.get("/versions?limit=1")["items"][0]["n"].clone();
    let found = suggested(&gateway, &proxy, USED.len());
    let shown = found["rules"].as_array().expect("rules").iter();
    let shown: Vec<(Value, Value)> = shown
        .map(|one| {
            (
                one["rule"]["path"]["pattern"].clone(),
                one["records"].clone(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            (json!("^/v1/charges/[^/:]+$"), json!(4)),
            (json!("^/v1/charges$"), json!(2)),
            (json!("^/v1/(?:a%20b|a b)$"), json!(1)),
        ]
    );
    assert_eq!(found["left_over"]["records"], 0, "{found}");
    let text = told(&gateway, &["suggest-rules", &proxy.id]);
    assert!(
        text.contains("^/v1/charges/[^/:]+$   as /v1/charges/"),
        "{text}"
    );
    assert!(text.contains("shadow mode"), "{text}");
    // Asking changed nothing.
    let now = gateway.get("/versions?limit=1")["items"][0]["n"].clone();
    assert_eq!(now, version);

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rules.json").display().to_string();
    let suggest = ["suggest-rules", &proxy.id, "--output", "json"];
    std::fs::write(&file, told(&gateway, &suggest)).expect("a file");
    told(&gateway, &["changes", &file]);
    for used in USED {
        let matched = wait_for("the shadow rules", || {
            let answer = call(&proxy, used);
            assert_eq!(answer.status(), 200, "{used:?}");
            let matched = shadow_rules(&gateway, &answer);
            (matched != json!([])).then_some(matched)
        });
        assert!(matched.is_array(), "{used:?}");
    }
    let other = call(&proxy, ("DELETE", "/v1/charges"));
    assert_eq!(other.status(), 200, "shadow mode denies nothing");
    assert_eq!(shadow_rules(&gateway, &other), json!([]));
    let until = gateway.get(&format!("/records?proxy={}&method=DELETE", proxy.id));
    let until = until["items"][0]["started_at"].clone();

    // The same in force: nothing more of what was used is asked for, and the rest is denied.
    let to = until.as_str().expect("an instant");
    let suggest = [&suggest[..], &["--enforce", "--to", to]].concat();
    std::fs::write(&file, told(&gateway, &suggest)).expect("a file");
    let last = ["explain", &proxy.id, "--last", "1000", "--change", &file];
    let tried: Value = serde_json::from_str(&told(
        &gateway,
        &[&last[..], &["--output", "json"]].concat(),
    ))
    .expect("JSON");
    let denied = tried["decided_otherwise"]
        .as_array()
        .expect("a list")
        .iter();
    let denied: Vec<&Value> = denied.map(|one| &one["method"]).collect();
    assert_eq!(denied, [&json!("DELETE")], "{tried}");
    told(&gateway, &["changes", &file]);
    wait_for("the allow-list", || {
        (call(&proxy, ("DELETE", "/v1/charges")).status() == 400).then_some(())
    });
    for used in USED {
        assert_eq!(call(&proxy, used).status(), 200, "{used:?}");
    }
    let listed = gateway.get(&rules);
    let modes = listed["items"].as_array().expect("rules").iter();
    assert!(
        modes.clone().all(|rule| rule["mode"] == "enforce"),
        "{listed}"
    );
    assert_eq!(modes.count(), 4, "no rule is there twice: {listed}");
}

#[test]
fn a_proxy_that_is_not_there_or_keeps_no_paths_has_no_suggestions() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let policy = json!({"record": {"path": "none"}});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), policy);
    for (name, query, status) in [
        (proxy.id.as_str(), "", 409),
        ("prx_00000000000000000000000000", "", 404),
        ("nobody", "", 404),
        (proxy.id.as_str(), "?mode=maybe", 400),
        (proxy.id.as_str(), "?from=yesterday", 400),
        (proxy.id.as_str(), "?from=1h&to=2h", 400),
    ] {
        if status == 400 {
            gateway.patch(
                &format!("/proxies/{}", proxy.id),
                json!({"record": {"path": "full"}}),
            );
        }
        let path = format!("/proxies/{name}/suggested-rules{query}");
        let answer = gateway.api("GET", &path, None);
        assert_eq!(answer.status(), status, "{path}: {}", answer.text());
    }
}
