//! `requestrocket-explain`: what was decided, in a header, for callers whose credential may see it
//! and for nobody else.

use serde_json::json;

use crate::harness::gateway::{Gateway, Proxy, TARGET_SECRET};
use crate::harness::http::{Message, Request};
use crate::harness::upstream::Upstream;

const HEADER: &str = "requestrocket-explain";

fn explaining(gateway: &Gateway, upstream: &Upstream) -> Proxy {
    let proxy = gateway.proxy(&upstream.url());
    let path = format!("/credentials/{}", proxy.proxy_credential);
    let changed = gateway.patch(&path, json!({"explain": true}));
    assert_eq!(changed["explain"], true);
    proxy
}

fn explained(answer: &Message) -> String {
    answer.field(HEADER).expect("the header").to_owned()
}

#[test]
fn a_caller_that_may_see_it_is_told_what_each_stage_decided() {
    let gateway = Gateway::start();
    // What a target sends of that name is not its to say.
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nrequestrocket-explain: forged\r\ncontent-length: 0\r\n\r\n",
    );
    let proxy = explaining(&gateway, &upstream);
    let line = explained(&proxy.get("/hidden/path?hidden=value"));
    assert!(
        line.starts_with("code=proxy-access-granted, version="),
        "{line}"
    );
    let stages = [
        "receive",
        "authenticate",
        "authorize",
        "limit",
        "prepare",
        "inject",
        "forward",
        "filter",
    ];
    for stage in stages {
        assert!(line.contains(&format!(", {stage};us=")), "{stage}: {line}");
    }
    assert!(
        line.contains(&format!("credential={}", proxy.proxy_credential)),
        "{line}"
    );
    assert!(
        line.contains(&format!("credential={}", proxy.target_credential)),
        "{line}"
    );
    assert!(line.contains(";attempts=1;status=200"), "{line}");
    for hidden in ["hidden", "forged", &proxy.key, TARGET_SECRET] {
        assert!(!line.contains(hidden), "{hidden}: {line}");
    }
}

#[test]
fn a_refusal_names_scopes_and_rules_and_never_their_notes() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = explaining(&gateway, &upstream);
    let rule = gateway.create(
        &format!("/targets/{}/rules", proxy.target),
        json!({"effect": "deny", "path": {"pattern": "^/pattern$"}, "message": "told",
               "notes": "the notes"}),
    );
    let answer = proxy.get("/pattern");
    assert_eq!(answer.status(), 400);
    let line = explained(&answer);
    let id = rule["id"].as_str().expect("an id");
    assert!(line.contains(&format!("denied=\"target:{id}\"")), "{line}");
    assert!(
        !line.contains("pattern") && !line.contains("notes"),
        "{line}"
    );
    assert!(!line.contains("forward"), "it was not sent: {line}");
}

#[test]
fn nobody_else_is_told() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let plain = gateway.proxy(&upstream.url());
    assert_eq!(plain.get("/").field(HEADER), None);
    let proxy = explaining(&gateway, &upstream);
    let wrong = Request::new("GET", &proxy.path).field("authorization", "Bearer rr_live_wrong");
    let answer = wrong.send(&gateway.url);
    assert_eq!((answer.status(), answer.field(HEADER)), (401, None));
    // A caller's own header of that name grants nothing.
    let asking = plain.request("GET", "/").field(HEADER, "1");
    assert_eq!(plain.send(&asking).field(HEADER), None);
    // It is taken away as it is given.
    let path = format!("/credentials/{}", proxy.proxy_credential);
    assert!(proxy.get("/").field(HEADER).is_some());
    let changed = gateway.patch(&path, json!({"explain": false}));
    assert_eq!(changed.get("explain"), None, "{changed}");
    crate::harness::wait_for("the change", || {
        proxy.get("/").field(HEADER).is_none().then_some(())
    });
    let target = format!("/credentials/{}", proxy.target_credential);
    let refused = gateway.api("PATCH", &target, Some(&json!({"explain": true})));
    assert_eq!(refused.status(), 422, "{}", refused.text());
    assert_eq!(refused.json()["errors"][0]["pointer"], "/explain");
}
