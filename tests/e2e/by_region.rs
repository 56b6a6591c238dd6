//! `regions.content_by_region`: what is pinned to a region is kept there and at home alone, and
//! other regions serve what they know of it.

use std::time::Duration;

use proto::store::kept::Kept;
use proto::store::load;
use serde_json::{Value, json};

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, Proxy, TARGET_SECRET};
use crate::harness::http::{Message, Request};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::pinned::Pair;
use crate::region_moves::{regions, said};
use crate::residency::{CANARY, code_of, folder_is_free, has_in_memory, holds, id_of, is_free_of};

fn pair() -> Pair {
    Pair::with(|two| two.content_by_region = true)
}

/// A proxy that us alone serves; the canary is in everything that is its own.
fn pinned(pair: &Pair, upstream: &Upstream, fields: Value) -> Proxy {
    let mut all = json!({"name": CANARY, "regions": ["us"], "labels": {"l": CANARY},
                         "forward_caller_headers": [format!("x-{CANARY}")]});
    let all_fields = all.as_object_mut().expect("an object");
    all_fields.extend(fields.as_object().expect("an object").clone());
    let proxy = pair.us.proxy_with(&upstream.url(), json!({}), all);
    pair.us.patch(
        &format!("/credentials/{}", proxy.target_credential),
        json!({"name": CANARY, "regions": ["us"]}),
    );
    let rule = json!({"effect": "deny", "methods": ["DELETE"], "message": CANARY});
    pair.us
        .create(&format!("/proxies/{}/rules", proxy.id), rule);
    wait_status(&pair.nodes[0], &proxy, "GET", 200);
    pair.two.wait_equal();
    proxy
}

fn at_eu(pair: &Pair, proxy: &Proxy) -> Message {
    proxy.request("GET", "/").send(&pair.nodes[1].url)
}

/// Fails where the canary is in a store, leaves unpacked.
fn store_is_free(pair: &Pair) {
    for (key, value) in pair.two.eu.dump() {
        let unpacked = match proto::keys::parse_leaf(&key) {
            Some((_, hash)) => proto::tree::unpack(hash, &value).expect("a leaf"),
            None => value,
        };
        is_free_of(&unpacked, &key);
    }
}

/// Fails where the canary is in the copy of its configuration that a process of eu keeps, which is
/// encrypted.
fn kept_is_free(pair: &Pair, process: &Gateway) {
    let file = process.data_dir().join("kept.bin");
    let kept = Kept::new(file, &pair.two.ring("eu").digest_key, "eu").expect("a key");
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let mut leaves = 0;
    wait_for("a copy", || {
        // While it is written it may be gone for a moment.
        let (copy, _) = kept.read(Duration::MAX).ok()??;
        let listed = load::list(&copy, "", None, |pair| {
            leaves += usize::from(proto::keys::parse_leaf(&pair.key).is_some());
            is_free_of(&pair.value, &pair.key);
        });
        let runtime = runtime.as_ref().expect("a runtime");
        runtime.block_on(listed).expect("it is in memory");
        Some(())
    });
    assert!(leaves > 0, "it holds a configuration");
}

