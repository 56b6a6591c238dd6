//! Names of proxies: what an alias that was changed still does.

use serde_json::json;

use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;

fn status(gateway: &Gateway, proxy: &Proxy, path: &str) -> u16 {
    let request = Request::new("GET", path);
    let request = request.field("authorization", &format!("Bearer {}", proxy.key));
    request.send(&gateway.url).status()
}

#[test]
fn an_old_alias_answers_until_its_time_is_over_or_another_proxy_takes_it() {
    let gateway = Gateway::start();
    let (first, second) = (Upstream::json("{}"), Upstream::json("{}"));
    let proxy = gateway.proxy_with(&first.url(), json!({}), json!({"alias": "old"}));
    let path = format!("/proxies/{}", proxy.id);
    gateway.patch(&path, json!({"alias": "new"}));
    for name in ["new", "old", "default.old", "default.new"] {
        assert_eq!(
            status(&gateway, &proxy, &format!("/api/{name}/x")),
            200,
            "{name}"
        );
    }
    assert_eq!(first.seen().len(), 4);
    let other = gateway.proxy_with(&second.url(), json!({}), json!({"alias": "old"}));
    assert_eq!(
        status(&gateway, &proxy, "/api/old/x"),
        401,
        "it is another's key now"
    );
    assert_eq!(status(&gateway, &other, "/api/old/x"), 200);
    assert_eq!((first.seen().len(), second.seen().len()), (4, 1));
    // A restart of the gateway changes nothing of it.
    gateway.patch(&path, json!({"alias": "newest"}));
    let (_, folder) = gateway.stop();
    let gateway = Gateway::inside(folder, &Default::default());
    for (name, expected) in [("new", 200), ("newest", 200), ("older", 401)] {
        assert_eq!(
            status(&gateway, &proxy, &format!("/api/{name}")),
            expected,
            "{name}"
        );
    }
}

/// An alias belongs to its organisation: another one may have the same, and neither learns of it.
#[test]
fn one_alias_in_two_organisations_is_two_proxies() {
    let gateway = Gateway::configured("[gateway]\nexplain_unauthorized = false");
    gateway.organisation("acme");
    let alias = || json!({"alias": "pay"});
    let (first, second) = (Upstream::json("{}"), Upstream::json("{}"));
    let own = gateway.proxy_in("default", &first.url(), json!({}), alias());
    let other = gateway.proxy_in("acme", &second.url(), json!({}), alias());
    for (proxy, names, seen) in [
        (&own, &["pay", "default.pay"][..], (2, 0)),
        (&other, &["acme.pay"], (2, 1)),
    ] {
        for name in ["pay", "default.pay", "acme.pay"] {
            let served = names.contains(&name);
            let expected = if served { 200 } else { 401 };
            let found = status(&gateway, proxy, &format!("/api/{name}/x"));
            assert_eq!(found, expected, "{name} with the key of {}", proxy.id);
        }
        assert_eq!((first.seen().len(), second.seen().len()), seen);
    }
    // A key that opens one is refused by the other as one that nobody has is.
    let refused = |name: &str, key: &str| {
        let request = Request::new("GET", &format!("/api/{name}/x"));
        let request = request.field("authorization", &format!("Bearer {key}"));
        let mut answer = request.send(&gateway.url).json();
        answer["request_id"].take();
        answer
    };
    assert_eq!(refused("acme.pay", &own.key), refused("acme.none", "none"));
    for (org, proxy, foreign) in [("default", &own, &other), ("acme", &other, &own)] {
        let listed = gateway
            .api_of(org, "GET", "/proxies?limit=500", None)
            .text();
        assert!(listed.contains(&proxy.id), "{listed}");
        assert!(!listed.contains(&foreign.id), "{listed}");
        let path = format!("/proxies/{}", foreign.id);
        assert_eq!(gateway.api_of(org, "GET", &path, None).status(), 404);
    }
    // Within an organisation it is taken.
    let body = json!({
        "alias": "pay", "target_id": other.target,
        "target_credential_id": other.target_credential,
        "proxy_credential_ids": [other.proxy_credential],
    });
    let taken = gateway.api_of("acme", "POST", "/proxies", Some(&body));
    assert_eq!(taken.status(), 409, "{}", taken.text());
    assert_eq!(taken.json()["used_by"], json!([other.id]));
    // One that goes takes nothing from the other.
    let path = format!("/proxies/{}", own.id);
    assert_eq!(gateway.api("DELETE", &path, None).status(), 204);
    assert_eq!(status(&gateway, &own, "/api/pay/x"), 401);
    assert_eq!(status(&gateway, &other, "/api/acme.pay/x"), 200);
}

#[test]
fn without_grace_an_old_alias_is_over_at_once() {
    let gateway = Gateway::configured("[policy]\nallow_http = true\nalias_grace_s = 0");
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), json!({"alias": "old"}));
    gateway.patch(&format!("/proxies/{}", proxy.id), json!({"alias": "new"}));
    assert_eq!(status(&gateway, &proxy, "/api/old"), 401);
    assert_eq!(status(&gateway, &proxy, "/api/new"), 200);
}
