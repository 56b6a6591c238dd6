//! Reads in a region that is not home, of a version that has not come there: they wait, are
//! answered by home, or are told (`schedules.md` part one, 17).

use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::http::{Message, Request};
use crate::harness::wait_for;
use crate::regions::Two;

/// Makes a target and gives its path and the version that the answer tells.
fn written(control: &Gateway, name: &str) -> (String, String) {
    let document = json!({"base_url": "https://api.example.com", "name": name});
    let made = control.api("POST", "/targets", Some(&document));
    assert_eq!(made.status(), 201, "{}", made.text());
    let version = made.field("requestrocket-version").expect("a version");
    let id = made.json()["id"].as_str().expect("an id").to_owned();
    (format!("/targets/{id}"), version.to_owned())
}

fn read(path: &str, token: &str, version: &str) -> Request {
    let path = match path {
        "/me" => "/api/v1/me".to_owned(),
        path => format!("/api/v1/orgs/default{path}"),
    };
    Request::new("GET", &path)
        .field("authorization", &format!("Bearer {token}"))
        .field("requestrocket-version", version)
}

fn code(answer: &Message) -> (u16, Value) {
    (answer.status(), answer.json()["code"].clone())
}

#[test]
fn a_read_of_what_has_not_come_is_answered_by_home() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let proxy = us.proxy("http://127.0.0.1:9");
    two.wait_equal();
    two.way.cut();
    let (target, version) = written(&us, "late");
    let ask = |path: &str| read(path, &eu.token, &version);
    let at_home = us.api("GET", &target, None);
    let here = eu.api("GET", &target, None);
    assert_eq!(here.status(), 404, "without its version the copy answers");

    let late = ask(&target).send(&eu.control);
    assert_eq!(late.status(), 200, "{}", late.text());
    assert_eq!(late.json(), at_home.json());
    let tag = late.field("etag").expect("a tag");
    assert_eq!(Some(tag), at_home.field("etag"));
    let same = ask(&target).field("if-none-match", tag).send(&eu.control);
    assert_eq!((same.status(), same.text().as_str()), (304, ""));
    for path in [
        "/me",
        "/targets?limit=500",
        "/versions",
        "/audit",
        "/config",
    ] {
        let late = ask(path).send(&eu.control);
        assert_eq!(late.status(), 200, "{path}: {}", late.text());
    }
    let late = ask(&format!("/proxies/{}", proxy.id)).send(&eu.control);
    let url = late.json()["url"].as_str().expect("a URL").to_owned();
    assert!(url.starts_with(&two.eu.gateway), "{url}");

    // What a region has of its own is not asked for elsewhere.
    for path in ["/records", "/telemetry", "/meters/usage"] {
        let late = ask(path).send(&eu.control);
        assert_eq!(code(&late), (503, json!("version-not-here")), "{path}");
    }
    // Nor is anything asked for twice.
    let passed_on = ask(&target).field("requestrocket-forwarded-by", "ap");
    let late = passed_on.send(&eu.control);
    assert_eq!(code(&late), (503, json!("version-not-here")));

    // The version comes while it is waited for.
    let (target, version) = written(&us, "in time");
    two.way.heal();
    let read = read(&target, &eu.token, &version).send(&eu.control);
    assert_eq!(read.status(), 200, "{}", read.text());
    two.wait_equal();
    assert_eq!(eu.api("GET", &target, None).status(), 200);
}

#[test]
fn home_judges_the_caller_of_a_late_read_and_its_absence_is_told() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let made = us.create("/tokens", json!({"name": "dev", "role": "admin"}));
    let token = made["secret"]["token"].as_str().expect("a token");
    let id = made["id"].as_str().expect("an id");
    wait_for("the token in eu", || {
        let path = "/api/v1/me";
        (eu.control_call("GET", path, Some(token), None).status() == 200).then_some(())
    });
    two.way.cut();
    let (target, version) = written(&us, "late");
    let ask = |version: &str| read(&target, token, version).send(&eu.control);
    assert_eq!(ask(&version).status(), 200);
    // A version that nobody has.
    let (org, n) = version.split_once('=').expect("a version");
    let n: u64 = n.parse().expect("a number");
    let nobody = ask(&format!("{org}={}", n + 1_000));
    assert_eq!(code(&nobody), (503, json!("version-not-here")));

    let revoked = us.api("DELETE", &format!("/tokens/{id}"), None);
    assert!(revoked.status() < 300, "{}", revoked.text());
    let own = eu.control_call("GET", "/api/v1/me", Some(token), None);
    assert_eq!(own.status(), 200, "eu has not heard");
    assert_eq!(ask(&version).status(), 401);

    let (target, version) = written(&us, "gone");
    us.stop();
    let gone = read(&target, &eu.token, &version).send(&eu.control);
    assert_eq!(code(&gone), (503, json!("version-not-here")));
    let detail = gone.json()["detail"].to_string();
    assert!(detail.contains("region us"), "{detail}");
    assert!(gone.field("retry-after").is_some());
}