#[test]
fn what_home_alone_serves_is_a_stub_elsewhere_that_calls_get_past() {
    let pair = pair();
    let upstream = Upstream::json("{}");
    let proxy = pinned(&pair, &upstream, json!({"cross_region": "forward"}));
    wait_for("the stub", || {
        (at_eu(&pair, &proxy).status() == 200).then_some(())
    });
    let injected = format!("Bearer {TARGET_SECRET}");
    assert_eq!(
        upstream.last().field("authorization"),
        Some(injected.as_str())
    );
    let listed = pair.eu.operator("/regions").json();
    assert_eq!(listed["items"][0]["content_by_region"], true, "{listed}");
    // eu has nothing of it but that: not in its store, not in its files, not in its processes.
    store_is_free(&pair);
    for process in [&pair.eu, &pair.nodes[1]] {
        folder_is_free(process.data_dir().parent().expect("its folder"));
        assert!(!has_in_memory(process, CANARY.as_bytes()));
        kept_is_free(&pair, process);
    }
    assert!(has_in_memory(&pair.nodes[0], CANARY.as_bytes()));

    // Who may call is known here; what is allowed is decided there.
    let stranger = proxy
        .request("GET", "/")
        .without("authorization")
        .field("authorization", "Bearer no");
    assert_eq!(stranger.send(&pair.nodes[1].url).status(), 401);
    let denied = proxy.request("DELETE", "/").send(&pair.nodes[1].url);
    assert_eq!(denied.status(), 400, "{}", denied.text());
    assert!(holds(&denied.body, CANARY.as_bytes()), "{}", denied.text());
    for (says, status) in [("redirect", 307), ("reject", 421)] {
        let path = format!("/proxies/{}", proxy.id);
        pair.us.patch(&path, json!({"cross_region": says}));
        wait_for("what the proxy says", || {
            (at_eu(&pair, &proxy).status() == status).then_some(())
        });
    }

    // What is not here is read at home; nothing is shown in part.
    let path = format!("/proxies/{}", proxy.id);
    assert_eq!(pair.eu.get(&path)["name"], CANARY);
    assert_eq!(pair.eu.get(&path), pair.us.get(&path));
    let policy = pair.eu.get(&format!("{path}/rules"));
    assert_eq!(policy["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(pair.eu.get("/config"), pair.us.get("/config"));
    store_is_free(&pair);

    // A node of eu starts from its copy while nothing else of eu is there.
    let Pair {
        mut two,
        us,
        eu,
        nodes: [of_us, node],
    } = pair;
    us.patch(
        &format!("/proxies/{}", proxy.id),
        json!({"cross_region": "forward"}),
    );
    wait_status(&node, &proxy, "GET", 200);
    let folder = us.kill();
    let reads = [path.as_str(), "/proxies", "/config"];
    let unread = |code: &str| {
        for path in reads {
            let unread = eu.api("GET", path, None);
            assert_eq!(unread.status(), 503, "{}", unread.text());
            assert_eq!(unread.json()["code"], code);
        }
    };
    unread("home-unavailable");
    // Nor is anything of it changed here.
    let change = json!({"active": false});
    let unwritten = eu.api("PATCH", &path, Some(&change));
    let said_of = (unwritten.status(), unwritten.json()["code"].clone());
    assert_eq!(said_of, (503, json!("home-unavailable")));
    let why = "what is pinned to us is not in region eu";
    assert!(unwritten.text().contains(why), "{}", unwritten.text());

    // Made its home by force, eu carries it on as it is, and changes everything else.
    let local = "eu-operator-token-of-at-least-32-characters";
    let promote = ["promote", "eu", "--force"];
    let would = said(&regions(
        &eu,
        local,
        &[&promote[..], &["--dry-run"]].concat(),
    ));
    let is_frozen = "what us alone keeps is frozen";
    assert!(
        would.contains("would be of eu") && would.contains(is_frozen),
        "{would}"
    );
    let listed = eu.operator("/regions").json();
    let mut items = listed["items"].as_array().expect("a list").iter();
    let home = items.find(|region| region["home"] == true);
    assert_eq!(home.expect("a home")["name"], "us", "it moved nothing");
    let forced = said(&regions(&eu, local, &promote));
    assert!(
        forced.contains("home is eu") && forced.contains(is_frozen),
        "{forced}"
    );
    unread("set-unavailable");
    let refused = eu.api("PATCH", &path, Some(&change));
    let said_of = (refused.status(), refused.json()["code"].clone());
    assert_eq!(
        said_of,
        (503, json!("set-unavailable")),
        "{}",
        refused.text()
    );
    assert!(refused.text().contains("us"), "{}", refused.text());
    let further = eu.proxy(&upstream.url());
    wait_status(&node, &further, "GET", 200);
    wait_status(&node, &proxy, "GET", 200);

    // It comes here by itself when us is back, which follows.
    let us = Gateway::inside(folder, &two.us_start());
    wait_for("what is pinned to us", || {
        (eu.api("PATCH", &path, Some(&change)).status() == 200).then_some(())
    });
    wait_for("the change", || {
        let answer = proxy.request("GET", "/").send(&of_us.url);
        (answer.json()["code"] == "proxy-inactive").then_some(())
    });
    eu.patch(&path, json!({"active": true}));
    wait_status(&of_us, &proxy, "GET", 200);
    wait_status(&of_us, &further, "GET", 200);
    wait_status(&node, &proxy, "GET", 200);
    assert_eq!(eu.get(&path)["name"], CANARY);
    us.kill();
    let (_, folder) = node.stop();
    eu.kill();
    two.eu.stop_etcd();
    let node = Gateway::inside(folder, &two.node_start(&two.eu));
    wait_status(&node, &proxy, "GET", 200);
}

#[test]
fn what_is_strict_is_nothing_elsewhere() {
    let pair = pair();
    let upstream = Upstream::json("{}");
    let strict = json!({"residency": "strict"});
    let proxy = pinned(
        &pair,
        &upstream,
        json!({"alias": "pay", "residency": "strict"}),
    );
    let path = format!("/proxies/{}", proxy.id);
    assert_eq!(pair.us.get(&path)["residency"], "strict");
    store_is_free(&pair);
    let known = pair.two.eu.dump();
    for (key, value) in known {
        let unpacked = match proto::keys::parse_leaf(&key) {
            Some((_, hash)) => proto::tree::unpack(hash, &value).expect("a leaf"),
            None => value,
        };
        // Versions say which objects changed, by their ids.
        let of_version = key.starts_with("versions/") || key.starts_with("live/delta/");
        assert!(
            of_version || !holds(&unpacked, proxy.id.as_bytes()),
            "{key}"
        );
    }
    // A call of it is answered as one of nothing.
    let here = at_eu(&pair, &proxy);
    let nothing = Request::new("GET", "/api/prx_00000000000000000000000001/");
    let nothing = nothing.field("authorization", &format!("Bearer {}", proxy.key));
    let nothing = nothing.send(&pair.nodes[1].url);
    assert_eq!(here.outcome(), nothing.outcome());

    for (fields, pointer, code) in [
        (json!({"regions": ["eu"]}), "/regions", "home-region"),
        (json!({"regions": ["*"]}), "/residency", "regions"),
        (
            json!({"cross_region": "forward"}),
            "/cross_region",
            "residency",
        ),
    ] {
        let refused = pair.us.api("PATCH", &path, Some(&fields));
        assert_eq!(refused.status(), 422, "{}", refused.text());
        let errors = refused.json()["errors"].clone();
        let mut errors = errors.as_array().expect("a list").iter();
        let said = errors.any(|error| error["pointer"] == pointer && error["code"] == code);
        assert!(said, "{}", refused.text());
    }
    // Home stays where it may be.
    let moved = pair.us.control_call(
        "POST",
        "/api/v1/regions/eu/hand-over",
        Some(&pair.us.token),
        None,
    );
    assert_eq!(moved.status(), 409, "{}", moved.text());
    assert!(
        moved.text().contains("residency: strict"),
        "{}",
        moved.text()
    );

    // Known to all again, it is.
    pair.us.patch(
        &path,
        json!({"residency": "standard", "cross_region": "forward"}),
    );
    wait_for("the stub", || {
        (at_eu(&pair, &proxy).status() == 200).then_some(())
    });
    store_is_free(&pair);
    pair.us.patch(&path, json!({"cross_region": "reject"}));
    let strict = pair.us.patch(&path, strict);
    assert_eq!(id_of(&strict), proxy.id);
    wait_for("nothing again", || {
        (at_eu(&pair, &proxy).outcome() == nothing.outcome()).then_some(())
    });
}

#[test]
fn strict_needs_the_setting() {
    let pair = Pair::new();
    let upstream = Upstream::json("{}");
    let proxy = pair.us.proxy(&upstream.url());
    let fields = json!({"regions": ["us"], "residency": "strict"});
    let path = format!("/proxies/{}", proxy.id);
    let refused = pair.us.api("PATCH", &path, Some(&fields));
    let expected = (422, json!("/residency"), json!("content-by-region"));
    assert_eq!(code_of(&refused), expected);
}
