//! `requestrocket explain` as it is typed: for a described request, for one that was made, and for
//! the last ones with a change that is not published. It tells and touches nothing.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::suggested_rules::told;

/// Calls that the proxy's meter grants in all.
const GRANTED: usize = 9;

fn explain(gateway: &Gateway, arguments: &[&str]) -> String {
    told(gateway, &[&["explain"], arguments].concat())
}

/// The requests that a proxy got, as its records tell.
fn recorded(gateway: &Gateway, proxy: &Proxy) -> usize {
    let found = gateway.get(&format!("/records?proxy={}&limit=100", proxy.id));
    found["items"].as_array().map_or(0, Vec::len)
}

/// A file with a rule for paths of the proxy that is not published.
fn change(folder: &Path, proxy: &Proxy, path: &str) -> String {
    let file = folder.join("rule.yaml");
    let rule = format!(
        "- create: rules\n  parent: {}\n  \
         object: {{ effect: deny, path: {{ pattern: ^/{path} }} }}\n",
        proxy.id
    );
    std::fs::write(&file, rule).expect("a file");
    file.display().to_string()
}

#[test]
fn explain_tells_and_touches_nothing() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let day = json!({"limits": {"per_day": GRANTED}});
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), day);
    let rule = json!({"effect": "deny", "path": {"pattern": "^/secret"}});
    let rule = gateway.create(&format!("/proxies/{}/rules", proxy.id), rule);
    let rule = rule["id"].as_str().expect("an id");
    let refused = wait_for("the rule", || {
        let answer = proxy.get("/secret");
        (answer.status() == 400).then_some(answer)
    });
    // Calls that came before the rule.
    let before = upstream.seen().len();
    for path in ["/admin/users", "/plain", "/plain"] {
        assert_eq!(proxy.get(path).status(), 200, "{path}");
    }
    let id = refused.field("requestrocket-request-id").expect("an id");
    let (sent, made) = (before + 3, before + 4);
    wait_for("records", || {
        (recorded(&gateway, &proxy) == made).then_some(())
    });
    let folder = tempfile::tempdir().expect("a folder");
    let unpublished = change(folder.path(), &proxy, "admin");
    let version = gateway.get("/versions?limit=1")["items"][0]["n"].clone();

    // A request that is described, twice as often as the meter grants.
    for _ in 0..2 * GRANTED {
        let told = explain(
            &gateway,
            &[&proxy.id, "GET", "/plain?a=b", "-H", "x-one: 1"],
        );
        for part in ["receive       pass", "limit ", "forward ", "path /plain"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(told.trim_end().ends_with("allowed"), "{told}");
    }
    let told = explain(&gateway, &[&proxy.id, "GET", "/secret/x"]);
    assert!(told.contains(&format!("{rule} deny")), "{told}");
    assert!(told.contains("denied: proxy-access-denied"), "{told}");
    // One that was made.
    let told = explain(&gateway, &["--record", id]);
    assert!(
        told.contains("it was GET /secret: 400 proxy-access-denied"),
        "{told}"
    );
    assert!(told.contains(&format!("{rule} deny")), "{told}");
    // The last ones, with what is not published, as JSON and as text.
    let last = ["--last", "50", "--change", &unpublished];
    let arguments = [&[proxy.id.as_str()], &last[..]].concat();
    let told = explain(&gateway, &[&arguments[..], &["--output", "json"]].concat());
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["looked_at"], made, "{told}");
    let otherwise = told["decided_otherwise"].as_array().expect("a list");
    let paths = otherwise.iter().map(|one| one["path"].clone());
    let paths: Vec<_> = paths.filter(|path| path != "/secret").collect();
    assert_eq!(paths, ["/admin/users"], "{told}");
    // Of those the rule that came after them is not the change's doing.
    let this = &told["changed_by_this"];
    assert_eq!((&this["denied"], &this["allowed"]), (&json!(1), &json!(0)));
    assert_eq!(this["requests"][0]["path"], "/admin/users", "{told}");
    assert_eq!(this["requests"].as_array().map(Vec::len), Some(1), "{told}");
    let told = explain(&gateway, &arguments);
    let denied = before + 2;
    let first = format!("this change would have denied 1 of the last {made}\n");
    assert!(told.starts_with(&first), "{told}");
    let next = format!("\nof {made} requests 2 would pass, {denied} be denied");
    assert!(told.contains(&next), "{told}");
    assert!(
        told.contains("was proxy-access-granted, would be denied"),
        "{told}"
    );

    // A change that has nothing to do with any of them.
    change(folder.path(), &proxy, "nowhere");
    let told = explain(&gateway, &arguments);
    let first = format!("this change would have denied 0 of the last {made}\nof {made} ");
    assert!(told.starts_with(&first), "{told}");
    assert!(
        before == 0 || told.contains("/secret: was proxy-access-granted, would be denied"),
        "{told}"
    );

    // Nothing was sent, recorded, published or spent.
    assert_eq!(upstream.seen().len(), sent);
    assert_eq!(recorded(&gateway, &proxy), made);
    assert_eq!(gateway.get("/versions?limit=1")["items"][0]["n"], version);
    assert_eq!(
        proxy.get("/admin/users").status(),
        200,
        "it is not published"
    );
    let more = (sent + 1..GRANTED).filter(|_| proxy.get("/plain").status() == 200);
    assert_eq!(
        more.count(),
        GRANTED - sent - 1,
        "all that is left is there"
    );
    assert_eq!(proxy.get("/plain").outcome(), (429, "rate-limited"));
}

/// Of a POST the record says whether something overrode its method, so that rules on methods are
/// judged and not left open.
#[test]
fn a_record_says_whether_its_method_was_overridden() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let ask = |fields: &[(&str, &str)], body: &str| {
        let request = proxy.request("POST", "/plain").body(body);
        let fields = fields.iter();
        let request = fields.fold(request, |request, (name, value)| request.field(name, value));
        let answer = proxy.send(&request);
        assert_eq!(answer.status(), 200, "{}", answer.text());
        let id = answer.field("requestrocket-request-id").expect("an id");
        let record = gateway.record(id);
        (id.to_owned(), record["method_overridden"].clone())
    };
    let (plain, no) = ask(&[("content-type", "application/json")], "{}");
    let (overridden, yes) = ask(&[("x-http-method-override", "PATCH")], "");
    let form = ("content-type", "application/x-www-form-urlencoded");
    let (form, open) = ask(&[form], "a=b");
    assert_eq!((no, yes, open), (json!(false), json!(true), json!(null)));
    let rule = json!({"effect": "deny", "methods": ["DELETE"]});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), rule);
    for (id, expected) in [
        (plain, "allowed"),
        (overridden, "unknown"),
        (form, "unknown"),
    ] {
        let told = explain(&gateway, &["--record", &id, "--output", "json"]);
        let told: Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!(told["decision"], expected, "{told}");
    }
}
