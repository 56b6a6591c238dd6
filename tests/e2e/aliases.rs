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

#[test]
fn without_grace_an_old_alias_is_over_at_once() {
    let gateway = Gateway::configured("[policy]\nallow_http = true\nalias_grace_s = 0");
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy_with(&upstream.url(), json!({}), json!({"alias": "old"}));
    gateway.patch(&format!("/proxies/{}", proxy.id), json!({"alias": "new"}));
    assert_eq!(status(&gateway, &proxy, "/api/old"), 401);
    assert_eq!(status(&gateway, &proxy, "/api/new"), 200);
}
