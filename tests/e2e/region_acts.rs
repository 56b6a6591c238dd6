//! What is done in the region whose control plane is asked, wherever home is: a proxy is tested, a
//! meter raised.

use serde_json::{Value, json};

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, Proxy};
use crate::harness::http::Message;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::pinned::Pair;
use crate::residency::id_of;

fn asked(control: &Gateway, path: &str, body: Value) -> Message {
    control.api("POST", path, Some(&body))
}

/// How many of some calls a node lets pass.
fn passed(node: &Gateway, proxy: &Proxy, calls: usize) -> usize {
    let statuses = (0..calls).map(|_| proxy.request("GET", "/").send(&node.url).status());
    statuses.filter(|status| *status == 200).count()
}

#[test]
fn a_test_is_sent_by_a_node_of_the_region_that_is_asked() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let proxy = pair.us.proxy(&upstream.url());
    for node in &pair.nodes {
        wait_status(node, &proxy, "GET", 200);
    }
    let path = format!("/proxies/{}/test", proxy.id);
    for (control, region) in [(&pair.us, "us"), (&pair.eu, "eu")] {
        let before = upstream.seen().len();
        let answer = asked(
            control,
            &path,
            json!({"request": {"method": "PUT", "path": "/x"}}),
        );
        assert_eq!(answer.status(), 200, "{region}: {}", answer.text());
        let outcome = answer.json();
        assert_eq!(outcome["node"], format!("gw-{region}"), "{outcome}");
        assert_eq!(outcome["upstream_status"], 200, "{outcome}");
        assert_eq!(upstream.seen().len(), before + 1, "{region}");
        let record = control.record(outcome["request_id"].as_str().expect("an id"));
        assert_eq!(record["region"], region, "{record}");
    }
}

#[test]
fn a_raise_is_in_force_in_the_region_that_is_asked_alone() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let proxy = pair.us.proxy(&upstream.url());
    let meter = json!({"limits": [{"limit": 4, "window": "day"}]});
    let place = format!("/proxies/{}/meters", proxy.id);
    let meter = id_of(&pair.us.create(&place, meter));
    for node in &pair.nodes {
        wait_for("the limit", || {
            (proxy.request("GET", "/").send(&node.url).status() == 429).then_some(())
        });
    }
    let path = format!("/meters/{meter}/raise");
    let raised = asked(&pair.eu, &path, json!({"percent": 250, "seconds": 600}));
    assert_eq!(raised.status(), 200, "{}", raised.text());
    let [us, eu] = &pair.nodes;
    wait_for("more in eu", || (passed(eu, &proxy, 1) == 1).then_some(()));
    assert_eq!(passed(eu, &proxy, 12), 5);
    assert_eq!(passed(us, &proxy, 4), 0);
    let key = format!("raises/{meter}");
    let holds = [&pair.two.us, &pair.two.eu].map(|region| region.dump().contains_key(&key));
    assert_eq!(holds, [false, true]);
}

/// What another region keeps alone is told to be there, and not to be nowhere.
#[test]
fn what_is_not_in_the_region_that_is_asked_is_said_to_be_elsewhere() {
    let pair = Pair::with(|two| two.content_by_region = true);
    let upstream = Upstream::json("{}");
    let strict = json!({"regions": ["us"], "residency": "strict"});
    let proxy = pair.us.proxy_with(&upstream.url(), json!({}), strict);
    let place = format!("/proxies/{}/meters", proxy.id);
    let meter = json!({"limits": [{"limit": 4, "window": "day"}]});
    let meter = id_of(&pair.us.create(&place, meter));
    wait_status(&pair.nodes[0], &proxy, "GET", 200);
    pair.two.wait_equal();
    let acts = [
        (format!("/proxies/{}/test", proxy.id), json!({})),
        (
            format!("/meters/{meter}/raise"),
            json!({"percent": 200, "seconds": 60}),
        ),
    ];
    for (path, body) in acts {
        let there = wait_for("what eu has", || {
            let answer = asked(&pair.eu, &path, body.clone());
            (answer.status() != 404).then_some(answer)
        });
        let code = there.json()["code"].clone();
        assert_eq!(
            (there.status(), code),
            (503, json!("set-unavailable")),
            "{path}"
        );
        let detail = there.json()["detail"].to_string();
        assert!(detail.contains("pinned to us is not kept here"), "{detail}");
        let here = asked(&pair.us, &path, body);
        assert_eq!(here.status(), 200, "{path}: {}", here.text());
    }
}
