//! What meters do while etcd is gone, each as it says.

use serde_json::json;

use crate::cluster::Cluster;
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Message;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// What a caller is told beside the answer.
const WARNING: &str = "requestrocket-proxy-warning";

/// A call for a tenant, each of which has a limit of its own.
fn call(proxy: &Proxy, node: &Gateway, tenant: &str) -> Message {
    let call = proxy.request("GET", "/").field("x-tenant", tenant);
    call.send(&node.url)
}

#[test]
fn without_etcd_a_limit_that_fails_open_lets_all_pass_and_one_that_fails_closed_nothing() {
    let mut cluster = Cluster::new();
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let limited = |on_store_loss: &str| {
        let proxy = control.proxy(&upstream.url());
        let meter = json!({
            "limits": [{"limit": 3, "window": "hour"}], "on_store_loss": on_store_loss,
            "key": {"by": "header", "name": "x-tenant"},
        });
        control.create(&format!("/proxies/{}/meters", proxy.id), meter);
        wait_for("the limit", || {
            let refused = call(&proxy, &node, "first").status() == 429;
            refused.then_some(())
        });
        proxy
    };
    let (open, closed) = (limited("fail_open"), limited("fail_closed"));
    cluster.etcd[0].stop();
    let mut ids = Vec::new();
    for _ in 0..20 {
        let passed = call(&open, &node, "second");
        assert_eq!(passed.status(), 200, "{}", passed.text());
        let warning = passed.field(WARNING).unwrap_or_default();
        assert!(warning.contains("goes by fail_open"), "{warning:?}");
        let id = passed.field("requestrocket-request-id");
        ids.push(id.expect("an id").to_owned());
        let refused = call(&closed, &node, "second");
        assert_eq!(refused.outcome(), (503, "limit-unavailable"));
        // What is known to be used up needs no etcd.
        for proxy in [&open, &closed] {
            assert_eq!(call(proxy, &node, "first").status(), 429);
        }
    }
    // One event for each meter, however many calls and keys.
    call(&open, &node, "third");
    for does in ["fail_open", "fail_closed"] {
        let told = format!("nor the store gives tokens: it goes by {does}");
        assert_eq!(node.log().matches(&told).count(), 1, "{does}");
    }
    cluster.etcd[0].restart();
    wait_for("the store is asked again", || {
        let passed = call(&open, &node, "fourth");
        let counted = passed.status() == 200 && passed.field(WARNING).is_none();
        let over = node.log().matches("gets its tokens again").count() >= 2;
        (counted || passed.status() == 429)
            .then_some(())
            .filter(|()| over)
    });
    for id in &ids {
        let record = control.record(id);
        let events = record["events"].as_array().expect("events").iter();
        let kinds: Vec<_> = events.map(|event| &event["kind"]).collect();
        assert_eq!(kinds, ["meter-fail-open"], "{record}");
    }
}
